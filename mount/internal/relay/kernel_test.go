package relay

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nbdKernel plays the kernel's nbd driver at one of its sockets: one request at a
// time, so that order is no question.
type nbdKernel struct {
	t    *testing.T
	conn net.Conn
	next uint64
}

func showKernel(t *testing.T, r *Relay) (*KernelFront, []*nbdKernel) {
	t.Helper()
	front, files, err := r.ShowKernel()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close() })
	var kernels []*nbdKernel
	for _, file := range files {
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { c.Close() })
		kernels = append(kernels, &nbdKernel{t: t, conn: c})
	}
	return front, kernels
}

// ask does one request and returns its error and, of a read, its data.
func (k *nbdKernel) ask(cmd uint16, off int64, n int, data []byte) (unix.Errno, []byte) {
	k.t.Helper()
	k.next++
	msg := make([]byte, requestSize)
	putRequest(msg, 0, cmd, k.next, off, uint32(n))
	msg = append(msg, data...)
	cut := len(msg) / 2 // requests come in pieces
	k.conn.Write(msg[:cut])
	if _, err := k.conn.Write(msg[cut:]); err != nil {
		k.t.Fatal(err)
	}
	var h [replySize]byte
	if _, err := io.ReadFull(k.conn, h[:]); err != nil {
		k.t.Fatal(err)
	}
	cookie, errno, err := parseReply(h[:])
	if err != nil || cookie != k.next {
		k.t.Fatalf("reply %x to request %d: %v", h, k.next, err)
	}
	if cmd != cmdRead || errno != 0 {
		return unix.Errno(errno), nil
	}
	got := make([]byte, n)
	if _, err := io.ReadFull(k.conn, got); err != nil {
		k.t.Fatal(err)
	}
	return 0, got
}

// TestKernelSeesNoCrash does random requests on both sockets while the server
// crashes and forgets.
func TestKernelSeesNoCrash(t *testing.T) {
	runs := 10
	if os.Getenv("TIDEMARK_LONG") != "" {
		runs = 300
	}
	for range runs {
		seed := uint64(time.Now().UnixNano())
		if !t.Run("", func(t *testing.T) { testKernelSeesNoCrash(t, seed) }) {
			t.Fatalf("seed %d", seed)
		}
	}
}

func testKernelSeesNoCrash(t *testing.T, seed uint64) {
	const size = 256 << 10
	rng := rand.New(rand.NewPCG(seed, 0))
	f := newForgetful(size, rand.New(rand.NewPCG(seed, 1)))
	_, kernels := showKernel(t, connect(t, f, nil))
	model := make([]byte, size)
	for range 300 {
		if rng.IntN(20) == 0 {
			f.mu.Lock()
			f.dies = 1 + rng.IntN(10)
			f.mu.Unlock()
		}
		k := kernels[rng.IntN(len(kernels))]
		off := rng.IntN(size/512) * 512
		n := (1 + rng.IntN(min(128, (size-off)/512))) * 512
		cmd := []uint16{cmdRead, cmdWrite, cmdWrite, cmdFlush, cmdTrim, cmdWriteZeroes}[rng.IntN(6)]
		var data []byte
		switch cmd {
		case cmdWrite:
			data = bytes.Repeat([]byte{byte(rng.Uint32())}, n)
			copy(model[off:], data)
		case cmdTrim, cmdWriteZeroes:
			clear(model[off : off+n])
		case cmdFlush:
			off, n = 0, 0
		}
		e, got := k.ask(cmd, int64(off), n, data)
		if e != 0 || cmd == cmdRead && !bytes.Equal(got, model[off:off+n]) {
			t.Fatalf("command %d at %d+%d: %v, or wrong bytes", cmd, off, n, e)
		}
	}
	if e, _ := kernels[0].ask(cmdFlush, 0, 0, nil); e != 0 {
		t.Fatal(e)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !bytes.Equal(f.durable, model) {
		t.Fatal("not all that was flushed is durable")
	}
}

// TestKernelIsRefused checks what the kernel should not ask for.
func TestKernelIsRefused(t *testing.T) {
	f := newForgetful(64<<10, rand.New(rand.NewPCG(1, 1)))
	r := connect(t, f, nil)
	front, k := showKernel(t, r)
	if want := uint64(flagHasFlags | flagSendFlush | flagSendTrim | flagWriteZeroes); front.Flags() != want {
		t.Errorf("flags %#x, want %#x", front.Flags(), want)
	}
	for what, ask := range map[string]func() unix.Errno{
		"beyond the end": func() unix.Errno { e, _ := k[0].ask(cmdRead, 64<<10, 512, nil); return e },
		"across the end": func() unix.Errno { e, _ := k[0].ask(cmdWrite, 63<<10, 2048, make([]byte, 2048)); return e },
		"negative":       func() unix.Errno { e, _ := k[0].ask(cmdRead, -512, 512, nil); return e },
		"too long":       func() unix.Errno { e, _ := k[0].ask(cmdRead, 0, maxTransfer+512, nil); return e },
		"unknown":        func() unix.Errno { e, _ := k[0].ask(77, 0, 512, nil); return e },
	} {
		if e := ask(); e != unix.EINVAL {
			t.Errorf("%s: %v", what, e)
		}
	}
	var b [requestSize]byte
	putRequest(b[:], 0, cmdDisconnect, 0, 0, 0)
	k[0].conn.Write(b[:])
	ends(t, front)
	front, k = showKernel(t, r)
	binary.BigEndian.PutUint32(b[:], 1) // no request at all
	k[0].conn.Write(b[:])
	ends(t, front)
}

// ends checks that a front is done.
func ends(t *testing.T, front *KernelFront) {
	t.Helper()
	select {
	case <-front.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("does not end when the kernel disconnects")
	}
}

// TestKernelGetsOneConnection: with several it may never read the answers on all of them; see kernelConns.
func TestKernelGetsOneConnection(t *testing.T) {
	r := connect(t, newForgetful(64<<10, rand.New(rand.NewPCG(1, 1))), nil)
	if len(r.lanes) < 2 {
		t.Fatalf("%d lanes: nothing is tested", len(r.lanes))
	}
	if _, k := showKernel(t, r); len(k) != 1 {
		t.Errorf("the kernel gets %d connections", len(k))
	}
}

// TestKernelReadOnly checks that a read-only relay takes no writes from the kernel.
func TestKernelReadOnly(t *testing.T) {
	f := newForgetful(64<<10, rand.New(rand.NewPCG(1, 1)))
	front, k := showKernel(t, connect(t, f, func(o *Options) { o.ReadOnly = true }))
	if front.Flags()&flagReadOnly == 0 || front.Flags()&flagSendTrim != 0 {
		t.Errorf("flags %#x", front.Flags())
	}
	for _, cmd := range []uint16{cmdTrim, cmdWriteZeroes} {
		if e, _ := k[0].ask(cmd, 0, 512, nil); e != unix.EPERM {
			t.Errorf("command %d: %v", cmd, e)
		}
	}
	if e, _ := k[0].ask(cmdWrite, 0, 512, make([]byte, 512)); e != unix.EPERM {
		t.Errorf("write: %v", e)
	}
	if e, got := k[0].ask(cmdRead, 0, 512, nil); e != 0 || !bytes.Equal(got, make([]byte, 512)) {
		t.Errorf("read: %v", e)
	}
}
