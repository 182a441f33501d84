package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/client"
)

// workflows asks for all that is done with workflows, of a server with a volume v.
func workflows(t *testing.T, x *client.Client, works func(error), refuses func(tidemark.Kind, error)) {
	ctx := context.Background()
	text := "kind: Workflow\nname: w\nparameters: [{name: mark, type: name}]\nsteps:\n  - bookmark: {app: v, name: \"{{ mark }}\"}\n  - expire: {app: v, points: \"{{ mark }}\", keep: 1}\n"
	w, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text})
	works(err)
	if w.Version != 1 || len(w.Parameters) != 1 || w.Parameters[0].Default != nil {
		t.Errorf("%+v", w)
	}
	_, err = x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text + "  - capture: {all: true}\n"})
	refuses(tidemark.Invalid, err)
	again, err := x.Workflow(ctx, "w", 1)
	works(err)
	if again.Document != text {
		t.Errorf("%q", again.Document)
	}
	spec := tidemark.RunSpec{Parameters: map[string]string{"mark": "two"}}
	plan, err := x.PlanWorkflow(ctx, "w", spec)
	works(err)
	if len(plan.Steps) != 2 || plan.Job != nil || plan.Steps[0].Does != "bookmark v as two" {
		t.Errorf("%+v", plan)
	}
	_, err = x.RunWorkflow(ctx, "w", tidemark.RunSpec{})
	refuses(tidemark.Invalid, err)
	j, err := x.RunWorkflow(ctx, "w", spec)
	done, err := client.Result[tidemark.RunResult](ctx, x, j, err, nil)
	works(err)
	if done.Steps != 2 || done.Version != 1 {
		t.Errorf("%+v", done)
	}
	runs, err := client.Collect(x.Runs(ctx, "w"))
	works(err)
	if len(runs) != 1 || runs[0].Job.ID != j.ID {
		t.Errorf("%+v", runs)
	}
	r, err := x.Run(ctx, j.ID)
	works(err)
	if len(r.Steps) != 2 || r.Steps[1].State != "done" || r.Steps[0].Result == nil {
		t.Errorf("%+v", r)
	}
	_, err = x.Run(ctx, 1<<40)
	refuses(tidemark.NotFound, err)
	works(x.RemoveWorkflow(ctx, "w"))
	refuses(tidemark.NotFound, x.RemoveWorkflow(ctx, "w"))
}

// Who runs a workflow has to be allowed to do so on what its steps are about, and what they do, by a token as well. A dry run says the same.
func TestRunByRights(t *testing.T) {
	x := newRig(t)
	ctx := t.Context()
	if _, err := x.CreateVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "pub"}); err != nil {
		t.Fatal(err)
	}
	text := "kind: Workflow\nname: w\nsteps:\n  - clone: {source: v@pub, name: k}\n  - bookmark: {app: k, name: x}\n"
	if _, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text}); err != nil {
		t.Fatal(err)
	}
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	grant := func(r access.Role, names ...access.Pattern) access.Grant {
		g := access.Grant{ID: 1, Subject: access.Subject{Kind: access.User, Name: "ann"}, Role: r, Scope: access.Scope{Kind: access.Applications, Names: names}}
		if r.Limited() {
			g.Limits = access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Bookmarks: []access.Pattern{"pub"}}}
		}
		return g
	}
	user := access.Principal{User: "ann", Method: access.ByPassword}
	token := func(narrowed access.Token) access.Principal {
		narrowed.ID, narrowed.User = 1, "ann"
		return access.Principal{User: "ann", Method: access.ByToken, Token: &narrowed}
	}
	for what, want := range map[string]struct {
		who     access.Principal
		grants  []access.Grant
		allowed bool
	}{
		"the socket":          {access.Principal{Method: access.BySocket}, nil, true},
		"nobody":              {access.Principal{}, nil, false},
		"no grant":            {user, nil, false},
		"a developer":         {user, []access.Grant{grant(access.Developer, "v")}, true},
		"of something else":   {user, []access.Grant{grant(access.Developer, "w")}, false},
		"an auditor":          {user, []access.Grant{grant(access.Auditor, "v")}, false},
		"a developer's token": {token(access.Token{}), []access.Grant{grant(access.Developer, "v")}, true},
		"one for it":          {token(access.Token{Applications: []access.Pattern{"v"}}), []access.Grant{grant(access.Developer, "*")}, true},
		"one for another":     {token(access.Token{Applications: []access.Pattern{"w"}}), []access.Grant{grant(access.Developer, "*")}, false},
		"one of an auditor":   {token(access.Token{Roles: []access.Role{access.Auditor}}), []access.Grant{grant(access.Developer, "*")}, false},
	} {
		who := &caller{principal: want.who, grants: want.grants}
		err := s.allowSteps(context.WithValue(ctx, callerKey{}, who), &ofNameAndMore[tidemark.RunSpec]{Name: "w"})
		if (err == nil) != want.allowed || err != nil && tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Who applies workflows among other documents has to be allowed to change workflows, too; who is not changes nothing. The audit says which were applied.
func TestApplyByRights(t *testing.T) {
	x := newRig(t)
	h := outside(x)
	const tidy, gold = "kind: Workflow\nname: tidy\nsteps:\n  - notify: {message: hi, url: \"https://hooks.example.com/hidden\"}\n", "kind: Template\nname: gold\nrpo: 1d\n"
	body := func(dry bool, documents ...string) string {
		text, err := json.Marshal(tidemark.ApplySpec{Documents: strings.Join(documents, "---\n"), DryRun: dry})
		worksIn(t)(err)
		return string(text)
	}
	secrets := map[access.Role]string{}
	for _, role := range access.Roles() {
		g := access.Grant{Role: role, Scope: access.Scope{Kind: access.Everything}}
		if role.Limited() {
			g.Limits = access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}
		}
		secrets[role] = x.person("the-"+string(role), g)
		may := role.Level(access.SLAManage) == access.All && role.Level(access.WorkflowManage) == access.All
		for _, documents := range [][]string{{tidy}, {gold, tidy}, {tidy, "kind: [", gold}} {
			if w := as(h, secrets[role], http.MethodPost, "/v1/declarations", body(true, documents...)); (w.Code == http.StatusForbidden) == may {
				t.Errorf("by %s: %d: %s", role, w.Code, w.Body)
			}
		}
	}
	if w := as(h, secrets[access.Owner], http.MethodPost, "/v1/declarations", body(false, gold, tidy)); w.Code != http.StatusForbidden {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	// Of several applications not even who may do all to them may change workflows.
	some := x.person("some", access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"*"}}})
	if w := as(h, some, http.MethodPost, "/v1/declarations", body(false, tidy)); w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "hidden") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if list, err := client.Collect(x.Workflows(t.Context())); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	before := len(auditOf(t, x, "the-operator"))
	requests := []string{body(true, gold, tidy), body(false, gold, tidy, strings.ReplaceAll(tidy, "tidy", "tidier")), body(false, strings.ReplaceAll(tidy, "hi", "ho"))}
	for i, want := range []string{`"field":"version","to":"1"`, `"field":"version","to":"1"`, `"field":"version","from":"1","to":"2"`} {
		w := as(h, secrets[access.Operator], http.MethodPost, "/v1/declarations", requests[i])
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) || strings.Contains(w.Body.String(), "hidden") {
			t.Errorf("%s: %d: %s", requests[i], w.Code, w.Body)
		}
	}
	if w := as(h, secrets[access.Operator], http.MethodPost, "/v1/workflows", `{"document":`+strconv.Quote(tidy)+`}`); w.Code != http.StatusOK {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	var said []string
	for _, r := range auditOf(t, x, "the-operator")[before:] {
		if r.Action == access.WorkflowManage {
			said = append(said, strings.TrimSpace(r.Object+" "+string(r.Outcome)+" "+r.Detail))
		}
	}
	if want := []string{"tidy done a dry run", "tidier done", "tidy done", "tidy done", "tidy done"}; !slices.Equal(said, want) {
		t.Errorf("the audit has %q, and not %q", said, want)
	}
	w, err := x.Workflow(t.Context(), "tidy", 0)
	if err != nil || w.Version != 3 || w.Author != "the-operator" {
		t.Errorf("%+v, %v", w, err)
	}
}

// auditOf are the records of a user, oldest first.
func auditOf(t *testing.T, x *rig, user string) []access.AuditRecord {
	t.Helper()
	list, err := x.c.Access().Audit(t.Context(), catalog.AuditQuery{User: user, Limit: 1000})
	worksIn(t)(err)
	slices.Reverse(list)
	return list
}

// A dry run is refused as a run would be, and changes nothing. A run with a token does what the token allows also with what it makes itself.
func TestRunByToken(t *testing.T) {
	x := newRig(t)
	x.applications("v", "w")
	g := access.Grant{Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"v"}},
		Limits: access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}}
	h, secret := outside(x), x.person("ann", g)
	run := func(how, app string) *httptest.ResponseRecorder {
		return as(h, secret, http.MethodPost, "/v1/workflows/w/"+how, `{"parameters":{"app":"`+app+`"}}`)
	}
	text := "kind: Workflow\nname: w\nparameters: [{name: app, type: name}]\nsteps:\n  - clone: {source: \"{{ app }}@one\", name: k}\n  - wait: {clone: k}\n  - bookmark: {app: k, name: x}\n"
	_, err := x.ApplyWorkflow(t.Context(), tidemark.WorkflowSpec{Document: text})
	worksIn(t)(err)
	for _, how := range []string{"plans", "runs"} {
		if w := run(how, "w"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "ann may not do application.clone on w") {
			t.Errorf("%s of what is not hers: %d: %s", how, w.Code, w.Body)
		}
	}
	if w := run("plans", "v"); w.Code != http.StatusOK {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	w := run("runs", "v")
	if w.Code != http.StatusAccepted {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	if j, err := x.c.Job(t.Context(), decode[tidemark.Job](t, w.Body.Bytes()).ID, time.Minute); err != nil || j.State != tidemark.JobDone {
		t.Errorf("%+v, %v", j, err)
	}
	for _, r := range auditOf(t, x, "ann") {
		if r.TokenID == 0 {
			t.Errorf("%+v does not have the token", r)
		}
	}
}

// Who has no rights is told by a dry run neither that there is a clone, nor of what it is or where: a name that is had is answered as a free
// one. Who may make a clone is told that the name is had, and no more.
func TestPlanTellsOfNoClone(t *testing.T) {
	x := newRig(t)
	x.applications("v", "payroll", "w")
	x.clone("", tidemark.CloneSpec{Ref: "payroll@one", Name: "pay-dev"})
	steps := map[string]string{"other": "clone: {source: v@one, name: \"{{ n }}\", replace: true}", "same": "clone: {source: payroll@one, name: \"{{ n }}\", replace: true}",
		"refresh": "refresh: {clone: \"{{ n }}\"}"}
	for name, step := range steps {
		_, err := x.ApplyWorkflow(t.Context(), tidemark.WorkflowSpec{Document: "kind: Workflow\nname: " + name + "\nparameters: [{name: n, type: name}]\nsteps:\n  - " + step + "\n"})
		worksIn(t)(err)
	}
	g := access.Grant{Role: access.Auditor, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"w"}}}
	h, eve := outside(x), x.person("eve", g)
	plan := func(workflow, clone, secret string) string {
		w := as(h, secret, http.MethodPost, "/v1/workflows/"+workflow+"/plans", `{"parameters":{"n":"`+clone+`"}}`)
		return strconv.Itoa(w.Code) + " " + w.Body.String()
	}
	for _, name := range []string{"other", "same"} {
		had, free := plan(name, "pay-dev", eve), plan(name, "pay-new", eve)
		if had != free || !strings.HasPrefix(had, "403") {
			t.Errorf("%s: of a clone: %s; of a free name: %s", name, had, free)
		}
	}
	g.Role, g.Scope.Names = access.Operator, []access.Pattern{"v"}
	ann := x.person("ann", g, access.Grant{Role: access.Operator, Scope: access.Scope{Kind: access.Hosts, Names: []access.Pattern{access.ServerHost}}})
	if said := plan("other", "pay-dev", ann); !strings.HasPrefix(said, "409") || strings.Contains(said, "payroll") || strings.Contains(said, access.ServerHost) {
		t.Error(said)
	}
	if said := plan("other", "pay-new", ann); !strings.HasPrefix(said, "200") {
		t.Error(said)
	}
	// Nor is who has no rights told that what a clone was made of is gone, and that another has its name.
	x.clone("", tidemark.CloneSpec{Ref: "pay-dev", Name: "leaf"})
	worksIn(t)(x.RemoveClone(t.Context(), "pay-dev"))
	x.clone("", tidemark.CloneSpec{Ref: "payroll@one", Name: "pay-dev"})
	if said := plan("refresh", "leaf", eve); !strings.HasPrefix(said, "403") || strings.Contains(said, "pay") {
		t.Error(said)
	}
	_, err := x.PlanWorkflow(t.Context(), "refresh", tidemark.RunSpec{Parameters: map[string]string{"n": "leaf"}})
	if tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "pay-dev") {
		t.Error(err)
	}
}
