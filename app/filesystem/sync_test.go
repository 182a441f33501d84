package filesystem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app"
)

// need skips a test on a workstation that lacks something, and fails it in CI.
func need(t testing.TB, ok bool, what string) {
	t.Helper()
	if !ok && os.Getenv("CI") != "" {
		t.Fatalf("CI must have: %s", what)
	}
	if !ok {
		t.Skipf("needs %s", what)
	}
}

// dump describes a tree completely, one entry a line; equal dumps are equal trees.
func dump(t testing.TB, root string) string {
	t.Helper()
	groups := map[uint64]string{}
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		fi, err := os.Lstat(path)
		if err != nil || fi.Mode()&fs.ModeSocket != 0 {
			return err
		}
		st := statOf(fi)
		line := fmt.Sprintf("%q %v %d:%d rdev %d %d", rel, fi.Mode(), st.Uid, st.Gid, st.Rdev, fi.ModTime().UnixNano())
		x, err := app.ReadXattrs(path)
		if err != nil {
			return err
		}
		var keys []string
		for k, v := range x {
			keys = append(keys, fmt.Sprintf("%s=%x", k, v))
		}
		sort.Strings(keys)
		line += fmt.Sprint(keys)
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(data), sha256.Sum256(data))
			if st.Nlink > 1 {
				if groups[st.Ino] == "" {
					groups[st.Ino] = rel
				}
				line += " = " + groups[st.Ino]
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func equal(t testing.TB, seed uint64, a, b string) {
	t.Helper()
	x, y := strings.Split(dump(t, a), "\n"), strings.Split(dump(t, b), "\n")
	for i := range max(len(x), len(y)) {
		var l, r string
		if i < len(x) {
			l = x[i]
		}
		if i < len(y) {
			r = y[i]
		}
		if l != r {
			t.Fatalf("seed %d: trees differ:\n  %s\n  %s", seed, l, r)
		}
	}
}

// mutate does something at random to a tree.
func mutate(t testing.TB, rng *rand.Rand, root string) {
	pick := func() string { return fmt.Sprintf("%s/d%d/f%d", root, rng.IntN(4), rng.IntN(8)) }
	path, other := pick(), pick()
	data := make([]byte, rng.IntN(30_000))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	// Nothing here follows a link or waits for a fifo: the links lead anywhere.
	overwrite := func(p string, flag int, off int64, data []byte) {
		f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE|flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
		if err != nil {
			return
		}
		defer f.Close()
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			f.WriteAt(data, off)
		}
	}
	regular := func(p string) bool { fi, err := os.Lstat(p); return err == nil && fi.Mode().IsRegular() }
	ignore := func(error) {} // many of these cannot be done to what is there; any outcome is a tree
	switch rng.IntN(15) {
	case 0, 1, 2:
		overwrite(path, os.O_TRUNC, 0, data)
	case 3:
		overwrite(path, 0, rng.Int64N(40_000), data[:len(data)/4])
	case 4:
		ignore(os.RemoveAll(path))
	case 5:
		ignore(os.Rename(path, other))
	case 6:
		ignore(os.Link(path, other))
	case 7:
		ignore(os.Symlink([]string{"/nowhere/at/all", "../nowhere", "f1", "a\nb"}[rng.IntN(4)], path))
	case 8:
		if n := rng.Int64N(100_000); regular(path) {
			ignore(os.Truncate(path, n))
		}
	case 9:
		ignore(unix.Mkfifo(path, 0o640))
	case 10:
		ignore(os.Chmod(filepath.Dir(path), fs.FileMode(0o700|rng.IntN(0o77))))
		ignore(unix.Lsetxattr(path, "user.tide", data[:min(8, len(data))], 0))
	case 11:
		ignore(os.Lchown(path, rng.IntN(5), rng.IntN(5)))
		if mode := uint32(rng.IntN(0o10000)); regular(path) {
			ignore(unix.Chmod(path, mode))
		}
	case 12:
		a, b := fmt.Sprintf("%s/d%d", root, rng.IntN(4)), fmt.Sprintf("%s/d%d", root, rng.IntN(4))
		ignore(os.Rename(a, root+"/tmp"))
		ignore(os.Rename(b, a))
		ignore(os.Rename(root+"/tmp", b))
	case 13:
		ignore(os.Mkdir(path, 0o755))
		if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
			overwrite(path+"/x\ny", os.O_TRUNC, 0, data)
		}
	case 14: // the same content twice, in one place or two
		if regular(path) {
			data, err := os.ReadFile(path)
			ignore(err)
			overwrite(other, os.O_TRUNC, rng.Int64N(2)*65536, data)
		}
	}
}

// A tree that changes at random is staged again and again, and each copy is restored.
func TestSyncModel(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	src, staging, back := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "back")
	for i := range 4 {
		if err := os.Mkdir(fmt.Sprintf("%s/d%d", src, i), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	skipped := 0
	for range 60 {
		for range rng.IntN(12) {
			mutate(t, rng, src)
		}
		time.Sleep(12 * time.Millisecond)
		st, err := Sync(context.Background(), src, staging, Options{margin: 5 * time.Millisecond})
		if err != nil || len(st.Inconsistent) > 0 || st.Rescan != "" {
			t.Fatalf("seed %d: %+v, %v", seed, st, err)
		}
		skipped += st.Skipped
		equal(t, seed, src, filepath.Join(staging, DataDir))
		if _, err := Restore(context.Background(), filepath.Join(staging, DataDir), back, RestoreOptions{Exact: true, Devices: true}); err != nil {
			t.Fatalf("seed %d: restore: %v", seed, err)
		}
		equal(t, seed, src, back)
	}
	if skipped == 0 {
		t.Errorf("seed %d: nothing was ever proven unchanged", seed)
	}
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustSync(t testing.TB, src, staging string, opts Options) Stats {
	t.Helper()
	st, err := Sync(context.Background(), src, staging, opts)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestOnlyChangedBlocksAreWritten(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/big", bytes.Repeat([]byte("tidemark"), 1<<19))
	mustSync(t, src, staging, Options{})
	f, err := os.OpenFile(src+"/big", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("!"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if st := mustSync(t, src, staging, Options{}); st.ChangedBytes != 4096 || st.ReadBytes != 4<<20 {
		t.Errorf("one byte changed: %+v", st)
	}
}

func TestHolesStayHoles(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/sparse", []byte("head"))
	if err := os.Truncate(src+"/sparse", 1<<30); err != nil {
		t.Fatal(err)
	}
	st := mustSync(t, src, staging, Options{})
	var got unix.Stat_t
	if err := unix.Stat(staging+"/data/sparse", &got); err != nil || got.Blocks > 64 || got.Size != 1<<30 {
		t.Errorf("copy: %d blocks, %d bytes, %v", got.Blocks, got.Size, err)
	}
	if st.ReadBytes > 1<<20 {
		t.Errorf("read %d bytes of holes", st.ReadBytes)
	}
}

func TestFileThatNeverRestsIsNamed(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/calm", []byte("a"))
	write(t, src+"/restless", []byte("b"))
	n := 0
	st := mustSync(t, src, staging, Options{afterRead: func(rel string) {
		if rel == "restless" {
			n++
			write(t, src+"/restless", bytes.Repeat([]byte("b"), n+1))
		}
	}})
	if len(st.Inconsistent) != 1 || st.Inconsistent[0] != "restless" {
		t.Errorf("inconsistent: %q", st.Inconsistent)
	}
	st = mustSync(t, src, staging, Options{})
	if len(st.Inconsistent) != 0 {
		t.Errorf("at rest: %q", st.Inconsistent)
	}
	equal(t, 0, src, staging+"/data")
}

func TestInterruptedSyncTrustsNothing(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/a", []byte("aaaa"))
	time.Sleep(30 * time.Millisecond)
	opts := Options{margin: 10 * time.Millisecond}
	mustSync(t, src, staging, opts)
	if st := mustSync(t, src, staging, opts); st.Skipped != 1 {
		t.Errorf("nothing changed: %+v", st)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Sync(ctx, src, staging, opts); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if st := mustSync(t, src, staging, opts); st.Skipped != 0 {
		t.Errorf("after an interruption: %+v", st)
	}
}

// C3: content that changed behind its dates is found by the samples.
func TestSampleFindsLyingDates(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	write(t, src+"/a", bytes.Repeat([]byte("x"), 100_000))
	time.Sleep(30 * time.Millisecond)
	opts := Options{margin: 10 * time.Millisecond}
	mustSync(t, src, staging, opts)
	copied := staging + "/data/a"
	fi, err := os.Stat(copied)
	if err != nil {
		t.Fatal(err)
	}
	write(t, copied, bytes.Repeat([]byte("y"), 100_000))
	if err := os.Chtimes(copied, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	if st := mustSync(t, src, staging, opts); st.Rescan == "" {
		t.Errorf("not noticed: %+v", st)
	}
	equal(t, 0, src, staging+"/data")
}

func TestSyncRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", nil)
	os.Mkdir(dir+"/in", 0o755)
	for src, want := range map[string]tidemark.Kind{dir + "/absent": tidemark.NotFound, dir + "/file": tidemark.Invalid, dir: tidemark.Invalid} {
		if _, err := Sync(context.Background(), src, dir+"/in", Options{}); tidemark.KindOf(err) != want || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", src, err)
		}
	}
}

// A full staging disk is an error, and the next Sync with room makes it whole.
func TestStagingFull(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	src, staging := t.TempDir(), t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", staging).Run(); err != nil {
		need(t, false, "tmpfs mounts")
	}
	defer exec.Command("umount", staging).Run()
	write(t, src+"/a", bytes.Repeat([]byte("x"), 2<<20))
	if _, err := Sync(context.Background(), src, staging, Options{}); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("full: %v", err)
	}
	if out, err := exec.Command("mount", "-o", "remount,size=16m", staging).CombinedOutput(); err != nil {
		t.Fatalf("remount: %s", out)
	}
	mustSync(t, src, staging, Options{})
	equal(t, 0, src, staging+"/data")
}

// S1: nothing outside of the two trees is read or written, whatever they hold.
func TestRestoreOfHostileTrees(t *testing.T) {
	need(t, os.Geteuid() == 0, "root")
	victim := t.TempDir()
	write(t, victim+"/secret", []byte("secret"))
	before := dump(t, victim)
	long := strings.Repeat("n", 255)
	traps := map[string]func(src, dst string) error{
		"link in the way of a directory": func(src, dst string) error {
			write(t, src+"/d/secret", []byte("evil"))
			return os.Symlink(victim, dst+"/d")
		},
		"relative link in the way": func(src, dst string) error {
			write(t, src+"/d/secret", []byte("evil"))
			rel, err := filepath.Rel(dst, victim)
			return errors.Join(err, os.Symlink(rel, dst+"/d"))
		},
		"link in the way of a file": func(src, dst string) error {
			write(t, src+"/f", []byte("evil"))
			return os.Symlink(victim+"/secret", dst+"/f")
		},
		"chain of links": func(src, dst string) error {
			write(t, src+"/a/b/secret", []byte("evil"))
			return errors.Join(os.Symlink("x", dst+"/a"), os.Symlink(filepath.Dir(victim), dst+"/x"))
		},
		"hard link to a victim": func(src, dst string) error {
			write(t, src+"/f", []byte("evil"))
			return os.Link(victim+"/secret", dst+"/f")
		},
		"hard linked on both sides": func(src, dst string) error {
			write(t, src+"/f", []byte("evil"))
			return errors.Join(os.Link(src+"/f", src+"/g"), os.Link(victim+"/secret", dst+"/f"), os.Link(victim+"/secret", dst+"/g"))
		},
		"link out of the tree": func(src, dst string) error {
			return errors.Join(os.Symlink(victim, src+"/out"), os.Symlink("../../../../etc", src+"/etc"))
		},
		"odd names": func(src, dst string) error {
			write(t, src+"/new\nline", []byte("a"))
			write(t, src+"/"+long+"/"+long+"/"+long+"/-rf", []byte("b"))
			write(t, src+"/\xff\xfe", []byte("c"))
			return nil
		},
		"device": func(src, dst string) error { return unix.Mknod(src+"/null", unix.S_IFCHR|0o666, 1<<8|3) },
		"fifo in the way": func(src, dst string) error {
			write(t, src+"/f", []byte("evil"))
			return unix.Mkfifo(dst+"/f", 0o600)
		},
	}
	for name, set := range traps {
		src, dst := t.TempDir(), t.TempDir()
		if err := set(src, dst); err != nil {
			t.Fatal(err)
		}
		st, err := Restore(context.Background(), src, dst, RestoreOptions{Exact: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name == "device" {
			if _, err := os.Lstat(dst + "/null"); err == nil || len(st.Warnings) != 1 {
				t.Errorf("a device node was made unasked")
			}
		} else {
			equal(t, 0, src, dst)
		}
		// Links to the victim are gone with the temporary trees; its content must be as it was.
		os.RemoveAll(dst)
		if after := dump(t, victim); after != before {
			t.Fatalf("%s: the victim changed:\n%s\n%s", name, before, after)
		}
	}
}

func TestRestoreKeepsWhatIsElsewhere(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	write(t, src+"/a", []byte("a"))
	write(t, dst+"/mine", []byte("mine"))
	if _, err := Restore(context.Background(), src, dst, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dst + "/mine"); err != nil {
		t.Error(err)
	}
}
