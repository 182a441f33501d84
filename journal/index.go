package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"
)

// entry is a record's place in its segment.
type entry struct {
	time int64
	off  int64
	len  int64
	at   uint32 // offset of the header in the segment
	size uint32 // of the payload
	kind Kind
	disk uint16
}

// A sealed segment ends in its index and a trailer:
//
//	zstd(index) | offset u64 | length u64 | records u64 | CRC-32C of the index u32 | of the trailer u32 | magic
const trailerSize = 40

var (
	encoder, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(1<<20))
	decoder, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxIndex))
)

// maxIndex bounds the memory that reading an index takes, whatever the file says.
const maxIndex = 64 << 20

// maxRecords is the most records of a segment: it bounds the index.
const maxRecords = 1 << 18

// encodeIndex encodes the places of a segment's records.
func encodeIndex(entries []entry, after int64) []byte {
	raw := make([]byte, 0, 16*len(entries))
	last := entry{time: after}
	for _, e := range entries {
		raw = binary.AppendUvarint(raw, uint64(e.time-last.time))
		raw = append(raw, byte(e.kind))
		raw = binary.AppendUvarint(raw, uint64(e.disk))
		raw = binary.AppendVarint(raw, e.off-last.off)
		raw = binary.AppendUvarint(raw, uint64(e.len))
		raw = binary.AppendUvarint(raw, uint64(e.size))
		last = e
	}
	return encoder.EncodeAll(raw, nil)
}

// footer encodes the index and trailer of a segment whose records end at offset end.
func footer(entries []entry, after int64, end int64) []byte {
	b := encodeIndex(entries, after)
	le := binary.LittleEndian
	sum := crc32.Checksum(b, castagnoli)
	n := len(b)
	b = le.AppendUint64(b, uint64(end))
	b = le.AppendUint64(b, uint64(n))
	b = le.AppendUint64(b, uint64(len(entries)))
	b = le.AppendUint32(b, sum)
	b = le.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
	return append(b, trailerMagic...)
}

// trailer is the end of a sealed segment.
type trailer struct {
	end     int64 // where the records end and the index begins
	length  int64 // of the index
	records int
	sum     uint32
}

func parseTrailer(b []byte, fileSize int64) (t trailer, ok bool) {
	le := binary.LittleEndian
	if len(b) != trailerSize || string(b[32:]) != trailerMagic || le.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return t, false
	}
	t = trailer{end: int64(le.Uint64(b)), length: int64(le.Uint64(b[8:])), records: int(le.Uint64(b[16:])), sum: le.Uint32(b[24:])}
	return t, t.end >= segmentHeaderSize && t.length >= 0 && t.end+t.length+trailerSize == fileSize && t.records >= 0 && t.records <= maxRecords
}

// parseIndex decodes a segment's index.
func parseIndex(b []byte, t trailer, after int64) ([]entry, error) {
	if crc32.Checksum(b, castagnoli) != t.sum {
		return nil, fmt.Errorf("%w: the index of a segment does not match its checksum", ErrCorrupt)
	}
	raw, err := decoder.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: the index of a segment cannot be decoded: %w", ErrCorrupt, err)
	}
	r := varints{b: raw}
	entries := make([]entry, 0, t.records)
	last, at := entry{time: after}, int64(segmentHeaderSize)
	for len(r.b) > 0 && !r.bad && len(entries) < t.records {
		e := entry{at: uint32(at)}
		e.time = last.time + int64(r.uint())
		e.kind = Kind(r.byte())
		e.disk = uint16(r.uint())
		e.off = last.off + r.int()
		e.len = int64(r.uint())
		e.size = uint32(r.uint())
		at += footprint(int(e.size))
		entries = append(entries, e)
		last = e
	}
	if r.bad || len(r.b) > 0 || len(entries) != t.records || at != t.end {
		return nil, fmt.Errorf("%w: the index of a segment is not whole", ErrCorrupt)
	}
	return entries, nil
}

// varints reads numbers until the bytes are bad.
type varints struct {
	b   []byte
	bad bool
}

func (r *varints) skip(n int) {
	if n <= 0 {
		r.bad, r.b = true, nil
		return
	}
	r.b = r.b[n:]
}

func (r *varints) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.skip(n)
	return v
}

func (r *varints) int() int64 {
	v, n := binary.Varint(r.b)
	r.skip(n)
	return v
}

func (r *varints) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}
