package control

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
	"tidemark/timeline"
)

// What was promised to applications is kept here: package policy says what is due, what may be forgotten and whether
// a promise is kept, from what was done; we do it, and note it.

const (
	// promisedPrefix begins the names of points that a schedule made.
	promisedPrefix = "sla-"
	// lookPromises is how often it is looked what is due, if nothing is earlier and nothing happens.
	lookPromises = time.Minute
	// keptRuns and keptRecoveries bound what is remembered of an application, per policy.
	keptRuns       = 16
	keptRecoveries = 32
)

// record is what is remembered of what was done for an application. The catalog has it under the timeline's ID.
type record struct {
	ID         string            `json:"id"`
	Runs       []policy.Run      `json:"runs,omitempty"` // those that ended, oldest first
	Recoveries []policy.Recovery `json:"recoveries,omitempty"`
	// Verified is when points were proved good, by position: of those that there are.
	Verified map[tidemark.Position]time.Time `json:"verified,omitempty"`
	// Told is how the promise stands by the event that told it last; empty: it is kept, as far as anybody knows.
	Told policy.State `json:"told,omitempty"`
}

// promises are the applications that have an SLA template.
type promises struct {
	standings map[string]compliance // by ID of the timeline

	mu      sync.Mutex
	records map[string]*record               // by ID of the timeline
	running map[string]map[policy.Policy]run // by ID of the timeline
	resumed time.Time                        // when runs became possible
	sifted  map[string]sifting               // by ID of the timeline
	due     map[string]time.Time             // when each has to be looked at again, by ID of the timeline; missing: now
	stirred chan struct{}                    // something ended, or was changed
	asking  sync.Mutex                       // held while a job is asked for, until it is among the running; before mu
}

// run is what was begun, and has not ended.
type run struct {
	job   int64 // 0: it is none
	begun time.Time
	point tidemark.Position // of a verify
}

// sifting is when it was last looked which points may be forgotten, and how many there were.
type sifting struct {
	at     time.Time
	points int
}

// beginPromises brings back what is remembered, and keeps promises until the server stops.
func (c *Control) beginPromises(ctx context.Context) error {
	p := &c.promises
	p.records, p.running, p.sifted = map[string]*record{}, map[string]map[policy.Policy]run{}, map[string]sifting{}
	p.due, p.stirred, p.resumed = map[string]time.Time{}, make(chan struct{}, 1), clockNow()
	if err := c.forgetLeft(ctx); err != nil {
		c.log.Error("what is noted of applications that are gone is left", "error", err)
	}
	list, err := catalog.List[record](ctx, c.catalog, catalog.Promises)
	if err != nil {
		return err
	}
	for i := range list {
		p.records[list[i].ID] = &list[i]
	}
	if err := c.recallJobs(ctx); err != nil {
		return err
	}
	c.jobs.wg.Go(c.keepPromises)
	return nil
}

// recalledJobs is how many of the jobs that wait or run are read at once when the server starts.
const recalledJobs = 1000

// recallJobs finds what schedules asked for before the server stopped, and has not ended.
func (c *Control) recallJobs(ctx context.Context) error {
	f := tidemark.JobFilter{States: []tidemark.JobState{tidemark.JobQueued, tidemark.JobRunning}, Limit: recalledJobs}
	for {
		list, err := c.catalog.Jobs(ctx, f)
		if err != nil {
			return err
		}
		for _, j := range list {
			if err := c.recallJob(ctx, j); err != nil {
				return err
			}
		}
		if len(list) < f.Limit {
			return nil
		}
		f.Before = list[len(list)-1].ID
	}
}

// recallJob has a job that has not ended counted as begun, if it is what a schedule asked for.
func (c *Control) recallJob(ctx context.Context, j tidemark.Job) error {
	pol, ok := policyOf(j.Kind)
	if !ok || j.Origin != tidemark.FromSchedule {
		return nil
	}
	begun, id := run{job: j.ID, begun: j.Created}, ""
	if pol == policy.PolicyVerify {
		full, err := c.catalog.Job(ctx, j.ID)
		if err != nil {
			return err
		}
		id, begun.point = c.keptPoint(verifiedRef(full))
	} else if a, err := c.app(j.Application); err == nil {
		id = a.t.ID()
	}
	if id != "" {
		c.promises.begun(id, pol, begun)
	}
	return nil
}

// verifiedRef is the reference to the point that a verify or recovery proof takes, as it was asked for.
func verifiedRef(j *catalog.Job) (ref string) {
	var spec tidemark.ProveSpec
	if json.Unmarshal(j.Args, &ref) == nil || json.Unmarshal(j.Args, &spec) != nil { // of a verify, it is all of the request
		return ref
	}
	return spec.Ref
}

// keptPoint is the timeline, by ID, and the position of a point that a reference names. The position is 0 if it names none that is kept, and the ID
// empty if it is of no application.
func (c *Control) keptPoint(ref string) (id string, pos tidemark.Position) {
	r, err := tidemark.ParseRef(ref)
	if err != nil {
		return "", 0
	}
	a, err := c.app(r.App)
	if err != nil {
		return "", 0
	}
	if r.Point.Bookmark != "" || r.Point.IsPosition() {
		if pos, err = a.t.Resolve(r.Point); err != nil {
			pos = 0
		}
	}
	return a.t.ID(), pos
}

// policyOf is the policy that a job of a kind does.
func policyOf(kind string) (policy.Policy, bool) {
	switch kind {
	case "capture":
		return policy.PolicyCapture, true
	case "verify", "prove":
		return policy.PolicyVerify, true
	}
	return "", false
}

// stir has it looked at once what is due.
func (p *promises) stir() {
	select {
	case p.stirred <- struct{}{}:
	default:
	}
}

// anew has it looked at once what is due, and which points may be forgotten: what was promised has changed.
func (p *promises) anew() {
	p.mu.Lock()
	p.sifted, p.due = map[string]sifting{}, map[string]time.Time{}
	p.mu.Unlock()
	p.stir()
}

// anewFor is anew for one application.
func (p *promises) anewFor(id string) {
	p.mu.Lock()
	delete(p.sifted, id)
	delete(p.due, id)
	p.mu.Unlock()
	p.stir()
}

func (p *promises) begun(id string, pol policy.Policy, r run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[id] == nil {
		p.running[id] = map[policy.Policy]run{}
	}
	p.running[id][pol] = r
}

// keepPromises does what is due, and forgets what may be forgotten, until the server stops.
func (c *Control) keepPromises() {
	sets := c.lookAtClock().sets
	for c.jobs.ctx.Err() == nil {
		look, now := c.lookAtClock(), clockNow()
		if look.sets != sets { // what was missed by that is spread
			c.promises.mu.Lock()
			c.promises.resumed, c.promises.due = now, map[string]time.Time{}
			c.promises.mu.Unlock()
		}
		sets = look.sets
		next := c.keepAll(c.jobs.ctx, now)
		timer := time.NewTimer(max(min(time.Until(next), lookPromises), 100*time.Millisecond))
		select {
		case <-c.jobs.ctx.Done():
		case <-timer.C:
		case <-c.promises.stirred:
		}
		timer.Stop()
	}
}

// keepAll does what is due now, and returns when it has to be looked again. An application for which nothing is due costs
// next to nothing: there may be thousands.
func (c *Control) keepAll(ctx context.Context, now time.Time) (next time.Time) {
	next = c.keepSchedules(ctx, now)
	if err := c.settleRuns(ctx); err != nil {
		return next // nothing is done while the catalog is away
	}
	templates, err := c.templates(ctx)
	if err != nil {
		return next
	}
	all := c.set.List()
	for _, line := range all {
		at, ok := c.promises.dueAt(line.ID())
		if ok && now.Before(at) {
			next = earlier(next, at)
			continue
		}
		if ctx.Err() != nil {
			return next
		}
		c.promises.looked(line.ID(), now.Add(siftEvery)) // before: what happens meanwhile has it looked at again
		a, err := appOf(line)
		if err != nil {
			continue // that is told elsewhere
		}
		p, _ := a.promised()
		if p == nil {
			c.unpromised(line.ID())
			continue
		}
		t, ok := templates[p.Template]
		if ok {
			at = c.keepOne(ctx, a, t, now)
		} else {
			at = c.standUnknown(a, *p, now)
		}
		c.promises.dueBy(line.ID(), at)
		next = earlier(next, at)
	}
	c.promises.prune(all)
	return next
}

// dueAt is when an application has to be looked at again.
func (p *promises) dueAt(id string) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.due[id]
	return at, ok
}

// looked says that an application is looked at now, and again at a time.
func (p *promises) looked(id string, again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.due[id] = again
}

// dueBy has an application looked at again by a time, unless that is so already.
func (p *promises) dueBy(id string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, ok := p.due[id]; ok {
		p.due[id] = earlier(was, at)
	}
}

// prune forgets applications that are gone.
func (p *promises) prune(all []*timeline.Timeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.due) <= 2*len(all) {
		return
	}
	there := map[string]bool{}
	for _, t := range all {
		there[t.ID()] = true
	}
	for id := range p.due {
		if !there[id] {
			p.drop(id)
		}
	}
}

// drop forgets an application. The caller holds mu.
func (p *promises) drop(id string) {
	delete(p.records, id)
	delete(p.running, id)
	delete(p.sifted, id)
	delete(p.due, id)
	delete(p.standings, id)
}

// keepOne keeps the promise to one application, and returns when something is due next.
func (c *Control) keepOne(ctx context.Context, a app, t policy.Template, now time.Time) (next time.Time) {
	next = now.Add(siftEvery)
	if err := c.setWindow(a, t); err != nil {
		c.log.Error("the window of an application was not set", "application", a.name, "error", err)
	}
	h := c.history(ctx, a, t)
	next = earlier(next, c.stand(a, t, h, now))
	for _, d := range policy.Next(t, h, now) {
		switch {
		case d.Running || d.Policy == policy.PolicyLog: // which is received all the time
		case d.At.After(now):
			next = earlier(next, d.At)
		default:
			c.doDue(ctx, a, t, h, d)
			next = earlier(next, now.Add(lookPromises)) // it may not have been possible
		}
	}
	c.forget(ctx, a, t, h, c.aging())
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// setWindow gives a journaled application the window that is promised.
func (c *Control) setWindow(a app, t policy.Template) error {
	if t.CDP == nil || !a.journaled() {
		return nil
	}
	want := timeline.Window{For: time.Duration(t.CDP.Window), Bytes: int64(t.CDP.Bytes)}
	if a.t.Window() == want {
		return nil
	}
	return a.t.SetWindow(want)
}

// doDue begins what is due.
func (c *Control) doDue(ctx context.Context, a app, t policy.Template, h policy.History, d policy.Due) {
	begun := run{begun: time.Now()}
	how := Ask{Queue: true, Priority: t.Rank() * handPriority / 101, By: "sla " + t.Name, Origin: tidemark.FromSchedule}
	failed := func(err error) {
		c.ended(a.t.ID(), policy.Run{Policy: d.Policy, State: policy.RunFailed, Started: begun.begun, Finished: time.Now(), Error: Explain(err).Message})
	}
	if d.Policy != policy.PolicyVerify { // which keeps nothing
		if err := c.roomFor(ctx, a); err != nil {
			failed(err)
			return
		}
	}
	var ask func() (tidemark.Job, error)
	switch {
	case d.Policy == policy.PolicyVerify:
		p, ok := policy.Choose(*t.Verify, a.name, h.Points, d.Promised)
		if !ok {
			return
		}
		begun.point = p.Position
		ask = func() (tidemark.Job, error) {
			return c.verifyPoint(WithAsk(ctx, how), a.name+"@"+p.Position.String(), *t.Verify)
		}
	case d.Policy == policy.PolicyCapture && !c.onlyMarked(a):
		ask = func() (tidemark.Job, error) {
			return c.Capture(WithAsk(ctx, how), tidemark.CaptureSpec{Application: a.name, Bookmark: timedName(a, promisedPrefix, time.Now())})
		}
	default:
		c.promises.begun(a.t.ID(), d.Policy, begun)
		c.jobs.wg.Go(func() { c.mark(a, d.Policy, begun) })
		return
	}
	if err := c.beginJob(a.t.ID(), d.Policy, begun, ask); err != nil {
		failed(err)
	}
}

// verifyPoint proves a point: it is brought up in a sandbox and checked, and a probe looks at it, if there is one. Where nothing can be brought up, or
// is not to be, all bytes of the point are read and checked instead.
func (c *Control) verifyPoint(ctx context.Context, ref string, v policy.Verify) (tidemark.Job, error) {
	if v.Proves() && (os.Geteuid() == 0 || v.Probe != "") { // a sandbox takes root, and without it a probe is not left out, but fails
		return c.Prove(ctx, tidemark.ProveSpec{Ref: ref, Probe: v.Probe, Timeout: int64(time.Duration(v.Limit()) / time.Second)})
	}
	return c.Verify(ctx, ref)
}

// onlyMarked reports whether nothing has to be copied to have a point of an application.
func (c *Control) onlyMarked(a app) bool {
	return a.followed() || a.Role == "" && a.Type == tidemark.TypeVolume && a.Source == ""
}

// mark makes a point of an application whose writes are journaled anyway.
func (c *Control) mark(a app, pol policy.Policy, begun run) {
	ctx := c.jobs.ctx
	prefix := promisedPrefix
	if pol == policy.PolicyAppShot {
		prefix = scheduledPrefix
	}
	_, err := c.Bookmark(ctx, tidemark.BookmarkSpec{Application: a.name, Name: timedName(a, prefix, time.Now())})
	if ctx.Err() != nil {
		return
	}
	r := policy.Run{Policy: pol, State: policy.RunDone, Started: begun.begun, Finished: time.Now()}
	if err != nil {
		r.State, r.Error = policy.RunFailed, Explain(err).Message
	}
	c.ended(a.t.ID(), r)
}

// jobEnded notes how a job went that did what a policy asks, or measured a recovery. What was asked for by hand counts as well.
func (c *Control) jobEnded(j tidemark.Job, e end) {
	if e.state == tidemark.JobQueued {
		return // it is begun again
	}
	if made, ok := e.result.(tidemark.Clone); ok && j.Kind == "clone" && e.state == tidemark.JobDone {
		source, _, _ := strings.Cut(made.Source, "@")
		c.measured(source, time.Duration(made.Seconds*float64(time.Second)))
	}
	proof, _ := e.result.(tidemark.Proof)
	if e.state == tidemark.JobDone && proof.RecoverySeconds > 0 {
		c.measured(proof.Application, time.Duration(proof.RecoverySeconds*float64(time.Second)))
	}
	if j.Kind == catalog.KindWorkflow {
		c.promises.stir()
	}
	pol, ok := policyOf(j.Kind)
	if !ok {
		return
	}
	id, began := c.promises.ofJob(j.ID, pol)
	if pol == policy.PolicyVerify && id == "" { // it was asked for by hand
		ref := proof.Ref
		if full, err := c.catalog.Job(context.Background(), j.ID); err == nil && ref == "" {
			ref = verifiedRef(full)
		}
		id, began.point = c.keptPoint(ref)
	} else if a, err := c.app(j.Application); err == nil && id == "" {
		id = a.t.ID()
	}
	if id == "" {
		return // of no application, or of one that is gone
	}
	r := policy.Run{Policy: pol, State: policy.RunDone, Started: j.Created, Finished: time.Now()}
	if !began.begun.IsZero() {
		r.Started = began.begun
	}
	if e.failure != nil {
		r.State, r.Error = policy.RunFailed, e.failure.Message
	}
	if pol == policy.PolicyVerify && began.point != 0 && e.state == tidemark.JobDone {
		v, ok := e.result.(tidemark.VerifyResult)
		if ok && len(v.Damaged) > 0 {
			r.State, r.Error = policy.RunFailed, v.Damaged[0]
		} else {
			c.note(id, func(k *record) { k.verified(began.point, r.Finished) })
		}
	}
	c.ended(id, r)
}

// measured notes how long it took until a copy of an application could be used.
func (c *Control) measured(name string, took time.Duration) {
	a, err := c.app(name)
	if err != nil {
		return
	}
	c.note(a.t.ID(), func(k *record) {
		k.Recoveries = append(k.Recoveries, policy.Recovery{Finished: time.Now(), Took: policy.Duration(took)})
		k.Recoveries = k.Recoveries[max(0, len(k.Recoveries)-keptRecoveries):]
	})
}

// ofJob finds what a job was begun for.
func (p *promises) ofJob(job int64, pol policy.Policy) (id string, r run) {
	p.asking.Lock() // it may be asked for just now
	defer p.asking.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, all := range p.running {
		if r := all[pol]; r.job == job && job != 0 {
			return id, r
		}
	}
	return "", run{}
}

// ended notes a run of a policy that is over.
func (c *Control) ended(id string, r policy.Run) {
	p := &c.promises
	p.mu.Lock()
	delete(p.running[id], r.Policy)
	p.mu.Unlock()
	c.note(id, func(k *record) { k.ran(r) })
}

// ran appends a run, and forgets the oldest of its policy when there are many. The newest good one stays: it is what intervals count from.
func (k *record) ran(r policy.Run) {
	k.Runs = append(k.Runs, r)
	n, good := 0, false
	for i := len(k.Runs) - 1; i >= 0; i-- {
		if k.Runs[i].Policy != r.Policy {
			continue
		}
		n++
		newest := !good && k.Runs[i].State == policy.RunDone
		good = good || newest
		if n > keptRuns && !newest {
			k.Runs = slices.Delete(k.Runs, i, i+1)
		}
	}
}

// verified notes that a point was proved good.
func (k *record) verified(pos tidemark.Position, at time.Time) {
	v := maps.Clone(k.Verified)
	if v == nil {
		v = map[tidemark.Position]time.Time{}
	}
	v[pos] = at
	k.Verified = v
}

// note changes what is remembered of the application with an ID, unless it is gone, and forgets of which points it was that are. The change replaces
// what it changes, and alters no list in place.
func (c *Control) note(id string, change func(*record)) {
	line := c.set.Get(id)
	if line == nil {
		return
	}
	p := &c.promises
	p.mu.Lock()
	r := record{ID: id}
	if old := p.records[id]; old != nil {
		r = *old
		r.Runs, r.Recoveries = slices.Clone(old.Runs), slices.Clone(old.Recoveries)
	}
	change(&r)
	r.Verified = stillMarked(r.Verified, line)
	p.records[id] = &r
	delete(p.due, id)
	p.mu.Unlock()
	if err := c.catalog.Put(context.Background(), catalog.Promises, id, r); err != nil {
		c.log.Error("what was done for an application was not noted", "timeline", id, "error", err)
	}
	p.stir()
}

// history is what was done for an application, as its template is judged by.
func (c *Control) history(ctx context.Context, a app, t policy.Template) policy.History {
	promise, _ := a.promised()
	since := promise.Since.Round(0)
	h := policy.History{Application: a.name, Since: since, From: since}
	p, id := &c.promises, a.t.ID()
	p.mu.Lock()
	h.Resumed = p.resumed
	var r record
	if k := p.records[id]; k != nil {
		r = *k
	}
	h.Runs, h.Recoveries = slices.Clone(r.Runs), r.Recoveries
	for pol, begun := range p.running[id] {
		h.Runs = append(h.Runs, policy.Run{Policy: pol, State: policy.RunRunning, Started: begun.begun})
	}
	p.mu.Unlock()
	for i, r := range h.Runs {
		h.Runs[i].Started, h.Runs[i].Finished = r.Started.Round(0), r.Finished.Round(0)
	}
	points := tidemark.Points{Points: a.t.Points()}
	c.describeCoverage(ctx, a, &points)
	if t.Log != nil {
		points.Gaps = append(points.Gaps, c.stalled(ctx, a, points.Covered)...)
	}
	h.Covered, h.Gaps = points.Covered, points.Gaps
	h.Points = keptPoints(a, points.Points, r.Verified)
	return h
}

// keptPoints are points of an application as retention looks at them. What was promised otherwise is held: what somebody named, until he expires it, and
// AppShots by an option of the application or of a group, for the time that the option says, which expireShots keeps.
func keptPoints(a app, points []tidemark.RecoveryPoint, verified map[tidemark.Position]time.Time) (list []policy.Point) {
	for _, x := range points {
		shot := strings.HasPrefix(x.Bookmark, scheduledPrefix)
		optional := shot && (a.Options[optionEvery] != "" || x.Labels[labelGroup] != "")
		named := x.Bookmark != "" && !madeName.MatchString(x.Bookmark)
		list = append(list, policy.Point{Position: x.Position, Time: x.Time, Bookmark: x.Bookmark, Verified: verified[x.Position], AppShot: shot, Held: named || optional})
	}
	return list
}

// stalled says why a log does not go on, as a gap behind what is covered by it.
func (c *Control) stalled(ctx context.Context, a app, covered []tidemark.Interval) []tidemark.Interval {
	var d tidemark.Application
	if c.describeLog(ctx, a, &d); d.Detail == "" {
		return nil
	}
	end := a.t.Describe().Created
	if len(covered) > 0 {
		end = covered[len(covered)-1].To
	}
	return []tidemark.Interval{{From: end, Reason: strings.TrimPrefix(d.Detail, "log: ")}}
}

// madeName is a name that nobody chose. What somebody named is kept until he forgets it.
var madeName = regexp.MustCompile(`^(` + promisedPrefix + `|` + scheduledPrefix + `|` + capturedPrefix + `)[0-9]{8}-[0-9]{6}\.[0-9]{3}(-[0-9]+)?$`)

// siftEvery is how often it is looked which points may be forgotten, if there are no new ones.
const siftEvery = 15 * time.Minute

// forget lets points go that a template lets go. Each is told: what is gone cannot be had again. A point with a time that has not come yet, because the
// clock was set, stays until it has, and has no other go meanwhile.
func (c *Control) forget(ctx context.Context, a app, t policy.Template, h policy.History, now time.Time) {
	if t.Keep == nil || c.settled(a) != nil {
		return
	}
	points := come(h.Points, now)
	p := &c.promises
	p.mu.Lock()
	was := p.sifted[a.t.ID()]
	p.sifted[a.t.ID()] = sifting{now, len(points)}
	p.mu.Unlock()
	if was.points == len(points) && now.Sub(was.at) < siftEvery && !now.Before(was.at) {
		return
	}
	for _, v := range c.toForget(a, t, points, now) {
		if ctx.Err() != nil {
			return
		}
		if _, err := c.Expire(ctx, a.name+"@"+v.Position.String()); err != nil {
			c.log.Error("a point was not forgotten", "application", a.name, "point", v.Position, "error", err)
			continue
		}
		c.event("info", a.name, "%s@%s of %s is forgotten, by the template %s", a.name, v.Bookmark, v.Time.Format(time.RFC3339), t.Name)
	}
}

// Compliance says of each application that has a template whether what was promised is kept, and names those that have none.
func (c *Control) Compliance(ctx context.Context) ([]policy.Compliance, error) {
	list := []policy.Compliance{}
	now := clockNow()
	templates, err := c.templates(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range c.apps() {
		p, group := a.promised()
		if a.Role == roleMount || a.Role == roleClone && p == nil {
			continue
		}
		kept := c.comply(ctx, a, p, templates, now)
		kept.Group, kept.Profile = group, a.Profile
		list = append(list, kept)
	}
	return list, nil
}

// comply judges a promise to an application, or says that there is none.
func (c *Control) comply(ctx context.Context, a app, p *promise, templates map[string]policy.Template, now time.Time) policy.Compliance {
	if p == nil {
		return policy.Compliance{Application: a.name, Judged: now, State: policy.Unprotected, Reasons: []string{"nothing is promised to it"}}
	}
	t, ok := templates[p.Template]
	if !ok {
		return unknownTemplate(a, *p, now)
	}
	return policy.Judge(t, c.history(ctx, a, t), now)
}
