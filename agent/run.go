package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/postgres"
)

// Run is the agent's process: it serves the server that started it, on the socket that it was
// given as descriptor 3, until that server closes it or dies. It then thaws what is frozen, has the programs run that let applications
// go on, and returns, whatever else is going on: the caller must end the process, which cuts it.
//
// Before anything else it takes the lock of its configuration, so that it begins only when the
// agent of an earlier server is gone, which may have to finish a system call first.
func Run(ctx context.Context) error {
	unix.CloseOnExec(wireFD)
	f := os.NewFile(wireFD, "server")
	if f == nil {
		return tidemark.Errorf(tidemark.Invalid, "it is not said which server this is the agent of").WithHint("give --server HOST:PORT; the server starts the agent of its own host by itself")
	}
	if st, err := f.Stat(); err != nil || st.Mode().Type() != os.ModeSocket {
		return tidemark.Errorf(tidemark.Invalid, "it is not said which server this is the agent of").WithHint("give --server HOST:PORT; the server starts the agent of its own host by itself")
	}
	// A service manager may signal all processes of the server: the server's own end is our sign.
	// Caught rather than ignored, because programs that we start would inherit the ignoring.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	s := newSession(f)
	s.own, s.tidied = true, make(chan none)
	return s.serve(ctx)
}

// session is what one server has going on with us.
type session struct {
	*wire
	own       bool // the server is of this host, and has started us
	lock      *os.File
	places    Places
	receivers receivers
	// dial makes one more connection to the server, for what it has called us to do; nil: it is of this host, and needs none.
	dial   func(ctx context.Context, purpose string) (net.Conn, error)
	limits limits
	syncFS func(dir string) error
	// cut ends the connection to the server, and says why; nil: it is of this host, and ends with us or we with it.
	cut       func(cause error)
	listening sync.Once // whether the server is alive
	tidied    chan none // closed when what an agent that was killed has left has been let go on
	shots     sync.WaitGroup

	mu       sync.Mutex
	live     map[uint64]context.CancelFunc // calls that run
	frozen   map[string]uint64             // file systems that we froze, by where they are mounted, and the number of the freeze
	freezes  uint64
	writing  map[string]bool      // file systems that are being written back for a shot
	barriers map[string]*barrier  // of shots that have parts on other hosts
	thawing  map[string]bool      // timelines whose guest may be frozen since a shot that has ended
	turns    map[string]chan none // of shots, by timeline: see turnOf
	ended    bool                 // no shot begins any more
	over     chan none            // closed when ended is set
}

func newSession(server io.ReadWriter) *session {
	s := &session{wire: newWire(server), limits: shotLimits, syncFS: syncFS, tidied: make(chan none), live: map[uint64]context.CancelFunc{},
		frozen: map[string]uint64{}, writing: map[string]bool{}, barriers: map[string]*barrier{}, thawing: map[string]bool{}, turns: map[string]chan none{}, over: make(chan none)}
	s.receivers.live = map[string]*postgres.Receiver{}
	close(s.tidied)
	return s
}

// serve works off calls until the server is gone.
func (s *session) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.endShots()
	defer cancel()
	for {
		m, err := s.receive()
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("hear the server: %w", err)
		}
		if m.Cancel {
			s.mu.Lock()
			if stop := s.live[m.Call]; stop != nil {
				stop()
			}
			s.mu.Unlock()
			continue
		}
		s.begin(ctx, m)
	}
}

// begin starts a call on a goroutine of its own.
func (s *session) begin(ctx context.Context, m message) {
	var stop context.CancelFunc
	if m.Within == 0 {
		ctx, stop = context.WithCancel(ctx)
	} else {
		ctx, stop = context.WithTimeout(ctx, m.Within)
	}
	s.mu.Lock()
	s.live[m.Call] = stop
	s.mu.Unlock()
	go func() {
		defer stop()
		answer := message{Call: m.Call, Done: true}
		result, err := s.answer(ctx, m)
		if err != nil {
			answer.Failure = pack(err)
		} else {
			answer.Body = mustJSON(result)
		}
		s.mu.Lock()
		delete(s.live, m.Call)
		s.mu.Unlock()
		if err := s.send(answer); err != nil {
			slog.Error("an answer did not reach the server", "verb", m.Verb, "error", err)
		}
	}()
}

// answer does what a call asks. A panic is the failure of that call alone.
func (s *session) answer(ctx context.Context, m message) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			slog.Error("a call panicked", "verb", m.Verb, "panic", p, "stack", string(debug.Stack()))
			err = tidemark.Errorf(tidemark.Internal, "a fault of Tidemark's agent: %v", p).WithHint("please report it with the server's log")
		}
	}()
	do := tapVerbs[m.Verb]
	if do == nil {
		do = diskVerbs[m.Verb]
	}
	if !s.own && do == nil {
		do = sendVerbs[m.Verb]
	}
	if s.own && m.Verb == "hello" {
		do = on(doHello)
	} else if s.own && do == nil {
		do = verbs[m.Verb]
	}
	if do == nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "the agent does not know %q", m.Verb).WithHint("server and agent must be of one version")
	}
	note := func(v any) {
		if err := s.send(message{Call: m.Call, Note: true, Body: mustJSON(v)}); err != nil {
			slog.Error("a note did not reach the server", "verb", m.Verb, "error", err)
		}
	}
	return do(ctx, s, m.Body, note)
}

// greeting is what a server tells the agent that it has started, before anything else.
type greeting struct {
	Lock   string
	Places Places
}

// doHello takes the lock, and waits for whoever has it.
func doHello(ctx context.Context, s *session, g greeting, _ func(any)) (none, error) {
	if g.Lock == "" {
		return none{}, tidemark.Errorf(tidemark.Invalid, "the agent was given no lock")
	}
	f, err := os.OpenFile(g.Lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return none{}, err
	}
	if err := waitLock(ctx, f); err != nil {
		return none{}, errors.Join(err, f.Close())
	}
	// For as long as the process lives.
	s.lock, s.places = f, g.Places
	if err := thawAttached(g.Places); err != nil { // before anybody can freeze again
		slog.Error("a file system may be frozen", "error", err)
	}
	endStepsLeft(g.Places) // before what they wrote to is taken away
	go func() {            // which may take as long as programs may
		defer close(s.tidied)
		for timeline, guest := range postAllLeft(g.Places) {
			s.seeThawed(timeline, guest, nil)
		}
	}()
	return none{}, nil
}

// waitLock locks a file.
func waitLock(ctx context.Context, f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// thawAll thaws what the server froze and will not thaw any more.
func (s *session) thawAll() {
	s.mu.Lock()
	dirs := slices.Collect(maps.Keys(s.frozen))
	s.mu.Unlock()
	if err := s.thaw(dirs); err != nil {
		slog.Error("a file system stays frozen", "error", err)
	}
}
