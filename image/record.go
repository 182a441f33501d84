package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrMissing: the store has no record of that name.
var ErrMissing = errors.New("chunk is not in the store")

// CorruptError says which bytes of the store are damaged.
type CorruptError struct {
	Pack   string // the pack's key in the bucket
	Offset int64  // of the record in the pack, in bytes; -1 for its footer
	Name   Name   // of the chunk or node, zero if unknown
	What   string // what is wrong with it
}

// Error names pack, offset and chunk.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("corrupt pack %s at offset %d, chunk %s: %s", e.Pack, e.Offset, e.Name.short(), e.What)
}

// kind says what a record holds; codec how.
type (
	kind  byte
	codec byte
)

const (
	kindChunk kind = 1
	kindNode  kind = 2

	codecRaw   codec = 0
	codecS2    codec = 1
	codecZstd  codec = 2
	codecPatch codec = 3
)

const (
	// recordMagic begins every record, so that a scan does not take zeros for one.
	recordMagic = 0xd7
	// headSize is the length of a record's head: magic, kind and codec, log2 of
	// the content's length, version, body length, CRC, name.
	headSize = 12 + 32
	// maxBody bounds the body of a record: raw content, or a patch that is smaller.
	maxBody = MaxChunk + 64
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is the fixed part of a record.
type head struct {
	kind   kind
	codec  codec
	log    uint8 // log2 of the decoded length
	length int   // of the body
	crc    uint32
	name   Name
}

// errNotRecord: the bytes are not the head of a record.
var errNotRecord = errors.New("not a record")

// appendRecord appends the record of body to dst.
func appendRecord(dst []byte, h head, body []byte) []byte {
	at := len(dst)
	dst = append(dst, recordMagic, byte(h.kind)<<4|byte(h.codec), h.log, 1)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(body)))
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, h.name[:]...)
	dst = append(dst, body...)
	binary.LittleEndian.PutUint32(dst[at+8:], recordCRC(dst[at:]))
	return dst
}

// recordCRC is the checksum of a whole record, without the checksum itself.
func recordCRC(rec []byte) uint32 {
	return crc32.Update(crc32.Checksum(rec[:8], castagnoli), castagnoli, rec[12:])
}

// parseHead reads the head of a record from at least headSize bytes.
func parseHead(p []byte) (head, error) {
	if len(p) < headSize || p[0] != recordMagic || p[3] != 1 {
		return head{}, errNotRecord
	}
	h := head{
		kind: kind(p[1] >> 4), codec: codec(p[1] & 15), log: p[2],
		length: int(binary.LittleEndian.Uint32(p[4:])), crc: binary.LittleEndian.Uint32(p[8:]),
	}
	copy(h.name[:], p[12:])
	if h.kind != kindChunk && h.kind != kindNode || h.codec > codecPatch || h.log < 12 || h.log > 20 || h.length > maxBody {
		return head{}, errNotRecord
	}
	if h.kind == kindNode && h.log != nodeLog {
		return head{}, errNotRecord
	}
	return h, nil
}

// damagedRecord returns the length of the record at offset off of a pack, which begins at the front of p, if it has a head, is not whole, and a
// whole one or a note follows it: so it is no end that a crash has left. Records are looked for nowhere else: the content of a chunk may look like
// some. Otherwise it returns 0.
func damagedRecord(p []byte, pack uint64, off int64) int {
	h, err := parseHead(p)
	if err != nil || len(p) <= headSize+h.length || recordCRC(p[:headSize+h.length]) == h.crc {
		return 0
	}
	n := headSize + h.length
	if _, ok := parseNote(p[n:], pack, off+int64(n)); ok {
		return n
	}
	if _, _, err := parseRecord(p[n:]); err != nil {
		return 0
	}
	return n
}

// parseRecord reads a whole record from the front of p and checks its checksum.
func parseRecord(p []byte) (head, []byte, error) {
	h, err := parseHead(p)
	if err != nil {
		return head{}, nil, err
	}
	if len(p) < headSize+h.length {
		return head{}, nil, fmt.Errorf("%w: cut off", errNotRecord)
	}
	rec := p[:headSize+h.length]
	if recordCRC(rec) != h.crc {
		return head{}, nil, fmt.Errorf("%w: checksum does not match", errNotRecord)
	}
	if h.codec == codecPatch && h.length < patchHead {
		return head{}, nil, fmt.Errorf("%w: patch too short", errNotRecord)
	}
	return h, rec[headSize:], nil
}

const (
	// noteMagic begins every note of a sync.
	noteMagic = 0xd5
	noteSize  = 36
)

// note stands between two records of a pack and says what was durable when the second was appended. It tells an end that a crash has left from damage to
// something that was promised, and where the records go on behind that. It holds for its place in its pack alone, so the content of a chunk that
// is a copy of some pack has none that counts.
type note struct {
	synced int64 // length of the pack that was durable
	count  int   // records before the note
}

// appendNote appends a note at offset off of a pack to dst.
func appendNote(dst []byte, n note, pack uint64, off int64) []byte {
	at := len(dst)
	dst = append(dst, noteMagic, 0, 0, 1, 0, 0, 0, 0)
	dst = binary.LittleEndian.AppendUint64(dst, pack)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(off))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(n.synced))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(n.count))
	binary.LittleEndian.PutUint32(dst[at+4:], noteCRC(dst[at:]))
	return dst
}

// noteCRC is the checksum of a note, without the checksum itself.
func noteCRC(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:4], castagnoli), castagnoli, p[8:noteSize])
}

// parseNote reads a note from the front of p, which is at offset off of a pack.
func parseNote(p []byte, pack uint64, off int64) (n note, ok bool) {
	le := binary.LittleEndian
	if len(p) < noteSize || p[0] != noteMagic || p[3] != 1 || le.Uint64(p[8:]) != pack || le.Uint64(p[16:]) != uint64(off) || noteCRC(p) != le.Uint32(p[4:]) {
		return note{}, false
	}
	n = note{synced: int64(le.Uint64(p[24:])), count: int(le.Uint32(p[32:]))}
	return n, n.synced >= 0 && n.synced <= off
}
