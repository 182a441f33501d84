package timeline

import (
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

// TestFollow (J1) notes gaps of a disk that somebody writes, and finds them again after the power is cut.
func TestFollow(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, err := w.set.Create(t.Context(), "vm", []DiskSpec{{Name: "disk", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.SetWindow(Window{For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	d := line.Disks()[0]
	write := func(b byte) (tidemark.Position, time.Time) {
		t.Helper()
		p := make([]byte, 4096)
		p[0] = b
		if _, err := d.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return line.Head()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// From the very beginning; and again, which changes nothing.
	must(line.Lose(0, "first"))
	must(line.Lose(0, "again"))
	write(1)
	if g := line.Gaps(); len(g) != 1 || g[0].Why != "first" || g[0].Start.IsZero() || time.Since(g[0].Start) > time.Hour {
		t.Fatalf("gaps %+v", g)
	}
	must(line.Whole("one"))
	_, _ = write(2)
	since := time.Now()
	third, _ := write(3)
	// What was written since a moment of the past is in the gap, too.
	must(line.Lose(since.UnixNano(), "stalled"))
	g := line.Gaps()[1]
	if g.From >= third || !g.Start.Equal(since.UTC().Round(0)) {
		t.Errorf("a gap since %v, before %v, is %+v", since, third, g)
	}
	if _, err := line.At("disk", third); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("a point in the gap: %v", err)
	}
	if _, err := line.Resolve(tidemark.Point{Time: since.Add(time.Nanosecond)}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("a time in the gap: %v", err)
	}
	s, err := line.At("disk", g.From)
	must(err)
	p := make([]byte, 1)
	if _, err := s.ReadAt(p, 0); err != nil || p[0] != 2 {
		t.Errorf("before the gap the disk holds %d, %v", p, err)
	}
	must(s.Close())
	if got := line.Anchor(); got != "one" {
		t.Errorf("anchor %q", got)
	}
	// An anchor is durable with what was written before.
	write(4)
	must(line.SetAnchor("two"))
	id := line.ID()
	after := vfs.Crash(mem, 0, nil)
	w.close(t)
	w = open(t, after, "/d")
	defer w.close(t)
	line = w.set.Get(id)
	if _, err := line.Disks()[0].ReadAt(p, 0); err != nil || p[0] != 4 || line.Anchor() != "two" || line.Gaps()[1].To != 0 {
		t.Errorf("after the power was cut the disk holds %d, the anchor is %q, the gaps %+v, %v", p, line.Anchor(), line.Gaps(), err)
	}
	must(line.Whole("three"))
	head, _ := line.Head()
	if s, err = line.At("disk", head); err != nil || line.Anchor() != "three" {
		t.Fatalf("after the gap: anchor %q, %v", line.Anchor(), err)
	}
	must(s.Close())
}

// TestWriteBulk stores large writes in the pool at once.
func TestWriteBulk(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	line, err := w.set.Create(t.Context(), "vm", []DiskSpec{{Name: "disk", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 256<<10)
	for i := range p {
		p[i] = byte(i * i / 7)
	}
	d := line.Disks()[0]
	if _, err := d.WriteBulkAt(p, 4096); err != nil {
		t.Fatal(err)
	}
	if n := line.Backlog(); n > 64<<10 {
		t.Errorf("%d bytes went into the journal", n)
	}
	got := make([]byte, len(p))
	if _, err := d.ReadAt(got, 4096); err != nil || string(got) != string(p) {
		t.Errorf("it reads differently: %v", err)
	}
}
