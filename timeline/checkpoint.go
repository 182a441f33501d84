package timeline

import (
	"context"
	"errors"
	"fmt"

	"tidemark"
	"tidemark/image"
	"tidemark/journal"
)

// K is the most segments of the journal that lie between a point and the image that it is made from, over all points
// that can be had: what opening one reads beside images. Images are made so that it stays at
// spanLimit in the past; near the present, where folding has not come yet, it may be more, up to KLimit unless writes come faster than
// they can be folded.
const (
	KLimit    = 8
	spanLimit = 4
	// spanStep is how many segments come before an image that is made in a stretch which is too long: as many as FoldAfter lets come
	// before one near the present, so that points of a burst open as quickly as others.
	spanStep = 3
)

// stretch is a part of the past without an image in it: the points in (from, to) are made from the image at from.
type stretch struct {
	from, to tidemark.Position // to is 0 for the one that ends with the head
	segments []journal.SegmentInfo
}

// stretches returns the parts of the past of which any point can be had, oldest first.
func (t *Timeline) stretches() (list []stretch) {
	oldest, segments := t.oldestInJournal(), t.journal.Segments()
	t.facts.Lock()
	defer t.facts.Unlock()
	var images []tidemark.Position
	for _, m := range t.points {
		if m.Position >= oldest {
			images = append(images, m.Position)
		}
	}
	if n := len(images); (n == 0 || images[n-1] < t.state.Base) && t.state.Base >= oldest {
		images = append(images, t.state.Base)
	}
	for i, at := range images {
		s := stretch{from: at}
		last := uint64(1<<64 - 1)
		if i+1 < len(images) {
			s.to = images[i+1]
			last = uint64(s.to) - 1
		}
		for _, g := range segments {
			if g.LastPos > uint64(at) && g.FirstPos <= last && g.LastPos >= g.FirstPos {
				s.segments = append(s.segments, g)
			}
		}
		list = append(list, s)
	}
	return list
}

// K returns how many layers and segments of the journal reading the head, or opening any point, touches at most.
func (t *Timeline) K() int {
	k := 0
	for _, d := range t.disks {
		k = max(k, len(d.head.Load().layers))
	}
	for _, s := range t.stretches() {
		k = max(k, len(s.segments))
	}
	return k
}

// checkpoint makes images in the past where the stretches between those there are have grown too long: a burst of writes
// is folded as one, and expired bookmarks leave gaps.
func (t *Timeline) checkpoint(ctx context.Context) error {
	if !t.Window().open() {
		return nil // there is no past but its points
	}
	var errs error
	for after := tidemark.Position(0); ctx.Err() == nil; {
		pos, at, ok := t.wanted(after)
		if !ok {
			return errs
		}
		if err := t.imageAt(ctx, pos, at); err != nil {
			errs = errors.Join(errs, fmt.Errorf("make an image of %s at %v: %w", t.Name(), pos, err))
			after = pos // other stretches do not suffer from what is wrong with this one
		}
	}
	return errors.Join(errs, ctx.Err())
}

// wanted returns where an image is to be made, at the end of a segment, in a stretch that begins at or behind a position.
func (t *Timeline) wanted(after tidemark.Position) (pos tidemark.Position, at int64, ok bool) {
	for _, s := range t.stretches() {
		if s.to == 0 || s.from < after || len(s.segments) <= spanLimit {
			continue
		}
		g := s.segments[spanStep-1]
		if pos := tidemark.Position(g.LastPos); pos > s.from && pos < s.to {
			return pos, g.Last, true
		}
	}
	return 0, 0, false
}

// imageAt makes images of all disks at a position of the past, which the journal has durably, in the order that folding has.
func (t *Timeline) imageAt(ctx context.Context, pos tidemark.Position, at int64) error {
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	x := t.set.store.Begin()
	defer x.End()
	roots := make([]image.Root, len(t.disks))
	for i := range t.disks {
		v, n, err := t.viewOf(i, pos)
		if err != nil {
			return err
		}
		if roots[i], err = t.rootOf(ctx, x, v, n, t.aside); err != nil {
			return err
		}
	}
	if err := t.set.store.Sync(); err != nil {
		return err
	}
	m := t.manifest(&cut{pos: pos, time: at}, roots)
	if err := putSealed(ctx, t.set.o.Bucket, imageKey(t.id, pos), m); err != nil {
		return err
	}
	t.addPoint(m)
	t.addStored(x.Stats().StoredBytes)
	return nil
}
