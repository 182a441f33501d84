package tap

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

// failing is a primary that fails, in a range, what it is told to fail.
type failing struct {
	*disk
	writes, reads, flushes atomic.Bool
	from, to               int64
	torn                   bool // of a write that fails, half is there
}

func (f *failing) hit(off, n int64) bool { return off < f.to && f.from < off+n }

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.reads.Load() && f.hit(off, int64(len(p))) {
		return 0, unix.EIO
	}
	return f.disk.ReadAt(p, off)
}

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if f.writes.Load() && f.hit(off, int64(len(p))) {
		n := 0
		if f.torn {
			n, _ = f.disk.WriteAt(p[:len(p)/2], off)
		}
		return n, unix.EIO
	}
	return f.disk.WriteAt(p, off)
}

func (f *failing) Zero(off, n int64) error {
	if f.writes.Load() && f.hit(off, n) {
		return unix.EIO
	}
	return f.disk.Zero(off, n)
}

func (f *failing) Flush() error {
	if f.flushes.Load() {
		return unix.EIO
	}
	return f.disk.Flush()
}

// newFailing taps a disk that can fail in [1 MiB, 2 MiB), and waits until the timeline has it.
func newFailing(t *testing.T) (*machine, *failing) {
	h := newMachine(t, 7)
	f := &failing{disk: h.disk, from: 1 << 20, to: 2 << 20}
	h.primary = f
	h.open()
	h.settled()
	return h, f
}

func (h *machine) put(off int64, b byte) error {
	h.wrote.Add(1)
	p := make([]byte, 256<<10)
	for i := range p {
		p[i] = b
	}
	_, err := h.tap.Disks()[0].WriteAt(p, off)
	return err
}

// awaits waits until the status is as it should be.
func (h *machine) awaits(what string, ok func(Status) bool) Status {
	h.t.Helper()
	var s Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s = h.tap.Status(); ok(s) {
			return s
		}
	}
	h.fail("%s: %+v", what, s)
	return s
}

// A write that the primary refuses, even one of which it has taken a half, is refused to its writer, and the timeline
// has in the end what the primary has, not what was to be written. However often it fails, that is one gap.
func TestPrimaryRefusesWrites(t *testing.T) {
	h, f := newFailing(t)
	f.torn = true
	gaps := h.line.gaps
	f.writes.Store(true)
	for i := range 50 {
		if err := h.put(1<<20+int64(i%3)*128<<10, byte(i+1)); !errors.Is(err, unix.EIO) {
			t.Fatalf("a write that the primary refused: %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	if err := h.tap.Disks()[0].Discard(1<<20, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("a discard that the primary refused: %v", err)
	}
	if err := h.put(8<<20, 9); err != nil {
		t.Errorf("a write beside: %v", err)
	}
	s := h.tap.Status()
	if !s.Gap || s.Failures != 51 || !strings.Contains(s.Failing, unix.EIO.Error()) || s.LastFailure.IsZero() {
		t.Errorf("the status is %+v", s)
	}
	f.writes.Store(false)
	h.settled()
	if n := h.line.gaps - gaps; n != 1 {
		t.Errorf("%d gaps", n)
	}
	h.close()
}

// What cannot be read again keeps the gap open, says why, and keeps nothing else waiting.
func TestPrimaryCannotBeRead(t *testing.T) {
	h, f := newFailing(t)
	h.line.away.Store(true)
	f.from, f.to = 1<<20+128<<10, 1<<20+129<<10 // one region of a run of sixteen
	f.reads.Store(true)
	h.tap.Resync()
	h.line.away.Store(false)
	s := h.awaits("all but one region is sent", func(s Status) bool { return s.Lost == regionSize && s.Queued == 0 })
	if !s.Gap || !strings.Contains(s.Unread, unix.EIO.Error()) {
		t.Errorf("the status is %+v", s)
	}
	p := make([]byte, 4096)
	if _, err := h.tap.Disks()[0].ReadAt(p, f.from); !errors.Is(err, unix.EIO) {
		t.Errorf("a read that the primary refuses: %v", err)
	}
	if _, err := h.tap.Disks()[0].ReadAt(p, 0); err != nil {
		t.Errorf("a read beside: %v", err)
	}
	if err := h.put(8<<20, 3); err != nil {
		t.Error(err)
	}
	f.reads.Store(false)
	h.settled()
	if s := h.tap.Status(); s.Unread != "" {
		t.Errorf("when all was read: %+v", s)
	}
	h.close()
}

// F3: After a flush that failed nobody knows what the primary has. The timeline has no point until another tap has read all of it
// that was being written.
func TestPrimaryFailsToFlush(t *testing.T) {
	h, f := newFailing(t)
	if err := h.put(0, 1); err != nil {
		t.Fatal(err)
	}
	f.flushes.Store(true)
	if err := h.tap.Disks()[0].Flush(); !errors.Is(err, unix.EIO) {
		t.Fatalf("a flush that the primary failed: %v", err)
	}
	// What the medium did not take is gone from memory, too.
	h.disk.mu.Lock()
	h.disk.now = h.disk.durable.clone()
	h.disk.mu.Unlock()
	time.Sleep(50 * time.Millisecond)
	s := h.tap.Status()
	if !s.Gap || s.Lost < extentSize || !strings.Contains(s.Failing, "no more writes") {
		t.Errorf("the status is %+v", s)
	}
	f.flushes.Store(false)
	if h.tap.canResync() {
		t.Error("a disk that failed a flush is believed")
	}
	h.kill()
	h.open()
	h.settled()
	h.close()
}

// hostTap taps a file for which a timeline is there.
func hostTap(t *testing.T, size int64) (h *machine, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPrimary(file)
	if err != nil {
		t.Fatal(err)
	}
	h = newMachine(t, 11)
	h.primary = p
	h.open()
	h.awaits("it follows", func(s Status) bool { return s.Online && !s.Gap && s.Queued == 0 })
	return h, file
}

// A file that shrinks is said to have; no point has what it lost, until it is as long again.
func TestPrimaryShrinks(t *testing.T) {
	h, file := hostTap(t, testSize)
	if err := h.put(64<<20, 5); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 32<<20); err != nil {
		t.Fatal(err)
	}
	h.awaits("a gap", func(s Status) bool {
		return s.Gap && strings.Contains(s.Failing, "shrunk") && strings.Contains(s.Unread, "ends at") && s.Lost == (testSize-32<<20+regionSize-1)/regionSize*regionSize
	})
	if _, err := h.tap.Disks()[0].ReadAt(make([]byte, 4096), 64<<20); err == nil || errors.Is(err, block.ErrBounds) {
		t.Errorf("a read of what is gone: %v", err)
	}
	if err := h.put(0, 6); err != nil {
		t.Errorf("a write of what is left: %v", err)
	}
	if err := os.Truncate(file, testSize); err != nil {
		t.Fatal(err)
	}
	h.awaits("it follows again", func(s Status) bool { return !s.Gap && s.Queued == 0 })
	h.line.mu.Lock()
	b := h.line.now[64<<20/block.BlockSize]
	h.line.mu.Unlock()
	if b != nil && *b != [block.BlockSize]byte{} {
		t.Error("the timeline has what the file lost")
	}
	h.close()
}

// A file that is deleted goes on, as for anybody who has it open, and that is said.
func TestPrimaryVanishes(t *testing.T) {
	h, file := hostTap(t, 8<<20)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.awaits("it says so", func(s Status) bool { return strings.Contains(s.Failing, "was deleted") })
	if err := h.put(0, 4); err != nil {
		t.Error(err)
	}
	h.awaits("it follows", func(s Status) bool { return !s.Gap && s.Queued == 0 })
	h.close()
}
