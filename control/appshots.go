package control

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/catalog"
)

// Options of a tapped application that say how it is made still for a bookmark, and how often that is done.
const (
	optionPostgres = "postgres"       // URL of a cluster that lies on the disks
	optionScripts  = "scripts"        // directory of programs
	optionTimeout  = "script_timeout" // how long each of them may take
	optionEvery    = "appshot"        // interval
	optionKeep     = "appshot_keep"   // how long those are kept that were made by interval
	optionMemory   = "queue_memory"   // how much the queue of the tap may take in memory
	optionQueue    = "queue"          // and then on the disk of the data directory
)

// leastInterval is the shortest interval of AppShots.
const leastInterval = time.Second

// Bounds of the time that a program may be given: while it runs its application stands still.
const (
	leastTimeout = time.Second
	mostTimeout  = 5 * time.Minute
)

// checkTapOptions refuses options of a tapped application that mean nothing.
func checkTapOptions(options map[string]string) error {
	for key, value := range options {
		var err error
		switch key {
		case optionPostgres:
			if _, err = postgres.ParseSource(value); tidemark.KindOf(err) == tidemark.Unavailable {
				err = nil // its disk is not even tapped: it is down
			}
		case optionScripts: // is looked at on its host
		case optionTimeout:
			if d, perr := time.ParseDuration(value); perr != nil || d < leastTimeout || d > mostTimeout {
				err = tidemark.Errorf(tidemark.Invalid, "%s=%q is no time from %v to %v", key, value, leastTimeout, mostTimeout).WithHint("write 5s, 30s, 2m")
			} else if options[optionScripts] == "" {
				err = tidemark.Errorf(tidemark.Invalid, "%s is for scripts, and there are none", key).WithHint("add -o scripts=DIR")
			}
		case optionMemory, optionQueue:
			_, err = tidemark.ParseSize(value)
		case optionEvery, optionKeep:
			err = checkInterval(key, value)
		default:
			err = tidemark.Errorf(tidemark.Invalid, "there is no option %q of a tapped disk", key).
				WithHint("there are postgres=URL, scripts=DIR, script_timeout=TIME, appshot=INTERVAL, appshot_keep=TIME, queue=SIZE and queue_memory=SIZE")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func checkInterval(key, value string) error {
	if d, err := time.ParseDuration(value); err != nil || d < leastInterval {
		return tidemark.Errorf(tidemark.Invalid, "%s=%q is no time of %v or more", key, value, leastInterval).WithHint("write 30s, 5m, 24h")
	}
	return nil
}

// shotNote is what the catalog knows of an AppShot: the mark went into the stream before it was known.
type shotNote struct {
	Application string  `json:"application"`
	Bookmark    string  `json:"bookmark"`
	Hold        float64 `json:"hold_ms"`
	// Scripts is the time from the begin of pre to the end of post, in milliseconds; 0: there were none.
	Scripts float64 `json:"scripts_ms,omitempty"`
	// After is what went wrong when the application was let go on.
	After string `json:"after,omitempty"`
	// Ran is for how long the timeline had been served by then, in nanoseconds: its age by a clock that nobody sets.
	Ran time.Duration `json:"ran"`
}

func (n shotNote) key() string { return shotsOf(n.Application) + n.Bookmark }

// shotsOf is what the keys of all AppShots of an application begin with.
func shotsOf(application string) string { return application + "@" }

// Labels of an AppShot's point that are known only when its application has gone on.
const (
	labelScripts = "scripts_ms"
	labelAfter   = "after"
)

// describe adds to a point what is known of its AppShot.
func (n shotNote) describe(p *tidemark.RecoveryPoint) {
	p.Hold = n.Hold
	labels := maps.Clone(p.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if n.Scripts > 0 {
		labels[labelScripts] = strconv.FormatFloat(n.Scripts, 'f', 1, 64)
	}
	if n.After != "" {
		labels[labelAfter] = n.After
	}
	if len(labels) > 0 {
		p.Labels = labels
	}
}

// arrival is how long a mark may take from the tap to the timeline.
const arrival = 30 * time.Second

// shoot makes an AppShot of a tapped application: one mark in the stream of its tap, while it is still.
func (c *Control) shoot(ctx context.Context, a app, name string) (tidemark.RecoveryPoint, error) {
	list, err := c.shootSettled(ctx, []app{a}, name, nil)
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	return list[0], nil
}

// shootSettled is shootAll, unless one of them is being taken back in place. That is asked when their turn has come: before, a restore may begin while
// another AppShot is waited for. One that begins later makes an AppShot first, and waits for its turn.
func (c *Control) shootSettled(ctx context.Context, members []app, name string, labels map[string]string) ([]tidemark.RecoveryPoint, error) {
	leave, err := c.taps.turn(ctx, members)
	if err != nil {
		return nil, err
	}
	defer leave()
	for _, a := range members {
		if err := c.settled(a); err != nil {
			return nil, err
		}
	}
	return c.shootNow(ctx, members, name, labels)
}

// shootAll makes one AppShot of several tapped applications: their points are one moment, on whatever hosts they are.
func (c *Control) shootAll(ctx context.Context, members []app, name string, labels map[string]string) ([]tidemark.RecoveryPoint, error) {
	leave, err := c.taps.turn(ctx, members)
	if err != nil {
		return nil, err
	}
	defer leave()
	return c.shootNow(ctx, members, name, labels)
}

// shootNow is shootAll when their turn has come.
func (c *Control) shootNow(ctx context.Context, members []app, name string, labels map[string]string) ([]tidemark.RecoveryPoint, error) {
	var came []<-chan shotResult
	var parts []agent.Part
	where := map[*agent.Agent]int{}     // the part of a host
	ids := make([]string, len(members)) // of the marks
	for i, a := range members {
		m, err := c.shotMember(a, name, labels)
		if err != nil {
			return nil, err
		}
		x, err := c.agentOn(a.Agent)
		if err != nil {
			return nil, err
		}
		n, ok := where[x]
		if !ok {
			n = len(parts)
			where[x], parts = n, append(parts, agent.Part{Agent: x})
		}
		parts[n].Shot.Members = append(parts[n].Shot.Members, m)
		ids[i] = m.Mark.ID
		came = append(came, c.taps.await(m.Mark.ID))
		defer c.taps.take(m.Mark.ID)
	}
	results, err := agent.ShootTogether(ctx, parts)
	if err != nil {
		c.dropMarks(ctx, members, name, ids, came)
		return nil, c.explainShot(members, err)
	}
	made, hold := c.joinShots(members, name, ids, results)
	var list []tidemark.RecoveryPoint
	for i, a := range members {
		p, err := c.arrived(ctx, a, made[i], hold, came[i])
		if err != nil {
			return list, err
		}
		list = append(list, p)
	}
	return list, nil
}

// joinShots puts what the hosts have made in the order of the members, tells what went wrong behind the marks, and returns the longest hold.
func (c *Control) joinShots(members []app, name string, ids []string, results []agent.ShotResult) (made []agent.MemberResult, hold time.Duration) {
	made = make([]agent.MemberResult, len(members))
	for _, r := range results {
		hold = max(hold, r.Hold)
		for _, m := range r.Members {
			i := slices.Index(ids, m.Mark.ID)
			if i < 0 {
				continue // of no shot of ours
			}
			made[i] = m
			for _, problem := range m.Problems {
				c.event("error", members[i].name, "after the bookmark %s: %s", name, problem)
			}
		}
	}
	return made, hold
}

// dropMarks forgets the marks of a shot that failed when some were on their way already: without the others they
// are no point of the group, and one that comes late may say what was not true any more.
func (c *Control) dropMarks(ctx context.Context, members []app, name string, ids []string, came []<-chan shotResult) {
	late := time.After(arrival)
	for i, a := range members {
		if c.taps.refuse(ids[i]) {
			continue
		}
		select {
		case r := <-came[i]:
			if r.err == nil {
				c.forgetPoint(context.WithoutCancel(ctx), a, name)
			}
		case <-late:
			c.log.Error("a mark of a shot that failed may stay", "application", a.name, "bookmark", name)
		}
	}
}

// unusedIn refuses a name that a bookmark of an application has.
func unusedIn(a app, name string) error {
	if a.t.HasBookmark(name) {
		return tidemark.Errorf(tidemark.Conflict, "%s has a bookmark %q already", a.name, name).WithHint("choose another name")
	}
	return nil
}

// shotMember says how an application is made still.
func (c *Control) shotMember(a app, name string, labels map[string]string) (m agent.ShotMember, err error) {
	if err := unusedIn(a, name); err != nil {
		return m, err
	}
	m = agent.ShotMember{Tapping: c.tapping(a), Mark: capture.Mark{Name: name, ID: rand.Text(), Labels: maps.Clone(labels)}, Scripts: a.Options[optionScripts]}
	m.ScriptLimit = a.scriptLimit()
	if url, ok := a.Options[optionPostgres]; ok {
		m.Postgres = &postgres.Source{Conn: url} // one that cannot be reached now makes the point worth less
	}
	return m, nil
}

// scriptLimit is how long a program may take that makes an application still; 0: as long as usual.
func (a app) scriptLimit() time.Duration {
	d, err := time.ParseDuration(a.Options[optionTimeout])
	if err != nil {
		return 0
	}
	return d
}

// explainShot says why there is no mark.
func (c *Control) explainShot(members []app, err error) error {
	if !strings.Contains(err.Error(), tap.ErrGap.Error()) {
		return fmt.Errorf("bookmark %s: %w", members[0].name, err)
	}
	for _, a := range members {
		if a.t.Lacks() {
			return noPoint(a)
		}
	}
	return noPoint(members[0])
}

// noPoint says that an application has no point for what its disks are now, and why, if its timeline knows.
func noPoint(a app) error {
	why := ""
	if g := a.t.Gaps(); len(g) > 0 && g[len(g)-1].To == 0 {
		why = " (" + g[len(g)-1].Why + ")"
	}
	return tidemark.Errorf(tidemark.Unavailable, "%s has no point for now: its timeline does not follow its disks%s", a.name, why).
		WithHint("wait until `tidemark status` shows it as following")
}

// arrived waits until a mark is in the timeline, and describes its point.
func (c *Control) arrived(ctx context.Context, a app, made agent.MemberResult, hold time.Duration, came <-chan shotResult) (p tidemark.RecoveryPoint, err error) {
	m := made.Mark
	var r shotResult
	select {
	case r = <-came:
	case <-time.After(arrival):
		return p, tidemark.Errorf(tidemark.Unavailable, "the bookmark %s is on its way and has not arrived in %v", m.Name, arrival).
			WithHint("`tidemark points " + a.name + "` shows it when it has; `tidemark status` says how the tap is")
	case <-ctx.Done():
		return p, ctx.Err()
	}
	if r.err != nil {
		return p, r.err
	}
	return c.noteShot(ctx, a, made, hold, r.pos, r.time), nil
}

// noteShot notes what is known of an AppShot, and describes its point.
func (c *Control) noteShot(ctx context.Context, a app, made agent.MemberResult, hold time.Duration, pos tidemark.Position, at int64) tidemark.RecoveryPoint {
	m := made.Mark
	p := tidemark.RecoveryPoint{Position: pos, Time: time.Unix(0, at).UTC(), Bookmark: m.Name, Consistency: m.Consistency,
		Images: []tidemark.Image{}, Labels: m.Labels}
	n := shotNote{Application: a.name, Bookmark: p.Bookmark, Hold: milliseconds(hold), Scripts: milliseconds(made.Scripts),
		After: strings.Join(made.Problems, "; "), Ran: a.t.Ran()}
	n.describe(&p)
	if err := c.catalog.Put(ctx, catalog.Shots, n.key(), n); err != nil {
		c.log.Error("the hold of an AppShot was not noted", "application", a.name, "error", err)
	}
	return p
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// shotNotes returns what is known of the AppShots of an application, by their names.
func (c *Control) shotNotes(ctx context.Context, name string) (map[string]shotNote, error) {
	list, err := catalog.List[shotNote](ctx, c.catalog, catalog.Shots)
	notes := map[string]shotNote{}
	for _, n := range list {
		if n.Application == name {
			notes[n.Bookmark] = n
		}
	}
	return notes, err
}

// shootOne makes an AppShot of an application whose disks are elsewhere.
func (c *Control) shootOne(ctx context.Context, a app, name string) (tidemark.RecoveryPoint, error) {
	if a.mirrored() {
		return c.shootMachine(ctx, a, name)
	}
	return c.shoot(ctx, a, name)
}

// bookmarkFollowed is shootOne for who waits for it.
func (c *Control) bookmarkFollowed(ctx context.Context, a app, name string) (tidemark.RecoveryPoint, error) {
	p, err := c.shootOne(ctx, a, name)
	if err != nil || !a.mirrored() {
		return p, err
	}
	if err := a.t.Fold(ctx); err != nil {
		return p, err
	}
	c.keepPoint(ctx, a)
	folded, err := pointAt(a.t, p.Position)
	p.Images = folded.Images
	return p, err
}

// captureFollowed is a capture of what is journaled anyway: an AppShot.
func (c *Control) captureFollowed(ctx context.Context, _ *task, a app, bookmark string) (res tidemark.CaptureResult, err error) {
	res.Point, err = c.bookmarkFollowed(ctx, a, bookmark)
	return res, err
}

// protectOurs sets the window of a volume or clone, whose writes are journaled as they are.
func (c *Control) protectOurs(spec tidemark.ProtectSpec) (*work, error) {
	a, err := c.app(spec.Source)
	if err != nil {
		return nil, err
	}
	if spec.Name != "" && spec.Name != a.name {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is an application already, and keeps its name", a.name).WithHint("leave --name out")
	}
	if len(spec.Options) > 0 || len(spec.Also) > 0 {
		return nil, tidemark.Errorf(tidemark.Invalid, "of %s only the window can be set", a.name).WithHint("give --window and --window-size")
	}
	if a.Role == "" && a.Type != tidemark.TypeVolume {
		return nil, tidemark.Errorf(tidemark.Conflict, "the writes of %s are not journaled: captures bring its changes in", a.name).
			WithHint("protect the device that it lies on with --cdp")
	}
	run := func(ctx context.Context, _ *task) (any, error) {
		w := windowOf(spec.Window, cdpWindow)
		if err := a.t.SetWindow(w); err != nil {
			return nil, err
		}
		c.keepPoint(ctx, a)
		c.event("info", a.name, "any point of the last %s of %s can be had", w.For, a.name)
		return c.describe(ctx, a), nil
	}
	return &work{app: a.name, args: spec, run: run}, nil
}
