package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tidemark"
)

func TestDifference(t *testing.T) {
	have := must(Parse([]byte(everything)))
	want := must(Parse([]byte(strings.NewReplacer("priority: 90\n", "", "every: 5m", "every: 1m", "[mon, tue, wed, thu, fri]", "[mon, fri]", "name: bank", "name: till", "team: sales", "team: shop").Replace(everything))))
	for range 5 {
		changes, err := Difference(have, want)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range changes {
			got = append(got, fmt.Sprint(c, " ", c.Wanted))
		}
		lines := []string{
			"leave Host db1 true",
			"change Template gold: capture.weekdays: [mon, tue, wed, thu, fri] → [mon, fri], log.every: 5m → 1m, priority: 90 → (none) true",
			"leave Profile berlin true",
			"change Application orders: labels.team: sales → shop true",
			"leave Group bank false",
			"make Group till: members: [orders], options.appshot: 5m true",
		}
		if !slices.Equal(got, lines) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
		}
		slices.Reverse(have.Groups)
	}
}

func TestNothingDiffersFromItself(t *testing.T) {
	set := must(Parse([]byte(everything)))
	changes, err := Difference(set, set)
	if err != nil || len(changes) != 5 {
		t.Fatalf("%v, %v", changes, err)
	}
	for _, c := range changes {
		if c.Action != ActionLeave || !c.Wanted {
			t.Errorf("%v", c)
		}
	}
}

func TestCheckReferences(t *testing.T) {
	set := must(Parse([]byte(everything)))
	if err := CheckReferences(Set{}, set); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		cut  func(*Set)
		says string
	}{
		{func(s *Set) { s.Profiles = nil }, "Application orders names the Profile berlin"},
		{func(s *Set) { s.Templates = nil }, "Application orders names the Template gold"},
		{func(s *Set) { s.Hosts = nil }, "Application orders names the Host db1"},
		{func(s *Set) { s.Applications = nil }, "Group bank names the Application orders"},
	} {
		want := set
		c.cut(&want)
		if err := CheckReferences(Set{}, want); tidemark.KindOf(err) != tidemark.NotFound || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %s", err, c.says)
		}
		if err := CheckReferences(set, want); err != nil {
			t.Errorf("the server has it: %v", err)
		}
	}
}
