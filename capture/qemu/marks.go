package qemu

import (
	"math/bits"
	"sync/atomic"
)

// granule is the grain, in bytes, of our marks and of QEMU's dirty bitmaps: they are compared.
const granule = 64 << 10

// marks are a set of granules of a disk. All methods may be called concurrently.
type marks struct {
	words []atomic.Uint64
	n     atomic.Int64 // granules in the set
}

func newMarks(size int64) *marks {
	return &marks{words: make([]atomic.Uint64, (size/granule)/64+1)}
}

// add puts all granules of a range into the set.
func (m *marks) add(off, n int64) {
	if n <= 0 {
		return
	}
	for g := off / granule; g <= (off+n-1)/granule; g++ {
		bit := uint64(1) << (g % 64)
		if m.words[g/64].Or(bit)&bit == 0 {
			m.n.Add(1)
		}
	}
}

// touches reports whether a granule of a range is in the set.
func (m *marks) touches(off, n int64) bool {
	for g := off / granule; n > 0 && g <= (off+n-1)/granule; g++ {
		if m.words[g/64].Load()&(1<<(g%64)) != 0 {
			return true
		}
	}
	return false
}

// bytes is how much the set covers, in whole granules.
func (m *marks) bytes() int64 { return m.n.Load() * granule }

// take empties the set, and returns its ranges in order.
func (m *marks) take(size int64) (list []extent) {
	for i := range m.words {
		w := m.words[i].Swap(0)
		m.n.Add(-int64(bits.OnesCount64(w)))
		for w != 0 {
			g := int64(i*64 + bits.TrailingZeros64(w))
			w &= w - 1
			off := g * granule
			n := min(granule, size-off)
			if k := len(list); k > 0 && list[k-1].off+list[k-1].n == off {
				list[k-1].n += n
				continue
			}
			list = append(list, extent{off, n})
		}
	}
	return list
}

// extent is a range of a disk.
type extent struct{ off, n int64 }

func (e extent) overlaps(off, n int64) bool { return off < e.off+e.n && e.off < off+n }

// without returns what of e none of holes touches, in order.
func (e extent) without(holes []extent) (list []extent) {
	list = []extent{e}
	for _, h := range holes {
		var next []extent
		for _, x := range list {
			if !x.overlaps(h.off, h.n) {
				next = append(next, x)
				continue
			}
			if h.off > x.off {
				next = append(next, extent{x.off, h.off - x.off})
			}
			if end := h.off + h.n; end < x.off+x.n {
				next = append(next, extent{end, x.off + x.n - end})
			}
		}
		list = next
	}
	return list
}
