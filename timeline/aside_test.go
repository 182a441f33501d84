package timeline

import (
	"context"
	"testing"
	"time"

	"tidemark/internal/vfs"
)

// processors is a host of one processor with its clock.
type processors struct{ idle, total float64 }

func (p *processors) pass(idle float64) { p.idle, p.total = p.idle+idle, p.total+1 }

func (p *processors) look() (idle, total float64, ok bool) { return p.idle, p.total, true }

// TestSpare: the background takes less and less while others want the processors, and all of them soon after they do not.
func TestSpare(t *testing.T) {
	host := &processors{}
	s := &spare{look: host.look}
	now := time.Unix(1, 0)
	next := func(idle float64) float64 {
		now = now.Add(lookEvery)
		host.pass(idle)
		return s.part(now)
	}
	if got := s.part(now); got != 1 {
		t.Fatalf("at first a part of %v, not all", got)
	}
	host.pass(0)
	if got := s.part(now.Add(lookEvery / 2)); got != 1 {
		t.Errorf("it looked again at once: a part of %v", got)
	}
	last := 1.
	for range 10 {
		got := next(0)
		if got > last || got < leastPart {
			t.Fatalf("a part of %v after %v of a busy host", got, last)
		}
		last = got
	}
	if last > leastPart {
		t.Errorf("a part of %v of a busy host after a second", last)
	}
	looks := 0
	for ; last < 1 && looks < 20; looks++ {
		last = next(0.5)
	}
	if looks > 10 {
		t.Errorf("after %d looks at an idle host a part of %v", looks, last)
	}
	s.look = func() (float64, float64, bool) { return 0, 0, false }
	next(0)
	if got := next(0); got != 1 {
		t.Errorf("where nothing can be looked at, a part of %v", got)
	}
}

// TestLookIdle: what Linux says of this host can be read, and goes on.
func TestLookIdle(t *testing.T) {
	_, before, ok := lookIdle()
	if !ok {
		t.Fatal("/proc/stat cannot be read")
	}
	time.Sleep(50 * time.Millisecond)
	idle, after, ok := lookIdle()
	if !ok || after <= before || idle > after {
		t.Errorf("idle %v of %v, behind %v", idle, after, before)
	}
}

// TestRest: a worker rests by what it worked and by what others want, and not at all while somebody waits for it.
func TestRest(t *testing.T) {
	x := open(t, vfs.OS, t.TempDir())
	defer x.close(t)
	tl, err := x.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	host := &processors{}
	x.set.spare.look = host.look
	x.set.spare.share, x.set.spare.at = usualShare, time.Now().Add(time.Hour) // busy for the whole test
	rested := make(chan time.Duration)
	work := func(ctx context.Context) time.Duration {
		go func() {
			w := tl.aside(ctx)
			for threadTime()-w.since < 2*restEvery {
			}
			begun := time.Now()
			w.rest()
			rested <- time.Since(begun)
		}()
		return <-rested
	}
	if got, want := work(t.Context()), restEvery*15; got < want { // of 19 for each that it worked
		t.Errorf("it rested for %v on a busy host, less than %v", got, want)
	}
	done := x.set.hurry()
	if got := work(t.Context()); got > restEvery*15 {
		t.Errorf("it rested for %v while somebody waited", got)
	}
	done()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got := work(gone); got > restEvery*15 {
		t.Errorf("it rested for %v although nobody wants it any more", got)
	}
	var nobody *worker
	nobody.rest()
}
