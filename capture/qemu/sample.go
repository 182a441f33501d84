package qemu

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"tidemark/block"
)

// A bitmap is a hint of software that has been wrong before, and knows nothing of what was done to an image behind QEMU's back.
// So some blocks of which it says nothing are compared before it is believed.

const (
	// samples is how many blocks of a disk are compared beside those that the bitmap names.
	samples = 64
	// sampleTries is how often a block is looked at that differs: the machine stores a write of its guest before it sends it on.
	sampleTries = 20
	sampleAfter = 50 * time.Millisecond
)

// wantMarked adds what a bitmap names to what is compared. If it does not name all that differs, the disk is not known any more.
func (p *puller) wantMarked(ctx context.Context, s *side, bitmap string) error {
	var clean []extent
	err := s.source.extents(bitmapContext(bitmap), stateDirty, 0, s.size, func(e extent, dirty bool) error {
		if dirty {
			s.want(e)
		} else {
			clean = append(clean, e)
		}
		return nil
	})
	if err != nil {
		return err
	}
	at, err := s.strange(ctx, sample(clean))
	if err != nil || at < 0 {
		return err
	}
	p.m.Logger.Error("the machine's bitmap lacks a change: all of the disk is compared", "socket", p.m.Socket, "disk", s.node.ID(), "offset", at)
	s.known = false
	// The next run must not believe it either, should this one not come to its end.
	return p.m.Target.SetAnchor(strconv.Itoa(-(p.current - 1)))
}

// sample picks blocks of ranges at random.
func sample(ranges []extent) (picked []extent) {
	var total int64
	for _, e := range ranges {
		total += e.n
	}
	for range samples {
		if total == 0 {
			return nil
		}
		at := rand.Int64N(total)
		for _, e := range ranges {
			if at < e.n {
				off := at / block.BlockSize * block.BlockSize
				picked = append(picked, extent{e.off + off, min(block.BlockSize, e.n-off)})
				break
			}
			at -= e.n
		}
	}
	return picked
}

// strange returns where one of some ranges differs though the guest has not written it since the mirror began; -1 if none does.
func (s *side) strange(ctx context.Context, ranges []extent) (int64, error) {
	defer s.pulling.Store(nil)
	for _, x := range ranges {
		w := s.open(x.off, x.n)
		for try := 1; ; try++ {
			same, err := s.sameAt(w)
			if err != nil {
				return -1, err
			}
			if same {
				break
			}
			if try == sampleTries {
				return x.off, nil
			}
			select {
			case <-ctx.Done():
				return -1, ctx.Err()
			case <-s.down:
				return -1, s.why()
			case <-time.After(sampleAfter):
			}
		}
	}
	return -1, nil
}

// sameAt compares a window, unless the guest has written or discarded there since it was opened: then it says nothing.
func (s *side) sameAt(w *window) (bool, error) {
	theirs, ours := make([]byte, w.n), make([]byte, w.n)
	if err := s.source.read(theirs, w.off); err != nil {
		return false, err
	}
	if _, err := s.port.disk.ReadAt(ours, w.off); err != nil {
		return false, err
	}
	if bytes.Equal(theirs, ours) || s.doubts.touches(w.off, w.n) {
		return true, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pushed) > 0, nil
}
