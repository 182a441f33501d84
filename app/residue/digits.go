package residue

import "encoding/binary"

// digitRun gathers the digits of a number that may have separators in it.
type digitRun struct {
	digits []byte // with room for a word behind
	places []int32
}

// The classes of bytes within numbers.
const (
	other = iota
	digit
	separator
)

// classes of bytes. The zero byte is the other half of a digit in UTF-16, c2 a0 is the no-break space.
var classes = func() (c [256]uint8) {
	for b := '0'; b <= '9'; b++ {
		c[b] = digit
	}
	for _, b := range []byte("\x00 -./()\xa0\xc2") {
		c[b] = separator
	}
	return c
}()

// maxDigits ends the gathering of a run, to be gone on with from its last digits.
const maxDigits = 1 << 16

// search finds the digit patterns that begin in buf[from:to].
func (r *digitRun) search(x *index, buf []byte, from, to int, match matcher) {
	if r.digits == nil {
		r.digits, r.places = make([]byte, 0, maxDigits+8), make([]int32, 0, maxDigits)
	}
	r.clear()
	gap := 0
	for i, end := from, min(len(buf), to+reach); i < end; i++ {
		if len(r.digits) == 0 && i+8 <= end && !hasDigit(binary.LittleEndian.Uint64(buf[i:])) {
			i += 7
			continue
		}
		switch classes[buf[i]] {
		case digit:
			r.digits, r.places = append(r.digits, buf[i]), append(r.places, int32(i))
			gap = 0
			if len(r.digits) == maxDigits {
				r.match(x, maxDigits-maxPattern, to, match)
				r.keep(maxPattern)
			}
		case separator:
			if gap++; gap <= MaxGap {
				continue
			}
			fallthrough
		default:
			if len(r.digits) > 0 {
				r.match(x, len(r.digits), to, match)
				r.clear()
			}
		}
	}
	r.match(x, len(r.digits), to, match)
}

// hasDigit reports whether a byte of x is a digit.
func hasDigit(x uint64) bool {
	x ^= 0x3030303030303030
	return (x-0x0a0a0a0a0a0a0a0a)&^x&0x8080808080808080 != 0
}

func (r *digitRun) clear() { r.digits, r.places = r.digits[:0], r.places[:0] }

// keep drops all but the last n digits.
func (r *digitRun) keep(n int) {
	r.digits = r.digits[:copy(r.digits, r.digits[len(r.digits)-n:])]
	r.places = r.places[:copy(r.places, r.places[len(r.places)-n:])]
}

// match finds the patterns that begin in the first n digits of the run.
func (r *digitRun) match(x *index, n, to int, match matcher) {
	if len(r.digits) < MinDigits {
		return
	}
	clear(r.digits[len(r.digits) : len(r.digits)+8])
	x.search(r.digits, 0, n, func(e *entry, start int) {
		if at := int(r.places[start]); at < to {
			match(e, at)
		}
	})
}
