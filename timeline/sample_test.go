package timeline

import (
	"bytes"
	"errors"
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
	f, _, err := line.Feed("first", "")
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
		if _, known, err := line.Feed("second", "first"); known || err != nil {
			t.Fatalf("what follows is believed: %v, %v", known, err)
		}
		line = w.set.Get(line.ID())
		if err := line.distrustFeed(); err != nil {
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

	f, known, err := line.Feed("second", "first")
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
