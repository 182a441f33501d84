package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tidemark/internal/shared"
	"tidemark/internal/vfs"
)

// DefaultSegmentSize is the size of a segment, in bytes, where no other is asked for.
const DefaultSegmentSize = 64 << 20

// Options of a journal.
type Options struct {
	// FirstPos is the position of the first record of a new journal; 0 means 1.
	FirstPos uint64
	// Told is a time in Unix nanoseconds that is asked for as by [Journal.At]: all records that come are later.
	Told int64
	// SegmentSize bounds a segment in bytes; 0 means DefaultSegmentSize.
	SegmentSize int64
	// Now is the clock; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger

	// Archive takes the segments that [Journal.Archive] moves; nil: there is none. Archived is what it holds
	// when the journal is opened; files of other journals among them are left alone.
	Archive  Archive
	Archived []Archived
}

// Journal is an open journal. Its methods may be called concurrently.
type Journal struct {
	fs  vfs.FS
	dir string
	o   Options
	id  [16]byte

	// io is held by the one that writes buffers to files; it is taken before mu.
	io sync.Mutex
	// rewriting is held by the one that packs segments; it is taken before io and trim.
	rewriting sync.Mutex
	// trim is held by the one that removes or replaces old segments.
	trim sync.Mutex
	// blocks are those of packed segments that were read last.
	blocks blockCache
	// lingering counts trimmed segments that somebody holds: they take space until he lets go.
	lingering atomic.Int64

	mu       sync.Mutex
	segments []*Segment // oldest first; the last one takes appends
	pos      uint64     // last appended
	time     int64      // its time
	told     int64      // the newest time that At was asked for
	durable  uint64     // last known durable
	err      error      // sticky: see ErrFailed
	// active holds what was appended to the last segment and not written yet,
	// beginning at offset start, and is nil if that is nothing; writing is a buffer on its way to its file.
	active   []byte
	start    int64
	writing  buffer
	unsynced []*Segment // written since they were last synced, oldest first
	syncing  bool
	synced   sync.Cond // on mu: syncing ended
}

// buffer is bytes for a place in a segment.
type buffer struct {
	segment *Segment
	data    []byte
	at      int64
}

// buffers are those that no journal needs just now: one that is not written to has none.
var buffers sync.Pool

func takeBuffer() []byte {
	if b, ok := buffers.Get().(*[bufferSize]byte); ok {
		return b[:0]
	}
	return new([bufferSize]byte)[:0]
}

func giveBuffer(b []byte) { buffers.Put((*[bufferSize]byte)(b[:bufferSize])) }

const (
	// writeAfter is how much is gathered before an appender writes it out: one
	// large write costs a tenth of many small ones.
	writeAfter = 1 << 20
	bufferSize = writeAfter + headerSize + MaxPayload
	// allocateStep is how much space is reserved ahead of the records, so that
	// what Append accepted always has a place, and a full disk is noticed before.
	allocateStep = 4 << 20
	// directAfter is the length of a payload from which gathering and reserving
	// cost more than they save: it goes from its owner's memory to the file. One in shared memory does not: there
	// is no telling what the file would get.
	directAfter = 128 << 10
)

// Append adds a record; it sets r.Pos and r.Time, and returns where the payload
// lies. It keeps no reference to the payload. The record is durable after a Sync
// that begins later. On an error nothing was appended.
//
// The record's time is now, or, if r.Time is not zero and in the past, that; but always
// later than that of the record before, and than any time that [Journal.At] was asked for.
func (j *Journal) Append(r *Record) (Place, error) {
	if err := r.check(); err != nil {
		return Place{}, err
	}
	h := header{Record: *r, size: uint32(len(r.Payload))}
	if !r.Shared { // others append meanwhile
		h.sum = crc32.Checksum(r.Payload, castagnoli)
	}
	if r.direct() {
		return j.appendDirect(r, &h)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.gather(r, &h, !r.Shared)
}

// AppendAll adds records in order, each as Append does, but with one lock for those that are gathered, and the checksum of each made
// of the copy. It puts where their payloads lie into places, which is as long as list. On an error the first n were
// appended, and no more.
func (j *Journal) AppendAll(list []Record, places []Place) (n int, err error) {
	for n < len(list) && err == nil {
		if list[n].direct() {
			if places[n], err = j.Append(&list[n]); err == nil {
				n++
			}
			continue
		}
		var k int
		k, err = j.gatherAll(list[n:], places[n:])
		n += k
	}
	return n, err
}

// gatherAll appends the first records of a list that are gathered.
func (j *Journal) gatherAll(list []Record, places []Place) (n int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for n < len(list) && !list[n].direct() {
		r := &list[n]
		if err := r.check(); err != nil {
			return n, err
		}
		h := header{Record: *r, size: uint32(len(r.Payload))}
		if places[n], err = j.gather(r, &h, false); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// gather appends a record by way of the buffer; summed says that h has the payload's checksum. The caller holds mu, which is given up meanwhile
// if room has to be made.
func (j *Journal) gather(r *Record, h *header, summed bool) (Place, error) {
	need := footprint(len(r.Payload))
	if err := j.makeRoom(need); err != nil {
		return Place{}, err
	}
	if j.active == nil {
		j.active = takeBuffer()
	}
	n := len(j.active)
	b := j.active[n : n+int(need)] // nobody looks behind the end of the buffer
	payload := b[headerSize : headerSize+len(r.Payload)]
	if err := take(payload, r, h, summed); err != nil {
		return Place{}, err
	}
	clear(b[headerSize+len(payload):])
	s := j.segments[len(j.segments)-1]
	j.next(h)
	h.put(b, s.head.salt())
	j.active = j.active[:n+len(b)]
	return j.accept(s, r, h), nil
}

// take copies the payload of a record. What is in the journal has the checksum of what is in the journal, whatever others do
// to the payload.
func take(dst []byte, r *Record, h *header, summed bool) error {
	if r.Shared {
		h.sum = r.Sum
		if err := shared.Copy(dst, r.Payload, r.Sum); err != nil {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
		return nil
	}
	copy(dst, r.Payload)
	if !summed {
		h.sum = crc32.Checksum(dst, castagnoli)
	}
	return nil
}

// next gives h the position and time that come next.
func (j *Journal) next(h *header) {
	now := j.o.Now().UnixNano()
	if h.Time != 0 {
		now = min(now, h.Time)
	}
	h.Pos, h.Time, h.durable = j.pos+1, max(j.time+1, j.told+1, now), j.durable
}

// accept notes that the record is in its place at the end of s. The caller holds mu.
func (j *Journal) accept(s *Segment, r *Record, h *header) Place {
	j.pos, j.time = h.Pos, h.Time
	r.Pos, r.Time = h.Pos, h.Time
	s.entries = append(s.entries, entry{time: r.Time, off: r.Off, len: r.Len, at: uint32(s.end), size: h.size, kind: r.Kind, disk: r.Disk})
	place := Place{Segment: s, Off: uint32(s.end) + headerSize}
	s.end += footprint(len(r.Payload))
	s.lastPos, s.last = r.Pos, r.Time
	return place
}

// appendDirect is Append for a large payload. The file system is asked for room by
// the write itself: where there is none, nothing was accepted.
func (j *Journal) appendDirect(r *Record, h *header) (Place, error) {
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	s, err := j.drained(footprint(len(r.Payload)))
	if err != nil {
		return Place{}, err
	}
	j.next(h)
	err = s.writeRecord(h, r.Payload)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return Place{}, fmt.Errorf("%w: %w", ErrNoSpace, err)
	} else if err != nil {
		return Place{}, j.fail(fmt.Errorf("write journal segment %s: %w", s.path, err))
	}
	place := j.accept(s, r, h)
	s.space = max(s.space, s.end)
	s.written.Store(s.end)
	j.start = s.end
	j.wrote(s)
	return place, nil
}

// drained returns the segment that has room for need bytes, with nothing
// buffered for it. The caller holds io and mu; mu is given up meanwhile.
func (j *Journal) drained(need int64) (*Segment, error) {
	for {
		if j.err != nil {
			return nil, j.err
		}
		s := j.segments[len(j.segments)-1]
		step := j.writeOut
		if len(j.active) == 0 {
			if !j.full(s, need) {
				return s, nil
			}
			step = j.roll
		}
		j.mu.Unlock()
		err := step()
		j.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
}

// full reports that s takes no record of need bytes any more. An empty segment takes any.
func (j *Journal) full(s *Segment, need int64) bool {
	return s.footed || len(s.entries) > 0 && (s.end+need > j.o.SegmentSize || len(s.entries) >= maxRecords)
}

// writeRecord writes a record at the end of s. The header goes last: without it there is no record.
func (s *Segment) writeRecord(h *header, payload []byte) error {
	f, err := s.handle()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(payload, s.end+headerSize); err != nil {
		return err
	}
	var head [headerSize]byte
	h.put(head[:], s.head.salt())
	_, err = f.WriteAt(head[:], s.end)
	return err
}

// wrote notes that s must be synced. The caller holds mu.
func (j *Journal) wrote(s *Segment) {
	if n := len(j.unsynced); n == 0 || j.unsynced[n-1] != s {
		j.unsynced = append(j.unsynced, s)
	}
}

// makeRoom sees to it that need bytes fit into the buffer, the segment and the
// disk. It may give mu up meanwhile.
func (j *Journal) makeRoom(need int64) error {
	for {
		if j.err != nil {
			return j.err
		}
		s := j.segments[len(j.segments)-1]
		switch {
		case len(j.active) >= writeAfter:
			if err := j.unlocked(j.writeOut); err != nil {
				return err
			}
		case j.full(s, need):
			if err := j.unlocked(j.roll); err != nil {
				return err
			}
		case s.end+need > s.space:
			return j.allocate(s, s.end+need)
		default:
			return nil
		}
	}
}

// unlocked runs an I/O step without mu.
func (j *Journal) unlocked(step func() error) error {
	j.mu.Unlock()
	defer j.mu.Lock()
	j.io.Lock()
	defer j.io.Unlock()
	return step()
}

// allocate reserves space for the records of s up to end.
func (j *Journal) allocate(s *Segment, end int64) error {
	f, err := s.handle()
	if err != nil {
		return err
	}
	step := max(end-s.space, min(allocateStep, j.o.SegmentSize-s.space))
	if err := f.Preallocate(s.space, step); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	} else if err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("reserve journal space: %w", err)
	}
	s.space += step
	return nil
}

// writeOut writes the active buffer to its segment. The caller holds io.
func (j *Journal) writeOut() error {
	j.mu.Lock()
	if j.err != nil || len(j.active) == 0 {
		defer j.mu.Unlock()
		return j.err
	}
	s := j.segments[len(j.segments)-1]
	b := buffer{segment: s, data: j.active, at: j.start}
	j.writing = b
	j.active = nil
	j.start = s.end
	j.wrote(s)
	j.mu.Unlock()

	f, err := s.handle()
	if err == nil {
		_, err = f.WriteAt(b.data, b.at)
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		return j.fail(fmt.Errorf("write journal segment %s: %w", s.path, err))
	}
	s.written.Store(b.at + int64(len(b.data)))
	j.writing = buffer{}
	giveBuffer(b.data) // nobody reads it any more
	return nil
}

// fail makes err stick: what was accepted may not be on disk, so nothing later
// may be acknowledged. The caller holds mu.
func (j *Journal) fail(err error) error {
	if j.err == nil {
		j.err = fmt.Errorf("%w: %w", ErrFailed, err)
		j.o.Logger.Error("the journal failed", "dir", j.dir, "error", err)
	}
	return j.err
}

// readBuffered fills p from the buffers, if offset off of s is not in its file yet.
func (j *Journal) readBuffered(s *Segment, p []byte, off int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := int64(len(p))
	if w := j.writing; w.segment == s && off >= w.at && off+n <= w.at+int64(len(w.data)) {
		copy(p, w.data[off-w.at:])
		return true
	}
	if s == j.segments[len(j.segments)-1] && off >= j.start && off+n <= j.start+int64(len(j.active)) {
		copy(p, j.active[off-j.start:])
		return true
	}
	return false
}

// roll seals the last segment and begins the next. The caller holds io.
func (j *Journal) roll() error {
	if err := j.writeOut(); err != nil {
		return err
	}
	j.mu.Lock()
	s := j.segments[len(j.segments)-1]
	if len(j.active) > 0 || len(s.entries) == 0 {
		j.mu.Unlock()
		return nil // others appended meanwhile: the caller looks again
	}
	j.mu.Unlock()
	// Nobody can append now: makeRoom sends appenders here, or they find room in this segment.
	return j.rollFrom(s)
}

// rollFrom makes the segment's records durable before its footer is written: a
// footer that a power cut left must not vouch for records that it took.
func (j *Journal) rollFrom(s *Segment) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.active) > 0 {
		return nil
	}
	f, err := s.handle()
	if err != nil {
		return err
	}
	if !s.footed {
		if err := f.SyncData(); err != nil {
			return j.fail(fmt.Errorf("sync journal segment %s: %w", s.path, err))
		}
		if _, err := f.WriteAt(footer(s.entries, s.head.after, s.end), s.end); errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("%w: %w", ErrNoSpace, err) // the footer is written again when there is room
		} else if err != nil {
			return j.fail(fmt.Errorf("seal journal segment %s: %w", s.path, err))
		}
		s.footed = true
	}
	// A segment begins only when the one before it is durable: so a segment that
	// is found proves that all before it must be there, whole.
	if err := f.SyncData(); err != nil {
		return j.fail(fmt.Errorf("sync journal segment %s: %w", s.path, err))
	}
	j.durable = max(j.durable, s.lastPos)
	next, err := j.newSegment(s.head.number+1, s.lastPos, uint64(s.end))
	if err != nil {
		return err
	}
	s.sealed.Store(true)
	s.entries = nil
	j.unsynced = slices.DeleteFunc(j.unsynced, func(u *Segment) bool { return u == s })
	j.begin(next)
	return nil
}

func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// newSegment creates a segment file. Its header is durable before there can be
// records: so a file with a bad header was either never used, or is damaged,
// and which of the two can be told.
func (j *Journal) newSegment(number, prevLast, prevEnd uint64) (*Segment, error) {
	s := &Segment{j: j, path: j.fs.PathJoin(j.dir, fmt.Sprintf("seg-%016x", number)), end: segmentHeaderSize, lastPos: j.pos, last: j.time}
	s.head = segmentHeader{id: j.id, number: number, firstPos: j.pos + 1, after: j.time, prevLast: prevLast, prevEnd: prevEnd}
	f, err := vfs.Create(j.fs, s.path)
	if err != nil {
		return nil, noSpace(err)
	}
	_, err = f.WriteAt(s.head.encode(), 0)
	if err == nil {
		err = f.SyncData()
	}
	if err == nil {
		err = vfs.SyncDir(j.fs, j.dir)
	}
	if err != nil {
		return nil, noSpace(errors.Join(err, f.Close(), j.fs.Remove(s.path)))
	}
	s.swap(&opened{file: f})
	s.refs.Store(1)
	s.written.Store(segmentHeaderSize)
	s.space = segmentHeaderSize
	return s, nil
}

// begin makes s the segment that takes appends. The caller holds mu.
func (j *Journal) begin(s *Segment) {
	j.segments = append(j.segments, s)
	j.start = segmentHeaderSize
}

// Sync makes every record durable that was appended before the call. Callers
// that come while another syncs are served together by the next round.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	target := j.pos
	for j.durable < target {
		if j.err != nil {
			return j.err
		}
		if j.syncing {
			j.synced.Wait()
			continue
		}
		j.syncing = true
		_ = j.unlocked(j.syncRound) // what fails sticks
		j.syncing = false
		j.synced.Broadcast()
	}
	return j.err
}

// syncRound writes out and syncs all that was appended until now. The caller holds io: until an error of its sticks, nobody else may
// sync, for a file system tells a failure once, and would have nothing to say against the next.
func (j *Journal) syncRound() error {
	if err := j.writeOut(); err != nil {
		return err
	}
	j.mu.Lock()
	// What was appended since writeOut is in the active buffer: the durable end is before it.
	upTo := j.pos
	if len(j.active) > 0 {
		upTo = j.posBefore(j.start)
	}
	segments := j.unsynced
	j.unsynced = nil
	j.mu.Unlock()
	for _, s := range segments {
		f, err := s.handle()
		if err == nil {
			err = f.SyncData()
		}
		if err != nil {
			j.mu.Lock()
			defer j.mu.Unlock()
			return j.fail(fmt.Errorf("sync journal segment %s: %w", s.path, err))
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.durable = max(j.durable, upTo)
	return nil
}

// posBefore returns the position of the last record of the last segment that lies before offset at.
func (j *Journal) posBefore(at int64) uint64 {
	s := j.segments[len(j.segments)-1]
	n := len(s.entries)
	for n > 0 && int64(s.entries[n-1].at) >= at {
		n--
	}
	return s.head.firstPos + uint64(n) - 1
}

// Head returns the position and time of the newest record; of a new journal, those before its first.
func (j *Journal) Head() (pos uint64, t int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pos, j.time
}

// Durable returns the newest position that is known to survive a power cut.
func (j *Journal) Durable() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// ID identifies the journal: it is made with it, and never used twice.
func (j *Journal) ID() string { return fmt.Sprintf("%x", j.id) }

// Close syncs and closes the journal, and seals its last segment, so that the
// next Open need not read its records. Segments that are held stay readable.
func (j *Journal) Close() error {
	err := j.Sync()
	j.io.Lock()
	defer j.io.Unlock()
	if err == nil {
		err = j.sealLast()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.err, ErrClosed) {
		return nil
	}
	j.err = ErrClosed
	for _, s := range j.segments {
		s.Release()
	}
	return err
}

func (j *Journal) sealLast() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.segments[len(j.segments)-1]
	if len(s.entries) == 0 || len(j.active) > 0 || j.err != nil {
		return nil
	}
	f, err := s.handle()
	if err != nil {
		return err
	}
	if err := f.SyncData(); err != nil {
		return fmt.Errorf("sync journal segment %s: %w", s.path, err)
	}
	if _, err := f.WriteAt(footer(s.entries, s.head.after, s.end), s.end); err != nil {
		return fmt.Errorf("seal journal segment %s: %w", s.path, err)
	}
	return f.SyncData()
}

func newID() (id [16]byte) {
	rand.Read(id[:])
	return id
}
