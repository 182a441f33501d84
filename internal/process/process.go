// Package process starts processes of this program that outlive who started them, and finds
// them again.
//
// The starter gives such a process its configuration on standard input, and gets one word
// back: that it has begun its work, or why it has not. From then on the process is on its own; an [ID] that it notes
// somewhere tells it from a later process with the same number.
package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// wordFD is the file descriptor on which a process tells its starter how it went.
const wordFD = 3

// ErrSilent: the process ended, or was ended, before it gave its word.
var ErrSilent = errors.New("the process ended without a word")

// word is the one line that a process says to its starter.
type word struct {
	Error string `json:",omitempty"`
}

// Process is one that was started, seen by its starter. Methods may be called concurrently, but for Tell.
type Process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser // takes its configuration
	word  *os.File
	ended chan struct{}
}

// Start starts this program with one argument, in a session of its own. It should wait for its
// configuration, and end when none comes: it does so when we end.
//
// Its threads may not wait for write-back, if we may ask for that (PR_SET_IO_FLUSHER): it may be
// what the kernel writes back to.
func Start(arg string) (*Process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(exe, arg), ended: make(chan struct{})}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, p.in.Close())
	}
	p.word = r
	p.cmd.Stderr = os.Stderr         // until it has a log
	p.cmd.ExtraFiles = []*os.File{w} // wordFD
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = startAsFlusher(p.cmd)
	w.Close()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	go func() {
		p.cmd.Wait() // what it has to say comes as its word
		close(p.ended)
	}()
	return p, nil
}

// startAsFlusher starts a process whose threads may not wait for write-back from
// the first instruction on. The mark is inherited by fork from the thread that
// has it, and costs nothing here because the thread is thrown away.
func startAsFlusher(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the marked thread ends with us
		// An error means that we may not; the process finds that out by itself.
		_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
		started <- cmd.Start()
	}()
	return <-started
}

// PID returns the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Lives reports whether the process has not ended yet.
func (p *Process) Lives() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill ends the process, and waits for its end.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.ended
	p.word.Close()
}

// Dismiss ends a process that gets no configuration.
func (p *Process) Dismiss() {
	p.in.Close()
	select {
	case <-p.ended:
		p.word.Close()
	case <-time.After(patience):
		p.Kill()
	}
}

// patience is how long a process that is dismissed may take to end.
const patience = 5 * time.Second

// Tell gives the process its configuration, as JSON, and waits for its word. If that is an
// error, the process has ended. A process that says nothing, or not before ctx ends, is killed: [ErrSilent].
func (p *Process) Tell(ctx context.Context, config any) error {
	// What cannot be written, because the process has ended, is missed when no word comes.
	_ = errors.Join(json.NewEncoder(p.in).Encode(config), p.in.Close())
	defer context.AfterFunc(ctx, func() { p.word.SetReadDeadline(time.Unix(1, 0)) })()
	var w word
	if err := json.NewDecoder(p.word).Decode(&w); err != nil {
		p.Kill() // if it still runs
		return errors.Join(ErrSilent, ctx.Err())
	}
	if w.Error != "" {
		<-p.ended
		return errors.Join(errors.New(w.Error), p.word.Close())
	}
	return p.word.Close()
}

// LastLine is the last line of a log: what a process said last.
func LastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// Starter is who started the present process with [Start], as long as it waits for a word. One goroutine uses it.
type Starter struct{ pipe *os.File }

// FromStarter returns the starter. It is called once, early. Of a process that was started by
// hand it is nobody, and never gone.
func FromStarter() *Starter {
	if _, err := unix.FcntlInt(wordFD, unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return &Starter{}
	}
	return &Starter{os.NewFile(wordFD, "word")}
}

// ReadConfig reads what the starter gives the process. Without a configuration, because nothing needed the
// process, it returns io.EOF.
func ReadConfig(r io.Reader, config any) error {
	err := json.NewDecoder(io.LimitReader(r, 1<<20)).Decode(config)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w (this command is started by the server, not by hand)", err)
	}
	return err
}

// Tell tells the starter that the work has begun, or, with an error, why not.
func (s *Starter) Tell(err error) error {
	if s.pipe == nil {
		return nil
	}
	var w word
	if err != nil {
		w.Error = err.Error()
	}
	return errors.Join(json.NewEncoder(s.pipe).Encode(w), s.pipe.Close())
}

// Gone reports whether nobody waits for our word any more.
func (s *Starter) Gone() bool {
	if s.pipe == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(s.pipe.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLERR != 0
}

// look is how often a watched starter is looked at. Long enough to cost nothing; short enough that who
// comes next does not wait.
const look = 50 * time.Millisecond

// Watch calls gone, once, when nobody waits for our word any more, until stop is called.
func (s *Starter) Watch(gone func()) (stop func()) {
	if s.pipe == nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(look)
		defer tick.Stop()
		for !s.Gone() {
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
		gone()
	}()
	return func() {
		close(end)
		<-ended
	}
}

// OwnLog has what the process says go to a file in dir from now on.
func OwnLog(dir, name string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(unix.Dup3(int(f.Fd()), 1, 0), unix.Dup3(int(f.Fd()), 2, 0))
}
