package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"tidemark/internal/socket"
)

// What the kernel's nbd driver sends and is told, beyond nbd.go.
const (
	flagHasFlags = 1 << 0

	cmdTrim = 4

	// smallAnswer is the largest answer that is copied to go out in one write.
	smallAnswer = 32 << 10
)

// KernelFront serves the kernel's nbd driver through socket pairs: to the kernel
// it is the server, and a server that never goes away.
type KernelFront struct {
	r        *Relay
	conns    []*kernelConn
	readers  sync.WaitGroup
	done     chan struct{}
	doneOnce sync.Once
}

// kernelConns is how many connections the kernel gets, however many the relay has. The driver reads the answers on
// each with a work item that ends with the connection. Where the host is too busy to start threads for them at once, a
// single thread, the work queue's rescuer, takes all that wait, one after the other: it never comes to the second, and
// whoever uses a processor that the second belongs to waits for ever.
const kernelConns = 1

// ShowKernel makes a socket pair for each connection that the kernel gets, begins to
// serve one end of each, and returns the other ends, for the kernel to take over.
// The caller closes those when the kernel has them.
func (r *Relay) ShowKernel() (*KernelFront, []*os.File, error) {
	f := &KernelFront{r: r, done: make(chan struct{})}
	var theirs []*os.File
	for _, l := range r.lanes[:kernelConns] {
		c, file, err := socket.Pair()
		if err != nil {
			for _, t := range theirs {
				err = errors.Join(err, t.Close())
			}
			return nil, nil, errors.Join(err, f.Close())
		}
		theirs = append(theirs, file)
		f.conns = append(f.conns, &kernelConn{f: f, lane: l, conn: c})
	}
	for _, c := range f.conns {
		f.readers.Go(c.serve)
	}
	go func() {
		f.readers.Wait()
		f.doneOnce.Do(func() { close(f.done) })
	}()
	return f, theirs, nil
}

// Flags are the NBD transmission flags to tell the kernel: what this front does,
// whatever the server does. FUA is not among them: the kernel then flushes.
func (f *KernelFront) Flags() uint64 {
	flags := uint64(flagHasFlags | flagSendFlush)
	if f.r.info.canZero() && !f.r.opt.ReadOnly {
		flags |= flagSendTrim | flagWriteZeroes
	}
	if f.r.opt.ReadOnly {
		flags |= flagReadOnly
	}
	return flags
}

// MaxTransfer is the most bytes of one read or write; a longer one is refused.
func (f *KernelFront) MaxTransfer() int { return min(maxTransfer, f.r.info.MaxBlock) }

// Done is closed when the kernel has let go of all connections.
func (f *KernelFront) Done() <-chan struct{} { return f.done }

// Close ends the connections: whoever still uses the device gets errors.
func (f *KernelFront) Close() error {
	var err error
	for _, c := range f.conns {
		err = errors.Join(err, c.conn.Close())
	}
	f.readers.Wait()
	return err
}

// kernelConn is one connection of the kernel, and always the same lane's.
type kernelConn struct {
	f    *KernelFront
	lane *lane
	conn *socket.Conn

	mu  sync.Mutex // guards out, and keeps answers whole
	out []byte
}

// serve reads requests until the kernel disconnects.
func (c *kernelConn) serve() {
	defer c.conn.Close()
	buf := make([]byte, receiveBuffer)
	r, w := 0, 0
	for {
		n, err := c.conn.Read(buf[w:])
		if err != nil {
			return // the kernel disconnected, or Close
		}
		w += n
		used, ok := c.batch(buf[r:w])
		if !ok {
			return
		}
		r += used
		if r == w {
			r, w = 0, 0
		} else if len(buf)-r < maxTransfer+requestSize {
			w = copy(buf, buf[r:w])
			r = 0
		}
	}
}

// batch does all whole requests at the beginning of b and sends in one go what they ask
// of the server. It returns how many bytes it used, and false at the end.
func (c *kernelConn) batch(b []byte) (used int, ok bool) {
	if len(b) < requestSize {
		return 0, true
	}
	c.lane.begin()
	defer c.lane.end()
	for {
		n, ok := c.request(b[used:])
		if n == 0 || !ok {
			return used, ok
		}
		used += n
	}
}

// request does one request and returns its length: 0 if it is not whole yet. It
// reports false at a disconnect, and at bytes that make no sense.
func (c *kernelConn) request(b []byte) (n int, ok bool) {
	if len(b) < requestSize {
		return 0, true
	}
	cmd, unique := binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:])
	off, length := binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint32(b[24:])
	info, size := c.f.r.info, uint64(c.f.r.info.Size)
	long := (cmd == cmdRead || cmd == cmdWrite) && int(length) > c.f.MaxTransfer()
	switch {
	case binary.BigEndian.Uint32(b) != magicRequest:
		c.f.r.opt.Log.Error("the kernel's request makes no sense", "request", fmt.Sprintf("%x", b[:requestSize]))
		return 0, false
	case cmd == cmdDisconnect:
		return 0, false
	case cmd == cmdWrite && long:
		return 0, false // its payload cannot be taken; the kernel was told the limit
	case cmd == cmdWrite && len(b) < requestSize+int(length):
		return 0, true
	}
	n = requestSize
	if cmd == cmdWrite {
		n += int(length)
	}
	switch {
	case cmd == cmdFlush:
		c.lane.flush(c, unique)
	case long, off > size, uint64(length) > size-off:
		c.end(unique, unix.EINVAL)
	case cmd == cmdRead:
		c.lane.read(c, unique, int64(off), length)
	case c.f.r.opt.ReadOnly:
		c.end(unique, unix.EPERM)
	case cmd == cmdWrite:
		c.lane.write(c, unique, int64(off), b[requestSize:n])
	case (cmd == cmdTrim || cmd == cmdWriteZeroes) && info.canZero():
		// A trim is more than asked for: afterwards the bytes are zeros, as on loop devices.
		keep := cmd == cmdWriteZeroes && binary.BigEndian.Uint16(b[4:])&cmdFlagNoHole != 0
		c.lane.zero(c, unique, int64(off), length, keep)
	default:
		c.end(unique, unix.EINVAL)
	}
	return n, true
}

func (c *kernelConn) answer(_ *lane, s slot, e unix.Errno, data []byte) { c.send(s.unique, e, data) }

func (c *kernelConn) end(unique uint64, e unix.Errno) { c.send(unique, e, nil) }

// send sends one simple reply. Errors are those of a kernel that has gone.
func (c *kernelConn) send(unique uint64, e unix.Errno, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := binary.BigEndian.AppendUint32(c.out[:0], magicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e)) // NBD's errors are Linux's where both exist
	b = binary.BigEndian.AppendUint64(b, unique)
	if len(data) <= smallAnswer {
		b, data = append(b, data...), nil
	}
	c.out = b
	c.conn.Write(b)
	if data != nil {
		c.conn.Write(data)
	}
}
