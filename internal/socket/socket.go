// Package socket serves sockets by blocking system calls rather than through Go's
// poller.
//
// The poller costs a read that finds nothing and an epoll_wait for each burst of
// messages. And it waits for readiness to write as well, all the time: a peer that merely
// takes what we sent wakes one of our threads for nothing. A goroutine that
// blocks in the kernel costs a thread instead, which is the better price where connections are few
// and each is busy: those of disks.
package socket

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// bufferSize is what is asked for in each direction, in bytes: a large message on
// its way while the peer copies. The system may give less.
const bufferSize = 1 << 20

// Conn is a connected socket. One goroutine may read while others write; every method may
// be called concurrently.
type Conn struct{ f *os.File }

// Take takes a connection over: nc is closed, and its socket lives on in the
// Conn. What is no socket of the system, such as TLS, is [ErrNoSocket], and nc stays as it was.
func Take(nc net.Conn) (*Conn, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, ErrNoSocket
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	var fd uintptr
	var errno syscall.Errno
	err = raw.Control(func(f uintptr) {
		fd, _, errno = syscall.Syscall(syscall.SYS_FCNTL, f, syscall.F_DUPFD_CLOEXEC, 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	// To close the original takes it out of the poller; the copy stays open.
	if err := errors.Join(nc.Close(), syscall.SetNonblock(int(fd), false)); err != nil {
		return nil, errors.Join(fmt.Errorf("take over socket: %w", err), syscall.Close(int(fd)))
	}
	return newConn(fd), nil
}

// newConn makes a Conn of a blocking descriptor.
func newConn(fd uintptr) *Conn {
	c := &Conn{os.NewFile(fd, "socket")}
	_ = c.control(enlarge)
	return c
}

// Pair returns two connected sockets: one for us, and one to be handed to
// somebody else, who may be the kernel.
func Pair() (ours *Conn, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return newConn(uintptr(fds[0])), os.NewFile(uintptr(fds[1]), "socket of a pair"), nil
}

// ErrNoSocket is returned for a connection that is no socket of the system.
var ErrNoSocket = errors.New("no socket of the system")

// enlarge asks for larger buffers, beyond the system's limit where we may; that it gets none is no error.
func enlarge(fd int) error {
	for _, o := range [][2]int{{syscall.SO_SNDBUFFORCE, syscall.SO_SNDBUF}, {syscall.SO_RCVBUFFORCE, syscall.SO_RCVBUF}} {
		if syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, o[0], bufferSize) != nil {
			_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, o[1], bufferSize)
		}
	}
	return nil
}

// control calls fn with the descriptor, unless the Conn is closed.
func (c *Conn) control(fn func(fd int) error) error {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = fn(int(fd)) })
	return errors.Join(cerr, err)
}

// Read is as in [io.Reader]; it waits for as long as nothing arrives.
func (c *Conn) Read(p []byte) (int, error) { return c.f.Read(p) }

// Write sends all of p, for as long as it takes. Two writers at once may mix.
func (c *Conn) Write(p []byte) (int, error) { return c.f.Write(p) }

// CloseRead makes a Read that waits, and every later one that would, return
// [io.EOF]; what was received may still be read.
func (c *Conn) CloseRead() { c.shutdown(syscall.SHUT_RD) }

// Abort makes reads and writes that wait, and all later ones, fail at once, at both ends: see [HangUp].
func (c *Conn) Abort() {
	_ = c.control(func(fd int) error { HangUp(fd); return nil })
}

func (c *Conn) shutdown(how int) {
	// It fails only where the peer or we are gone already, and that does the same.
	_ = c.control(func(fd int) error { return syscall.Shutdown(fd, how) })
}

// HangUp ends a socket in both directions, and forgets what has arrived and was not read, while the descriptor stays. To shut it down alone would
// leave a peer waiting that has more to send than we took: its socket stays full, and so never becomes one that can be written to. A program
// that waits for just that, as QEMU does, does not notice that nobody is there any more until the socket is closed at our end, which a
// process that hangs, or one that has a copy of it, does not do.
func HangUp(fd int) {
	_ = syscall.Shutdown(fd, syscall.SHUT_RDWR) // see shutdown
	rest := make([]byte, 64<<10)
	for range 1 << 10 { // nothing comes in any more, and no buffer is as large
		n, _, err := syscall.Recvfrom(fd, rest, syscall.MSG_DONTWAIT)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
	}
}

// Close aborts the connection and gives it up.
func (c *Conn) Close() error {
	c.Abort()
	return c.f.Close()
}
