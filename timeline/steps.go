package timeline

import (
	"fmt"
	"time"

	"tidemark"
	"tidemark/journal"
)

// Steps is where in a stretch of a timeline its disks became other than they were, and can be had: every write that
// the journal has, every retained point before that, and the first point behind each gap.
type Steps struct {
	t    *Timeline
	disk int // -1: all
	// any is the position from which on any point can be had.
	any tidemark.Position
	// List is the steps, oldest first.
	List []tidemark.Position
}

// Steps returns those behind after, up to and with upTo, of one disk or, with an empty name, of all.
func (t *Timeline) Steps(disk string, after, upTo tidemark.Position) (*Steps, error) {
	s := &Steps{t: t, disk: -1}
	if disk != "" {
		var err error
		if s.disk, err = t.diskIndex(disk); err != nil {
			return nil, err
		}
	}
	for _, pos := range []tidemark.Position{after, upTo} {
		if err := t.hasPoint(pos); err != nil {
			return nil, err
		}
	}
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	s.any = t.anyPoint()
	s.addPoints(after, upTo)
	return s, s.addRecords(max(after, s.any), upTo)
}

// anyPoint returns the position from which on any point can be had: the oldest image that the journal leads on from.
func (t *Timeline) anyPoint() tidemark.Position {
	oldest := t.oldestInJournal()
	t.facts.Lock()
	defer t.facts.Unlock()
	if i := t.firstPointFrom(oldest); i < len(t.points) {
		return min(t.state.Base, t.points[i].Position)
	}
	return t.state.Base
}

// addPoints adds the images up to the place from which on any point can be had.
func (s *Steps) addPoints(after, upTo tidemark.Position) {
	s.t.facts.Lock()
	defer s.t.facts.Unlock()
	upTo = min(upTo, s.any)
	for _, m := range s.t.points[s.t.firstPointFrom(after+1):] {
		if m.Position > upTo {
			break
		}
		if s.t.inGap(m.Position) == nil {
			s.List = append(s.List, m.Position)
		}
	}
	if n := len(s.List); s.any > after && s.any <= upTo && (n == 0 || s.List[n-1] < s.any) && s.t.inGap(s.any) == nil {
		s.List = append(s.List, s.any)
	}
}

// addRecords adds the writes of the journal in (after, upTo] that do not lie in gaps, and what is first behind those.
func (s *Steps) addRecords(after, upTo tidemark.Position) error {
	gaps := s.t.Gaps()
	err := s.t.journal.Scan(uint64(after), uint64(upTo), func(r *journal.Record, _ journal.Place) error {
		pos := tidemark.Position(r.Pos)
		for len(gaps) > 0 && gaps[0].To != 0 && gaps[0].To < pos {
			gaps = gaps[1:]
		}
		inside, behind := around(gaps, pos)
		if !inside && (behind || s.writes(r)) {
			s.List = append(s.List, pos)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the journal of %s: %w", s.t.Name(), err)
	}
	return nil
}

// around reports whether a position lies inside a gap, and whether one ends there; gaps are in order of where they begin, and may overlap.
func around(gaps []Gap, pos tidemark.Position) (inside, behind bool) {
	for i := range gaps {
		if gaps[i].From >= pos {
			break
		}
		inside = inside || gaps[i].within(pos)
		behind = behind || gaps[i].To == pos
	}
	return inside, behind
}

// writes reports whether a record changes what is looked at.
func (s *Steps) writes(r *journal.Record) bool {
	return r.Kind != journal.Bookmark && (s.disk < 0 || int(r.Disk) == s.disk)
}

// Write returns what was written between after and pos, the step behind it, if that was one write.
func (s *Steps) Write(after, pos tidemark.Position) (w *tidemark.DiffExtent, err error) {
	if after < s.any {
		return nil, nil
	}
	err = s.t.journal.Scan(uint64(pos)-1, uint64(pos), func(r *journal.Record, _ journal.Place) error {
		if s.writes(r) {
			d := s.t.disks[r.Disk]
			w = &tidemark.DiffExtent{Disk: d.name, Off: r.Off, Len: min(r.Len, d.size-r.Off)}
		}
		return nil
	})
	return w, err
}

// TimeAt returns when a timeline was at a position: the time of the record there, or of the retained point.
func (t *Timeline) TimeAt(pos tidemark.Position) (at time.Time, err error) {
	t.facts.Lock()
	if i := t.firstPointFrom(pos); i < len(t.points) && t.points[i].Position == pos {
		at = t.points[i].Time
	}
	created := t.desc.Created
	t.facts.Unlock()
	if !at.IsZero() {
		return at, nil
	}
	if segments := t.journal.Segments(); len(segments) > 0 && uint64(pos)+1 == segments[0].FirstPos {
		if after := fromNano(segments[0].After); after.After(created) {
			return after, nil
		}
	}
	if pos <= t.oldestInJournal() {
		return created, nil // where a branch begins
	}
	err = t.journal.Scan(uint64(pos)-1, uint64(pos), func(r *journal.Record, _ journal.Place) error {
		at = time.Unix(0, r.Time).UTC()
		return nil
	})
	if err != nil {
		return at, fmt.Errorf("read the journal of %s: %w", t.Name(), err)
	}
	return at, nil
}
