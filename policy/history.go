package policy

import (
	"slices"
	"time"

	"tidemark"
)

// RunState is how a run of a policy went.
type RunState string

// The states of a run. One that somebody cancelled has failed: it did not do what was promised.
const (
	RunDone    RunState = "done"
	RunFailed  RunState = "failed"
	RunRunning RunState = "running"
)

// Run is one attempt to do what a policy asks.
type Run struct {
	Policy   Policy    `json:"policy"`
	State    RunState  `json:"state"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"` // zero while it runs
	Error    string    `json:"error,omitempty"`   // one line, of a failed one
}

// Point is a recoverable point. One that is known to be damaged is none, and must not be among them.
type Point struct {
	Position tidemark.Position `json:"position"`
	Time     time.Time         `json:"time"`
	Bookmark string            `json:"bookmark,omitempty"`
	AppShot  bool              `json:"appshot,omitempty"`    // made by the appshot policy
	Held     bool              `json:"held,omitempty"`       // somebody, or something that needs it, holds it
	Verified time.Time         `json:"verified_at,omitzero"` // when it was last proved good; zero: never
}

// Recovery is a recovery whose time was measured: a mount, clone, restore or verify by a probe.
type Recovery struct {
	Finished time.Time `json:"finished"`
	Took     Duration  `json:"took"` // from the request until the application could be used, rounded up to seconds
}

// History is what was done for one application. Lists are in any order. A caller need not
// give runs from before the last successful one of each policy, but for the worst RPO of a period.
type History struct {
	Application string `json:"application"`
	// Since is when the application got the template. Calendar times before it are not owed. Zero: unknown.
	Since time.Time `json:"since,omitzero"`
	// Resumed is when runs became possible again: the start of the server, the end of a pause or
	// outage, or the moment at which the clock was found to have jumped. What was missed
	// before is caught up from there on, once, spread as [Template.Spread] says.
	Resumed time.Time `json:"resumed,omitzero"`
	// From is the begin of the period of which [Judge] tells the worst. Zero: Since.
	From       time.Time  `json:"from,omitzero"`
	Runs       []Run      `json:"runs,omitempty"`
	Points     []Point    `json:"points,omitempty"`
	Recoveries []Recovery `json:"recoveries,omitempty"`
	// Covered are the stretches any point of which can be had, by a journal or a log; an
	// end of zero lasts. Gaps are what is missing in them, and why.
	Covered []tidemark.Interval `json:"covered,omitempty"`
	Gaps    []tidemark.Interval `json:"gaps,omitempty"`
}

// coverage is Covered without Gaps, up to now, in order of time.
func (h History) coverage(now time.Time) []stretch {
	var list []stretch
	for _, c := range h.Covered {
		list = append(list, clip(c, now)...)
	}
	for _, g := range h.Gaps {
		for _, cut := range clip(g, now) {
			list = without(list, cut)
		}
	}
	slices.SortFunc(list, func(a, b stretch) int { return a.from.Compare(b.from) })
	return list
}

// received is how far the log is there without a gap behind it; zero if none is.
func (h History) received(now time.Time) (end time.Time) {
	for _, s := range h.coverage(now) {
		end = later(end, s.to)
	}
	return end
}

// stretch is time from..to, both of it.
type stretch struct{ from, to time.Time }

// clip is an interval up to now, or nothing.
func clip(i tidemark.Interval, now time.Time) []stretch {
	s := stretch{i.From, i.To}
	if s.to.IsZero() || s.to.After(now) {
		s.to = now
	}
	if s.to.Before(s.from) {
		return nil
	}
	return []stretch{s}
}

// without takes a stretch out of others. The moments at its ends stay.
func without(list []stretch, cut stretch) (rest []stretch) {
	for _, s := range list {
		if !cut.from.Before(s.to) || !s.from.Before(cut.to) {
			rest = append(rest, s)
			continue
		}
		if s.from.Before(cut.from) {
			rest = append(rest, stretch{s.from, cut.from})
		}
		if cut.to.Before(s.to) {
			rest = append(rest, stretch{cut.to, s.to})
		}
	}
	return rest
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
