package timeline

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"tidemark"
)

// TestPointsFrom holds that parts of the points are all of them, each once, and that a part of a long history costs what it has.
func TestPointsFrom(t *testing.T) {
	const bookmarks = 100_000
	x := &Timeline{}
	for i := range 2 * bookmarks {
		m := manifest{Position: tidemark.Position(3 * i), Time: time.Unix(int64(i), 0), Disks: []diskImage{{Name: "disk"}}}
		if i%2 == 1 { // between bookmarks there are images that only keep the window quick to open
			m.Mark = &Mark{Name: fmt.Sprint("b", i)}
		}
		x.points = append(x.points, m)
	}
	all := x.Points()
	var got []tidemark.RecoveryPoint
	var took []time.Duration
	for from := tidemark.Position(0); ; {
		begun := time.Now()
		part := x.PointsFrom(from, 1000)
		took = append(took, time.Since(begun))
		if len(part) == 0 {
			break
		}
		got = append(got, part...)
		from = part[len(part)-1].Position + 1
	}
	if !slices.EqualFunc(all, got, func(a, b tidemark.RecoveryPoint) bool { return a.Position == b.Position && a.Bookmark == b.Bookmark }) || len(all) != bookmarks {
		t.Errorf("the parts have %d points, and all are %d", len(got), len(all))
	}
	slices.Sort(took)
	if p99 := took[len(took)*99/100]; p99 > 100*time.Millisecond {
		t.Errorf("a part takes %v", p99)
	}
	if part := x.PointsFrom(1<<60, 10); len(part) != 0 {
		t.Errorf("behind the end there are %v", part)
	}
}
