package timeline

import (
	"math"
	"slices"

	"tidemark"
	"tidemark/journal"
)

// checkHeld holds that what is noted of an image is what is in it.
func (m *model) checkHeld(t *Timeline) {
	for _, noted := range t.allImages() {
		plain := noted
		plain.Held = 0
		if n, err := m.w.set.heldBytes(plain); err != nil || n != noted.Held {
			m.fatalf("an image of %s holds %d bytes, and %d were noted: %v", t.Name(), n, noted.Held, err)
		}
	}
}

// checkStretches holds the stretches against what they are: between two images that follow each other, the segments that
// have a record behind the one and before the other.
func (m *model) checkStretches(t *Timeline) {
	var images []tidemark.Position
	for _, p := range t.points {
		images = append(images, p.Position)
	}
	if n := len(images); n == 0 || images[n-1] < t.state.Base {
		images = append(images, t.state.Base)
	}
	images = slices.DeleteFunc(images, func(p tidemark.Position) bool { return p < t.oldestInJournal() })
	i := 0
	for _, s := range slices.Collect(t.stretches()) {
		to, last := tidemark.Position(0), uint64(math.MaxUint64)
		if i+1 < len(images) {
			to = images[i+1]
			last = uint64(to) - 1
		}
		if i >= len(images) || s.from != images[i] || s.to != to {
			m.fatalf("stretch %d of %s is from %v to %v, and its images are %v", i, t.Name(), s.from, s.to, images)
		}
		var want []journal.SegmentInfo
		for _, g := range t.journal.Segments() {
			if g.LastPos >= g.FirstPos && g.LastPos > uint64(s.from) && g.FirstPos <= last {
				want = append(want, g)
			}
		}
		if !slices.Equal(s.segments, want) {
			m.fatalf("stretch %d of %s has the segments %+v, and should have %+v", i, t.Name(), s.segments, want)
		}
		i++
	}
	if i != len(images) {
		m.fatalf("%d stretches of %s, and its images are %v", i, t.Name(), images)
	}
}
