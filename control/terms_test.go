package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
)

// later is how ann asks for what waits for long, of which she was allowed that.
func later(t *testing.T, c *Control, needs ...Need) Ask {
	t.Helper()
	how := by(t, c, "ann")
	how.Queue, how.NotBefore, how.Needs = true, time.Now().Add(time.Hour), needs
	return how
}

// mayBegin returns what is said to a job that begins now.
func mayBegin(t *testing.T, c *Control) func(tidemark.Job, error) func() error {
	t.Helper()
	return func(j tidemark.Job, err error) func() error {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			full, err := c.catalog.Job(t.Context(), j.ID)
			return errors.Join(err, c.mayBegin(t.Context(), full))
		}
	}
}

// Who is no user any more when a job begins has nothing done, and that is in the audit.
func TestQueuedByNobodyAnyMore(t *testing.T) {
	c := serving(t)
	granted(t, c, "ann", access.Operator)
	before, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	how := later(t, c, Need{Action: access.ApplicationRestore, Kind: access.KindClone, Ref: "v"})
	how.NotBefore = time.Now().Add(2 * time.Second)
	points := len(before.t.Points())
	j, err := c.Rewind(WithAsk(t.Context(), how), tidemark.RewindSpec{Ref: "v@pub-1"})
	if err == nil {
		err = c.catalog.SetDisabled(t.Context(), "ann", true)
	}
	if err != nil {
		t.Fatal(err)
	}
	j = lasted(t, c, j, nil)
	if j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Denied || !strings.Contains(j.Error.Message, "this rewind may not be begun any more: ann, for whom this is done, is no user any more") {
		t.Errorf("%s: %+v", j.State, j.Error)
	}
	if now := before.t.Points(); len(now) != points {
		t.Errorf("it was rewound: %+v", now)
	}
	list := audited(t, c, "ann")
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	r := list[0]
	got := fmt.Sprint(r.Method, " ", r.Request, " ", r.Action, " ", r.Kind, " ", r.Object, " ", r.Outcome)
	if want := fmt.Sprintf("job job %d application.restore clone v refused", j.ID); got != want || !strings.Contains(r.Detail, "is no user any more") {
		t.Errorf("%s: %s; and not %s", got, r.Detail, want)
	}
}

// What was decided about is decided about again, by the rights of now, narrowed by the token of then.
func TestDecidedAboutAgain(t *testing.T) {
	c := payroll(t) // ann may clone v, has one clone of nine, and none of payroll
	copied := &access.Copy{New: 1, Host: access.ServerHost}
	needs := []Need{{Action: access.ApplicationClone, Kind: access.KindApplication, Ref: "v", From: "v@pub-1", Copy: copied}, {Action: access.HostUse, Kind: access.KindHost, Ref: access.ServerHost}}
	clone := func(name string, how Ask) func() error {
		return mayBegin(t, c)(c.Clone(WithAsk(t.Context(), how), tidemark.CloneSpec{Ref: "v@pub-1", Name: name}))
	}
	his, narrowed, socket := clone("a", later(t, c, needs...)), later(t, c, needs...), later(t, c, Need{Action: access.ApplicationClone, Kind: access.KindApplication, Ref: "payroll"})
	narrowed.Token = &access.Token{ID: 7, User: "ann", Name: "ci", Roles: []access.Role{access.Auditor}}
	socket.By = ""
	old := mayBegin(t, c)(c.Clone(WithAsk(t.Context(), later(t, c)), tidemark.CloneSpec{Ref: "v@pub-1", Name: "d"}))
	byToken, byNobody := clone("b", narrowed), clone("c", socket)
	grants, err := c.catalog.Grants(t.Context(), 0, 9)
	if err != nil || len(grants) != 1 {
		t.Fatalf("%+v, %v", grants, err)
	}
	limited := func(change func(*access.Limits)) {
		t.Helper()
		g := grants[0]
		change(&g.Limits)
		list, err := c.catalog.Grants(t.Context(), 0, 9)
		if err == nil {
			err = c.catalog.RemoveGrant(t.Context(), list[0].ID)
		}
		if err == nil {
			_, err = c.catalog.AddGrant(t.Context(), g)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(what string, job func() error, want string) {
		t.Helper()
		if err := job(); want == "" && err != nil || want != "" && (tidemark.KindOf(err) != tidemark.Denied || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	says("as it was", his, "")
	says("by a token that may not do it", byToken, "the token does not allow it")
	limited(func(l *access.Limits) { l.Clones = 5 }) // mid, mine, a, b and d
	says("a copy that is among those that are counted", his, "")
	limited(func(l *access.Limits) { l.Hosts = nil })
	says("a copy on a host that it may not be put on any more", his, "copies may not be put on host")
	limited(func(l *access.Limits) { l.Points = access.PointRule{Bookmarks: []access.Pattern{"pub-*"}} })
	says("a point that may be taken", his, "")
	limited(func(l *access.Limits) { l.Points = access.PointRule{} })
	says("a point that is published no more", his, "do not allow this point")
	if err := c.catalog.SetDisabled(t.Context(), "ann", true); err != nil {
		t.Fatal(err)
	}
	says("by nobody", his, "is no user any more")
	says("of an older release, or decided about elsewhere", old, "")
	says("of the administrator", byNobody, "")
	if list := audited(t, c, "ann"); len(list) == 0 || list[0].Method != access.ByJob || list[0].TokenID != 7 || list[0].Outcome != access.Refused {
		t.Errorf("%+v", list)
	}
}

// What a job takes the data of, or writes over, is what it was asked of, and nothing that has the name by the time it begins.
func TestQueuedOfWhatIsAnother(t *testing.T) {
	c := payroll(t)
	how := WithAsk(t.Context(), later(t, c))
	if _, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "mid", Name: "b"}); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "to")
	soon := Ask{Queue: true, NotBefore: time.Now().Add(3 * time.Second)}
	restore, err := c.Restore(WithAsk(t.Context(), soon), tidemark.RestoreSpec{Ref: "mid", To: to})
	if err != nil {
		t.Fatal(err)
	}
	jobs := map[string]func() error{
		"restore": mayBegin(t, c)(c.Restore(how, tidemark.RestoreSpec{Ref: "mid@b", To: to})),
		"verify":  mayBegin(t, c)(c.Verify(how, "mid@b")),
		"prove":   mayBegin(t, c)(c.Prove(how, tidemark.ProveSpec{Ref: "mid@b"})),
	}
	all := mayBegin(t, c)(c.Verify(how, ""))
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mid"})) // it is the same clone
	for kind, job := range jobs {
		if err := job(); err != nil {
			t.Errorf("%s, of what it was asked of: %v", kind, err)
		}
	}
	replace(t, c, "mid", "payroll")
	for kind, job := range jobs {
		if err := job(); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "this "+kind+" was asked for another mid") {
			t.Errorf("%s, of another: %v", kind, err)
		}
	}
	if err := all(); err != nil {
		t.Errorf("of all: %v", err)
	}
	if j := lasted(t, c, restore, nil); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Conflict {
		t.Errorf("%s: %+v", j.State, j.Error)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was written: %v", err)
	}
}

// A restore of a group writes over those that were its members when it was asked for, or over nothing.
func TestQueuedOfOtherMembers(t *testing.T) {
	c := payroll(t)
	joins := func(names ...string) {
		t.Helper()
		for _, a := range c.apps() {
			if err := c.annotate(t.Context(), a, func(n *about) { n.Groups = nil }); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range names {
			a, err := c.app(name)
			if err == nil {
				err = c.annotate(t.Context(), a, func(n *about) { n.Groups = []string{"g"} })
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	joins("v", "mid")
	j := mayBegin(t, c)(c.RestoreGroup(WithAsk(t.Context(), later(t, c)), tidemark.RestoreSpec{Ref: "g@" + time.Now().Format(time.RFC3339Nano), InPlace: true}))
	for _, x := range []struct {
		members []string
		want    bool
	}{{[]string{"v", "mid"}, true}, {[]string{"v", "mid", "payroll"}, false}, {[]string{"v"}, false}, {[]string{"mid", "v"}, true}} {
		joins(x.members...)
		if err := j(); x.want != (err == nil) || err != nil && !strings.Contains(err.Error(), "the members of the group g are not those for which this restore was asked for") {
			t.Errorf("%q: %v", x.members, err)
		}
	}
	replace(t, c, "mid", "payroll")
	joins("v", "mid")
	if err := j(); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("another of the name: %v", err)
	}
}
