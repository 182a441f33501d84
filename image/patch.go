package image

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/bits"
)

// A patch says how a content differs from that of a base record, which is full.
//
// Its body is the base's name, then by the kind of record:
//   - a chunk: two bitmaps of one bit per 4 KiB block, which blocks follow and which of those
//     are XORed with the base; then zstd of those blocks, one after the other
//   - a node: a bitmap of 256 bits, which slots follow; then the slots' names

// patchHead is the length of the base's name at the front of a patch.
const patchHead = len(Name{})

// patchBlock is the grain of a chunk's patch, in bytes: the page of most that writes disks.
const patchBlock = 4096

// patchBase returns the base named by the body of a patch.
func patchBase(body []byte) Name { return Name(body[:patchHead]) }

// mapLen is the length of each bitmap of a chunk's patch.
func mapLen(size int) int { return (size/patchBlock + 7) / 8 }

// encodeChunkPatch appends to dst the body of the patch that turns base's content into content's. scratch
// is working memory. It returns nil if content and base have nothing in common.
func encodeChunkPatch(dst, content, base []byte, baseName Name, scratch *[]byte) []byte {
	blocks, m := len(content)/patchBlock, mapLen(len(content))
	dst = append(append(dst, baseName[:]...), make([]byte, 2*m)...)
	present, xored := dst[len(dst)-2*m:len(dst)-m], dst[len(dst)-m:]
	plain := (*scratch)[:0]
	var block [patchBlock]byte
	for i := range blocks {
		a, b := content[i*patchBlock:(i+1)*patchBlock], base[i*patchBlock:(i+1)*patchBlock]
		if string(a) == string(b) {
			continue
		}
		present[i/8] |= 1 << (i % 8)
		subtle.XORBytes(block[:], a, b)
		if xorPays(block[:], a) {
			xored[i/8] |= 1 << (i % 8)
			a = block[:]
		}
		plain = append(plain, a...)
	}
	*scratch = plain
	if len(plain) == len(content) && !anyBit(xored) {
		return nil
	}
	return zstdEncode(dst, plain)
}

func anyBit(m []byte) bool {
	for _, b := range m {
		if b != 0 {
			return true
		}
	}
	return false
}

// xorPays guesses whether the XOR of a block compresses better than the block:
// it does when more of its 8-byte words are zero than repeat in the block itself.
func xorPays(x, a []byte) bool {
	zeros, repeats := 0, 0
	var last uint64
	for i := 0; i < len(x); i += 8 {
		if binary.LittleEndian.Uint64(x[i:]) == 0 {
			zeros++
		}
		if w := binary.LittleEndian.Uint64(a[i:]); w == last || w == 0 {
			repeats++
		} else {
			last = w
		}
	}
	return zeros > repeats+16
}

// decodeChunkPatch turns dst, which holds the base's content, into the patch's.
func decodeChunkPatch(dst, body []byte, scratch *[]byte) error {
	blocks, m := len(dst)/patchBlock, mapLen(len(dst))
	if len(body) < patchHead+2*m {
		return fmt.Errorf("%w: patch of %d bytes", errBadBody, len(body))
	}
	present, xored := body[patchHead:patchHead+m], body[patchHead+m:patchHead+2*m]
	n := 0
	for i, b := range present {
		if b&^lastBits(blocks, i) != 0 || xored[i]&^b != 0 {
			return fmt.Errorf("%w: bitmap of a patch", errBadBody)
		}
		n += bits.OnesCount8(b)
	}
	if cap(*scratch) < n*patchBlock {
		*scratch = make([]byte, n*patchBlock)
	}
	plain := (*scratch)[:n*patchBlock]
	if err := zstdDecode(plain, body[patchHead+2*m:]); err != nil {
		return err
	}
	for i := range blocks {
		if present[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		d := dst[i*patchBlock : (i+1)*patchBlock]
		if xored[i/8]&(1<<(i%8)) != 0 {
			subtle.XORBytes(d, d, plain[:patchBlock])
		} else {
			copy(d, plain[:patchBlock])
		}
		plain = plain[patchBlock:]
	}
	return nil
}

// lastBits are the bits of byte i of a bitmap of n bits that are in use.
func lastBits(n, i int) byte {
	if rest := n - i*8; rest < 8 {
		return 1<<rest - 1
	}
	return 0xff
}

// encodeNodePatch appends the body of the patch that turns the slots of base into those of content.
func encodeNodePatch(dst, content, base []byte, baseName Name) []byte {
	const w = len(Name{})
	at := len(dst) + patchHead
	dst = append(append(dst, baseName[:]...), make([]byte, fanout/8)...)
	for i := range fanout {
		if slot := content[i*w : (i+1)*w]; string(slot) != string(base[i*w:(i+1)*w]) {
			dst[at+i/8] |= 1 << (i % 8)
			dst = append(dst, slot...)
		}
	}
	return dst
}

// decodeNodePatch turns dst, which holds the base's slots, into the patch's.
func decodeNodePatch(dst, body []byte) error {
	const w = len(Name{})
	if len(body) < patchHead+fanout/8 {
		return fmt.Errorf("%w: node patch of %d bytes", errBadBody, len(body))
	}
	present, slots := body[patchHead:patchHead+fanout/8], body[patchHead+fanout/8:]
	n := 0
	for _, b := range present {
		n += bits.OnesCount8(b)
	}
	if len(slots) != n*w {
		return fmt.Errorf("%w: node patch of %d slots in %d bytes", errBadBody, n, len(slots))
	}
	for i := range fanout {
		if present[i/8]&(1<<(i%8)) != 0 {
			copy(dst[i*w:(i+1)*w], slots)
			slots = slots[w:]
		}
	}
	return nil
}
