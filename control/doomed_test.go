package control

import (
	"context"
	"os"
	"strings"
	"testing"

	"tidemark"
	"tidemark/catalog"
)

// stuck has nothing be taken apart until it is let go: its exports cannot be listed.
func stuck(t *testing.T, c *Control) (letGo func()) {
	t.Helper()
	if err := c.catalog.Put(t.Context(), catalog.Exports, "stuck", "no export"); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := c.catalog.Delete(context.Background(), catalog.Exports, "stuck"); err != nil {
			t.Fatal(err)
		}
	}
}

// halfMade makes the timeline of a clone or another copy of v, of which nothing more is made.
func halfMade(t *testing.T, c *Control, name string, r role) app {
	t.Helper()
	v, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	a, err := c.branch(t.Context(), v, name, "", head, nil, r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func isThere(c *Control, name string) bool {
	_, err := c.app(name)
	return tidemark.KindOf(err) != tidemark.NotFound
}

// What was half made on our own host, and cannot be taken apart, is told, can be removed by hand, and goes by itself.
func TestAbandonOnOurHost(t *testing.T) {
	c := serving(t)
	ctx := t.Context()
	letGo := stuck(t, c)
	for _, name := range []string{"k", "l"} {
		halfMade(t, c, name, roleClone)
		if err := c.abandon(ctx, name, doom{}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := c.Clones(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "k" || list[0].State != stateDoomed || !strings.HasPrefix(list[0].Source, "v@") || list[0].Type != tidemark.TypeVolume {
		t.Errorf("the clones are %+v, %v", list, err)
	}
	if _, err := c.Clone(ctx, tidemark.CloneSpec{Ref: "v", Name: "k"}); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "a clone k is being removed") {
		t.Errorf("its name is taken: %v", err)
	}
	if err := c.RemoveClone(ctx, "k"); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), "k is being removed, and could not be taken off this host yet") {
		t.Errorf("it cannot be removed: %v", err)
	}
	letGo()
	if err := c.RemoveClone(ctx, "k"); err != nil || isThere(c, "k") {
		t.Errorf("it is removed: %v, %v", !isThere(c, "k"), err)
	}
	holds(t, "l is gone", func() bool { return !isThere(c, "l") })
	ended(t, c)(c.Clone(ctx, tidemark.CloneSpec{Ref: "v", Name: "l"}))
}

// At the next start it is taken apart before anything is adopted, and a clone of which only the refresh was cut is made again.
func TestDoomedOnOurHostAtStart(t *testing.T) {
	dir := t.TempDir()
	c := serverIn(t, dir)
	defer func() { closes(t, c) }()
	wrote(t, c, "v", "of now")
	ended(t, c)(c.Clone(t.Context(), tidemark.CloneSpec{Ref: "v@kept", Name: "again"}))
	again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "again"})
	if err != nil {
		t.Fatal(err)
	}
	old, err := c.app("again")
	if err != nil {
		t.Fatal(err)
	}
	letGo := stuck(t, c)
	for name, r := range map[string]role{"k": roleClone, "proof": roleProof} {
		halfMade(t, c, name, r)
		if err := c.abandon(t.Context(), name, doom{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.abandon(t.Context(), "again", doom{Again: &again}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("it is to be made again: %v", err)
	}
	c.jobs.cancel(errStopping) // nothing is tried again
	letGo()
	closes(t, c)
	c = serverIn(t, dir)
	if isThere(c, "k") || isThere(c, "proof") {
		t.Error("what was half made is there")
	}
	holds(t, "the clone is made again", func() bool {
		a, err := c.app("again")
		return err == nil && a.t.ID() != old.t.ID() && a.Doomed == nil
	})
}

// A restore in place that cannot enter the clone of what was there leaves none.
func TestKeepCloneUnrecorded(t *testing.T) {
	c, g, past := away(t)
	ctx := t.Context()
	v, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	done := g.LoseAnswer(`"state":"kept"`, true)
	if err := c.keepClone(ctx, v, "before", head); err == nil {
		t.Fatal("the catalog is not away")
	}
	lost(t, done)
	g.Set(false, false)
	holds(t, "it is gone", func() bool { return !isThere(c, "before") })
	holds(t, "nothing is noted of it", func() bool {
		list, err := catalog.List[keptClone](ctx, past, catalog.Clones)
		return err == nil && len(list) == 0
	})
}

// A clone in whose directory somebody stands goes when he has left. Until then it is said how he is found.
func TestAbandonInUse(t *testing.T) {
	c := serving(t)
	ctx := t.Context()
	a := halfMade(t, c, "k", roleClone)
	device, err := c.attach(ctx, a, volumeDisk, true)
	if err != nil {
		t.Skipf("no disk can be attached here: %v", err)
	}
	if err := c.agent.Format(ctx, device, "ext4", "k"); err != nil {
		t.Fatal(err)
	}
	dir, err := c.mountOurs(ctx, device, a, volumeDisk)
	if err != nil {
		t.Fatal(err)
	}
	stands, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.abandon(ctx, "k", doom{}); err != nil {
		t.Error(err)
	}
	if err := c.RemoveClone(ctx, "k"); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), dir+" is in use") {
		t.Errorf("it is in use: %v", err)
	}
	if err := stands.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, "it is gone", func() bool { return !isThere(c, "k") })
}
