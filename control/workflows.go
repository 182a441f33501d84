package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/workflow"
)

// Workflows are kept in the catalog, in versions. A run of one is a job that asks for others, and waits for them. What is done of it is
// recorded step by step, so that it goes on where it was cut: package workflow plans it again, and what is done is known by its ID.

// workflowPrefix begins what a run has in the place of an application: of each workflow one run goes on at a time.
const workflowPrefix = "workflow:"

// running is a run as it is recorded.
type running struct {
	Name       string            `json:"name"`
	Version    int64             `json:"version"`
	Parameters map[string]string `json:"parameters,omitempty"`
	Begun      time.Time         `json:"begun"` // what its dates are made of
	// Token is the API token that the run was asked for with: its roles and applications narrow what the steps may do, too.
	Token *access.Token `json:"token,omitempty"`
	// About is what it is about, as that was when it began, for its steps may remove some of it.
	About []access.Object `json:"about,omitempty"`
}

// ApplyWorkflow makes a document the newest version of the workflow that it names, by whom ctx says.
func (c *Control) ApplyWorkflow(ctx context.Context, spec tidemark.WorkflowSpec) (tidemark.Workflow, error) {
	doc, err := workflow.Single([]byte(spec.Document))
	if err != nil {
		return tidemark.Workflow{}, err
	}
	w, err := workflow.Read(doc)
	if err != nil {
		return tidemark.Workflow{}, err
	}
	kept, err := c.putWorkflow(ctx, writtenWorkflow{w, doc.Text})
	if err != nil {
		return tidemark.Workflow{}, err
	}
	return c.describeWorkflow(ctx, kept, true)
}

// writtenWorkflow is a workflow as it was read, and as it is written.
type writtenWorkflow struct {
	workflow.Workflow
	text string
}

// asked is the workflow as the catalog has it when it is applied by whom ctx says.
func (w writtenWorkflow) asked(ctx context.Context) catalog.Workflow {
	how := askOf(ctx)
	return catalog.Workflow{Name: w.Name, Document: w.text, Author: how.By, AuthorID: how.UserID, Token: how.Token}
}

// putWorkflow makes a workflow the newest version, and has its schedule looked at.
func (c *Control) putWorkflow(ctx context.Context, w writtenWorkflow) (catalog.Workflow, error) {
	kept, err := c.catalog.PutWorkflow(ctx, w.asked(ctx))
	if err == nil {
		c.promises.stir()
	}
	return kept, err
}

// Workflows lists the newest version of each workflow, by name.
func (c *Control) Workflows(ctx context.Context) ([]tidemark.Workflow, error) {
	kept, err := c.catalog.Workflows(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]tidemark.Workflow, len(kept))
	for i, k := range kept {
		if list[i], err = c.describeWorkflow(ctx, k, true); err != nil {
			return nil, err
		}
		list[i].Document = ""
	}
	return list, nil
}

// Workflow describes a version of a workflow; 0 is the newest.
func (c *Control) Workflow(ctx context.Context, name string, version int64) (tidemark.Workflow, error) {
	kept, err := c.catalog.Workflow(ctx, name, version)
	if err != nil {
		return tidemark.Workflow{}, err
	}
	all, err := c.catalog.Versions(ctx, name)
	if err != nil {
		return tidemark.Workflow{}, err
	}
	w, err := c.describeWorkflow(ctx, kept, kept.Version == all[0].Version)
	for _, v := range all {
		w.Versions = append(w.Versions, v.Version)
	}
	return w, err
}

// RemoveWorkflow removes a workflow and its schedule. A run that goes on is not cut, and its versions stay, but none of them is run any more.
func (c *Control) RemoveWorkflow(ctx context.Context, name string) error {
	return c.catalog.RemoveWorkflow(ctx, name)
}

func (c *Control) describeWorkflow(ctx context.Context, k catalog.Workflow, newest bool) (tidemark.Workflow, error) {
	d := tidemark.Workflow{Name: k.Name, Version: k.Version, Document: k.Document, Author: k.Author, Token: k.Token.String(), Created: k.Created, Removed: k.Removed}
	w, err := workflow.Parse([]byte(k.Document))
	if err != nil { // of an older release
		d.Description = "it cannot be run: " + err.Error()
		return d, nil
	}
	d.Description, d.Scheduled = w.Description, w.Schedule != nil
	for _, p := range w.Parameters {
		x := tidemark.WorkflowParameter{Name: p.Name, Type: string(p.Type), Description: p.Description, Posted: w.Posted(p.Name)}
		if x.Type == "" {
			x.Type = string(workflow.TypeText)
		}
		if p.Default != nil {
			text := p.Default.Text
			if p.Default.List != nil {
				text = strings.Join(p.Default.List, ",")
			}
			x.Default = &text
		}
		d.Parameters = append(d.Parameters, x)
	}
	if newest && k.Removed == nil {
		next, ok, err := c.nextRun(ctx, w, k, time.Now())
		if err != nil {
			return d, err
		}
		if ok {
			d.Next = &next
		}
	}
	return d, nil
}

// nextRun is when the schedule of a workflow is due; false: it has none, or a run of it goes on.
func (c *Control) nextRun(ctx context.Context, w workflow.Workflow, k catalog.Workflow, now time.Time) (time.Time, bool, error) {
	if w.Schedule == nil {
		return time.Time{}, false, nil
	}
	last, err := c.catalog.LastScheduled(ctx, workflowPrefix+k.Name)
	if err != nil {
		return time.Time{}, false, err
	}
	p := workflow.Past{Since: k.Created}
	if last != nil {
		p.Last, p.Running = last.Created, last.State == tidemark.JobQueued || last.State == tidemark.JobRunning
	}
	c.promises.mu.Lock()
	p.Resumed = c.promises.resumed
	c.promises.mu.Unlock()
	at, ok := w.Due(p, now)
	return at, ok, nil
}

// keepSchedules begins the workflows that are due, and returns when the next is.
func (c *Control) keepSchedules(ctx context.Context, now time.Time) (next time.Time) {
	next = now.Add(lookPromises)
	kept, err := c.catalog.Workflows(ctx)
	if err != nil {
		return next // nothing is done while the catalog is away
	}
	for _, k := range kept {
		w, err := workflow.Parse([]byte(k.Document))
		if err != nil {
			continue // the list of workflows says so
		}
		at, ok, err := c.nextRun(ctx, w, k, now)
		switch {
		case err != nil:
			return next
		case ok && at.After(now):
			next = earlier(next, at)
		case ok:
			how := Ask{Queue: true, Priority: handPriority / 2, By: k.Author, UserID: k.AuthorID, Origin: tidemark.FromSchedule}
			// What it needs is looked at when it begins, and by its steps: a run that fails says so, and is not tried again until the next time.
			if _, err := c.ask(WithAsk(ctx, how), catalog.KindWorkflow, running{Name: k.Name, Version: k.Version, Begun: now, Token: k.Token}); err != nil && ctx.Err() == nil {
				c.log.Error("a workflow that is due was not begun", "workflow", k.Name, "error", err)
			}
		}
	}
	return next
}

// planned is a run that was planned.
type planned struct {
	running
	w       workflow.Workflow
	steps   []workflow.Step
	removed bool // the version has been, with its workflow
}

// canBegin returns an error if the version was removed: of that, no run begins any more.
func (p planned) canBegin() error {
	if !p.removed {
		return nil
	}
	return tidemark.Errorf(tidemark.NotFound, "version %d of the workflow %s was removed", p.Version, p.Name).
		WithHint(fmt.Sprintf("`tidemark workflow show %s --version %d` prints it, to be applied anew", p.Name, p.Version))
}

// planRun plans a run with a number, or 0.
func (c *Control) planRun(ctx context.Context, r running, id int64) (p planned, err error) {
	k, err := c.catalog.Workflow(ctx, r.Name, r.Version)
	if err != nil {
		return p, err
	}
	r.Version = k.Version
	p.running, p.removed = r, k.Removed != nil
	if p.w, err = workflow.Parse([]byte(k.Document)); err != nil {
		return p, err
	}
	p.steps, err = p.w.Plan(r.Parameters, workflow.Run{ID: id, Begun: r.Begun})
	return p, err
}

// planNew plans a run that is asked for.
func (c *Control) planNew(ctx context.Context, name string, spec tidemark.RunSpec) (planned, error) {
	p, err := c.planRun(ctx, running{Name: name, Version: spec.Version, Parameters: spec.Parameters, Begun: time.Now()}, 0)
	if err == nil {
		err = p.canBegin()
	}
	return p, err
}

// PlanRun says what a run would do, and changes nothing. It fails if the run could not be begun.
func (c *Control) PlanRun(ctx context.Context, name string, spec tidemark.RunSpec) (tidemark.WorkflowRun, error) {
	p, err := c.planNew(ctx, name, spec)
	if err == nil {
		err = c.foresee(ctx, p.steps)
	}
	if err != nil {
		return tidemark.WorkflowRun{}, err
	}
	return p.describe(nil, nil, nil), nil
}

// Run begins a run of a workflow. Of each workflow, one goes on at a time.
func (c *Control) Run(ctx context.Context, name string, spec tidemark.RunSpec) (tidemark.Job, error) {
	p, err := c.planNew(ctx, name, spec)
	if err == nil {
		err = c.foresee(ctx, p.steps)
	}
	if err != nil {
		return tidemark.Job{}, err
	}
	p.Token = askOf(ctx).Token
	return c.ask(ctx, catalog.KindWorkflow, p.running)
}

func (c *Control) workflowWork(ctx context.Context, r running) (*work, error) {
	p, err := c.planRun(ctx, r, 0)
	if err != nil {
		return nil, err
	}
	run := func(ctx context.Context, t *task) (any, error) {
		p, err := c.planRun(ctx, p.running, t.id)
		if err != nil {
			return nil, err
		}
		return c.runWorkflow(ctx, t, p)
	}
	return &work{app: workflowPrefix + r.Name, args: p.running, run: run}, nil
}

// RunOf describes a run, by the number of its job.
func (c *Control) RunOf(ctx context.Context, id int64) (tidemark.WorkflowRun, error) {
	j, err := c.catalog.Job(ctx, id)
	if err == nil && j.Kind != catalog.KindWorkflow {
		err = tidemark.Errorf(tidemark.NotFound, "job %d is no run of a workflow", id).WithHint("`tidemark workflow runs` lists them")
	}
	if err != nil {
		return tidemark.WorkflowRun{}, err
	}
	var r running
	if err := json.Unmarshal(j.Args, &r); err != nil {
		return tidemark.WorkflowRun{}, fmt.Errorf("read the request of job %d: %w", id, err)
	}
	p, err := c.planRun(ctx, r, id)
	if err != nil {
		return tidemark.WorkflowRun{}, err
	}
	steps, err := c.catalog.RunSteps(ctx, id)
	if err != nil {
		return tidemark.WorkflowRun{}, err
	}
	parts, err := c.catalog.PartsOf(ctx, id)
	return p.describe(&j.Job, steps, parts), err
}

// Runs lists the newest n runs whose numbers are below before, of one workflow or, with an empty name, of all; 0 stands for no bound.
// Their steps are left out.
func (c *Control) Runs(ctx context.Context, name string, before int64, n int) ([]tidemark.WorkflowRun, error) {
	if name != "" {
		name = workflowPrefix + name
	}
	jobs, err := c.catalog.Runs(ctx, name, before, n)
	list := []tidemark.WorkflowRun{}
	for _, j := range jobs {
		var r running
		if err := json.Unmarshal(j.Args, &r); err != nil {
			return nil, fmt.Errorf("read the request of job %d: %w", j.ID, err)
		}
		list = append(list, tidemark.WorkflowRun{Workflow: r.Name, Version: r.Version, Parameters: r.Parameters, Job: &j.Job})
	}
	return list, err
}

// describe tells how far the steps of a run are.
func (p planned) describe(j *tidemark.Job, begun map[string]catalog.RunStep, parts map[string]int64) tidemark.WorkflowRun {
	r := tidemark.WorkflowRun{Workflow: p.Name, Version: p.Version, Parameters: p.Parameters, Job: j}
	for _, s := range p.steps {
		d := tidemark.WorkflowStep{ID: s.ID, Kind: s.Kind, Does: s.Does, After: s.After, OnFailure: s.OnFailure, State: "waiting", Job: parts[s.ID]}
		if b, ok := begun[s.ID]; ok {
			d.State, d.Started, d.Finished, d.Error = string(b.State), &b.Started, b.Finished, b.Failure
			if b.Result != nil {
				d.Result = b.Result
			}
		}
		r.Steps = append(r.Steps, d)
	}
	return r
}

// execution is a run that goes on.
type execution struct {
	planned
	c     *Control
	t     *task
	id    int64
	begun map[string]catalog.RunStep // by the ID of the step, as recorded when the run began or went on
	ended map[string]error           // of the steps that have ended
	// failure is the first, with the step that it is of; none if the time was over between two.
	failure error
	failed  string
}

// asker is in whose name the steps are done.
func (x *execution) asker() asker { return askerOf(x.t.job, x.Token) }

// runWorkflow does what is not done yet.
func (c *Control) runWorkflow(ctx context.Context, t *task, p planned) (any, error) {
	x := &execution{planned: p, c: c, t: t, id: t.id, ended: map[string]error{}}
	var err error
	if x.begun, err = c.catalog.RunSteps(ctx, t.id); err != nil {
		return nil, err
	}
	if err := x.begin(ctx); err != nil {
		return nil, err
	}
	x.recall()
	limit := p.w.Timeout
	if limit == 0 {
		limit = workflow.DefaultTimeout
	}
	x.all(ctx, time.Duration(limit), false)
	if x.failure != nil && ctx.Err() == nil {
		x.all(ctx, time.Duration(limit), true)
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case x.failure != nil && x.failed == "":
		return nil, x.failure
	case x.failure != nil:
		return nil, fmt.Errorf("step %s of %s: %w", x.failed, p.Name, x.failure)
	}
	return tidemark.RunResult{Workflow: p.Name, Version: p.Version, Steps: len(x.ended)}, nil
}

// begin notes what the run is about, if it was not noted before it was cut. It returns an error unless the run may begin: of what has begun,
// each step is decided about when it is its turn, and what is to be done for a failure as well.
func (x *execution) begin(ctx context.Context) error {
	var err error
	if x.About == nil {
		if x.About, err = x.c.runAbout(ctx, x.planned, x.asker()); err != nil {
			return err
		}
	}
	if len(x.begun) > 0 {
		return nil
	}
	if err = x.canBegin(); err == nil {
		err = x.mayRun(ctx)
	}
	if tidemark.KindOf(err) == tidemark.Denied {
		err = tidemark.Errorf(tidemark.Denied, "the workflow %s is not run: %s", x.Name, Explain(err).Message).WithHint("apply or run it as somebody else, or have it granted")
	}
	if err != nil {
		x.audit(fmt.Sprintf("run %d", x.id), "", nil, err)
	}
	return err
}

// recall takes up which steps have ended, when the run goes on that was cut.
func (x *execution) recall() {
	var first *time.Time
	for _, s := range x.steps {
		b := x.begun[s.ID]
		if b.State == catalog.StepDone {
			x.ended[s.ID] = nil
		}
		if b.State != catalog.StepFailed {
			continue
		}
		x.ended[s.ID] = b.Failure
		if !s.OnFailure && (first == nil || b.Finished.Before(*first)) {
			first, x.failed, x.failure = b.Finished, s.ID, b.Failure
		}
	}
	for _, s := range x.steps { // the time was over between two steps
		if _, begun := x.begun[s.ID]; begun && s.OnFailure && x.failure == nil {
			x.failure = tidemark.Errorf(tidemark.Unavailable, "the workflow %s took too long", x.Name)
		}
	}
}

// end notes that a step has ended.
func (x *execution) end(s workflow.Step, err error) {
	x.ended[s.ID] = err
	if err == nil {
		return
	}
	if x.failure == nil {
		x.failed, x.failure = s.ID, err
	} else if s.OnFailure {
		x.c.event("warning", "", "workflow %s, run %d: the step %s, for the failure of %s, has failed, too: %v", x.Name, x.id, s.ID, x.failed, err)
	}
}

// all does the steps, or those for failures, each when those before it are done. When one fails no other is begun, but those that are
// under way are let end. Of the steps for failures, all are tried.
func (x *execution) all(ctx context.Context, limit time.Duration, onFailure bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, tidemark.Errorf(tidemark.Unavailable, "the workflow %s took longer than %v", x.Name, limit))
	defer cancel()
	type outcome struct {
		step workflow.Step
		err  error
	}
	outcomes, begun, under := make(chan outcome), map[string]bool{}, 0
	for {
		for _, s := range x.steps {
			if s.OnFailure != onFailure || begun[s.ID] || !x.ready(s, onFailure) || ctx.Err() != nil {
				continue
			}
			begun[s.ID] = true
			under++
			x.c.jobs.wg.Go(func() {
				err := x.step(ctx, s)
				outcomes <- outcome{s, err}
			})
		}
		if under == 0 {
			break
		}
		o := <-outcomes
		under--
		if x.leaves(ctx) {
			continue
		}
		x.end(o.step, o.err)
		x.t.report(tidemark.Progress{Done: int64(len(x.ended)), Total: int64(len(x.steps)), Unit: "steps"})
	}
	if ctx.Err() != nil && x.failure == nil && !x.leaves(ctx) {
		x.failure = context.Cause(ctx)
	}
}

// leaves reports whether the run goes on elsewhere or later: at the next start of a server. Nothing more is recorded or cancelled here.
func (x *execution) leaves(ctx context.Context) bool {
	return x.c.stopping() || errors.Is(context.Cause(ctx), catalog.ErrLost)
}

// stopping reports whether the server stops.
func (c *Control) stopping() bool { return c.jobs.ctx.Err() != nil }

// ready reports whether a step can begin now, or go on.
func (x *execution) ready(s workflow.Step, onFailure bool) bool {
	if _, over := x.ended[s.ID]; over {
		return false
	}
	if x.begun[s.ID].State == catalog.StepRunning {
		return true // it was cut when it had begun
	}
	if !onFailure && x.failure != nil {
		return false
	}
	return !slices.ContainsFunc(s.After, func(id string) bool {
		err, over := x.ended[id]
		return !over || err != nil && !onFailure
	})
}

// step does one step, and records that it begins, and how it ended. If the server stops meanwhile, nothing is recorded, and it goes on
// at the next start.
func (x *execution) step(ctx context.Context, s workflow.Step) (err error) {
	patient := catalog.Patient(x.c.jobs.ctx)
	_, resumed := x.begun[s.ID]
	if !resumed {
		if err := x.c.catalog.BeginStep(patient, x.id, s.ID); err != nil {
			return err
		}
	}
	if err := x.t.doing(patient, s.ID, undoing{Args: mustJSON(x.running)}); err != nil {
		return err
	}
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		limit := time.Duration(s.Timeout)
		ctx, cancel = context.WithTimeoutCause(ctx, limit, tidemark.Errorf(tidemark.Unavailable, "it took longer than %v", s.Timeout))
		defer cancel()
	}
	result, err := x.try(ctx, s, resumed)
	if x.leaves(ctx) {
		return err
	}
	if err != nil && ctx.Err() != nil {
		if err = context.Cause(ctx); errors.Is(err, errCancelled) {
			err = tidemark.Errorf(tidemark.Cancelled, "the run was cancelled")
		}
	}
	var failure *tidemark.Error
	if err != nil {
		failure = Explain(err)
	}
	if e := x.c.catalog.EndStep(patient, x.id, s.ID, result, failure); e != nil {
		return errors.Join(err, e)
	}
	if failure != nil {
		return failure
	}
	return nil
}

// try does a step. A panic of one step is its failure, as one of a job is.
func (x *execution) try(ctx context.Context, s workflow.Step, resumed bool) (result any, err error) {
	return x.t.protect(ctx, func(ctx context.Context, _ *task) (any, error) {
		k, ok := stepKinds()[s.Kind]
		if !ok {
			return nil, tidemark.Errorf(tidemark.Invalid, "this server knows no step %q", s.Kind).WithHint("was it applied to a newer release?")
		}
		if k.needs != nil { // what is decided is recorded when it was
			return k.do(ctx, x, s, resumed)
		}
		err = x.recorded(s, func() (_ []Decided, err error) {
			if err = x.mayRun(ctx); err == nil {
				result, err = k.do(ctx, x, s, resumed)
			}
			return nil, err
		})
		return result, err
	})
}
