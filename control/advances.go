package control

import (
	"sync"
	"time"

	"tidemark"
)

const (
	// AdvanceEvery is how often it is looked how far timelines have come.
	AdvanceEvery = time.Second
	// windowEvery is how often it is looked from when on any point can be had of what nobody writes to.
	windowEvery = 15 * time.Second
)

// heads is how far timelines have come, as all followers who want to know it share it: however many they are, it is looked once.
type heads struct {
	mu     sync.Mutex       // guards what follows
	looked time.Time        //
	scan   uint64           // counts how often it was looked
	of     map[string]*head // by the ID of a timeline
}

type head struct {
	Advanced
	scan   uint64    // in which it was other than before
	window time.Time // when it was looked at the window
}

// Advanced is how far a timeline has come.
type Advanced struct {
	tidemark.Advance
	Timeline string // its ID
}

func (h *heads) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of, h.looked = nil, time.Time{}
}

// Advances returns which timelines have come further since a look that was returned before, and the newest look. With 0 it returns none.
func (c *Control) Advances(since uint64) (list []Advanced, look uint64) {
	h := &c.changes.heads
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Sub(h.looked) >= AdvanceEvery*9/10 || now.Before(h.looked) {
		h.looked = now
		h.scan++
		h.look(c.linesNow(), now)
	}
	if since > 0 {
		for _, x := range h.of {
			if x.scan > since {
				list = append(list, x.Advanced)
			}
		}
	}
	return list, h.scan
}

// linesNow are the applications, clones and mounts, but for those that nobody has asked for.
func (c *Control) linesNow() (list []app) {
	defer c.Enter()()
	for _, a := range c.apps() {
		if !a.hidden() {
			list = append(list, a)
		}
	}
	return list
}

// look notes which timelines have come further.
func (h *heads) look(list []app, now time.Time) {
	before := h.of
	h.of = make(map[string]*head, len(list))
	for _, a := range list {
		id := a.t.ID()
		x, known := before[id]
		if !known {
			x = &head{}
		}
		h.of[id] = x
		pos, at := a.t.Head()
		next := Advanced{Advance: tidemark.Advance{Application: a.name, Position: pos, Time: at.UTC(), Oldest: x.Oldest}, Timeline: id}
		if pos != x.Position || now.Sub(x.window) >= windowEvery {
			x.window, next.Oldest = now, oldestOf(a)
		}
		if !known || next.Position != x.Position || !next.Oldest.Equal(x.Oldest) {
			x.Advanced, x.scan = next, h.scan
		}
	}
}

// oldestOf is from when on any point of an application can be had; zero: of no time.
func oldestOf(a app) (oldest time.Time) {
	if !a.journaled() {
		return oldest
	}
	if covered := a.t.Covered(); len(covered) > 0 {
		oldest = covered[0].From.UTC()
	}
	return oldest
}
