package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
)

// variant is one form of a request of an operation: its query, and its body. NAME and APP are filled in, as in samples.
type variant struct{ query, body string }

// others are the forms of requests, besides those of samples, by which all that the rules want is asked for.
var others = map[string][]variant{
	"list-sources":        {{query: "?host=NAME"}},
	"list-tokens":         {{query: "?user=NAME"}},
	"revoke-token":        {{query: "?user=NAME"}},
	"protect-application": {{body: `{"name":"NAME","source":"/srv","host":"db1"}`}, {body: `{"name":"NAME","source":"/srv","host":"db2"}`}},
	"create-export":       {{body: `{"ref":"NAME@one","listen":"tcp:127.0.0.1:0"}`}, {body: `{"ref":"NAME@one","tls":"/etc"}`}, {body: `{"ref":"NAME","writable":true}`}},
	"create-mount": {{body: `{"ref":"NAME@one","host":"db1"}`}, {body: `{"ref":"NAME@one","host":"db2"}`}, {body: `{"ref":"NAME@one","path":"/mnt"}`},
		{body: `{"ref":"NAME@one","path":"/mnt","host":"db2"}`}},
	"create-clone": {{body: `{"ref":"NAME@one","name":"new","host":"db1"}`}, {body: `{"ref":"NAME@one","name":"new","host":"db2"}`},
		{body: `{"ref":"NAME@one","name":"new","preparation":{}}`}},
	"prepare-liveclone": {{body: `{"refresh":true}`}},
	"restore":           {{body: `{"ref":"NAME@one","in_place":true}`}},
	"change-group":      {{body: `{"leave":["APP"]}`}},
	"apply":             {{body: `{"documents":"kind: Workflow\nname: new\nsteps: [{wait: {clone: x}}]\n---\nkind: Template\nname: new\n"}`}},
	"follow-changes":    {{query: "?application=NAME"}},
}

// about are the kinds of what an operation is asked about, where its rule does not say it by what it reads of the path or body.
var about = map[string]access.Kind{"run-workflow": access.KindWorkflow, "remove-template": access.KindSLA, "remove-profile": access.KindSLA, "set-password": access.KindToken,
	"make-token": access.KindToken, "revoke-token": access.KindToken, "list-tokens": access.KindToken,
	"set-group-sla": access.KindGroup, "follow-changes": access.KindApplication}

// kindsOf are the kinds of things that an operation is asked about: an application may be a clone, and a clone that is asked for none.
func kindsOf(o operation) []access.Kind {
	k := o.rule.needs[0].kind
	if other, ok := about[o.id]; ok {
		k = other
	}
	if k == access.KindApplication || k == access.KindClone {
		return []access.Kind{access.KindApplication, access.KindClone}
	}
	return []access.Kind{k}
}

// cell is one question of the matrix.
type cell struct {
	o     operation
	role  access.Role // empty: alice has none
	scope string
	thing thing
	variant
}

func (c cell) String() string {
	return fmt.Sprintf("%s %s%s by %q over %s on %s %s", c.o.id, c.query, c.body, c.role, c.scope, c.thing.kind, c.thing.name)
}

// common is what everybody may who has a role, whatever its scope.
var common = []access.Action{access.ServerView, access.SLAView, access.WorkflowView}

// mayDo says what the table of roles says: whether alice may do an action to something by a role over a scope.
func mayDo(role access.Role, scope string, a access.Action, v thing) bool {
	level, covered := role.Level(a), scope == "everything" || slices.Contains(v.in, scope)
	switch {
	case level == access.None:
		return false
	case slices.Contains(common, a):
		return true
	case v.kind == access.KindToken && v.owner == "alice":
		return true // one's own are, whatever the scope
	case v.kind == access.KindHost && role.Limited() && a != access.HostManage:
		covered = covered || slices.Contains(v.in, "hosts") // those of the limits
	}
	switch level {
	case access.All:
		return covered
	case access.Open:
		return covered && (v.owner == "" || v.owner == "alice" || v.lent)
	}
	return covered && v.owner == "alice"
}

// parts are what a need of a cell's request is about; nil: the request does not have it.
func (c cell) parts(n need, world []thing) []thing {
	part, of, _ := strings.Cut(n.only, ".")
	if part == "body" && !strings.Contains(c.body, `"`+of+`"`) || part == "query" && !strings.Contains(c.query, of+"=") {
		return nil
	}
	host := func(name string) []thing {
		i := slices.IndexFunc(world, func(v thing) bool { return v.kind == access.KindHost && v.name == name })
		return world[i : i+1]
	}
	switch {
	case n.members && !c.thing.none:
		var list []thing
		for _, v := range world {
			if v.kind == access.KindApplication && slices.Contains(groupsOf[v.name], c.thing.name) {
				list = append(list, v)
			}
		}
		return list
	case n.members: // of a group that is not there, so it takes the right over all
		return []thing{{kind: n.kind}}
	case n.source: // c.thing is a clone, or the need before it has refused
		return []thing{application(world, c.thing.app)}
	case n.kind == access.KindHost && c.thing.kind != access.KindHost && strings.Contains(c.body, `"host":"db1"`):
		return host("db1")
	case n.kind == access.KindHost && c.thing.kind != access.KindHost && strings.Contains(c.body, `"host":"db2"`):
		return host("db2")
	case n.kind == access.KindHost && (c.thing.kind != access.KindHost || c.o.id == "list-sources" && c.query == ""):
		return []thing{{kind: access.KindHost, name: access.ServerHost, in: here}}
	case n.kind == access.KindToken && c.query == "" && c.o.id != "make-token" && c.o.id != "set-password":
		return []thing{{kind: access.KindToken, owner: "alice"}} // her own
	case n.kind == access.KindApplication && c.thing.kind == access.KindGroup: // that joins it
		return []thing{application(world, c.thing.app)}
	case n.workflows && !strings.Contains(c.body, "kind: Workflow"):
		return nil
	case n.workflows, len(n.from) == 0:
		return []thing{{kind: n.kind}} // all that there is
	}
	return []thing{c.thing}
}

func application(world []thing, name string) thing {
	i := slices.IndexFunc(world, func(v thing) bool {
		return (v.kind == access.KindApplication || v.kind == access.KindClone) && v.name == name
	})
	return world[i]
}

// want says from the table of roles, and nothing else, whether a cell is allowed. It notes which needs were there to be judged.
func (c cell) want(world []thing, judged map[string]bool) bool {
	if c.role == "" {
		return false
	}
	// Copies are put on hosts that the limits have.
	all := !c.role.Limited() || !strings.Contains(c.body, `"db2"`) || c.o.id == "protect-application"
	for i, n := range c.o.rule.needs {
		if n.steps {
			judged[fmt.Sprint(c.o.id, i)] = true
			of := application(world, c.thing.app)
			return mayDo(c.role, c.scope, access.WorkflowRun, of) && mayDo(c.role, c.scope, access.ApplicationBookmark, of)
		}
		parts := c.parts(n, world)
		if parts != nil {
			judged[fmt.Sprint(c.o.id, i)] = true
		}
		for _, v := range parts {
			action := n.action
			if n.kind == access.KindClone && v.kind == access.KindApplication {
				if action = n.volume; action == "" {
					return false // it is no clone
				}
			}
			all = all && mayDo(c.role, c.scope, action, v)
		}
	}
	return all
}

// TestRights is the matrix of all operations, roles and scopes, and of objects that are nobody's, one's own and somebody else's, of an application
// that one has rights over and of another one: what is decided about a request is what the roles say of what it is about. What is refused is also
// asked for over the network, and changes nothing. An operation that is never allowed, or never refused, was not judged: a new
// one needs something in the world that it is about.
func TestRights(t *testing.T) {
	x := &rig{t: t, dir: t.TempDir(), listen: "127.0.0.1:0", check: newValidator(t), seen: map[string]int{}}
	x.start()
	t.Cleanup(x.stop)
	world := makeWorld(t, x)
	before := listed(t, x)
	m := &matrix{t: t, x: x, s: newServer(x.c, slog.New(slog.DiscardHandler)), h: outside(x), secret: x.session("alice"), world: world,
		judged: map[string]bool{}, allowed: map[string]int{}, refused: map[string]int{}, bare: map[string]int{}}
	m.all("", "everything", nil)
	for _, role := range access.Roles() {
		for scope := range scopes {
			g := access.Grant{Subject: access.Subject{Kind: access.User, Name: "alice"}, Role: role, Scope: scopes[scope]}
			if role.Limited() {
				g.Limits = access.Limits{Clones: access.Unlimited, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: scopes["hosts"].Names, Points: access.PointRule{Any: true}}
			}
			g, err := x.AddGrant(t.Context(), g)
			worksIn(t)(err)
			m.all(role, scope, []access.Grant{g})
			worksIn(t)(x.RemoveGrant(t.Context(), g.ID))
		}
	}
	if after := listed(t, x); !maps.Equal(before, after) {
		t.Errorf("what was refused was done: before\n%v\nand after\n%v", before, after)
	}
	for _, v := range world {
		if v.kind != access.KindJob || !v.live || v.none {
			continue
		}
		id, _ := strconv.ParseInt(v.name, 10, 64)
		if j, err := x.c.Job(t.Context(), id, 0); err != nil || j.State != tidemark.JobRunning {
			t.Errorf("the run %s of %q does not go on: %v, %v", v.name, v.owner, j.State, err)
		}
	}
	m.check()
	m.own()
}

// own has alice do, as a developer, what she was refused to do to what is bob's.
func (m *matrix) own() {
	g := developer(scopes["orders"].Names...)
	g.Subject = access.Subject{Kind: access.User, Name: "alice"}
	_, err := m.x.AddGrant(m.t.Context(), g)
	worksIn(m.t)(err)
	for _, v := range m.world {
		how := map[access.Kind]string{access.KindExport: "remove-export", access.KindMount: "remove-mount"}[v.kind]
		if v.kind == access.KindJob && v.live {
			how = "cancel-job"
		}
		if how == "" || v.none || v.owner == "" || v.app != "orders" || strings.HasPrefix(v.name, "l-") {
			continue
		}
		w := ask(m.h, cell{o: m.s.table[how], thing: v}.request(), m.secret)
		if done := w.Code == http.StatusNoContent || w.Code == http.StatusAccepted; done != (v.owner == "alice") {
			m.t.Errorf("%s of %s, which is %s's: %d: %s", how, v.name, v.owner, w.Code, w.Body)
		}
	}
}

// matrix asks all questions.
type matrix struct {
	t      *testing.T
	x      *rig
	s      *server
	h      http.Handler
	secret string // of a session of alice
	world  []thing

	judged                 map[string]bool // operation and number of the need
	allowed, refused, bare map[string]int  // by operation; bare: refused to who has no role at all
}

// session begins a session of a user.
func (x *rig) session(user string) string {
	x.t.Helper()
	secret, now := access.NewSecret(access.SessionPrefix), time.Now()
	s := access.Session{User: user, Method: access.ByOIDC, Created: now, Expires: now.Add(time.Hour), Used: now, Idle: time.Hour}
	_, err := x.c.Access().AddSession(x.t.Context(), s, "", secret.Hash())
	worksIn(x.t)(err)
	return secret.Reveal()
}

// all asks everything by a role over a scope.
func (m *matrix) all(role access.Role, scope string, grants []access.Grant) {
	for _, o := range table() {
		switch {
		case o.rule.open, o.rule.self:
		case o.filtered:
			m.list(o, role, scope)
		default:
			m.operation(o, role, scope, grants)
		}
	}
	m.summaries(role, scope)
}

func (m *matrix) operation(o operation, role access.Role, scope string, grants []access.Grant) {
	kinds, n := kindsOf(o), 0
	for _, v := range m.world {
		if !slices.Contains(kinds, v.kind) || o.id == "get-run" && !v.live && !v.none {
			continue
		}
		for _, how := range append([]variant{{map[string]string{"expire-point": "?point=latest", "unpublish-point": "?bookmark=one"}[o.id], samples[o.id]}}, others[o.id]...) {
			n++
			m.ask(cell{o, role, scope, v, how}, grants)
		}
	}
	if n == 0 && (mountable() || kinds[0] != access.KindMount) {
		m.t.Errorf("there is nothing of %v in the world that %s could be asked about", kinds, o.id)
	}
}

// ask asks one question.
func (m *matrix) ask(c cell, grants []access.Grant) {
	want := c.want(m.world, m.judged)
	who := &caller{principal: access.Principal{User: "alice", Method: access.ByOIDC}, grants: grants}
	done, err := m.s.allow(context.WithValue(m.t.Context(), callerKey{}, who), c.o, read(m.t, c.o, c.request()))
	done()
	got := err == nil || c.thing.none && tidemark.KindOf(err) == tidemark.NotFound // who may know is told so
	told := !got && tidemark.KindOf(err) == tidemark.NotFound
	if first := c.o.rule.needs[0]; told != (c.role != "" && first.kind == access.KindClone && first.volume == "" && c.thing.kind == access.KindApplication && !c.thing.none && mayDo(c.role, c.scope, access.ApplicationView, c.thing)) {
		m.t.Errorf("%v: %v, and who sees an application is told that it is no clone, and nobody else", c, err)
	}
	if err != nil && !got && !told && tidemark.KindOf(err) != tidemark.Denied {
		m.t.Errorf("%v: %v", c, err)
	}
	if got && strings.Contains(c.body, "kind: Workflow") && !slices.ContainsFunc(who.asked, func(a asked) bool { return a.action == access.WorkflowManage }) {
		m.t.Errorf("%v: the right to change workflows was not asked for", c) // which all roles have that may apply something else
	}
	switch {
	case got != want:
		m.t.Errorf("%v: it is %v, and should be %v", c, err, want)
	case c.role == "":
		m.bare[c.o.id]++
	case want:
		m.allowed[c.o.id]++
	default:
		m.refused[c.o.id]++
	}
	if want && (c.o.method != http.MethodGet || c.o.stream || c.o.id == "list-sources") || c.role != "" && (c.scope != "orders" || c.role != access.Developer && c.role != access.Auditor) {
		return // asked for, it would be done; and each that is refused takes a moment to be recorded
	}
	w := ask(m.h, c.request(), m.secret)
	if (w.Code == http.StatusForbidden) == (want || told) || told && w.Code != http.StatusNotFound || w.Code >= http.StatusInternalServerError && w.Code != http.StatusServiceUnavailable {
		m.t.Errorf("%v is answered with %d: %s", c, w.Code, w.Body)
	}
	if !want && strings.Contains(w.Body.String(), "bob") && c.thing.name != "bob" {
		m.t.Errorf("%v is told whose it is: %s", c, w.Body)
	}
}

func (c cell) request() *http.Request {
	return request(c.o, c.query, c.body, c.thing.name, c.thing.app)
}

// lists say what of the world is in the list of an operation.
var lists = map[string]func(thing) bool{
	"list-applications": func(v thing) bool { return v.kind == access.KindApplication },
	"list-compliance":   func(v thing) bool { return v.kind == access.KindApplication },
	"list-volumes":      func(v thing) bool { return v.kind == access.KindApplication || v.kind == access.KindClone },
	"list-templates":    func(v thing) bool { return v.kind == access.KindSLA },
	"list-profiles":     func(v thing) bool { return v.kind == access.KindSLA },
	"list-groups":       func(v thing) bool { return v.kind == access.KindGroup },
	"list-hosts":        func(v thing) bool { return v.kind == access.KindHost },
	"list-exports":      func(v thing) bool { return v.kind == access.KindExport },
	"list-mounts":       func(v thing) bool { return v.kind == access.KindMount },
	"list-clones":       func(v thing) bool { return v.kind == access.KindClone },
	"list-liveclones":   func(v thing) bool { return v.kind == access.KindClone && v.live },
	"list-jobs":         func(v thing) bool { return v.kind == access.KindJob },
	"list-runs":         func(v thing) bool { return v.kind == access.KindJob && v.live },
	"list-workflows":    func(v thing) bool { return v.kind == access.KindWorkflow },
	"list-webhooks":     func(v thing) bool { return v.kind == access.KindWebhook },
}

// list asks for a list, which has what one may see, all of it, and nothing else.
func (m *matrix) list(o operation, role access.Role, scope string) {
	holds := lists[o.id]
	if holds == nil {
		m.t.Errorf("it is not known what of the world %s shows", o.id)
		return
	}
	w := ask(m.h, httptest.NewRequest(http.MethodGet, o.path, nil), m.secret)
	if w.Code != http.StatusOK {
		m.t.Errorf("%s by %q over %s: %d: %s", o.id, role, scope, w.Code, w.Body)
		return
	}
	m.shows(o.id, role, scope, o.rule.needs[0].action, holds, names(m.t, w.Body.Bytes()))
}

// shows compares what is shown with what may be seen.
func (m *matrix) shows(id string, role access.Role, scope string, a access.Action, holds func(thing) bool, got map[string]bool) {
	want := map[string]bool{}
	for _, v := range m.world {
		if !holds(v) || v.none {
			continue
		}
		switch {
		case role != "" && mayDo(role, scope, a, v):
			want[v.name] = true
			m.allowed[id]++
		case role == "":
			m.bare[id]++
		default:
			m.refused[id]++
		}
	}
	if !maps.Equal(got, want) {
		m.t.Errorf("%s by %q over %s shows %v, and not %v", id, role, scope, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// summaries asks for what shows objects of several kinds to everybody who has a role.
func (m *matrix) summaries(role access.Role, scope string) {
	if role == "" {
		return // they are refused
	}
	w := ask(m.h, httptest.NewRequest(http.MethodGet, "/v1/status", nil), m.secret)
	for member, list := range map[string]string{"applications": "list-applications", "mounts": "list-mounts", "clones": "list-clones"} {
		text, err := json.Marshal(decode[map[string]any](m.t, w.Body.Bytes())[member])
		worksIn(m.t)(err)
		action := map[string]access.Action{"applications": access.ApplicationView, "mounts": access.MountView, "clones": access.CloneView}[member]
		m.shows("the "+member+" of get-status", role, scope, action, lists[list], names(m.t, text))
	}
	w = ask(m.h, httptest.NewRequest(http.MethodGet, "/v1/events?limit=1000", nil), m.secret)
	for _, e := range decode[tidemark.Page[tidemark.Event]](m.t, w.Body.Bytes()).Items {
		if e.Application == "" && !mayDo(role, scope, access.PoolView, thing{kind: access.KindPool}) {
			m.t.Errorf("by %q over %s an event of the server is shown: %+v", role, scope, e)
		}
		i := slices.IndexFunc(m.world, func(v thing) bool { return v.name == e.Application && v.kind != access.KindExport })
		if e.Application != "" && (i < 0 || !mayDo(role, scope, access.ApplicationView, m.world[i])) {
			m.t.Errorf("by %q over %s an event of %s is shown: %+v", role, scope, e.Application, e)
		}
	}
}

// check holds that every operation was judged, and every need of its rule.
func (m *matrix) check() {
	asked := 0
	for _, o := range table() {
		if o.rule.open || o.rule.self || !mountable() && kindsOf(o)[0] == access.KindMount {
			continue
		}
		asked += m.allowed[o.id] + m.refused[o.id] + m.bare[o.id]
		all := !slices.ContainsFunc(o.rule.needs, func(n need) bool { return !slices.Contains(common, n.action) })
		if m.allowed[o.id] == 0 || m.refused[o.id] == 0 && !all || m.bare[o.id] == 0 {
			m.t.Errorf("%s was not judged: it was allowed %d times, refused %d times, and refused to who has no role %d times", o.id, m.allowed[o.id], m.refused[o.id], m.bare[o.id])
		}
		for i, n := range o.rule.needs {
			if !o.filtered && !m.judged[fmt.Sprint(o.id, i)] {
				m.t.Errorf("%s was never asked with what needs %s on a %s", o.id, n.action, n.kind)
			}
		}
	}
	m.t.Logf("%d questions", asked)
}

// names are the names of what is in a list, or the numbers of what has none.
func names(t *testing.T, text []byte) map[string]bool {
	t.Helper()
	var page struct{ Items json.RawMessage }
	if json.Unmarshal(text, &page) == nil && page.Items != nil {
		text = page.Items
	}
	set := map[string]bool{}
	for _, v := range decode[[]map[string]any](t, text) {
		if j, ok := v["job"].(map[string]any); ok { // of a run
			v = j
		}
		for _, member := range []string{"id", "name", "application", "position"} {
			if k, ok := v[member]; ok {
				set[fmt.Sprint(k)] = true
				break
			}
		}
	}
	return set
}

// read makes of a request what the framework would; nil: it reads none.
func read(t *testing.T, o operation, r *http.Request) any {
	t.Helper()
	if o.input == nil {
		return nil
	}
	values := map[string]string{}
	parts := strings.Split(r.URL.Path, "/")
	for i, part := range strings.Split(o.path, "/") {
		values["path."+strings.Trim(part, "{}")] = parts[i]
	}
	for k := range r.URL.Query() {
		values["query."+k] = r.URL.Query().Get(k)
	}
	in := reflect.New(o.input)
	for _, f := range reflect.VisibleFields(o.input) {
		v := in.Elem().FieldByIndex(f.Index)
		text := values["path."+f.Tag.Get("path")] + values["query."+f.Tag.Get("query")]
		number, _ := strconv.ParseInt(text, 10, 64)
		switch {
		case f.Name == "Body" && r.Body != http.NoBody:
			body := new(bytes.Buffer)
			_, err := body.ReadFrom(r.Body)
			worksIn(t)(err)
			if err := json.Unmarshal(body.Bytes(), v.Addr().Interface()); err != nil {
				t.Fatalf("%s: %v", o.id, err)
			}
		case text == "":
		case v.Kind() == reflect.String:
			v.SetString(text)
		case v.CanInt():
			v.SetInt(number)
		case v.CanUint():
			v.SetUint(uint64(number))
		}
	}
	return in.Interface()
}
