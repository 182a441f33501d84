package api

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/access/oidc"
)

// How many logins may be on their way to the provider: of all, and of one address.
const (
	mostDevices       = 100
	devicesPerAddress = 20
)

// devices are logins that users finish at the OpenID provider.
type devices struct {
	shares *access.Shares

	mu  sync.Mutex
	all map[string]*device // by what the client waits for; guarded by mu
}

// device is such a login.
type device struct {
	ended chan struct{}
	give  func() // gives its share back
	// What came of it, when it has ended.
	who oidc.Identity
	err error
}

func (s *server) beginDevice(ctx context.Context, _ *none) (*answer[tidemark.DeviceLogin], error) {
	if s.provider == nil {
		return nil, tidemark.Errorf(tidemark.NotFound, "this server has no OpenID provider").WithHint("log in with a password, or start the server with --oidc-issuer")
	}
	give, ok := s.devices.shares.Take(callerOf(ctx).address)
	if !ok {
		return nil, tidemark.Errorf(tidemark.Unavailable, "too many people log in at once").WithHint("try again in a moment")
	}
	begun, err := s.provider.BeginDevice(ctx)
	if err != nil {
		give()
		return nil, err
	}
	name, d := rand.Text(), &device{ended: make(chan struct{}), give: give}
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	s.devices.all[name] = d
	go s.awaitDevice(name, d, begun)
	return &answer[tidemark.DeviceLogin]{Body: tidemark.DeviceLogin{Login: name, Code: begun.Code, Address: begun.Address, Complete: begun.Complete, Expires: begun.Expires}}, nil
}

// keptDevice is for how long somebody may ask what came of a login.
const keptDevice = time.Minute

// awaitDevice waits for the end of a login, and forgets it some time later.
func (s *server) awaitDevice(name string, d *device, begun *oidc.Device) {
	ctx, cancel := context.WithDeadline(context.Background(), begun.Expires)
	defer cancel()
	d.who, d.err = s.provider.FinishDevice(ctx, begun)
	close(d.ended)
	time.AfterFunc(keptDevice, func() { s.dropDevice(name) })
}

// dropDevice forgets a login, and reports whether it was known.
func (s *server) dropDevice(name string) bool {
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	d, known := s.devices.all[name]
	if known {
		delete(s.devices.all, name)
		d.give()
	}
	return known
}

func (s *server) finishDevice(ctx context.Context, in *ofBody[tidemark.DeviceWait]) (*answer[tidemark.Issued], error) {
	s.devices.mu.Lock()
	d := s.devices.all[in.Body.Login]
	s.devices.mu.Unlock()
	if d == nil {
		return nil, tidemark.Errorf(tidemark.NotFound, "there is no such login").WithHint("begin another")
	}
	select {
	case <-d.ended:
	case <-time.After(maxWait):
		return &answer[tidemark.Issued]{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if !s.dropDevice(in.Body.Login) { // a login makes one session
		return nil, tidemark.Errorf(tidemark.NotFound, "there is no such login").WithHint("begin another")
	}
	who := callerOf(ctx)
	who.asked = append(who.asked, asked{access.TokenManage, access.Object{Kind: access.KindToken, Name: d.who.User}})
	if d.err != nil {
		return nil, d.err
	}
	user, err := s.provided(ctx, d.who)
	if err != nil {
		return nil, err
	}
	i, err := s.beginSession(ctx, user, access.ByOIDC, "")
	return &answer[tidemark.Issued]{Body: i}, err
}

// provided is the user that a provider vouches for. One who comes for the first time is added; he has what was granted to his groups.
func (s *server) provided(ctx context.Context, id oidc.Identity) (string, error) {
	all := s.c.Access()
	u, err := all.UserOfProvider(ctx, id.Issuer, id.Subject)
	if tidemark.KindOf(err) == tidemark.NotFound {
		u = tidemark.User{Name: id.User, Display: id.Display, Issuer: id.Issuer, Subject: id.Subject, Created: time.Now()}
		err = all.AddUser(ctx, u)
	}
	if err != nil {
		return "", err
	}
	if u.Disabled {
		return "", tidemark.Errorf(tidemark.Denied, "the user %s is shut out", u.Name)
	}
	return u.Name, all.SetProvidedGroups(ctx, u.Name, id.Groups)
}
