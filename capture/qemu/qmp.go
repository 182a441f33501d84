package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Event is something that the machine told without being asked.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

// CommandError is the machine's refusal of a command.
type CommandError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

// Error implements error.
func (e *CommandError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Desc) }

var (
	// errNotQMP: who answers on a socket is no QEMU.
	errNotQMP = errors.New("it does not speak QMP")
	// errSilent: nobody greeted us. QEMU serves one client of a socket; others wait in line.
	errSilent = errors.New("it does not answer")
	// errHungUp: the connection ended without a word.
	errHungUp = errors.New("it hangs up")
)

const (
	// greetTimeout is how long a machine may take to greet a client.
	greetTimeout = 5 * time.Second
	// maxMessage bounds a message of the machine, in bytes: those of the largest machines are a few MiB.
	maxMessage = 64 << 20
	// maxEvents is how many events wait to be looked at; more are dropped, and found out by polling.
	maxEvents = 1024
)

// Monitor is a connection to a machine's QMP socket. Its methods may be called concurrently.
type Monitor struct {
	conn net.Conn
	uid  int // of the user that the machine runs as
	gid  int
	// Events are told in order; it is closed when the connection is lost.
	Events chan Event

	send sync.Mutex // held by who writes a command

	mu      sync.Mutex
	last    uint64                  // number of the newest command; guarded by mu
	waiting map[uint64]chan message // who waits for an answer; guarded by mu
	err     error                   // why the connection ended; guarded by mu
}

// message is anything that a machine sends.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	ID       uint64          `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *CommandError   `json:"error"`
	Event
}

// parseMessage reads one line of a machine.
func parseMessage(line []byte) (m message, err error) {
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: %w", errNotQMP, err)
	}
	if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Name == "" {
		return m, errNotQMP
	}
	return m, nil
}

// Dial connects to a machine's QMP socket.
func Dial(ctx context.Context, path string) (m *Monitor, err error) {
	for range 5 {
		m, err = dial(ctx, path)
		if !errors.Is(err, errHungUp) {
			return m, err
		}
		select { // as QEMU does for a moment after another client has left
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(errNotQMP, err)
}

func dial(ctx context.Context, path string) (*Monitor, error) {
	d := net.Dialer{Timeout: greetTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	m := &Monitor{conn: conn, Events: make(chan Event, maxEvents), waiting: map[uint64]chan message{}}
	r := bufio.NewReader(conn)
	if err := errors.Join(m.findUser(), m.greet(r)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go m.read(r)
	if err := m.Run(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// findUser asks the kernel whose process the machine is.
func (m *Monitor) findUser() error {
	raw, err := m.conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(cerr, err); err != nil {
		return fmt.Errorf("ask whose socket it is: %w", err)
	}
	m.uid, m.gid = int(cred.Uid), int(cred.Gid)
	return nil
}

func (m *Monitor) greet(r *bufio.Reader) error {
	if err := m.conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	line, err := readLine(r)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() && len(line) == 0 {
		return errSilent
	}
	if err != nil && len(line) == 0 {
		return fmt.Errorf("%w: %w", errHungUp, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotQMP, err)
	}
	if msg, err := parseMessage(line); err != nil || msg.Greeting == nil {
		return errors.Join(errNotQMP, err)
	}
	return m.conn.SetDeadline(time.Time{})
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxMessage {
			return nil, fmt.Errorf("a message of more than %d bytes", maxMessage)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// read hands out what the machine sends until the connection ends.
func (m *Monitor) read(r *bufio.Reader) {
	for {
		line, err := readLine(r)
		var msg message
		if err == nil {
			msg, err = parseMessage(line)
		}
		if err != nil {
			m.end(err)
			return
		}
		if msg.Name != "" {
			select {
			case m.Events <- msg.Event:
			default:
			}
			continue
		}
		m.mu.Lock()
		ch := m.waiting[msg.ID]
		delete(m.waiting, msg.ID)
		m.mu.Unlock()
		if ch != nil {
			ch <- msg
		}
	}
}

func (m *Monitor) end(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("the machine closed its QMP socket")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	for id, ch := range m.waiting {
		close(ch)
		delete(m.waiting, id)
	}
	close(m.Events)
}

// Close ends the connection.
func (m *Monitor) Close() error { return m.conn.Close() }

// command is what a machine is told to do, with arguments that become JSON.
type command struct {
	name string
	args any
}

// Run has the machine do a command, with arguments that become JSON, and stores what it returns in
// out, unless that is nil. A refusal is a [*CommandError].
func (m *Monitor) Run(ctx context.Context, name string, args, out any) error {
	errs, err := m.batch(ctx, []command{{name, args}}, out)
	if err != nil {
		return err
	}
	return errs[0]
}

// batch has the machine do commands one after another, and returns what became of each. All are sent at once: the machine does them
// also if we die then. What they return is stored in out, unless that is nil.
func (m *Monitor) batch(ctx context.Context, list []command, out any) (became []error, err error) {
	var lines []byte
	var answers []chan message
	for _, c := range list {
		id, ch, err := m.begin()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		line, err := json.Marshal(struct {
			Execute   string `json:"execute"`
			Arguments any    `json:"arguments,omitempty"`
			ID        uint64 `json:"id"`
		}{c.name, c.args, id})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		lines, answers = append(append(lines, line...), '\n'), append(answers, ch)
	}
	m.send.Lock()
	_, err = m.conn.Write(lines)
	m.send.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list[0].name, err)
	}
	for i, ch := range answers {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", list[i].name, ctx.Err())
		case msg, ok := <-ch:
			became = append(became, m.answer(list[i].name, msg, ok, out))
		}
	}
	return became, nil
}

func (m *Monitor) begin() (uint64, chan message, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, nil, m.err
	}
	m.last++
	ch := make(chan message, 1)
	m.waiting[m.last] = ch
	return m.last, ch, nil
}

func (m *Monitor) answer(command string, msg message, ok bool, out any) error {
	switch {
	case !ok:
		m.mu.Lock()
		defer m.mu.Unlock()
		return fmt.Errorf("%s: %w", command, m.err)
	case msg.Error != nil:
		msg.Error.Command = command
		return msg.Error
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(msg.Return, out); err != nil {
		return fmt.Errorf("%s: read the answer: %w", command, err)
	}
	return nil
}
