package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// A restore in place writes to the disks of tapped applications what differs between now and a point, through their taps. First all devices
// are open for us alone, on whatever hosts they are, and what they hold is kept; only then is something written. From there on it goes on
// until it is done: over a stop of the server, and over that of an agent.

// takingBack is a restore in place, as it is noted while it writes.
type takingBack struct {
	// Ref is what the disks go back to, as it can be asked for again; Group, if they are those of a group.
	Ref   string `json:"ref"`
	Group string `json:"group,omitempty"`
	// Before is the bookmark of what was there until then.
	Before  string      `json:"before"`
	Members []takenBack `json:"members"`
}

// takenBack is one application of a restore in place.
type takenBack struct {
	Application string            `json:"application"`
	Position    tidemark.Position `json:"position"` // that it goes back to
	Present     tidemark.Position `json:"present"`  // where it was before
	Clone       string            `json:"clone"`    // of its present
	Changed     int64             `json:"changed"`
	Done        bool              `json:"done,omitempty"`
}

// cutTakeBack is one that a stop of the server has cut: its disks are claimed, and what its points need is held.
type cutTakeBack struct {
	tidemark.Job
	*inPlace
	release, free func()
	err           error // why it cannot go on
}

// end gives up what it has.
func (b *cutTakeBack) end() {
	b.free()
	b.release()
}

// inPlace is a restore in place that runs.
type inPlace struct {
	takingBack // Members is made of members, when it is noted
	c          *Control
	t          *task
	begun      time.Time
	members    []*returning

	mu sync.Mutex // guards what is noted of members, and their progress
}

// returning is an application of an [inPlace].
type returning struct {
	takenBack
	a     app
	disks *tappedDisks      // open for us alone; nil: not now
	now   tidemark.Position // where it is, when they were opened last
	waits bool              // until they can be opened
	err   error             // why it is not done
}

// stamp names what is made of a moment.
func stamp(at time.Time) string { return at.UTC().Format("20060102-150405") }

// inPlaceWork takes the disks of a tapped application back to a point, by writing what differs through
// the tap. What they held becomes a clone first, so that it can be undone.
func (c *Control) inPlaceWork(ctx context.Context, spec tidemark.RestoreSpec) (*work, error) {
	a, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return nil, err
	}
	switch {
	case spec.To != "":
		return nil, tidemark.Errorf(tidemark.Invalid, "a restore in place goes to no other place").WithHint("give --in-place or --to")
	case spec.Disk != "":
		return nil, tidemark.Errorf(tidemark.Invalid, "a restore in place takes all disks of %s back, which are one point", a.name).WithHint("leave --disk out")
	case !a.tapped():
		return nil, tidemark.Errorf(tidemark.Invalid, "the disks of %s are not tapped", a.name).
			WithHint("restore it with --to; a clone or volume is taken back by `tidemark rewind`")
	}
	p := &inPlace{c: c, takingBack: takingBack{Ref: fmt.Sprintf("%s@%v", a.name, pos)}}
	p.members = []*returning{{a: a, takenBack: takenBack{Application: a.name, Position: pos}}}
	recorded := spec
	recorded.Ref = fixed(spec.Ref)
	return p.work(spec.Ref, restoring{RestoreSpec: recorded}), nil
}

// subject is what is taken back: the name of the application, or the group.
func (p *inPlace) subject() string {
	if p.Group != "" {
		return p.Group
	}
	return p.members[0].Application
}

// work is what the job does. ref is how it was asked for.
func (p *inPlace) work(ref string, recorded restoring) *work {
	w := &work{app: p.subject(), args: recorded, holding: p.claim}
	if p.Group == "" {
		w.host = p.members[0].a.host()
	}
	w.run = func(ctx context.Context, t *task) (any, error) {
		p.t, p.begun = t, time.Now()
		return p.run(ctx, ref)
	}
	return w
}

// claim keeps others from the disks until release, unless one of them is in use.
func (p *inPlace) claim(ctx context.Context) (release func(), err error) {
	if release, err = p.c.claimDisks(p.members); err != nil {
		return nil, err
	}
	err = p.open(ctx)
	p.close()
	if err != nil {
		release()
	}
	return release, err
}

// run takes the disks back. ref is how that was asked for.
func (p *inPlace) run(ctx context.Context, ref string) (_ any, err error) {
	defer func() { p.giveBack(ctx, err) }()
	free, err := p.hold()
	defer free()
	if err == nil {
		err = p.open(ctx) // nobody else writes from here on
	}
	// A tap that was overrun by the writes that are now regretted has no point of the present until it has caught up.
	if err == nil {
		err = p.t.doing(ctx, "catch up", undoing{})
	}
	for _, m := range p.members {
		if err == nil {
			m.now, err = p.c.catchUp(ctx, m.a, patience, p.t.report)
		}
	}
	if err == nil {
		err = p.keepPresent(ctx)
	}
	// From here on the disks are neither one nor the other: what is cut is done again at the next start.
	if err == nil {
		err = p.note(ctx)
	}
	if err == nil {
		err = p.withholdAll(ctx)
	}
	if err == nil {
		err = p.writeAll(ctx)
	}
	if err == nil {
		p.tell(ref)
	}
	return p.result(ref), err
}

func (p *inPlace) tell(ref string) {
	for _, m := range p.members {
		p.c.changed(tidemark.ApplicationRestored, m.a, changedPoint(m.a, m.Position))
		p.c.event("warning", m.Application, "%s was taken back to %s in place; what it held is the clone %s", m.Application, ref, m.Clone)
	}
}

// writeAll brings all members where they are to be; one that fails does not keep the others from it.
func (p *inPlace) writeAll(ctx context.Context) error {
	var all sync.WaitGroup
	for _, m := range p.members {
		if m.Done {
			continue
		}
		all.Go(func() {
			_, m.err = p.t.protect(ctx, func(ctx context.Context, _ *task) (any, error) { return nil, p.bring(ctx, m) })
		})
	}
	all.Wait()
	return p.verdict() // what is to be done again stays noted until the job has ended: with all of them done, that is nothing
}

// note records that it writes, or that a member waits, and what is to be done again if the job is cut.
func (p *inPlace) note(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	step := "write"
	p.Members = nil
	for _, m := range p.members {
		p.Members = append(p.Members, m.takenBack)
		if m.waits {
			step = "wait"
		}
	}
	return p.t.doing(ctx, step, undoing{TakeBack: &p.takingBack})
}

// result says what was done; ref is how it was asked for.
func (p *inPlace) result(ref string) any {
	seconds := time.Since(p.begun).Seconds()
	if p.Group == "" {
		m := p.members[0]
		return tidemark.RestoredInPlace{Restored: tidemark.Restored{Ref: ref, To: m.a.Source, Bytes: m.Changed, Seconds: seconds}, Before: m.Clone, Changed: m.Changed}
	}
	g := tidemark.GroupRestored{Group: p.Group, Ref: p.Ref, Before: p.Before, Seconds: seconds, Members: []tidemark.MemberRestored{}}
	for _, m := range p.members {
		g.Changed += m.Changed
		g.Members = append(g.Members, tidemark.MemberRestored{Application: m.Application, To: m.a.Source, Before: m.Clone, Changed: m.Changed})
	}
	return g
}

// failures says which members are not where they are to be, and why: what keeps several from it is told once.
func (p *inPlace) failures() (list []string, cause error) {
	var why []string
	names := map[string][]string{}
	for _, m := range p.members {
		if m.err == nil {
			continue
		}
		cause = unlessCancelled(m.err)
		text := cause.Error()
		if names[text] == nil {
			why = append(why, text)
		}
		names[text] = append(names[text], m.Application)
	}
	for _, text := range why {
		verb := "is"
		if len(names[text]) > 1 {
			verb = "are"
		}
		list = append(list, fmt.Sprintf("%s %s not (%s)", strings.Join(names[text], " and "), verb, text))
	}
	return list, cause
}

// verdict is an error if a member is not where it is to be. It says where each is, and how to go either way.
func (p *inPlace) verdict() error {
	not, cause := p.failures()
	var done []string
	for _, m := range p.members {
		if m.err == nil {
			done = append(done, m.Application)
		}
	}
	switch {
	case len(not) == 0:
		return nil
	case p.Group == "":
		return tidemark.Errorf(tidemark.Unavailable, "the disks of %s are neither what they were nor what they should be: %w", p.subject(), cause).
			WithHint(fmt.Sprintf("do it again: `tidemark restore %s --in-place`; what they were is the bookmark %s", p.Ref, p.Before))
	case len(done) > 0:
		done = []string{strings.Join(done, " and ") + " what it was at " + p.Ref}
	}
	return tidemark.Errorf(tidemark.Unavailable, "the disks of group %s are in the middle of a restore: %s", p.Group, strings.Join(append(done, not...), "; ")).
		WithHint(fmt.Sprintf("do it again: `tidemark group restore %s --in-place`; what they were is the bookmark %s", p.Ref, p.Before))
}

// unlessCancelled makes sure that it is told how the disks are when somebody has cancelled the job, which else is all that is said.
func unlessCancelled(err error) error {
	if errors.Is(err, context.Canceled) {
		return errors.New("the restore was cancelled")
	}
	return err
}

// claimDisks keeps other restores, bookmarks and the end of protection away from applications until release.
func (c *Control) claimDisks(members []*returning) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range members {
		if c.returning[m.Application] {
			return nil, beingTakenBack(m.Application)
		}
	}
	if c.returning == nil {
		c.returning = map[string]bool{}
	}
	for _, m := range members {
		c.returning[m.Application] = true
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, m := range members {
			delete(c.returning, m.Application)
		}
	}, nil
}

// settled is an error while the disks of an application are taken back: then they are neither what they were nor what they shall be.
func (c *Control) settled(a app) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.returning[a.name] {
		return beingTakenBack(a.name)
	}
	return nil
}

func beingTakenBack(name string) error {
	return tidemark.Errorf(tidemark.Conflict, "the disks of %s are being taken back in place", name).WithHint("wait for it: `tidemark jobs`")
}

// keepPresent bookmarks what the disks hold now, all of them in one moment, and makes a clone of each.
func (p *inPlace) keepPresent(ctx context.Context) (err error) {
	base, labels := p.subject()+"-before-"+stamp(p.begun), map[string]string(nil)
	if p.Group != "" {
		labels = map[string]string{labelGroup: p.Group}
	}
	p.Before = p.c.freeName(base)
	var list []app
	for _, m := range p.members {
		list = append(list, m.a)
		for n := 2; m.a.t.HasBookmark(p.Before); n++ {
			p.Before = p.c.freeName(fmt.Sprintf("%s-%d", base, n))
		}
	}
	points, err := p.c.shootAll(ctx, list, p.Before, labels)
	if err != nil {
		return err
	}
	for i, m := range p.members {
		m.Present, m.now, m.Clone = points[i].Position, points[i].Position, p.Before
		if p.Group != "" {
			m.Clone = p.c.freeName(strings.Replace(p.Before, p.Group, m.Application, 1))
		}
		if err := p.c.keepClone(ctx, m.a, m.Clone, m.Present); err != nil {
			for _, made := range p.members[:i] {
				err = errors.Join(err, p.c.abandon(context.WithoutCancel(ctx), made.Clone, doom{}))
			}
			return err
		}
	}
	for _, m := range p.members {
		if a, err := p.c.app(m.Clone); err == nil {
			p.c.changed(tidemark.CloneMade, a, nil)
		}
	}
	return nil
}

// keepClone makes a clone of a tapped application that is not served.
func (c *Control) keepClone(ctx context.Context, a app, name string, pos tidemark.Position) error {
	release, err := c.claim(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	note := about{Type: tidemark.TypeVolume, Host: hostname(), Of: a.name + "@" + pos.String(), From: a.firstID(), Role: roleClone, Options: a.Options}
	if _, err := a.t.Branch(ctx, name, pos, nil, newNote(ctx, note)); err != nil {
		return err
	}
	k := keptClone{Spec: tidemark.CloneSpec{Ref: note.Of, Name: name},
		Clone: tidemark.Clone{Name: name, Source: note.Of, Type: note.Type, State: "kept", Created: time.Now()}}
	if err := c.catalog.Put(ctx, catalog.Clones, name, k); err != nil {
		return errors.Join(err, c.abandon(context.WithoutCancel(ctx), name, doom{}))
	}
	return nil
}

// takeUp finds a restore in place that a stop of the server has cut. From here on nobody marks its disks, and its points stay.
func (c *Control) takeUp(j tidemark.Job, noted takingBack) *cutTakeBack {
	b := &cutTakeBack{Job: j, inPlace: &inPlace{c: c, takingBack: noted, begun: time.Now()}, free: func() {}}
	for _, m := range noted.Members {
		b.members = append(b.members, &returning{takenBack: m})
	}
	if b.release, b.err = c.claimDisks(b.members); b.err != nil { // nobody was there before us
		c.log.Error("a restore in place goes on beside another", "error", b.err)
		b.release, b.err = func() {}, nil
	}
	for _, m := range b.members {
		if b.err == nil {
			m.a, b.err = c.app(m.Application)
		}
	}
	if b.err == nil {
		b.free, b.err = b.hold()
	}
	return b
}

// finishTakingBack does again what a stop of the server has cut, when the taps run. Until then the job is one that must be
// done again, also after the next stop.
func (c *Control) finishTakingBack(b *cutTakeBack) {
	c.begin(b.Job, func(ctx context.Context, t *task) (_ any, err error) {
		defer b.end()
		defer func() { b.giveBack(ctx, err) }()
		b.t = t
		if err = b.again(ctx, b.err); err == nil {
			b.tell(b.Ref)
		}
		return b.result(b.Ref), err
	})
}

// again writes what a cut restore has not written yet, unless it cannot go on.
func (p *inPlace) again(ctx context.Context, cannot error) error {
	if cannot == nil {
		return p.writeAll(ctx)
	}
	for _, m := range p.members {
		if !m.Done {
			m.err = cannot
		}
	}
	return p.verdict()
}

// hold keeps what the points need that are gone back to, for as long as that takes.
func (p *inPlace) hold() (free func(), err error) {
	var held []func() error
	free = func() {
		for _, close := range slices.Backward(held) {
			close()
		}
	}
	for _, m := range p.members {
		for _, d := range m.a.t.Disks() {
			s, err := m.a.t.At(d.Name(), m.Position)
			if err != nil {
				return free, err
			}
			held = append(held, s.Close)
		}
	}
	return free, nil
}
