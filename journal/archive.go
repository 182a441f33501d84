package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"tidemark/internal/vfs"
)

// Archive is where segments rest that are rarely read. What is stored there is whole and durable, or absent.
type Archive interface {
	// Store stores the file at path, which nobody writes to any more, under a name. An error that wraps
	// fs.ErrExist says that there is a file of that name.
	Store(ctx context.Context, name, path string, size int64) error
	// ReadAt fills p from offset off of a file. An error that wraps fs.ErrNotExist says that there is none.
	ReadAt(name string, p []byte, off int64) error
	// Delete deletes a file; that it is absent is no error.
	Delete(ctx context.Context, name string) error
}

// Archived is a file in the archive.
type Archived struct {
	Name string
	Size int64
}

// ErrMissing: a segment that was archived is not in the archive.
var ErrMissing = errors.New("a segment of the journal is missing in the archive")

// archiveName is the name of a segment in the archive: JOURNAL/NUMBER-FIRST-LAST-AFTER-TIME, in hexadecimal digits. It
// says all that must be known to find out whether the segment is needed.
type archiveName struct {
	id          [16]byte
	number      uint64
	first, last uint64 // positions
	after, time int64  // of the newest record before it, and of its last
}

func (n *archiveName) String() string {
	return fmt.Sprintf("%x/%016x-%016x-%016x-%016x-%016x", n.id, n.number, n.first, n.last, uint64(n.after), uint64(n.time))
}

// parseArchiveName is the reverse of String; it takes nothing that String does not make.
func parseArchiveName(s string) (n archiveName, ok bool) {
	id, rest, _ := strings.Cut(s, "/")
	fields := strings.Split(rest, "-")
	if len(id) != 32 || len(fields) != 5 {
		return n, false
	}
	for i := range n.id {
		b, err := strconv.ParseUint(id[2*i:2*i+2], 16, 8)
		if err != nil {
			return n, false
		}
		n.id[i] = byte(b)
	}
	var v [5]uint64
	for i := range v {
		var err error
		if v[i], err = strconv.ParseUint(fields[i], 16, 64); err != nil {
			return n, false
		}
	}
	n.number, n.first, n.last, n.after, n.time = v[0], v[1], v[2], int64(v[3]), int64(v[4])
	return n, n.String() == s && n.number > 0 && n.first > 0 && n.last >= n.first
}

// far is a segment's file in the archive. Its first bytes and its end, from the table on, are kept here as an
// outline: who looks for records reads no further.
type far struct {
	s    *Segment
	name string
	size int64
	tail int64 // where the part of the outline that is the file's end begins; 0: there is no outline
}

// ReadAt implements [io.ReaderAt].
func (f *far) ReadAt(p []byte, off int64) (int, error) {
	if f.tail > 0 && (off >= f.tail || off+int64(len(p)) <= segmentHeaderSize) {
		at := off
		if off >= f.tail {
			at = off - f.tail + segmentHeaderSize
		}
		if f.readOutline(p, at) == nil {
			return len(p), nil
		}
	}
	err := f.s.j.o.Archive.ReadAt(f.name, p, off)
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(ErrMissing, err)
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// readOutline reads from the outline. Whatever is wrong with it, the archive has the same bytes.
func (f *far) readOutline(p []byte, at int64) error {
	o, err := f.s.j.fs.Open(f.s.outline())
	if err != nil {
		return err
	}
	_, err = o.ReadAt(p, at)
	return errors.Join(err, o.Close())
}

// Close implements [io.Closer].
func (f *far) Close() error { return nil }

// outlinePrefix begins the name of an outline, which ends in the segment's number.
const outlinePrefix = "archived-"

// empty reports whether a segment that takes no more records has none.
func (s *Segment) empty() bool {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	return s.lastPos < s.head.firstPos
}

func (s *Segment) outline() string { return s.j.outlineOf(s.head.number) }

func (j *Journal) outlineOf(number uint64) string {
	return j.fs.PathJoin(j.dir, fmt.Sprintf("%s%016x", outlinePrefix, number))
}

// name is what the segment is called in the archive.
func (s *Segment) name() string {
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	n := archiveName{id: s.head.id, number: s.head.number, first: s.head.firstPos, last: s.lastPos, after: s.head.after, time: s.last}
	return n.String()
}

// load learns what the file of an archived segment holds, from its outline or, if that is damaged or lost, from the archive.
func (s *Segment) load() error {
	s.loading.Lock()
	defer s.loading.Unlock()
	s.mu.RLock()
	known := s.file != nil || s.refs.Load() <= 0
	s.mu.RUnlock()
	if known {
		return nil
	}
	s.j.mu.Lock()
	lost, size := s.lost, s.packed
	s.j.mu.Unlock()
	if lost != nil {
		return lost
	}
	f := &far{s: s, name: s.name(), size: size}
	if st, err := s.j.fs.Stat(s.outline()); err == nil && st.Size() > segmentHeaderSize && st.Size() < size {
		f.tail = size - (st.Size() - segmentHeaderSize)
	}
	p, err := s.openFar(f)
	if errors.Is(err, ErrCorrupt) && f.tail > 0 {
		f.tail = 0
		p, err = s.openFar(f)
	}
	if err != nil {
		return err
	}
	if f.tail == 0 && s.keepOutline(f, p) == nil {
		f.tail = p.tableAt()
	}
	s.swap(&opened{file: f, packed: p})
	if s.refs.Load() <= 0 { // it was released meanwhile
		s.swap(nil)
	}
	return nil
}

// openFar reads the header and the table of a segment in the archive, and checks that it is the one that its name says.
func (s *Segment) openFar(f *far) (*packed, error) {
	if f.size < segmentHeaderSize+packedTrailerSize {
		return nil, fmt.Errorf("%w: a packed segment is cut", ErrCorrupt)
	}
	var b [segmentHeaderSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	h, err := parseSegmentHeader(b[:])
	if err != nil {
		return nil, err
	}
	p, err := openPacked(f, f.size)
	if err != nil {
		return nil, err
	}
	s.j.mu.Lock()
	defer s.j.mu.Unlock()
	if !h.packed || h.id != s.head.id || h.number != s.head.number || h.firstPos != s.head.firstPos || h.after != s.head.after ||
		uint64(p.footer.records) != s.lastPos-s.head.firstPos+1 || f.tail > 0 && f.tail != p.tableAt() {
		return nil, fmt.Errorf("%w: a segment in the archive is not the one that its name says", ErrCorrupt)
	}
	s.end = p.end
	s.written.Store(p.end)
	return p, nil
}

// tableAt is where the blocks end.
func (p *packed) tableAt() int64 { return p.at[len(p.at)-1] }

// keepOutline writes the outline of a segment whose file is f.
func (s *Segment) keepOutline(f io.ReaderAt, p *packed) error {
	size := p.index + p.footer.length + packedTrailerSize
	b := make([]byte, segmentHeaderSize+size-p.tableAt())
	if _, err := f.ReadAt(b[:segmentHeaderSize], 0); err != nil {
		return err
	}
	if _, err := f.ReadAt(b[segmentHeaderSize:], p.tableAt()); err != nil {
		return err
	}
	if err := vfs.WriteFile(s.j.fs, s.outline(), b); err != nil {
		return fmt.Errorf("keep the outline of journal segment %s: %w", s.path, err)
	}
	return nil
}

// Moved says what a [Journal.Archive] did.
type Moved struct {
	Segments int
	Bytes    int64 // that they take
}

// Archive moves the segments whose records are all at or before upTo to the archive, the oldest first. They are
// packed first if they are not. Readers notice nothing. It may run beside everything else, and be cut at any time: a segment
// is in the journal's directory until the archive has it durably.
func (j *Journal) Archive(ctx context.Context, upTo uint64) (done Moved, err error) {
	if j.o.Archive == nil {
		return done, nil
	}
	j.rewriting.Lock()
	defer j.rewriting.Unlock()
	for ctx.Err() == nil {
		s := j.nextNear(upTo)
		if s == nil {
			return done, nil
		}
		err := j.archive(ctx, s, &done)
		j.mu.Lock()
		s.moving = false
		j.mu.Unlock()
		s.Release()
		if err != nil {
			return done, fmt.Errorf("archive journal segment %s: %w", s.path, noSpace(err))
		}
	}
	return done, ctx.Err()
}

// nextNear returns the oldest segment that is in the directory, acquired and kept from being trimmed, or nil.
func (j *Journal) nextNear(upTo uint64) *Segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil
	}
	for _, s := range j.segments[:len(j.segments)-1] {
		if s.away {
			continue
		}
		if s.lastPos > upTo {
			return nil
		}
		s.Acquire()
		s.moving = true
		return s
	}
	return nil
}

// archive moves one segment. The caller holds rewriting and has marked it as moving.
func (j *Journal) archive(ctx context.Context, s *Segment, done *Moved) error {
	if s.empty() {
		return j.leaveEmpty(s)
	}
	size, err := j.sizePacked(ctx, s)
	if err != nil {
		return err
	}
	name := s.name()
	j.mu.Lock()
	s.stored = true // from now on it may be there
	j.mu.Unlock()
	if err := j.store(ctx, s, name, size); err != nil {
		return err
	}
	f := &far{s: s, name: name, size: size}
	p, err := s.openFar(f)
	if err == nil {
		err = s.keepOutline(f, p)
	}
	if err != nil {
		return err
	}
	f.tail = p.tableAt()
	if err := j.leave(s, &opened{file: f, packed: p}); err != nil {
		return err
	}
	done.Segments++
	done.Bytes += size
	return nil
}

// sizePacked returns the length of the segment's file, which it packs if it is not.
func (j *Journal) sizePacked(ctx context.Context, s *Segment) (int64, error) {
	if size := j.packedSize(s); size > 0 {
		return size, nil
	}
	if err := j.rewrite(ctx, s, true, func() {}, new(Rewritten)); err != nil {
		return 0, err
	}
	if size := j.packedSize(s); size > 0 {
		return size, nil
	}
	return 0, ErrClosed
}

func (j *Journal) packedSize(s *Segment) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return s.packed
}

// store makes sure that the archive holds the segment's file under a name. An older try may have left something there.
func (j *Journal) store(ctx context.Context, s *Segment, name string, size int64) error {
	for range 2 {
		err := j.o.Archive.Store(ctx, name, s.path, size)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		same, e := j.same(ctx, s, name, size)
		if e != nil || same {
			return e
		}
		if err == nil {
			break
		}
		if err := j.o.Archive.Delete(ctx, name); err != nil {
			return err
		}
	}
	return errors.New("what was stored does not read as the segment does: it is not used")
}

// same reports whether the archive has the bytes of the segment's file: it is about to be all there is.
func (j *Journal) same(ctx context.Context, s *Segment, name string, size int64) (same bool, err error) {
	f, err := j.fs.Open(s.path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a, b := make([]byte, min(size, 1<<20)), make([]byte, min(size, 1<<20))
	for at := int64(0); at < size; at += int64(len(a)) {
		a, b = a[:min(size-at, int64(len(a)))], b[:min(size-at, int64(len(b)))]
		if _, err := f.ReadAt(a, at); err != nil {
			return false, err
		}
		err := errors.Join(ctx.Err(), j.o.Archive.ReadAt(name, b, at))
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		if !bytes.Equal(a, b) {
			return false, nil
		}
	}
	return true, nil
}

// leave removes the file of a segment that the archive has, durably, and lets readers use the archive's.
func (j *Journal) leave(s *Segment, o *opened) error {
	j.trim.Lock()
	defer j.trim.Unlock()
	if err := j.removeFile(s); err != nil {
		return err
	}
	s.swap(o)
	j.mu.Lock()
	s.away = true
	j.mu.Unlock()
	return vfs.SyncDir(j.fs, j.dir)
}

// leaveEmpty removes a segment without records, as a start leaves behind where nothing is written. It must not stay: no
// segment that is archived has a file before it.
func (j *Journal) leaveEmpty(s *Segment) error {
	j.trim.Lock()
	defer j.trim.Unlock()
	if err := j.removeFile(s); err != nil {
		return err
	}
	if err := vfs.SyncDir(j.fs, j.dir); err != nil {
		return err
	}
	j.forget(s)
	return nil
}

// removeFile removes the file of a segment, unless the journal has failed. The caller holds trim.
func (j *Journal) removeFile(s *Segment) error {
	j.mu.Lock()
	err := j.err
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := j.fs.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// findArchived adds the segments that are in the archive to those that are in the directory.
func (j *Journal) findArchived(outlines []uint64) error {
	oldest := j.segments[0]
	var list []*Segment
	for _, a := range j.o.Archived {
		n, ok := parseArchiveName(a.Name)
		switch {
		case !ok || n.id != j.id:
		case n.number >= oldest.head.number:
			j.noteStored(n.number)
		case n.last < oldest.head.firstPos:
			list = append(list, j.away(n, a.Size))
		}
	}
	slices.SortFunc(list, func(a, b *Segment) int { return int(int64(a.head.number) - int64(b.head.number)) })
	list = slices.CompactFunc(list, func(a, b *Segment) bool { return a.head.number == b.head.number })
	j.segments = append(j.withLost(list, oldest, outlines), j.segments...)
	return j.dropOutlines(outlines)
}

// noteStored notes that a segment in the directory is in the archive, too.
func (j *Journal) noteStored(number uint64) {
	for _, s := range j.segments {
		if s.head.number == number {
			s.stored = true
		}
	}
}

// away makes a segment that is in the archive alone. Nothing of it is read yet.
func (j *Journal) away(n archiveName, size int64) *Segment {
	s := &Segment{j: j, path: n.String(), lastPos: n.last, last: n.time, packed: size, away: true, stored: true}
	s.head = segmentHeader{id: n.id, number: n.number, firstPos: n.first, after: n.after, packed: true}
	s.refs.Store(1)
	s.sealed.Store(true)
	return s
}

// withLost puts one segment in the place of those that should be in the archive and are not. Segments go to the archive and
// from it the oldest first, so one that is missing between others is lost; and so is the oldest if its outline is there, which goes before it.
func (j *Journal) withLost(list []*Segment, oldest *Segment, outlines []uint64) (whole []*Segment) {
	list = append(slices.Clone(list), oldest)
	last, known := archiveName{}, false
	if len(outlines) > 0 && outlines[0] < list[0].head.number {
		if h, err := j.outlinedHeader(outlines[0]); err == nil {
			last, known = archiveName{number: outlines[0] - 1, last: h.firstPos - 1, time: h.after}, true
		}
	}
	for _, s := range list {
		if known && last.last+1 < s.head.firstPos { // by positions: segments without records are not archived
			whole = append(whole, j.lostUpTo(last, s))
		}
		if s != oldest {
			whole = append(whole, s)
		}
		last, known = archiveName{number: s.head.number, last: s.lastPos, time: s.last}, true
	}
	return whole
}

// outlinedHeader reads the header that is in an outline.
func (j *Journal) outlinedHeader(number uint64) (h segmentHeader, err error) {
	data, err := vfs.ReadFile(j.fs, j.outlineOf(number))
	if err != nil {
		return h, err
	}
	h, err = parseSegmentHeader(data)
	if err == nil && (h.id != j.id || h.number != number || h.firstPos == 0) {
		err = ErrCorrupt
	}
	return h, err
}

// lostUpTo stands for the segments between before and next.
func (j *Journal) lostUpTo(before archiveName, next *Segment) *Segment {
	s := j.away(archiveName{id: j.id, number: before.number + 1, first: before.last + 1, last: next.head.firstPos - 1, after: before.time, time: next.head.after}, 0)
	s.count = next.head.number - s.head.number
	s.lost = fmt.Errorf("%w: positions %d to %d, of segments %d to %d", ErrMissing, s.head.firstPos, s.lastPos, s.head.number, next.head.number-1)
	j.o.Logger.Error("segments of the journal are missing in the archive", "dir", j.dir, "error", s.lost)
	return s
}

// dropOutlines removes outlines of segments that are not archived.
func (j *Journal) dropOutlines(outlines []uint64) error {
	oldest := j.segments[0].head.number
	gone := false
	for _, n := range outlines {
		if n >= oldest {
			continue
		}
		if err := j.fs.Remove(j.outlineOf(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("clean the journal up: %w", err)
		}
		gone = true
	}
	if !gone {
		return nil
	}
	return vfs.SyncDir(j.fs, j.dir)
}

// unarchive deletes what the archive has of a segment, and first its outline: what has one and is not in the archive is lost.
func (j *Journal) unarchive(ctx context.Context, s *Segment) error {
	j.mu.Lock()
	stored, lost := s.stored, s.lost
	j.mu.Unlock()
	if !stored {
		return nil
	}
	for n := s.head.number; n <= s.head.number+max(s.count, 1)-1; n++ {
		if err := j.fs.Remove(j.outlineOf(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := vfs.SyncDir(j.fs, j.dir); err != nil || lost != nil {
		return err
	}
	return j.o.Archive.Delete(ctx, s.name())
}

// farEntries reads the index of an archived segment whose outline, or whose index in the archive, is damaged.
func (s *Segment) farEntries(f *far, p *packed, damage error) ([]entry, error) {
	whole := &far{s: s, name: f.name, size: f.size}
	entries, err := readIndex(whole, p.index, p.footer, s.head.after)
	if err == nil {
		_ = s.keepOutline(whole, p) // it only saves reads
	}
	if !errors.Is(err, ErrCorrupt) {
		return entries, err
	}
	return s.scanAll(&packedReader{p: p, f: whole, c: &s.j.blocks}, p.footer, damage)
}
