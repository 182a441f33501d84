package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// promise is which template an application has, and since when. Its timeline notes it.
type promise struct {
	Template string    `json:"template"`
	Since    time.Time `json:"since"`
}

// template is the name of the template; empty: nothing is promised.
func (p *promise) template() string {
	if p == nil {
		return ""
	}
	return p.Template
}

// promised is what is promised to an application: its own template, or else that of the first of its groups, by name, that has one. That group is
// returned, too.
func (a app) promised() (p *promise, group string) {
	if a.Promise != nil {
		return a.Promise, ""
	}
	for _, g := range slices.Sorted(slices.Values(a.Groups)) {
		if p := a.Notes[g].Promise; p != nil {
			return p, g
		}
	}
	return nil, ""
}

// templates are the templates that an application has now, or has when it loses one: its own, and those of its groups.
func (a app) templates() []string {
	var list []string
	if a.Promise != nil {
		list = append(list, a.Promise.Template)
	}
	for _, g := range a.Groups {
		if p := a.Notes[g].Promise; p != nil {
			list = append(list, p.Template)
		}
	}
	return list
}

// template returns an SLA template.
func (c *Control) template(ctx context.Context, name string) (t policy.Template, err error) {
	err = c.catalog.Get(ctx, catalog.Templates, name, &t)
	return t, err
}

// Templates lists the SLA templates, by name.
func (c *Control) Templates(ctx context.Context) ([]policy.Template, error) {
	return catalog.List[policy.Template](ctx, c.catalog, catalog.Templates)
}

// templates are all templates, by name: one query for who looks at all applications.
func (c *Control) templates(ctx context.Context) (map[string]policy.Template, error) {
	list, err := c.Templates(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]policy.Template, len(list))
	for _, t := range list {
		all[t.Name] = t
	}
	return all, nil
}

// RemoveTemplate forgets a template that no application and no group has.
func (c *Control) RemoveTemplate(ctx context.Context, name string) error {
	if _, err := c.template(ctx, name); err != nil {
		return err
	}
	for _, a := range c.apps() {
		if a.Promise.template() == name {
			return errInUse(a.name, name)
		}
		for _, g := range a.Groups {
			if a.Notes[g].Promise.template() == name {
				return errInUse("group "+g, name)
			}
		}
	}
	return c.catalog.Delete(ctx, catalog.Templates, name)
}

func errInUse(who, template string) error {
	return tidemark.Errorf(tidemark.Conflict, "%s has the template %s", who, template).
		WithHint("give it another one: `tidemark sla set " + strings.TrimPrefix(who, "group ") + " TEMPLATE`, or none")
}

// SetSLA gives an application a template, or, with an empty name, none. What was forgotten or made meanwhile stays so.
func (c *Control) SetSLA(ctx context.Context, application, template string) error {
	a, err := c.app(application)
	if err != nil {
		return err
	}
	if a.Role == roleMount {
		return tidemark.Errorf(tidemark.Invalid, "%s is a mount, to which nothing can be promised", a.name)
	}
	if template != "" {
		t, err := c.template(ctx, template)
		if err != nil {
			return err
		}
		if err := cmp.Or(c.canPromise(a, t), c.canPlace(ctx, a, t)); err != nil {
			return err
		}
	}
	if a.Promise.template() == template {
		return nil
	}
	return c.describeAnew(ctx, a, func(n *about) { n.Promise = newPromise(template) })
}

// SetGroupSLA gives a group a template, or, with an empty name, none. Each member has it, now and when it joins later, but for those that have
// one of their own.
func (c *Control) SetGroupSLA(ctx context.Context, group, template string) error {
	_, err := c.changeGroup(ctx, tidemark.GroupSpec{Name: group}, func(n *groupNote) { n.Promise = newPromise(template) })
	return err
}

// canPromise refuses what cannot be kept, because of how the application is protected.
func (c *Control) canPromise(a app, t policy.Template) error {
	switch {
	case t.CDP != nil && !a.journaled():
		return tidemark.Errorf(tidemark.Invalid, "the template %s promises any point by cdp, and the writes of %s are not journaled", t.Name, a.name).
			WithHint("protect it with --cdp, or use a template with log")
	case t.AppShot != nil && !a.followed():
		return tidemark.Errorf(tidemark.Invalid, "the template %s promises AppShots, and %s is captured by copying", t.Name, a.name).WithHint("protect it with --cdp, or use a template without appshot")
	case t.Log != nil && a.sent() && a.Type == tidemark.TypePostgres && !a.hasLog():
		return tidemark.Errorf(tidemark.Invalid, "the template %s promises a log: %w", t.Name, a.errNoLog())
	case t.Log != nil && !a.hasLog():
		return tidemark.Errorf(tidemark.Invalid, "the template %s promises a log, and %s is no database whose log is received", t.Name, a.name).WithHint("use a template without log")
	}
	return nil
}

// Apply makes the server have what documents say: templates, profiles, applications, groups and workflows. What none names is left alone; of what one names it is the whole. With dryRun
// nothing is changed. All of it is looked at before anything is: what cannot be done leaves everything as it is.
func (c *Control) Apply(ctx context.Context, documents []byte, dryRun bool) (policy.Applied, error) {
	done := policy.Applied{DryRun: dryRun}
	all, err := readDocuments(documents)
	if err != nil {
		return done, err
	}
	want := all.Set
	have, err := c.declared(ctx)
	if err != nil {
		return done, err
	}
	begun, err := c.protecting(ctx)
	if err != nil {
		return done, err
	}
	have.Applications = withProtecting(have.Applications, begun)
	if err := policy.CheckReferences(have, want); err != nil {
		return done, err
	}
	if done.Changes, err = policy.Difference(have, want); err != nil {
		return done, err
	}
	done.Changes = slices.DeleteFunc(done.Changes, func(x policy.Change) bool { return !x.Wanted })
	for _, t := range want.Templates {
		done.Notes = append(done.Notes, t.Notes()...)
	}
	for _, p := range want.Profiles {
		done.Notes = append(done.Notes, p.Notes()...)
	}
	if done.UnderWay, err = underWay(done.Changes, begun); err != nil {
		return done, err
	}
	if err := c.canApply(ctx, have, want, done.Changes, begun); err != nil {
		return done, err
	}
	done.Forgotten = c.forgotten(have, want, done.Changes)
	workflows, err := c.compareWorkflows(ctx, all.workflows)
	if err != nil {
		return done, err
	}
	changes := done.Changes
	if done.Changes = slices.Concat(changes, workflows); dryRun {
		return done, nil
	}
	if done.Jobs, err = c.applyAll(ctx, want, changes, done.UnderWay); err != nil {
		return done, err
	}
	return done, c.applyWorkflows(ctx, all.workflows, done.Changes[len(changes):])
}

// declared is what the server has, as documents would say it.
func (c *Control) declared(ctx context.Context) (s policy.Set, err error) {
	if s.Templates, err = c.Templates(ctx); err != nil {
		return s, err
	}
	if s.Profiles, err = c.Profiles(ctx); err != nil {
		return s, err
	}
	known, err := catalog.List[keptHost](ctx, c.catalog, catalog.Hosts)
	if err != nil {
		return s, err
	}
	for _, k := range known {
		s.Hosts = append(s.Hosts, policy.Host{Name: k.Name, Labels: k.Labels})
	}
	for _, a := range c.apps() {
		if a.Role == "" {
			s.Applications = append(s.Applications, a.declared())
		}
	}
	groups, err := c.Groups(ctx)
	for _, g := range groups {
		s.Groups = append(s.Groups, policy.Group{Name: g.Name, Members: g.Members, Options: g.Options, Labels: g.Labels, SLA: g.SLA})
	}
	return s, err
}

func (a app) declared() policy.Application {
	d := policy.Application{Name: a.name, Source: a.Source, Host: a.Agent, SLA: a.Promise.template(), Profile: a.Profile, Options: a.Options, Labels: a.Labels}
	if len(a.Taps) > 1 {
		d.Also = a.Taps[1:]
	}
	return d
}

// canApply refuses what cannot be done: changes that only a new protection makes, hosts that have to join by themselves, and promises that cannot be kept.
// Of what is being protected as it is wanted, there may be half.
func (c *Control) canApply(ctx context.Context, have, want policy.Set, changes []policy.Change, begun map[string]begunProtect) error {
	templates := templatesOf(have, want)
	for _, x := range changes {
		if _, is := begun[x.Name]; is && x.Kind == policy.KindApplication {
			continue
		}
		if x.Kind == policy.KindGroup {
			if err := c.canChangeGroup(x.Name, want, templates, begun); err != nil {
				return err
			}
		}
		if err := c.canChange(x, have, want, templates); err != nil {
			return err
		}
	}
	for _, a := range c.apps() { // who has a template that changes
		for _, name := range a.templates() {
			if slices.ContainsFunc(want.Templates, func(w policy.Template) bool { return w.Name == name }) {
				if err := c.canPromise(a, templates[name]); err != nil {
					return err
				}
			}
		}
	}
	return cmp.Or(c.canPlaceAll(have, want), ctx.Err())
}

func (c *Control) canChange(x policy.Change, have, want policy.Set, templates map[string]policy.Template) error {
	switch {
	case x.Kind == policy.KindHost && x.Action == policy.ActionMake:
		return tidemark.Errorf(tidemark.Invalid, "host %s has not been added", x.Name).WithHint("a host joins by a token: `tidemark host add " + x.Name + "`, then apply again")
	case x.Kind != policy.KindApplication:
		return nil
	}
	i := slices.IndexFunc(want.Applications, func(a policy.Application) bool { return a.Name == x.Name })
	d := want.Applications[i]
	if x.Action == policy.ActionMake {
		return c.canMake(have, want, d, templates)
	}
	for _, f := range x.Fields {
		if field, _, _ := strings.Cut(f.Field, "."); field != "sla" && field != "profile" && field != "labels" {
			return tidemark.Errorf(tidemark.Conflict, "%s of %s is %q, and cannot be made %q while it is protected", f.Field, x.Name, f.From, f.To).
				WithHint("`tidemark unprotect " + x.Name + "` first, or leave it as it is")
		}
	}
	a, err := c.app(x.Name)
	if err != nil || d.SLA == "" {
		return err
	}
	return c.canPromise(a, templates[d.SLA])
}

// canMake refuses an application that cannot be protected as it is wanted, or not keep what is promised to it, as far as that can be told without asking
// its host.
func (c *Control) canMake(have, want policy.Set, d policy.Application, templates map[string]policy.Template) error {
	t, promised := templates[wantedTemplate(want, d)]
	spec := protectSpec(d, t)
	if err := checkOptions(spec); err != nil {
		return err
	}
	if host := clusterHost(spec); slices.ContainsFunc(slices.Concat(have.Hosts, want.Hosts), func(h policy.Host) bool { return h.Name == host }) {
		return tidemark.Errorf(tidemark.Invalid, "the cluster of %s is on host %s, and without a host it is looked for on the server", d.Name, host).
			WithHint("write `host: " + host + "`, and the source as it is there, such as postgres:///")
	}
	if !promised {
		return nil
	}
	return c.canPromise(willBe(spec), t)
}

// clusterHost is the host in the URL of a cluster that is said to be on the server; empty if there is none.
func clusterHost(spec tidemark.ProtectSpec) string {
	u, err := url.Parse(spec.Source)
	if err != nil || spec.Host != "" || !isCluster(spec.Source) {
		return ""
	}
	return u.Hostname()
}

// protectSpec asks for an application as it is wanted, with the template that it will have by itself or by a group.
func protectSpec(d policy.Application, t policy.Template) tidemark.ProtectSpec {
	spec := tidemark.ProtectSpec{Name: d.Name, Source: d.Source, Also: d.Also, Host: d.Host, Options: d.Options, SLA: d.SLA, Profile: d.Profile, Labels: d.Labels}
	if spec.CDP = t.CDP != nil; spec.CDP {
		spec.Window = &tidemark.Window{Seconds: int64(time.Duration(t.CDP.Window).Seconds()), Bytes: int64(t.CDP.Bytes)}
	}
	return spec
}

// willBe is an application as it will be when it is protected: what can be promised to it goes by that. It has no timeline yet. A disk that is copied is
// taken for a directory: the same can be promised to both.
func willBe(spec tidemark.ProtectSpec) app {
	a := app{name: spec.Name, about: about{Type: tidemark.TypeFilesystem, Source: spec.Source, Agent: spec.Host, Profile: spec.Profile}}
	switch {
	case strings.HasPrefix(spec.Source, machinePrefix):
		a.Type, a.Machine = tidemark.TypeVolume, &machine{}
	case isCluster(spec.Source):
		a.Type = tidemark.TypePostgres
	case spec.CDP && (spec.Host != "" || !isDir(spec.Source)):
		a.Type, a.Taps = tidemark.TypeVolume, append([]string{spec.Source}, spec.Also...)
	}
	return a
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// canChangeGroup refuses members that cannot be any, and a template that one of them cannot keep.
func (c *Control) canChangeGroup(name string, want policy.Set, templates map[string]policy.Template, begun map[string]begunProtect) error {
	i := slices.IndexFunc(want.Groups, func(g policy.Group) bool { return g.Name == name })
	g := want.Groups[i]
	for _, m := range g.Members {
		a, err := c.member(m, want, templates, begun)
		if err != nil {
			return err
		}
		if t, promised := templates[g.SLA]; promised {
			if err := c.canPromise(a, t); err != nil {
				return err
			}
		}
		if !a.tapped() {
			return errNotTapped(a.name)
		}
	}
	return nil
}

// member is an application as it is, or as it will be: when it has been protected, or is as it is wanted.
func (c *Control) member(name string, want policy.Set, templates map[string]policy.Template, begun map[string]begunProtect) (app, error) {
	if b, is := begun[name]; is {
		return willBe(b.spec), nil
	}
	a, err := c.app(name)
	i := slices.IndexFunc(want.Applications, func(d policy.Application) bool { return d.Name == name })
	if i >= 0 && tidemark.KindOf(err) == tidemark.NotFound {
		d := want.Applications[i]
		return willBe(protectSpec(d, templates[wantedTemplate(want, d)])), nil
	}
	return a, err
}

// applyAll makes the changes. Before a group is changed, the jobs that make its members have ended: those that are begun here, and those that are
// under way.
func (c *Control) applyAll(ctx context.Context, want policy.Set, changes []policy.Change, underWay []tidemark.Job) (jobs []tidemark.Job, err error) {
	for _, x := range changes {
		if x.Action == policy.ActionLeave {
			continue
		}
		var j *tidemark.Job
		switch x.Kind {
		case policy.KindHost:
			i := slices.IndexFunc(want.Hosts, func(h policy.Host) bool { return h.Name == x.Name })
			err = c.labelHost(ctx, x.Name, want.Hosts[i].Labels)
		case policy.KindTemplate:
			i := slices.IndexFunc(want.Templates, func(t policy.Template) bool { return t.Name == x.Name })
			err = c.catalog.Put(ctx, catalog.Templates, x.Name, want.Templates[i])
			c.promises.anew()
		case policy.KindProfile:
			i := slices.IndexFunc(want.Profiles, func(p policy.Profile) bool { return p.Name == x.Name })
			err = c.putProfile(ctx, want.Profiles[i])
		case policy.KindApplication:
			i := slices.IndexFunc(want.Applications, func(a policy.Application) bool { return a.Name == x.Name })
			j, err = c.applyApplication(ctx, want, want.Applications[i], x.Action)
		case policy.KindGroup:
			i := slices.IndexFunc(want.Groups, func(g policy.Group) bool { return g.Name == x.Name })
			if err = c.awaitAll(ctx, slices.Concat(underWay, jobs)); err == nil {
				err = c.applyGroup(ctx, want.Groups[i])
			}
		}
		if j != nil {
			jobs = append(jobs, *j)
		}
		if err != nil {
			return jobs, errors.Join(tidemark.Errorf(tidemark.KindOf(err), "%s %s: %w", x.Kind, x.Name, err), ctx.Err())
		}
	}
	return jobs, nil
}

// wantedTemplate is the template that an application will have, by itself or by a group.
func wantedTemplate(want policy.Set, d policy.Application) string {
	if d.SLA != "" {
		return d.SLA
	}
	first := policy.Group{}
	for _, g := range want.Groups {
		if g.SLA != "" && slices.Contains(g.Members, d.Name) && (first.SLA == "" || g.Name < first.Name) {
			first = g
		}
	}
	return first.SLA
}

// applyApplication protects an application, or gives it what may change while it is protected.
func (c *Control) applyApplication(ctx context.Context, want policy.Set, d policy.Application, action policy.Action) (*tidemark.Job, error) {
	if action == policy.ActionMake {
		var t policy.Template
		if name := wantedTemplate(want, d); name != "" {
			var err error
			if t, err = c.template(ctx, name); err != nil {
				return nil, err
			}
		}
		return c.protectOnce(ctx, protectSpec(d, t))
	}
	a, err := c.app(d.Name)
	if err != nil {
		return nil, err
	}
	return nil, c.describeAnew(ctx, a, func(n *about) {
		n.Labels, n.Profile = d.Labels, d.Profile
		if a.Promise.template() != d.SLA {
			n.Promise = newPromise(d.SLA)
		}
	})
}

// begunProtect is a job that protects an application, or waits to, with what was asked for.
type begunProtect struct {
	job  tidemark.Job
	spec tidemark.ProtectSpec
}

// protecting are the applications that are being protected, by name.
func (c *Control) protecting(ctx context.Context) (map[string]begunProtect, error) {
	list, err := c.coming(ctx, "protect")
	if err != nil {
		return nil, err
	}
	begun := map[string]begunProtect{}
	for _, j := range list {
		full, err := c.catalog.Job(ctx, j.ID)
		if err != nil {
			return nil, err
		}
		b := begunProtect{job: j}
		if json.Unmarshal(full.Args, &b.spec) == nil && b.spec.Name == j.Application { // else it taps a volume, which is there
			begun[j.Application] = b
		}
	}
	return begun, nil
}

// withProtecting are applications, with those that are being protected as they will be.
func withProtecting(list []policy.Application, begun map[string]begunProtect) []policy.Application {
	list = slices.DeleteFunc(list, func(a policy.Application) bool { _, is := begun[a.Name]; return is })
	for _, b := range begun {
		s := b.spec
		list = append(list, policy.Application{Name: s.Name, Source: s.Source, Also: s.Also, Host: s.Host, SLA: s.SLA, Profile: s.Profile, Options: s.Options, Labels: s.Labels})
	}
	return list
}

// underWay are the jobs that make what is wanted already. One that makes it other than it is wanted has to end first.
func underWay(changes []policy.Change, begun map[string]begunProtect) (jobs []tidemark.Job, err error) {
	for _, x := range changes {
		b, is := begun[x.Name]
		switch {
		case x.Kind != policy.KindApplication || !is:
		case x.Action == policy.ActionLeave:
			jobs = append(jobs, b.job)
		default:
			return nil, errBegun(b, fmt.Sprintf("%s %q, and not %q", x.Fields[0].Field, x.Fields[0].From, x.Fields[0].To))
		}
	}
	return jobs, nil
}

func errBegun(b begunProtect, as string) error {
	return tidemark.Errorf(tidemark.Conflict, "job %d is protecting %s, with %s", b.job.ID, b.spec.Name, as).
		WithHint(fmt.Sprintf("apply again when it has ended: `tidemark job show %d`", b.job.ID))
}

// protectOnce asks for the job that protects an application, or returns the one that somebody asked for just now.
func (c *Control) protectOnce(ctx context.Context, spec tidemark.ProtectSpec) (*tidemark.Job, error) {
	c.declaring.Lock()
	defer c.declaring.Unlock()
	begun, err := c.protecting(ctx)
	if err != nil {
		return nil, err
	}
	if b, is := begun[spec.Name]; is {
		if !bytes.Equal(mustJSON(b.spec), mustJSON(spec)) {
			return nil, errBegun(b, "what somebody else has applied")
		}
		return &b.job, nil
	}
	j, err := c.Protect(queued(ctx), spec)
	return &j, err
}

// newPromise is a promise from now on; none for no template.
func newPromise(template string) *promise {
	if template == "" {
		return nil
	}
	return &promise{Template: template, Since: time.Now().UTC()}
}

// describeAnew changes what is noted about an application.
func (c *Control) describeAnew(ctx context.Context, a app, change func(*about)) error {
	if err := c.annotate(ctx, a, change); err != nil {
		return err
	}
	c.keepPoint(ctx, a)
	c.promises.anewFor(a.t.ID())
	return nil
}

// applyGroup makes a group have exactly the members that are wanted.
func (c *Control) applyGroup(ctx context.Context, g policy.Group) error {
	spec := tidemark.GroupSpec{Name: g.Name, Options: map[string]string{}}
	for name := range c.groupOptions(g.Name) {
		spec.Options[name] = "" // unless it is wanted
	}
	maps.Copy(spec.Options, g.Options)
	there := map[string]bool{}
	for _, a := range c.membersOf(g.Name) {
		there[a.name] = true
		if !slices.Contains(g.Members, a.name) {
			spec.Leave = append(spec.Leave, a.name)
		}
	}
	for _, m := range g.Members {
		if !there[m] {
			spec.Join = append(spec.Join, m)
		}
	}
	_, err := c.changeGroup(ctx, spec, func(n *groupNote) { n.Labels, n.Promise = g.Labels, newPromise(g.SLA) })
	return err
}

// awaitAll waits for jobs to end: a group cannot have members that are not there yet.
func (c *Control) awaitAll(ctx context.Context, jobs []tidemark.Job) error {
	for _, j := range jobs {
		for j.State == tidemark.JobQueued || j.State == tidemark.JobRunning {
			var err error
			if j, err = c.Job(ctx, j.ID, time.Minute); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		if j.Error != nil {
			return j.Error
		}
	}
	return nil
}
