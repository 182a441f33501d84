package postgres

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark"
	"tidemark/app"
)

const invariant = `SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(bbalance) FROM pgbench_branches) || ' ' ||
	(SELECT sum(tbalance) FROM pgbench_tellers) || ' ' || (SELECT coalesce(sum(delta),0) FROM pgbench_history)`

// balanced checks the sums that every pgbench transaction keeps equal.
func balanced(t testing.TB, src Source) {
	t.Helper()
	ok := queryOn(t, src, `SELECT ((SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches)
		AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
		AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history) AND count(*) % 100000 = 0)::text FROM pgbench_accounts`)
	if ok != "true" {
		t.Errorf("sums differ: %s", queryOn(t, src, invariant))
	}
}

// Capture again and again under load; every copy must recover, hold what was
// committed before the capture, and keep the sums.
func TestCaptureUnderLoadAndRecover(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "1", "postgres")
	staging := tempDir(t)
	load := c.command("pgbench", "-n", "-c", "4", "-T", "60", "postgres")
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { load.Process.Kill(); load.Wait() }()
	for i := range 3 {
		time.Sleep(300 * time.Millisecond)
		c.exec("CREATE TABLE gone AS SELECT generate_series(1, 20000) g; CREATE UNLOGGED TABLE IF NOT EXISTS fleeting (x int); INSERT INTO fleeting VALUES (1)")
		before := c.query("SELECT count(*)::text FROM pgbench_history")
		res := mustCapture(t, c.src, staging, CaptureOptions{margin: 50 * time.Millisecond})
		c.exec("DROP TABLE gone")
		if i > 0 && res.Skipped < res.Files/4 {
			t.Errorf("capture %d read nearly all files again: %d of %d skipped", i, res.Skipped, res.Files)
		}
		clone := copyTo(t, staging)
		in := bringUp(t, Target{Name: "load", DataDir: filepath.Join(clone, "data")})
		t.Logf("clone up in %.3f s", in.Seconds)
		balanced(t, in.Source())
		if got := queryOn(t, in.Source(), "SELECT (count(*) >= "+before+")::text FROM pgbench_history"); got != "true" {
			t.Errorf("the clone lacks transactions committed before the capture")
		}
		if got := queryOn(t, in.Source(), "SELECT (SELECT count(*) FROM gone) || ' ' || (SELECT count(*) FROM fleeting)"); got != "20000 0" {
			t.Errorf("tables hold %s rows, want 20000 and an unlogged table emptied", got)
		}
		if _, err := in.Probe(context.Background(), true); err != nil {
			t.Error(err)
		}
		if err := in.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// An interrupted capture must leave the next one correct, whatever the step.
func TestInterruptedCapture(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "1", "postgres")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	boom := errors.New("interrupted")
	for _, step := range []string{"dirty", "started", "walked", "copied", "stopped", "synced"} {
		c.run("pgbench", "-n", "-t", "20", "postgres")
		_, err := Capture(context.Background(), c.src, staging, CaptureOptions{hook: func(s string) error {
			if s == step {
				return boom
			}
			return nil
		}})
		if !errors.Is(err, boom) {
			t.Fatalf("step %s: %v", step, err)
		}
		if !readState(staging).Dirty {
			t.Errorf("step %s: staging does not know that it is incomplete", step)
		}
		// The server ends the session, and with it the slot, a moment after we hung up.
		n := "?"
		for range 100 {
			if n = c.query("SELECT count(*)::text FROM pg_replication_slots"); n == "0" {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if n != "0" {
			t.Errorf("step %s: %s slots left behind", step, n)
		}
		res := mustCapture(t, c.src, staging, CaptureOptions{})
		if res.Skipped != 0 {
			t.Errorf("step %s: dates were trusted after an interruption", step)
		}
	}
	clone := copyTo(t, staging)
	in := bringUp(t, Target{Name: "after", DataDir: filepath.Join(clone, "data")})
	balanced(t, in.Source())
}

func TestCaptureCancelled(t *testing.T) {
	c := newCluster(t)
	staging := tempDir(t)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Capture(ctx, c.src, staging, CaptureOptions{hook: func(s string) error {
		if s == "started" {
			cancel()
		}
		return nil
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled capture: %v", err)
	}
	mustCapture(t, c.src, staging, CaptureOptions{})
}

// C3: a changed block behind unchanged dates is found by the sample, and everything is compared.
func TestSampleFindsLyingDates(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "2", "postgres")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	st := readState(staging)
	st.Started = time.Now().Add(time.Hour) // so that all dates seem old enough
	if err := writeState(staging, st); err != nil {
		t.Fatal(err)
	}
	path := c.query("SELECT pg_relation_filepath('pgbench_accounts')")
	staged := filepath.Join(staging, "data", path)
	fi, err := os.Stat(staged)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(staged, make([]byte, fi.Size()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(staged, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	res := mustCapture(t, c.src, staging, CaptureOptions{})
	if res.Rescan == "" {
		t.Fatalf("%d samples did not notice a file of zeros of %d KiB", res.Sampled, fi.Size()>>10)
	}
	in := bringUp(t, Target{Name: "c3", DataDir: filepath.Join(copyTo(t, staging), "data")})
	balanced(t, in.Source())
}

func TestTablespaces(t *testing.T) {
	c := newCluster(t)
	place := filepath.Join(filepath.Dir(c.dir), "space")
	c.mkdir(place)
	c.exec("CREATE TABLESPACE side LOCATION '" + place + "'")
	c.exec("CREATE TABLE aside (x int) TABLESPACE side; INSERT INTO aside SELECT generate_series(1, 5000)")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	in := bringUp(t, Target{Name: "ts", DataDir: filepath.Join(copyTo(t, staging), "data")})
	execOn(t, in.Source(), "INSERT INTO aside VALUES (1); CHECKPOINT")
	if got := queryOn(t, in.Source(), "SELECT count(*)::text FROM aside"); got != "5001" {
		t.Errorf("clone has %s rows", got)
	}
	if got := c.query("SELECT count(*)::text FROM aside"); got != "5000" {
		t.Errorf("production has %s rows: the clone wrote there", got)
	}
	loc := queryOn(t, in.Source(), "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'side'")
	if loc == place {
		t.Errorf("the clone's tablespace is production's directory")
	}
	c.exec("DROP TABLE aside; CHECKPOINT")
	c.exec("DROP TABLESPACE side")
	mustCapture(t, c.src, staging, CaptureOptions{})
	if left, _ := os.ReadDir(filepath.Join(staging, "tablespaces")); len(left) != 0 {
		t.Errorf("dropped tablespace is still staged: %v", left)
	}
}

// A copy whose tablespace still leads to production must not come up.
func TestForeignTablespaceIsRefused(t *testing.T) {
	c := newCluster(t)
	place := filepath.Join(filepath.Dir(c.dir), "space")
	c.mkdir(place)
	c.exec("CREATE TABLESPACE side LOCATION '" + place + "'")
	c.stop()
	clone := filepath.Join(tempDir(t), "clone", "data")
	os.Mkdir(filepath.Dir(clone), 0o755)
	if err := os.CopyFS(clone, os.DirFS(t.TempDir())); err != nil {
		t.Fatal(err)
	}
	os.Remove(clone)
	if err := os.Rename(c.dir, clone); err != nil {
		t.Fatal(err)
	}
	_, err := Recover(context.Background(), Target{Name: "x", DataDir: clone})
	if tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatalf("recover: %v", err)
	}
}

func TestTwoCapturesAtOnce(t *testing.T) {
	staging := tempDir(t)
	lock, err := app.LockDir(staging)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := Capture(context.Background(), Source{Conn: "host=/nowhere"}, staging, CaptureOptions{}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatalf("second capture: %v", err)
	}
}

// With fingerprints, the staged copy is what it is without them: after each capture a full
// comparison finds nothing to change in what the database keeps.
func TestPrints(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "2", "postgres")
	staging, prints := tempDir(t), filepath.Join(tempDir(t), "prints")
	opts := CaptureOptions{Prints: prints}
	mustCapture(t, c.src, staging, opts)
	for range 3 {
		c.run("pgbench", "-n", "-N", "-t", "300", "postgres")
		c.exec("CHECKPOINT")
		r := mustCapture(t, c.src, staging, opts)
		if r.ChangedBytes == 0 {
			t.Error("nothing changed")
		}
		for _, name := range []string{"pgbench_accounts", "pgbench_accounts_pkey", "pgbench_history"} {
			rel := c.query("SELECT pg_relation_filepath('" + name + "')")
			is, err1 := os.ReadFile(filepath.Join(c.dir, rel))
			staged, err2 := os.ReadFile(filepath.Join(staging, "data", rel))
			if err1 != nil || err2 != nil || !bytes.Equal(is, staged) {
				t.Errorf("%s is staged wrongly: %v, %v", name, err1, err2)
			}
		}
	}
	if list, err := os.ReadDir(prints); err != nil || len(list) < 3 {
		t.Errorf("fingerprints: %v, %v", list, err)
	}
}
