package access

import (
	"net/netip"
	"sync"
	"time"
)

// The pace of those who guess passwords.
const (
	// freeTries may fail before anybody waits: people mistype.
	freeTries = 5
	// userWait is the longest wait of a user. It is short: whoever knows a name could
	// keep its owner out for as long.
	userWait = 30 * time.Second
	// addressWait is the longest wait of an address.
	addressWait = 15 * time.Minute
	// forgetAfter is when failures are forgotten.
	forgetAfter = time.Hour
	// maxTracked bounds the memory for each of users, addresses and known pairs.
	maxTracked = 20_000
)

// Limiter slows down those who guess passwords: after some failures each further
// try of the same user, or from the same address, has to wait twice as long as
// the one before, up to a bound.
//
// It shuts nobody out for ever. A user waits for half a minute at most, however
// many guess at his name, and not at all at an address from which he logged in
// lately. The socket knows no limiter. It may be used concurrently, and its
// memory is bounded; what it knows is gone when the server ends.
type Limiter struct {
	mu        sync.Mutex
	users     tracker[string]         // guarded by mu
	addresses tracker[netip.Prefix]   // guarded by mu
	known     map[knownPair]time.Time // guarded by mu; when the user last logged in from there
}

type knownPair struct {
	user    string
	address netip.Prefix
}

// NewLimiter returns a limiter that knows of no failure.
func NewLimiter() *Limiter {
	return &Limiter{users: tracker[string]{}, addresses: tracker[netip.Prefix]{}, known: map[knownPair]time.Time{}}
}

// Try asks whether a login may be tried now. If not, it returns how long to
// wait. If so it returns 0, and the try counts as failed until
// [Limiter.Succeeded] is called, so that many at once do not slip through together.
func (l *Limiter) Try(now time.Time, user string, address netip.Addr) time.Duration {
	user, where := possible(user), neighbourhood(address)
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.known[knownPair{user, where}]
	wait := l.addresses.wait(now, where, addressWait)
	if !known {
		wait = max(wait, l.users.wait(now, user, userWait))
	}
	if wait > 0 {
		return wait
	}
	l.addresses.failed(now, where)
	if !known {
		l.users.failed(now, user)
	}
	return 0
}

// Succeeded says that the try was right. What failed before is forgotten for
// the user; for the address only this try is, or somebody could guess at others
// by logging in as himself in between.
func (l *Limiter) Succeeded(now time.Time, user string, address netip.Addr) {
	user, where := possible(user), neighbourhood(address)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.users, user)
	l.addresses.undo(where)
	if len(l.known) >= maxTracked {
		for k := range l.known {
			delete(l.known, k) // any: it costs its user a wait at worst
			break
		}
	}
	l.known[knownPair{user, where}] = now
}

// possible is the user, or nothing if nobody can have that name: all of these are
// one, so that long ones do not fill the memory.
func possible(user string) string {
	if CheckUser(user) != nil {
		return ""
	}
	return user
}

// neighbourhood is what one sender can have as many addresses of as he likes: a /64 of IPv6.
func neighbourhood(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // all senders without an address are one
	}
	return p
}

// tracker counts failures.
type tracker[K comparable] map[K]*failures

type failures struct {
	n    int
	last time.Time
}

// wait is how long k has to wait now.
func (t tracker[K]) wait(now time.Time, k K, most time.Duration) time.Duration {
	f := t[k]
	if f == nil || now.Sub(f.last) >= forgetAfter || f.n < freeTries {
		return 0
	}
	pause := most
	if shift := f.n - freeTries; shift < 20 {
		pause = min(most, time.Second<<shift)
	}
	return max(0, min(most, f.last.Add(pause).Sub(now)))
}

func (t tracker[K]) failed(now time.Time, k K) {
	f := t[k]
	if f == nil || now.Sub(f.last) >= forgetAfter {
		if f == nil && len(t) >= maxTracked {
			t.evict(now)
		}
		f = &failures{}
		t[k] = f
	}
	f.n++
	f.last = now
}

// undo takes back one failure.
func (t tracker[K]) undo(k K) {
	if f := t[k]; f != nil {
		if f.n--; f.n <= 0 {
			delete(t, k)
		}
	}
}

// evict makes room: it forgets what is old, or else one of a few that failed the least.
func (t tracker[K]) evict(now time.Time) {
	var victim K
	least, seen := 0, 0
	for k, f := range t {
		if now.Sub(f.last) >= forgetAfter {
			delete(t, k)
			return
		}
		if seen == 0 || f.n < least {
			victim, least = k, f.n
		}
		if seen++; seen == 16 {
			break
		}
	}
	delete(t, victim)
}
