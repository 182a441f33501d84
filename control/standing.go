package control

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// How promises stand is found where it is looked what is due, and kept: the status, the metrics and what is told of it go by that, and so cost nothing
// where there are thousands of applications.

// compliance is how a promise was found to be kept.
type compliance struct {
	policy.Compliance      // but for the worst RPO
	streams           bool // there is a journal or log, or was promised: how far that is, is looked at every minute
	// since is since when the state is another one than was told; zero: it is not.
	since time.Time
}

// worseFor is how long a promise has to be worse than was told before that is told: behind a start of the server, an agent or a host, what comes by
// itself is there again within less.
var worseFor = time.Minute

// stand keeps how a promise stands, tells of it, and returns when it has to be looked at again.
func (c *Control) stand(a app, t policy.Template, h policy.History, now time.Time) time.Time {
	s := compliance{Compliance: policy.Assess(t, h, now), streams: t.CDP != nil || t.Log != nil || len(h.Covered) > 0}
	again := policy.Turn(t, h, s.Compliance, now)
	if s.streams {
		again = earlier(again, now.Add(lookPromises))
	}
	switch told := c.stood(a, &s, now); {
	case s.State == told || told == policy.OK && awaited(s.Compliance, h, now):
	case told.Worse(s.State) && undecided(policy.Next(t, h, now), now):
		again = earlier(again, now.Add(lookPromises))
	default:
		again = earlier(again, c.tellStanding(a, s, told, now))
	}
	return again
}

// standUnknown is stand where the template is not known.
func (c *Control) standUnknown(a app, p promise, now time.Time) time.Time {
	s := compliance{Compliance: unknownTemplate(a, p, now)}
	if told := c.stood(a, &s, now); s.State != told {
		return c.tellStanding(a, s, told, now)
	}
	return now.Add(siftEvery)
}

// unknownTemplate is how a promise stands whose template is lost.
func unknownTemplate(a app, p promise, now time.Time) policy.Compliance {
	return policy.Compliance{Application: a.name, Template: p.Template, Judged: now, State: policy.Unprotected,
		Reasons: []string{"its template is not known: `tidemark apply` brings it back"}}
}

// stood puts a standing in place of the one before, and returns the state that was told last.
func (c *Control) stood(a app, s *compliance, now time.Time) (told policy.State) {
	p, id := &c.promises, a.t.ID()
	_, s.Group = a.promised()
	p.mu.Lock()
	defer p.mu.Unlock()
	told = policy.OK
	if r := p.records[id]; r != nil && r.Told != "" {
		told = r.Told
	}
	if s.State != told {
		if s.since = p.standings[id].since; s.since.IsZero() || now.Before(s.since) {
			s.since = now
		}
	}
	if p.standings == nil {
		p.standings = map[string]compliance{}
	}
	p.standings[id] = *s
	return told
}

// awaited reports whether there is nothing yet that could be recovered, and it is not yet time that there should be: what was promised just now takes
// its time. Where it is not said what may be lost, that is until a policy is late.
func awaited(x policy.Compliance, h policy.History, now time.Time) bool {
	if x.State != policy.Unprotected {
		return false
	}
	for _, r := range h.Runs {
		if r.State == policy.RunDone {
			return false // there was something
		}
	}
	if x.RPO.Promised != 0 {
		return now.Sub(h.Since) <= time.Duration(x.RPO.Promised)
	}
	return len(x.Overdue) == 0
}

// undecided reports whether what was late is on its way, and may fail once more: a run that was begun, or is to begin now, makes nobody late, but it has
// mended nothing yet.
func undecided(list []policy.Due, now time.Time) bool {
	for _, d := range list {
		owed := (d.Policy == policy.PolicyCapture || d.Policy == policy.PolicyVerify) && !d.Promised.After(now)
		if d.Running || owed {
			return true
		}
	}
	return false
}

// tellStanding tells that a promise stands otherwise than was told, once: what is worse, when it has lasted. It returns when that is to be looked at again.
// What was told is noted behind it, so after a kill between the two it is told once more.
func (c *Control) tellStanding(a app, s compliance, told policy.State, now time.Time) time.Time {
	if s.State.Worse(told) && now.Sub(s.since) < worseFor {
		return s.since.Add(worseFor)
	}
	level, message := "error", s.broken()
	switch s.State {
	case policy.OK:
		level, message = "info", fmt.Sprintf("what %s promises to %s is kept again", s.Template, a.name)
	case policy.Late:
		level, message = "warning", fmt.Sprintf("what %s promises to %s is late: %s", s.Template, a.name, strings.Join(s.Reasons, "; "))
	}
	c.log.Info(message, "application", a.name, "level", level)
	if err := c.addEvent(level, a.name, a.firstID(), message); err != nil {
		c.log.Error("an event was not recorded", "error", err)
		return now.Add(lookPromises)
	}
	c.note(a.t.ID(), func(k *record) { k.Told = s.State })
	return now.Add(siftEvery)
}

// broken says that a promise is not kept.
func (s compliance) broken() string {
	return fmt.Sprintf("what %s promises to %s is not kept: it is %s (%s)", s.Template, s.Application, s.State, strings.Join(s.Reasons, "; "))
}

// unpromised forgets how a promise stood that is no more.
func (c *Control) unpromised(id string) {
	p := &c.promises
	p.mu.Lock()
	delete(p.standings, id)
	r := p.records[id]
	told := r != nil && r.Told != ""
	p.mu.Unlock()
	if told {
		c.note(id, func(k *record) { k.Told = "" })
	}
}

// standingsNow are the standings of the applications that there are, by their names.
func (c *Control) standingsNow() (list []compliance) {
	all := c.set.List()
	p := &c.promises
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range all {
		if s, ok := p.standings[t.ID()]; ok {
			list = append(list, s)
		}
	}
	return list
}

// Standings says of each application that has a template how its promise stood when that was last looked at, which is as soon as it can have become
// worse: it asks nobody. Ages are those of now, but where there is a journal or log: there they are of the last minute. The worst RPO is not told.
func (c *Control) Standings() []policy.Compliance {
	list, now := []policy.Compliance{}, clockNow()
	for _, s := range c.standingsNow() {
		if !s.streams && !s.Newest.IsZero() {
			age := policy.Duration(max(0, (now.Sub(s.Newest) + time.Second - 1).Truncate(time.Second)))
			s.RPO.Measured = &age
		}
		list = append(list, s.Compliance)
	}
	return list
}

// mostBroken is how many promises that are not kept the status names.
const mostBroken = 5

// warnOfPromises names in the status promises that are not kept.
func (c *Control) warnOfPromises(s *tidemark.Status) {
	n := 0
	for _, x := range c.standingsNow() {
		if x.State != policy.Violated && x.State != policy.Unprotected {
			continue
		}
		if n++; n <= mostBroken {
			s.Warnings = append(s.Warnings, x.broken())
		}
	}
	if n > mostBroken {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d more promises are not kept: `tidemark sla`", n-mostBroken))
	}
}

// Connected says of each host that has joined whether its agent is connected.
func (c *Control) Connected(ctx context.Context) (map[string]bool, error) {
	known, err := catalog.List[keptHost](ctx, c.catalog, catalog.Hosts)
	hosts := map[string]bool{}
	for _, k := range known {
		if k.Joined != nil {
			x, err := c.agentOn(k.Name)
			hosts[k.Name] = err == nil && x.Connected()
		}
	}
	return hosts, err
}
