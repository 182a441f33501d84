package image

import (
	"sync"
	"sync/atomic"
)

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
	used bool                  // guarded by the shard's mu
	hint atomic.Pointer[hints] // nil until a read asks for it
}

// hints returns the hints of e's names.
func (e *cachedNode) hints() *hints {
	h := e.hint.Load()
	if h == nil {
		e.hint.CompareAndSwap(nil, new(hints))
		h = e.hint.Load()
	}
	return h
}

func newNodeCache(size int64) *nodeCache {
	c := &nodeCache{}
	for i := range c.shards {
		c.shards[i].nodes = map[Name]*cachedNode{}
		c.shards[i].limit = max(4, int(size/(nodeSize+hintsSize))/len(c.shards))
	}
	return c
}

// get returns a node, nil if it is not there.
func (c *nodeCache) get(n *Name) *cachedNode {
	s := &c.shards[n[0]&15]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.nodes[*n]; e != nil {
		e.used = true
		return e
	}
	return nil
}

// put keeps a node and returns what is kept, which may be an equal one that was there.
func (c *nodeCache) put(n *Name, v *node) *cachedNode {
	s := &c.shards[n[0]&15]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.nodes[*n]; e != nil {
		return e
	}
	e := &cachedNode{name: *n, node: v}
	s.nodes[*n] = e
	if len(s.ring) < s.limit {
		s.ring = append(s.ring, e)
		return e
	}
	for s.ring[s.hand].used {
		s.ring[s.hand].used = false
		s.hand = (s.hand + 1) % len(s.ring)
	}
	delete(s.nodes, s.ring[s.hand].name)
	s.ring[s.hand] = e
	s.hand = (s.hand + 1) % len(s.ring)
	return e
}
