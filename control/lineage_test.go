package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/workflow"
)

// payroll is serving with another volume, payroll, and clones of v: mid, and of that mine, which belongs to ann. She may clone what is of v.
func payroll(t *testing.T) *Control {
	t.Helper()
	c := serving(t)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "payroll", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := c.catalog.AddUser(t.Context(), tidemark.User{Name: "ann"}); err != nil {
		t.Fatal(err)
	}
	g := access.Grant{Subject: access.Subject{Kind: access.User, Name: "ann"}, Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"v"}},
		Limits: access.Limits{Clones: 9, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}}
	if _, err := c.catalog.AddGrant(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	clones(t, c, "v@pub-1", "mid")
	clones(t, c, "mid", "mine")
	return c
}

func clones(t *testing.T, c *Control, ref, name string) {
	t.Helper()
	ended(t, c)(c.Clone(WithAsk(t.Context(), by(t, c, "ann")), tidemark.CloneSpec{Ref: ref, Name: name}))
}

// replace removes a clone, and makes another of that name.
func replace(t *testing.T, c *Control, name, ref string) {
	t.Helper()
	if err := c.RemoveClone(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.Clone(t.Context(), tidemark.CloneSpec{Ref: ref, Name: name}))
}

// conflicts holds that an error says that another has a name, and what to do then.
func conflicts(t *testing.T, what string, err error) {
	t.Helper()
	if e := Explain(err); err == nil || e.Kind != tidemark.Conflict || !strings.Contains(e.Message, "mid is not what") || !strings.Contains(e.Hint, "tidemark clone mid") {
		t.Errorf("%s: %v", what, err)
	}
}

// forgets makes a clone one of an older release, which did not note the IDs.
func forgets(t *testing.T, c *Control, name string) {
	t.Helper()
	a, err := c.app(name)
	if err == nil {
		err = c.annotate(t.Context(), a, func(n *about) { n.From, n.First = "", "" })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Another of the name of what a clone is of gives it no data, be it of another application, or of the same.
func TestRefreshOfAnotherOfTheName(t *testing.T) {
	for _, of := range []string{"payroll", "v@pub-1"} {
		c := payroll(t)
		before, err := c.app("mine")
		if err != nil {
			t.Fatal(err)
		}
		replace(t, c, "mid", of)
		_, err = c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"})
		conflicts(t, "a refresh from another of "+of, err)
		_, err = c.Source(t.Context(), tidemark.RefreshSpec{Name: "mine"})
		conflicts(t, "its source", err)
		if now, err := c.app("mine"); err != nil || now.t.ID() != before.t.ID() {
			t.Errorf("the clone was made anew: %v", err)
		}
		applied(t, c, "", "  - refresh: {clone: mine}\n")
		ann := WithAsk(t.Context(), by(t, c, "ann"))
		_, err = c.Run(ann, "w", tidemark.RunSpec{})
		conflicts(t, "a run", err)
		j, err := c.ask(ann, catalog.KindWorkflow, running{Name: "w", Begun: time.Now()}) // as if it had been so only then
		if j = lasted(t, c, j, err); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "mid is not what mine is of") {
			t.Errorf("a step: %s: %+v", j.State, j.Error)
		}
	}
}

// Where nobody noted which it was, it has to have data of the same application; then it is noted.
func TestRefreshOfOldClones(t *testing.T) {
	c := payroll(t)
	forgets(t, c, "mine")
	replace(t, c, "mid", "payroll")
	_, err := c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"})
	conflicts(t, "of another application", err)
	replace(t, c, "mid", "v@pub-1")
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"}))
	replace(t, c, "mid", "v@pub-1")
	_, err = c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"})
	conflicts(t, "when it was noted", err)
}

// What was made anew is what it was: clones of it are refreshed from it, also when its refresh has failed between.
func TestRefreshOfWhatWasRefreshed(t *testing.T) {
	c := payroll(t)
	for range 2 {
		ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mid"}))
		ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"}))
	}
	again, err := c.cloneAnew(t.Context(), tidemark.RefreshSpec{Name: "mid"})
	if err == nil {
		err = c.removeClone(t.Context(), "mid")
	}
	if err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.ask(t.Context(), "refresh", refreshing{RefreshSpec: tidemark.RefreshSpec{Name: "mid"}, Again: &again}))
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"}))
	replace(t, c, "mid", "v@pub-1")
	_, err = c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"})
	conflicts(t, "when it was removed", err)
}

// A job that waits is about what it was asked of.
func TestQueuedOfAnotherOfTheName(t *testing.T) {
	c := payroll(t)
	later := WithAsk(t.Context(), Ask{Queue: true, NotBefore: time.Now().Add(time.Hour), By: "ann"})
	plan := func(j tidemark.Job, err error) func() error {
		if err != nil {
			t.Fatal(err)
		}
		full, err := c.catalog.Job(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return func() error {
			err := c.mayBegin(t.Context(), full)
			if err == nil {
				_, err = c.jobs.kinds[full.Kind].plan(c, t.Context(), full.Args)
			}
			return err
		}
	}
	clone := plan(c.Clone(later, tidemark.CloneSpec{Ref: "mid", Name: "k"}))
	forgets(t, c, "mine")
	refresh := plan(c.Refresh(later, tidemark.RefreshSpec{Name: "mine"}))
	for _, p := range []func() error{clone, refresh} {
		if err := p(); err != nil {
			t.Errorf("while nothing has changed: %v", err)
		}
	}
	replace(t, c, "mid", "v@pub-1")
	conflicts(t, "a clone", clone())
	conflicts(t, "a refresh of an old clone", refresh())
	replace(t, c, "mine", "mid")
	if err := refresh(); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "asked for another mine") {
		t.Errorf("a refresh of another clone: %v", err)
	}
}

// What writes over something does so to what it was asked of, and to nothing that has its name by the time it begins.
func TestQueuedForAnotherOfTheName(t *testing.T) {
	c := payroll(t)
	bookmark := func() {
		t.Helper()
		if _, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "mine", Name: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	rewind := func() tidemark.Job {
		t.Helper()
		soon := Ask{Queue: true, NotBefore: time.Now().Add(3 * time.Second)}
		j, err := c.Rewind(WithAsk(t.Context(), soon), tidemark.RewindSpec{Ref: "mine@b"})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	bookmark()
	ended(t, c)(rewind(), nil)
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mine"})) // it is the same clone
	bookmark()
	j := rewind()
	replace(t, c, "mine", "mid")
	bookmark()
	if j = lasted(t, c, j, nil); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Conflict || !strings.Contains(j.Error.Message, "asked for another mine") {
		t.Errorf("%s: %+v", j.State, j.Error)
	}
}

// So it is with a LiveClone, which is refreshed in place.
func TestPrepareFromAnotherOfTheName(t *testing.T) {
	c := payroll(t)
	ended(t, c)(c.Clone(t.Context(), tidemark.CloneSpec{Ref: "mid", Name: "live", Preparation: &tidemark.Preparation{}}))
	ended(t, c)(c.Refresh(t.Context(), tidemark.RefreshSpec{Name: "mid"}))
	ended(t, c)(c.Prepare(t.Context(), tidemark.PrepareSpec{Name: "live", Refresh: true}))
	replace(t, c, "mid", "payroll")
	_, err := c.Prepare(t.Context(), tidemark.PrepareSpec{Name: "live", Refresh: true})
	conflicts(t, "a preparation", err)
	forgets(t, c, "live")
	_, err = c.Prepare(t.Context(), tidemark.PrepareSpec{Name: "live", Refresh: true})
	conflicts(t, "a preparation of an old one", err)
	replace(t, c, "mid", "v@pub-1")
	ended(t, c)(c.Prepare(t.Context(), tidemark.PrepareSpec{Name: "live", Refresh: true}))
	replace(t, c, "mid", "v@pub-1")
	_, err = c.Prepare(t.Context(), tidemark.PrepareSpec{Name: "live", Refresh: true})
	conflicts(t, "when it was noted", err)
}

// Steps that make a clone anew need a right to clone what it is of, as that is now.
func TestRefreshNeedsItsSource(t *testing.T) {
	c := payroll(t)
	if err := c.catalog.AddUser(t.Context(), tidemark.User{Name: "bob"}); err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.Clone(WithAsk(t.Context(), by(t, c, "bob")), tidemark.CloneSpec{Ref: "v@pub-1", Name: "his"}))
	with := []access.Subject{{Kind: access.User, Name: "ann"}}
	if _, err := c.Share(t.Context(), "his", with); err != nil {
		t.Fatal(err)
	}
	clones(t, c, "his", "k")
	applied(t, c, "", "  - refresh: {clone: k}\n")
	if j := ran(t, c, "ann"); j.State != tidemark.JobDone {
		t.Errorf("while it is shared: %s: %+v", j.State, j.Error)
	}
	if _, err := c.Share(t.Context(), "his", nil); err != nil {
		t.Fatal(err)
	}
	if j := ran(t, c, "ann"); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Denied || !strings.Contains(j.Error.Message, "workflow.run on his") {
		t.Errorf("when it is shared no more: %s: %+v", j.State, j.Error)
	}
	needs, err := refreshNeeds(c, t.Context(), &workflow.Refresh{Clone: "k"})
	if err == nil {
		_, err = c.mayAll(t.Context(), asker{user: "ann", id: by(t, c, "ann").UserID}, needs)
	}
	if tidemark.KindOf(err) != tidemark.Denied || !strings.Contains(err.Error(), "application.clone on his") {
		t.Errorf("when it is shared no more, its step: %v", err)
	}
	for _, x := range []struct {
		b    workflow.Prepare
		want []access.Action
	}{
		{workflow.Prepare{Clone: "k"}, []access.Action{access.CloneRefresh}},
		{workflow.Prepare{Clone: "k", Refresh: true}, []access.Action{access.CloneRefresh, access.ApplicationClone}},
	} {
		needs, err := prepareNeeds(c, t.Context(), &x.b)
		var got []access.Action
		for _, n := range needs {
			got = append(got, n.Action)
		}
		if err != nil || !slices.Equal(got, x.want) {
			t.Errorf("%+v needs %v: %v", x.b, got, err)
		}
	}
}
