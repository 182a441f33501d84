package journal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sort"

	"tidemark/internal/vfs"
)

// Scan calls fn for every record in (after, upTo], in order, until it fails.
// The record is valid only during the call. Its payload is set only for bookmarks and
// references; other payloads are at the place. It fails if the journal no
// longer holds all of the records.
func (j *Journal) Scan(after, upTo uint64, fn func(*Record, Place) error) error {
	segments, err := j.covering(after, upTo)
	if err != nil {
		return err
	}
	defer releaseAll(segments)
	for _, s := range segments {
		if err := s.scan(after, upTo, fn); err != nil {
			return err
		}
	}
	return nil
}

// covering returns the segments that hold (after, upTo], each acquired.
func (j *Journal) covering(after, upTo uint64) ([]*Segment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if upTo = min(upTo, j.pos); after >= upTo {
		return nil, nil
	}
	if first := j.segments[0].head.firstPos; after+1 < first {
		return nil, fmt.Errorf("the journal begins at position %d: %d is not in it any more", first, after+1)
	}
	var list []*Segment
	for _, s := range j.segments {
		if s.lastPos > after && s.head.firstPos <= upTo && s.lastPos >= s.head.firstPos {
			s.Acquire()
			list = append(list, s)
		}
	}
	return list, nil
}

func releaseAll(segments []*Segment) {
	for _, s := range segments {
		s.Release()
	}
}

// within returns the range of entries that lie in (after, upTo].
func (s *Segment) within(entries []entry, after, upTo uint64) (from, to int) {
	first := s.head.firstPos
	if after >= first {
		from = int(after - first + 1)
	}
	to = len(entries)
	if upTo < first+uint64(to)-1 {
		to = int(upTo - first + 1)
	}
	return min(from, to), to
}

func (s *Segment) scan(after, upTo uint64, fn func(*Record, Place) error) error {
	entries, err := s.index()
	if err != nil {
		return err
	}
	from, to := s.within(entries, after, upTo)
	for i := from; i < to; i++ {
		e := &entries[i]
		r := s.recordAt(e, i)
		if (e.kind == Bookmark || e.kind == Reference) && e.size > 0 {
			if err := s.verify(entries, i, i+1); err != nil {
				return err
			}
			r.Payload = make([]byte, e.size)
			if err := s.ReadAt(r.Payload, e.at+headerSize); err != nil {
				return err
			}
		}
		if err := fn(&r, Place{Segment: s, Off: e.at + headerSize}); err != nil {
			return err
		}
	}
	return nil
}

// Verify reads the records in (after, upTo] and compares their checksums. An
// error that wraps [ErrCorrupt] names the damaged position.
func (j *Journal) Verify(after, upTo uint64) error {
	segments, err := j.covering(after, upTo)
	if err != nil {
		return err
	}
	defer releaseAll(segments)
	for _, s := range segments {
		entries, err := s.index()
		if err != nil {
			return err
		}
		from, to := s.within(entries, after, upTo)
		if err := s.verify(entries, from, to); err != nil {
			return err
		}
	}
	return nil
}

// At returns the position of the newest record whose time is not after t (Unix
// nanoseconds). It is the position before the journal's first record if all are later.
//
// The answer stays true: whatever is appended from now on is later than t, wherever the clock is set. So t should not
// lie in the future.
func (j *Journal) At(t int64) (uint64, error) {
	j.mu.Lock()
	j.told = max(j.told, t)
	segments := slices.Clone(j.segments)
	for _, s := range segments {
		s.Acquire()
	}
	j.mu.Unlock()
	defer releaseAll(segments)
	for _, s := range slices.Backward(segments) {
		if s.head.after >= t {
			continue
		}
		entries, err := s.index()
		if err != nil {
			return 0, err
		}
		if n := sort.Search(len(entries), func(i int) bool { return entries[i].time > t }); n > 0 {
			return s.head.firstPos + uint64(n) - 1, nil
		}
	}
	return segments[0].head.firstPos - 1, nil
}

// Told returns the newest time that At was asked for, in Unix nanoseconds, or 0 if the newest record is later.
func (j *Journal) Told() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.told <= j.time {
		return 0
	}
	return j.told
}

// Segments describes the segments, oldest first. There is always one.
func (j *Journal) Segments() []SegmentInfo {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([]SegmentInfo, 0, len(j.segments))
	for _, s := range j.segments {
		list = append(list, SegmentInfo{Number: s.head.number, FirstPos: s.head.firstPos, LastPos: s.lastPos,
			After: s.head.after, Last: s.last, Bytes: s.size(), Sealed: s.sealed.Load(), Archived: s.away, Missing: s.lost})
	}
	return list
}

// size is what the segment's records take on disk. The caller holds the journal's mu.
func (s *Segment) size() int64 {
	if s.packed > 0 {
		return s.packed
	}
	return s.end
}

// trimRoll is how large the last segment must be for Trim or Rewrite to end it early.
const trimRoll = 1 << 20

// Trim forgets whole segments whose records are all at or before upTo. Held
// segments stay readable for their holders, but for those that are archived. One that is being archived just now stays, and all behind it.
func (j *Journal) Trim(ctx context.Context, upTo uint64) error {
	// What can go goes first: on a full disk a segment is ended with the room that this makes.
	if err := j.removeUpTo(ctx, upTo); err != nil {
		return err
	}
	if err := j.endEarly(upTo); err != nil {
		return err
	}
	return j.removeUpTo(ctx, upTo)
}

// endEarly ends the last segment where that is worth it.
func (j *Journal) endEarly(upTo uint64) error {
	j.mu.Lock()
	early := j.endsEarly(upTo)
	j.mu.Unlock()
	if !early {
		return nil
	}
	return j.End()
}

// endsEarly reports whether the last segment's records are all at or before upTo, and many. The caller holds mu.
func (j *Journal) endsEarly(upTo uint64) bool {
	last := j.segments[len(j.segments)-1]
	return last.lastPos <= upTo && last.end > trimRoll && j.err == nil
}

// End ends the last segment, so that it can go when its records can, whatever is written afterwards; one without records stays. The next is
// there, durably: the old one's end is told by the new one's header.
func (j *Journal) End() error {
	if err := j.endLast(); err != nil {
		return err
	}
	return j.Sync()
}

func (j *Journal) endLast() error {
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	last := j.segments[len(j.segments)-1]
	for last == j.segments[len(j.segments)-1] && len(last.entries) > 0 { // others may append before it is done
		j.mu.Unlock()
		err := j.roll()
		j.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Straddled looks at the segment that has records both at or before a position and behind it. It returns how many bytes of it
// are of the former, and how many all records behind the position take, there and in later segments. Both are 0 if there is no such segment.
func (j *Journal) Straddled(pos uint64) (before, behind int64, err error) {
	segments, err := j.covering(pos, math.MaxUint64)
	if err != nil {
		return 0, 0, err
	}
	defer releaseAll(segments)
	if len(segments) == 0 || segments[0].head.firstPos > pos {
		return 0, 0, nil
	}
	entries, err := segments[0].index()
	if err != nil {
		return 0, 0, err
	}
	next, _ := segments[0].within(entries, pos, math.MaxUint64)
	before = int64(entries[next].at)
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, s := range segments {
		behind += s.size()
	}
	return before, behind - before, nil
}

// removeUpTo removes segments one by one, the oldest first, each durably before
// the next: what a crash or an error leaves is always without a gap.
func (j *Journal) removeUpTo(ctx context.Context, upTo uint64) error {
	j.trim.Lock()
	defer j.trim.Unlock()
	for {
		s := j.oldestUpTo(upTo)
		if s == nil {
			return nil
		}
		if err := j.removeSegment(ctx, s); err != nil {
			return fmt.Errorf("trim the journal: %w", err)
		}
		j.forget(s)
	}
}

// removeSegment removes the oldest segment. What the archive may have of it goes first: what is there below the oldest
// file in the directory counts as archived.
func (j *Journal) removeSegment(ctx context.Context, s *Segment) error {
	if err := j.unarchive(ctx, s); err != nil {
		return err
	}
	j.mu.Lock()
	away := s.away
	j.mu.Unlock()
	if away {
		return nil
	}
	if err := j.fs.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return vfs.SyncDir(j.fs, j.dir)
}

// oldestUpTo returns the oldest segment, if all its records are at or before upTo.
func (j *Journal) oldestUpTo(upTo uint64) *Segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if s := j.segments[0]; len(j.segments) > 1 && s.lastPos <= upTo && !s.moving {
		return s
	}
	return nil
}

// forget takes a segment whose file is gone out of the list.
func (j *Journal) forget(s *Segment) {
	j.mu.Lock()
	j.segments = slices.DeleteFunc(j.segments, func(o *Segment) bool { return o == s })
	j.unsynced = slices.DeleteFunc(j.unsynced, func(u *Segment) bool { return u == s })
	j.mu.Unlock()
	j.lingering.Add(1)
	s.lingers.Store(true)
	s.Release()
}

// Lingering returns how many trimmed segments take space because somebody holds them.
func (j *Journal) Lingering() int { return int(j.lingering.Load()) }
