package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidemark/policy"
	"tidemark/timeline"
)

// A point that was forgotten is told to be, also if the log that nobody needs any more cannot be deleted. That is told when it lasts.
func TestExpiredThoughLogIsNotPruned(t *testing.T) {
	c, said := listens(t)
	a := sentCluster(t, c, "db", dataDisk, logDisk)
	for i := range lastingPrunes + 1 { // which do not say where their log begins
		_, err := a.t.Bookmark(timeline.Mark{Name: fmt.Sprintf("%s20261128-040950.%03d", promisedPrefix, i)})
		if err == nil {
			err = a.t.Fold(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if c.tryPruneLog(t.Context(), a) == nil {
		t.Fatal("the log can be pruned")
	}
	told := func(what string) (n int) {
		events, err := c.catalog.Events(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if strings.Contains(e.Message, what) {
				n++
			}
		}
		return n
	}
	first := a.t.Points()[0]
	if _, err := c.Expire(t.Context(), "db@"+first.Bookmark); err != nil {
		t.Errorf("it was forgotten, and %v", err)
	}
	said.await(t, "log that no point needs was not deleted")
	if n := told("is not deleted, and grows"); n > 0 {
		t.Errorf("it was told at once, %d times", n)
	}
	tmpl := policy.Template{Name: "gold", Keep: &policy.Retention{Count: 1}}
	c.forget(t.Context(), a, tmpl, policy.History{Points: keptPoints(a, a.t.Points(), nil)}, time.Now().Add(time.Hour))
	if left := len(a.t.Points()); left != 1 {
		t.Errorf("%d points are left", left)
	}
	if n := told("is forgotten, by the template gold"); n != lastingPrunes-1 {
		t.Errorf("%d points are told to be forgotten", n)
	}
	if n := told("is not deleted, and grows"); n != 1 {
		t.Errorf("that it lasts is told %d times", n)
	}
	if _, ok := a.t.PointAt(first.Position); ok {
		t.Error("the first point is still there")
	}
}

// How often in a row a log was not pruned is counted until it is.
func TestUnpruned(t *testing.T) {
	var r receivers
	for i, x := range []struct {
		failed bool
		n      int
	}{{false, 0}, {true, 1}, {true, 2}, {false, 2}, {false, 0}, {true, 1}} {
		if n := r.unpruned("a", x.failed); n != x.n {
			t.Errorf("%d: %d", i, n)
		}
	}
	if n := r.unpruned("b", false); n != 0 {
		t.Errorf("of another, %d", n)
	}
}
