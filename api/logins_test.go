package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/client"
)

// The passwords of these tests: that of before, and that of after a change.
const (
	leaked = "correct horse battery"
	fresh  = "another horse battery"
)

// asks sends a request over the network, and reads a secret from the answer, if there is one.
func asks(h http.Handler, method, path, body, secret string) (code int, issued string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "192.0.2.9:4711"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if secret != "" {
		r.Header.Set("Authorization", "Bearer "+secret)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var i tidemark.Issued
	_ = json.Unmarshal(w.Body.Bytes(), &i)
	return w.Code, i.Secret
}

func asksLogin(h http.Handler, password string) (code int, secret string) {
	return asks(h, "POST", "/v1/login", `{"user":"alice","password":"`+password+`"}`, "")
}

// withAlice is a rig with a user alice.
func withAlice(t *testing.T) (*rig, http.Handler) {
	t.Helper()
	x := newRig(t)
	if _, err := x.AddUser(t.Context(), tidemark.UserSpec{Name: "alice", Password: leaked}); err != nil {
		t.Fatal(err)
	}
	return x, outside(x)
}

// TestLoginUnderWay: who logs in all the time with a password that leaked is out when it is changed.
func TestLoginUnderWay(t *testing.T) {
	x, h := withAlice(t)
	var mu sync.Mutex
	var secrets []string
	var stop atomic.Bool
	var all sync.WaitGroup
	begun := make(chan struct{}, 2)
	for range 2 {
		all.Go(func() {
			for first := true; !stop.Load(); first = false {
				if code, secret := asksLogin(h, leaked); code == http.StatusOK {
					mu.Lock()
					secrets = append(secrets, secret)
					mu.Unlock()
				}
				if first {
					begun <- struct{}{}
				}
			}
		})
	}
	<-begun
	<-begun
	if err := x.SetPassword(t.Context(), "alice", tidemark.PasswordChange{New: fresh}); err != nil {
		t.Error(err)
	}
	stop.Store(true)
	all.Wait()
	if len(secrets) == 0 {
		t.Error("nobody was let in before")
	}
	for _, secret := range secrets {
		if code, _ := asks(h, "GET", "/v1/self", "", secret); code != http.StatusUnauthorized {
			t.Errorf("one of %d sessions is answered with %d", len(secrets), code)
		}
	}
}

// TestOldPasswordChangesNothing: who knows the old password, and changes it while its owner does, does not take that back.
func TestOldPasswordChangesNothing(t *testing.T) {
	x, h := withAlice(t)
	all, ctx := x.c.Access(), t.Context()
	before, err := all.Password(ctx, "alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, wait := range []time.Duration{0, 10 * time.Millisecond, 50 * time.Millisecond} {
		if err := all.SetPassword(ctx, "alice", before); err != nil {
			t.Fatal(err)
		}
		code, secret := asksLogin(h, leaked)
		if code != http.StatusOK {
			t.Fatal(code)
		}
		done := make(chan int)
		go func() {
			code, _ := asks(h, "PUT", "/v1/users/alice/password", `{"old":"`+leaked+`","new":"his own horse battery"}`, secret)
			done <- code
		}()
		time.Sleep(wait)
		if err := all.SetPassword(ctx, "alice", "the owner's"); err != nil {
			t.Error(err)
		}
		code = <-done
		if now, err := all.Password(ctx, "alice"); err != nil || now != "the owner's" {
			t.Errorf("after %v it is somebody else's, who was answered with %d: %v", wait, code, err)
		}
	}
}

// TestTokenOfASession: an API token is made only in a session that is there still when the token is stored.
func TestTokenOfASession(t *testing.T) {
	x, h := withAlice(t)
	code, text := asksLogin(h, leaked)
	secret, err := access.ParseSecret(access.SessionPrefix, text)
	if code != http.StatusOK || err != nil {
		t.Fatal(code, err)
	}
	who := &caller{principal: access.Principal{User: "alice", Method: access.ByPassword}, secret: secret} // as it was found out to be
	ctx := context.WithValue(t.Context(), callerKey{}, who)
	spec := func(name string) *ofBody[access.TokenSpec] {
		return &ofBody[access.TokenSpec]{Body: access.TokenSpec{Name: name, Lifetime: 60}}
	}
	if _, err := makeToken(ctx, x.c, spec("before")); err != nil {
		t.Error(err)
	}
	if err := x.SetPassword(t.Context(), "alice", tidemark.PasswordChange{New: fresh}); err != nil {
		t.Fatal(err)
	}
	if _, err := makeToken(ctx, x.c, spec("after")); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("it is made: %v", err)
	}
	if list, err := client.Collect(x.Tokens(t.Context(), "alice")); err != nil || len(list) != 1 || list[0].Name != "before" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestSessionsAreRecorded: that a session began and ended is in the audit, and which of both it was.
func TestSessionsAreRecorded(t *testing.T) {
	x, h := withAlice(t)
	code, secret := asksLogin(h, leaked)
	out, _ := asks(h, "POST", "/v1/logout", "", secret)
	again, _ := asks(h, "POST", "/v1/logout", "", secret)
	if code != http.StatusOK || out != http.StatusNoContent || again != http.StatusUnauthorized {
		t.Errorf("%d, %d, %d", code, out, again)
	}
	list, err := x.c.Access().Audit(t.Context(), catalog.AuditQuery{Object: "alice", Limit: 2})
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for i, want := range []access.AuditRecord{
		{User: "alice", Method: access.ByPassword, Detail: "a session ended"},
		{Detail: "a session began"}, // nobody knew yet who it was
	} {
		r := list[i]
		if r.Action != access.TokenManage || r.Outcome != access.Done || r.Address != "192.0.2.9" || r.User != want.User || r.Method != want.Method || r.Detail != want.Detail {
			t.Errorf("%+v", r)
		}
	}
}

// TestShutOutDuringLogin: who was shut out while the provider vouched for him has no session.
func TestShutOutDuringLogin(t *testing.T) {
	x, _ := withAlice(t)
	s := newServer(x.c, slog.New(slog.DiscardHandler))
	if _, err := s.beginSession(t.Context(), "alice", access.ByOIDC, ""); err != nil {
		t.Error(err)
	}
	if err := x.ChangeUser(t.Context(), "alice", tidemark.UserChange{Disabled: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.beginSession(t.Context(), "alice", access.ByOIDC, ""); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("he has one: %v", err)
	}
}
