package qemu

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project).
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicStructured = 0x668e33ef

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optGo              = 7
	optStructuredReply = 8
	optSetMetaContext  = 10

	repAck         = 1
	repInfo        = 3
	repMetaContext = 4
	repError       = 1 << 31

	infoExport = 0

	cmdRead        = 0
	cmdDisconnect  = 2
	cmdBlockStatus = 7

	chunkDone       = 1 << 0 // flag: the last of a reply
	chunkNone       = 0
	chunkOffsetData = 1
	chunkOffsetHole = 2
	chunkStatus     = 5
	chunkError      = 1 << 15

	stateZero  = 1 << 1 // of base:allocation
	stateDirty = 1 << 0 // of a dirty bitmap

	contextZeros = "base:allocation"

	// sourceTimeout is how long the machine may take to answer a request.
	sourceTimeout = time.Minute
	// maxStatus is the longest range whose status is asked for at once, in bytes.
	maxStatus = 1 << 30
	// maxChunk bounds a chunk of a reply, in bytes: the data of a read, or the status of as many extents.
	maxChunk = pullSize + 64<<10
)

// errNBD: the machine does not follow the NBD protocol.
var errNBD = errors.New("the machine does not follow the NBD protocol")

// source is a machine's disk, read over NBD. One goroutine uses it.
type source struct {
	conn     net.Conn
	size     int64
	contexts map[string]uint32 // number of each context that was granted
	cookie   uint64
	buf      []byte
}

// openSource connects to an export of a machine; bitmap is the dirty bitmap to be asked for, if not empty.
func openSource(ctx context.Context, socket, export, bitmap string) (*source, error) {
	d := net.Dialer{Timeout: sourceTimeout}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	s := &source{conn: conn, size: -1, contexts: map[string]uint32{}, buf: make([]byte, maxChunk)}
	contexts := []string{contextZeros}
	if bitmap != "" {
		contexts = append(contexts, bitmapContext(bitmap))
	}
	if err := s.negotiate(export, contexts); err != nil {
		return nil, errors.Join(fmt.Errorf("read the machine's disk: %w", err), conn.Close())
	}
	return s, nil
}

func bitmapContext(name string) string { return "qemu:dirty-bitmap:" + name }

// Close ends the connection.
func (s *source) Close() error {
	var b [28]byte
	binary.BigEndian.PutUint32(b[:], magicRequest)
	binary.BigEndian.PutUint16(b[6:], cmdDisconnect)
	_, err := s.conn.Write(b[:])
	return errors.Join(err, s.conn.Close())
}

func (s *source) negotiate(export string, contexts []string) error {
	if err := s.conn.SetDeadline(time.Now().Add(sourceTimeout)); err != nil {
		return err
	}
	var b [18]byte
	if _, err := io.ReadFull(s.conn, b[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption || flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("%w: greeting %x", errNBD, b)
	}
	hello := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	if _, err := s.conn.Write(hello); err != nil {
		return err
	}
	if err := s.option(optStructuredReply, nil, nil); err != nil {
		return err
	}
	ask := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	ask = binary.BigEndian.AppendUint32(append(ask, export...), uint32(len(contexts)))
	for _, c := range contexts {
		ask = append(binary.BigEndian.AppendUint32(ask, uint32(len(c))), c...)
	}
	if err := s.option(optSetMetaContext, ask, s.takeContext); err != nil {
		return err
	}
	for _, c := range contexts {
		if _, ok := s.contexts[c]; !ok {
			return fmt.Errorf("%w: it has no %s", errNBD, c)
		}
	}
	ask = append(binary.BigEndian.AppendUint32(nil, uint32(len(export))), export...)
	if err := s.option(optGo, binary.BigEndian.AppendUint16(ask, 0), s.takeInfo); err != nil {
		return err
	}
	if s.size < 0 {
		return fmt.Errorf("%w: an export without a size", errNBD)
	}
	return nil
}

// option sends an option and hands what is answered before the acknowledgement to take.
func (s *source) option(number uint32, data []byte, take func(typ uint32, data []byte) error) error {
	msg := binary.BigEndian.AppendUint64(nil, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, number)
	msg = append(binary.BigEndian.AppendUint32(msg, uint32(len(data))), data...)
	if _, err := s.conn.Write(msg); err != nil {
		return err
	}
	for range 64 { // a server has a handful of things to say
		var h [20]byte
		if _, err := io.ReadFull(s.conn, h[:]); err != nil {
			return err
		}
		typ, n := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint64(h[:]) != magicOptReply || binary.BigEndian.Uint32(h[8:]) != number || n > 64<<10 {
			return fmt.Errorf("%w: option reply %x", errNBD, h)
		}
		reply := s.buf[:n]
		if _, err := io.ReadFull(s.conn, reply); err != nil {
			return err
		}
		switch {
		case typ == repAck:
			return nil
		case typ&repError != 0:
			return fmt.Errorf("option %d was refused: %#x %q", number, typ&^repError, reply)
		case take != nil:
			if err := take(typ, reply); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: negotiation without an end", errNBD)
}

func (s *source) takeContext(typ uint32, data []byte) error {
	if typ != repMetaContext || len(data) < 4 {
		return fmt.Errorf("%w: context %x", errNBD, data)
	}
	s.contexts[string(data[4:])] = binary.BigEndian.Uint32(data)
	return nil
}

func (s *source) takeInfo(typ uint32, data []byte) error {
	if typ != repInfo || len(data) < 2 {
		return fmt.Errorf("%w: information %x", errNBD, data)
	}
	if binary.BigEndian.Uint16(data) != infoExport {
		return nil
	}
	if len(data) != 12 || int64(binary.BigEndian.Uint64(data[2:])) < 0 {
		return fmt.Errorf("%w: information %x", errNBD, data)
	}
	s.size = int64(binary.BigEndian.Uint64(data[2:]))
	return nil
}

// request sends a request and hands each chunk of the reply to take.
func (s *source) request(cmd uint16, off, n int64, take func(typ uint16, data []byte) error) error {
	if err := s.conn.SetDeadline(time.Now().Add(sourceTimeout)); err != nil {
		return err
	}
	s.cookie++
	var b [28]byte
	binary.BigEndian.PutUint32(b[:], magicRequest)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], s.cookie)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(n))
	if _, err := s.conn.Write(b[:]); err != nil {
		return err
	}
	return readReply(s.conn, s.cookie, s.buf, take)
}

// readReply reads the chunks of one structured reply.
func readReply(r io.Reader, cookie uint64, buf []byte, take func(typ uint16, data []byte) error) error {
	for {
		var h [20]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return err
		}
		flags, typ, n := binary.BigEndian.Uint16(h[4:]), binary.BigEndian.Uint16(h[6:]), binary.BigEndian.Uint32(h[16:])
		if binary.BigEndian.Uint32(h[:]) != magicStructured || binary.BigEndian.Uint64(h[8:]) != cookie || int64(n) > int64(len(buf)) {
			return fmt.Errorf("%w: reply %x", errNBD, h)
		}
		data := buf[:n]
		if _, err := io.ReadFull(r, data); err != nil {
			return err
		}
		if typ&chunkError != 0 {
			return replyError(data)
		}
		if typ != chunkNone {
			if err := take(typ, data); err != nil {
				return err
			}
		}
		if flags&chunkDone != 0 {
			return nil
		}
	}
}

func replyError(data []byte) error {
	if len(data) < 6 {
		return fmt.Errorf("%w: error %x", errNBD, data)
	}
	text := data[6:]
	text = text[:min(len(text), int(binary.BigEndian.Uint16(data[4:])))]
	return fmt.Errorf("the machine cannot read its disk: error %d %s", binary.BigEndian.Uint32(data), text)
}

// read fills p from off.
func (s *source) read(p []byte, off int64) error {
	left := int64(len(p))
	err := s.request(cmdRead, off, left, func(typ uint16, data []byte) error {
		n, err := fill(p, off, typ, data)
		left -= n
		return err
	})
	if err == nil && left != 0 {
		err = fmt.Errorf("%w: %d bytes of a read are missing", errNBD, left)
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of the machine's disk: %w", len(p), off, err)
	}
	return nil
}

// fill puts one chunk of the reply to a read at off into p.
func fill(p []byte, off int64, typ uint16, data []byte) (int64, error) {
	bad := fmt.Errorf("%w: chunk %d of %d bytes in a read", errNBD, typ, len(data))
	if len(data) < 8 {
		return 0, bad
	}
	at := int64(binary.BigEndian.Uint64(data)) - off
	switch {
	case at < 0 || at > int64(len(p)):
		return 0, bad
	case typ == chunkOffsetData && int64(len(data)-8) <= int64(len(p))-at:
		return int64(copy(p[at:], data[8:])), nil
	case typ == chunkOffsetHole && len(data) == 12 && int64(binary.BigEndian.Uint32(data[8:])) <= int64(len(p))-at:
		n := int64(binary.BigEndian.Uint32(data[8:]))
		clear(p[at:][:n])
		return n, nil
	}
	return 0, bad
}

// extents calls fn for the extents of [off, off+n) in order, with whether the flag of the context is set.
func (s *source) extents(context string, flag uint32, off, n int64, fn func(e extent, set bool) error) error {
	id, ok := s.contexts[context]
	if !ok {
		return fmt.Errorf("%w: it has no %s", errNBD, context)
	}
	for end := off + n; off < end; {
		from := off
		err := s.request(cmdBlockStatus, off, min(end-off, maxStatus), func(typ uint16, data []byte) error {
			if typ != chunkStatus || len(data) < 4 || len(data)%8 != 4 {
				return fmt.Errorf("%w: chunk %d in a status", errNBD, typ)
			}
			if binary.BigEndian.Uint32(data) != id {
				return nil
			}
			for d := data[4:]; len(d) > 0 && off < end; d = d[8:] {
				e := extent{off, min(int64(binary.BigEndian.Uint32(d)), end-off)}
				if err := fn(e, binary.BigEndian.Uint32(d[4:])&flag != 0); err != nil {
					return err
				}
				off += e.n
			}
			return nil
		})
		if err == nil && off == from {
			err = fmt.Errorf("%w: a status of nothing", errNBD)
		}
		if err != nil {
			return fmt.Errorf("ask what is in %d bytes at %d of the machine's disk: %w", n, from, err)
		}
	}
	return nil
}
