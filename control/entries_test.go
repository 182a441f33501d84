package control

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// Entries that were left in the catalog of mounts and clones which are gone, when something else has their names. That is not taken for them:
// not when they have lived their time, nor when somebody removes or extends them, nor by the next start.
func TestEntriesOfOthers(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := serverIn(t, dir)
	defer func() { closes(t, c) }()
	past := time.Now().Add(-time.Hour)
	left := func() {
		t.Helper()
		m := keptMount{Mount: tidemark.Mount{Name: "n", Ref: "v@#1", State: "mounted", Expires: &past}, Timeline: "of-before"}
		making := keptMount{Mount: tidemark.Mount{Name: "making", Ref: "v@#1", State: stateMaking}}
		k := keptClone{Clone: tidemark.Clone{Name: "k", Source: "v@#1", State: "running", Expires: &past}}
		for kind, entries := range map[catalog.Kept]map[string]any{catalog.Mounts: {"n": m, "making": making}, catalog.Clones: {"k": k}} {
			for name, e := range entries {
				if err := c.catalog.Put(ctx, kind, name, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := c.catalog.PutObject(ctx, access.Object{Kind: access.KindMount, Name: "n", Owner: "ann"}); err != nil {
			t.Fatal(err)
		}
	}
	is := func(when string, entries ...string) {
		t.Helper()
		for _, name := range []string{"n", "making", "k"} {
			holdsBytes(t, c, name, "of now")
		}
		mounts, err := c.Mounts(ctx)
		clones, cerr := c.Clones(ctx)
		if err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		var got []string
		for _, m := range mounts {
			got = append(got, m.Name+": "+m.State)
		}
		for _, k := range clones {
			got = append(got, k.Name+": "+k.State)
		}
		if !slices.Equal(got, entries) {
			t.Errorf("%s: the catalog has %q, and not %q", when, got, entries)
		}
	}
	for _, name := range []string{"n", "making", "k"} {
		wrote(t, c, name, "of now")
	}
	if err := c.catalog.AddUser(ctx, tidemark.User{Name: "ann"}); err != nil {
		t.Fatal(err)
	}
	left()
	gone := []string{"making: its timeline is gone", "n: its timeline is gone", "k: its timeline is gone"}
	is("when they are left", gone...)
	c.removeExpired(ctx, time.Now(), map[string]bool{})
	is("when they have lived their time", gone...)
	for _, name := range []string{"n", "k"} {
		if _, err := c.Extend(ctx, name, time.Hour); tidemark.KindOf(err) != tidemark.NotFound {
			t.Errorf("%s is extended: %v", name, err)
		}
	}
	for name, remove := range map[string]func() error{"n": func() error { return c.Unmount(ctx, "n") }, "making": func() error { return c.Unmount(ctx, "making") },
		"k": func() error { return c.RemoveClone(ctx, "k") }} {
		if err := remove(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	is("when they are removed")
	if o, err := c.catalog.Object(ctx, access.KindMount, "n"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("whose it was is known: %+v, %v", o, err)
	}
	left()
	closes(t, c)
	c = serverIn(t, dir)
	is("after a start")
}

// An entry without an ID, as of an older release, is that of the mount that has its name; one with another ID is not.
func TestEntryOfOlderMount(t *testing.T) {
	c := serving(t)
	ctx := t.Context()
	v, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	a, err := c.branch(ctx, v, "m", "", head, nil, roleMount)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"": true, a.t.ID(): true, "of-before": false} {
		if got := (keptMount{tidemark.Mount{Name: "m"}, id}).of(a); got != want {
			t.Errorf("the entry with the ID %q is of it: %v", id, got)
		}
	}
	if err := c.catalog.Put(ctx, catalog.Mounts, "m", tidemark.Mount{Name: "m", Disk: volumeDisk, State: "attached"}); err != nil {
		t.Fatal(err)
	}
	if err := c.dropEntries(ctx); err != nil {
		t.Fatal(err)
	}
	if m, err := c.mountOf(ctx, a); err != nil || m.State != "attached" {
		t.Errorf("it is %+v, %v", m, err)
	}
	if err := c.Unmount(ctx, "m"); err != nil {
		t.Error(err)
	}
	if _, err := c.app("m"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("it is there: %v", err)
	}
}

// The entry of a mount whose timeline cannot be opened stays, and goes when that is forgotten, though another cannot be opened either.
func TestForgetTakesEntryAlong(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	c := serverIn(t, dir)
	defer func() { closes(t, c) }()
	wrote(t, c, "v", "of now")
	v, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	a, err := c.branch(ctx, v, "m", "", head, nil, roleMount)
	if err == nil {
		err = a.t.Fold(ctx)
	}
	if err == nil {
		err = c.catalog.Put(ctx, catalog.Mounts, "m", keptMount{tidemark.Mount{Name: "m", Disk: volumeDisk, State: "attached"}, a.t.ID()})
	}
	if err == nil {
		_, err = c.createVolume(ctx, tidemark.VolumeSpec{Name: "other", Size: 1 << 20})
	}
	if err != nil {
		t.Fatal(err)
	}
	other, err := c.app("other")
	if err != nil {
		t.Fatal(err)
	}
	closes(t, c)
	for _, id := range []string{a.t.ID(), other.t.ID()} {
		descriptors, err := filepath.Glob(filepath.Join(dir, "pool", "timelines", id, "descriptor*"))
		if err != nil || len(descriptors) == 0 {
			t.Fatalf("this tests nothing: %v, %v", descriptors, err)
		}
		for _, d := range descriptors {
			if err := os.WriteFile(d, []byte("damaged"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	c = serverIn(t, dir)
	if mounts, err := c.Mounts(ctx); err != nil || len(mounts) != 1 {
		t.Errorf("the mounts are %+v, %v", mounts, err)
	}
	if err := c.Forget(ctx, a.t.ID()); err != nil {
		t.Error(err)
	}
	if mounts, err := c.Mounts(ctx); err != nil || len(mounts) != 0 {
		t.Errorf("the mounts are %+v, %v", mounts, err)
	}
}
