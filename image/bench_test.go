package image

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
)

func benchStore(b *testing.B, cache int64) (*Store, *disk, Root) {
	dir := b.TempDir()
	bucket, err := object.OpenDir(vfs.OS, dir+"/bucket")
	must(b, err)
	s := mustOpen(b, Options{Dir: dir + "/pool", Bucket: bucket, CacheBytes: cache, Logger: quiet})
	rng := rand.New(rand.NewPCG(1, 1))
	d := &disk{chunk: DefaultChunk, data: make([]byte, 32<<20)}
	page(rng, d.data)
	x := s.Begin()
	defer x.End()
	root, err := d.save(x, Empty(int64(len(d.data)), d.chunk), 0, len(d.data)/d.chunk-1)
	must(b, err)
	must(b, s.Sync())
	return s, d, root
}

func BenchmarkReadWarm4K(b *testing.B) {
	s, d, root := benchStore(b, 64<<20)
	must(b, same(s, root, d.data))
	v, p := s.View(root), make([]byte, 4096)
	rng := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.ReadAt(p, rng.Int64N(root.Size/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadCold4K(b *testing.B) {
	s, _, root := benchStore(b, -1)
	v, p := s.View(root), make([]byte, 4096)
	rng := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.ReadAt(p, rng.Int64N(root.Size/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func benchPut(b *testing.B, fast bool) {
	s := mustOpen(b, Options{Dir: b.TempDir(), Bucket: object.NewMem(), Fast: fast, Logger: quiet})
	x := s.Begin()
	defer x.End()
	p := make([]byte, DefaultChunk)
	page(rand.New(rand.NewPCG(1, 1)), p)
	b.SetBytes(DefaultChunk)
	i := 0
	for b.Loop() {
		copy(p, fmt.Sprintf("%016d", i))
		if _, err := x.Put(p, Name{}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkPutNewZstd(b *testing.B) { benchPut(b, false) }
func BenchmarkPutNewS2(b *testing.B)   { benchPut(b, true) }

func BenchmarkPutAgain(b *testing.B) {
	s, d, _ := benchStore(b, -1)
	x := s.Begin()
	defer x.End()
	b.SetBytes(int64(d.chunk))
	i := 0
	for b.Loop() {
		i = (i + 1) % (len(d.data) / d.chunk)
		if _, err := x.Put(d.data[i*d.chunk:(i+1)*d.chunk], Name{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPutPatch(b *testing.B) {
	s, d, root := benchStore(b, -1)
	x := s.Begin()
	defer x.End()
	v := s.View(root)
	p := make([]byte, d.chunk)
	b.SetBytes(int64(d.chunk))
	i := 0
	for b.Loop() {
		i++
		at := i % (len(d.data) / d.chunk)
		copy(p, d.data[at*d.chunk:])
		copy(p[4096:], fmt.Sprintf("%032d", i))
		prev, err := v.ChunkName(int64(at))
		must(b, err)
		if _, err := x.Put(p, prev); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(x.Stats().StoredBytes)/float64(b.N), "stored/op")
}

// TestIncrementOfFiles measures what an increment costs on two states of a real database
// directory, concatenated into TIDEMARK_BEFORE and TIDEMARK_AFTER.
func TestIncrementOfFiles(t *testing.T) {
	before, after := os.Getenv("TIDEMARK_BEFORE"), os.Getenv("TIDEMARK_AFTER")
	if before == "" || after == "" {
		t.Skip("TIDEMARK_BEFORE and TIDEMARK_AFTER name no files")
	}
	a, err := os.ReadFile(before)
	must(t, err)
	c, err := os.ReadFile(after)
	must(t, err)
	size := max(len(a), len(c))
	a, c = append(a, make([]byte, size-len(a))...), append(c, make([]byte, size-len(c))...)
	s := mustOpen(t, Options{Dir: t.TempDir(), Bucket: object.NewMem(), Logger: quiet})
	var root Root
	for i, data := range [][]byte{a, c} {
		x := s.Begin()
		d := &disk{chunk: DefaultChunk, data: data}
		base := root
		if i == 0 {
			base = Empty(int64(size), DefaultChunk)
		}
		root, err = d.save(x, base, 0, (size-1)/DefaultChunk)
		must(t, err)
		x.End()
		t.Logf("stored %d bytes in %d records", x.Stats().StoredBytes, x.Stats().Records)
	}
	changed := 0
	for i := 0; i < size; i += 4096 {
		if e := min(i+4096, size); string(a[i:e]) != string(c[i:e]) {
			changed += 4096
		}
	}
	t.Logf("changed %d bytes at a grain of 4096", changed)
	must(t, same(s, root, c))
}

// BenchmarkTryReadCold4K reads as the NBD server does, through a cache much smaller than the disk.
func BenchmarkTryReadCold4K(b *testing.B) {
	s, d, root := benchStore(b, 4<<20)
	v, p := s.View(root), make([]byte, 4096)
	for _, pk := range s.allPacks() {
		must(b, s.sealPack(b.Context(), pk))
	}
	s.cur = nil
	must(b, same(s, root, d.data))
	_, err := v.ReadAt(make([]byte, root.Size), 0)
	must(b, err)
	rng := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(4096)
	b.ReportAllocs()
	missed := 0
	for b.Loop() {
		if ok, err := v.TryReadAt(p, rng.Int64N(root.Size/4096)*4096, true); err != nil {
			b.Fatal(err)
		} else if !ok {
			missed++
		}
	}
	b.ReportMetric(float64(missed)/float64(b.N), "missed/op")
}

func BenchmarkTryReadWarm4K(b *testing.B) {
	s, d, root := benchStore(b, 64<<20)
	must(b, same(s, root, d.data))
	v, p := s.View(root), make([]byte, 4096)
	_, err := v.ReadAt(make([]byte, root.Size), 0)
	must(b, err)
	rng := rand.New(rand.NewPCG(2, 2))
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := v.TryReadAt(p, rng.Int64N(root.Size/4096)*4096, true); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
}
