package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/access"
	"tidemark/access/oidc"
	"tidemark/access/oidc/oidctest"
	"tidemark/catalog"
	"tidemark/control"
)

// samples are requests of operations, with NAME where what they are about is named, and APP where an application is. What is not here has no
// body and only NAME in its path.
var samples = map[string]string{
	"login":                `{"user":"NAME","password":"wrong"}`,
	"finish-device-login":  `{"login":"NAME"}`,
	"make-token":           `{"user":"NAME","name":"ci","lifetime_seconds":60}`,
	"add-user":             `{"name":"NAME"}`,
	"change-user":          `{"disabled":true}`,
	"set-password":         `{"new":"a long enough password"}`,
	"add-grant":            `{"subject":{"kind":"user","name":"NAME"},"role":"admin","scope":{"kind":"everything"}}`,
	"protect-application":  `{"name":"NAME","source":"/srv"}`,
	"change-application":   `{"window":{"seconds":60}}`,
	"bookmark-application": `{"name":"one"}`,
	"set-sla":              `{"template":"gold"}`,
	"set-profile":          `{"profile":"gold"}`,
	"set-group-sla":        `{"template":"gold"}`,
	"apply":                `{"documents":"kind: Template"}`,
	"change-group":         `{"join":["APP"]}`,
	"bookmark-group":       `{"name":"one"}`,
	"restore-group":        `{"ref":"NAME@one","in_place":true}`,
	"add-host":             `{"name":"NAME"}`,
	"change-host":          `{"limit":1}`,
	"create-volume":        `{"name":"NAME","size_bytes":4096}`,
	"import-volume":        `{"path":"/etc/passwd"}`,
	"create-export":        `{"ref":"NAME@one"}`,
	"create-mount":         `{"ref":"NAME@one"}`,
	"create-clone":         `{"ref":"NAME@one","name":"new","lifetime_seconds":60}`,
	"extend-clone":         `{"lifetime_seconds":60}`,
	"share-clone":          `{"with":[]}`,
	"rewind":               `{"ref":"NAME@one"}`,
	"prove":                `{"ref":"NAME@one"}`,
	"restore":              `{"ref":"NAME@one","to":"/etc/shadow"}`,
	"diff":                 `{"a":"NAME@one","b":"NAME"}`,
	"halve":                `{"application":"NAME","good":"one","bad":"latest"}`,
	"import-pool":          `{"path":"/srv"}`,
	"add-webhook":          `{"name":"NAME","url":"https://example.com/hook"}`,
	"change-webhook":       `{"off":true}`,
	"apply-workflow":       `{"document":"kind: Workflow"}`,
}

// sample makes a request of an operation about something of a name.
func sample(o operation, name string) *http.Request {
	query := map[string]string{"expire-point": "?point=latest", "unpublish-point": "?bookmark=one"}[o.id]
	return request(o, query, samples[o.id], name, name)
}

// request makes a request of an operation about something of a name, and an application. What has a number has the one that is its name.
func request(o operation, query, text, name, application string) *http.Request {
	number := "1"
	if _, err := strconv.Atoi(name); err == nil {
		number = name
	}
	path := strings.NewReplacer("{id}", number, "{position}", "1").Replace(o.path)
	path = regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, name)
	named := strings.NewReplacer("NAME", name, "APP", application)
	var body io.Reader
	if text != "" {
		body = strings.NewReader(named.Replace(text))
	}
	r := httptest.NewRequest(o.method, path+named.Replace(query), body)
	r.RemoteAddr = "192.0.2.7:4711"
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

// outside is the API of a rig as the network has it.
func outside(x *rig) http.Handler {
	_, network := Handlers(x.c, slog.New(slog.DiscardHandler), nil)
	return network
}

// person adds a user with grants, and returns the secret of an API token of his.
func (x *rig) person(name string, grants ...access.Grant) string {
	x.t.Helper()
	ctx := context.Background()
	if _, err := x.AddUser(ctx, tidemark.UserSpec{Name: name}); err != nil {
		x.t.Fatal(err)
	}
	for _, g := range grants {
		g.Subject = access.Subject{Kind: access.User, Name: name}
		if _, err := x.AddGrant(ctx, g); err != nil {
			x.t.Fatal(err)
		}
	}
	i, err := x.MakeToken(ctx, access.TokenSpec{User: name, Name: "test", Lifetime: 3600})
	if err != nil {
		x.t.Fatal(err)
	}
	return i.Secret
}

// by is how a user asks; nobody is the socket.
func (x *rig) by(user string) control.Ask {
	x.t.Helper()
	if user == "" {
		return control.Ask{}
	}
	who, _, err := x.c.Access().Principal(context.Background(), user, access.ByPassword)
	if err != nil {
		x.t.Fatal(err)
	}
	return control.Ask{By: user, UserID: who.UserID}
}

func ask(h http.Handler, r *http.Request, secret string) *httptest.ResponseRecorder {
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond) // a stream has no end
	defer cancel()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(ctx))
	return w
}

// TestNobodyIsLetIn: who cannot say who he is gets nothing from the network but what everybody may have.
func TestNobodyIsLetIn(t *testing.T) {
	x := newRig(t)
	h := outside(x)
	disabled := x.person("gone", access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
	if err := x.ChangeUser(context.Background(), "gone", tidemark.UserChange{Disabled: true}); err != nil {
		t.Fatal(err)
	}
	secrets := []string{"", "x", access.NewSecret(access.TokenPrefix).Reveal(), access.NewSecret(access.SessionPrefix).Reveal(), disabled}
	for _, o := range table() {
		for i, secret := range secrets {
			w := ask(h, sample(o, "vol"), secret)
			open := o.rule.open && i == 0
			if (w.Code == http.StatusUnauthorized) == open {
				t.Errorf("%s with %q is answered with %d: %s", o.id, secret, w.Code, w.Body)
			}
			if !open && (w.Header().Get("WWW-Authenticate") != "Bearer" || !strings.Contains(w.Body.String(), `"kind":"denied"`)) {
				t.Errorf("%s: %v %s", o.id, w.Header(), w.Body)
			}
		}
	}
}

// TestNothingIsGranted: a user without a grant may ask who he is, and for lists that are empty then; everything else is denied.
func TestNothingIsGranted(t *testing.T) {
	x := newRig(t)
	if _, err := x.CreateVolume(context.Background(), tidemark.VolumeSpec{Name: "vol", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	h, secret := outside(x), x.person("alice")
	own := []string{"list-tokens", "make-token", "revoke-token", "set-password"}
	for _, o := range table() {
		w := ask(h, sample(o, "vol"), secret)
		switch {
		case o.rule.open, o.rule.self:
		case o.filtered:
			if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"items":[]`) && strings.TrimSpace(w.Body.String()) != "[]" {
				t.Errorf("%s shows %s", o.id, w.Body)
			}
		case w.Code != http.StatusForbidden && !slices.Contains(own, o.id):
			t.Errorf("%s is answered with %d: %s", o.id, w.Code, w.Body)
		}
	}
	if err := x.RemoveVolume(context.Background(), "vol"); err != nil {
		t.Errorf("something was done: %v", err)
	}
	list, err := x.c.Access().Audit(context.Background(), catalog.AuditQuery{User: "alice", Limit: 1000})
	if err != nil || len(list) < 40 || list[0].Outcome != access.Refused || list[0].Address != "192.0.2.7" {
		t.Errorf("%d records of it: %v, %+v", len(list), err, list[:min(1, len(list))])
	}
}

// TestPanicIsNoSuccess: what panicked is in the audit as failed.
func TestPanicIsNoSuccess(t *testing.T) {
	x := newRig(t)
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	s.table["boom"] = operation{id: "boom", method: http.MethodPost, path: "/boom", rule: may(access.PoolManage, access.KindPool)}
	s.handle(&huma.Operation{OperationID: "boom", Method: http.MethodPost, Path: "/boom"}, func(http.ResponseWriter, *http.Request) { panic("boom") })
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/boom", nil))
	list, err := x.c.Access().Audit(context.Background(), catalog.AuditQuery{Limit: 10})
	if err != nil || w.Code != http.StatusInternalServerError || len(list) != 1 || list[0].Action != access.PoolManage || list[0].Outcome != access.Failed {
		t.Errorf("%d, %v, %+v", w.Code, err, list)
	}
}

// TestLoginAtProvider: somebody logs in at a real OpenID provider, and has what was granted to him here.
func TestLoginAtProvider(t *testing.T) {
	x, idp := newRig(t), oidctest.Start(t)
	p, err := oidc.New(oidc.Config{Issuer: idp.Issuer, ClientID: "device", ClientSecret: oidctest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	_, h := Handlers(x.c, slog.New(slog.DiscardHandler), p)
	post := func(path, body, secret string, into any) int {
		t.Helper()
		r := httptest.NewRequest("POST", path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if secret != "" {
			r.Header.Set("Authorization", "Bearer "+secret)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil && w.Body.Len() > 0 {
			t.Fatalf("%v: %s", err, w.Body)
		}
		return w.Code
	}
	login := func(action string) (i tidemark.Issued, code int) {
		var d tidemark.DeviceLogin
		if code := post("/v1/login/device", "", "", &d); code != http.StatusOK || d.Code == "" {
			t.Fatalf("%d: %+v", code, d)
		}
		idp.TypeIn(t, d.Code, action)
		code = post("/v1/login/device/finish", `{"login":"`+d.Login+`"}`, "", &i)
		if again := post("/v1/login/device/finish", `{"login":"`+d.Login+`"}`, "", new(any)); again != http.StatusNotFound {
			t.Errorf("a login is answered twice: %d", again)
		}
		return i, code
	}
	if _, code := login("denied"); code != http.StatusForbidden {
		t.Errorf("who was denied is let in: %d", code)
	}
	i, code := login("allowed")
	if code != http.StatusOK || i.Secret == "" {
		t.Fatalf("%d: %+v", code, i)
	}
	if w := ask(h, httptest.NewRequest("GET", "/v1/self", nil), i.Secret); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"user":"test-user2"`) || !strings.Contains(w.Body.String(), `"method":"oidc"`) {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if w := ask(h, httptest.NewRequest("GET", "/v1/pool", nil), i.Secret); w.Code != http.StatusForbidden {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	g := access.Grant{Subject: access.Subject{Kind: access.User, Name: "test-user2"}, Role: access.Operator, Scope: access.Scope{Kind: access.Everything}}
	if _, err := x.AddGrant(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	if w := ask(h, httptest.NewRequest("GET", "/v1/pool", nil), i.Secret); w.Code != http.StatusOK {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if code := post("/v1/logout", "", i.Secret, new(any)); code != http.StatusNoContent {
		t.Error(code)
	}
	if w := ask(h, httptest.NewRequest("GET", "/v1/self", nil), i.Secret); w.Code != http.StatusUnauthorized {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if err := x.ChangeUser(context.Background(), "test-user2", tidemark.UserChange{Disabled: true}); err != nil {
		t.Fatal(err)
	}
	if _, code := login("allowed"); code != http.StatusForbidden {
		t.Errorf("who is shut out is let in: %d", code)
	}
}

// TestGuessing: who guesses at passwords waits.
func TestGuessing(t *testing.T) {
	x := newRig(t)
	if _, err := x.AddUser(context.Background(), tidemark.UserSpec{Name: "alice", Password: "correct horse battery"}); err != nil {
		t.Fatal(err)
	}
	h := outside(x)
	login := func(password string) string {
		r := httptest.NewRequest("POST", "/v1/login", strings.NewReader(`{"user":"alice","password":"`+password+`"}`))
		r.Header.Set("Content-Type", "application/json")
		r.RemoteAddr = "192.0.2.7:4711"
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code == http.StatusOK {
			return "in"
		}
		return w.Body.String()
	}
	if got := login("correct horse battery"); got != "in" {
		t.Fatal(got)
	}
	for range 5 {
		if got := login("wrong horse battery"); !strings.Contains(got, "the user or the password is wrong") {
			t.Errorf("%s", got)
		}
	}
	if got := login("correct horse battery"); !strings.Contains(got, "too many logins failed") || !strings.Contains(got, "try again in") {
		t.Errorf("after 5 that failed: %s", got)
	}
}
