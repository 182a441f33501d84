package tap

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/internal/vfs"
)

// noteFaults fails what is written to the file of what is being written, and other operations on it or its directory, while it is armed.
type noteFaults struct {
	armed atomic.Bool
	also  func(op errorfs.Op) bool
	tried atomic.Int64 // how often one of the others
}

func (f *noteFaults) String() string { return "noteFaults" }

// MaybeError implements errorfs.Injector.
func (f *noteFaults) MaybeError(op errorfs.Op) error {
	if !f.armed.Load() {
		return nil
	}
	if op.Path == "/tap/active-0" && (op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpFileSyncData) {
		return syscall.EIO
	}
	if f.also(op) {
		f.tried.Add(1)
		return syscall.EIO
	}
	return nil
}

func removal(op errorfs.Op) bool { return op.Kind == errorfs.OpRemove && op.Path == "/tap/active-0" }
func dirSync(op errorfs.Op) bool { return op.Kind == errorfs.OpFileSync && op.Path == "/tap" }

// newUnnoted is a machine at rest, whose tap has nothing noted as being written.
func newUnnoted(t *testing.T, seed uint64, also func(errorfs.Op) bool) (*machine, *noteFaults) {
	t.Helper()
	f := &noteFaults{also: also}
	h := newMachine(t, seed)
	h.compare, h.faults = time.Hour, f
	h.open()
	h.fill(0, 1<<20)
	h.settled()
	h.forget()
	f.armed.Store(true)
	return h, f
}

// eventually waits for something.
func (h *machine) eventually(what string, is func() bool) {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.fail("it does not come to this: %s", what)
		}
	}
}

// The notes for a power cut cannot be kept, and they cannot be removed: production goes on, the status says it, it is tried again until they
// are, and then a power cut has everything sent again.
func TestNotesAreRemovedInTheEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		also func(errorfs.Op) bool
	}{{"the removal fails", removal}, {"the sync of it fails", dirSync}} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(2) {
				h, f := newUnnoted(t, seed, c.also)
				h.fill(64<<20, 8192)
				if s := h.tap.Status(); !strings.Contains(s.Unsafe, "input/output error") {
					h.fail("the status is %+v", s)
				}
				if n := f.tried.Load(); n != 1 {
					h.fail("the writers have tried it %d times", n)
				}
				h.tap.keepNotes()
				if s := h.tap.Status(); s.Unsafe == "" {
					h.fail("the status is %+v, and it was tried in vain", s)
				}
				f.armed.Store(false)
				h.tap.keepNotes()
				if s := h.tap.Status(); s.Unsafe != "" {
					h.fail("the status is %+v", s)
				}
				h.settled()
				h.powerCutKeeping(0)
				h.line.away.Store(true)
				h.open()
				if s := h.tap.Status(); s.Lost < testSize {
					h.fail("%d bytes are sent again of a disk of %d", s.Lost, testSize)
				}
				h.settled()
				h.kill()
			}
		})
	}
}

// The tap tries it again by itself.
func TestNotesAreRemovedByThemselves(t *testing.T) {
	f := &noteFaults{also: removal}
	mem, line := vfs.NewMem(), &timeline{now: sparse{}, marks: map[string]int{}, acknowledged: map[string]uint64{}}
	h := newMachine(t, 1)
	h.fs, h.line, h.faults, h.settle = mem, line, f, 5*time.Millisecond
	h.open()
	h.settled()
	sure := h.tap.disks[0].active.sure
	h.eventually("nothing is noted as being written", func() bool { return !sure.any(0, sure.n) })
	f.armed.Store(true)
	h.eventually("a write that cannot be noted", func() bool { h.fill(64<<20, 4096); return h.tap.Status().Unsafe != "" })
	tried := f.tried.Load()
	h.eventually("it is tried again", func() bool { return f.tried.Load() > tried+2 })
	f.armed.Store(false)
	h.eventually("it is noted", func() bool { return h.tap.Status().Unsafe == "" })
	if _, err := mem.Stat("/tap/active-0"); err == nil {
		t.Error("the notes are there")
	}
	h.settled()
	h.kill()
}

// A server that has lost what it had is told of no new stream while it cannot be noted that everything has to be sent: behind a power cut, the name of the
// one before is all that tells.
func TestNoStreamIsLearntUnsafely(t *testing.T) {
	for _, cut := range []bool{false, true} {
		for seed := range uint64(2) {
			h, f := newUnnoted(t, seed, removal)
			h.line.hangs.Store(true)
			h.line.mu.Lock()
			h.line.now, h.line.stream, h.line.seq, h.line.wasPutBack = sparse{}, "another", 0, true
			h.line.keep()
			h.line.open.end()
			h.line.mu.Unlock()
			h.fill(0, 4096) // by which the tap sees that the connection is gone
			h.eventually("the tap has tried some times", func() bool { return f.tried.Load() > 3 })
			if s := h.tap.Status(); s.Online || s.Unsafe == "" || !strings.Contains(s.Trouble, "neither") {
				h.fail("the status is %+v", s)
			}
			if cut {
				h.powerCutKeeping(0)
			}
			f.armed.Store(false)
			if cut {
				h.open()
			}
			h.settled()
			h.kill()
		}
	}
}
