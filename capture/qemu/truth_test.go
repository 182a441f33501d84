package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
)

// truth is a machine with two disks, a guest that writes both, and a timeline that follows through outages of all kinds.
type truth struct {
	t      *testing.T
	rng    *rand.Rand
	format string
	m      *machine
	w      *world
	mirror *Mirror
	stop   func()
	kept   []past // what was the newest point at some moment, and what the disks held then

	number  uint64      // written last to both disks
	machine atomic.Bool // is going: its guest's writes may fail
}

// past is a moment of quiet.
type past struct {
	pos  tidemark.Position
	hash uint64
}

// TestTruth (C1, C4, J1, J3, J4) lets servers die, hang and stop, hosts lose power, machines go and connections break, at random, under writes to two
// disks. Whenever the guest pauses, the newest point is the machine's disks, byte for byte; a point of the past stays what it was;
// in an outage no point is offered; and a write that follows another, on the other disk, is never there without it.
func TestTruth(t *testing.T) {
	rounds := 10
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 200
	}
	rng := seeded(t)
	format := []string{"raw", "qcow2"}[rng.IntN(2)]
	x := &truth{t: t, rng: rng, format: format, m: newMachine(t, rng, format, 2), w: newWorld(t, 2)}
	outages := []struct {
		name string
		do   func() // the guest writes meanwhile, unless its machine goes
	}{
		{"the server is killed", func() { x.w.kill(x.stop, false); x.meanwhile(); x.follow() }},
		{"the server's host loses power", func() { x.w.kill(x.stop, true); x.meanwhile(); x.follow() }},
		{"the server is stopped", func() { x.stop(); x.w.restart(false); x.meanwhile(); x.follow() }},
		{"the server's disk hangs", x.hang},
		{"the connection is cut", func() { x.w.HangUp(); x.meanwhile() }},
		{"the machine is started anew", x.reboot},
	}
	x.count(1)
	x.follow()
	ready(t, x.mirror)
	for round := range rounds {
		o := outages[x.rng.IntN(len(outages))]
		if round < len(outages) {
			o = outages[round]
		}
		t.Logf("round %d: %s, gaps %d", round, o.name, len(x.w.line.Gaps()))
		x.write(20, 3*time.Millisecond)
		x.look() // before
		x.during(o.do)
		x.w.mended(len(x.w.line.Gaps()))
		ready(t, x.mirror)
		x.look() // after
		if t.Failed() {
			return
		}
	}
	x.order()
}

func (x *truth) follow() {
	x.mirror, x.stop = x.w.follow(x.m, func(m *Mirror) {
		// The stall is that of a server: a busy host may well stand still for a second, and that would be an outage more.
		m.turnEvery, m.turnAfter = 20*time.Millisecond, 100*time.Millisecond
	})
}

// write has the guest write for a while.
func (x *truth) write(writes int, pause time.Duration) {
	x.t.Helper()
	disks := []guest{x.m.guestOf(0), x.m.guestOf(1)}
	for range x.rng.IntN(writes) + 1 {
		disks[x.rng.IntN(2)].scribble(x.rng)
		time.Sleep(time.Duration(x.rng.Int64N(int64(pause))))
	}
	for _, g := range disks {
		g.Close()
	}
}

func (x *truth) meanwhile() { x.write(60, time.Millisecond) }

// hang has our disk hang for longer than the guest may wait.
func (x *truth) hang() {
	shut := make(chan struct{})
	x.w.hang.Store(&shut)
	gaps := len(x.w.line.Gaps())
	x.write(5, time.Millisecond)
	eventually(x.t, "it is noted that the disk hangs", func() bool { return len(x.w.line.Gaps()) > gaps })
	x.w.hang.Store(nil)
	close(shut)
}

// reboot kills the machine, changes an image, and starts it again.
func (x *truth) reboot() {
	x.machine.Store(true)
	x.m.stop()
	eventually(x.t, "the machine is missed", func() bool { return x.mirror.State().Phase == Degraded })
	change := fmt.Sprintf("write -P %d %d 4k", x.rng.IntN(256), clockEnd+x.rng.Int64N(diskSize/4096-8)*4096)
	if out, err := exec.Command("qemu-io", "-f", x.format, "-c", change, x.m.image(1)).CombinedOutput(); err != nil {
		x.t.Fatalf("%v: %s", err, out)
	}
	x.m.start()
	x.meanwhile()
}

// during has an outage while a guest counts.
func (x *truth) during(outage func()) {
	gaps := len(x.w.line.Gaps())
	var over atomic.Bool
	ended := make(chan struct{})
	x.machine.Store(false)
	go func() {
		defer close(ended)
		for !over.Load() && x.count(20) {
		}
	}()
	time.Sleep(time.Duration(x.rng.IntN(30)) * time.Millisecond)
	if n := len(x.w.line.Gaps()); n != gaps {
		x.t.Errorf("there is a gap without an outage: %+v", x.w.line.Gaps()[n-1])
	}
	outage()
	eventually(x.t, "the gap is noted", func() bool { return len(x.w.line.Gaps()) > gaps })
	over.Store(true)
	<-ended
}

// count writes numbers, each to one disk and then to the other. It ends when the machine does.
func (x *truth) count(times int) bool {
	first, err := x.m.tryGuest(0)
	if err != nil {
		return false
	}
	defer first.Close()
	second, err := x.m.tryGuest(1)
	if err != nil {
		return false
	}
	defer second.Close()
	p := make([]byte, 4096)
	for range times {
		x.number++
		binary.BigEndian.PutUint64(p, x.number)
		for _, g := range []guest{first, second} {
			if err := g.try(cmdWrite, clockAt, int64(len(p)), p); err != nil {
				if !x.machine.Load() {
					x.t.Errorf("a write of the guest failed: %v", err)
				}
				return false
			}
		}
	}
	return true
}

// look compares the newest point with the machine, and all that were looked at before with what they were then.
func (x *truth) look() {
	x.t.Helper()
	x.w.same(x.m)
	for _, p := range x.kept {
		got, err := x.w.at(p.pos)
		if err != nil {
			x.t.Errorf("%v was a point, and is none now: %v", p.pos, err)
		} else if sum(got) != p.hash {
			x.t.Errorf("%v is not what it was", p.pos)
		}
	}
	head, _ := x.w.line.Head()
	got, err := x.w.at(head)
	if err != nil {
		x.t.Fatal(err)
	}
	if !bytes.Equal(got, x.m.content()) {
		x.t.Error("the newest point changed by itself")
	}
	if x.kept = append(x.kept, past{head, sum(got)}); len(x.kept) > 4 {
		i := x.rng.IntN(len(x.kept))
		x.kept = append(x.kept[:i], x.kept[i+1:]...)
	}
}

var hashSeed = maphash.MakeSeed()

func sum(p []byte) uint64 { return maphash.Bytes(hashSeed, p) }

// order holds at points of the whole history that the second disk has a number only if the first has it.
func (x *truth) order() {
	head, _ := x.w.line.Head()
	offered := 0
	for range 500 {
		pos := tidemark.Position(1 + x.rng.Int64N(int64(head)))
		a, err := x.numberAt(0, pos)
		if err != nil {
			continue // in a gap
		}
		b, err := x.numberAt(1, pos)
		if err != nil {
			x.t.Fatal(err)
		}
		// A number that was being written when the machine went may be missing.
		if offered++; a < b || a > b+2 {
			x.t.Fatalf("at %v one disk has %d, and the other %d (gaps: %+v)", pos, a, b, x.w.line.Gaps())
		}
	}
	x.t.Logf("%d of 500 positions up to %d are offered, and true", offered, head)
	if offered < 20 {
		x.t.Errorf("of 500 positions only %d are offered", offered)
	}
}

func (x *truth) numberAt(disk int, pos tidemark.Position) (uint64, error) {
	s, err := x.w.line.At(x.w.line.Disks()[disk].Name(), pos)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var p [8]byte
	_, err = s.ReadAt(p[:], clockAt)
	return binary.BigEndian.Uint64(p[:]), err
}
