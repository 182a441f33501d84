package control

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/timeline"
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

// What a host that hangs has not taken off is taken off when that answers again, though it was connected all along. Until then whoever asks is told so.
func TestAbandonOnHostThatHangs(t *testing.T) {
	c, _ := listens(t)
	ctx := t.Context()
	host(t, c, "h")
	x, err := c.agentOn("h")
	if err != nil {
		t.Fatal(err)
	}
	var answers atomic.Bool
	replying(t, x, func() error {
		if answers.Load() {
			return nil
		}
		return tidemark.Errorf(tidemark.Unavailable, "its disk does not answer")
	})
	v, err := c.createVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	for name, r := range map[string]role{"k": roleClone, "m": roleMount} {
		if _, err := c.branch(ctx, v, name, "h", head, nil, r); err != nil {
			t.Fatal(err)
		}
		if err := c.abandon(ctx, name, doom{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.RemoveClone(ctx, "k"); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), "k is being removed, and host h has not done its part yet") {
		t.Errorf("it cannot be removed: %v", err)
	}
	if _, err := c.Clone(ctx, tidemark.CloneSpec{Ref: "v", Name: "k"}); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "a clone k is being removed") {
		t.Errorf("its name is taken: %v", err)
	}
	answers.Store(true)
	for _, name := range []string{"k", "m"} {
		holds(t, name+" is gone", func() bool {
			_, err := c.app(name)
			return tidemark.KindOf(err) == tidemark.NotFound
		})
	}
	if err := c.RemoveHost(ctx, tidemark.HostRemoval{Name: "h"}); err != nil {
		t.Error(err)
	}
}

// A clone counts for its owner while it is refreshed, whoever asked for that: there is nothing of its name meanwhile.
func TestUsageDuringRefresh(t *testing.T) {
	c := serving(t)
	owned(t, c)
	uses := func(user string, clones int) {
		t.Helper()
		if u, err := c.usage(t.Context(), access.Principal{User: user, UserID: by(t, c, user).UserID}); err != nil || u.Clones != clones {
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

// A refresh that could be done when it took the old clone away can be done still, whatever is expired meanwhile.
func TestRefreshKeepsItsPoint(t *testing.T) {
	c := serving(t)
	owned(t, c)
	v, err := c.app("v")
	if err == nil {
		err = v.t.SetWindow(timeline.Window{}) // so that nothing is left of a point that is expired
	}
	if err != nil {
		t.Fatal(err)
	}
	meant, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: "meant"})
	data := make([]byte, 1<<20)
	for n := 0; n < 66 && err == nil; n++ { // more than a segment of the journal, which goes when that is an image
		rand.Read(data)
		_, err = v.t.Disks()[0].WriteAt(data, 0)
	}
	if err == nil {
		_, err = c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: "newer"})
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "k", Point: "meant"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.planClone(t.Context(), again.CloneSpec, again.From)
	if err != nil {
		t.Fatal(err)
	}
	leave, err := c.canBranch(t.Context(), &p, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.noteRefresh(t.Context(), "k", stateRefreshing, &again), c.removeClone(t.Context(), "k")); err != nil {
		t.Fatal(err)
	}
	for _, x := range p.src.t.Points() { // also those that it could be made from otherwise
		if x.Position <= meant.Position {
			if err := p.src.t.Expire(t.Context(), x.Position); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.refresh(t.Context(), &task{}, p, again); err != nil {
		t.Errorf("what was there when it began is gone: %v", err)
	}
	leave()
	if _, err := p.src.t.Branch(t.Context(), "later", meant.Position, nil, nil); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("the point is kept for nobody: %v", err)
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
	if _, err := c.undo(t.Context(), 1, undoing{Remove: "k", Again: &again}); err != nil {
		t.Fatal(err)
	}
	if list, err := c.Clones(t.Context()); err != nil || len(list) != 1 || list[0].State != stateUnrefreshed {
		t.Fatalf("%+v, %v", list, err)
	}
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "k"}))
	isOwned(t, c, "when it is made again")
}

// A refresh that cannot be done leaves the clone: its host was removed or is away, or the point is gone by the time that its turn comes.
func TestRefreshThatCannotBeDone(t *testing.T) {
	c, _ := listens(t)
	ctx := t.Context()
	host(t, c, "h")
	v, err := c.createVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	for name, host := range map[string]string{"here": "", "there": "h"} {
		if _, err := c.branch(ctx, v, name, host, p.Position, nil, roleClone); err != nil {
			t.Fatal(err)
		}
		k := keptClone{Clone: tidemark.Clone{Name: name, Type: tidemark.TypeVolume, Host: host, State: "running"}, Spec: tidemark.CloneSpec{Ref: "v", Name: name, Host: host}}
		if err := c.catalog.Put(ctx, catalog.Clones, name, k); err != nil {
			t.Fatal(err)
		}
	}
	stays := func(when, name string, err error, kind tidemark.Kind) {
		t.Helper()
		if tidemark.KindOf(err) != kind {
			t.Errorf("%s: %v", when, err)
		}
		if a, err := c.app(name); err != nil || a.Doomed != nil {
			t.Errorf("%s: %+v, %v", when, a.Doomed, err)
		}
		var k keptClone
		if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil || k.Again != nil || k.State != "running" {
			t.Errorf("%s: %+v, %v", when, k, err)
		}
	}
	queued := func(name string) *work {
		t.Helper()
		w, err := c.refreshWork(ctx, refreshing{RefreshSpec: tidemark.RefreshSpec{Name: name, Point: "one"}})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := queued("there")
	_, err = w.run(ctx, &task{c: c})
	stays("the host is away", "there", err, tidemark.Unavailable)
	if err := c.RemoveHost(ctx, tidemark.HostRemoval{Name: "h", Force: true}); err != nil {
		t.Fatal(err)
	}
	_, err = w.run(ctx, &task{c: c})
	stays("the host was removed since", "there", err, tidemark.NotFound)
	_, err = c.Refresh(ctx, tidemark.RefreshSpec{Name: "there"})
	stays("the host was removed", "there", err, tidemark.NotFound)

	w = queued("here")
	if err := v.t.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err = w.run(ctx, &task{c: c}); err == nil {
		t.Error("the source is gone, and the clone was made of it")
	}
	stays("the source is gone", "here", err, tidemark.KindOf(err))
}
