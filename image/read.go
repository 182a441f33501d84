package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"tidemark/object"
)

// buffer is working memory of one read or write of a chunk.
type buffer struct{ record, content, base, plain, body []byte }

var buffers = sync.Pool{New: func() any { return new(buffer) }}

func grow(p *[]byte, n int) []byte {
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	return (*p)[:n]
}

// errGone: the pack went away between the look at the index and the read.
var errGone = errors.New("pack is gone")

// load decodes the content named n, of len(dst) bytes, into dst. h is what is
// known of n, or nil.
func (s *Store) load(n Name, k kind, dst []byte, h *hint) error {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	for try := 0; ; try++ {
		known := h.known()
		err := s.loadOnce(n, k, dst, h, b, false)
		switch {
		case err == nil:
			return nil
		case try == 3:
		case known:
			// The hint led to a record as it should be, but its base is gone or
			// damaged. The index may know of one that was stored since.
			h.forget()
			continue
		case errors.Is(err, errGone): // a record that reclaim has moved is found at its new place
			continue
		}
		return err
	}
}

// loadOnce is load; with now it ends with errWait where it would wait.
func (s *Store) loadOnce(n Name, k kind, dst []byte, h *hint, b *buffer, now bool) error {
	var record, base *atomic.Uint64
	if h != nil {
		record, base = &h.record, &h.base
	}
	r, err := s.fetch(n, k, len(dst), record, b, now)
	if err != nil {
		return err
	}
	if r.codec != codecPatch {
		return r.corrupt(decodeFull(r.codec, dst, r.body), n)
	}
	patch := append(b.body[:0], r.body...)
	b.body = patch
	name := patchBase(patch)
	q, err := s.fetch(name, k, len(dst), base, b, now)
	if err == errWait {
		return err
	}
	if err != nil {
		return fmt.Errorf("base of patch %s: %w", n.short(), err)
	}
	if q.codec == codecPatch {
		return &CorruptError{Pack: r.p.key, Offset: r.off, Name: n, What: "the base of a patch is a patch"}
	}
	if err := decodeFull(q.codec, dst, q.body); err != nil {
		return q.corrupt(err, name)
	}
	if k == kindNode {
		return r.corrupt(decodeNodePatch(dst, patch), n)
	}
	return r.corrupt(decodeChunkPatch(dst, patch, &b.plain), n)
}

// found is a record that was read and checked. Its body is in a buffer.
type found struct {
	p     *pack
	off   int64
	codec codec
	body  []byte
}

// corrupt says where a decoding error was met; it passes nil on.
func (r *found) corrupt(err error, n Name) error {
	if err == nil {
		return nil
	}
	return &CorruptError{Pack: r.p.key, Offset: r.off, Name: n, What: err.Error()}
}

// fetch reads the record of n, of a content of size bytes, where the hint says or
// else where the index does; with now, errWait instead of the latter.
func (s *Store) fetch(n Name, k kind, size int, h *atomic.Uint64, b *buffer, now bool) (found, error) {
	if r, ok := s.hinted(h, &n, k, size, b, now); ok {
		return r, nil
	}
	if now {
		return found{}, errWait
	}
	marked := s.marked.Load()
	at, p, err := s.locate(n)
	if err != nil {
		return found{}, err
	}
	body, err := s.record(p, at, n, k, size, b)
	if err != nil {
		return found{}, err
	}
	s.remember(h, p, at, marked)
	return found{p: p, off: at.off, codec: at.codec, body: body}, nil
}

// corrupt says where a decoding error was met; it passes nil on.
func corrupt(err error, p *pack, at place, n Name) error {
	if err == nil {
		return nil
	}
	return &CorruptError{Pack: p.key, Offset: at.off, Name: n, What: err.Error()}
}

// record reads the body of the record at a place and checks that it is the one looked for.
func (s *Store) record(p *pack, at place, n Name, k kind, size int, b *buffer) ([]byte, error) {
	rec := grow(&b.record, headSize+at.length)
	if err := s.readPack(p, rec, at.off); err != nil {
		switch {
		case errors.Is(err, object.ErrNotFound) && s.pack(p.id) == nil:
			return nil, errGone
		case errors.Is(err, object.ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil, &CorruptError{Pack: p.key, Offset: at.off, Name: n, What: err.Error()}
		}
		return nil, fmt.Errorf("read chunk %s: %w", n.short(), err)
	}
	h, body, err := parseRecord(rec)
	if err != nil {
		return nil, corrupt(err, p, at, n)
	}
	if h.name != n || h.kind != k || h.codec != at.codec || 1<<h.log != size || h.length != at.length {
		return nil, &CorruptError{Pack: p.key, Offset: at.off, Name: n, What: fmt.Sprintf("another record is there: %s of %d bytes", h.name.short(), 1<<h.log)}
	}
	return body, nil
}

// ReadChunk fills p from offset off of the chunk named n, which has chunk bytes,
// through the cache. Errors: [ErrMissing], a [CorruptError], or what the medium said.
func (s *Store) ReadChunk(n Name, chunk int, p []byte, off int) error {
	if off < 0 || off > chunk || len(p) > chunk-off {
		return fmt.Errorf("read of %d bytes at %d of a chunk of %d", len(p), off, chunk)
	}
	if n.IsZero() {
		clear(p)
		return nil
	}
	return s.readChunk(n, chunk, p, off, nil)
}

// cached fills p from the cache, if the chunk is there. h is what is known of n, or nil.
func (s *Store) cached(n *Name, chunk int, p []byte, off int, h *hint) bool {
	if h != nil {
		if r := slotRef(h.cached.Load()); r != 0 && s.cache.read(r, chunk, p, off) {
			return true
		}
	}
	r := s.cache.get(n, chunk, p, off)
	if r != 0 && h != nil {
		h.cached.Store(uint64(r))
	}
	return r != 0
}

// readChunk is ReadChunk of a name that is not zero, within its bounds.
func (s *Store) readChunk(n Name, chunk int, p []byte, off int, h *hint) error {
	if s.cached(&n, chunk, p, off, h) {
		s.count.cacheHits.Add(1)
		return nil
	}
	mu := s.loading(&n)
	mu.Lock()
	defer mu.Unlock()
	if s.cached(&n, chunk, p, off, h) { // somebody else decoded it meanwhile
		s.count.cacheHits.Add(1)
		return nil
	}
	if s.closed.Load() {
		return ErrClosed
	}
	s.count.cacheMisses.Add(1)
	return s.decode(n, chunk, p, off, h, func(dst []byte) error { return s.load(n, kindChunk, dst, h) })
}

// loading is held by who decodes n for the cache.
func (s *Store) loading(n *Name) *sync.Mutex {
	return &s.loads[(int(n[0])|int(n[1])<<8)%len(s.loads)]
}

// nowChunk is the largest chunk that is decoded while other requests wait behind
// it: some 50 microseconds at the speed of zstd.
const nowChunk = 64 << 10

// readNow is readChunk if that takes no waiting: the record is where the hint
// says, and the bucket has it in memory. Else it returns false.
func (s *Store) readNow(n *Name, chunk int, p []byte, off int, h *hint) bool {
	if chunk > nowChunk || s.now == nil || h.record.Load() == 0 || s.closed.Load() {
		return false
	}
	mu := s.loading(n)
	if !mu.TryLock() {
		return false
	}
	defer mu.Unlock()
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	if s.decode(*n, chunk, p, off, h, func(dst []byte) error { return s.loadOnce(*n, kindChunk, dst, h, b, true) }) != nil {
		return false // whatever it is, a read that may wait will tell
	}
	s.count.cacheMisses.Add(1)
	return true
}

// decode has load fill the content of a chunk, if possible right into the cache, and p from that.
func (s *Store) decode(n Name, chunk int, p []byte, off int, h *hint, load func(dst []byte) error) error {
	f, ok := s.cache.reserve(&n, chunk)
	switch {
	case ok:
		if err := load(f.mem); err != nil {
			f.drop()
			return err
		}
		copy(p, f.mem[off:])
		if r := f.keep(); h != nil {
			h.cached.Store(uint64(r))
		}
		return nil
	case len(p) == chunk:
		return load(p)
	}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	content := grow(&b.content, chunk)
	if err := load(content); err != nil {
		return err
	}
	copy(p, content[off:])
	return nil
}

// warm brings a chunk into the cache if it is not there. It is a hint.
func (s *Store) warm(ctx context.Context, n Name, chunk int, h *hint) error {
	if n.IsZero() || s.cached(&n, chunk, nil, 0, h) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.readChunk(n, chunk, nil, 0, h)
}
