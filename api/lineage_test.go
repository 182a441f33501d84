package api

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/control"
)

// developer is a grant over applications without limits but whose they are.
func developer(names ...access.Pattern) access.Grant {
	return access.Grant{Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: names},
		Limits: access.Limits{Clones: access.Unlimited, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}}
}

// as asks for something as a user, and waits for the answer, however long it takes.
func as(h http.Handler, secret, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret)
	r.RemoteAddr = "192.0.2.7:4711"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func post(h http.Handler, path, body, secret string) *httptest.ResponseRecorder {
	return as(h, secret, http.MethodPost, path, body)
}

// begun waits for a job that an answer speaks of, which must succeed.
func (x *rig) begun(w *httptest.ResponseRecorder) {
	x.t.Helper()
	if w.Code != http.StatusAccepted {
		x.t.Fatalf("%d: %s", w.Code, w.Body)
	}
	if err := x.Wait(x.t.Context(), decode[tidemark.Job](x.t, w.Body.Bytes()).ID, nil, nil); err != nil {
		x.t.Fatal(err)
	}
}

// clone makes a clone for a user; nobody is the socket.
func (x *rig) clone(user string, spec tidemark.CloneSpec) {
	x.t.Helper()
	ctx := control.WithAsk(x.t.Context(), x.by(user))
	j, err := x.c.Clone(ctx, spec)
	if err == nil {
		err = x.Wait(ctx, j.ID, nil, nil)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

// applications makes volumes with a point one.
func (x *rig) applications(names ...string) {
	x.t.Helper()
	for _, name := range names {
		x.volume(name)
		if _, err := x.Bookmark(x.t.Context(), tidemark.BookmarkSpec{Application: name, Name: "one"}); err != nil {
			x.t.Fatal(err)
		}
	}
}

// TestRefreshTakesNothingElse: who gives a clone the name that a copy of another application will have gets nothing of that by a refresh.
func TestRefreshTakesNothingElse(t *testing.T) {
	x := newRig(t)
	x.applications("testapp", "payroll")
	h, alice := outside(x), x.person("alice", developer("testapp"))
	x.begun(post(h, "/v1/clones", `{"ref":"testapp@one","name":"payroll-mount"}`, alice))
	x.begun(post(h, "/v1/clones", `{"ref":"payroll-mount","name":"mine"}`, alice))
	x.begun(post(h, "/v1/clones/mine/refreshes", "", alice))
	if err := x.RemoveClone(t.Context(), "payroll-mount"); err != nil {
		t.Fatal(err)
	}
	x.clone("", tidemark.CloneSpec{Ref: "payroll@one", Name: "payroll-mount"})
	if w := post(h, "/v1/clones", `{"ref":"payroll-mount","name":"other"}`, alice); w.Code != http.StatusForbidden {
		t.Errorf("a clone of it: %d: %s", w.Code, w.Body)
	}
	for _, body := range []string{"", `{"point":"latest"}`} {
		if w := post(h, "/v1/clones/mine/refreshes", body, alice); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "payroll-mount is not what mine is of") {
			t.Errorf("a refresh from it: %d: %s", w.Code, w.Body)
		}
	}
	if w := post(h, "/v1/clones/mine/refreshes", "", x.person("bob")); w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "payroll") {
		t.Errorf("somebody else is told: %d: %s", w.Code, w.Body)
	}
}

// TestRefreshNeedsItsSource: what is decided about a refresh is also that what the clone is of may be cloned, as that is now.
func TestRefreshNeedsItsSource(t *testing.T) {
	x := newRig(t)
	x.applications("testapp")
	h, alice := outside(x), x.person("alice", developer("testapp"))
	x.person("bob")
	x.clone("bob", tidemark.CloneSpec{Ref: "testapp@one", Name: "his"})
	x.clone("alice", tidemark.CloneSpec{Ref: "his", Name: "mine"})
	if w := post(h, "/v1/clones/mine/refreshes", "", alice); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "application.clone on his") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	if _, err := x.c.Share(t.Context(), "his", []access.Subject{{Kind: access.User, Name: "alice"}}); err != nil {
		t.Fatal(err)
	}
	x.begun(post(h, "/v1/clones/mine/refreshes", "", alice))

	owner := x.person("carol", access.Grant{Role: access.Owner, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"testapp"}}})
	x.clone("carol", tidemark.CloneSpec{Ref: "his", Name: "live", Preparation: &tidemark.Preparation{}})
	for want, body := range []string{`{"bookmark":"a"}`, `{"bookmark":"b","refresh":true}`} {
		x.begun(post(h, "/v1/liveclones/live/preparations", body, owner))
		list, err := x.c.Access().Audit(t.Context(), catalog.AuditQuery{User: "carol", Object: "his", Limit: 10})
		if err != nil || len(list) != want || want > 0 && list[0].Action != access.ApplicationClone {
			t.Errorf("%s: decided about his: %+v, %v", body, list, err)
		}
	}
}
