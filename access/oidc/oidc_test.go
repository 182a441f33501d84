package oidc

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access/oidc/oidctest"
)

const secret = oidctest.Secret

func configOf(p *oidctest.Provider) Config {
	return Config{Issuer: p.Issuer, ClientID: "web", ClientSecret: secret, Redirect: "https://tidemark.example/callback"}
}

func newProvider(t *testing.T, c Config) *Provider {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// browser logs in at the provider's pages, and returns the query with which it would be sent back.
func browser(t *testing.T, address, user, password string) url.Values {
	t.Helper()
	jar, _ := cookiejar.New(nil)
	var back *url.URL
	c := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if !strings.HasPrefix(r.URL.Host, "localhost:") {
			back = r.URL
			return http.ErrUseLastResponse
		}
		return nil
	}}
	r, err := c.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if back != nil {
		return back.Query()
	}
	form := url.Values{"username": {user}, "password": {password}, "id": {r.Request.URL.Query().Get("authRequestID")}}
	if r, err = c.PostForm(r.Request.URL.String(), form); err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if back == nil {
		body, _ := io.ReadAll(r.Body)
		t.Fatalf("not sent back: %s %s", r.Status, body)
	}
	return back.Query()
}

func TestCodeFlow(t *testing.T) {
	idp := oidctest.Start(t)
	ctx, now := context.Background(), time.Now()
	for name, c := range map[string]Config{"web": configOf(idp), "public": {Issuer: idp.Issuer, ClientID: "native", Redirect: "http://localhost/callback"}} {
		t.Run(name, func(t *testing.T) {
			p := newProvider(t, c)
			address, login, err := p.Begin(ctx, now)
			if err != nil {
				t.Fatal(err)
			}
			for _, kept := range []string{login.Verifier, secret} {
				if strings.Contains(address, url.QueryEscape(kept)) {
					t.Errorf("the address has a secret in it")
				}
			}
			if !strings.Contains(address, "code_challenge_method=S256") {
				t.Errorf("no PKCE: %s", address)
			}
			id, err := p.Finish(ctx, login, browser(t, address, "test-user@localhost", "verysecure"), now)
			want := Identity{Issuer: idp.Issuer, Subject: "test-user@localhost", User: "test-user@localhost", Display: "Test User"}
			if err != nil || !reflect.DeepEqual(id, want) {
				t.Errorf("%+v, %v, want %+v", id, err, want)
			}
		})
	}
}

func TestClaims(t *testing.T) {
	idp := oidctest.Start(t)
	ctx, now := context.Background(), time.Now()
	for name, test := range map[string]struct {
		change func(*Config)
		user   string
		groups []string
	}{
		"email": {func(c *Config) { c.UserClaim = "email" }, "test-user@zitadel.ch", nil},
		"group by path": {func(c *Config) {
			c.Scopes = []string{"profile", oidctest.CustomScope}
			c.GroupsClaim = "custom_claim.other"
		}, "test-user@localhost", []string{"stuff"}},
		"group renamed": {func(c *Config) {
			c.Scopes, c.GroupsClaim = []string{"profile", oidctest.CustomScope}, "custom_claim.other"
			c.Groups = map[string]string{"stuff": "operators"}
		}, "test-user@localhost", []string{"operators"}},
		"group left out": {func(c *Config) {
			c.Scopes, c.GroupsClaim = []string{"profile", oidctest.CustomScope}, "custom_claim.other"
			c.Groups = map[string]string{"other": "operators"}
		}, "test-user@localhost", nil},
	} {
		t.Run(name, func(t *testing.T) {
			c := configOf(idp)
			test.change(&c)
			p := newProvider(t, c)
			address, login, err := p.Begin(ctx, now)
			if err != nil {
				t.Fatal(err)
			}
			id, err := p.Finish(ctx, login, browser(t, address, "test-user@localhost", "verysecure"), now)
			if err != nil || id.User != test.user || !reflect.DeepEqual(id.Groups, test.groups) {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
}

func TestCodeFlowRefuses(t *testing.T) {
	idp := oidctest.Start(t)
	ctx, now := context.Background(), time.Now()
	p := newProvider(t, configOf(idp))
	for name, spoil := range map[string]func(l *Login, q url.Values) time.Time{
		"another state":    func(l *Login, q url.Values) time.Time { q.Set("state", "x"); return now },
		"no state":         func(l *Login, q url.Values) time.Time { q.Del("state"); return now },
		"no login":         func(l *Login, q url.Values) time.Time { *l = Login{}; q.Set("state", ""); return now },
		"another nonce":    func(l *Login, q url.Values) time.Time { l.Nonce = "x"; return now },
		"another verifier": func(l *Login, q url.Values) time.Time { l.Verifier = strings.Repeat("x", 43); return now },
		"another code":     func(l *Login, q url.Values) time.Time { q.Set("code", "x"); return now },
		"no code":          func(l *Login, q url.Values) time.Time { q.Del("code"); return now },
		"another issuer":   func(l *Login, q url.Values) time.Time { q.Set("iss", "https://other.example"); return now },
		"an error":         func(l *Login, q url.Values) time.Time { q.Set("error", "access_denied\nx"); return now },
		"too late":         func(l *Login, q url.Values) time.Time { return now.Add(loginTime) },
	} {
		t.Run(name, func(t *testing.T) {
			address, login, err := p.Begin(ctx, now)
			if err != nil {
				t.Fatal(err)
			}
			q := browser(t, address, "test-user@localhost", "verysecure")
			at := spoil(&login, q)
			id, err := p.Finish(ctx, login, q, at)
			if tidemark.KindOf(err) != tidemark.Denied || err == nil || id.User != "" || strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("%+v, %v", id, err)
			}
			noSecrets(t, err, login, q)
		})
	}
	t.Run("a code twice", func(t *testing.T) {
		address, login, _ := p.Begin(ctx, now)
		q := browser(t, address, "test-user@localhost", "verysecure")
		if _, err := p.Finish(ctx, login, q, now); err != nil {
			t.Fatal(err)
		}
		if id, err := p.Finish(ctx, login, q, now); tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%+v, %v", id, err)
		}
	})
	t.Run("the login of another", func(t *testing.T) {
		_, mine, _ := p.Begin(ctx, now)
		address, _, _ := p.Begin(ctx, now)
		if id, err := p.Finish(ctx, mine, browser(t, address, "test-user2", "verysecure"), now); tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%+v, %v", id, err)
		}
	})
	t.Run("another secret", func(t *testing.T) {
		c := configOf(idp)
		c.ClientSecret = "wrong"
		p := newProvider(t, c)
		address, login, _ := p.Begin(ctx, now)
		if id, err := p.Finish(ctx, login, browser(t, address, "test-user2", "verysecure"), now); tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%+v, %v", id, err)
		}
	})
}

func noSecrets(t *testing.T, err error, login Login, q url.Values) {
	t.Helper()
	for _, s := range []string{secret, login.Nonce, login.Verifier, login.State, q.Get("code")} {
		if len(s) > 1 && strings.Contains(fmt.Sprint(err), s) {
			t.Errorf("the error has a secret in it: %v", err)
		}
	}
}

func TestProviderIsAway(t *testing.T) {
	idp := oidctest.Start(t)
	ctx, now := context.Background(), time.Now()
	p := newProvider(t, configOf(idp))
	handler := idp.HTTP.Config.Handler
	idp.HTTP.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	if _, _, err := p.Begin(ctx, now); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Fatalf("away: %v", err)
	}
	idp.HTTP.Config.Handler = handler
	address, login, err := p.Begin(ctx, now)
	if err != nil {
		t.Fatalf("back: %v", err)
	}
	q := browser(t, address, "test-user@localhost", "verysecure")
	idp.HTTP.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	if _, err := p.Finish(ctx, login, q, now); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("away at the end: %v", err)
	}
	idp.HTTP.Close()
	if _, err := p.Finish(ctx, login, q, now); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("gone at the end: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no issuer": {ClientID: "x"}, "http": {Issuer: "http://id.example", ClientID: "x"}, "no client": {Issuer: "https://id.example"},
		"query": {Issuer: "https://id.example/?x=y", ClientID: "x"}, "http back": {Issuer: "https://id.example", ClientID: "x", Redirect: "http://tidemark.example/cb"},
		"looks local": {Issuer: "http://localhost.example", ClientID: "x"},
	} {
		if _, err := New(c); tidemark.KindOf(err) != tidemark.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeviceFlow(t *testing.T) {
	idp := oidctest.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := Config{Issuer: idp.Issuer, ClientID: "device", ClientSecret: secret}
	p := newProvider(t, c)
	d, err := p.BeginDevice(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d.Code == "" || !strings.HasPrefix(d.Address, idp.Issuer) || time.Until(d.Expires) < time.Minute {
		t.Fatalf("%+v", d)
	}
	// The first question of ours comes before anybody has typed it in: the flow has to go on.
	go func() {
		time.Sleep(6 * time.Second)
		idp.TypeIn(t, d.Code, "allowed")
	}()
	id, err := p.FinishDevice(ctx, d)
	if err != nil || id.User != "test-user2" || id.Issuer != idp.Issuer || id.Subject != "test-user2" {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestDeviceFlowDenied(t *testing.T) {
	idp := oidctest.Start(t)
	p := newProvider(t, Config{Issuer: idp.Issuer, ClientID: "device", ClientSecret: secret})
	d, err := p.BeginDevice(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	idp.TypeIn(t, d.Code, "denied")
	if id, err := p.FinishDevice(context.Background(), d); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("%+v, %v", id, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if id, err := p.FinishDevice(ctx, d); tidemark.KindOf(err) != tidemark.Cancelled {
		t.Errorf("%+v, %v", id, err)
	}
}

func TestIdentity(t *testing.T) {
	p := newProvider(t, Config{Issuer: "https://id.example", ClientID: "x", UserClaim: "email", GroupsClaim: "realm_access.roles"})
	good := map[string]any{"email": "a@b.example", "email_verified": "true", "name": "A \xff B", "realm_access": map[string]any{"roles": []any{"ops", "dev", "ops", 7, "bad\nname", ""}}}
	id, err := p.read("https://id.example", "7", good)
	if want := (Identity{Issuer: "https://id.example", Subject: "7", User: "a@b.example", Display: "A  B", Groups: []string{"dev", "ops"}}); err != nil || !reflect.DeepEqual(id, want) {
		t.Errorf("%+v, %v, want %+v", id, err, want)
	}
	for name, change := range map[string]func(map[string]any){
		"not verified":  func(c map[string]any) { c["email_verified"] = false },
		"unknown":       func(c map[string]any) { delete(c, "email_verified") },
		"no name":       func(c map[string]any) { delete(c, "email") },
		"name is a map": func(c map[string]any) { c["email"] = map[string]any{} },
		"bad name":      func(c map[string]any) { c["email"] = "a\x00b" },
	} {
		bad := maps.Clone(good)
		change(bad)
		if id, err := p.read("https://id.example", "7", bad); tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%s: %+v, %v", name, id, err)
		}
	}
	if _, err := p.read("https://id.example", "", good); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("no subject: %v", err)
	}
}
