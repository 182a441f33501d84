package control

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// copiedDisk protects a file as a disk that is captured by copying, and promises it a capture each hour.
func copiedDisk(t *testing.T, c *Control) app {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	_, a := declared(t, c, "kind: Template\nname: hourly\nspread: 0s\ncapture: {every: 1h}\n---\nkind: Application\nname: disk\nsource: "+file+"\n")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.awaitAll(ctx, a.Jobs); err != nil {
		t.Fatal(err)
	}
	found, err := c.app("disk")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// occupy keeps an application busy, so that its jobs wait.
func occupy(t *testing.T, c *Control, name string) (leave func()) {
	t.Helper()
	c.jobs.claims.RLock()
	defer c.jobs.claims.RUnlock()
	j, err := c.catalog.Enqueue(t.Context(), catalog.NewJob{Kind: "restore", Application: name, Now: true, MaxAttempts: 1}, c.limits())
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{})
	c.begin(j.Job, func(ctx context.Context, _ *task) (any, error) {
		select {
		case <-left:
		case <-ctx.Done():
		}
		return nil, nil
	})
	return func() { close(left) }
}

// failing is a kind of job whose work cannot be done for now.
func failing(k kind) kind {
	plan := k.plan
	k.plan = func(c *Control, ctx context.Context, args json.RawMessage) (*work, error) {
		w, err := plan(c, ctx, args)
		if err == nil {
			w.run = func(context.Context, *task) (any, error) {
				return nil, tidemark.Errorf(tidemark.Unavailable, "the source is away")
			}
		}
		return w, err
	}
	return k
}

// capturesOf are the captures of a disk that schedules asked for, newest first, when there are as many as wanted.
func capturesOf(t *testing.T, c *Control, want int, as func(tidemark.Job) bool) []tidemark.Job {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		list, err := c.catalog.Jobs(t.Context(), tidemark.JobFilter{Kind: "capture", Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == want && as(list[0]) {
			return list
		}
		if time.Now().After(end) {
			t.Fatalf("there are %d captures, and not %d: %+v", len(list), want, list)
		}
	}
}

func isQueued(j tidemark.Job) bool { return j.State == tidemark.JobQueued }

// runsOf are the runs of captures of an application that are remembered, and whether one is under way.
func runsOf(c *Control, a app) (runs []policy.Run, underWay bool) {
	p := &c.promises
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.records[a.t.ID()]; k != nil {
		runs = k.Runs
	}
	_, underWay = p.running[a.t.ID()][policy.PolicyCapture]
	return runs, underWay
}

// A scheduled job that is cancelled before it has begun, or while it waits to be begun again, does not end the schedule: by whoever and wherever it is
// cancelled, the run has failed, and the application is captured again.
func TestCancelledRunsAreOver(t *testing.T) {
	for name, cancel := range map[string]func(*Control, int64) error{
		"here": func(c *Control, id int64) error { return c.CancelJob(t.Context(), id) },
		"by another server": func(c *Control, id int64) error {
			other, err := catalog.Open(t.Context(), c.path("catalog.db"), c.identity)
			if err != nil {
				return err
			}
			_, err = other.Cancel(t.Context(), id)
			return errors.Join(err, other.Close())
		},
	} {
		for _, waits := range []string{"queued", "to be begun again"} {
			t.Run(name+", "+waits, func(t *testing.T) {
				c, _ := listens(t)
				a := copiedDisk(t, c)
				leave := func() {}
				if waits == "queued" {
					leave = occupy(t, c, a.name)
				} else {
					c.jobs.kinds["capture"] = failing(c.jobs.kinds["capture"])
				}
				if err := c.SetSLA(t.Context(), a.name, "hourly"); err != nil {
					t.Fatal(err)
				}
				j := capturesOf(t, c, 1, func(j tidemark.Job) bool { return isQueued(j) && (waits == "queued" || j.Attempt > 0) })[0]
				if err := cancel(c, j.ID); err != nil {
					t.Fatal(err)
				}
				c.keepAll(t.Context(), time.Now()) // as it is each minute
				runs, underWay := runsOf(c, a)
				if underWay || len(runs) != 1 || runs[0].State != policy.RunFailed || runs[0].Error != "the capture was cancelled" {
					t.Errorf("under way: %v, and there were %+v", underWay, runs)
				}
				holds(t, "it is tried again after a minute", func() bool {
					c.keepAll(t.Context(), time.Now().Add(2*time.Minute)) // which leaves alone what the server itself is just looking at
					list, err := c.catalog.Jobs(t.Context(), tidemark.JobFilter{Kind: "capture", Limit: 100})
					return err == nil && len(list) == 2 && isQueued(list[0])
				})
				leave()
			})
		}
	}
}

// A job that ends while it is still being asked for is known as what it was asked for, and is not under way for ever.
func TestEndsAtOnce(t *testing.T) {
	c, _ := listens(t)
	a := copiedDisk(t, c)
	told := make(chan struct{})
	err := c.beginJob(a.t.ID(), policy.PolicyCapture, run{begun: time.Now()}, func() (tidemark.Job, error) {
		go func() {
			defer close(told)
			c.jobEnded(tidemark.Job{ID: 7, Kind: "capture", Application: a.name}, end{state: tidemark.JobDone})
		}()
		time.Sleep(100 * time.Millisecond)
		return tidemark.Job{ID: 7}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-told
	if runs, underWay := runsOf(c, a); underWay || len(runs) != 1 || runs[0].State != policy.RunDone {
		t.Errorf("under way: %v, and there were %+v", underWay, runs)
	}
}
