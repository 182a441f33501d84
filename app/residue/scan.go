package residue

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"tidemark"
	"tidemark/block"
)

const (
	// pieceSize is how much of a disk is read at once: large enough that reading what lies behind again costs little.
	pieceSize = 4 << 20
	// tailSize is read behind a piece, because what begins in it may end there: a page of PostgreSQL, of whatever size.
	tailSize = 64 << 10
	// leadSize is read before a piece, and before data that follows a hole: zeros of the hole may belong to a pattern or
	// to the head of a NUMERIC.
	leadSize = maxPattern
	// listing bounds the list of extents that is held at a time.
	listing = 16 << 30
)

// Finding is a place where a value was found. It never has the value in it.
type Finding struct {
	Disk     string `json:"disk,omitempty"`   // as the caller calls it
	Offset   int64  `json:"offset"`           // in bytes, of the value; of what it is compressed or in pieces in, where Within says so
	Value    int    `json:"value"`            // its number in the set
	Encoding string `json:"encoding"`         // UTF-8, Latin-1, UTF-16LE, UTF-16BE, int8, numeric, uuid, bytes, digits
	Within   string `json:"within,omitempty"` // what had to be decoded to find it; empty if it lies there as it is
	Place    string `json:"place,omitempty"`  // what lies at Offset, by the Describer
}

// Describer knows what lies on a disk.
type Describer interface {
	// Describe says what lies at an offset, in a few words. It may be called concurrently.
	Describe(off int64) string
}

// Options of a scan.
type Options struct {
	Disk     string                  // name of the disk in findings
	Places   Describer               // if not nil, describes the places of findings
	Workers  int                     // processors to use; 0: all
	Progress func(done, total int64) // if not nil, is told of bytes searched; total is the size of the disk. One call at a time
}

// Result is what a scan saw.
type Result struct {
	Size     int64 `json:"size"`     // of the disk, in bytes
	Searched int64 `json:"searched"` // of these, what is not a hole
	Findings int   `json:"findings"` // reported; one value at one place may be found in more than one way
	Stopped  bool  `json:"stopped"`  // the report said that it was enough

	Compressed int64 `json:"compressed"` // compressed values that were decoded
	Chunks     int64 `json:"chunks"`     // pieces of TOAST values
	WALPages   int64 `json:"wal_pages"`
	WALImages  int64 `json:"wal_images"` // compressed page images in WAL
	// Unresolved counts TOAST values whose pieces fit together in too many ways to try all.
	Unresolved int64 `json:"unresolved"`
}

// Clean reports whether the whole disk was searched and nothing was found.
func (r *Result) Clean() bool { return r.Findings == 0 && r.Unresolved == 0 && !r.Stopped }

// Scan searches a disk for fingerprints. Each finding goes to report, one call at a time, in no order; when report
// returns false the scan ends early, without error.
//
// The whole of the disk is searched but for what [block.Extents] calls holes, which are zeros. Scan returns the error of ctx
// as kind Cancelled, and of the disk as it is; with any error nothing is said about the disk.
func Scan(ctx context.Context, disk block.Reader, prints *Fingerprints, opts Options, report func(Finding) bool) (*Result, error) {
	s := &scanner{disk: disk, prints: prints, opts: opts, report: report, res: Result{Size: disk.Size()}}
	if s.opts.Workers <= 0 {
		s.opts.Workers = runtime.GOMAXPROCS(0)
	}
	err := s.bytes(ctx)
	if err == nil {
		err = s.log(ctx)
	}
	if err == nil {
		err = s.toast(ctx)
	}
	if ctx.Err() != nil {
		return nil, tidemark.Errorf(tidemark.Cancelled, "the search for residue was cancelled: %w", ctx.Err())
	}
	if err != nil && !s.stopped.Load() {
		return nil, err
	}
	s.res.Stopped = s.stopped.Load()
	return &s.res, nil
}

// errEnough ends the workers when the report wants no more.
var errEnough = fmt.Errorf("enough was found")

// scanner is one scan.
type scanner struct {
	disk    block.Reader
	prints  *Fingerprints
	opts    Options
	report  func(Finding) bool
	stopped atomic.Bool

	mu     sync.Mutex // guards all below
	res    Result
	done   int64
	chunks []chunk
	pages  []walPage
	heads  []int64 // offsets of pages, sorted, in the third pass
}

// span is a part of the disk.
type span struct{ off, end int64 }

// bytes is the first pass, over all bytes of the disk.
func (s *scanner) bytes(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan span)
	g.Go(func() error {
		defer close(pieces)
		return s.pieces(ctx, pieces)
	})
	for range s.opts.Workers {
		g.Go(func() error {
			w := newWorker(s)
			for p := range pieces {
				if err := w.piece(p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// pieces sends what is not a hole, in pieces. The extents are listed first and sent then: the disk may hold a lock while it lists.
func (s *scanner) pieces(ctx context.Context, out chan<- span) error {
	size := s.disk.Size()
	for off := int64(0); off < size; off += listing {
		end := min(off+listing, size)
		data, err := s.data(ctx, off, end)
		if err != nil {
			return fmt.Errorf("list the extents of the disk: %w", err)
		}
		for _, e := range data {
			for at := e.off; at < e.end; at = min(at+pieceSize, e.end) {
				select {
				case out <- span{at, min(at+pieceSize, e.end)}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		s.progress(0, end)
	}
	return nil
}

// data lists what is not a hole in [off, end). A hole of less than tailSize counts as data: it would be read anyway.
func (s *scanner) data(ctx context.Context, off, end int64) (list []span, err error) {
	err = block.Extents(s.disk, off, end-off, func(e block.Extent) bool {
		from, to := max(e.Off-leadSize, off), e.Off+e.Len
		if n := len(list) - 1; e.Hole {
		} else if n >= 0 && from <= list[n].end+tailSize {
			list[n].end = to
		} else {
			list = append(list, span{from, to})
		}
		return ctx.Err() == nil
	})
	return list, err
}

// progress counts bytes searched. Holes are counted when the pieces before them are on their way.
func (s *scanner) progress(n, reached int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.res.Searched += n
	s.done = max(s.done, reached)
	if s.opts.Progress != nil {
		s.opts.Progress(s.done, s.res.Size)
	}
}

// worker searches pieces. It has buffers of its own.
type worker struct {
	*scanner
	buf    []byte
	run    digitRun
	out    *output
	page   *output // a page image of WAL
	zdec   *zstd.Decoder
	chunks []chunk
	pages  []walPage
	count  Result // what is added to the scan's
	err    error  // errEnough
}

func newWorker(s *scanner) *worker { return &worker{scanner: s, out: newOutput()} }

// piece reads and searches one piece of the disk.
func (w *worker) piece(p span) error {
	base := max(p.off-leadSize, 0)
	n := int(min(p.end+tailSize, w.disk.Size()) - base)
	buf := w.room(n)
	if _, err := w.disk.ReadAt(buf, base); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, base, err)
	}
	from, to := int(p.off-base), int(p.end-base)
	w.inspect(buf, from, to, origin{base: base, record: noRecord})
	w.walPages(buf, from, to, base)
	w.flush()
	w.progress(p.end-p.off, p.end)
	return w.err
}

// room returns a buffer of n bytes with zeros of a word behind them.
func (w *worker) room(n int) []byte {
	if cap(w.buf) < n+8 {
		w.buf = make([]byte, n+8)
	}
	clear(w.buf[n : n+8])
	return w.buf[:n]
}

// flush hands over what was gathered.
func (w *worker) flush() {
	s := w.scanner
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = append(s.chunks, w.chunks...)
	s.pages = append(s.pages, w.pages...)
	s.res.Chunks += int64(len(w.chunks))
	s.res.WALPages += int64(len(w.pages))
	s.res.Compressed += w.count.Compressed
	s.res.WALImages += w.count.WALImages
	s.res.Unresolved += w.count.Unresolved
	w.chunks, w.pages, w.count = w.chunks[:0], w.pages[:0], Result{}
}

// origin says where bytes in a buffer come from.
type origin struct {
	base   int64  // offset on the disk of the buffer, or of what it was decoded from
	within string // what that is; empty: the buffer is of the disk itself
	record int    // where the record begins that the buffer is of, as number of its WAL page times walPageSize plus offset, or noRecord
	part   int    // number of the page image in the record, or wholeRecord
}

const (
	noRecord    = -1
	wholeRecord = -1
)

func (o origin) offset(i int) int64 {
	if o.within == "" {
		return o.base + int64(i)
	}
	return o.base
}

// inspect searches bytes of PostgreSQL's files, or of anything else: for what begins in buf[from:to].
func (w *worker) inspect(buf []byte, from, to int, o origin) {
	w.search(buf, from, to, o)
	w.compressed(buf, from, to, o)
}

// search looks for text, binary forms and digits.
func (w *worker) search(buf []byte, from, to int, o origin) {
	if w.err != nil {
		return
	}
	w.prints.text.search(buf, from, to, func(e *entry, start int) { w.found(e, o, start) })
	if len(w.prints.digits.entries) > 0 {
		w.run.search(w.prints.digits, buf, from, to, func(e *entry, start int) { w.found(e, o, start) })
	}
}

// found reports a finding.
func (w *worker) found(e *entry, o origin, start int) {
	s := w.scanner
	f := Finding{Disk: s.opts.Disk, Offset: o.offset(start), Value: int(e.number), Encoding: e.form.String(), Within: o.within}
	if s.opts.Places != nil && !s.stopped.Load() {
		f.Place = s.opts.Places.Describe(f.Offset)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Load() {
		w.err = errEnough
		return
	}
	s.res.Findings++
	if !s.report(f) {
		s.stopped.Store(true)
		w.err = errEnough
	}
}
