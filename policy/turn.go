package policy

import "time"

// Turn is the instant after now, and at most a day after it, at which what [Judge] answers may become worse because time goes by. While nothing is
// done, and nothing more is covered or given up by a journal or log, it answers the same until then, but for ages. c is what it, or
// [Assess], answered at now.
func Turn(t Template, h History, c Compliance, now time.Time) time.Time {
	turn := now.Add(day)
	at := func(limit time.Time) { // what is true until limit, and no longer
		if !limit.Before(now) {
			turn = earlier(turn, limit.Add(1))
		}
	}
	if t.RPO != 0 {
		exposed := c.Newest
		if exposed.IsZero() {
			exposed = h.Since
		}
		at(exposed.Add(time.Duration(t.RPO)))
	}
	for _, due := range Next(t, h, now) {
		at(due.Promised.Add(t.grace(due.Policy)))
	}
	return turn
}
