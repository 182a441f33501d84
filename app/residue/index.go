package residue

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	longWindow  = 8
	shortWindow = 6 // of patterns that are shorter than a long window
	shortMask   = 1<<48 - 1
	// caseBits makes upper and lower case letters the same in a word. Digits have this bit anyway.
	caseBits = 0x2020202020202020
	// maxPattern is the length of the longest pattern in bytes: the longest value in UTF-16.
	maxPattern = 2 * MaxValue
	// maxDigitValue is the number of digits that are searched of a number.
	maxDigitValue = MaxValue / 2
)

func windowOf(length int) int {
	if length < longWindow {
		return shortWindow
	}
	return longWindow
}

// mix is the keyed hash of a window: a multiplication of two words to four, folded. It costs a nanosecond, and is no cipher.
func mix(x, k1, k2 uint64) uint32 {
	hi, lo := bits.Mul64(x^k1, k2)
	return uint32((hi ^ lo) >> 32)
}

// entry is the fingerprint of one pattern.
type entry struct {
	sum    uint64 // keyed hash of the pattern
	tag    uint32 // keyed hash of its window
	number uint32 // of the value
	length uint16 // of the pattern
	at     uint8  // where in the pattern its window begins
	form   form
}

func compareEntries(a, b entry) int {
	return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.form, b.form), cmp.Compare(a.length, b.length),
		cmp.Compare(a.at, b.at), cmp.Compare(a.sum, b.sum), cmp.Compare(a.number, b.number))
}

// index finds patterns by the hash of their windows. Nearly every window of a disk is turned away by one word of a
// filter, which has 16 to 32 bits for each pattern and so stays in the processor's caches for some 100,000 of them. A pattern sets two bits of its
// word, so that one window in 60 to 250 is looked up in vain: a wrongly predicted branch costs more than to search a few bytes.
type index struct {
	hash        hasher
	entries     []entry  // sorted by compareEntries
	starts      []uint32 // of the entries whose tag has these top bits
	shift       uint     // tag >> shift is the place in starts
	long, short []uint64 // filters of windows of 8 and of 6 bytes; nil if there are none
	filterShift uint     // tag >> filterShift is the word in a filter
}

func newIndex(h hasher, list []entry) *index {
	slices.SortFunc(list, compareEntries)
	list = slices.CompactFunc(list, func(a, b entry) bool { a.number = b.number; return a == b })
	n := min(max(bits.Len(uint(len(list))), 6), 28)
	x := &index{hash: h, entries: list, shift: uint(32 - n), filterShift: uint(32 - max(n-1, 10))}
	x.starts = make([]uint32, 1<<n+1)
	for i, e := range list {
		x.starts[e.tag>>x.shift+1] = uint32(i + 1)
		f := &x.long
		if e.length < longWindow {
			f = &x.short
		}
		if *f == nil {
			*f = make([]uint64, 1<<(32-x.filterShift))
		}
		(*f)[e.tag>>x.filterShift] |= bitsOf(e.tag)
	}
	for i := 1; i < len(x.starts); i++ {
		x.starts[i] = max(x.starts[i], x.starts[i-1])
	}
	return x
}

// matcher is told of matches: entry e begins at buf[start].
type matcher func(e *entry, start int)

// search finds the patterns that begin in buf[from:to]. buf must have 8 bytes of capacity behind its length.
func (x *index) search(buf []byte, from, to int, match matcher) {
	if len(x.entries) == 0 {
		return
	}
	end := min(len(buf), to+maxPattern)
	words := buf[:len(buf)+8]
	for i := from; i < end; i += 8 {
		// Eight windows are of two words.
		w0, w1 := binary.LittleEndian.Uint64(words[i:]), uint64(0)
		if i+16 <= len(words) {
			w1 = binary.LittleEndian.Uint64(words[i+8:])
		}
		if w0|w1 == 0 { // no pattern has a window of zeros
			continue
		}
		if x.long != nil {
			x.probe(buf, i, w0, w1, from, to, match)
		}
		if x.short != nil {
			x.probeShort(buf, i, w0, w1, from, to, match)
		}
	}
}

// bitsOf are the bits of a hash in its word of a filter.
func bitsOf(tag uint32) uint64 { return 1<<(tag&63) | 1<<(tag>>6&63) }

// probe looks at the eight windows of 8 bytes that begin at buf[i:].
func (x *index) probe(buf []byte, i int, w0, w1 uint64, from, to int, match matcher) {
	k1, k2, shift, filter := x.hash.k1, x.hash.k2, x.filterShift&31, x.long
	for s := uint(0); s < 64; s += 8 {
		tag := mix((w0>>s|w1<<1<<(63-s&63))|caseBits, k1, k2)
		if b := bitsOf(tag); filter[tag>>shift]&b == b {
			x.candidates(buf, i+int(s/8), tag, longWindow, from, to, match)
		}
	}
}

// probeShort is probe for windows of 6 bytes.
func (x *index) probeShort(buf []byte, i int, w0, w1 uint64, from, to int, match matcher) {
	k1, k2, shift, filter := x.hash.k1, x.hash.k2, x.filterShift&31, x.short
	for s := uint(0); s < 64; s += 8 {
		tag := mix((w0>>s|w1<<1<<(63-s&63)|caseBits)&shortMask, k1, k2)
		if b := bitsOf(tag); filter[tag>>shift]&b == b {
			x.candidates(buf, i+int(s/8), tag, shortWindow, from, to, match)
		}
	}
}

// zeros is how far one may go on from p, which begins with 8 zeros or ends before, and have a window of zeros everywhere before.
func zeros(p []byte) (n int) {
	for n+16 <= len(p) && binary.LittleEndian.Uint64(p[n+8:]) == 0 {
		n += 8
	}
	return n
}

// candidates compares what lies around a window with the patterns whose window has the same hash.
func (x *index) candidates(buf []byte, i int, tag uint32, w, from, to int, match matcher) {
	list := x.entries[x.starts[tag>>x.shift]:x.starts[tag>>x.shift+1]]
	for len(list) > 0 && list[0].tag < tag {
		list = list[1:]
	}
	for len(list) > 0 && list[0].tag == tag {
		e := &list[0]
		n := 1
		for n < len(list) && list[n].tag == tag && list[n].form == e.form && list[n].length == e.length && list[n].at == e.at {
			n++
		}
		if start := i - int(e.at); start >= from && start < to && start+int(e.length) <= len(buf) && windowOf(int(e.length)) == w {
			x.verify(list[:n], buf, start, match)
		}
		list = list[n:]
	}
}

// verify compares by their hash with patterns of one form and length, sorted by hash.
func (x *index) verify(list []entry, buf []byte, start int, match matcher) {
	e := &list[0]
	p := buf[start : start+int(e.length)]
	if e.form&formFolded != 0 {
		var folded [maxPattern]byte
		copy(folded[:], p)
		p = folded[:len(p)]
		fold(p)
	}
	sum := x.hash.sum(e.form, p)
	at, ok := slices.BinarySearchFunc(list, sum, func(e entry, s uint64) int { return cmp.Compare(e.sum, s) })
	if !ok || e.form == formNumeric && (start < 4 || !numericHead(buf[start-4:], int(e.length)/2)) {
		return
	}
	match(&list[at], start)
}
