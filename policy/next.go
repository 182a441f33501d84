package policy

import (
	"hash/fnv"
	"time"
)

// Due is when a policy is to be done next.
type Due struct {
	Policy Policy `json:"policy"`
	// Promised is when the schedule wants it.
	Promised time.Time `json:"promised"`
	// At is when it should begin: Promised, or later, because applications are spread, because of back-off
	// after failures, or because what was missed waits for a window. If it is not after now, it is due now.
	At time.Time `json:"at"`
	// Running says that a run is under way. Another must not begin before it has ended.
	Running bool `json:"running,omitempty"`
	// Failures is how many runs have failed since the last good one, or since Promised.
	Failures int `json:"failures,omitempty"`
}

const (
	defaultSpread  = Duration(5 * time.Minute)
	shortestPause  = time.Minute // after the first failure; it doubles with each
	longestPause   = time.Hour
	calendarAhead  = day              // see [outlook.believe]
	calendarPeriod = 15 * time.Minute // in which a calendar time may begin, whatever windows say
)

// Next returns when the schedules of t are due for one application, in the order capture, appshot,
// log, verify; those that t does not have are not among them, and neither is a verify while there is no point.
//
// It depends on nothing but its arguments. While nothing is done, what it answers does not move: asked again before At
// it answers At. So a caller may sleep until the earliest At. How it treats clocks, downtime and failures is told in DESIGN.md.
func Next(t Template, h History, from time.Time) (list []Due) {
	o := outlook{t: t, h: h, from: from}
	if p := t.Capture; p != nil {
		o.calendar = newCalendar(p, t.location())
		if p.Every != 0 {
			list = append(list, o.interval(PolicyCapture, p.Every))
		} else if due, ok := o.calendarDue(); ok {
			list = append(list, due)
		}
		o.calendar = nil
	}
	if t.AppShot != nil {
		list = append(list, o.interval(PolicyAppShot, t.AppShot.Every))
	}
	if t.Log != nil && t.Log.Every != 0 {
		list = append(list, o.interval(PolicyLog, t.Log.Every))
	}
	if t.Verify != nil && len(h.Points) > 0 {
		list = append(list, o.interval(PolicyVerify, t.Verify.Every))
	}
	return list
}

// outlook is one question of Next.
type outlook struct {
	t        Template
	h        History
	from     time.Time
	calendar *calendar // of captures; nil: always open
}

// past is what was done of one policy.
type past struct {
	good     time.Time // the begin of the newest good run; zero: none
	running  time.Time // the begin of the run that is under way; zero: none
	failures int       // since then
	failed   time.Time // the end of the newest of them
}

// believe reports whether a run that began at t is taken for one of the past. One that
// seems to have begun long after now was made before the clock was set back, and if it counted
// nothing would be done until the clock is there again.
func (o *outlook) believe(t time.Time, ahead time.Duration) bool { return !t.After(o.from.Add(ahead)) }

// recall gathers what was done of a policy since an instant.
func (o *outlook) recall(policy Policy, since time.Time, ahead time.Duration) (p past) {
	take := func(t time.Time) {
		if o.believe(t, ahead) && !t.Before(since) {
			p.good = later(p.good, t)
		}
	}
	for _, r := range o.h.Runs {
		if r.Policy == policy && r.State == RunDone {
			take(r.Started)
		}
	}
	switch policy {
	case PolicyAppShot: // they are made so often that a caller may keep no runs of them
		for _, point := range o.h.Points {
			if point.AppShot {
				take(point.Time)
			}
		}
	case PolicyLog:
		take(o.h.received(o.from))
	}
	for _, r := range o.h.Runs {
		if r.Policy != policy || r.Started.Before(since) || !r.Started.After(p.good) || !o.believe(r.Started, ahead) {
			continue
		}
		switch r.State {
		case RunRunning:
			p.running = later(p.running, r.Started)
		case RunFailed:
			p.failures++
			end := r.Finished
			if end.Before(r.Started) || !o.believe(end, ahead) {
				end = r.Started
			}
			p.failed = later(p.failed, end)
		}
	}
	return p
}

// interval answers for what is done every so often, counted from begin to begin.
func (o *outlook) interval(policy Policy, every Duration) Due {
	period := time.Duration(every)
	p := o.recall(policy, time.Time{}, min(period, calendarAhead))
	offset := o.offset(policy, period)
	due := Due{Policy: policy, Running: !p.running.IsZero(), Failures: p.failures}
	switch begun := later(p.good, p.running); {
	case !begun.IsZero():
		due.Promised = begun.Add(period)
	case o.h.Since.IsZero() || o.h.Since.After(o.from):
		due.Promised = o.from
	default:
		due.Promised = o.h.Since.Add(offset)
	}
	due.Promised = o.place(due.Promised, offset, true)
	due.At = o.settle(o.delayed(due.Promised, p, period, offset), offset, true)
	return due
}

// calendarDue answers for captures at times of day.
func (o *outlook) calendarDue() (Due, bool) {
	offset := o.offset(PolicyCapture, day)
	if at, ok := o.calendar.last(o.from); ok && at.After(o.h.Since) {
		p := o.recall(PolicyCapture, at, calendarAhead)
		if p.good.IsZero() && !(p.running.Equal(at) || p.running.After(at)) {
			return o.owed(at, p, offset), true
		}
	}
	p := o.recall(PolicyCapture, time.Time{}, calendarAhead)
	next, ok := o.calendar.next(later(o.from, later(p.good, p.running)))
	return Due{Policy: PolicyCapture, Promised: next, At: o.begin(next, offset), Running: !p.running.IsZero()}, ok
}

// owed answers for a time of day that has passed, and that nothing was done for.
func (o *outlook) owed(at time.Time, p past, offset time.Duration) Due {
	due := Due{Policy: PolicyCapture, Promised: at, At: o.begin(at, offset), Failures: p.failures}
	due.Running = !o.recall(PolicyCapture, time.Time{}, calendarAhead).running.IsZero()
	missed := !o.from.Before(due.At.Add(calendarPeriod)) || due.At.Before(o.h.Resumed) && !o.h.Resumed.After(o.from)
	if missed || p.failures > 0 {
		due.At = o.settle(o.delayed(due.At, p, day, offset), offset, false)
	}
	if next, ok := o.calendar.next(o.from); ok {
		due.At = earlier(due.At, o.begin(next, offset)) // then that one is due, and this one no more
	}
	return due
}

// begin is an occurrence with the application's offset, unless a window ends before.
func (o *outlook) begin(at time.Time, offset time.Duration) time.Time {
	if moved := at.Add(offset); o.calendar.allows(moved, false) || !o.calendar.allows(at, false) {
		return moved
	}
	return at
}

// delayed is when to begin after failures, and after a time in which nothing could begin.
func (o *outlook) delayed(at time.Time, p past, period, offset time.Duration) time.Time {
	if p.failures > 0 {
		at = later(at, p.failed.Add(pause(p.failures, period)))
	}
	if at.Before(o.h.Resumed) && !o.h.Resumed.After(o.from) {
		at = o.h.Resumed.Add(offset)
	}
	return at
}

// pause is how long to wait after so many failures: a minute, doubled with each, up to an
// hour, and never longer than the interval.
func pause(failures int, period time.Duration) time.Duration {
	return min(shortestPause<<min(failures-1, 10), longestPause, period)
}

// place moves an instant into the next time that is open; there, applications are spread.
func (o *outlook) place(at time.Time, offset time.Duration, days bool) time.Time {
	if o.calendar == nil || o.calendar.allows(at, days) {
		return at
	}
	opens, ok := o.calendar.change(at, days, true)
	if !ok {
		return at.Add(horizon)
	}
	if moved := opens.Add(offset); o.calendar.allows(moved, days) {
		return moved
	}
	return opens
}

// settle moves an instant into the open time that is now or next, if the one that it was in has gone by.
func (o *outlook) settle(at time.Time, offset time.Duration, days bool) time.Time {
	at = o.place(at, offset, days)
	if o.calendar == nil || o.calendar.always(days) {
		return at
	}
	if long := o.from.Add(-8 * day); at.Before(long) {
		at = o.place(long, offset, days) // it is due since long; every open time since then went by
	}
	for at.Before(o.from) {
		closes, ok := o.calendar.change(at, days, false)
		if !ok || closes.After(o.from) {
			return at
		}
		at = o.place(closes, offset, days)
	}
	return at
}

// offset is the application's own place in the spread: the same for the same name, and evenly spread over names.
func (o *outlook) offset(policy Policy, period time.Duration) time.Duration {
	spread := time.Duration(o.t.spread(period)) / time.Second
	if spread <= 0 {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(string(policy) + "\x00" + o.h.Application))
	return time.Duration(scatter(h.Sum64())%uint64(spread)) * time.Second
}

// scatter spreads a FNV hash over all its bits: the low ones are poor for names that differ in their last letters. (The constant is MurmurHash3's.)
func scatter(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	return x ^ x>>33
}

// spread is Spread with its default, and at most a quarter of the period.
func (t Template) spread(period time.Duration) Duration {
	spread := defaultSpread
	if t.Spread != nil {
		spread = *t.Spread
	}
	return min(spread, Duration(period/4))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
