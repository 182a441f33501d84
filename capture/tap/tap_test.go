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

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/internal/vfs"
)

// machine is a host with a tapped disk.
type machine struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	fs      *vfs.MemFS
	boots   int
	words   map[string][]uint64 // what the marks' files hold
	disk    *disk
	primary Primary // what is tapped, if it is not disk
	line    *timeline
	tap     *Tap
	wrote   atomic.Int64
	spill   int64
	compare time.Duration    // between samples
	settle  time.Duration    // between two looks at what is at rest; 0: settleAfter
	faults  errorfs.Injector // of the file system; nil: none
	wired   bool             // the timeline is behind a connection, and reads the tap's memory
}

func newMachine(t *testing.T, seed uint64) *machine {
	h := &machine{t: t, seed: seed, compare: 2 * time.Millisecond, rng: rand.New(rand.NewPCG(seed, 3)), fs: vfs.NewMem(), words: map[string][]uint64{},
		disk: &disk{now: sparse{}, durable: sparse{}, died: make(chan struct{})}, line: &timeline{now: sparse{}, marks: map[string]int{}, acknowledged: map[string]uint64{}}}
	h.line.keep()
	h.wired = h.rng.IntN(2) == 0
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
	primary := h.primary
	if primary == nil {
		primary = h.disk
	}
	fs := vfs.FS(h.fs)
	if h.faults != nil {
		fs = errorfs.Wrap(fs, h.faults)
	}
	tap, err := Open(Options{
		Dir: "/tap", Primaries: []Primary{primary}, Sink: h.sink(), Memory: 4 << 20, Spill: h.spill, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		fs: fs, boot: fmt.Sprint(h.boots), pace: time.Millisecond, look: 10 * time.Millisecond, compare: h.compare, settle: h.settle, now: func() time.Time { return time.Unix(0, h.wrote.Load()) },
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

// kill ends the tap's process at once. What the timeline lacks must be marked, unless the next tap is told that it lacks something: it was put back, or has
// a stream that this one has not noted.
func (h *machine) kill() {
	h.t.Helper()
	h.halt()
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	if h.line.open != nil {
		h.line.open.end()
	}
	if n, d := h.tap.noted(), h.line.durable; d.stream != n.ID || d.seq < n.Durable {
		return
	}
	marked := bitmap{words: h.words["/tap/dirty-0"], n: (testSize + regionSize - 1) / regionSize}
	have, lacks := h.disk.content(), h.line.durable.now
	for b := int64(0); b*block.BlockSize < testSize; b++ {
		if r := b * block.BlockSize / regionSize; !marked.get(r) && (sparse{b: have[b]}).differs(sparse{b: lacks[b]}) >= 0 {
			h.fail("block %d differs, and region %d is not marked", b, r)
		}
	}
}

// noted is what the tap's notes say of the stream that the sink has had last.
func (t *Tap) noted() capture.Sent {
	t.noting.Lock()
	defer t.noting.Unlock()
	return capture.Sent{ID: t.notes.Known, Durable: t.notes.Durable}
}

// powerCut takes the host down.
func (h *machine) powerCut() { h.powerCutKeeping([]int{0, 50, 100}[h.rng.IntN(3)]) }

// powerCutKeeping takes the host down, and keeps so many percent of what was not synced.
func (h *machine) powerCutKeeping(percent int) {
	h.halt()
	h.line.mu.Lock()
	if h.line.open != nil {
		h.line.open.end()
	}
	h.line.mu.Unlock()
	h.fs = vfs.Crash(h.fs, percent, h.rng)
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
	var memory int
	var marked int64
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		h.tap.mu.Lock()
		memory, marked = h.tap.queue.memory, h.tap.disks[0].marks.bits.count()
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

// TestTapTellsAll (C1, J1, J3, J4) writes through a tap at random while the timeline goes away, hangs, and
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
				h.tap.keepNotes()
			}
			if h.rng.IntN(40) == 0 {
				h.line.snapshot()
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
	switch h.rng.IntN(12) {
	case 10:
		restart(func() {
			h.close()
			if h.line.mayBePutBack(h.tap.noted()) {
				h.line.putBack()
			}
		})
	case 11:
		h.putBackInRun()
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
	case 9:
		h.tap.Resync()
	case 7, 8:
		h.disk.mu.Lock()
		h.disk.dying, h.disk.late = 1+h.rng.IntN(30), h.rng.IntN(2) == 0
		h.disk.mu.Unlock()
	}
}

// putBackInRun puts the timeline back while the tap runs, which ends no sooner than it has noticed: what it has noted may be less than it knows.
func (h *machine) putBackInRun() {
	h.t.Helper()
	h.disk.mu.Lock()
	h.disk.dying = 0
	h.disk.mu.Unlock()
	h.line.away.Store(false)
	h.line.hangs.Store(false)
	h.tap.mu.Lock()
	known := h.tap.known
	h.tap.mu.Unlock()
	if !h.line.mayBePutBack(known) {
		return
	}
	h.line.putBack()
	h.write()
	h.eventually("the tap is back", func() bool {
		h.line.mu.Lock()
		defer h.line.mu.Unlock()
		return h.line.open != nil
	})
	h.settled()
}

// forget lets the tap note that nothing is being written.
func (h *machine) forget() {
	h.t.Helper()
	if err := h.tap.Disks()[0].settle(); err != nil {
		h.fail("settle: %v", err)
	}
}

// C6: An extent that is written while the tap flushes the primary is not at rest, even
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

// J1: A tap that is killed when the timeline has everything, and has not been told so, tells it at its next start.
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
	for _, h := range machines { // the last mark may come behind the last change
		arrived := func() bool {
			h.line.mu.Lock()
			defer h.line.mu.Unlock()
			return h.line.marks["199"] > 0
		}
		for end := time.Now().Add(30 * time.Second); !arrived(); time.Sleep(time.Millisecond) {
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

// A wide range is entered although narrow ones come and go in it all the time.
func TestWideRangeIsNotKeptOut(t *testing.T) {
	r := newRanges()
	var writers sync.WaitGroup
	var end atomic.Bool
	for i := range int64(4) {
		writers.Go(func() {
			for !end.Load() {
				s := span{off: i % 2 * 4096, end: (i%2 + 1) * 4096}
				r.enter(s)
				time.Sleep(100 * time.Microsecond)
				r.leave(s)
			}
		})
	}
	entered := make(chan struct{})
	go func() {
		defer close(entered)
		wide := span{off: 0, end: 1 << 20}
		for range 50 {
			r.enter(wide)
			r.leave(wide)
		}
	}()
	select {
	case <-entered:
	case <-time.After(20 * time.Second):
		t.Error("who comes later goes in first")
	}
	end.Store(true)
	writers.Wait()
	if len(r.claims) > 0 {
		t.Errorf("claims are left: %v", r.claims)
	}
}

// All is sent again, asked for while much is on its way: the connection of the stream that is given up ends, and the
// queue becomes empty.
func TestResyncUnderWay(t *testing.T) {
	h := newMachine(t, 3)
	h.open()
	h.settled()
	h.line.hangs.Store(true)
	for range 60 {
		h.write()
	}
	h.tap.Resync()
	h.line.hangs.Store(false)
	h.settled()
	h.kill()
}
