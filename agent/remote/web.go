package remote

import (
	"context"
	"encoding/pem"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// webProtocols are those of HTTP in ALPN (RFC 7301): who asks for one of them is no agent. So both need one port only.
var webProtocols = []string{"h2", "http/1.1"}

// web is a listener for those who speak HTTP.
type web struct {
	conns chan net.Conn
	end   chan struct{} // closed when the server ends, or nobody accepts any more
	once  sync.Once     // closes end
	addr  net.Addr
}

// Accept implements [net.Listener]. Connections are of type [*tls.Conn], after their handshake.
func (w *web) Accept() (net.Conn, error) {
	select {
	case conn := <-w.conns:
		return conn, nil
	case <-w.end:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener]. Agents are let in as before.
func (w *web) Close() error {
	w.once.Do(func() { close(w.end) })
	return nil
}

// Addr implements [net.Listener].
func (w *web) Addr() net.Addr { return w.addr }

// hand gives a connection to who accepts, and reports whether somebody did.
func (w *web) hand(ctx context.Context, conn net.Conn) bool {
	timer := time.NewTimer(greetTime)
	defer timer.Stop()
	select {
	case w.conns <- conn:
		return true
	case <-timer.C:
	case <-ctx.Done():
	case <-w.end:
	}
	return false
}

// Web returns a listener of the connections of those who speak HTTP. Nothing is known of them.
func (s *Server) Web() net.Listener { return s.web }

// PEM is the certificate of the authority, by which clients know the server.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// namesOf are the names and addresses by which a server can be called: those of this host.
func namesOf() (names []string, addresses []net.IP) {
	names = []string{serverName, "localhost"}
	if host, err := os.Hostname(); err == nil && !slices.Contains(names, host) {
		names = append(names, host)
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return names, nil
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			addresses = append(addresses, n.IP)
		}
	}
	return names, addresses
}
