package qemu

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/block"
)

// errFenced: the mirror that this disk was shown to has ended.
var errFenced = errors.New("this mirror has ended")

// intake is where the writes of a machine come in during one run of a mirror, to all of its disks: through their [port]s comes
// what the guest writes, in its order, and what has been pulled. When it is shut, nothing comes in any more, and
// what was the newest record then is the last that is whole.
type intake struct {
	stall time.Duration // how long we may stand still before QEMU is, or was, hung up on

	gate sync.RWMutex         // held shared by who writes, and alone by who waits for the last of them
	shut atomic.Pointer[loss] // why nothing comes in any more
	// lost is told once, when the intake is shut: what the timeline has at that moment is the last that is whole.
	lost func(loss)
	down chan struct{} // closed when the intake was shut and the last write has ended

	beaten atomic.Int64 // when we were last known to be alive, as since0 counts
	begun  sync.Map     // *time.Time of each write that goes on
	writes atomic.Int64 // how many the guest has made
}

// port is where the writes to one disk come in.
type port struct {
	*intake
	disk block.Device // the timeline's
	size int64

	pulling atomic.Pointer[window]
	pushed  atomic.Pointer[pushed]
	doubts  *marks // what the guest has discarded: only QEMU knows what that reads as
}

// pushed is where the guest has written since the current bitmap was begun, and since the next one was, if it was.
type pushed struct{ current, next *marks }

// epoch is what time is counted from: by the monotonic clock, which nobody sets.
var epoch = time.Now()

// since0 is the time, in nanoseconds since epoch.
func since0() int64 { return int64(time.Since(epoch)) }

// window is a range that is being pulled.
type window struct {
	extent
	mu     sync.Mutex // held by writes of the guest within the range, and while what was pulled is written
	pushed []extent   // what the guest wrote since the window was opened
}

var (
	_ block.Device  = (*port)(nil)
	_ block.Zeroer  = (*port)(nil)
	_ block.Trimmer = (*port)(nil)
)

func newIntake(stall time.Duration, lost func(loss)) *intake {
	in := &intake{stall: stall, lost: lost, down: make(chan struct{})}
	in.beaten.Store(since0())
	return in
}

func (in *intake) port(disk block.Device) *port {
	p := &port{intake: in, disk: disk, size: disk.Size(), doubts: newMarks(disk.Size())}
	p.pushed.Store(&pushed{current: newMarks(p.size)})
	return p
}

// Size implements [block.Reader].
func (in *port) Size() int64 { return in.size }

// ReadAt implements [block.Reader].
func (in *port) ReadAt(p []byte, off int64) (int, error) { return in.disk.ReadAt(p, off) }

// Flush implements [block.Device].
func (in *port) Flush() error { return in.disk.Flush() }

// WriteAt implements [block.Device]: a write of the guest.
func (in *port) WriteAt(p []byte, off int64) (int, error) {
	err := in.take(off, int64(len(p)), func() error {
		_, err := in.disk.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero implements [block.Zeroer]: zeros that the guest wrote.
func (in *port) Zero(off, n int64) error {
	return in.take(off, n, func() error { return in.disk.Discard(off, n) })
}

// Discard implements [block.Device]: zeros that the guest wrote, too; see Trim.
func (in *port) Discard(off, n int64) error { return in.Zero(off, n) }

// Trim implements [block.Trimmer]. What a discarded range reads as, nobody but QEMU knows: its
// image may ignore the discard, or only heed whole clusters. So it is read again.
func (in *port) Trim(off, n int64) error {
	if err := block.Check(in, off, n); err != nil {
		return err
	}
	if err := in.enter(); err != nil {
		return err
	}
	defer in.gate.RUnlock()
	in.doubts.add(off, n)
	in.mark(off, n)
	return nil
}

func (in *port) mark(off, n int64) {
	p := in.pushed.Load()
	p.current.add(off, n)
	if p.next != nil {
		p.next.add(off, n)
	}
}

// take lets a write of the guest in.
func (in *port) take(off, n int64, write func() error) error {
	if since := in.beaten.Load(); since0()-since > int64(in.stall) {
		in.close(since, errStalled, nil)
	}
	err := in.takeOpen(off, n, write)
	if err != nil && !errors.Is(err, errFenced) {
		in.close(0, fmt.Errorf("a write of the guest was not stored: %w", err), nil)
	}
	return err
}

// errStalled: QEMU may have given writes up that are only now found in the socket.
var errStalled = errors.New("the server stood still")

func (in *port) takeOpen(off, n int64, write func() error) error {
	if err := in.enter(); err != nil {
		return err
	}
	defer in.gate.RUnlock()
	now := time.Now()
	in.begun.Store(&now, nil)
	defer in.begun.Delete(&now)
	in.writes.Add(1)
	in.mark(off, n)
	if w := in.pulling.Load(); w != nil && w.overlaps(off, n) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pushed = append(w.pushed, extent{off, n})
	}
	return write()
}

// enter takes the gate, shared. When the intake is shut nobody waits, as one who closes it may have to for long: QEMU, which connects
// again by itself, and the guest with it, would.
func (in *intake) enter() error {
	if in.shut.Load() != nil {
		return errFenced
	}
	in.gate.RLock()
	if in.shut.Load() != nil {
		in.gate.RUnlock()
		return errFenced
	}
	return nil
}

// close shuts the intake: since is when it was last known to follow, as since0 counts, or 0 for the time of
// the last change. It returns when no write goes on any more; those that do end behind the beginning of the gap. If
// somebody must not wait for that, hangUp lets him go before.
func (in *intake) close(since int64, why error, hangUp func()) {
	if since != 0 {
		since = time.Now().UnixNano() - (since0() - since) // not by epoch's own wall clock, which may have been set since
	}
	if end := (loss{since, why}); in.shut.CompareAndSwap(nil, &end) {
		if hangUp != nil {
			hangUp()
		}
		in.lost(end)
		defer close(in.down)
	}
	in.gate.Lock()
	defer in.gate.Unlock()
}

// why returns why the intake was shut, or nil.
func (in *intake) why() error {
	if end := in.shut.Load(); end != nil {
		return end.why
	}
	return nil
}

// beat says that we are alive. It fails if we were not for too long, or if a write hangs: then QEMU was or
// must be hung up on, and since is when all was well.
func (in *intake) beat() (since int64, ok bool) {
	now := since0()
	since = now
	if last := in.beaten.Load(); now-last > int64(in.stall) {
		since = last
	}
	in.begun.Range(func(k, _ any) bool {
		if at := int64(k.(*time.Time).Sub(epoch)); now-at > int64(in.stall) {
			since = min(since, at)
		}
		return true
	})
	if since < now {
		return since, false
	}
	in.beaten.Store(now)
	return now, true
}

// open begins to pull a range.
func (in *port) open(off, n int64) *window {
	w := &window{extent: extent{off, n}}
	in.pulling.Store(w)
	return w
}

// put writes what was pulled, where the guest has not written since: data at off of the disk, zeros if it is nil.
func (in *port) put(w *window, e extent, data []byte) (err error) {
	if err := in.enter(); err != nil {
		return err
	}
	defer in.gate.RUnlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range e.without(w.pushed) {
		if data == nil {
			err = in.disk.Discard(x.off, x.n)
		} else {
			_, err = writeBulk(in.disk, data[x.off-e.off:][:x.n], x.off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bulkWriter is a disk that has a cheaper way for much data than the one for a guest who waits.
type bulkWriter interface {
	WriteBulkAt(p []byte, off int64) (int, error)
}

func writeBulk(d block.Device, p []byte, off int64) (int, error) {
	if b, ok := d.(bulkWriter); ok {
		return b.WriteBulkAt(p, off)
	}
	return d.WriteAt(p, off)
}
