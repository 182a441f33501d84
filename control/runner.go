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
	"tidemark/catalog"
	"tidemark/image"
	"tidemark/journal"
)

// runner runs jobs.
type runner struct {
	kinds  map[string]kind
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	// claims is held by who makes jobs running, until they are live, and alone by who looks for those that are not.
	claims sync.RWMutex

	mu      sync.Mutex
	live    map[int64]*task // guarded by mu
	stirred chan struct{}   // guarded by mu; see stir

	unrecorded map[int64]end // guarded by mu; see record
	late       sync.Mutex    // held while such an end is recorded
}

// task is a job that runs.
type task struct {
	c      *Control
	job    tidemark.Job // as it began
	id     int64
	app    string
	cancel context.CancelCauseFunc
	ended  chan struct{}
	ending bool // it only has to be recorded; guarded by runner.mu

	waits bool            // it could not begin, for somebody else holds what it needs
	again json.RawMessage // the request by which it is begun again, where that is another one

	mu       sync.Mutex
	progress tidemark.Progress
	step     string
	saved    time.Time
}

// jobID is the key of the ID of the job that a context is of.
type jobID struct{}

var (
	errCancelled error = cancelled{}
	errStopping        = errors.New("the server stops")
)

// cancelled is why a job's context is done that somebody has cancelled. It is a [context.Canceled], whichever of the two a job returns.
type cancelled struct{}

func (cancelled) Error() string { return "cancelled" }

func (cancelled) Is(err error) bool { return err == context.Canceled }

func (r *runner) init() {
	r.kinds = kinds()
	r.ctx, r.cancel = context.WithCancelCause(context.Background())
	r.live, r.unrecorded, r.stirred = map[int64]*task{}, map[int64]end{}, make(chan struct{})
}

// busy is an error that names the job of an application that runs, if there is one. It asks nobody: also while the catalog cannot be told how a job
// ended can room be made.
func (r *runner) busy(application string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.live {
		if t.app == application && !t.ending {
			return tidemark.Errorf(tidemark.Conflict, "%s is busy: job %d (%s) is running", application, t.id, t.job.Kind).WithHint("wait for it or cancel it: `tidemark jobs`")
		}
	}
	return nil
}

// stop cuts all jobs; they stay recorded as running.
func (r *runner) stop() {
	r.cancel(errStopping)
	r.wg.Wait()
}

// begin runs fn as a recorded job, which is held here. It returns at once; the job goes on without the caller. While the
// catalog is away, the job waits for it.
func (c *Control) begin(j tidemark.Job, fn func(context.Context, *task) (any, error)) {
	jctx, cancel := context.WithCancelCause(context.WithValue(catalog.Patient(c.jobs.ctx), jobID{}, j.ID))
	t := &task{c: c, job: j, id: j.ID, app: j.Application, cancel: cancel, ended: make(chan struct{})}
	c.jobs.mu.Lock()
	c.jobs.live[j.ID] = t
	c.jobs.mu.Unlock()
	c.jobs.stir()
	c.jobs.wg.Go(func() {
		defer cancel(nil)
		result, err := t.protect(jctx, fn)
		c.jobs.mu.Lock()
		t.ending = true
		c.jobs.mu.Unlock()
		switch cause := context.Cause(jctx); {
		case errors.Is(cause, errStopping) && err != nil:
			c.log.Warn("a job was cut by the server's stop", "job", j.ID, "kind", j.Kind)
		case errors.Is(cause, catalog.ErrLost):
			c.log.Error("a job that runs elsewhere has ended here", "job", j.ID, "kind", j.Kind, "error", err)
		default:
			c.finish(t, j.Kind, result, err, cause)
		}
		c.jobs.mu.Lock()
		delete(c.jobs.live, j.ID)
		c.jobs.mu.Unlock()
		close(t.ended)
		c.jobs.stir()
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

// finish records how a job ended; cause is why its context is done, if it is.
func (c *Control) finish(t *task, kind string, result any, err, cause error) {
	ctx := context.Background()
	e := end{state: tidemark.JobDone, result: result}
	if err != nil {
		e.state, e.failure = tidemark.JobFailed, Explain(err)
		if errors.Is(err, context.Canceled) {
			e.state, e.failure = tidemark.JobCancelled, tidemark.Errorf(tidemark.Cancelled, "the %s was cancelled", kind)
		}
		e.again = c.retry(t, e.failure)
		switch {
		case e.again != nil:
			e.state = tidemark.JobQueued
			c.event("warning", t.app, "job %d (%s) failed, and is begun again in %v: %v", t.id, kind, e.again.After.Round(time.Second), e.failure)
		case e.state == tidemark.JobCancelled && errors.Is(cause, errCancelled): // somebody wanted that
			c.event("info", t.app, "job %d (%s) was cancelled", t.id, kind)
		default:
			c.event("error", t.app, "job %d (%s) failed: %v", t.id, kind, e.failure)
		}
	}
	t.keepProgress(ctx, t.now())
	c.keepReserve()
	c.record(t.id, e)
	c.jobEnded(t.job, e)
}

// keepProgress records how far a job is. It is only looked at: a failure stops nothing.
func (t *task) keepProgress(ctx context.Context, p tidemark.Progress) {
	if err := t.c.catalog.Progress(ctx, t.id, p); err != nil && !errors.Is(err, catalog.ErrAway) {
		t.c.log.Error("a job's progress was not recorded", "job", t.id, "error", err)
	}
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
		t.keepProgress(context.Background(), p)
	}
}

func (t *task) now() tidemark.Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.progress
}

// Job returns a job, and waits up to wait for it to end before.
func (c *Control) Job(ctx context.Context, id int64, wait time.Duration) (tidemark.Job, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for late := wait <= 0; ; {
		stirred := c.jobs.changed()
		j, err := c.jobNow(ctx, id)
		if err != nil || late || j.State != tidemark.JobQueued && j.State != tidemark.JobRunning {
			return j, err
		}
		select {
		case <-stirred:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return j, nil
		}
	}
}

// jobNow returns a job as it is now.
func (c *Control) jobNow(ctx context.Context, id int64) (tidemark.Job, error) {
	found, err := c.catalog.Job(ctx, id)
	if err != nil {
		return tidemark.Job{}, err
	}
	list := []tidemark.Job{found.Job}
	err = c.amendAll(ctx, list)
	return list[0], err
}

// amendAll adds to jobs from the catalog what only we know.
func (c *Control) amendAll(ctx context.Context, list []tidemark.Job) error {
	for i := range list {
		c.jobs.mu.Lock()
		t := c.jobs.live[list[i].ID]
		c.jobs.mu.Unlock()
		if t != nil && list[i].State == tidemark.JobRunning {
			list[i].Progress = t.now()
		}
		if err := c.jobs.amend(&list[i]); err != nil {
			return err
		}
	}
	return c.sayWaits(ctx, list)
}

// Jobs returns the jobs that a filter lets through, newest first.
func (c *Control) Jobs(ctx context.Context, f tidemark.JobFilter) ([]tidemark.Job, error) {
	list, err := c.catalog.Jobs(ctx, f)
	if err == nil {
		err = c.amendAll(ctx, list)
	}
	return list, err
}

// CancelJob takes a job from the queue, or cuts a running one, which undoes what it has half done.
func (c *Control) CancelJob(ctx context.Context, id int64) error {
	c.jobs.mu.Lock()
	t := c.jobs.live[id]
	c.jobs.mu.Unlock()
	if t != nil {
		t.cancel(errCancelled)
		c.noteCancelled(id)
		return nil
	}
	running, err := c.catalog.Cancel(ctx, id)
	if err != nil {
		return err
	}
	c.jobs.mu.Lock()
	t = c.jobs.live[id]
	c.jobs.mu.Unlock()
	if running && t != nil { // it has just begun
		t.cancel(errCancelled)
	}
	c.jobs.stir()
	c.promises.stir() // a schedule may have asked for it
	return nil
}

// noteTime bounds how long is waited for it to be recorded that a job is cancelled.
const noteTime = 5 * time.Second

// noteCancelled records that a job which runs here is cancelled, so that it is not begun again if the server is killed before it has ended. It
// is cancelled also where that cannot be recorded, as while the catalog is away.
func (c *Control) noteCancelled(id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), noteTime)
	defer cancel()
	if _, err := c.catalog.Cancel(ctx, id); err != nil && tidemark.KindOf(err) != tidemark.Conflict { // it has ended by now
		c.log.Warn("that a job is cancelled was not recorded", "job", id, "error", err)
	}
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
		done, err := c.undo(ctx, j.ID, u)
		if err == nil && len(done) == 0 && c.jobs.kinds[j.Kind].beginsAgain(j) {
			if err := c.beginAgain(ctx, j, u, failure); err != nil {
				return err
			}
			continue
		}
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

// beginAgain queues a job that was cut and undone.
func (c *Control) beginAgain(ctx context.Context, j *catalog.Job, u undoing, failure *tidemark.Error) error {
	a := catalog.Again{Attempt: j.Attempt, Failure: failure.WithHint("it is begun again")}
	switch {
	case u.Args != nil:
		a.Args = u.Args
	case u.Again != nil:
		a.Args = mustJSON(refreshing{RefreshSpec: tidemark.RefreshSpec{Name: u.Again.Name}, Again: u.Again})
	}
	c.event("warning", j.Application, "job %d (%s) was cut by a stop of the server, and is begun again", j.ID, j.Kind)
	return c.catalog.Requeue(ctx, j.ID, a)
}

// undoing says what a cut job has to take back.
type undoing struct {
	Remove string `json:"remove,omitempty"` // the clone, mount or volume that was being made
	// Old is the ID of the one of that name that is taken away first.
	Old string `json:"old,omitempty"`
	// Args is the request by which it is begun again, where that is another one.
	Args json.RawMessage `json:"args,omitempty"`
	// Again is the clone to be made once more: the old one was taken away for it.
	Again *cloning `json:"again,omitempty"`
	// TakeBack is the restore in place to be done again: it had begun to write.
	TakeBack *takingBack `json:"take_back,omitempty"`
	// Stopped is the clone or volume that was taken off the host for a rewind, and Before the bookmark to go back to.
	Stopped string `json:"stopped,omitempty"`
	Before  string `json:"before,omitempty"`
	// Forget is the bookmark before what is done, which nobody goes back to.
	Forget string `json:"forget,omitempty"`
	// Publishing is the result of a publish that is done if it can be seen.
	Publishing *tidemark.Published `json:"publishing,omitempty"`
	// Imported is the result of an import of a pool that is done if that is here.
	Imported *tidemark.ImportResult `json:"imported,omitempty"`
	// Done is the result of a job that has nothing to be undone any more.
	Done json.RawMessage `json:"done,omitempty"`
}

// undo takes back what a cut job has half done, or returns the result of one that was done.
func (c *Control) undo(ctx context.Context, job int64, u undoing) (done json.RawMessage, err error) {
	if u.Stopped != "" {
		err := c.undoRewind(ctx, u)
		if a, e := c.app(u.Stopped); err == nil && e == nil {
			if u.Forget != "" {
				c.forgetPoint(ctx, a, u.Forget)
			}
			if len(u.Done) > 0 {
				c.foldDone(ctx, a)
			}
		}
		return u.Done, err
	}
	if u.Publishing != nil && c.isPublished(*u.Publishing) {
		return mustJSON(u.Publishing), nil
	}
	if u.Imported != nil && len(c.apps()) > 0 { // else it was taken back when the pool was opened
		c.brought(u.Imported)
		return mustJSON(u.Imported), nil
	}
	if u.Remove == "" {
		return nil, nil
	}
	if a, err := c.app(u.Remove); err == nil && !u.removes(a, job) {
		return nil, tidemark.Errorf(tidemark.Conflict, "%s was made since by somebody else, and stays", a.name)
	}
	return nil, c.abandon(ctx, u.Remove, doom{Again: u.Again})
}

// removes reports whether what has the name now is what the job has to remove. It is not if the job had ended, and its name was
// given to another, when the server was killed before that end could be recorded.
func (u undoing) removes(a app, job int64) bool {
	return a.Job == job || a.Job == 0 || u.Old != "" && a.t.ID() == u.Old
}

// foldDone shows the bookmark that a job made which was cut when it was done: else that before a rewind could not be found to undo it.
func (c *Control) foldDone(ctx context.Context, a app) {
	if err := a.t.Fold(ctx); err != nil { // it is asked for again
		c.log.Warn("folding after a job that was done", "application", a.name, "error", err)
		return
	}
	c.keepPoint(ctx, a)
}
