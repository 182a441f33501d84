package mount

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark/internal/process"
	"tidemark/internal/vfs"
)

// Launcher attaches disks, and keeps one attacher process started ahead of need: the start of
// a large program takes nearly as long as all else that attaching takes. The one in reserve knows of no
// disk, waits, and ends with the process that started it. Methods may be called concurrently.
type Launcher struct {
	reserve chan *process.Process // holds one, or none
	ending  chan struct{}
	filling sync.WaitGroup
}

const (
	// refillAfter is how long after an attachment the next process is started, so that it is not in
	// the way of who now mounts the disk.
	refillAfter = 100 * time.Millisecond
	// refillRetry is how long after a process could not be started it is tried again.
	refillRetry = 10 * time.Second
)

// NewLauncher returns a launcher that begins to fill its reserve. Close it.
func NewLauncher() *Launcher {
	l := &Launcher{reserve: make(chan *process.Process, 1), ending: make(chan struct{})}
	l.refill(0)
	return l
}

// Close ends the process in reserve. It is called once, when nothing is attached any more; what is
// attached stays.
func (l *Launcher) Close() {
	close(l.ending)
	l.filling.Wait()
	select {
	case p := <-l.reserve:
		p.Dismiss()
	default:
	}
}

// Attach does what the function [Attach] does, sooner.
func (l *Launcher) Attach(ctx context.Context, cfg Config) (*Attachment, error) {
	a, err := attachWith(ctx, cfg, l.take)
	if errors.Is(err, process.ErrSilent) && ctx.Err() == nil { // the one in reserve may have died just then
		return Attach(ctx, cfg)
	}
	return a, err
}

// take returns the process in reserve, or else a new one.
func (l *Launcher) take() (*process.Process, error) {
	select {
	case p := <-l.reserve:
		l.refill(refillAfter)
		if p.Lives() {
			return p, nil
		}
	default:
	}
	return startAttacher()
}

// refill starts a process for the reserve after a while.
func (l *Launcher) refill(after time.Duration) {
	l.filling.Go(func() {
		for {
			select {
			case <-l.ending:
				return
			case <-time.After(after):
			}
			if p, err := startAttacher(); err == nil {
				l.reserve <- p
				return
			}
			after = refillRetry
		}
	})
}

// Attach starts an attacher process for cfg, which is this executable with the argument "attach", and
// returns when its block device is there. The process goes on when the caller ends. On error nothing
// is left: bad configuration is ErrConfig, a name that is taken ErrExists, and whatever the
// attacher could not do (reach the server, most of all) is in the error's text.
//
// If ctx ends first, the attacher is killed and what it made is cleaned up.
func Attach(ctx context.Context, cfg Config) (*Attachment, error) {
	return attachWith(ctx, cfg, startAttacher)
}

func attachWith(ctx context.Context, cfg Config, start func() (*process.Process, error)) (*Attachment, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ac := attachConfig{Config: cfg, Token: rand.Text()}
	if err := makeDir(ac.dir()); err != nil {
		return nil, err
	}
	p, err := start()
	if err == nil {
		err = tellAttacher(ctx, p, ac)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach %s: %w", cfg.Name, err), os.RemoveAll(ac.dir()))
	}
	return load(cfg.StateDir, cfg.Name)
}

// startAttacher starts an attacher that waits for its configuration.
func startAttacher() (*process.Process, error) { return process.Start("attach") }

// tellAttacher has a process attach a disk. Of one that ends without a word, what it made is undone here.
func tellAttacher(ctx context.Context, p *process.Process, cfg attachConfig) error {
	if err := noteStarting(p, cfg); err != nil { // who is told without that would be known to nobody if we were killed now
		p.Dismiss()
		return err
	}
	err := p.Tell(ctx, cfg)
	if errors.Is(err, process.ErrSilent) {
		err = errors.Join(fmt.Errorf("%w: %s", err, process.LastLine(filepath.Join(cfg.dir(), logName))), sweepDevices(tagOf(cfg.Token)))
	}
	return err
}

// makeDir makes the directory of an attachment's state, and takes its name with it.
func makeDir(dir string) error {
	if len(filepath.Join(dir, socketName)) > 107 {
		return fmt.Errorf("%w: %s is too long a path for a unix socket", ErrConfig, dir)
	}
	if err := vfs.MkdirAll(vfs.OS, filepath.Dir(dir)); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", filepath.Base(dir), ErrExists)
	}
	return err
}
