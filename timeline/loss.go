package timeline

import (
	"fmt"
	"time"

	"tidemark"
)

const (
	tellEvery = time.Minute    // how often a timeline's loss is told while it goes on
	lossLasts = 24 * time.Hour // for how long a loss is shown of a window that is not bounded by time
)

// Loss is history that was given up because the disk ran out of space: no point between From and To can be had but bookmarks.
type Loss struct {
	From  time.Time     `json:"from"`
	To    time.Time     `json:"to"`
	Bytes int64         `json:"bytes"` // of journal
	At    time.Time     `json:"at"`    // when the last of it went
	Ran   time.Duration `json:"ran"`   // for how long the timeline had been served by then
}

// add joins what is lost to what was lost before it.
func (l *Loss) add(next Loss) *Loss {
	if l != nil {
		next.From, next.Bytes = l.From, l.Bytes+next.Bytes
	}
	return &next
}

// noteLoss notes what was given up, durably, for it is to be told even if we end here.
func (t *Timeline) noteLoss(l Loss) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	l.Ran = t.Ran()
	if t.lossOver() {
		t.state.Lost = nil
	}
	t.state.Lost, t.state.Untold = t.state.Lost.add(l), t.state.Untold.add(l)
	return t.saveState()
}

// lossOver reports that the window is as long again as it would be without the last loss. The caller holds facts.
func (t *Timeline) lossOver() bool {
	lasts := t.state.Window.For
	if lasts == 0 {
		lasts = lossLasts
	}
	return t.state.Lost == nil || t.Ran()-t.state.Lost.Ran >= lasts
}

// Lost returns the history that was given up for space, as long as the window is shorter for it; nil if none was.
func (t *Timeline) Lost() *Loss {
	t.facts.Lock()
	defer t.facts.Unlock()
	if t.lossOver() {
		return nil
	}
	l := *t.state.Lost
	return &l
}

// anyTime is the time from which on any point can be had.
func (t *Timeline) anyTime() time.Time {
	t.facts.Lock()
	from := t.desc.Created
	t.facts.Unlock()
	segments := t.journal.Segments()
	if after := fromNano(segments[0].After); after.After(from) {
		from = after
	}
	if pos := t.anyPoint(); pos > tidemark.Position(segments[0].FirstPos-1) {
		if at, err := t.TimeAt(pos); err == nil {
			return at
		}
	}
	return from
}

// tellLosses tells what history was given up: at once, and while that goes on, now and then.
func (s *Set) tellLosses(all bool) {
	for _, t := range s.List() {
		t.facts.Lock()
		l, name := t.state.Untold, t.desc.Name
		tell := l != nil && (all || time.Since(t.toldLoss) >= tellEvery)
		t.facts.Unlock()
		if tell && s.notify("error", name, lossMessage(name, l)) {
			t.toldOf(l)
		}
	}
}

func lossMessage(name string, l *Loss) string {
	const form = "2006-01-02T15:04:05Z07:00"
	return fmt.Sprintf("the disk ran out of space: the points of %s between %s and %s were given up (%s of journal), but for bookmarks; make room, or set a shorter window",
		name, l.From.Local().Format(form), l.To.Local().Format(form), tidemark.FormatSize(l.Bytes))
}

// toldOf notes that a loss was told. What was lost meanwhile is told the next time.
func (t *Timeline) toldOf(l *Loss) {
	t.facts.Lock()
	defer t.facts.Unlock()
	t.toldLoss = time.Now()
	if rest := t.state.Untold; rest == l {
		t.state.Untold = nil
	} else if rest != nil {
		rest.From, rest.Bytes = l.To, rest.Bytes-l.Bytes
	}
	if err := t.saveState(); err != nil {
		t.set.o.Logger.Error("a loss that was told may be told again", "timeline", t.desc.Name, "error", err)
	}
}

// notify tells an operator something. It reports whether that is on record.
func (s *Set) notify(level, timeline, message string) bool {
	if err := s.o.Notify(level, timeline, message); err != nil {
		s.o.Logger.Error(message, "timeline", timeline, "level", level, "not recorded", err)
		return false
	}
	return true
}
