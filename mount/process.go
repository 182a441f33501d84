package mount

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

// process is an attacher's, seen by who started it.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser // takes its configuration
	word  *os.File       // gives the one thing it says
	ended chan struct{}
}

// startProcess starts an attacher that waits for its configuration. Until it has that, it
// ends when we do.
func startProcess() (*process, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(exe, "attach"), ended: make(chan struct{})}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, p.in.Close())
	}
	p.word = r
	p.cmd.Stderr = os.Stderr         // until it has a log
	p.cmd.ExtraFiles = []*os.File{w} // readyFD
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = startAsFlusher(p.cmd)
	w.Close()
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	go func() {
		p.cmd.Wait() // what it has to say comes through word
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
		// An error means that we may not: see attacher.hold.
		_ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0)
		started <- cmd.Start()
	}()
	return <-started
}

// lives reports whether the process has not ended yet.
func (p *process) lives() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the process, and waits for its end.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
	p.word.Close()
}

// attach has the process attach a disk, and waits for its word.
func (p *process) attach(ctx context.Context, cfg attachConfig) error {
	// What cannot be written, because the process has ended, is missed when no word comes.
	_ = errors.Join(json.NewEncoder(p.in).Encode(cfg), p.in.Close())
	defer context.AfterFunc(ctx, func() { p.word.SetReadDeadline(time.Unix(1, 0)) })()
	var word ready
	err := json.NewDecoder(p.word).Decode(&word)
	switch {
	case err == nil && word.Error == "":
		return p.word.Close()
	case err == nil:
		<-p.ended
		return errors.Join(errors.New(word.Error), p.word.Close())
	}
	p.kill() // if it still runs; what it made is undone here
	err = errors.Join(fmt.Errorf("the attacher ended without a word: %s", lastLine(filepath.Join(cfg.dir(), logName))), ctx.Err())
	return errors.Join(err, sweepDevices(tagOf(cfg.Token)))
}

// lastLine is what a process said last.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
