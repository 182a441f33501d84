package survive

import (
	"bytes"
	"context"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/internal/shared"
	"tidemark/timeline"
)

// lie is something that goes wrong on purpose, once, somewhere between production and the timeline.
type lie struct {
	x     *rig // that it goes wrong in
	armed atomic.Bool
	at    int64
	n     int64        // of writes, flushes or changes that came by
	held  func() error // what comes behind the next one
}

// now counts, and reports whether it is the time to lie.
func (l *lie) now() bool {
	if !l.armed.Load() {
		return false
	}
	l.n++
	return l.n == l.at
}

// sampled: the tap itself compared a place at which the timeline has something else, and sends everything again.
const sampled = "the timeline lacks something"

// TestLiesAreFound has a write lost, put in the wrong order, garbled or misdated, or a flush not made: above the tap, on the wire, and in the timeline.
// What judges the other tests has to find each of them, and nothing where nobody lies.
func TestLiesAreFound(t *testing.T) {
	beside(t)
	for _, c := range []struct {
		name   string
		tricks func(l *lie) tricks
		found  string
	}{
		{"none", func(*lie) tricks { return tricks{} }, ""},
		{"the tap does not get a write", onDisk(func(l *lie, d block.Device, p []byte, off int64) error { return nil }), "never came"},
		{"the tap gets two writes in another order", onDisk(func(l *lie, d block.Device, p []byte, off int64) error {
			p = bytes.Clone(p)
			l.held = func() error { _, err := d.WriteAt(p, off); return err }
			return nil
		}), "nothing that was written then"},
		{"the tap gets a garbled sector", onDisk(func(l *lie, d block.Device, p []byte, off int64) error {
			_, err := d.WriteAt(garbled(p), off)
			return err
		}), "nothing that was written then"},
		{"the tap does not get a flush", unflushed, "the primary was not flushed"},
		{"the wire swaps two writes", swappedOnWire, "comes behind it"},
		{"the wire garbles a sector", garbledOnWire, "nothing that was written then|" + sampled},
		{"the timeline loses a write", inTimeline(func(l *lie, f *timeline.Feed, c capture.Change) error {
			c.Data = make([]byte, c.Len) // a record has to be there, of what was there before
			if _, err := l.x.line.Disks()[c.Disk].ReadAt(c.Data, c.Off); err != nil {
				return err
			}
			return f.Apply([]capture.Change{c})
		}), errOther.Error() + "|" + sampled},
		{"the timeline swaps two writes", inTimeline(func(l *lie, f *timeline.Feed, c capture.Change) error {
			c.Data = bytes.Clone(c.Data)
			l.held = func() error { return f.Apply([]capture.Change{c}) }
			return nil
		}), errOther.Error() + "|was answered before, and is not there"},
		{"the timeline garbles a sector", inTimeline(func(l *lie, f *timeline.Feed, c capture.Change) error {
			c.Data = garbled(c.Data)
			return f.Apply([]capture.Change{c})
		}), errOther.Error() + "|" + sampled},
		{"the timeline misdates a write", inTimeline(func(l *lie, f *timeline.Feed, c capture.Change) error {
			c.Time += (40 * time.Millisecond).Nanoseconds()
			return f.Apply([]capture.Change{c})
		}), "was answered before, and is not there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &lie{}
			err := l.judge(t, c.tricks(l))
			switch {
			case c.found == "" && err != nil:
				t.Errorf("nobody lied: %v", err)
			case c.found != "" && (err == nil || !regexp.MustCompile(c.found).MatchString(err.Error())):
				t.Errorf("found: %v; wanted: %s", err, c.found)
			default:
				t.Log(err)
			}
		})
	}
}

const liesSize = 1 << 20

// judge writes to two disks in turn, with the tricks, and returns what is found.
func (l *lie) judge(t *testing.T, tricks tricks) error {
	rng, s := seeded(t), newStage(t)
	x := newRig(t, s, rng, tricks, sparseFile(t, s.dir+"/base0", liesSize), sparseFile(t, s.dir+"/base1", liesSize))
	l.x, l.at = x, 20+rng.Int64N(20) // a flush comes with each fourth write
	l.armed.Store(true)
	p := make([]byte, 8<<10)
	for n := range 200 {
		d := x.seen[n%2]
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		size := 512 * (1 + rng.Int64N(int64(len(p)/512)))
		if _, err := d.WriteAt(p[:size], rng.Int64N((liesSize-size)/512)*512); err != nil {
			t.Fatal(err)
		}
		if n%4 == 3 {
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if err := x.finish(); err != nil {
		return err
	}
	return x.showAll(append(x.flushes(), x.positions(1<<30)...), func(*shown) error { return nil })
}

// garbled is a copy of p in which one bit is another.
func garbled(p []byte) []byte {
	p = bytes.Clone(p)
	p[len(p)/2] ^= 1
	return p
}

// onDisk lies about a write above the tap.
func onDisk(how func(l *lie, d block.Device, p []byte, off int64) error) func(l *lie) tricks {
	return func(l *lie) tricks {
		return tricks{disk: func(d block.Device, _ int) block.Device { return &liar{Device: d, l: l, write: how} }}
	}
}

// unflushed answers a flush that it does not make.
func unflushed(l *lie) tricks {
	return tricks{disk: func(d block.Device, _ int) block.Device { return &liar{Device: d, l: l, flushes: true} }}
}

// liar is a disk that lies about a write or a flush.
type liar struct {
	block.Device
	l       *lie
	write   func(l *lie, d block.Device, p []byte, off int64) error
	flushes bool
}

func (d *liar) WriteAt(p []byte, off int64) (int, error) {
	if d.write != nil && d.l.now() {
		return len(p), d.write(d.l, d.Device, p, off)
	}
	n, err := d.Device.WriteAt(p, off)
	if held := d.l.held; err == nil && held != nil {
		d.l.held = nil
		err = held()
	}
	return n, err
}

func (d *liar) Flush() error {
	if d.flushes && d.l.now() {
		return nil
	}
	return d.Device.Flush()
}

// inTimeline lies about a change behind the ledger.
func inTimeline(how func(l *lie, f *timeline.Feed, c capture.Change) error) func(l *lie) tricks {
	return func(l *lie) tricks {
		return tricks{record: func(f *timeline.Feed, c *capture.Change) error {
			if l.now() {
				return how(l, f, *c)
			}
			err := f.Apply([]capture.Change{*c})
			if held := l.held; err == nil && held != nil {
				l.held = nil
				err = held()
			}
			return err
		}}
	}
}

// swappedOnWire swaps two changes.
func swappedOnWire(l *lie) tricks {
	return onWire(l, func(list []capture.Change) { list[0], list[1] = list[1], list[0] })
}

// garbledOnWire has one bit of a change be another.
func garbledOnWire(l *lie) tricks {
	return onWire(l, func(list []capture.Change) { list[1].Data, list[1].Memory = garbled(list[1].Data), nil })
}

// onWire lies about what is sent in two changes that follow each other, of two disks: they are two writes, in order.
func onWire(l *lie, how func(list []capture.Change)) tricks {
	return tricks{sink: func(s capture.Sink) capture.Sink { return liarOnWire{s, l, how} }}
}

type liarOnWire struct {
	capture.Sink
	l   *lie
	how func(list []capture.Change)
}

// Open implements capture.Sink.
func (w liarOnWire) Open(ctx context.Context, id string, before capture.Sent, m *shared.Memory) (capture.Stream, error) {
	s, err := w.Sink.Open(ctx, id, before, m)
	return &liarsStream{Stream: s, w: w}, err
}

type liarsStream struct {
	capture.Stream
	w    liarOnWire
	once sync.Once
}

// Apply implements capture.Stream.
func (s *liarsStream) Apply(list []capture.Change) error {
	for i := range len(list) - 1 {
		if s.w.l.armed.Load() && list[i].Disk != list[i+1].Disk {
			s.once.Do(func() {
				list = slices.Clone(list)
				s.w.how(list[i:])
			})
		}
	}
	return s.Stream.Apply(list)
}
