package control

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// What a job works on is not removed under it. A job that waits for its turn keeps nobody from that, nor does one that has ended.
func TestBusyIsNotRemoved(t *testing.T) {
	c := serving(t)
	ctx := t.Context()
	copiedDisk(t, c)
	ended(t, c)(c.Clone(ctx, tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}))
	if _, err := c.CreateVolume(ctx, tidemark.VolumeSpec{Name: "w", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	remove := map[string]func() error{
		"w":    func() error { return c.RemoveVolume(ctx, "w") },
		"disk": func() error { return c.Unprotect(ctx, "disk") },
		"k":    func() error { return c.RemoveClone(ctx, "k") },
	}
	var all sync.WaitGroup
	for name, gone := range remove {
		leave := occupy(t, c, name)
		all.Go(func() {
			if err := gone(); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), name+" is busy: job") {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := c.app(name); err != nil {
				t.Error(err)
			}
			leave()
		})
	}
	all.Wait()
	for name, gone := range remove {
		later := catalog.NewJob{Kind: "capture", Application: name, NotBefore: time.Now().Add(time.Hour), MaxAttempts: 1}
		if _, err := c.catalog.Enqueue(ctx, later, c.limits()); err != nil {
			t.Fatal(err)
		}
		if err := gone(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := c.app(name); tidemark.KindOf(err) != tidemark.NotFound {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

// A job does not begin while what it is to work on is removed.
func TestRemovedIsNotBegun(t *testing.T) {
	c := serving(t)
	leave, err := c.removing(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.Clone(t.Context(), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"})) // of another
	w := &work{app: "v", run: func(context.Context, *task) (any, error) { return "ran", nil }}
	if res, err := w.begin(t.Context(), &task{c: c}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("%v, %v", res, err)
	}
	leave()
	if res, err := w.begin(t.Context(), &task{c: c}); err != nil || res != "ran" {
		t.Errorf("%v, %v", res, err)
	}
}
