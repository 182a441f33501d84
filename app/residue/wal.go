package residue

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"tidemark/block"
)

// WAL is pages of 8 KiB, each with a head, and records that go on from page to page: src/include/access/xlog_internal.h and
// xlogrecord.h of PostgreSQL 13 to 17.
const (
	walPageSize  = 8192
	walAlign     = 512 // pages are sought at every sector
	shortHead    = 24
	longHead     = 40
	continues    = 1 // flags of a page's head: it begins with the rest of a record
	hasLongHead  = 2
	recordHead   = 24
	maxRecord    = 1 << 30
	lastOldMagic = 0xd10d // of PostgreSQL 14; 15 has other flags of page images
)

// walPage is where a page of WAL lies.
type walPage struct {
	addr uint64 // its position in the log
	off  int64  // on the disk
}

// walHead is the head of a page.
type walHead struct {
	magic, flags uint16
	addr         uint64
	rest         uint32 // bytes left of the record that it begins with
}

// parseWALHead reads the head of a page, of 24 bytes at least; ok if it can be one.
func parseWALHead(p []byte) (h walHead, ok bool) {
	h = walHead{binary.LittleEndian.Uint16(p), binary.LittleEndian.Uint16(p[2:]), binary.LittleEndian.Uint64(p[8:]), binary.LittleEndian.Uint32(p[16:])}
	ok = h.magic>>8 == 0xd1 && h.flags < 0x10 && h.addr%walPageSize == 0 && h.addr != 0 && h.rest < maxRecord
	return h, ok
}

func (h walHead) size() int {
	if h.flags&hasLongHead != 0 {
		return longHead
	}
	return shortHead
}

// first is where in the page the first record begins that does not come from the page before; walPageSize if none does.
func (h walHead) first() int {
	at := h.size()
	if h.flags&continues != 0 {
		at += align8(int(h.rest))
	}
	return min(at, walPageSize)
}

func align8(n int) int { return (n + 7) &^ 7 }

// walPages notes the pages of WAL that begin in buf[from:to].
func (w *worker) walPages(buf []byte, from, to int, base int64) {
	skip := int(-(base + int64(from)) & (walAlign - 1))
	for i := from + skip; i < to && i+shortHead <= len(buf); i += walAlign {
		if h, ok := parseWALHead(buf[i:]); ok {
			w.pages = append(w.pages, walPage{h.addr, base + int64(i)})
		}
	}
}

// log is the second pass: records of WAL that go on from one page to another, wherever that lies, and compressed page images.
func (s *scanner) log(ctx context.Context) error {
	slices.SortFunc(s.pages, func(a, b walPage) int { return cmp.Or(cmp.Compare(a.addr, b.addr), cmp.Compare(a.off, b.off)) })
	return s.parallel(ctx, len(s.pages), func(w *worker) func(int) error {
		r := &walReader{pages: s.pages, disk: s.disk}
		return func(i int) error { return w.walPage(r, i) }
	})
}

// parallel calls the functions that begin makes, one for each worker, for 0 to n-1.
func (s *scanner) parallel(ctx context.Context, n int, begin func(*worker) func(int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for k := range s.opts.Workers {
		g.Go(func() error {
			w := newWorker(s)
			do := begin(w)
			for i := k; i < n; i += s.opts.Workers {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err := do(i); err != nil {
					return err
				}
				if w.err != nil {
					return w.err
				}
				w.flush()
			}
			return nil
		})
	}
	return g.Wait()
}

// walPage searches the records that begin in page number i.
func (w *worker) walPage(r *walReader, i int) error {
	page, err := r.page(i)
	if err != nil {
		return err
	}
	h, ok := parseWALHead(page)
	if !ok { // the disk is written to
		return nil
	}
	page = slices.Clone(page)
	for at := h.first(); at+4 <= len(page); {
		size := int(binary.LittleEndian.Uint32(page[at:]))
		if size < recordHead || size > maxRecord {
			break
		}
		rec, apart := page[at:min(at+size, len(page))], at+size > len(page)
		if apart {
			if rec, err = r.record(i, at); err != nil {
				return err
			}
		}
		w.record(rec, apart, h.magic, origin{base: r.pages[i].off + int64(at), record: i*walPageSize + at, part: wholeRecord})
		at += align8(size)
	}
	return nil
}

// record searches one record, as far as it is there: as it is if it lies in several pages, and its compressed page images.
func (w *worker) record(rec []byte, apart bool, magic uint16, o origin) {
	if apart {
		o.within = "WAL record"
		w.inspect(rec, 0, len(rec), o)
	}
	for k, img := range parseRecord(rec, magic) {
		if img.method == "" {
			continue
		}
		if page := w.image(img); page != nil {
			w.count.WALImages++
			o.within, o.part = "page image in WAL ("+img.method+")", k
			w.inspect(page, 0, len(page), o)
		}
	}
}

// walReader puts records together.
type walReader struct {
	pages []walPage
	disk  block.Reader
	buf   [walPageSize]byte
	rec   []byte
}

// page reads page number i, or what there is of it at the end of the disk.
func (r *walReader) page(i int) ([]byte, error) {
	off := r.pages[i].off
	p := r.buf[:min(walPageSize, r.disk.Size()-off)]
	if _, err := r.disk.ReadAt(p, off); err != nil {
		return nil, fmt.Errorf("read a page of WAL at %d: %w", off, err)
	}
	return p, nil
}

// record returns the record that begins in page i at offset at, or what there is of it, until the next call. It has a word of zeros behind it.
func (r *walReader) record(i, at int) ([]byte, error) {
	page, err := r.page(i)
	if err != nil {
		return nil, err
	}
	if at+4 > len(page) {
		return nil, nil
	}
	size := int(binary.LittleEndian.Uint32(page[at:]))
	r.rec = append(r.rec[:0], page[at:min(at+size, len(page))]...)
	for len(r.rec) < size {
		more, next, err := r.next(i, size-len(r.rec))
		if err != nil {
			return nil, err
		}
		if more == nil {
			break
		}
		r.rec, i = append(r.rec, more...), next
	}
	n := len(r.rec)
	r.rec = append(r.rec, make([]byte, 8)...)
	return r.rec[:n], nil
}

// next returns what page i is followed by of a record of which rest bytes are missing. Of several pages that say so, it takes the one that
// lies behind page i on the disk, and else the first.
func (r *walReader) next(i, rest int) (more []byte, next int, err error) {
	here := r.pages[i]
	first, _ := slices.BinarySearchFunc(r.pages, here.addr+walPageSize, func(p walPage, addr uint64) int { return cmp.Compare(p.addr, addr) })
	last := first
	for last < len(r.pages) && r.pages[last].addr == here.addr+walPageSize {
		last++
	}
	order := make([]int, 0, last-first)
	for k := first; k < last; k++ {
		if r.pages[k].off == here.off+walPageSize {
			order = slices.Insert(order, 0, k)
		} else {
			order = append(order, k)
		}
	}
	for _, k := range order {
		page, err := r.page(k)
		if err != nil {
			return nil, 0, err
		}
		h, ok := parseWALHead(page)
		if from := h.size(); ok && h.flags&continues != 0 && int(h.rest) == rest && from <= len(page) {
			return page[from:min(from+rest, len(page))], k, nil
		}
	}
	return nil, 0, nil
}

// pageImage is a full-page image in a record.
type pageImage struct {
	method string // pglz, lz4, zstd; empty: it is as it is
	size   int    // when decoded
	data   []byte // as far as it is there
}

// walParser reads the heads in a record.
type walParser struct {
	p    []byte
	size int  // of the record, which may be more than there is
	at   int  // read so far
	data int  // bytes of data that the heads announced
	bad  bool // the record is none, or ends here
}

func (r *walParser) bytes(n int) []byte {
	if r.bad || r.at+n > len(r.p) {
		r.bad = true
		return make([]byte, n)
	}
	r.at += n
	return r.p[r.at-n : r.at]
}

func (r *walParser) u8() int  { return int(r.bytes(1)[0]) }
func (r *walParser) u16() int { return int(binary.LittleEndian.Uint16(r.bytes(2))) }

// parseRecord returns the page images of a record; those that are not compressed too, for their numbers. It reads as far as the record is there and makes sense.
func parseRecord(rec []byte, magic uint16) []pageImage {
	if len(rec) < recordHead {
		return nil
	}
	r := &walParser{p: rec, size: int(binary.LittleEndian.Uint32(rec)), at: recordHead}
	type place struct{ img, before int }
	var images []pageImage
	var lengths []place // of images, and of the data before them
	between := 0
	for !r.bad && r.size-r.at > r.data {
		id := r.u8()
		switch {
		case id == 255: // main data, short
			r.data += r.u8()
		case id == 254: // main data, long
			r.data += int(binary.LittleEndian.Uint32(r.bytes(4)))
		case id == 253: // origin
			r.bytes(2)
			continue
		case id == 252: // top-level transaction
			r.bytes(4)
			continue
		case id > 32:
			return nil
		default:
			img, stored, data := r.block(magic)
			if stored > 0 {
				images = append(images, img)
				lengths = append(lengths, place{stored, between})
				between = 0
			}
			between += data
			continue
		}
		break // main data is announced last
	}
	at := r.at
	for i, l := range lengths {
		at += l.before
		images[i].data = rec[min(at, len(rec)):min(at+l.img, len(rec))]
		at += l.img
	}
	return images
}

// block reads the head of a block reference behind its number: its image, the bytes that this takes, and the bytes of data.
func (r *walParser) block(magic uint16) (img pageImage, stored, data int) {
	flags := r.u8()
	data = r.u16()
	r.data += data
	if flags&0x10 != 0 {
		stored = r.u16()
		r.data += stored
		r.u16() // where the hole is
		info := r.u8()
		hole := 0
		if img.method = imageMethod(info, magic); img.method != "" && info&1 != 0 {
			hole = r.u16()
		}
		img.size = max(maxVarlena-hole, 0)
	}
	if flags&0x80 == 0 {
		r.bytes(12) // relation
	}
	r.bytes(4) // block
	return img, stored, data
}

// imageMethod is how a page image is compressed.
func imageMethod(info int, magic uint16) string {
	switch {
	case magic <= lastOldMagic && info&2 != 0, magic > lastOldMagic && info&4 != 0:
		return "pglz"
	case magic <= lastOldMagic:
		return ""
	case info&8 != 0:
		return "lz4"
	case info&16 != 0:
		return "zstd"
	}
	return ""
}

// image decodes a page image, as far as it decodes. What it returns has a word of zeros behind it, and lasts until the next call.
func (w *worker) image(img pageImage) []byte {
	if w.page == nil {
		w.page = newOutput()
	}
	w.page.reset(img.size, func([]byte, int, int) {})
	switch img.method {
	case "lz4":
		lz4(w.page, img.data)
	case "pglz":
		pglz(w.page, img.data)
	case "zstd":
		w.zstd(img)
	}
	buf := w.page.buf
	if len(buf) == 0 {
		return nil
	}
	clear(buf[len(buf) : len(buf)+8])
	return buf
}

func (w *worker) zstd(img pageImage) {
	if w.zdec == nil {
		w.zdec, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20)) // these options are valid
	}
	out, _ := w.zdec.DecodeAll(img.data, nil) // what is cut or damaged gives what comes before
	w.page.literal(out)
}
