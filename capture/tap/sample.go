package tap

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"tidemark/capture"
)

// Each samplePace some regions of the disks are compared with what the timeline has: the next sampleRun, so that all is looked at in
// the end, a TiB in 48 days, and one at random.
const (
	samplePace = time.Second
	sampleRun  = 4
)

// sampleAll has the timeline compared with the disks, a little all the time. Nothing else would show that somebody
// writes to a primary past its tap, or that the timeline has lost what it had.
func (t *Tap) sampleAll(ctx context.Context) {
	tick := time.NewTicker(t.o.compare)
	defer tick.Stop()
	next := place{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if t.comparable() && errors.Is(t.sampleSome(&next), ErrClosed) {
			return
		}
	}
}

// sampleSome compares the regions from next on, and one more. The error of one is not that of the others: it says that the primary
// could not be read, which is told by who reads it for himself, or [ErrClosed].
func (t *Tap) sampleSome(next *place) (err error) {
	for range sampleRun {
		err = errors.Join(err, t.sample(*next))
		if next.region++; next.region == t.disks[next.disk].lost.n {
			*next = place{disk: (next.disk + 1) % uint16(len(t.disks))}
		}
	}
	d := t.disks[rand.IntN(len(t.disks))]
	return errors.Join(err, t.sample(place{d.n, rand.Int64N(d.lost.n)}))
}

// comparable reports whether the timeline follows, and has answered for what was compared last.
func (t *Tap) comparable() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.online && !t.gap && t.lost == 0 && t.doubt == nil && !t.queue.hasSample()
}

// sample puts what a region holds into the stream, while nobody writes to it. It is left out where a gap has
// begun meanwhile.
func (t *Tap) sample(p place) error {
	d := t.disks[p.disk]
	s := span{disk: p.disk, off: p.region * regionSize, end: min((p.region+1)*regionSize, d.size)}
	if !t.ranges.enter(s) {
		return ErrClosed
	}
	defer t.ranges.leave(s)
	data := make([]byte, s.end-s.off)
	if _, err := d.primary.ReadAt(data, s.off); err != nil {
		return err
	}
	x := capture.SampleOf(p.disk, s.off, data)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.gap && t.lost == 0 && t.doubt == nil {
		t.queue.putMark(&mark{sample: &x})
		t.filled.Signal()
	}
	return nil
}
