package control

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// owned makes a clone k of v that belongs to the user ann, and that she shares with bob.
func owned(t *testing.T, c *Control) {
	t.Helper()
	for _, name := range []string{"ann", "bob"} {
		if err := c.catalog.AddUser(t.Context(), tidemark.User{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	ended(t, c)(c.Clone(WithAsk(t.Context(), by(t, c, "ann")), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}))
	if _, err := c.Share(t.Context(), "k", []access.Subject{{Kind: access.User, Name: "bob"}}); err != nil {
		t.Fatal(err)
	}
}

// isOwned holds that k is ann's, and shared with bob.
func isOwned(t *testing.T, c *Control, when string) {
	t.Helper()
	o, err := c.catalog.Object(t.Context(), access.KindClone, "k")
	if err != nil || o.Owner != "ann" || !slices.Equal(o.Shared, []access.Subject{{Kind: access.User, Name: "bob"}}) {
		t.Errorf("%s: %+v, %v", when, o, err)
	}
}

// A clone whose refresh fails, and is made again, belongs to whom it belonged before.
func TestRefreshKeepsOwner(t *testing.T) {
	c := serving(t)
	owned(t, c)
	again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.planClone(t.Context(), again.CloneSpec, again.From)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.removeClone(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	cut, cancel := context.WithCancelCause(t.Context())
	cancel(errStopping)
	if k, err := c.refresh(cut, &task{}, p, again); err == nil {
		t.Fatalf("a refresh that was cut made %+v", k)
	}
	if _, err := c.app("k"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("what was half made is there: %v", err)
	}
	isOwned(t, c, "when the refresh has failed")
	ended(t, c)(c.ask(t.Context(), "refresh", refreshing{RefreshSpec: tidemark.RefreshSpec{Name: "k"}, Again: &again}))
	isOwned(t, c, "when it is made again")
	if o, err := c.Object(t.Context(), access.KindExport, "k"); err != nil || o.Owner != "ann" {
		t.Errorf("its export: %+v, %v", o, err)
	}
}

// That is so, too, where it is taken apart when its host is back; what is not made again is nobody's then.
func TestDoomKeepsOwner(t *testing.T) {
	c := serving(t)
	owned(t, c)
	for _, d := range []doom{{Refreshed: true}, {}} {
		a, err := c.app("k")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.annotate(t.Context(), a, func(n *about) { n.Doomed = &d }); err != nil {
			t.Fatal(err)
		}
		if _, err := c.bringBackNow(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if !d.Refreshed {
			break
		}
		isOwned(t, c, "when its host is back")
		ended(t, c)(c.Clone(WithAsk(t.Context(), by(t, c, "ann")), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}))
	}
	if o, err := c.catalog.Object(t.Context(), access.KindClone, "k"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("%+v, %v", o, err)
	}
}

// What cannot be taken apart now, for its host is away, is noted with all that becomes of it.
func TestAbandonOnHostThatIsAway(t *testing.T) {
	c, err := Open(t.Context(), Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closes(t, c)
	host(t, c, "h")
	v, err := c.createVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	if _, err := c.branch(t.Context(), v, "k", "h", head, nil, roleClone); err != nil {
		t.Fatal(err)
	}
	if err := c.abandon(t.Context(), "k", doom{Refreshed: true}); err != nil {
		t.Fatal(err)
	}
	if a, err := c.app("k"); err != nil || a.Doomed == nil || !a.Doomed.owned() {
		t.Errorf("%+v, %v", a.Doomed, err)
	}
}

// A clone counts for its owner while it is refreshed, whoever asked for that: there is nothing of its name meanwhile.
func TestUsageDuringRefresh(t *testing.T) {
	c := serving(t)
	owned(t, c)
	uses := func(user string, clones int) {
		t.Helper()
		if u, err := c.Usage(t.Context(), access.Principal{User: user, UserID: by(t, c, user).UserID}); err != nil || u.Clones != clones {
			t.Errorf("%s has %d clones, and not %d: %v", user, u.Clones, clones, err)
		}
	}
	uses("ann", 1)
	if err := c.removeClone(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	uses("ann", 0)
	later := catalog.NewJob{Kind: "refresh", Application: "k", AskedBy: "bob", AskerID: by(t, c, "bob").UserID, NotBefore: time.Now().Add(time.Hour), MaxAttempts: 1}
	j, err := c.catalog.Enqueue(t.Context(), later, c.limits())
	if err != nil {
		t.Fatal(err)
	}
	uses("ann", 1)
	uses("bob", 0)
	if _, err := c.catalog.Cancel(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	uses("ann", 0)
}

// A clone whose refresh fails is still known: it is whose it was, its name is taken, and it can be refreshed again, or removed.
func TestRefreshFails(t *testing.T) {
	c := serving(t)
	owned(t, c)
	was, err := c.app("k")
	if err != nil {
		t.Fatal(err)
	}
	fail := func() {
		t.Helper()
		again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "k"})
		if err != nil {
			t.Fatal(err)
		}
		p, err := c.planClone(t.Context(), again.CloneSpec, again.From)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.noteRefresh(t.Context(), "k", stateRefreshing, &again), c.removeClone(t.Context(), "k")); err != nil {
			t.Fatal(err)
		}
		cut, cancel := context.WithCancelCause(t.Context())
		cancel(errStopping)
		if _, err := c.refresh(cut, &task{}, p, again); err == nil || !strings.Contains(err.Error(), "`tidemark refresh k` makes the clone again") {
			t.Fatalf("a refresh that fails says %v", err)
		}
	}
	is := func(state string) {
		t.Helper()
		list, err := c.Clones(t.Context())
		if err != nil || len(list) != 1 || list[0].Name != "k" || list[0].State != state {
			t.Fatalf("not one clone k that is %q: %+v, %v", state, list, err)
		}
		for _, kind := range []access.Kind{access.KindClone, access.KindApplication} {
			if o, err := c.Object(t.Context(), kind, "k"); err != nil || o.Kind != access.KindClone || o.Owner != "ann" || o.Source != "v" || o.Host != access.ServerHost {
				t.Errorf("%+v, %v", o, err)
			}
		}
	}
	fail()
	is(stateUnrefreshed)
	if j, err := c.Clone(t.Context(), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("its name is taken by %+v, %v", j, err)
	}
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "k", Size: 1 << 20}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("its name is taken by a volume: %v", err)
	}
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "k", Point: "pub-1"}))
	is("running")
	if now, err := c.app("k"); err != nil || now.firstID() != was.firstID() || now.From != was.From {
		t.Errorf("it is %+v, %v, and was %+v", now.about, err, was.about)
	}
	fail()
	if err := c.RemoveClone(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Clones(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("removed, and there is %+v, %v", list, err)
	}
	if o, err := c.Object(t.Context(), access.KindClone, "k"); err != nil || o.Owner != "" {
		t.Errorf("%+v, %v", o, err)
	}
}

// So is one whose refresh was cut, and not begun again.
func TestRefreshIsCut(t *testing.T) {
	c := serving(t)
	owned(t, c)
	again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.undo(t.Context(), undoing{Remove: "k", Again: &again}); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Clones(t.Context()); err != nil || len(list) != 1 || list[0].State != stateUnrefreshed {
		t.Fatalf("%+v, %v", list, err)
	}
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "k"}))
	isOwned(t, c, "when it is made again")
}
