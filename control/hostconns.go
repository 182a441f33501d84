package control

import (
	"context"
	"crypto/tls"
	"net"
	"slices"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/catalog"
)

// A connection of a host is as good as the certificate that it came with. When that is replaced the connection ends: it may be of another machine
// that has a copy of it. Those of the host itself come back by the next certificate, which was used before, so is where they look for it.

// hostConn is a connection of a host that was let in.
type hostConn struct {
	serial  string // of its certificate
	purpose string // as of [remote.Request]
	end     context.CancelFunc
}

// good returns what is open to a host and what the catalog has of it, and the place of a certificate among those that are good; it is an error if it
// is none of them. The caller holds mu.
func (h *hosts) good(ctx context.Context, host, serial string) (l *hostLink, k keptHost, i int, err error) {
	l = h.live[host]
	switch {
	case h.live == nil:
		return nil, k, 0, tidemark.Errorf(tidemark.Unavailable, "the server stops")
	case l == nil:
		return nil, k, 0, shutOut("host "+host+" was removed from this server", "to let it join again: `tidemark host add "+host+"` on the server, and start the agent with that token")
	}
	if err := h.c.catalog.Get(ctx, catalog.Hosts, host, &k); err != nil {
		return nil, k, 0, err
	}
	if i = slices.Index(k.Serials, serial); i < 0 {
		return nil, k, 0, errReplaced(host)
	}
	return l, k, i, nil
}

func errReplaced(host string) error {
	return shutOut("this certificate of host "+host+" has been replaced", "does another machine use it? To let this one join again: `tidemark host add "+host+"` on the server, and start the agent with that token")
}

// shutOut refuses who will never be let in again by what he has.
func shutOut(what, hint string) error {
	return &tidemark.Error{Kind: tidemark.Denied, Message: what, Hint: hint, Cause: remote.ErrShutOut}
}

// enter makes a connection one of its host's, if its certificate is good yet: it may have been replaced since it was admitted. in is done when the
// connection is to end, or ctx is, and closes it; leave is called behind it.
func (h *hosts) enter(ctx context.Context, host, serial, purpose string, conn net.Conn) (l *hostLink, in context.Context, leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, _, _, err = h.good(ctx, host, serial)
	if err != nil {
		return nil, nil, nil, err
	}
	in, end := context.WithCancel(l.ctx)
	also := context.AfterFunc(ctx, end)
	closing := context.AfterFunc(in, func() { cut(conn) })
	c := &hostConn{serial, purpose, end}
	l.conns[c] = true
	return l, in, func() {
		also()
		closing()
		end()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(l.conns, c)
	}, nil
}

// cut ends a connection without a word: to say good-bye takes as long as the other end likes, and what it sends would be read meanwhile.
func cut(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	conn.Close()
}

// endCarried ends the connections that the agent of a host carries, which was silent for too long: whoever waits for what comes on them goes on. Its disks have
// attachers of their own.
func (h *hosts) endCarried(l *hostLink) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range l.conns {
		switch c.purpose {
		case remote.Feed, remote.WriteBack, remote.Capture:
			c.end()
		}
	}
}

// keep ends the connections of a host that came with other certificates than these. The caller holds mu.
func (h *hosts) keep(host string, serials []string) {
	l, n := h.live[host], 0
	if l == nil {
		return
	}
	for c := range l.conns {
		if !slices.Contains(serials, c.serial) {
			c.end()
			n++
		}
	}
	if n > 0 {
		h.c.log.Info("a certificate was replaced, and its connections have ended", "host", host, "connections", n)
	}
}
