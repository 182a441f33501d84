package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A packed segment holds the same bytes as the one it was made of, compressed in
// blocks: offsets are those of the segment as it was appended to, and each
// record keeps its own checksum. The file is
//
//	header | blocks | table: for each block its stored length and CRC-32C | index | trailer
//
// and differs from one that takes appends in the magic of its header.
const (
	packedMagic        = "TMJRNP01"
	packedTrailerMagic = "TMJRNPND"
	packedTrailerSize  = 64
	// packedBlock is how many bytes of records a block holds: what a read of 4 KiB has to
	// decode. Twice as much compresses by a fortieth better.
	packedBlock = 64 << 10
	// storedRaw in a stored length marks a block that compression would not make smaller.
	storedRaw = 1 << 31
)

// packEncoder is used by one goroutine at a time, with packEncoderMu.
var (
	packEncoderMu sync.Mutex
	packEncoder   = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(packedBlock))
		if err != nil {
			panic(fmt.Sprintf("journal: options of the encoder: %v", err))
		}
		return e
	})
	packDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(packedBlock))
		if err != nil {
			panic(fmt.Sprintf("journal: options of the decoder: %v", err))
		}
		return d
	})
)

// packed is what is known of a packed segment's file.
type packed struct {
	end    int64   // where the records end, in offsets of the segment
	at     []int64 // where each block is stored; one more for where the last one ends
	raw    []bool
	sums   []uint32
	index  int64 // where the index is stored
	footer trailer
}

// packBlock returns what is stored of a block: in buf, or the block itself.
func packBlock(block, buf []byte) (stored []byte, raw bool) {
	packEncoderMu.Lock()
	defer packEncoderMu.Unlock()
	stored = packEncoder().EncodeAll(block, buf[:0])
	if len(stored) >= len(block) {
		return block, true
	}
	return stored, false
}

// tableEntry appends a block's entry to the table.
func tableEntry(table, stored []byte, raw bool) []byte {
	n := uint32(len(stored))
	if raw {
		n |= storedRaw
	}
	table = binary.LittleEndian.AppendUint32(table, n)
	return binary.LittleEndian.AppendUint32(table, crc32.Checksum(stored, castagnoli))
}

// packedEnd encodes what follows the blocks: table, index and trailer.
func packedEnd(table []byte, tableAt int64, entries []entry, after, end int64) []byte {
	le := binary.LittleEndian
	index := encodeIndex(entries, after)
	b := append(table[:len(table):len(table)], index...)
	n := len(b)
	b = le.AppendUint64(b, uint64(tableAt))
	b = le.AppendUint64(b, uint64(len(table)))
	b = le.AppendUint64(b, uint64(len(index)))
	b = le.AppendUint64(b, uint64(len(entries)))
	b = le.AppendUint64(b, uint64(end))
	b = le.AppendUint32(b, crc32.Checksum(table, castagnoli))
	b = le.AppendUint32(b, crc32.Checksum(index, castagnoli))
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
	return append(b, packedTrailerMagic...)
}

// packedTrailer is the end of a packed segment.
type packedTrailer struct {
	tableAt, tableLen, indexLen, records, end int64
	tableSum, indexSum                        uint32
}

// maxSegment is more than any segment can have: offsets in it are 32 bits.
const maxSegment = 1 << 32

func parsePackedTrailer(b []byte, fileSize int64) (t packedTrailer, err error) {
	le := binary.LittleEndian
	if len(b) != packedTrailerSize || string(b[56:]) != packedTrailerMagic || le.Uint32(b[52:]) != crc32.Checksum(b[:52], castagnoli) {
		return t, fmt.Errorf("%w: a packed segment has lost its trailer", ErrCorrupt)
	}
	t = packedTrailer{tableAt: int64(le.Uint64(b)), tableLen: int64(le.Uint64(b[8:])), indexLen: int64(le.Uint64(b[16:])),
		records: int64(le.Uint64(b[24:])), end: int64(le.Uint64(b[32:])), tableSum: le.Uint32(b[40:]), indexSum: le.Uint32(b[44:])}
	for _, v := range []int64{t.tableAt, t.tableLen, t.indexLen, t.records, t.end} {
		if v < 0 || v > maxSegment {
			return t, fmt.Errorf("%w: the trailer of a packed segment makes no sense", ErrCorrupt)
		}
	}
	blocks := (t.end - segmentHeaderSize + packedBlock - 1) / packedBlock
	if t.end < segmentHeaderSize || t.tableAt < segmentHeaderSize || t.tableLen != 8*blocks || t.records > maxRecords || t.indexLen > maxIndex ||
		t.tableAt+t.tableLen+t.indexLen+packedTrailerSize != fileSize {
		return t, fmt.Errorf("%w: the trailer of a packed segment makes no sense", ErrCorrupt)
	}
	return t, nil
}

// parseTable decodes the table of a packed segment with trailer t.
func parseTable(b []byte, t packedTrailer) (*packed, error) {
	le := binary.LittleEndian
	if int64(len(b)) != t.tableLen || crc32.Checksum(b, castagnoli) != t.tableSum {
		return nil, fmt.Errorf("%w: the table of a packed segment does not match its checksum", ErrCorrupt)
	}
	n := len(b) / 8
	p := &packed{end: t.end, at: make([]int64, n+1), raw: make([]bool, n), sums: make([]uint32, n), index: t.tableAt + t.tableLen}
	p.footer = trailer{end: t.end, length: t.indexLen, records: int(t.records), sum: t.indexSum}
	p.at[0] = segmentHeaderSize
	for i := range n {
		v := le.Uint32(b[8*i:])
		length := int64(v &^ storedRaw)
		p.raw[i], p.sums[i] = v&storedRaw != 0, le.Uint32(b[8*i+4:])
		if length == 0 || length > packedBlock || p.raw[i] && length != p.length(i) {
			return nil, fmt.Errorf("%w: the table of a packed segment makes no sense", ErrCorrupt)
		}
		p.at[i+1] = p.at[i] + length
	}
	if p.at[n] != t.tableAt {
		return nil, fmt.Errorf("%w: the table of a packed segment makes no sense", ErrCorrupt)
	}
	return p, nil
}

// openPacked reads what a packed segment's file says of itself.
func openPacked(f io.ReaderAt, size int64) (*packed, error) {
	if size < segmentHeaderSize+packedTrailerSize {
		return nil, fmt.Errorf("%w: a packed segment is cut", ErrCorrupt)
	}
	var b [packedTrailerSize]byte
	if _, err := f.ReadAt(b[:], size-packedTrailerSize); err != nil {
		return nil, err
	}
	t, err := parsePackedTrailer(b[:], size)
	if err != nil {
		return nil, err
	}
	table := make([]byte, t.tableLen)
	if _, err := f.ReadAt(table, t.tableAt); err != nil {
		return nil, err
	}
	return parseTable(table, t)
}

// length is how many bytes of records block i holds.
func (p *packed) length(i int) int64 {
	return min(packedBlock, p.end-segmentHeaderSize-int64(i)*packedBlock)
}

// block reads and decodes block i.
func (p *packed) block(f io.ReaderAt, i int) ([]byte, error) {
	stored := make([]byte, p.at[i+1]-p.at[i])
	if _, err := f.ReadAt(stored, p.at[i]); err != nil {
		return nil, err
	}
	if crc32.Checksum(stored, castagnoli) != p.sums[i] {
		return nil, fmt.Errorf("%w: block %d of a packed segment does not match its checksum", ErrCorrupt, i)
	}
	if p.raw[i] {
		return stored, nil
	}
	b, err := packDecoder().DecodeAll(stored, make([]byte, 0, p.length(i)))
	if err != nil || int64(len(b)) != p.length(i) {
		return nil, fmt.Errorf("%w: block %d of a packed segment cannot be decoded: %v", ErrCorrupt, i, err)
	}
	return b, nil
}

// blockCache keeps the blocks that were decoded last. Blocks are never changed.
type blockCache struct {
	mu    sync.Mutex
	slots [8]struct {
		of   *packed
		i    int
		data []byte
	}
	next int
}

func (c *blockCache) get(of *packed, i int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.slots {
		if s := &c.slots[k]; s.of == of && s.i == i {
			return s.data
		}
	}
	return nil
}

func (c *blockCache) put(of *packed, i int, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.slots[c.next]
	s.of, s.i, s.data = of, i, data
	c.next = (c.next + 1) % len(c.slots)
}

// readAt fills b from offset off of the segment.
func (p *packed) readAt(f io.ReaderAt, c *blockCache, b []byte, off int64) error {
	if off < segmentHeaderSize || off+int64(len(b)) > p.end {
		return fmt.Errorf("offset %d is outside of the segment's records", off)
	}
	for len(b) > 0 {
		i := int((off - segmentHeaderSize) / packedBlock)
		data := c.get(p, i)
		if data == nil {
			var err error
			if data, err = p.block(f, i); err != nil {
				return err
			}
			c.put(p, i, data)
		}
		n := copy(b, data[(off-segmentHeaderSize)%packedBlock:])
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// packedReader reads the bytes of a packed segment as those of the segment that it was made of.
type packedReader struct {
	p *packed
	f io.ReaderAt
	c *blockCache
}

func (r *packedReader) ReadAt(b []byte, off int64) (int, error) {
	n := max(0, min(int64(len(b)), r.p.end-off))
	if err := r.p.readAt(r.f, r.c, b[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
