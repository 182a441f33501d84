package agent

import (
	"bufio"
	"net"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
)

const (
	// packedWindow is how far back the compression of a carried connection looks, in bytes. Both ends need some times as much memory, and the one that reads
	// takes no more, whatever the other says.
	packedWindow = 1 << 20
	// packedLevel: the next one makes the log of a database 2 % smaller, and takes twice the time of production's host.
	packedLevel  = zstd.SpeedFastest
	packedBuffer = 64 << 10
)

// packedConn is a connection that is compressed on its way, each direction as a whole: one frame of zstd without an end. What is written leaves at once. One
// goroutine may read while another writes.
type packedConn struct {
	net.Conn
	in    *zstd.Decoder
	out   *zstd.Encoder
	count *Carried
}

// Carried counts bytes that came over connections. It may be read and added to concurrently.
type Carried struct {
	Plain  atomic.Int64 // as they were sent
	Packed atomic.Int64 // as they were carried
}

// packConn begins to compress a connection, of which both ends must do so. Nothing goes over it yet.
func packConn(conn net.Conn, count *Carried) (*packedConn, error) {
	p := &packedConn{Conn: conn, count: count}
	var err error
	// One goroutine each, which is the caller's: nothing is left running when the connection has ended.
	if p.in, err = zstd.NewReader(bufio.NewReaderSize(counted{conn, &count.Packed}, packedBuffer), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packedWindow)); err != nil {
		return nil, err
	}
	p.out, err = zstd.NewWriter(conn, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(packedWindow), zstd.WithEncoderLevel(packedLevel))
	return p, err
}

// Read implements [net.Conn].
func (p *packedConn) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	p.count.Plain.Add(int64(n))
	return n, err
}

// Write implements [net.Conn].
func (p *packedConn) Write(b []byte) (int, error) {
	n, err := p.out.Write(b)
	if err == nil {
		err = p.out.Flush()
	}
	return n, err
}

// counted counts what is read of a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}
