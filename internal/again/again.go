// Package again keeps what fails again and again from filling a log, and with it the disk that may be full already.
//
// What is tried several times a second fails several times a second, and always says the same. So a warning or an error that was
// logged, word for word, less than [Every] ago is left out; the next one says how many were.
package again

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Every is how often the same is logged.
const Every = time.Minute

// most is how many different records are remembered.
const most = 256

// Once returns a handler that gives next each record below slog.LevelWarn, and each other one that it was not given, with the same message and
// attributes, less than [Every] ago. A record in whose place others were left out has the attribute "repeated", their number. It may be used
// concurrently if next may.
func Once(next slog.Handler) slog.Handler {
	return &handler{next: next, said: &said{of: map[string]*one{}, now: time.Now}}
}

type handler struct {
	next  slog.Handler
	under string // the attributes and groups that records of this handler have beside their own
	said  *said
}

// Enabled implements [slog.Handler].
func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

// WithAttrs implements [slog.Handler].
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.next.WithAttrs(attrs), fmt.Sprint(h.under, attrs), h.said}
}

// WithGroup implements [slog.Handler].
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.next.WithGroup(name), fmt.Sprint(h.under, name, "."), h.said}
}

// Handle implements [slog.Handler].
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return h.next.Handle(ctx, r)
	}
	say, left := h.said.say(h.words(r))
	if !say {
		return nil
	}
	if left > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("repeated", left))
	}
	return h.next.Handle(ctx, r)
}

// words are all that a record says but when.
func (h *handler) words(r slog.Record) string {
	var b strings.Builder
	fmt.Fprint(&b, h.under, "\x00", r.Level, "\x00", r.Message)
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprint(&b, "\x00", a)
		return true
	})
	return b.String()
}

// said is what was logged of late.
type said struct {
	mu  sync.Mutex
	of  map[string]*one
	now func() time.Time
}

type one struct {
	at   time.Time
	left int // that were left out since
}

// say reports whether words are to be logged now, and how often they were not since they last were.
func (s *said) say(words string) (say bool, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	o := s.of[words]
	if o != nil && now.Sub(o.at) < Every {
		o.left++
		return false, 0
	}
	if o != nil {
		left = o.left
	}
	s.forget(now)
	s.of[words] = &one{at: now}
	return true, left
}

// forget makes room for one more: of what is old, and if that is not enough, of all. What is forgotten is logged once more.
func (s *said) forget(now time.Time) {
	if len(s.of) < most {
		return
	}
	for words, o := range s.of {
		if now.Sub(o.at) >= Every {
			delete(s.of, words)
		}
	}
	if len(s.of) >= most {
		clear(s.of)
	}
}
