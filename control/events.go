package control

import (
	"context"
	"sync"

	"tidemark"
)

// bell wakes those who wait for the next event.
type bell struct {
	mu   sync.Mutex
	next chan struct{} // closed at the next event; nil: nobody waits. Guarded by mu
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != nil {
		close(b.next)
		b.next = nil
	}
}

// EventRecorded returns a channel that is closed when the next event has been recorded by this process. Whoever asks for it before it
// looks at the events misses none.
func (c *Control) EventRecorded() <-chan struct{} {
	c.bell.mu.Lock()
	defer c.bell.mu.Unlock()
	if c.bell.next == nil {
		c.bell.next = make(chan struct{})
	}
	return c.bell.next
}

// EventsAfter lists the oldest n events whose numbers are above after, oldest first.
func (c *Control) EventsAfter(ctx context.Context, after int64, n int) ([]tidemark.Event, error) {
	return c.catalog.EventsAfter(ctx, after, n)
}
