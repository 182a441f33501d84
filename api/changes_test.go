package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// followed is a stream of changes that a test reads.
type followed struct {
	t    *testing.T
	got  chan tidemark.ChangeMessage // closed when the stream has ended
	last string                      // the newest ID that was read
}

// follow begins to follow changes, and reads the sync that a stream begins with, unless it goes on.
func (x *rig) follow(f tidemark.ChangeFilter) *followed {
	x.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	x.t.Cleanup(cancel)
	y := &followed{t: x.t, got: make(chan tidemark.ChangeMessage, 1000)}
	go func() {
		defer close(y.got)
		for m, err := range x.FollowChanges(ctx, f) {
			if err != nil {
				return
			}
			y.got <- m
		}
	}()
	if f.After == "" {
		y.sync(tidemark.SyncBegun)
	}
	return y
}

// followAs follows changes over the network, by the secret of a token.
func (x *rig) followAs(h http.Handler, secret, query string) *followed {
	x.t.Helper()
	network := httptest.NewServer(h)
	x.t.Cleanup(network.Close)
	ctx, cancel := context.WithCancel(context.Background())
	x.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", network.URL+"/v1/timelines/changes"+query, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != http.StatusOK {
		x.t.Fatalf("%+v, %v", resp, err)
	}
	y := &followed{t: x.t, got: make(chan tidemark.ChangeMessage, 1000)}
	go func() {
		defer close(y.got)
		defer resp.Body.Close()
		event := ""
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				event = name
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var m tidemark.ChangeMessage
				if err := json.Unmarshal([]byte(`{"`+event+`":`+data+`}`), &m); err != nil {
					return
				}
				y.got <- m
			}
		}
	}()
	y.sync(tidemark.SyncBegun)
	return y
}

// next is the next message.
func (y *followed) next() tidemark.ChangeMessage {
	y.t.Helper()
	select {
	case m, ok := <-y.got:
		if !ok {
			y.t.Fatal("the stream has ended")
		}
		switch {
		case m.Change != nil:
			y.last = m.Change.ID
		case m.Sync != nil:
			y.last = m.Sync.ID
		}
		return m
	case <-time.After(20 * time.Second):
		y.t.Fatal("nothing is told")
	}
	return tidemark.ChangeMessage{}
}

// sync makes sure that the next message is a sync with a reason.
func (y *followed) sync(reason string) {
	y.t.Helper()
	if m := y.next(); m.Sync == nil || m.Sync.Reason != reason || m.Sync.ID == "" {
		y.t.Fatalf("%s is no sync: %s", said(m), reason)
	}
}

// change makes sure that the next message is a change of a kind, of an application.
func (y *followed) change(kind tidemark.ChangeKind, application string) tidemark.TimelineChange {
	y.t.Helper()
	m := y.next()
	if m.Change == nil || m.Change.Kind != kind || m.Change.Application != application || m.Change.ID == "" || time.Since(m.Change.Time).Abs() > time.Minute {
		y.t.Fatalf("%s is not that of %s: %s", said(m), application, kind)
	}
	return *m.Change
}

// end makes sure that nothing comes any more but the end of the stream.
func (y *followed) end() {
	y.t.Helper()
	select {
	case m, ok := <-y.got:
		if ok {
			y.t.Fatalf("%s comes, and not the end", said(m))
		}
	case <-time.After(20 * time.Second):
		y.t.Fatal("the stream does not end")
	}
}

func said(m tidemark.ChangeMessage) string {
	text, err := json.Marshal(m)
	return fmt.Sprint(string(text), err)
}

func (x *rig) works(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatal(err)
	}
}

// bookmark bookmarks an application.
func (x *rig) bookmark(application, name string) tidemark.RecoveryPoint {
	x.t.Helper()
	p, err := x.Bookmark(context.Background(), tidemark.BookmarkSpec{Application: application, Name: name})
	x.works(err)
	return p
}

// isPoint makes sure that a change is about a point.
func (y *followed) isPoint(c tidemark.TimelineChange, p tidemark.RecoveryPoint) {
	y.t.Helper()
	if c.Point == nil || c.Point.Position != p.Position || !c.Point.Time.Equal(p.Time) || c.Point.Bookmark != p.Bookmark || c.Point.Consistency != p.Consistency {
		y.t.Errorf("%+v is not %+v", c.Point, p)
	}
}

// TestChanges holds that what is done to timelines is told, in order, with positions, to all who follow; and nothing of what failed.
func TestChanges(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	all := []*followed{x.follow(tidemark.ChangeFilter{}), x.follow(tidemark.ChangeFilter{})}
	fails := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("that should have failed")
		}
	}
	each := func(check func(y *followed)) {
		t.Helper()
		for _, y := range all {
			check(y)
		}
	}

	x.volume("v")
	each(func(y *followed) { y.change(tidemark.ApplicationMade, "v") })
	one := x.bookmark("v", "one")
	each(func(y *followed) { y.isPoint(y.change(tidemark.PointMade, "v"), one) })

	_, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "one"}) // there is one
	fails(err)
	_, err = x.Expire(ctx, tidemark.Ref{App: "v", Point: tidemark.Point{Bookmark: "none"}})
	fails(err)
	j, err := x.Protect(ctx, tidemark.ProtectSpec{Name: "absent", Source: filepath.Join(t.TempDir(), "absent")})
	_, err = client.Result[tidemark.Application](ctx, x.Client, j, err, nil)
	fails(err)
	_, err = x.CreateVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	fails(err)

	file := filepath.Join(t.TempDir(), "file")
	x.works(os.WriteFile(file, make([]byte, 1<<20), 0o600))
	j, err = x.Protect(ctx, tidemark.ProtectSpec{Name: "file", Source: file})
	_, err = client.Result[tidemark.Application](ctx, x.Client, j, err, nil)
	x.works(err)
	j, err = x.Capture(ctx, tidemark.CaptureSpec{Application: "file", Bookmark: "captured"})
	captured, err := client.Result[tidemark.CaptureResult](ctx, x.Client, j, err, nil)
	x.works(err)
	each(func(y *followed) {
		y.change(tidemark.ApplicationMade, "file")
		y.isPoint(y.change(tidemark.PointMade, "file"), captured.Point)
	})

	x.clone("", tidemark.CloneSpec{Ref: "v@one", Name: "k"})
	two := x.bookmark("k", "two")
	each(func(y *followed) {
		if c := y.change(tidemark.CloneMade, "k"); c.Of != "v@"+one.Position.String() {
			t.Errorf("%+v", c)
		}
		y.isPoint(y.change(tidemark.PointMade, "k"), two)
	})
	j, err = x.Rewind(ctx, tidemark.RewindSpec{Ref: "k@two"})
	rewound, err := client.Result[tidemark.Rewound](ctx, x.Client, j, err, nil)
	x.works(err)
	each(func(y *followed) { y.rewinds("k", rewound, two) })

	_, err = x.Expire(ctx, tidemark.Ref{App: "v", Point: tidemark.Point{Bookmark: "one"}})
	x.works(err)
	x.works(x.RemoveClone(ctx, "k"))
	x.works(x.RemoveVolume(ctx, "v"))
	each(func(y *followed) {
		y.isPoint(y.change(tidemark.PointRemoved, "v"), one)
		if c := y.change(tidemark.CloneRemoved, "k"); c.Of != "v@"+one.Position.String() {
			t.Errorf("%+v", c)
		}
		y.change(tidemark.ApplicationRemoved, "v")
		if len(y.got) > 0 {
			t.Errorf("%s is told as well", said(<-y.got))
		}
	})
}

// rewinds reads what is told of a rewind. When the bookmark before it is folded is up to the server.
func (y *followed) rewinds(application string, r tidemark.Rewound, to tidemark.RecoveryPoint) {
	y.t.Helper()
	var kinds []tidemark.ChangeKind
	for range 3 {
		c := y.next().Change
		if c == nil || c.Application != application || c.Point == nil || c.Kind == tidemark.PointMade && c.Point.Bookmark != r.Before || c.Kind != tidemark.PointMade && (c.Gap == nil || c.Gap.Reason == "") {
			y.t.Fatalf("%+v is nothing of a rewind", c)
		}
		kinds = append(kinds, c.Kind)
	}
	slices.Sort(kinds)
	if !slices.Equal(kinds, []tidemark.ChangeKind{tidemark.GapBegun, tidemark.GapClosed, tidemark.PointMade}) {
		y.t.Errorf("a rewind is told as %v", kinds)
	}
	y.isPoint(y.change(tidemark.ApplicationRewound, application), to)
}

// TestChangesOfOne holds that who asks for the changes of an application is told of those, and of its clones that come and go.
func TestChangesOfOne(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	x.applications("a", "b")
	y := x.follow(tidemark.ChangeFilter{Application: "a"})
	x.bookmark("b", "two")
	x.bookmark("a", "two")
	x.clone("", tidemark.CloneSpec{Ref: "b@one", Name: "of-b"})
	x.clone("", tidemark.CloneSpec{Ref: "a@one", Name: "of-a"})
	x.bookmark("of-a", "three")
	x.works(x.RemoveClone(ctx, "of-a"))
	x.works(x.RemoveVolume(ctx, "a"))
	y.change(tidemark.PointMade, "a")
	y.change(tidemark.CloneMade, "of-a")
	y.change(tidemark.CloneRemoved, "of-a")
	y.change(tidemark.ApplicationRemoved, "a")
	if resp, text := x.ask("GET", "/v1/timelines/changes?application=nobody", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// TestChangesGoOn holds that who was cut off goes on, and is told if he cannot.
func TestChangesGoOn(t *testing.T) {
	x := newRig(t)
	x.applications("v")
	y := x.follow(tidemark.ChangeFilter{})
	begun := y.last
	two := x.bookmark("v", "two")
	y.isPoint(y.change(tidemark.PointMade, "v"), two)
	behind := y.last
	three := x.bookmark("v", "three")

	again := x.follow(tidemark.ChangeFilter{After: behind})
	again.isPoint(again.change(tidemark.PointMade, "v"), three)
	again = x.follow(tidemark.ChangeFilter{After: begun})
	again.isPoint(again.change(tidemark.PointMade, "v"), two)
	again.isPoint(again.change(tidemark.PointMade, "v"), three)
	x.bookmark("v", "four")
	again.change(tidemark.PointMade, "v")

	run, _, _ := strings.Cut(begun, ".")
	x.follow(tidemark.ChangeFilter{After: run + ".1000"}).sync(tidemark.SyncMissed) // it is still to come
	x.follow(tidemark.ChangeFilter{After: "other.1"}).sync(tidemark.SyncMissed)
	x.stop()
	x.start()
	again = x.follow(tidemark.ChangeFilter{After: behind})
	again.sync(tidemark.SyncMissed)
	x.bookmark("v", "five")
	again.change(tidemark.PointMade, "v")

	for _, last := range []string{"yesterday", "7", ".7", "run.-1", "run.x"} {
		if resp, text := x.ask("GET", "/v1/timelines/changes", "", "Last-Event-ID", last); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s: %s", last, resp.Status, text)
		}
	}
}

// TestChangesByRights holds that one is told of what he sees in lists, and of nothing else: also of what is gone, and when his rights are taken away.
func TestChangesByRights(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	x.applications("orders", "secret")
	h := outside(x)
	everything := access.Grant{Role: access.Auditor, Scope: access.Scope{Kind: access.Everything}}
	alice := x.followAs(h, x.person("alice", developer("orders")), "")
	eve := x.followAs(h, x.person("eve", everything), "")
	masked := x.followAs(h, x.person("mallory", developer("masked")), "") // of a LiveClone's name: not of what it is of
	x.person("bob", developer("orders"))

	x.bookmark("secret", "two")
	x.bookmark("orders", "two")
	x.clone("bob", tidemark.CloneSpec{Ref: "orders@one", Name: "his"})
	x.bookmark("his", "three")
	x.clone("alice", tidemark.CloneSpec{Ref: "orders@one", Name: "hers"})
	x.bookmark("hers", "three")
	for _, name := range []string{"his", "hers"} {
		x.works(x.RemoveClone(ctx, name))
	}
	x.works(x.RemoveVolume(ctx, "secret"))

	alice.change(tidemark.PointMade, "orders")
	alice.change(tidemark.CloneMade, "hers")
	alice.change(tidemark.PointMade, "hers")
	alice.change(tidemark.CloneRemoved, "hers")
	for _, want := range []string{"secret", "orders", "his", "his", "hers", "hers", "his", "hers", "secret"} {
		if m := eve.next(); m.Change == nil || m.Change.Application != want {
			t.Fatalf("%s is not of %s", said(m), want)
		}
	}
	if len(masked.got) > 0 {
		t.Errorf("%s is told to who may see none of it", said(<-masked.got))
	}

	// What is taken away is told no more, and that there is less. With nothing left, the stream ends.
	one := x.followAs(h, x.person("carol", developer("orders"), developer("other")), "?application=orders")
	_, grants, err := x.c.Access().Principal(ctx, "carol", access.ByToken)
	x.works(err)
	x.works(x.c.Access().RemoveGrant(ctx, grants[0].ID))
	x.bookmark("orders", "four")
	one.end()
	alice.change(tidemark.PointMade, "orders")
	_, grants, err = x.c.Access().Principal(ctx, "alice", access.ByToken)
	x.works(err)
	more, err := x.AddGrant(ctx, access.Grant{Subject: access.Subject{Kind: access.User, Name: "alice"}, Role: access.Auditor, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"other"}}})
	x.works(err)
	x.works(x.c.Access().RemoveGrant(ctx, grants[0].ID))
	x.bookmark("orders", "five")
	alice.sync(tidemark.SyncRights)
	x.volume("other")
	alice.change(tidemark.ApplicationMade, "other")
	x.works(x.c.Access().RemoveGrant(ctx, more.ID))
	x.bookmark("other", "six")
	alice.end()

	w := ask(h, httptest.NewRequest("GET", "/v1/timelines/changes?application=orders", nil), x.person("dave", developer("other")))
	if w.Code != http.StatusForbidden {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

// slow takes what is written when it is let, as a client does that reads slowly.
type slow struct {
	*httptest.ResponseRecorder
	wrote chan string   // what is being written
	let   chan struct{} // lets it be
}

func (w *slow) Write(b []byte) (int, error) {
	w.wrote <- string(b)
	<-w.let
	return len(b), nil
}

// SetWriteDeadline is what a connection has.
func (*slow) SetWriteDeadline(time.Time) error { return nil }

// TestSlowReaderOfChanges holds that nobody waits for who does not read, and that he is told that he has missed something.
func TestSlowReaderOfChanges(t *testing.T) {
	x := &rig{t: t, dir: t.TempDir(), check: newValidator(t), seen: map[string]int{}, changes: 8}
	x.start()
	t.Cleanup(x.stop)
	x.applications("v")
	ctx, cancel := context.WithCancel(t.Context())
	w := &slow{ResponseRecorder: httptest.NewRecorder(), wrote: make(chan string), let: make(chan struct{}, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		newServer(x.c, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/v1/timelines/changes", nil))
	}()
	read := func() string {
		t.Helper()
		select {
		case text := <-w.wrote:
			w.let <- struct{}{}
			return text
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is written")
			return ""
		}
	}
	for !strings.Contains(read(), "event: sync") { // the first write has only the head
	}
	quick := x.follow(tidemark.ChangeFilter{})
	for i := range 30 { // of which he reads nothing; those who bookmark wait for nobody
		x.bookmark("v", fmt.Sprintf("b%d", i))
		if c := quick.change(tidemark.PointMade, "v"); c.Point.Bookmark != fmt.Sprintf("b%d", i) {
			t.Fatalf("%+v", c.Point)
		}
	}
	changes, missed := 0, false
	for !missed {
		text := read()
		changes += strings.Count(text, "event: change")
		missed = strings.Contains(text, "event: sync") && strings.Contains(text, `"reason":"missed"`)
	}
	if changes >= 30 {
		t.Errorf("he has read %d changes, and has missed none", changes)
	}
	x.bookmark("v", "last")
	if text := read(); !strings.Contains(text, `"bookmark":"last"`) {
		t.Errorf("behind that comes %s", text)
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the stream does not end")
	}
}

// TestAdvances holds that how far timelines have come is told to who wants to know it, and has no ID.
func TestAdvances(t *testing.T) {
	x := newRig(t)
	x.applications("v")
	y := x.follow(tidemark.ChangeFilter{Application: "v", Advances: true})
	without := x.follow(tidemark.ChangeFilter{Application: "v"})
	p := x.bookmark("v", "two")
	last := ""
	for told := false; !told; {
		switch m := y.next(); {
		case m.Change != nil:
			last = m.Change.ID
		case m.Advance != nil:
			if told = m.Advance.Application == "v" && m.Advance.Position >= p.Position; !told || m.Advance.Oldest.IsZero() {
				t.Errorf("%s", said(m))
			}
		}
	}
	if last == "" || y.last != last {
		t.Errorf("a stream goes on behind %q, and not %q", y.last, last)
	}
	without.change(tidemark.PointMade, "v")
	x.bookmark("v", "three")
	without.change(tidemark.PointMade, "v")
	if len(without.got) > 0 {
		t.Errorf("%s was not asked for", said(<-without.got))
	}
}
