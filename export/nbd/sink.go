package nbd

import (
	"math/bits"
	"sync"

	"tidemark/block"
)

const (
	// chunkMax is the longest piece, in bytes, that a large read is answered
	// in where the client understands structured replies: small enough to stay
	// in the processor's cache between the device and the socket.
	chunkMax = 256 << 10
	// sinkSize is what a sink holds before it sends: one piece with its header,
	// after a burst of small replies.
	sinkSize = chunkMax + 64<<10
	// sendAt is how many bytes of replies are held back at most while requests
	// that arrived in the same burst are still being served.
	sendAt = 64 << 10
	// smallSink is enough for a worker that only flushes.
	smallSink = 8 << 10
)

const (
	simpleHeader     = 16
	structuredHeader = 20
	dataHeader       = structuredHeader + 8 // and the offset of the data
)

// sink gathers the replies of one goroutine and sends them in one write. The
// connection's loop has one, each of its workers another.
type sink struct {
	c *conn
	b []byte // cap smallSink until more is needed, then sinkSize

	extents []block.Extent          // found by collect
	limit   int                     // how many of them are wanted
	collect func(block.Extent) bool // s.addExtent, bound once so that it costs no allocation
}

func newSink(c *conn) *sink {
	s := &sink{c: c}
	s.collect = s.addExtent
	return s
}

// room returns the next n bytes of the sink to be filled, n <= sinkSize. What
// was gathered is sent first if they do not fit behind it.
func (s *sink) room(n int) []byte {
	if len(s.b)+n > cap(s.b) {
		s.send()
		if n > cap(s.b) && n > smallSink {
			s.b = make([]byte, 0, sinkSize)
		} else if s.b == nil {
			s.b = make([]byte, 0, smallSink)
		}
	}
	k := len(s.b)
	s.b = s.b[:k+n]
	return s.b[k:]
}

// undo takes the last n bytes of the sink back.
func (s *sink) undo(n int) { s.b = s.b[:len(s.b)-n] }

// send writes out what was gathered. A failure ends the connection.
func (s *sink) send() {
	if len(s.b) == 0 {
		return
	}
	s.c.write(s.b)
	s.b = s.b[:0]
}

// simple appends a simple reply: the end of a request that returns no data.
func (s *sink) simple(r *request, errno uint32) {
	putSimple(s.room(simpleHeader), r, errno)
}

func putSimple(p []byte, r *request, errno uint32) {
	be.PutUint32(p, magicSimple)
	be.PutUint32(p[4:], errno)
	be.PutUint64(p[8:], r.cookie)
}

func putChunk(p []byte, r *request, flags, typ uint16, length int) {
	be.PutUint32(p, magicStructured)
	be.PutUint16(p[4:], flags)
	be.PutUint16(p[6:], typ)
	be.PutUint64(p[8:], r.cookie)
	be.PutUint32(p[16:], uint32(length))
}

// fail appends the reply that r failed. Where the client negotiated structured
// replies, those to reads and block status must be such, and carry a message.
func (s *sink) fail(r *request, errno uint32, msg string) {
	if !s.c.structured || r.typ != cmdRead && r.typ != cmdBlockStatus {
		s.simple(r, errno)
		return
	}
	msg = msg[:min(len(msg), maxMessage)]
	p := s.room(structuredHeader + 6 + len(msg))
	putChunk(p, r, chunkDone, chunkError, 6+len(msg))
	putError(p[structuredHeader:], errno, msg)
}

// failAt ends a read whose first bytes may have been sent: off is where it failed.
func (s *sink) failAt(r *request, errno uint32, msg string, off int64) {
	msg = msg[:min(len(msg), maxMessage)]
	n := 6 + len(msg) + 8
	p := s.room(structuredHeader + n)
	putChunk(p, r, chunkDone, chunkErrorOffset, n)
	putError(p[structuredHeader:], errno, msg)
	be.PutUint64(p[structuredHeader+6+len(msg):], uint64(off))
}

// maxMessage is how many bytes of an error's text a client is told.
const maxMessage = 1024

func putError(p []byte, errno uint32, msg string) {
	be.PutUint32(p, errno)
	be.PutUint16(p[4:], uint16(len(msg)))
	copy(p[6:], msg)
}

// addExtent appends e to the extents, joined with the last one if it is of the
// same kind, and returns false when there are more than are wanted.
func (s *sink) addExtent(e block.Extent) bool {
	if k := len(s.extents); k > 0 && s.extents[k-1].Hole == e.Hole {
		s.extents[k-1].Len += e.Len
		return true
	}
	if len(s.extents) == s.limit {
		return false
	}
	s.extents = append(s.extents, e)
	return true
}

// findExtents fills s.extents with at most limit extents of a range.
func (s *sink) findExtents(off, n int64, limit int) error {
	s.extents, s.limit = s.extents[:0], limit
	return block.Extents(s.c.dev, off, n, s.collect)
}

// largeBuffers holds buffers for payloads that fit no connection's own buffer, by the
// logarithm of their length. A pool forgets its buffers when the heap is collected, and to
// allocate one costs the zeroing of all of it: so none is much longer than it need be.
var largeBuffers [bits.UintSize]sync.Pool

// getLarge returns a buffer of at least n bytes.
func getLarge(n int) *[]byte {
	class := bits.Len(uint(n - 1))
	if b, ok := largeBuffers[class].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<class)
	return &b
}

func putLarge(b *[]byte) { largeBuffers[bits.Len(uint(len(*b)-1))].Put(b) }
