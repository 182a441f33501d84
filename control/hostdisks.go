package control

import (
	"context"
	"errors"
	"net"
	"sync"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/export/nbd"
)

// A disk that is shown on another host is served to that host alone: each host has its own table, so that no name that it
// asks for is a disk of somebody else's.
//
// Over a network a connection can be lost for one end and not yet for the other. The attacher then makes a new session, writes again
// what it does not know to be durable, and goes on. What it had sent before may be on its way here yet, and must not be written behind that. So
// a disk has one session at a time, of which all connections are served, and the next one begins when every connection
// of the last has ended, with the requests that it had brought.

// hostDisks are the disks that are served to one host, by the names of their exports.
type hostDisks struct {
	options nbd.Options

	mu     sync.Mutex
	served map[string]*hostDisk // nil: no more
	// showing is held by who attaches a disk there, and alone by who takes away those that belong to nothing.
	showing sync.RWMutex
}

// hostDisk is one of them.
type hostDisk struct {
	table   *nbd.Table // has it alone
	server  *nbd.Server
	session *diskSession // the latest; guarded by hostDisks.mu
}

// diskSession are the connections that one attacher has made to go on together.
type diskSession struct {
	client  string
	number  uint64
	members map[*diskConn]bool // guarded by hostDisks.mu
	clear   chan struct{}      // closed when those of all sessions before have ended
}

type diskConn struct {
	conn   net.Conn
	kicked chan struct{} // closed when a later session has come
	ended  chan struct{}
}

// add begins to serve a disk; that it is served already is fine.
func (h *hostDisks) add(e *nbd.Export) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.served == nil {
		return tidemark.Errorf(tidemark.Unavailable, "the host was removed, or the server stops")
	}
	if h.served[e.Name] != nil {
		return nil
	}
	t := nbd.NewTable()
	if err := t.Add(e); err != nil {
		return err
	}
	h.served[e.Name] = &hostDisk{table: t, server: nbd.NewServer(t, h.options)}
	return nil
}

// remove ends the serving of a disk, and returns when nobody uses it any more.
func (h *hostDisks) remove(name string) error {
	h.mu.Lock()
	d := h.served[name]
	delete(h.served, name)
	h.mu.Unlock()
	if d == nil {
		return nil
	}
	return d.server.Close()
}

// close ends the serving of all disks.
func (h *hostDisks) close() error {
	h.mu.Lock()
	served := h.served
	h.served = nil
	h.mu.Unlock()
	var errs []error
	for _, d := range served {
		errs = append(errs, d.server.Close())
	}
	return errors.Join(errs...)
}

// has reports whether a disk is served.
func (h *hostDisks) has(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.served[name] != nil
}

// serve serves a disk on a connection, when its turn has come, until that ends.
func (h *hostDisks) serve(ctx context.Context, r remote.Request, conn net.Conn) {
	d, s, c := h.enter(r, conn)
	if c == nil {
		return
	}
	defer h.leave(s, c)
	select {
	case <-s.clear:
		d.server.ServeConn(conn)
	case <-c.kicked:
	case <-ctx.Done():
	}
}

// enter makes a connection part of its session. One of an earlier session than the latest is refused: c is nil.
func (h *hostDisks) enter(r remote.Request, conn net.Conn) (d *hostDisk, s *diskSession, c *diskConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d = h.served[r.Disk]; d == nil {
		return nil, nil, nil
	}
	s = d.session
	if s != nil && s.client == r.Client && r.Session < s.number {
		return nil, nil, nil
	}
	if s == nil || s.client != r.Client || s.number != r.Session {
		s = d.succeed(r)
	}
	c = &diskConn{conn: conn, kicked: make(chan struct{}), ended: make(chan struct{})}
	s.members[c] = true
	return d, s, c
}

// succeed begins a session, and ends the one before.
func (d *hostDisk) succeed(r remote.Request) *diskSession {
	before := d.session
	s := &diskSession{client: r.Client, number: r.Session, members: map[*diskConn]bool{}, clear: make(chan struct{})}
	d.session = s
	if before == nil {
		close(s.clear)
		return s
	}
	var old []*diskConn
	for c := range before.members {
		close(c.kicked)
		c.conn.Close() // what it brings from now on is not read; what it has brought is done before it ends
		old = append(old, c)
	}
	go func() {
		<-before.clear
		for _, c := range old {
			<-c.ended
		}
		close(s.clear)
	}()
	return s
}

func (h *hostDisks) leave(s *diskSession, c *diskConn) {
	h.mu.Lock()
	delete(s.members, c)
	h.mu.Unlock()
	close(c.ended)
}

// serveDisk begins to serve a disk to a host. To one that was removed nothing is served, and that is fine.
func (h *hosts) serveDisk(host string, e *nbd.Export) error {
	if l := h.link(host); l != nil {
		return l.disks.add(e)
	}
	return nil
}

func (h *hosts) unserveDisk(host, name string) {
	if l := h.link(host); l != nil {
		if err := l.disks.remove(name); err != nil {
			h.c.log.Error("an export was not ended", "export", name, "error", err)
		}
	}
}

// showing keeps disks on a host that are just being attached there from being taken for such that belong to nothing.
func (h *hosts) showing(host string) (done func()) {
	l := h.link(host)
	if l == nil {
		return func() {}
	}
	l.disks.showing.RLock()
	return l.disks.showing.RUnlock
}

// link returns what is open to a host, or nil.
func (h *hosts) link(host string) *hostLink {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.live[host]
}

// mayHave refuses a disk that is not served to a host.
func (h *hosts) mayHave(l *hostLink, host, disk string) error {
	select {
	case <-h.c.undone:
	default:
		return tidemark.Errorf(tidemark.Unavailable, "the server is starting")
	}
	if !l.disks.has(disk) {
		return tidemark.Errorf(tidemark.Denied, "host %s has no disk %q of this server", host, disk).WithHint("if it was unmounted or removed there: detach it here, too")
	}
	return nil
}
