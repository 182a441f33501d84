package blocktest

import (
	"sync"
	"testing"

	"tidemark/block"
)

// array is the simplest disk there is.
type array struct {
	mu sync.RWMutex
	b  []byte
}

func (a *array) Size() int64 { return int64(len(a.b)) }

func (a *array) Flush() error { return nil }

func (a *array) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(a, off, int64(len(p))); err != nil {
		return 0, err
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	return copy(p, a.b[off:]), nil
}

func (a *array) WriteAt(p []byte, off int64) (int, error) {
	if err := block.Check(a, off, int64(len(p))); err != nil {
		return 0, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return copy(a.b[off:], p), nil
}

func (a *array) Discard(off, n int64) error {
	if err := block.Check(a, off, n); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.b[off : off+n])
	return nil
}

// TestArray tests the suite: it accepts a disk that is right.
func TestArray(t *testing.T) {
	a := &array{b: make([]byte, 1<<20+512)}
	Device(t, a, 0, func() block.Device { return a })
	Reader(t, block.ReadOnly(a), a.b)
}
