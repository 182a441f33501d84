package residue

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"tidemark"
)

// The file of fingerprints, see docs/format/fingerprints.md.
const (
	fileMagic   = "tmfprint"
	fileVersion = 1
	headerSize  = 32
	entrySize   = 20
)

// WriteTo writes the fingerprints in the format of docs/format/fingerprints.md. The key is not in it.
func (f *Fingerprints) WriteTo(w io.Writer) (int64, error) {
	mac := hmac.New(sha256.New, f.key.derive("file"))
	out := bufio.NewWriterSize(io.MultiWriter(w, mac), 1<<16)
	head := append(make([]byte, 0, headerSize), fileMagic...)
	head = binary.LittleEndian.AppendUint16(head, fileVersion)
	head = binary.LittleEndian.AppendUint16(head, uint16(f.ways))
	head = binary.LittleEndian.AppendUint32(head, f.values)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(f.text.entries)))
	head = binary.LittleEndian.AppendUint64(head, uint64(len(f.digits.entries)))
	out.Write(head) // a bufio.Writer keeps its first error for Flush
	for _, list := range [][]entry{f.text.entries, f.digits.entries} {
		for i := range list {
			out.Write(list[i].append(out.AvailableBuffer()))
		}
	}
	if err := out.Flush(); err != nil {
		return 0, fmt.Errorf("write fingerprints: %w", err)
	}
	n, err := w.Write(mac.Sum(nil))
	if err != nil {
		return 0, fmt.Errorf("write fingerprints: %w", err)
	}
	return int64(headerSize + entrySize*f.Patterns() + n), nil
}

func (e *entry) append(p []byte) []byte {
	p = binary.LittleEndian.AppendUint32(p, e.tag)
	p = binary.LittleEndian.AppendUint32(p, e.number)
	p = binary.LittleEndian.AppendUint64(p, e.sum)
	p = binary.LittleEndian.AppendUint16(p, e.length)
	return append(p, e.at, byte(e.form))
}

// Read reads fingerprints. A file that was changed, is damaged, or was made with another key is refused with kind
// Corrupt, one of another version or of something else with kind Invalid.
func Read(r io.Reader, key Key) (*Fingerprints, error) {
	in := &reader{in: bufio.NewReaderSize(r, 1<<16), mac: hmac.New(sha256.New, key.derive("file"))}
	head := in.next(headerSize)
	if in.err != nil || string(head[:8]) != fileMagic {
		return nil, in.fail(tidemark.Errorf(tidemark.Invalid, "this is no file of fingerprints"))
	}
	if v := binary.LittleEndian.Uint16(head[8:]); v != fileVersion {
		return nil, tidemark.Errorf(tidemark.Invalid, "the fingerprints are of format version %d, this program reads version %d", v, fileVersion)
	}
	f := &Fingerprints{key: key, ways: Way(binary.LittleEndian.Uint16(head[10:])), values: binary.LittleEndian.Uint32(head[12:])}
	texts, digits := binary.LittleEndian.Uint64(head[16:]), binary.LittleEndian.Uint64(head[24:])
	text := in.entries(texts, f.values, false)
	digit := in.entries(digits, f.values, true)
	want := in.mac.Sum(nil)
	sum := in.next(sha256.Size)
	if in.err != nil || !hmac.Equal(sum, want) || f.ways&^allWays != 0 {
		return nil, in.fail(damaged())
	}
	if _, err := in.in.ReadByte(); err != io.EOF {
		return nil, damaged()
	}
	h := newHasher(key)
	f.text, f.digits = newIndex(h, text), newIndex(h, digit)
	return f, nil
}

func damaged() *tidemark.Error {
	return tidemark.Errorf(tidemark.Corrupt, "the fingerprints are damaged, or their key is another").
		WithHint("give the key that they were made with, or make them anew")
}

// errNoEntry: an entry has members that none can have.
var errNoEntry = errors.New("not a fingerprint")

// reader reads a file of fingerprints, and keeps its first error.
type reader struct {
	in  *bufio.Reader
	mac hash.Hash
	buf [headerSize]byte
	err error
}

func (r *reader) next(n int) []byte {
	if r.err == nil {
		_, r.err = io.ReadFull(r.in, r.buf[:n])
		r.mac.Write(r.buf[:n])
	}
	return r.buf[:n]
}

// entries reads n entries. It trusts no count: memory grows with what was read.
func (r *reader) entries(n uint64, values uint32, digits bool) (list []entry) {
	for ; n > 0 && r.err == nil; n-- {
		p := r.next(entrySize)
		e := entry{tag: binary.LittleEndian.Uint32(p), number: binary.LittleEndian.Uint32(p[4:]), sum: binary.LittleEndian.Uint64(p[8:]),
			length: binary.LittleEndian.Uint16(p[16:]), at: p[18], form: form(p[19])}
		if r.err == nil && !e.valid(values, digits) {
			r.err = errNoEntry
		}
		list = append(list, e)
	}
	return list
}

func (e *entry) valid(values uint32, digits bool) bool {
	n := int(e.length)
	return e.form.valid() && (e.form == formDigits) == digits && e.number >= 1 && e.number <= values &&
		n >= MinValue && n <= maxPattern && int(e.at)+windowOf(n) <= n
}

// fail is what is said of a file that could not be read to its end: the error of the disk, if it is one.
func (r *reader) fail(otherwise *tidemark.Error) error {
	if r.err == nil || errors.Is(r.err, io.EOF) || errors.Is(r.err, io.ErrUnexpectedEOF) || errors.Is(r.err, errNoEntry) {
		return otherwise
	}
	return fmt.Errorf("read fingerprints: %w", r.err)
}
