package oidc

import (
	"context"
	"errors"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"tidemark"
)

// Device is a login that is finished on another device.
type Device struct {
	Code    string // to type in there
	Address string // where
	// Complete is an address with the code in it, for a link or a picture; the provider may give none.
	Complete string
	Expires  time.Time

	answer *oauth2.DeviceAuthResponse
}

// BeginDevice begins a login without a browser. The error is of kind
// Unavailable if the provider has no such logins, or cannot be reached.
func (p *Provider) BeginDevice(ctx context.Context) (*Device, error) {
	l, err := p.discover(ctx)
	if err != nil {
		return nil, err
	}
	if l.oauth.Endpoint.DeviceAuthURL == "" {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the OpenID provider has no logins by device").WithHint("log in with a browser, or use an API token")
	}
	a, err := l.oauth.DeviceAuth(goidc.ClientContext(ctx, p.config.Client))
	if err != nil {
		return nil, exchangeFailed(err)
	}
	return &Device{Code: a.UserCode, Address: a.VerificationURI, Complete: a.VerificationURIComplete, Expires: a.Expiry, answer: a}, nil
}

// FinishDevice waits until the user has typed the code in, or ctx ends, or the code does.
func (p *Provider) FinishDevice(ctx context.Context, d *Device) (Identity, error) {
	l, err := p.discover(ctx)
	if err != nil {
		return Identity{}, err
	}
	ctx = goidc.ClientContext(ctx, p.config.Client)
	token, err := l.oauth.DeviceAccessToken(ctx, d.answer)
	switch {
	case ctx.Err() != nil:
		return Identity{}, tidemark.Errorf(tidemark.Cancelled, "the login was given up")
	case errors.Is(err, context.DeadlineExceeded):
		return Identity{}, refuse("nobody typed the code in")
	case err != nil:
		return Identity{}, exchangeFailed(err)
	}
	return p.identify(ctx, l, token, "")
}
