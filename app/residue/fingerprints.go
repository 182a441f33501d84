package residue

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"tidemark"
)

// Way is a set of ways in which values are normalised before they are searched.
type Way uint16

// The ways. [AsIs] and [Folded] search text, and Folded finds what AsIs finds; [Digits] and [Binary] come beside them.
const (
	// AsIs: the bytes of the value, without white space around it.
	AsIs Way = 1 << iota
	// Folded: upper and lower case are the same, for A to Z and the letters of Latin-1.
	Folded
	// Digits: of values that have only digits and separators (space, no-break space, - . / ( ) +), the digits,
	// with up to [MaxGap] bytes of separators, and zero bytes, between any two. So they are found however they were written.
	Digits
	// Binary: integers from 2^40 to 2^63-1 also as int8 and NUMERIC, smaller ones from 2^32 as NUMERIC if they have three groups
	// of four digits, UUIDs in 16 bytes, and what is written as \x and hexadecimal digits as the bytes that it means.
	Binary

	allWays = AsIs | Folded | Digits | Binary
)

// The bounds of values.
const (
	// MinValue is the length in bytes of the shortest value in the shortest of its encodings. Shorter ones are found everywhere.
	MinValue = 6
	// MinDigits is the least number of digits of a value that is searched by its digits only.
	MinDigits = 8
	// MaxValue is how much of a value is searched, in bytes of UTF-8: a longer one is found by its beginning.
	MaxValue = 128
	// MaxGap is the number of bytes that may be between two digits of a number: two separators in UTF-16, with a zero byte more.
	MaxGap = 5
)

// Key is the secret of a set of fingerprints: 32 random bytes. Keep it apart from the file.
type Key [32]byte

// NewKey returns a random key.
func NewKey() (k Key) {
	rand.Read(k[:]) // never fails
	return k
}

// String hides the key, so that no log has it.
func (Key) String() string { return "(key)" }

// GoString hides the key.
func (Key) GoString() string { return "(key)" }

// derive is the key for one use.
func (k Key) derive(use string) []byte {
	m := hmac.New(sha256.New, k[:])
	m.Write([]byte(use))
	return m.Sum(nil)
}

// Fingerprints are what a scan looks for. They do not change and may be used by many scans at once.
type Fingerprints struct {
	key    Key
	ways   Way
	values uint32
	text   *index // patterns that are searched in bytes as they are
	digits *index // patterns that are searched in the digits among the bytes
}

// Values is the number of the last value: the count of those that were added, refused ones included.
func (f *Fingerprints) Values() int { return int(f.values) }

// Patterns is the number of byte patterns that are searched.
func (f *Fingerprints) Patterns() int { return len(f.text.entries) + len(f.digits.entries) }

// Ways are the ways in which the values were normalised.
func (f *Fingerprints) Ways() Way { return f.ways }

// String is how many there are. It hides the key and what derives from it.
func (f *Fingerprints) String() string {
	return fmt.Sprintf("(%d values, %d patterns)", f.Values(), f.Patterns())
}

// GoString is String.
func (f *Fingerprints) GoString() string { return f.String() }

// Builder makes [Fingerprints]. It keeps no value. It is for one goroutine.
type Builder struct {
	key    Key
	ways   Way
	hash   hasher
	values uint32
	text   []entry
	digits []entry
	used   []uint8 // how often a window with this hash was chosen, up to 255
}

// NewBuilder returns a builder of fingerprints with a key. Of AsIs and Folded at least one must be among the ways.
func NewBuilder(key Key, ways Way) (*Builder, error) {
	if ways&^allWays != 0 || ways&(AsIs|Folded) == 0 {
		return nil, tidemark.Errorf(tidemark.Invalid, "values cannot be searched in these ways: %#x", uint16(ways)).
			WithHint("name as-is or folded, and digits or binary beside it")
	}
	return &Builder{key: key, ways: ways, hash: newHasher(key), used: make([]uint8, 1<<16)}, nil
}

// Add adds a value and returns its number, which is one more than that of the value before it. A value that
// cannot be searched is refused with an error of kind Invalid, which says why and never has the value in it.
// It has a number all the same, so that numbers are those of the lines of a file. An empty value is passed over.
func (b *Builder) Add(value []byte) (number int, err error) {
	if b.values == 1<<32-1 {
		return 0, tidemark.Errorf(tidemark.Invalid, "a set has at most %d values", uint32(1<<32-1))
	}
	b.values++
	value = bytes.TrimSpace(value)
	if len(value) == 0 {
		return int(b.values), nil
	}
	forms := binaryForms(value, b.ways)
	if text := textForms(value, b.ways); tooShort(text) {
		return int(b.values), tidemark.Errorf(tidemark.Invalid, "value %d is shorter than %d bytes in one of its encodings", b.values, MinValue).
			WithHint("so short a value is found everywhere: leave it out, or search it together with what stands beside it")
	} else if !isHex(value) || b.ways&Binary == 0 {
		forms = append(forms, text...)
	}
	for _, p := range forms {
		if len(bytes.Trim(p.bytes, "\x00")) == 0 {
			return int(b.values), tidemark.Errorf(tidemark.Invalid, "value %d is only zero bytes", b.values).WithHint("leave it out: every disk is full of them")
		}
	}
	for _, p := range forms {
		b.text = append(b.text, b.entry(p))
	}
	if d := onlyDigits(value); b.ways&Digits != 0 && len(d) >= MinDigits {
		b.digits = append(b.digits, b.entry(pattern{bytes: d, form: formDigits}))
	}
	return int(b.values), nil
}

// Refusal is a value that cannot be searched.
type Refusal struct {
	Number int   // of the value
	Reason error // without the value
}

// AddLines adds the values of a stream, one per line of at most 1 MiB. It returns those that were refused: the caller decides
// whether a set without them will do. An error is one of the stream.
func (b *Builder) AddLines(r io.Reader) (refused []Refusal, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if n, err := b.Add(lines.Bytes()); n == 0 {
			return refused, err
		} else if err != nil {
			refused = append(refused, Refusal{n, err})
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return refused, tidemark.Errorf(tidemark.Invalid, "line %d of the values is longer than 1 MiB", b.values+1).WithHint("write one value per line")
	}
	return refused, lines.Err()
}

// Fingerprints returns what was added, and ends the builder. Values that were added twice go by their first number.
func (b *Builder) Fingerprints() *Fingerprints {
	f := &Fingerprints{key: b.key, ways: b.ways, values: b.values, text: newIndex(b.hash, b.text), digits: newIndex(b.hash, b.digits)}
	*b = Builder{}
	return f
}

// entry makes the fingerprint of a pattern that has not only zeros. Of three windows it takes the one that fewest others have: a million
// card numbers of one bank begin alike, a million addresses of one provider end alike. A window of zeros is none, because a search skips zeros.
func (b *Builder) entry(p pattern) entry {
	w := windowOf(len(p.bytes))
	nonzero := bytes.IndexFunc(p.bytes, func(r rune) bool { return r != 0 })
	best, least := 0, 256
	for _, at := range [...]int{0, len(p.bytes) - w, (len(p.bytes) - w) / 2, min(nonzero, len(p.bytes)-w)} {
		if len(bytes.Trim(p.bytes[at:at+w], "\x00")) == 0 {
			continue
		}
		if n := int(b.used[b.hash.window(p.bytes[at:], w)>>16]); n < least {
			best, least = at, n
		}
	}
	tag := b.hash.window(p.bytes[best:], w)
	if least < 255 {
		b.used[tag>>16]++
	}
	return entry{tag: tag, number: b.values, sum: b.hash.sum(p.form, p.bytes), length: uint16(len(p.bytes)), at: uint8(best), form: p.form}
}

// hasher has the keyed hashes of a set.
type hasher struct {
	k1, k2 uint64
	secret [32]byte
}

func newHasher(key Key) hasher {
	w := key.derive("window")
	h := hasher{k1: binary.LittleEndian.Uint64(w), k2: binary.LittleEndian.Uint64(w[8:]) | 1}
	copy(h.secret[:], key.derive("value"))
	return h
}

// window is the hash of the first w bytes of p, 6 or 8, in which upper and lower case are the same.
func (h *hasher) window(p []byte, w int) uint32 {
	var word [8]byte
	copy(word[:], p[:w])
	x := binary.LittleEndian.Uint64(word[:])
	if w == shortWindow {
		return mix(x&shortMask|caseBits&shortMask, h.k1, h.k2)
	}
	return mix(x|caseBits, h.k1, h.k2)
}

// sum is the keyed hash of a whole pattern: SHA-256 of key, form and bytes, cut to 64 bits.
func (h *hasher) sum(f form, p []byte) uint64 {
	var buf [33 + 2*MaxValue]byte
	copy(buf[:], h.secret[:])
	buf[32] = byte(f)
	n := 33 + copy(buf[33:], p)
	s := sha256.Sum256(buf[:n])
	return binary.LittleEndian.Uint64(s[:])
}

func tooShort(list []pattern) bool {
	for _, p := range list {
		if len(p.bytes) < MinValue {
			return true
		}
	}
	return false
}

// cut returns the beginning of a value that is searched, in whole characters.
func cut(value []byte) []byte {
	if len(value) <= MaxValue {
		return value
	}
	n := MaxValue
	for n > MaxValue-utf8.UTFMax && !utf8.RuneStart(value[n]) {
		n--
	}
	return value[:n]
}
