package workflow

import (
	"errors"
	"strings"
	"time"

	"tidemark/internal/strictyaml"
	"tidemark/policy"
)

// template is the schedule as package policy knows it: that of captures, of which none is spread.
func (w Workflow) template() policy.Template {
	var spread policy.Duration
	return policy.Template{Name: w.Name, TimeZone: w.TimeZone, Spread: &spread, Capture: w.Schedule}
}

func (w Workflow) checkSchedule(c *checks) {
	t := w.template()
	if t.Name = "x"; c.First != nil {
		return
	}
	var f *strictyaml.Fault
	if err := t.Validate(); errors.As(err, &f) {
		e := *f.Err
		e.Message = strings.Replace(e.Message, "capture", "schedule", 1)
		e.Message = strings.Replace(e.Message, "captures are", "runs are", 1)
		c.First = &strictyaml.Fault{Field: strings.Replace(f.Field, "capture", "schedule", 1), Err: &e}
	}
}

// Past is what is known of the runs of a workflow's schedule.
type Past struct {
	// Since is when it got its schedule. What lies before is not owed.
	Since time.Time
	// Resumed is when runs became possible again: what was missed before is caught up from there on, once.
	Resumed time.Time
	// Last is when the schedule began the newest run; zero: never. How that went does not matter: it is for the next time.
	Last time.Time
	// Running: that run has not ended. Another does not begin before.
	Running bool
}

// Due returns when the schedule of w is due next. It is false if w has none, or while a run is under way.
func (w Workflow) Due(p Past, now time.Time) (time.Time, bool) {
	if w.Schedule == nil || p.Running {
		return time.Time{}, false
	}
	h := policy.History{Application: w.Name, Since: p.Since, Resumed: p.Resumed}
	if !p.Last.IsZero() {
		h.Runs = []policy.Run{{Policy: policy.PolicyCapture, State: policy.RunDone, Started: p.Last, Finished: p.Last}}
	}
	for _, d := range policy.Next(w.template(), h, now) {
		return d.At, true
	}
	return time.Time{}, false
}
