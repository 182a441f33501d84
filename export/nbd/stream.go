package nbd

import (
	"errors"
	"io"
	"net"
	"time"

	"tidemark/internal/socket"
)

// stream is a connection in its transmission phase. Read and Write are as in
// io; Write may be called beside Read.
type stream interface {
	io.ReadWriteCloser
	// CloseRead makes a Read that waits, and every later one that would,
	// return an error; what was received may still be read.
	CloseRead()
	// Abort makes reads and writes that wait fail at once.
	Abort()
}

// newStream takes nc over; DESIGN.md says why a socket is not left to Go's poller.
func newStream(nc net.Conn) (stream, error) {
	s, err := socket.Take(nc)
	if errors.Is(err, socket.ErrNoSocket) {
		return connStream{nc}, nil
	}
	return s, err
}

// connStream is a stream over TLS, or over a connection that is no socket.
type connStream struct{ net.Conn }

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func (c connStream) CloseRead() { _ = c.SetReadDeadline(longAgo) }
func (c connStream) Abort()     { _ = c.SetDeadline(longAgo) }
