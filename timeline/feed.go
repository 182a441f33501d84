package timeline

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/capture"
)

// feedState says how far a stream of changes had come at a position. Behind it, each record that
// is not a bookmark is one change more: that is why nobody else may write, and why a
// restart knows to the change what it has.
type feedState struct {
	ID  string            `json:"id"`
	Seq uint64            `json:"seq"`
	Pos tidemark.Position `json:"position"`
	// Unknown: it did not go on where the stream before had ended. That is told its source as often as it asks.
	Unknown bool `json:"unknown,omitempty"`
}

// Feed is a stream of changes into a timeline, from whoever has its disks: a tap. It is the
// timeline's only writer. Its methods may be called concurrently; the order of the changes is that of the calls.
type Feed struct {
	t  *Timeline
	mu sync.Mutex
	// err is why the feed takes no more; guarded by mu.
	err error
	run run // guarded by mu
}

// ErrFed: the disks are written by a feed alone.
var ErrFed = errors.New("the disk is written by its tap alone")

// errReplaced is what a feed says when the same or another source has opened a newer one.
var errReplaced = tidemark.Errorf(tidemark.Conflict, "another connection of the tap has taken over")

// Feed opens the stream with the name id, which is resumed if it was open before: Applied says
// where. before is of the stream that the source sent last. If the timeline did not get that one last, or has fewer of its
// changes than were acknowledged, because the server was put back to an older state, it reports known as false: what the source believes
// to have sent is not what is here, and all of it has to come again. If it was id that it sent last, the timeline has none of it then, and does not know
// what follows it.
//
// An older feed takes nothing any more.
func (t *Timeline) Feed(id string, before capture.Sent) (f *Feed, known bool, err error) {
	if id == "" {
		return nil, false, tidemark.Errorf(tidemark.Invalid, "a stream of changes needs a name")
	}
	t.feedMu.Lock()
	defer t.feedMu.Unlock()
	if t.feed != nil {
		t.feed.end(errReplaced)
		t.feed = nil
	}
	t.facts.Lock()
	last := t.state.Feed
	t.facts.Unlock()
	if last.ID == before.ID {
		known = t.fedSeq.Load() >= before.Durable
	} else {
		known = last.ID == id && !last.Unknown
	}
	name := id
	if !known && id == before.ID { // it may end without having heard that, and who follows would name this stream
		name = noStream
	}
	if last.ID != name {
		if err := t.register(name, !known); err != nil {
			return nil, false, err
		}
	}
	t.feed = &Feed{t: t}
	return t.feed, known, nil
}

// register notes that the records behind the head are changes of a new stream, and whether that is unknown.
func (t *Timeline) register(id string, unknown bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.journal.Sync(); err != nil { // a position that is not durable may come again
		return t.writeError("begin a feed", err)
	}
	head, _ := t.Head()
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state.Feed
	t.state.Feed = feedState{ID: id, Pos: head, Unknown: unknown}
	if err := t.saveState(); err != nil {
		t.state.Feed = old
		return err
	}
	t.fedSeq.Store(0)
	t.fed.Store(true)
	return nil
}

// EndFeed lets the disks be written by others again. The stream that was open last is forgotten.
func (t *Timeline) EndFeed() error {
	t.feedMu.Lock()
	defer t.feedMu.Unlock()
	if t.feed != nil {
		t.feed.end(errReplaced)
		t.feed = nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state.Feed
	t.state.Feed = feedState{}
	if err := t.saveState(); err != nil {
		t.state.Feed = old
		return err
	}
	t.fed.Store(false)
	return nil
}

func (f *Feed) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// Close ends the feed. The stream can be resumed.
func (f *Feed) Close() error {
	f.end(errReplaced)
	return nil
}

// Applied returns how many changes of the stream the timeline has, durable or not.
func (f *Feed) Applied() uint64 { return f.t.fedSeq.Load() }

// Apply takes the next changes of the stream. After an error the feed takes no more; the
// next one resumes behind what was applied. Data in shared memory that are not what they must be are [capture.ErrChanged].
func (f *Feed) Apply(list []capture.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = f.t.applyAll(list, &f.run)
	}
	if f.err == nil {
		f.t.wroteSome()
	}
	return f.err
}

// Sync makes durable what was applied, and returns how many changes of the stream that is.
func (f *Feed) Sync() (durable uint64, err error) {
	durable = f.Applied()
	if err := f.t.journal.Sync(); err != nil {
		return 0, f.t.writeError("flush", err)
	}
	return durable, nil
}

// Lose notes that the disks no longer follow their source, which has dropped changes from the
// given time on, in Unix nanoseconds, or, if that is 0, at an unknown time after the last change applied. What is
// applied from now on mends that, piece by piece, in no order of time. It is durable when Lose returns.
func (f *Feed) Lose(since int64, why string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return f.t.openGap(since, why)
}

// Whole notes that the disks are again what their source has. It is durable when Whole returns.
func (f *Feed) Whole() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return f.t.closeGap()
}

// Lost reports whether the disks do not follow their source now.
func (f *Feed) Lost() bool { return f.t.Lacks() }

// Bookmark marks the present as [Timeline.Bookmark] does, between the changes applied before and after. A mark
// with the ID of one that is there is that one. A mark that cannot be made, because its name is taken or
// the disks do not follow their source, does not end the feed.
func (f *Feed) Bookmark(m Mark) (tidemark.Position, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return 0, f.err
	}
	if pos, ok := f.t.markWith(m.ID); ok {
		return pos, nil
	}
	return f.t.Bookmark(m)
}

// markWith returns where the bookmark with an ID is.
func (t *Timeline) markWith(id string) (tidemark.Position, bool) {
	t.facts.Lock()
	defer t.facts.Unlock()
	for _, p := range t.points {
		if p.Mark != nil && id != "" && p.Mark.ID == id {
			return p.Position, true
		}
	}
	for _, c := range t.cuts {
		if c.mark != nil && id != "" && c.mark.ID == id {
			return c.pos, true
		}
	}
	return 0, false
}

// Gap is a stretch of a timeline of which no point can be had: its disks did not follow their source.
type Gap struct {
	// From is the last position before it, To the first behind it; 0 while it lasts.
	From tidemark.Position `json:"from"`
	To   tidemark.Position `json:"to,omitempty"`
	// Start and End are its times; a point of Start itself can be had.
	Start time.Time `json:"start"`
	End   time.Time `json:"end,omitzero"`
	Why   string    `json:"why"`
	// Rewrite: it is of a [Rewrite].
	Rewrite bool `json:"rewrite,omitempty"`
}

// within reports whether a position lies inside the gap.
func (g *Gap) within(pos tidemark.Position) bool {
	return pos > g.From && (g.To == 0 || pos < g.To)
}

// during reports whether a time lies inside the gap.
func (g *Gap) during(when time.Time) bool {
	return when.After(g.Start) && (g.To == 0 || when.Before(g.End))
}

// Gaps returns the stretches of which no point can be had, oldest first; the last may still be open.
func (t *Timeline) Gaps() []Gap {
	t.facts.Lock()
	defer t.facts.Unlock()
	return append([]Gap{}, t.state.Gaps...)
}

// Unreachable returns the gaps, and the stretches that are missing in the archive, oldest first.
func (t *Timeline) Unreachable() []Gap {
	list := append(t.Gaps(), t.missing()...)
	slices.SortStableFunc(list, func(a, b Gap) int { return cmp.Compare(a.From, b.From) })
	return list
}

// Covered returns the stretches of time of which any point can be had, oldest first: those of which the journal has
// every write. The last ends with the newest write.
func (t *Timeline) Covered() (list []tidemark.Interval) {
	segments := t.journal.Segments()
	if len(segments) == 0 {
		return nil
	}
	from := t.anyTime()
	_, to := t.Head()
	for _, g := range t.Unreachable() {
		if g.Start.After(from) {
			list = append(list, tidemark.Interval{From: from, To: g.Start})
		}
		if g.To == 0 {
			return list
		}
		if g.End.After(from) {
			from = g.End
		}
	}
	if to.After(from) {
		list = append(list, tidemark.Interval{From: from, To: to})
	}
	return list
}

// Lacks reports whether the disks do not follow their source now.
func (t *Timeline) Lacks() bool { return t.openGapOf() != nil }

// openGapOf returns the gap that lasts now, or nil.
func (t *Timeline) openGapOf() *Gap {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.state.openGap()
}

// openGap returns the gap that lasts, or nil.
func (s *state) openGap() *Gap {
	if n := len(s.Gaps); n > 0 && s.Gaps[n-1].To == 0 {
		g := s.Gaps[n-1]
		return &g
	}
	return nil
}

func (t *Timeline) openGap(since int64, why string) error {
	head, last := t.Head()
	start := last
	if head == 0 {
		start = t.desc.Created
	}
	if now := t.set.o.Now().UnixNano(); since > last.UnixNano() {
		start = time.Unix(0, min(since, now))
	}
	return t.addGapAt(head, start, why)
}

// addGapAt begins a gap behind a position that has been.
func (t *Timeline) addGapAt(head tidemark.Position, start time.Time, why string) error {
	if err := t.journal.Sync(); err != nil { // the position may not come again
		return t.writeError("note a gap", err)
	}
	return t.addGap(Gap{From: head, Start: start.UTC(), Why: why})
}

// addGap notes a gap that begins, unless one lasts already.
func (t *Timeline) addGap(g Gap) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	if t.state.openGap() != nil {
		return nil
	}
	t.state.Gaps = append(t.state.Gaps, g)
	if err := t.saveState(); err != nil {
		t.state.Gaps = t.state.Gaps[:len(t.state.Gaps)-1]
		return err
	}
	t.tellGap(tidemark.GapBegun, g)
	return nil
}

// Void takes the positions between two points away from the points that can be had, for good: the disks were on their way from
// the one to the other, and what they held meanwhile nobody meant. That is durable when Void returns.
func (t *Timeline) Void(from, to tidemark.Position, why string) error {
	start, err := t.TimeAt(from)
	if err != nil {
		return err
	}
	end, err := t.TimeAt(to)
	if err != nil {
		return err
	}
	if err := t.journal.Sync(); err != nil { // the positions may not come again
		return t.writeError("note a gap", err)
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state.Gaps
	i := len(old)
	for i > 0 && (old[i-1].To == 0 || old[i-1].From > from) { // one that lasts stays the last
		i--
	}
	g := Gap{From: from, To: to, Start: start.UTC(), End: end.UTC(), Why: why}
	t.state.Gaps = slices.Insert(slices.Clone(old), i, g)
	if err := t.saveState(); err != nil {
		t.state.Gaps = old
		return err
	}
	t.tellGap(tidemark.GapBegun, g)
	t.tellGap(tidemark.GapClosed, g)
	return nil
}

func (t *Timeline) closeGap() error {
	if t.openGapOf() == nil {
		return nil
	}
	return t.closeGapWith(t.Anchor())
}

// closeGapWith closes the gap that is open, and replaces the anchor with that.
func (t *Timeline) closeGapWith(anchor string) error {
	c, err := t.cut(nil)
	if err != nil {
		return err
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	g, old := &t.state.Gaps[len(t.state.Gaps)-1], t.state.Anchor
	g.To, g.End, t.state.Anchor = c.pos, fromNano(max(c.time, g.Start.UnixNano())), anchor
	if err := t.saveState(); err != nil {
		g.To, g.End, t.state.Anchor = 0, time.Time{}, old
		return err
	}
	t.tellGap(tidemark.GapClosed, *g)
	t.set.askFold(t)
	return nil
}

// inGap returns an error if no point can be had at pos. The caller holds facts.
func (t *Timeline) inGap(pos tidemark.Position) error {
	for i := range t.state.Gaps {
		if g := &t.state.Gaps[i]; g.within(pos) {
			return t.gapError(g)
		}
	}
	return nil
}

// hasPoint returns an error if no point can be had at pos because of a gap.
func (t *Timeline) hasPoint(pos tidemark.Position) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.inGap(pos)
}

// gapError says that what was asked for lies in a gap.
func (t *Timeline) gapError(g *Gap) error {
	const form = "2006-01-02T15:04:05.000Z07:00"
	start, end, hint := g.Start.Local().Format(form), "now", ""
	if g.To != 0 {
		end = g.End.Local().Format(form)
		hint = fmt.Sprintf(", or %s, the first behind", g.To)
	}
	return tidemark.Errorf(tidemark.Unavailable, "%s has no points between %s and %s: %s", t.desc.Name, start, end, g.Why).
		WithHint(fmt.Sprintf("ask for %s, the last before%s", g.From, hint))
}

// dropGaps forgets gaps that nobody can ask for any more: those before oldest.
func (t *Timeline) dropGaps(oldest tidemark.Position) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	keep := t.state.Gaps[:0:0]
	for _, g := range t.state.Gaps {
		held := g.To == 0 || g.To > oldest
		if i := t.firstPointFrom(g.From + 1); i < len(t.points) {
			held = held || g.within(t.points[i].Position)
		}
		if held {
			keep = append(keep, g)
		}
	}
	if len(keep) == len(t.state.Gaps) {
		return nil
	}
	t.state.Gaps = keep
	return t.saveState()
}
