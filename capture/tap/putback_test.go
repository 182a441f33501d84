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
