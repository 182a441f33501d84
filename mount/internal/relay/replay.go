package relay

import (
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// replayBatch is how many writes are in flight while replaying. It is small
// because the members of a batch are compared pair by pair.
const replayBatch = 64

// replay writes everything in the log again, in order, and makes it durable.
// All sendMu are held, the repliers are gone, and c is used by nobody else. It
// returns how many writes it sent.
//
// A server may work on several requests of one connection in any order, so two
// writes that overlap are never in flight together.
func (r *Relay) replay(c conn) (n int, err error) {
	first, next := r.log.live()
	for first < next {
		var batch []uint64
		batch, first = r.log.batch(first, next)
		if err := r.replayBatch(c, batch); err != nil {
			return n, err
		}
		n += len(batch)
	}
	if r.info.canFlush() && !r.opt.ReadOnly {
		if err := flushNow(c); err != nil {
			return n, err
		}
	}
	r.log.reset()
	return n, nil
}

// batch returns the entries from first on that do not overlap, and where the
// next batch starts.
func (l *replayLog) batch(first, next uint64) (ids []uint64, then uint64) {
	for ; first < next && len(ids) < replayBatch; first++ {
		e := l.entry(first)
		if e.state == entryDone {
			continue
		}
		for _, j := range ids {
			if o := l.entry(j); e.off < o.off+o.n && o.off < e.off+e.n {
				return ids, first
			}
		}
		ids = append(ids, first)
	}
	return ids, first
}

// replayBatch sends the entries and waits for all answers.
func (r *Relay) replayBatch(c conn, ids []uint64) error {
	sent := make(chan error, 1)
	go func() { // beside the reading: a server may stop taking until it can answer
		for i, id := range ids {
			msg := r.log.message(id)
			putCookie(msg, uint64(i))
			if _, err := c.Write(msg); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	err := r.replayAnswers(c, ids)
	if err != nil {
		c.Abort() // so that the sender ends
	}
	if serr := <-sent; err == nil {
		err = serr
	}
	return err
}

func (r *Relay) replayAnswers(c conn, ids []uint64) error {
	answered := make([]bool, len(ids))
	for range ids {
		cookie, errno, err := readReply(c)
		if err != nil {
			return err
		}
		if cookie >= uint64(len(ids)) || answered[cookie] {
			return fmt.Errorf("%w: answer to a request that was not made", ErrProtocol)
		}
		answered[cookie] = true
		if errno == 0 {
			continue
		}
		if errno == nbdShutdown || !r.refused(ids[cookie], toErrno(errno)) {
			return fmt.Errorf("the server refuses a write that it had accepted: error %d", errno)
		}
	}
	return nil
}

// refused tells the kernel that a write which it still waits for was refused.
// It reports false if the kernel was told before that it succeeded.
func (r *Relay) refused(id uint64, errno unix.Errno) bool {
	if r.log.entry(id).state == entryAcked {
		return false
	}
	for _, l := range r.lanes {
		for _, s := range l.takeAll(func(s slot) bool { return (s.op == opWrite || s.op == opZero) && s.entry == id }) {
			l.answer(s, errno, nil)
		}
	}
	r.log.forget(id)
	return true
}

// flushNow sends a flush and waits for its success.
func flushNow(c conn) error {
	var req [requestSize]byte
	putRequest(req[:], 0, cmdFlush, 0, 0, 0)
	if _, err := c.Write(req[:]); err != nil {
		return err
	}
	_, errno, err := readReply(c)
	if err == nil && errno != 0 {
		err = fmt.Errorf("the server cannot flush: error %d", errno)
	}
	return err
}

func readReply(c io.Reader) (cookie uint64, errno uint32, err error) {
	var b [replySize]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, 0, err
	}
	return parseReply(b[:])
}

// toErrno translates an error of the protocol for the kernel.
func toErrno(nbd uint32) unix.Errno {
	switch e := unix.Errno(nbd); e {
	case unix.EPERM, unix.EIO, unix.ENOMEM, unix.EINVAL, unix.ENOSPC, unix.EOVERFLOW, unix.EOPNOTSUPP:
		return e
	}
	return unix.EIO
}
