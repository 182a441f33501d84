package timeline

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

// touched returns how many segments of the journal a snapshot reads.
func (s *Snapshot) touched() (n int) {
	for _, y := range s.layers {
		for _, g := range *y.held.list.Load() {
			if g != nil {
				n++
			}
		}
	}
	return n
}

// past is a position and the content of a disk there, as a model has it.
type remembered struct {
	pos  tidemark.Position
	data []byte
}

// TestKStaysBounded writes a long history in bursts that are folded late, with bookmarks that are expired, and restarts, and opens
// points of it: none touches more segments than the limit, and each has its bytes.
func TestKStaysBounded(t *testing.T) {
	seed := rand.Uint64()
	rounds := 12
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 120
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.SetWindow(Window{For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	now := make([]byte, diskSize)
	var history []remembered
	var marks []string
	for round := range rounds {
		for range 1 + rng.IntN(900) { // up to 14 segments of 256 KiB
			off, n := rng.Int64N(diskSize/4096)*4096, int64(4096)
			p := now[off : off+n]
			if rng.IntN(4) == 0 {
				clear(p)
				err = line.Disks()[0].Discard(off, n)
			} else {
				for i := 0; i < len(p); i += 8 {
					p[i]++
				}
				p[1] = byte(rng.Uint32())
				_, err = line.Disks()[0].WriteAt(p, off)
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if rng.IntN(60) == 0 {
				pos, _ := line.Head()
				history = append(history, remembered{pos, bytes.Clone(now)})
			}
		}
		switch rng.IntN(4) {
		case 0:
			name := "m" + string(rune('a'+round%26)) + string(rune('a'+round/26))
			if _, err := line.Bookmark(Mark{Name: name, Consistency: tidemark.CrashConsistent}); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			marks = append(marks, name)
		case 1:
			for _, name := range marks {
				if err := line.Fold(t.Context()); err != nil {
					t.Fatal(err)
				}
				pos, err := line.Resolve(tidemark.Point{Bookmark: name})
				if err == nil {
					err = line.Expire(t.Context(), pos)
				}
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			marks = nil
		case 2:
			if err := line.Disks()[0].Flush(); err != nil {
				t.Fatal(err)
			}
			w.close(t)
			w = open(t, mem, "/d")
			line = w.set.List()[0]
		}
		if err := line.foldBacklog(context.Background()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if k := line.K(); k > KLimit {
			t.Fatalf("seed %d: K is %d after round %d", seed, k, round)
		}
	}
	if len(line.journal.Segments()) < 3*spanLimit {
		t.Fatalf("the history has only %d segments", len(line.journal.Segments()))
	}
	for range 200 {
		h := history[rng.IntN(len(history))]
		s, err := line.At("", h.pos)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		got := make([]byte, diskSize)
		if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, h.data) {
			t.Fatalf("seed %d: at %v it is something else: %v", seed, h.pos, err)
		}
		if n := s.touched(); n > KLimit {
			t.Errorf("seed %d: %v touches %d segments", seed, h.pos, n)
		}
		s.Close()
	}
	w.close(t)
}

// TestCheckpointsBehindDamage (J2) has two long stretches without an image, and loses a segment of the first: that is said, and the second is made short.
func TestCheckpointsBehindDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	if err == nil {
		err = line.SetWindow(Window{For: time.Hour})
	}
	if err != nil {
		t.Fatal(err)
	}
	now := make([]byte, diskSize)
	for range 2 {
		for range 700 { // 11 segments
			writeNoise(t, line, rng, now)
		}
		if _, err := line.cut(nil); err != nil {
			t.Fatal(err)
		}
		if err := line.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := line.Archive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.bucket.Delete(t.Context(), archivedKeys(t, w)[2]); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	w = open(t, mem, "/d")
	defer func() { w.close(t) }()
	line = w.set.List()[0]
	if list := slices.Collect(line.stretches()); len(list) < 2 || len(list[0].segments) <= spanLimit || len(list[1].segments) <= spanLimit {
		t.Fatalf("the stretches are %+v", list)
	}
	if err := line.checkpoint(t.Context()); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("a lost segment: %v", err)
	}
	for i, s := range slices.Collect(line.stretches())[1:] {
		if len(s.segments) > spanLimit {
			t.Errorf("stretch %d has %d segments", i+1, len(s.segments))
		}
	}
}

// TestFoldsWhatABurstLeaves writes in one burst, and nothing afterwards: all of it is folded, and no stretch of it is long.
func TestFoldsWhatABurstLeaves(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	if err := w.set.Close(); err != nil {
		t.Fatal(err)
	}
	o := w.set.o
	o.Manual, o.FoldAfter, o.SegmentSize = false, 192<<10, 64<<10
	var err error
	if w.set, err = Open(t.Context(), w.store, o); err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	if err == nil {
		err = line.SetWindow(Window{For: time.Hour})
	}
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	for i := range 3000 {
		p[0], p[1], p[2] = byte(i), byte(i>>8), 1
		if _, err := line.Disks()[0].WriteAt(p, int64(i*7919%(diskSize/4096))*4096); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(30 * time.Second); line.due() || line.K() > KLimit; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are not folded, and K is %d", line.Backlog(), line.K())
		}
	}
}
