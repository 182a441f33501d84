package timeline

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/internal/vfs"
)

// TestSampleDiffers lets a source say what its disk holds: what is the same changes nothing, and what is not begins a gap in which
// everything has to come again. Lessons C2 and C3.
func TestSampleDiffers(t *testing.T) {
	fs := vfs.NewMem()
	w := open(t, fs, "/d")
	line, err := w.set.Create(t.Context(), "tapped", []DiskSpec{{Name: "disk", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.SetWindow(Window{For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	f, _, err := line.Feed("first", capture.Sent{})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	if err := f.Apply([]capture.Change{{Off: 64 << 10, Len: 64 << 10, Data: data, Time: 1}}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []capture.Sample{
		capture.SampleOf(0, 64<<10, data), capture.SampleOf(0, 64<<10+512, data[512:1024]), capture.SampleOf(0, 0, make([]byte, 64<<10)),
	} {
		if err := f.Sample(s); err != nil {
			t.Errorf("a sample of what was sent: %v", err)
		}
	}
	for _, s := range []capture.Sample{{Disk: 1, Len: 512}, {Off: diskSize, Len: 512}, {Off: -512, Len: 512}, {Len: 0}, {Len: 2 << 20}} {
		if err := f.Sample(s); !errors.Is(err, capture.ErrChange) {
			t.Errorf("an impossible sample, %+v: %v", s, err)
		}
	}
	before, _ := line.Head()
	data[7]++
	if err := f.Sample(capture.SampleOf(0, 64<<10, data)); !errors.Is(err, ErrDiffers) {
		t.Fatalf("a sample of something else: %v", err)
	}
	if err := f.Apply([]capture.Change{{Len: 4096, Time: 2}}); !errors.Is(err, ErrDiffers) {
		t.Errorf("the stream goes on: %v", err)
	}
	for range 2 { // also after a restart
		if _, known, err := line.Feed("second", capture.Sent{ID: "first"}); known || err != nil {
			t.Fatalf("what follows is believed: %v, %v", known, err)
		}
		line = w.set.Get(line.ID())
		if err := line.distrust("a second time"); err != nil {
			t.Fatal(err)
		}
		id := line.ID()
		w.close(t)
		w = open(t, fs, "/d")
		line = w.set.Get(id)
	}
	if g := line.Gaps(); len(g) != 1 || g[0].To != 0 || g[0].From != before {
		t.Fatalf("the gaps are %+v", g)
	}

	f, known, err := line.Feed("second", capture.Sent{ID: "first"})
	if known || err != nil {
		t.Fatalf("what follows is believed: %v, %v", known, err)
	}
	if err := f.Sample(capture.SampleOf(0, 64<<10, data)); err != nil { // it says nothing in a gap
		t.Error(err)
	}
	if err := f.Apply([]capture.Change{{Off: 64 << 10, Len: 64 << 10, Data: data, Time: 3}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Whole(); err != nil {
		t.Fatal(err)
	}
	if err := f.Sample(capture.SampleOf(0, 64<<10, data)); err != nil {
		t.Errorf("a sample of what was sent again: %v", err)
	}
	if _, err := line.Resolve(tidemark.Point{}); err != nil || line.Lacks() {
		t.Errorf("the gap is closed: %v", err)
	}
	w.close(t)
}

// TestSampleOfDamage flips bits in what the pool has of a tapped disk: the next sample of it has everything sent again, and that heals the
// pool, which has the same content by another record. Lesson G7.
func TestSampleOfDamage(t *testing.T) {
	fs := vfs.NewMem()
	w := open(t, fs, "/d")
	line, err := w.set.Create(t.Context(), "tapped", []DiskSpec{{Name: "disk", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := line.Feed("first", capture.Sent{})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{1}).Read(data)
	marks := 0
	send := func() {
		t.Helper()
		if err := f.Apply([]capture.Change{{Off: 64 << 10, Len: int64(len(data)), Data: data, Time: 1}}); err != nil {
			t.Fatal(err)
		}
		if err := f.Whole(); err != nil {
			t.Fatal(err)
		}
		marks++
		if _, err := f.Bookmark(Mark{Name: fmt.Sprint("m", marks), Consistency: tidemark.CrashConsistent}); err != nil {
			t.Fatal(err)
		}
		if err := line.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	send()
	damage(t, fs, "/d/store/open", data[1000:1064])
	sample := capture.SampleOf(0, 64<<10, data)
	if err := f.Sample(sample); !errors.Is(err, ErrDiffers) {
		t.Fatalf("a sample of what is damaged: %v", err)
	}
	f, known, err := line.Feed("second", capture.Sent{ID: "first"})
	if known || err != nil {
		t.Fatalf("what follows is believed: %v, %v", known, err)
	}
	send()
	if err := f.Sample(sample); err != nil {
		t.Errorf("a sample of what was sent again: %v", err)
	}
	r, err := w.store.Check(t.Context(), w.set.Keep, nil)
	if err != nil || len(r.Damage) > 0 {
		t.Errorf("after it was sent again there is still damage: %v, %v", r.Damage, err)
	}
	w.close(t)
}

// damage flips a bit in the file of a directory that holds some bytes.
func damage(t *testing.T, fs *vfs.MemFS, dir string, bytesThere []byte) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := fs.PathJoin(dir, name)
		content, err := vfs.ReadFile(fs, path)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(content, bytesThere)
		if at < 0 {
			continue
		}
		file, err := vfs.OpenReadWrite(fs, path) // as who has it open sees it
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt([]byte{content[at] ^ 4}, int64(at)); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("what was to be damaged is not in %v", names)
}
