package tap

import "sync"

// ranges lets only one at a time into any place of the disks. Two writes to the same bytes reach
// the primary and the queue in the same order because of it.
type ranges struct {
	mu    sync.Mutex
	freed *sync.Cond // somebody left
	busy  []span
	held  int // nobody enters while it is more than 0
	ended bool
}

func newRanges() *ranges {
	r := &ranges{}
	r.freed = sync.NewCond(&r.mu)
	return r
}

type span struct {
	disk     uint16
	off, end int64
}

func (s span) overlaps(o span) bool { return s.disk == o.disk && s.off < o.end && o.off < s.end }

// enter waits until nobody is in s. It reports false when nobody may enter any more.
func (r *ranges) enter(s span) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.ended && (r.held > 0 || r.taken(s)) {
		r.freed.Wait()
	}
	if r.ended {
		return false
	}
	r.busy = append(r.busy, s)
	return true
}

// hold keeps out who is not in, until release is called as often.
func (r *ranges) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held++
}

func (r *ranges) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held--
	r.freed.Broadcast()
}

// end keeps everybody out who is not in.
func (r *ranges) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.freed.Broadcast()
}

func (r *ranges) taken(s span) bool {
	for _, b := range r.busy {
		if b.overlaps(s) {
			return true
		}
	}
	return false
}

func (r *ranges) leave(s span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, b := range r.busy {
		if b == s {
			last := len(r.busy) - 1
			r.busy[i] = r.busy[last]
			r.busy = r.busy[:last]
			break
		}
	}
	r.freed.Broadcast()
}
