package control

import (
	"context"
	"encoding/json"
	"slices"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/workflow"
)

// Need is something that somebody has to be allowed.
type Need struct {
	Action access.Action `json:"action"`
	Kind   access.Kind   `json:"kind"`
	// Ref is the name of the object, or APP@POINT, of which the data of that point is taken.
	Ref string `json:"ref,omitempty"`
	// From is the point that is taken, where it is not Ref; Beyond: what is taken is no kept point.
	From   string       `json:"from,omitempty"`
	Beyond bool         `json:"beyond,omitempty"`
	Copy   *access.Copy `json:"copy,omitempty"` // that is made, or of which a point is; nil: none
	// Any: it is about all clones that this removes, instead of one object. It is of steps alone, and not recorded.
	Any *workflow.Expire `json:"-"`
}

// sight reports whether somebody may see a clone. nil: he sees all.
type sight func(access.Object) bool

// SightOf is what somebody sees of clones.
func SightOf(who access.Principal, grants []access.Grant) func(access.Object) bool {
	return func(o access.Object) bool { return access.Decide(who, grants, access.CloneView, o).Allowed }
}

// meant are needs with one for each clone in place of those about any: what a pattern matches is among what somebody sees, and nothing else.
func (c *Control) meant(ctx context.Context, needs []Need, sees sight) (list []Need, err error) {
	for _, n := range needs {
		if n.Any == nil {
			list = append(list, n)
			continue
		}
		names, err := c.oldClones(ctx, n.Any, sees, c.aging())
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			list = append(list, Need{Action: n.Action, Kind: n.Kind, Ref: name})
		}
	}
	return list, nil
}

// name is that of the object.
func (n Need) name() string {
	if r, err := tidemark.ParseRef(n.Ref); err == nil {
		return r.App
	}
	return n.Ref
}

// needed is what a decision about the need has to know, and whether it is there.
func (c *Control) needed(ctx context.Context, n Need) (o access.Object, there bool, err error) {
	name := n.name()
	if o, err = c.Object(ctx, n.Kind, name); err != nil {
		return o, false, err
	}
	there = n.Kind == access.KindHost
	if _, e := c.app(name); e == nil {
		there = true
	}
	if !n.Action.Takes() || n.Beyond {
		return o, there, nil
	}
	from := n.From
	if from == "" {
		from = n.Ref
	}
	t, err := c.Taking(from)
	o.Bookmark, o.Published = t.Bookmark, t.Published
	return o, there, notThere(err)
}

// asker is who has something done that is decided about later than he asked for it.
type asker struct {
	user  string        // empty: the administrator at the socket
	id    string        // of that user
	token *access.Token // that he asked with; nil: none
}

// askerOf is who has asked for a job, with a token or without.
func askerOf(j tidemark.Job, token *access.Token) asker { return asker{j.AskedBy, j.AskerID, token} }

// principal is what a decision has to know of him, as that is now. A token that has ended since, or was revoked, narrows as it did. He may
// be no user any more, and another one may have his name.
func (c *Control) principal(ctx context.Context, by asker) (access.Principal, []access.Grant, error) {
	who, grants, err := c.catalog.Principal(ctx, by.user, access.ByPassword)
	if tidemark.KindOf(err) == tidemark.Denied || err == nil && who.UserID != by.id {
		err = tidemark.Errorf(tidemark.Denied, "%s, for whom this is done, is no user any more, or is shut out", by.user).WithHint("apply or run the workflow, or ask for it, as somebody else")
	}
	if err != nil {
		return access.Principal{}, nil, err
	}
	if by.token != nil {
		who.Method, who.Token = access.ByToken, by.token
	}
	return who, grants, nil
}

// mayAll returns an error unless somebody may do all of it now, and what was decided about until then. The administrator at the socket may
// do everything.
func (c *Control) mayAll(ctx context.Context, by asker, needs []Need) (decided []Decided, err error) {
	if by.user == "" {
		if needs, err = c.meant(ctx, needs, nil); err != nil {
			return nil, err
		}
		for _, n := range needs {
			o, err := c.Object(ctx, n.Kind, n.name())
			if err != nil {
				return decided, err
			}
			decided = append(decided, Decided{Action: n.Action, Object: o, There: true})
		}
		return decided, nil
	}
	if len(needs) == 0 {
		return nil, nil
	}
	who, grants, err := c.principal(ctx, by)
	if err != nil {
		return nil, err
	}
	if needs, err = c.meant(ctx, needs, SightOf(who, grants)); err != nil {
		return nil, err
	}
	for _, n := range needs {
		o, there, err := c.needed(ctx, n)
		if err != nil {
			return decided, err
		}
		decided = append(decided, Decided{n.Action, o, there})
		d := access.Decide(who, grants, n.Action, o)
		if err = d.Err(); err == nil && n.Copy != nil {
			err = c.Within(ctx, who, d, *n.Copy)
		}
		if err != nil {
			return decided, err
		}
	}
	return decided, nil
}

// Decided is a need with its object.
type Decided struct {
	Action access.Action
	Object access.Object
	// There: the object is there now. One that is not is made by a step before, and is decided about when it is its turn.
	There bool
}

// RunNeeds says what somebody, who sees what sees says, has to be allowed who runs a workflow: to run one on all that its steps are about,
// and what the steps do. The steps are decided about again when it is their turn.
func (c *Control) RunNeeds(ctx context.Context, name string, spec tidemark.RunSpec, sees func(access.Object) bool) (list []Decided, err error) {
	p, err := c.planNew(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	return c.stepNeeds(ctx, p, sees)
}

// stepNeeds says what somebody has to be allowed who has the steps of a plan done.
func (c *Control) stepNeeds(ctx context.Context, p planned, sees sight) (list []Decided, err error) {
	on := map[string]bool{}
	for _, s := range p.steps {
		k := stepKinds()[s.Kind]
		if k.needs == nil {
			continue
		}
		needs, err := k.needs(c, ctx, s.Body)
		if err == nil {
			needs, err = c.meant(ctx, needs, sees)
		}
		if err != nil {
			return nil, err
		}
		for _, n := range needs {
			o, there, err := c.needed(ctx, n)
			if err != nil {
				return nil, err
			}
			list = append(list, Decided{n.Action, o, there})
			if there && n.Kind != access.KindHost && !on[o.Name] {
				on[o.Name] = true
				list = append(list, Decided{access.WorkflowRun, o, true})
			}
		}
	}
	if len(on) == 0 {
		list = append(list, Decided{access.WorkflowRun, access.Object{Kind: access.KindApplication}, true})
	}
	return list, nil
}

// runAbout are the objects on which a run of a plan is one, as they are now.
func (c *Control) runAbout(ctx context.Context, p planned, by asker) (about []access.Object, err error) {
	defer c.Enter()()
	needs, err := c.stepNeeds(ctx, p, c.sightOfRun(ctx, p, by))
	for _, n := range needs {
		if n.Action == access.WorkflowRun {
			about = append(about, n.Object)
		}
	}
	return about, err
}

// runParts are what the steps of a run are about, which is what a run has in place of an application; but not what the run itself makes. Where
// something of it is not there any more nobody knows whose that was, and there are no parts: the run is covered by everything alone.
func (c *Control) runParts(ctx context.Context, id int64) (parts []access.Object, err error) {
	j, err := c.catalog.Job(ctx, id)
	if err != nil {
		return nil, notThere(err)
	}
	var r running
	if json.Unmarshal(j.Args, &r) != nil {
		return nil, nil
	}
	p, err := c.planRun(ctx, r, id)
	var needs []Decided
	if err == nil {
		needs, err = c.stepNeeds(ctx, p, c.sightOfRun(ctx, p, askerOf(j.Job, r.Token)))
	}
	if k := tidemark.KindOf(err); k == tidemark.NotFound || k == tidemark.Conflict || k == tidemark.Invalid {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	made := map[string]bool{}
	for _, s := range p.steps {
		if k, ok := s.Body.(*workflow.Clone); ok {
			made[k.Name] = true
		}
	}
	for _, n := range needs {
		switch {
		case n.Object.Kind == access.KindHost, n.Object.Name == "", made[n.Object.Name]:
		case !n.There:
			return nil, nil
		default:
			parts = append(parts, n.Object)
		}
	}
	return parts, nil
}

// sightOfRun is what somebody sees for whom a run goes on. What one who is no user any more saw nobody knows, and he may have seen all.
func (c *Control) sightOfRun(ctx context.Context, p planned, by asker) sight {
	patterns := slices.ContainsFunc(p.steps, func(s workflow.Step) bool { return s.Kind == "expire" })
	if by.user == "" || !patterns {
		return nil
	}
	who, grants, err := c.principal(ctx, by)
	if err != nil {
		return nil
	}
	return SightOf(who, grants)
}

// foresee refuses a run that cannot come to its end, as far as that can be known: what it names has to be there, or to be made by a step
// before it.
func (c *Control) foresee(ctx context.Context, steps []workflow.Step) error {
	made := map[string]bool{}
	there := func(ref string) error {
		r, err := tidemark.ParseRef(ref)
		if err != nil || made[r.App] {
			return err
		}
		_, err = c.app(r.App)
		return err
	}
	for _, s := range steps {
		if err := c.foreseeStep(ctx, s, there); err != nil {
			e := *Explain(err)
			e.Message = "step " + s.ID + ": " + e.Message
			return &e
		}
		if k, ok := s.Body.(*workflow.Clone); ok {
			made[k.Name] = true
		}
	}
	return nil
}

func (c *Control) foreseeStep(ctx context.Context, s workflow.Step, there func(ref string) error) error {
	switch b := s.Body.(type) {
	case *workflow.Capture:
		return there(b.App)
	case *workflow.Bookmark:
		return there(b.App)
	case *workflow.Refresh:
		if err := there(b.Clone); err != nil {
			return err
		}
		return c.foreseeRefresh(ctx, b.Clone, b.Point)
	case *workflow.Prepare:
		if b.Refresh {
			return c.foreseeRefresh(ctx, b.Clone, b.Point)
		}
	case *workflow.Wait:
		return there(b.Clone)
	case *workflow.Prove:
		return there(b.Ref)
	case *workflow.Expire:
		if b.App != "" {
			return there(b.App)
		}
	case *workflow.Clone:
		if err := there(b.Source); err != nil {
			return err
		}
		if _, err := c.hostAgent(ctx, b.Host); tidemark.KindOf(err) == tidemark.NotFound { // one that is away may be back by then
			return err
		}
		if _, err := c.madeAnew(ctx, b); err != nil {
			return err
		}
		if b.SLA != "" {
			_, err := c.template(ctx, b.SLA)
			return err
		}
	case *workflow.Script:
		return c.agent.FindProgram(ctx, agent.Program{Dir: c.path(scriptDir), Name: b.Name})
	case *workflow.Notify:
		if b.Secret != "" {
			_, err := c.readSecret(b.Secret)
			return err
		}
	}
	return nil
}

// foreseeRefresh returns an error if a clone is there and cannot be made anew.
func (c *Control) foreseeRefresh(ctx context.Context, clone, point string) error {
	_, err := c.Source(ctx, tidemark.RefreshSpec{Name: clone, Point: point})
	return notThere(err)
}
