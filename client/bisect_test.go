package client

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"tidemark"
)

// hidden is a history whose first bad step is known.
type hidden struct {
	t       *testing.T
	steps   []tidemark.Step // the first is where it is good, the last where it is bad
	first   int             // index of the first bad one
	unknown map[tidemark.Position]bool
	probes  int
	broken  int // the probe that fails
}

var errBroken = errors.New("broken")

// newHidden makes a history of n steps at random: positions jump as over gaps, times as when nothing was written.
func newHidden(t *testing.T, rng *rand.Rand, n int) *hidden {
	h := &hidden{t: t, first: 1 + rng.IntN(n-1), unknown: map[tidemark.Position]bool{}}
	pos, at := tidemark.Position(rng.IntN(3)), time.Unix(1_800_000_000, 0)
	for range n {
		h.steps = append(h.steps, tidemark.Step{Position: pos, Time: at})
		pos, at = pos+1, at.Add(time.Duration(rng.IntN(1000))*time.Millisecond)
		if rng.IntN(10) == 0 {
			pos += tidemark.Position(rng.IntN(1000))
		}
	}
	return h
}

func (h *hidden) index(p tidemark.Point) int {
	i := slices.IndexFunc(h.steps, func(s tidemark.Step) bool { return s.Position == p.Position })
	if i < 0 {
		h.t.Fatalf("there is no step %v", p)
	}
	return i
}

func (h *hidden) Halve(_ context.Context, good, bad tidemark.Point, skip []tidemark.Position, at float64) (x tidemark.Halves, err error) {
	g, b := h.index(good), h.index(bad)
	x.Good, x.Bad = h.steps[g], h.steps[b]
	if b == g+1 {
		x.Write = &tidemark.DiffExtent{Off: int64(x.Bad.Position)}
	}
	between := slices.DeleteFunc(slices.Clone(h.steps[g+1:b]), func(s tidemark.Step) bool { return slices.Contains(skip, s.Position) })
	if x.Between = len(between); x.Between > 0 {
		if at == 0 {
			at = 0.5
		}
		x.Next = &between[int(at*float64(len(between)))]
	}
	return x, nil
}

func (h *hidden) Probe(_ context.Context, s tidemark.Step) (Verdict, error) {
	h.probes++
	switch {
	case h.probes == h.broken:
		return "", errBroken
	case h.unknown[s.Position]:
		return Unknown, nil
	case h.index(tidemark.AtPosition(s.Position)) < h.first:
		return Good, nil
	}
	return Bad, nil
}

func (h *hidden) search(s Search) (tidemark.Bisected, error) {
	s.Good, s.Bad = tidemark.AtPosition(h.steps[0].Position), tidemark.AtPosition(h.steps[len(h.steps)-1].Position)
	return Bisect(context.Background(), h, s)
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("TIDEMARK_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 5))
}

func TestBisect(t *testing.T) {
	rng := seeded(t)
	for range 2000 {
		h := newHidden(t, rng, 2+rng.IntN(1<<rng.IntN(12)))
		told := 0
		r, err := h.search(Search{Tell: func(_ tidemark.Step, _ Verdict, left int) {
			if told++; told+left > 2+bits.Len(uint(len(h.steps))) {
				t.Errorf("after %d probes %d more are said, of %d steps", told, left, len(h.steps))
			}
		}})
		if err != nil || r.Good != h.steps[h.first-1] || r.Bad != h.steps[h.first] || r.Write == nil || r.Write.Off != int64(r.Bad.Position) {
			t.Fatalf("%d steps, bad from %d on: %+v, %v", len(h.steps), h.first, r, err)
		}
		if limit := 2 + bits.Len(uint(len(h.steps))); r.Probes != h.probes || told != h.probes || h.probes > limit {
			t.Fatalf("%d steps took %d probes, which is more than %d", len(h.steps), h.probes, limit)
		}
	}
}

// Steps that cannot be told, single ones and stretches, leave as few as possible open.
func TestBisectSkips(t *testing.T) {
	rng := seeded(t)
	for range 1000 {
		h := newHidden(t, rng, 3+rng.IntN(400))
		for range rng.IntN(5) {
			from := 1 + rng.IntN(len(h.steps)-2)
			for i := from; i < min(len(h.steps)-1, from+1+rng.IntN(30)); i++ {
				h.unknown[h.steps[i].Position] = true
			}
		}
		good, bad := h.first-1, h.first
		for h.unknown[h.steps[good].Position] {
			good--
		}
		for h.unknown[h.steps[bad].Position] {
			bad++
		}
		r, err := h.search(Search{})
		if err != nil || r.Good != h.steps[good] || r.Bad != h.steps[bad] || len(r.Skipped) != bad-good-1 || (r.Write != nil) != (bad == good+1) {
			t.Fatalf("%d steps, bad from %d on, known only outside of %d to %d: %+v, %v", len(h.steps), h.first, good, bad, r, err)
		}
	}
}

func TestBisectResolution(t *testing.T) {
	rng := seeded(t)
	for range 1000 {
		h := newHidden(t, rng, 3+rng.IntN(400))
		res := time.Duration(1 + rng.IntN(20_000_000_000))
		r, err := h.search(Search{Resolution: res})
		if err != nil {
			t.Fatal(err)
		}
		good, bad := h.index(tidemark.AtPosition(r.Good.Position)), h.index(tidemark.AtPosition(r.Bad.Position))
		if good >= h.first || bad < h.first || bad-good-1 != r.Left || bad > good+1 && r.Bad.Time.Sub(r.Good.Time) > res {
			t.Fatalf("bad from %d on, with a resolution of %v: %d to %d, %d left", h.first, res, good, bad, r.Left)
		}
	}
}

// An end that is not what it is said to be is told; an error ends the search, with what was known.
func TestBisectRefuses(t *testing.T) {
	rng := seeded(t)
	h := newHidden(t, rng, 100)
	for _, c := range []struct {
		first   int
		unknown int
		want    string
	}{
		{0, -1, "the good end, " + h.steps[0].Position.String() + ", is bad"},
		{100, -1, "the bad end, " + h.steps[99].Position.String() + ", is good"},
		{50, 0, "the good end, " + h.steps[0].Position.String() + ", cannot be told"},
		{50, 99, "the bad end, " + h.steps[99].Position.String() + ", cannot be told"},
	} {
		h.first, h.unknown = c.first, map[tidemark.Position]bool{}
		if c.unknown >= 0 {
			h.unknown[h.steps[c.unknown].Position] = true
		}
		var e *tidemark.Error
		if _, err := h.search(Search{}); !errors.As(err, &e) || e.Message != c.want {
			t.Errorf("%v, and not %q", err, c.want)
		}
	}
	h.first, h.unknown, h.probes, h.broken = 50, nil, 0, 5
	if r, err := h.search(Search{}); err != errBroken || r.Probes != 4 || r.Good.Position >= r.Bad.Position {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSpread(t *testing.T) {
	seen := map[float64]bool{}
	for n := range 1023 {
		at := spread(n)
		if at <= 0 || at >= 1 || seen[at] {
			t.Fatalf("the %d-th is %v", n, at)
		}
		seen[at] = true
	}
	if spread(0) != 0.5 || spread(1) != 0.25 || spread(2) != 0.75 {
		t.Error(spread(0), spread(1), spread(2))
	}
}
