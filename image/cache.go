package image

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The cache of decoded chunks lives outside the Go heap: gigabytes of it cost the
// garbage collector nothing. Each shard owns slabs of slabSize, cut into slots of
// one chunk size; a slab is taken from the system when it is first needed. When
// all are in use the hand of a CLOCK finds a slot that was not read lately; when a
// chunk size has no slab yet, it takes one over from another.
//
// A slot has a state word: its generation, whether it is valid (holds what it says)
// or busy (being filled), whether it was read lately, and how many readers have it
// pinned. A reader that knows slot and generation, a slotRef, needs neither the map nor
// the mutex: it pins, compares, copies, unpins. Whoever takes a slot away does so
// only while nobody has it pinned, and gives it a new generation, so that no
// reference to the former content is ever good again.
const (
	slabSize  = MaxChunk // so that a slot of any chunk size fits
	maxShards = 32
	slabSlots = slabSize / MinChunk
)

// The state word of a slot.
const (
	statePins  = 1<<22 - 1 // the number of readers
	stateUsed  = 1 << 22   // read since the hand came by
	stateBusy  = 1 << 23   // being filled
	stateValid = 1 << 24
	stateGen   = 26 // the generation begins here: 38 bits
)

// slotRef names the content of a slot: generation<<26 | shard<<21 | slab<<8 | slot.
// Zero is no reference: generations begin with 1.
type slotRef uint64

const (
	refSlab  = 8
	refShard = 21
	refAt    = 1<<refShard - 1
	maxSlabs = 1 << (refShard - refSlab) // of a shard
)

type cache struct {
	shards []cacheShard
	mask   uint32
	mapped atomic.Int64
}

type cacheShard struct {
	mu     sync.Mutex
	number slotRef                // of the shard
	slots  map[Name]uint32        // slab<<8 | slot, of what is valid; guarded by mu
	slabs  []atomic.Pointer[slab] // limit of them at first; changed under mu
	limit  int                    // of slabs; guarded by mu
	count  int                    // of slabs in use; guarded by mu
	hand   uint32                 // slab<<8 | slot; guarded by mu
	closed bool                   // guarded by mu
}

// slab is memory cut into slots. Cutting it anew makes a new slab with the same states.
type slab struct {
	mem   []byte
	chunk int
	state *[slabSlots]atomic.Uint64
	names []Name // of the slots; zero if free; guarded by the shard's mu
	free  int    // slots never filled are the last ones: free of them; guarded by the shard's mu
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
		c.shards[i].number = slotRef(i)
		c.shards[i].limit = min(slabs/n, maxSlabs)
		c.shards[i].slabs = make([]atomic.Pointer[slab], c.shards[i].limit)
		c.shards[i].slots = map[Name]uint32{}
	}
	return c
}

func (c *cache) shard(n *Name) *cacheShard {
	return &c.shards[binary.LittleEndian.Uint32(n[4:])&c.mask]
}

// bytes is the memory the cache holds.
func (c *cache) bytes() int64 { return c.mapped.Load() }

// read copies from offset off of the chunk that r refers to, if it is still there
// and has chunk bytes.
func (c *cache) read(r slotRef, chunk int, p []byte, off int) bool {
	at := uint32(r & refAt)
	b := c.shards[r>>refShard&(maxShards-1)].slabs[at>>refSlab].Load()
	if b == nil || b.chunk != chunk {
		return false
	}
	state := &b.state[at&(slabSlots-1)]
	w := state.Add(1)
	ok := w&stateValid != 0 && w>>stateGen == uint64(r)>>stateGen
	if ok {
		copy(p, b.mem[int(at&(slabSlots-1))*chunk+off:])
		if w&stateUsed == 0 {
			state.Or(stateUsed)
		}
	}
	state.Add(^uint64(0))
	return ok
}

// find returns a reference to a chunk by its name, zero if it is not cached.
func (c *cache) find(n *Name) slotRef {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.slots[*n]
	if !ok {
		return 0
	}
	return s.ref(at)
}

// ref refers to what slot at holds now. The caller holds mu.
func (s *cacheShard) ref(at uint32) slotRef {
	gen := s.slabs[at>>refSlab].Load().state[at&(slabSlots-1)].Load() >> stateGen
	return slotRef(gen<<stateGen) | s.number<<refShard | slotRef(at)
}

// get copies from offset off of a cached chunk; it returns a reference to it, zero if it is not there.
func (c *cache) get(n *Name, chunk int, p []byte, off int) slotRef {
	if r := c.find(n); r != 0 && c.read(r, chunk, p, off) {
		return r
	}
	return 0
}

// filling is a slot that its holder fills, and then keeps or drops.
type filling struct {
	s    *cacheShard
	name Name
	at   uint32
	mem  []byte
}

// reserve finds a slot for a chunk of that name that is not cached; ok is false if there is none to be had.
func (c *cache) reserve(n *Name, chunk int) (f filling, ok bool) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.slots[*n]; ok || s.closed || s.limit == 0 {
		return filling{}, false
	}
	at, ok := s.slot(c, chunk)
	if !ok {
		return filling{}, false
	}
	i := int(at & (slabSlots - 1))
	return filling{s: s, name: *n, at: at, mem: s.slabs[at>>refSlab].Load().mem[i*chunk : (i+1)*chunk : (i+1)*chunk]}, true
}

// keep makes what was filled in known, and returns a reference to it.
func (f *filling) keep() slotRef {
	s := f.s
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.slabs[f.at>>refSlab].Load()
	state := &b.state[f.at&(slabSlots-1)]
	if _, ok := s.slots[f.name]; ok { // somebody else was faster
		state.And(^uint64(stateBusy))
		return 0
	}
	b.names[f.at&(slabSlots-1)] = f.name
	s.slots[f.name] = f.at
	state.Or(stateValid)
	state.And(^uint64(stateBusy))
	return s.ref(f.at)
}

// drop gives the slot back.
func (f *filling) drop() {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	f.s.slabs[f.at>>refSlab].Load().state[f.at&(slabSlots-1)].And(^uint64(stateBusy))
}

// put keeps a copy of a chunk.
func (c *cache) put(n *Name, content []byte) {
	if f, ok := c.reserve(n, len(content)); ok {
		copy(f.mem, content)
		f.keep()
	}
}

// slot finds a slot for a chunk and makes it busy. The caller holds mu.
func (s *cacheShard) slot(c *cache, chunk int) (uint32, bool) {
	own := false
	for i := range s.count {
		b := s.slabs[i].Load()
		if b.chunk != chunk {
			continue
		}
		own = true
		if b.free > 0 {
			j := len(b.names) - b.free
			if s.take(b, j) {
				b.free--
				return uint32(i<<refSlab | j), true
			}
		}
	}
	if s.count < s.limit {
		mem, err := unix.Mmap(-1, 0, slabSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err == nil {
			c.mapped.Add(slabSize)
			s.slabs[s.count].Store(&slab{mem: mem, state: new([slabSlots]atomic.Uint64)})
			s.count++
			return s.recut(s.count-1, chunk)
		}
		s.limit = s.count // no memory: be content with what there is
	}
	if s.count == 0 {
		return 0, false
	}
	if !own {
		return s.recut(int(s.hand>>refSlab)%s.count, chunk)
	}
	return s.evict(chunk)
}

// take makes slot j of b busy and forgets its content; not if it is busy or pinned. The caller holds mu.
func (s *cacheShard) take(b *slab, j int) bool {
	if !take(&b.state[j]) {
		return false
	}
	delete(s.slots, b.names[j])
	b.names[j] = Name{}
	return true
}

// take makes a slot busy, in a new generation; not if it is busy or pinned.
func take(state *atomic.Uint64) bool {
	w := state.Load()
	return w&(statePins|stateBusy) == 0 && state.CompareAndSwap(w, (w>>stateGen+1)<<stateGen|stateBusy)
}

// recut empties slab i, cuts it into slots of another size, and returns the
// first; it fails if the slab is in use. The caller holds mu.
func (s *cacheShard) recut(i, chunk int) (uint32, bool) {
	b := s.slabs[i].Load()
	taken := 0
	for taken < slabSlots && take(&b.state[taken]) {
		taken++
	}
	for j := range taken {
		if taken < slabSlots || j > 0 {
			b.state[j].And(^uint64(stateBusy))
		}
	}
	for j, n := range b.names[:min(taken, len(b.names))] {
		delete(s.slots, n)
		b.names[j] = Name{}
	}
	if taken < slabSlots {
		return 0, false
	}
	count := slabSize / chunk
	s.slabs[i].Store(&slab{mem: b.mem, chunk: chunk, state: b.state, names: make([]Name, count), free: count - 1})
	return uint32(i << refSlab), true
}

// evict moves the hand to a slot of that chunk size which was not read since it
// came by last, and takes it; it fails if all are in use. The caller holds mu.
func (s *cacheShard) evict(chunk int) (uint32, bool) {
	for range 3 * s.count * slabSlots { // twice around, and some steps over what is of another size
		i, j := int(s.hand>>refSlab), int(s.hand&(slabSlots-1))
		if i >= s.count {
			i, j = 0, 0
		}
		b := s.slabs[i].Load()
		if b.chunk != chunk || j >= len(b.names) {
			s.hand = uint32((i + 1) % s.count << refSlab)
			continue
		}
		s.hand = uint32(i<<refSlab | j + 1)
		if j+1 == len(b.names) {
			s.hand = uint32((i + 1) % s.count << refSlab)
		}
		if b.state[j].Load()&stateUsed != 0 {
			b.state[j].And(^uint64(stateUsed))
			continue
		}
		if s.take(b, j) {
			return uint32(i<<refSlab | j), true
		}
	}
	return 0, false
}

// forget drops a chunk whose record turned out to be damaged.
func (c *cache) forget(n *Name) {
	s := c.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.slots[*n]; ok {
		delete(s.slots, *n)
		b := s.slabs[at>>refSlab].Load()
		b.names[at&(slabSlots-1)] = Name{}
		b.state[at&(slabSlots-1)].And(^uint64(stateValid))
	}
}

// close gives the memory back when nobody reads or fills it any more.
func (c *cache) close() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		closed := s.closed
		s.closed = true
		clear(s.slots)
		s.mu.Unlock()
		if closed {
			continue
		}
		for j := range s.count { // nobody adds to them any more
			b := s.slabs[j].Load()
			for k := range b.state {
				for !take(&b.state[k]) {
					time.Sleep(10 * time.Microsecond)
				}
			}
			_ = unix.Munmap(b.mem) // fails only for memory that is not ours
			c.mapped.Add(-slabSize)
		}
	}
}
