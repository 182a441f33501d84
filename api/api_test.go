package api

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestDocumentIsKept(t *testing.T) {
	golden := filepath.Join("..", "docs", "openapi.json")
	if *update {
		if err := os.WriteFile(golden, Document(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, Document()) {
		t.Error("docs/openapi.json is not what the table says: look at what has changed, and run go test ./api -run TestDocumentIsKept -update")
	}
}

func TestDocumentIsOpenAPI(t *testing.T) {
	if ok, errs := newValidator(t).ValidateDocument(); !ok {
		for _, e := range errs {
			t.Error(e)
		}
	}
	if !bytes.Contains(Document(), []byte(`"openapi": "3.1.0"`)) {
		t.Error("it is not OpenAPI 3.1")
	}
}

// TestOperationsAreWhole holds that nothing of an entry of the table is forgotten, least of all its rule.
func TestOperationsAreWhole(t *testing.T) {
	known := map[string]bool{}
	for _, tag := range tags {
		known[tag.Name] = true
	}
	seen := map[string]bool{}
	for _, o := range table() {
		if len(o.rule.needs) == 0 && !o.rule.open && !o.rule.self {
			t.Errorf("%s has no rule", o.id)
		}
		for _, n := range o.rule.needs {
			if !slices.Contains(n.action.Kinds(), n.kind) {
				t.Errorf("the rule of %s wants %s on a %s, on which it is never allowed", o.id, n.action, n.kind)
			}
			for _, from := range append(slices.Clone(n.from), n.only) {
				if from != "" && !hasPart(o.input, from) {
					t.Errorf("the rule of %s speaks of %s, which its request does not have", o.id, from)
				}
			}
		}
		if seen[o.id] || seen[o.method+o.path] {
			t.Errorf("%s, %s %s, is there twice", o.id, o.method, o.path)
		}
		seen[o.id], seen[o.method+o.path] = true, true
		if !known[o.tag] || o.summary == "" || !strings.HasSuffix(o.description, ".") || o.status == 0 {
			t.Errorf("%s is not told whole: tag %q, summary %q, description %q, status %d", o.id, o.tag, o.summary, o.description, o.status)
		}
		for _, part := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(o.path, -1) {
			if !hasParameter(o, part[1]) {
				t.Errorf("%s does not read %s of its path", o.id, part[1])
			}
		}
		if (o.status == http.StatusCreated || o.status == http.StatusAccepted && o.result != nil) && o.method == http.MethodPost && !o.once {
			t.Errorf("%s makes something, and has no key", o.id)
		}
	}
}

// hasParameter reports whether the document has a parameter of the path, which is so if the framework reads it.
func hasParameter(o operation, name string) bool {
	item := newServer(nil, slog.New(slog.DiscardHandler)).api.OpenAPI().Paths[o.path]
	for _, op := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
		if op != nil && op.OperationID == o.id {
			return slices.ContainsFunc(op.Parameters, func(p *huma.Param) bool { return p.In == "path" && p.Name == name })
		}
	}
	return false
}

// hasPart reports whether a request has a part such as path.name or body.ref.
func hasPart(input reflect.Type, from string) bool {
	where, name, _ := strings.Cut(from, ".")
	if input == nil {
		return false
	}
	for _, f := range reflect.VisibleFields(input) {
		if f.Tag.Get(where) == name {
			return true
		}
		if where != "body" || f.Name != "Body" {
			continue
		}
		body := f.Type
		if body.Kind() == reflect.Pointer {
			body = body.Elem()
		}
		for _, m := range reflect.VisibleFields(body) {
			if tag, _, _ := strings.Cut(m.Tag.Get("json"), ","); tag == name {
				return true
			}
		}
	}
	return false
}

func TestHasPartSeesWhatIsMissing(t *testing.T) {
	for from, want := range map[string]bool{"path.name": true, "body.application": true, "body.name": true, "body.ref": false, "query.name": false, "path.id": false} {
		if hasPart(reflect.TypeFor[ofNameAndBody[tidemark.BookmarkSpec]](), from) != want {
			t.Errorf("%s: %v", from, !want)
		}
	}
}

// TestClientHasEveryOperation asks for each operation by the client's method for it. What there is nothing of is refused; what
// is answered is held against the document.
func TestClientHasEveryOperation(t *testing.T) {
	x := newRig(t)
	ctx := context.Background()
	ref := tidemark.Ref{App: "v", Point: tidemark.Point{Bookmark: "one"}}
	job := func(j tidemark.Job, err error) error {
		if err == nil {
			err = x.Wait(ctx, j.ID, nil, nil)
		}
		return err
	}
	works := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	refuses := func(kind tidemark.Kind, err error) {
		t.Helper()
		if tidemark.KindOf(err) != kind {
			t.Errorf("%v is %s, not %s", err, tidemark.KindOf(err), kind)
		}
	}
	_, err := x.CreateVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	works(err)
	p, err := x.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: "one"})
	works(err)
	again, err := x.Point(ctx, "v", p.Position)
	works(err)
	if !reflect.DeepEqual(p, again) {
		t.Errorf("%+v, and not %+v", again, p)
	}
	_, err = x.Status(ctx)
	works(err)
	_, err = x.OpenAPI(ctx)
	works(err)
	works(x.Alive(ctx))
	works(x.Ready(ctx))
	_, err = x.Metrics(ctx)
	works(err)
	soon, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	for range x.Follow(soon, 1<<40) { // there is no such event: it is enough that it is asked for
	}
	cancel()
	for _, err := range x.FollowChanges(ctx, tidemark.ChangeFilter{}) { // it begins with a sync
		works(err)
		break
	}
	_, err = x.Application(ctx, "v")
	works(err)
	_, err = x.Volume(ctx, "v")
	works(err)
	_, err = x.Intervals(ctx, "v")
	works(err)
	_, err = client.Collect(x.Proofs(ctx, "v"))
	works(err)
	_, err = client.Collect(x.Compliance(ctx))
	works(err)
	_, err = x.Apply(ctx, tidemark.ApplySpec{Documents: "kind: Template\nname: bronze\ncapture:\n  every: 1h\n", DryRun: true})
	works(err)
	_, err = x.Pool(ctx)
	works(err)
	for _, list := range []func() (int, error){
		counted(x.Applications(ctx)), counted(x.Points(ctx, "v")), counted(x.Groups(ctx)), counted(x.Hosts(ctx)), counted(x.Volumes(ctx)),
		counted(x.Templates(ctx)), counted(x.Profiles(ctx)), counted(x.Workflows(ctx)), counted(x.Audit(ctx, "", "")), counted(x.Exports(ctx)), counted(x.Mounts(ctx)), counted(x.Clones(ctx)), counted(x.Jobs(ctx, tidemark.JobFilter{})), counted(x.Events(ctx)),
	} {
		_, err := list()
		works(err)
	}
	file := filepath.Join(t.TempDir(), "disk")
	works(os.WriteFile(file, bytes.Repeat([]byte("tide"), 1<<18), 0o600))
	works(job(x.ImportVolume(ctx, tidemark.ImportSpec{Name: "w", Path: file, Bookmark: "one"})))
	works(job(x.ChangeApplication(ctx, "v", tidemark.ApplicationChange{Window: &tidemark.Window{Seconds: 3600}})))
	d, err := x.Diff(ctx, tidemark.DiffSpec{A: "w@one", B: "w"})
	works(err)
	if len(d.Extents) != 0 {
		t.Errorf("nothing was written, and there is a difference: %+v", d)
	}
	_, err = x.Halve(ctx, tidemark.HalveSpec{Application: "w", Good: "one", Bad: "latest"})
	refuses(tidemark.Invalid, err)
	e, err := x.Export(ctx, tidemark.ExportSpec{Ref: "w@one"})
	works(err)
	found, err := x.FindExport(ctx, e.Name)
	works(err)
	if found != e {
		t.Errorf("%+v, and not %+v", found, e)
	}
	works(x.Unexport(ctx, e.Name))
	works(job(x.Restore(ctx, tidemark.RestoreSpec{Ref: "w@one", To: file + ".back"})))
	works(job(x.Verify(ctx, tidemark.VerifySpec{Ref: "w@one"})))
	works(job(x.Reclaim(ctx)))
	x.Queue = true
	j, err := x.Reclaim(ctx)
	works(job(j, err))
	x.Queue = false
	if j.Origin != tidemark.FromQueue {
		t.Errorf("it did not wait: %+v", j)
	}
	works(job(x.Rewind(ctx, tidemark.RewindSpec{Ref: "w@one"})))
	j, err = x.Clone(ctx, tidemark.CloneSpec{Ref: "v@one", Name: "k"})
	works(job(j, err))
	_, err = x.Job(ctx, j.ID)
	works(err)
	refuses(tidemark.Conflict, x.Cancel(ctx, j.ID))
	k, err := x.FindClone(ctx, "k")
	works(err)
	if k.Source != "v@"+p.Position.String() {
		t.Errorf("the clone is of %s", k.Source)
	}
	works(job(x.Refresh(ctx, tidemark.RefreshSpec{Name: "k"})))
	if k, err = x.ExtendClone(ctx, "k", tidemark.Extension{Lifetime: 3600}); err != nil || k.Expires == nil || time.Until(*k.Expires) > time.Hour {
		t.Errorf("%v, %v", k.Expires, err)
	}
	_, err = x.ShareClone(ctx, "k", access.ShareSpec{With: []access.Subject{{Kind: access.User, Name: "nobody"}}})
	refuses(tidemark.NotFound, err)
	_, err = x.ShareClone(ctx, "k", access.ShareSpec{With: []access.Subject{}})
	works(err)
	works(x.RemoveClone(ctx, "k"))
	gone, err := x.Expire(ctx, ref)
	works(err)
	if gone.Position != p.Position {
		t.Errorf("%v was forgotten, not %v", gone.Position, p.Position)
	}
	workflows(t, x.Client, works, refuses)
	webhooks(t, x.Client, works, refuses)
	works(x.RemoveVolume(ctx, "v"))
	refuses(tidemark.NotFound, x.Unprotect(ctx, "v"))

	people(ctx, x, works, refuses)
	refuses(tidemark.NotFound, x.SetSLA(ctx, tidemark.SLASpec{Application: "nobody"}))
	refuses(tidemark.NotFound, x.SetGroupSLA(ctx, tidemark.GroupSLASpec{Group: "nobody"}))
	refuses(tidemark.NotFound, x.RemoveTemplate(ctx, "nothing"))
	refuses(tidemark.NotFound, x.SetProfile(ctx, tidemark.ProfileSpec{Application: "nobody"}))
	refuses(tidemark.NotFound, x.RemoveProfile(ctx, "nothing"))
	refuses(tidemark.NotFound, x.ChangeHost(ctx, tidemark.HostChange{Name: "nobody"}))
	_, err = x.Prove(ctx, tidemark.ProveSpec{Ref: "nobody"})
	refuses(tidemark.NotFound, err)
	j, err = x.Clone(ctx, tidemark.CloneSpec{Ref: "w@one", Name: "l", Preparation: &tidemark.Preparation{}})
	works(job(j, err))
	works(job(x.Prepare(ctx, tidemark.PrepareSpec{Name: "l", Bookmark: "ready"})))
	l, err := x.LiveClone(ctx, "l")
	works(err)
	if l.Prepared == nil || l.Prepared.Bookmark != "ready" || len(l.Published) != 0 {
		t.Errorf("the LiveClone is %+v", l)
	}
	lives, err := client.Collect(x.LiveClones(ctx))
	works(err)
	if len(lives) != 1 || lives[0].Name != "l" {
		t.Errorf("the LiveClones are %+v", lives)
	}
	_, err = x.Publish(ctx, tidemark.PublishSpec{Name: "l", Bookmark: "ready"}) // no values were named
	refuses(tidemark.Invalid, err)
	refuses(tidemark.NotFound, x.Unpublish(ctx, "l", "ready"))
	works(x.RemoveClone(ctx, "l"))

	_, err = x.Protect(ctx, tidemark.ProtectSpec{Name: "files", Source: "relative"})
	refuses(tidemark.Invalid, err)
	_, err = x.Capture(ctx, tidemark.CaptureSpec{Application: "nobody"})
	refuses(tidemark.NotFound, err)
	refuses(tidemark.NotFound, x.Resync(ctx, "nobody"))
	_, err = x.Group(ctx, "nobody")
	refuses(tidemark.NotFound, err)
	_, err = x.ChangeGroup(ctx, tidemark.GroupSpec{Name: "g", Join: []string{"nobody"}})
	refuses(tidemark.NotFound, err)
	_, err = x.BookmarkGroup(ctx, tidemark.BookmarkSpec{Application: "g", Name: "one"})
	refuses(tidemark.NotFound, err)
	_, err = x.RestoreGroup(ctx, "g", tidemark.RestoreSpec{Ref: "g@one", InPlace: true})
	refuses(tidemark.NotFound, err)
	_, err = x.Host(ctx, "nobody")
	refuses(tidemark.NotFound, err)
	_, err = x.AddHost(ctx, tidemark.HostSpec{Name: "h"})
	refuses(tidemark.Unavailable, err)
	refuses(tidemark.NotFound, x.RemoveHost(ctx, tidemark.HostRemoval{Name: "nobody", Force: true}))
	_, err = x.FindMount(ctx, "nobody")
	refuses(tidemark.NotFound, err)
	_, err = x.Mount(ctx, tidemark.MountSpec{Ref: "nobody@one"})
	refuses(tidemark.NotFound, err)
	refuses(tidemark.NotFound, x.Unmount(ctx, "nobody"))
	_, err = x.ImportPool(ctx, tidemark.PoolImport{Path: "/nowhere"})
	if err == nil {
		t.Error("a pool that is nowhere was imported")
	}
	refuses(tidemark.NotFound, x.Forget(ctx, "nobody"))
	if _, err := x.Sources(ctx, ""); err != nil && tidemark.KindOf(err) == tidemark.Invalid { // it needs the agent, which is this program
		t.Error(err)
	}
	x.http.Close() // all that was asked for is counted
	for _, o := range table() {
		if x.seen[o.method+" "+o.path] == 0 {
			t.Errorf("no method of the client asked for %s, %s %s", o.id, o.method, o.path)
		}
		delete(x.seen, o.method+" "+o.path)
	}
	for _, pattern := range slices.Sorted(maps.Keys(x.seen)) {
		t.Errorf("the client asked for what is no operation: %s", pattern)
	}
}

func counted[T any](seq func(func(T, error) bool)) func() (int, error) {
	return func() (int, error) {
		all, err := client.Collect(seq)
		return len(all), err
	}
}

// TestProblems holds that whatever is wrong with a request is told as a problem, changes nothing, and is what the client says.
func TestProblems(t *testing.T) {
	x := newRig(t)
	x.volume("v")
	big := `{"name":"` + strings.Repeat("x", maxRequest) + `"}`
	for _, c := range []struct {
		method, path, body string
		header             []string
		status             int
		kind               tidemark.Kind
		says               string
	}{
		{"GET", "/v1/applications/nobody", "", nil, 404, tidemark.NotFound, "nobody"},
		{"GET", "/v1/applications/..%2f..%2fetc", "", nil, 400, tidemark.Invalid, "the name"},
		{"GET", "/v1/applications/" + strings.Repeat("x", 49), "", nil, 400, tidemark.Invalid, ""},
		{"GET", "/v1/applications?limit=0", "", nil, 400, tidemark.Invalid, "query.limit"},
		{"GET", "/v1/applications?limit=1001", "", nil, 400, tidemark.Invalid, "query.limit"},
		{"GET", "/v1/applications?limit=x", "", nil, 400, tidemark.Invalid, "query.limit"},
		{"GET", "/v1/applications?frobnicate=1", "", nil, 400, tidemark.Invalid, "frobnicate"},
		{"GET", "/v1/applications?cursor=x", "", nil, 400, tidemark.Invalid, "cursor"},
		{"GET", "/v1/jobs/x", "", nil, 400, tidemark.Invalid, "path.id"},
		{"GET", "/v1/jobs/1?wait=soon", "", nil, 400, tidemark.Invalid, "soon"},
		{"GET", "/v1/jobs/1", "", nil, 404, tidemark.NotFound, "no job 1"},
		{"GET", "/v1/frobnicate", "", nil, 404, tidemark.NotFound, "GET /v1/frobnicate"},
		{"PUT", "/v1/volumes", "{}", nil, 405, tidemark.Invalid, "PUT"},
		{"POST", "/v1/volumes", "", nil, 400, tidemark.Invalid, "body"},
		{"POST", "/v1/volumes", "{", nil, 400, tidemark.Invalid, ""},
		{"POST", "/v1/volumes", "[]", nil, 400, tidemark.Invalid, "body"},
		{"POST", "/v1/volumes", `{"name":"w","size_bytes":"1MiB"}`, nil, 400, tidemark.Invalid, "body.size_bytes"},
		{"POST", "/v1/volumes", `{"name":"w"}`, nil, 400, tidemark.Invalid, "size_bytes"},
		{"POST", "/v1/volumes", `{"name":"w","size_bytes":1048576,"frob":1}`, nil, 400, tidemark.Invalid, "frob"},
		{"POST", "/v1/volumes", `{"name":"../w","size_bytes":1048576}`, nil, 400, tidemark.Invalid, "the name"},
		{"POST", "/v1/volumes", `{"name":"w","size_bytes":1000}`, nil, 400, tidemark.Invalid, "512"},
		{"POST", "/v1/volumes", `{"name":"v","size_bytes":1048576}`, nil, 409, tidemark.Conflict, "v"},
		{"POST", "/v1/volumes", big, nil, 413, tidemark.Invalid, ""},
		{"POST", "/v1/volumes", `<name/>`, []string{"Content-Type", "application/xml"}, 415, tidemark.Invalid, ""},
		{"POST", "/v1/applications/v/bookmarks", `{"application":"w","name":"one"}`, nil, 400, tidemark.Invalid, "the path speaks of v"},
		{"POST", "/v1/groups/g/restores", `{"ref":"h@one","in_place":true}`, nil, 400, tidemark.Invalid, "the path speaks of g"},
		{"DELETE", "/v1/applications/v/points", "", nil, 400, tidemark.Invalid, "point"},
		{"DELETE", "/v1/applications/v/points?point=" + "%23x", "", nil, 400, tidemark.Invalid, "position"},
		{"POST", "/v1/webhooks", `{"name":"w","url":"ftp://example.com"}`, nil, 400, tidemark.Invalid, "no URL that can be posted to"},
		{"POST", "/v1/webhooks", `{"name":"../w","url":"https://example.com"}`, nil, 400, tidemark.Invalid, "the name"},
		{"POST", "/v1/webhooks", `{"name":"w","url":"https://example.com","level":"grave"}`, nil, 400, tidemark.Invalid, "body.level"},
		{"POST", "/v1/webhooks", `{"name":"w","url":"https://example.com","secret":"none"}`, nil, 404, tidemark.NotFound, "the secret none"},
		{"PATCH", "/v1/webhooks/w", `{"off":true}`, nil, 404, tidemark.NotFound, "no webhook"},
		{"PATCH", "/v1/webhooks/w", `{"of":true}`, nil, 400, tidemark.Invalid, "of"},
		{"DELETE", "/v1/mounts/%2fmnt", "", nil, 400, tidemark.Invalid, "the name"},
	} {
		resp, text := x.ask(c.method, c.path, c.body, c.header...)
		if resp.StatusCode != c.status || resp.Header.Get("Content-Type") != tidemark.MediaProblem {
			t.Errorf("%s %s %.60s: %s, %s: %s", c.method, c.path, c.body, resp.Status, resp.Header.Get("Content-Type"), text)
			continue
		}
		p := decode[tidemark.Problem](t, text)
		if p.Status != c.status || p.Kind != c.kind || p.Type != "urn:tidemark:problem:"+string(c.kind) || p.Title == "" || !strings.Contains(p.Detail, c.says) || strings.Contains(p.Detail, "\n") {
			t.Errorf("%s %s %.60s: %+v", c.method, c.path, c.body, p)
		}
	}
	if resp, _ := x.ask("PUT", "/v1/volumes", "{}"); resp.Header.Get("Allow") != "GET, POST" {
		t.Errorf("allowed are %q", resp.Header.Get("Allow"))
	}
	n, err := counted(x.Volumes(context.Background()))()
	if err != nil || n != 1 {
		t.Errorf("%d volumes, %v", n, err)
	}
}

// TestMade holds the statuses and places of what is made.
func TestMade(t *testing.T) {
	x := newRig(t)
	at := func(resp *http.Response, text []byte, status int) string {
		t.Helper()
		if resp.StatusCode != status {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		return resp.Header.Get("Location")
	}
	resp, text := x.ask("POST", "/v1/volumes", `{"name":"v","size_bytes":1048576}`)
	if to := at(resp, text, 201); to != "/v1/volumes/v" {
		t.Errorf("it is at %q", to)
	}
	resp, text = x.ask("POST", "/v1/applications/v/bookmarks", `{"name":"one"}`)
	to := at(resp, text, 201)
	p := decode[tidemark.RecoveryPoint](t, text)
	if want := fmt.Sprintf("/v1/applications/v/points/%d", p.Position); to != want {
		t.Errorf("it is at %q, not %q", to, want)
	}
	if resp, again := x.ask("GET", to, ""); resp.StatusCode != 200 || !bytes.Equal(again, text) {
		t.Errorf("%s: %s, not %s", resp.Status, again, text)
	}
	resp, text = x.ask("POST", "/v1/pool/verify", "")
	to = at(resp, text, 202)
	if want := fmt.Sprintf("/v1/jobs/%d", decode[tidemark.Job](t, text).ID); to != want {
		t.Errorf("it is at %q, not %q", to, want)
	}
	if _, text := x.ask("GET", to+"?wait=30s", ""); decode[tidemark.Job](t, text).State != tidemark.JobDone {
		t.Errorf("%s", text)
	}
	if resp, text := x.ask("DELETE", "/v1/volumes/v", ""); resp.StatusCode != 204 || len(text) != 0 {
		t.Errorf("%s: %s", resp.Status, text)
	}
}

// people asks for everything that is about users.
func people(ctx context.Context, x *rig, works func(error), refuses func(tidemark.Kind, error)) {
	const password = "correct horse battery"
	_, err := x.AddUser(ctx, tidemark.UserSpec{Name: "alice@example.com", Password: password})
	works(err)
	_, err = x.Login(ctx, tidemark.Login{User: "alice@example.com", Password: "not that"})
	refuses(tidemark.Denied, err)
	i, err := x.Login(ctx, tidemark.Login{User: "alice@example.com", Password: password})
	works(err)
	if _, err := access.ParseSecret(access.SessionPrefix, i.Secret); err != nil {
		x.t.Error(err)
	}
	_, err = x.BeginDeviceLogin(ctx)
	refuses(tidemark.NotFound, err)
	_, err = x.FinishDeviceLogin(ctx, tidemark.DeviceLogin{Login: "none"})
	refuses(tidemark.NotFound, err)
	refuses(tidemark.Invalid, x.Logout(ctx)) // the socket is no session
	me, err := x.Self(ctx)
	works(err)
	if me.Method != access.BySocket {
		x.t.Errorf("%+v", me)
	}
	_, err = x.Authority(ctx)
	refuses(tidemark.NotFound, err)
	works(x.AddUserGroup(ctx, "/corp/ops team"))
	works(x.JoinUserGroup(ctx, "/corp/ops team", "alice@example.com"))
	groups, err := client.Collect(x.UserGroups(ctx))
	works(err)
	if len(groups) != 1 || len(groups[0].Members) != 1 {
		x.t.Errorf("%+v", groups)
	}
	g, err := x.AddGrant(ctx, access.Grant{Subject: access.Subject{Kind: access.Group, Name: "/corp/ops team"}, Role: access.Operator, Scope: access.Scope{Kind: access.Everything}})
	works(err)
	grants, err := client.Collect(x.Grants(ctx))
	works(err)
	if len(grants) != 1 || grants[0].ID != g.ID {
		x.t.Errorf("%+v, and not %+v", grants, g)
	}
	works(x.RemoveGrant(ctx, g.ID))
	works(x.LeaveUserGroup(ctx, "/corp/ops team", "alice@example.com"))
	works(x.RemoveUserGroup(ctx, "/corp/ops team"))
	token, err := x.MakeToken(ctx, access.TokenSpec{User: "alice@example.com", Name: "ci", Lifetime: 60})
	works(err)
	tokens, err := client.Collect(x.Tokens(ctx, ""))
	works(err)
	if len(tokens) != 1 || tokens[0].ID != token.ID {
		x.t.Errorf("%+v, and not %d", tokens, token.ID)
	}
	works(x.RevokeToken(ctx, "alice@example.com", token.ID))
	works(x.SetPassword(ctx, "alice@example.com", tidemark.PasswordChange{New: "another horse battery"}))
	works(x.ChangeUser(ctx, "alice@example.com", tidemark.UserChange{Disabled: true}))
	users, err := client.Collect(x.Users(ctx))
	works(err)
	if len(users) != 1 || !users[0].Disabled {
		x.t.Errorf("%+v", users)
	}
	works(x.RemoveUser(ctx, "alice@example.com"))
	copied, err := x.AuditCheckpoint(ctx)
	works(err)
	r, err := x.VerifyAudit(ctx, copied)
	works(err)
	if r.Records == 0 || r.Copies != 1 || r.CopiesThrough != r.Records || r.Through != r.Records || r.OtherKeys != 0 {
		x.t.Errorf("%+v", r)
	}
	copied.Checkpoint += "x"
	if _, err = x.VerifyAudit(ctx, copied); tidemark.KindOf(err) != tidemark.Invalid {
		x.t.Errorf("a copy that is none: %v", err)
	}
}
