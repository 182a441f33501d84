package image

import (
	"context"
	"fmt"
	"sync/atomic"

	"tidemark/block"
)

// prefetchers is how many chunks are decoded ahead at the same time, in the whole store.
const prefetchers = 4

// leafSlots is the largest number of leaves a view remembers: of 16 KiB chunks a leaf
// covers 4 MiB, so 4 GiB of disk are looked up without a step through the tree.
const leafSlots = 1024

// View reads an image. It is a [block.Reader] that knows its holes and can read
// ahead. All methods may be called concurrently. It keeps nothing from being reclaimed:
// what marks the root does.
type View struct {
	s      *Store
	root   Root
	height int
	shift  uint
	leaves []atomic.Pointer[leaf] // as many as are of use: a power of two
}

type leaf struct {
	index int64
	node  *node
	hints *hints // nil of zeroLeaf
}

// zeroLeaf is the leaf of any chunks of zeros.
var zeroLeaf = leaf{node: &zeroNode}

var (
	_ block.Reader     = (*View)(nil)
	_ block.Extenter   = (*View)(nil)
	_ block.Prefetcher = (*View)(nil)
)

// View returns a reader of an image. It does no I/O; a root that is not in the
// store, or is no root, shows when it is read.
func (s *Store) View(root Root) *View {
	v := &View{s: s, root: root, height: root.heightOrZero()}
	for root.Chunk>>v.shift > 1 {
		v.shift++
	}
	n := 1
	for v.height > 0 && n < leafSlots && int64(n)*fanout < root.Chunks() {
		n *= 2
	}
	v.leaves = make([]atomic.Pointer[leaf], n)
	return v
}

func (r Root) heightOrZero() int {
	if r.Check() != nil {
		return 0
	}
	return r.height()
}

// Root returns the image that v reads.
func (v *View) Root() Root { return v.root }

// Size implements [block.Reader].
func (v *View) Size() int64 { return v.root.Size }

// leaf returns the leaf with chunk i; if memory is set, nil when that takes I/O.
func (v *View) leaf(i int64, memory bool) (*leaf, error) {
	at := i >> fanBits
	if v.height == 0 {
		return nil, v.root.Check()
	}
	slot := &v.leaves[at&int64(len(v.leaves)-1)]
	if l := slot.Load(); l != nil && l.index == at {
		return l, nil
	}
	name := v.root.Name
	for level := v.height - 1; ; level-- {
		if name.IsZero() {
			return &zeroLeaf, nil
		}
		e := v.s.nodes.get(&name)
		if e == nil {
			if memory {
				return nil, nil
			}
			var err error
			if e, err = v.s.cachedNode(name); err != nil {
				return nil, err
			}
		}
		if level == 0 {
			l := &leaf{index: at, node: e.node, hints: e.hints()}
			slot.Store(l)
			return l, nil
		}
		name = e.node[i>>(fanBits*level)&(fanout-1)]
	}
}

// ChunkName returns the name of chunk i.
func (v *View) ChunkName(i int64) (Name, error) {
	if i < 0 || i >= v.root.Chunks() {
		return Name{}, fmt.Errorf("%w: chunk %d of %d", block.ErrBounds, i, v.root.Chunks())
	}
	l, err := v.leaf(i, false)
	if err != nil {
		return Name{}, fmt.Errorf("image %v: %w", v.root, err)
	}
	return l.node[i&(fanout-1)], nil
}

// ReadAt implements [block.Reader]. Of what is cached a read takes well under a
// microsecond and no memory.
func (v *View) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	if off < 0 || int64(n) > v.root.Size-off {
		return 0, block.Check(v, off, int64(n))
	}
	for len(p) > 0 {
		i, at := off>>v.shift, int(off&int64(v.root.Chunk-1))
		part := p[:min(len(p), v.root.Chunk-at)]
		l, err := v.leaf(i, false)
		if err == nil {
			if n := &l.node[i&(fanout-1)]; n.IsZero() {
				clear(part)
			} else {
				err = v.s.readChunk(*n, v.root.Chunk, part, at, &l.hints[i&(fanout-1)])
			}
		}
		if err != nil {
			return 0, fmt.Errorf("image %v, chunk %d: %w", v.root, i, err)
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return n, nil
}

// TryReadAt fills p if that takes no waiting. With decode, what is not decoded yet is decoded, some 30
// microseconds, if its record was read before and its pack is in memory still. ok is
// false if that is not so, and p then unspecified. It never blocks on I/O.
func (v *View) TryReadAt(p []byte, off int64, decode bool) (ok bool, err error) {
	if off < 0 || int64(len(p)) > v.root.Size-off {
		return false, block.Check(v, off, int64(len(p)))
	}
	for len(p) > 0 {
		i, at := off>>v.shift, int(off&int64(v.root.Chunk-1))
		part := p[:min(len(p), v.root.Chunk-at)]
		l, err := v.leaf(i, true)
		if l == nil || err != nil {
			return false, err
		}
		if n := &l.node[i&(fanout-1)]; n.IsZero() {
			clear(part)
		} else if h := &l.hints[i&(fanout-1)]; !v.s.cached(n, v.root.Chunk, part, at, h) && !(decode && v.s.readNow(n, v.root.Chunk, part, at, h)) {
			return false, nil
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return true, nil
}

// Extents implements [block.Extenter]: chunks of zeros are holes.
func (v *View) Extents(off, n int64, fn func(block.Extent) bool) error {
	if err := block.Check(v, off, n); err != nil || n == 0 {
		return err
	}
	cur := block.Extent{Off: off}
	for end := off + n; off < end; {
		i := off >> v.shift
		l, err := v.leaf(i, false)
		if err != nil {
			return fmt.Errorf("image %v: %w", v.root, err)
		}
		next := min((i+1)<<v.shift, end)
		hole := l.node[i&(fanout-1)].IsZero()
		if l == &zeroLeaf {
			next = min(((i|(fanout-1))+1)<<v.shift, end)
		}
		if hole != cur.Hole && cur.Len > 0 {
			if !fn(cur) {
				return nil
			}
			cur = block.Extent{Off: off}
		}
		cur.Hole, cur.Len = hole, cur.Len+next-off
		off = next
	}
	fn(cur)
	return nil
}

// Prefetch implements [block.Prefetcher]: it decodes chunks into the cache in the
// background, as far as the store is not busy doing so already.
func (v *View) Prefetch(off, n int64) {
	off, n = max(off, 0), min(n, v.root.Size-off)
	for i := off >> v.shift; n > 0 && i<<v.shift < off+n; i++ {
		select {
		case v.s.prefetch <- struct{}{}:
		default:
			return
		}
		go func() {
			defer func() { <-v.s.prefetch }()
			// A wish, not an order: the read itself will meet the error.
			if l, err := v.leaf(i, false); err == nil && l != &zeroLeaf {
				_ = v.s.warm(context.Background(), l.node[i&(fanout-1)], v.root.Chunk, &l.hints[i&(fanout-1)])
			}
		}()
	}
}
