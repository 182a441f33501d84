package again

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// log is a logger under a clock that the test sets, and what it wrote.
type log struct {
	*slog.Logger
	bytes.Buffer
	time time.Time
}

func newLog() *log {
	l := &log{time: time.Unix(1, 0)}
	h := Once(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})).(*handler)
	h.said.now = func() time.Time { return l.time }
	l.Logger = slog.New(h)
	return l
}

// wrote checks what was written since it was asked last.
func (l *log) wrote(t *testing.T, want ...string) {
	t.Helper()
	if got := strings.Split(strings.TrimSuffix(l.String(), "\n"), "\n"); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("it wrote %q, and not %q", got, want)
	}
	l.Reset()
}

// The same is logged once each minute, and says how often it was left out; what differs in a word is not the same.
func TestTheSameIsSaidOnce(t *testing.T) {
	l := newLog()
	for range 3 {
		l.Warn("it ended", "host", "a", "error", errors.New("full"))
	}
	l.wrote(t, `level=WARN msg="it ended" host=a error=full`)
	l.Warn("it ended", "host", "b", "error", errors.New("full"))
	l.Error("it ended", "host", "a", "error", errors.New("full"))
	l.With("host", "a").Warn("it ended", "error", errors.New("full"))
	l.WithGroup("g").Warn("it ended", "host", "a", "error", errors.New("full"))
	l.wrote(t, `level=WARN msg="it ended" host=b error=full`, `level=ERROR msg="it ended" host=a error=full`,
		`level=WARN msg="it ended" host=a error=full`, `level=WARN msg="it ended" g.host=a g.error=full`)
	l.time = l.time.Add(Every)
	for range 2 {
		l.Warn("it ended", "host", "a", "error", errors.New("full"))
	}
	l.wrote(t, `level=WARN msg="it ended" host=a error=full repeated=2`)
	l.time = l.time.Add(Every)
	l.Warn("it ended", "host", "a", "error", errors.New("full"))
	l.wrote(t, `level=WARN msg="it ended" host=a error=full repeated=1`)
	for range 2 {
		l.Info("it began")
	}
	l.wrote(t, `level=INFO msg="it began"`, `level=INFO msg="it began"`)
}

// However much differs, little is remembered, and nothing is left out that was not said.
func TestLittleIsRemembered(t *testing.T) {
	l := newLog()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 10 * most {
				l.Warn(fmt.Sprint(w, " ", i))
			}
		})
	}
	all.Wait()
	h := l.Handler().(*handler)
	if n := len(h.said.of); n > most {
		t.Errorf("%d are remembered", n)
	}
	if n := strings.Count(l.String(), "\n"); n != 40*most {
		t.Errorf("%d of %d were logged", n, 40*most)
	}
}
