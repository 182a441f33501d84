package tap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark/capture"
	"tidemark/internal/shared"
)

// mirror keeps a stream to the sink open and sends the queue.
func (t *Tap) mirror(ctx context.Context) {
	for ctx.Err() == nil {
		err := t.connect(ctx)
		t.mu.Lock()
		if t.online || t.trouble == nil && ctx.Err() == nil {
			t.log.Warn("the timeline does not follow", "error", err)
		}
		t.online, t.trouble = false, err
		t.wake()
		t.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(backOff):
		}
	}
}

// connection is one open stream.
type connection struct {
	t      *Tap
	stream capture.Stream
	cancel context.CancelFunc
	failed error // guarded by t.mu
}

// errAnew ends a connection whose stream is given up for a new one.
var errAnew = errors.New("the stream begins anew")

// connect opens a stream and sends until it fails.
func (t *Tap) connect(ctx context.Context) error {
	t.mu.Lock()
	id, before, m := t.stream, t.known, t.queue.area.memory()
	t.mu.Unlock()
	defer t.letGoMemory(m)
	s, err := t.o.Sink.Open(ctx, id, before, m)
	if err != nil {
		return err
	}
	defer s.Close()
	if !s.Known() { // noted before the stream is: a tap that follows this one must not be believed
		t.loseAll("the server does not know what it had of the disk, or has lost a part of it")
	}
	if before.ID != id {
		if err := t.learn(id); err != nil {
			return err
		}
	}
	if !s.Known() {
		return errAnew
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &connection{t: t, stream: s, cancel: cancel}
	skip, gap, err := c.resume(id)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.fail(ctx.Err()) })()
	var both sync.WaitGroup
	both.Go(func() { c.fail(c.send(gap, skip)) })
	both.Go(func() { c.fail(c.acknowledge(ctx)) })
	both.Wait()
	return c.failed
}

// letGoMemory ends the use of what a connection was opened with.
func (t *Tap) letGoMemory(m *shared.Memory) {
	if err := m.Release(); err != nil {
		t.log.Warn("the queue keeps memory that it does not need", "error", err)
	}
}

// resume makes the connection the one that the queue goes to, from where the sink has what came before, and
// returns how many changes of the first segment it has already, and what it has to be told of a gap there.
func (c *connection) resume(id string) (skip int, gap *mark, err error) {
	t := c.t
	t.mu.Lock()
	if t.stream != id { // it was given up meanwhile
		t.mu.Unlock()
		return 0, nil, errAnew
	}
	skip, gap, ok := t.queue.resume(c.stream.Applied())
	if ok {
		t.online, t.trouble, t.live, t.asked = true, nil, c, time.Time{}
		t.applied = t.queue.gone + uint64(t.queue.next)
		t.sums.Store(c.stream.Shares())
		t.wake()
	}
	t.mu.Unlock()
	if !ok {
		t.loseAll("the server has lost a part of what it had")
		return 0, nil, errAnew
	}
	return skip, gap, nil
}

// fail ends the connection.
func (c *connection) fail(err error) {
	c.t.mu.Lock()
	if c.failed == nil {
		c.failed = err
	}
	if c.t.live == c {
		c.t.live = nil
	}
	c.t.wake()
	c.t.mu.Unlock()
	c.stream.Close()
}

// send says whether a gap lasts, and sends segments as they come, without the first changes of the first. A sink that was put back to an older
// state may have all changes, and not that a gap began or ended behind them.
func (c *connection) send(gap *mark, skip int) error {
	if err := c.say(gap); err != nil {
		return err
	}
	for {
		s, again, data, err := c.take()
		if err == nil {
			err = c.sendOne(s, again, data, skip)
		}
		if err != nil {
			return err
		}
		skip = 0
	}
}

// linger is how long a change waits for others to be sent with.
const linger = 4 * time.Millisecond

// take waits for the next segment; again says that it was sent before.
func (c *connection) take() (s *segment, again bool, h held, err error) {
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	for c.failed == nil {
		if t.queue.young() {
			t.mu.Unlock()
			time.Sleep(linger)
			t.mu.Lock()
		}
		if s, again := t.queue.take(); s != nil {
			return s, again, t.queue.holdData(s), nil
		}
		t.filled.Wait()
	}
	return nil, false, h, c.failed
}

// errDamaged: data in the queue are not what they were when they came. The sink has refused them.
var errDamaged = errors.New("the queue in memory is damaged")

// sendOne sends a segment, and lets go of its data.
func (c *connection) sendOne(s *segment, again bool, h held, skip int) (err error) {
	if h.slab != nil {
		defer c.t.letGoData(h)
		if again && !s.intact(h.data) {
			err = errDamaged
		}
	} else {
		h.data, err = c.t.queue.spill.read(s)
	}
	if err != nil {
		c.t.loseQueue(err.Error())
		return err
	}
	return c.give(s, h, skip)
}

// letGoData ends the use of what was held.
func (t *Tap) letGoData(h held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue.letGo(h.slab)
}

func (c *connection) give(s *segment, h held, skip int) error {
	if err := c.stream.Apply(s.changes(h, skip, c.stream.Shares())); err != nil {
		return err
	}
	if err := c.say(s.mark); err != nil {
		return err
	}
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if c.failed != nil { // what was given is of a queue that is no more
		return c.failed
	}
	c.t.applied++
	c.t.changed.Broadcast()
	return nil
}

// say gives the stream a mark, if it is not nil.
func (c *connection) say(m *mark) error {
	switch {
	case m == nil:
		return nil
	case m.bookmark != nil:
		return c.stream.Bookmark(*m.bookmark)
	case m.sample != nil:
		return c.stream.Sample(*m.sample)
	case m.whole:
		return c.stream.Whole()
	}
	return c.stream.Lose(m.since, m.why)
}

// acknowledge has what was sent made durable, and lets go of it.
func (c *connection) acknowledge(ctx context.Context) error {
	t := c.t
	for {
		t.mu.Lock()
		for c.failed == nil && t.applied == t.queue.gone {
			t.changed.Wait()
		}
		failed, upTo := c.failed, t.applied
		t.asked = time.Now()
		t.mu.Unlock()
		if failed != nil {
			return failed
		}
		durable, err := c.stream.Sync()
		if err != nil {
			return err
		}
		t.mu.Lock()
		t.asked = time.Time{}
		if c.failed == nil {
			t.known.Durable = max(t.known.Durable, durable) // which is of this stream: see learn
			t.queue.release(upTo, durable, t.drop)
			t.changed.Broadcast()
		}
		t.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(t.o.pace):
		}
	}
}

// resync sends again what the timeline lacks, piece by piece, while there is room for more
// than what is written now.
func (t *Tap) resync() {
	for {
		t.mu.Lock()
		for !t.closing && !t.canResync() {
			t.changed.Wait()
		}
		closing := t.closing
		t.mu.Unlock()
		if closing {
			return
		}
		err := t.resyncSome()
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			t.unreadable(err)
			time.Sleep(backOff)
		}
	}
}

// unreadable notes why a part of the primary cannot be sent again.
func (t *Tap) unreadable(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.readErr == nil {
		t.log.Error("a part of the disk cannot be sent again", "error", err)
	}
	t.readErr = err
}

// canResync reports whether there is something to do for resync. The caller holds mu.
func (t *Tap) canResync() bool {
	if t.doubt != nil {
		return false
	}
	if t.lost == 0 {
		return t.gap && time.Since(t.failedAt) > calm
	}
	return t.online && t.queue.memory+resyncSize <= t.queue.limit/2
}

// resyncSome sends one run of lost regions, or says that there are none.
func (t *Tap) resyncSome() error {
	t.mu.Lock()
	if t.lost == 0 {
		if t.gap {
			t.gap, t.readErr = false, nil
			t.queue.putMark(&mark{whole: true})
			t.log.Info("the timeline lacks nothing any more")
			t.filled.Signal()
		}
		t.mu.Unlock()
		return nil
	}
	d, first, last := t.lostRun()
	t.mu.Unlock()
	s := span{disk: d.n, off: first * regionSize, end: min(last*regionSize, d.size)}
	if !t.ranges.enter(s) {
		return ErrClosed
	}
	defer t.ranges.leave(s)
	err := t.sendAgain(d, first, last)
	if err == nil || last == first+1 {
		return err
	}
	// What cannot be read does not keep back what lies beside it.
	for r := first; r < last; r++ {
		if rerr := t.sendAgain(d, r, r+1); rerr != nil {
			err = rerr
		}
	}
	return err
}

// sendAgain reads some regions, in whose range nobody else is, and puts them into the stream.
func (t *Tap) sendAgain(d *Disk, first, last int64) error {
	off := first * regionSize
	data := make([]byte, min(last*regionSize, d.size)-off)
	if _, err := d.primary.ReadAt(data, off); err != nil {
		return fmt.Errorf("read %d bytes at %d of the primary: %w", len(data), off, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.doubt != nil { // what was read may be what the kernel has dropped meanwhile
		return t.doubt
	}
	t.reread += int64(len(data))
	for r := first; r < last; r++ {
		t.found(d, r, data[(r-first)*regionSize:min((r-first+1)*regionSize, int64(len(data)))])
	}
	t.filled.Signal()
	return nil
}

// lostRun returns some regions next to each other that are lost, those behind the ones that it returned last if there are
// such: then what cannot be read does not keep the rest waiting. The caller holds mu, and there are some.
func (t *Tap) lostRun() (d *Disk, first, last int64) {
	d = t.disks[t.again.disk]
	for first = d.lost.next(t.again.region); first >= d.lost.n; first = d.lost.next(0) {
		d = t.disks[(int(d.n)+1)%len(t.disks)]
	}
	const most = resyncSize / regionSize
	end := min(d.lost.n, first-first%most+most)
	for last = first + 1; last < end && d.lost.get(last); last++ {
	}
	t.again = place{d.n, last}
	return d, first, last
}

// found puts the content of a lost region into the stream. The caller holds mu.
func (t *Tap) found(d *Disk, r int64, data []byte) {
	if !d.lost.get(r) || !t.queue.hasRoom(len(data)) {
		return
	}
	d.lost.clear(r)
	t.lost--
	c := capture.Change{Disk: d.n, Off: r * regionSize, Len: int64(len(data)), Data: data, Time: t.o.now().UnixNano()}
	if zeros(data) {
		c.Data = nil
	}
	p := place{d.n, r}
	h := t.holds[p]
	h.n++ // until it is in the queue
	t.holds[p] = h
	t.enqueue(d, &c, false)
	t.letGo(p)
}

// zeros reports whether p holds nothing but zeros.
func zeros(p []byte) bool {
	for len(p) > len(zeroPage) {
		if string(p[:len(zeroPage)]) != zeroPage {
			return false
		}
		p = p[len(zeroPage):]
	}
	return string(p) == zeroPage[:len(p)]
}

var zeroPage = string(make([]byte, 4096))

// spillOver writes the queue's newer half to disk when it is long.
func (t *Tap) spillOver() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.closing {
		s := t.queue.spillable()
		if s == nil {
			t.changed.Wait()
			continue
		}
		slot, h := t.queue.spill.takeSlot(), t.queue.holdData(s)
		t.mu.Unlock()
		sum, err := t.queue.spill.write(slot, h.data)
		t.mu.Lock()
		t.queue.letGo(h.slab)
		switch {
		case err != nil:
			t.log.Error("the queue stays in memory", "error", err)
			t.queue.spill.failed = true
		case !t.queue.spills(s): // it was acknowledged meanwhile, or sent, and who gets it may read its memory
			t.queue.spill.free = append(t.queue.spill.free, slot)
		default:
			t.queue.spilled(s, slot, sum)
		}
	}
}
