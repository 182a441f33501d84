package tap

import (
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"tidemark/capture"
	"tidemark/internal/shared"
	"tidemark/internal/vfs"
)

// A queue holds the stream from the oldest change that the timeline does not have durably to the newest. It
// is cut into segments, which are sent, spilled to disk and acknowledged as a whole. The tap's mutex guards it.
type queue struct {
	list   []*segment // oldest first; the last may be open
	next   int        // index of the first that was not sent on the present connection
	gone   uint64     // segments that were in front of list
	seq    uint64     // changes that were sent, ever, on the present stream
	memory int        // bytes that it takes
	limit  int        // of memory
	area   *area      // that slabs are taken from; nil: from the heap
	slab   *slab      // that the data of the last segment lie in
	spare  []*slab    // to be used again, that which was used last first
	least  int        // how many of these there were at least since trim looked
	spill  spill
	said   *mark // the newest of a gap that is not in list any more; nil: the present stream has had none
}

// slab is memory for the data of segments that follow each other. It is never moved: a segment that grows
// need not be copied.
type slab struct {
	buf   []byte
	users int   // segments in it, and who reads them without the tap's mutex
	area  *area // that it is of; nil: the heap
	at    int64 // where it begins there
}

func (b *slab) room() int { return cap(b.buf) - len(b.buf) }

const (
	segmentSize    = 1 << 20 // bytes of data
	segmentChanges = 4096
	// changeMemory is what a change takes beside its data.
	changeMemory = 48
)

// segment is a stretch of the stream.
type segment struct {
	entries []entry
	slab    *slab   // nil if spilled
	data    []byte  // in the slab; nil if spilled
	from    int     // where they begin there
	bytes   int     // of data, spilled or not
	memory  int     // that it takes beside its data; 0: it was dropped
	holds   []place // regions that are dirty until it is acknowledged
	mark    *mark   // comes behind its changes
	born    time.Time
	closed  bool
	sent    bool
	first   uint64 // number of its first change, since it was first sent
	slot    int    // in the spill file, or noSlot
	sum     uint32 // of its data, where spilled
}

const noSlot = -1

// entry is a change; its data lie in the segment's, from at on.
type entry struct {
	disk     uint16
	zero     bool
	at       uint32
	off, len int64
	time     int64
	sum      uint32 // of the data, if summed
	summed   bool
}

// mark is what a stream says beside changes.
type mark struct {
	whole bool  // the disks are whole again; otherwise they are not from here on
	since int64 // Unix nanoseconds, 0 if not known
	why   string

	bookmark *capture.Mark   // the disks are as this says; nothing of the above
	sample   *capture.Sample // a disk holds this at a place; nothing of the above
}

// loss reports whether it says that something is missing.
func (m *mark) loss() bool { return m.ofGap() && !m.whole }

// ofGap reports whether it begins or ends a gap.
func (m *mark) ofGap() bool { return m != nil && m.bookmark == nil && m.sample == nil }

func (s *segment) end() uint64 { return s.first + uint64(len(s.entries)) }

// changes returns what is to be sent of it, without the first so many. Where the data lie in an area they say so, if the sink shares that.
func (s *segment) changes(h held, skip int, shares bool) []capture.Change {
	list := make([]capture.Change, 0, len(s.entries)-skip)
	for i := skip; i < len(s.entries); i++ {
		e := &s.entries[i]
		c := capture.Change{Disk: e.disk, Off: e.off, Len: e.len, Time: e.time}
		if !e.zero {
			c.Data = e.data(h.data)
			if shares && h.slab != nil && h.slab.area != nil {
				e.summed, e.sum = true, e.sumOf(c.Data)
				c.Memory, c.At, c.Sum = h.slab.area.m, h.slab.at+int64(s.from)+int64(e.at), e.sum
			}
		}
		list = append(list, c)
	}
	return list
}

// sumOf returns the checksum of the entry's data, which may have been made when they came.
func (e *entry) sumOf(data []byte) uint32 {
	if e.summed {
		return e.sum
	}
	return shared.Sum(data)
}

// data are those of the entry, among those of its segment.
func (e *entry) data(all []byte) []byte { return all[e.at : int64(e.at)+e.len] }

// intact reports whether the data of a segment are what their checksums say, where there are some.
func (s *segment) intact(data []byte) bool {
	for i := range s.entries {
		if e := &s.entries[i]; e.summed && shared.Sum(e.data(data)) != e.sum {
			return false
		}
	}
	return true
}

// hasRoom reports whether a change with n bytes of data can be put.
func (q *queue) hasRoom(n int) bool {
	n = q.memory + changeMemory + q.missing(n)
	return n <= q.limit
}

// missing returns how much memory there must be more for n bytes of data.
func (q *queue) missing(n int) int {
	if q.slab != nil && q.slab.users > 0 && q.slab.room() >= n {
		return 0
	}
	return segmentSize
}

// open returns the segment that takes a change with n bytes of data.
func (q *queue) open(n int) *segment {
	if k := len(q.list); k > 0 {
		s := q.list[k-1]
		if !s.closed && s.slab.room() >= n && len(s.entries) < segmentChanges {
			return s
		}
		s.closed = true
	}
	if q.slab == nil || q.slab.room() < n {
		q.slab = q.newSlab()
	}
	s := &segment{slot: noSlot, slab: q.slab, from: len(q.slab.buf), born: time.Now()}
	q.hold(s.slab)
	q.list = append(q.list, s)
	return s
}

func (q *queue) newSlab() *slab {
	if k := len(q.spare); k > 0 {
		b := q.spare[k-1]
		q.spare = q.spare[:k-1]
		q.least = min(q.least, k-1)
		return b
	}
	if q.area != nil && len(q.area.free) > 0 {
		return q.area.slab()
	}
	return &slab{buf: make([]byte, 0, segmentSize)}
}

// hold keeps what is in a slab until letGo.
func (q *queue) hold(b *slab) {
	if b.users == 0 {
		q.memory += segmentSize
		b.area.hold()
	}
	b.users++
}

func (q *queue) letGo(b *slab) {
	if b.users--; b.users > 0 {
		return
	}
	q.memory -= segmentSize
	defer b.area.release()
	if b.area != q.area { // of an area that was given up, or of the heap where there is one: never used again
		return
	}
	b.buf = b.buf[:0]
	if b != q.slab {
		q.spare = append(q.spare, b)
	}
}

// trim gives a slab back to the host that was not needed since the last time that there was none, and reports whether there was one.
func (q *queue) trim() (more bool) {
	if q.least == 0 {
		q.least = len(q.spare)
		return false
	}
	b := q.spare[0]
	q.spare, q.least = slices.Delete(q.spare, 0, 1), q.least-1
	if b.area != nil {
		b.area.put(b)
	}
	return true
}

// held are the data of a segment, in a slab that is held.
type held struct {
	slab *slab // nil: they were spilled
	data []byte
}

// holdData holds the data of a segment, if it is not spilled.
func (q *queue) holdData(s *segment) held {
	if s.slab != nil {
		q.hold(s.slab)
	}
	return held{s.slab, s.data}
}

// put appends a change, which there is room for, and returns the segment that it went to. summed: it has the checksum of
// its data, if it has data.
func (q *queue) put(c *capture.Change, summed bool) *segment {
	s := q.open(len(c.Data))
	s.entries = append(s.entries, entry{disk: c.Disk, zero: c.Data == nil, at: uint32(len(s.data)), off: c.Off, len: c.Len, time: c.Time, sum: c.Sum, summed: summed && c.Data != nil})
	s.slab.buf = append(s.slab.buf, c.Data...)
	s.data = s.slab.buf[s.from:]
	s.bytes += len(c.Data)
	s.memory += changeMemory
	q.memory += changeMemory
	return s
}

// putMark appends a mark. There is always room for one.
func (q *queue) putMark(m *mark) {
	s := q.open(0)
	s.mark, s.closed = m, true
}

// hasSample reports whether a sample is on its way.
func (q *queue) hasSample() bool {
	return slices.ContainsFunc(q.list, func(s *segment) bool { return s.mark != nil && s.mark.sample != nil })
}

// bytes returns how much data is in the queue, in memory or not.
func (q *queue) bytes() (n int64) {
	for _, s := range q.list {
		n += int64(s.bytes)
	}
	return n
}

// lag is how long the first change has been in the queue, by a clock that nobody sets.
func (q *queue) lag() time.Duration {
	for _, s := range q.list {
		if len(s.entries) > 0 {
			return time.Since(s.born)
		}
	}
	return 0
}

// before returns a time before all that the queue holds, or now if it holds nothing; 0 if that is not known. Of both, the
// unit is Unix nanoseconds.
func (q *queue) before(now int64) int64 {
	for _, s := range q.list {
		switch m := s.mark; {
		case len(s.entries) > 0:
			return s.entries[0].time - 1
		case m != nil && m.loss():
			return max(m.since-1, 0)
		}
	}
	return now
}

// young reports whether what is to be sent next is a segment that may grow.
func (q *queue) young() bool {
	return q.next == len(q.list)-1 && !q.list[q.next].closed
}

// take returns the next segment to send, or nil, and whether it was sent before.
func (q *queue) take() (s *segment, again bool) {
	if q.next == len(q.list) {
		return nil, false
	}
	s = q.list[q.next]
	s.closed, again = true, s.sent
	if !again {
		s.sent, s.first = true, q.seq
		q.seq += uint64(len(s.entries))
	}
	q.next++
	return s, again
}

// resume makes the first segment that the timeline, which has so many changes, may lack the next to be
// sent, and returns how many of its changes to leave out, and the mark of a gap that has to be said before it, or nil. It reports false if
// that segment is no longer in the queue.
func (q *queue) resume(applied uint64) (skip int, gap *mark, ok bool) {
	if applied > q.seq {
		return 0, nil, false
	}
	for _, s := range q.list { // a server that does not take samples would get the same one for ever
		if s.mark != nil && s.mark.sample != nil {
			s.mark = nil
		}
	}
	for i, s := range q.list {
		// A mark right behind the last change that is there may not have come through.
		if !s.sent || s.end() > applied || s.mark != nil && s.end() == applied {
			if s.sent && s.first > applied || !s.sent && applied != q.seq {
				return 0, nil, false
			}
			q.next = i
			if s.sent {
				skip = int(applied - s.first)
			}
			if s.mark.ofGap() && skip == len(s.entries) { // it says it itself, at once
				return skip, nil, true
			}
			return skip, q.gapBefore(i), true
		}
	}
	q.next = len(q.list)
	return 0, q.gapBefore(q.next), applied == q.seq
}

// gapBefore returns the newest mark of a gap before the segment with the index i, which says whether one lasts there; nil if the stream has none so far.
func (q *queue) gapBefore(i int) *mark {
	for _, s := range slices.Backward(q.list[:i]) {
		if s.mark.ofGap() {
			return s.mark
		}
	}
	return q.said
}

// release drops the segments in front, up to the one with the absolute number last, that are durable when so many
// changes are, and hands each to drop.
func (q *queue) release(last, durable uint64, drop func(*segment)) {
	n := 0
	for n < q.next && q.gone+uint64(n) < last && q.list[n].end() <= durable {
		if m := q.list[n].mark; m.ofGap() {
			q.said = m
		}
		q.forget(q.list[n])
		drop(q.list[n])
		q.list[n] = nil
		n++
	}
	q.list = q.list[n:]
	q.next -= n
	q.gone += uint64(n)
}

// clear drops everything, and the area with it: who was told of data there may read them still, and finds what he was told of.
func (q *queue) clear(drop func(*segment)) {
	q.leave()
	for _, s := range q.list {
		q.forget(s)
		drop(s)
	}
	q.gone += uint64(len(q.list))
	q.list, q.next, q.seq, q.spare, q.said = nil, 0, 0, nil, nil
}

// leave gives the area up. What is in it stays as it is until those let go of it who hold it.
func (q *queue) leave() {
	q.area.release()
	q.area, q.slab, q.spare, q.least = nil, nil, nil, 0
}

// close lets go of all memory.
func (q *queue) close() {
	q.leave()
	for _, s := range q.list {
		s.closed = true
		q.forgetData(s)
	}
}

func (q *queue) forget(s *segment) {
	q.memory -= s.memory
	s.memory = 0
	q.forgetData(s)
	if s.slot != noSlot {
		q.spill.free = append(q.spill.free, s.slot)
	}
}

// spillable returns a segment that should lie on disk: the newest that is complete, when
// more than half of the memory is taken and what is sent next is still in it.
func (q *queue) spillable() *segment {
	if q.memory <= q.limit/2 || !q.spill.room() {
		return nil
	}
	for i := len(q.list) - 1; i > q.next; i-- {
		if s := q.list[i]; s.closed && s.slot == noSlot && len(s.data) > 0 {
			return s
		}
	}
	return nil
}

// spills reports whether a segment that was spillable still is, but for the room.
func (q *queue) spills(s *segment) bool { return slices.Index(q.list, s) > q.next }

// spilled notes that a segment's data lie in a slot, and gives their memory back.
func (q *queue) spilled(s *segment, slot int, sum uint32) {
	s.slot, s.sum = slot, sum
	q.forgetData(s)
}

func (q *queue) forgetData(s *segment) {
	if s.slab != nil {
		q.letGo(s.slab)
		s.slab, s.data = nil, nil
	}
}

// spill is a file of slots for the data of segments. What is in it means nothing to the next run.
type spill struct {
	file   vfs.File
	free   []int
	used   int  // slots that were ever used
	slots  int  // at most
	failed bool // it is not written any more
}

func (p *spill) room() bool {
	return p.file != nil && !p.failed && (len(p.free) > 0 || p.used < p.slots)
}

// takeSlot returns a slot. There is room.
func (p *spill) takeSlot() int {
	if n := len(p.free); n > 0 {
		slot := p.free[n-1]
		p.free = p.free[:n-1]
		return slot
	}
	p.used++
	return p.used - 1
}

func (p *spill) write(slot int, data []byte) (sum uint32, err error) {
	if _, err := p.file.WriteAt(data, int64(slot)*segmentSize); err != nil {
		return 0, fmt.Errorf("spill the queue: %w", err)
	}
	return crc32.Checksum(data, castagnoli), nil
}

// read returns a segment's data.
func (p *spill) read(s *segment) ([]byte, error) {
	n := 0
	for _, e := range s.entries {
		if !e.zero {
			n = int(e.at) + int(e.len)
		}
	}
	data := make([]byte, n)
	if _, err := p.file.ReadAt(data, int64(s.slot)*segmentSize); err != nil {
		return nil, fmt.Errorf("read the spilled queue: %w", err)
	}
	if sum := crc32.Checksum(data, castagnoli); sum != s.sum {
		return nil, fmt.Errorf("read the spilled queue: slot %d is damaged", s.slot)
	}
	return data, nil
}
