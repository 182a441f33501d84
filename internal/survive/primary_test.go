package survive

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// ill waits until the status and an event say of the disk that it fails, in these words.
func (x *tapping) ill(words string) {
	x.t.Helper()
	var s tidemark.Status
	told := func(e tidemark.Event) bool {
		return strings.Contains(e.Message, "itself fails") && strings.Contains(e.Message, words)
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		s = ask[tidemark.Status](x.stage, "status")
		if a := s.Applications[0]; a.State == "degraded" && strings.Contains(a.Detail, words) && slices.ContainsFunc(s.Events, told) {
			return
		}
	}
	x.t.Fatalf("the status does not tell of %q: %+v, %v", words, s.Applications[0], s.Events)
}

// dd writes random data to the tapped disk, from a MiB on.
func (x *tapping) dd(from, n string) error {
	return exec.Command("dd", "if=/dev/urandom", "of="+x.device, "bs=1M", "seek="+from, "count="+n, "oflag=direct", "conv=fsync,notrunc").Run()
}

// The primary lies on a file system that runs full: the writer is told, and what the timeline has is what the primary has.
func TestPrimaryIsFull(t *testing.T) {
	beside(t)
	need(t, "dd")
	x := newTapping(t, 64<<20, func(disk string) {
		must(t, "mount", "-t", "tmpfs", "-o", "size=16m", "none", onOther(t, disk))
		sparse(t, disk)
	})
	if err := x.dd("0", "4"); err != nil {
		t.Fatal(err)
	}
	if err := x.dd("8", "40"); err == nil {
		t.Fatal("production was not told that its disk is full")
	}
	x.ill("no space left")
	x.same()
	x.run("unprotect", "prod")
}

// onOther makes disk a link to a file in a directory beside it, and returns that.
func onOther(t *testing.T, disk string) (dir string) {
	t.Helper()
	dir = disk + ".d"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "disk"), disk); err != nil {
		t.Fatal(err)
	}
	return dir
}

func sparse(t *testing.T, disk string) {
	t.Helper()
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
}

// The primary answers writes, then reads, with errors: so does the tapped disk. No point is had while what it holds cannot be
// known, and any when it can.
func TestPrimaryFails(t *testing.T) {
	beside(t)
	need(t, "dd", "nbdkit", "nbdfuse")
	var writes, reads string
	x := newTapping(t, 64<<20, func(disk string) {
		base := disk + ".base"
		must(t, "truncate", "-s", "64M", base)
		writes, reads = disk+".writes", disk+".reads"
		dir := onOther(t, disk)
		kit := exec.Command("nbdkit", "-f", "-U", disk+".sock", "--filter=error", "file", base,
			"error-pwrite=EIO", "error-pwrite-rate=100%", "error-pwrite-file="+writes, "error-pread=EIO", "error-pread-rate=100%", "error-pread-file="+reads)
		fuse := exec.Command("nbdfuse", filepath.Join(dir, "disk"), "--unix", disk+".sock")
		for _, cmd := range []*exec.Cmd{kit, fuse} {
			if cmd == fuse {
				if err := os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
				awaitFile(t, disk+".sock", func(os.FileInfo) bool { return true })
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		}
		awaitFile(t, disk, func(st os.FileInfo) bool { return st.Size() == 64<<20 })
		t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "disk"), unix.MNT_DETACH) })
	})
	fail := func(file string) (mend func()) {
		must(t, "touch", file)
		return func() { os.Remove(file) }
	}
	if err := x.dd("0", "4"); err != nil {
		t.Fatal(err)
	}
	before := x.head()
	mend := fail(writes)
	if x.dd("2", "4") == nil {
		t.Error("a write that the disk refused succeeded")
	}
	x.ill("input/output error")
	mend()
	if err := x.dd("3", "2"); err != nil {
		t.Errorf("after it was mended: %v", err)
	}
	x.same()

	mend = fail(reads)
	uncache(t, x.disk)
	x.run("resync", "prod")
	if exec.Command("dd", "if="+x.device, "of=/dev/null", "bs=1M", "count=1", "iflag=direct").Run() == nil {
		t.Error("a read that the disk refused succeeded")
	}
	if err := x.dd("10", "2"); err != nil {
		t.Errorf("a write while reads fail: %v", err)
	}
	x.ill("input/output error")
	x.refused([]string{"follow"}, "bookmark", "prod", "now")
	x.run("restore", "prod@"+before.String(), "--to", filepath.Join(x.dir, "out"), "--force")
	mend()
	x.same()
	x.run("unprotect", "prod")
}

// uncache lets the kernel forget what it has of a file in memory.
func uncache(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
}

// awaitFile waits for a file.
func awaitFile(t *testing.T, path string, ok func(os.FileInfo) bool) {
	t.Helper()
	for range 500 {
		if st, err := os.Stat(path); err == nil && ok(st) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s does not come", path)
}

// The primary shrinks, and is deleted: that is said at once, and in the end nothing keeps production from what it has, nor
// the tap from being taken out.
func TestPrimaryShrinksAndVanishes(t *testing.T) {
	beside(t)
	need(t, "dd")
	x := newTapping(t, 64<<20, func(string) {})
	if err := x.dd("40", "4"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(x.disk, 32<<20); err != nil {
		t.Fatal(err)
	}
	x.ill("has shrunk")
	if exec.Command("dd", "if="+x.device, "of=/dev/null", "bs=1M", "skip=40", "count=1", "iflag=direct").Run() == nil {
		t.Error("what is gone can be read")
	}
	if err := x.dd("1", "1"); err != nil {
		t.Errorf("a write of what is left: %v", err)
	}
	if err := os.Truncate(x.disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	x.same()
	if err := os.Remove(x.disk); err != nil {
		t.Fatal(err)
	}
	x.ill("was deleted")
	if err := x.dd("2", "2"); err != nil {
		t.Errorf("a write of a file without a name: %v", err)
	}
	x.follows()
	x.run("unprotect", "prod")
}
