package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRatioIsTakenWithinRounds(t *testing.T) {
	r := &Result{}
	// The machine was ten times slower in round 1, for both.
	for round, speed := range []float64{100, 10, 120} {
		r.add(Sample{"ours", "read", round, map[string]float64{"iops": 2 * speed}})
		r.add(Sample{"theirs", "read", round, map[string]float64{"iops": speed}})
	}
	r.add(Sample{"ours", "write", 0, map[string]float64{"iops": 1}})
	if got := r.ratio("ours", "theirs", "read", "iops"); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if got := r.median("ours", "read", "iops"); got != 200 {
		t.Errorf("median %v, want 200", got)
	}
	if got := r.ratio("ours", "nobody", "read", "iops"); got != 0 {
		t.Errorf("ratio to nobody is %v", got)
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		value     float64
		must, aim Bound
		want      string
	}{
		{1.9, atLeast(2), atLeast(4), "**short**"},
		{2, atLeast(2), atLeast(4), "must"},
		{4, atLeast(2), atLeast(4), "aim"},
		{1.2, atMost(1.1), Bound{}, "**short**"},
		{1.1, atMost(1.1), Bound{}, "must"},
		{3, Bound{}, atLeast(4), "below aim"},
		{3, Bound{}, Bound{}, ""},
	} {
		if got := (Row{Value: c.value, Must: c.must, Aim: c.aim}).verdict(); got != c.want {
			t.Errorf("%v against must %v, aim %v: %q, want %q", c.value, c.must, c.aim, got, c.want)
		}
	}
}

func TestReportReplacesOnlyItsPart(t *testing.T) {
	dir := t.TempDir()
	r := newResult("nbd", "about", &env{rounds: 3})
	r.row("figure", 1.5, "x", atLeast(1), Bound{}, "how")
	if err := r.save(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "doc.md")
	if err := os.WriteFile(file, []byte("before\n"+reportBegin+"\nold\n"+reportEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice is the same as once
		if err := writeReport(dir, file); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	if !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, "\nafter\n") || strings.Contains(text, "old") || strings.Count(text, "| figure | 1.50 x | ≥ 1.00 |  | must | how |") != 1 {
		t.Errorf("the report reads:\n%s", text)
	}
}

func TestUnknownBenchmark(t *testing.T) {
	if _, err := choose("nbd,nonsense"); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("choosing nonsense: %v", err)
	}
	if got, err := choose("depth,nbd"); err != nil || len(got) != 2 || got[0].name != "depth" {
		t.Errorf("choosing two: %v, %v", got, err)
	}
}
