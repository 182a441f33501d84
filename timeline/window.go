package timeline

import (
	"context"
	"fmt"
	"slices"
	"time"

	"tidemark"
)

// Window says how far back any point, not just bookmarks, can be recovered: the history of the last For, but no more of it
// than takes Bytes. Zero of one means that it sets no limit; zero of both, that there is no such history.
type Window struct {
	// For is counted while the timeline is served, not by the clock: a clock that jumps makes nothing old.
	For time.Duration `json:"for"`
	// Bytes bounds what the journal of what is folded takes, packed, here and in the pool.
	Bytes int64 `json:"bytes"`
}

// open reports whether there is a window.
func (w Window) open() bool { return w.For > 0 || w.Bytes > 0 }

// age notes where the head was when the timeline had been served for a time.
type age struct {
	Position tidemark.Position `json:"position"`
	Ran      time.Duration     `json:"ran"`
}

// ageSteps is in how many steps the window moves on.
const ageSteps = 64

// Ran returns for how long the timeline has been served, ever: a clock that nobody sets. A server that was killed
// may have forgotten the last of it.
func (t *Timeline) Ran() time.Duration { return t.ranBefore + t.set.o.Elapsed() }

// saveRan keeps for how long the timeline was served.
func (t *Timeline) saveRan() error {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.saveState()
}

// noteAge notes where the head is now. The caller holds facts.
func (t *Timeline) noteAge() {
	w, ran, head := t.state.Window, t.Ran(), tidemark.Position(t.journal.Durable())
	if w.For == 0 {
		t.state.Ages = nil
		return
	}
	list := t.state.Ages
	if n := len(list); n > 0 && (list[n-1].Position >= head || ran-list[n-1].Ran < w.For/ageSteps) {
		return
	}
	t.state.Ages = append(list, age{Position: head, Ran: ran})
}

// aged returns the newest position that is known to have left a window of a length. The caller holds facts.
func (t *Timeline) aged(length time.Duration) tidemark.Position {
	limit := t.Ran() - length
	n := 0
	for n < len(t.state.Ages) && t.state.Ages[n].Ran <= limit {
		n++
	}
	if n == 0 {
		return 0
	}
	t.state.Ages = slices.Clone(t.state.Ages[n-1:])
	return t.state.Ages[0].Position
}

// trim lets the journal forget what is folded, outside the window, and not needed by a branch.
func (t *Timeline) trim(ctx context.Context) error {
	t.lockTrim()
	defer t.trimMu.Unlock()
	t.facts.Lock()
	if t.state.Removing {
		t.facts.Unlock()
		return nil
	}
	t.noteAge()
	upTo := t.past()
	t.facts.Unlock()
	return t.forgetUpTo(ctx, upTo)
}

// past returns the position up to which nobody needs the journal. The caller holds facts.
func (t *Timeline) past() tidemark.Position {
	w, upTo := t.state.Window, t.dispensable()
	if w.open() {
		upTo = min(upTo, max(t.pastByTime(w), t.pastBySize(w)))
	}
	return upTo
}

// idleTail is how many segments' worth of the journal may lie there, needed by nobody, for a little that was written behind it.
const idleTail = 1. / 8

// shedTail asks for a fold of what is not folded, if that is less than what it keeps of the journal for nothing: a segment goes as a
// whole, and where little is written, as by a database that nobody works with, that with the last fold in it would stay for ever. A burst of writes is left alone.
// It is called every minute, by the keeper alone.
func (t *Timeline) shedTail() error {
	since := t.sinceCut.Load()
	written := since - t.seenTail
	t.seenTail = since
	t.facts.Lock()
	base := t.state.Base
	needed := t.state.Removing || t.past() < base
	t.facts.Unlock()
	tail := int64(idleTail * float64(t.set.o.SegmentSize))
	if needed || written > tail || t.tight.Load() {
		return nil
	}
	waste, rest, err := t.journal.Straddled(uint64(base))
	if err != nil || waste < tail || rest > waste {
		return err
	}
	if err := t.journal.End(); err != nil { // so that what is written before the fold is done does not keep the segment again
		return fmt.Errorf("end a segment of the journal of %s: %w", t.Name(), err)
	}
	t.paused.Store(true)
	t.wroteSome()
	return nil
}

// forgetUpTo lets the journal forget. The caller holds trimMu.
func (t *Timeline) forgetUpTo(ctx context.Context, upTo tidemark.Position) error {
	before := t.oldestInJournal()
	err := t.journal.Trim(ctx, uint64(upTo))
	if t.oldestInJournal() > before {
		t.set.dead.Store(true) // chunks that only the journal had
	}
	if err != nil {
		return fmt.Errorf("trim the journal of %s: %w", t.Name(), err)
	}
	if err := t.expireCheckpoints(ctx); err != nil {
		return err
	}
	return t.dropGaps(t.oldestInJournal())
}

// dispensable returns the position up to which only history needs the journal. The caller holds facts.
func (t *Timeline) dispensable() tidemark.Position {
	upTo := t.state.Base
	for _, p := range t.pins {
		upTo = min(upTo, p)
	}
	return upTo
}

// pastByTime returns the position before which nothing is needed for points of the last w.For: that of the image which the
// oldest of them is made from. The caller holds facts.
func (t *Timeline) pastByTime(w Window) (pos tidemark.Position) {
	if w.For == 0 {
		return 0
	}
	start := t.aged(w.For)
	if i := t.firstPointFrom(start + 1); i > 0 {
		pos = t.points[i-1].Position
	}
	if t.state.Base <= start {
		pos = max(pos, t.state.Base)
	}
	return pos
}

// pastBySize returns the position before which the journal has more than w.Bytes of history. It waits until all of
// it is packed, which changes its size, unless that fails. The caller holds facts.
func (t *Timeline) pastBySize(w Window) tidemark.Position {
	if w.Bytes == 0 || !t.raw && t.journal.Raw(uint64(t.state.Base)) {
		return 0
	}
	bytes := int64(0)
	for _, s := range slices.Backward(t.journal.Segments()) {
		if tidemark.Position(s.LastPos) > t.state.Base {
			continue
		}
		if bytes += s.Bytes; bytes > w.Bytes {
			return t.usefulFrom(tidemark.Position(s.LastPos))
		}
	}
	return 0
}

// usefulFrom returns the first position at or behind pos from which points can be made if the journal has
// nothing before pos: that of an image. The caller holds facts.
func (t *Timeline) usefulFrom(pos tidemark.Position) tidemark.Position {
	if i := t.firstPointFrom(pos); i < len(t.points) {
		return t.points[i].Position
	}
	return max(pos, t.state.Base)
}

// expireCheckpoints removes images made only to keep the window quick to open, once the window has passed them.
func (t *Timeline) expireCheckpoints(ctx context.Context) error {
	oldest := t.oldestInJournal()
	t.facts.Lock()
	defer t.facts.Unlock()
	var gone []tidemark.Position
	before := t.points[:t.firstPointFrom(oldest+1)]
	for i, m := range before { // but for the last, which what comes behind may be made from
		if m.Mark == nil && i < len(before)-1 {
			gone = append(gone, m.Position)
		}
	}
	for _, pos := range gone {
		if err := t.deleteImage(ctx, pos); err != nil {
			return err
		}
	}
	return nil
}

// JournalBytes returns the bytes that the timeline's journal takes, here and in the pool.
func (t *Timeline) JournalBytes() (n int64) {
	for _, s := range t.journal.Segments() {
		n += s.Bytes
	}
	return n
}

// ArchivedBytes returns how many of [Timeline.JournalBytes] are in the pool.
func (t *Timeline) ArchivedBytes() (n int64) {
	for _, s := range t.journal.Segments() {
		if s.Archived {
			n += s.Bytes
		}
	}
	return n
}
