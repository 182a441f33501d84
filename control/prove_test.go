package control

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"tidemark"
)

// A moment that is chosen at random lies in what can be had, and the same seed chooses the same.
func TestAnyMoment(t *testing.T) {
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	at := func(minutes int) time.Time { return begin.Add(time.Duration(minutes) * time.Minute) }
	covered := []tidemark.Interval{{From: at(0), To: at(10)}, {From: at(20), To: at(60)}, {From: at(90)}}
	gaps := []tidemark.Interval{{From: at(25), To: at(30)}, {From: at(95)}}
	window := clip(covered, at(5), at(100))
	if len(window) != 3 || !window[0].From.Equal(at(5)) || !window[2].To.Equal(at(100)) {
		t.Fatalf("clipped to %v", window)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng, again := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 1))
	in := map[int]int{}
	for range 2000 {
		m, ok := anyMoment(window, gaps, rng)
		if n, _ := anyMoment(window, gaps, again); !ok || !n.Equal(m) {
			t.Fatalf("%v and %v by the same seed", m, n)
		}
		for i, w := range window {
			if !m.Before(w.From) && m.Before(w.To) {
				in[i]++
			}
		}
		if !m.Before(at(25)) && m.Before(at(30)) || !m.Before(at(95)) {
			t.Fatalf("%v lies in a gap", m)
		}
	}
	if in[0]+in[1]+in[2] != 2000 || in[0] == 0 || in[2] == 0 || in[1] < in[0]+in[2] {
		t.Errorf("they lie so: %v", in)
	}
	for _, none := range [][]tidemark.Interval{nil, clip(covered, at(11), at(19))} {
		if m, ok := anyMoment(none, nil, rng); ok {
			t.Errorf("%v of %v", m, none)
		}
	}
	if m, ok := anyMoment(window[:1], []tidemark.Interval{{From: at(0)}}, rng); ok {
		t.Errorf("%v, and all is a gap", m)
	}
}

func TestPruneOutputs(t *testing.T) {
	dir := t.TempDir()
	for i := range mostOutputs + 7 {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i+1)+".log"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := pruneOutputs(dir); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != mostOutputs {
		t.Fatalf("%d files, %v", len(left), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "7.log")); err == nil {
		t.Error("an old one is left")
	}
	if _, err := os.Stat(filepath.Join(dir, "8.log")); err != nil {
		t.Error(err)
	}
}
