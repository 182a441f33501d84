package access

import (
	"net/netip"
	"sync"
)

// Shares bounds how many of some things there are at once, and how many of them one sender of the network has: nobody takes all of what
// everybody needs before anybody knows who he is. A sender is an address, or a /64 of IPv6, as for [Limiter]; all who have no address are one. It may be used
// concurrently.
type Shares struct {
	all, each int

	mu   sync.Mutex
	held map[netip.Prefix]int // guarded by mu; none is 0
	sum  int                  // of held; guarded by mu
}

// NewShares returns Shares of which nothing is taken: all for everybody together, each for one sender.
func NewShares(all, each int) *Shares {
	return &Shares{all: all, each: each, held: map[netip.Prefix]int{}}
}

// Take takes one for a sender, if there is one for him. give gives it back, and does nothing when it is called again.
func (s *Shares) Take(a netip.Addr) (give func(), ok bool) {
	where := neighbourhood(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sum >= s.all || s.held[where] >= s.each {
		return nil, false
	}
	s.held[where]++
	s.sum++
	return sync.OnceFunc(func() { s.give(where) }), true
}

func (s *Shares) give(where netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum--
	if s.held[where]--; s.held[where] == 0 {
		delete(s.held, where)
	}
}
