package nbd

import (
	"context"
	"fmt"
	"log/slog"

	"tidemark/block"
)

const (
	// sparseMin is the shortest read, in bytes, for which the device is asked
	// for its holes: below it the question costs more than the zeros.
	sparseMin = 64 << 10
	// sparseMax is the most extents a read is answered in; a range more
	// fragmented than that is cheaper to send as it is.
	sparseMax = 64
	// statusMax is the most extents one block status reply holds. The client
	// asks again for the rest.
	statusMax = 8192
	// zeroInline is the longest write of zeros, in bytes, that is not handed to a worker.
	zeroInline = 64 << 10
)

// zeros is what is written where a device cannot zero and no hole is wanted.
var zeros [256 << 10]byte

// allowed holds the flags that each command may carry.
var allowed = [...]uint16{
	cmdRead:        flagFUA | flagDF,
	cmdWrite:       flagFUA,
	cmdFlush:       flagFUA,
	cmdTrim:        flagFUA,
	cmdCache:       flagFUA,
	cmdWriteZeroes: flagFUA | flagNoHole | flagFastZero,
	cmdBlockStatus: flagFUA | flagReqOne,
}

// serve answers r or hands it to a worker. An error ends the connection.
func (c *conn) serve(r *request) error {
	errno, msg := c.check(r)
	if r.typ == cmdWrite {
		return c.serveWrite(r, errno, msg)
	}
	if errno != 0 {
		c.out.fail(r, errno, msg)
		return nil
	}
	switch {
	case r.typ == cmdRead:
		c.serveRead(r)
	case r.typ == cmdFlush && c.wdev == nil:
		c.out.simple(r, 0)
	case r.typ == cmdWriteZeroes && r.length <= zeroInline && r.flags&flagFUA == 0:
		c.perform(c.out, r)
	default:
		c.handOver(r)
	}
	return nil
}

// check returns the errno for a request that cannot be, 0 if it can.
func (c *conn) check(r *request) (errno uint32, msg string) {
	if int(r.typ) >= len(allowed) || r.typ == cmdDisc {
		return errInval, "unknown command"
	}
	if r.flags&^allowed[r.typ] != 0 || r.flags&flagDF != 0 && !c.structured {
		return errInval, "flag not allowed with this command"
	}
	modifies := r.typ == cmdWrite || r.typ == cmdTrim || r.typ == cmdWriteZeroes
	if modifies && c.wdev == nil {
		return errPerm, "export is read-only"
	}
	if r.typ == cmdFlush {
		return 0, ""
	}
	if (r.typ == cmdRead || r.typ == cmdWrite) && r.length > maxPayload {
		return errInval, "request longer than 32 MiB"
	}
	if size := uint64(c.size); r.off > size || uint64(r.length) > size-r.off {
		if r.typ == cmdWrite || r.typ == cmdWriteZeroes {
			return errNoSpace, "beyond the end of the disk"
		}
		return errInval, "beyond the end of the disk"
	}
	switch {
	case r.typ == cmdBlockStatus && !(c.structured && c.allocation):
		return errInval, "no metadata context was negotiated"
	case r.typ == cmdBlockStatus && r.length == 0:
		return errInval, "block status of nothing"
	case r.typ == cmdCache && c.prefetch == nil:
		return errInval, "cache is not supported"
	}
	return 0, ""
}

// serveRead answers from memory what can be, in place, and leaves what may wait
// to a worker.
func (c *conn) serveRead(r *request) {
	if c.try == nil {
		c.read(c.out, r)
		return
	}
	if r.length == 0 || r.length >= sparseMin {
		c.handOver(r)
		return
	}
	n, head := int(r.length), c.headerOfRead()
	p := c.out.room(head + n)
	// Where more requests wait, decoding is for a worker: they are served meanwhile.
	alone := c.in.w-c.in.r < requestSize
	ok, err := c.try.TryReadAt(p[head:], int64(r.off), alone)
	switch {
	case err != nil:
		c.out.undo(len(p))
		c.deviceError(c.out, r, err)
	case !ok:
		c.out.undo(len(p))
		c.handOver(r)
	default:
		c.putReadHeader(p, r, int64(r.off), n, chunkDone)
	}
}

// serveWrite takes the payload, also of a write that is refused, and writes it. Long
// writes, and the flush of FUA, are left to a worker, which replies.
func (c *conn) serveWrite(r *request, errno uint32, msg string) error {
	n := int(r.length)
	if errno != 0 {
		if n > maxDrain {
			return fmt.Errorf("%w: write of %d bytes", errProtocol, n)
		}
		if err := c.drain(n); err != nil {
			return fmt.Errorf("read payload: %w", err)
		}
		c.out.fail(r, errno, msg)
		return nil
	}
	p, large, err := c.payload(n)
	if err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	if large != nil {
		r.payload = large
		c.handOver(r)
		return nil
	}
	if n > 0 {
		_, err = c.wdev.WriteAt(p, int64(r.off))
	}
	switch {
	case err != nil:
		c.deviceError(c.out, r, err)
	case r.flags&flagFUA != 0:
		c.handOver(r)
	default:
		c.out.simple(r, 0)
	}
	return nil
}

// perform does what a checked request asks for and appends its reply to s. It
// runs in a worker, or in the loop for what does not wait.
func (c *conn) perform(s *sink, r *request) {
	var err error
	off, n := int64(r.off), int64(r.length)
	switch r.typ {
	case cmdRead:
		c.read(s, r)
		return
	case cmdWrite:
		if r.payload != nil {
			_, err = c.wdev.WriteAt((*r.payload)[:n], off)
			c.giveBack(r.payload)
		}
	case cmdBlockStatus:
		c.blockStatus(s, r)
		return
	case cmdWriteZeroes:
		if r.flags&flagFastZero != 0 && r.flags&flagNoHole != 0 && c.zero == nil {
			s.fail(r, errNotSup, "")
			return
		}
		err = c.writeZeroes(off, n, r.flags&flagNoHole != 0)
	case cmdTrim:
		if n > 0 {
			err = c.trim(off, n)
		}
	case cmdCache:
		c.prefetch.Prefetch(off, n)
	}
	// A short write was done in serveWrite: what is left of it is FUA.
	if err == nil && c.wdev != nil && (r.typ == cmdFlush || r.flags&flagFUA != 0 && r.typ != cmdCache) {
		err = c.wdev.Flush()
	}
	if err != nil {
		c.deviceError(s, r, err)
		return
	}
	s.simple(r, 0)
}

// writeZeroes makes a range read as zeros. A hole is the cheapest way; without
// one, and on a device that cannot zero, the zeros are written.
func (c *conn) writeZeroes(off, n int64, noHole bool) error {
	switch {
	case n == 0:
		return nil
	case !noHole:
		return c.wdev.Discard(off, n)
	case c.zero != nil:
		return c.zero.Zero(off, n)
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := c.wdev.WriteAt(zeros[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// deviceError tells the client, and the log, that the device failed.
func (c *conn) deviceError(s *sink, r *request, err error) {
	s.fail(r, errno(err), err.Error())
	c.logDeviceError(r, err)
}

func (c *conn) logDeviceError(r *request, err error) {
	c.srv.opt.Logger.LogAttrs(context.Background(), slog.LevelWarn, "nbd: device failed",
		slog.String("export", c.exp.Name), slog.Int("command", int(r.typ)),
		slog.Uint64("offset", r.off), slog.Uint64("length", uint64(r.length)), slog.Any("error", err))
}

// headerOfRead is the length of what stands before data that is sent in one piece.
func (c *conn) headerOfRead() int {
	if c.structured {
		return dataHeader
	}
	return simpleHeader
}

// putReadHeader writes the header for n bytes of data from off.
func (c *conn) putReadHeader(p []byte, r *request, off int64, n int, flags uint16) {
	if !c.structured {
		putSimple(p, r, 0)
		return
	}
	putChunk(p, r, flags, chunkOffsetData, 8+n)
	be.PutUint64(p[structuredHeader:], uint64(off))
}

// read answers a checked read.
func (c *conn) read(s *sink, r *request) {
	off, n := int64(r.off), int64(r.length)
	pieces := c.structured && r.flags&flagDF == 0
	switch {
	case n == 0 && c.structured:
		putChunk(s.room(structuredHeader), r, chunkDone, chunkNone, 0)
	case n == 0:
		s.simple(r, 0)
	case pieces && n >= sparseMin && c.extents != nil:
		c.readSparse(s, r)
	case pieces:
		c.readData(s, r, off, n, chunkDone)
	case n <= chunkMax:
		c.readWhole(s, r)
	default:
		c.readLarge(s, r)
	}
}

// readWhole answers a read that fits a sink in one piece.
func (c *conn) readWhole(s *sink, r *request) {
	head := c.headerOfRead()
	p := s.room(head + int(r.length))
	if _, err := c.dev.ReadAt(p[head:], int64(r.off)); err != nil {
		s.undo(len(p))
		c.deviceError(s, r, err)
		return
	}
	c.putReadHeader(p, r, int64(r.off), int(r.length), chunkDone)
}

// readLarge answers in one piece a read that does not fit a sink.
func (c *conn) readLarge(s *sink, r *request) {
	c.large <- struct{}{}
	defer func() { <-c.large }()
	head := c.headerOfRead()
	b := getLarge(head + int(r.length))
	defer putLarge(b)
	p := (*b)[:head+int(r.length)]
	if _, err := c.dev.ReadAt(p[head:], int64(r.off)); err != nil {
		c.deviceError(s, r, err)
		return
	}
	c.putReadHeader(p, r, int64(r.off), int(r.length), chunkDone)
	s.send()
	c.write(p)
}

// readData sends [off, off+n) as chunks of data, the last one with flags. It
// returns false if the device failed, and then the read has been answered.
func (c *conn) readData(s *sink, r *request, off, n int64, flags uint16) bool {
	for n > 0 {
		k := int(min(n, chunkMax))
		p := s.room(dataHeader + k)
		if _, err := c.dev.ReadAt(p[dataHeader:], off); err != nil {
			s.undo(len(p))
			s.failAt(r, errno(err), err.Error(), off)
			c.logDeviceError(r, err)
			return false
		}
		last := uint16(0)
		if int64(k) == n {
			last = flags
		}
		c.putReadHeader(p, r, off, k, last)
		off, n = off+int64(k), n-int64(k)
		if n > 0 {
			s.send()
		}
	}
	return true
}

// readSparse answers a read with its holes as holes.
func (c *conn) readSparse(s *sink, r *request) {
	off, n := int64(r.off), int64(r.length)
	// If the device cannot say, or the range is in shreds, data is right as well.
	if err := s.findExtents(off, n, sparseMax); err != nil || !covers(s.extents, off, n) {
		c.readData(s, r, off, n, chunkDone)
		return
	}
	for i, e := range s.extents {
		flags := uint16(0)
		if i == len(s.extents)-1 {
			flags = chunkDone
		}
		if !e.Hole {
			if !c.readData(s, r, e.Off, e.Len, flags) {
				return
			}
			continue
		}
		p := s.room(structuredHeader + 12)
		putChunk(p, r, flags, chunkOffsetHole, 12)
		be.PutUint64(p[structuredHeader:], uint64(e.Off))
		be.PutUint32(p[structuredHeader+8:], uint32(e.Len))
	}
}

// covers tells whether extents are exactly [off, off+n): a device that says
// less must not make us say less.
func covers(extents []block.Extent, off, n int64) bool {
	end := off
	for _, e := range extents {
		if e.Off != end || e.Len <= 0 || e.Len > off+n-end {
			return false
		}
		end += e.Len
	}
	return end == off+n
}

// blockStatus answers which parts of a range are holes.
func (c *conn) blockStatus(s *sink, r *request) {
	limit := statusMax
	if r.flags&flagReqOne != 0 {
		limit = 1
	}
	if err := s.findExtents(int64(r.off), int64(r.length), limit); err != nil {
		c.deviceError(s, r, err)
		return
	}
	if len(s.extents) == 0 || !covers(s.extents, int64(r.off), total(s.extents)) {
		c.deviceError(s, r, fmt.Errorf("device listed no proper extents of %d bytes at %d", r.length, r.off))
		return
	}
	n := 4 + 8*len(s.extents)
	p := s.room(structuredHeader + n)
	putChunk(p, r, chunkDone, chunkBlockStatus, n)
	be.PutUint32(p[structuredHeader:], contextAllocationID)
	p = p[structuredHeader+4:]
	for i, e := range s.extents {
		state := uint32(0)
		if e.Hole {
			state = stateHole | stateZero
		}
		be.PutUint32(p[8*i:], uint32(e.Len))
		be.PutUint32(p[8*i+4:], state)
	}
}

func total(extents []block.Extent) (n int64) {
	for _, e := range extents {
		n += e.Len
	}
	return n
}
