package delta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// version is what is said first. Another one is not understood.
const version = 2

// kind says what a message is.
type kind byte

const (
	// What the sender says.
	msgHello   kind = 1 + iota // body: Hello as JSON; off: version
	msgEnter                   // a directory: name is its path; it gets the next number of this round
	msgFile                    // a file in directory dir
	msgKeep                    // what is staged by this name in directory dir stays as it is
	msgLink                    // a symbolic link in dir, to target
	msgSpecial                 // a fifo or device node in dir
	msgHard                    // one more name in dir of the file whose path is target
	msgLeave                   // directory dir was told; flag: what was not named is gone
	msgWarn                    // body: a warning
	msgData                    // body: bytes of file id at off; flag: see dataNew, as in msgZero
	msgZero                    // size zeros of file id at off
	msgDiffer                  // body: the numbers of blocks of file id that differ from what is staged there: their fingerprints are wanted at a finer grain
	msgPart                    // what was wanted of file id last is sent
	msgEnd                     // and it was the last of that file; flag: see endOK
	msgRound                   // this walk has ended; flag: it is the last
	msgDone                    // body: the result as JSON

	// What the receiver says.
	msgAnswer  // off: the seed of fingerprints; the first that it says
	msgWant    // of the file id with path name: size bytes at off; body: fingerprints; flag: see wantMore
	msgFiner   // body: for each of these blocks its number, and the fingerprints of its pieces
	msgSettled // off: so many files are dealt with
	msgNext    // all that was wanted has come; flag: walk the same once more

	msgOffer // of the sender; body: for chunks of file id of which nothing is staged, the number and the SHA-256
	msgTake  // of the receiver; body: the numbers of the chunks of the eldest offer of file id that are wanted
	msgLast  // its sentinel; never sent
)

// What the flag of msgEnd says.
const (
	endOK      = 0
	endChanged = 1 // it changed while it was read
	endGone    = 2 // it is not there any more
)

// What the flag of msgData and msgZero says.
const (
	dataNew   = 0
	dataFiner = 1 // of a block that was said to differ
	dataTaken = 2 // of a chunk that was offered
)

// What the flag of msgWant says.
const (
	wantMore  = 0 // more will be wanted of this file
	wantLast  = 1 // nothing more will; what it is longer by now comes, too
	wantProbe = 2 // nothing more will; this is only a look whether it is as it was
)

// Limits of what a message may hold, in bytes.
const (
	maxMessage = 4 << 20
	maxData    = 64 << 10
	maxXattrs  = 1 << 20
)

// Attr is what is known of an entry of a tree.
type Attr struct {
	Mode     uint32 // as in st_mode
	UID, GID uint32
	Size     int64
	Modified int64 // in nanoseconds of Unix time, as Changed
	Changed  int64
	Inode    uint64
	Links    uint64
	Device   uint64 // that a device node stands for
	Xattrs   map[string][]byte
}

// message is one thing that is said. Fields that its kind has no use for are zero.
type message struct {
	kind   kind
	flag   byte
	dir    uint64
	id     uint64
	off    int64
	size   int64
	name   string
	target string
	body   []byte
	attr   *Attr
}

// append encodes a message, with its length before it.
func (m *message) append(b []byte) []byte {
	p := []byte{byte(m.kind), m.flag}
	for _, n := range []uint64{m.dir, m.id, uint64(m.off), uint64(m.size)} {
		p = binary.AppendUvarint(p, n)
	}
	p = appendBytes(p, m.name)
	p = appendBytes(p, m.target)
	p = appendBytes(p, m.body)
	if m.attr != nil {
		p = m.attr.append(append(p, 1))
	} else {
		p = append(p, 0)
	}
	return append(binary.AppendUvarint(b, uint64(len(p))), p...)
}

func appendBytes[T string | []byte](p []byte, v T) []byte {
	return append(binary.AppendUvarint(p, uint64(len(v))), v...)
}

func (a *Attr) append(p []byte) []byte {
	for _, n := range []uint64{uint64(a.Mode), uint64(a.UID), uint64(a.GID), uint64(a.Size), a.Inode, a.Links, a.Device} {
		p = binary.AppendUvarint(p, n)
	}
	p = binary.AppendVarint(p, a.Modified)
	p = binary.AppendVarint(p, a.Changed)
	names := make([]string, 0, len(a.Xattrs))
	for name := range a.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	p = binary.AppendUvarint(p, uint64(len(names)))
	for _, name := range names {
		p = appendBytes(appendBytes(p, name), a.Xattrs[name])
	}
	return p
}

var errMalformed = errors.New("a message that cannot be read")

// parser takes fields off a message. Its first error stays.
type parser struct {
	b   []byte
	err error
}

func (p *parser) byte() byte {
	if len(p.b) == 0 {
		p.err = errMalformed
		return 0
	}
	v := p.b[0]
	p.b = p.b[1:]
	return v
}

func (p *parser) number() uint64 {
	v, n := binary.Uvarint(p.b)
	if n <= 0 {
		p.err, p.b = errMalformed, nil
		return 0
	}
	p.b = p.b[n:]
	return v
}

// length is a number that is no length or offset of a file if it is beyond what a file can have.
func (p *parser) length() int64 {
	v := p.number()
	if v > 1<<62 {
		p.err = errMalformed
		return 0
	}
	return int64(v)
}

func (p *parser) signed() int64 {
	v, n := binary.Varint(p.b)
	if n <= 0 {
		p.err, p.b = errMalformed, nil
		return 0
	}
	p.b = p.b[n:]
	return v
}

func (p *parser) bytes() []byte {
	n := p.number()
	if n > uint64(len(p.b)) {
		p.err, p.b = errMalformed, nil
		return nil
	}
	v := p.b[:n:n]
	p.b = p.b[n:]
	return v
}

func (p *parser) small() uint32 {
	v := p.number()
	if v > 1<<32-1 {
		p.err = errMalformed
	}
	return uint32(v)
}

func (p *parser) attr() *Attr {
	a := &Attr{Mode: p.small(), UID: p.small(), GID: p.small(), Size: p.length(), Inode: p.number(), Links: p.number(), Device: p.number()}
	a.Modified, a.Changed = p.signed(), p.signed()
	n := p.number()
	if n > maxXattrs || p.err != nil {
		p.err = errMalformed
		return nil
	}
	for range n {
		name := string(p.bytes())
		value := p.bytes()
		if p.err != nil {
			return nil
		}
		if a.Xattrs == nil {
			a.Xattrs = map[string][]byte{}
		}
		a.Xattrs[name] = slices.Clone(value)
	}
	return a
}

// parse decodes a message. Its body is part of b.
func parse(b []byte) (m message, err error) {
	p := parser{b: b}
	m.kind, m.flag = kind(p.byte()), p.byte()
	m.dir, m.id, m.off, m.size = p.number(), p.number(), p.length(), p.length()
	m.name, m.target, m.body = string(p.bytes()), string(p.bytes()), p.bytes()
	switch p.byte() {
	case 0:
	case 1:
		m.attr = p.attr()
	default:
		p.err = errMalformed
	}
	if p.err == nil && (len(p.b) > 0 || m.kind == 0 || m.kind >= msgLast) {
		p.err = errMalformed
	}
	return m, p.err
}

// readMessage reads one message, into a buffer that it may use again.
func readMessage(r interface {
	io.Reader
	io.ByteReader
}, buf []byte) (message, []byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return message{}, buf, err
	}
	if n > maxMessage {
		return message{}, buf, fmt.Errorf("a message of %d bytes", n)
	}
	if uint64(cap(buf)) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, buf, err
	}
	m, err := parse(buf)
	return m, buf, err
}
