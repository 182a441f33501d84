package control

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// handClock is a clock that a test sets.
type handClock struct {
	wall time.Time
	ran  time.Duration
}

func (h *handClock) read() (time.Time, time.Duration) { return h.wall, h.ran }

// passes lets time pass.
func (h *handClock) passes(d time.Duration) { h.wall, h.ran = h.wall.Add(d), h.ran+d }

// TestClock holds by what clock things grow old: a jump forward counts when it has stayed for a day, and not at all if it is taken back before.
func TestClock(t *testing.T) {
	h := &handClock{wall: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)}
	k := clock{read: h.read}
	k.begin(time.Time{})
	truth := func() time.Time { return time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC).Add(h.ran) }
	is := func(want time.Time, jump, ahead, stayed time.Duration) {
		t.Helper()
		if l := k.look(); !l.aging.Equal(want) || l.jump != jump || l.ahead != ahead || l.stayed != stayed {
			t.Fatalf("at %v, after %v: %+v, and not %v", h.wall, h.ran, l, want)
		}
	}
	for range 24 * 365 { // a clock that is a little fast is not set
		h.passes(time.Hour)
		h.wall = h.wall.Add(10 * time.Second)
		is(h.wall, 0, 0, 0)
	}
	h.wall = truth()
	k.begin(time.Time{})

	year := 365 * 24 * time.Hour
	h.wall = h.wall.Add(year)
	is(truth(), year, year, 0)
	h.passes(23 * time.Hour)
	is(truth(), 0, year, 0)
	h.wall = h.wall.Add(-year + time.Second) // set right again
	is(truth().Add(time.Second), -year+time.Second, 0, 0)
	h.wall = truth()
	is(h.wall, 0, 0, 0)

	h.wall = h.wall.Add(-year) // set back, it is what it says, and so it is when it has come back
	is(h.wall, -year, 0, 0)
	h.passes(time.Hour)
	h.wall = truth()
	is(truth(), year, 0, 0)

	h.wall = h.wall.Add(3 * time.Hour)
	is(truth(), 3*time.Hour, 3*time.Hour, 0)
	h.passes(20 * time.Hour)
	h.wall = h.wall.Add(year) // the day begins anew
	is(truth(), year, year+3*time.Hour, 0)
	h.passes(20 * time.Hour)
	is(truth(), 0, year+3*time.Hour, 0)
	if l := k.look(); !l.until.Equal(h.wall.Add(4 * time.Hour)) {
		t.Errorf("it is believed from %v on: now is %v", l.until, h.wall)
	}
	h.passes(4 * time.Hour)
	is(h.wall, 0, 0, year+3*time.Hour)
	is(h.wall, 0, 0, 0)
}

// TestClockOfBefore: a server that was off for long, by the clock, does not believe that at once.
func TestClockOfBefore(t *testing.T) {
	h := &handClock{wall: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)}
	for away, ahead := range map[time.Duration]time.Duration{0: 0, time.Hour: 0, -time.Hour: 0, 72 * time.Hour: 72 * time.Hour, -72 * time.Hour: 0} {
		k := clock{read: h.read}
		if got := k.begin(h.wall.Add(-away)); got != ahead {
			t.Errorf("off for %v: ahead by %v", away, got)
		}
		if l := k.look(); !l.aging.Equal(h.wall.Add(-ahead)) || !l.due || l.jump != 0 {
			t.Errorf("off for %v: %+v", away, l)
		}
	}
	k, wrong := clock{read: h.read}, 20*365*24*time.Hour // it comes back with the clock of a dead battery, and is set right
	last := h.wall
	h.wall = last.Add(-wrong)
	k.begin(last)
	h.passes(time.Hour)
	h.wall = h.wall.Add(wrong)
	if l := k.look(); l.ahead != 0 || !l.aging.Equal(h.wall) {
		t.Errorf("set right: %+v", l)
	}
}

// TestClockIsNeverAhead: whatever wrong times a clock shows, each for less than a day, nothing is older than it is; and when it is right, nothing is younger.
func TestClockIsNeverAhead(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 200 {
		h := &handClock{wall: time.Unix(1_800_000_000, 0)}
		k := clock{read: h.read}
		k.begin(time.Time{})
		wrong, wrongFor := time.Duration(0), time.Duration(0)
		for range 200 {
			step := time.Duration(rng.IntN(120)) * time.Minute
			if wrongFor += step; wrong == 0 || wrongFor >= clockStays {
				wrongFor = 0
			}
			h.passes(step)
			switch {
			case wrong != 0 && wrongFor+2*time.Hour >= clockStays:
				h.wall, wrong, wrongFor = h.wall.Add(-wrong), 0, 0
			case rng.IntN(10) == 0:
				d := time.Duration(rng.IntN(20001)-10000) * time.Hour
				h.wall, wrong = h.wall.Add(d), wrong+d
			}
			truth := h.wall.Add(-wrong)
			if l := k.look(); l.aging.After(truth) || wrong == 0 && !l.aging.Equal(truth) {
				t.Fatalf("it is %v, the clock shows %v, and things grow old by %v", truth, h.wall, l.aging)
			}
		}
	}
}

// TestWrongClockTakesNothing holds that a clock that is wrong for a while takes away no point and no clone, and says so, and that one that stays does.
func TestWrongClockTakesNothing(t *testing.T) {
	ctx := t.Context()
	o := Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20}
	c, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	_, err = c.CreateVolume(ctx, tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	begun := time.Now()
	for i := range 3 {
		if err == nil {
			_, err = c.Bookmark(ctx, tidemark.BookmarkSpec{Application: "v", Name: promisedPrefix + begun.Add(time.Duration(i)*time.Second).UTC().Format("20060102-150405.000")})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.Clone(ctx, tidemark.CloneSpec{Ref: "v@latest", Name: "dev", Lifetime: 3600}))
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	short := policy.Template{Name: "short", Keep: &policy.Retention{Age: policy.Duration(time.Hour)}}
	// sift is what the scheduler does behind a capture that it has made under the clock.
	sift := func() (left int) {
		c.promises.anew()
		h := policy.History{Points: []policy.Point{{Position: 1 << 40, Time: c.shown(), Bookmark: "sla-newest"}}}
		for _, p := range a.t.Points() {
			h.Points = append(h.Points, policy.Point{Position: p.Position, Time: p.Time, Bookmark: p.Bookmark})
		}
		c.forget(ctx, a, short, h, c.aging())
		return len(a.t.Points())
	}
	clone := func() bool {
		c.removeExpired(ctx, c.aging(), map[string]bool{})
		var k keptClone
		err := c.catalog.Get(ctx, catalog.Clones, "dev", &k)
		if err != nil && tidemark.KindOf(err) != tidemark.NotFound {
			t.Fatal(err)
		}
		return err == nil
	}
	tells := func(words string) { // whoever looks at the clock first
		t.Helper()
		holds(t, "an event says that "+words, func() bool {
			list, err := c.catalog.Events(ctx, 20)
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(list, func(e tidemark.Event) bool { return strings.Contains(e.Message, words) })
		})
	}
	warns := func() bool {
		s, err := c.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "the clock went forward by 8760h") })
	}
	all := len(a.t.Points())
	if n := sift(); n != all || !clone() || warns() {
		t.Fatalf("%d of %d points are left before anything happened", n, all)
	}

	year := 365 * 24 * time.Hour
	resumed := func() time.Time {
		c.promises.mu.Lock()
		defer c.promises.mu.Unlock()
		return c.promises.resumed
	}
	before := resumed()
	c.setClock(year, 0)
	if n := sift(); n != all || !clone() || !warns() {
		t.Errorf("a clock that was set forward leaves %d of %d points", n, all)
	}
	tells("the clock went forward by 8760h")
	holds(t, "what was missed by the jump is caught up from then on", func() bool { return resumed().After(before) })
	c.setClock(0, 0)
	if n := sift(); n != all || !clone() || warns() {
		t.Errorf("a clock that was set right leaves %d of %d points", n, all)
	}
	tells("the clock went back by 8760h")

	// Over a restart it is known by what was noted.
	c.Close()
	if c, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	err = c.catalog.Put(ctx, catalog.Clock, clockKey, clockNote{time.Now().Add(-year)})
	c.Close()
	next, e := Open(ctx, o)
	if err = errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	c = next
	if a, err = c.app("v"); err != nil {
		t.Fatal(err)
	}
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, "dev", &k); err != nil {
		t.Fatal(err)
	}
	yesterday := time.Now().Add(-24 * time.Hour)
	k.Expires = &yesterday
	if err := c.catalog.Put(ctx, catalog.Clones, "dev", k); err != nil {
		t.Fatal(err)
	}
	if !clone() || !warns() {
		t.Error("a server that comes back after a year, by the clock, believes that at once")
	}
	tells("no server ran for 8760h")
	c.setClock(clockStays-time.Minute, clockStays-time.Minute)
	if n := sift(); n != all || !clone() || !warns() {
		t.Errorf("before it has stayed for a day %d of %d points are left", n, all)
	}
	c.setClock(clockStays, clockStays)
	if n := sift(); n >= all || clone() || warns() {
		t.Errorf("a clock that has stayed leaves %d of %d points", n, all)
	}
	tells("has stayed so for 24h0m0s")
}

// setClock has the clock of a server differ from that of its host, as if so much time had passed.
func (c *Control) setClock(by, passed time.Duration) {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	started := c.started
	c.clock.read = func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0).Add(by), now.Sub(started) + passed
	}
}

// shown is what the clock of a server shows.
func (c *Control) shown() time.Time {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	wall, _ := c.clock.read()
	return wall
}
