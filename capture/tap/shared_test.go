package tap

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/wire"
)

// sink is the machine's timeline, or a connection to it.
func (h *machine) sink() capture.Sink {
	if !h.wired {
		return h.line
	}
	return &wire.Client{Timeline: "t", Dial: h.dial}
}

// dial connects with a server of the timeline.
func (h *machine) dial(context.Context) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if ends[i], err = net.FileConn(f); err != nil {
			return nil, err
		}
		f.Close()
	}
	go wire.Serve(context.Background(), ends[0], func(_ context.Context, _, id string, before capture.Sent) (wire.Feed, bool, error) {
		s, err := h.line.begin(id, before)
		if err != nil {
			return nil, false, err
		}
		return s, s.known, nil
	})
	return ends[1], nil
}

// halt ends the tap's process, whose memory goes with it.
func (h *machine) halt() {
	h.tap.halt()
	h.tap.mu.Lock()
	h.tap.queue.close()
	h.tap.mu.Unlock()
}

// newSharing is a machine whose timeline follows, and reads the tap's memory.
func newSharing(t *testing.T, seed uint64) *machine {
	t.Helper()
	h := newMachine(t, seed)
	h.wired, h.spill = true, 0
	h.open()
	h.settled()
	if s := h.tap.Status(); !s.Shared {
		t.Fatalf("nothing is shared: %+v", s)
	}
	return h
}

// sentSome waits until the timeline, which hangs, was sent some of what was written.
func (h *machine) sentSome() {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		h.tap.mu.Lock()
		sent := h.tap.applied - h.tap.queue.gone
		h.tap.mu.Unlock()
		if sent >= 2 {
			return
		}
		if time.Now().After(end) {
			h.fail("nothing is sent")
		}
	}
}

// fill writes some MiB, each block with the number of its write.
func (h *machine) fill(off, size int64) {
	h.t.Helper()
	p := make([]byte, block.BlockSize)
	for end := off + size; off < end; off += block.BlockSize {
		n := h.wrote.Add(1)
		for i := range p {
			p[i] = byte(n>>(i%3*8)) | 1
		}
		if _, err := h.tap.Disks()[0].WriteAt(p, off); err != nil {
			h.fail("write: %v", err)
		}
	}
}

// A server that hangs, and then reads all that it was sent, finds what was put there: while the queue is full and writes are lost; after the queue was
// given up, while another one fills; and when it is sent again on another connection.
func TestMemoryStaysWhileItMayBeRead(t *testing.T) {
	for _, c := range []struct {
		name      string
		meanwhile func(h *machine)
	}{
		{"the queue is full", func(h *machine) { h.fill(0, 8<<20) }},
		{"the queue is given up", func(h *machine) {
			h.tap.loseQueue("a test")
			h.fill(64<<20, 3<<20)
		}},
		{"everything is to be sent again", func(h *machine) {
			h.tap.Resync()
			h.fill(64<<20, 3<<20)
		}},
		{"the connection is lost", func(h *machine) {
			h.tap.mu.Lock()
			live := h.tap.live
			h.tap.mu.Unlock()
			live.stream.Close()
			h.fill(64<<20, 3<<20)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(4) {
				h := newSharing(t, seed)
				h.line.hangs.Store(true)
				h.fill(0, 2<<20)
				h.sentSome()
				c.meanwhile(h)
				h.line.hangs.Store(false)
				h.settled()
				h.kill()
			}
		})
	}
}

// What is sent again on another connection, zeros among it, is what was sent before, and nothing is missing.
func TestSentAgainIsIntact(t *testing.T) {
	h := newSharing(t, 1)
	gaps := h.line.gaps
	h.line.hangs.Store(true)
	for i := range int64(6) {
		h.fill(i<<20, 64<<10)
		h.wrote.Add(1)
		if err := h.tap.Disks()[0].Discard(i<<20, 40<<10); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * linger)
	}
	h.sentSome()
	h.tap.mu.Lock()
	live := h.tap.live
	h.tap.mu.Unlock()
	live.stream.Close()
	h.line.hangs.Store(false)
	h.settled()
	if h.line.gaps != gaps {
		t.Errorf("%d gaps began", h.line.gaps-gaps)
	}
	h.kill()
}

// Data that are damaged in the queue are refused, and read from the primary again.
func TestDamagedQueue(t *testing.T) {
	h := newSharing(t, 1)
	h.line.garbled = true
	h.line.hangs.Store(true)
	h.fill(0, 1<<20)
	h.sentSome()
	h.tap.mu.Lock()
	for _, s := range h.tap.queue.list {
		if s.slab != nil && s.slab.area != nil && len(s.data) > 0 {
			s.data[len(s.data)/2] ^= 1
		}
	}
	h.tap.mu.Unlock()
	h.line.hangs.Store(false)
	h.settled()
	if h.line.damaged == 0 {
		t.Error("it was not noticed")
	}
	h.kill()
}

// Data that do not lie in memory that is shared are carried, on the same connection.
func TestWithoutSharedMemory(t *testing.T) {
	h := newSharing(t, 1)
	h.tap.mu.Lock()
	h.tap.queue.leave()
	h.tap.mu.Unlock()
	for range 50 {
		h.write()
	}
	h.settled()
	h.kill()
}

// Memory that the queue has not needed for a while is the host's again, and is used again when it is needed.
func TestMemoryIsGivenBack(t *testing.T) {
	h := newSharing(t, 2)
	room := func() int64 {
		h.tap.mu.Lock()
		defer h.tap.mu.Unlock()
		var st unix.Stat_t
		if err := unix.Fstat(int(h.tap.queue.area.m.File().Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	h.line.hangs.Store(true)
	h.fill(0, 3<<20)
	h.line.hangs.Store(false)
	h.settled()
	if n := room(); n < 2<<20 {
		t.Errorf("the queue took %d bytes", n)
	}
	for range 2 {
		for h.tap.trim() {
		}
	}
	if n := room(); n > segmentSize {
		t.Errorf("the queue still takes %d bytes", n)
	}
	h.fill(0, 3<<20)
	h.settled()
	h.kill()
}
