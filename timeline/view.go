package timeline

import (
	"fmt"

	"tidemark/block"
	"tidemark/image"
)

// A view is a disk at one point: an image, and over it the layers of what was
// written since, newest first. A view never changes, but for the top layer of
// a head, which takes its writes. Reading touches each layer once, whatever
// the length of the history behind it.
type view struct {
	store  *image.Store
	layers []*layer
	base   *image.View
	size   int64
	chunk  int64
}

func newView(store *image.Store, base measured, layers ...*layer) *view {
	return &view{store: store, layers: layers, base: store.View(base.root()), size: base.Size, chunk: int64(base.Chunk)}
}

// find returns where the newest content of block b is: a location and its
// layer, or no layer if it is in the image.
func (v *view) find(b int64) (location, *layer) {
	for _, y := range v.layers {
		if l := y.get(b); l != 0 {
			return l, y
		}
	}
	return 0, nil
}

// run returns how many bytes from off on, at most n, can be read by one step
// with the content of off's block.
func (v *view) run(off, n int64) (l location, y *layer, length int64) {
	b := off / block.BlockSize
	l, y = v.find(b)
	length = block.BlockSize - off%block.BlockSize
	for b++; length < n; b++ {
		next, ny := v.find(b)
		if ny != y || y != nil && !follows(l, next, b-off/block.BlockSize) {
			break
		}
		length += block.BlockSize
	}
	return l, y, min(length, n)
}

// follows reports whether location next, i blocks behind l, continues its content.
func follows(l, next location, i int64) bool {
	switch {
	case next.kind() != l.kind():
		return false
	case l.kind() == isZero:
		return true
	case l.kind() == byReference:
		return next == l
	}
	return next.segment() == l.segment() && int64(next.offset()) == int64(l.offset())+i*block.BlockSize
}

// ReadAt implements [block.Reader].
func (v *view) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(v, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		l, y, n := v.run(at, int64(len(p)-done))
		if err := v.step(p[done:done+int(n)], at, l, y); err != nil {
			return done, fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		done += int(n)
	}
	return len(p), nil
}

// step fills p, one run as found by run, from offset off.
func (v *view) step(p []byte, off int64, l location, y *layer) error {
	if y == nil {
		_, err := v.base.ReadAt(p, off)
		return err
	}
	switch l.kind() {
	case isZero:
		clear(p)
		return nil
	case byReference:
		var name image.Name
		if err := y.segment(l).ReadAt(name[:], l.offset()); err != nil {
			return err
		}
		return v.store.ReadChunk(name, int(v.chunk), p, int(off%v.chunk))
	}
	return y.segment(l).ReadAt(p, l.offset()+uint32(off%block.BlockSize))
}

// TryReadAt fills p if that needs no decoding and no wait for another disk
// than the journal's; it reports whether it did.
func (v *view) TryReadAt(p []byte, off int64, decode bool) (bool, error) {
	if err := block.Check(v, off, int64(len(p))); err != nil {
		return false, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		l, y, n := v.run(at, int64(len(p)-done))
		part := p[done : done+int(n)]
		if y == nil {
			if ok, err := v.base.TryReadAt(part, at, decode); !ok || err != nil {
				return false, err
			}
		} else if l.kind() == byReference {
			return false, nil
		} else if err := v.step(part, at, l, y); err != nil {
			return false, err
		}
		done += int(n)
	}
	return true, nil
}

// Size implements [block.Reader].
func (v *view) Size() int64 { return v.size }

// Extents implements [block.Extenter].
func (v *view) Extents(off, n int64, fn func(block.Extent) bool) error {
	if err := block.Check(v, off, n); err != nil {
		return err
	}
	j := joiner{fn: fn}
	for end := off + n; off < end && !j.stopped; {
		if step := v.untouched(off, end); step > 0 {
			if err := v.base.Extents(off, step, j.add); err != nil {
				return err
			}
			off += step
			continue
		}
		step := min(block.BlockSize-off%block.BlockSize, end-off)
		l, y := v.find(off / block.BlockSize)
		if y != nil {
			j.add(block.Extent{Off: off, Len: step, Hole: l.kind() == isZero})
		} else if err := v.base.Extents(off, step, j.add); err != nil {
			return err
		}
		off += step
	}
	j.end()
	return nil
}

// untouched returns how many bytes from off on, whole leaves at best, have no entry in any layer.
func (v *view) untouched(off, end int64) int64 {
	at := off
	for at < end {
		next := min(end, at-at%leafBytes+leafBytes)
		for _, y := range v.layers {
			if !y.empty(at/block.BlockSize, (next+block.BlockSize-1)/block.BlockSize) {
				return at - off
			}
		}
		at = next
	}
	return at - off
}

// Prefetch implements [block.Prefetcher].
func (v *view) Prefetch(off, n int64) {
	if block.Check(v, off, n) == nil {
		v.base.Prefetch(off, n)
	}
}

// joiner joins adjacent extents of one sort before they are handed on.
type joiner struct {
	fn      func(block.Extent) bool
	last    block.Extent
	stopped bool
}

func (j *joiner) add(e block.Extent) bool {
	if j.last.Len > 0 && j.last.Hole == e.Hole && j.last.Off+j.last.Len == e.Off {
		j.last.Len += e.Len
		return true
	}
	j.end()
	j.last = e
	return !j.stopped
}

func (j *joiner) end() {
	if j.last.Len > 0 && !j.stopped {
		j.stopped = !j.fn(j.last)
	}
	j.last = block.Extent{}
}
