package control

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// noted are the IDs of the applications of which something is remembered, and the keys of the AppShots of which something is.
func noted(t *testing.T, c *Control) (ids, shots []string) {
	t.Helper()
	records, err := catalog.List[record](t.Context(), c.catalog, catalog.Promises)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		ids = append(ids, r.ID)
	}
	notes, err := catalog.List[shotNote](t.Context(), c.catalog, catalog.Shots)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range notes {
		shots = append(shots, n.key())
	}
	return ids, shots
}

// What is noted of an application goes with it, or at the next start: never what is of another, or of a timeline that cannot be opened now.
func TestNotesGoWithWhatTheyAreOf(t *testing.T) {
	o := Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20}
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	ids := map[string]string{}
	for _, name := range []string{"goes", "goes-not", "away"} {
		if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		a, err := c.app(name)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = a.t.ID()
		c.note(a.t.ID(), func(k *record) { k.ran(policy.Run{Policy: policy.PolicyCapture, State: policy.RunDone}) })
		shot := shotNote{Application: name, Bookmark: "auto-1"}
		if err := c.catalog.Put(t.Context(), catalog.Shots, shot.key(), shot); err != nil {
			t.Fatal(err)
		}
	}
	holdsNotes := func(when string, names ...string) {
		t.Helper()
		var want, shots []string
		for _, name := range names {
			want, shots = append(want, ids[name]), append(shots, name+"@auto-1")
		}
		slices.Sort(want)
		slices.Sort(shots)
		if gotIDs, gotShots := noted(t, c); !slices.Equal(gotIDs, want) || !slices.Equal(gotShots, shots) {
			t.Errorf("%s: of %v and %v is noted something, and not of %v", when, gotIDs, gotShots, names)
		}
	}
	holdsNotes("at first", "goes", "goes-not", "away")
	if err := c.RemoveVolume(t.Context(), "goes"); err != nil {
		t.Fatal(err)
	}
	holdsNotes("when one is removed", "goes-not", "away")
	c.promises.mu.Lock()
	if slices.Contains(slices.Collect(maps.Keys(c.promises.records)), ids["goes"]) {
		t.Error("it is remembered still")
	}
	c.promises.mu.Unlock()
	c.note(ids["goes"], func(k *record) { k.Told = policy.Violated }) // as a job that ends late
	holdsNotes("when something comes late", "goes-not", "away")

	ids["left"] = "left"
	shot := shotNote{Application: "left", Bookmark: "auto-1"}
	again := func(change func()) {
		t.Helper()
		c.Close()
		change()
		if c, err = Open(context.Background(), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.catalog.Put(t.Context(), catalog.Promises, "left", record{ID: "left"}); err != nil {
		t.Fatal(err)
	}
	if err := c.catalog.Put(t.Context(), catalog.Shots, shot.key(), shot); err != nil {
		t.Fatal(err)
	}
	descriptors, err := filepath.Glob(filepath.Join(o.Dir, "pool", "timelines", ids["away"], "descriptor-*"))
	if err != nil || len(descriptors) != 1 {
		t.Fatal(descriptors, err)
	}
	put := filepath.Join(o.Dir, "descriptor")
	move := func(from, to string) func() {
		return func() {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	again(move(descriptors[0], put))
	if gotIDs, gotShots := noted(t, c); !slices.Contains(gotIDs, ids["away"]) || slices.Contains(gotIDs, "left") || len(gotShots) != 3 {
		t.Errorf("while one cannot be opened there are %v and %v", gotIDs, gotShots)
	}
	again(move(put, descriptors[0]))
	holdsNotes("when all can be opened again", "goes-not", "away")
}

// That a point was proved is remembered as long as there is the point.
func TestVerifiedGoesWithItsPoint(t *testing.T) {
	c, _ := listens(t)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	var points []tidemark.Position
	for _, name := range made(3) {
		p, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p.Position)
		c.note(a.t.ID(), func(k *record) { k.verified(p.Position, time.Now()) })
	}
	if n := len(c.promises.verified(a.t.ID())); n != 3 {
		t.Fatalf("of 3 points, %d are proved", n)
	}
	for _, pos := range points[:2] {
		if _, err := c.Expire(t.Context(), "v@"+pos.String()); err != nil {
			t.Fatal(err)
		}
	}
	c.note(a.t.ID(), func(k *record) {})
	var kept record
	if err := c.catalog.Get(t.Context(), catalog.Promises, a.t.ID(), &kept); err != nil {
		t.Fatal(err)
	}
	if got := slices.Collect(maps.Keys(kept.Verified)); !slices.Equal(got, points[2:]) {
		t.Errorf("%v are proved, and there is %v", got, points[2:])
	}
}
