package image

import (
	"bytes"
	"errors"
	"testing"

	"tidemark/internal/vfs"
)

// TestFlipInOpenPack (D2) flips a bit of a record in a pack that still grows: that record alone is lost, what lies behind it is found, is not written
// over, and the content of the lost one is stored again.
func TestFlipInOpenPack(t *testing.T) {
	rng := seeded(t)
	for range rounds(20) {
		fs := vfs.NewMem()
		o := testOptions(fs, mustDir(t, fs))
		o.CacheBytes = -1
		s := mustOpen(t, o)
		var chunks [][]byte
		put := func(p []byte) Name {
			t.Helper()
			x := s.Begin()
			defer x.End()
			n, err := x.Put(p, Name{})
			must(t, err)
			return n
		}
		var names []Name
		for range 10 {
			p := make([]byte, 16<<10)
			page(rng, p)
			chunks, names = append(chunks, p), append(names, put(p))
		}
		must(t, s.Sync())
		victim := rng.IntN(9)
		at, p, err := s.locate(names[victim])
		must(t, err)
		path, off := p.path, at.off+headSize+int64(rng.IntN(at.length))
		must(t, s.Close())
		flip(t, fs, path, off)
		if rng.IntN(2) == 0 {
			must(t, fs.RemoveAll("/pool/index"))
		}
		s = mustOpen(t, o)
		more := make([]byte, 16<<10)
		page(rng, more)
		chunks, names = append(chunks, more), append(names, put(more))
		must(t, s.Sync())
		read := func(i int) error {
			got := make([]byte, 16<<10)
			err := s.ReadChunk(names[i], 16<<10, got, 0)
			if err == nil && !bytes.Equal(got, chunks[i]) {
				t.Fatalf("chunk %d is wrong", i)
			}
			return err
		}
		for i := range names {
			if err := read(i); (err != nil) != (i == victim) || err != nil && !isDamage(err) {
				t.Fatalf("chunk %d, with chunk %d damaged: %v", i, victim, err)
			}
		}
		if damaged, err := s.Doubt(errors.Join(read(victim))); !damaged || err != nil {
			t.Fatalf("what is damaged is not taken for that: %v", err)
		}
		put(chunks[victim])
		must(t, s.Sync())
		must(t, s.Close())
		s = mustOpen(t, o)
		for i := range names {
			must(t, read(i))
		}
		must(t, s.Close())
	}
}
