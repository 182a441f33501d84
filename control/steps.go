package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/catalog"
	"tidemark/policy"
	"tidemark/workflow"
)

// stepKind is how a verb of workflows is done.
type stepKind struct {
	// do does a step. resumed: it had begun when the server stopped, and may have done all, some or nothing of it.
	do func(ctx context.Context, x *execution, s workflow.Step, resumed bool) (result any, err error)
	// needs says what somebody has to be allowed to have it done; nil: to run the workflow, and no more.
	needs func(c *Control, ctx context.Context, b workflow.Body) ([]Need, error)
	// looks: it changes nothing, and is in the audit only if it was refused.
	looks bool
}

// stepKinds are the verbs of workflows, by the names that [workflow.Item] gives them. Whoever adds one adds it here.
func stepKinds() map[string]stepKind {
	return map[string]stepKind{
		"capture":   {do: stepOf(doCapture), needs: needsOf(captureNeeds)},
		"bookmark":  {do: stepOf(doBookmark), needs: needsOf(bookmarkNeeds)},
		"clone":     {do: stepOf(doClone), needs: needsOf(cloneNeeds)},
		"refresh":   {do: stepOf(doRefresh), needs: needsOf(refreshNeeds)},
		"prepare":   {do: stepOf(doPrepare), needs: needsOf(prepareNeeds)},
		"publish":   {do: stepOf(doPublish), needs: needsOf(publishNeeds)},
		"unpublish": {do: stepOf(doUnpublish), needs: needsOf(unpublishNeeds)},
		"prove":     {do: stepOf(doProve), needs: needsOf(proveNeeds)},
		"wait":      {do: stepOf(doWait), needs: needsOf(waitNeeds), looks: true},
		"remove":    {do: stepOf(doRemove), needs: needsOf(removeNeeds)},
		"expire":    {do: stepOf(doExpire), needs: needsOf(expireNeeds)},
		"script":    {do: stepOf(doScript)},
		"notify":    {do: stepOf(doNotify)},
	}
}

// doing is a step that is done.
type doing[B workflow.Body] struct {
	*execution
	step    workflow.Step
	body    B
	resumed bool
}

// stepOf makes a function of a body one of a step.
func stepOf[B workflow.Body](fn func(ctx context.Context, d doing[B]) (any, error)) func(context.Context, *execution, workflow.Step, bool) (any, error) {
	return func(ctx context.Context, x *execution, s workflow.Step, resumed bool) (any, error) {
		d := doing[B]{x, s, s.Body.(B), resumed}
		return fn(ctx, d)
	}
}

func needsOf[B workflow.Body](fn func(c *Control, ctx context.Context, b B) ([]Need, error)) func(*Control, context.Context, workflow.Body) ([]Need, error) {
	return func(c *Control, ctx context.Context, b workflow.Body) ([]Need, error) { return fn(c, ctx, b.(B)) }
}

// allowed returns an error unless who runs the workflow may have a step done now, and what was decided about.
func (x *execution) allowed(ctx context.Context, s workflow.Step) ([]Decided, error) {
	k := stepKinds()[s.Kind]
	if k.needs == nil {
		return nil, nil
	}
	needs, err := k.needs(x.c, ctx, s.Body)
	if err != nil {
		return nil, err
	}
	return x.c.mayAll(ctx, x.asker(), needs)
}

// mayRun returns an error unless who runs the workflow may run one now on what this run is about: as that is now or, where it is not there
// any more, as it was when the run began.
func (x *execution) mayRun(ctx context.Context) error {
	by := x.asker()
	if by.user == "" {
		return nil
	}
	defer x.c.Enter()()
	who, grants, err := x.c.principal(ctx, by)
	if err != nil {
		return err
	}
	for _, was := range x.About {
		o, there, err := x.c.needed(ctx, Need{Action: access.WorkflowRun, Kind: was.Kind, Ref: was.Name})
		if err != nil {
			return err
		}
		if o.Bookmark, o.Published = was.Bookmark, was.Published; !there {
			o = was
		}
		if err := access.Decide(who, grants, access.WorkflowRun, o).Err(); err != nil {
			return err
		}
	}
	return nil
}

// job has a job do a step: the one that was asked for before the server stopped, or else a new one.
func (x *execution) job(ctx context.Context, s workflow.Step, ask func(context.Context, workflow.Body) (tidemark.Job, error)) (j tidemark.Job, err error) {
	before, err := x.c.catalog.PartOf(ctx, x.id, s.ID)
	if err != nil {
		return j, err
	}
	if before != nil {
		return x.await(ctx, before.ID)
	}
	how := Ask{Queue: true, Priority: x.t.job.Priority, By: x.t.job.AskedBy, UserID: x.t.job.AskerID, Origin: tidemark.FromQueue, Parent: x.id, Part: s.ID}
	if x.t.job.Origin == tidemark.FromSchedule {
		how.Origin = tidemark.FromSchedule
	}
	if j, err = x.asked(WithAsk(ctx, how), s, ask); err == nil {
		return x.await(ctx, j.ID)
	}
	if ctx.Err() == nil || x.leaves(ctx) {
		return j, err
	}
	// It was cut short while it asked, and may have the job all the same. That is not left to run for nobody.
	part, e := x.c.catalog.PartAtLast(catalog.Patient(x.c.jobs.ctx), x.id, s.ID)
	if e != nil || part == nil {
		return j, err
	}
	return x.await(ctx, part.ID)
}

// asked asks for a job, if that is allowed. Others who would make a copy for who runs the workflow wait meanwhile.
func (x *execution) asked(ctx context.Context, s workflow.Step, ask func(context.Context, workflow.Body) (tidemark.Job, error)) (j tidemark.Job, err error) {
	err = x.recorded(s, func() (decided []Decided, err error) {
		defer x.c.Enter()()
		defer x.c.HoldCopies(x.t.job.AskedBy)()
		if s.Body, err = x.fixed(ctx, s.Body); err != nil {
			return nil, err
		}
		if decided, err = x.allowed(ctx, s); err != nil {
			return decided, err
		}
		j, err = ask(ctx, s.Body)
		return decided, err
	})
	return j, err
}

// fixed is a body that means the very point that is decided about: what is the newest may change meanwhile.
func (x *execution) fixed(ctx context.Context, b workflow.Body) (workflow.Body, error) {
	if x.t.job.AskedBy == "" {
		return b, nil
	}
	switch b := b.(type) {
	case *workflow.Clone:
		if b.To != "" { // beyond the point
			return b, nil
		}
		t, err := x.c.Taking(b.Source)
		at := *b
		at.Source = t.Ref
		return &at, err
	case *workflow.Refresh:
		ref, err := x.c.Source(ctx, tidemark.RefreshSpec{Name: b.Clone, Point: b.Point})
		if k := tidemark.KindOf(err); err != nil {
			if k == tidemark.Conflict { // that is said when he may have it done
				err = nil
			}
			return b, err
		}
		t, err := x.c.Taking(ref)
		at := *b
		_, at.Point, _ = strings.Cut(t.Ref, "@")
		return &at, err
	}
	return b, nil
}

// job has a job do the step, which is asked for with the body that was decided about.
func (d doing[B]) job(ctx context.Context, ask func(ctx context.Context, b B) (tidemark.Job, error)) (any, error) {
	j, err := d.execution.job(ctx, d.step, func(ctx context.Context, b workflow.Body) (tidemark.Job, error) { return ask(ctx, b.(B)) })
	return j.Result, err
}

// awaitPause bounds how long one look at a job waits; its end is told at once.
const awaitPause = 30 * time.Second

// await waits for a job to end. If the step's time is over, or the run is cancelled, so is the job, and it is waited until it has undone
// what it had half done.
func (x *execution) await(ctx context.Context, id int64) (j tidemark.Job, err error) {
	patient := catalog.Patient(x.c.jobs.ctx)
	look := ctx
	for cancelled := false; ; {
		if j, err = x.c.Job(catalog.Patient(look), id, awaitPause); err != nil && (cancelled || ctx.Err() == nil) && !x.leaves(ctx) {
			return j, err
		}
		switch {
		case x.leaves(ctx):
			return j, ctx.Err()
		case ctx.Err() != nil && !cancelled:
			cancelled, look = true, patient
			if err := x.c.CancelJob(patient, id); err != nil && tidemark.KindOf(err) != tidemark.Conflict { // it may have ended
				return j, err
			}
		case j.State == tidemark.JobDone:
			return j, nil
		case j.State == tidemark.JobFailed || j.State == tidemark.JobCancelled:
			return j, jobFailed(j)
		}
	}
}

func jobFailed(j tidemark.Job) error {
	failure := j.Error
	if failure == nil {
		failure = tidemark.Errorf(tidemark.Internal, "job %d has failed, and does not say why", j.ID)
	}
	return fmt.Errorf("job %d (%s): %w", j.ID, j.Kind, failure)
}

// entered does what needs the stores, if it is allowed.
func (d doing[B]) entered(ctx context.Context, fn func() error) error {
	return d.recorded(d.step, func() (decided []Decided, err error) {
		defer d.c.Enter()()
		if decided, err = d.allowed(ctx, d.step); err != nil {
			return decided, err
		}
		return decided, fn()
	})
}

// each does the same, but to one after another of what was decided about, with a record of each. What has come to be meant since is left
// alone.
func (d doing[B]) each(ctx context.Context, fn func(name string) error) error {
	defer d.c.Enter()()
	decided, err := d.allowed(ctx, d.step)
	if err != nil {
		d.record(d.step, decided, err)
		return err
	}
	for _, one := range decided {
		if err := d.recorded(d.step, func() ([]Decided, error) { return []Decided{one}, fn(one.Object.Name) }); err != nil {
			return err
		}
	}
	return nil
}

func captureNeeds(_ *Control, _ context.Context, b *workflow.Capture) ([]Need, error) {
	return []Need{{Action: access.ApplicationCapture, Kind: access.KindApplication, Ref: b.App, Copy: &access.Copy{Point: true}}}, nil
}

func doCapture(ctx context.Context, d doing[*workflow.Capture]) (any, error) {
	return d.job(ctx, func(ctx context.Context, b *workflow.Capture) (tidemark.Job, error) {
		return d.c.Capture(ctx, tidemark.CaptureSpec{Application: b.App, Bookmark: b.Bookmark})
	})
}

func bookmarkNeeds(_ *Control, _ context.Context, b *workflow.Bookmark) ([]Need, error) {
	return []Need{{Action: access.ApplicationBookmark, Kind: access.KindApplication, Ref: b.App, Copy: &access.Copy{Point: true}}}, nil
}

// doBookmark marks the present. One that was cut is done if the bookmark is there and was made since the step began.
func doBookmark(ctx context.Context, d doing[*workflow.Bookmark]) (p any, err error) {
	err = d.entered(ctx, func() error {
		if d.resumed {
			a, err := d.c.app(d.body.App)
			if err != nil {
				return err
			}
			for _, made := range a.t.Points() {
				if made.Bookmark == d.body.Name && !made.Time.Before(d.begun[d.step.ID].Started.Add(-bookmarkSlack)) {
					p = made
					return nil
				}
			}
		}
		p, err = d.c.Bookmark(ctx, tidemark.BookmarkSpec{Application: d.body.App, Name: d.body.Name})
		return err
	})
	return p, err
}

// bookmarkSlack is how much a timeline's time may be behind that of the catalog.
const bookmarkSlack = time.Second

// cloneNeeds is what a clone needs. What it needs of a clone that it replaces comes last: who may not make one is told the same whether there
// is another of the name or not. That it cannot replace that one is said when it is done, or foreseen.
func cloneNeeds(c *Control, ctx context.Context, b *workflow.Clone) ([]Need, error) {
	anew, err := c.madeAnew(ctx, b)
	if err != nil && tidemark.KindOf(err) != tidemark.Conflict {
		return nil, err
	}
	needs := []Need{{Action: access.ApplicationClone, Kind: access.KindApplication, Ref: b.Source, Beyond: b.To != "" && anew == nil}, {Action: access.HostUse, Kind: access.KindHost, Ref: hostOr(b.Host)}}
	if anew != nil {
		return append(needs, Need{Action: access.CloneRefresh, Kind: access.KindClone, Ref: b.Name, From: b.Source}), nil
	}
	needs[0].Copy = &access.Copy{New: 1, Lifetime: time.Duration(b.Lifetime), Host: hostOr(b.Host)}
	return needs, nil
}

func hostOr(name string) string {
	if name == "" {
		return access.ServerHost
	}
	return name
}

// madeAnew is the refresh that a clone step is, where there is a clone already that it replaces; nil: there is none. One that it cannot
// replace is an error of kind Conflict.
func (c *Control) madeAnew(ctx context.Context, b *workflow.Clone) (*workflow.Refresh, error) {
	var k keptClone
	err := c.catalog.Get(ctx, catalog.Clones, b.Name, &k)
	if !b.Replace || tidemark.KindOf(err) == tidemark.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	was, err := tidemark.ParseRef(k.Spec.Ref)
	if err != nil {
		return nil, err
	}
	ref, err := tidemark.ParseRef(b.Source)
	if err != nil {
		return nil, err
	}
	if was.App != ref.App || k.Spec.Host != b.Host { // who asks may have no right to know which these are
		return nil, tidemark.Errorf(tidemark.Conflict, "there is a clone %s already, of another source or on another host", b.Name).WithHint("remove it first, or choose another name")
	}
	r := &workflow.Refresh{Clone: b.Name}
	if !ref.Point.Latest() {
		r.Point = ref.Point.String()
	}
	return r, nil
}

func doClone(ctx context.Context, d doing[*workflow.Clone]) (any, error) {
	made, err := d.job(ctx, func(ctx context.Context, b *workflow.Clone) (tidemark.Job, error) {
		anew, err := d.c.madeAnew(ctx, b)
		switch {
		case err != nil:
			return tidemark.Job{}, err
		case anew != nil:
			return d.c.Refresh(ctx, tidemark.RefreshSpec{Name: anew.Clone, Point: anew.Point})
		}
		return d.c.Clone(ctx, tidemark.CloneSpec{Ref: b.Source, Name: b.Name, Host: b.Host, To: b.To, Listen: b.Listen, Port: b.Port, Lifetime: int64(time.Duration(b.Lifetime) / time.Second)})
	})
	if err != nil || d.body.SLA == "" {
		return made, err
	}
	return made, d.recorded(d.step, func() ([]Decided, error) {
		defer d.c.Enter()()
		decided, err := d.c.mayAll(ctx, d.asker(), []Need{{Action: access.ApplicationConfigure, Kind: access.KindApplication, Ref: d.body.Name}})
		if err == nil {
			err = d.c.SetSLA(ctx, d.body.Name, d.body.SLA)
		}
		return decided, err
	})
}

// refreshNeeds is what a refresh needs: to make the clone anew, from the point that it takes, and to clone what has that point now.
func refreshNeeds(c *Control, ctx context.Context, b *workflow.Refresh) ([]Need, error) {
	n := Need{Action: access.CloneRefresh, Kind: access.KindClone, Ref: b.Clone}
	from, err := c.Source(ctx, tidemark.RefreshSpec{Name: b.Clone, Point: b.Point})
	if k := tidemark.KindOf(err); k == tidemark.NotFound || k == tidemark.Conflict {
		return []Need{n}, nil // that is said to him if he may know
	}
	if err != nil {
		return nil, err
	}
	n.From = from
	return []Need{n, {Action: access.ApplicationClone, Kind: access.KindApplication, Ref: from}}, nil
}

func doRefresh(ctx context.Context, d doing[*workflow.Refresh]) (any, error) {
	return d.job(ctx, func(ctx context.Context, b *workflow.Refresh) (tidemark.Job, error) {
		return d.c.Refresh(ctx, tidemark.RefreshSpec{Name: b.Clone, Point: b.Point})
	})
}

func prepareNeeds(c *Control, ctx context.Context, b *workflow.Prepare) ([]Need, error) {
	if b.Refresh {
		return refreshNeeds(c, ctx, &workflow.Refresh{Clone: b.Clone, Point: b.Point})
	}
	return []Need{{Action: access.CloneRefresh, Kind: access.KindClone, Ref: b.Clone}}, nil
}

func doPrepare(ctx context.Context, d doing[*workflow.Prepare]) (any, error) {
	return d.job(ctx, func(ctx context.Context, b *workflow.Prepare) (tidemark.Job, error) {
		return d.c.Prepare(ctx, tidemark.PrepareSpec{Name: b.Clone, Refresh: b.Refresh, Point: b.Point, Bookmark: b.Bookmark})
	})
}

func publishNeeds(_ *Control, _ context.Context, b *workflow.Publish) ([]Need, error) {
	return []Need{{Action: access.ApplicationPublish, Kind: access.KindApplication, Ref: b.Clone}}, nil
}

func doPublish(ctx context.Context, d doing[*workflow.Publish]) (any, error) {
	return d.job(ctx, func(ctx context.Context, b *workflow.Publish) (tidemark.Job, error) {
		return d.c.Publish(ctx, tidemark.PublishSpec{Name: b.Clone, Bookmark: b.Bookmark})
	})
}

func unpublishNeeds(_ *Control, _ context.Context, b *workflow.Unpublish) ([]Need, error) {
	return []Need{{Action: access.ApplicationPublish, Kind: access.KindApplication, Ref: b.Clone}}, nil
}

// doUnpublish takes publications back. That there is none any more is fine.
func doUnpublish(ctx context.Context, d doing[*workflow.Unpublish]) (any, error) {
	gone := expired{Gone: []string{}}
	err := d.entered(ctx, func() (err error) {
		gone.Gone, err = d.c.unpublish(ctx, d.body.Clone, func(all []published) []published {
			if d.body.Bookmark != "" {
				return slices.DeleteFunc(all, func(p published) bool { return p.Bookmark != d.body.Bookmark })
			}
			return old(all, func(p published) time.Time { return p.At }, d.body.OlderThan, d.body.Keep, d.c.aging())
		})
		return err
	})
	return gone, err
}

func proveNeeds(_ *Control, _ context.Context, b *workflow.Prove) ([]Need, error) {
	return []Need{{Action: access.ApplicationProve, Kind: access.KindApplication, Ref: b.Ref}}, nil
}

func doProve(ctx context.Context, d doing[*workflow.Prove]) (any, error) {
	return d.job(ctx, func(ctx context.Context, b *workflow.Prove) (tidemark.Job, error) {
		return d.c.Prove(ctx, tidemark.ProveSpec{Ref: b.Ref, Probe: b.Probe})
	})
}

func waitNeeds(_ *Control, _ context.Context, b *workflow.Wait) ([]Need, error) {
	return []Need{{Action: access.CloneView, Kind: access.KindClone, Ref: b.Clone}}, nil
}

// How long a clone is waited for if the step does not say so, and how often it is looked.
const (
	waitTime  = 5 * time.Minute
	waitPause = 500 * time.Millisecond
)

// answering are the states of a clone that can be used.
var answering = []string{"running", "mounted", "attached"}

func doWait(ctx context.Context, d doing[*workflow.Wait]) (any, error) {
	if d.step.Timeout == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, waitTime)
		defer cancel()
	}
	for {
		var state string
		err := d.entered(ctx, func() (err error) {
			state, err = d.c.stateOf(ctx, d.body.Clone)
			return err
		})
		if err != nil && ctx.Err() == nil {
			return nil, err
		}
		if err == nil && slices.Contains(answering, state) {
			return map[string]string{"state": state}, nil
		}
		select {
		case <-ctx.Done():
			return nil, tidemark.Errorf(tidemark.Unavailable, "the clone %s does not answer: it is %s", d.body.Clone, state)
		case <-time.After(waitPause):
		}
	}
}

// stateOf is the state of a clone.
func (c *Control) stateOf(ctx context.Context, name string) (string, error) {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil {
		return "", err
	}
	a, err := c.app(name)
	if err != nil {
		return "", err
	}
	return c.cloneState(ctx, a, k.State), nil
}

func removeNeeds(_ *Control, _ context.Context, b *workflow.Remove) ([]Need, error) {
	return []Need{{Action: access.CloneRemove, Kind: access.KindClone, Ref: b.Clone}}, nil
}

// doRemove removes a clone. That it is gone already is fine.
func doRemove(ctx context.Context, d doing[*workflow.Remove]) (any, error) {
	var k keptClone
	if err := d.c.catalog.Get(ctx, catalog.Clones, d.body.Clone, &k); err != nil {
		return nil, notThere(err)
	}
	return nil, notThere(d.entered(ctx, func() error { return d.c.RemoveClone(ctx, d.body.Clone) }))
}

func expireNeeds(_ *Control, _ context.Context, b *workflow.Expire) ([]Need, error) {
	if b.App != "" {
		return []Need{{Action: access.ApplicationExpire, Kind: access.KindApplication, Ref: b.App}}, nil
	}
	return []Need{{Action: access.CloneRemove, Kind: access.KindClone, Any: b}}, nil
}

// expired is what an expire or unpublish step did.
type expired struct {
	Gone []string `json:"gone"`
}

func doExpire(ctx context.Context, d doing[*workflow.Expire]) (any, error) {
	gone := expired{Gone: []string{}}
	if d.body.App != "" {
		err := d.entered(ctx, func() error { return d.c.expirePoints(ctx, d.body, &gone) })
		return gone, err
	}
	err := d.each(ctx, func(name string) error {
		err := notThere(d.c.RemoveClone(ctx, name))
		if err == nil {
			gone.Gone = append(gone.Gone, name)
		}
		return err
	})
	return gone, err
}

// oldClones are the clones that an expire step removes, of those that somebody sees: of others, nothing is told or counted.
func (c *Control) oldClones(ctx context.Context, b *workflow.Expire, sees sight, now time.Time) (names []string, err error) {
	all, err := catalog.List[keptClone](ctx, c.catalog, catalog.Clones)
	var kept []keptClone
	for _, k := range all {
		if !b.Matches(k.Name) {
			continue
		}
		if sees != nil {
			o, err := c.Object(ctx, access.KindClone, k.Name)
			if err != nil {
				return nil, err
			}
			if !sees(o) {
				continue
			}
		}
		kept = append(kept, k)
	}
	for _, k := range old(kept, func(k keptClone) time.Time { return k.Created }, b.OlderThan, b.Keep, now) {
		names = append(names, k.Name)
	}
	return names, err
}

// expirePoints forgets points of an application.
func (c *Control) expirePoints(ctx context.Context, b *workflow.Expire, gone *expired) error {
	a, err := c.app(b.App)
	if err != nil {
		return err
	}
	points := slices.DeleteFunc(a.t.Points(), func(p tidemark.RecoveryPoint) bool { return p.Bookmark == "" || !b.Matches(p.Bookmark) })
	for _, p := range old(points, func(p tidemark.RecoveryPoint) time.Time { return p.Time }, b.OlderThan, b.Keep, c.aging()) {
		if a.publication(p) != nil {
			continue
		}
		if _, err := c.Expire(ctx, a.name+"@"+p.Position.String()); err != nil {
			return err
		}
		gone.Gone = append(gone.Gone, a.name+"@"+p.Bookmark)
	}
	return nil
}

// old returns all but the newest so many that are older than that, the newest first. Without an age all are. It changes the list.
func old[T any](all []T, made func(T) time.Time, than policy.Duration, keep int, now time.Time) []T {
	slices.SortStableFunc(all, func(x, y T) int { return made(y).Compare(made(x)) })
	return slices.DeleteFunc(all[min(keep, len(all)):], func(x T) bool { return than != 0 && now.Sub(made(x)) <= time.Duration(than) })
}

// scriptTime is how long a program may take if the step does not say so.
const scriptTime = time.Hour

// doScript runs a program. Nobody knows how far one came that was cut, so that it is run again only if the workflow says that this is fine.
func doScript(ctx context.Context, d doing[*workflow.Script]) (any, error) {
	if d.resumed && !d.body.Again {
		return nil, tidemark.Errorf(tidemark.Conflict, "the server stopped while the script %s ran: it may have done some of its work", d.body.Name).
			WithHint("look what it did, and run the workflow again; a script that may be run twice can say again: true")
	}
	limit := scriptTime
	if d.step.Timeout > 0 {
		limit = time.Duration(d.step.Timeout)
	}
	env := append(slices.Clone(d.step.Env), fmt.Sprintf("TIDEMARK_RUN=%d", d.id), "TIDEMARK_WORKFLOW="+d.Name)
	if d.step.OnFailure {
		env = append(env, "TIDEMARK_FAILED_STEP="+d.failed, "TIDEMARK_FAILURE="+Explain(d.failure).Message)
	}
	said, err := d.c.agent.RunProgram(ctx, agent.Program{Dir: d.c.path(scriptDir), Name: d.body.Name, Limit: limit, Env: env})
	return map[string]string{"said": said}, err
}

// scriptDir is the directory of the programs that workflows run, and secretDir that of the keys that their messages are signed with.
const (
	scriptDir = "scripts"
	secretDir = "secrets"
)
