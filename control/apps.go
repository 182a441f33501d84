package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/timeline"
)

// about is what the server notes about an application in its timeline's
// descriptor, so that it is in the pool with the data.
type about struct {
	Type    tidemark.AppType  `json:"type"`
	Source  string            `json:"source,omitempty"`
	Host    string            `json:"host,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	// Of is APP@POINT of which a clone or mount was made.
	Of string `json:"of,omitempty"`
	// From is the first ID of that APP: another of its name is not what it was made of. Empty: an older release made it.
	From string `json:"from,omitempty"`
	// First is the ID of the first timeline of a clone that was made anew. Empty: this is the first.
	First string `json:"first,omitempty"`
	// Job is the ID of the job that makes it or made it: what that has to undo is no other's. noJob: none did. 0: an older release made it.
	Job int64 `json:"job,omitempty"`
	// Taps are the paths of the primary disks of a tapped application, in the order of its disks.
	Taps []string `json:"taps,omitempty"`
	// Agent is the host whose agent runs these taps, or on which the clone or mount is; empty: ours.
	Agent string `json:"agent,omitempty"`
	// Turn counts how often the disks were changed, or may be, while somebody could have them attached who could not be asked to take them off.
	Turn int `json:"turn,omitempty"`
	// Doomed: the clone or mount is to be taken apart when its host is back, or nobody uses it any more.
	Doomed *doom `json:"doomed,omitempty"`
	// Machine is the virtual machine whose disk a mirrored application follows.
	Machine *machine `json:"machine,omitempty"`
	// Home is where the data directory of a database lies, if its disks are those of its
	// host and not ours.
	Home *home `json:"home,omitempty"`
	// Groups are the consistency groups that it is a member of.
	Groups []string `json:"groups,omitempty"`
	// Schedules are the options of these groups, by name: how often the group is bookmarked.
	Schedules map[string]map[string]string `json:"schedules,omitempty"`
	// Notes are what else is noted of these groups, by name.
	Notes map[string]groupNote `json:"group_notes,omitempty"`
	// Promise is the SLA template that it has; nil: nothing is promised.
	Promise *promise `json:"promise,omitempty"`
	// Profile is the name of the profile that it has; empty: none.
	Profile string            `json:"profile,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Role tells clones and mounts from applications of their own.
	Role role `json:"role,omitempty"`
	// Live is how a LiveClone is prepared, and what of it is published; nil: it is none.
	Live *live `json:"live,omitempty"`
}

// noJob is in the place of the ID of a job.
const noJob = -1

// newNote is what is noted of something that is made now.
func newNote(ctx context.Context, n about) json.RawMessage {
	n.Job = noJob
	if id, ok := ctx.Value(jobID{}).(int64); ok {
		n.Job = id
	}
	return mustJSON(n)
}

// home is a directory on a disk. An empty Dir is still to be found.
type home struct {
	Disk string `json:"disk"`
	Dir  string `json:"dir,omitempty"`
}

type role string

const (
	roleClone role = "clone"
	roleMount role = "mount"
	roleProof role = "proof" // that a recovery proof has going on
	roleCheck role = "check" // that a residue check has going on
)

// annotate changes what is noted about an application, durably. change is given what is noted now, which may be other than what a has: it was found
// some time ago.
func (c *Control) annotate(ctx context.Context, a app, change func(*about)) error {
	c.noting.Lock()
	defer c.noting.Unlock()
	return annotateHeld(ctx, a, change)
}

// annotateHeld is annotate for who holds noting.
func annotateHeld(ctx context.Context, a app, change func(*about)) error {
	now, err := appOf(a.t)
	if err != nil {
		return err
	}
	change(&now.about)
	return a.t.SetAbout(ctx, mustJSON(now.about))
}

// app is an application as the server knows it.
type app struct {
	about
	name string
	t    *timeline.Timeline
}

// journaled reports whether every write of an application comes when it is made, so that a time names a
// state in which its disks were. The disks of others are what captures made of them.
func (a app) journaled() bool {
	return a.followed() || a.Role != "" || a.Type == tidemark.TypeVolume && a.Source == ""
}

// followed reports whether an application follows disks that are elsewhere: nobody else writes to its own.
func (a app) followed() bool { return a.tapped() || a.mirrored() }

func appOf(t *timeline.Timeline) (app, error) {
	a := app{name: t.Name(), t: t}
	if err := json.Unmarshal(t.About(), &a.about); err != nil {
		return a, tidemark.Errorf(tidemark.Corrupt, "what is noted about %s cannot be read: %w", a.name, err)
	}
	return a, nil
}

// apps returns all applications, volumes, clones and mounts, by name.
func (c *Control) apps() []app {
	var list []app
	for _, t := range c.set.List() {
		a, err := appOf(t)
		if err != nil {
			c.log.Error("an application is left out", "error", err)
			continue
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b app) int { return compare(a.name, b.name) })
	return list
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// app finds an application, volume, clone or mount.
func (c *Control) app(name string) (app, error) {
	for _, t := range c.set.List() {
		if t.Name() == name {
			return appOf(t)
		}
	}
	for id, err := range c.set.Damaged() {
		if id == name {
			return app{}, err
		}
	}
	return app{}, tidemark.Errorf(tidemark.NotFound, "there is no application, volume or clone %q", name).WithHint("`tidemark status` lists them")
}

// at finds the application and position that a reference names.
func (c *Control) at(ctx context.Context, ref string) (app, tidemark.Position, error) {
	r, err := tidemark.ParseRef(ref)
	if err != nil {
		return app{}, 0, err
	}
	a, err := c.app(r.App)
	if err != nil {
		return a, 0, err
	}
	pos, err := c.resolve(ctx, a, r.Point)
	return a, pos, err
}

// claim reserves a name until release is called. By then the timeline of that name exists, or nobody wants it.
func (c *Control) claim(ctx context.Context, name string) (release func(), err error) {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); notThere(err) != nil {
		return nil, err
	}
	if k.Again != nil {
		return nil, tidemark.Errorf(tidemark.Conflict, "there is a clone %s, whose refresh is not done", name).
			WithHint("`tidemark refresh " + name + "` makes it again, `tidemark clone rm " + name + "` removes it")
	}
	return c.claimAnew(ctx, name)
}

// claimAnew is claim for a clone that a refresh has taken away: its name is still its own.
func (c *Control) claimAnew(_ context.Context, name string) (release func(), err error) {
	if err := tidemark.CheckName(name); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.unlessImporting(); err != nil {
		return nil, err
	}
	if len(c.membersOf(name)) > 0 {
		return nil, tidemark.Errorf(tidemark.Conflict, "there is a group %q", name).WithHint("choose another name")
	}
	if a, doomed := c.doomed(name); doomed {
		return nil, tidemark.Errorf(tidemark.Conflict, "a %s %s", a.Role, a.beingRemoved()).WithHint("wait for it, or choose another name")
	}
	if _, err := c.app(name); err == nil || c.names[name] {
		return nil, tidemark.Errorf(tidemark.Conflict, "there is an application, volume or clone %q already", name).WithHint("choose another name")
	}
	c.names[name] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.names, name)
	}, nil
}

// claiming is claim for the work of a job.
func (c *Control) claiming(name string) func(context.Context) (func(), error) {
	return func(ctx context.Context) (func(), error) { return c.claim(ctx, name) }
}

// work keeps others from what is done to a clone or mount until leave is called.
func (c *Control) work(name string) (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.working[name] || c.names[name] {
		return nil, tidemark.Errorf(tidemark.Conflict, "%s is being worked on", name).WithHint("wait a moment: `tidemark jobs` and `tidemark status` say what is going on")
	}
	c.working[name] = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.working, name)
	}, nil
}

// workPatience is how long a removal waits for who works on what it removes, as who brings it back when its host is.
const workPatience = 5 * time.Second

// removing is work for who removes an application, volume, clone or mount: no job of it runs then, or begins. It waits a moment for who works on it.
func (c *Control) removing(ctx context.Context, name string) (leave func(), err error) {
	for end := time.Now().Add(workPatience); ; {
		leave, err = c.removingNow(name)
		if err == nil || time.Now().After(end) || !rest(ctx, 50*time.Millisecond) {
			return leave, err
		}
	}
}

func (c *Control) removingNow(name string) (func(), error) {
	leave, err := c.work(name)
	if err != nil {
		return nil, cmp.Or(c.jobs.busy(name), err)
	}
	c.markRemoved(name, true) // first, so that a job which we do not see sees this
	leaveAll := func() {
		c.markRemoved(name, false)
		leave()
	}
	if err := c.jobs.busy(name); err != nil {
		leaveAll()
		return nil, err
	}
	return leaveAll, nil
}

func (c *Control) markRemoved(name string, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if delete(c.removed, name); is {
		c.removed[name] = true
	}
}

// stays is an error while what a job is to work on is removed.
func (c *Control) stays(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed[name] {
		return tidemark.Errorf(tidemark.Conflict, "%s is being removed", name).WithHint("`tidemark status` lists what there is")
	}
	return nil
}

func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("control: a plain struct cannot be encoded: %v", err))
	}
	return b
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// describe returns the application as a noun.
func (c *Control) describe(ctx context.Context, a app) tidemark.Application {
	d := tidemark.Application{Name: a.name, Type: a.Type, Clone: a.Role == roleClone, Source: a.Source, Host: a.Host,
		Timeline: a.t.Describe(), Created: a.t.Describe().Created, Options: a.Options, Labels: a.Labels, Profile: a.Profile, State: "ok"}
	for _, disk := range a.t.Disks() {
		d.Disks = append(d.Disks, disk.Describe())
	}
	if p, ok := a.t.Latest(); ok {
		d.Latest = &p
	}
	if err := a.t.Trouble(); err != nil {
		d.State, d.Detail = "degraded", err.Error()
	}
	c.describeLog(ctx, a, &d)
	c.describeTap(ctx, a, &d)
	c.describeMirror(a, &d)
	return d
}

// Applications lists what is protected, volumes included, clones and mounts not.
func (c *Control) Applications(ctx context.Context) ([]tidemark.Application, error) {
	apps := slices.DeleteFunc(c.apps(), func(a app) bool { return a.Role != "" })
	list := make([]tidemark.Application, len(apps))
	var all sync.WaitGroup
	for i, a := range apps { // at once: each may have to wait for an agent that hangs
		all.Go(func() { list[i] = c.describe(ctx, a) })
	}
	all.Wait()
	return list, nil
}

// Bookmark marks the present of an application. Where its disks are attached
// to this host, their file systems are frozen meanwhile.
func (c *Control) Bookmark(ctx context.Context, spec tidemark.BookmarkSpec) (tidemark.RecoveryPoint, error) {
	if err := tidemark.CheckBookmark(spec.Name); err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	a, err := c.app(spec.Application)
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	if a.Role == "" && a.Type != tidemark.TypeVolume {
		return tidemark.RecoveryPoint{}, tidemark.Errorf(tidemark.Conflict, "what is kept of %s is its last capture: a bookmark would give that the time of now", a.name).
			WithHint("capture it: `tidemark capture " + a.name + " --bookmark " + spec.Name + "`")
	}
	if a.followed() {
		return c.bookmarkFollowed(ctx, a, spec.Name)
	}
	pos, err := c.markFrozen(ctx, a, timeline.Mark{Name: spec.Name, Consistency: tidemark.CrashConsistent})
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	if err := a.t.Fold(ctx); err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	c.keepPoint(ctx, a)
	return pointAt(a.t, pos)
}

func pointAt(t *timeline.Timeline, pos tidemark.Position) (tidemark.RecoveryPoint, error) {
	if p, ok := t.PointAt(pos); ok {
		return p, nil
	}
	return tidemark.RecoveryPoint{}, tidemark.Errorf(tidemark.NotFound, "%s has no retained point at %v", t.Name(), pos)
}

// Expire forgets a point. When that is done it has been, whatever becomes of what was noted of the point.
func (c *Control) Expire(ctx context.Context, ref string) (tidemark.RecoveryPoint, error) {
	a, pos, err := c.at(ctx, ref)
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	p, err := pointAt(a.t, pos)
	if err != nil {
		return p, err
	}
	if err := c.expireUnpublished(ctx, a, p); err != nil {
		return p, err
	}
	err = errors.Join(c.catalog.Delete(ctx, catalog.Shots, shotNote{Application: a.name, Bookmark: p.Bookmark}.key()),
		c.catalog.Delete(ctx, catalog.Proofs, proofKey(a.name, pos.String())))
	if err != nil {
		c.log.Error("what was noted of a point that is gone is left", "application", a.name, "point", pos, "error", err)
	}
	c.keepPoint(ctx, a)
	c.pruneLog(ctx, a)
	return p, nil
}

// keepPoint brings the catalog's entry of an application up to date. The pool has the truth: a failure is only noted.
func (c *Control) keepPoint(ctx context.Context, a app) {
	if err := c.catalog.Put(ctx, catalog.Applications, a.name, c.describe(ctx, a)); err != nil {
		c.log.Error("the catalog was not brought up to date", "application", a.name, "error", err)
	}
}
