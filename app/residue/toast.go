package residue

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
)

// Values that are too long for a tuple are cut into pieces, the rows of a TOAST table: the number of the value (oid), that of the piece
// (int4), and the bytes (bytea, never compressed or short). From t_infomask2 on, such a tuple has the same bytes in a page and in WAL:
// number of columns (3), flags (has variable-width columns, no nulls), length of the head (24), a zero byte, and the columns.
const (
	chunkHead = 6 + 4 + 4 + 4
	maxChunk  = maxVarlena / 4 // in pages of 32 KiB; in those of 8 KiB it is 1996
	maxPieces = 1<<30/256 + 1
	// maxWays is how many ways to put a compressed value together are tried. More than one arises if tables have values of the same number.
	maxWays = 64
)

// chunk is where a piece of a TOAST value lies.
type chunk struct {
	id, seq uint32
	off     int64 // of its bytes: on the disk, or in the record or page image
	record  int   // as in origin
	part    int16
	length  uint16
}

// chunk notes what may be a piece of a TOAST value at buf[i], if it is whole.
func (w *worker) chunk(buf []byte, i int, o origin) {
	if len(buf)-i < chunkHead {
		return
	}
	p := buf[i:]
	id, seq, head := binary.LittleEndian.Uint32(p[6:]), binary.LittleEndian.Uint32(p[10:]), binary.LittleEndian.Uint32(p[14:])
	n := int(head>>2) - 4
	if head&3 != 0 || n < 1 || n > maxChunk || id == 0 || seq > maxPieces || chunkHead+n > len(p) {
		return
	}
	at := int64(i + chunkHead)
	if o.record == noRecord {
		at += o.base
	}
	w.chunks = append(w.chunks, chunk{id: id, seq: seq, off: at, record: o.record, part: int16(o.part), length: uint16(n)})
}

// cutByWAL reports whether a head of a page of WAL lies in the bytes of a chunk: then its record goes on behind it, and the second
// pass has found it whole.
func (s *scanner) cutByWAL(c chunk) bool {
	if c.record != noRecord {
		return false
	}
	i, _ := slices.BinarySearch(s.heads, c.off-chunkHead)
	return i < len(s.heads) && s.heads[i] < c.off+int64(c.length)
}

// toast is the third pass: values that are in several pieces.
func (s *scanner) toast(ctx context.Context) error {
	slices.SortFunc(s.chunks, func(a, b chunk) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.seq, b.seq), cmp.Compare(a.record, b.record), cmp.Compare(a.off, b.off))
	})
	for _, p := range s.pages {
		s.heads = append(s.heads, p.off)
	}
	slices.Sort(s.heads)
	var values []int // where in chunks each begins
	for i := range s.chunks {
		if i == 0 || s.chunks[i].id != s.chunks[i-1].id {
			values = append(values, i)
		}
	}
	return s.parallel(ctx, len(values), func(w *worker) func(int) error {
		t := &toaster{worker: w, wal: &walReader{pages: s.pages, disk: s.disk}}
		return func(i int) error {
			end := len(s.chunks)
			if i+1 < len(values) {
				end = values[i+1]
			}
			return t.value(s.chunks[values[i]:end])
		}
	})
}

// toaster puts TOAST values together.
type toaster struct {
	*worker
	wal *walReader
}

// piece is the bytes of a chunk. Several chunks have the same bytes, as copies that vacuum or WAL made.
type piece struct {
	data []byte
	at   int64 // on the disk, or of the record that it is in
}

// value searches across the pieces of one value, or of several that have the same number in different tables.
func (t *toaster) value(chunks []chunk) error {
	var whole [][]piece // by number, from 0 on, as long as none is missing
	var before []piece
	for len(chunks) > 0 {
		n := 1
		for n < len(chunks) && chunks[n].seq == chunks[0].seq {
			n++
		}
		seq := chunks[0].seq
		here, err := t.load(chunks[:n])
		if err != nil {
			return err
		}
		chunks = chunks[n:]
		t.joints(before, here, seq)
		if int(seq) == len(whole) {
			whole = append(whole, here)
		}
		before = here
		if len(chunks) > 0 && chunks[0].seq != seq+1 {
			before = nil
		}
	}
	t.ways(whole)
	return nil
}

// load returns the different pieces of one number. Those that a page of WAL cuts count only if there are no others.
func (t *toaster) load(chunks []chunk) (list []piece, err error) {
	whole := slices.DeleteFunc(slices.Clone(chunks), t.cutByWAL)
	if len(whole) == 0 {
		whole = chunks
	}
	for _, c := range whole {
		p, err := t.read(c)
		if err != nil {
			return nil, err
		}
		if p.data != nil && !slices.ContainsFunc(list, func(q piece) bool { return slices.Equal(p.data, q.data) }) {
			list = append(list, p)
		}
	}
	return list, nil
}

func (t *toaster) read(c chunk) (piece, error) {
	if c.record == noRecord {
		p := make([]byte, c.length)
		if _, err := t.disk.ReadAt(p, c.off); err != nil {
			return piece{}, fmt.Errorf("read a piece of a TOAST value at %d: %w", c.off, err)
		}
		return piece{p, c.off}, nil
	}
	i, at := c.record/walPageSize, c.record%walPageSize
	page, err := t.wal.page(i)
	if err != nil {
		return piece{}, err
	}
	head, _ := parseWALHead(page)
	buf, err := t.wal.record(i, at)
	if err != nil {
		return piece{}, err
	}
	if c.part != wholeRecord {
		images := parseRecord(buf, head.magic)
		if int(c.part) >= len(images) {
			return piece{}, nil
		}
		buf = t.image(images[c.part])
	}
	if end := c.off + int64(c.length); end <= int64(len(buf)) {
		return piece{slices.Clone(buf[c.off:end]), t.wal.pages[i].off + int64(at)}, nil
	}
	return piece{}, nil // the disk is written to
}

// joints searches where pieces meet.
func (t *toaster) joints(before, here []piece, seq uint32) {
	for _, a := range before {
		for _, b := range here {
			left, right := a.data[max(len(a.data)-reach, 0):], b.data[:min(len(b.data), reach)]
			buf := t.room(len(left) + len(right))
			copy(buf, left)
			copy(buf[len(left):], right)
			t.search(buf, 0, len(left), origin{base: a.at, within: "TOAST value, pieces " + strconv.Itoa(int(seq)-1) + " and " + strconv.Itoa(int(seq)), record: noRecord})
		}
	}
}

// ways decodes a value in all the ways in which its pieces may belong together, if it is compressed: the first begins with the word
// that tells length and method then.
func (t *toaster) ways(whole [][]piece) {
	ways := 1
	for _, list := range whole {
		if ways *= len(list); ways > maxWays {
			t.count.Unresolved++
			ways = maxWays
			break
		}
	}
	if len(whole) == 0 {
		return
	}
	for k := range ways {
		first := whole[0][k%len(whole[0])]
		if len(first.data) < 5 {
			continue
		}
		info := binary.LittleEndian.Uint32(first.data)
		if info>>30 > methodLZ4 || info&(1<<30-1) < 32 {
			continue
		}
		var in []byte
		for rest, i := k, 0; i < len(whole); i++ {
			in = append(in, whole[i][rest%len(whole[i])].data...)
			rest /= len(whole[i])
		}
		t.decode(in[4:], info, origin{base: first.at, within: "TOAST value (" + methodName(info) + ")", record: noRecord})
	}
}
