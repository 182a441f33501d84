package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Options of a [Server]; the zero value is ready for use.
type Options struct {
	// TLS, if set, lets clients turn TLS on. It needs a certificate; to ask
	// clients for theirs, set ClientAuth.
	TLS *tls.Config
	// RequireTLS refuses everything else until the client turned TLS on. It
	// needs TLS.
	RequireTLS bool
	// Logger gets what an operator may want to know: failures of devices and
	// clients that break the protocol. Nil: nothing is logged.
	Logger *slog.Logger
	// HandshakeTimeout is how long a client may take to choose an export. 0: 30 s.
	HandshakeTimeout time.Duration
	// MaxConnections is how many clients are served at once; others are hung up
	// on. Each costs a thread and about 600 KiB, with all workers busy 6 MiB,
	// and up to 100 MiB while it has requests of 32 MiB in flight. 0: 256.
	MaxConnections int
	// Workers is how many requests that may wait (flushes, trims, reads that
	// are not in memory) a connection has in flight; more wait their turn. 0: 16.
	Workers int
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 256
	}
	if o.Workers <= 0 {
		o.Workers = 16
	}
}

// Server serves exports to NBD clients. All methods may be called concurrently.
type Server struct {
	exports Exports
	opt     Options

	mu        sync.Mutex
	closed    bool                      // guarded by mu
	listeners map[net.Listener]struct{} // guarded by mu
	conns     map[*conn]struct{}        // guarded by mu
	drops     int                       // calls of Disconnect; guarded by mu
	wg        sync.WaitGroup            // of conns; Add under mu while not closed
}

// NewServer returns a server of exports. It panics if opt requires TLS and has none.
func NewServer(exports Exports, opt Options) *Server {
	if opt.RequireTLS && opt.TLS == nil {
		panic("nbd: RequireTLS without TLS")
	}
	opt.setDefaults()
	return &Server{exports: exports, opt: opt, listeners: map[net.Listener]struct{}{}, conns: map[*conn]struct{}{}}
}

// Serve accepts clients on l until l fails or the server is shut down, when it
// returns [ErrServerClosed]. It closes l. One server may serve many listeners.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			go s.ServeConn(nc)
			continue
		}
		if s.isClosed() {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Out of descriptors, or a client that was gone already: go on, slower.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.opt.Logger.Warn("nbd: accept failed", "error", err, "pause", pause)
		time.Sleep(pause)
	}
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// ServeConn serves one client and closes nc. It returns when the client is gone.
func (s *Server) ServeConn(nc net.Conn) {
	c := &conn{srv: s, raw: nc, nc: nc}
	if !s.enter(c) {
		nc.Close()
		return
	}
	defer s.leave(c)
	peer := nc.RemoteAddr().String()
	switch err := c.run(); {
	case err == nil, errors.Is(err, errAborted), errors.Is(err, io.EOF):
	case errors.Is(err, errProtocol):
		s.opt.Logger.Warn("nbd: client hung up on", "client", peer, "error", err)
	default:
		s.opt.Logger.Info("nbd: connection lost", "client", peer, "error", err)
	}
}

// enter counts c in, unless the server is closed or full.
func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.conns) >= s.opt.MaxConnections {
		s.opt.Logger.Warn("nbd: too many connections", "limit", s.opt.MaxConnections)
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) leave(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// run serves a connection from the greeting to its end, and closes it.
func (c *conn) run() error {
	buffered, err := c.handshake()
	defer c.releaseExport()
	if err != nil {
		c.nc.Close()
		return err
	}
	st, err := newStream(c.nc)
	if err != nil {
		c.nc.Close()
		return err
	}
	c.srv.mu.Lock()
	c.st = st
	ending := c.ending.Load()
	c.srv.mu.Unlock()
	if !ending {
		err = c.transmit(buffered)
	}
	// Nothing is lost by a failure to close: all replies were sent, or were not.
	st.Close()
	return err
}

// handshake negotiates within the time allowed.
func (c *conn) handshake() ([]byte, error) {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opt.HandshakeTimeout)); err != nil {
		return nil, err
	}
	buffered, err := c.negotiate()
	if err != nil {
		return nil, err
	}
	return buffered, c.nc.SetDeadline(time.Time{})
}

// Shutdown stops accepting, lets every connection finish the requests that have
// arrived, and closes it. If ctx ends first it closes what is left the hard way
// and returns the error of ctx. Requests that a device never answers outlive it.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop((*conn).end)
	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.stop((*conn).abort)
		return ctx.Err()
	}
}

// Close stops accepting and drops all connections. Requests in flight may or
// may not have been done; none is acknowledged later. It returns when no
// connection uses its export any more.
func (s *Server) Close() error {
	s.stop((*conn).abort)
	s.wg.Wait()
	return nil
}

// stop closes the listeners and does how to every connection.
func (s *Server) stop(how func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		how(c)
	}
}

// Disconnect drops all connections to the export of that name and returns how
// many there were. Clients that reconnect are served again unless the export
// was removed.
func (s *Server) Disconnect(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops++
	n := 0
	for c := range s.conns {
		if c.exp != nil && c.exp.Name == name {
			c.abort()
			n++
		}
	}
	return n
}

// end makes the connection stop once it served what has arrived. Server.mu is held.
func (c *conn) end() {
	c.ending.Store(true)
	if c.st != nil {
		c.st.CloseRead()
		return
	}
	c.raw.Close()
}

// abort makes the connection fail. Server.mu is held.
func (c *conn) abort() {
	c.ending.Store(true)
	if c.st != nil {
		c.st.Abort()
		return
	}
	c.raw.Close()
}
