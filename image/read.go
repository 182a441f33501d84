package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

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

// load decodes the content named n, of len(dst) bytes, into dst.
func (s *Store) load(n Name, k kind, dst []byte) error {
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	for try := 0; ; try++ {
		err := s.loadOnce(n, k, dst, b)
		// A record that reclaim has moved is found at its new place.
		if errors.Is(err, errGone) && try < 3 {
			continue
		}
		return err
	}
}

func (s *Store) loadOnce(n Name, k kind, dst []byte, b *buffer) error {
	at, p, err := s.locate(n)
	if err != nil {
		return err
	}
	body, err := s.record(p, at, n, k, len(dst), b)
	if err != nil {
		return err
	}
	if at.codec != codecPatch {
		return corrupt(decodeFull(at.codec, dst, body), p, at, n)
	}
	patch := append(b.body[:0], body...)
	b.body = patch
	base, q, err := s.locate(patchBase(patch))
	if err != nil {
		return fmt.Errorf("base of patch %s: %w", n.short(), err)
	}
	if base.codec == codecPatch {
		return &CorruptError{Pack: p.key, Offset: at.off, Name: n, What: "the base of a patch is a patch"}
	}
	if body, err = s.record(q, base, patchBase(patch), k, len(dst), b); err != nil {
		return fmt.Errorf("base of patch %s: %w", n.short(), err)
	}
	if err := decodeFull(base.codec, dst, body); err != nil {
		return corrupt(err, q, base, patchBase(patch))
	}
	if k == kindNode {
		return corrupt(decodeNodePatch(dst, patch), p, at, n)
	}
	return corrupt(decodeChunkPatch(dst, patch, &b.plain), p, at, n)
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
	if s.cache.get(&n, chunk, p, off) {
		s.count.cacheHits.Add(1)
		return nil
	}
	return s.readMiss(n, chunk, p, off)
}

func (s *Store) readMiss(n Name, chunk int, p []byte, off int) error {
	mu := &s.loads[(int(n[0])|int(n[1])<<8)%len(s.loads)]
	mu.Lock()
	defer mu.Unlock()
	if s.cache.get(&n, chunk, p, off) { // somebody else decoded it meanwhile
		s.count.cacheHits.Add(1)
		return nil
	}
	if s.closed.Load() {
		return ErrClosed
	}
	s.count.cacheMisses.Add(1)
	if len(p) == chunk {
		if err := s.load(n, kindChunk, p); err != nil {
			return err
		}
		s.cache.put(&n, p)
		return nil
	}
	b := buffers.Get().(*buffer)
	defer buffers.Put(b)
	content := grow(&b.content, chunk)
	if err := s.load(n, kindChunk, content); err != nil {
		return err
	}
	s.cache.put(&n, content)
	copy(p, content[off:])
	return nil
}

// Warm brings a chunk into the cache if it is not there. It is a hint.
func (s *Store) warm(ctx context.Context, n Name, chunk int) error {
	if n.IsZero() || s.cache.get(&n, chunk, nil, 0) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.readMiss(n, chunk, nil, 0)
}
