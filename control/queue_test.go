package control

import (
	"context"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// Each attempt waits about twice as long as the one before, up to a limit, and not all for the same time.
func TestBackOff(t *testing.T) {
	for attempt := 1; attempt < 100; attempt++ {
		want := min(30*time.Second<<min(attempt-1, 20), maxPause)
		seen := map[time.Duration]bool{}
		for range 50 {
			d := backOff(30*time.Second, attempt)
			if d < want/2 || d > want*3/2 {
				t.Fatalf("attempt %d waits %v, and not about %v", attempt, d, want)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Fatalf("attempt %d always waits as long", attempt)
		}
	}
}

// What is counted from now is recorded as what it meant when it was asked for; all else as it was.
func TestFixed(t *testing.T) {
	for _, ref := range []string{"", "a", "a@latest", "a@b", "a@#7", "a@2026-11-23T02:41:07Z", "a@@"} {
		if got := fixed(ref); got != ref {
			t.Errorf("%q became %q", ref, got)
		}
	}
	r, err := tidemark.ParseRef(fixed("a@-5m"))
	if ago := time.Since(r.Point.Time); err != nil || r.App != "a" || ago < 5*time.Minute || ago > 6*time.Minute {
		t.Errorf("%+v, %v", r, err)
	}
	spec := fixedClone(tidemark.CloneSpec{Ref: "a@-1h", To: "-1m"})
	if strings.Contains(spec.Ref+spec.To, "-1h") || strings.HasPrefix(spec.To, "-") {
		t.Errorf("%+v", spec)
	}
	if spec := fixedClone(tidemark.CloneSpec{Ref: "a", To: "0/3000060"}); spec.To != "0/3000060" {
		t.Errorf("%+v", spec)
	}
}

// Only what may pass is begun again, and only if nobody waits for it and was told.
func TestRetry(t *testing.T) {
	c := &Control{}
	c.jobs.init()
	for _, x := range []struct {
		kind    tidemark.Kind
		origin  tidemark.JobOrigin
		attempt int
		waits   bool
		want    bool
	}{
		{tidemark.Unavailable, tidemark.FromSchedule, 1, false, true},
		{tidemark.Unavailable, tidemark.FromQueue, 2, false, true},
		{tidemark.Unavailable, tidemark.FromQueue, 3, false, false},
		{tidemark.Unavailable, tidemark.FromHand, 1, false, false},
		{tidemark.Unavailable, tidemark.FromHand, 2, false, true},
		{tidemark.Conflict, tidemark.FromQueue, 1, true, true},
		{tidemark.Conflict, tidemark.FromQueue, 1, false, false},
		{tidemark.Invalid, tidemark.FromQueue, 1, false, false},
		{tidemark.NotFound, tidemark.FromQueue, 1, false, false},
		{tidemark.Denied, tidemark.FromQueue, 1, false, false},
		{tidemark.Corrupt, tidemark.FromQueue, 1, false, false},
		{tidemark.Cancelled, tidemark.FromQueue, 1, false, false},
	} {
		task := &task{job: tidemark.Job{Kind: "capture", Origin: x.origin, Attempt: x.attempt, MaxAttempts: 3}, waits: x.waits}
		if got := c.retry(task, tidemark.Errorf(x.kind, "x")); (got != nil) != x.want {
			t.Errorf("%+v: %+v", x, got)
		}
	}
}

func TestWhyWaits(t *testing.T) {
	c := &Control{o: Options{HostJobs: 2, Jobs: 3}}
	later := time.Now().Add(time.Hour)
	load := catalog.Load{All: 2, Hosts: map[string]int{"h": 2}, Profiles: map[string]int{"p": 1, "q": 1}, Busy: map[string]tidemark.Job{"a": {ID: 7, Kind: "capture"}, "": {ID: 8}}}
	full := load
	full.All = 3
	for _, x := range []struct {
		job  tidemark.Job
		load catalog.Load
		want string
	}{
		{tidemark.Job{NotBefore: &later}, load, "until "},
		{tidemark.Job{Application: "a", Host: "h"}, load, "for job 7 (capture) of a"},
		{tidemark.Job{Host: "h"}, load, "for a job of h to end: 2 run"},
		{tidemark.Job{}, full, "for another job to end: 3 run"},
		{tidemark.Job{Host: "i"}, load, "for its turn"},
		{tidemark.Job{Profile: "p", Origin: tidemark.FromSchedule}, load, "for a job of the profile p to end: 1 run"},
		{tidemark.Job{Profile: "p"}, load, "for its turn"},
		{tidemark.Job{Profile: "q", Origin: tidemark.FromSchedule}, load, "for its turn"},
	} {
		if got := c.whyWaits(x.job, x.load, map[string]int{"p": 1}); !strings.HasPrefix(got, x.want) {
			t.Errorf("%q, not %q", got, x.want)
		}
	}
}

// A server finds what was cancelled elsewhere, what is not its own any more, and what began without its knowledge; what ends meanwhile is none of these.
func TestRenewLeases(t *testing.T) {
	ctx := context.Background()
	at := filepath.Join(t.TempDir(), "catalog.db")
	c := &Control{log: slog.New(slog.DiscardHandler)}
	c.jobs.init()
	open := func() *catalog.Catalog {
		x, err := catalog.Open(ctx, at, "us")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		return x
	}
	c.catalog = open()
	cut := map[int64]context.Context{}
	begin := func(live bool, origin tidemark.JobOrigin) int64 {
		j, err := c.catalog.Enqueue(ctx, catalog.NewJob{Kind: "verify", Now: true, MaxAttempts: 3, Origin: origin}, catalog.Limits{Host: 9, All: 9})
		if err != nil {
			t.Fatal(err)
		}
		if live {
			jctx, cancel := context.WithCancelCause(ctx)
			cut[j.ID] = jctx
			c.jobs.live[j.ID] = &task{c: c, job: j.Job, id: j.ID, cancel: cancel, ended: make(chan struct{})}
		}
		return j.ID
	}
	fine, cancelled := begin(true, ""), begin(true, "")
	byHand, queued := begin(false, ""), begin(false, tidemark.FromQueue)
	if _, err := open().Cancel(ctx, cancelled); err != nil {
		t.Fatal(err)
	}
	if err := c.renewLeases(); err != nil {
		t.Fatal(err)
	}
	if cut[fine].Err() != nil || context.Cause(cut[cancelled]) != errCancelled {
		t.Errorf("%v, %v", cut[fine].Err(), context.Cause(cut[cancelled]))
	}
	for id, want := range map[int64]tidemark.JobState{fine: tidemark.JobRunning, byHand: tidemark.JobFailed, queued: tidemark.JobQueued} {
		if j, err := c.catalog.Job(ctx, id); err != nil || j.State != want {
			t.Errorf("%+v, %v: not %s", j, err, want)
		}
	}
	if _, err := open().TakeOver(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.renewLeases(); err != nil {
		t.Fatal(err)
	}
	if context.Cause(cut[fine]) != catalog.ErrLost {
		t.Errorf("%v", context.Cause(cut[fine]))
	}
	// One that was recorded between the question and the answer was known before.
	if got := c.compareHeld(map[int64]bool{77: true}, []catalog.Held{{ID: 77}}); len(got) > 0 {
		t.Errorf("%v", got)
	}
}
