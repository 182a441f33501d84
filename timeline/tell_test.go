package timeline

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark"
	"tidemark/capture"
	"tidemark/internal/vfs"
)

// TestChangesAreTold holds that each bookmark and gap is told when it is there or gone, once, and that nothing is told of what fails.
func TestChangesAreTold(t *testing.T) {
	var mu sync.Mutex
	var told []string
	hear := func(o *Options) {
		o.Changed = func(id string, c tidemark.TimelineChange) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprintf("%s %s %s %v", c.Kind, c.Application, c.Point.Bookmark, c.Point.Position))
			if gap := c.Kind == tidemark.GapBegun || c.Kind == tidemark.GapClosed; gap != (c.Gap != nil) || gap && (c.Gap.Reason == "" || c.Gap.To.IsZero() == (c.Kind == tidemark.GapClosed)) {
				t.Errorf("%s: %+v", c.Kind, c.Gap)
			}
		}
	}
	expect := func(want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(told, want) {
			t.Errorf("%q is told, and not %q", told, want)
		}
		told = nil
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fault := &failing{err: syscall.EIO, first: 1 << 60, last: 1 << 60}
	w, err := openWorld(errorfs.Wrap(vfs.NewMem(), fault), "/d", hear)
	must(err)
	line, err := w.set.Create(t.Context(), "v", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	must(err)
	f, _, err := line.Feed("one", capture.Sent{})
	must(err)
	mark := func(name string) tidemark.Position {
		t.Helper()
		pos, err := f.Bookmark(Mark{Name: name, Consistency: tidemark.CrashConsistent})
		must(err)
		must(line.Fold(t.Context()))
		expect("point-made v " + name + " " + pos.String())
		return pos
	}
	one := mark("one")
	must(line.SetWindow(Window{For: time.Hour}))
	two := mark("two")
	if _, err := f.Bookmark(Mark{Name: "two"}); err == nil {
		t.Error("a bookmark was made twice")
	}
	must(line.Fold(t.Context()))
	expect()

	head, _ := line.Head()
	must(f.Lose(0, "the queue was full"))
	must(f.Lose(0, "it still is")) // it lasts already
	expect("gap-begun v  " + head.String())
	must(f.Whole())
	must(f.Whole())
	gaps := line.Gaps()
	expect("gap-closed v  " + gaps[len(gaps)-1].To.String())
	must(line.Void(one, two, "it was taken back"))
	expect("gap-begun v  "+one.String(), "gap-closed v  "+two.String())
	must(line.distrust("it differs"))
	must(line.distrust("it still does"))
	head, _ = line.Head()
	expect("gap-begun v  " + head.String())
	must(f.Whole())
	told = nil

	three := mark("three")
	must(line.Expire(t.Context(), one)) // on whose image the window stands: it becomes a checkpoint
	if len(line.state.Unmarked) != 1 {
		t.Errorf("%v are checkpoints", line.state.Unmarked)
	}
	expect("point-removed v one " + one.String())
	must(line.Expire(t.Context(), three))
	expect("point-removed v three " + three.String())
	if err := line.Expire(t.Context(), one); err == nil {
		t.Error("a point was expired twice")
	}
	must(line.Fold(t.Context()))
	expect()

	fault.first, fault.last = 0, 1<<60
	for what, err := range map[string]error{"expire": line.Expire(t.Context(), two), "lose": f.Lose(0, "the queue was full"), "void": line.Void(one, two, "it was taken back")} {
		if err == nil {
			t.Errorf("%s has not failed", what)
		}
	}
	if _, err := f.Bookmark(Mark{Name: "four", Consistency: tidemark.CrashConsistent}); err == nil {
		t.Error("bookmark has not failed")
	}
	expect()
}
