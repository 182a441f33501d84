package journal

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"tidemark/internal/vfs"
)

// Segment is one file of a journal, as readers hold it. Offsets into it stay
// good for as long as it is held, also after the journal trimmed it.
type Segment struct {
	j      *Journal
	head   segmentHeader
	path   string
	refs   atomic.Int64 // the journal's own, and one for each Acquire
	sealed atomic.Bool
	// lingers: it is trimmed, and counted in the journal's lingering.
	lingers atomic.Bool

	// written is how far the file holds what was appended; beyond it the bytes are in the journal's buffers.
	written atomic.Int64

	mu      sync.RWMutex // held for reading while file is read, and else by who replaces it
	file    *opened      // nil: closed, or archived and not loaded
	loading sync.Mutex   // held by who loads an archived segment

	// Guarded by the journal's mu:
	entries []entry // in memory while the segment is not sealed
	end     int64   // where its records end
	lastPos uint64
	last    int64 // time of the last record
	space   int64 // up to where space is allocated
	footed  bool  // the footer is written: no more records
	packed  int64 // bytes of its file, if that is a packed one
	dense   bool  // packing does not make it smaller
	// moving: it is on its way to the archive, and nobody trims it. stored: the archive may have it. away: it is there alone.
	moving, stored, away bool
	lost                 error  // why it cannot be read: it is away, and the archive does not have it
	count                uint64 // of a lost one: how many segments it stands for
}

// opened is a segment's file.
type opened struct {
	file   source
	packed *packed // nil: the records lie in the file as they are
}

// source is where the bytes of a segment come from: a file, or the archive.
type source interface {
	io.ReaderAt
	io.Closer
}

// Place is where a record's payload begins.
type Place struct {
	Segment *Segment
	Off     uint32
}

// SegmentInfo describes a segment.
type SegmentInfo struct {
	Number            uint64
	FirstPos, LastPos uint64 // LastPos < FirstPos: no records
	After, Last       int64  // times: newest before it, its last
	Bytes             int64  // that its records take on disk
	Sealed            bool
	Archived          bool  // they take that in the archive
	Missing           error // not nil: it should be in the archive, and is not
}

// Number is the segment's place in the order of segments.
func (s *Segment) Number() uint64 { return s.head.number }

// Acquire keeps the segment readable until Release.
func (s *Segment) Acquire() { s.refs.Add(1) }

// Release undoes one Acquire.
func (s *Segment) Release() {
	if s.refs.Add(-1) > 0 {
		return
	}
	s.swap(nil)
	if s.lingers.Swap(false) {
		s.j.lingering.Add(-1)
	}
}

// swap lets readers have another file from now on, and closes the one before.
func (s *Segment) swap(next *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.file; o != nil && (next == nil || o.file != next.file) {
		if err := o.file.Close(); err != nil {
			s.j.o.Logger.Warn("closing a journal segment", "segment", s.path, "error", err)
		}
	}
	s.file = next
}

// errReleased: somebody uses a segment that he does not hold.
var errReleased = errors.New("the segment was released")

// errAway: somebody would write to a segment that is in the archive.
var errAway = errors.New("the segment is in the archive")

// handle returns the file of a segment that is written to: nobody replaces that.
func (s *Segment) handle() (vfs.File, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.file == nil {
		return nil, errReleased
	}
	return fileOf(s.file)
}

// reading calls fn with the segment's file, which stays until it returns.
func (s *Segment) reading(fn func(*opened) error) error {
	s.mu.RLock()
	if s.file == nil && s.refs.Load() > 0 {
		s.mu.RUnlock()
		if err := s.load(); err != nil {
			return err
		}
		s.mu.RLock()
	}
	defer s.mu.RUnlock()
	if s.file == nil {
		return errReleased
	}
	return fn(s.file)
}

// ReadAt fills p from offset off, which must lie within one record's payload.
// It does not check the payload's checksum; [Journal.Verify] does.
func (s *Segment) ReadAt(p []byte, off uint32) error {
	if len(p) == 0 {
		return nil
	}
	if int64(off)+int64(len(p)) > s.written.Load() && s.j.readBuffered(s, p, int64(off)) {
		return nil
	}
	if err := s.readFile(p, int64(off)); err != nil {
		return fmt.Errorf("read %d bytes at %d of journal segment %s: %w", len(p), off, s.path, err)
	}
	return nil
}

func (s *Segment) readFile(p []byte, off int64) error {
	return s.reading(func(o *opened) error {
		if o.packed != nil {
			return o.packed.readAt(o.file, &s.j.blocks, p, off)
		}
		_, err := o.file.ReadAt(p, off)
		return err
	})
}

// index returns the entries of the segment's records.
func (s *Segment) index() ([]entry, error) {
	s.j.mu.Lock()
	entries := s.entries
	s.j.mu.Unlock()
	if entries != nil || !s.sealed.Load() {
		return entries, nil
	}
	err := s.reading(func(o *opened) (err error) {
		entries, err = s.readEntries(o)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("segment %s, positions %d to %d: %w", s.path, s.head.firstPos, s.lastPos, err)
	}
	return entries, nil
}

// readEntries reads the index of a sealed segment's file.
func (s *Segment) readEntries(o *opened) ([]entry, error) {
	if p := o.packed; p != nil {
		entries, err := readIndex(o.file, p.index, p.footer, s.head.after)
		if f, ok := o.file.(*far); ok && errors.Is(err, ErrCorrupt) {
			return s.farEntries(f, p, err)
		}
		return entries, err
	}
	f, err := fileOf(o)
	if err != nil {
		return nil, err
	}
	t, ok, err := readTrailer(f)
	if err == nil && !ok {
		err = fmt.Errorf("%w: it has lost its trailer", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	return readIndex(o.file, t.end, t, s.head.after)
}

// fileOf returns the file of a segment that is not packed: it is in the journal's directory.
func fileOf(o *opened) (vfs.File, error) {
	f, ok := o.file.(vfs.File)
	if !ok {
		return nil, errAway
	}
	return f, nil
}

func readTrailer(f vfs.File) (t trailer, ok bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return t, false, err
	}
	if st.Size() < segmentHeaderSize+trailerSize {
		return t, false, nil
	}
	var b [trailerSize]byte
	if _, err := f.ReadAt(b[:], st.Size()-trailerSize); err != nil {
		return t, false, err
	}
	t, ok = parseTrailer(b[:], st.Size())
	return t, ok, nil
}

// readIndex reads the index that lies at offset at of a file.
func readIndex(f io.ReaderAt, at int64, t trailer, after int64) ([]entry, error) {
	if t.length > maxIndex {
		return nil, fmt.Errorf("%w: an index of %d bytes", ErrCorrupt, t.length)
	}
	b := make([]byte, t.length)
	if _, err := f.ReadAt(b, at); err != nil {
		return nil, err
	}
	return parseIndex(b, t, after)
}

// recordAt describes the i-th record of the segment.
func (s *Segment) recordAt(e *entry, i int) Record {
	return Record{Pos: s.head.firstPos + uint64(i), Time: e.time, Kind: e.kind, Disk: e.disk, Off: e.off, Len: e.len}
}

// verify reads all records with entries[from:to] and compares their checksums.
func (s *Segment) verify(entries []entry, from, to int) error {
	buf := make([]byte, 0, 64<<10)
	for i := from; i < to; i++ {
		e := &entries[i]
		n := headerSize + int(e.size)
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		err := s.ReadAt(buf[:n], e.at)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		var h header
		if err == nil {
			h, err = parseRecord(buf[:n], s.head.salt())
		}
		if err != nil || h.Pos != s.head.firstPos+uint64(i) {
			return fmt.Errorf("%w: the record at position %d (disk %d, offset %d, %d bytes) in segment %s at %d does not match its checksum",
				ErrCorrupt, s.head.firstPos+uint64(i), e.disk, e.off, e.len, s.path, e.at)
		}
	}
	return nil
}
