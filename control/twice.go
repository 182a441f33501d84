package control

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"tidemark"
)

// Whoever has a copy of a machine has a copy of who it is. Two agents with one identity would push each other out for ever, and whichever is called has disks that the
// other has not. So the first keeps its place as long as it is there and answers, and the second is refused: that one has nothing yet, and to refuse it harms nothing
// that works. An agent that has lost its network, and comes back from somewhere else, is let in when its old connection has not answered for a moment; so is the second
// when the first has ended. Which of them is the right one nobody here knows: that is told.

const (
	// firstAnswers is how long the agent that is connected may take to answer before another one takes its place. It is less than a greeting may take, which waits for that,
	// and less than who was asked over and over is given (agent.ErrSilent), for somebody else is there instead.
	firstAnswers = 8 * time.Second
	// twiceAgain is how often it is told of a host while it goes on.
	twiceAgain = time.Hour
	// twiceLasts is for how long after the second one came it is shown: it comes again each 15 seconds or so.
	twiceLasts = 2 * time.Minute
)

// second is the last agent that was refused since another one of its host was there. Guarded by hosts.mu.
type second struct {
	from netip.Addr
	at   time.Time
	told time.Time
}

// soleCaller refuses the connection of calls of an agent while another one of its host is connected and answers.
func (h *hosts) soleCaller(ctx context.Context, l *hostLink, host string, from netip.Addr) error {
	if !l.agent.Connected() || !l.agent.Answers(ctx, firstAnswers) {
		return nil
	}
	h.mu.Lock()
	l.second.from, l.second.at = from, time.Now()
	tell := l.second.at.Sub(l.second.told) > twiceAgain
	if tell {
		l.second.told = l.second.at
	}
	where := l.from
	h.mu.Unlock()
	if tell {
		h.c.event("warning", "", "host %s connects from two places: %s, where it stays, and %s, which is refused; a copy of its identity runs elsewhere", host, where, from)
	}
	return tidemark.Errorf(tidemark.Conflict, "host %s is connected from %s already, and answers there", host, where).
		WithHint("one of the two machines has a copy of the other's identity: have it join by a name of its own, with another --data")
}

// twice says of a host that two agents are connected as it; empty: they are not.
func (h *hosts) twice(host string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.live[host]
	if l == nil || l.second.at.IsZero() || time.Since(l.second.at) > twiceLasts {
		return ""
	}
	return fmt.Sprintf("it connects from %s, too, and is refused there: a copy of its identity runs elsewhere", l.second.from)
}

// warnOfTwice adds to a status which hosts there are twice.
func (c *Control) warnOfTwice(s *tidemark.Status) {
	c.hosts.mu.Lock()
	names := slices.Sorted(maps.Keys(c.hosts.live))
	c.hosts.mu.Unlock()
	for _, name := range names {
		if what := c.hosts.twice(name); what != "" {
			s.Warnings = append(s.Warnings, fmt.Sprintf("host %s: %s", name, what))
		}
	}
}

// addressOf is where a connection comes from.
func addressOf(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
