package timeline

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"tidemark"
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
	from, to tidemark.Position     // to is 0 for the one that ends with the head
	segments []journal.SegmentInfo // that have records of it
}

// stretches yields the parts of the past of which any point can be had, oldest first. There may be very many, so nothing
// is made for each: all together cost one look at each image and each segment. Who ranges over them must not take facts.
func (t *Timeline) stretches() iter.Seq[stretch] {
	return func(yield func(stretch) bool) {
		oldest, segments := t.oldestInJournal(), t.journal.Segments()
		segments = slices.DeleteFunc(segments, func(g journal.SegmentInfo) bool { return g.LastPos < g.FirstPos })
		t.facts.Lock()
		defer t.facts.Unlock()
		s, begun := stretch{}, false
		next := func(to tidemark.Position) bool { // which ends a stretch, and begins another there
			if begun {
				s.to = to
				if !yield(s.of(&segments)) {
					return false
				}
			}
			s.from, begun = to, true
			return true
		}
		for _, m := range t.points[t.firstPointFrom(oldest):] {
			if !next(m.Position) {
				return
			}
		}
		if (!begun || s.from < t.state.Base) && t.state.Base >= oldest && !next(t.state.Base) {
			return
		}
		next(0)
	}
}

// of adds to a stretch its segments, which are among those that are left, and takes away what later ones do not need.
func (s stretch) of(left *[]journal.SegmentInfo) stretch {
	first, end := 0, 0
	for first < len(*left) && (*left)[first].LastPos <= uint64(s.from) {
		first++
	}
	*left = (*left)[first:]
	for end < len(*left) && (s.to == 0 || (*left)[end].FirstPos < uint64(s.to)) {
		end++
	}
	s.segments = (*left)[:end]
	return s
}

// K returns how many layers and segments of the journal reading the head, or opening any point, touches at most.
func (t *Timeline) K() int {
	k := 0
	for _, d := range t.disks {
		k = max(k, len(d.head.Load().layers))
	}
	for s := range t.stretches() {
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
	for s := range t.stretches() {
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
	images := make([]measured, len(t.disks))
	for i := range t.disks {
		v, n, err := t.viewOf(x, i, pos)
		if err != nil {
			return err
		}
		if images[i], err = t.imageOf(ctx, x, v, n, t.aside); err != nil {
			return err
		}
	}
	if err := t.set.store.Sync(); err != nil {
		return err
	}
	m := t.manifest(&cut{pos: pos, time: at}, images)
	if err := putSealed(ctx, t.set.o.Bucket, imageKey(t.id, pos), m); err != nil {
		return err
	}
	t.addPoint(m)
	t.addStored(x.Stats().StoredBytes)
	return nil
}
