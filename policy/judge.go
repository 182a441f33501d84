package policy

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"time"
)

// State is how a promise is kept, the worst first.
type State string

// The states of compliance.
const (
	Unprotected State = "unprotected" // there is no moment that could be recovered
	Violated    State = "violated"    // the RPO or the RTO is not kept now
	Late        State = "late"        // both are kept, but a policy is behind its schedule
	OK          State = "ok"
)

// Compliance is whether what a template promises to an application is kept.
type Compliance struct {
	Application string    `json:"application"`
	Template    string    `json:"template"`
	Group       string    `json:"group,omitempty"` // by which it has the template; empty: it is its own
	Profile     string    `json:"profile,omitempty"`
	State       State     `json:"state"`
	Judged      time.Time `json:"judged"`
	// Newest is the newest moment that could be recovered; zero: there is none.
	Newest time.Time `json:"newest,omitzero"`
	// RPO measures the age of the newest recoverable moment; RTO how long the newest measured recovery took.
	RPO Objective `json:"rpo"`
	RTO Objective `json:"rto"`
	// Overdue are the policies that are late, in the order of [Next], then cdp and log.
	Overdue []Overdue `json:"overdue,omitempty"`
	// Reasons say why State is not ok, one line each.
	Reasons []string `json:"reasons,omitempty"`
}

// Objective is a promise and what was measured of it. Measured times are rounded up to seconds.
type Objective struct {
	Promised Duration  `json:"promised,omitzero"`  // 0: not promised
	Measured *Duration `json:"measured,omitempty"` // nil: nothing was measured
	// Worst is the worst of the period from History.From on, and WorstAt when it ended.
	Worst   *Duration `json:"worst,omitempty"`
	WorstAt time.Time `json:"worst_at,omitzero"`
}

// Kept reports whether what was measured last is what was promised, or nothing was promised or measured.
func (o Objective) Kept() bool {
	return o.Promised == 0 || o.Measured == nil || *o.Measured <= o.Promised
}

// Overdue is a policy that is behind its schedule.
type Overdue struct {
	Policy Policy    `json:"policy"`
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// Judge says whether what t promises is kept at now, and how well it was kept before.
func Judge(t Template, h History, now time.Time) Compliance {
	c := Assess(t, h, now)
	c.RPO.Worst, c.RPO.WorstAt = h.worst(now)
	if m := c.RPO.Measured; m != nil && (c.RPO.Worst == nil || *m > *c.RPO.Worst) {
		c.RPO.Worst, c.RPO.WorstAt = m, now // points that there were are gone
	}
	return c
}

// Assess is [Judge] without the worst RPO of the period, which takes longest: for who asks often.
func Assess(t Template, h History, now time.Time) Compliance {
	c := Compliance{Application: h.Application, Template: t.Name, State: OK, Judged: now}
	c.RPO.Promised, c.RTO.Promised = t.RPO, t.RTO
	c.Newest = h.newest(now)
	if !c.Newest.IsZero() {
		c.RPO.Measured = seconds(now.Sub(c.Newest))
	}
	c.recoveries(h, now)
	c.Overdue = overdue(t, h, now)
	c.conclude()
	return c
}

// conclude chooses the state and says why.
func (c *Compliance) conclude() {
	say := func(s State, format string, args ...any) {
		c.Reasons = append(c.Reasons, fmt.Sprintf(format, args...))
		if rank(s) < rank(c.State) {
			c.State = s
		}
	}
	if c.Newest.IsZero() {
		say(Unprotected, "there is no moment that could be recovered")
	}
	if !c.RPO.Kept() {
		say(Violated, "rpo: the newest recoverable moment is %v old, and %v was promised", *c.RPO.Measured, c.RPO.Promised)
	}
	if !c.RTO.Kept() {
		say(Violated, "rto: the newest recovery took %v, and %v was promised", *c.RTO.Measured, c.RTO.Promised)
	}
	for _, o := range c.Overdue {
		say(Late, "%s: since %s: %s", o.Policy, o.Since.UTC().Format(time.RFC3339), o.Why)
	}
}

// Worse reports whether a state is worse than another.
func (s State) Worse(than State) bool { return rank(s) < rank(than) }

func rank(s State) int { return slices.Index(States(), s) }

// States are all states, the worst first.
func States() []State { return []State{Unprotected, Violated, Late, OK} }

// seconds is a measured time, rounded up, and never below zero.
func seconds(d time.Duration) *Duration {
	s := Duration(max(0, (d + time.Second - 1).Truncate(time.Second)))
	return &s
}

// newest is the newest recoverable moment that is not after now. When a point was made that is of a time to come, because the clock was set back, is
// not known: the newest run says it, and if there is none it counts as made now.
func (h History) newest(now time.Time) (newest time.Time) {
	ahead := false
	for _, p := range h.Points {
		if p.Time.After(now.Add(clockSlack)) {
			ahead = true
			continue
		}
		newest = later(newest, earlier(p.Time, now))
	}
	if ahead {
		newest = later(newest, h.made(now))
	}
	for _, s := range h.coverage(now) {
		newest = later(newest, s.to)
	}
	return newest
}

// clockSlack is how far points may be ahead of the clock without its having been set: those of other hosts are.
const clockSlack = time.Minute

// made is the begin of the newest run that has made a point, or now if none is known.
func (h History) made(now time.Time) (newest time.Time) {
	for _, r := range h.Runs {
		if r.makesPoint() && !r.Finished.After(now) {
			newest = later(newest, r.Started)
		}
	}
	if newest.IsZero() {
		return now
	}
	return newest
}

// makesPoint reports whether a run has made a point as of its begin.
func (r Run) makesPoint() bool {
	return (r.Policy == PolicyCapture || r.Policy == PolicyAppShot) && r.State == RunDone && !r.Finished.Before(r.Started)
}

// moment is a recoverable stretch that was there from an instant on.
type moment struct {
	known time.Time
	stretch
}

// moments are the points, the any-point stretches, and the captures that were made: their points may have been forgotten since.
func (h History) moments(now time.Time) (list []moment) {
	add := func(known, from, to time.Time) {
		if !known.After(now) {
			list = append(list, moment{known, stretch{from, to}})
		}
	}
	for _, p := range h.Points {
		add(p.Time, p.Time, p.Time)
	}
	for _, s := range h.coverage(now) {
		add(s.from, s.from, s.to)
	}
	for _, r := range h.Runs {
		if r.makesPoint() {
			add(r.Finished, r.Started, r.Started)
		}
	}
	slices.SortFunc(list, func(a, b moment) int { return cmp.Or(a.known.Compare(b.known), b.to.Compare(a.to)) })
	return list
}

// worst is how old the newest recoverable moment ever got from From to now, and when that was. Nil if nothing can be told.
func (h History) worst(now time.Time) (*Duration, time.Time) {
	begin := h.From
	if begin.IsZero() {
		begin = h.Since
	}
	list := h.moments(now)
	if begin.IsZero() && len(list) > 0 {
		begin = list[0].known
	}
	if begin.IsZero() || begin.After(now) {
		return nil, time.Time{}
	}
	// Before the first moment everything since the promise was made could be lost.
	newest := begin
	switch {
	case len(list) > 0 && list[0].known.Before(begin):
		newest = list[0].from
	case !h.Since.IsZero() && h.Since.Before(begin):
		newest = h.Since
	}
	var worst time.Duration
	at := begin
	expose := func(t time.Time) { // just before t
		if age := t.Sub(newest); !t.Before(begin) && age > worst {
			worst, at = age, t
		}
	}
	for _, m := range list {
		expose(m.known)
		newest = later(newest, m.to)
	}
	expose(now)
	return seconds(worst), at
}

// recoveries fills the RTO.
func (c *Compliance) recoveries(h History, now time.Time) {
	begin := later(h.From, h.Since)
	var newest time.Time
	for _, r := range h.Recoveries {
		if r.Finished.After(now) {
			continue
		}
		took := r.Took
		if c.RTO.Measured == nil || r.Finished.After(newest) {
			newest, c.RTO.Measured = r.Finished, &took
		}
		if !r.Finished.Before(begin) && (c.RTO.Worst == nil || took > *c.RTO.Worst) {
			c.RTO.Worst, c.RTO.WorstAt = &took, r.Finished
		}
	}
}

// overdue lists what is behind its schedule by more than may be.
func overdue(t Template, h History, now time.Time) (list []Overdue) {
	for _, due := range Next(t, h, now) {
		if due.Policy != PolicyLog && now.After(due.Promised.Add(t.grace(due.Policy))) {
			list = append(list, Overdue{due.Policy, due.Promised, h.why(due, now)})
		}
	}
	if t.CDP != nil {
		list = append(list, h.uncovered(*t.CDP, now)...)
	}
	if t.Log != nil {
		list = append(list, h.unlogged(t, now)...)
	}
	return list
}

// grace is how long after its time a policy is not yet late: the spread, and some minutes to begin and to end, at most an interval.
func (t Template) grace(p Policy) time.Duration {
	period := day
	switch {
	case p == PolicyCapture && t.Capture.Every != 0:
		period = time.Duration(t.Capture.Every)
	case p == PolicyAppShot:
		period = time.Duration(t.AppShot.Every)
	case p == PolicyLog:
		period = time.Duration(t.Log.Every)
	case p == PolicyVerify:
		period = time.Duration(t.Verify.Every)
	}
	return time.Duration(t.spread(period)) + min(5*time.Minute, period)
}

// why says what keeps a policy that is late.
func (h History) why(due Due, now time.Time) string {
	var failed Run
	var running time.Time
	for _, r := range h.Runs {
		switch {
		case r.Policy != due.Policy:
		case r.State == RunRunning:
			running = later(running, r.Started)
		case r.State == RunFailed && r.Started.After(failed.Started):
			failed = r
		}
	}
	again := ""
	if due.At.After(now) {
		again = "; next at " + due.At.UTC().Format(time.RFC3339)
	}
	switch {
	case due.Running:
		return "a run that began at " + running.UTC().Format(time.RFC3339) + " has not ended"
	case due.Failures > 0:
		return fmt.Sprintf("failed %d times, last: %s", due.Failures, cmp.Or(failed.Error, "no reason was recorded")) + again
	case !h.Resumed.IsZero() && due.Promised.Before(h.Resumed) && !h.Resumed.After(now):
		return "nothing could run until " + h.Resumed.UTC().Format(time.RFC3339) + again
	}
	return "it has not begun" + again
}

// journalGrace is how far a journal may be behind: writes are on their way, and their time is told now and then.
const journalGrace = time.Minute

// uncovered says since when cdp does not hold.
func (h History) uncovered(p CDP, now time.Time) []Overdue {
	list := h.coverage(now)
	if len(list) == 0 {
		since := h.Since
		if since.IsZero() || since.After(now) {
			since = now
		}
		return []Overdue{{PolicyCDP, since, cmp.Or(h.lastReason(now, now), "nothing was journaled yet")}}
	}
	end := h.received(now)
	if end.Add(journalGrace).Before(now) {
		return []Overdue{{PolicyCDP, end, cmp.Or(h.lastReason(now, now), "writes are not journaled")}}
	}
	return h.short(PolicyCDP, p.Window, list, now)
}

// unlogged says since when a log does not hold. It leads on from a capture, so nothing is asked of it before there is one.
func (h History) unlogged(t Template, now time.Time) []Overdue {
	if len(h.Points) == 0 {
		return nil
	}
	slack := journalGrace
	if t.Log.Every != 0 {
		slack = time.Duration(t.Log.Every) + t.grace(PolicyLog)
	}
	list, end := h.coverage(now), h.received(now)
	if len(list) == 0 { // it had to be there from the first capture on
		end = later(h.Since, slices.MinFunc(h.Points, func(a, b Point) int { return a.Time.Compare(b.Time) }).Time)
	}
	if now.Sub(end).Abs() > slack { // ahead, if the clock was set back
		end = earlier(end, now)
		return []Overdue{{PolicyLog, end, cmp.Or(h.lastReason(end, now), "it is not received")}}
	}
	if len(list) == 0 {
		return nil
	}
	return h.short(PolicyLog, t.Log.Keep, list, now)
}

// short says since when what is covered does not reach far enough.
func (h History) short(p Policy, window Duration, list []stretch, now time.Time) []Overdue {
	reach := now.Add(-time.Duration(window))
	if oldest := list[0].from; oldest.After(reach) && h.Since.Before(reach) {
		return []Overdue{{p, reach, fmt.Sprintf("any point can be had of the last %v, and %v was promised", *seconds(now.Sub(oldest)), window)}}
	}
	return nil
}

// lastReason is why there is no any-point history from end to now, if a gap says so. That of a log lasts behind its gap, until the next capture.
func (h History) lastReason(end, now time.Time) (reason string) {
	var begun time.Time
	for _, g := range h.Gaps {
		if !g.From.After(now) && !g.From.Before(begun) && (g.To.IsZero() || !g.To.Before(end)) {
			begun, reason = g.From, g.Reason
		}
	}
	return reason
}

// Choose returns the point that a verify takes: the newest, or one of the newest so many. The
// choice looks like chance, and is always the same for the same application and due time; so a run that is begun again takes the same.
func Choose(v Verify, application string, points []Point, due time.Time) (Point, bool) {
	if len(points) == 0 {
		return Point{}, false
	}
	sorted := slices.SortedFunc(slices.Values(points), func(a, b Point) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Position, a.Position))
	})
	if v.Point != WhichRandom {
		return sorted[0], true
	}
	n := min(len(sorted), cmp.Or(v.Of, 10))
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%d", application, due.Unix())
	return sorted[scatter(h.Sum64())%uint64(n)], true
}
