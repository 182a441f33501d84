package access

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestManualHasTheTable holds that docs/access.md shows the table of roles as it is.
func TestManualHasTheTable(t *testing.T) {
	page, err := os.ReadFile("../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	for i := range table {
		e := &table[i]
		row := fmt.Sprintf("| `%s`", e.action)
		for _, l := range e.levels {
			row += fmt.Sprintf(" | %s", l)
		}
		row += fmt.Sprintf(" | %s |\n", e.means)
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/access.md lacks the row %s", row)
		}
	}
	if n := strings.Count(string(page), "\n| `"); n != len(table)+5 {
		t.Errorf("docs/access.md has %d rows, of which 5 are limits; there are %d actions", n, len(table))
	}
}
