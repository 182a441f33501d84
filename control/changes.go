package control

import (
	"context"
	"crypto/rand"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidemark"
	"tidemark/access"
)

// What changes on timelines is told to followers: streams of the API. It is told when it is durable, by whoever has done it, and to tell is no
// more than to add to the newest changes, which all followers share: nobody is waited for. A follower has but the number of the change that
// comes next for him. If that is not kept any more he has missed something, and is told so. While nobody follows, nothing is kept.

const (
	// keptChanges is how many changes are kept, unless the options say otherwise.
	keptChanges = 4096
	// keptFor is for how long they are kept behind the last follower, who may come back.
	keptFor = 10 * time.Minute
)

// changes are the newest changes.
type changes struct {
	keep int         // how many; never changed
	on   atomic.Bool // somebody follows, or did not long ago; changed while mu is held

	mu        sync.Mutex               // guards what follows, but for heads
	run       string                   // what the numbers are of: others are not known here
	ring      []Told                   // number n is at n % len; nil: off
	next      uint64                   // the number of the next one, from 1 on
	wake      chan struct{}            // closed at the next one; nil: nobody waits
	gone      map[string]access.Object // what was removed, by the ID of its timeline, as long as that is in ring
	leaving   map[string]access.Object // what is being removed, by the ID of its timeline
	followers int
	off       *time.Timer // turns it off

	heads heads
}

// Told is a change, with what has to be known to say who may see it.
type Told struct {
	tidemark.TimelineChange
	Timeline string // its ID
	removed  bool   // it tells that it was removed
}

// tell tells a change of a timeline. was is what was removed, if it tells of that.
func (x *changes) tell(timeline string, c tidemark.TimelineChange, was *access.Object) {
	if !x.on.Load() {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ring == nil { // turned off just now
		return
	}
	c.Time = time.Now().UTC()
	c.ID = changeID{x.run, x.next}.String()
	at := x.next % uint64(len(x.ring))
	if x.ring[at].removed {
		delete(x.gone, x.ring[at].Timeline)
	}
	x.ring[at] = Told{TimelineChange: c, Timeline: timeline, removed: was != nil}
	if was != nil {
		x.gone[timeline] = *was
	}
	x.next++
	x.ringBell()
}

// ringBell wakes those who wait. The caller holds mu.
func (x *changes) ringBell() {
	if x.wake != nil {
		close(x.wake)
		x.wake = nil
	}
}

// begin keeps changes from now on; none of before is known. The caller holds mu.
func (x *changes) begin() {
	x.run, x.ring, x.next, x.gone = rand.Text()[:10], make([]Told, x.keep), 1, map[string]access.Object{}
	x.on.Store(true)
}

// lose lets all followers look again: timelines are others than they were told of.
func (x *changes) lose() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ring != nil {
		x.begin()
		x.ringBell()
	}
}

// going notes what is being removed, or, if it is nil, that nothing is any more: what was told of it before is still to be read.
func (x *changes) going(timeline string, was *access.Object) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if was == nil {
		delete(x.leaving, timeline)
		return
	}
	if x.leaving == nil {
		x.leaving = map[string]access.Object{}
	}
	x.leaving[timeline] = *was
}

func (x *changes) enter() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.followers++; x.off != nil {
		x.off.Stop()
		x.off = nil
	}
	if x.ring == nil {
		x.begin()
	}
}

func (x *changes) leave() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.followers--; x.followers == 0 {
		x.heads.forget()
		x.off = time.AfterFunc(keptFor, x.turnOff)
	}
}

// turnOff keeps nothing any more, if nobody follows.
func (x *changes) turnOff() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.followers > 0 {
		return
	}
	x.on.Store(false)
	x.ring, x.gone = nil, nil
	if x.off != nil {
		x.off.Stop()
	}
}

// changeID is the number of a change in a run.
type changeID struct {
	run    string
	number uint64
}

// parseChangeID reads what String wrote. An empty text is the zero ID.
func parseChangeID(text string) (i changeID, err error) {
	if text == "" {
		return i, nil
	}
	run, number, ok := strings.Cut(text, ".")
	n, err := strconv.ParseUint(number, 10, 63)
	if !ok || run == "" || err != nil {
		return i, tidemark.Errorf(tidemark.Invalid, "%q is the ID of no change", text).WithHint("give the last ID of a stream of changes, or leave it out")
	}
	return changeID{run, n}, nil
}

// CheckChangeID returns an error of kind [tidemark.Invalid] unless a text may be the ID of a change, or is empty.
func CheckChangeID(text string) error {
	_, err := parseChangeID(text)
	return err
}

func (i changeID) String() string { return i.run + "." + strconv.FormatUint(i.number, 10) }

// Follower reads changes. It is for one goroutine.
type Follower struct {
	x     *changes
	next  changeID // the change that comes next for it
	again string   // why all has to be looked at again first; empty: it has not
}

// FollowChanges begins to follow the changes behind the one with an ID or, if that is empty, those from now on. The caller has to close what it returns.
// An ID that is none is an error of kind [tidemark.Invalid].
func (c *Control) FollowChanges(after string) (*Follower, error) {
	i, err := parseChangeID(after)
	if err != nil {
		return nil, err
	}
	f := &Follower{x: &c.changes, next: changeID{i.run, i.number + 1}}
	if after == "" {
		f.again = tidemark.SyncBegun
	}
	c.changes.enter()
	return f, nil
}

// Close ends it.
func (f *Follower) Close() { f.x.leave() }

// Next returns the next n changes, or fewer. If there are none now, wake is closed when there are. If some cannot be told, it returns why instead.
func (f *Follower) Next(n int) (list []Told, again *tidemark.Sync, wake <-chan struct{}) {
	f.x.mu.Lock()
	defer f.x.mu.Unlock()
	kept, next := uint64(len(f.x.ring)), f.x.next
	if f.again == "" && (f.next.run != f.x.run || f.next.number > next || f.next.number+kept < next) {
		f.again = tidemark.SyncMissed
	}
	if f.again != "" {
		again = &tidemark.Sync{ID: changeID{f.x.run, next - 1}.String(), Reason: f.again}
		f.next, f.again = changeID{f.x.run, next}, ""
		return nil, again, nil
	}
	for ; f.next.number < next && len(list) < n; f.next.number++ {
		list = append(list, f.x.ring[f.next.number%kept])
	}
	if len(list) > 0 {
		return list, nil, nil
	}
	if f.x.wake == nil {
		f.x.wake = make(chan struct{})
	}
	return nil, nil, f.x.wake
}

// LookAgain has Next say, for a reason, that all has to be looked at again, before it goes on.
func (f *Follower) LookAgain(reason string) { f.again = reason }

// OfTimeline is what a decision has to know of the application, clone or mount with a timeline, also when it was removed. It reports false of what
// nobody has asked for, as what a recovery proof has going on, and of what nobody knows any more.
func (c *Control) OfTimeline(ctx context.Context, id string) (o access.Object, known bool, err error) {
	defer c.Enter()()
	if t := c.set.Get(id); t != nil {
		a, err := appOf(t)
		if err != nil || a.hidden() {
			return o, false, err
		}
		o, err = c.objectOf(ctx, a)
		return o, err == nil, err
	}
	c.changes.mu.Lock()
	defer c.changes.mu.Unlock()
	if o, known = c.changes.gone[id]; !known {
		o, known = c.changes.leaving[id]
	}
	return o, known, nil
}

// Known is an error of kind [tidemark.NotFound] if there is no application, volume, clone or mount of a name.
func (c *Control) Known(name string) error {
	defer c.Enter()()
	_, err := c.app(name)
	return err
}

// hidden reports whether it is something that a job has going on, and of which no list tells.
func (a app) hidden() bool { return a.Role == roleProof || a.Role == roleCheck }

// changed tells that something was done to an application, clone or mount.
func (c *Control) changed(kind tidemark.ChangeKind, a app, p *tidemark.ChangedPoint) {
	change := tidemark.TimelineChange{Kind: kind, Application: a.name, Point: p}
	if kind == tidemark.CloneMade || kind == tidemark.MountMade {
		change.Of = a.Of
	}
	c.changes.tell(a.t.ID(), change, nil)
}

// changedPoint is the point of an application at a position, as a change speaks of it.
func changedPoint(a app, pos tidemark.Position) *tidemark.ChangedPoint {
	if p, ok := a.t.PointAt(pos); ok {
		return p.Changed()
	}
	p := &tidemark.ChangedPoint{Position: pos}
	if at, err := a.t.TimeAt(pos); err == nil { // else it has none that is known
		p.Time = at.UTC()
	}
	return p
}

// changedProof tells what a recovery proof has found.
func (c *Control) changedProof(a app, p tidemark.Proof) {
	change := tidemark.TimelineChange{Kind: tidemark.PointProven, Application: a.name, Point: changedPoint(a, p.Position), Reason: p.Reason}
	if p.Result != tidemark.Proven {
		change.Kind = tidemark.PointUnproven
	}
	c.changes.tell(a.t.ID(), change, nil)
}

// remove is demolish of what was there for all to see: it is told.
func (c *Control) remove(ctx context.Context, kind tidemark.ChangeKind, name string) error {
	return c.tellRemoval(ctx, kind, name, func() error { return c.demolish(ctx, name) })
}

// tellRemoval tells that an application, clone or mount is removed by fn, as soon as it is: also if something fails behind that.
func (c *Control) tellRemoval(ctx context.Context, kind tidemark.ChangeKind, name string, fn func() error) error {
	a, err := c.app(name)
	if err != nil { // there is nothing to be told
		return fn()
	}
	was, err := c.objectOf(ctx, a)
	if err != nil { // whose it was is not known: it is told to who may see everything
		c.log.Error("the removal is not told to everybody", "application", name, "error", err)
		was = access.Object{Name: name}
	}
	c.changes.going(a.t.ID(), &was)
	defer c.changes.going(a.t.ID(), nil)
	err = fn()
	if c.set.Get(a.t.ID()) == nil {
		c.changes.tell(a.t.ID(), tidemark.TimelineChange{Kind: kind, Application: name, Of: a.Of}, &was)
	}
	return err
}
