package tap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
)

// healthy is a Primary that can tell whether it is still the disk that it was.
type healthy interface {
	// Health returns how many bytes from its beginning on the disk still has, and what is wrong with it.
	Health() (sound int64, err error)
}

// remembered is for how long a status tells of a failure that did not come again.
const remembered = time.Hour

// health is what is known of how the primaries do. Its lock is nobody's outer one.
type health struct {
	mu    sync.Mutex
	count int64
	last  error
	when  time.Time
	look  error // what watch saw last
}

// failed notes that a primary did not do what it was asked. What it was asked wrongly is not its fault.
func (h *health) failed(what string, err error) {
	if errors.Is(err, block.ErrBounds) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count++
	h.last, h.when = fmt.Errorf("%s failed: %w", what, err), time.Now()
}

// tell adds to a status what is wrong: what is so now, or else what failed last.
func (h *health) tell(s *Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Failures, s.LastFailure = h.count, h.when
	if err := h.look; err != nil {
		s.Failing = err.Error()
	} else if h.last != nil && time.Since(h.when) < remembered {
		s.Failing = h.last.Error()
	}
}

// saw notes what watch saw, and reports whether that is new.
func (h *health) saw(err error) (changed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = (err == nil) != (h.look == nil) || err != nil && err.Error() != h.look.Error()
	h.look = err
	return changed
}

// watch looks after the primaries, and wakes who waits for them to be calm.
func (t *Tap) watch(ctx context.Context) {
	tick := time.NewTicker(t.o.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.lookAfter()
		t.mu.Lock()
		if t.gap {
			t.changed.Broadcast()
		}
		t.mu.Unlock()
	}
}

// lookAfter looks whether the primaries are still the disks that they were. What one no longer has the timeline
// does not have either.
func (t *Tap) lookAfter() {
	var wrong error
	for _, d := range t.disks {
		p, ok := d.primary.(healthy)
		if !ok {
			continue
		}
		sound, err := p.Health()
		if err == nil {
			continue
		}
		wrong = err
		if sound < d.size {
			t.mu.Lock()
			t.lose(d, sound, d.size-sound, t.o.now().UnixNano(), err.Error())
			t.mu.Unlock()
		}
	}
	if t.health.saw(wrong) {
		if wrong != nil {
			t.log.Error("something is wrong with the disk", "error", wrong)
		} else {
			t.log.Info("the disk is what it was")
		}
	}
}

// doubtful notes that a primary failed a flush: what it has of all that was written since the last flush
// nobody knows, and nothing that is read from it now tells. The timeline lacks that until another tap, of a disk that
// works again, has read it.
func (d *Disk) doubtful(err error) {
	t := d.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.doubt == nil {
		t.doubt = err
	}
	for e := d.active.set.next(0); e < d.active.set.n; e = d.active.set.next(e + 1) {
		off := e * extentSize
		t.lose(d, off, min(extentSize, d.size-off), t.o.now().UnixNano(), fmt.Sprintf("the primary failed: %v", err))
	}
}
