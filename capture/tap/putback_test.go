package tap

import (
	"fmt"
	"testing"
	"time"

	"tidemark/capture"
)

// A server that is put back to an older state while no tap runs has the stream that the next tap follows, but with fewer changes of it. All is
// sent again, at once: no sample is taken here. If nothing is gone of what was acknowledged, nothing is.
func TestServerPutBackBetweenTaps(t *testing.T) {
	for _, c := range []struct {
		name   string
		writes int // behind the state that is put back
		end    func(h *machine)
		noted  bool // what was acknowledged of the stream
	}{
		{"the tap was closed", 20, (*machine).close, true},
		{"the tap was killed", 20, func(h *machine) { h.tap.keepNotes(); h.kill() }, true},
		{"the host lost power", 20, func(h *machine) { h.tap.keepNotes(); h.powerCut() }, true},
		{"the tap was started once more meanwhile", 20, func(h *machine) {
			h.close()
			h.line.away.Store(true)
			h.open()
			h.kill()
			h.line.away.Store(false)
		}, true},
		{"nothing was written since", 0, (*machine).close, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(2) {
				h := newMachine(t, seed)
				h.compare = time.Hour
				h.open()
				h.fill(0, 1<<20)
				h.settled()
				h.line.snapshot()
				for range c.writes {
					h.write()
				}
				h.settled()
				gaps := h.line.gaps
				c.end(h)
				h.line.putBack()
				h.open()
				h.settled()
				if began := h.line.gaps > gaps; began != c.noted {
					h.fail("a gap began: %v", began)
				}
				h.marked()
				h.kill()
			}
		})
	}
}

// A server that is put back while the tap runs is noticed as soon as it is there again, and all is sent once.
func TestServerPutBackWhileTapped(t *testing.T) {
	for seed := range uint64(2) {
		h := newMachine(t, seed)
		h.compare = time.Hour
		h.open()
		h.fill(0, 1<<20)
		h.settled()
		h.line.snapshot()
		h.fill(1<<20, 1<<20)
		h.settled()
		gaps := h.line.gaps
		h.line.putBack()
		h.fill(2<<20, 1<<20)
		h.settled()
		if began := h.line.gaps - gaps; began != 1 {
			h.fail("%d gaps began", began)
		}
		h.kill()
	}
}

// Notes of an earlier version say nothing of what was acknowledged, and are good for all else.
func TestNotesWithoutCount(t *testing.T) {
	h := newMachine(t, 1)
	h.open()
	h.fill(0, 1<<20)
	h.settled()
	gaps, known := h.line.gaps, h.tap.known.ID
	h.close()
	f, err := h.fs.Create("/tap/notes.json", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(f, `{"version":1,"known":%q,"boot":"0","clean":true,"sizes":[%d]}`, known, testSize); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	h.open()
	if h.tap.known != (capture.Sent{ID: known}) {
		t.Errorf("it is known: %+v", h.tap.known)
	}
	h.settled()
	if h.line.gaps != gaps {
		t.Error("a gap began")
	}
	h.kill()
}

// putBackTo puts the timeline back to a state, and waits until the tap has noticed.
func (h *machine) putBackTo(s state) {
	h.t.Helper()
	h.line.mu.Lock()
	h.line.older = s
	h.line.mu.Unlock()
	h.line.putBack()
	h.write()
	h.eventually("the tap is back", func() bool {
		h.line.mu.Lock()
		defer h.line.mu.Unlock()
		return h.line.open != nil
	})
}

// A server that is put back while the tap runs may have all changes, and lack that a gap began or ended behind them. It is told that again, before
// anything else, and nothing is sent again.
func TestGapIsToldToServerPutBack(t *testing.T) {
	for seed := range uint64(2) {
		h := newMachine(t, seed)
		h.compare = time.Hour
		h.open()
		h.fill(0, 1<<20)
		h.settled()
		h.tap.mu.Lock()
		h.tap.failedAt = time.Now().Add(time.Hour) // the gap lasts
		h.tap.lose(h.tap.disks[0], 0, regionSize, h.wrote.Load(), "a test")
		h.tap.changed.Broadcast()
		h.tap.mu.Unlock()
		h.eventually("all is sent but the end of the gap", func() bool {
			h.tap.mu.Lock()
			defer h.tap.mu.Unlock()
			return h.tap.lost == 0 && len(h.tap.queue.list) == 0
		})
		reread, before := h.tap.Status().Reread, h.line.durable
		if !before.lost {
			h.fail("no gap began")
		}
		before.lost = false
		h.putBackTo(before)
		h.eventually("a gap begins again", func() bool {
			h.line.mu.Lock()
			defer h.line.mu.Unlock()
			return h.line.lost
		})
		h.tap.mu.Lock()
		h.tap.failedAt = time.Time{}
		h.tap.mu.Unlock()
		h.settled()

		before = h.line.durable
		before.lost = true
		h.putBackTo(before)
		h.settled()
		h.marked()
		if n := h.tap.Status().Reread; n != reread {
			h.fail("%d bytes were sent again", n-reread)
		}
		h.kill()
	}
}

// Whether a gap lasts is said where a stream is resumed, unless what is sent next says it: a gap that has ended does not begin again for that.
func TestWhereAGapIsSaid(t *testing.T) {
	begin, end := &mark{why: "a test"}, &mark{whole: true}
	for _, c := range []struct {
		released, applied uint64
		skip              int
		gap               *mark
	}{
		{released: 0, applied: 0, skip: 0, gap: nil},
		{released: 0, applied: 1, skip: 1, gap: nil}, // begin is next
		{released: 0, applied: 2, skip: 1, gap: begin},
		{released: 0, applied: 3, skip: 2, gap: nil}, // end is next
		{released: 0, applied: 4, skip: 1, gap: end},
		{released: 0, applied: 5, skip: 0, gap: end},
		{released: 1, applied: 1, skip: 0, gap: begin},
		{released: 1, applied: 3, skip: 2, gap: nil},
		{released: 2, applied: 4, skip: 1, gap: end},
		{released: 3, applied: 5, skip: 0, gap: end},
	} {
		q := queue{limit: 8 << 20}
		for _, m := range []*mark{begin, nil, end, nil, nil} {
			q.put(&capture.Change{Len: 4096}, false)
			if m != nil {
				q.putMark(m)
			}
		}
		for s, _ := q.take(); s != nil; s, _ = q.take() {
		}
		q.release(c.released, q.seq, func(*segment) {})
		skip, gap, ok := q.resume(c.applied)
		if !ok || skip != c.skip || gap != c.gap {
			t.Errorf("of %d changes, with %d segments released, %d are left out, and %+v is said: %v", c.applied, c.released, skip, gap, ok)
		}
	}
}
