package nbd

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"tidemark/block"
)

// inputSize is how many bytes of requests are read at once, and inlinePayload
// the longest write that is served out of that buffer; longer ones are read
// straight into a buffer of their own.
const (
	inputSize     = 256 << 10
	inlinePayload = inputSize / 2
)

// maxLargeReads is how many reads at a time a connection may have that need a
// buffer of 32 MiB: those of clients that want a reply in one piece.
const maxLargeReads = 2

// maxLongWrites is how many writes with a buffer of their own a connection may have
// in progress: enough that one is encoded while another is synced and a third arrives.
const maxLongWrites = 4

// conn is one client's connection, from the greeting to its end. Its loop runs
// in the goroutine that accepted it.
type conn struct {
	srv *Server
	raw net.Conn // as accepted
	nc  net.Conn // raw, or TLS over it; of the handshake alone
	hs  handshake

	// What the handshake agreed on; constant afterwards.
	exp        *Export
	release    func()
	dev        block.Reader
	wdev       block.Device   // nil: read-only
	try        TryReader      // nil: the device has no such power
	extents    block.Extenter // likewise
	zero       block.Zeroer
	trim       func(off, n int64) error // a TRIM
	prefetch   block.Prefetcher
	size       int64
	structured bool
	allocation bool // base:allocation was selected

	st   stream
	in   input
	out  *sink // of the loop; each worker has its own
	wmu  sync.Mutex
	werr error // guarded by wmu: the first failure to send

	jobs    chan request // to the workers
	workers int          // running; of the loop alone
	wg      sync.WaitGroup
	large   chan struct{} // a token for each large read
	long    chan struct{} // a token for each long write
	ending  atomic.Bool   // shutting down: serve what has arrived, no more
}

// input is the buffer that requests are parsed from: b[r:w] is unread.
type input struct {
	b    []byte
	r, w int
}

// setExport takes what the handshake opened. Server.mu is held.
func (c *conn) setExport(e *Export, release func()) {
	c.exp, c.release = e, release
	c.dev, c.wdev, c.size = e.Device, e.writable(), e.Device.Size()
	c.try, _ = c.dev.(TryReader)
	c.extents, _ = c.dev.(block.Extenter)
	c.zero, _ = c.dev.(block.Zeroer)
	c.prefetch, _ = c.dev.(block.Prefetcher)
	if c.wdev != nil {
		c.trim = c.wdev.Discard
		if t, ok := c.dev.(block.Trimmer); ok {
			c.trim = t.Trim
		}
	}
}

// transmit serves requests until the client disconnects, breaks the protocol,
// or the server shuts down. Every request that was read has been answered, or
// the connection was lost, when it returns; the export is no longer used.
func (c *conn) transmit(buffered []byte) error {
	c.in.b = make([]byte, inputSize)
	c.in.w = copy(c.in.b, buffered)
	c.out = newSink(c)
	c.jobs = make(chan request)
	c.large = make(chan struct{}, maxLargeReads)
	c.long = make(chan struct{}, maxLongWrites)
	err := c.loop()
	c.out.send()
	close(c.jobs)
	c.wg.Wait()
	return err
}

func (c *conn) loop() error {
	for {
		if c.ending.Load() && c.in.w-c.in.r < requestSize {
			return nil
		}
		p, err := c.need(requestSize)
		if err != nil {
			if err == io.EOF && c.in.w == c.in.r || c.ending.Load() {
				return nil
			}
			return fmt.Errorf("read request: %w", err)
		}
		r, ok := parseRequest(p)
		if !ok {
			return fmt.Errorf("%w: bad magic of a request", errProtocol)
		}
		if r.typ == cmdDisc {
			return nil
		}
		if err := c.serve(&r); err != nil {
			return err
		}
		if len(c.out.b) >= sendAt {
			c.out.send()
		}
	}
}

// need returns the next n bytes of input, n <= inputSize; they are valid until
// the next call. Replies are sent before it waits for more to arrive.
func (c *conn) need(n int) ([]byte, error) {
	in := &c.in
	for in.w-in.r < n {
		if in.r == in.w {
			in.r, in.w = 0, 0
		} else if len(in.b)-in.r < n {
			in.w = copy(in.b, in.b[in.r:in.w])
			in.r = 0
		}
		k, err := c.receive(in.b[in.w:])
		if err != nil {
			return nil, err
		}
		in.w += k
	}
	p := in.b[in.r : in.r+n]
	in.r += n
	return p, nil
}

// receive reads what the client sent. Nothing may be held back meanwhile.
func (c *conn) receive(p []byte) (int, error) {
	c.out.send()
	return c.st.Read(p)
}

// await takes a token, with nothing held back while it waits for one.
func (c *conn) await(tokens chan struct{}) {
	select {
	case tokens <- struct{}{}:
	default:
		c.out.send()
		tokens <- struct{}{}
	}
}

// giveBack ends the use of a long write's buffer.
func (c *conn) giveBack(large *[]byte) {
	putLarge(large)
	<-c.long
}

// payload returns the n bytes that follow a write, in the input buffer or, if
// they are many, in a large buffer for giveBack.
func (c *conn) payload(n int) (p []byte, large *[]byte, err error) {
	if n <= inlinePayload || n <= c.in.w-c.in.r {
		p, err = c.need(n)
		return p, nil, err
	}
	c.await(c.long)
	large = getLarge(n)
	p = (*large)[:n]
	k := copy(p, c.in.b[c.in.r:c.in.w])
	c.in.r, c.in.w = 0, 0
	for k < n {
		m, err := c.receive(p[k:])
		if err != nil {
			c.giveBack(large)
			return nil, nil, err
		}
		k += m
	}
	return p, large, nil
}

// drain throws n bytes of input away.
func (c *conn) drain(n int) error {
	for n > 0 {
		k := min(n, inlinePayload)
		if _, err := c.need(k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// write sends p, whole or not at all as far as other goroutines' replies are
// concerned. After the first failure nothing is sent any more, and the loop is
// woken to find out.
func (c *conn) write(p []byte) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.werr != nil {
		return
	}
	if _, c.werr = c.st.Write(p); c.werr != nil {
		c.st.Abort()
	}
}

// handOver gives r to a worker. If all are busy it waits for one, with nothing
// held back: that is what bounds how much one client can have in flight.
func (c *conn) handOver(r *request) {
	select {
	case c.jobs <- *r:
		return
	default:
	}
	if c.workers < c.srv.opt.Workers {
		c.workers++
		c.wg.Add(1)
		go c.work(*r)
		return
	}
	c.out.send()
	c.jobs <- *r
}

// work serves r and then what the loop hands over, each answered at once.
func (c *conn) work(r request) {
	defer c.wg.Done()
	s := newSink(c)
	for ok := true; ok; r, ok = <-c.jobs {
		c.perform(s, &r)
		s.send()
	}
}
