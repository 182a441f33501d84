package delta

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

const (
	// window is how far back the compression of a stream looks, in bytes: pages of one table
	// have much in common. Both ends need so much memory.
	window = 4 << 20
	// ahead is how many messages wait to be sent: of the largest, 4 MiB, so that reading and comparing go on while
	// the link is slow.
	ahead = 64
)

// stream is a connection with messages in both directions, each compressed as a whole.
type stream struct {
	conn        net.Conn
	in          *bufio.Reader
	dec         *zstd.Decoder
	buf         []byte
	out         chan []byte
	stop        chan struct{} // closed when nothing more is to be sent
	ended       chan struct{} // closed when nothing more is sent
	err         error         // why; set before ended is closed
	once        sync.Once
	taken, sent atomic.Int64 // bytes of the connection
}

// newStream begins to speak. close must be called.
func newStream(conn net.Conn) (*stream, error) {
	s := &stream{conn: conn, out: make(chan []byte, ahead), stop: make(chan struct{}), ended: make(chan struct{})}
	dec, err := zstd.NewReader(counted{conn, &s.taken}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(2*window), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	enc, err := zstd.NewWriter(&countedWriter{conn, &s.sent}, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		dec.Close()
		return nil, err
	}
	s.dec, s.in = dec, bufio.NewReaderSize(dec, 128<<10)
	go s.write(enc)
	return s, nil
}

// write sends what is to be sent. What was compressed leaves at once only where nothing else waits to go with it.
func (s *stream) write(enc *zstd.Encoder) {
	defer close(s.ended)
	for {
		select {
		case b := <-s.out:
			if _, s.err = enc.Write(b); s.err == nil && len(s.out) == 0 {
				s.err = enc.Flush()
			}
		case <-s.stop:
			if len(s.out) > 0 {
				continue
			}
			s.err = enc.Close()
			return
		}
		if s.err != nil {
			s.conn.Close()
			return
		}
	}
}

// send says something, when there is room.
func (s *stream) send(ctx context.Context, m message) error {
	select {
	case s.out <- m.append(nil):
		return nil
	case <-s.ended:
		return errors.Join(ErrLost, s.err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// receive hears the next message, which is good until the one after it.
func (s *stream) receive() (m message, err error) {
	m, s.buf, err = readMessage(s.in, s.buf)
	switch {
	case errors.Is(err, errMalformed):
	case err != nil:
		err = errors.Join(ErrLost, err)
	}
	return m, err
}

// finish returns when all was sent that was to be. Nobody may send any more.
func (s *stream) finish() error {
	s.once.Do(func() { close(s.stop) })
	<-s.ended
	return s.err
}

// close ends the connection.
func (s *stream) close() {
	s.conn.Close()
	s.once.Do(func() { close(s.stop) })
	<-s.ended
}

type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

type countedWriter struct {
	io.Writer
	n *atomic.Int64
}

func (c *countedWriter) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// ErrLost: the connection has ended before all was said. What has arrived is staged; the same can be begun again, and goes on from there.
var ErrLost = errors.New("the connection was lost")
