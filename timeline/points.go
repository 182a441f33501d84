package timeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
	"tidemark/journal"
)

// Points returns the bookmarks that have an image, oldest first.
func (t *Timeline) Points() []tidemark.RecoveryPoint {
	t.facts.Lock()
	defer t.facts.Unlock()
	var list []tidemark.RecoveryPoint
	for _, m := range t.points {
		if m.Mark != nil {
			list = append(list, m.recoveryPoint())
		}
	}
	return list
}

// PointsFrom returns the first n of [Timeline.Points] from a position on. It takes as long as these n, however many there are.
func (t *Timeline) PointsFrom(from tidemark.Position, n int) []tidemark.RecoveryPoint {
	t.facts.Lock()
	defer t.facts.Unlock()
	i := t.firstPointFrom(from)
	list := make([]tidemark.RecoveryPoint, 0, min(n, len(t.points)-i))
	for ; i < len(t.points) && len(list) < n; i++ {
		if m := t.points[i]; m.Mark != nil {
			list = append(list, m.recoveryPoint())
		}
	}
	return list
}

// Latest returns the newest of [Timeline.Points], if there is one.
func (t *Timeline) Latest() (p tidemark.RecoveryPoint, ok bool) {
	t.facts.Lock()
	defer t.facts.Unlock()
	for _, m := range slices.Backward(t.points) {
		if m.Mark != nil {
			return m.recoveryPoint(), true
		}
	}
	return p, false
}

// PointAt returns the bookmark at a position, if it has an image.
func (t *Timeline) PointAt(pos tidemark.Position) (p tidemark.RecoveryPoint, ok bool) {
	t.facts.Lock()
	defer t.facts.Unlock()
	if i := t.firstPointFrom(pos); i < len(t.points) && t.points[i].Position == pos && t.points[i].Mark != nil {
		return t.points[i].recoveryPoint(), true
	}
	return p, false
}

// firstPointFrom returns the index of the first retained point at or behind a position. The caller holds facts.
func (t *Timeline) firstPointFrom(pos tidemark.Position) int {
	i, _ := slices.BinarySearchFunc(t.points, pos, func(m manifest, pos tidemark.Position) int { return cmp.Compare(m.Position, pos) })
	return i
}

func (m manifest) recoveryPoint() tidemark.RecoveryPoint {
	p := tidemark.RecoveryPoint{Position: m.Position, Time: m.Time, Consistency: tidemark.CrashConsistent}
	if m.Mark != nil {
		p.Bookmark, p.Consistency, p.Labels = m.Mark.Name, m.Mark.Consistency, m.Mark.Labels
	}
	for _, d := range m.Disks {
		p.Images = append(p.Images, tidemark.Image{Disk: d.Name, Root: d.Root.String(), Size: d.Size})
	}
	return p
}

// LogicalBytes returns what full copies of all retained points would take, in bytes, holes not counted.
func (t *Timeline) LogicalBytes() (n int64, err error) {
	t.facts.Lock()
	points := slices.Clone(t.points)
	t.facts.Unlock()
	for _, m := range points {
		if m.Mark == nil {
			continue
		}
		for _, d := range m.Disks {
			held, err := t.set.heldBytes(d.measured)
			if err != nil {
				return n, fmt.Errorf("measure %s@%v: %w", t.Name(), m.Position, err)
			}
			n += held
		}
	}
	return n, nil
}

// heldBytes returns the bytes of an image that are not holes. One of which that was not noted is measured; since images
// never change, that is done once.
func (s *Set) heldBytes(m measured) (n int64, err error) {
	if m.noted() {
		return m.Held, nil
	}
	r := m.root()
	if n, ok := s.held.Load(r); ok {
		return n.(int64), nil
	}
	err = s.store.View(r).Extents(0, r.Size, func(e block.Extent) bool {
		if !e.Hole {
			n += e.Len
		}
		return true
	})
	if err == nil {
		s.held.Store(r, n)
	}
	return n, err
}

// Resolve returns the position that p names. A time names the newest record
// that is not later, where the journal still holds it; before that, the newest
// retained point that is not later. It names that for ever: what is written from now on is later, wherever the clock
// is set. So of a timeline with a [Feed], whoever asks first sees to it that what was written by then has come.
func (t *Timeline) Resolve(p tidemark.Point) (tidemark.Position, error) {
	head, _ := t.Head()
	when, timed, err := t.When(p)
	switch {
	case err != nil:
		return 0, err
	case p.Latest():
		return head, nil
	case p.IsPosition():
		if p.Position > head {
			return 0, tidemark.Errorf(tidemark.NotFound, "%s has not come to position %v yet", t.Name(), p.Position).WithHint(fmt.Sprintf("its newest is %v", head))
		}
		return p.Position, nil
	case timed:
		return t.resolveTime(when)
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	for _, m := range t.points {
		if m.Mark != nil && m.Mark.Name == p.Bookmark {
			return m.Position, nil
		}
	}
	for _, c := range t.cuts {
		if c.mark != nil && c.mark.Name == p.Bookmark {
			return c.pos, nil
		}
	}
	return 0, tidemark.Errorf(tidemark.NotFound, "%s has no bookmark %q", t.desc.Name, p.Bookmark).WithHint("`tidemark points " + t.desc.Name + "` lists them")
}

// clockSlack is how much the records may be ahead of the clock without its having been set: those of other hosts are.
const clockSlack = time.Second

// When returns the time that p names, or false if it names none. While the clock is behind the records, as it is when it
// was set back, how long ago something was cannot be told.
func (t *Timeline) When(p tidemark.Point) (when time.Time, timed bool, err error) {
	now := t.set.o.Now()
	if when, timed = p.When(now); !timed {
		return when, false, nil
	}
	_, newest := t.Head()
	if behind := t.ClockBehind(); p.Ago != 0 && behind > 0 {
		return when, true, tidemark.Errorf(tidemark.Unavailable, "the clock is %v behind the newest write of %s: it was set back, and what was %v ago is not known",
			behind.Round(time.Second), t.Name(), p.Ago).WithHint("give a time or a position: `tidemark points " + t.Name() + "` lists some")
	}
	if when.After(now) && when.After(newest) {
		return when, true, tidemark.Errorf(tidemark.Invalid, "%s has not come yet", when.Format(time.RFC3339)).WithHint("leave the time out for the newest state")
	}
	return when, true, nil
}

// ClockBehind is how far the clock is behind the newest record, as it is when it was set back; 0 if it is not. What is
// written meanwhile gets times just behind that record's.
func (t *Timeline) ClockBehind() time.Duration {
	_, newest := t.Head()
	if behind := newest.Sub(t.set.o.Now()); behind > clockSlack {
		return behind
	}
	return 0
}

func (t *Timeline) resolveTime(when time.Time) (tidemark.Position, error) {
	at, err := t.journal.At(when.UnixNano())
	if err != nil {
		return 0, t.journalError(err)
	}
	pos := tidemark.Position(at)
	inJournal := pos > t.oldestInJournal()
	t.facts.Lock()
	defer t.facts.Unlock()
	for i := range t.state.Gaps {
		if g := &t.state.Gaps[i]; g.during(when) {
			return 0, t.gapError(g)
		}
	}
	if inJournal || t.standsAt(pos, when) {
		return pos, nil
	}
	for _, m := range slices.Backward(t.points) {
		if !m.Time.After(when) && t.inGap(m.Position) == nil {
			return m.Position, nil
		}
	}
	none := tidemark.Errorf(tidemark.NotFound, "%s has no point at or before %s", t.desc.Name, when.Format(time.RFC3339))
	if len(t.points) > 0 {
		return 0, none.WithHint("its oldest is of " + t.points[0].Time.Local().Format(time.RFC3339))
	}
	return 0, none.WithHint("it has no retained point yet")
}

// standsAt reports whether the disks are at a position at which the journal ends or begins, and were so at a time already: then what is
// there need not be a point that somebody keeps. The caller holds facts.
func (t *Timeline) standsAt(pos tidemark.Position, when time.Time) bool {
	segments := t.journal.Segments()
	if pos == 0 || pos != t.state.Base || len(segments) == 0 || uint64(pos)+1 != segments[0].FirstPos || when.Before(fromNano(segments[0].After)) {
		return false
	}
	return !slices.ContainsFunc(t.state.Disks, func(d diskState) bool { return d.Origin != nil })
}

// oldestInJournal returns the position after which all records are in the journal.
func (t *Timeline) oldestInJournal() tidemark.Position {
	if s := t.journal.Segments(); len(s) > 0 && s[0].FirstPos > 0 {
		return tidemark.Position(s[0].FirstPos - 1)
	}
	head, _ := t.Head()
	return head
}

// Snapshot is a disk at one point: read-only, and unchanged for as long as it
// is open, whatever is written, expired or reclaimed meanwhile. So long the disk can be had at
// that point by others, too, and branched from.
type Snapshot struct {
	view
	x   *image.Session
	t   *Timeline
	pin string // keeps the journal that the layers read, and the chunks it names
	// Position is the point that is shown.
	Position tidemark.Position
}

var _ block.Extenter = (*Snapshot)(nil)

// Close lets go of what the snapshot keeps from being reclaimed.
func (s *Snapshot) Close() error {
	s.t.unpinOne(s.pin)
	s.x.End()
	return nil
}

// At opens the disk as it was at position pos: the nearest image at or before
// it, and over it the records of the journal in between.
func (t *Timeline) At(disk string, pos tidemark.Position) (*Snapshot, error) {
	i, err := t.diskIndex(disk)
	if err != nil {
		return nil, err
	}
	x := t.set.store.Begin()
	if pos, err = t.settle(pos); err != nil {
		x.End()
		return nil, err
	}
	v, _, pin, err := t.pinned(x, i, pos, t.viewAt)
	if err != nil {
		x.End()
		return nil, err
	}
	return &Snapshot{view: *v, x: x, t: t, pin: pin, Position: pos}, nil
}

// pinned makes a view, and keeps the journal that it reads until unpinOne is called with what it returns.
func (t *Timeline) pinned(x *image.Session, i int, pos tidemark.Position, view viewer) (*view, nearest, string, error) {
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	pin := "snapshot " + newID()
	v, n, err := view(x, i, pos)
	if err != nil {
		return v, n, pin, err
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	t.shown[pin] = shown{i, n}
	if len(v.layers) > 0 {
		t.pins[pin] = n.pos
	}
	return v, n, pin, nil
}

// shown is what a snapshot of a disk is made from.
type shown struct {
	disk int
	nearest
}

// settle makes sure that nothing more will be written at or before pos: the
// latest point becomes one of the past, at a new record. It is durable then.
func (t *Timeline) settle(pos tidemark.Position) (tidemark.Position, error) {
	if err := t.hasPoint(pos); err != nil {
		return pos, err
	}
	if head, _ := t.Head(); pos < head {
		return pos, t.syncPast(pos)
	}
	t.facts.Lock()
	quiet := len(t.cuts) == 0 && pos == t.state.Base
	g := t.state.openGap()
	t.facts.Unlock()
	switch {
	case quiet:
		if err := t.keepTold(); err != nil {
			return pos, err
		}
		if head, _ := t.Head(); pos < head { // what was written meanwhile is its successor
			return pos, t.syncPast(pos)
		}
		return pos, nil
	case g != nil && g.From == pos: // a gap begins at a durable record
		return pos, nil
	}
	c, err := t.cut(nil)
	if err != nil {
		return pos, err
	}
	t.set.askFold(t)
	if c.pos != pos+1 { // others wrote before the cut was made, and that is not what was asked for
		return pos, nil
	}
	return c.pos, nil
}

// syncPast makes sure that pos and its successor stay what they are: then the times in between name pos for ever.
func (t *Timeline) syncPast(pos tidemark.Position) error {
	if t.journal.Durable() > uint64(pos) {
		return nil
	}
	if err := t.journal.Sync(); err != nil {
		return t.writeError("settle a point", err)
	}
	return nil
}

// keepTold makes durable which times name the head for ever.
func (t *Timeline) keepTold() error {
	told := t.journal.Told()
	t.facts.Lock()
	defer t.facts.Unlock()
	if told <= t.state.Told {
		return nil
	}
	old := t.state.Told
	t.state.Told = told
	if err := t.saveState(); err != nil {
		t.state.Told = old
		return err
	}
	return nil
}

// viewer makes the view of disk i at pos, a settled position, and says from which image it is made. That image stays until x ends.
type viewer func(x *image.Session, i int, pos tidemark.Position) (*view, nearest, error)

// viewAt is a viewer of points that can be had.
func (t *Timeline) viewAt(x *image.Session, i int, pos tidemark.Position) (*view, nearest, error) {
	if err := t.hasPoint(pos); err != nil {
		return nil, nearest{}, err
	}
	return t.viewOf(x, i, pos)
}

// viewOf is viewAt, in a gap too.
func (t *Timeline) viewOf(x *image.Session, i int, pos tidemark.Position) (*view, nearest, error) {
	if v, n, ok := t.frozenAt(x, i, pos); ok {
		return v, n, nil
	}
	n, err := t.nearest(x, i, pos)
	if err != nil {
		return nil, n, err
	}
	if n.pos == pos {
		return newView(t.set.store, n.image), n, nil
	}
	y, err := t.replay(uint16(i), n.image, n.pos, pos)
	if err != nil {
		return nil, n, err
	}
	return newView(t.set.store, n.image, y), n, nil
}

// frozenAt makes the view at pos of the head's own layers, if one of them was frozen just there. The image below them stays until x ends.
func (t *Timeline) frozenAt(x *image.Session, i int, pos tidemark.Position) (*view, nearest, bool) {
	t.facts.Lock()
	defer t.facts.Unlock()
	at := slices.IndexFunc(t.cuts, func(c *cut) bool { return c.pos == pos })
	if at < 0 {
		return nil, nearest{}, false
	}
	v := t.disks[i].head.Load()
	next := *v
	next.layers = nil
	for _, c := range slices.Backward(t.cuts[:at+1]) {
		if c.layers[i] != nil {
			next.layers = append(next.layers, c.layers[i])
		}
	}
	d := t.state.Disks[i]
	n := nearest{pos: t.state.Base, image: d.measured, foreign: d.Origin != nil}
	x.Hold(n.image.root())
	return &next, n, true
}

// nearest is the image that a point is made from.
type nearest struct {
	pos   tidemark.Position
	image measured
	// foreign says that what comes over the image is, in part, in the journal of the timeline that this one branched from: the image is not what was there at pos.
	foreign bool
}

// nearest finds the newest image of disk i at or before pos from which the journal leads on to pos. It stays until x ends: it is held
// with facts locked, so that its point cannot be expired, and be reclaimed as well, between the choice and the hold.
func (t *Timeline) nearest(x *image.Session, i int, pos tidemark.Position) (nearest, error) {
	t.facts.Lock()
	defer t.facts.Unlock()
	var n nearest
	found := false
	consider := func(at tidemark.Position, m measured) {
		if at <= pos && (!found || at > n.pos) {
			n, found = nearest{pos: at, image: m}, true
		}
	}
	for _, m := range slices.Backward(t.points[:t.firstPointFrom(pos+1)]) {
		for _, d := range m.Disks {
			if d.Name == t.disks[i].name {
				consider(m.Position, d.measured)
			}
		}
		if found {
			break
		}
	}
	if t.state.Disks[i].Origin == nil {
		consider(t.state.Base, t.state.Disks[i].measured)
	}
	for _, s := range t.shown { // its point may be expired
		if s.disk == i && !s.foreign {
			consider(s.pos, s.image)
		}
	}
	if !found || n.pos < pos && n.pos < t.oldestInJournal() {
		return n, tidemark.Errorf(tidemark.NotFound, "%s cannot be shown at %v: its journal no longer reaches back so far", t.desc.Name, pos).
			WithHint("choose one of `tidemark points " + t.desc.Name + "`")
	}
	x.Hold(n.image.root())
	return n, nil
}

// replay builds the layer of one disk from the journal's records in (after, upTo].
func (t *Timeline) replay(disk uint16, base measured, after, upTo tidemark.Position) (*layer, error) {
	y := newLayer(base.Size, t.firstSegment(after))
	err := t.journal.Scan(uint64(after), uint64(upTo), func(r *journal.Record, p journal.Place) error {
		if r.Kind != journal.Bookmark && r.Disk == disk {
			y.put(r, p, int64(base.Chunk))
		}
		return nil
	})
	if err != nil {
		return nil, t.journalError(err)
	}
	return y, nil
}

// firstSegment returns the number of the segment that holds the record behind after.
func (t *Timeline) firstSegment(after tidemark.Position) uint64 {
	first := uint64(0)
	for _, s := range t.journal.Segments() {
		if first == 0 || s.FirstPos <= uint64(after)+1 {
			first = s.Number
		}
	}
	return first
}

// Root returns the image of a disk at pos, which is made if there is none. It
// stays until x ends, whatever is expired meanwhile, or for as long as a retained point has it.
func (t *Timeline) Root(ctx context.Context, x *image.Session, disk string, pos tidemark.Position) (image.Root, error) {
	i, err := t.diskIndex(disk)
	if err != nil {
		return image.Root{}, err
	}
	if pos, err = t.settle(pos); err != nil {
		return image.Root{}, err
	}
	v, n, pin, err := t.pinned(x, i, pos, t.viewAt)
	if err != nil {
		return image.Root{}, err
	}
	defer t.unpinOne(pin)
	m, err := t.imageOf(ctx, x, v, n, atOnce)
	return m.root(), err
}

// imageOf makes the image of a view, which stays until x ends. It is made by workers that begin so.
func (t *Timeline) imageOf(ctx context.Context, x *image.Session, v *view, n nearest, begin begin) (m measured, err error) {
	m = n.image
	for _, y := range slices.Backward(v.layers) {
		if m, err = t.set.commitLayer(ctx, x, m, y, begin); err != nil {
			return m, err
		}
	}
	return m, nil
}

// Expire forgets the point at pos. What other points, branches or open
// snapshots need stays; the bytes are given back by a reclaim.
func (t *Timeline) Expire(ctx context.Context, pos tidemark.Position) error {
	oldest := t.oldestInJournal()
	t.facts.Lock()
	defer t.facts.Unlock()
	i := t.firstPointFrom(pos)
	marked := i < len(t.points) && t.points[i].Position == pos && t.points[i].Mark != nil
	if !marked && t.lost[pos] == nil {
		return tidemark.Errorf(tidemark.NotFound, "%s has no retained point at %v", t.desc.Name, pos).WithHint("`tidemark points " + t.desc.Name + "` lists them")
	}
	if marked && t.standsOn(i, oldest) {
		return t.unmark(i)
	}
	gone := manifest{}
	if marked {
		gone = t.points[i]
	}
	if err := t.deleteImage(ctx, pos); err != nil {
		return err
	}
	t.tellPoint(tidemark.PointRemoved, gone)
	if marked && t.state.Window.open() {
		t.set.askFold(t) // without its image, the points behind it may be too far from one
	}
	return nil
}

// deleteImage takes the image at a position out of the pool. The caller holds facts.
func (t *Timeline) deleteImage(ctx context.Context, pos tidemark.Position) error {
	if err := t.set.o.Bucket.Delete(ctx, imageKey(t.id, pos)); err != nil {
		return fmt.Errorf("expire %s@%v: %w", t.desc.Name, pos, err)
	}
	delete(t.lost, pos)
	t.set.dead.Store(true)
	t.points = slices.DeleteFunc(t.points, func(m manifest) bool { return m.Position == pos })
	t.state.Unmarked = slices.DeleteFunc(t.state.Unmarked, func(p tidemark.Position) bool { return p == pos }) // kept with the next change
	return nil
}

// standsOn reports whether the oldest points of the window are made from the image of point i, and would go with it. oldest is the oldest position in the journal.
// The caller holds facts.
func (t *Timeline) standsOn(i int, oldest tidemark.Position) bool {
	return t.state.Window.open() && t.points[i].Position < t.state.Base && i == t.firstPointFrom(oldest)
}

// unmark lets a point be no bookmark any more, and its image stay until the window has passed it. The caller holds facts.
func (t *Timeline) unmark(i int) error {
	before := t.state.Unmarked
	t.state.Unmarked = append(slices.Clone(before), t.points[i].Position)
	if err := t.saveState(); err != nil {
		t.state.Unmarked = before
		return err
	}
	t.tellPoint(tidemark.PointRemoved, t.points[i])
	t.points[i].Mark = nil
	return nil
}

// StoredBytes returns the bytes that the timeline has added to the pool, ever.
func (t *Timeline) StoredBytes() int64 {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.state.Stored + t.stored.Load()
}

// Trouble returns why the last fold, or what keeps history short behind it, failed, or nil.
func (t *Timeline) Trouble() error {
	t.facts.Lock()
	defer t.facts.Unlock()
	return errors.Join(t.failed, t.unkept)
}

// Backlog returns the bytes that were written and are not in an image yet.
func (t *Timeline) Backlog() int64 { return t.backlog.Load() }
