package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

const (
	// defaultConns is where more connections stopped to help (DESIGN.md, "Measured").
	defaultConns = 2

	backoffMin = 10 * time.Millisecond
	backoffMax = time.Second

	// reviveAfter leaves whoever usually starts a server that died the time to do so.
	reviveAfter = 300 * time.Millisecond
	reviveEvery = 2 * time.Second

	// tcpDead is how long a TCP peer may leave our bytes unacknowledged before the
	// connection counts as broken: a host that lost power says nothing.
	tcpDead = 30 * time.Second

	// deniedPause is the pause before a server that does not let us in is asked again.
	deniedPause = 5 * time.Second

	// shutOutFor is for how long a server has to say that it has shut us out until that is final: a host that joins anew is told so from the moment that
	// its token is taken until its next certificate is durable. That is within the 15 s that a greeting may take, or it has failed.
	shutOutFor = 30 * time.Second
)

// ErrShutOut: the server lets nobody in any more by what Dial has to show.
var ErrShutOut = errors.New("the server has shut us out")

// ErrClosed is returned once a relay was closed or has given up.
var ErrClosed = errors.New("the relay is closed")

// Options say which export to relay and how.
type Options struct {
	Network, Address string // of the server, as for net.Dial: unix or tcp
	// Dial connects with the server instead, where it is not nil. session counts the tries to make a session: a server that
	// lives on through the end of a connection has to end what came in an earlier session before it serves a later one. An error
	// of kind Denied is tried again less often; one that wraps ErrShutOut is final when it is still told after shutOutFor.
	Dial     func(ctx context.Context, session uint64) (net.Conn, error)
	Export   string
	ReadOnly bool          // never write, even if the server would let us
	Conns    int           // the most connections; 0 for the default
	LogBytes int           // memory for writes that are not durable; at least 8 MiB
	GiveUp   time.Duration // fail everything after so long without a server; 0 never
	// Revive starts a server that is gone; nil: others do. It is called when nobody has done so for a moment, and
	// again after a while as long as nobody listens at the address.
	Revive func(context.Context) error
	Log    *slog.Logger

	shutOutFor time.Duration // as the constant, but for tests
}

// Relay is one export, kept alive. All methods may be called concurrently.
type Relay struct {
	opt   Options
	info  Info
	log   *replayLog
	lanes []*lane
	tries uint64 // to make a session; of Open, then of supervise

	failed    chan error     // a connection of the present session broke
	wantFlush chan struct{}  // the log asks for a flush
	closing   chan struct{}  // closed by Close
	closeOnce sync.Once      //
	running   sync.WaitGroup // supervise and flushWhenAsked
	repliers  sync.WaitGroup // of the present session
	dead      atomic.Bool    // no session will ever be again; set with all sendMu held

	mu     sync.Mutex // guards status
	status Status
}

// Status is what a relay knows about itself.
type Status struct {
	Connected   bool
	Since       time.Time // of Connected
	Connections int
	Reconnects  int    // sessions after the first
	Replayed    int    // writes sent again, ever
	HeldBytes   int64  // memory of writes that the server may still forget
	HeldWrites  int    //
	LastError   string // why the last session ended, or the last attempt failed
	Failed      bool   // a flush failed: flushes are refused until the next session
	GaveUp      bool   // everything fails for good
}

// Open connects to the server and opens the export.
func Open(ctx context.Context, opt Options) (*Relay, error) {
	if opt.Conns == 0 {
		opt.Conns = defaultConns
	}
	if opt.shutOutFor == 0 {
		opt.shutOutFor = shutOutFor
	}
	r := &Relay{
		opt:       opt,
		failed:    make(chan error, 1),
		wantFlush: make(chan struct{}, 1),
		closing:   make(chan struct{}),
	}
	conns, info, err := r.dialAll(ctx)
	if err != nil {
		return nil, err
	}
	if info.ReadOnly() && !opt.ReadOnly {
		closeAll(conns)
		return nil, fmt.Errorf("%w: export %q is read-only; ask for a read-only device", ErrRefused, opt.Export)
	}
	r.info = info
	if r.log, err = newReplayLog(opt.LogBytes); err != nil {
		closeAll(conns)
		return nil, fmt.Errorf("memory for replay: %w", err)
	}
	for range conns {
		r.lanes = append(r.lanes, newLane(r))
	}
	r.lockAll()
	r.install(conns)
	r.unlockAll()
	r.running.Go(func() { r.supervise(conns) })
	r.running.Go(r.flushWhenAsked)
	return r, nil
}

// Info returns what the server said about the export.
func (r *Relay) Info() Info { return r.info }

// Status returns the state of the relay now.
func (r *Relay) Status() Status {
	r.mu.Lock()
	st := r.status
	r.mu.Unlock()
	st.HeldBytes, st.HeldWrites = r.log.held()
	st.Failed = r.log.hasFailed()
	st.GaveUp = r.dead.Load()
	return st
}

// Close ends the relay: what is in flight fails, and so does what comes later.
// It does not flush. Readers of /dev/fuse must have ended, or end by themselves.
func (r *Relay) Close() error {
	var err error
	r.closeOnce.Do(func() {
		close(r.closing)
		r.running.Wait()
		err = r.log.free()
	})
	return err
}

// dial opens one connection of a session and brings it into the transmission phase.
func (r *Relay) dial(ctx context.Context, session uint64) (conn, Info, error) {
	c, err := r.connect(ctx, session)
	if err != nil {
		return nil, Info{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	info, err := handshake(c, r.opt.Export)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close() // the handshake's error is the one that counts
		return nil, Info{}, fmt.Errorf("%s, export %q: %w", r.opt.Address, r.opt.Export, err)
	}
	s, err := take(c)
	return s, info, err
}

// connect connects with the server.
func (r *Relay) connect(ctx context.Context, session uint64) (net.Conn, error) {
	if r.opt.Dial != nil {
		return r.opt.Dial(ctx, session)
	}
	d := net.Dialer{Timeout: handshakeTimeout, KeepAlive: 5 * time.Second}
	c, err := d.DialContext(ctx, r.opt.Network, r.opt.Address)
	if err != nil {
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := setUserTimeout(t); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func setUserTimeout(t *net.TCPConn) error {
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpDead/time.Millisecond))
	})
	return errors.Join(err, serr)
}

// dialAll opens as many connections as the export and the options allow.
func (r *Relay) dialAll(ctx context.Context) ([]conn, Info, error) {
	r.tries++
	c, info, err := r.dial(ctx, r.tries)
	if err != nil {
		return nil, Info{}, err
	}
	conns := []conn{c}
	if !info.MultiConn() {
		return conns, info, nil
	}
	for len(conns) < r.opt.Conns {
		c, other, err := r.dial(ctx, r.tries)
		if err == nil && other != info {
			c.Close()
			err = fmt.Errorf("%w: two connections were told different things about the export", ErrProtocol)
		}
		if err != nil {
			closeAll(conns)
			return nil, Info{}, err
		}
		conns = append(conns, c)
	}
	return conns, info, nil
}

func closeAll(conns []conn) {
	for _, c := range conns {
		c.Close() // a connection that is given up has no error worth hearing
	}
}

func abortAll(conns []conn) {
	for _, c := range conns {
		c.Abort()
	}
}

func (r *Relay) lockAll() {
	for _, l := range r.lanes {
		l.sendMu.Lock()
	}
}

func (r *Relay) unlockAll() {
	for _, l := range r.lanes {
		l.sendMu.Unlock()
	}
}

// fail reports that a connection of the present session broke.
func (r *Relay) fail(err error) {
	select {
	case r.failed <- err:
	default: // the session is failing already
	}
}

// install starts a session on new connections. All sendMu are held.
func (r *Relay) install(conns []conn) {
	select {
	case <-r.failed: // of the session before
	default:
	}
	for i, l := range r.lanes {
		l.conn = conns[i]
		r.repliers.Go(func() { l.receive(conns[i]) })
	}
	r.mu.Lock()
	r.status.Connected, r.status.Since, r.status.Connections = true, time.Now(), len(conns)
	r.mu.Unlock()
}

// supervise waits for sessions to break and makes new ones, until the end.
func (r *Relay) supervise(conns []conn) {
	for conns != nil {
		var err error
		select {
		case err = <-r.failed:
		case <-r.closing:
			r.sayGoodbye(conns)
		}
		abortAll(conns)
		r.repliers.Wait()
		r.lockAll()
		for _, l := range r.lanes {
			l.conn = nil
		}
		r.unlockAll()
		closeAll(conns)
		r.note(err)
		conns = r.reconnect()
	}
	r.failEverything()
	r.log.close()
}

// sayGoodbye tells the server that we leave on purpose.
func (r *Relay) sayGoodbye(conns []conn) {
	defer time.AfterFunc(time.Second, func() { abortAll(conns) }).Stop() // for a sender that is stuck, too
	r.lockAll()
	defer r.unlockAll()
	var b [requestSize]byte
	putRequest(b[:], 0, cmdDisconnect, 0, 0, 0)
	for _, c := range conns {
		c.Write(b[:]) // a courtesy: it may be lost
	}
}

func (r *Relay) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status.Connected {
		r.status.Connected, r.status.Since = false, time.Now()
	}
	if err == nil || err.Error() == r.status.LastError {
		return
	}
	r.status.LastError = err.Error()
	r.opt.Log.Warn("no session with the server", "err", err)
}

// reconnect makes a new session, however long it takes. It returns nil when the
// relay is closed or gives up.
func (r *Relay) reconnect() []conn {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if r.opt.GiveUp > 0 {
		ctx, cancel = context.WithTimeout(ctx, r.opt.GiveUp)
		defer cancel()
	}
	go func() {
		select {
		case <-r.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	revive := time.Now().Add(reviveAfter)
	var shutOut time.Time // since when we are told that we are
	for wait := backoffMin; ctx.Err() == nil; wait = min(2*wait, backoffMax) {
		conns, err := r.session(ctx)
		if err == nil {
			return conns
		}
		r.note(err)
		if errors.Is(err, ErrShutOut) {
			if shutOut.IsZero() {
				shutOut = time.Now()
			}
			if time.Since(shutOut) >= r.opt.shutOutFor {
				r.opt.Log.Error("the server has shut us out, and all I/O fails from now on", "err", err)
				return nil
			}
		}
		if r.opt.Revive != nil && nobodyListens(err) && time.Now().After(revive) {
			if err = r.opt.Revive(ctx); err == nil {
				wait = 0
			} else {
				r.note(err)
			}
			revive = time.Now().Add(reviveEvery)
		}
		pause := wait
		if tidemark.KindOf(err) == tidemark.Denied {
			pause = deniedPause
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	return nil
}

// nobodyListens reports whether a connection failed because there is no process at the other end.
func nobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// session tries once to connect, to replay and to go on.
func (r *Relay) session(ctx context.Context) ([]conn, error) {
	conns, info, err := r.dialAll(ctx)
	if err != nil {
		return nil, err
	}
	if info != r.info || len(conns) != len(r.lanes) {
		closeAll(conns)
		return nil, fmt.Errorf("export %q is not what it was: %+v, now %+v", r.opt.Export, r.info, info)
	}
	r.lockAll()
	defer r.unlockAll()
	stop := context.AfterFunc(ctx, conns[0].Abort)
	n, err := r.replay(conns[0])
	if !stop() {
		err = errors.Join(err, ctx.Err())
	}
	if err != nil {
		closeAll(conns)
		return nil, fmt.Errorf("replay: %w", err)
	}
	reads := make([][]uint64, len(r.lanes))
	for i, l := range r.lanes {
		reads[i] = l.finish()
	}
	r.install(conns)
	for i, l := range r.lanes {
		l.readAgain(reads[i])
	}
	r.mu.Lock()
	r.status.Reconnects++
	r.status.Replayed += n
	r.mu.Unlock()
	r.opt.Log.Info("connected again", "replayed", n)
	return conns, nil
}

// failEverything answers what is in flight, and marks the relay dead so that
// the readers answer what comes later.
func (r *Relay) failEverything() {
	r.lockAll()
	defer r.unlockAll()
	r.dead.Store(true)
	for _, l := range r.lanes {
		for _, s := range l.takeAll(func(slot) bool { return true }) {
			l.answer(s, unix.EIO, nil)
		}
	}
	select {
	case <-r.closing:
	default:
		r.opt.Log.Error("gave up on the server: all I/O fails from now on", "after", r.opt.GiveUp)
	}
}

// flushWhenAsked keeps the log from filling up. It is its own goroutine because
// those who notice take replies, and must never wait for a send.
func (r *Relay) flushWhenAsked() {
	for {
		select {
		case <-r.wantFlush:
			l := r.lanes[0]
			l.begin()
			l.flush(nil, 0)
			l.end()
		case <-r.closing:
			return
		}
	}
}

// askFlush wakes flushWhenAsked if the log needs it.
func (r *Relay) askFlush() {
	if r.log.wantsFlush() {
		select {
		case r.wantFlush <- struct{}{}:
		default: // asked for in the session before, and still to be done
		}
	}
}
