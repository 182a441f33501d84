package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project).
const (
	magicInit     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption   = 0x49484156454F5054 // "IHAVEOPT"
	magicOptReply = 0x0003e889045565a9
	magicRequest  = 0x25609513
	magicReply    = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optGo = 7

	repAck   = 1
	repInfo  = 3
	repError = 1 << 31

	infoExport    = 0
	infoBlockSize = 3

	flagReadOnly    = 1 << 1
	flagSendFlush   = 1 << 2
	flagSendTrim    = 1 << 5
	flagWriteZeroes = 1 << 6
	flagMultiConn   = 1 << 8

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6

	cmdFlagNoHole = 1 << 1

	requestSize = 28
	replySize   = 16

	// nbdShutdown is the error of a server that is going away. It is the one
	// error that is not an answer: the request is asked again of its successor.
	nbdShutdown = 108

	// defaultMaxBlock is what a server must accept if it does not say.
	defaultMaxBlock = 32 << 20

	handshakeTimeout = 10 * time.Second
)

// ErrProtocol is wrapped by errors about bytes that no NBD server should send.
var ErrProtocol = errors.New("the server does not follow the NBD protocol")

// ErrRefused is wrapped by errors about an export the server does not give us.
var ErrRefused = errors.New("the server refused the export")

// Info is what a server says about an export.
type Info struct {
	Size     int64  // bytes
	Flags    uint16 // transmission flags, as on the wire
	MinBlock int    // every offset and length must be a multiple of it; 1 if the server does not say
	MaxBlock int    // the largest payload of one request
}

// ReadOnly reports that the export takes no writes.
func (i Info) ReadOnly() bool { return i.Flags&flagReadOnly != 0 }

// MultiConn reports that a flush on one connection covers the writes of all.
func (i Info) MultiConn() bool { return i.Flags&flagMultiConn != 0 }

func (i Info) canFlush() bool { return i.Flags&flagSendFlush != 0 }
func (i Info) canZero() bool  { return i.Flags&flagWriteZeroes != 0 && i.Flags&flagReadOnly == 0 }

// handshake brings a new connection into the transmission phase of an export.
func handshake(c net.Conn, export string) (Info, error) {
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return Info{}, err
	}
	info, err := negotiate(c, export)
	if err != nil {
		return Info{}, err
	}
	return info, c.SetDeadline(time.Time{})
}

// negotiate speaks fixed newstyle with NBD_OPT_GO. Structured replies are not
// asked for: a simple reply is 16 bytes and the payload, nothing is shorter.
func negotiate(c io.ReadWriter, export string) (Info, error) {
	var b [18]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return Info{}, fmt.Errorf("read the server's greeting: %w", err)
	}
	if binary.BigEndian.Uint64(b[:]) != magicInit || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return Info{}, fmt.Errorf("%w: greeting %x", ErrProtocol, b)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return Info{}, fmt.Errorf("%w: no fixed newstyle negotiation", ErrProtocol)
	}
	msg := binary.BigEndian.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes)))
	msg = binary.BigEndian.AppendUint64(msg, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, optGo)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(export)+8))
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(export)))
	msg = append(msg, export...)
	msg = binary.BigEndian.AppendUint16(msg, 1)
	msg = binary.BigEndian.AppendUint16(msg, infoBlockSize)
	if _, err := c.Write(msg); err != nil {
		return Info{}, fmt.Errorf("ask for the export: %w", err)
	}
	return readGoReplies(c)
}

// readGoReplies reads the answers to NBD_OPT_GO up to the acknowledgement.
func readGoReplies(c io.Reader) (Info, error) {
	info := Info{Size: -1, MinBlock: 1, MaxBlock: defaultMaxBlock}
	for range 64 { // a server has a handful of things to say
		typ, data, err := readOptionReply(c)
		if err != nil {
			return Info{}, err
		}
		switch {
		case typ&repError != 0:
			return Info{}, fmt.Errorf("%w: error %#x %q", ErrRefused, typ&^repError, data)
		case typ == repAck && info.Size < 0:
			return Info{}, fmt.Errorf("%w: export without a size", ErrProtocol)
		case typ == repAck:
			return info, nil
		case typ == repInfo:
			if err := info.parse(data); err != nil {
				return Info{}, err
			}
		}
	}
	return Info{}, fmt.Errorf("%w: negotiation without an end", ErrProtocol)
}

func readOptionReply(c io.Reader) (typ uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return 0, nil, fmt.Errorf("read an option reply: %w", err)
	}
	n := binary.BigEndian.Uint32(h[16:])
	if binary.BigEndian.Uint64(h[:]) != magicOptReply || binary.BigEndian.Uint32(h[8:]) != optGo || n > 64<<10 {
		return 0, nil, fmt.Errorf("%w: option reply %x", ErrProtocol, h)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(c, data); err != nil {
		return 0, nil, fmt.Errorf("read an option reply: %w", err)
	}
	return binary.BigEndian.Uint32(h[12:]), data, nil
}

// parse takes one NBD_REP_INFO.
func (i *Info) parse(d []byte) error {
	bad := fmt.Errorf("%w: export information %x", ErrProtocol, d[:min(len(d), 32)])
	if len(d) < 2 {
		return bad
	}
	switch binary.BigEndian.Uint16(d) {
	case infoExport:
		if len(d) != 12 {
			return bad
		}
		i.Size = int64(binary.BigEndian.Uint64(d[2:]))
		i.Flags = binary.BigEndian.Uint16(d[10:])
		if i.Size < 0 {
			return bad
		}
	case infoBlockSize:
		if len(d) != 14 {
			return bad
		}
		lo, hi := binary.BigEndian.Uint32(d[2:]), binary.BigEndian.Uint32(d[10:])
		if lo == 0 || lo&(lo-1) != 0 || lo > 64<<10 || hi < lo {
			return bad
		}
		i.MinBlock, i.MaxBlock = int(lo), int(min(hi, defaultMaxBlock))
	}
	return nil
}

// putRequest writes a request header.
func putRequest(b []byte, flags, cmd uint16, cookie uint64, off int64, n uint32) {
	binary.BigEndian.PutUint32(b, magicRequest)
	binary.BigEndian.PutUint16(b[4:], flags)
	binary.BigEndian.PutUint16(b[6:], cmd)
	putCookie(b, cookie)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], n)
}

func putCookie(b []byte, cookie uint64) { binary.BigEndian.PutUint64(b[8:], cookie) }

// parseReply reads the header of a simple reply; b has at least replySize bytes.
func parseReply(b []byte) (cookie uint64, errno uint32, err error) {
	if binary.BigEndian.Uint32(b) != magicReply {
		return 0, 0, fmt.Errorf("%w: reply %x", ErrProtocol, b[:replySize])
	}
	return binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[4:]), nil
}
