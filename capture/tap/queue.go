package tap

import (
	"fmt"
	"hash/crc32"

	"tidemark/capture"
	"tidemark/internal/vfs"
)

// A queue holds the stream from the oldest change that the timeline does not have durably to the newest. It
// is cut into segments, which are sent, spilled to disk and acknowledged as a whole. The tap's mutex guards it.
type queue struct {
	list   []*segment // oldest first; the last may be open
	next   int        // index of the first that was not sent on the present connection
	gone   uint64     // segments that were in front of list
	seq    uint64     // changes that were sent, ever, on the present stream
	memory int        // bytes of data in memory
	limit  int        // of memory
	spill  spill
}

const (
	segmentSize    = 1 << 20 // bytes of data
	segmentChanges = 4096
	// changeMemory is what a change takes beside its data.
	changeMemory = 48
)

// segment is a stretch of the stream.
type segment struct {
	entries []entry
	data    []byte // nil if spilled
	bytes   int    // of data, spilled or not
	memory  int
	holds   []place // regions that are dirty until it is acknowledged
	mark    *mark   // comes behind its changes
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
}

// mark is what a stream says beside changes.
type mark struct {
	whole bool  // the disks are whole again; otherwise they are not from here on
	since int64 // Unix nanoseconds, 0 if not known
	why   string

	bookmark *capture.Mark // the disks are as this says; nothing of the above
}

func (s *segment) end() uint64 { return s.first + uint64(len(s.entries)) }

// changes returns what is to be sent of it, without the first so many.
func (s *segment) changes(data []byte, skip int) []capture.Change {
	list := make([]capture.Change, 0, len(s.entries)-skip)
	for _, e := range s.entries[skip:] {
		c := capture.Change{Disk: e.disk, Off: e.off, Len: e.len, Time: e.time}
		if !e.zero {
			c.Data = data[e.at : int64(e.at)+e.len]
		}
		list = append(list, c)
	}
	return list
}

// hasRoom reports whether a change with n bytes of data can be put.
func (q *queue) hasRoom(n int) bool { return q.memory+n+changeMemory <= q.limit }

// open returns the segment that takes a change with n bytes of data.
func (q *queue) open(n int) *segment {
	if k := len(q.list); k > 0 {
		s := q.list[k-1]
		if !s.closed && len(s.data)+n <= segmentSize && len(s.entries) < segmentChanges {
			return s
		}
		s.closed = true
	}
	s := &segment{slot: noSlot}
	q.list = append(q.list, s)
	return s
}

// put appends a change, which there is room for, and returns the segment that it went to.
func (q *queue) put(c *capture.Change) *segment {
	s := q.open(len(c.Data))
	before := cap(s.data)
	s.entries = append(s.entries, entry{disk: c.Disk, zero: c.Data == nil, at: uint32(len(s.data)), off: c.Off, len: c.Len, time: c.Time})
	s.data = append(s.data, c.Data...)
	s.bytes += len(c.Data)
	grown := cap(s.data) - before + changeMemory
	s.memory += grown
	q.memory += grown
	return s
}

// putMark appends a mark. There is always room for one.
func (q *queue) putMark(m *mark) {
	s := q.open(0)
	s.mark, s.closed = m, true
}

// bytes returns how much data is in the queue, in memory or not.
func (q *queue) bytes() (n int64) {
	for _, s := range q.list {
		n += int64(s.bytes)
	}
	return n
}

// oldest returns the time of the first change in the queue, or 0.
func (q *queue) oldest() int64 {
	for _, s := range q.list {
		if len(s.entries) > 0 {
			return s.entries[0].time
		}
	}
	return 0
}

// take returns the next segment to send, or nil.
func (q *queue) take() *segment {
	if q.next == len(q.list) {
		return nil
	}
	s := q.list[q.next]
	s.closed = true
	if !s.sent {
		s.sent, s.first = true, q.seq
		q.seq += uint64(len(s.entries))
	}
	q.next++
	return s
}

// resume makes the first segment that the timeline, which has so many changes, may lack the next to be
// sent, and returns how many of its changes to leave out. It reports false if that is no longer in the queue.
func (q *queue) resume(applied uint64) (skip int, ok bool) {
	if applied > q.seq {
		return 0, false
	}
	for i, s := range q.list {
		// A mark right behind the last change that is there may not have come through.
		if !s.sent || s.end() > applied || s.mark != nil && s.end() == applied {
			if s.sent && s.first > applied {
				return 0, false
			}
			q.next = i
			if s.sent {
				skip = int(applied - s.first)
			}
			return skip, true
		}
	}
	q.next = len(q.list)
	return 0, applied == q.seq
}

// release drops the segments in front, up to the one with the absolute number last, that are durable when so many
// changes are, and hands each to drop.
func (q *queue) release(last, durable uint64, drop func(*segment)) {
	n := 0
	for n < q.next && q.gone+uint64(n) < last && q.list[n].end() <= durable {
		q.forget(q.list[n])
		drop(q.list[n])
		q.list[n] = nil
		n++
	}
	q.list = q.list[n:]
	q.next -= n
	q.gone += uint64(n)
}

// clear drops everything.
func (q *queue) clear(drop func(*segment)) {
	for _, s := range q.list {
		q.forget(s)
		drop(s)
	}
	q.gone += uint64(len(q.list))
	q.list, q.next, q.seq = nil, 0, 0
}

func (q *queue) forget(s *segment) {
	q.memory -= s.memory
	s.memory = 0
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

// spilled notes that a segment's data lie in a slot, and gives its memory back.
func (q *queue) spilled(s *segment, slot int, sum uint32) {
	s.slot, s.sum, s.data = slot, sum, nil
	q.memory -= s.memory - len(s.entries)*changeMemory
	s.memory = len(s.entries) * changeMemory
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
