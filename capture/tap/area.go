package tap

import (
	"log/slog"

	"tidemark/internal/shared"
)

// area is memory that the slabs of a queue are taken from, and that the sink may be able to read. A slab is written to again only
// when all that was in it was acknowledged as durable; one of an area that was given up, never. The tap's mutex guards it; a nil area is none.
type area struct {
	m    *shared.Memory
	free []int64 // where slabs are that nobody has
	log  *slog.Logger
}

// newArea returns an area for a queue that takes so many bytes, or nil if this host has no such memory.
func newArea(limit int, log *slog.Logger) *area {
	n := limit/segmentSize + 1 // and one that is empty, and the next to be filled
	m, err := shared.New(n * segmentSize)
	if err != nil {
		log.Info("the queue is not shared with the server", "error", err)
		return nil
	}
	a := &area{m: m, log: log}
	for i := range n {
		a.free = append(a.free, int64(n-1-i)*segmentSize)
	}
	return a
}

// slab takes a slab. There is one.
func (a *area) slab() *slab {
	at := a.free[len(a.free)-1]
	a.free = a.free[:len(a.free)-1]
	return &slab{buf: a.m.Bytes()[at : at : at+segmentSize], area: a, at: at}
}

// put takes a slab back, and gives its room to the host.
func (a *area) put(b *slab) {
	if err := a.m.Forget(b.at, segmentSize); err != nil {
		a.log.Warn("the queue keeps memory that it does not need", "error", err)
	}
	a.free = append(a.free, b.at)
}

func (a *area) hold() {
	if a != nil {
		a.m.Hold()
	}
}

func (a *area) release() {
	if a == nil {
		return
	}
	if err := a.m.Release(); err != nil {
		a.log.Warn("the queue keeps memory that it does not need", "error", err)
	}
}

// memory is what a sink is told of, held, or nil.
func (a *area) memory() *shared.Memory {
	if a == nil {
		return nil
	}
	a.m.Hold()
	return a.m
}
