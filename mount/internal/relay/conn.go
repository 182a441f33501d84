package relay

import (
	"crypto/tls"
	"io"
	"net"

	"tidemark/internal/socket"
)

// conn is a connection to the server in its transmission phase. One goroutine may read while others write; Abort and Close may be
// called by anyone.
type conn interface {
	io.ReadWriteCloser
	// Abort makes reads and writes that wait, and all later ones, fail at once.
	Abort()
}

// take takes a connection over. A socket is served by blocking system calls; TLS, which is none, through Go's poller.
func take(c net.Conn) (conn, error) {
	if t, ok := c.(*tls.Conn); ok {
		return secureConn{t}, nil
	}
	s, err := socket.Take(c)
	if err != nil { // not a conn that is nil and yet is not
		return nil, err
	}
	return s, nil
}

// secureConn is a conn over TLS. It ends without a word: to say one could take as long as the network is cut.
type secureConn struct{ *tls.Conn }

func (c secureConn) Abort()       { _ = c.NetConn().Close() }
func (c secureConn) Close() error { return c.NetConn().Close() }
