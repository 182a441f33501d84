package access

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/argon2id"

	"tidemark"
)

func passwords(t *testing.T, n int) *Passwords {
	t.Helper()
	p, err := NewPasswords(n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const good = "seven ferries at dusk"

func TestPasswords(t *testing.T) {
	ctx, p := context.Background(), passwords(t, 0)
	hash, err := p.Hash(ctx, "alice", good)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "$argon2id$v=19$m=65536,t=1,p=2$") || strings.Contains(hash, good) {
		t.Fatal(hash)
	}
	if again, _ := p.Hash(ctx, "alice", good); again == hash {
		t.Error("no salt")
	}
	cheap, err := argon2id.CreateHash(good, &argon2id.Params{Memory: 8 << 10, Iterations: 1, Parallelism: 1, SaltLength: 16, KeyLength: 32})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		hash, password string
		ok, renew      bool
	}{
		"right": {hash, good, true, false}, "wrong": {hash, good + " ", false, false}, "empty": {hash, "", false, false},
		"nobody": {"", good, false, false}, "of the decoy": {"", p.decoy, false, false}, "cheap": {cheap, good, true, true}, "cheap, wrong": {cheap, "x", false, false},
		"long": {hash, strings.Repeat("x", 1<<20), false, false},
	} {
		ok, renew, err := p.Verify(ctx, test.hash, test.password)
		if err != nil || ok != test.ok || renew != test.renew {
			t.Errorf("%s: %v, %v, %v", name, ok, renew, err)
		}
	}
	for _, bad := range []string{"x", "$argon2id$v=19$m=4294967295,t=1,p=2$AAAA$AAAA", "$argon2id$v=19$m=65536,t=4000000000,p=2$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=65536,t=0,p=2$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=65536,t=1,p=0$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2i$v=19$m=65536,t=1,p=2$AAAA$AAAA", "$argon2id$v=19$m=65536,t=1,p=2$AAAA$"} {
		if ok, _, err := p.Verify(ctx, bad, good); ok || tidemark.KindOf(err) != tidemark.Corrupt {
			t.Errorf("%s: %v, %v", bad, ok, err)
		}
	}
}

// TestUnknownUserTakesAsLong compares medians, generously: a difference that a
// network shows would be of the size of the hash itself.
func TestUnknownUserTakesAsLong(t *testing.T) {
	ctx, p := context.Background(), passwords(t, 1)
	hash, err := p.Hash(ctx, "alice", good)
	if err != nil {
		t.Fatal(err)
	}
	var known, unknown []time.Duration
	for range 5 {
		for _, half := range []struct {
			hash string
			took *[]time.Duration
		}{{hash, &known}, {"", &unknown}} {
			begin := time.Now()
			if ok, _, err := p.Verify(ctx, half.hash, "wrong password"); ok || err != nil {
				t.Fatal(ok, err)
			}
			*half.took = append(*half.took, time.Since(begin))
		}
	}
	slices.Sort(known)
	slices.Sort(unknown)
	if a, b := known[2], unknown[2]; a > 3*b || b > 3*a {
		t.Errorf("%s for a user, %s for none", a, b)
	}
}

func TestLoginsDoNotTakeAllMemory(t *testing.T) {
	p := passwords(t, 2)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() { p.Verify(ctx, "", good) })
	}
	most := 0
	for range 50 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, len(p.slots))
		if m.HeapInuse > 600<<20 {
			t.Errorf("%d MiB at 2 hashes at a time", m.HeapInuse>>20)
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	if most > 2 {
		t.Errorf("%d at a time", most)
	}
	p.slots <- struct{}{}
	p.slots <- struct{}{}
	if _, _, err := p.Verify(ctx, "", good); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("no slot, and no time: %v", err)
	}
}

func TestCheckPassword(t *testing.T) {
	for _, s := range []string{good, "aVery4Different%one", "пароль который длинный", strings.Repeat("abcdef ", 100)} {
		if err := CheckPassword("alice", s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "short", "elevenchars", "aaaaaaaaaaaaaaa", "abababababab", "Password1234", "PASSWORD123456", "alice12345", "alicealicealice", "alice1alice2alice", "with\x00a zero in it", "bad \xff text here", strings.Repeat("abcdefg ", 200)} {
		err := CheckPassword("alice", s)
		if tidemark.KindOf(err) != tidemark.Invalid || err == nil {
			t.Errorf("%q is accepted: %v", s, err)
		} else if s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("the error has it: %v", err)
		}
	}
	for _, s := range common12 {
		if len(s) < MinPassword || s != strings.ToLower(s) {
			t.Errorf("%q is in the list in vain", s)
		}
	}
}

var (
	here  = netip.MustParseAddr("192.0.2.1")
	there = netip.MustParseAddr("2001:db8::1")
	begin = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)
)

func TestLimiterBacksOff(t *testing.T) {
	l, now := NewLimiter(), begin
	for i := range freeTries {
		if w := l.Try(now, "alice", here); w != 0 {
			t.Fatalf("try %d waits %s", i, w)
		}
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64} {
		w := l.Try(now, "alice", here)
		if w != want*time.Second {
			t.Fatalf("waits %s, want %d s", w, want)
		}
		if again := l.Try(now.Add(w-1), "alice", here); again != 1 {
			t.Fatalf("a refused try counts: %s", again)
		}
		now = now.Add(w)
		if w := l.Try(now, "alice", here); w != 0 {
			t.Fatalf("waits %s after the wait", w)
		}
	}
	if w := l.Try(now.Add(forgetAfter), "alice", here); w != 0 {
		t.Errorf("never forgotten: %s", w)
	}
}

func TestLimiterShutsNobodyOut(t *testing.T) {
	l, now := NewLimiter(), begin
	home := netip.MustParseAddr("198.51.100.7")
	if l.Try(now, "root", home) != 0 {
		t.Fatal("the first try waits")
	}
	l.Succeeded(now, "root", home)
	// Many guess at root from everywhere.
	for i := range 5000 {
		l.Try(now.Add(time.Duration(i)*time.Millisecond), "root", netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	now = now.Add(5 * time.Second)
	if w := l.Try(now, "root", netip.MustParseAddr("203.0.113.9")); w <= 0 || w > userWait {
		t.Errorf("elsewhere waits %s", w)
	}
	if w := l.Try(now, "root", home); w != 0 {
		t.Errorf("at home waits %s", w)
	}
	// And one address guesses at everybody.
	for i := range 100 {
		l.Try(now, fmt.Sprintf("u%d", i), here)
	}
	if w := l.Try(now, "another", here); w <= 0 {
		t.Error("an address guesses on")
	}
	if w := l.Try(now, "another", there); w != 0 {
		t.Errorf("somebody else waits for it: %s", w)
	}
}

func TestLimiterSuccessDoesNotBuyTries(t *testing.T) {
	l, now := NewLimiter(), begin
	waited := false
	for i := range 50 {
		if l.Try(now, "mallory", here) == 0 {
			l.Succeeded(now, "mallory", here)
		}
		waited = waited || l.Try(now, fmt.Sprintf("victim%d", i), here) > 0
	}
	if !waited {
		t.Error("who logs in as himself in between guesses on for ever")
	}
}

func TestLimiterNeighbours(t *testing.T) {
	l, now := NewLimiter(), begin
	for i := range 100 {
		a := there.As16()
		a[15] = byte(i)
		l.Try(now, fmt.Sprintf("u%d", i), netip.AddrFrom16(a))
	}
	if l.Try(now, "x", there) == 0 {
		t.Error("a /64 is many")
	}
	if l.Try(now, "x", netip.MustParseAddr("2001:db8:0:1::1")) != 0 {
		t.Error("another /64 waits")
	}
	for range 10 {
		l.Try(now, "y", here)
	}
	if l.Try(now, "z", netip.MustParseAddr("::ffff:192.0.2.1")) == 0 {
		t.Error("an address of IPv4 is another in IPv6")
	}
	l.Try(now, "y", netip.Addr{}) // no panic
	for i := range 100 {
		l.Try(now, strings.Repeat("x", 1000+i), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	for user := range l.users {
		if len(user) > MaxSubject {
			t.Fatalf("a name of %d bytes is kept", len(user))
		}
	}
}

func TestLimiterIsBounded(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	l, now := NewLimiter(), begin
	for range 3 * maxTracked {
		n := rng.Uint32()
		a := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		user := fmt.Sprint(rng.Uint64())
		if l.Try(now, user, a) == 0 && rng.IntN(2) == 0 {
			l.Succeeded(now, user, a)
		}
		now = now.Add(time.Millisecond)
	}
	if len(l.users) > maxTracked || len(l.addresses) > maxTracked || len(l.known) > maxTracked {
		t.Errorf("%d users, %d addresses, %d pairs", len(l.users), len(l.addresses), len(l.known))
	}
}

// TestLimiterTogether: many at once get no more tries than one after the other.
func TestLimiterTogether(t *testing.T) {
	l := NewLimiter()
	var mu sync.Mutex
	var wg sync.WaitGroup
	tries := 0
	for range 64 {
		wg.Go(func() {
			if l.Try(begin, "alice", here) == 0 {
				mu.Lock()
				tries++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if tries != freeTries {
		t.Errorf("%d tries", tries)
	}
}
