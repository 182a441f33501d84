package control

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/policy"
	"tidemark/workflow"
)

// Every verb of workflows is done by something.
func TestEveryVerbIsDone(t *testing.T) {
	if got, want := slices.Sorted(maps.Keys(stepKinds())), slices.Sorted(slices.Values(workflow.Verbs())); !slices.Equal(got, want) {
		t.Errorf("%q are done, and not %q", got, want)
	}
}

// serving is a server with a volume v, of which there are the bookmarks pub-1 and secret, in this order.
func serving(t *testing.T) *Control {
	t.Helper()
	c, err := Open(t.Context(), Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pub-1", "secret"} {
		if _, err := c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// applied makes steps a workflow w.
func applied(t *testing.T, c *Control, head, steps string) {
	t.Helper()
	if _, err := c.ApplyWorkflow(t.Context(), tidemark.WorkflowSpec{Document: "kind: Workflow\nname: w\n" + head + "steps:\n" + steps}); err != nil {
		t.Fatal(err)
	}
}

// ran runs w for a user until it has ended.
func ran(t *testing.T, c *Control, user string) tidemark.Job {
	t.Helper()
	j, err := c.Run(WithAsk(t.Context(), by(t, c, user)), "w", tidemark.RunSpec{})
	if err == nil {
		j, err = c.Job(t.Context(), j.ID, time.Minute)
	}
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// Each step is decided about when it is its turn, by the rights of who runs the workflow, with the points and the number that he may have.
func TestStepsByRights(t *testing.T) {
	c, ctx := serving(t), t.Context()
	for _, name := range []string{"ann", "bob"} {
		if err := c.catalog.AddUser(ctx, tidemark.User{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	g := access.Grant{Subject: access.Subject{Kind: access.User, Name: "ann"}, Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"v"}},
		Limits: access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Bookmarks: []access.Pattern{"pub-*"}}}}
	id, err := c.catalog.AddGrant(ctx, g)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ user, steps, want string }{
		{"bob", "  - clone: {source: v@pub-1, name: k}\n", "the workflow w is not run: bob may not do workflow.run on v"},
		{"ann", "  - clone: {source: v@secret, name: k}\n", "do not allow this point"},
		{"ann", "  - clone: {source: v, name: k}\n", "may not do application.clone"},
		{"ann", "  - bookmark: {app: v, name: mine}\n", "may not do application.bookmark"},
		{"ann", "  - expire: {app: v, points: \"*\", keep: 1}\n", "may not do application.expire"},
		{"ann", "  - clone: {source: v@pub-1, name: k}\n  - bookmark: {app: k, name: mine}\n  - wait: {clone: k}\n", ""},
		{"ann", "  - clone: {source: v@pub-1, name: l}\n", "clones"},
		{"ann", "  - refresh: {clone: k}\n", "may not do clone.refresh"},
		{"ann", "  - clone: {source: v@pub-1, name: k, replace: true}\n", ""},
		{"ann", "  - remove: {clone: k}\n", ""},
		{"", "  - clone: {source: v, name: k}\n", ""},
		{"ann", "  - remove: {clone: k}\n", "may not do clone.remove"},
		{"ann", "  - expire: {clones: k, older_than: 1s}\n  - remove: {clone: k}\n", "clone.remove"},
		{"gone", "  - remove: {clone: k}\n", "is no user any more"},
	} {
		applied(t, c, "", x.steps)
		j := ran(t, c, x.user)
		if x.want == "" && j.State == tidemark.JobDone || x.want != "" && j.State == tidemark.JobFailed && strings.Contains(j.Error.Message, x.want) {
			continue
		}
		t.Errorf("%s, %s: %s: %v, and not %q", x.user, x.steps, j.State, j.Error, x.want)
	}
	if o, err := c.Object(ctx, access.KindClone, "k"); err != nil || o.Owner != "" || o.Source != "v" {
		t.Errorf("%+v, %v", o, err)
	}
	if err := c.catalog.RemoveGrant(ctx, id); err != nil {
		t.Fatal(err)
	}
	applied(t, c, "", "  - clone: {source: v@pub-1, name: m}\n")
	if j := ran(t, c, "ann"); j.State != tidemark.JobFailed {
		t.Errorf("without a grant, it is %s", j.State)
	}
}

// A token that a run was asked for with narrows its steps, also those that are done with what the run makes.
func TestStepsByToken(t *testing.T) {
	c := serving(t)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "z", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	granted(t, c, "ann", access.Operator)
	made := "  - clone: {source: v@pub-1, name: k, replace: true}\n  - bookmark: {app: k, name: \"x-{{ run }}\"}\n"
	for _, x := range []struct {
		token       *access.Token
		steps, want string
	}{
		{nil, made + "  - bookmark: {app: z, name: a}\n", ""},
		{&access.Token{ID: 7, User: "ann"}, made + "  - bookmark: {app: z, name: b}\n", ""},
		{&access.Token{ID: 7, User: "ann", Applications: []access.Pattern{"v"}}, made, ""},
		{&access.Token{ID: 7, User: "ann", Applications: []access.Pattern{"v"}}, made + "  - bookmark: {app: z, name: c}\n", "ann may not do workflow.run on z: the token does not allow it"},
		{&access.Token{ID: 7, User: "ann", Applications: []access.Pattern{"z"}}, made, "ann may not do workflow.run on v: the token does not allow it"},
		{&access.Token{ID: 7, User: "ann", Roles: []access.Role{access.Auditor}}, "  - wait: {clone: k}\n", "ann may not do workflow.run on k: the token does not allow it"},
		{&access.Token{ID: 7, User: "ann", Roles: []access.Role{access.Owner}}, "  - wait: {clone: k}\n  - expire: {app: v, points: \"*\", keep: 1}\n", "step expire of w: ann may not do application.expire on v"},
	} {
		applied(t, c, "", x.steps)
		j, err := c.Run(WithAsk(t.Context(), byToken(t, c, "ann", x.token)), "w", tidemark.RunSpec{})
		if err == nil {
			j, err = c.Job(t.Context(), j.ID, time.Minute)
		}
		if err != nil || (x.want == "") != (j.State == tidemark.JobDone) || x.want != "" && !strings.Contains(j.Error.Message, x.want) {
			t.Errorf("%+v, %s: %s: %v, %v, and not %q", x.token, x.steps, j.State, j.Error, err, x.want)
		}
	}
	for _, r := range audited(t, c, "ann") {
		if r.TokenID != 0 && r.TokenID != 7 {
			t.Errorf("%+v", r)
		}
	}
}

// A token that a version was applied with narrows what its schedule does, and is told.
func TestScheduleByToken(t *testing.T) {
	c, ctx := serving(t), t.Context()
	granted(t, c, "ann", access.Operator)
	doc := "kind: Workflow\nname: w\nschedule: {every: 1h}\nsteps:\n  - bookmark: {app: v, name: \"x-{{ run }}\"}\n"
	token := &access.Token{ID: 7, User: "ann", Name: "ci", Roles: []access.Role{access.Auditor}}
	w, err := c.ApplyWorkflow(WithAsk(ctx, byToken(t, c, "ann", token)), tidemark.WorkflowSpec{Document: doc})
	if err != nil || w.Token != "ci" {
		t.Fatalf("%+v, %v", w, err)
	}
	if j := eventually(t, c, 1)[0].Job; j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "ann may not do workflow.run on v: the token does not allow it") {
		t.Errorf("%s: %v", j.State, j.Error)
	}
	// The same document without the token is another version.
	again := WithAsk(ctx, by(t, c, "ann"))
	a, err := c.Apply(again, []byte(doc), false)
	if err != nil || len(a.Changes) != 1 || a.Changes[0].String() != "change Workflow w: version: 1 → 2, token: ci → (none)" {
		t.Errorf("%+v, %v", a, err)
	}
	c.keepSchedules(ctx, time.Now().Add(5*time.Hour))
	if j := eventually(t, c, 2)[0].Job; j.State != tidemark.JobDone {
		t.Errorf("%s: %v", j.State, j.Error)
	}
}

// A pattern of clones matches among those that who runs the workflow may see: others are not named, counted or touched. Of those that he sees, he
// needs the right to remove each.
func TestExpireByRights(t *testing.T) {
	c, ctx := serving(t), t.Context()
	if _, err := c.CreateVolume(ctx, tidemark.VolumeSpec{Name: "payroll", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	granted(t, c, "ann", access.Owner, "v")
	granted(t, c, "bob", access.Developer, "v")
	granted(t, c, "zoe", access.Owner, "payroll")
	clone := func(user string, names ...string) {
		t.Helper()
		for _, name := range names {
			source := "v"
			if strings.HasPrefix(name, "pay") {
				source = "payroll"
			}
			j, err := c.Clone(WithAsk(ctx, by(t, c, user)), tidemark.CloneSpec{Ref: source, Name: name})
			if err == nil {
				j, err = c.Job(ctx, j.ID, time.Minute)
			}
			if err != nil || j.Error != nil {
				t.Fatal(err, j.Error)
			}
		}
	}
	clone("", "old")
	clone("ann", "mine")
	clone("zoe", "pay-1", "pay-2")
	if _, err := c.Share(ctx, "mine", []access.Subject{{Kind: access.User, Name: "bob"}}); err != nil {
		t.Fatal(err)
	}
	applied(t, c, "", "  - expire: {clones: \"*\", keep: 1}\n")
	sees := func(user string) func(access.Object) bool {
		who, grants, err := c.catalog.Principal(ctx, user, access.ByPassword)
		if err != nil {
			t.Fatal(err)
		}
		return SightOf(who, grants)
	}
	for user, want := range map[string][]string{"ann": {"old"}, "bob": {"old"}} {
		list, err := c.RunNeeds(ctx, "w", tidemark.RunSpec{}, sees(user))
		var got []string
		for _, n := range list {
			if n.Action == access.CloneRemove {
				got = append(got, n.Object.Name)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", user, got, err)
		}
	}
	j := ran(t, c, "bob")
	if j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "bob may not do clone.remove on old") {
		t.Errorf("%s: %v", j.State, j.Error)
	}
	if o, err := c.JobObject(ctx, j); err != nil || len(o.Parts) != 2 || o.Parts[0].Name != "old" || o.Parts[1].Name != "old" { // to remove it, and to run one on it
		t.Errorf("the run is about %+v: %v", o.Parts, err)
	}
	if j = ran(t, c, "ann"); j.State != tidemark.JobDone {
		t.Errorf("%s: %v", j.State, j.Error)
	}
	left, err := c.Clones(ctx)
	var names []string
	for _, k := range left {
		names = append(names, k.Name)
	}
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"mine", "pay-1", "pay-2"}) {
		t.Errorf("%q are left: %v", names, err)
	}
}

// Who asks for a run needs what its steps are about, as far as that is there.
func TestRunNeeds(t *testing.T) {
	c := serving(t)
	applied(t, c, "", "  - clone: {source: v@pub-1, name: k}\n  - bookmark: {app: k, name: x}\n  - notify: {message: hi}\n")
	list, err := c.RunNeeds(t.Context(), "w", tidemark.RunSpec{}, nil)
	var got []string
	for _, n := range list {
		got = append(got, fmt.Sprint(n.Action, " ", n.Object.Name, n.Object.Bookmark, " ", n.There))
	}
	want := []string{"application.clone vpub-1 true", "workflow.run vpub-1 true", "host.use @server true", "application.bookmark k false"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	applied(t, c, "", "  - notify: {message: hi}\n")
	if list, err := c.RunNeeds(t.Context(), "w", tidemark.RunSpec{}, nil); err != nil || len(list) != 1 || list[0].Action != access.WorkflowRun || list[0].Object.Name != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// A schedule runs a workflow by who applied it, once for each time; and when the server was away, once for all that were missed.
func TestSchedule(t *testing.T) {
	c, ctx := serving(t), t.Context()
	granted(t, c, "ann", access.Operator)
	doc := "kind: Workflow\nname: w\nschedule: {every: 1h}\nsteps:\n  - notify: {message: hi}\n"
	if _, err := c.ApplyWorkflow(WithAsk(ctx, by(t, c, "ann")), tidemark.WorkflowSpec{Document: doc}); err != nil {
		t.Fatal(err)
	}
	runs := eventually(t, c, 1)
	if j := runs[0].Job; j.AskedBy != "ann" || j.Origin != tidemark.FromSchedule || j.State != tidemark.JobDone {
		t.Errorf("%+v", j)
	}
	w, err := c.Workflow(ctx, "w", 0)
	if err != nil || w.Next == nil || w.Next.Sub(runs[0].Job.Created).Round(time.Second) != time.Hour {
		t.Errorf("%+v, %v", w, err)
	}
	if next := c.keepSchedules(ctx, time.Now()); next.Before(time.Now()) {
		t.Errorf("it is due at %v", next)
	}
	c.keepSchedules(ctx, time.Now().Add(5*time.Hour))
	c.keepSchedules(ctx, time.Now().Add(5*time.Hour))
	if runs := eventually(t, c, 2); len(runs) != 2 {
		t.Errorf("after five hours there are %d runs", len(runs))
	}
	if err := c.RemoveWorkflow(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	c.keepSchedules(ctx, time.Now().Add(50*time.Hour))
	if runs := eventually(t, c, 2); len(runs) != 2 {
		t.Errorf("one that was removed has run: %d runs", len(runs))
	}
}

// Of a version that was removed no run begins: not by its number, and not one that waited. A run that had begun goes on, and is told.
func TestRemovedVersion(t *testing.T) {
	c, ctx := serving(t), t.Context()
	applied(t, c, "", "  - notify: {message: hi}\n")
	later := func() tidemark.Job {
		t.Helper()
		j, err := c.Run(WithAsk(ctx, Ask{Queue: true, NotBefore: time.Now().Add(time.Second)}), "w", tidemark.RunSpec{})
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	begun, waits := later(), later()
	if err := c.catalog.BeginStep(ctx, begun.ID, "notify"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveWorkflow(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	applied(t, c, "", "  - notify: {message: ho}\n") // another version makes the one that was removed no better
	spec := tidemark.RunSpec{Version: 1}
	_, asked := c.Run(ctx, "w", spec)
	_, planned := c.PlanRun(ctx, "w", spec)
	_, needed := c.RunNeeds(ctx, "w", spec, nil)
	for _, err := range []error{asked, planned, needed} {
		if tidemark.KindOf(err) != tidemark.NotFound || !strings.Contains(err.Error(), "version 1 of the workflow w was removed") {
			t.Errorf("%v", err)
		}
	}
	if j := lasted(t, c, begun, nil); j.State != tidemark.JobDone {
		t.Errorf("one that had begun is %s: %v", j.State, j.Error)
	}
	if j := lasted(t, c, waits, nil); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.NotFound {
		t.Errorf("one that waited is %s: %v", j.State, j.Error)
	}
	if r, err := c.RunOf(ctx, begun.ID); err != nil || r.Version != 1 || len(r.Steps) != 1 || r.Steps[0].State != "done" {
		t.Errorf("%+v, %v", r, err)
	}
}

// eventually returns the runs of w when there are so many and all have ended.
func eventually(t *testing.T, c *Control, n int) (runs []tidemark.WorkflowRun) {
	t.Helper()
	for range 600 {
		var err error
		if runs, err = c.Runs(t.Context(), "w", 0, 100); err != nil {
			t.Fatal(err)
		}
		going := slices.ContainsFunc(runs, func(r tidemark.WorkflowRun) bool {
			return r.Job.State == tidemark.JobQueued || r.Job.State == tidemark.JobRunning
		})
		if len(runs) >= n && !going {
			return runs
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("there are %d runs, and not %d", len(runs), n)
	return nil
}

// hook takes messages, with the statuses that it is given, one after another.
type hook struct {
	*httptest.Server
	got      atomic.Int64
	statuses []int
	signed   func(r *http.Request, body []byte)
}

func newHook(t *testing.T, statuses ...int) *hook {
	h := &hook{statuses: statuses}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost {
			t.Errorf("%s: %v", r.Method, err)
		}
		if h.signed != nil {
			h.signed(r, body)
		}
		n := int(h.got.Add(1)) - 1
		w.WriteHeader(h.statuses[min(n, len(h.statuses)-1)])
	}))
	t.Cleanup(h.Close)
	return h
}

func posted(ctx context.Context, to string, key []byte, m message, pause time.Duration) error {
	o := outgoing{to, key, m.Delivery, mustJSON(m)}
	return o.post(ctx, pause)
}

// A message is posted until it is taken, unless it is not wanted; it is signed, and goes to nobody else.
func TestPost(t *testing.T) {
	key, m := []byte("0123456789abcdef"), message{Delivery: "d/1/s", Message: "hello", Level: "info"}
	h := newHook(t, 503, 429, 204)
	h.signed = func(r *http.Request, body []byte) {
		at := r.Header.Get("X-Tidemark-Timestamp")
		if got := r.Header.Get("X-Tidemark-Signature"); !hmac.Equal([]byte(got), []byte("sha256="+sign(key, at, body))) {
			t.Errorf("signed as %s", got)
		}
		var back message
		if err := json.Unmarshal(body, &back); err != nil || back.Message != "hello" || r.Header.Get("X-Tidemark-Delivery") != "d/1/s" {
			t.Errorf("%s: %v", body, err)
		}
	}
	if err := posted(t.Context(), h.URL+"/x", key, m, time.Millisecond); err != nil || h.got.Load() != 3 {
		t.Errorf("%d attempts: %v", h.got.Load(), err)
	}
	for status, want := range map[int]int64{400: 1, 404: 1, 500: postTries} {
		h := newHook(t, status)
		if err := posted(t.Context(), h.URL+"/token", nil, m, time.Millisecond); err == nil || h.got.Load() != want || strings.Contains(err.Error(), "token") {
			t.Errorf("%d: %d attempts: %v", status, h.got.Load(), err)
		}
	}
	other := newHook(t, 200)
	away := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer away.Close()
	if err := posted(t.Context(), away.URL+"/token", key, m, time.Millisecond); err == nil || other.got.Load() != 0 || !strings.Contains(err.Error(), "another host") {
		t.Errorf("%d messages went elsewhere: %v", other.got.Load(), err)
	}
	gone := newHook(t, 200)
	gone.Close()
	if err := posted(t.Context(), gone.URL+"/token", key, m, time.Millisecond); err == nil || strings.Contains(err.Error(), "token") || tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := posted(ctx, newHook(t, 500).URL, nil, m, time.Hour); err == nil {
		t.Error("it was taken")
	}
}

// A message of a workflow tells why it is sent, and a key that others can read signs nothing.
func TestNotify(t *testing.T) {
	c := serving(t)
	h := newHook(t, 200)
	var told message
	h.signed = func(r *http.Request, body []byte) {
		if err := json.Unmarshal(body, &told); err != nil || !strings.HasPrefix(r.Header.Get("X-Tidemark-Signature"), "sha256=") {
			t.Errorf("%s: %v", body, err)
		}
	}
	if err := os.Mkdir(c.path(secretDir), 0o700); err != nil {
		t.Fatal(err)
	}
	secret := c.path(secretDir, "key")
	if err := os.WriteFile(secret, []byte("0123456789abcdef\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	applied(t, c, "", fmt.Sprintf("  - bookmark: {app: v, name: secret}\non_failure:\n  - notify: {message: oh, level: error, url: %q, secret: key}\n", h.URL))
	if _, err := c.Run(t.Context(), "w", tidemark.RunSpec{}); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("a key that others can read is used: %v", err)
	}
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	j := ran(t, c, "")
	if j.State != tidemark.JobFailed || told.Message != "oh" || told.Level != "error" || told.FailedStep != "bookmark" || told.Failure == "" || told.Run != j.ID {
		t.Errorf("%+v of %+v: %v", told, j, j.Error)
	}
}

// A step that takes too long fails, and so does a run; what it asked for is cancelled.
func TestTimeouts(t *testing.T) {
	c := serving(t)
	blocked := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else it is not noticed that the client goes away
		<-r.Context().Done()
	}))
	defer blocked.Close()
	applied(t, c, "", fmt.Sprintf("  - {timeout: 1s, notify: {message: oh, url: %q}}\n", blocked.URL))
	if j := ran(t, c, ""); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "step notify of w: it took longer than 1s") {
		t.Errorf("%+v: %v", j, j.Error)
	}
	applied(t, c, "timeout: 1s\n", fmt.Sprintf("  - notify: {message: oh, url: %q}\n  - bookmark: {app: v, name: late}\n", blocked.URL))
	if j := ran(t, c, ""); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "took longer than 1s") {
		t.Errorf("%+v: %v", j, j.Error)
	}
	if a, err := c.app("v"); err != nil || a.t.HasBookmark("late") {
		t.Errorf("a step was begun when the time was over: %v", err)
	}
}

// TestOld: all but the newest so many go, and of these what is older than that.
func TestOld(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	ages := []time.Duration{3 * time.Hour, 0, time.Hour, 2 * time.Hour}
	made := func(age time.Duration) time.Time { return now.Add(-age) }
	for _, x := range []struct {
		than time.Duration
		keep int
		want []time.Duration
	}{
		{0, 0, []time.Duration{0, time.Hour, 2 * time.Hour, 3 * time.Hour}},
		{0, 3, []time.Duration{3 * time.Hour}},
		{0, 9, nil},
		{time.Hour, 0, []time.Duration{2 * time.Hour, 3 * time.Hour}},
		{time.Hour, 1, []time.Duration{2 * time.Hour, 3 * time.Hour}},
		{time.Hour, 3, []time.Duration{3 * time.Hour}},
	} {
		if got := old(slices.Clone(ages), made, policy.Duration(x.than), x.keep, now); !slices.Equal(got, x.want) {
			t.Errorf("older than %v, but for %d: %v", x.than, x.keep, got)
		}
	}
}
