package postgres

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The increment of a 1.5 GB cluster after 1600 transactions: prints what it
// took; bench/ compares it with peers.
func TestLongIncrement(t *testing.T) {
	if os.Getenv("TIDEMARK_LONG") == "" {
		t.Skip("set TIDEMARK_LONG=1")
	}
	c := newCluster(t, "shared_buffers = 512MB", "autovacuum = off")
	c.run("pgbench", "-i", "-q", "-s", "100", "postgres")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	time.Sleep(dateMargin + time.Second)
	mustCapture(t, c.src, staging, CaptureOptions{})
	c.run("pgbench", "-n", "-N", "-t", "1600", "postgres")
	begun := time.Now()
	res := mustCapture(t, c.src, staging, CaptureOptions{})
	t.Logf("increment: %s in all, backup %s", time.Since(begun), res.Stopped.Sub(res.Started))
	begun = time.Now()
	mustCapture(t, c.src, staging, CaptureOptions{})
	t.Logf("again, unchanged: %s", time.Since(begun))
	in := bringUp(t, Target{Name: "speed", DataDir: filepath.Join(staging, "data")})
	t.Logf("clone up in %.3f s", in.Seconds)
}
