package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tidemark/mount"
)

// frozen is a file system whose writes are stopped for a shot, or about to be. At a certain time it goes on, whatever happens.
type frozen struct {
	s     *session
	dir   string
	begun time.Time
	until time.Time
	came  chan error // of the kernel; buffered

	once sync.Once // guards err
	err  error     // of the thaw

	mu    sync.Mutex
	guard *time.Timer // guarded by mu
	is    bool        // by us; guarded by mu
	ended time.Time   // nobody wants it frozen since; guarded by mu
}

// freeze begins to stop the writes of a file system.
func (s *session) freeze(dir string) *frozen {
	f := &frozen{s: s, dir: dir, begun: time.Now(), came: make(chan error, 1)}
	f.until = f.begun.Add(s.limits.frozen)
	s.noteFrozen(dir)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.guard = time.AfterFunc(s.limits.frozen, func() {
		if err := f.thaw(); err != nil {
			slog.Error("a file system stays frozen", "directory", dir, "error", err)
		}
	})
	go func() { f.came <- f.stop() }()
	return f
}

// stop has the kernel stop the writes. If that takes so long that nobody wants it any more, they go on at once.
func (f *frozen) stop() error {
	if err := mount.Freeze(f.dir); err != nil {
		f.s.forgetFrozen(f.dir)
		return err
	}
	f.mu.Lock()
	f.is = true
	late := !f.ended.IsZero()
	f.mu.Unlock()
	if !late {
		return nil
	}
	err := f.s.thaw([]string{f.dir})
	if err != nil {
		slog.Error("a file system stays frozen", "directory", f.dir, "error", err)
	}
	return err
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
		return fmt.Errorf("%s could not be frozen within %v", f.dir, limit)
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
			f.err = f.s.thaw([]string{f.dir})
		}
		f.mu.Lock()
		f.ended = time.Now()
		f.mu.Unlock()
	})
	return f.err
}

// thawWithin thaws a file system, and leaves a thaw to itself that hangs.
func (s *session) thawWithin(f *frozen) error {
	_, err := within(context.Background(), s.limits.freeze, "thaw "+f.dir, func() (none, error) { return none{}, f.thaw() })
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
