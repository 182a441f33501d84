package control

import (
	"context"
	"fmt"
	"time"

	"tidemark"
	"tidemark/agent/taps"
)

// reachTime is how long a point of the present is waited for that is on its way to the timeline.
const reachTime = 2 * time.Second

// resolve finds the position that a point names. What was written to a tapped disk by a time that is just past may be on its way: it has
// to be here before that time names anything. Where captures make the disks what they are, the newest state is the newest point: a capture that goes on,
// or was cut, has made of them what was never anywhere.
func (c *Control) resolve(ctx context.Context, a app, p tidemark.Point) (tidemark.Position, error) {
	if p.Latest() && !a.journaled() {
		newest, err := newestPoint(a)
		return newest.Position, err
	}
	when, timed, err := a.t.When(p)
	if err != nil {
		return 0, err
	}
	if timed {
		p = tidemark.Point{Time: when}
	}
	if timed && a.tapped() {
		if err := c.reach(ctx, a, when); err != nil {
			return 0, err
		}
	}
	return a.t.Resolve(p)
}

// reach waits until the timeline of a tapped application has what was written by a time, or knows that it lacks some of it.
func (c *Control) reach(ctx context.Context, a app, when time.Time) error {
	for end := time.Now().Add(reachTime); ; {
		if _, newest := a.t.Head(); !when.After(newest) || a.t.Lacks() {
			return nil
		}
		st, err := c.tapStatus(ctx, a)
		if err == nil && !st.Reached.Before(when) {
			return nil
		}
		if time.Now().After(end) {
			return unreached(a, when, st, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unreached says why a time just past names no point.
func unreached(a app, when time.Time, st taps.Status, err error) error {
	_, newest := a.t.Head()
	why := fmt.Sprintf("its tap is behind by %v", st.Lag.Round(time.Millisecond))
	switch {
	case err != nil:
		why = "its tap does not answer: " + err.Error()
	case !st.Online:
		why = "its tap cannot reach the server: " + st.Trouble
	}
	return tidemark.Errorf(tidemark.Unavailable, "what %s was at %s is not known yet: %s", a.name, when.Local().Format(preciseTime), why).
		WithHint(fmt.Sprintf("%s@latest is the newest that there is, of %s", a.name, newest.Local().Format(preciseTime)))
}

// preciseTime is a time as it is shown where seconds are not enough.
const preciseTime = "2006-01-02T15:04:05.000Z07:00"
