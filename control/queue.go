package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// Ask says how a job is asked for, beside its request.
type Ask struct {
	// Queue: the job waits until it can begin. Else it is refused if its application is busy.
	Queue     bool
	Priority  int           // the highest begins first; what people ask for has handPriority at least
	NotBefore time.Time     // with Queue: when it may begin
	By        string        // who asks
	UserID    string        // of that user, as a principal has it
	Token     *access.Token // by which he asks, which narrows what the steps of a run may do, and what waits; nil: none
	Needs     []Need        // that he was allowed: it is decided about again when a job that waits begins
	Origin    tidemark.JobOrigin
	Parent    int64  // the job that it is a part of
	Part      string // which part; of each there is one job, however often it is asked for. Empty: it does not matter
}

// handPriority is the priority of what somebody asks for: it passes by what schedules have queued.
const handPriority = 10

type askKey struct{}

// WithAsk returns a context in which jobs are asked for in that way. Without it they begin at once.
func WithAsk(ctx context.Context, a Ask) context.Context { return context.WithValue(ctx, askKey{}, a) }

// WithNeeds is [WithAsk] as it was, by somebody who was allowed that.
func WithNeeds(ctx context.Context, needs []Need) context.Context {
	how := askOf(ctx)
	how.Needs = needs
	return WithAsk(ctx, how)
}

// queued is ctx for a job that waits, by whom it is asked for.
func queued(ctx context.Context) context.Context {
	how := askOf(ctx)
	how.Queue = true
	return WithAsk(ctx, how)
}

func askOf(ctx context.Context) Ask {
	a, _ := ctx.Value(askKey{}).(Ask)
	if a.Origin != tidemark.FromSchedule {
		a.Priority = max(a.Priority, handPriority)
	}
	if a.Queue && a.Origin == tidemark.FromHand {
		a.Origin = tidemark.FromQueue
	}
	return a
}

// ask makes a job of a request, after it was found to be one that can be met. The job goes on without the caller: it begins at once
// if it can, and is refused if its application is busy, unless ctx says that it waits ([WithAsk]).
func (c *Control) ask(ctx context.Context, name string, request any) (tidemark.Job, error) {
	k, how := c.jobs.kinds[name], askOf(ctx)
	if how.Part != "" {
		if j, err := c.catalog.PartOf(ctx, how.Parent, how.Part); err != nil || j != nil {
			return jobOf(j), err
		}
	}
	w, err := k.plan(c, ctx, mustJSON(request))
	if err != nil {
		return tidemark.Job{}, err
	}
	terms, err := c.terms(ctx, how, w)
	if err != nil {
		return tidemark.Job{}, err
	}
	release := func() {}
	if !how.Queue {
		if release, err = w.hold(ctx); err != nil {
			return tidemark.Job{}, err
		}
	}
	c.recordAllLate()
	if !how.Queue { // it may run before this returns
		c.jobs.claims.RLock()
		defer c.jobs.claims.RUnlock()
	}
	j, err := c.addJob(ctx, catalog.NewJob{Kind: name, Application: w.app, FirstID: c.firstIDOf(w.app), Profile: c.profileOf(cmp.Or(w.of, w.app)), Host: w.host, Args: w.args, Terms: mustJSON(terms), Now: !how.Queue, Priority: how.Priority,
		NotBefore: how.NotBefore, MaxAttempts: k.attempts, AskedBy: how.By, AskerID: how.UserID, Origin: how.Origin, Parent: how.Parent, Part: how.Part})
	if err != nil {
		release()
		return tidemark.Job{}, err
	}
	if how.Queue || j.State != tidemark.JobRunning {
		release() // it holds again what it needs when it begins
		c.jobs.stir()
		return j.Job, nil
	}
	c.begin(j.Job, func(ctx context.Context, t *task) (any, error) {
		defer release()
		return w.begin(ctx, t)
	})
	return j.Job, nil
}

func jobOf(j *catalog.Job) tidemark.Job {
	if j == nil {
		return tidemark.Job{}
	}
	return j.Job
}

// beginQueued runs a job that was claimed from the queue.
func (c *Control) beginQueued(j *catalog.Job) {
	c.begin(j.Job, func(ctx context.Context, t *task) (any, error) {
		w, release, err := c.prepare(ctx, t, j)
		if err != nil {
			return nil, err
		}
		defer release()
		return w.begin(ctx, t)
	})
}

// prepare makes work of a recorded request, and holds what it needs.
func (c *Control) prepare(ctx context.Context, t *task, j *catalog.Job) (*work, func(), error) {
	defer c.Enter()()
	k, ok := c.jobs.kinds[j.Kind]
	if !ok {
		return nil, nil, tidemark.Errorf(tidemark.Invalid, "this server knows no job of kind %q", j.Kind).WithHint("was it asked of a newer release?")
	}
	if err := c.mayBegin(ctx, j); err != nil {
		return nil, nil, err
	}
	w, err := k.plan(c, ctx, j.Args)
	if err != nil {
		return nil, nil, err
	}
	release, err := w.hold(ctx)
	t.waits = tidemark.KindOf(err) == tidemark.Conflict // somebody else holds it, and will let it go
	return w, release, err
}

const (
	// lookPause is how often queued jobs are looked at, if nothing happened that lets one begin.
	lookPause = time.Second
	// renewPause is how often the leases of running jobs are renewed.
	renewPause = catalog.LeaseFor / 3
)

// dispatch begins queued jobs when they can begin, and keeps the leases of those that run, until the server stops.
func (c *Control) dispatch() {
	look, renew := time.NewTicker(lookPause), time.NewTicker(renewPause)
	defer look.Stop()
	defer renew.Stop()
	var told error
	for {
		stirred := c.jobs.changed()
		err := c.claimAll()
		select {
		case <-c.jobs.ctx.Done():
			return
		case <-renew.C:
			err = errors.Join(err, c.renewLeases())
		case <-stirred:
		case <-look.C:
		}
		if err != nil && told == nil && c.jobs.ctx.Err() == nil {
			c.log.Error("queued jobs are not begun", "error", err)
		}
		if err == nil && told != nil {
			c.log.Warn("queued jobs are begun again")
		}
		told = err
	}
}

// claimAll begins all jobs that can begin.
func (c *Control) claimAll() error {
	for c.jobs.ctx.Err() == nil {
		l := c.limits()
		var err error
		if l.Profiles, err = c.jobsOf(c.jobs.ctx); err != nil {
			return err
		}
		j, err := c.catalog.Claim(c.jobs.ctx, l)
		if err != nil || j == nil {
			return err
		}
		c.beginQueued(j)
	}
	return nil
}

// limits bound the jobs of the server, but for those of profiles: these are for what schedules ask for, which is queued.
func (c *Control) limits() catalog.Limits {
	l := catalog.Limits{Host: c.o.HostJobs, All: c.o.Jobs}
	if l.Host == 0 {
		l.Host = 4
	}
	if l.All == 0 {
		l.All = max(8, 4*runtime.NumCPU()) // they wait for disks and databases more than for processors
	}
	return l
}

// renewLeases renews the leases of what runs, and finds what was cancelled elsewhere, what was lost, and what began without our knowledge.
func (c *Control) renewLeases() error {
	c.jobs.claims.Lock() // no job begins meanwhile
	defer c.jobs.claims.Unlock()
	known := c.jobs.known() // before, for one that ends meanwhile may be among those that are held
	held, err := c.catalog.Renew(c.jobs.ctx)
	if err != nil {
		return err
	}
	for _, h := range c.compareHeld(known, held) {
		c.dropUnheard(h)
	}
	return nil
}

// known returns the jobs that run here, or have to be recorded.
func (r *runner) known() map[int64]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[int64]bool{}
	for id := range r.live {
		known[id] = true
	}
	for id := range r.unrecorded {
		known[id] = true
	}
	return known
}

// compareHeld compares what the catalog says that runs here with what does, and cuts what should not. It returns what does not run.
func (c *Control) compareHeld(known map[int64]bool, held []catalog.Held) (unheard []catalog.Held) {
	c.jobs.mu.Lock()
	defer c.jobs.mu.Unlock()
	ours := map[int64]bool{}
	for _, h := range held {
		ours[h.ID] = true
		if !known[h.ID] {
			unheard = append(unheard, h)
		}
		if t := c.jobs.live[h.ID]; t != nil && h.Cancelling {
			t.cancel(errCancelled)
		}
	}
	for id, t := range c.jobs.live {
		if !ours[id] && !t.ending {
			c.log.Error("a job runs elsewhere, and is given up here", "job", id)
			t.cancel(catalog.ErrLost)
		}
	}
	return unheard
}

// dropUnheard gives up a job that the catalog began when its answer did not reach us. Who asked for it to begin at once was told that it failed.
func (c *Control) dropUnheard(h catalog.Held) {
	failure := tidemark.Errorf(tidemark.Unavailable, "the catalog's database went away when the job began")
	e := end{again: &catalog.Again{Attempt: h.Attempt, Failure: failure}, state: tidemark.JobQueued, failure: failure}
	if h.Origin == tidemark.FromHand {
		e = end{state: tidemark.JobFailed, failure: failure.WithHint("ask for it again")}
	}
	if err := e.put(c.jobs.ctx, c.catalog, h.ID); err != nil {
		c.log.Error("a job that did not begin was not given up", "job", h.ID, "error", err)
	}
}

// retry says how a job that failed is begun again, or nil if it is not: somebody waits for it and is told now (who waited for one that was begun
// again after a cut was cut off), it was begun often enough, or it would fail again.
func (c *Control) retry(t *task, failure *tidemark.Error) *catalog.Again {
	passes := failure.Kind == tidemark.Unavailable || t.waits && failure.Kind == tidemark.Conflict
	waited := t.job.Origin == tidemark.FromHand && t.job.Attempt < 2
	if !passes || c.jobs.kinds[t.job.Kind].resumes || waited || t.job.Attempt >= t.job.MaxAttempts {
		return nil
	}
	return &catalog.Again{Attempt: t.job.Attempt, After: backOff(c.jobs.kinds[t.job.Kind].pause, t.job.Attempt), Args: t.again, Failure: failure}
}

// maxPause bounds how long a job that failed waits before it is begun again.
const maxPause = 10 * time.Minute

// backOff is how long to wait after an attempt: twice as long each time, and up to half more or less, so that
// what failed together does not come again together.
func backOff(pause time.Duration, attempt int) time.Duration {
	d := min(pause<<min(attempt-1, 20), maxPause)
	return d/2 + rand.N(d)
}

// stir tells everybody who waits that jobs began, ended or were queued.
func (r *runner) stir() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.stirred)
	r.stirred = make(chan struct{})
}

// changed returns what is closed by the next stir.
func (r *runner) changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stirred
}

// sayWaits says of queued jobs why they wait.
func (c *Control) sayWaits(ctx context.Context, jobs []tidemark.Job) error {
	var load *catalog.Load
	most, err := c.jobsOf(ctx)
	if err != nil {
		return err
	}
	for i := range jobs {
		j := &jobs[i]
		if j.State != tidemark.JobQueued {
			continue
		}
		if load == nil {
			l, err := c.catalog.Load(ctx)
			if err != nil {
				return err
			}
			load = &l
		}
		j.Waits = c.whyWaits(*j, *load, most)
	}
	return nil
}

// whyWaits says why a queued job has not begun, by what runs and how many jobs each profile may have.
func (c *Control) whyWaits(j tidemark.Job, load catalog.Load, profiles map[string]int) string {
	l, now := c.limits(), time.Now()
	most, bounded := profiles[j.Profile]
	other, busy := load.Busy[j.Application]
	switch {
	case j.NotBefore != nil && j.NotBefore.After(now) && !j.Created.After(now):
		return "until " + j.NotBefore.Local().Format(time.DateTime)
	case busy && j.Application != "":
		return fmt.Sprintf("for job %d (%s) of %s", other.ID, other.Kind, j.Application)
	case j.Host != "" && load.Hosts[j.Host] >= l.Host:
		return fmt.Sprintf("for a job of %s to end: %d run there, which is the limit", j.Host, load.Hosts[j.Host])
	case bounded && j.Origin == tidemark.FromSchedule && load.Profiles[j.Profile] >= most:
		return fmt.Sprintf("for a job of the profile %s to end: %d run, which is its limit", j.Profile, load.Profiles[j.Profile])
	case load.All >= l.All:
		return fmt.Sprintf("for another job to end: %d run, which is the limit of this server", load.All)
	}
	return "for its turn"
}

// decoded makes the plan of a kind one of its recorded requests.
func decoded[R any](plan func(*Control, context.Context, R) (*work, error)) func(*Control, context.Context, json.RawMessage) (*work, error) {
	return func(c *Control, ctx context.Context, args json.RawMessage) (*work, error) {
		var r R
		if err := json.Unmarshal(args, &r); err != nil {
			return nil, tidemark.Errorf(tidemark.Invalid, "the request of the job cannot be read: %w", err)
		}
		return plan(c, ctx, r)
	}
}
