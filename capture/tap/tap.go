package tap

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/internal/shared"
	"tidemark/internal/vfs"
)

// Primary is the disk that is tapped. A block of it that was never written reads as zeros.
type Primary interface {
	block.Device
	// Zero makes [off, off+n) read as zeros.
	Zero(off, n int64) error
	Close() error
}

// Options of a tap.
type Options struct {
	// Dir is for the tap's notes and its spilled queue. It must not lie on a tapped disk.
	Dir string
	// Primaries are the disks, in the order of the timeline's. The tap closes them.
	Primaries []Primary
	Sink      capture.Sink
	// Memory bounds the queue in memory, in bytes; 0: 64 MiB. Spill bounds what it may take on disk; 0: none.
	Memory int
	Spill  int64
	Logger *slog.Logger

	fs      vfs.FS                             // nil: the host's
	now     func() time.Time                   // nil: time.Now
	boot    string                             // what tells this boot of the host from others; empty: the kernel's
	mapBits func(string, int64) (marks, error) // nil: mapFile
	pace    time.Duration                      // between two acknowledgements asked for; 0: syncPace
	look    time.Duration                      // between two looks at the primaries; 0: lookPace
	compare time.Duration                      // between two samples; 0: samplePace
	settle  time.Duration                      // between two looks at what is at rest; 0: settleAfter
}

const (
	// regionSize is the grain, in bytes, at which the tap knows what the timeline lacks.
	regionSize = 64 << 10
	// syncPace is how often the timeline is asked to make durable what it got. A change that
	// waits for that waits in memory, and its region is dirty.
	syncPace = 50 * time.Millisecond
	// resyncSize is the most that is read from a primary at once to be sent again; writes to that part wait.
	resyncSize = 1 << 20
	// backOff is how long the sink is left alone after it failed.
	backOff = 200 * time.Millisecond
	// settleAfter is how often the tap looks for extents that are not written any more, and keeps its notes.
	settleAfter = 30 * time.Second
	// calm is for how long no write must fail before a gap ends: a disk that fails again and again makes one gap, not
	// thousands.
	calm = 5 * time.Second
	// lookPace is how often the primaries are looked after.
	lookPace = time.Second
	// patience is how long the sink may owe an answer before it is taken to be stopped.
	patience = time.Second
)

// place is a region of a disk.
type place struct {
	disk   uint16
	region int64
}

// hold says that a region has changes, or is being written to.
type hold struct {
	n    int      // writers in it, and segments that have changes of it
	last *segment // the newest of these
}

// Tap taps the disks of one timeline.
type Tap struct {
	o      Options
	log    *slog.Logger
	disks  []*Disk
	ranges *ranges
	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu       sync.Mutex
	filled   *sync.Cond // the queue has something to send, or something below ends the wait for it
	changed  *sync.Cond // anything else below has changed
	queue    queue
	holds    map[place]hold
	lost     int64        // regions that the timeline lacks and that are not in the queue
	gap      bool         // the stream was told, or will be, that something is missing
	stream   string       // name of the present stream
	known    capture.Sent // the stream that the sink has had last, and what it acknowledged of that
	online   bool
	closing  bool
	trouble  error       // why it is not online
	live     *connection // that the queue goes to, or nil
	asked    time.Time   // since when the sink owes an answer; zero: it does not
	readErr  error       // why the primary could not be read to be sent again
	again    place       // where resync goes on
	doubt    error       // why the primaries cannot be trusted to have what they took
	failedAt time.Time   // when a primary last failed a write
	applied  uint64      // segments that were sent, as the queue counts them
	reread   int64       // bytes that were read from the primaries to be sent again
	unsure   error       // why a power cut may go unnoticed; nil: it does not

	noting   sync.Mutex // held while notes are written
	notes    notes      // as they were written last; guarded by noting
	distrust distrust
	sums     atomic.Bool // checksums are wanted: the sink shares memory, or did when it was there last
	health   health
}

// Disk is one tapped disk. It is a [block.Device] that does what its primary does.
type Disk struct {
	t       *Tap
	n       uint16
	primary Primary
	size    int64
	marks   marks
	lost    bitmap // regions that the timeline lacks and that are not in the queue; guarded by t.mu
	active  *active
	touched bitmap // extents that were written since settle looked; guarded by t.mu
}

var _ block.Device = (*Disk)(nil)

// Open starts a tap. It finds what the one before it has left to be done.
func Open(o Options) (*Tap, error) {
	o.setDefaults()
	t := &Tap{o: o, log: o.Logger, ranges: newRanges(), holds: map[place]hold{}, stream: rand.Text()}
	t.filled, t.changed = sync.NewCond(&t.mu), sync.NewCond(&t.mu)
	t.queue.limit, t.queue.area = o.Memory, newArea(o.Memory, o.Logger)
	if err := t.recover(); err != nil {
		return nil, errors.Join(err, t.release())
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	t.ended.Go(func() { t.mirror(ctx) })
	t.ended.Go(t.resync)
	t.ended.Go(t.spillOver)
	t.ended.Go(func() { t.settleAll(ctx) })
	t.ended.Go(func() { t.watch(ctx) })
	t.ended.Go(func() { t.sampleAll(ctx) })
	return t, nil
}

func (o *Options) setDefaults() {
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	o.Memory = max(o.Memory, 8*segmentSize)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.fs == nil {
		o.fs = vfs.OS
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.mapBits == nil {
		o.mapBits = mapFile
	}
	if o.pace == 0 {
		o.pace = syncPace
	}
	if o.look == 0 {
		o.look = lookPace
	}
	if o.compare == 0 {
		o.compare = samplePace
	}
	if o.settle == 0 {
		o.settle = settleAfter
	}
}

// ErrClosed: the tap was closed.
var ErrClosed = errors.New("the tap is closed")

// ErrGap: the timeline does not follow the disks, and so has no point for what they are now.
var ErrGap = errors.New("the timeline does not follow the disk now")

// Bookmark puts a mark between what was written before, and its writer told, and what is written from
// now on. It returns when the mark is in the queue; it arrives unless the queue is lost, of which only
// the timeline's side can tell. The mark's time is now.
func (t *Tap) Bookmark(m capture.Mark) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gap || t.lost > 0 {
		return ErrGap
	}
	m.Time = t.o.now().UnixNano()
	t.queue.putMark(&mark{bookmark: &m})
	t.filled.Signal()
	return nil
}

// Hold lets no write begin until release is called, or at most for a time: then it reports that it was in
// vain. With several taps held, a mark put into each of them is one point of them all: a write that follows another one, on
// whatever disk, begins when that was answered, and so it cannot be before the mark where the other is behind it.
func (t *Tap) Hold(most time.Duration) (release func() bool) {
	t.ranges.hold()
	var once sync.Once
	inTime := false
	end := func(ok bool) {
		once.Do(func() {
			inTime = ok
			t.ranges.release()
		})
	}
	timer := time.AfterFunc(most, func() { end(false) })
	return func() bool {
		timer.Stop()
		end(true)
		return inTime
	}
}

// Resync has everything sent again: for whoever knows, or fears, that a disk was written while it was not tapped.
func (t *Tap) Resync() { t.loseAll("it was asked for that everything be sent again") }

// Status is how a tap is.
type Status struct {
	Online  bool          `json:"online"`            // the timeline follows
	Shared  bool          `json:"shared"`            // the server reads what is queued where it lies
	Trouble string        `json:"trouble,omitempty"` // why it does not
	Gap     bool          `json:"gap"`               // the timeline was told, or will be, that it lacks something
	Lost    int64         `json:"lost_bytes"`        // that it lacks and that have to be read from the disk again
	Queued  int64         `json:"queued_bytes"`      // that are on their way, or wait to go
	Reread  int64         `json:"reread_bytes"`      // that were read again, since the tap was opened
	Lag     time.Duration `json:"lag"`               // age of the oldest change that the timeline has not durably
	// Reached is a time up to which the timeline has durably what was written, or knows that it does not have it;
	// zero if there is none yet.
	Reached time.Time `json:"reached,omitzero"`
	Unread  string    `json:"unread,omitempty"` // why the disk could not be read again
	// Unsafe is why a power cut of the host may leave the timeline other than the disks, and nobody would know; empty: it does not.
	// It is tried again and again to have everything sent after one.
	Unsafe string `json:"unsafe,omitempty"`
	// Failing is what is wrong with the primaries themselves, Failures how often they failed since the tap was opened,
	// and LastFailure when they did last.
	Failing     string    `json:"failing,omitempty"`
	Failures    int64     `json:"failures,omitempty"`
	LastFailure time.Time `json:"last_failure,omitzero"`
}

// Status returns how the tap is.
func (t *Tap) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{Online: t.online, Gap: t.gap || t.lost > 0, Lost: t.lost * regionSize, Queued: t.queue.bytes(), Reread: t.reread}
	s.Shared = t.live != nil && t.live.stream.Shares()
	if t.trouble != nil {
		s.Trouble = t.trouble.Error()
	}
	if t.readErr != nil {
		s.Unread = t.readErr.Error()
	}
	if t.unsure != nil {
		s.Unsafe = t.unsure.Error()
	}
	s.Lag = t.queue.lag()
	if n := t.queue.before(t.o.now().UnixNano()); n != 0 {
		s.Reached = time.Unix(0, n).UTC()
	}
	t.health.tell(&s)
	if t.doubt != nil {
		s.Failing = t.doubt.Error() + "; it takes no more writes"
	}
	return s
}

// Disks returns the tapped disks.
func (t *Tap) Disks() []*Disk { return t.disks }

// Size implements [block.Reader].
func (d *Disk) Size() int64 { return d.size }

// ReadAt implements [block.Reader]. It is the primary's affair alone.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.primary.ReadAt(p, off)
	if err != nil {
		d.t.health.failed(fmt.Sprintf("a read of %d bytes at %d", len(p), off), err)
	}
	return n, err
}

// Flush implements [block.Device].
func (d *Disk) Flush() error {
	err := d.primary.Flush()
	if err != nil {
		d.t.health.failed("a flush", err)
		d.doubtful(err)
	}
	return err
}

// WriteAt implements [block.Device].
func (d *Disk) WriteAt(p []byte, off int64) (n int, err error) {
	if err := block.Check(d, off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	err = d.change(off, int64(len(p)), p, func() error {
		n, err = d.primary.WriteAt(p, off)
		return err
	})
	return n, err
}

// Discard implements [block.Device]: what is discarded reads as zeros.
func (d *Disk) Discard(off, n int64) error {
	if err := block.Check(d, off, n); err != nil {
		return err
	}
	for end := off + n; off < end; {
		part := min(end-off, extentSize-off%extentSize)
		if err := d.change(off, part, nil, func() error { return d.primary.Zero(off, part) }); err != nil {
			return err
		}
		off += part
	}
	return nil
}

// change does one write to the primary and gives it to the stream, all in the one order of its
// place. data is nil for zeros.
func (d *Disk) change(off, n int64, data []byte, do func() error) error {
	s := span{disk: d.n, off: off, end: off + n}
	if !d.t.ranges.enter(s) {
		return ErrClosed
	}
	defer d.t.ranges.leave(s)
	d.begin(off, n)
	err := do()
	d.finish(off, n, data, err)
	return err
}

// begin marks what is about to be written.
func (d *Disk) begin(off, n int64) {
	t := d.t
	t.mu.Lock()
	for r := off / regionSize; r <= (off+n-1)/regionSize; r++ {
		p := place{d.n, r}
		h := t.holds[p]
		h.n++
		t.holds[p] = h
		d.marks.bits.set(r)
	}
	for e := off / extentSize; e <= (off+n-1)/extentSize; e++ {
		d.touched.set(e)
	}
	t.mu.Unlock()
	for e := off / extentSize; e <= (off+n-1)/extentSize; e++ {
		if err := d.active.begin(e); err != nil {
			t.unsafe(err)
		}
	}
}

// finish gives the stream what was written, or notes that it does not have it.
func (d *Disk) finish(off, n int64, data []byte, failed error) {
	t := d.t
	summed := t.sums.Load()
	var list []capture.Change
	if failed == nil {
		list = d.changes(off, n, data, summed)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.now().UnixNano()
	if failed != nil {
		// What the primary has now is known to nobody.
		t.health.failed(fmt.Sprintf("a write of %d bytes at %d", n, off), failed)
		t.failedAt = time.Now()
		t.lose(d, off, n, now, fmt.Sprintf("the primary failed: %v", failed))
	}
	for i := range list {
		list[i].Time = now
		t.enqueue(d, &list[i], summed)
	}
	for r := off / regionSize; r <= (off+n-1)/regionSize; r++ {
		t.letGo(place{d.n, r})
	}
	t.filled.Signal()
	if t.lost > 0 || t.queue.memory > t.queue.limit/2 {
		t.changed.Broadcast()
	}
}

// changes cuts a write into changes, with checksums if they are wanted: the data are in the processor's cache now. The time is missing.
func (d *Disk) changes(off, n int64, data []byte, summed bool) (list []capture.Change) {
	capture.Split(off, n, func(o, l int64) error {
		c := capture.Change{Disk: d.n, Off: o, Len: l}
		if data != nil && !zeros(data[o-off:o-off+l]) {
			c.Data = data[o-off : o-off+l]
			if summed {
				c.Sum = shared.Sum(c.Data)
			}
		}
		list = append(list, c)
		return nil
	})
	return list
}

// enqueue puts a change into the stream, unless there is no room, or its place is lost
// already and will be read again anyway. summed: it has its checksum. The caller holds mu.
func (t *Tap) enqueue(d *Disk, c *capture.Change, summed bool) {
	first, last := c.Off/regionSize, (c.Off+c.Len-1)/regionSize+1
	if !t.queue.hasRoom(len(c.Data)) || d.lost.any(first, last) {
		t.lose(d, c.Off, c.Len, c.Time, t.whyLost())
		return
	}
	s := t.queue.put(c, summed)
	for r := first; r < last; r++ {
		p := place{d.n, r}
		if h := t.holds[p]; h.last != s {
			h.n, h.last = h.n+1, s
			t.holds[p] = h
			s.holds = append(s.holds, p)
		}
	}
}

func (t *Tap) whyLost() string {
	switch {
	case !t.online:
		return "the server could not be reached"
	case !t.asked.IsZero() && time.Since(t.asked) > patience:
		return "the server does not answer"
	}
	return "writes came faster than they could be taken"
}

// lose notes that the timeline lacks a range. The caller holds mu.
func (t *Tap) lose(d *Disk, off, n, since int64, why string) {
	first, last := off/regionSize, (off+n-1)/regionSize+1
	d.marks.bits.setRange(first, last)
	t.lost += d.lost.setRange(first, last)
	if !t.gap {
		t.gap = true
		t.queue.putMark(&mark{since: since, why: why})
		t.log.Warn("the timeline lacks writes from now on", "why", why)
	}
}

// letGo takes one hold from a region, which is clean without any. The caller holds mu.
func (t *Tap) letGo(p place) {
	h := t.holds[p]
	if h.n--; h.n > 0 {
		t.holds[p] = h
		return
	}
	delete(t.holds, p)
	if d := t.disks[p.disk]; !d.lost.get(p.region) {
		d.marks.bits.clear(p.region)
	}
}

// wake ends all waits. The caller holds mu.
func (t *Tap) wake() {
	t.filled.Broadcast()
	t.changed.Broadcast()
}

// drop lets go of what a segment held. The caller holds mu.
func (t *Tap) drop(s *segment) {
	for _, p := range s.holds {
		if h := t.holds[p]; h.last == s {
			h.last = nil
			t.holds[p] = h
		}
		t.letGo(p)
	}
	s.holds = nil
}

// loseAll begins a new stream that has everything sent again: what the timeline has is not known. When it returns, that outlives
// a power cut.
func (t *Tap) loseAll(why string) {
	t.mu.Lock()
	for _, d := range t.disks {
		d.marks.bits.setRange(0, d.lost.n)
		t.lost += d.lost.setRange(0, d.lost.n)
	}
	t.restart(why)
	known := t.known.ID
	t.mu.Unlock()
	noted := true
	for _, d := range t.disks {
		if err := d.active.beginAll(); err != nil {
			t.unsafe(err)
			noted = false
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if noted && t.known.ID == known { // all of it comes again: that some of it is gone needs to be noticed no more
		t.known.Durable = 0
	}
}

// loseQueue begins a new stream without what is in the queue, which is read from the primary again.
func (t *Tap) loseQueue(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, h := range t.holds {
		if d := t.disks[p.disk]; h.last != nil && d.lost.set(p.region) {
			t.lost++
		}
	}
	t.restart(why)
}

// restart begins a new stream, which says first that something is missing. The caller holds mu.
func (t *Tap) restart(why string) {
	t.queue.clear(t.drop)
	t.queue.area = newArea(t.queue.limit, t.log)
	t.stream = rand.Text()
	if c := t.live; c != nil { // it is of the stream before
		c.failed, t.live = errAnew, nil
		c.cancel()
	}
	t.gap = true
	t.queue.putMark(&mark{why: why})
	t.log.Warn("the timeline begins anew", "why", why)
	t.wake()
}
