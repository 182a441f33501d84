package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// Who asks is found out before anything of a request is read but its head; what he may do, when all of it is read, from the very
// values that the operation is then given: so nobody can have one thing decided and another done.

// caller is who asks, and what became of it.
type caller struct {
	principal access.Principal
	grants    []access.Grant
	address   netip.Addr // of the network; zero: the socket
	request   string     // the number of the request, as the audit has it
	secret    access.Secret
	look      func(context.Context) (access.Principal, []access.Grant, error) // who has the secret now; nil: there is none

	asked   []asked        // what was decided about
	needs   []control.Need // the same, as a job that waits is decided about when it begins
	did     string         // what was done, where the action does not tell it from something else
	failure error
}

// about says for the audit what the only decision was about, where that is known only when it is done.
func (w *caller) about(name string) {
	if len(w.asked) == 1 {
		w.asked[0].object.Name = name
	}
}

// asked is one decision.
type asked struct {
	action access.Action
	object access.Object
}

type callerKey struct{}

// callerOf returns who asks. Where nobody was found out, as in a test of the table alone, it is nobody, who may do nothing.
func callerOf(ctx context.Context) *caller {
	if who, ok := ctx.Value(callerKey{}).(*caller); ok {
		return who
	}
	return &caller{}
}

// identify finds out who asks.
func (s *server) identify(o operation, r *http.Request, atSocket bool) (*caller, error) {
	who := &caller{request: rand.Text()[:12]}
	if atSocket {
		who.principal = access.Principal{Method: access.BySocket}
		return who, nil
	}
	if p, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		who.address = p.Addr().Unmap()
	}
	header := r.Header.Get("Authorization")
	if header == "" && o.rule.open {
		return who, nil
	}
	text, ok := strings.CutPrefix(header, "Bearer ")
	if !ok {
		return who, errWho
	}
	look, prefix := s.c.Access().ByToken, access.TokenPrefix
	if strings.HasPrefix(text, access.SessionPrefix) {
		look, prefix = s.c.Access().BySession, access.SessionPrefix
	}
	secret, err := access.ParseSecret(prefix, text)
	if err != nil {
		return who, errWho
	}
	who.secret = secret
	who.look = func(ctx context.Context) (access.Principal, []access.Grant, error) {
		return look(ctx, secret.Hash(), time.Now())
	}
	who.principal, who.grants, err = who.look(r.Context())
	return who, err
}

// renewed is ctx in which who asks is who has the secret now, with the grants of now: an answer without end may outlive what it was
// begun with. It is an error if that is nobody any more, or one who may not do an action to an object any more. The caller of ctx,
// who is in the audit when all is over, stays as he is.
func renewed(ctx context.Context, c *control.Control, a access.Action, k access.Kind, name string) (context.Context, error) {
	who := callerOf(ctx)
	if who.look == nil {
		return ctx, nil // at the socket
	}
	p, grants, err := who.look(ctx)
	if err != nil {
		return ctx, err
	}
	o := access.Object{Kind: k}
	if name != "" {
		if o, err = c.Object(ctx, k, name); err != nil {
			return ctx, err
		}
	}
	now := &caller{principal: p, grants: grants, address: who.address, request: who.request, secret: who.secret, look: who.look}
	return context.WithValue(ctx, callerKey{}, now), access.Decide(p, grants, a, o).Err()
}

var errWho = tidemark.Errorf(tidemark.Denied, "it is not known who asks").WithHint("send the secret of an API token or a session, as Authorization: Bearer tmk_…")

// unauthorized reports that who asks was not known, which is another status than that he may not.
func (w *caller) unauthorized() bool { return !w.principal.Method.Known() }

// allow decides about an operation with a request, and returns what has to be called when it was done.
func (s *server) allow(ctx context.Context, o operation, in any) (done func(), err error) {
	who, done := callerOf(ctx), func() {}
	if o.rule.open || o.rule.self && !who.unauthorized() {
		return done, nil
	}
	for _, n := range o.rule.needs {
		if n.only != "" && len(filled(in, n.only)) == 0 || o.filtered && len(n.from) == 0 {
			continue // of a list, what is not his to see is left out
		}
		if n.steps {
			if err := s.allowSteps(ctx, in); err != nil {
				return done, err
			}
			continue
		}
		objects, err := s.objects(ctx, n, in)
		if err != nil {
			return done, err
		}
		for _, object := range objects {
			d, err := s.decide(ctx, n, in, object)
			if err != nil {
				return done, err
			}
			if err := d.Err(); err != nil {
				return done, err
			}
			if !slices.Contains(limited, n.action) {
				continue
			}
			copy, err := s.copied(ctx, in)
			if err != nil {
				return done, err
			}
			who.needs[len(who.needs)-1].Copy = copy
			if done, err = s.within(ctx, d, copy, done); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// limited are the actions that the limits of a grant bound, of which no operation needs two.
var limited = []access.Action{access.ApplicationClone, access.ApplicationMount, access.ApplicationBookmark, access.ApplicationCapture, access.CloneExtend, access.CloneRewind}

// allowSteps decides about a run of a workflow, and notes what was decided.
func (s *server) allowSteps(ctx context.Context, in any) error {
	r, ok := in.(*ofNameAndMore[tidemark.RunSpec])
	if !ok {
		return tidemark.Errorf(tidemark.Internal, "%T asks for no run", in)
	}
	decided, err := stepsAllowed(ctx, s.c, string(r.Name), runSpec(r))
	who := callerOf(ctx)
	who.asked = append(who.asked, decided...)
	return err
}

// stepsAllowed decides about a run of a workflow: that it is run on what its steps are about, and what they do. What a step before makes is
// not there yet, and is decided about when it is its turn, by the token that the run was asked for with, if it was. It returns what was
// decided about; the last of it is what was refused.
func stepsAllowed(ctx context.Context, c *control.Control, name string, spec tidemark.RunSpec) (decided []asked, err error) {
	who := callerOf(ctx)
	if seen := access.Decide(who.principal, who.grants, access.WorkflowView, access.Object{Kind: access.KindWorkflow, Name: name}); !seen.Allowed {
		return nil, seen.Err()
	}
	needs, err := c.RunNeeds(ctx, name, spec, control.SightOf(who.principal, who.grants))
	if err != nil {
		return nil, err
	}
	for _, n := range needs {
		if !n.There {
			continue
		}
		decided = append(decided, asked{n.Action, n.Object})
		if err := access.Decide(who.principal, who.grants, n.Action, n.Object).Err(); err != nil {
			return decided, err
		}
	}
	return decided, nil
}

// objects are those that a need is about.
func (s *server) objects(ctx context.Context, n need, in any) (list []access.Object, err error) {
	names := []string{}
	for _, from := range n.from {
		names = append(names, filled(in, from)...)
	}
	if n.members {
		if names, err = s.members(ctx, names); err != nil {
			return nil, err
		}
	}
	switch {
	case n.workflows:
		names = described(names)
	case len(names) == 0:
		names = []string{""}
	}
	for _, name := range names {
		if n.source {
			if name, err = s.c.Source(ctx, tidemark.RefreshSpec{Name: name}); err != nil {
				return nil, err
			}
		}
		if n.kind != access.KindToken { // of a reference it is the application
			name, _, _ = strings.Cut(name, "@")
		}
		switch {
		case n.kind == access.KindHost && name == "":
			name = access.ServerHost
		case n.kind == access.KindToken && name == "":
			name = callerOf(ctx).principal.User // one's own
		}
		o := access.Object{Kind: n.kind}
		if name != "" {
			if o, err = s.c.Object(ctx, n.kind, name); err != nil { // it is recorded what it was about
				who := callerOf(ctx)
				who.asked = append(who.asked, asked{n.action, o})
				return nil, err
			}
		}
		if n.kind == access.KindGroup {
			o.Members = append(o.Members, filled(in, "body.join")...)
		}
		list = append(list, o)
	}
	return list, nil
}

// described are the workflows that documents describe. By documents that cannot be read nothing is done: who sent them is told so then.
func described(documents []string) (names []string) {
	for _, d := range documents {
		if list, err := control.WorkflowsIn(d); err == nil {
			names = append(names, list...)
		}
	}
	return names
}

// members are the applications of groups.
func (s *server) members(ctx context.Context, groups []string) (names []string, err error) {
	for _, g := range groups {
		o, err := s.c.Object(ctx, access.KindGroup, g)
		if err != nil {
			return nil, err
		}
		names = append(names, o.Members...)
	}
	return names, nil
}

// copies are the kinds of what has its name among the applications. Who may see such a thing is told that it is of another kind than
// he asked for: no grant would help him.
var copies = map[access.Kind]string{access.KindClone: "`tidemark clones` lists them", access.KindMount: "`tidemark mounts` lists them"}

// decide decides about one object, and fixes the point that is taken from it.
func (s *server) decide(ctx context.Context, n need, in any, o access.Object) (access.Decision, error) {
	who, action := callerOf(ctx), n.action
	if n.volume != "" && o.Kind == access.KindApplication {
		action = n.volume
	}
	if hint := copies[n.kind]; hint != "" && n.volume == "" && o.Kind != n.kind && access.Decide(who.principal, who.grants, access.ApplicationView, o).Allowed {
		who.asked = append(who.asked, asked{action, access.Object{Kind: n.kind, Name: o.Name}})
		return access.Decision{}, tidemark.Errorf(tidemark.NotFound, "there is no %s %q", n.kind, o.Name).WithHint("something else has that name; " + hint)
	}
	need := control.Need{Action: action, Kind: n.kind, Ref: o.Name}
	if action.Takes() && who.principal.Method != access.BySocket {
		t, err := s.taking(ctx, in)
		if err != nil {
			return access.Decision{}, err
		}
		o.Bookmark, o.Published = t.Bookmark, t.Published
		need.From, need.Beyond = t.Ref, t.Ref == ""
	}
	who.asked, who.needs = append(who.asked, asked{action, o}), append(who.needs, need)
	return access.Decide(who.principal, who.grants, action, o), nil
}

// taking is the point that a request takes the data of. The request is made to mean that very point, where it meant the newest.
func (s *server) taking(ctx context.Context, in any) (t control.Taken, err error) {
	switch r := in.(type) {
	case *ofBody[tidemark.CloneSpec]:
		if r.Body.To != "" { // beyond the point
			return control.Taken{}, nil
		}
		t, err = s.c.Taking(r.Body.Ref)
		r.Body.Ref = t.Ref
	case *ofBody[tidemark.MountSpec]:
		t, err = s.c.Taking(r.Body.Ref)
		r.Body.Ref = t.Ref
	case *ofBody[tidemark.ExportSpec]:
		if r.Body.Writable { // the point after the newest
			return control.Taken{}, nil
		}
		t, err = s.c.Taking(r.Body.Ref)
		r.Body.Ref = t.Ref
	case *ofNameAndMore[tidemark.RefreshSpec]:
		if r.Body == nil {
			r.Body = &tidemark.RefreshSpec{}
		}
		return s.takingAnew(ctx, string(r.Name), &r.Body.Point)
	case *ofNameAndMore[tidemark.PrepareSpec]:
		if r.Body != nil && r.Body.Refresh {
			return s.takingAnew(ctx, string(r.Name), &r.Body.Point)
		}
	}
	return t, err
}

// takingAnew is the point that a clone is made anew from. point is made to mean that very point.
func (s *server) takingAnew(ctx context.Context, clone string, point *string) (t control.Taken, err error) {
	ref, err := s.c.Source(ctx, tidemark.RefreshSpec{Name: clone, Point: *point})
	if err == nil {
		t, err = s.c.Taking(ref)
		_, *point, _ = strings.Cut(t.Ref, "@")
	}
	if k := tidemark.KindOf(err); k == tidemark.NotFound || k == tidemark.Conflict {
		return t, nil // that is said to him if he may know
	}
	return t, err
}

// copied is the copy that a request makes, or of which it makes a point; nil: none.
func (s *server) copied(ctx context.Context, in any) (*access.Copy, error) {
	switch r := in.(type) {
	case *ofBody[tidemark.CloneSpec]:
		return &access.Copy{New: 1, Lifetime: time.Duration(r.Body.Lifetime) * time.Second, Host: hostOr(r.Body.Host)}, nil
	case *ofBody[tidemark.MountSpec]:
		return &access.Copy{New: 1, Lifetime: time.Duration(r.Body.Lifetime) * time.Second, Host: hostOr(r.Body.Host)}, nil
	case *ofNameAndBody[tidemark.Extension]:
		k, err := s.c.Cloned(ctx, string(r.Name))
		if err != nil || r.Body.Lifetime <= 0 {
			return &access.Copy{}, err
		}
		return &access.Copy{Lifetime: time.Since(k.Created) + time.Duration(r.Body.Lifetime)*time.Second}, nil
	case *ofNameAndBody[tidemark.BookmarkSpec], *ofNameAndMore[tidemark.CaptureSpec], *ofBody[tidemark.RewindSpec]: // a rewind keeps what was there
		return &access.Copy{Point: true}, nil
	}
	return nil, nil
}

// within makes sure that there is room for a copy, or a point of one, and holds off other copies of the same user until done is called.
func (s *server) within(ctx context.Context, d access.Decision, copy *access.Copy, done func()) (func(), error) {
	if copy == nil || d.Grant == nil || !d.Grant.Role.Limited() {
		return done, nil
	}
	who := callerOf(ctx).principal
	unlock := s.c.HoldCopies(who.User)
	if err := s.c.Within(ctx, who, d, *copy); err != nil {
		unlock()
		return done, err
	}
	return func() { done(); unlock() }, nil
}

func hostOr(name string) string {
	if name == "" {
		return access.ServerHost
	}
	return name
}

// filled returns the texts in a part of a request, such as path.name or body.join, that are not empty.
func filled(in any, part string) (texts []string) {
	where, name, _ := strings.Cut(part, ".")
	v := reflect.Indirect(reflect.ValueOf(in))
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return nil
	}
	if where == "body" {
		if v = v.FieldByName("Body"); !v.IsValid() {
			return nil
		}
		where, v = "json", reflect.Indirect(v)
	}
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return nil
	}
	for _, f := range reflect.VisibleFields(v.Type()) {
		if tag, _, _ := strings.Cut(f.Tag.Get(where), ","); tag == name && name != "" {
			return textsOf(v.FieldByIndex(f.Index))
		}
	}
	return nil
}

func textsOf(v reflect.Value) (texts []string) {
	switch v.Kind() {
	case reflect.String:
		texts = []string{v.String()}
	case reflect.Int, reflect.Int64:
		texts = []string{formatInt(v.Int())}
	case reflect.Bool:
		if v.Bool() {
			texts = []string{"true"}
		}
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct { // of which it is asked only whether it is there
			texts = []string{v.Elem().Type().Name()}
		}
	case reflect.Slice:
		for i := range v.Len() {
			texts = append(texts, textsOf(v.Index(i))...)
		}
	}
	return slices.DeleteFunc(texts, func(s string) bool { return s == "" })
}

// Lists and summaries hold what who asks may see.

// shown reports whether who asks may do an action to an object.
func shown(ctx context.Context, c *control.Control, a access.Action, k access.Kind, name string) (bool, error) {
	who := callerOf(ctx)
	f := access.Visible(who.principal, who.grants, a)
	if f.All {
		return true, nil
	}
	o, err := c.Object(ctx, k, name)
	return err == nil && f.Shows(o), err
}

// visible leaves of a list what who asks may do an action to.
func visible[T any](ctx context.Context, c *control.Control, a access.Action, k access.Kind, all []T, nameOf func(T) string) ([]T, error) {
	who := callerOf(ctx)
	f := access.Visible(who.principal, who.grants, a)
	if f.All {
		return all, nil
	}
	left := []T{}
	for _, v := range all {
		o, err := c.Object(ctx, k, nameOf(v))
		if err != nil {
			return nil, err
		}
		if f.Shows(o) {
			left = append(left, v)
		}
	}
	return left, nil
}

// withoutWay takes from clones how to reach them, where who asks may not use them.
func withoutWay(ctx context.Context, c *control.Control, list []tidemark.Clone) error {
	for i := range list {
		ok, err := shown(ctx, c, access.CloneUse, access.KindClone, list[i].Name)
		if err != nil {
			return err
		}
		if !ok {
			list[i].Connection = ""
		}
	}
	return nil
}

// seenJobs leaves of jobs what who asks may see, and of that how to reach clones, where he may not use them.
func seenJobs(ctx context.Context, c *control.Control, list []tidemark.Job) ([]tidemark.Job, error) {
	who := callerOf(ctx)
	f := access.Visible(who.principal, who.grants, access.JobView)
	left := []tidemark.Job{}
	for _, j := range list {
		if !f.All {
			o, err := c.JobObject(ctx, j)
			if err != nil {
				return nil, err
			}
			if !f.Shows(o) {
				continue
			}
		}
		if err := hideWay(ctx, c, &j); err != nil {
			return nil, err
		}
		left = append(left, j)
	}
	return left, nil
}

// waysIn are the kinds of jobs whose results say how to reach what they were about.
var waysIn = []string{"clone", "refresh", "prepare", "rewind"}

// hideWay takes the result from a job that says how to reach a clone, where who asks may not use that.
func hideWay(ctx context.Context, c *control.Control, j *tidemark.Job) error {
	if j.Result == nil || !slices.Contains(waysIn, j.Kind) {
		return nil
	}
	ok, err := shown(ctx, c, access.CloneUse, access.KindClone, j.Application)
	if err == nil && !ok {
		j.Result = nil
	}
	return err
}

// seenOnHost leaves of what is on a host what who asks may see.
func seenOnHost(ctx context.Context, c *control.Control, h *tidemark.Host) (err error) {
	if h.Applications, err = visible(ctx, c, access.ApplicationView, access.KindApplication, h.Applications, func(name string) string { return name }); err != nil {
		return err
	}
	left := []string{}
	for _, name := range h.Shown {
		o, err := c.Object(ctx, access.KindMount, name) // or a clone
		if err != nil {
			return err
		}
		action := access.CloneView
		if o.Kind == access.KindMount {
			action = access.MountView
		}
		ok, err := shown(ctx, c, action, o.Kind, name)
		if err != nil {
			return err
		}
		if ok {
			left = append(left, name)
		}
	}
	h.Shown = left
	return nil
}

// seenEvents leaves of events what who asks may see: of applications that he sees and, if he sees the pool, of the server. Of what has a name
// no more that something else has now, only who sees all is told.
func seenEvents(ctx context.Context, c *control.Control, list []tidemark.Event) ([]tidemark.Event, error) {
	seen := map[string]func(tidemark.Event) bool{} // by application, for which all is looked up once
	left := []tidemark.Event{}
	for _, e := range list {
		sees, known := seen[e.Application]
		if !known {
			var err error
			if sees, err = seesEventsOf(ctx, c, e.Application); err != nil {
				return nil, err
			}
			seen[e.Application] = sees
		}
		if sees(e) {
			left = append(left, e)
		}
	}
	return left, nil
}

// seesEventsOf returns which events of an application who asks may see; empty: of the server itself.
func seesEventsOf(ctx context.Context, c *control.Control, application string) (func(tidemark.Event) bool, error) {
	ok := seesServer(ctx)
	if application != "" {
		var err error
		if ok, err = shown(ctx, c, access.ApplicationView, access.KindApplication, application); err != nil {
			return nil, err
		}
	}
	who := callerOf(ctx)
	if !ok || application == "" || access.Visible(who.principal, who.grants, access.ApplicationView).All {
		return func(tidemark.Event) bool { return ok }, nil
	}
	return c.EventsOf(ctx, application)
}

// seesServer reports whether who asks may see what is about all of the server.
func seesServer(ctx context.Context) bool {
	who := callerOf(ctx)
	return access.Decide(who.principal, who.grants, access.PoolView, access.Object{Kind: access.KindPool}).Allowed
}

// seenStatus is the status of the server, as far as who asks may see it.
func seenStatus(ctx context.Context, c *control.Control, _ *none) (s tidemark.Status, err error) {
	if s, err = c.Status(ctx); err != nil {
		return s, err
	}
	if s.Applications, err = visible(ctx, c, access.ApplicationView, access.KindApplication, s.Applications, func(a tidemark.Application) string { return a.Name }); err != nil {
		return s, err
	}
	if s.Mounts, err = visible(ctx, c, access.MountView, access.KindMount, s.Mounts, func(m tidemark.Mount) string { return m.Name }); err != nil {
		return s, err
	}
	if s.Clones, err = visible(ctx, c, access.CloneView, access.KindClone, s.Clones, func(k tidemark.Clone) string { return k.Name }); err != nil {
		return s, err
	}
	if s.Jobs, err = seenJobs(ctx, c, s.Jobs); err != nil {
		return s, err
	}
	if s.Events, err = seenEvents(ctx, c, s.Events); err != nil {
		return s, err
	}
	if !seesServer(ctx) {
		s.Warnings, s.Pool, s.DataDir, s.Agents, s.K = nil, nil, "", "", nil
	}
	return s, withoutWay(ctx, c, s.Clones)
}

// audit records what somebody did, or was not let do. What only reads is not recorded, unless it was refused.
func (s *server) audit(ctx context.Context, o operation, who *caller, method string, status int) {
	denied := status == http.StatusUnauthorized || status == http.StatusForbidden
	if o.rule.open && len(who.asked) == 0 || method == http.MethodGet && !denied {
		return
	}
	if len(who.asked) == 0 {
		for _, n := range o.rule.needs[:min(1, len(o.rule.needs))] {
			who.asked = append(who.asked, asked{n.action, access.Object{Kind: n.kind}})
		}
	}
	r := access.AuditRecord{Time: time.Now(), User: who.principal.User, Method: who.principal.Method, Request: who.request, Outcome: access.Done, Detail: who.did}
	if who.address.IsValid() {
		r.Address = who.address.String()
	}
	if who.principal.Token != nil {
		r.TokenID = who.principal.Token.ID
	}
	switch {
	case denied:
		r.Outcome = access.Refused
	case status >= http.StatusBadRequest:
		r.Outcome = access.Failed
	}
	if who.failure != nil {
		r.Detail = control.Explain(who.failure).Message
	}
	var records []*access.AuditRecord
	for _, a := range who.asked {
		one := r
		one.Action, one.Kind, one.Object = a.action, a.object.Kind, a.object.Name
		records = append(records, &one)
	}
	if len(records) == 0 {
		return
	}
	s.c.RecordAudit(context.WithoutCancel(ctx), records...)
}
