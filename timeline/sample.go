package timeline

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"tidemark"
	"tidemark/capture"
)

// ErrDiffers: a disk is not what its source has, though nothing was lost on the way.
var ErrDiffers = errors.New("the disk is not what the timeline has")

// noStream is the name of a stream that nobody has: what is open next follows nothing that is known.
const noStream = "none"

// Sample compares a place of a disk with what its source has there, as of the changes that were applied. If it is not the
// same, or is damaged here, a gap begins, the stream is forgotten, so that its source sends everything anew,
// and the error wraps [ErrDiffers]. In a gap nothing is compared.
func (f *Feed) Sample(s capture.Sample) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if f.t.Lacks() {
		return nil
	}
	why, err := f.t.differs(&s)
	if err != nil || why == "" {
		return err
	}
	if f.err = f.t.distrust(why); f.err == nil {
		f.err = fmt.Errorf("%w: %s", ErrDiffers, why)
	}
	return f.err
}

// differs compares a sample, and says what is wrong, if something is.
func (t *Timeline) differs(s *capture.Sample) (why string, err error) {
	if int(s.Disk) >= len(t.disks) {
		return "", fmt.Errorf("%w: a sample of disk %d of %s, which has %d", capture.ErrChange, s.Disk, t.Name(), len(t.disks))
	}
	d := t.disks[s.Disk]
	if err := s.Check(d.size); err != nil {
		return "", err
	}
	data := make([]byte, s.Len)
	_, err = d.ReadAt(data, s.Off)
	if err != nil {
		damaged, merr := t.set.store.Doubt(err)
		if damaged && merr == nil {
			return fmt.Sprintf("%d bytes at %d of disk %s cannot be read from the pool: %v", s.Len, s.Off, d.name, err), nil
		}
		if !t.unread.Swap(true) { // that says nothing of what is there
			t.set.o.Logger.Error("a disk cannot be compared with its source", "timeline", t.Name(), "error", errors.Join(err, merr))
		}
		return "", nil
	}
	t.unread.Store(false)
	if sha256.Sum256(data) != s.Sum {
		return fmt.Sprintf("within %d bytes at %d disk %s is not what the timeline has: it was written past its tap at an unknown time, or the journal is damaged", s.Len, s.Off, d.name), nil
	}
	return "", nil
}

// distrust begins a gap, and forgets which stream the timeline had, as if it had none of it. Both are there or neither is: a gap alone
// would be ended by a source that knows of nothing to send.
func (t *Timeline) distrust(why string) error {
	if err := t.journal.Sync(); err != nil { // the position may not come again
		return t.writeError("note a gap", err)
	}
	head, last := t.Head()
	t.facts.Lock()
	defer t.facts.Unlock()
	old, gaps := t.state.Feed, t.state.Gaps
	t.state.Feed.ID = noStream
	g := Gap{From: head, Start: last.UTC(), Why: why}
	begins := t.state.openGap() == nil
	if begins {
		t.state.Gaps = append(slices.Clip(gaps), g)
	}
	if err := t.saveState(); err != nil {
		t.state.Feed, t.state.Gaps = old, gaps
		return err
	}
	if begins {
		t.tellGap(tidemark.GapBegun, g)
	}
	return nil
}
