package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Session is a writer's lease on the store: nothing that was put in it, found to be there already,
// or held, is reclaimed until it ends. Write down what must stay (in a place that the mark of
// [Store.Reclaim] reads) before End. All methods may be called concurrently.
type Session struct {
	s     *Store
	id    uint64
	ended atomic.Bool

	// writes is set before the first look for what is there already. Until then
	// the session counts on nothing but what it holds, and a reclaim need not wait for it.
	writes atomic.Bool

	mu   sync.Mutex
	held map[Root]bool // bases and results of commits; guarded by mu

	puts, hits, stored, records atomic.Int64
}

// SessionStats say what a session did.
type SessionStats struct {
	ChunksPut   int64 // chunks given to Put
	DedupHits   int64 // of these, zeros and chunks the store had
	StoredBytes int64 // that the store grew by, nodes and heads included
	Records     int64 // that the store grew by
}

// sessions is the table of those that have not ended.
type sessions struct {
	mu     sync.Mutex
	next   uint64              // guarded by mu
	active map[uint64]*Session // guarded by mu
	keep   map[Root]bool       // what sessions held that ended while a reclaim ran; nil if none runs; guarded by mu
	ended  chan struct{}       // closed and replaced when one ends; guarded by mu
}

// Begin starts a session. It must be ended.
func (s *Store) Begin() *Session {
	t := &s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active == nil {
		t.active = map[uint64]*Session{}
	}
	t.next++
	x := &Session{s: s, id: t.next, held: map[Root]bool{}}
	t.active[x.id] = x
	return x
}

// End ends the session: what it wrote is kept from now on only if something marks
// it. A second End does nothing.
func (x *Session) End() {
	if x.ended.Swap(true) {
		return
	}
	t := &x.s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.active, x.id)
	if t.keep != nil {
		x.mu.Lock()
		for r := range x.held {
			t.keep[r] = true
		}
		x.mu.Unlock()
	}
	if t.ended != nil {
		close(t.ended)
		t.ended = nil
	}
}

// Hold keeps an image until the session ends, even if nothing else marks it any
// more. The image must be marked, or held elsewhere, while Hold is called.
func (x *Session) Hold(r Root) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.held[r] = true
}

// Stats returns what the session did so far.
func (x *Session) Stats() SessionStats {
	return SessionStats{ChunksPut: x.puts.Load(), DedupHits: x.hits.Load(), StoredBytes: x.stored.Load(), Records: x.records.Load()}
}

// isZero reports that p, which is not empty, is all zeros.
func isZero(p []byte) bool { return p[0] == 0 && string(p[1:]) == string(p[:len(p)-1]) }

// Put stores a chunk if the store does not have it, and returns its name. prev
// is the chunk that was in its place before, or zero: content may be stored as
// its difference from that. What is put is durable after [Store.Sync].
//
// The last chunk of a disk that ends within it must be filled up with zeros.
// After an error (a full disk, say) nothing of content is stored; the session goes on.
func (x *Session) Put(content []byte, prev Name) (Name, error) {
	if n := len(content); n < MinChunk || n > MaxChunk || bits.OnesCount(uint(n)) != 1 {
		return Name{}, fmt.Errorf("%w: chunk of %d bytes", ErrBadRoot, n)
	}
	if x.ended.Load() {
		return Name{}, fmt.Errorf("put in an ended session: %w", ErrClosed)
	}
	x.writes.Store(true)
	x.puts.Add(1)
	x.s.count.puts.Add(1)
	if isZero(content) {
		x.hits.Add(1)
		x.s.count.zeros.Add(1)
		return Name{}, nil
	}
	name := Name(sha256.Sum256(content))
	had, err := x.store(name, kindChunk, content, prev)
	if err == nil && x.s.index.waiting.Load() > maxWaiting {
		err = x.s.Sync()
	}
	if err != nil {
		return Name{}, fmt.Errorf("put chunk: %w", err)
	}
	if had {
		x.hits.Add(1)
		x.s.count.hits.Add(1)
	} else {
		x.s.count.logical.Add(int64(len(content)))
	}
	return name, nil
}

// patchable returns prev, or nothing if name must not become a patch: a name that
// has a full record, though it is damaged or about to be deleted, keeps having one. For
// somebody may have chosen that very name as the base of a patch, which is on its way.
func (s *Store) patchable(name, prev Name) (Name, error) {
	at, known, err := s.index.get(name)
	if known && at.codec != codecPatch {
		return Name{}, err
	}
	return prev, err
}

// maxWaiting is how many index entries may wait in memory for a Sync: some 15 MB.
const maxWaiting = 1 << 17

// store keeps a record of content unless there is one that a new reference may
// count on. One goroutine at a time decides about one name.
func (x *Session) store(name Name, k kind, content []byte, prev Name) (had bool, err error) {
	s := x.s
	if err := s.ready(); err != nil {
		return false, err
	}
	mu := &s.names[name[0]]
	mu.Lock()
	defer mu.Unlock()
	if _, ok, err := s.usable(name); ok || err != nil {
		return ok, err
	}
	if !prev.IsZero() {
		if prev, err = s.patchable(name, prev); err != nil {
			return false, err
		}
	}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	h := head{kind: k, name: name, log: uint8(bits.TrailingZeros(uint(len(content))))}
	var body []byte
	if h.codec, body, err = s.encode(k, content, prev, name, b); err != nil {
		return false, err
	}
	if _, err := s.append(h, body); err != nil {
		return false, err
	}
	x.stored.Add(int64(headSize + len(body)))
	x.records.Add(1)
	return false, nil
}

// A patch is taken without a look at the full encoding if it is shorter than
// 1/quickShare of the content, and else if it is shorter than patchShare percent of that.
const (
	quickShare = 8
	patchShare = 60
)

// encode chooses the encoding of content. The body is in b, or content itself.
func (s *Store) encode(k kind, content []byte, prev, name Name, b *buffer) (codec, []byte, error) {
	var patch []byte
	if !prev.IsZero() && prev != name {
		base, ok, err := s.baseOf(prev, k, len(content), b)
		switch {
		case err != nil:
			return 0, nil, err
		case ok && k == kindNode:
			patch = encodeNodePatch(b.body[:0], content, b.base, base)
		case ok:
			patch = encodeChunkPatch(b.body[:0], content, b.base, base, &b.plain)
		}
		if patch != nil {
			b.body = patch
		}
		if patch != nil && len(patch) <= len(content)/quickShare {
			return codecPatch, patch, nil
		}
	}
	c, full := encodeFull(b.record, content, s.o.Fast)
	b.record = full
	if patch != nil && len(patch)*100 <= len(full)*patchShare {
		return codecPatch, patch, nil
	}
	return c, full, nil
}

// baseOf puts into b.base the content a patch against prev stands on: prev's if
// its record is full, or that of prev's own base. That it cannot be used is no error.
func (s *Store) baseOf(prev Name, k kind, size int, b *buffer) (Name, bool, error) {
	at, ok, err := s.usable(prev)
	if err != nil || !ok || at.kind != k || 1<<at.log != size {
		return Name{}, false, err
	}
	name := prev
	if at.codec == codecPatch {
		name = at.base
	}
	content := grow(&b.base, size)
	b.base = content
	if k == kindChunk && s.cache.get(&name, size, content, 0) != 0 {
		return name, true, nil
	}
	var damage *CorruptError
	err = s.load(name, k, content, nil)
	if errors.As(err, &damage) || errors.Is(err, ErrMissing) {
		return Name{}, false, nil // store the new content whole; the scrub will tell of the old
	}
	return name, err == nil, err
}
