package image

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// hintedStore is a store of one image whose only chunk is a patch, in another pack
// than its base, with hints of both. It returns the chunk.
func hintedStore(t *testing.T, rng *rand.Rand) (s *Store, root Root, content []byte) {
	t.Helper()
	s = mustOpen(t, Options{FS: vfs.NewMem(), Dir: "/pool", Bucket: object.NewMem(), CacheBytes: -1, Logger: quiet})
	base := make([]byte, DefaultChunk)
	page(rng, base)
	x := s.Begin()
	defer x.End()
	b, err := x.Put(base, Name{})
	must(t, err)
	s.endPack()
	content = bytes.Clone(base)
	page(rng, content[4096:8192])
	n, err := x.Put(content, b)
	must(t, err)
	if at, _, err := s.locate(n); err != nil || at.codec != codecPatch {
		t.Fatalf("not a patch: %+v %v", at, err)
	}
	root, err = x.Commit(Empty(DefaultChunk, DefaultChunk), []Change{{Name: n}})
	must(t, err)
	s.endPack()
	must(t, same(s, root, content))
	return s, root, content
}

// leaf0 is the only leaf of an image, with its hints.
func leaf0(t *testing.T, s *Store, root Root) *leaf {
	t.Helper()
	l, err := s.View(root).leaf(0, false)
	must(t, err)
	return l
}

func TestHintOutOfDate(t *testing.T) {
	t.Run("the base is gone", func(t *testing.T) {
		s, root, content := hintedStore(t, seeded(t))
		n := leaf0(t, s, root).node[0]
		at, p, err := s.locate(n)
		must(t, err)
		q, _, err := s.locate(at.base)
		must(t, err)
		// Nobody needs the image for a while: the base's pack goes, that of the patch has other things that stay.
		bp := s.pack(q.pack)
		must(t, s.drop(t.Context(), victim{p: bp, entries: must1(s.footer(bp))(t)}))
		x := s.Begin()
		defer x.End()
		_, err = x.Put(content, Name{})
		must(t, err)
		if again, _, err := s.locate(n); err != nil || again.pack == p.id || again.codec == codecPatch {
			t.Fatalf("not stored anew: %+v %v", again, err)
		}
		must(t, same(s, root, content))
	})
	t.Run("the base is damaged and the chunk was healed", func(t *testing.T) {
		s, root, content := hintedStore(t, seeded(t))
		n := leaf0(t, s, root).node[0]
		at, _, err := s.locate(n)
		must(t, err)
		q, bp, err := s.locate(at.base)
		must(t, err)
		spoil(t, s.o.Bucket, bp.key, q.off+headSize)
		if err := same(s, root, content); err == nil {
			t.Fatal("damage was not met")
		}
		r, err := s.Check(t.Context(), keep(root), func(int64) {})
		must(t, err)
		if len(r.Damage) == 0 {
			t.Fatal("damage was not found")
		}
		x := s.Begin()
		defer x.End()
		_, err = x.Put(content, Name{})
		must(t, err)
		must(t, same(s, root, content))
	})
	t.Run("the pack is gone", func(t *testing.T) {
		s, root, content := hintedStore(t, seeded(t))
		l := leaf0(t, s, root)
		was := l.hints[0].record.Load()
		if was == 0 || l.hints[0].base.Load() == 0 {
			t.Fatal("no hints")
		}
		p := s.numbers.pack(spot(was))
		s.numbers.forget(p)
		must(t, same(s, root, content))
		if now := l.hints[0].record.Load(); now == was || s.numbers.pack(spot(now)) != p {
			t.Fatalf("the pack has the number it had: %x", now)
		}
	})
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T { t.Helper(); must(t, err); return v }
}

// spoil flips a bit of an object in memory.
func spoil(t *testing.T, b object.Bucket, key string, at int64) {
	t.Helper()
	st, err := b.Stat(t.Context(), key)
	must(t, err)
	data := make([]byte, st.Size)
	must(t, b.ReadAt(t.Context(), key, data, 0))
	data[at] ^= 4
	must(t, b.Delete(t.Context(), key))
	must(t, object.PutBytes(t.Context(), b, key, data))
}

// TestCacheRace reads, by name and by references that may be long out of date,
// while others fill, evict, recut and forget: what is read is whole and of the name asked for.
func TestCacheRace(t *testing.T) {
	rng := seeded(t)
	c := newCache(2 * slabSize)
	names := make([]Name, 800)
	for i := range names {
		for j := range names[i] {
			names[i][j] = byte(rng.Uint32())
		}
	}
	refs := make([]atomic.Uint64, len(names))
	var wg sync.WaitGroup
	var hits atomic.Int64
	for range 4 {
		seed := rng.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			p := make([]byte, 64)
			for range rounds(20_000) {
				i := rng.IntN(len(names))
				chunk := MinChunk << (i % 2)
				off := rng.IntN(chunk - len(p))
				if r := slotRef(refs[i].Load()); r != 0 && c.read(r, chunk, p, off) {
					hits.Add(1)
					wantAll(t, p, byte(i))
				} else if r := c.get(&names[i], chunk, p, off); r != 0 {
					wantAll(t, p, byte(i))
					refs[i].Store(uint64(r))
				} else if f, ok := c.reserve(&names[i], chunk); ok {
					for k := range f.mem {
						f.mem[k] = byte(i)
					}
					if rng.IntN(10) == 0 {
						f.drop()
					} else {
						refs[i].Store(uint64(f.keep()))
					}
				}
				if rng.IntN(100) == 0 {
					c.forget(&names[rng.IntN(len(names))])
				}
			}
		})
	}
	wg.Wait()
	if hits.Load() == 0 {
		t.Error("no reference was ever good")
	}
	c.close()
	for i := range names {
		if r := slotRef(refs[i].Load()); r != 0 && c.read(r, MinChunk<<(i%2), nil, 0) {
			t.Fatal("a reference is good after close")
		}
	}
}

func wantAll(t *testing.T, p []byte, v byte) {
	for _, b := range p {
		if b != v {
			t.Errorf("read %d, want %d", b, v)
			return
		}
	}
}
