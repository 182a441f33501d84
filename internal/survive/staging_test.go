package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"tidemark"
)

// TestKilledWhileItsDisksAreWritten kills the server while a capture writes to a
// disk that this same server serves. It has to end at once: were the writing its
// own, it would wait for its own answer, and no other server could begin.
func TestKilledWhileItsDisksAreWritten(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4")
	s, rng := newStage(t), seeded(t)
	tree := filepath.Join(s.dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.run("protect", tree, "--name", "files")
	for n := range 4 {
		for i := range 12 {
			fill(t, filepath.Join(tree, fmt.Sprint(i)), 8<<20, rng.Uint64())
		}
		cmd := s.command("capture", "files")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+rng.IntN(600)) * time.Millisecond)
		begun := time.Now()
		s.end(syscall.SIGKILL)
		ended := time.Since(begun)
		done := cmd.Wait() == nil
		s.start()
		t.Logf("round %d: ended in %v, the next began after %v; the capture was done: %v", n, ended, time.Since(begun), done)
		ask[tidemark.CaptureResult](s, "capture", "files", "--bookmark", fmt.Sprintf("p%d", n), "--queue") // behind the one that was cut, which is begun again
		s.run("clone", "files", "look")
		must(t, "diff", "-r", tree, filepath.Join(s.data, "clones/look/data/data"))
		s.run("clone", "rm", "look")
	}
	if v := ask[tidemark.VerifyResult](s, "verify"); len(v.Damaged) > 0 {
		t.Fatalf("verify: %v", v.Damaged)
	}
	s.run("unprotect", "files")
	s.settled("0 attachers, 0 loop devices")
}

// fill writes a file of bytes that compress badly.
func fill(t *testing.T, path string, size int, seed uint64) {
	t.Helper()
	buf := make([]byte, size)
	for i := range buf {
		seed = seed*6364136223846793005 + 1442695040888963407
		buf[i] = byte(seed >> 56)
	}
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		t.Fatal(err)
	}
}
