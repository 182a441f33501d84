package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidemark"
)

func TestJudge(t *testing.T) {
	now := at(t, "2026-11-28T12:00:00Z")
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	tmpl := Template{Name: "gold", RPO: Duration(2 * time.Hour), RTO: Duration(10 * time.Minute), Spread: &none, Capture: &Capture{Every: Duration(time.Hour)}}
	cdp := tmpl
	cdp.RPO, cdp.CDP, cdp.Capture = Duration(time.Minute), &CDP{Window: Duration(day)}, nil
	points := func(list ...time.Duration) (out []Point) {
		for _, d := range list {
			out = append(out, Point{Time: ago(d)})
		}
		return out
	}
	for _, c := range []struct {
		why   string
		tmpl  Template
		h     History
		state State
		rpo   string // measured, worst
		says  string
	}{
		{"nothing was done yet", tmpl, History{Since: ago(time.Minute)}, Unprotected, "- 1m", "no moment"},
		{"all is well", tmpl, History{Since: ago(3 * time.Hour), Points: points(3*time.Hour, 2*time.Hour, 50*time.Minute), Runs: []Run{ran(RunDone, ago(50*time.Minute), 0)}}, OK, "50m 70m", ""},
		{"the worst of a period that begins between two points", tmpl, History{From: ago(time.Hour), Points: points(3*time.Hour, 30*time.Minute), Runs: []Run{ran(RunDone, ago(30*time.Minute), 0)}}, OK, "30m 150m", ""},
		{"it is late, but what was promised is kept", tmpl, History{Since: ago(day), Points: points(90 * time.Minute), Runs: []Run{ran(RunDone, ago(90*time.Minute), 0)}}, Late, "90m 1350m", "capture: since 2026-11-28T11:30:00Z: it has not begun"},
		{"why it is late", tmpl, History{Since: ago(day), Points: points(90 * time.Minute), Runs: []Run{ran(RunDone, ago(90*time.Minute), 0), {PolicyCapture, RunFailed, ago(10 * time.Minute), ago(9 * time.Minute), "no space"}}}, Late, "90m 1350m", "failed 1 times, last: no space"},
		{"a run that hangs", tmpl, History{Since: ago(day), Points: points(90 * time.Minute), Runs: []Run{{Policy: PolicyCapture, State: RunRunning, Started: ago(80 * time.Minute)}}}, Late, "90m 1350m", "a run that began at 2026-11-28T10:40:00Z has not ended"},
		{"the server was away", tmpl, History{Since: ago(day), Resumed: now, Points: points(90 * time.Minute), Runs: []Run{ran(RunDone, ago(90*time.Minute), 0)}}, Late, "90m 1350m", "nothing could run until 2026-11-28T12:00:00Z"},
		{"the RPO is not kept", tmpl, History{Since: ago(4 * time.Hour), Points: points(3 * time.Hour), Runs: []Run{ran(RunDone, ago(10*time.Minute), 0)}}, Violated, "3h 3h", "rpo: the newest recoverable moment is 3h old, and 2h was promised"},
		{"the RTO is not kept", tmpl, History{Since: ago(4 * time.Hour), Points: points(0), Runs: []Run{ran(RunDone, ago(0), 0)}, Recoveries: []Recovery{{ago(time.Hour), Duration(11 * time.Minute)}, {ago(2 * time.Hour), Duration(time.Minute)}}}, Violated, "0s 4h", "rto: the newest recovery took 11m"},
		{"any point until now", cdp, History{Since: ago(2 * day), Covered: []tidemark.Interval{{From: ago(2 * day)}}}, OK, "0s 0s", ""},
		{"a gap in it that has ended", cdp, History{Since: ago(2 * day), Covered: []tidemark.Interval{{From: ago(2 * day)}}, Gaps: []tidemark.Interval{{From: ago(2 * time.Hour), To: ago(time.Hour)}}}, OK, "0s 1h", ""},
		{"a gap that lasts", cdp, History{Since: ago(2 * day), Covered: []tidemark.Interval{{From: ago(2 * day)}}, Gaps: []tidemark.Interval{{From: ago(2 * time.Hour), Reason: "db1 is away"}}}, Violated, "2h 2h", "cdp: since 2026-11-28T10:00:00Z: db1 is away"},
		{"a window that was given up for space", cdp, History{Since: ago(2 * day), Covered: []tidemark.Interval{{From: ago(3 * time.Hour)}}}, Late, "0s 45h", "any point can be had of the last 3h, and 1d was promised"},
		{"nothing is journaled", cdp, History{Since: ago(time.Hour), Points: points(0)}, Late, "0s 1h", "nothing was journaled yet"},
		{"a point from before the clock was set back", tmpl, History{Since: ago(time.Hour), Points: points(-time.Hour), Runs: []Run{ran(RunDone, ago(-time.Hour), 0)}}, OK, "0s 1h", ""},
		{"nothing was captured for long since the clock was set back, and all points are of times to come", tmpl, History{Since: ago(5 * time.Hour), Points: points(-3*day, -3*day+time.Minute), Runs: []Run{ran(RunDone, ago(-3*day), 0), ran(RunDone, ago(3*time.Hour), 0)}}, Violated, "3h 3h", "rpo: the newest recoverable moment is 3h old, and 2h was promised"},
	} {
		got := Judge(c.tmpl, c.h, now)
		rpo := "-"
		if got.RPO.Measured != nil {
			rpo = got.RPO.Measured.String()
		}
		if got.RPO.Worst != nil {
			rpo += " " + got.RPO.Worst.String()
		}
		reasons := strings.Join(got.Reasons, "; ")
		if got.State != c.state || rpo != c.rpo || !strings.Contains(reasons, c.says) || (c.says == "") != (reasons == "") {
			t.Errorf("%s: %s, rpo %s, %q, want %s, %s, %q", c.why, got.State, rpo, reasons, c.state, c.rpo, c.says)
		}
	}
}

func TestJudgeMeasuresRecoveries(t *testing.T) {
	now := at(t, "2026-11-28T12:00:00Z")
	h := History{From: now.Add(-day), Points: []Point{{Time: now}}}
	for i, took := range []Duration{Duration(time.Minute), Duration(9 * time.Minute), Duration(3 * time.Minute)} {
		h.Recoveries = append(h.Recoveries, Recovery{now.Add(time.Duration(-i) * 9 * time.Hour), took})
	}
	h.Recoveries = append(h.Recoveries, Recovery{now.Add(-2 * day), Duration(day)})
	got := Judge(Template{RTO: Duration(5 * time.Minute)}, h, now).RTO
	if got.Measured == nil || *got.Measured != Duration(time.Minute) || *got.Worst != Duration(9*time.Minute) || !got.WorstAt.Equal(now.Add(-9*time.Hour)) || !got.Kept() {
		t.Errorf("%+v", got)
	}
}

// TestWorstIsTheWorstMinute compares the worst RPO with what one sees who asks every minute.
func TestWorstIsTheWorstMinute(t *testing.T) {
	r := chance(t)
	for range 40 {
		begin := at(t, "2026-11-01T00:00:00Z")
		minute := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Minute) }
		const length = 500
		now := minute(length)
		h := History{Since: begin, From: minute(r.IntN(300))}
		for range r.IntN(8) {
			h.Points = append(h.Points, Point{Time: minute(r.IntN(length + 1))})
		}
		for range r.IntN(8) {
			n := r.IntN(length)
			h.Runs = append(h.Runs, Run{Policy: PolicyCapture, State: []RunState{RunDone, RunDone, RunFailed}[r.IntN(3)], Started: minute(n), Finished: minute(n + r.IntN(200))})
		}
		for range r.IntN(3) {
			n := r.IntN(length)
			h.Covered = append(h.Covered, interval(minute(n), minute(n+1+r.IntN(150))))
		}
		for range r.IntN(3) {
			n := r.IntN(length)
			h.Gaps = append(h.Gaps, interval(minute(n), minute(n+1+r.IntN(80))))
		}
		var worst Duration
		from := int(h.From.Sub(begin) / time.Minute)
		for m := from; m <= length; m++ {
			worst = max(worst, Duration(minute(m).Sub(slowNewest(h, begin, minute(m)))))
		}
		rpo := Judge(Template{}, h, now).RPO
		if rpo.Measured != nil {
			worst = max(worst, *rpo.Measured) // the point of the newest run may be gone
		}
		if rpo.Worst == nil || *rpo.Worst != worst {
			t.Fatalf("the worst is %v, want %v: %+v", rpo.Worst, worst, h)
		}
	}
}

// slowNewest is the newest moment before t that was recoverable just before t.
func slowNewest(h History, begin, t time.Time) time.Time {
	newest := begin
	for _, p := range h.Points {
		if p.Time.Before(t) && p.Time.After(newest) {
			newest = p.Time
		}
	}
	for _, r := range h.Runs {
		if r.State == RunDone && r.Finished.Before(t) && r.Started.After(newest) {
			newest = r.Started
		}
	}
	for m := begin; !m.After(t); m = m.Add(time.Minute) {
		half, covered := m.Add(-30*time.Second), false // all begins and ends on whole minutes
		for _, c := range h.Covered {
			covered = covered || half.After(c.From) && half.Before(c.To)
		}
		for _, g := range h.Gaps {
			covered = covered && !(half.After(g.From) && half.Before(g.To))
		}
		if covered && m.After(newest) {
			newest = m
		}
	}
	return newest
}

func TestChoose(t *testing.T) {
	newest := at(t, "2026-11-28T02:30:00Z")
	points := nightlies(30, newest)
	if p, ok := Choose(Verify{}, "shop", points, newest); !ok || !p.Time.Equal(newest) {
		t.Errorf("the latest is %v", p)
	}
	if _, ok := Choose(Verify{}, "shop", nil, newest); ok {
		t.Error("there is nothing to choose from")
	}
	seen := map[string]int{}
	for i := range 700 {
		due := newest.Add(time.Duration(i) * day)
		v := Verify{Point: WhichRandom, Of: 7}
		p, _ := Choose(v, "shop", points, due)
		if again, _ := Choose(v, "shop", points, due); again != p {
			t.Fatalf("%v, and then %v", p, again)
		}
		seen[p.Time.Format("01-02")]++
	}
	if len(seen) != 7 || seen["11-22"] < 60 || seen["11-28"] < 60 {
		t.Errorf("700 choices of 7: %v", seen)
	}
}

func ExampleJudge() {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	gold := Template{Name: "gold", RPO: Duration(time.Hour), Capture: &Capture{Every: Duration(30 * time.Minute)}}
	shop := History{Application: "shop", Since: now.Add(-24 * time.Hour), Points: []Point{{Time: now.Add(-90 * time.Minute)}}}
	shop.Runs = []Run{{Policy: PolicyCapture, State: RunFailed, Started: now.Add(-time.Minute), Finished: now, Error: "the pool is full"}}
	c := Judge(gold, shop, now)
	fmt.Println(c.State)
	fmt.Println(c.Reasons[0])
	// Output:
	// violated
	// rpo: the newest recoverable moment is 90m old, and 1h was promised
}
