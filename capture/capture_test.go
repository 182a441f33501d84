package capture

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"tidemark/internal/shared"
)

func TestSplitMakesChanges(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const size = 64 << 20
	for range 20000 {
		off := rng.Int64N(size)
		n := 1 + rng.Int64N(min(size-off, 1<<rng.IntN(24)))
		if rng.IntN(2) == 0 {
			off, n = off&^511, (n+511)&^511
		}
		if off+n > size {
			continue
		}
		at := off
		err := Split(off, n, func(o, l int64) error {
			if o != at {
				t.Fatalf("piece at %d after %d", o, at)
			}
			at += l
			c := Change{Off: o, Len: l, Data: make([]byte, l)}
			return c.Check(size)
		})
		if err != nil || at != off+n {
			t.Fatalf("%d bytes at %d: came to %d: %v", n, off, at, err)
		}
	}
}

func TestCheck(t *testing.T) {
	data := make([]byte, MaxChange)
	const size = 10<<20 + 512
	for _, c := range []struct {
		off, n int64
		data   []byte
		ok     bool
	}{
		{0, 4096, data[:4096], true},
		{512, 3584, data[:3584], true},
		{512, 3585, data[:3585], false}, // reaches into the next block
		{0, 8192, nil, true},
		{0, size, nil, true}, // zeros may be long
		{10 << 20, 512, data[:512], true},
		{10<<20 - 4096, 4096 + 512, nil, true}, // up to the end of the disk
		{10 << 20, 513, nil, false},
		{0, 0, nil, false},
		{0, -1, nil, false},
		{-4096, 4096, nil, false},
		{math.MaxInt64 - 10, 4096, nil, false},
		{0, 4096, data[:4095], false},
		{4096, MaxChange, data, false}, // crosses a multiple
		{MaxChange, MaxChange, data, true},
		{1024, 7168, nil, false}, // half a block and a whole one
	} {
		err := (&Change{Off: c.off, Len: c.n, Data: c.data}).Check(size)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrChange) {
			t.Errorf("%d bytes at %d with %d of data: %v", c.n, c.off, len(c.data), err)
		}
	}
}

func TestOwn(t *testing.T) {
	m, err := shared.New(8192)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	copy(m.Bytes()[4096:], "what was put")
	c := Change{Off: 4096, Len: 512, Data: m.Bytes()[4096:4608], Memory: m, At: 4096}
	c.Sum = shared.Sum(c.Data)
	torn := c
	if err := c.Own(); err != nil || c.Memory != nil || string(c.Data[:12]) != "what was put" {
		t.Fatalf("%q: %v", c.Data[:12], err)
	}
	clear(m.Bytes())
	if err := c.Own(); err != nil || string(c.Data[:12]) != "what was put" {
		t.Errorf("one's own data: %q, %v", c.Data[:12], err)
	}
	if err := torn.Own(); !errors.Is(err, ErrChanged) || torn.Memory == nil {
		t.Errorf("data that have changed: %v", err)
	}
}
