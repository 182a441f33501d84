// Package oidctest runs a real OpenID provider in the process of a test: that of zitadel/oidc, with its login pages.
package oidctest

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
)

// Secret is that of the clients web and device. The client native has none.
const Secret = "a secret of the client"

// CustomScope is a scope with which the claim custom_claim comes.
const CustomScope = storage.CustomScope

// Provider is a provider that runs until the end of the test.
type Provider struct {
	Issuer string
	HTTP   *httptest.Server
}

// Start starts a provider. Its users are those of the example: test-user, who is test-user@localhost there, and test-user2, both
// with the password verysecure.
func Start(t *testing.T) *Provider {
	t.Helper()
	log := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil))) // it logs each request there
	t.Cleanup(func() { slog.SetDefault(log) })
	s := httptest.NewUnstartedServer(nil)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{Issuer: "http://localhost:" + port, HTTP: s}
	storage.RegisterClients(storage.WebClient("web", Secret, "https://tidemark.example/callback"), storage.NativeClient("native", "http://localhost/callback"), storage.DeviceClient("device", Secret))
	s.Config.Handler = exampleop.SetupServer(p.Issuer, storage.NewStorage(users(p.Issuer)), nil, false)
	s.Start()
	t.Cleanup(s.Close)
	return p
}

// people are users whose subject is their name: the example's page for devices takes the one for the other.
type people struct{ storage.UserStore }

func users(issuer string) people { return people{storage.NewUserStore(issuer)} }

// GetUserByID implements [storage.UserStore].
func (p people) GetUserByID(id string) *storage.User { return p.GetUserByUsername(id) }

// GetUserByUsername implements [storage.UserStore].
func (p people) GetUserByUsername(name string) *storage.User {
	u := p.UserStore.GetUserByUsername(name)
	if u == nil {
		return nil
	}
	same := *u
	same.ID = u.Username
	return &same
}

// TypeIn is test-user2, who types the code of a device in at the provider's page, and does what action says: allowed or denied.
func (p *Provider) TypeIn(t *testing.T, code, action string) {
	jar, _ := cookiejar.New(nil)
	b := &http.Client{Jar: jar}
	for _, step := range []struct {
		path string
		form url.Values
	}{
		{"/device/login", url.Values{"user_code": {code}, "username": {"test-user2"}, "password": {"verysecure"}}},
		{"/device/confirm", url.Values{"action": {action}}},
	} {
		r, err := b.PostForm(p.Issuer+step.path, step.form)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("%s: %v %v", step.path, r, err)
			return
		}
		r.Body.Close()
	}
}
