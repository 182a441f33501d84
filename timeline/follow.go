package timeline

import (
	"fmt"
	"time"

	"tidemark"
)

// What follows is for disks that follow a source of their own, and that somebody writes by their
// [Disk]: whoever does says with it when they do not follow. A [Feed] has methods of its own for that.

// Lose notes that the disks do not follow their source: since a time in Unix nanoseconds at which they did, or, if
// that is 0, since the last record. What was written later than that lies in the gap, and so does what is written from now
// on, until Whole. It is durable when Lose returns. If a gap is open already, Lose does nothing.
func (t *Timeline) Lose(since int64, why string) error {
	head, last := t.Head()
	if since == 0 || since >= last.UnixNano() {
		return t.openGap(since, why)
	}
	at, err := t.journal.At(since)
	if err != nil {
		return err
	}
	pos := min(head, tidemark.Position(at))
	return t.addGapAt(max(pos, t.oldestInJournal()), time.Unix(0, since), why)
}

// Whole notes that the disks are again what their source has, and the anchor with it; all that was written
// before is durable when Whole returns.
func (t *Timeline) Whole(anchor string) error {
	g := t.openGapOf()
	switch {
	case g == nil:
		return t.SetAnchor(anchor)
	case g.Rewrite:
		return fmt.Errorf("%s: %w", t.Name(), ErrRewriting)
	}
	return t.closeGapWith(anchor)
}

// Anchor returns what was noted last by Whole or SetAnchor: a word of the source's own, by which it
// finds what the disks may lack. It is empty if nothing is known, as after the loss of the state.
func (t *Timeline) Anchor() string {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.state.Anchor
}

// SetAnchor makes durable what was written before, and then the anchor.
func (t *Timeline) SetAnchor(anchor string) error {
	if err := t.journal.Sync(); err != nil {
		return t.writeError("note an anchor", err)
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state.Anchor
	t.state.Anchor = anchor
	if err := t.saveState(); err != nil {
		t.state.Anchor = old
		return err
	}
	return nil
}
