package survive

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark"
)

// TestFullDisk (D1) lets the disk of the data directory run full during imports. The
// server stays up and says so, what it acknowledged is there, and when room is
// made it goes on.
func TestFullDisk(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", "fallocate")
	s := newStage(t)
	file := filepath.Join(s.dir, "small")
	must(t, "truncate", "-s", "1G", file)
	must(t, "mkfs.ext4", "-q", "-b", "4096", "-m", "0", file, "440M")
	if err := os.Mkdir(s.data, 0o711); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", "-o", "loop", file, s.data)
	t.Cleanup(func() {
		s.end(unix.SIGKILL)
		unix.Unmount(s.data, unix.MNT_DETACH)
	})
	k := &killing{stage: s, rng: seeded(t), source: filepath.Join(s.dir, "source"), sums: map[string]string{}, roots: map[string]string{}}
	if err := os.WriteFile(k.source, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(k.source, 96<<20); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(s.data, "other") // somebody else's, who makes room at last
	must(t, "fallocate", "-l", "120M", other)
	k.start()
	k.change(32 << 20)
	k.importVolume("first")
	said := k.fill()
	t.Logf("full: %v", said)
	if st, err := k.try("status", "--json"); err != nil {
		t.Errorf("status on a full disk: %v", err)
	} else {
		t.Logf("status: %s", st[max(0, len(st)-700):])
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	k.jobsOver()
	k.change(1 << 20)
	k.importVolume("later")
	k.sumsHold()
	k.end(unix.SIGKILL)
	k.start()
	k.sumsHold()
	if v := ask[tidemark.VerifyResult](s, "verify"); len(v.Damaged) > 0 {
		t.Errorf("verify: %v", v.Damaged)
	}
}

// fill imports volumes until the disk is full, and returns what was said.
func (k *killing) fill() error {
	k.t.Helper()
	for range 12 {
		k.change(64 << 20)
		if _, err := k.try("volume", "import", "filler", k.source); err != nil {
			return err
		}
	}
	k.t.Fatal("the disk never ran full")
	return nil
}

// sumsHold restores all points noted.
func (k *killing) sumsHold() {
	k.t.Helper()
	out := filepath.Join(k.dir, "restored")
	for ref, sum := range k.sums {
		k.run("restore", ref, "--to", out, "--force")
		if checksum(k.t, out) != sum {
			k.t.Fatalf("%s has other bytes than were imported", ref)
		}
	}
}
