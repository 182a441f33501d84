package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tidemark/capture/qemu"
	"tidemark/mount"
)

// frozen is a file system, or are those of a virtual machine, whose writes are stopped for a shot, or about to be. At a certain time they
// go on, whatever happens.
type frozen struct {
	name  string // for people
	begin func() error
	end   func() error
	begun time.Time
	until time.Time
	came  chan error // of the kernel; buffered
	back  chan none  // closed when begin has come back, and what came too late was thawed

	once sync.Once // guards err
	err  error     // of the thaw

	mu    sync.Mutex
	guard *time.Timer // guarded by mu
	is    bool        // by us; guarded by mu
	ended time.Time   // nobody wants it frozen since; guarded by mu
	left  bool        // it may be frozen, or become so; guarded by mu
}

// freezeDir begins to stop the writes of a file system that is mounted here.
func (s *session) freezeDir(dir string) *frozen {
	s.noteFrozen(dir)
	return s.freeze("the file system at "+dir, func() error {
		err := mount.Freeze(dir)
		if err != nil {
			s.forgetFrozen(dir)
		}
		return err
	}, func() error { return s.thaw([]string{dir}) })
}

// freeze begins to stop writes, by a function that may hang.
func (s *session) freeze(name string, begin, end func() error) *frozen {
	f := &frozen{name: name, begin: begin, end: end, begun: time.Now(), came: make(chan error, 1), back: make(chan none), left: true}
	f.until = f.begun.Add(s.limits.frozen)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guard = time.AfterFunc(s.limits.frozen, func() { _ = f.thaw() }) // its error is told to whoever lets go of it
	go func() { f.came <- f.stop() }()
	return f
}

// tell tells of a thaw that failed when nobody waited for it.
func (f *frozen) tell(err error) {
	if err != nil {
		slog.Error("something stays frozen", "what", f.name, "error", err)
	}
}

// stop stops the writes. If that takes so long that nobody wants it any more, they go on at once.
func (f *frozen) stop() error {
	defer close(f.back)
	if err := f.begin(); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.left = errors.Is(err, qemu.ErrMayBeFrozen)
		return err
	}
	f.mu.Lock()
	f.is = true
	late := !f.ended.IsZero()
	f.mu.Unlock()
	if late {
		f.tell(f.release())
	}
	return nil
}

// release thaws it.
func (f *frozen) release() error {
	err := f.end()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = err != nil
	return err
}

// mayBeLeft reports whether it may be frozen, or become so.
func (f *frozen) mayBeLeft() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.left
}

// await waits until it is frozen.
func (f *frozen) await(ctx context.Context, limit time.Duration) error {
	select {
	case err := <-f.came:
		return err
	case <-ctx.Done():
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return ctx.Err()
		}
		return fmt.Errorf("%s could not be frozen within %v", f.name, limit)
	}
}

// thaw lets it go on. It may be called again, and concurrently.
func (f *frozen) thaw() error {
	f.once.Do(func() {
		f.mu.Lock()
		f.guard.Stop()
		f.ended = time.Now()
		is := f.is
		f.mu.Unlock()
		if is {
			f.err = f.release()
		}
		f.mu.Lock()
		f.ended = time.Now()
		f.mu.Unlock()
	})
	return f.err
}

// thawWithin thaws a file system, and leaves a thaw to itself that hangs.
func (s *session) thawWithin(f *frozen) error {
	_, err := within(context.Background(), s.limits.freeze, "thaw "+f.name, func() (none, error) { return none{}, f.thaw() })
	return err
}

// lasts reports whether it is frozen and remains so for a while, unless it is thawed.
func (f *frozen) lasts(d time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.is && f.ended.IsZero() && time.Now().Add(d).Before(f.until)
}

// held is for how long writes were stopped.
func (f *frozen) held() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended.IsZero() {
		return time.Since(f.begun)
	}
	return f.ended.Sub(f.begun)
}

// writeBack writes a file system back, for at most so long. One that hangs is not asked again before it has come back.
func (s *session) writeBack(ctx context.Context, dir string, limit time.Duration) error {
	s.mu.Lock()
	hangs := s.writing[dir]
	s.writing[dir] = true
	s.mu.Unlock()
	if hangs {
		return fmt.Errorf("write %s back: it hangs since the last time", dir)
	}
	_, err := within(ctx, limit, "write "+dir+" back", func() (none, error) {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.writing, dir)
		}()
		return none{}, s.syncFS(dir)
	})
	return err
}

// within waits for what fn returns for at most so long. One that hangs, because a disk does, is left to itself.
func within[R any](ctx context.Context, limit time.Duration, what string, fn func() (R, error)) (r R, err error) {
	type answer struct {
		r   R
		err error
	}
	came := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a.err = fmt.Errorf("%s: a fault of Tidemark: %v", what, p)
			}
			came <- a
		}()
		a.r, a.err = fn()
	}()
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case a := <-came:
		return a.r, a.err
	case <-late.C:
		return r, fmt.Errorf("%s: it hangs, and was given up after %v", what, limit)
	case <-ctx.Done():
		return r, fmt.Errorf("%s: %w", what, ctx.Err())
	}
}
