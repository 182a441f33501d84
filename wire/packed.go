package wire

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Between hosts the changes of a frame are compressed together, each frame by itself: nothing waits for more to be compressed with, and
// a frame that was read needs none before it.

const (
	// packedHead is what comes before the compressed bytes: the length of what they are, and its CRC.
	packedHead = 8
	// packWindow is how far back the compression of a frame looks, in bytes.
	packWindow = 1 << 20
	// leastPacked is the shortest body that is compressed, in bytes.
	leastPacked = 128
	// alwaysTried is the longest body that is tried whatever the last ones were like, in bytes: to do so in vain takes some ten microseconds.
	alwaysTried = 64 << 10
	// Behind a frame that did not become smaller, so many pieces of the next one say whether it may, but for each so-manieth, which is tried:
	// what is repeated far away is seen in no piece.
	samples, sampleLen, triedAnyway = 8, 4096, 16
)

// One frame is compressed at a time in a process, which sends one stream; as many are decompressed as there are processors. Their own checksums are
// left out: ours is of the same bytes.
var (
	packEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(packWindow))
		if err != nil {
			panic(fmt.Sprintf("wire: the fixed options of zstd are refused: %v", err))
		}
		return e
	})
	packDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxBody), zstd.WithDecoderMaxWindow(maxBody),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(fmt.Sprintf("wire: the fixed options of zstd are refused: %v", err))
		}
		return d
	})
)

// packer makes bodies of frames of changes smaller. It is for one goroutine.
type packer struct {
	plain, packed []byte // memory to work in
	vain          int    // how many bodies in a row did not become smaller
}

// pack returns the body of the frame whose decompressed changes are parts, a table and data; nil: it is not worth it, and they are to
// be sent as they are. It is good until the next one.
func (p *packer) pack(parts [][]byte) []byte {
	size := 0
	for _, b := range parts {
		size += len(b)
	}
	if size < leastPacked {
		return nil
	}
	if size > alwaysTried && p.vain%triedAnyway > 0 && !p.promising(parts[1:]) {
		p.vain++
		return nil
	}
	p.plain = p.plain[:0]
	for _, b := range parts {
		p.plain = append(p.plain, b...)
	}
	head := binary.LittleEndian.AppendUint32(p.packed[:0], uint32(size))
	head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(p.plain, castagnoli))
	p.packed = packEncoder().EncodeAll(p.plain, head)
	if !smaller(len(p.packed), size) {
		if size > alwaysTried {
			p.vain++
		}
		return nil
	}
	p.vain = 0
	return p.packed
}

// smaller reports whether so much is saved that it is worth decompressing.
func smaller(packed, plain int) bool { return packed <= plain-plain/16 }

// promising reports whether a piece of the data becomes smaller.
func (p *packer) promising(data [][]byte) bool {
	size := 0
	for _, b := range data {
		size += len(b)
	}
	at := 0 // of the next piece, from the beginning of b
	for _, b := range data {
		for ; at < len(b); at += max(size/samples, sampleLen) {
			from := at - at%sampleLen
			piece := b[from:min(from+sampleLen, len(b))]
			p.packed = packEncoder().EncodeAll(piece, p.packed[:0])
			if smaller(len(p.packed), len(piece)) {
				return true
			}
		}
		at -= len(b)
	}
	return false
}

// unpack is the reverse of pack, into buf if that is long enough. It takes as much memory as the body says, at most [maxBody].
func unpack(body, buf []byte) ([]byte, error) {
	if len(body) < packedHead {
		return nil, fmt.Errorf("%w: compressed changes of %d bytes", ErrProtocol, len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	if n > maxBody {
		return nil, fmt.Errorf("%w: compressed changes that would be %d bytes", ErrProtocol, n)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	plain, err := packDecoder().DecodeAll(body[packedHead:], buf[:0:n])
	if err != nil {
		return nil, fmt.Errorf("%w: compressed changes: %v", ErrProtocol, err) // which may be an end, and is none of the connection
	}
	if uint32(len(plain)) != n || crc32.Checksum(plain, castagnoli) != binary.LittleEndian.Uint32(body[4:]) {
		return nil, fmt.Errorf("%w: compressed changes are not the %d bytes that they should be", ErrProtocol, n)
	}
	return plain, nil
}
