package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Kind says what a record does.
type Kind uint8

// The kinds of records.
const (
	Write     Kind = 1 // the payload is the bytes of [Off, Off+Len)
	Reference Kind = 2 // the payload is the names of the chunks of [Off, Off+Len), 32 bytes each
	Zero      Kind = 3 // [Off, Off+Len) reads as zeros; no payload
	Bookmark  Kind = 4 // a mark of the timeline; the payload is its own
)

// Record is one entry of a journal.
type Record struct {
	Pos     uint64 // its position: one more than the record before; set by Append
	Time    int64  // Unix nanoseconds, strictly increasing; set by Append, which see
	Kind    Kind
	Disk    uint16
	Off     int64 // bytes of the disk
	Len     int64 // bytes of the disk
	Payload []byte

	// Shared says that the payload lies in memory that others can change at any time; Sum is what its CRC-32C must be. Append
	// compares its own copy with that.
	Shared bool
	Sum    uint32
}

// possible reports whether recovery would take the record for one.
func (r *Record) possible() bool {
	return r.Kind >= Write && r.Kind <= Bookmark && r.Off >= 0 && r.Len >= 0 && len(r.Payload) <= MaxPayload
}

// check refuses a record that there cannot be.
func (r *Record) check() error {
	if !r.possible() {
		return fmt.Errorf("%w: kind %d, offset %d, length %d, %d bytes", ErrRecord, r.Kind, r.Off, r.Len, len(r.Payload))
	}
	return nil
}

// direct reports whether the record goes from its owner's memory to the file.
func (r *Record) direct() bool { return len(r.Payload) >= directAfter && !r.Shared }

// Errors of a journal; test with errors.Is.
var (
	// ErrCorrupt: stored bytes are not what was stored. The error says which positions are affected.
	ErrCorrupt = errors.New("the journal is damaged")
	// ErrNoSpace: there is no room for the record. Nothing was appended, and a
	// later append works when there is room.
	ErrNoSpace = errors.New("no space left for the journal")
	// ErrFailed: a write or sync failed before. Nothing can be promised after it
	// until the journal is opened anew.
	ErrFailed = errors.New("the journal failed and must be opened anew")
	// ErrRecord: there can be no such record; nothing was appended.
	ErrRecord = errors.New("an impossible journal record")
	// ErrChanged: a payload in shared memory is not what it must be; it was not appended.
	ErrChanged = errors.New("what is to be journaled has changed")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("the journal is closed")
)

// MaxPayload is the longest payload of a record, in bytes: damage to one
// record takes no more than this, and a segment holds several.
const MaxPayload = 4 << 20

// A record on disk is a header of headerSize bytes and the payload, padded to
// a multiple of recordAlign, so that a search for records behind damage has few places to look at.
const (
	headerSize  = 56
	recordAlign = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is a record's header as it lies on disk.
type header struct {
	Record         // without the payload
	size    uint32 // of the payload
	sum     uint32 // CRC-32C of the payload
	durable uint64 // the newest position known to be durable when this was appended
}

// put encodes h into b. The salt makes the checksum of another segment's bytes never fit.
func (h *header) put(b []byte, salt uint32) {
	le := binary.LittleEndian
	le.PutUint32(b[4:], h.size)
	le.PutUint64(b[8:], h.Pos)
	le.PutUint64(b[16:], uint64(h.Time))
	le.PutUint64(b[24:], uint64(h.Off))
	le.PutUint64(b[32:], uint64(h.Len))
	b[40], b[41] = byte(h.Kind), 0
	le.PutUint16(b[42:], h.Disk)
	le.PutUint32(b[44:], h.sum)
	le.PutUint64(b[48:], h.durable)
	le.PutUint32(b, crc32.Update(salt, castagnoli, b[4:headerSize]))
}

// errNoRecord: there is no whole record here.
var errNoRecord = errors.New("no record")

// parseHeader decodes the header at the start of b.
func parseHeader(b []byte, salt uint32) (h header, err error) {
	le := binary.LittleEndian
	if len(b) < headerSize || le.Uint32(b) != crc32.Update(salt, castagnoli, b[4:headerSize]) {
		return h, errNoRecord
	}
	h.size = le.Uint32(b[4:])
	h.Pos, h.Time = le.Uint64(b[8:]), int64(le.Uint64(b[16:]))
	h.Off, h.Len = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	h.Kind, h.Disk = Kind(b[40]), le.Uint16(b[42:])
	h.sum, h.durable = le.Uint32(b[44:]), le.Uint64(b[48:])
	if h.size > MaxPayload || !h.possible() || h.Pos == 0 {
		return h, errNoRecord
	}
	return h, nil
}

// parseRecord decodes the record at the start of b and checks its payload.
func parseRecord(b []byte, salt uint32) (h header, err error) {
	if h, err = parseHeader(b, salt); err != nil {
		return h, err
	}
	if len(b) < headerSize+int(h.size) || crc32.Checksum(b[headerSize:headerSize+int(h.size)], castagnoli) != h.sum {
		return h, errNoRecord
	}
	return h, nil
}

// footprint is what a record with a payload of n bytes takes in a segment.
func footprint(n int) int64 {
	return int64(headerSize+n+recordAlign-1) &^ (recordAlign - 1)
}

// segmentHeaderSize is the length of the header at the start of each segment.
const segmentHeaderSize = 128

const (
	segmentMagic  = "TMJRNL01"
	trailerMagic  = "TMJRNEND"
	formatVersion = 1
)

// segmentHeader is what a segment says of itself, and of how the one before it ended.
type segmentHeader struct {
	id       [16]byte // of the journal
	number   uint64
	firstPos uint64 // position of its first record
	after    int64  // time of the newest record before it
	prevLast uint64 // position of the last record of the segment before it
	prevEnd  uint64 // where the records of the segment before it end, in bytes
	packed   bool   // the file is a packed one
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, segmentHeaderSize)
	le := binary.LittleEndian
	copy(b, segmentMagic)
	if h.packed {
		copy(b, packedMagic)
	}
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], h.id[:])
	le.PutUint64(b[32:], h.number)
	le.PutUint64(b[40:], h.firstPos)
	le.PutUint64(b[48:], uint64(h.after))
	le.PutUint64(b[56:], h.prevLast)
	le.PutUint64(b[64:], h.prevEnd)
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

func parseSegmentHeader(b []byte) (h segmentHeader, err error) {
	le := binary.LittleEndian
	if len(b) < segmentHeaderSize || le.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return h, fmt.Errorf("%w: no segment header", ErrCorrupt)
	}
	switch string(b[:8]) {
	case segmentMagic:
	case packedMagic:
		h.packed = true
	default:
		return h, fmt.Errorf("%w: no segment header", ErrCorrupt)
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("%w: segment of format %d, this version reads format %d", ErrCorrupt, v, formatVersion)
	}
	copy(h.id[:], b[16:])
	h.number, h.firstPos = le.Uint64(b[32:]), le.Uint64(b[40:])
	h.after = int64(le.Uint64(b[48:]))
	h.prevLast, h.prevEnd = le.Uint64(b[56:]), le.Uint64(b[64:])
	return h, nil
}

// salt is what the checksums of a segment's records begin with.
func (h *segmentHeader) salt() uint32 {
	var b [24]byte
	copy(b[:], h.id[:])
	binary.LittleEndian.PutUint64(b[16:], h.number)
	return crc32.Checksum(b[:], castagnoli)
}
