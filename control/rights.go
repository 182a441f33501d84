package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// Access is where users, grants, tokens, sessions and the audit are. Nothing else of the server has to do with these.
func (c *Control) Access() *catalog.Catalog { return c.catalog }

// Object is what a decision has to know of an application, clone, mount, export, group, host or job of a name, whether there is one or
// not. A volume is an application, and so is, to actions on applications, a clone or mount: it has the kind that it is.
func (c *Control) Object(ctx context.Context, k access.Kind, name string) (access.Object, error) {
	o := access.Object{Kind: k, Name: name}
	switch k {
	case access.KindApplication, access.KindClone, access.KindMount:
		a, err := c.app(name)
		if tidemark.KindOf(err) == tidemark.NotFound {
			return c.takenAway(ctx, o)
		}
		if err != nil {
			return o, err
		}
		o, err = c.objectOf(ctx, a)
		if o.Kind == access.KindMount && k != access.KindMount {
			o.Kind = access.KindClone
		}
		return o, err
	case access.KindExport:
		var kept keptExport
		err := c.catalog.Get(ctx, catalog.Exports, name, &kept)
		if err == nil {
			o.Host = access.ServerHost // which serves it, wherever its application is
			o, err = c.copyOf(ctx, o, kept.Ref)
		}
		return o, notThere(err)
	case access.KindToken: // named by its user
		o.Owner = name
	case access.KindGroup:
		for _, a := range c.membersOf(name) {
			o.Members = append(o.Members, a.name)
		}
	case access.KindJob:
		id, err := strconv.ParseInt(name, 10, 64)
		if err != nil {
			return o, nil
		}
		j, err := c.catalog.Job(ctx, id)
		if err != nil {
			return o, notThere(err)
		}
		return c.JobObject(ctx, j.Job)
	}
	return o, nil
}

// notThere is no error: what is not there is nobody's, and covered by no scope but everything.
func notThere(err error) error {
	if tidemark.KindOf(err) == tidemark.NotFound {
		return nil
	}
	return err
}

// takenAway is what a decision has to know of a name that nothing has now. A clone that a refresh has taken away is whose it was.
func (c *Control) takenAway(ctx context.Context, o access.Object) (access.Object, error) {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, o.Name, &k); err != nil || k.Again == nil {
		return o, notThere(err)
	}
	noted, err := c.catalog.Object(ctx, access.KindClone, o.Name)
	if err != nil {
		return o, notThere(err)
	}
	noted.Host = serverHost(k.Host)
	return noted, nil
}

// former is to whom a job belongs that nobody has asked for who is a user still: to no user, whoever has the name now; and it is not nobody's,
// which more people may see.
const former = "a former user"

// asksStill reports whether who asked for a job is still the user who has his name. The administrator at the socket is who he is.
func (c *Control) asksStill(ctx context.Context, j tidemark.Job) (bool, error) {
	if j.AskedBy == "" {
		return true, nil
	}
	return c.catalog.IsUser(ctx, j.AskedBy, j.AskerID)
}

// JobObject is what a decision has to know of a job.
func (c *Control) JobObject(ctx context.Context, j tidemark.Job) (access.Object, error) {
	o := access.Object{Kind: access.KindJob, Name: strconv.FormatInt(j.ID, 10), Owner: j.AskedBy, Host: serverHost(j.Host)}
	if is, err := c.asksStill(ctx, j); err != nil {
		return o, err
	} else if !is {
		o.Owner = former
	}
	if j.Application == "" {
		return o, nil
	}
	if j.Kind == catalog.KindWorkflow {
		parts, err := c.runParts(ctx, j.ID)
		o.Parts = parts
		return o, err
	}
	h, err := c.holderOf(ctx, j.Application)
	if err != nil {
		return o, err
	}
	if h == nil || !h.had(j.FirstID, lastOf(j)) {
		o.Source, o.Via, err = c.jobSource(ctx, j, h == nil)
		return o, err
	}
	of, err := c.Object(ctx, access.KindApplication, j.Application)
	if o.Source, o.Via = of.Source, of.Via; of.Kind == access.KindApplication {
		o.Source = j.Application
	}
	return o, err
}

// lastOf is when a job has been about its application last.
func lastOf(j tidemark.Job) time.Time {
	switch {
	case j.Finished != nil:
		return *j.Finished
	case j.State == tidemark.JobRunning:
		return time.Now()
	}
	return j.Created
}

// jobSource is the application whose data the application of a job had, or was to have, and the clones on the way to it: that is not there
// yet, or not any more. free: nobody else has its name. If nobody knows whose data it had, the job is covered by everything alone.
func (c *Control) jobSource(ctx context.Context, j tidemark.Job, free bool) (source string, via []string, err error) {
	full, err := c.catalog.Job(ctx, j.ID)
	if err != nil {
		return "", nil, notThere(err)
	}
	t, err := termsOf(full)
	if err != nil || t.Source != "" {
		return t.Source, t.Via, err
	}
	var request struct{ Ref, From string }
	if json.Unmarshal(full.Args, &request) == nil && request.Ref != "" {
		r, err := tidemark.ParseRef(request.Ref)
		now := c.firstIDOf(r.App)
		switch {
		case err != nil || r.App == j.Application:
		case request.From != "" && now != "" && now != request.From: // of which another has the name, too
			return "", nil, nil
		default:
			return c.lineage(ctx, r.App)
		}
	}
	if free {
		source = j.Application
	}
	return source, nil, nil
}

// EventsOf returns what reports whether an event of an application is about who has that name now, or nobody has it.
func (c *Control) EventsOf(ctx context.Context, application string) (about func(tidemark.Event) bool, err error) {
	h, err := c.holderOf(ctx, application)
	return func(e tidemark.Event) bool { return h == nil || h.had(e.FirstID, e.Time) }, err
}

// serverHost is a host as grants name it.
func serverHost(name string) string {
	if name == "" || name == hostname() {
		return access.ServerHost
	}
	return name
}

// objectOf is what a decision has to know of an application, clone or mount.
func (c *Control) objectOf(ctx context.Context, a app) (access.Object, error) {
	o := access.Object{Kind: access.KindApplication, Name: a.name, Host: serverHost(a.host())}
	switch a.Role {
	case "":
		return o, nil
	case roleMount:
		o.Kind = access.KindMount
	default:
		o.Kind = access.KindClone
	}
	return c.copyOf(ctx, o, a.Of)
}

// copyOf adds to a copy of APP@POINT what it was made of, and whose it is. What was noted when it was made counts; of what nobody
// noted, as at the socket of an older release, it is found out by the names of what it was made of.
func (c *Control) copyOf(ctx context.Context, o access.Object, ref string) (access.Object, error) {
	noted, err := c.catalog.Object(ctx, o.Kind, o.Name)
	if err == nil {
		noted.Host = o.Host
		return noted, nil
	}
	if tidemark.KindOf(err) != tidemark.NotFound {
		return o, err
	}
	r, err := tidemark.ParseRef(ref)
	if err != nil {
		return o, nil // it covers nothing, then
	}
	o.Source, o.Via, err = c.lineage(ctx, r.App)
	return o, err
}

// lineage is the application whose data an application, clone or mount has, and the clones on the way to it, that itself included.
func (c *Control) lineage(ctx context.Context, name string) (source string, via []string, err error) {
	a, err := c.app(name)
	if err != nil || a.Role == "" {
		return name, nil, notThere(err)
	}
	o, err := c.objectOf(ctx, a)
	return o.Source, append(slices.Clone(o.Via), name), err
}

// own notes whose a copy of something is, before it is there.
func (c *Control) own(ctx context.Context, k access.Kind, name string, src app, user string) (err error) {
	o := access.Object{Kind: k, Name: name, Owner: user}
	if o.Source, o.Via, err = c.lineage(ctx, src.name); err != nil {
		return err
	}
	return c.catalog.PutObject(ctx, o)
}

// ownMade notes that a copy which a job makes is of who asked for that. He has to be a user still: what is made belongs to no other of his name.
func (c *Control) ownMade(ctx context.Context, k access.Kind, name string, src app, j tidemark.Job) error {
	is, err := c.asksStill(ctx, j)
	if err == nil && !is {
		err = tidemark.Errorf(tidemark.Denied, "%s, who asked for the %s %s, is no user any more", j.AskedBy, k, name).WithHint("ask for it as somebody else")
	}
	if err != nil {
		return err
	}
	return c.own(ctx, k, name, src, j.AskedBy)
}

// disown forgets whose something was that is gone.
func (c *Control) disown(ctx context.Context, name string, kinds ...access.Kind) error {
	var errs []error
	for _, k := range kinds {
		errs = append(errs, c.catalog.DeleteObject(ctx, k, name))
	}
	return errors.Join(errs...)
}

// Taken is a point that somebody takes the data of.
type Taken struct {
	// Ref is the reference to that very point, if it is one that is kept: what `latest` means may change.
	Ref       string
	Bookmark  string
	Published bool
}

// Taking says which point a reference means now.
func (c *Control) Taking(ref string) (Taken, error) {
	r, err := tidemark.ParseRef(ref)
	if err != nil {
		return Taken{}, err
	}
	t := Taken{Ref: ref}
	a, err := c.app(r.App)
	if err != nil {
		return t, notThere(err)
	}
	var p tidemark.RecoveryPoint
	switch {
	case r.Point.Latest() && !a.journaled():
		p, err = newestPoint(a)
	case r.Point.Bookmark != "", r.Point.IsPosition():
		var pos tidemark.Position
		if pos, err = a.t.Resolve(r.Point); err == nil {
			p, err = pointAt(a.t, pos)
		}
	default:
		return t, nil
	}
	if err != nil {
		return t, notThere(err)
	}
	t.Bookmark, t.Published = p.Bookmark, a.publication(p) != nil
	r.Point = tidemark.Point{Bookmark: p.Bookmark}
	if p.Bookmark == "" {
		r.Point = tidemark.Point{Position: p.Position}
	}
	t.Ref = r.String()
	return t, nil
}

// Source returns the reference to the point that a refresh of a clone takes. It is an error of kind [tidemark.Conflict] if another has the
// name of what the clone is of.
func (c *Control) Source(ctx context.Context, spec tidemark.RefreshSpec) (string, error) {
	again, err := c.cloneAnew(ctx, spec)
	return again.Ref, err
}

// HoldCopies holds off all others who would make a copy for a user, until release is called: what was counted of his copies stays true
// until another is asked for.
func (c *Control) HoldCopies(user string) (release func()) { return c.copies.lock(user) }

// usage is what belongs to a user: clones and mounts that are there, or that are being made for him or, by whomever, anew.
func (c *Control) usage(ctx context.Context, who access.Principal) (u access.Usage, err error) {
	names, err := c.catalog.Copies(ctx, who.User)
	if err != nil {
		return u, err
	}
	mine := map[string]bool{}
	for _, name := range names {
		if a, err := c.app(name); err == nil {
			mine[name] = true
			u.Bytes += a.t.StoredBytes() + a.t.JournalBytes()
		}
	}
	made, err := c.coming(ctx, "clone")
	if err != nil {
		return u, err
	}
	anew, err := c.coming(ctx, "refresh")
	if err != nil {
		return u, err
	}
	for _, j := range made {
		if j.AskedBy == who.User && j.AskerID == who.UserID {
			mine[j.Application] = true
		}
	}
	for _, j := range anew {
		if slices.Contains(names, j.Application) { // it is not there while it is refreshed
			mine[j.Application] = true
		}
	}
	u.Clones = len(mine)
	return u, nil
}

// Within is an error unless somebody may have a copy, or a point of one, beside what is his, by the limits of the grants that a decision
// found. Without limits, what is his is not looked up.
func (c *Control) Within(ctx context.Context, who access.Principal, d access.Decision, copy access.Copy) error {
	if d.Grant == nil || !d.Grant.Role.Limited() {
		return d.Err()
	}
	u, err := c.usage(ctx, who)
	if err != nil {
		return err
	}
	return d.Within(u, copy).Err()
}

// roomFor returns an error if no point may be made of a copy now, by a schedule, because what belongs to its owner takes all that the limits of
// his grants allow, whoever gave it the template. Of what is nobody's, and where an owner has no such grant any more, nothing is bounded.
func (c *Control) roomFor(ctx context.Context, a app) error {
	if a.Role == "" {
		return nil
	}
	o, err := c.objectOf(ctx, a)
	if err != nil || o.Owner == "" {
		return err
	}
	who, grants, err := c.catalog.Principal(ctx, o.Owner, access.ByPassword)
	if tidemark.KindOf(err) == tidemark.Denied {
		return nil
	}
	if err != nil {
		return err
	}
	d := access.Decide(who, grants, access.ApplicationCapture, o)
	if !d.Allowed {
		return nil
	}
	return c.Within(ctx, who, d, access.Copy{Point: true})
}

// coming are the jobs of a kind that wait or run.
func (c *Control) coming(ctx context.Context, kind string) ([]tidemark.Job, error) {
	return c.catalog.Jobs(ctx, tidemark.JobFilter{States: []tidemark.JobState{tidemark.JobQueued, tidemark.JobRunning}, Kind: kind, Limit: 10_000})
}

// Share says with whom a clone is shared, instead of all with whom it was. Who has no rights over its source is among them, for he may be
// given some; but that is said.
func (c *Control) Share(ctx context.Context, name string, with []access.Subject) (s access.Shared, err error) {
	o, err := c.Object(ctx, access.KindClone, name)
	if err == nil && o.Kind != access.KindClone || err == nil && o.Source == "" {
		return s, errNone("clone", name)
	}
	if err != nil {
		return s, err
	}
	if _, err := c.catalog.Object(ctx, o.Kind, name); err != nil {
		if err := c.catalog.PutObject(ctx, o); err != nil {
			return s, err
		}
	}
	o.Shared = with
	if err := c.catalog.Share(ctx, o); err != nil {
		return s, err
	}
	s.Name, s.With = name, append([]access.Subject{}, with...)
	for _, one := range with {
		ok, err := c.mayUse(ctx, one, o)
		if err != nil {
			return s, err
		}
		if !ok {
			s.Notes = append(s.Notes, fmt.Sprintf("%s has no rights over %s, and so none over %s before they are granted", one, o.Source, name))
		}
	}
	return s, nil
}

// mayUse reports whether a user, or anybody in a group, may use a clone.
func (c *Control) mayUse(ctx context.Context, s access.Subject, clone access.Object) (bool, error) {
	users := []string{s.Name}
	if s.Kind == access.Group {
		var err error
		if users, err = c.catalog.Members(ctx, s.Name); err != nil {
			return false, err
		}
	}
	for _, u := range users {
		p, grants, err := c.catalog.Principal(ctx, u, access.ByPassword)
		if tidemark.KindOf(err) == tidemark.Denied {
			continue // he is disabled
		}
		if err != nil || access.Decide(p, grants, access.CloneUse, clone).Allowed {
			return err == nil, err
		}
	}
	return false, nil
}

// Extend says anew when a clone or mount is removed by itself: so long from now, or never, if that is 0.
func (c *Control) Extend(ctx context.Context, name string, lifetime time.Duration) (expires *time.Time, err error) {
	if expires, err = endOf(time.Now(), int64(lifetime/time.Second)); err != nil {
		return nil, err
	}
	leave, err := c.work(name)
	if err != nil {
		return nil, err
	}
	defer leave()
	if a, err := c.app(name); err == nil && a.Live != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is a LiveClone, which is kept", name).WithHint("`tidemark clone rm " + name + "` removes it")
	}
	var k keptClone
	if err = c.catalog.Get(ctx, catalog.Clones, name, &k); err == nil && !c.isAnother(name, k.of) {
		k.Expires = expires
		return expires, c.catalog.Put(ctx, catalog.Clones, name, k)
	}
	var m keptMount
	if err := c.catalog.Get(ctx, catalog.Mounts, name, &m); err != nil || c.isAnother(name, m.of) {
		return nil, cmp.Or(notThere(err), errNone("clone", name))
	}
	m.Expires = expires
	return expires, c.catalog.Put(ctx, catalog.Mounts, name, m)
}

// longestLife is how long a copy may be asked to live, in seconds: it keeps times within what a calendar has.
const longestLife = 100 * 366 * 24 * 60 * 60

// endOf is when something ends that lives for so many seconds; nil: it does not.
func endOf(begun time.Time, seconds int64) (*time.Time, error) {
	if seconds < 0 || seconds > longestLife {
		return nil, tidemark.Errorf(tidemark.Invalid, "a copy cannot live for %d seconds", seconds).WithHint("give 1 or more, or nothing for one that stays")
	}
	if seconds == 0 {
		return nil, nil
	}
	end := begun.Add(time.Duration(seconds) * time.Second)
	return &end, nil
}

// sweepPause is how often it is looked whether clones and mounts have lived their time.
const sweepPause = 10 * time.Second

// sweepCopies removes clones and mounts that have lived their time, until the server stops.
func (c *Control) sweepCopies() {
	told, swept := map[string]bool{}, time.Time{}
	for c.jobs.ctx.Err() == nil {
		now := c.aging()
		c.removeExpired(c.jobs.ctx, now, told)
		if now.Sub(swept) > time.Hour || now.Before(swept) {
			swept = now
			if err := c.catalog.SweepSecrets(c.jobs.ctx, now); err != nil && c.jobs.ctx.Err() == nil {
				c.log.Error("old sessions and API tokens were not forgotten", "error", err)
			}
			if _, err := c.catalog.ForgetEvents(c.jobs.ctx, keptEvents); err != nil && c.jobs.ctx.Err() == nil {
				c.log.Error("old events were not forgotten", "error", err)
			}
		}
		rest(c.jobs.ctx, sweepPause)
	}
}

// removeExpired removes what has lived its time. told are those of whom it was said that they could not be removed.
func (c *Control) removeExpired(ctx context.Context, now time.Time, told map[string]bool) {
	defer c.Enter()()
	over := map[string]func(context.Context, string) error{}
	clones, err := catalog.List[keptClone](ctx, c.catalog, catalog.Clones)
	for _, k := range clones {
		if k.Expires != nil && !k.Expires.After(now) && !c.isAnother(k.Name, k.of) {
			over[k.Name] = c.RemoveClone
		}
	}
	mounts, merr := catalog.List[keptMount](ctx, c.catalog, catalog.Mounts)
	for _, m := range mounts {
		if m.Expires != nil && !m.Expires.After(now) && !c.isAnother(m.Name, m.of) {
			over[m.Name] = c.Unmount
		}
	}
	if err := errors.Join(err, merr); err != nil && ctx.Err() == nil {
		c.log.Error("it is not known which copies have lived their time", "error", err)
	}
	for name, remove := range over {
		switch err := remove(ctx, name); {
		case err == nil:
			delete(told, name)
			c.event("info", name, "%s has lived its time, and was removed", name)
		case !told[name] && ctx.Err() == nil && tidemark.KindOf(err) != tidemark.Conflict:
			told[name] = true
			c.event("warning", name, "%s has lived its time, and could not be removed: %v", name, err)
		}
	}
}
