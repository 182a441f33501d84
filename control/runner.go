package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
	"tidemark/journal"
)

// runner runs jobs.
type runner struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	live map[int64]*task

	unrecorded map[int64]end // guarded by mu; see record
}

// task is a job that runs.
type task struct {
	c      *Control
	id     int64
	app    string
	cancel context.CancelCauseFunc
	ended  chan struct{}

	mu       sync.Mutex
	progress tidemark.Progress
	step     string
	saved    time.Time
}

var (
	errCancelled = errors.New("cancelled")
	errStopping  = errors.New("the server stops")
)

func (r *runner) init() {
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.live, r.unrecorded = map[int64]*task{}, map[int64]end{}
}

// stop cuts all jobs; they stay recorded as running.
func (r *runner) stop() {
	r.mu.Lock()
	for _, t := range r.live {
		t.cancel(errStopping)
	}
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// run records a job and runs fn as it. It returns at once; the job goes on
// without the caller.
func (c *Control) run(ctx context.Context, kind, app string, args any, fn func(context.Context, *task) (any, error)) (tidemark.Job, error) {
	j, err := c.addJob(ctx, kind, app, args)
	if err != nil {
		return tidemark.Job{}, err
	}
	c.begin(j.Job, fn)
	return j.Job, nil
}

// begin runs fn as a recorded job.
func (c *Control) begin(j tidemark.Job, fn func(context.Context, *task) (any, error)) {
	jctx, cancel := context.WithCancelCause(c.jobs.ctx)
	t := &task{c: c, id: j.ID, app: j.Application, cancel: cancel, ended: make(chan struct{})}
	c.jobs.mu.Lock()
	c.jobs.live[j.ID] = t
	c.jobs.mu.Unlock()
	c.jobs.wg.Go(func() {
		defer cancel(nil)
		result, err := t.protect(jctx, fn)
		if errors.Is(context.Cause(jctx), errStopping) && err != nil {
			c.log.Warn("a job was cut by the server's stop", "job", j.ID, "kind", j.Kind)
		} else {
			c.finish(t, j.Kind, result, err)
		}
		c.jobs.mu.Lock()
		delete(c.jobs.live, j.ID)
		c.jobs.mu.Unlock()
		close(t.ended)
	})
}

// protect turns a panic of fn into an error: one job's fault does not take the server down.
func (t *task) protect(ctx context.Context, fn func(context.Context, *task) (any, error)) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			t.c.log.Error("a job panicked", "job", t.id, "panic", p, "stack", string(debug.Stack()))
			err = tidemark.Errorf(tidemark.Internal, "a fault of Tidemark: %v", p).WithHint("please report it with the server's log")
		}
	}()
	return fn(ctx, t)
}

func (c *Control) finish(t *task, kind string, result any, err error) {
	ctx := context.Background()
	state, failure := tidemark.JobDone, (*tidemark.Error)(nil)
	if err != nil {
		state, failure = tidemark.JobFailed, Explain(err)
		if errors.Is(err, context.Canceled) {
			state, failure = tidemark.JobCancelled, tidemark.Errorf(tidemark.Cancelled, "the %s was cancelled", kind)
		}
		c.event("error", t.app, "job %d (%s) failed: %v", t.id, kind, failure)
	}
	if err := c.catalog.Progress(ctx, t.id, t.now()); err != nil {
		c.log.Error("a job's progress was not recorded", "job", t.id, "error", err)
	}
	c.keepReserve()
	c.record(t.id, end{state: state, result: result, failure: failure})
}

// Explain makes an error of ours out of any, so that the user is told what it is and what to do.
func Explain(err error) *tidemark.Error {
	var e *tidemark.Error
	var damage *image.CorruptError
	switch {
	case errors.As(err, &e):
		return &tidemark.Error{Kind: e.Kind, Message: messageOf(err, e), Hint: e.Hint, Cause: err}
	case errors.Is(err, block.ErrNoSpace), errors.Is(err, journal.ErrNoSpace), errors.Is(err, syscall.ENOSPC):
		return tidemark.Errorf(tidemark.Unavailable, "%w", err).WithHint("make room on the disk of the data directory")
	case errors.As(err, &damage), errors.Is(err, image.ErrMissing), errors.Is(err, journal.ErrCorrupt):
		return tidemark.Errorf(tidemark.Corrupt, "%w", err).WithHint("`tidemark verify` lists what is affected")
	}
	return tidemark.Errorf(tidemark.Internal, "%w", err)
}

// messageOf keeps the words that were wrapped around an error of ours.
func messageOf(err error, e *tidemark.Error) string {
	if err == error(e) || e.Hint == "" {
		if err == error(e) {
			return e.Message
		}
		return err.Error()
	}
	s := err.Error()
	if full := e.Error(); len(s) > len(full) && s[len(s)-len(full):] == full {
		return s[:len(s)-len(full)] + e.Message
	}
	return e.Message
}

// doing records the job's step, and what to undo if it is cut from here on.
func (t *task) doing(ctx context.Context, step string, undo any) error {
	t.mu.Lock()
	t.step = step
	t.mu.Unlock()
	return t.c.catalog.Step(ctx, t.id, step, undo)
}

// report takes progress; it is stored every second.
func (t *task) report(p tidemark.Progress) {
	t.mu.Lock()
	t.progress = p
	due := time.Since(t.saved) > time.Second
	if due {
		t.saved = time.Now()
	}
	t.mu.Unlock()
	if due {
		if err := t.c.catalog.Progress(context.Background(), t.id, p); err != nil {
			t.c.log.Error("a job's progress was not recorded", "job", t.id, "error", err)
		}
	}
}

func (t *task) now() tidemark.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress
}

// Job returns a job, and waits up to wait for it to end before.
func (c *Control) Job(ctx context.Context, id int64, wait time.Duration) (tidemark.Job, error) {
	c.jobs.mu.Lock()
	t := c.jobs.live[id]
	c.jobs.mu.Unlock()
	if t != nil && wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-t.ended:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	j, err := c.catalog.Job(ctx, id)
	if err != nil {
		return tidemark.Job{}, err
	}
	if t != nil && j.State == tidemark.JobRunning {
		j.Progress = t.now()
	}
	return j.Job, c.jobs.amend(&j.Job)
}

// Jobs returns the newest jobs, newest first.
func (c *Control) Jobs(ctx context.Context) ([]tidemark.Job, error) {
	return c.catalog.Jobs(ctx, tidemark.JobFilter{Limit: 50})
}

// CancelJob cuts a running job; it undoes what it has half done.
func (c *Control) CancelJob(ctx context.Context, id int64) error {
	c.jobs.mu.Lock()
	t := c.jobs.live[id]
	c.jobs.mu.Unlock()
	if t == nil {
		j, err := c.catalog.Job(ctx, id)
		if err != nil {
			return err
		}
		return tidemark.Errorf(tidemark.Conflict, "job %d is not running: it is %s", id, j.State).WithHint("`tidemark jobs` lists the running ones")
	}
	t.cancel(errCancelled)
	return nil
}

// undoCut undoes what the jobs did that the last server left running.
func (c *Control) undoCut(ctx context.Context) error {
	cut, err := c.catalog.TakeOver(ctx)
	if err != nil {
		return err
	}
	for _, j := range cut {
		var u undoing
		if len(j.Undo) > 0 {
			if err := json.Unmarshal(j.Undo, &u); err != nil {
				return fmt.Errorf("read what to undo of job %d: %w", j.ID, err)
			}
		}
		if u.TakeBack != nil { // it stays the running job that it is
			c.event("warning", j.Application, "job %d (%s) was cut by a stop of the server, and is done again", j.ID, j.Kind)
			c.takeBacks = append(c.takeBacks, c.takeUp(j.Job, *u.TakeBack))
			continue
		}
		failure := tidemark.Errorf(tidemark.Unavailable, "the server stopped during the %s", j.Kind).WithHint("what it had half done was undone; ask for it again")
		done, err := c.undo(ctx, u)
		if err == nil && len(done) > 0 {
			c.event("info", j.Application, "job %d (%s) was cut by a stop of the server when its work was done", j.ID, j.Kind)
			if err := c.catalog.Finish(ctx, j.ID, tidemark.JobDone, done, nil); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			failure = tidemark.Errorf(tidemark.Unavailable, "the server stopped during the %s, and it could not be undone: %v", j.Kind, err)
			c.event("error", j.Application, "job %d (%s) was cut and could not be undone: %v", j.ID, j.Kind, err)
		} else {
			c.event("warning", j.Application, "job %d (%s) was cut by a stop of the server and undone", j.ID, j.Kind)
		}
		if err := c.catalog.Finish(ctx, j.ID, tidemark.JobFailed, nil, failure); err != nil {
			return err
		}
	}
	return nil
}

// undoing says what a cut job has to take back.
type undoing struct {
	Remove string `json:"remove,omitempty"` // the clone, mount or volume that was being made
	// Again is the clone to be made once more: the old one was taken away for it.
	Again *tidemark.CloneSpec `json:"again,omitempty"`
	// TakeBack is the restore in place to be done again: it had begun to write.
	TakeBack *takingBack `json:"take_back,omitempty"`
	// Stopped is the clone or volume that was taken off the host for a rewind, and Before the bookmark to go back to.
	Stopped string `json:"stopped,omitempty"`
	Before  string `json:"before,omitempty"`
	// Done is the result of a job that has nothing to be undone any more.
	Done json.RawMessage `json:"done,omitempty"`
}

// undo takes back what a cut job has half done, or returns the result of one that was done.
func (c *Control) undo(ctx context.Context, u undoing) (done json.RawMessage, err error) {
	if u.Stopped != "" {
		return u.Done, c.undoRewind(ctx, u)
	}
	if u.Remove == "" {
		return nil, nil
	}
	if err := c.demolish(ctx, u.Remove); err != nil {
		return nil, err
	}
	if u.Again != nil {
		c.again = append(c.again, *u.Again)
	}
	return nil, nil
}
