// Package oidc logs people in at an OpenID provider, such as Keycloak, Entra or
// Google, and says who they are there.
//
// A [Provider] is one that an administrator configured. In a browser, a login
// is two steps: [Provider.Begin] gives the address to send the browser to, and
// what to keep meanwhile; the provider sends it back with a code, and
// [Provider.Finish] makes an [Identity] of it. Where there is no browser, as in
// a terminal on another machine, [Provider.BeginDevice] gives a code to type in
// elsewhere, and [Provider.FinishDevice] waits until that was done.
//
// What is used is the authorization code flow (OpenID Connect Core 1.0, section
// 3.1) with state, nonce and PKCE (RFC 7636, S256), and the device grant (RFC
// 8628). The provider's keys and addresses are discovered at the first login, so
// that a server starts while its provider is down.
//
// An Identity gives no rights. Who it is here, the catalog knows by issuer and
// subject, never by the name alone; and groups count that an administrator made.
package oidc

import (
	"context"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"tidemark"
	"tidemark/access"
)

// Config says how a provider is reached, and what of its claims is who.
type Config struct {
	Issuer   string // an https:// address; http:// only on this machine
	ClientID string
	// ClientSecret is empty for a public client.
	ClientSecret string
	// Redirect is the address of this server to which the browser is sent back.
	Redirect string
	// Scopes are asked for beside openid; profile and email if nil.
	Scopes []string
	// UserClaim is the claim that has the name of the user; preferred_username if
	// empty. An email counts only if the provider says that it is verified.
	UserClaim string
	// GroupsClaim is the claim that has his groups; groups if empty. Dots go into
	// objects: realm_access.roles.
	GroupsClaim string
	// Groups are the names that groups of the provider have here. If nil, all have
	// the names that they have there; if not, others are left out.
	Groups map[string]string
	// Client makes the requests; one with a limit of time if nil.
	Client *http.Client
}

// Identity is who somebody is at a provider.
type Identity struct {
	Issuer  string
	Subject string // never used twice by the issuer
	User    string // a name that [access.CheckUser] allows; the provider may give it to another one day
	Display string
	Groups  []string // names that [access.CheckGroup] allows, sorted
}

// Provider logs people in at one provider. It may be used concurrently.
type Provider struct {
	config Config

	mu   sync.Mutex
	live *live // guarded by mu; nil until discovered
}

// live is what discovery found.
type live struct {
	provider *goidc.Provider
	verifier *goidc.IDTokenVerifier
	oauth    oauth2.Config
}

// requestTime bounds each request to the provider.
const requestTime = 15 * time.Second

// New returns a provider. Its errors are of kind Invalid; the provider need not run.
func New(c Config) (*Provider, error) {
	issuer, err := url.Parse(c.Issuer)
	if err != nil || issuer.Host == "" || !safe(issuer) || issuer.RawQuery != "" || issuer.Fragment != "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "the issuer of a provider is an address that begins with https://")
	}
	if c.ClientID == "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "a provider needs a client id").WithHint("register Tidemark at the provider")
	}
	if c.Redirect != "" {
		back, err := url.Parse(c.Redirect)
		if err != nil || !safe(back) {
			return nil, tidemark.Errorf(tidemark.Invalid, "the address to which a browser is sent back begins with https://")
		}
	}
	if c.Scopes == nil {
		c.Scopes = []string{"profile", "email"}
	}
	if c.UserClaim == "" {
		c.UserClaim = "preferred_username"
	}
	if c.GroupsClaim == "" {
		c.GroupsClaim = "groups"
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: requestTime}
	}
	return &Provider{config: c}, nil
}

// safe reports that nobody on the way can read along.
func safe(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	return u.Scheme == "https" || u.Scheme == "http" && local
}

// discover asks the provider for its addresses, once it succeeds.
func (p *Provider) discover(ctx context.Context) (*live, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live != nil {
		return p.live, nil
	}
	found, err := goidc.NewProvider(goidc.ClientContext(ctx, p.config.Client), p.config.Issuer)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the OpenID provider %s cannot be used: %w", p.config.Issuer, err).
			WithHint("check that it runs, and that the issuer is written as it writes it")
	}
	endpoint := found.Endpoint()
	endpoint.AuthStyle = p.style(found)
	p.live = &live{
		provider: found,
		verifier: found.Verifier(&goidc.Config{ClientID: p.config.ClientID}),
		oauth: oauth2.Config{ClientID: p.config.ClientID, ClientSecret: p.config.ClientSecret, Endpoint: endpoint,
			RedirectURL: p.config.Redirect, Scopes: append([]string{goidc.ScopeOpenID}, p.config.Scopes...)},
	}
	return p.live, nil
}

// style says where the client's secret goes. To find it out by trying, as the
// library does by itself, takes "not yet" in the device grant for a refusal.
func (p *Provider) style(found *goidc.Provider) oauth2.AuthStyle {
	var says struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	// Who says nothing means client_secret_basic (OpenID Connect Discovery 1.0, section 3).
	basic := found.Claims(&says) != nil || says.Methods == nil || slices.Contains(says.Methods, "client_secret_basic")
	if p.config.ClientSecret != "" && basic {
		return oauth2.AuthStyleInHeader
	}
	return oauth2.AuthStyleInParams
}

// loginTime is how long somebody may take at the provider.
const loginTime = 10 * time.Minute

// Login is what has to be kept between [Provider.Begin] and [Provider.Finish],
// for this browser alone and out of the reach of scripts, and used once: on the
// server, or in a cookie that is encrypted, HttpOnly, Secure and SameSite=Lax.
// All of it is secret.
type Login struct {
	State    string
	Nonce    string
	Verifier string
	Expires  time.Time
}

// Begin returns the address to which to send the browser, and what to keep.
func (p *Provider) Begin(ctx context.Context, now time.Time) (string, Login, error) {
	l, err := p.discover(ctx)
	if err != nil {
		return "", Login{}, err
	}
	// Each is 32 random bytes.
	login := Login{State: oauth2.GenerateVerifier(), Nonce: oauth2.GenerateVerifier(), Verifier: oauth2.GenerateVerifier(), Expires: now.Add(loginTime)}
	return l.oauth.AuthCodeURL(login.State, goidc.Nonce(login.Nonce), oauth2.S256ChallengeOption(login.Verifier)), login, nil
}

// Finish takes the query with which the browser came back. Its errors are of
// kind Denied if the login is not good, and of kind Unavailable if the provider
// did not answer. They have no secrets in them.
func (p *Provider) Finish(ctx context.Context, login Login, query url.Values, now time.Time) (Identity, error) {
	switch {
	case login.State == "" || login.Nonce == "" || login.Verifier == "" || subtle.ConstantTimeCompare([]byte(login.State), []byte(query.Get("state"))) != 1:
		return Identity{}, refuse("this login was not begun in this browser")
	case !now.Before(login.Expires):
		return Identity{}, refuse("this login took too long")
	case query.Has("iss") && query.Get("iss") != p.config.Issuer: // RFC 9207: a code of another provider
		return Identity{}, refuse("the answer is from another provider")
	case query.Has("error"):
		return Identity{}, refuse("the provider refused it: " + printable(query.Get("error")))
	case query.Get("code") == "":
		return Identity{}, refuse("the answer of the provider has no code")
	}
	l, err := p.discover(ctx)
	if err != nil {
		return Identity{}, err
	}
	ctx = goidc.ClientContext(ctx, p.config.Client)
	token, err := l.oauth.Exchange(ctx, query.Get("code"), oauth2.VerifierOption(login.Verifier))
	if err != nil {
		return Identity{}, exchangeFailed(err)
	}
	return p.identify(ctx, l, token, login.Nonce)
}

func refuse(why string) error {
	return tidemark.Errorf(tidemark.Denied, "the login failed: %s", why).WithHint("begin anew")
}

// printable keeps what others wrote short, and to what RFC 6749 allows in an error code.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// exchangeFailed tells a refusal from a provider that is not there. The
// provider's answer may have secrets in it, so only its code is passed on.
func exchangeFailed(err error) error {
	var r *oauth2.RetrieveError
	if errors.As(err, &r) {
		if r.Response != nil && r.Response.StatusCode >= 500 {
			return tidemark.Errorf(tidemark.Unavailable, "the OpenID provider failed: %s", printable(r.Response.Status)).WithHint("try again later")
		}
		return refuse("the provider refused it: " + printable(r.ErrorCode))
	}
	var u *url.Error
	if errors.As(err, &u) {
		return tidemark.Errorf(tidemark.Unavailable, "the OpenID provider cannot be reached: %v", u.Err).WithHint("try again later")
	}
	return refuse("the provider's answer cannot be used")
}

// identify verifies what the provider says, and reads who it is. Without a
// nonce, as in the device grant, the token came over a connection to the provider
// for a code that only we know.
func (p *Provider) identify(ctx context.Context, l *live, token *oauth2.Token, nonce string) (Identity, error) {
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return Identity{}, refuse("the provider's answer does not say who it is")
	}
	id, err := l.verifier.Verify(ctx, raw)
	if err != nil {
		return Identity{}, tidemark.Errorf(tidemark.Denied, "the login failed: the provider's token is not good").WithHint("are the clocks of both right, and can its keys be fetched?")
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return Identity{}, refuse("the provider's token is for another login")
	}
	if id.AccessTokenHash != "" && id.VerifyAccessToken(token.AccessToken) != nil {
		return Identity{}, refuse("the provider's tokens do not belong together")
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return Identity{}, refuse("the provider's token cannot be read")
	}
	if azp, _ := claims["azp"].(string); len(id.Audience) > 1 && azp != p.config.ClientID {
		return Identity{}, refuse("the provider's token is for another program")
	}
	if err := p.addUserInfo(ctx, l, token, id.Subject, claims); err != nil {
		return Identity{}, err
	}
	return p.read(id.Issuer, id.Subject, claims)
}

// addUserInfo asks for claims that the token does not have; providers differ in where they put them.
func (p *Provider) addUserInfo(ctx context.Context, l *live, token *oauth2.Token, subject string, claims map[string]any) error {
	if claim(claims, p.config.UserClaim) != nil && claim(claims, p.config.GroupsClaim) != nil || l.provider.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := l.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
	if err != nil {
		return tidemark.Errorf(tidemark.Unavailable, "the OpenID provider does not say who it is").WithHint("try again later")
	}
	if info.Subject != subject { // OpenID Connect Core 1.0, 5.3.2
		return refuse("the provider says two things of who it is")
	}
	var more map[string]any
	if err := info.Claims(&more); err != nil {
		return refuse("what the provider says cannot be read")
	}
	for name, value := range more {
		if _, there := claims[name]; !there {
			claims[name] = value
		}
	}
	return nil
}

// claim returns a claim by its name or, if there is none of that name, by the path that its dots are.
func claim(claims map[string]any, name string) any {
	if v, ok := claims[name]; ok {
		return v
	}
	first, rest, dotted := strings.Cut(name, ".")
	inner, ok := claims[first].(map[string]any)
	if !dotted || !ok {
		return nil
	}
	return claim(inner, rest)
}

func (p *Provider) read(issuer, subject string, claims map[string]any) (Identity, error) {
	id := Identity{Issuer: issuer, Subject: subject}
	id.User, _ = claim(claims, p.config.UserClaim).(string)
	if p.config.UserClaim == "email" && !verified(claims["email_verified"]) {
		return Identity{}, refuse("the provider has not verified the address of mail")
	}
	if access.CheckUser(id.User) != nil || subject == "" {
		return Identity{}, tidemark.Errorf(tidemark.Denied, "the login failed: the claim %s has no name for a user", p.config.UserClaim).
			WithHint("an administrator may choose another claim")
	}
	display, _ := claims["name"].(string)
	id.Display = strings.ToValidUTF8(display[:min(len(display), 200)], "")
	id.Groups = p.groups(claim(claims, p.config.GroupsClaim))
	return id, nil
}

// verified reads a boolean that some providers write as text.
func verified(v any) bool { return v == true || v == "true" }

func (p *Provider) groups(v any) (list []string) {
	values, _ := v.([]any)
	if s, one := v.(string); one {
		values = []any{s}
	}
	for _, v := range values {
		name, ok := v.(string)
		if p.config.Groups != nil {
			name, ok = p.config.Groups[name]
		}
		if ok && access.CheckGroup(name) == nil {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
