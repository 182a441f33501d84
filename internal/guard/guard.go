// Package guard hangs up on the peers of a process that stands still, so that they need not wait for it.
//
// A peer that is sent no answer cannot tell a slow server from one that was stopped, and QEMU waits for ever. The
// guard is a process of its own with copies of the server's sockets. While the server beats, it
// does nothing; when it does not, the guard shuts the connections, and turns away who connects. No
// byte passes through it: what lies in a connection that is shut is thrown away.
package guard

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/socket"
)

// Limit is how long a process may stand still before its peers are hung up on.
const Limit = 6 * time.Second

// What the process tells its guard: a kind, a number, and a socket with some.
const (
	tellBeat   = 'b'
	tellListen = 'l' // a listening socket
	tellPeer   = 'c' // a connection
	tellDrop   = 'd' // the socket of that number is not needed any more

	tellSize = 9
)

// Guard is the process that guards this one. Its methods may be called concurrently.
type Guard struct {
	command []string

	mu      sync.Mutex
	conn    *os.File            // to the process; guarded by mu
	last    uint64              // number of the newest socket; guarded by mu
	sockets map[uint64]*guarded // what is watched; guarded by mu
	closed  bool                // guarded by mu
}

// guarded is a copy of a socket, kept for the guard that comes after one that died.
type guarded struct {
	kind byte
	fd   int
}

// noSocket is what comes with a message that has no socket.
const noSocket = -1

// copyOf returns a copy of a socket. A net.Conn has a File for that, but its Fd makes the connection itself a blocking one: whoever
// closes it would wait until somebody connects, or writes.
func copyOf(s syscall.Conn) (fd int, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return noSocket, err
	}
	cerr := raw.Control(func(x uintptr) { fd, err = unix.FcntlInt(x, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}

// New returns a guard that runs command, which must call [Run]. It is started when there is something to watch.
func New(command ...string) *Guard {
	return &Guard{command: command, sockets: map[uint64]*guarded{}}
}

// Close ends the guard; our peers are hung up on.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for id, s := range g.sockets {
		_ = unix.Close(s.fd)
		delete(g.sockets, id)
	}
	if g.conn == nil {
		return nil
	}
	return g.conn.Close()
}

// Beat says that we do not stand still. It is to be called several times within [Limit].
func (g *Guard) Beat() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.sockets) == 0 {
		return nil
	}
	return g.tell(tellBeat, 0, noSocket)
}

// tell sends one message, to a new process if the old one is gone. The caller holds mu.
func (g *Guard) tell(kind byte, id uint64, fd int) error {
	if g.closed {
		return os.ErrClosed
	}
	if g.conn != nil {
		err := send(g.conn, kind, id, fd)
		if err == nil || !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
		g.conn.Close()
		g.conn = nil
	}
	if err := g.start(); err != nil {
		return err
	}
	for id, s := range g.sockets {
		if err := send(g.conn, s.kind, id, s.fd); err != nil {
			return err
		}
	}
	return nil
}

// start starts the process. The caller holds mu.
func (g *Guard) start() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(fds[1]), "guard")
	defer theirs.Close()
	cmd := exec.Command(g.command[0], g.command[1:]...)
	cmd.Stdin, cmd.Stderr, cmd.Dir = theirs, os.Stderr, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		unix.Close(fds[0])
		return err
	}
	go cmd.Wait()
	g.conn = os.NewFile(uintptr(fds[0]), "guard")
	return nil
}

func send(conn *os.File, kind byte, id uint64, fd int) error {
	msg := binary.LittleEndian.AppendUint64([]byte{kind}, id)
	var oob []byte
	if fd != noSocket {
		oob = unix.UnixRights(fd)
	}
	// A guard that stands still itself must not hold us up.
	return unix.Sendmsg(int(conn.Fd()), msg, oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
}

// Listen has a listener's connections guarded, until drop is called or they are closed by the listener's owner, who has to
// call drop to let the peers notice: the guard's copies keep the connections open.
func (g *Guard) Listen(l *net.UnixListener) (*Listener, error) {
	x := &Listener{UnixListener: l, g: g, peers: map[uint64]bool{}}
	var err error
	if x.id, err = g.add(tellListen, l); err != nil {
		return nil, err
	}
	return x, nil
}

// add has a socket watched.
func (g *Guard) add(kind byte, s syscall.Conn) (uint64, error) {
	fd, err := copyOf(s)
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last++
	id := g.last
	g.sockets[id] = &guarded{kind, fd}
	if err := g.tell(kind, id, fd); err != nil {
		delete(g.sockets, id)
		return 0, errors.Join(err, unix.Close(fd))
	}
	return id, nil
}

// drop has a socket watched no longer; a connection ends with it.
func (g *Guard) drop(id uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sockets[id]
	if s == nil {
		return
	}
	delete(g.sockets, id)
	if s.kind == tellPeer {
		socket.HangUp(s.fd)
	}
	_ = unix.Close(s.fd)
	_ = g.tell(tellDrop, id, noSocket) // one that was not told has copies of what is shut
}

// Listener is a listener whose connections are guarded.
type Listener struct {
	*net.UnixListener
	g  *Guard
	id uint64

	mu    sync.Mutex
	peers map[uint64]bool // guarded by mu; nil: nobody is let in any more
}

// Accept implements [net.Listener]. A connection that cannot be guarded is refused.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		id, err := l.g.add(tellPeer, c)
		if err != nil {
			c.Close()
			continue
		}
		if l.enter(id) {
			return c, nil
		}
		l.g.drop(id)
		c.Close()
	}
}

// enter counts a connection in, unless everybody was hung up on.
func (l *Listener) enter(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers == nil {
		return false
	}
	l.peers[id] = true
	return true
}

// HangUp ends all connections that were accepted, and those that will be.
func (l *Listener) HangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.peers {
		l.g.drop(id)
	}
	l.peers = nil
}

// Close implements [net.Listener]; the connections stay.
func (l *Listener) Close() error {
	l.g.drop(l.id)
	return l.UnixListener.Close()
}

// watch is the guard's own side.
type watch struct {
	conn    int
	sockets map[uint64]peer
}

type peer struct {
	kind byte
	fd   int
}

// Run guards the process at the other end of conn until that is gone.
func Run(conn *os.File, limit time.Duration) error {
	w := &watch{conn: int(conn.Fd()), sockets: map[uint64]peer{}}
	defer w.hangUp()
	for wait := limit; ; {
		heard, err := w.hear(wait)
		switch {
		case err != nil:
			return err
		case heard:
			wait = limit
		default:
			w.hangUp()
			wait = limit / 20 // and again, for those who connect meanwhile
		}
	}
}

// errGone: the guarded process has ended.
var errGone = errors.New("the process that was guarded is gone")

// hear takes one message, if there is one in time.
func (w *watch) hear(wait time.Duration) (bool, error) {
	p := []unix.PollFd{{Fd: int32(w.conn), Events: unix.POLLIN}}
	n, err := unix.Poll(p, int(wait.Milliseconds()))
	if errors.Is(err, unix.EINTR) {
		return true, nil
	}
	if err != nil || n == 0 {
		return false, err
	}
	var msg [tellSize]byte
	oob := make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := unix.Recvmsg(w.conn, msg[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return false, err
	}
	if n != tellSize {
		return false, errGone
	}
	return true, w.take(msg[0], binary.LittleEndian.Uint64(msg[1:]), oob[:k])
}

func (w *watch) take(kind byte, id uint64, oob []byte) error {
	if kind == tellDrop {
		if s, ok := w.sockets[id]; ok {
			_ = unix.Close(s.fd)
			delete(w.sockets, id)
		}
	}
	if len(oob) == 0 {
		return nil
	}
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(list) != 1 {
		return errors.Join(err, errors.New("a message with no socket"))
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 {
		return errors.Join(err, errors.New("a message with no socket"))
	}
	w.sockets[id] = peer{kind, fds[0]}
	return nil
}

// hangUp shuts all connections, and turns away who waits to be let in.
func (w *watch) hangUp() {
	for id, s := range w.sockets {
		if s.kind == tellPeer {
			socket.HangUp(s.fd)
			_ = unix.Close(s.fd)
			delete(w.sockets, id)
			continue
		}
		p := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		for n, _ := unix.Poll(p, 0); n > 0; n, _ = unix.Poll(p, 0) {
			fd, _, err := unix.Accept(s.fd)
			if err != nil {
				break
			}
			_ = unix.Close(fd)
		}
	}
}
