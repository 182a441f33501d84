package tap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/internal/vfs"
)

const testSize = 2*extentSize + 10<<20 + 512 // three extents; the last region and block are not whole

// sparse is the content of a disk.
type sparse map[int64]*[block.BlockSize]byte

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
	zero := new([block.BlockSize]byte)
	at := func(s sparse, b int64) *[block.BlockSize]byte {
		if p := s[b]; p != nil {
			return p
		}
		return zero
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

// timeline is a sink that checks what it is given. The time of a change is the number of its write.
type timeline struct {
	mu      sync.Mutex
	now     sparse
	lost    bool
	last    int64  // number of the newest write that it has, outside of gaps
	stream  string // the newest
	seq     uint64
	durable struct {
		now    sparse
		lost   bool
		last   int64
		stream string
		seq    uint64
	}
	away  atomic.Bool // no connection, and none is made
	hangs atomic.Bool // nothing returns
	open  *stream
	wrong []string
	gaps  int
	marks map[string]int // how often each came
	// numbered, if it is not nil, has the newest write before each mark.
	numbered map[string]int64
	took     atomic.Int64 // bytes of data
}

func (l *timeline) Open(_ context.Context, id, before string) (capture.Stream, error) {
	if l.away.Load() {
		return nil, errors.New("away")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.stream == id || l.stream == before
	if l.stream != id {
		l.stream, l.seq = id, 0
		l.keep()
	}
	l.open = &stream{l: l, applied: l.seq, known: known, closed: make(chan struct{})}
	return l.open, nil
}

// keep makes durable what it has.
func (l *timeline) keep() {
	l.durable.now, l.durable.lost, l.durable.last, l.durable.stream, l.durable.seq = l.now.clone(), l.lost, l.last, l.stream, l.seq
}

// crash goes back to what was durable.
func (l *timeline) crash() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open != nil {
		l.open.end()
	}
	l.now, l.lost, l.last, l.stream, l.seq = l.durable.now.clone(), l.durable.lost, l.durable.last, l.durable.stream, l.durable.seq
}

func (l *timeline) complain(format string, args ...any) {
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
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
	s.l.lost = true
	s.l.gaps++
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
	return s.l.seq, nil
}

// machine is a host with a tapped disk.
type machine struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	fs    *vfs.MemFS
	boots int
	words map[string][]uint64 // what the marks' files hold
	disk  *disk
	line  *timeline
	tap   *Tap
	wrote atomic.Int64
	spill int64
}

func newMachine(t *testing.T, seed uint64) *machine {
	h := &machine{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 3)), fs: vfs.NewMem(), words: map[string][]uint64{},
		disk: &disk{now: sparse{}, durable: sparse{}, died: make(chan struct{})}, line: &timeline{now: sparse{}, marks: map[string]int{}}}
	h.line.keep()
	if h.rng.IntN(2) == 0 {
		h.spill = 20 << 20
	}
	return h
}

func (h *machine) fail(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d: %s", h.seed, fmt.Sprintf(format, args...))
}

// open starts the tap's process.
func (h *machine) open() {
	h.t.Helper()
	tap, err := Open(Options{
		Dir: "/tap", Primaries: []Primary{h.disk}, Sink: h.line, Memory: 4 << 20, Spill: h.spill, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		fs: h.fs, boot: fmt.Sprint(h.boots), pace: time.Millisecond, now: func() time.Time { return time.Unix(0, h.wrote.Load()) },
		mapBits: func(path string, n int64) (marks, error) {
			m := marks{sync: func() error { return nil }, fresh: h.words[path] == nil}
			if m.fresh {
				h.words[path] = make([]uint64, wordsFor(n))
			}
			m.bits = bitmap{words: h.words[path], n: n}
			return m, nil
		},
	})
	if err != nil {
		h.fail("open: %v", err)
	}
	h.tap = tap
}

// kill ends the tap's process at once. What the timeline lacks must be marked.
func (h *machine) kill() {
	h.t.Helper()
	h.tap.halt()
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	if h.line.open != nil {
		h.line.open.end()
	}
	marked := bitmap{words: h.words["/tap/dirty-0"], n: (testSize + regionSize - 1) / regionSize}
	have, lacks := h.disk.content(), h.line.durable.now
	for b := int64(0); b*block.BlockSize < testSize; b++ {
		if r := b * block.BlockSize / regionSize; !marked.get(r) && (sparse{b: have[b]}).differs(sparse{b: lacks[b]}) >= 0 {
			h.fail("block %d differs, and region %d is not marked", b, r)
		}
	}
}

// powerCut takes the host down.
func (h *machine) powerCut() {
	h.tap.halt()
	h.line.mu.Lock()
	if h.line.open != nil {
		h.line.open.end()
	}
	h.line.mu.Unlock()
	h.fs = vfs.Crash(h.fs, []int{0, 50, 100}[h.rng.IntN(3)], h.rng)
	h.disk.powerCut(h.rng)
	for _, words := range h.words {
		clear(words) // the worst that can be left
	}
	h.boots++
}

func (h *machine) close() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Duration(h.rng.IntN(50))*time.Millisecond)
	defer cancel()
	if err := h.tap.Close(ctx); err != nil {
		h.fail("close: %v", err)
	}
}

// write does one write that is one change, or a discard. It reports false if the process died in it.
func (h *machine) write() bool {
	d := h.tap.Disks()[0]
	n := h.wrote.Add(1)
	off, size := h.rng.Int64N(testSize/512)*512, int64(512)
	switch h.rng.IntN(8) {
	case 0:
		size = min(512*(1+h.rng.Int64N(8)), block.BlockSize-off%block.BlockSize)
	case 1, 2:
		off = off &^ (256<<10 - 1)
		size = 256 << 10
	default:
		off &^= block.BlockSize - 1
		size = block.BlockSize
	}
	if h.rng.IntN(3) > 0 { // some places are hotter
		off %= 4 << 20
	}
	size = min(size, testSize-off)
	var data []byte
	if h.rng.IntN(8) > 0 {
		data = make([]byte, size)
		for at := 0; at < len(data); at += 512 {
			binary.LittleEndian.PutUint64(data[at:], uint64(n))
		}
	}
	done := make(chan error, 1)
	go func() {
		if data == nil {
			done <- d.Discard(off, size)
		} else {
			_, err := d.WriteAt(data, off)
			done <- err
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			h.fail("write: %v", err)
		}
		return true
	case <-h.disk.died:
		return false
	case <-time.After(20 * time.Second):
		h.fail("a write waits for the timeline")
	}
	return false
}

// settled waits until the timeline has everything, and compares.
func (h *machine) settled() {
	h.t.Helper()
	h.line.away.Store(false)
	h.line.hangs.Store(false)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		h.tap.mu.Lock()
		idle := h.tap.online && h.tap.lost == 0 && !h.tap.gap && len(h.tap.queue.list) == 0 && len(h.tap.holds) == 0
		state := fmt.Sprintf("online %v, lost %d, gap %v, %d segments, %d holds, trouble %v, %v", h.tap.online, h.tap.lost, h.tap.gap, len(h.tap.queue.list), len(h.tap.holds), h.tap.trouble, h.tap.readErr)
		h.tap.mu.Unlock()
		if idle {
			break
		}
		if time.Now().After(end) {
			h.fail("it does not come to rest: %s", state)
		}
	}
	h.tap.mu.Lock()
	memory, marked := h.tap.queue.memory, h.tap.disks[0].marks.bits.count()
	h.tap.mu.Unlock()
	if memory != 0 || marked != 0 {
		h.fail("at rest the queue takes %d bytes, and %d regions are dirty", memory, marked)
	}
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	if b := h.disk.content().differs(h.line.now); b >= 0 || h.line.lost {
		h.fail("at rest block %d differs, lost %v", b, h.line.lost)
	}
	for _, w := range h.line.wrong {
		h.fail("%s", w)
	}
}

// marked checks that a mark which is put when all is well arrives.
func (h *machine) marked() {
	h.t.Helper()
	if err := h.tap.Bookmark(capture.Mark{ID: "rest"}); err != nil {
		h.fail("bookmark at rest: %v", err)
	}
	h.settled()
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	if h.line.marks["rest"] == 0 {
		h.fail("a mark did not arrive")
	}
}

// TestTapTellsAll writes through a tap at random while the timeline goes away, hangs, and
// crashes, and the tap is killed, its host loses power, and all are started again.
func TestTapTellsAll(t *testing.T) {
	rounds := 25
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 1000
	}
	base := rand.Uint64()
	for n := range rounds {
		if t.Failed() {
			return
		}
		newMachine(t, base+uint64(n)).round()
	}
}

func (h *machine) round() {
	h.open()
	for range 12 {
		for range h.rng.IntN(60) {
			if !h.write() {
				break
			}
			if h.rng.IntN(10) == 0 {
				h.tap.Disks()[0].Flush()
			}
			if h.rng.IntN(10) == 0 {
				if err := h.tap.Bookmark(capture.Mark{ID: fmt.Sprint(h.rng.Uint64())}); err != nil && !errors.Is(err, ErrGap) {
					h.fail("bookmark: %v", err)
				}
			}
			if h.rng.IntN(40) == 0 {
				if err := h.tap.Disks()[0].settle(); err != nil {
					h.fail("settle: %v", err)
				}
			}
		}
		h.happen()
	}
	h.settled()
	h.marked()
	h.close()
	h.open()
	h.settled()
	h.kill()
}

// happen lets something happen.
func (h *machine) happen() {
	restart := func(down func()) {
		down()
		h.disk.mu.Lock()
		h.disk.died, h.disk.dying = make(chan struct{}), 0
		h.disk.mu.Unlock()
		h.open()
	}
	select {
	case <-h.disk.died:
		restart([]func(){h.kill, h.powerCut}[h.rng.IntN(2)])
		return
	default:
	}
	switch h.rng.IntN(10) {
	case 0:
		restart(h.kill)
	case 1:
		restart(h.powerCut)
	case 2:
		restart(h.close)
	case 3:
		h.line.crash()
	case 4:
		h.line.away.Store(!h.line.away.Load())
	case 5:
		h.line.hangs.Store(!h.line.hangs.Load())
	case 6:
		h.settled()
		if h.rng.IntN(2) == 0 {
			h.forget()
			restart(h.powerCut)
		}
	case 7, 8:
		h.disk.mu.Lock()
		h.disk.dying, h.disk.late = 1+h.rng.IntN(30), h.rng.IntN(2) == 0
		h.disk.mu.Unlock()
	}
}

// forget lets the tap note that nothing is being written.
func (h *machine) forget() {
	h.t.Helper()
	if err := h.tap.Disks()[0].settle(); err != nil {
		h.fail("settle: %v", err)
	}
}

// An extent that is written while the tap flushes the primary is not at rest, even
// if the timeline has everything when the flush is over.
func TestWriteBesideSettle(t *testing.T) {
	for seed := range uint64(8) {
		h := newMachine(t, seed)
		h.open()
		h.write()
		h.settled()
		h.disk.flushed = func() {
			h.write()
			h.settled()
		}
		h.forget()
		h.powerCut()
		h.open()
		h.settled()
		h.kill()
	}
}

// A tap that is killed when the timeline has everything, and has not been told so, tells it at its next start.
func TestGapEndsAfterKill(t *testing.T) {
	h := newMachine(t, 5)
	h.open()
	h.write()
	h.settled()
	h.kill()
	h.line.lost, h.line.durable.lost = true, true // the last word did not come through
	h.open()
	h.settled()
	h.kill()
}

// What is read from the tap is what was written to it, whatever becomes of the timeline.
func TestTapIsADisk(t *testing.T) {
	h := newMachine(t, 1)
	h.line.away.Store(true)
	h.open()
	d := h.tap.Disks()[0]
	want := bytes.Repeat([]byte("tidemark"), 1<<17)
	if _, err := d.WriteAt(want, 12345*512); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(12345*512+4096, 8192); err != nil {
		t.Fatal(err)
	}
	clear(want[4096:12288])
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 12345*512); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reads other than what was written: %v", err)
	}
	if _, err := d.WriteAt(want, testSize-4096); !errors.Is(err, block.ErrBounds) {
		t.Errorf("a write beyond the end: %v", err)
	}
	if err := d.Discard(-512, 1024); !errors.Is(err, block.ErrBounds) {
		t.Errorf("a discard before the beginning: %v", err)
	}
	h.settled()
	h.close()
}

// Writers to two taps, each write following one on the other, and marks put while both are held: no mark has a write without the one
// before it.
func TestHoldIsOnePoint(t *testing.T) {
	var machines [2]*machine
	for i := range machines {
		machines[i] = newMachine(t, rand.Uint64())
		machines[i].line.numbered = map[string]int64{}
		machines[i].open()
	}
	end := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for n := int64(1); ; n++ {
			select {
			case <-end:
				return
			default:
			}
			time.Sleep(50 * time.Microsecond) // no faster than the queue
			h := machines[n%2]                // one write after the other
			h.wrote.Store(n)
			if _, err := h.tap.Disks()[0].WriteAt(bytes.Repeat([]byte{byte(n)}, block.BlockSize), n%100*block.BlockSize); err != nil {
				t.Error(err)
				return
			}
		}
	})
	settle := func() {
		for _, h := range machines {
			for {
				h.tap.mu.Lock()
				whole := h.tap.lost == 0 && !h.tap.gap
				h.tap.mu.Unlock()
				if whole {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	settle()
	for i := range 200 {
		var releases []func() bool
		for _, h := range machines {
			releases = append(releases, h.tap.Hold(time.Minute))
		}
		for _, h := range machines {
			if err := h.tap.Bookmark(capture.Mark{ID: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Microsecond)
		}
		for _, release := range releases {
			if !release() {
				t.Error("a hold ended by itself")
			}
		}
		time.Sleep(time.Duration(i%3) * 100 * time.Microsecond)
	}
	close(end)
	writer.Wait()
	for _, h := range machines {
		for end := time.Now().Add(30 * time.Second); h.tap.Status().Queued > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the queue does not go")
			}
		}
	}
	for i := range 200 {
		id := fmt.Sprint(i)
		a, there := machines[0].line.numbered[id]
		b, too := machines[1].line.numbered[id]
		if !there || !too || max(a, b)-min(a, b) > 1 {
			t.Errorf("mark %d has write %d of one tap and %d of the other", i, a, b)
		}
	}
	for _, h := range machines {
		h.close()
	}
	if released := machines[0].tap.Hold(time.Nanosecond); func() bool { time.Sleep(50 * time.Millisecond); return released() }() {
		t.Error("a hold that ended by itself is told as in time")
	}
}
