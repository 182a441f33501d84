// Package blocktest holds every disk to the contract of package block: one suite
// for all implementations of [block.Reader] and [block.Device].
//
// [Device] tests a disk that can be written, [Reader] one whose content is
// known. Both find the optional powers by type assertion and test them too.
package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"tidemark/block"
)

// Reader tests that r has the content want, all of it and nothing else.
func Reader(t *testing.T, r block.Reader, want []byte) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("Size is %d, want %d", r.Size(), len(want))
	}
	seed := newSeed(t)
	t.Run("content", func(t *testing.T) { whole(t, r, want) })
	t.Run("bounds", func(t *testing.T) { readBounds(t, r) })
	t.Run("pieces", func(t *testing.T) { pieces(t, r, want, rand.New(rand.NewPCG(seed, 1)), 200) })
	t.Run("concurrent", func(t *testing.T) { concurrent(t, r, want, seed) })
	t.Run("extents", func(t *testing.T) { extents(t, r, want, rand.New(rand.NewPCG(seed, 2))) })
}

// Device tests a disk that is all zeros, and leaves it with other content. Its
// size should be some MiB: it is compared with a model in memory. ops is how many random
// operations are tried, 0 for the default, 20 times as many if TIDEMARK_LONG is set.
//
// The suite closes nothing. Where reopen is not nil it is called after the last Flush, and
// returns the same disk opened anew (it may close the old one): what was flushed must be in it.
func Device(t *testing.T, d block.Device, ops int, reopen func() block.Device) {
	t.Helper()
	if ops == 0 {
		ops = 400
	}
	if os.Getenv("TIDEMARK_LONG") != "" {
		ops *= 20
	}
	seed := newSeed(t)
	model := make([]byte, d.Size())
	t.Run("new", func(t *testing.T) { whole(t, d, model) })
	t.Run("bounds", func(t *testing.T) { readBounds(t, d); writeBounds(t, d, model) })
	t.Run("keeps no reference", func(t *testing.T) { noReference(t, d, model) })
	t.Run("zeros", func(t *testing.T) { zeros(t, d, model) })
	t.Run("random", func(t *testing.T) { random(t, d, model, rand.New(rand.NewPCG(seed, 3)), ops) })
	if t.Failed() {
		return
	}
	t.Run("apart", func(t *testing.T) { apart(t, d, model, seed) })
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if reopen != nil {
		d = reopen()
	}
	t.Run("afterwards", func(t *testing.T) { Reader(t, d, model) })
}

func newSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return seed
}

// whole compares the disk with its content.
func whole(t *testing.T, r block.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	for i := range got {
		got[i] = 0xa5 // what a read that fills nothing leaves
	}
	if n, err := r.ReadAt(got, 0); n != len(got) || err != nil {
		t.Fatalf("read of all: %d, %v", n, err)
	}
	same(t, got, want, 0)
}

func same(t *testing.T, got, want []byte, off int64) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
		}
	}
}

// outside are ranges that no disk of a size has.
func outside(size int64) [][2]int64 {
	return [][2]int64{{-1, 1}, {-1 << 62, 1}, {size, 1}, {size - 1, 2}, {size + 1, 1}, {1<<63 - 1, 1}, {0, size + 1}, {size + 1, 0}, {-1, 0}}
}

func readBounds(t *testing.T, r block.Reader) {
	for _, c := range outside(r.Size()) {
		if n, err := r.ReadAt(make([]byte, c[1]), c[0]); !errors.Is(err, block.ErrBounds) {
			t.Errorf("read of %d bytes at %d: %d, %v, want ErrBounds", c[1], c[0], n, err)
		}
	}
	for _, off := range []int64{0, r.Size() / 2, r.Size()} {
		if n, err := r.ReadAt(nil, off); n != 0 || err != nil {
			t.Errorf("read of nothing at %d: %d, %v", off, n, err)
		}
	}
	if p, ok := r.(block.Prefetcher); ok {
		for _, c := range append(outside(r.Size()), [2]int64{0, r.Size()}, [2]int64{0, 0}, [2]int64{0, -1}) {
			p.Prefetch(c[0], c[1]) // a hint: must do no harm
		}
	}
}

func writeBounds(t *testing.T, d block.Device, model []byte) {
	z, _ := d.(block.Zeroer)
	for _, c := range outside(d.Size()) {
		if _, err := d.WriteAt(bytes.Repeat([]byte{1}, int(c[1])), c[0]); !errors.Is(err, block.ErrBounds) {
			t.Errorf("write of %d bytes at %d: %v, want ErrBounds", c[1], c[0], err)
		}
		if err := d.Discard(c[0], c[1]); !errors.Is(err, block.ErrBounds) {
			t.Errorf("discard of %d bytes at %d: %v, want ErrBounds", c[1], c[0], err)
		}
		if z == nil {
			continue
		}
		if err := z.Zero(c[0], c[1]); !errors.Is(err, block.ErrBounds) {
			t.Errorf("zero of %d bytes at %d: %v, want ErrBounds", c[1], c[0], err)
		}
	}
	for _, off := range []int64{0, d.Size()} {
		n, err := d.WriteAt(nil, off)
		if err := errors.Join(err, d.Discard(off, 0)); n != 0 || err != nil {
			t.Errorf("write and discard of nothing at %d: %d, %v", off, n, err)
		}
	}
	if err := d.Discard(0, -1); err == nil {
		t.Error("discard of a negative length succeeded")
	}
	whole(t, d, model)
}

// noReference changes the bytes of a write after it returned.
func noReference(t *testing.T, d block.Device, model []byte) {
	for _, n := range []int{512, block.BlockSize, min(len(model), 256<<10)} {
		p := bytes.Repeat([]byte{0x77}, n)
		copy(model, p)
		if got, err := d.WriteAt(p, 0); got != n || err != nil {
			t.Fatalf("write: %d, %v", got, err)
		}
		clear(p)
		whole(t, d, model)
	}
}

// zeros overwrites parts of what was written with the two kinds of zeros.
func zeros(t *testing.T, d block.Device, model []byte) {
	for i := range model {
		model[i] = byte(i/512) | 1
	}
	if _, err := d.WriteAt(model, 0); err != nil {
		t.Fatal(err)
	}
	wipe := map[string]func(off, n int64) error{"discard": d.Discard}
	if z, ok := d.(block.Zeroer); ok {
		wipe["zero"] = z.Zero
	}
	at := int64(0)
	for what, fn := range wipe {
		for _, n := range []int64{1, 511, 512, block.BlockSize, block.BlockSize + 1, 3 * block.BlockSize} {
			if at+n > int64(len(model)) {
				t.Fatalf("a disk of %d bytes is too small for this suite", len(model))
			}
			clear(model[at : at+n])
			if err := fn(at, n); err != nil {
				t.Fatalf("%s of %d bytes at %d: %v", what, n, at, err)
			}
			at += n + 512
		}
	}
	whole(t, d, model)
}

// random does operations of all kinds, sizes and alignments.
func random(t *testing.T, d block.Device, model []byte, rng *rand.Rand, ops int) {
	z, _ := d.(block.Zeroer)
	for i := range ops {
		off, n := piece(rng, len(model))
		var err error
		what := "write"
		switch k := rng.IntN(20); {
		case k < 9:
			for i := range n {
				model[off+i] = byte(rng.Uint32())
			}
			_, err = d.WriteAt(model[off:off+n], int64(off))
		case k < 11:
			what = "discard"
			clear(model[off : off+n])
			err = d.Discard(int64(off), int64(n))
		case k < 12 && z != nil:
			what = "zero"
			clear(model[off : off+n])
			err = z.Zero(int64(off), int64(n))
		case k < 13:
			what = "flush"
			err = d.Flush()
		default:
			what = "read"
			got := make([]byte, n)
			if _, err = d.ReadAt(got, int64(off)); err == nil {
				same(t, got, model[off:off+n], int64(off))
			}
		}
		if err != nil {
			t.Fatalf("operation %d: %s of %d bytes at %d: %v", i, what, n, off, err)
		}
	}
	whole(t, d, model)
}

// piece picks a range: mostly of whole blocks, sometimes of anything.
func piece(rng *rand.Rand, size int) (off, n int) {
	grain := []int{block.BlockSize, block.BlockSize, 512, 1}[rng.IntN(4)]
	off = rng.IntN(size/grain) * grain
	most := []int{block.BlockSize, 64 << 10, 256 << 10}[rng.IntN(3)]
	return off, min((1+rng.IntN(max(1, most/grain)))*grain, size-off)
}

// apart writes to different parts of the disk at once; nobody may see another's bytes.
func apart(t *testing.T, d block.Device, model []byte, seed uint64) {
	const writers = 4
	share := len(model) / writers &^ 511
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng, mine := rand.New(rand.NewPCG(seed, uint64(w)+10)), model[w*share:][:share]
			for range 50 {
				off, n := piece(rng, share)
				for i := range n {
					mine[off+i] = byte(rng.Uint32())
				}
				at := int64(w*share + off)
				got := make([]byte, n)
				_, err := d.WriteAt(mine[off:off+n], at)
				if err == nil && rng.IntN(8) == 0 {
					err = d.Flush()
				}
				if err == nil {
					_, err = d.ReadAt(got, at)
				}
				if err == nil && !bytes.Equal(got, mine[off:off+n]) {
					err = fmt.Errorf("wrong bytes at %d+%d", at, n)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	whole(t, d, model)
}

func pieces(t *testing.T, r block.Reader, want []byte, rng *rand.Rand, count int) {
	t.Helper()
	for range count {
		off, n := piece(rng, len(want))
		got := make([]byte, n)
		if m, err := r.ReadAt(got, int64(off)); m != n || err != nil {
			t.Errorf("read of %d bytes at %d: %d, %v", n, off, m, err)
			return
		}
		if !bytes.Equal(got, want[off:off+n]) {
			t.Errorf("wrong bytes at %d+%d", off, n)
			return
		}
	}
}

func concurrent(t *testing.T, r block.Reader, want []byte, seed uint64) {
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { pieces(t, r, want, rand.New(rand.NewPCG(seed, uint64(i)+20)), 50) })
	}
	wg.Wait()
}

// extents checks that extents cover what was asked for, in order, and that holes are zeros.
func extents(t *testing.T, r block.Reader, want []byte, rng *rand.Rand) {
	size := int64(len(want))
	for _, c := range outside(size) {
		if err := block.Extents(r, c[0], c[1], func(block.Extent) bool { return true }); !errors.Is(err, block.ErrBounds) {
			t.Errorf("extents of %d bytes at %d: %v, want ErrBounds", c[1], c[0], err)
		}
	}
	ranges := [][2]int64{{0, size}, {0, 0}, {size, 0}}
	for range 50 {
		off, n := piece(rng, len(want))
		ranges = append(ranges, [2]int64{int64(off), int64(n)})
	}
	for _, c := range ranges {
		at, calls := c[0], 0
		err := block.Extents(r, c[0], c[1], func(e block.Extent) bool {
			calls++
			if e.Off != at || e.Len <= 0 || e.Off+e.Len > c[0]+c[1] {
				t.Fatalf("of [%d,+%d): extent %+v where %d is next", c[0], c[1], e, at)
			}
			at += e.Len
			if e.Hole && len(bytes.Trim(want[e.Off:e.Off+e.Len], "\x00")) > 0 {
				t.Fatalf("%+v is not zeros", e)
			}
			return true
		})
		if err != nil || at != c[0]+c[1] {
			t.Fatalf("of [%d,+%d): up to %d, %v", c[0], c[1], at, err)
		}
		if calls < 2 {
			continue
		}
		seen := 0
		if err := block.Extents(r, c[0], c[1], func(block.Extent) bool { seen++; return false }); seen != 1 || err != nil {
			t.Fatalf("extents went on after false: %d, %v", seen, err)
		}
	}
}
