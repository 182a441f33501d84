package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// TestTablesFit holds that a table keeps to the width of a terminal: columns that say nothing are left out where that helps, and others follow below.
func TestTablesFit(t *testing.T) {
	long := strings.Repeat("x", 30)
	for name, test := range map[string]struct {
		head string
		rows [][]string
		want string
	}{
		"short": {"A B C", [][]string{{"1", "-", "-"}, {"22", "-", ""}}, "A   B  C\n1   -  -\n22  -\n"},
		"last":  {"A B", [][]string{{long, long + long}, {"1", "2"}}, "A" + strings.Repeat(" ", 31) + "B\n" + long + "\n  " + long + long + "\n1" + strings.Repeat(" ", 31) + "2\n"},
		"mute":  {"A BBBBBBBBBBBB C DDDDDDDDDDDD E", [][]string{{long, "-", long, "-", "5"}, {"1", "-", "3", "", "-"}}, "A" + strings.Repeat(" ", 31) + "C" + strings.Repeat(" ", 31) + "E\n" + long + "  " + long + "  5\n1" + strings.Repeat(" ", 31) + "3" + strings.Repeat(" ", 31) + "-\n"},
		"wide":  {"A B C D", [][]string{{long, long, long, "4"}, {"1", "2", "3", "-"}}, "A" + strings.Repeat(" ", 31) + "B\n  C" + strings.Repeat(" ", 31) + "D\n" + long + "  " + long + "\n  " + long + "  4\n1" + strings.Repeat(" ", 31) + "2\n  3" + strings.Repeat(" ", 31) + "-\n"},
		"none":  {"A B", nil, "A  B\n"},
	} {
		got := columns(test.head, test.rows)
		if got != test.want {
			t.Errorf("%s:\n%sand not\n%s", name, got, test.want)
		}
		for line := range strings.Lines(got) {
			if n := utf8.RuneCountInString(line) - 1; n > lineWidth {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}
