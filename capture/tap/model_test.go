package tap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/internal/shared"
)

const testSize = 2*extentSize + 10<<20 + 512 // three extents; the last region and block are not whole

// sparse is the content of a disk. What a block points to does not change.
type sparse map[int64]*[block.BlockSize]byte

// zeroBlock is of all blocks of zeros: a whole disk is mostly that.
var zeroBlock = new([block.BlockSize]byte)

func (s sparse) each(off, n int64, fn func(b, from, to int64)) {
	for end := off + n; off < end; {
		b := off / block.BlockSize
		next := min(end, (b+1)*block.BlockSize)
		fn(b, off-b*block.BlockSize, next-b*block.BlockSize)
		off = next
	}
}

func (s sparse) read(p []byte, off int64) {
	at := 0
	s.each(off, int64(len(p)), func(b, from, to int64) {
		if c := s[b]; c != nil {
			copy(p[at:], c[from:to])
		} else {
			clear(p[at : at+int(to-from)])
		}
		at += int(to - from)
	})
}

// write writes data, or zeros.
func (s sparse) write(data []byte, off, n int64) {
	at := int64(0)
	s.each(off, n, func(b, from, to int64) {
		if data == nil && to-from == block.BlockSize {
			s[b] = zeroBlock
			return
		}
		c := new([block.BlockSize]byte)
		if old := s[b]; old != nil {
			*c = *old
		}
		clear(c[from:to])
		if data != nil {
			copy(c[from:to], data[at:])
		}
		at += to - from
		s[b] = c
	})
}

func (s sparse) clone() sparse {
	c := sparse{}
	for b, p := range s {
		c[b] = p
	}
	return c
}

// differs returns a block in which two disks differ, or -1.
func (s sparse) differs(o sparse) int64 {
	at := func(s sparse, b int64) *[block.BlockSize]byte {
		if p := s[b]; p != nil {
			return p
		}
		return zeroBlock
	}
	for _, m := range []sparse{s, o} {
		for b := range m {
			if *at(s, b) != *at(o, b) {
				return b
			}
		}
	}
	return -1
}

// disk is a primary that a power cut may take unflushed writes from.
type disk struct {
	mu      sync.Mutex
	now     sparse
	durable sparse
	dying   int           // writes until the process dies in one; 0: never
	late    bool          // it dies when the write was done, not before
	died    chan struct{} // closed when it has
	flushed func()        // called at the end of a Flush
}

func (d *disk) Size() int64  { return testSize }
func (d *disk) Close() error { return nil }
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now.read(p, off)
	return len(p), nil
}
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.change(p, off, int64(len(p)))
	return len(p), nil
}
func (d *disk) Discard(off, n int64) error { return d.Zero(off, n) }
func (d *disk) Zero(off, n int64) error    { d.change(nil, off, n); return nil }
func (d *disk) Flush() error {
	d.mu.Lock()
	d.durable = d.now.clone()
	fn := d.flushed
	d.flushed = nil
	d.mu.Unlock()
	if fn != nil {
		fn()
	}
	return nil
}

func (d *disk) change(p []byte, off, n int64) {
	d.mu.Lock()
	d.dying--
	dies := d.dying == 0
	if !dies || d.late {
		d.now.write(p, off, n)
	}
	if dies {
		close(d.died)
	}
	d.mu.Unlock()
	if dies {
		select {} // what is killed returns from nothing
	}
}

// powerCut loses some of what was not flushed.
func (d *disk) powerCut(rng *rand.Rand) {
	after := d.durable.clone()
	for b, p := range d.now {
		if d.durable[b] != p && rng.IntN(2) == 0 {
			after[b] = p
		}
	}
	d.now, d.durable = after, after.clone()
}

func (d *disk) content() sparse {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now.clone()
}

// state is what a timeline has.
type state struct {
	now    sparse
	lost   bool
	last   int64
	stream string
	seq    uint64

	unknown bool // stream does not follow the one before
}

// timeline is a sink that checks what it is given. The time of a change is the number of its write.
type timeline struct {
	mu      sync.Mutex
	now     sparse
	lost    bool
	last    int64  // number of the newest write that it has, outside of gaps
	stream  string // the newest
	unknown bool   // see state
	seq     uint64
	durable state
	older   state // that it can be put back to
	// acknowledged is how many changes of each stream were said to be durable.
	acknowledged map[string]uint64
	away         atomic.Bool // no connection, and none is made
	hangs        atomic.Bool // nothing returns
	open         *stream
	wrong        []string
	gaps         int
	marks        map[string]int // how often each came
	// numbered, if it is not nil, has the newest write before each mark.
	numbered   map[string]int64
	took       atomic.Int64 // bytes of data
	samples    int
	bypassed   bool // somebody writes past the tap
	wasPutBack bool // it lacks what it had acknowledged
	garbled    bool // the tap's memory is garbled on purpose
	damaged    int  // how often that was seen
}

func (l *timeline) Open(_ context.Context, id string, before capture.Sent, _ *shared.Memory) (capture.Stream, error) {
	s, err := l.begin(id, before)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (l *timeline) begin(id string, before capture.Sent) (*stream, error) {
	if l.away.Load() {
		return nil, errors.New("away")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.stream == id && !l.unknown
	if l.stream == before.ID {
		known = l.seq >= before.Durable
		if !known && !l.wasPutBack {
			l.complain("%d changes of %s were acknowledged, it is said, and there are %d", before.Durable, before.ID, l.seq)
		}
	}
	if !known && id == before.ID { // as in timeline.Feed
		id = "none"
	}
	if l.stream != id {
		l.stream, l.unknown, l.seq = id, !known, 0
		l.keep()
	}
	l.open = &stream{l: l, applied: l.seq, known: known, closed: make(chan struct{})}
	return l.open, nil
}

// keep makes durable what it has.
func (l *timeline) keep() {
	l.durable = state{l.now.clone(), l.lost, l.last, l.stream, l.seq, l.unknown}
}

// snapshot keeps what is durable now, to be put back to.
func (l *timeline) snapshot() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.older = l.durable
}

// mayBePutBack reports whether that can be noticed by who knows so much of what was sent: of a tap that was killed less may have been noted than
// was acknowledged (see DESIGN.md).
func (l *timeline) mayBePutBack(known capture.Sent) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.older.stream != known.ID || l.older.seq < known.Durable || l.older.seq >= l.acknowledged[known.ID]
}

// putBack makes what is durable what that was at the last snapshot, if there was one.
func (l *timeline) putBack() {
	l.mu.Lock()
	if l.older.now != nil {
		l.durable, l.wasPutBack = l.older, true
	}
	l.mu.Unlock()
	l.crash()
}

// crash goes back to what was durable. What was still on its way to it comes to nobody.
func (l *timeline) crash() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		l.open.end()
		l.open = nil
	}
	d := &l.durable
	l.now, l.lost, l.last, l.stream, l.seq, l.unknown = d.now.clone(), d.lost, d.last, d.stream, d.seq, d.unknown
}

func (l *timeline) complain(format string, args ...any) {
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// changed notes that data which the tap shares are not what it had put there.
func (l *timeline) changed(err error) {
	if l.damaged++; !l.garbled {
		l.complain("%v", err)
	}
}

type stream struct {
	l       *timeline
	applied uint64
	known   bool
	once    sync.Once
	closed  chan struct{}
}

var errGone = errors.New("the connection is gone")

func (s *stream) Applied() uint64 { return s.applied }
func (s *stream) Known() bool     { return s.known }
func (s *stream) Shares() bool    { return false }
func (s *stream) end()            { s.once.Do(func() { close(s.closed) }) }
func (s *stream) Close() error    { s.end(); return nil }

// ready waits while the timeline hangs.
func (s *stream) ready() error {
	for {
		select {
		case <-s.closed:
			return errGone
		default:
		}
		if s.l.away.Load() {
			s.end()
		} else if !s.l.hangs.Load() {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *stream) Apply(list []capture.Change) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return errGone
	}
	for _, c := range list {
		if err := c.Own(); err != nil {
			s.l.changed(err)
			return err
		}
		if err := c.Check(testSize); err != nil {
			s.l.complain("%v", err)
		}
		if n := c.Time; !s.l.lost && n != s.l.last && n != s.l.last+1 {
			s.l.complain("write %d follows write %d", n, s.l.last)
		}
		s.l.last = c.Time
		s.l.now.write(c.Data, c.Off, c.Len)
		s.l.seq++
		s.l.took.Add(int64(len(c.Data)))
	}
	return nil
}

func (s *stream) Lose(since int64, why string) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return errGone
	}
	if !s.l.lost && since != 0 && s.l.last < since-1 {
		s.l.complain("changes are missing since write %d, and the last to come was %d", since, s.l.last)
	}
	if !s.l.lost {
		s.l.gaps++
	}
	s.l.lost = true
	s.l.keep()
	return nil
}

func (s *stream) Bookmark(m capture.Mark) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return errGone
	}
	if s.l.lost {
		s.l.complain("a mark came in a gap")
	}
	if s.l.marks[m.ID] == 0 && m.Time != s.l.last { // times are numbers of writes
		s.l.complain("mark %s of time %d came behind write %d", m.ID, m.Time, s.l.last)
	}
	s.l.marks[m.ID]++
	if s.l.numbered != nil {
		s.l.numbered[m.ID] = s.l.last
	}
	s.l.keep()
	return nil
}

func (s *stream) Sample(x capture.Sample) error {
	if err := s.ready(); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return errGone
	}
	data := make([]byte, x.Len)
	s.l.now.read(data, x.Off)
	s.l.samples++
	if s.l.lost || sha256.Sum256(data) == x.Sum {
		return nil
	}
	if s.l.bypassed {
		s.l.stream = "none"
		return errors.New("the disk is not what the timeline has")
	}
	s.l.complain("a sample of %d bytes at %d is not what was sent", x.Len, x.Off)
	return nil
}

func (s *stream) Whole() error {
	if err := s.ready(); err != nil {
		return err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return errGone
	}
	s.l.lost = false
	s.l.keep()
	return nil
}

func (s *stream) Sync() (uint64, error) {
	if err := s.ready(); err != nil {
		return 0, err
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.l.open != s {
		return 0, errGone
	}
	s.l.keep()
	s.l.acknowledged[s.l.stream] = s.l.seq
	return s.l.seq, nil
}
