package image

import (
	"errors"
	"sync"
	"sync/atomic"
)

// hints is what reads remember of the chunks that a leaf of the tree names. It
// belongs to the cached node, so all images that share the leaf share it. A hint is
// never needed and may be out of date: who follows one checks where it led.
type hints [fanout]hint

// hint says where a chunk was found last: its slot in the cache (a slotRef), its
// record, and that of its base if the record is a patch (spots). It is 24 bytes.
type hint struct{ cached, record, base atomic.Uint64 }

// known reports whether h, which may be nil, leads to a record.
func (h *hint) known() bool { return h != nil && h.record.Load() != 0 }

// forget makes the next read look in the index.
func (h *hint) forget() {
	h.record.Store(0)
	h.base.Store(0)
}

// hintsSize is what the hints of a node take, in bytes.
const hintsSize = fanout * 24

// A spot is a place in a sealed pack in one word, zero if there is none: the
// number of the pack (20 bits), the record's offset (30 bits, as packs have at most a
// GiB), and its length with its head in units of 128 bytes, rounded up (14 bits).
type spot uint64

const (
	spotUnit   = 128
	spotLength = 14
	spotPack   = 30 + spotLength
)

func (w spot) off() int64 { return int64(w >> spotLength & (1<<30 - 1)) }
func (w spot) length() int64 {
	return int64(w&(1<<spotLength-1)) * spotUnit
}

// packNumbers gives packs numbers that fit in a spot. A number is never used
// for another pack; when all are used up, reads do without hints.
type packNumbers struct {
	mu     sync.Mutex
	last   uint64 // guarded by mu
	blocks [1024]atomic.Pointer[[1024]atomic.Pointer[pack]]
}

// pack returns the pack of a number, nil if it has none.
func (t *packNumbers) pack(w spot) *pack {
	b := t.blocks[w>>(spotPack+10)].Load()
	if b == nil {
		return nil
	}
	return b[w>>spotPack&1023].Load()
}

// number returns the number of a pack, zero if there is none left.
func (t *packNumbers) number(p *pack) uint64 {
	if n := p.number.Load(); n != 0 {
		return n
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := p.number.Load(); n != 0 || t.last == 1<<20-1 {
		return n
	}
	t.last++
	b := t.blocks[t.last>>10].Load()
	if b == nil {
		b = new([1024]atomic.Pointer[pack])
		t.blocks[t.last>>10].Store(b)
	}
	b[t.last&1023].Store(p)
	p.number.Store(t.last)
	return t.last
}

// forget makes all spots in a pack lead nowhere.
func (t *packNumbers) forget(p *pack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := p.number.Swap(0); n != 0 {
		t.blocks[n>>10].Load()[n&1023].Store(nil)
	}
}

// remember notes in h where a record was found, if that is worth it: open packs
// are read without a hint until they are sealed. marked is the count of
// damage marks from before the record was looked up.
func (s *Store) remember(h *atomic.Uint64, p *pack, at place, marked uint64) {
	if h == nil || at.bad || !p.sealed.Load() || at.off >= 1<<30 {
		return
	}
	number := s.numbers.number(p)
	if number == 0 {
		return
	}
	units := uint64(headSize+at.length+spotUnit-1) / spotUnit
	h.Store(number<<spotPack | uint64(at.off)<<spotLength | units)
	if s.marked.Load() != marked { // it may be this very record that was found to be damaged
		h.Store(0)
	}
}

// errWait: what is wanted cannot be had without waiting, or only a slower look can tell.
var errWait = errors.New("would wait")

// hinted reads the record that a hint leads to, with now only if that takes no
// waiting. That it fails means nothing: the index knows better.
func (s *Store) hinted(h *atomic.Uint64, n *Name, k kind, size int, b *buffer, now bool) (found, bool) {
	if h == nil {
		return found{}, false
	}
	w := spot(h.Load())
	if w == 0 {
		return found{}, false
	}
	p := s.numbers.pack(w)
	if p == nil {
		return found{}, false
	}
	rec := grow(&b.record, int(max(0, min(w.length(), p.stored.Load()-w.off()))))
	if now && !s.now.ReadAtNow(p.key, rec, w.off()) || !now && s.readPack(p, rec, w.off()) != nil {
		return found{}, false
	}
	r, body, err := parseRecord(rec)
	if err != nil || r.name != *n || r.kind != k || 1<<r.log != size {
		return found{}, false
	}
	return found{p: p, off: w.off(), codec: r.codec, body: body}, true
}
