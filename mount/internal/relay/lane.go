package relay

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// laneSlots is how many requests one lane has in flight. The kernel's loop
	// driver keeps at most 128 of its own.
	laneSlots = 512

	// copyLimit is the largest message that is copied to be sent together with
	// others; a larger one is cheaper to send by itself.
	copyLimit = 32 << 10

	sendBuffer = 256 << 10

	// receiveBuffer holds the largest read there can be, and its neighbours.
	receiveBuffer = maxTransfer + 256<<10
)

// What a slot waits for.
const (
	opNone uint8 = iota
	opRead
	opWrite
	opZero
	opFlush
)

// slot is one request in flight.
type slot struct {
	op     uint8
	to     asker  // where the answer goes; nil for our own flush
	gen    uint32 // tells answers to an earlier user of the slot
	unique uint64 // the kernel's name of the request
	off    int64
	n      uint32
	entry  uint64 // of a write: its place in the log
	mark   uint64 // of a flush: what it makes durable
}

// asker is who asks for the disk's bytes: the kernel, by one of its ways to ask.
type asker interface {
	// answer ends request s with e, or with the data of a read. It may use l's
	// scratch space.
	answer(l *lane, s slot, e unix.Errno, data []byte)
	// end ends a request that carries no data; e is 0 where it succeeded. It
	// may be called by anyone at any time.
	end(unique uint64, e unix.Errno)
}

// endOf ends a request of somebody who may be nobody.
func endOf(to asker, unique uint64, e unix.Errno) {
	if to != nil {
		to.end(unique, e)
	}
}

// answer ends the request of a slot.
func (l *lane) answer(s slot, e unix.Errno, data []byte) {
	if s.to != nil {
		s.to.answer(l, s, e, data)
	}
}

// lane is one connection's share of the work.
//
// Lock order: sendMu, then slotMu, then the log's. The replier takes no sendMu,
// because a sender may hold it for as long as the server takes nothing, and the
// server may take nothing until its answers are taken.
type lane struct {
	r *Relay

	sendMu sync.Mutex // guards conn and out
	conn   conn       // nil while there is no session: requests wait in their slots
	out    []byte     // messages to be sent together

	slotMu sync.Mutex // guards slots and unused
	slots  [laneSlots]slot
	unused []uint16
	freed  chan struct{} // a slot became free

	head [24]byte // of an answer; used by the replier, or by whoever holds sendMu without a session
	iov  [2]unix.Iovec
}

func newLane(r *Relay) *lane {
	l := &lane{r: r, out: make([]byte, 0, sendBuffer), freed: make(chan struct{}, 1)}
	for i := range laneSlots {
		l.unused = append(l.unused, uint16(i))
	}
	return l
}

// begin takes the lane for a batch of requests; end sends them.
func (l *lane) begin() { l.sendMu.Lock() }

func (l *lane) end() {
	l.push()
	l.sendMu.Unlock()
}

// push sends what was gathered. Without a session, or when it breaks here, the
// slots remember all that matters.
func (l *lane) push() {
	if len(l.out) > 0 && l.conn != nil {
		if _, err := l.conn.Write(l.out); err != nil {
			l.r.fail(err)
		}
	}
	l.out = l.out[:0]
}

// put gathers a message. It must stay unchanged only until put returns.
func (l *lane) put(msg []byte) {
	if len(l.out)+len(msg) > sendBuffer || len(msg) > copyLimit {
		l.push()
	}
	if len(msg) <= copyLimit {
		l.out = append(l.out, msg...)
		return
	}
	if l.conn != nil {
		if _, err := l.conn.Write(msg); err != nil {
			l.r.fail(err)
		}
	}
}

// slot books a slot and returns the cookie that names it. It may let go of the
// lane for a while. It reports false when the relay is dead.
func (l *lane) slot(s slot) (cookie uint64, ok bool) {
	waited := false
	for !l.r.dead.Load() {
		l.slotMu.Lock()
		if k := len(l.unused) - 1; k >= 0 {
			i := l.unused[k]
			l.unused = l.unused[:k]
			s.gen = l.slots[i].gen + 1
			l.slots[i] = s
			l.slotMu.Unlock()
			if waited {
				l.wake()
			}
			return uint64(s.gen)<<16 | uint64(i), true
		}
		l.slotMu.Unlock()
		l.end()
		<-l.freed
		waited = true
		l.begin()
	}
	l.wake()
	return 0, false
}

// setEntry tells a booked slot which entry of the log it waits for.
func (l *lane) setEntry(cookie, entry uint64) {
	l.slotMu.Lock()
	l.slots[cookie&0xffff].entry = entry
	l.slotMu.Unlock()
}

// peek returns the request that a cookie names.
func (l *lane) peek(cookie uint64) (slot, bool) {
	i := cookie & 0xffff
	if i >= laneSlots {
		return slot{}, false
	}
	l.slotMu.Lock()
	defer l.slotMu.Unlock()
	s := l.slots[i]
	return s, s.op != opNone && uint64(s.gen) == cookie>>16
}

// release frees a slot.
func (l *lane) release(i uint16) {
	l.slotMu.Lock()
	l.slots[i].op = opNone
	l.unused = append(l.unused, i)
	l.slotMu.Unlock()
	l.wake()
}

// wake lets one who waits for a slot look again. Who was woken wakes the next.
func (l *lane) wake() {
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// takeAll frees the slots that match and returns them.
func (l *lane) takeAll(match func(slot) bool) []slot {
	var taken []slot
	for i := range l.slots {
		if s := l.slots[i]; s.op != opNone && match(s) {
			taken = append(taken, s)
			l.release(uint16(i))
		}
	}
	return taken
}

// read asks for n bytes at off. The lane is taken; so it is for the others here.
func (l *lane) read(to asker, unique uint64, off int64, n uint32) {
	cookie, ok := l.slot(slot{op: opRead, to: to, unique: unique, off: off, n: n})
	if !ok {
		to.end(unique, unix.EIO)
		return
	}
	l.putHeader(cmdRead, cookie, off, n)
}

func (l *lane) putHeader(cmd uint16, cookie uint64, off int64, n uint32) {
	var b [requestSize]byte
	putRequest(b[:], 0, cmd, cookie, off, n)
	l.put(b[:])
}

// write writes data at off.
func (l *lane) write(to asker, unique uint64, off int64, data []byte) {
	l.change(slot{op: opWrite, to: to, unique: unique, off: off, n: uint32(len(data))}, cmdWrite, 0, data)
}

// zero makes n bytes at off zero. With keep, the room stays allocated.
func (l *lane) zero(to asker, unique uint64, off int64, n uint32, keep bool) {
	var flags uint16
	if keep {
		flags = cmdFlagNoHole
	}
	l.change(slot{op: opZero, to: to, unique: unique, off: off, n: n}, cmdWriteZeroes, flags, nil)
}

// change logs and sends a request that changes the disk. Both happen under
// sendMu, so that a replay sees the entry if and only if it was or will be sent.
func (l *lane) change(s slot, cmd, flags uint16, data []byte) {
	size := requestSize + len(data)
	cookie, ok := l.slot(s)
	if !ok {
		s.to.end(s.unique, unix.EIO)
		return
	}
	id, msg, ok := l.r.log.add(s.off, int64(s.n), size)
	for !ok {
		l.release(uint16(cookie))
		l.end()
		room := l.r.log.waitRoom(size)
		l.begin()
		if cookie, ok = l.slot(s); !ok || !room {
			if ok {
				l.release(uint16(cookie))
			}
			s.to.end(s.unique, unix.EIO)
			return
		}
		id, msg, ok = l.r.log.add(s.off, int64(s.n), size)
	}
	l.setEntry(cookie, id)
	putRequest(msg, flags, cmd, cookie, s.off, s.n)
	copy(msg[requestSize:], data)
	l.put(msg)
}

// flush asks the server to make durable what it has acknowledged. to is nil for
// a flush that nobody but the log asked for.
func (l *lane) flush(to asker, unique uint64) {
	if !l.r.info.canFlush() {
		endOf(to, unique, 0)
		return
	}
	cookie, ok := l.slot(slot{op: opFlush, to: to, unique: unique, mark: l.r.log.mark()})
	if !ok {
		endOf(to, unique, unix.EIO)
		return
	}
	l.putHeader(cmdFlush, cookie, 0, 0)
}

// finish answers the writes and flushes that were in flight when the last session
// broke: the log has been replayed and flushed, so they are done. It returns the
// cookies of the reads, to be asked again. The lane is taken and has no replier.
func (l *lane) finish() (reads []uint64) {
	for _, s := range l.takeAll(func(s slot) bool { return s.op != opRead }) {
		l.answer(s, 0, nil)
	}
	for i, s := range l.slots {
		if s.op == opRead {
			reads = append(reads, uint64(s.gen)<<16|uint64(i))
		}
	}
	return reads
}

// readAgain asks for reads on a new connection. The lane is taken.
func (l *lane) readAgain(reads []uint64) {
	for _, cookie := range reads {
		if s, ok := l.peek(cookie); ok {
			l.putHeader(cmdRead, cookie, s.off, s.n)
		}
	}
	l.push()
}

// receive takes the replies of one connection until it breaks.
func (l *lane) receive(c conn) {
	buf := make([]byte, receiveBuffer)
	r, w := 0, 0
	for {
		n, err := c.Read(buf[w:])
		w += n
		for w-r >= replySize {
			used, err := l.reply(buf[r:w])
			if err != nil {
				l.r.fail(err)
				return
			}
			if used == 0 {
				break
			}
			r += used
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the server closed the connection")
			}
			l.r.fail(err)
			return
		}
		if r == w {
			r, w = 0, 0
		} else if len(buf)-r < maxTransfer+replySize {
			w = copy(buf, buf[r:w])
			r = 0
		}
	}
}

// reply takes one reply from the beginning of b, which has at least its header,
// and returns its length, or 0 if more bytes are needed.
func (l *lane) reply(b []byte) (used int, err error) {
	cookie, errno, err := parseReply(b)
	if err != nil {
		return 0, err
	}
	s, ok := l.peek(cookie)
	switch {
	case !ok:
		return 0, fmt.Errorf("%w: answer to a request that was not made", ErrProtocol)
	case errno == nbdShutdown:
		return 0, errors.New("the server is shutting down")
	}
	used = replySize
	var data []byte
	if s.op == opRead && errno == 0 {
		if used += int(s.n); len(b) < used {
			return 0, nil
		}
		data = b[replySize:used]
	}
	var e unix.Errno
	if errno != 0 {
		e = toErrno(errno)
	}
	e = l.settle(s, e)
	l.release(uint16(cookie))
	l.answer(s, e, data)
	return used, nil
}

// settle brings the log up to date with an answer, and returns what to tell the
// kernel. The log comes first: what the kernel believes written is in the log as such.
func (l *lane) settle(s slot, e unix.Errno) unix.Errno {
	log := l.r.log
	switch s.op {
	case opWrite, opZero:
		if e != 0 {
			log.forget(s.entry)
		} else {
			log.ack(s.entry, !l.r.info.canFlush())
		}
		l.r.askFlush()
	case opFlush:
		if s.to == nil {
			log.ownFlushDone()
		}
		if e != 0 {
			log.fail()
			l.r.opt.Log.Error("the server cannot flush", "err", e)
		}
		if log.hasFailed() {
			return unix.EIO
		}
		log.flushed(s.mark)
		l.r.askFlush()
	}
	return e
}
