package access

import (
	"net/netip"
	"testing"
)

// A sender has his share and no more, whichever of his addresses he comes from, and all together have no more than there is. What is given back
// is there again, once.
func TestShares(t *testing.T) {
	s := NewShares(5, 3)
	take := func(address string, want bool) func() {
		t.Helper()
		give, ok := s.Take(netip.MustParseAddr(address))
		if ok != want {
			t.Fatalf("%s: %v", address, ok)
		}
		return give
	}
	give := take("192.0.2.1", true)
	take("192.0.2.1", true)
	take("::ffff:192.0.2.1", true)
	take("192.0.2.1", false)
	take("2001:db8::1", true)
	last := take("2001:db8::2", true)
	take("198.51.100.1", false)
	give()
	give()
	take("2001:db8::ffff:3", true)
	take("2001:db8::4", false)
	take("192.0.2.1", false)
	last()
	take("198.51.100.1", true)
	take("192.0.2.1", false)
	for _, empty := range []int{len(NewShares(1, 1).held), len(s.held) - 3} {
		if empty != 0 {
			t.Errorf("%v", s.held)
		}
	}
}
