package timeline

import (
	"fmt"
	"time"

	"tidemark"
	"tidemark/journal"
)

// TimeAt returns when a timeline was at a position: the time of the record there, or of the retained point.
func (t *Timeline) TimeAt(pos tidemark.Position) (at time.Time, err error) {
	t.facts.Lock()
	for _, m := range t.points {
		if m.Position == pos {
			at = m.Time
		}
	}
	created := t.desc.Created
	t.facts.Unlock()
	if !at.IsZero() {
		return at, nil
	}
	if pos <= t.oldestInJournal() {
		return created, nil // the point that a branch begins at
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
