package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// stream is a connection in its transmission phase. Read and Write are as in
// io; Write may be called beside Read.
type stream interface {
	io.ReadWriter
	// stopReading makes a Read that waits, and every later one that would,
	// return an error; what was received may still be read.
	stopReading()
	// abort makes reads and writes that wait fail at once.
	abort()
	// close gives the connection up; nobody may be reading or writing.
	close() error
}

// newStream takes nc over. A socket is served by blocking system calls rather
// than through Go's poller, which costs a read that finds nothing and an
// epoll_wait for each burst of requests; DESIGN.md has the measurement.
func newStream(nc net.Conn) (stream, error) {
	sc, ok := nc.(interface {
		SyscallConn() (syscall.RawConn, error)
	})
	if !ok {
		return connStream{nc}, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	fd, derr := -1, error(nil)
	err = raw.Control(func(f uintptr) {
		r, _, e := syscall.Syscall(syscall.SYS_FCNTL, f, syscall.F_DUPFD_CLOEXEC, 0)
		if e != 0 {
			derr = e
			return
		}
		fd = int(r)
	})
	if err = errors.Join(err, derr); err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	s := &socket{fd: fd}
	// Closing the original takes it out of the poller; the copy stays open.
	if err := errors.Join(nc.Close(), syscall.SetNonblock(fd, false)); err != nil {
		return nil, errors.Join(fmt.Errorf("take over socket: %w", err), s.close())
	}
	s.enlarge()
	return s, nil
}

// socket is a stream over a blocking descriptor.
type socket struct {
	fd     int
	mu     sync.Mutex
	closed bool // guarded by mu: fd may be somebody else's by now
}

// socketBuffer is what is asked for in each direction, in bytes: four chunks of
// a large read on their way while the client copies. The system may give less.
const socketBuffer = 1 << 20

// enlarge asks for larger socket buffers; that it gets none is no error.
func (s *socket) enlarge() {
	_ = syscall.SetsockoptInt(s.fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, socketBuffer)
	_ = syscall.SetsockoptInt(s.fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, socketBuffer)
}

func (s *socket) Read(p []byte) (int, error) {
	for {
		n, err := syscall.Read(s.fd, p)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s *socket) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := syscall.Write(s.fd, p[done:])
		if n > 0 {
			done += n
		}
		if err != nil && err != syscall.EINTR {
			return done, err
		}
	}
	return done, nil
}

func (s *socket) shutdown(how int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		// Fails only if the peer is gone already, which Read finds out too.
		_ = syscall.Shutdown(s.fd, how)
	}
}

func (s *socket) stopReading() { s.shutdown(syscall.SHUT_RD) }
func (s *socket) abort()       { s.shutdown(syscall.SHUT_RDWR) }

func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return syscall.Close(s.fd)
}

// connStream is a stream over TLS, or over a connection that is no socket.
type connStream struct{ net.Conn }

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func (c connStream) stopReading() { _ = c.SetReadDeadline(longAgo) }
func (c connStream) abort()       { _ = c.SetDeadline(longAgo) }
func (c connStream) close() error { return c.Conn.Close() }
