package policy

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark"
)

var none Duration

// only is a template with nothing but captures, and applications that are not spread.
func only(c Capture, zone string) Template {
	return Template{Name: "t", TimeZone: zone, Spread: &none, Capture: &c}
}

func ran(state RunState, started time.Time, took time.Duration) Run {
	return Run{Policy: PolicyCapture, State: state, Started: started, Finished: started.Add(took)}
}

func TestNext(t *testing.T) {
	hourly, nightly := Capture{Every: Duration(time.Hour)}, Capture{At: hours("02:30")}
	noon := at(t, "2026-11-28T12:00:00Z")
	h := func(runs ...Run) History {
		return History{Application: "shop", Since: noon.Add(-30 * day), Runs: runs}
	}
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	resumed := h(ran(RunDone, ago(7*day), time.Minute))
	resumed.Resumed = ago(time.Minute)
	night := hourly
	night.Windows = windows("22:00-06:00")
	missed := nightly
	missed.Windows = windows("22:00-06:00")
	for _, c := range []struct {
		why     string
		capture Capture
		history History
		at      string
	}{
		{"nothing was done yet: from when the template was given", hourly, History{Since: ago(10 * time.Minute)}, "2026-11-28T11:50:00Z"},
		{"nothing is known: now", hourly, History{}, "2026-11-28T12:00:00Z"},
		{"counted from the begin", hourly, h(ran(RunDone, ago(20*time.Minute), 10*time.Minute)), "2026-11-28T12:40:00Z"},
		{"a run is under way", hourly, h(Run{Policy: PolicyCapture, State: RunRunning, Started: ago(20 * time.Minute)}), "2026-11-28T12:40:00Z"},
		{"a failure: a minute later", hourly, h(ran(RunDone, ago(2*time.Hour), 0), ran(RunFailed, ago(30*time.Second), 10*time.Second)), "2026-11-28T12:00:40Z"},
		{"three failures: four minutes later", hourly, h(ran(RunFailed, ago(9*time.Minute), 0), ran(RunFailed, ago(8*time.Minute), 0), ran(RunFailed, ago(time.Minute), 0)), "2026-11-28T12:03:00Z"},
		{"many failures: an hour later, and no more", Capture{Every: Duration(day)}, h(manyFailures(40, ago(time.Minute))...), "2026-11-28T12:59:00Z"},
		{"failures from before a good run do not count", hourly, h(ran(RunFailed, ago(90*time.Minute), 0), ran(RunDone, ago(70*time.Minute), 0)), "2026-11-28T11:50:00Z"},
		{"a week of downtime: once, from the start on", hourly, resumed, "2026-11-28T11:59:00Z"},
		{"it waits for its window", night, h(ran(RunDone, ago(8*time.Hour), 0)), "2026-11-28T22:00:00Z"},
		{"a time of day that was done", nightly, h(ran(RunDone, at(t, "2026-11-28T02:31:00Z"), 0)), "2026-11-29T02:30:00Z"},
		{"one that was missed", nightly, h(ran(RunDone, at(t, "2026-11-27T02:30:00Z"), 0)), "2026-11-28T02:30:00Z"},
		{"one that was missed waits for its window", missed, h(ran(RunDone, at(t, "2026-11-27T02:30:00Z"), 0)), "2026-11-28T22:00:00Z"},
		{"a capture of before does not stand for it", nightly, h(ran(RunDone, at(t, "2026-11-28T02:29:59Z"), 0)), "2026-11-28T02:30:00Z"},
		{"a time from before the template is not owed", nightly, History{Since: ago(time.Hour)}, "2026-11-29T02:30:00Z"},
		{"one that failed", nightly, h(ran(RunFailed, ago(2*time.Minute), time.Minute)), "2026-11-28T12:00:00Z"},
		{"one that failed often, and the next comes before it would be tried again", Capture{At: hours("11:50", "12:03")}, h(ran(RunFailed, ago(time.Minute), 0), ran(RunFailed, ago(2*time.Minute), 0), ran(RunFailed, ago(3*time.Minute), 0), ran(RunFailed, ago(4*time.Minute), 0)), "2026-11-28T12:03:00Z"},
		{"the same, and the next is the day after", Capture{At: hours("11:50")}, h(ran(RunFailed, ago(time.Minute), 0), ran(RunFailed, ago(2*time.Minute), 0), ran(RunFailed, ago(3*time.Minute), 0), ran(RunFailed, ago(4*time.Minute), 0)), "2026-11-28T12:07:00Z"},
		{"the clock was set back by some minutes", hourly, h(ran(RunDone, noon.Add(10*time.Minute), 0)), "2026-11-28T13:10:00Z"},
		{"the clock was set back by years: what was done then does not count", hourly, h(ran(RunDone, ago(5*time.Minute), 0), ran(RunDone, noon.Add(4*365*day), 0)), "2026-11-28T12:55:00Z"},
		{"the clock was set back over a time of day: it is not done twice", nightly, h(ran(RunDone, at(t, "2026-11-29T02:30:00Z"), 0)), "2026-11-30T02:30:00Z"},
		{"the clock was set forward by years: once", hourly, h(ran(RunDone, ago(4*365*day), 0)), at(t, "2026-11-28T13:00:00Z").Add(-4 * 365 * day).Format(time.RFC3339)},
	} {
		list := Next(only(c.capture, ""), c.history, noon)
		if len(list) != 1 || !list[0].At.Equal(at(t, c.at)) {
			t.Errorf("%s: %+v, want %s", c.why, list, c.at)
		}
	}
}

// TestATimeOfDayHasSomeMinutes holds that a capture of a short window, or of a night in which its time is skipped, is done, and not a day later.
func TestATimeOfDayHasSomeMinutes(t *testing.T) {
	tmpl := only(Capture{At: hours("02:30"), Windows: windows("02:00-02:31")}, "Europe/Berlin")
	h := History{Application: "shop", Since: at(t, "2026-03-28T12:00:00Z")}
	skip := at(t, "2026-03-29T01:00:00Z") // the clock shows 03:00
	for _, c := range []struct {
		from, at string
	}{
		{"2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z"}, {"2026-03-29T01:14:59Z", "2026-03-29T01:00:00Z"},
		{"2026-03-29T01:15:00Z", "2026-03-30T00:00:00Z"}, // the next open time
	} {
		due := Next(tmpl, h, at(t, c.from))[0]
		if !due.At.Equal(at(t, c.at)) || !due.Promised.Equal(skip) {
			t.Errorf("at %s: %+v, want %s", c.from, due, c.at)
		}
	}
	five := Duration(5 * time.Minute)
	tmpl.Spread = &five
	for i := range 100 { // the place of most in the spread is behind the end of the window
		h.Application = fmt.Sprint("app", i)
		due := Next(tmpl, h, at(t, "2026-03-27T12:00:00Z"))[0]
		if at := due.At.Sub(due.Promised); at < 0 || at >= time.Minute {
			t.Fatalf("%s: %+v", h.Application, due)
		}
	}
}

// TestTheSpreadFitsTheWindow holds that nobody's place is behind the end of a short window.
func TestTheSpreadFitsTheWindow(t *testing.T) {
	tmpl := Template{Capture: &Capture{Every: Duration(time.Hour), Windows: windows("22:00-22:02")}}
	now := at(t, "2026-11-28T12:00:00Z")
	for i := range 100 {
		h := History{Application: fmt.Sprint("app", i), Runs: []Run{ran(RunDone, now.Add(-day), 0)}}
		if due := Next(tmpl, h, now)[0]; due.At.Before(now.Add(10*time.Hour)) || !due.At.Before(now.Add(10*time.Hour+2*time.Minute)) {
			t.Fatalf("%s: %+v", h.Application, due)
		}
	}
}

func manyFailures(n int, end time.Time) (list []Run) {
	for i := range n {
		list = append(list, ran(RunFailed, end.Add(time.Duration(-i)*time.Hour), 0))
	}
	return list
}

func TestNextKnowsEveryPolicy(t *testing.T) {
	now := at(t, "2026-11-28T12:00:00Z")
	every := Duration(time.Hour)
	tmpl := Template{Name: "t", Spread: &none, Capture: &Capture{Every: every}, AppShot: &AppShot{Every: every}, Log: &Log{Every: every, Keep: every},
		Verify: &Verify{Every: every}, Replicate: &Copy{To: "site", Every: every}, Vault: &Copy{To: "vault"}, CDP: &CDP{Window: every}, Keep: &Retention{Count: 1}}
	h := History{Since: now.Add(-time.Minute), Points: []Point{{Time: now.Add(-20 * time.Minute), AppShot: true}}}
	h.Covered = append(h.Covered, interval(now.Add(-time.Hour), now.Add(-10*time.Minute)))
	var got []string
	for _, d := range Next(tmpl, h, now) {
		got = append(got, fmt.Sprintf("%s %v", d.Policy, d.At.Sub(now)))
	}
	if want := "[capture -1m0s appshot 40m0s log 50m0s verify -1m0s]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	h.Points = nil
	if list := Next(tmpl, h, now); len(list) != 3 {
		t.Errorf("nothing can be verified without a point: %+v", list)
	}
	if list := Next(Template{Name: "t"}, h, now); len(list) != 0 {
		t.Errorf("nothing was promised: %+v", list)
	}
}

// site is a server with one application that lives through bad days, a minute at a time.
type site struct {
	r        *rand.Rand
	t        Template
	model    slow
	h        History
	up       bool
	ends     time.Time // of the run that is under way
	fails    bool      // it will
	started  []time.Time
	expected []time.Time
	// What the model remembers: the last good begin; what rang and is owed; failures since, and when to try again.
	good, owed, retry time.Time
	failures          int
	before            Due
	still             bool // nothing has happened since before
}

// minute lives through one.
func (s *site) minute(now time.Time) error {
	if s.model.rings(now) {
		s.owed, s.failures, s.retry, s.still = now, 0, time.Time{}, false
	}
	s.weather(now)
	if !s.up {
		return nil
	}
	if n := len(s.h.Runs); n > 0 && s.h.Runs[n-1].State == RunRunning && !now.Before(s.ends) {
		s.end(now, s.fails)
	}
	busy := !s.ends.IsZero()
	list := Next(s.t, s.h, now)
	if len(list) != 1 || list[0].Running != busy {
		return fmt.Errorf("at %v: %+v, busy: %v", now, list, busy)
	}
	due := list[0]
	if s.still && s.before.At.After(now.Add(-time.Minute)) && !due.At.Equal(s.before.At) {
		return fmt.Errorf("at %v it is due at %v, and was at %v", now, due.At, s.before.At)
	}
	s.before, s.still = due, true
	if !busy && s.wants(now) {
		s.expected = append(s.expected, now)
	}
	if !busy && !due.At.After(now) {
		s.begin(now)
	}
	if n := len(s.started); *s.t.Spread == 0 && (n != len(s.expected) || n > 0 && !s.started[n-1].Equal(s.expected[n-1])) {
		return fmt.Errorf("at %v: begun %v, want %v; due %+v", now, s.started[max(0, n-2):], s.expected[max(0, len(s.expected)-2):], due)
	}
	return nil
}

// weather takes the server down and brings it back.
func (s *site) weather(now time.Time) {
	switch {
	case s.up && s.r.IntN(2000) == 0:
		s.up, s.still = false, false
	case !s.up && s.r.IntN(1000) == 0:
		s.up, s.h.Resumed = true, now
		if !s.ends.IsZero() {
			s.end(now, true) // what was cut
		}
	}
}

func (s *site) begin(now time.Time) {
	s.started = append(s.started, now)
	s.ends, s.fails, s.still = now.Add(time.Duration(1+s.r.IntN(90)*s.r.IntN(2))*time.Minute), s.r.IntN(4) == 0, false
	s.h.Runs = append(s.h.Runs, Run{Policy: PolicyCapture, State: RunRunning, Started: now})
}

func (s *site) end(now time.Time, failed bool) {
	run := &s.h.Runs[len(s.h.Runs)-1]
	run.State, run.Finished = RunDone, now
	s.ends, s.still = time.Time{}, false
	switch {
	case failed:
		run.State = RunFailed
		if s.t.Capture.Every == 0 && run.Started.Before(s.owed) {
			return // it was for a time of day before
		}
		s.failures++
		s.retry = now.Add(pauses(s.failures, time.Duration(s.t.Capture.Every)))
	default:
		s.good, s.failures, s.retry = run.Started, 0, time.Time{}
		if !run.Started.Before(s.owed) {
			s.owed = time.Time{}
		}
	}
}

func pauses(failures int, every time.Duration) time.Duration {
	list := []time.Duration{1, 2, 4, 8, 16, 32, 60}
	p := list[min(failures, len(list))-1] * time.Minute
	if every != 0 && every < p {
		return every
	}
	return p
}

// wants is the rule in plain words.
func (s *site) wants(now time.Time) bool {
	if now.Before(s.retry) {
		return false
	}
	if every := time.Duration(s.t.Capture.Every); every != 0 {
		return s.model.allows(now, true) && (s.good.IsZero() || !now.Before(s.good.Add(every)))
	}
	inTime := now.Sub(s.owed) < 15*time.Minute && s.failures == 0 && !s.h.Resumed.After(s.owed)
	return !s.owed.IsZero() && (inTime || s.model.allows(now, false))
}

// once holds of an application that is spread what the model does not say: nothing good is done twice.
func (s *site) once() error {
	var good time.Time
	for _, r := range s.h.Runs {
		if r.State != RunDone {
			continue
		}
		too := good.Add(time.Duration(s.t.Capture.Every)).After(r.Started)
		if s.t.Capture.Every == 0 {
			last, ok := newCalendar(s.t.Capture, s.model.loc).last(r.Started)
			too = !ok || !good.Before(last)
		}
		if too && !good.IsZero() {
			return fmt.Errorf("done at %v, and again at %v", good, r.Started)
		}
		good = r.Started
	}
	return nil
}

func TestNextInBadDays(t *testing.T) {
	r := chance(t)
	for i := range 24 {
		loc, name, begin := somewhere(r)
		c := someCapture(r, i%2 == 0)
		s := site{r: r, t: only(c, name), model: slow{c, loc, map[string]bool{}}, up: true}
		s.h = History{Application: "shop", Since: begin}
		if i%3 == 0 {
			spread := Duration(time.Duration(r.IntN(3600)) * time.Second)
			s.t.Spread, s.h.Application = &spread, fmt.Sprint("shop", i)
		}
		for m := range 3 * 24 * 60 {
			s.model.rings(begin.Add(time.Duration(m-3*24*60) * time.Minute)) // not owed: before Since
		}
		s.model.rings(begin)
		for m := range 8 * 24 * 60 {
			if err := s.minute(begin.Add(time.Duration(m+1) * time.Minute)); err != nil {
				t.Fatalf("%s from %v, %+v: %v", name, begin, c, err)
			}
		}
		if err := s.once(); err != nil {
			t.Fatalf("%s from %v, %+v: %v", name, begin, c, err)
		}
	}
}

// TestAnyClockIsSurvived holds that whatever a history claims, something is due before long.
func TestAnyClockIsSurvived(t *testing.T) {
	r := chance(t)
	now := at(t, "2026-11-28T12:00:00Z")
	some := func() time.Time {
		return now.Add(time.Duration(r.NormFloat64() * float64([]time.Duration{time.Hour, day, 1000 * day}[r.IntN(3)])))
	}
	for range 5_000 {
		var h History
		if r.IntN(2) == 0 {
			h.Since, h.Resumed = some(), some()
		}
		for range r.IntN(6) {
			run := Run{PolicyCapture, []RunState{RunDone, RunFailed}[r.IntN(2)], some(), some(), ""}
			h.Runs = append(h.Runs, run)
		}
		every := time.Duration(1+r.IntN(100)) * time.Hour
		if due := Next(Template{Capture: &Capture{Every: Duration(every)}}, h, now)[0]; due.At.After(now.Add(2*every + time.Hour)) {
			t.Fatalf("every %v: due at %v with %+v", every, due.At, h)
		}
		nightly := Template{Capture: &Capture{At: hours("02:30")}}
		due := Next(nightly, h, now)[0]
		if due.At.After(now.Add(2*day + time.Hour)) {
			t.Fatalf("nightly: due at %v with %+v", due.At, h)
		}
		r.Shuffle(len(h.Runs), func(i, j int) { h.Runs[i], h.Runs[j] = h.Runs[j], h.Runs[i] })
		if again := Next(nightly, h, now)[0]; again != due {
			t.Fatalf("nightly: %+v, and with the runs in another order %+v", due, again)
		}
	}
}

func TestManyApplicationsAreSpread(t *testing.T) {
	up := at(t, "2026-11-28T12:00:00Z")
	for _, c := range []Capture{{Every: Duration(time.Hour)}, {At: hours("02:30")}, {Every: Duration(time.Hour), Windows: windows("12:00-13:00")}} {
		tmpl := Template{Name: "gold", Capture: &c}
		minutes := map[int]int{}
		for i := range 1000 {
			h := History{Application: fmt.Sprintf("app%03d", i), Since: up.Add(-30 * day), Resumed: up}
			h.Runs = []Run{ran(RunDone, up.Add(-7*day), time.Minute)}
			due := Next(tmpl, h, up)[0]
			if again := Next(tmpl, h, up.Add(time.Second))[0]; !again.At.Equal(due.At) {
				t.Fatalf("%s is due at %v, and then at %v", h.Application, due.At, again.At)
			}
			minutes[int(due.At.Sub(up)/time.Minute)]++
			// Once it was done there is no more to catch up.
			h.Runs = append(h.Runs, ran(RunDone, due.At, time.Minute))
			if next := Next(tmpl, h, due.At.Add(time.Minute))[0]; next.At.Sub(due.At) < 30*time.Minute {
				t.Fatalf("%s is due at %v, and again at %v", h.Application, due.At, next.At)
			}
		}
		for m := range 5 {
			if n := minutes[m]; n < 150 || n > 250 {
				t.Errorf("%+v: of 1000 applications %d begin in minute %d", c, n, m)
			}
		}
		if len(minutes) != 5 {
			t.Errorf("%+v: they begin in minutes %v", c, minutes)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	now := must(time.Parse(time.RFC3339, "2026-11-28T12:00:00Z"))
	tmpl := Template{Name: "gold", TimeZone: "Europe/Berlin", Capture: &Capture{Every: Duration(time.Hour), Blackouts: windows("mon-fri 08:00-09:00")},
		Log: &Log{Every: Duration(5 * time.Minute), Keep: Duration(7 * day)}, Verify: &Verify{Every: Duration(day)}}
	apps := make([]History, 1000)
	for i := range apps {
		apps[i] = History{Application: fmt.Sprintf("app%d", i), Since: now.Add(-30 * day)}
		for k := range 24 {
			apps[i].Runs = append(apps[i].Runs, ran(RunDone, now.Add(time.Duration(-k)*time.Hour), time.Minute))
			apps[i].Points = append(apps[i].Points, Point{Time: now.Add(time.Duration(-k) * time.Hour)})
		}
	}
	for b.Loop() {
		for _, h := range apps {
			Next(tmpl, h, now)
		}
	}
}

func interval(from, to time.Time) tidemark.Interval { return tidemark.Interval{From: from, To: to} }
