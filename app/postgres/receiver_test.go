package postgres

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// startReceiver runs a Receiver until the test ends or stop is called.
func startReceiver(t testing.TB, cfg ReceiverConfig) (*Receiver, func()) {
	t.Helper()
	r, err := NewReceiver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	eventually(t, "the receiver streams", func() bool { s, _ := r.Status(); return s.Running })
	return r, stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 600 {
		if ok() {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func force(t testing.TB, r *Receiver) LSN {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	lsn, err := r.ForceReceive(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// J7: recovery to a time or position yields what was committed by then, and
// nothing that began later.
func TestPointInTime(t *testing.T) {
	c := newCluster(t)
	base := tempDir(t)
	staging, wal := filepath.Join(base, "staging"), filepath.Join(base, "it's 100% wal")
	os.Mkdir(staging, 0o755)
	r, _ := startReceiver(t, ReceiverConfig{Source: c.src, ID: "pitr", WALDir: wal})
	c.exec("CREATE TABLE t (x int)")
	mustCapture(t, c.src, staging, CaptureOptions{})
	type mark struct {
		at  time.Time
		lsn LSN
	}
	var marks []mark
	for i := range 5 {
		c.exec(fmt.Sprintf("INSERT INTO t VALUES (%d)", i))
		if i == 2 {
			c.exec("SELECT pg_switch_wal()")
		}
		lsn, err := ParseLSN(c.query("SELECT pg_current_wal_insert_lsn()::text"))
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, mark{time.Now(), lsn})
		time.Sleep(20 * time.Millisecond)
	}
	reached := force(t, r)
	if reached < marks[4].lsn {
		t.Fatalf("received to %s, want %s", reached, marks[4].lsn)
	}
	count := func(stop Stop) string {
		t.Helper()
		in := bringUp(t, Target{Name: "pitr", DataDir: filepath.Join(copyTo(t, staging), "data"), WALDir: wal, Stop: stop})
		t.Logf("to %+v: up in %.3f s", stop, in.Seconds)
		defer in.Stop(context.Background())
		return queryOn(t, in.Source(), "SELECT count(*)::text FROM t")
	}
	if n := count(Stop{}); n != "0" {
		t.Errorf("at the capture: %s rows", n)
	}
	if n := count(Stop{Time: marks[1].at}); n != "2" {
		t.Errorf("to a time: %s rows, want 2", n)
	}
	if n := count(Stop{LSN: marks[3].lsn - 1}); n != "4" {
		t.Errorf("to a position: %s rows, want 4", n)
	}
	if n := count(Stop{Latest: true}); n != "5" {
		t.Errorf("to the latest: %s rows, want 5", n)
	}
	if n := count(Stop{Time: time.Now(), Covered: true}); n != "5" {
		t.Errorf("to a time after the last commit: %s rows, want 5", n)
	}
	_, err := Recover(context.Background(), Target{Name: "late", DataDir: filepath.Join(copyTo(t, staging), "data"), WALDir: wal, Stop: Stop{Time: time.Now().Add(time.Hour)}})
	if err == nil || !strings.Contains(err.Error(), "ends before") {
		t.Errorf("a time that the log does not reach: %v", err)
	}
}

// A clone's own copy, taken while it runs, comes up by crash recovery, and so
// does a copy of a clone that was killed.
func TestCloneOfClone(t *testing.T) {
	c := newCluster(t)
	c.run("pgbench", "-i", "-q", "-s", "1", "postgres")
	staging := tempDir(t)
	mustCapture(t, c.src, staging, CaptureOptions{})
	first := copyTo(t, staging)
	in := bringUp(t, Target{Name: "one", DataDir: filepath.Join(first, "data")})
	execOn(t, in.Source(), "CREATE TABLE mine AS SELECT generate_series(1, 1000) x")
	in.signal(t, "KILL")
	second := copyTo(t, first)
	two := bringUp(t, Target{Name: "two", DataDir: filepath.Join(second, "data")})
	if n := queryOn(t, two.Source(), "SELECT count(*)::text FROM mine"); n != "1000" {
		t.Errorf("the clone's clone has %s rows", n)
	}
	again := bringUp(t, Target{Name: "one", DataDir: filepath.Join(first, "data")})
	found, err := Find(filepath.Join(first, "data"))
	if err != nil || found.Port != again.Port || found.PID != again.PID || found.Name != "one" || found.Status() != Running {
		t.Errorf("found %+v, %v; want %+v", found, err, again)
	}
	if _, err := Recover(context.Background(), Target{Name: "one", DataDir: filepath.Join(first, "data")}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("recover what runs: %v", err)
	}
}

// J2: production's disk is safe although one log file can never be written here.
func TestLimitHoldsWithPoisonedSegment(t *testing.T) {
	c := newCluster(t)
	wal := filepath.Join(tempDir(t), "wal")
	gaps := make(chan Gap, 10)
	r, _ := startReceiver(t, ReceiverConfig{Source: c.src, ID: "j2", WALDir: wal, LimitBytes: 24 << 20, OnGap: func(g Gap) {
		select {
		case gaps <- g:
		default:
		}
	}})
	at := force(t, r)
	poison := segmentName(1, uint64(at)/(16<<20)+1, 16<<20)
	if err := os.MkdirAll(filepath.Join(wal, poison+".partial", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.exec("CREATE TABLE fill (x text)")
	var gap Gap
	eventually(t, "a gap is recorded", func() bool {
		c.exec("INSERT INTO fill SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
		c.exec("CHECKPOINT") // what lies behind it the server keeps for us alone
		select {
		case gap = <-gaps:
			return true
		default:
			return false
		}
	})
	if gap.From >= gap.To || gap.Reason == "" {
		t.Errorf("gap %+v", gap)
	}
	eventually(t, "the receiver streams again", func() bool { s, _ := r.Status(); return s.Running && s.Flushed > gap.To })
	s, err := r.Status()
	if err != nil || len(s.Gaps) == 0 || s.Gaps[0].To != gap.To { // a slow machine may make more
		t.Fatalf("recorded gaps: %+v, %v", s.Gaps, err)
	}
	last := s.Gaps[len(s.Gaps)-1].To
	kept := c.query("SELECT (pg_current_wal_lsn() - min(restart_lsn))::bigint::text FROM pg_replication_slots")
	t.Logf("retained now: %s bytes; gap %s to %s: %s", kept, gap.From, gap.To, gap.Reason)
	force(t, r)
	if n, _, err := Prune(wal, last); err != nil || n == 0 {
		t.Errorf("prune removed %d files: %v", n, err)
	}
	if left, err := ReadGaps(wal); err != nil || len(left) != 0 {
		t.Errorf("gaps after pruning: %v, %v", left, err)
	}
}

// J4: while nobody receives, the slot keeps the log, and receiving goes on without a gap.
func TestReceiverResumes(t *testing.T) {
	c := newCluster(t)
	wal := filepath.Join(tempDir(t), "wal")
	_, stop := startReceiver(t, ReceiverConfig{Source: c.src, ID: "j4", WALDir: wal})
	stop()
	for range 3 {
		c.exec("SELECT pg_logical_emit_message(true, 'x', repeat('y', 100000)); SELECT pg_switch_wal(); CHECKPOINT")
	}
	r, _ := startReceiver(t, ReceiverConfig{Source: c.src, ID: "j4", WALDir: wal})
	force(t, r)
	s, err := r.Status()
	if err != nil || len(s.Gaps) != 0 || time.Since(s.Covered) > 5*time.Second {
		t.Errorf("after a pause: %+v, %v", s, err)
	}
	// Somebody drops the slot and the log is gone: a gap, and receiving anew.
	if err := DropSlot(context.Background(), c.src, "j4"); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		c.exec("SELECT pg_logical_emit_message(true, 'x', repeat('y', 100000)); SELECT pg_switch_wal(); CHECKPOINT")
	}
	eventually(t, "it streams again", func() bool {
		s, _ := r.Status()
		return s.Running && s.Restarts > 0
	})
	force(t, r)
}
