package timeline

import (
	"runtime"
	"sync"
	"sync/atomic"

	"tidemark/block"
	"tidemark/image"
	"tidemark/journal"
)

// A layer is the writes to one disk between two positions: a map from each
// block of 4 KiB to where its newest content lies in the journal. Reads take no
// lock; writes to different places of the disk do not wait for each other.
//
// The map is a radix tree: a directory for each GiB, a leaf for each 2 MiB.
// A leaf can hold one location for all its blocks at once (fill), so that the
// discard of a terabyte costs no more than its leaves.
//
// A location grows with its position in the journal. So two writers that race
// for a block need no order between them: the newer location wins whoever
// comes last, and replaying the journal gives the same map.
type layer struct {
	dirs  []atomic.Pointer[dir]
	first uint64 // number of the first segment that locations may point into
	held  *holding
	// blocks counts the entries that were set, for the policy that freezes a layer.
	blocks atomic.Int64
}

type dir [512]atomic.Pointer[leaf]

type leaf struct {
	fill    atomic.Uint64
	entries atomic.Pointer[[leafBlocks]atomic.Uint64]
}

const (
	leafBlocks = 512
	leafBytes  = leafBlocks * block.BlockSize
	dirBytes   = 512 * leafBytes
)

// A location says where the content of a block is: the kind in the lowest two
// bits, above it the offset in its segment (32 bits), above that the segment,
// counted from the layer's first plus one, so that no location is zero.
type location uint64

const (
	inJournal   = 0 // the bytes are in the segment
	isZero      = 1 // the block reads as zeros
	byReference = 2 // a chunk's name is in the segment
)

func (l location) kind() int       { return int(l & 3) }
func (l location) offset() uint32  { return uint32(l >> 2) }
func (l location) segment() uint64 { return uint64(l>>34) - 1 }

func (y *layer) locate(p journal.Place, delta uint32, kind int) location {
	return location((p.Segment.Number()-y.first+1)<<34 | uint64(p.Off+delta)<<2 | uint64(kind))
}

// holding keeps the segments open that a layer's locations point into. It lets
// them go when nobody can reach the layer any more, whoever reads through it.
type holding struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*journal.Segment]
}

func newLayer(size int64, firstSegment uint64) *layer {
	y := &layer{dirs: make([]atomic.Pointer[dir], (size+dirBytes-1)/dirBytes), first: firstSegment, held: &holding{}}
	y.held.list.Store(&[]*journal.Segment{})
	runtime.AddCleanup(y, (*holding).release, y.held)
	return y
}

func (h *holding) release() {
	for _, s := range *h.list.Load() {
		if s != nil {
			s.Release()
		}
	}
}

// hold makes sure that the layer can read segment s.
func (y *layer) hold(s *journal.Segment) {
	i := int(s.Number() - y.first)
	if l := *y.held.list.Load(); i < len(l) && l[i] != nil {
		return
	}
	y.held.mu.Lock()
	defer y.held.mu.Unlock()
	old := *y.held.list.Load()
	if i < len(old) && old[i] != nil {
		return
	}
	list := make([]*journal.Segment, max(len(old), i+1))
	copy(list, old)
	s.Acquire()
	list[i] = s
	y.held.list.Store(&list)
}

func (y *layer) segment(l location) *journal.Segment { return (*y.held.list.Load())[l.segment()] }

// get returns the location of block b, or zero.
func (y *layer) get(b int64) location {
	d := y.dirs[b/(leafBlocks*512)].Load()
	if d == nil {
		return 0
	}
	f := d[b/leafBlocks%512].Load()
	if f == nil {
		return 0
	}
	v := f.fill.Load()
	if e := f.entries.Load(); e != nil {
		v = max(v, e[b%leafBlocks].Load())
	}
	return location(v)
}

// leafAt returns the leaf of block b, made if it is missing.
func (y *layer) leafAt(b int64) *leaf {
	slot := &y.dirs[b/(leafBlocks*512)]
	d := slot.Load()
	if d == nil {
		slot.CompareAndSwap(nil, new(dir))
		d = slot.Load()
	}
	f := d[b/leafBlocks%512].Load()
	if f == nil {
		d[b/leafBlocks%512].CompareAndSwap(nil, new(leaf))
		f = d[b/leafBlocks%512].Load()
	}
	return f
}

func (f *leaf) table() *[leafBlocks]atomic.Uint64 {
	e := f.entries.Load()
	if e == nil {
		f.entries.CompareAndSwap(nil, new([leafBlocks]atomic.Uint64))
		e = f.entries.Load()
	}
	return e
}

// put records one journal record of this layer's disk. The record's range is
// aligned to blocks; chunk is the disk's chunk size.
func (y *layer) put(r *journal.Record, p journal.Place, chunk int64) {
	y.hold(p.Segment)
	first, last := r.Off/block.BlockSize, (r.Off+r.Len+block.BlockSize-1)/block.BlockSize
	switch r.Kind {
	case journal.Write:
		for b := first; b < last; b++ {
			y.set(b, y.locate(p, uint32((b-first)*block.BlockSize), inJournal))
		}
	case journal.Reference:
		for b := first; b < last; b++ {
			i := (b - first) * block.BlockSize / chunk
			y.set(b, y.locate(p, uint32(i)*uint32(len(image.Name{})), byReference))
		}
	case journal.Zero:
		y.fill(first, last, y.locate(p, 0, isZero))
	}
	y.blocks.Add(last - first)
}

func (y *layer) set(b int64, l location) {
	raise(&y.leafAt(b).table()[b%leafBlocks], uint64(l))
}

// fill gives blocks [first, last) one location.
func (y *layer) fill(first, last int64, l location) {
	for b := first; b < last; {
		if b%leafBlocks == 0 && last-b >= leafBlocks {
			raise(&y.leafAt(b).fill, uint64(l))
			b += leafBlocks
			continue
		}
		y.set(b, l)
		b++
	}
}

// raise stores v unless something newer is there.
func raise(a *atomic.Uint64, v uint64) {
	for {
		old := a.Load()
		if old >= v || a.CompareAndSwap(old, v) {
			return
		}
	}
}

// empty reports whether no block of [first, last) is in the layer, looking only at leaves.
func (y *layer) empty(first, last int64) bool {
	for b := first; b < last; b += leafBlocks - b%leafBlocks {
		if d := y.dirs[b/(leafBlocks*512)].Load(); d == nil {
			b += (leafBlocks*512 - b%(leafBlocks*512)) - (leafBlocks - b%leafBlocks)
		} else if d[b/leafBlocks%512].Load() != nil {
			return false
		}
	}
	return true
}

// leaves calls fn with the first block of every leaf of the layer, in order, until it fails.
func (y *layer) leaves(fn func(first int64) error) error {
	for i := range y.dirs {
		d := y.dirs[i].Load()
		if d == nil {
			continue
		}
		for j := range d {
			if d[j].Load() == nil {
				continue
			}
			if err := fn(int64(i)*leafBlocks*512 + int64(j)*leafBlocks); err != nil {
				return err
			}
		}
	}
	return nil
}
