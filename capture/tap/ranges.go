package tap

import (
	"slices"
	"sync"
)

// ranges lets only one at a time into any place of the disks. Two writes to the same bytes reach
// the primary and the queue in the same order because of it. Who came first goes in first: a wide range is not kept
// out for ever by narrow ones that come and go in it.
type ranges struct {
	mu      sync.Mutex
	freed   *sync.Cond // somebody left
	claims  []claim    // in the order in which they came
	tickets uint64
	held    int // nobody enters while it is more than 0
	ended   bool
}

// claim is of who is in a range or waits to be let in: until no earlier one overlaps it.
type claim struct {
	span
	ticket uint64
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
	r.tickets++
	c := claim{s, r.tickets}
	r.claims = append(r.claims, c)
	for !r.ended && (r.held > 0 || r.mustWait(c)) {
		r.freed.Wait()
	}
	if r.ended {
		r.claims = slices.DeleteFunc(r.claims, func(o claim) bool { return o == c })
		r.freed.Broadcast()
		return false
	}
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

// mustWait reports whether somebody came before c who overlaps it.
func (r *ranges) mustWait(c claim) bool {
	for _, o := range r.claims {
		if o.ticket == c.ticket {
			return false
		}
		if o.overlaps(c.span) {
			return true
		}
	}
	return false
}

// leave ends a stay in s. Of several claims to it the first is the one that is in.
func (r *ranges) leave(s span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.claims, func(c claim) bool { return c.span == s })
	r.claims = slices.Delete(r.claims, i, i+1)
	r.freed.Broadcast()
}
