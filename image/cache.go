package image

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The cache of decoded chunks lives outside the Go heap: gigabytes of it cost the
// garbage collector nothing. Each shard owns slabs of slabSize, cut into slots of
// one chunk size; a slab is taken from the system when it is first needed. When
// all are in use the hand of a CLOCK finds a slot that was not read lately; when a
// chunk size has no slab yet, it takes one over from another.
const (
	slabSize  = MaxChunk // so that a slot of any chunk size fits
	maxShards = 32
)

type cache struct {
	shards []cacheShard
	mask   uint32
	mapped atomic.Int64
}

type cacheShard struct {
	mu     sync.Mutex
	slots  map[Name]uint32 // slab<<8 | slot; guarded by mu
	slabs  []slab          // guarded by mu
	limit  int             // of slabs
	hand   uint32          // slab<<8 | slot; guarded by mu
	closed bool            // guarded by mu
}

type slab struct {
	mem   []byte
	chunk int
	names []Name // of the slots; zero if free
	used  []bool // read since the hand came by
	free  int    // slots never filled are the last ones: free of them
}

// newCache returns a cache of at most size bytes; none if size is negative.
func newCache(size int64) *cache {
	slabs := int(max(size, 0) / slabSize)
	n := 1
	for n < maxShards && slabs/(2*n) >= 4 {
		n *= 2
	}
	c := &cache{shards: make([]cacheShard, n), mask: uint32(n - 1)}
	for i := range c.shards {
		c.shards[i].limit = slabs / n
		c.shards[i].slots = map[Name]uint32{}
	}
	return c
}

func (c *cache) shard(n *Name) *cacheShard {
	return &c.shards[binary.LittleEndian.Uint32(n[4:])&c.mask]
}

// bytes is the memory the cache holds.
func (c *cache) bytes() int64 { return c.mapped.Load() }

// get copies from offset off of a cached chunk; it reports whether it is there.
func (c *cache) get(n *Name, chunk int, p []byte, off int) bool {
	s := c.shard(n)
	s.mu.Lock()
	at, ok := s.slots[*n]
	if ok {
		b := &s.slabs[at>>8]
		if ok = b.chunk == chunk; ok {
			b.used[at&255] = true
			copy(p, b.mem[int(at&255)*chunk+off:])
		}
	}
	s.mu.Unlock()
	return ok
}

// put keeps a copy of a chunk.
func (c *cache) put(n *Name, content []byte) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.slots[*n]; ok || s.closed || s.limit == 0 {
		return
	}
	at, ok := s.slot(c, len(content))
	if !ok {
		return
	}
	b := &s.slabs[at>>8]
	b.names[at&255], b.used[at&255] = *n, false
	copy(b.mem[int(at&255)*b.chunk:], content)
	s.slots[*n] = at
}

// slot finds a slot for a chunk. The caller holds mu.
func (s *cacheShard) slot(c *cache, chunk int) (uint32, bool) {
	own := false
	for i := range s.slabs {
		b := &s.slabs[i]
		if b.chunk != chunk {
			continue
		}
		own = true
		if b.free > 0 {
			b.free--
			return uint32(i)<<8 | uint32(len(b.names)-b.free-1), true
		}
	}
	if len(s.slabs) < s.limit {
		mem, err := unix.Mmap(-1, 0, slabSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			c.mapped.Add(slabSize)
			s.slabs = append(s.slabs, slab{mem: mem})
			return s.recut(len(s.slabs)-1, chunk), true
		}
		s.limit = len(s.slabs) // no memory: be content with what there is
	}
	if len(s.slabs) == 0 {
		return 0, false
	}
	if !own {
		return s.recut(int(s.hand>>8)%len(s.slabs), chunk), true
	}
	return s.evict(chunk), true
}

// recut empties slab i, cuts it into slots of another size, and returns the first. The caller holds mu.
func (s *cacheShard) recut(i, chunk int) uint32 {
	b := &s.slabs[i]
	for _, n := range b.names {
		delete(s.slots, n)
	}
	// At most 256 slots: chunks are at least 4 KiB.
	count := slabSize >> bits.TrailingZeros(uint(chunk))
	*b = slab{mem: b.mem, chunk: chunk, names: make([]Name, count), used: make([]bool, count), free: count - 1}
	return uint32(i) << 8
}

// evict moves the hand to a slot of that chunk size which was not read since it
// came by last, and empties it. The caller holds mu, and there is such a slab.
func (s *cacheShard) evict(chunk int) uint32 {
	for {
		i, j := int(s.hand>>8), int(s.hand&255)
		if i >= len(s.slabs) {
			i, j = 0, 0
		}
		b := &s.slabs[i]
		if b.chunk != chunk || j >= len(b.names) {
			s.hand = uint32((i+1)%len(s.slabs)) << 8
			continue
		}
		s.hand = uint32(i)<<8 | uint32(j+1)
		if j+1 == len(b.names) {
			s.hand = uint32((i+1)%len(s.slabs)) << 8
		}
		if b.used[j] {
			b.used[j] = false
			continue
		}
		delete(s.slots, b.names[j])
		return uint32(i)<<8 | uint32(j)
	}
}

// forget drops a chunk whose record turned out to be damaged.
func (c *cache) forget(n *Name) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.slots[*n]; ok {
		delete(s.slots, *n)
		s.slabs[at>>8].names[at&255] = Name{}
	}
}

// close gives the memory back.
func (c *cache) close() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.closed = true
		clear(s.slots)
		for _, b := range s.slabs {
			_ = unix.Munmap(b.mem) // fails only for memory that is not ours
			c.mapped.Add(-slabSize)
		}
		s.slabs = nil
		s.mu.Unlock()
	}
}

// nodeCache keeps decoded tree nodes, on the heap because readers hold on to them.
type nodeCache struct {
	shards [16]nodeShard
}

type nodeShard struct {
	mu    sync.Mutex
	nodes map[Name]*cachedNode // guarded by mu
	ring  []*cachedNode        // guarded by mu
	hand  int                  // guarded by mu
	limit int
}

type cachedNode struct {
	name Name
	node *node
	used bool
}

func newNodeCache(size int64) *nodeCache {
	c := &nodeCache{}
	for i := range c.shards {
		c.shards[i].nodes = map[Name]*cachedNode{}
		c.shards[i].limit = max(4, int(size/nodeSize)/len(c.shards))
	}
	return c
}

func (c *nodeCache) get(n *Name) *node {
	s := &c.shards[n[0]&15]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.nodes[*n]; e != nil {
		e.used = true
		return e.node
	}
	return nil
}

func (c *nodeCache) put(n *Name, v *node) {
	s := &c.shards[n[0]&15]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[*n] != nil {
		return
	}
	e := &cachedNode{name: *n, node: v}
	s.nodes[*n] = e
	if len(s.ring) < s.limit {
		s.ring = append(s.ring, e)
		return
	}
	for s.ring[s.hand].used {
		s.ring[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.ring)
	}
	delete(s.nodes, s.ring[s.hand].name)
	s.ring[s.hand] = e
	s.hand = (s.hand + 1) % len(s.ring)
}
