package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// wireFD is the agent's end of the socket.
const wireFD = 3

// Config says how an agent is run.
type Config struct {
	// Command is the program that calls [Run]; empty: this program with "agent".
	Command []string
	// Lock is a file that the agent holds locked as long as it lives.
	Lock string
	// Places are where it keeps its taps.
	Places Places
	// Logger is told of agents that die; nil: slog's default.
	Logger *slog.Logger
}

// Agent is the server's side of an agent. Its methods may be called concurrently. Each
// returns when the thing is done or has failed on the host; a context that is done cuts it
// short there, and the method still waits until it is over.
type Agent struct {
	cfg   Config
	host  string        // another one, whose agent comes to us; empty: ours, which we start
	grace time.Duration // see link
	every time.Duration // see stayHeard

	mu     sync.Mutex
	link   *link // to the process that runs; nil: none does
	closed bool
	// expected are who waits for a connection that brings a ticket: see OpenTapped.
	expected map[string]chan<- dialled
}

// New returns an Agent whose process is started by the first call.
func New(cfg Config) *Agent {
	if len(cfg.Command) == 0 {
		cfg.Command = []string{"/proc/self/exe", "agent"}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Agent{cfg: cfg}
}

// NewRemote returns an Agent of another host, which is there as long as [Agent.Take] has a connection of it. Before and after, calls
// are errors of kind Unavailable.
func NewRemote(host string) *Agent { return &Agent{host: host, grace: graceTime, every: aliveEvery} }

// Take calls the agent of another host on a connection until that ends, and closes it. A later connection takes the place of an earlier one. It
// returns an error of kind Invalid if the agent has said more at once than it may, and ErrSilent if it is silent for too long.
func (a *Agent) Take(conn net.Conn) (err error) {
	l := newLink(conn, tidemark.Errorf(tidemark.Unavailable, "the connection to host %s was lost", a.host).WithHint("it comes back by itself, if the agent there runs"))
	l.grace, l.in.most = a.grace, maxMessage
	close(l.held)
	a.mu.Lock()
	before, closed := a.link, a.closed
	if !closed {
		a.link = l
	}
	a.mu.Unlock()
	if before != nil {
		before.cut()
	}
	if !closed {
		err = a.listen(l)
	}
	conn.Close()
	close(l.gone)
	if !errors.Is(err, errTooLong) && !errors.Is(err, ErrSilent) { // that a connection ends is what they do
		err = nil
	}
	return err
}

// listen listens on a link of another host's agent until that ends or is silent for too long, and returns why.
func (a *Agent) listen(l *link) (err error) {
	ended, silent := make(chan none), make(chan bool, 1)
	go func() {
		lost := l.stayHeard(a.every, ended)
		if lost {
			l.cut()
		}
		silent <- lost
	}()
	err = l.listen()
	close(ended)
	if <-silent {
		return ErrSilent
	}
	return err
}

// graceTime is how long an agent of another host may take to cut a call short.
const graceTime = 5 * time.Second

// Connected reports whether calls can be made now.
func (a *Agent) Connected() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.link != nil && !a.link.dead()
}

// Reach fails if no calls can be made now.
func (a *Agent) Reach(ctx context.Context) error {
	_, err := a.current(ctx)
	return err
}

// patience is how long a Close waits for the agent's last system call.
const patience = 30 * time.Second

// Close ends the agent, and what it is doing. Its disks must still be served. Of an agent that
// does not end it says so, and leaves it: the next one waits for it.
func (a *Agent) Close() error {
	a.mu.Lock()
	l := a.link
	a.link, a.closed = nil, true
	a.mu.Unlock()
	if l == nil {
		return nil
	}
	err := l.conn.Close()
	select {
	case <-l.gone:
	case <-time.After(patience):
		err = errors.Join(err, errors.New("the agent does not end: it waits for a disk"))
	}
	return err
}

// link is a process, and the calls that it works on.
type link struct {
	*wire
	conn net.Conn
	held chan struct{} // closed when the agent is the only one
	gone chan struct{} // closed when the process has ended, or the connection to it
	lost error         // what its calls return then
	// grace is how long the answer to a call is waited for that was cut short: an agent of another host may hang. 0: for ever.
	grace time.Duration

	mu    sync.Mutex
	last  uint64
	calls map[uint64]*call // nil: no more answers will come
}

type call struct {
	note   func(json.RawMessage)
	answer chan message
}

// current returns the link to a living agent, and starts one if none lives.
func (a *Agent) current(ctx context.Context) (*link, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, tidemark.Errorf(tidemark.Unavailable, "the server stops")
	}
	if a.host != "" && (a.link == nil || a.link.dead()) {
		a.mu.Unlock()
		return nil, tidemark.Errorf(tidemark.Unavailable, "host %s is not connected", a.host).WithHint("does `tidemark agent` run there, and reach this server? Its log says")
	}
	if a.link == nil || a.link.dead() {
		l, err := a.start()
		if err != nil {
			a.mu.Unlock()
			return nil, fmt.Errorf("start the agent: %w", err)
		}
		a.link = l
	}
	l := a.link
	a.mu.Unlock()
	select {
	case <-l.held:
		return l, nil
	case <-l.gone:
		return nil, l.lost
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newLink(conn net.Conn, lost error) *link {
	return &link{wire: newWire(conn), conn: conn, held: make(chan struct{}), gone: make(chan struct{}), lost: lost, calls: map[uint64]*call{}}
}

var errGone = tidemark.Errorf(tidemark.Unavailable, "the agent has ended").WithHint("try again: it is started anew; the server's log may say why")

// start starts a process. Its own session keeps it from the signals of a terminal:
// it is the server that ends it.
func (a *Agent) start() (*link, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "agent")
	defer theirs.Close()
	conn, err := net.FileConn(ours) // a duplicate
	ours.Close()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(a.cfg.Command[0], a.cfg.Command[1:]...)
	cmd.Args[0] = os.Args[0] // what it is called in lists of processes
	cmd.Stderr, cmd.ExtraFiles, cmd.Dir = os.Stderr, []*os.File{theirs}, "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	l := newLink(conn, errGone)
	go l.listen()
	go a.watch(l, cmd)
	go a.greet(l)
	return l, nil
}

// watch waits for the end of the process.
func (a *Agent) watch(l *link, cmd *exec.Cmd) {
	err := cmd.Wait()
	l.conn.Close()
	l.fail()
	close(l.gone)
	a.mu.Lock()
	meant := a.closed
	a.mu.Unlock()
	if !meant {
		a.cfg.Logger.Error("the agent died, and is started anew when it is needed", "error", err)
	}
}

// greet waits until the agent of an earlier server is gone. It may be in the
// middle of I/O that went on only when this server served the disk again.
func (a *Agent) greet(l *link) {
	slow := time.AfterFunc(10*time.Second, func() {
		a.cfg.Logger.Warn("the agent of the last server still waits for a disk; everything waits for it")
	})
	defer slow.Stop()
	if _, err := l.call(context.Background(), "hello", mustJSON(greeting{a.cfg.Lock, a.cfg.Places}), nil); err != nil {
		a.cfg.Logger.Error("the agent cannot begin", "error", err)
		l.conn.Close() // which ends it
		return
	}
	close(l.held)
}

func (l *link) dead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls == nil
}

// fail ends all calls.
func (l *link) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		c.answer <- message{Done: true, Failure: pack(l.lost)}
	}
	l.calls = nil
}

// giveUp ends a call that is not answered.
func (l *link) giveUp(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.calls[id]; c != nil {
		delete(l.calls, id)
		c.answer <- message{Done: true, Failure: pack(tidemark.Errorf(tidemark.Unavailable, "the agent does not answer").WithHint("see what it waits for: its log, and its host's"))}
	}
}

// listen hands out what the agent says, and returns why it says no more.
func (l *link) listen() error {
	for {
		m, err := l.receive()
		if err != nil {
			l.fail()
			return err
		}
		l.mu.Lock()
		c := l.calls[m.Call]
		if c != nil && m.Done {
			delete(l.calls, m.Call)
		}
		l.mu.Unlock()
		switch {
		case c == nil:
		case m.Done:
			c.answer <- m
		case m.Note && c.note != nil:
			c.note(m.Body)
		}
	}
}

// call asks the agent to do something and returns its answer. note is called, one call
// at a time, with what it has to tell meanwhile.
func (l *link) call(ctx context.Context, verb string, body json.RawMessage, note func(json.RawMessage)) (json.RawMessage, error) {
	c := &call{note: note, answer: make(chan message, 1)}
	l.mu.Lock()
	if l.calls == nil {
		l.mu.Unlock()
		return nil, l.lost
	}
	l.last++
	id := l.last
	l.calls[id] = c
	l.mu.Unlock()
	if err := l.send(message{Call: id, Verb: verb, Within: remaining(ctx), Body: body}); err != nil {
		l.conn.Close() // listen then ends this call like the others
	}
	defer context.AfterFunc(ctx, func() {
		// That its time is over the agent knows by itself, and then says so.
		if ctx.Err() == context.Canceled {
			if err := l.send(message{Call: id, Cancel: true}); err != nil {
				l.conn.Close()
			}
		}
		if l.grace > 0 {
			time.AfterFunc(l.grace, func() { l.giveUp(id) })
		}
	})()
	m := <-c.answer
	if m.Failure != nil {
		return nil, m.Failure
	}
	return m.Body, nil
}

// remaining is how long a context lasts yet; 0 if it has no deadline.
func remaining(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	return max(time.Until(deadline), time.Nanosecond)
}

// do makes one call of an Agent.
func do[R any](ctx context.Context, a *Agent, verb string, args any, note func(json.RawMessage)) (r R, err error) {
	l, err := a.current(ctx)
	if err != nil {
		return r, err
	}
	body, err := l.call(ctx, verb, mustJSON(args), note)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf("read the agent's answer to %s: %w", verb, err)
	}
	return r, nil
}

// soon is do for a question that is answered at once, unless a disk or the agent hangs: then, and when ctx is done, it is an error, so that
// whoever only wants to look does not hang as well.
func soon[R any](ctx context.Context, a *Agent, verb string, args any) (R, error) {
	type answer struct {
		r   R
		err error
	}
	got := make(chan answer, 1)
	go func() {
		r, err := do[R](ctx, a, verb, args, nil)
		got <- answer{r, err}
	}()
	select {
	case x := <-got:
		return x.r, x.err
	case <-time.After(lookTime):
	case <-ctx.Done():
		select {
		case x := <-got: // which knows more of why
			return x.r, x.err
		default:
		}
	}
	var none R
	return none, tidemark.Errorf(tidemark.Unavailable, "nothing answers: its disk hangs, or the agent of its host")
}

// lookTime is how long a look at a mounted disk may take.
const lookTime = 5 * time.Second

func mustJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("agent: plain data cannot be encoded: %v", err))
	}
	return b
}
