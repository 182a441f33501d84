package residue

import "encoding/binary"

const (
	// reach is how far a match may go on behind its beginning: digits with their separators.
	reach = maxDigitValue * (MaxGap + 1)
	// backward is how far behind LZ4 may refer.
	backward = 64 << 10
	// outputSize bounds the memory for decoding, however long a value is.
	outputSize = 1 << 20
)

// output takes decoded bytes and hands them over in parts: what begins in buf[from:to] is to be searched, and what is behind, to
// be searched later, is there to read.
type output struct {
	buf  []byte // up to outputSize, with a word behind
	from int    // not searched from here on
	left int    // bytes that may come
	emit func(buf []byte, from, to int)
}

func newOutput() *output { return &output{buf: make([]byte, 0, outputSize+8)} }

// reset begins anew, for at most n bytes.
func (o *output) reset(n int, emit func(buf []byte, from, to int)) {
	o.buf, o.from, o.left, o.emit = o.buf[:0], 0, n, emit
}

// literal takes bytes as they are. It returns false when no more are wanted.
func (o *output) literal(p []byte) bool {
	p = p[:min(len(p), o.left)]
	o.left -= len(p)
	for len(p) > 0 {
		o.room()
		n := copy(o.buf[len(o.buf):outputSize], p)
		o.buf = o.buf[:len(o.buf)+n]
		p = p[n:]
	}
	return o.left > 0
}

// repeat takes n bytes of which each is what was taken dist bytes before. It returns false when no more are wanted, or dist
// is before the beginning.
func (o *output) repeat(dist, n int) bool {
	n = min(n, o.left)
	if dist <= 0 || dist > len(o.buf) {
		return false
	}
	o.left -= n
	for ; n > 0; n-- {
		o.room()
		o.buf = append(o.buf, o.buf[len(o.buf)-dist])
	}
	return o.left > 0
}

// room makes room for a byte at least.
func (o *output) room() {
	if len(o.buf) < outputSize {
		return
	}
	to := outputSize - reach
	o.hand(to)
	keep := outputSize - backward
	o.buf = o.buf[:copy(o.buf, o.buf[keep:])]
	o.from = to - keep
}

// end hands over the rest.
func (o *output) end() { o.hand(len(o.buf)) }

func (o *output) hand(to int) {
	if to <= o.from {
		return
	}
	clear(o.buf[len(o.buf) : len(o.buf)+8])
	o.emit(o.buf, o.from, to)
}

// pglz decodes the format of src/common/pg_lzcompress.c of PostgreSQL: of eight items that a byte of flags speaks of, lowest bit
// first, each is a literal byte, or two or three bytes with distance and length.
func pglz(out *output, in []byte) {
	for len(in) > 0 {
		flags := in[0]
		in = in[1:]
		for bit := 0; bit < 8 && len(in) > 0; bit++ {
			if flags>>bit&1 == 0 {
				if !out.literal(in[:1]) {
					return
				}
				in = in[1:]
				continue
			}
			if len(in) < 2 {
				return
			}
			n, dist := int(in[0]&0x0f)+3, int(in[0]&0xf0)<<4|int(in[1])
			in = in[2:]
			if n == 18 {
				if len(in) == 0 {
					return
				}
				n += int(in[0])
				in = in[1:]
			}
			if !out.repeat(dist, n) {
				return
			}
		}
	}
}

// lz4 decodes a block of LZ4, as its specification (lz4_Block_format.md) has it. It is our own because others give
// nothing of a block that is cut or damaged, and ours has what comes before.
func lz4(out *output, in []byte) {
	for len(in) > 0 {
		token := in[0]
		n, rest := lz4Length(int(token>>4), in[1:])
		in = rest
		if !out.literal(in[:min(n, len(in))]) || n+2 > len(in) {
			return
		}
		dist := int(binary.LittleEndian.Uint16(in[n:]))
		n, in = lz4Length(int(token&15), in[n+2:])
		if !out.repeat(dist, n+4) {
			return
		}
	}
}

func lz4Length(n int, in []byte) (int, []byte) {
	if n < 15 {
		return n, in
	}
	for i, b := range in {
		n += int(b)
		if b < 255 {
			return n, in[i+1:]
		}
	}
	return n, nil
}
