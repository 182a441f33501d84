package relay

import (
	"sync"

	"golang.org/x/sys/unix"
)

// maxEntries bounds the log where its writes are small. A power of two.
const maxEntries = 1 << 15

// entryState is how far a write has come.
type entryState uint8

const (
	entrySent  entryState = iota // handed to us by the kernel, not answered
	entryAcked                   // answered to the kernel, not known to be durable
	entryDone                    // durable, or refused by the server: its room may be used again
)

// entry is one write (or zeroing) that the server may still forget.
type entry struct {
	state entryState
	off   int64  // on the disk
	n     int64  // bytes of the disk it changes
	acked uint64 // its place in the order of acknowledgements
	at    uint64 // where its message starts in the ring, counted from the beginning of time
	size  int    // bytes of its message: header and payload
}

// replayLog holds every write that the server has not made durable, as the
// messages that would write it again, in the order in which they were first
// sent. It never grows: its memory is mapped once.
//
// Entries are numbered from 0 on; entry i is live when first ≤ i < next.
type replayLog struct {
	mu       sync.Mutex
	room     sync.Cond // signalled when entries are dropped or closed is set
	ring     []byte
	head     uint64 // bytes before it are free
	tail     uint64 // the next message goes here
	entries  []entry
	first    uint64
	next     uint64
	acks     uint64 // acknowledgements so far
	unsafe   int    // entries in state entryAcked
	flushing bool   // a flush of our own is on its way
	failed   bool   // a flush failed: nothing can be promised until the next replay
	closed   bool   // nobody will make room any more
}

// newReplayLog maps size bytes for the log.
func newReplayLog(size int) (*replayLog, error) {
	ring, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	l := &replayLog{ring: ring, entries: make([]entry, maxEntries)}
	l.room.L = &l.mu
	return l, nil
}

func (l *replayLog) free() error { return unix.Munmap(l.ring) }

func (l *replayLog) entry(i uint64) *entry { return &l.entries[i%maxEntries] }

// add makes an entry for a write of n bytes of the disk at off, whose message
// has size bytes. It returns the entry's number and the room for the message,
// or ok = false if there is no room now.
func (l *replayLog) add(off, n int64, size int) (id uint64, msg []byte, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := uint64(len(l.ring))
	at := l.tail
	if at%c+uint64(size) > c { // a message does not wrap around
		at += c - at%c
	}
	if at+uint64(size)-l.head > c || l.next-l.first == maxEntries {
		return 0, nil, false
	}
	id = l.next
	l.next++
	l.tail = at + uint64(size)
	*l.entry(id) = entry{off: off, n: n, at: at, size: size}
	return id, l.message(id), true
}

func (l *replayLog) message(id uint64) []byte {
	e := l.entry(id)
	p := e.at % uint64(len(l.ring))
	return l.ring[p : p+uint64(e.size)]
}

// waitRoom blocks until a message of size bytes may fit, and reports false when
// that will not happen: a flush has failed, or the log is closed.
func (l *replayLog) waitRoom(size int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.failed && !l.closed {
		c := uint64(len(l.ring))
		at := l.tail
		if at%c+uint64(size) > c {
			at += c - at%c
		}
		if at+uint64(size)-l.head <= c && l.next-l.first < maxEntries {
			return true
		}
		l.room.Wait()
	}
	return false
}

// ack notes that the server answered a write with success. Where the server has
// no flush, that is all there ever is to wait for.
func (l *replayLog) ack(id uint64, durable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(id)
	if durable {
		e.state = entryDone
		l.drop()
		return
	}
	l.acks++
	e.state, e.acked = entryAcked, l.acks
	l.unsafe++
}

// forget drops a write that the server refused.
func (l *replayLog) forget(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entry(id).state = entryDone
	l.drop()
}

// mark is taken before a flush is sent; flushed(mark) after it succeeded.
func (l *replayLog) mark() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acks
}

// flushed drops every write that had been acknowledged when mark was taken.
func (l *replayLog) flushed(mark uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := l.first; i < l.next; i++ {
		if e := l.entry(i); e.state == entryAcked && e.acked <= mark {
			e.state = entryDone
			l.unsafe--
		}
	}
	l.drop()
}

// drop gives back the room of finished entries at the head. l.mu is held.
func (l *replayLog) drop() {
	for l.first < l.next && l.entry(l.first).state == entryDone {
		l.first++
	}
	if l.first == l.next {
		l.head = l.tail
	} else {
		l.head = l.entry(l.first).at
	}
	l.room.Broadcast()
}

// wantsFlush reports, once, that the log is half full and that a flush would
// help. Whoever is told so must flush and then call ownFlushDone.
func (l *replayLog) wantsFlush() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	full := l.tail-l.head > uint64(len(l.ring))/2 || l.next-l.first > maxEntries/2
	if !full || l.flushing || l.failed || l.unsafe == 0 {
		return false
	}
	l.flushing = true
	return true
}

func (l *replayLog) ownFlushDone() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushing = false
}

// fail notes that a flush failed: the server may have lost what it had
// acknowledged, and a later flush that succeeds would not bring it back. Only a
// replay can.
func (l *replayLog) fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = true
	l.room.Broadcast()
}

// hasFailed reports that no flush may be answered with success.
func (l *replayLog) hasFailed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// close wakes everybody who waits for room.
func (l *replayLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.room.Broadcast()
}

// reset empties the log: all of it has been replayed and flushed.
func (l *replayLog) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.first, l.head = l.next, l.tail
	l.unsafe, l.flushing, l.failed = 0, false, false
	l.room.Broadcast()
}

// live returns the numbers of the live entries as [first, next).
func (l *replayLog) live() (first, next uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.next
}

// held returns the bytes and the writes that would be replayed now.
func (l *replayLog) held() (bytes int64, writes int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(l.tail - l.head), int(l.next - l.first)
}
