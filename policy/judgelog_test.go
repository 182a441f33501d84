package policy

import (
	"strings"
	"testing"
	"time"

	"tidemark"
)

// TestJudgeLog: a log that was promised is judged by what of it is there, whether or not it is said how often it is received.
func TestJudgeLog(t *testing.T) {
	now := at(t, "2026-11-28T12:00:00Z")
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	gold := Template{Name: "gold", RPO: Duration(26 * time.Hour), Spread: &none, Capture: &Capture{Every: Duration(day)}, Log: &Log{Keep: Duration(3 * day)}}
	seldom := gold
	seldom.Log = &Log{Keep: Duration(3 * day), Every: Duration(time.Hour)}
	nightly := []Point{{Time: ago(4 * day)}, {Time: ago(3 * day)}, {Time: ago(2 * day)}, {Time: ago(day)}, {Time: ago(time.Hour)}}
	done := []Run{ran(RunDone, ago(time.Hour), 0)}
	covered := func(from, to time.Duration) []tidemark.Interval {
		return []tidemark.Interval{interval(ago(from), ago(to))}
	}
	for _, c := range []struct {
		why   string
		tmpl  Template
		h     History
		state State
		says  string
	}{
		{"all of it is there", gold, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: covered(4*day, 2*time.Second)}, OK, ""},
		{"it is cut", gold, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: covered(4*day, 43*time.Hour), Gaps: []tidemark.Interval{{From: ago(43 * time.Hour), Reason: "the log is cut"}}}, Late, "log: since 2026-11-26T17:00:00Z: the log is cut"},
		{"it lags", gold, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: covered(4*day, 2*time.Minute)}, Late, "log: since 2026-11-28T11:58:00Z: it is not received"},
		{"a gap has ended, and no capture was made since", gold, History{Since: ago(5 * day), Points: nightly[:4], Runs: []Run{ran(RunDone, ago(20*time.Hour), 0)}, Covered: covered(4*day, 10*time.Hour),
			Gaps: []tidemark.Interval{{From: ago(10 * time.Hour), To: ago(2 * time.Hour), Reason: "the slot was dropped"}}}, Late, "log: since 2026-11-28T02:00:00Z: the slot was dropped"},
		{"a gap has ended, and a capture was made since", gold, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: append(covered(4*day, 10*time.Hour), covered(time.Hour, 0)...),
			Gaps: []tidemark.Interval{{From: ago(10 * time.Hour), To: ago(2 * time.Hour), Reason: "the slot was dropped"}}}, OK, ""},
		{"nothing of it is there", gold, History{Since: ago(5 * day), Points: nightly, Runs: done}, Late, "log: since 2026-11-24T12:00:00Z: it is not received"},
		{"and why", gold, History{Since: ago(2 * day), Points: nightly, Runs: done, Gaps: []tidemark.Interval{{From: ago(2 * day), Reason: "pg_receivewal: no"}}}, Late, "log: since 2026-11-26T12:00:00Z: pg_receivewal: no"},
		{"the first capture was made just now", gold, History{Since: ago(2 * time.Hour), Points: []Point{{Time: ago(time.Second)}}, Runs: done}, OK, ""},
		{"it was promised just now", gold, History{Since: ago(time.Second), Points: nightly, Runs: done}, OK, ""},
		{"it is not far enough", gold, History{Since: ago(5 * day), Points: nightly[3:], Runs: done, Covered: covered(day, 0)}, Late, "log: since 2026-11-25T12:00:00Z: any point can be had of the last 1d, and 3d was promised"},
		{"it cannot be far enough yet", gold, History{Since: ago(25 * time.Hour), Points: nightly[3:], Runs: done, Covered: covered(day, 0)}, OK, ""},
		{"it is received seldom, and in time", seldom, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: covered(4*day, 64*time.Minute)}, OK, ""},
		{"it is received seldom, and late", seldom, History{Since: ago(5 * day), Points: nightly, Runs: done, Covered: covered(4*day, 66*time.Minute)}, Late, "log: since 2026-11-28T10:54:00Z: it is not received"},
		{"the clock was set back behind all points", gold, History{Since: ago(-day), Points: []Point{{Time: ago(-2 * day)}}, Runs: done}, Late, "log: since 2026-11-28T12:00:00Z: it is not received"},
		{"there is no capture that it could lead on from", gold, History{Since: ago(time.Minute)}, Unprotected, "there is no moment that could be recovered"},
	} {
		got := Judge(c.tmpl, c.h, now)
		if reasons := strings.Join(got.Reasons, "; "); got.State != c.state || reasons != c.says {
			t.Errorf("%s: %s, %q, want %s, %q", c.why, got.State, reasons, c.state, c.says)
		}
	}
}
