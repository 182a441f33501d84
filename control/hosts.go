package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/agent/remote"
	"tidemark/catalog"
	"tidemark/export/nbd"
)

// A host is a machine with an agent that dials us. What we know of it is who it is, by its certificates; what is tapped there is noted in the timelines.

// tokenLife is for how long a token can be used.
const tokenLife = 24 * time.Hour

// keptHost is what the catalog has of a host.
type keptHost struct {
	Name    string     `json:"name"`
	Token   string     `json:"token,omitempty"` // hash of the one that can be used
	Expires time.Time  `json:"expires,omitzero"`
	Joined  *time.Time `json:"joined,omitempty"`
	// Redeemed is the hash of the token that it has joined with, until a certificate was made for it.
	Redeemed string `json:"redeemed,omitempty"`
	// Serials are those of its certificates that are good: the one in use, and the next one, if that was not seen yet.
	Serials []string `json:"serials,omitempty"`
	// Limit is how much is sent to it, and taken from it, in bits per second; 0: as much as there is.
	Limit  int64             `json:"limit,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Slots are what clusters there keep log for, though nobody receives it any more.
	Slots []leftSlot `json:"slots,omitempty"`
}

// hosts are the hosts that may come in. It is the [remote.Owner] of their connections.
type hosts struct {
	c         *Control
	authority *remote.Authority
	listener  net.Listener       // nil: nobody comes in
	web       net.Listener       // of those who speak HTTP; nil: nowhere
	end       context.CancelFunc // of who is just coming in
	served    chan struct{}
	strangers strangers

	mu   sync.Mutex           // held to change what the catalog has of hosts, too
	live map[string]*hostLink // nil: the server stops
}

// hostLink is what is open to a host.
type hostLink struct {
	agent  *agent.Agent
	disks  *hostDisks // that are shown there
	limit  hostLimit
	ctx    context.Context
	end    context.CancelFunc
	calls  chan struct{}      // held by each connection on which it is called
	conns  map[*hostConn]bool // guarded by hosts.mu
	from   netip.Addr         // of the last connection on which it was called; guarded by hosts.mu
	second second
}

// maxCalls bounds the connections on which a host is called: one is in use, and those before may have something to end yet.
const maxCalls = 4

// serveHosts lets the agents of other hosts in, if we are to listen for them.
func (c *Control) serveHosts(ctx context.Context) (err error) {
	h := &c.hosts
	h.c, h.live = c, map[string]*hostLink{}
	h.strangers.pace = rate.NewLimiter(rate.Every(time.Minute), 100)
	known, err := catalog.List[keptHost](ctx, c.catalog, catalog.Hosts)
	if err != nil {
		return err
	}
	for _, k := range known {
		h.live[k.Name] = c.newHostLink(k.Name, k.Limit)
	}
	if c.o.Listen == "" {
		return nil
	}
	if h.authority, err = remote.OpenAuthority(c.path("authority")); err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.o.Listen)
	if err != nil {
		return tidemark.Errorf(tidemark.Invalid, "nobody can be let in: %w", err).WithHint("give --listen the HOST:PORT of a free port, such as 0.0.0.0:7440")
	}
	s, err := remote.NewServer(h.authority, h, l.Addr(), c.log)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	h.listener, h.web, h.served = l, s.Web(), make(chan struct{})
	ctx, h.end = context.WithCancel(c.jobs.ctx)
	go func() {
		defer close(h.served)
		if err := s.Serve(ctx, l); err != nil {
			c.log.Error("agents are let in no more", "error", err)
		}
	}()
	return nil
}

func (c *Control) newHostLink(name string, limit int64) *hostLink {
	l := &hostLink{agent: agent.NewRemote(name), limit: newHostLimit(limit), disks: &hostDisks{options: nbd.Options{Logger: c.log}, served: map[string]*hostDisk{}},
		calls: make(chan struct{}, maxCalls), conns: map[*hostConn]bool{}}
	l.ctx, l.end = context.WithCancel(c.jobs.ctx)
	return l
}

// Web returns the listener of those who speak HTTP, where agents are let in; nil: nowhere.
func (c *Control) Web() net.Listener { return c.hosts.web }

// Authority returns the certificate, as PEM, by which clients know this server. Where it listens nowhere, there is none.
func (c *Control) Authority() ([]byte, error) {
	if c.hosts.authority == nil {
		return nil, tidemark.Errorf(tidemark.NotFound, "this server listens on no network").WithHint("start it with --listen")
	}
	return c.hosts.authority.PEM(), nil
}

// address is where agents are let in; empty: nowhere.
func (h *hosts) address() string {
	if h.listener == nil {
		return ""
	}
	return h.listener.Addr().String()
}

// stop ends what is open to hosts.
func (h *hosts) stop() {
	if h.listener != nil {
		h.listener.Close()
		h.end()
	}
	h.mu.Lock()
	links := h.live
	h.live = nil
	h.mu.Unlock()
	for _, l := range links {
		l.close()
	}
	if h.served != nil {
		<-h.served
	}
}

func (l *hostLink) close() {
	l.end()
	l.agent.Close() // that its connection is broken is what is wanted
	l.disks.close() // likewise
}

// agentOn returns the agent of a host; "" is ours.
func (c *Control) agentOn(host string) (*agent.Agent, error) {
	if host == "" {
		return c.agent, nil
	}
	c.hosts.mu.Lock()
	defer c.hosts.mu.Unlock()
	if c.hosts.live == nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the server stops")
	}
	if l := c.hosts.live[host]; l != nil {
		return l.agent, nil
	}
	return nil, tidemark.Errorf(tidemark.NotFound, "there is no host %q", host).WithHint("`tidemark host ls` lists them, `tidemark host add` lets one join")
}

// isRemoved reports whether a host was removed whose agent this was, as it was found before. One of that name that may join since is another.
func (c *Control) isRemoved(host string, x *agent.Agent) bool {
	now, err := c.agentOn(host)
	return tidemark.KindOf(err) == tidemark.NotFound || err == nil && now != x
}

func errHostRemoved(host string) error {
	return tidemark.Errorf(tidemark.NotFound, "host %s was removed", host).WithHint("`tidemark host add " + host + "` lets it join again")
}

// change changes what the catalog has of a host. The caller holds mu.
func (h *hosts) change(ctx context.Context, name string, fn func(*keptHost) error) error {
	var k keptHost
	if err := h.c.catalog.Get(ctx, catalog.Hosts, name, &k); err != nil {
		return err
	}
	if err := fn(&k); err != nil {
		return err
	}
	return h.c.catalog.Put(ctx, catalog.Hosts, name, k)
}

// Redeem implements [remote.Owner]. Who had a certificate of that host has it no more, and no connection.
func (h *hosts) Redeem(ctx context.Context, hash string, from netip.Addr) (host string, err error) {
	host, err = h.redeem(ctx, hash)
	h.record(host, from, "joined by its token", err)
	return host, err
}

// redeem returns the host of a token, also if it can be used no more.
func (h *hosts) redeem(ctx context.Context, hash string) (host string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, err := catalog.List[keptHost](ctx, h.c.catalog, catalog.Hosts)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(known, func(k keptHost) bool { return k.Token != "" && k.Token == hash })
	if i < 0 {
		return "", tidemark.Errorf(tidemark.Denied, "this token was used before, or has been replaced").WithHint("`tidemark host add NAME` on the server makes a new one")
	}
	if k := known[i]; time.Now().After(k.Expires) {
		return k.Name, tidemark.Errorf(tidemark.Denied, "this token could be used until %s", k.Expires.Format(time.RFC3339)).WithHint("`tidemark host add " + k.Name + "` on the server makes a new one")
	}
	host = known[i].Name
	err = h.change(ctx, host, func(k *keptHost) error {
		now := time.Now()
		k.Token, k.Expires, k.Joined, k.Redeemed, k.Serials = "", time.Time{}, &now, hash, nil
		return nil
	})
	if err == nil {
		h.keep(host, nil)
	}
	return host, err
}

// Certified implements [remote.Owner]. What it follows is the one in use, or what was redeemed last.
func (h *hosts) Certified(ctx context.Context, host, follows, serial string, from netip.Addr) error {
	err := h.certified(ctx, host, follows, serial)
	h.record(host, from, "was given the certificate "+serial, err)
	return err
}

func (h *hosts) certified(ctx context.Context, host, follows, serial string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.change(ctx, host, func(k *keptHost) error {
		switch {
		case k.Redeemed == follows:
			k.Redeemed, k.Serials = "", []string{serial}
		case len(k.Serials) > 0 && k.Serials[0] == follows:
			k.Serials = []string{follows, serial}
		default:
			return errReplaced(host)
		}
		return nil
	})
	if tidemark.KindOf(err) == tidemark.NotFound { // it was removed meanwhile
		return errReplaced(host)
	}
	return err
}

// record puts what a host was given, or refused, into the audit, before it has it.
func (h *hosts) record(host string, from netip.Addr, what string, err error) {
	r := access.AuditRecord{Time: time.Now(), Request: rand.Text()[:12], Action: access.HostManage, Kind: access.KindHost, Object: host, Outcome: access.Done, Detail: what}
	if from.IsValid() {
		r.Address = from.String()
	}
	if host != "" { // else it is nobody known
		r.Method = access.ByHost
	}
	if err != nil {
		r.Outcome, r.Detail = access.Failed, Explain(err).Message
		if tidemark.KindOf(err) == tidemark.Denied {
			r.Outcome = access.Refused
		}
	}
	if host == "" && !h.strangers.told(&r) {
		return
	}
	h.c.RecordAudit(context.WithoutCancel(h.c.jobs.ctx), &r)
}

// strangers bounds how much those can add to the audit whom nobody knows. It may be used concurrently.
type strangers struct {
	pace   *rate.Limiter
	untold atomic.Int64
}

// told reports whether a record is to be kept; if so, it says how many before it were not.
func (s *strangers) told(r *access.AuditRecord) bool {
	if !s.pace.Allow() {
		s.untold.Add(1)
		return false
	}
	if n := s.untold.Swap(0); n > 0 {
		r.Detail += fmt.Sprintf("; before it, %d more of strangers were refused", n)
	}
	return true
}

// Admit implements [remote.Owner].
func (h *hosts) Admit(ctx context.Context, host, serial string, from netip.Addr, r remote.Request) error {
	l, err := h.admit(ctx, host, serial, r)
	if err == nil && r.For == remote.Calls {
		err = h.soleCaller(ctx, l, host, from)
	}
	return err
}

// admit returns what is open to a host that may come in and have what it asks for. Whoever comes with the next certificate has it: the one before is not
// needed any more.
func (h *hosts) admit(ctx context.Context, host, serial string, r remote.Request) (*hostLink, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, k, i, err := h.good(ctx, host, serial)
	if err != nil {
		return nil, err
	}
	if i > 0 {
		k.Serials = k.Serials[i:]
		if err := h.c.catalog.Put(ctx, catalog.Hosts, host, k); err != nil {
			return nil, err
		}
		h.keep(host, k.Serials)
	}
	if r.For == remote.Disk {
		return l, h.mayHave(l, host, r.Disk)
	}
	return l, nil
}

// Take implements [remote.Owner].
func (h *hosts) Take(ctx context.Context, host, serial string, r remote.Request, conn net.Conn) {
	l, ctx, leave, err := h.enter(ctx, host, serial, r.For, conn)
	if err != nil {
		h.c.log.Warn("a connection of a host was closed", "host", host, "address", conn.RemoteAddr(), "error", err)
		return
	}
	defer leave()
	switch r.For {
	case remote.Feed:
		h.c.takeFeed(ctx, host, l.limit.on(ctx, conn))
	case remote.WriteBack, remote.Capture:
		l.agent.TakeTicket(l.limit.on(ctx, conn))
	case remote.Disk:
		l.disks.serve(ctx, r, l.limit.on(ctx, conn))
	case remote.Calls:
		h.takeCalls(ctx, l, host, conn)
	}
}

// takeCalls calls the agent of a host on a connection until that ends, and first of all makes the host what it should be. A server that starts does without:
// that must not wait for another host, least of all while it takes back what was half done, and that host has none of its disks (mayHave), which to unmount
// one would wait for.
func (h *hosts) takeCalls(ctx context.Context, l *hostLink, host string, conn net.Conn) {
	select {
	case l.calls <- struct{}{}:
		defer func() { <-l.calls }()
	default:
		h.c.log.Warn("a host has too many connections to be called on, and one more was closed", "host", host, "address", conn.RemoteAddr(), "most", maxCalls)
		return
	}
	select {
	case <-h.c.back:
	case <-ctx.Done():
		return
	}
	h.mu.Lock()
	l.from = addressOf(conn)
	h.mu.Unlock()
	h.c.log.Info("a host is connected", "host", host, "address", conn.RemoteAddr())
	ctx, cancel := context.WithCancel(ctx)
	var welcome sync.WaitGroup
	welcome.Go(func() { h.c.welcome(ctx, host) })
	err := l.agent.Take(conn)
	if err != nil {
		h.c.log.Warn("the connection to a host was closed", "host", host, "error", err)
	}
	if errors.Is(err, agent.ErrSilent) {
		h.endCarried(l)
	}
	cancel()
	welcome.Wait()
	h.c.log.Info("a host is not connected any more", "host", host)
}

// Hosts lists the hosts that have an agent, but for our own.
func (c *Control) Hosts(ctx context.Context) ([]tidemark.Host, error) {
	known, err := catalog.List[keptHost](ctx, c.catalog, catalog.Hosts)
	list := []tidemark.Host{}
	for _, k := range known {
		v := tidemark.Host{Name: k.Name, State: tidemark.HostAway, Problem: c.hosts.twice(k.Name), Joined: k.Joined, Applications: c.namesOn(k.Name), Shown: c.shownNames(k.Name), Limit: k.Limit, Labels: k.Labels}
		if x, err := c.agentOn(k.Name); err == nil && x.Connected() {
			v.State = tidemark.HostConnected
		} else if k.Joined == nil {
			v.State = tidemark.HostInvited
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b tidemark.Host) int { return compare(a.Name, b.Name) })
	return list, err
}

// namesOn lists the applications that are protected on a host.
func (c *Control) namesOn(host string) []string {
	names := []string{}
	for _, a := range c.apps() {
		if a.Role == "" && a.Agent == host {
			names = append(names, a.name)
		}
	}
	return names
}

// AddHost makes a token by which a host can join, once. One that has joined already goes on until the token is used.
func (c *Control) AddHost(ctx context.Context, spec tidemark.HostSpec) (v tidemark.Invitation, err error) {
	if err := tidemark.CheckName(spec.Name); err != nil {
		return v, err
	}
	h := &c.hosts
	if h.listener == nil {
		return v, tidemark.Errorf(tidemark.Unavailable, "this server does not listen for agents").WithHint("run `tidemark server` with --listen HOST:PORT")
	}
	t := h.authority.NewToken(spec.Name)
	k, err := h.invite(ctx, spec.Name, t)
	if err == nil {
		err = c.serveAgain(spec.Name)
	}
	if err != nil {
		return v, err
	}
	c.event("info", "", "host %s may join until %s", spec.Name, k.Expires.Format(time.RFC3339))
	return tidemark.Invitation{Host: spec.Name, Token: t.String(), Server: h.address(), Expires: k.Expires}, nil
}

// invite notes that a host may join with a token.
func (h *hosts) invite(ctx context.Context, name string, t remote.Token) (keptHost, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := keptHost{Name: name}
	if err := h.c.catalog.Get(ctx, catalog.Hosts, name, &k); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
		return k, err
	}
	k.Token, k.Expires = t.Hash(), time.Now().Add(tokenLife)
	if h.live == nil {
		return k, tidemark.Errorf(tidemark.Unavailable, "the server stops")
	}
	if err := h.c.catalog.Put(ctx, catalog.Hosts, name, k); err != nil {
		return k, err
	}
	if h.live[name] == nil {
		h.live[name] = h.c.newHostLink(name, k.Limit)
	}
	return k, nil
}

// SetHost changes the limit of a host, of what is under way, too.
func (c *Control) SetHost(ctx context.Context, r tidemark.HostChange) error {
	if r.Limit < 0 {
		return tidemark.Errorf(tidemark.Invalid, "%d is no limit", r.Limit)
	}
	h := &c.hosts
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.change(ctx, r.Name, func(k *keptHost) error {
		k.Limit = r.Limit
		return nil
	})
	if l := h.live[r.Name]; err == nil && l != nil {
		l.limit.set(r.Limit)
	}
	return err
}

// labelHost makes the labels of a host these.
func (c *Control) labelHost(ctx context.Context, name string, labels map[string]string) error {
	c.hosts.mu.Lock()
	defer c.hosts.mu.Unlock()
	return c.hosts.change(ctx, name, func(k *keptHost) error {
		k.Labels = labels
		return nil
	})
}

// RemoveHost shuts a host out: its certificates are good for nothing any more. By force it does so though disks are tapped there: their
// taps are left to themselves. Clones and mounts there lose their disks; they are taken apart here by the verbs that do so.
func (c *Control) RemoveHost(ctx context.Context, r tidemark.HostRemoval) error {
	name := r.Name
	if names := c.namesOn(name); len(names) > 0 && !r.Force {
		what := names[0]
		if a, err := c.app(what); err == nil && a.tapped() {
			what = "a tap of " + what
		}
		return tidemark.Errorf(tidemark.Conflict, "on host %s there is %s, which is protected", name, what).
			WithHint(fmt.Sprintf("`tidemark unprotect %s` first; if the host is gone for good, with --force", names[0]))
	}
	if names := c.shownNames(name); len(names) > 0 && !r.Force {
		return tidemark.Errorf(tidemark.Conflict, "on host %s there is %s", name, names[0]).
			WithHint("`tidemark unmount` or `tidemark clone rm` it first; if the host is gone for good, with --force")
	}
	h := &c.hosts
	h.mu.Lock()
	l := h.live[name]
	var k keptHost
	err := c.catalog.Get(ctx, catalog.Hosts, name, &k)
	if err == nil {
		err = c.catalog.Delete(ctx, catalog.Hosts, name)
	}
	if err == nil {
		delete(h.live, name)
	}
	h.mu.Unlock()
	if err != nil {
		return err
	}
	if l != nil {
		l.close()
	}
	c.event("warning", "", "host %s was removed, and is not let in any more", name)
	for _, s := range k.Slots {
		c.event("warning", "", "on host %s, %s keeps its log for a replication slot that nobody uses any more: drop it there by hand, %s", name, s.Source, s.sql())
	}
	return c.removeDoomed(ctx, name)
}

var _ remote.Owner = (*hosts)(nil)
