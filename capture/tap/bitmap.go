package tap

import (
	"math/bits"
	"sync/atomic"
)

// bitmap is a set of small numbers. Its words may be memory that a file is mapped to. It may be read by
// anybody; who changes it takes turns with others.
type bitmap struct {
	words []uint64
	n     int64 // numbers are below it
}

func wordsFor(n int64) int64 { return (n + 63) / 64 }

func newBitmap(n int64) bitmap { return bitmap{words: make([]uint64, wordsFor(n)), n: n} }

func (b bitmap) get(i int64) bool { return atomic.LoadUint64(&b.words[i/64])&(1<<(i%64)) != 0 }

// set adds i and reports whether it was absent.
func (b bitmap) set(i int64) bool {
	bit := uint64(1) << (i % 64)
	return atomic.OrUint64(&b.words[i/64], bit)&bit == 0
}

// clear removes i and reports whether it was there.
func (b bitmap) clear(i int64) bool {
	bit := uint64(1) << (i % 64)
	return atomic.AndUint64(&b.words[i/64], ^bit)&bit != 0
}

// setRange adds [first, last) and returns how many were absent.
func (b bitmap) setRange(first, last int64) (added int64) {
	for i := first; i < last; i++ {
		if i%64 == 0 && last-i >= 64 {
			added += 64 - int64(bits.OnesCount64(atomic.SwapUint64(&b.words[i/64], ^uint64(0))))
			i += 63
			continue
		}
		if b.set(i) {
			added++
		}
	}
	return added
}

// next returns the smallest number that is at least i, or n.
func (b bitmap) next(i int64) int64 {
	for i < b.n {
		w := atomic.LoadUint64(&b.words[i/64]) >> (i % 64)
		if w != 0 {
			return min(b.n, i+int64(bits.TrailingZeros64(w)))
		}
		i += 64 - i%64
	}
	return b.n
}

// any reports whether a number of [first, last) is there.
func (b bitmap) any(first, last int64) bool { return b.next(first) < last }

// count returns how many numbers are there.
func (b bitmap) count() (n int64) {
	for i := range b.words {
		n += int64(bits.OnesCount64(atomic.LoadUint64(&b.words[i])))
	}
	return n
}
