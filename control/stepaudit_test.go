package control

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/time/rate"

	"tidemark"
	"tidemark/access"
	"tidemark/agent/remote"
	"tidemark/catalog"
	"tidemark/workflow"
)

// audited are the records that the audit has of a user, or of all if it is empty, oldest first. All of it has to hold together.
func audited(t *testing.T, c *Control, user string) []access.AuditRecord {
	t.Helper()
	if _, err := c.VerifyAudit(t.Context(), nil); err != nil {
		t.Error(err)
	}
	list, err := c.catalog.Audit(t.Context(), catalog.AuditQuery{User: user, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(list)
	return list
}

// ofRun says of records of a run what is compared here.
func ofRun(t *testing.T, list []access.AuditRecord, run int64) (said []string) {
	t.Helper()
	for _, r := range list {
		step, ok := strings.CutPrefix(r.Request, fmt.Sprintf("run %d", run))
		step = strings.TrimPrefix(step, ", step ")
		if !ok || r.Method != access.ByRun || r.Detail == "" {
			t.Errorf("%+v", r)
		}
		said = append(said, fmt.Sprint(step, ": ", r.Action, " ", r.Kind, " ", r.Object, " ", r.Outcome))
	}
	return said
}

// granted adds a user who has a role over applications of some names or, without any, over everything.
func granted(t *testing.T, c *Control, user string, role access.Role, names ...access.Pattern) {
	t.Helper()
	g := access.Grant{Subject: access.Subject{Kind: access.User, Name: user}, Role: role, Scope: access.Scope{Kind: access.Everything}}
	if len(names) > 0 {
		g.Scope = access.Scope{Kind: access.Applications, Names: names}
	}
	if err := c.catalog.AddUser(t.Context(), tidemark.User{Name: user}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.catalog.AddGrant(t.Context(), g); err != nil {
		t.Fatal(err)
	}
}

// by is how the user asks who has a name now, or somebody whom nobody knows.
func by(t *testing.T, c *Control, user string) Ask { return byToken(t, c, user, nil) }

// byToken is how he asks with a token.
func byToken(t *testing.T, c *Control, user string, token *access.Token) Ask {
	t.Helper()
	who, _, err := c.catalog.Principal(t.Context(), user, access.ByPassword)
	if err != nil && tidemark.KindOf(err) != tidemark.Denied {
		t.Fatal(err)
	}
	return Ask{By: user, UserID: who.UserID, Token: token}
}

// What a schedule does in the name of who applied the workflow is in the audit: also what it does to what it has made itself.
func TestScheduledStepsAreRecorded(t *testing.T) {
	c := serving(t)
	granted(t, c, "ann", access.Operator)
	doc := "kind: Workflow\nname: w\nschedule: {every: 1h}\nsteps:\n" +
		"  - clone: {source: v@pub-1, name: k1}\n  - clone: {source: v@pub-1, name: k2}\n  - bookmark: {app: k1, name: x}\n  - wait: {clone: k1}\n" +
		"  - expire: {clones: \"k*\", keep: 1}\n  - remove: {clone: k2}\n  - expire: {app: v, points: \"*\", keep: 1}\n  - notify: {message: hi}\n  - remove: {clone: k1}\n"
	if _, err := c.ApplyWorkflow(WithAsk(t.Context(), by(t, c, "ann")), tidemark.WorkflowSpec{Document: doc}); err != nil {
		t.Fatal(err)
	}
	run := eventually(t, c, 1)[0].Job
	if run.State != tidemark.JobDone {
		t.Fatalf("%+v: %v", run, run.Error)
	}
	want := []string{
		"clone: application.clone application v done", "clone: host.use host @server done",
		"clone-2: application.clone application v done", "clone-2: host.use host @server done",
		"bookmark: application.bookmark clone k1 done",
		"expire: clone.remove clone k1 done", // and not that of the newest
		"remove: clone.remove clone k2 done",
		"expire-2: application.expire application v done",
		"notify: workflow.run workflow w done",
	}
	if got := ofRun(t, audited(t, c, "ann"), run.ID); !slices.Equal(got, want) {
		t.Errorf("%q\nand not\n%q", got, want)
	}
}

// What was refused is in the audit, with the reason, and what failed; so is what the administrator at the socket has done by a workflow.
func TestRefusedStepsAreRecorded(t *testing.T) {
	c := serving(t)
	granted(t, c, "ann", access.Owner, "v")
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "other", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	granted(t, c, "bob", access.Operator, "other")
	granted(t, c, "eve", access.Developer, "v")
	for _, x := range []struct {
		user, steps string
		want        []string
	}{
		{"", "  - clone: {source: v@pub-1, name: k}\n  - clone: {source: v@pub-1, name: k2}\n", []string{"clone: application.clone application v done", "clone: host.use host @server done",
			"clone-2: application.clone application v done", "clone-2: host.use host @server done"}},
		{"ann", "  - expire: {app: v, points: \"*\", keep: 1}\n", []string{"expire: application.expire application v refused"}},
		{"ann", "  - bookmark: {app: v, name: pub-1}\n", []string{"bookmark: application.bookmark application v failed"}},
		{"bob", "  - wait: {clone: k}\n", []string{": workflow.run workflow w refused"}},
		{"bob", "  - bookmark: {app: other, name: x}\n  - expire: {clones: \"k*\", keep: 1}\n", []string{"bookmark: application.bookmark application other done"}}, // for him there is none
		{"eve", "  - expire: {clones: \"k*\", keep: 1}\n", []string{"expire: clone.remove clone k refused"}},
		{"gone", "  - remove: {clone: k}\n", []string{": workflow.run workflow w refused"}},
		{"", "  - remove: {clone: k}\n", []string{"remove: clone.remove clone k done"}},
	} {
		before := len(audited(t, c, ""))
		applied(t, c, "", x.steps)
		j := ran(t, c, x.user)
		list := audited(t, c, "")[before:]
		if got := ofRun(t, list, j.ID); !slices.Equal(got, x.want) {
			t.Errorf("%s, %s: %q, and not %q", x.user, x.steps, got, x.want)
		}
		for _, r := range list {
			if r.User != x.user || r.Outcome != access.Done && (j.Error == nil || !strings.HasSuffix(j.Error.Message, r.Detail)) {
				t.Errorf("%+v of a run that says %v", r, j.Error)
			}
		}
	}
}

// A step that only looks is recorded if it was refused.
func TestRefusedLooksAreRecorded(t *testing.T) {
	c := serving(t)
	x := &execution{planned: planned{running: running{Name: "w"}}, c: c, t: &task{c: c, job: tidemark.Job{AskedBy: "ann"}}, id: 7}
	about := []Decided{{Action: access.CloneView, Object: access.Object{Kind: access.KindClone, Name: "k"}}}
	for _, err := range []error{nil, tidemark.Errorf(tidemark.Unavailable, "it does not answer"), tidemark.Errorf(tidemark.Denied, "she may not")} {
		if got := x.recorded(workflow.Step{ID: "wait", Kind: "wait"}, func() ([]Decided, error) { return about, err }); got != err {
			t.Error(got)
		}
	}
	if got := ofRun(t, audited(t, c, "ann"), 7); !slices.Equal(got, []string{"wait: clone.view clone k refused"}) {
		t.Errorf("%q", got)
	}
}

// A step that panicked is recorded as one that has failed.
func TestPanicOfAStepIsRecorded(t *testing.T) {
	c := serving(t)
	x := &execution{planned: planned{running: running{Name: "w"}}, c: c, t: &task{c: c, job: tidemark.Job{AskedBy: "ann"}}, id: 7}
	func() {
		defer func() { _ = recover() }()
		_ = x.recorded(workflow.Step{ID: "remove", Kind: "remove", Does: "remove the clone k"}, func() ([]Decided, error) { panic("boom") })
	}()
	if got := ofRun(t, audited(t, c, "ann"), 7); !slices.Equal(got, []string{"remove: workflow.run workflow w failed"}) {
		t.Errorf("%q", got)
	}
}

// That a host joined, and each certificate that it was given, is in the audit; so is a token that was not taken.
func TestHostsAreRecorded(t *testing.T) {
	ctx := t.Context()
	c, err := Open(ctx, Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closes(t, c)
	v, err := c.AddHost(ctx, tidemark.HostSpec{Name: "db1"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := remote.ParseToken(v.Token)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	id, err := remote.Join(ctx, v.Server, token, dir)
	if err == nil {
		err = id.Renew(ctx, v.Server)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Join(ctx, v.Server, token, t.TempDir()); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("a token is taken twice: %v", err)
	}
	var kept keptHost
	if err := c.catalog.Get(ctx, catalog.Hosts, "db1", &kept); err != nil || len(kept.Serials) != 2 {
		t.Fatalf("%+v, %v", kept, err)
	}
	want := []access.AuditRecord{
		{Method: access.ByHost, Object: "db1", Outcome: access.Done, Detail: "joined by its token"},
		{Method: access.ByHost, Object: "db1", Outcome: access.Done, Detail: "was given the certificate " + kept.Serials[0]},
		{Method: access.ByHost, Object: "db1", Outcome: access.Done, Detail: "was given the certificate " + kept.Serials[1]},
		{Outcome: access.Refused, Detail: "this token was used before, or has been replaced"},
	}
	list := audited(t, c, "")
	if len(list) != len(want) {
		t.Fatalf("%+v", list)
	}
	for i, r := range list {
		w := want[i]
		if r.Action != access.HostManage || r.Kind != access.KindHost || r.User != "" || r.Address != "127.0.0.1" || r.Request == "" ||
			r.Method != w.Method || r.Object != w.Object || r.Outcome != w.Outcome || r.Detail != w.Detail {
			t.Errorf("%+v", r)
		}
		if strings.Contains(fmt.Sprint(r), token.Secret) {
			t.Error("a record has the secret of the token")
		}
	}
	if _, err := os.Stat(c.path(auditDir, spoolFile)); err == nil {
		t.Error("records wait for the catalog")
	}
}

// Whoever guesses tokens does not fill the audit: of many refusals some are told, and how many are not.
func TestStrangersAreCounted(t *testing.T) {
	ctx := t.Context()
	c, err := Open(ctx, Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closes(t, c)
	guess := func() {
		if _, err := c.hosts.Redeem(ctx, "guessed", netip.MustParseAddr("192.0.2.7")); tidemark.KindOf(err) != tidemark.Denied {
			t.Fatal(err)
		}
	}
	const tries = 300
	for range tries {
		guess()
	}
	told := len(audited(t, c, ""))
	if told < 100 || told > 150 {
		t.Fatalf("%d records of %d refusals", told, tries)
	}
	c.hosts.strangers.pace.SetLimit(rate.Inf)
	guess()
	guess()
	list := audited(t, c, "")
	if len(list) != told+2 {
		t.Fatalf("%d records, not %d", len(list), told+2)
	}
	if want := fmt.Sprintf("; before it, %d more of strangers were refused", tries-told); !strings.HasSuffix(list[told].Detail, want) || strings.Contains(list[told+1].Detail, "strangers") {
		t.Errorf("%q and %q, not %q", list[told].Detail, list[told+1].Detail, want)
	}
}
