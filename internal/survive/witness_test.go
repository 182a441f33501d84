package survive

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"tidemark/block"
	"tidemark/capture/tap"
)

// witness stands between production and its tapped disks, and notes what was asked of them, and what was answered. It knows nothing of
// tap, stream and journal. What it has noted is a partial order: of two deeds the one was answered before the other began, or they
// were under way together, and then either order is right.
type witness struct {
	mu      sync.Mutex
	count   uint64  // of what was noted: a clock that tells before from after
	deeds   []*deed // by when they began
	running map[*deed]bool
	synced  [][]stretch // for each disk, the flushes of its primary
}

// deed is a write, a discard or a flush.
type deed struct {
	disk   int
	off, n int64
	data   []byte // nil: zeros
	flush  bool
	stretch
	from, to int64   // Unix nanoseconds of its beginning and of its answer
	asked    *byte   // where the data were when it was asked for: tells it to the primary's side
	primary  stretch // when the primary did it
	// first and last are the numbers, from 1, of its first and last change in the ledger.
	first, last int
}

// stretch is from one count of the witness to a later one; 0: not yet.
type stretch struct{ begun, answered uint64 }

// before reports whether s was over when o began.
func (s stretch) before(o stretch) bool { return s.answered != 0 && s.answered < o.begun }

func (s stretch) within(o stretch) bool { return o.begun < s.begun && s.answered < o.answered }

func newWitness(disks int) *witness {
	return &witness{running: map[*deed]bool{}, synced: make([][]stretch, disks)}
}

func (w *witness) tick() uint64 {
	w.count++
	return w.count
}

func (w *witness) begin(d *deed) *deed {
	w.mu.Lock()
	defer w.mu.Unlock()
	d.from, d.begun = time.Now().UnixNano(), w.tick()
	w.deeds = append(w.deeds, d)
	w.running[d] = true
	return d
}

func (w *witness) end(d *deed, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, d)
	if err == nil { // what failed was never answered
		d.to, d.answered = time.Now().UnixNano(), w.tick()
	}
}

// forget drops what was noted: what comes from now on counts.
func (w *witness) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deeds, w.synced = nil, make([][]stretch, len(w.synced))
}

// noted returns what was noted; nobody writes any more.
func (w *witness) noted() []*deed {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deeds
}

// seenDisk is a disk as production has it: what is asked of it the witness notes.
type seenDisk struct {
	block.Device
	w *witness
	n int
}

func (s seenDisk) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return s.Device.WriteAt(p, off)
	}
	d := s.w.begin(&deed{disk: s.n, off: off, n: int64(len(p)), data: bytes.Clone(p), asked: &p[0]})
	n, err := s.Device.WriteAt(p, off)
	s.w.end(d, err)
	return n, err
}

func (s seenDisk) Discard(off, n int64) error {
	d := s.w.begin(&deed{disk: s.n, off: off, n: n})
	err := s.Device.Discard(off, n)
	s.w.end(d, err)
	return err
}

func (s seenDisk) Flush() error {
	d := s.w.begin(&deed{disk: s.n, flush: true})
	err := s.Device.Flush()
	s.w.end(d, err)
	return err
}

// seenPrimary is the same disk below the tap, where the witness stands too.
type seenPrimary struct {
	tap.Primary
	w *witness
	n int
}

func (s seenPrimary) WriteAt(p []byte, off int64) (int, error) {
	begun := s.begin()
	n, err := s.Primary.WriteAt(p, off)
	s.end(begun, err, func(d *deed) bool { return len(p) > 0 && d.asked == &p[0] })
	return n, err
}

// Zero is of the discards under way that have the place: nobody here discards one twice at a time.
func (s seenPrimary) Zero(off, n int64) error {
	begun := s.begin()
	err := s.Primary.Zero(off, n)
	s.end(begun, err, func(d *deed) bool {
		return d.disk == s.n && !d.flush && d.data == nil && d.off <= off && off+n <= d.off+d.n
	})
	return err
}

func (s seenPrimary) Flush() error {
	begun := s.begin()
	err := s.Primary.Flush()
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if err == nil {
		s.w.synced[s.n] = append(s.w.synced[s.n], stretch{begun, s.w.tick()})
	}
	return err
}

func (s seenPrimary) begin() uint64 {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.tick()
}

// end notes of the deeds under way that it was for that the primary has done it.
func (s seenPrimary) end(begun uint64, err error, of func(*deed) bool) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	for d := range s.w.running {
		if err == nil && of(d) {
			if d.primary.begun == 0 {
				d.primary.begun = begun
			}
			d.primary.answered = s.w.tick()
		}
	}
}

// checkPrimary holds the tap to what it owes production: what was answered the primary had done by then, flushes too, and of two
// that touch the same bytes it had done one before it began the other, in the order of the ledger.
func (w *witness) checkPrimary() error {
	newest := map[[2]int64]*deed{} // who wrote to a block last, as the ledger has it
	for _, d := range byLedger(w.noted()) {
		if !d.primary.within(d.stretch) {
			return fmt.Errorf("%v was answered, and the primary had not done it: %v", d, d.primary)
		}
		for b := d.off / block.BlockSize; b*block.BlockSize < d.off+d.n; b++ {
			at := [2]int64{int64(d.disk), b}
			if o := newest[at]; o != nil && d.overlaps(o) && !o.primary.before(d.primary) {
				return fmt.Errorf("%v follows %v in the timeline, and the primary did them in another order", d, o)
			}
			newest[at] = d
		}
	}
	for _, d := range w.noted() {
		if d.flush && !anyWithin(w.synced[d.disk], d.stretch) {
			return fmt.Errorf("%v was answered, and the primary was not flushed", d)
		}
	}
	return nil
}

func anyWithin(list []stretch, s stretch) bool {
	for _, x := range list {
		if x.within(s) {
			return true
		}
	}
	return false
}

func (d *deed) overlaps(o *deed) bool {
	return d.disk == o.disk && d.off < o.off+o.n && o.off < d.off+d.n
}

func (d *deed) String() string {
	what := "write"
	switch {
	case d.flush:
		return fmt.Sprintf("flush %d of disk %d", d.begun, d.disk)
	case d.data == nil:
		what = "discard"
	}
	return fmt.Sprintf("%s %d of %d bytes at %d of disk %d", what, d.begun, d.n, d.off, d.disk)
}
