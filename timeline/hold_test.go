package timeline

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// watched is a bucket that calls before, once, when a descriptor is put: as while a branch is made of which nobody knows yet.
type watched struct {
	object.Bucket
	before func()
}

func (w *watched) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if before := w.before; before != nil && strings.Contains(key, "/descriptor-") {
		w.before = nil
		before()
	}
	return w.Bucket.Put(ctx, key, r, size)
}

// passing is a timeline with two points, of which the first has what nothing else does.
type passing struct {
	t             *testing.T
	w             *world
	bucket        *watched
	line          *Timeline
	first, second tidemark.Position
}

const passingBlocks = 2 * testChunk / 4096

func newPassing(t *testing.T) *passing {
	p := &passing{t: t}
	var err error
	p.w, err = openWorld(vfs.NewMem(), "/d", func(o *Options) {
		p.bucket = &watched{Bucket: o.Bucket}
		o.Bucket = p.bucket
	})
	must(t, err)
	t.Cleanup(func() { p.w.close(t) })
	p.line = oneLine(t, p.w)
	p.first = p.mark("one", 1)
	p.second = p.mark("two", 100)
	return p
}

// mark writes blocks of numbers from n on, and makes a point of that.
func (p *passing) mark(name string, n uint64) tidemark.Position {
	pos := p.cut(name, n)
	must(p.t, p.line.Fold(p.t.Context()))
	return pos
}

// cut is mark without an image of the point.
func (p *passing) cut(name string, n uint64) tidemark.Position {
	for i := range uint64(passingBlocks) {
		_, err := p.line.Disks()[0].WriteAt(pattern(n+i), int64(i)*4096)
		must(p.t, err)
	}
	pos, err := p.line.Bookmark(Mark{Name: name})
	must(p.t, err)
	return pos
}

func (p *passing) expire(pos tidemark.Position) { must(p.t, p.line.Expire(p.t.Context(), pos)) }

// reclaim gives back what nobody needs, and reports whether there was any.
func (p *passing) reclaim() bool {
	r, err := p.w.store.Reclaim(p.t.Context(), p.w.set.Keep)
	must(p.t, err)
	return r.PacksDeleted > 0
}

// shows reads the blocks of numbers from n on.
func (p *passing) shows(what string, r io.ReaderAt, n uint64) {
	p.t.Helper()
	got := make([]byte, 4096)
	for i := range uint64(passingBlocks) {
		if _, err := r.ReadAt(got, int64(i)*4096); err != nil || !bytes.Equal(got, pattern(n+i)) {
			p.t.Fatalf("block %d of %s is not as it was: %v", i, what, err)
		}
	}
}

// A branch needs its point no more once that was chosen: the point may be expired and its bytes given back before the branch is known.
func TestBranchHoldsWhatItStandsOn(t *testing.T) {
	p := newPassing(t)
	p.bucket.before = func() {
		p.expire(p.first)
		p.reclaim()
	}
	b, err := p.line.Branch(t.Context(), "b", p.first, nil, nil)
	must(t, err)
	if _, ok := p.line.PointAt(p.first); ok {
		t.Fatal("the point was not expired while the branch was made")
	}
	p.shows("the branch", b.Disks()[0], 1)
	p.reclaim()
	p.shows("the branch behind another reclaim", b.Disks()[0], 1)
	must(t, b.Remove(t.Context()))
	if !p.reclaim() {
		t.Error("what only the branch had is kept for nobody")
	}
}

// Nor does it need what the head stands on, once it was made of the head's own layers.
func TestBranchHoldsWhatTheHeadStandsOn(t *testing.T) {
	p := newPassing(t)
	disk := p.line.Disks()[0]
	_, err := disk.WriteAt(pattern(200), passingBlocks*4096)
	must(t, err)
	cut, err := p.line.Bookmark(Mark{Name: "unfolded"})
	must(t, err)
	p.bucket.before = func() {
		p.cut("three", 300)
		for c := p.line.oldestCut(); c != nil; c = p.line.oldestCut() { // so the head stands on something else; the journal stays until the branch is there
			must(t, p.line.foldCut(t.Context(), c, atOnce))
		}
		p.expire(p.first)
		p.expire(p.second)
		p.expire(cut)
		p.reclaim()
	}
	b, err := p.line.Branch(t.Context(), "b", cut, nil, nil)
	must(t, err)
	p.shows("the branch", b.Disks()[0], 100)
}

// The image of a point stays until the session ends that asked for it, and no longer.
func TestRootStaysUntilItsSessionEnds(t *testing.T) {
	p := newPassing(t)
	x := p.w.store.Begin()
	defer x.End()
	root, err := p.line.Root(t.Context(), x, "d", p.first)
	must(t, err)
	p.expire(p.first)
	p.reclaim()
	p.shows("the image", p.w.store.View(root), 1)
	x.End()
	if !p.reclaim() {
		t.Error("the image is kept for nobody")
	}
}

// A view of a branch that is not folded stays one of two journals, also if it is folded before another branch is made of it.
func TestForeignStaysForeign(t *testing.T) {
	p := newPassing(t)
	_, err := p.line.Disks()[0].WriteAt(pattern(200), 0)
	must(t, err)
	head, _ := p.line.Head()
	b, err := p.line.Branch(t.Context(), "b", head, nil, nil)
	must(t, err)
	pos, _ := b.Head()
	x := p.w.store.Begin()
	defer x.End()
	v, n, err := b.viewAt(x, 0, pos)
	must(t, err)
	must(t, b.Fold(t.Context()))
	at, err := b.flat(t.Context(), x, 0, pos, &v, &n)
	must(t, err)
	got := make([]byte, 4096)
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(200)) {
		t.Fatalf("it is not what the branch holds: %v", err)
	}
	if len(v.layers) > 0 {
		t.Errorf("a branch of it would be described by %v to %v of a journal that does not have what it holds", n.pos, at)
	}
}

// A point that is shown can be branched from until it is not shown any more, also if it was expired.
func TestShownCanBeBranchedFrom(t *testing.T) {
	p := newPassing(t)
	s, err := p.line.At("d", p.first)
	must(t, err)
	p.expire(p.first)
	p.reclaim()
	b, err := p.line.Branch(t.Context(), "b", p.first, nil, nil)
	must(t, err)
	must(t, s.Close())
	p.reclaim()
	p.shows("the branch", b.Disks()[0], 1)
	if _, err := p.line.Branch(t.Context(), "c", p.first, nil, nil); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("a branch of what is shown no more: %v", err)
	}
}
