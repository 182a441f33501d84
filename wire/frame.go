package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"

	"tidemark/capture"
)

// Kinds of frames. Those up to framePacked are the client's.
const (
	frameHello   = 1
	frameChanges = 2
	frameLose    = 3
	frameWhole   = 4
	frameSync    = 5
	frameMark    = 6
	frameSample  = 7
	frameShared  = 8
	framePacked  = 9
	frameWelcome = 65
	frameSynced  = 66
	frameRefused = 67
	frameAgreed  = 68
)

// What a server says in frameAgreed about the data of changes.
const (
	agreedCarried = 0
	agreedShared  = 1
	agreedPacked  = 2 // carried, and compressed where that helps; from version 4 on
)

// magics begin the greetings of the versions, from 1 on.
var magics = [...]string{"TMWIRE01", "TMWIRE02", "TMWIRE03", "TMWIRE04"}

const (
	headSize   = 12
	changeSize = 28
	// maxBody is the longest body of a frame, in bytes; a sender keeps to maxBatch, or to one change.
	maxBody  = 4 << 20
	maxBatch = 2 << 20
	// maxText is the longest name or reason, in bytes.
	maxText = 4096
)

// ErrProtocol: the peer sent what it may not, or the connection damaged it.
var ErrProtocol = errors.New("the connection carries nonsense")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeFrame sends a frame, whose body is the parts one after the other, with one call.
func writeFrame(w io.Writer, kind byte, parts ...[]byte) error {
	all := append(net.Buffers{header(kind, parts...)}, parts...)
	_, err := all.WriteTo(w)
	return err
}

// header is the header of a frame, whose body is the parts one after the other.
func header(kind byte, parts ...[]byte) []byte {
	head := make([]byte, headSize)
	head[0] = kind
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	binary.LittleEndian.PutUint32(head[4:], uint32(n))
	sum := crc32.Checksum(head[:8], castagnoli)
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
	}
	binary.LittleEndian.PutUint32(head[8:], sum)
	return head
}

// readFrame reads a frame; the body is in buf if that is long enough.
func readFrame(r io.Reader, buf []byte) (kind byte, body []byte, err error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[4:])
	if n > maxBody || head[1]|head[2]|head[3] != 0 {
		return 0, nil, fmt.Errorf("%w: a frame of kind %d and %d bytes", ErrProtocol, head[0], n)
	}
	if body = buf; uint32(cap(body)) < n {
		body = make([]byte, n)
	}
	body = body[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, noEOF(err)
	}
	sum := crc32.Update(crc32.Checksum(head[:8], castagnoli), castagnoli, body)
	if sum != binary.LittleEndian.Uint32(head[8:]) {
		return 0, nil, fmt.Errorf("%w: a frame of kind %d and %d bytes does not match its checksum", ErrProtocol, head[0], n)
	}
	return head[0], body, nil
}

// noEOF makes an end inside of something an error that is not mistaken for an end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// greeting is what a client says first. Each version says more than the one before, but for version 4: who speaks it can compress.
type greeting struct {
	version  int
	timeline string
	stream   string
	before   capture.Sent // how much of it was acknowledged is said from version 3 on
	memory   uint64       // how much is passed with it, in bytes; said from version 2 on
}

func (h *greeting) encode() []byte {
	b := []byte(magics[h.version-1])
	for _, name := range []string{h.timeline, h.stream, h.before.ID} {
		b = appendText(b, name)
	}
	if h.version >= 3 {
		b = binary.LittleEndian.AppendUint64(b, h.before.Durable)
	}
	if h.version >= 2 {
		b = binary.LittleEndian.AppendUint64(b, h.memory)
	}
	return b
}

// parseHello is the reverse of encode.
func parseHello(kind byte, body []byte) (h greeting, err error) {
	const size = len("TMWIRE01")
	if kind != frameHello || len(body) < size {
		return h, fmt.Errorf("%w: no greeting", ErrProtocol)
	}
	if h.version = slices.Index(magics[:], string(body[:size])) + 1; h.version == 0 {
		return h, fmt.Errorf("%w: no greeting of this version", ErrProtocol)
	}
	body = body[size:]
	for _, name := range []*string{&h.timeline, &h.stream, &h.before.ID} {
		if *name, body, err = cutText(body); err != nil {
			return h, err
		}
	}
	if len(body) != 8*(min(h.version, 3)-1) {
		return h, fmt.Errorf("%w: a greeting of version %d with %d bytes behind its names", ErrProtocol, h.version, len(body))
	}
	if h.version >= 3 {
		h.before.Durable, body = binary.LittleEndian.Uint64(body), body[8:]
	}
	if h.version >= 2 {
		h.memory = binary.LittleEndian.Uint64(body)
	}
	return h, nil
}

// encodeChanges returns the body of a frame of changes: a table, and the data of each.
func encodeChanges(list []capture.Change) [][]byte {
	table := make([]byte, 4, 4+len(list)*changeSize)
	binary.LittleEndian.PutUint32(table, uint32(len(list)))
	parts := make([][]byte, 1, 1+len(list))
	for i := range list {
		c := &list[i]
		flags := uint16(flagData)
		if c.Data == nil {
			flags = flagZero
		} else {
			parts = append(parts, c.Data)
		}
		table = binary.LittleEndian.AppendUint16(table, c.Disk)
		table = binary.LittleEndian.AppendUint16(table, flags)
		table = binary.LittleEndian.AppendUint64(table, uint64(c.Time))
		table = binary.LittleEndian.AppendUint64(table, uint64(c.Off))
		table = binary.LittleEndian.AppendUint64(table, uint64(c.Len))
	}
	parts[0] = table
	return parts
}

// parseChanges is the reverse of encodeChanges; the data stay where they are. Whether a disk can
// have the changes is not looked at.
func parseChanges(b []byte) ([]capture.Change, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%w: changes without a number", ErrProtocol)
	}
	n := int64(binary.LittleEndian.Uint32(b))
	b = b[4:]
	if n*changeSize > int64(len(b)) {
		return nil, fmt.Errorf("%w: %d changes in %d bytes", ErrProtocol, n, len(b))
	}
	table, data := b[:n*changeSize], b[n*changeSize:]
	list := make([]capture.Change, n)
	for i := range list {
		le, p, c := binary.LittleEndian, table[i*changeSize:], &list[i]
		c.Disk, c.Time = le.Uint16(p), int64(le.Uint64(p[4:]))
		c.Off, c.Len = int64(le.Uint64(p[12:])), int64(le.Uint64(p[20:]))
		switch flags := le.Uint16(p[2:]); {
		case flags == flagZero:
		case flags != flagData || c.Len < 0 || c.Len > int64(len(data)):
			return nil, fmt.Errorf("%w: a change of %d bytes where %d are left", ErrProtocol, c.Len, len(data))
		default:
			c.Data, data = data[:c.Len:c.Len], data[c.Len:]
		}
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("%w: %d bytes of no change", ErrProtocol, len(data))
	}
	return list, nil
}

// sampleSize is the length of a sample, in bytes.
const sampleSize = 2 + 8 + 8 + sha256.Size

func encodeSample(s *capture.Sample) []byte {
	b := binary.LittleEndian.AppendUint16(make([]byte, 0, sampleSize), s.Disk)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Off))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Len))
	return append(b, s.Sum[:]...)
}

// parseSample is the reverse of encodeSample. Whether a disk has the place is not looked at.
func parseSample(b []byte) (s capture.Sample, err error) {
	if len(b) != sampleSize {
		return s, fmt.Errorf("%w: a sample of %d bytes", ErrProtocol, len(b))
	}
	s.Disk, s.Off, s.Len = binary.LittleEndian.Uint16(b), int64(binary.LittleEndian.Uint64(b[2:])), int64(binary.LittleEndian.Uint64(b[10:]))
	copy(s.Sum[:], b[18:])
	return s, nil
}

// appendText appends a text with its length.
func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), maxText)]
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(s))), s...)
}

// cutText takes a text from the front of b.
func cutText(b []byte) (s string, rest []byte, err error) {
	if len(b) < 2 {
		return "", nil, fmt.Errorf("%w: a text without a length", ErrProtocol)
	}
	n := int(binary.LittleEndian.Uint16(b))
	if n > maxText || n > len(b)-2 {
		return "", nil, fmt.Errorf("%w: a text of %d bytes where %d are left", ErrProtocol, n, len(b)-2)
	}
	return string(b[2 : 2+n]), b[2+n:], nil
}
