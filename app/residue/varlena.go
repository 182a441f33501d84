package residue

import "encoding/binary"

// How PostgreSQL (13 to 17) keeps long values. A compressed value in a tuple is two words and the compressed bytes:
// its whole length shifted left by two with 2 in the lowest bits; its length when decoded, with the method in the two highest.
const (
	methodPGLZ = 0
	methodLZ4  = 1

	// maxVarlena is the longest compressed value in a page of 32 KiB, the largest that PostgreSQL can be built with.
	maxVarlena = 32 << 10
	// maxRatio is the most that a byte can decode to, in LZ4. For pglz it is less than 100.
	maxRatio = 255
)

// Candidates are told by one comparison of a word each: for compressed values, the lowest bits of the first word and that it is less
// than maxVarlena, and the higher bit of the method; for pieces of TOAST values, see toast.go.
const (
	varlenaMask, varlenaWord = 0x80000000_fffe0003, 2
	chunkMask, chunkWord     = 0x0000ffff_000707ff, 0x00000018_00020003
)

// compressed finds compressed values and pieces of TOAST values at every offset in buf[from:to]: pages need not be whole for it,
// tuples may be dead or be in WAL, and nothing needs to point to them.
func (w *worker) compressed(buf []byte, from, to int, o origin) {
	words := buf[:len(buf)+8]
	for i := from; i < to && w.err == nil; i += 8 {
		w0, w1 := binary.LittleEndian.Uint64(words[i:]), uint64(0)
		if i+16 <= len(words) {
			w1 = binary.LittleEndian.Uint64(words[i+8:])
		}
		if w0|w1 == 0 || !hasZero(w0) && !hasZero(w1) { // either word has zero bytes, and others
			continue
		}
		for s := uint(0); s < 64; s += 8 {
			x := w0>>s | w1<<1<<(63-s&63)
			if x&varlenaMask == varlenaWord {
				w.inline(buf, i+int(s/8), o)
			}
			if x&chunkMask == chunkWord {
				w.chunk(buf, i+int(s/8), o)
			}
		}
	}
}

// hasZero reports whether a byte of x is zero.
func hasZero(x uint64) bool { return (x-0x0101010101010101)&^x&0x8080808080808080 != 0 }

// inline decodes what may be a compressed value at buf[i], as far as it is there.
func (w *worker) inline(buf []byte, i int, o origin) {
	if len(buf)-i < 9 { // or behind the end: words are looked at in eights
		return
	}
	n := int(binary.LittleEndian.Uint32(buf[i:]) >> 2)
	if n <= 8 {
		return
	}
	info := binary.LittleEndian.Uint32(buf[i+4:])
	if !plausible(info, n-4) {
		return
	}
	if o.within == "" {
		o.base += int64(i)
	}
	o.within = prefix(o.within) + "compressed value (" + methodName(info) + ")"
	w.decode(buf[i+8:min(i+n, len(buf))], info, o)
}

func prefix(within string) string {
	if within == "" {
		return ""
	}
	return within + ", "
}

// plausible reports whether a value of n bytes, the word info included, can decode to what info says. PostgreSQL keeps nothing
// compressed that did not become shorter.
func plausible(info uint32, n int) bool {
	raw := int(info & (1<<30 - 1))
	return info>>30 <= methodLZ4 && raw > n-4 && raw <= maxRatio*n
}

func methodName(info uint32) string {
	if info>>30 == methodLZ4 {
		return "lz4"
	}
	return "pglz"
}

// decode decodes and searches. Damaged or cut input is searched as far as it decodes.
func (w *worker) decode(in []byte, info uint32, o origin) {
	w.count.Compressed++
	w.out.reset(int(info&(1<<30-1)), func(buf []byte, from, to int) { w.search(buf, from, to, o) })
	if info>>30 == methodLZ4 {
		lz4(w.out, in)
	} else {
		pglz(w.out, in)
	}
	w.out.end()
}
