package journal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/internal/vfs"
)

// Open opens the journal in dir, and makes one if the directory, which must
// exist, is empty. A tail that was torn by a crash is cut at its last whole
// record; loss of anything that was durable is an error that wraps [ErrCorrupt]
// and says which positions are affected. Nothing of the old segments is changed.
func Open(fs vfs.FS, dir string, o Options) (*Journal, error) {
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.FirstPos == 0 {
		o.FirstPos = 1
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.SegmentSize < 4096 || o.SegmentSize > 2<<30 {
		return nil, fmt.Errorf("journal segments of %d bytes: between 4 KiB and 2 GiB are possible", o.SegmentSize)
	}
	j := &Journal{fs: fs, dir: dir, o: o, id: newID(), pos: o.FirstPos - 1, told: o.Told}
	j.synced.L = &j.mu
	if err := j.recover(); err != nil {
		return nil, errors.Join(err, j.closeFiles())
	}
	return j, nil
}

func (j *Journal) closeFiles() error {
	for _, s := range j.segments {
		s.Release()
	}
	return nil
}

// recover opens the segments that are there and begins a new one behind them.
func (j *Journal) recover() error {
	numbers, outlines, err := j.list()
	if err != nil {
		return err
	}
	for i, n := range numbers {
		if err := j.openSegment(n, i == len(numbers)-1); err != nil {
			return err
		}
	}
	number, prevLast, prevEnd := uint64(1), uint64(0), uint64(0)
	if n := len(j.segments); n > 0 {
		s := j.segments[n-1]
		number, prevLast, prevEnd = s.head.number+1, s.lastPos, uint64(s.end)
		j.pos, j.time = s.lastPos, s.last
	}
	j.durable = j.pos
	// What recovery found may be in the page cache only: it is promised from now on.
	for _, s := range j.segments {
		f, err := s.handle()
		if err == nil {
			err = f.SyncData()
		}
		if err != nil {
			return fmt.Errorf("sync journal segment %s: %w", s.path, err)
		}
	}
	s, err := j.newSegment(number, prevLast, prevEnd)
	if err != nil {
		return fmt.Errorf("begin a journal segment: %w", err)
	}
	j.begin(s)
	return j.findArchived(outlines)
}

// list returns the numbers of the segment files and of the outlines, ascending.
func (j *Journal) list() (numbers, outlines []uint64, err error) {
	names, err := j.fs.List(j.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("list the journal: %w", err)
	}
	for _, name := range names {
		if name == rewriteName || strings.HasSuffix(name, ".tmp") { // a packing, or an outline, that was cut
			if err := j.fs.Remove(j.fs.PathJoin(j.dir, name)); err != nil {
				return nil, nil, fmt.Errorf("clean the journal up: %w", err)
			}
			continue
		}
		if hex, ok := strings.CutPrefix(name, outlinePrefix); ok {
			if n, err := strconv.ParseUint(hex, 16, 64); err == nil && n > 0 {
				outlines = append(outlines, n)
			}
		}
		if hex, ok := strings.CutPrefix(name, "seg-"); ok {
			n, err := strconv.ParseUint(hex, 16, 64)
			if err != nil {
				return nil, nil, fmt.Errorf("%w: %s is no name of a segment", ErrCorrupt, name)
			}
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	slices.Sort(outlines)
	return numbers, outlines, nil
}

// openSegment reads what one segment is, and checks that it continues the one before it.
func (j *Journal) openSegment(number uint64, last bool) error {
	path := j.fs.PathJoin(j.dir, fmt.Sprintf("seg-%016x", number))
	f, err := vfs.OpenReadWrite(j.fs, path)
	if err != nil {
		return err
	}
	s := &Segment{j: j, path: path}
	s.refs.Store(1)
	s.swap(&opened{file: f})
	var b [segmentHeaderSize]byte
	if _, err = f.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
		s.Release()
		return err
	}
	if s.head, err = parseSegmentHeader(b[:]); err != nil || s.head.number != number {
		defer s.Release()
		if last && neverUsed(f) {
			return errors.Join(j.fs.Remove(path), vfs.SyncDir(j.fs, j.dir))
		}
		return fmt.Errorf("segment %s has no readable header: positions after %s are affected: %w", path, j.lastKnown(), errors.Join(ErrCorrupt, err))
	}
	j.segments = append(j.segments, s)
	if err := j.continues(s); err != nil {
		return err
	}
	return j.readSegment(s, f, last)
}

func (j *Journal) lastKnown() string {
	if n := len(j.segments); n > 0 {
		return strconv.FormatUint(j.segments[n-1].lastPos, 10)
	}
	return "the last image"
}

// neverUsed reports whether a segment file without a header is what a crash
// leaves of one that was being made: its header was not durable yet, so there is no record.
func neverUsed(f vfs.File) bool {
	st, err := f.Stat()
	if err != nil {
		return false
	}
	buf := make([]byte, 1<<20)
	for at := int64(segmentHeaderSize); at < st.Size(); at += int64(len(buf)) {
		n, err := f.ReadAt(buf, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return false
		}
		if slices.ContainsFunc(buf[:n], func(c byte) bool { return c != 0 }) {
			return false
		}
	}
	return true
}

// continues checks that nothing is missing between a segment and the one before it.
func (j *Journal) continues(s *Segment) error {
	n := len(j.segments)
	if n == 1 {
		j.id = s.head.id
		return nil
	}
	prev := j.segments[n-2]
	if s.head.id != j.id {
		return fmt.Errorf("%w: segment %s belongs to another journal", ErrCorrupt, s.path)
	}
	if s.head.number != prev.head.number+1 || s.head.prevLast != prev.lastPos || s.head.prevEnd != uint64(prev.end) {
		return fmt.Errorf("%w: positions %d to %d are missing before segment %s", ErrCorrupt, prev.lastPos+1, s.head.firstPos-1, s.path)
	}
	return nil
}

// readSegment learns where the segment's records end: from its trailer, or by reading them.
func (j *Journal) readSegment(s *Segment, f vfs.File, last bool) error {
	if s.head.packed {
		return s.readPacked(f)
	}
	t, ok, err := readTrailer(f)
	if err != nil {
		return err
	}
	if ok {
		entries, err := readIndex(f, t.end, t, s.head.after)
		if errors.Is(err, ErrCorrupt) {
			return s.rebuildIndex(f, t, err)
		} else if err != nil {
			return fmt.Errorf("read the index of segment %s: %w", s.path, err)
		}
		s.sealed.Store(true)
		s.settle(entries, t.end)
		return nil
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	c, err := scanRecords(f, st.Size(), s.head)
	if err != nil {
		return fmt.Errorf("read segment %s: %w", s.path, err)
	}
	s.settle(c.entries, c.end)
	s.entries = c.entries
	if !last {
		return nil
	}
	if c.lost {
		return fmt.Errorf("%w: the record at position %d in segment %s at %d is unreadable, and durable records follow it", ErrCorrupt, s.lastPos+1, s.path, c.end)
	}
	if err := vfs.WriteAgain(f, c.doubtful(s.head.firstPos), min(c.end, st.Size())); err != nil {
		return fmt.Errorf("make segment %s durable: %w", s.path, err)
	}
	return nil
}

// readPacked learns from a packed segment's file what is in it. Such a file was whole before it
// had its name: whatever is wrong with it is damage.
func (s *Segment) readPacked(f vfs.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	p, err := openPacked(f, st.Size())
	if err != nil {
		return fmt.Errorf("segment %s, positions from %d: %w", s.path, s.head.firstPos, err)
	}
	s.swap(&opened{file: f, packed: p})
	s.packed = st.Size()
	entries, err := readIndex(f, p.index, p.footer, s.head.after)
	if errors.Is(err, ErrCorrupt) {
		return s.rebuildIndex(&packedReader{p: p, f: f, c: &s.j.blocks}, p.footer, err)
	} else if err != nil {
		return fmt.Errorf("read the index of segment %s: %w", s.path, err)
	}
	s.sealed.Store(true)
	s.settle(entries, p.end)
	return nil
}

// rebuildIndex replaces an index that is damaged by what the records say of themselves. It
// is kept in memory: the file stays as it is.
func (s *Segment) rebuildIndex(records io.ReaderAt, t trailer, damage error) error {
	entries, err := s.scanAll(records, t, damage)
	if err != nil {
		return fmt.Errorf("segment %s, positions from %d: %w", s.path, s.head.firstPos, err)
	}
	s.entries = entries
	s.settle(entries, t.end)
	return nil
}

// scanAll reads all records of a segment whose index is damaged.
func (s *Segment) scanAll(records io.ReaderAt, t trailer, damage error) ([]entry, error) {
	c, err := scanRecords(records, t.end, s.head)
	if err == nil && (c.end != t.end || len(c.entries) != t.records) {
		err = fmt.Errorf("and the record at position %d cannot be read", s.head.firstPos+uint64(len(c.entries)))
	}
	if err != nil {
		return nil, errors.Join(damage, err)
	}
	s.j.o.Logger.Warn("the index of a journal segment is damaged: it was rebuilt from the records", "segment", s.path, "error", damage)
	return c.entries, nil
}

// settle notes what the entries say of the segment.
func (s *Segment) settle(entries []entry, end int64) {
	s.end, s.space = end, end
	s.lastPos, s.last = s.head.firstPos-1, s.head.after
	if n := len(entries); n > 0 {
		s.lastPos, s.last = s.head.firstPos+uint64(n)-1, entries[n-1].time
	}
	s.written.Store(end)
}

// Remove deletes the journal in dir.
func Remove(fs vfs.FS, dir string) error {
	if err := fs.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return vfs.SyncDir(fs, fs.PathDir(dir))
}
