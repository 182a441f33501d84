package control

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"tidemark"
)

// What docs/sla.md shows can be applied as it is written, where its hosts have been added.
func TestTheManualCanBeApplied(t *testing.T) {
	page, err := os.ReadFile("../docs/sla.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, b := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		all = append(all, b[1])
	}
	site := strings.Join(all, "---\n")
	if !strings.Contains(site, "kind: Application") || !strings.Contains(site, "kind: Group") {
		t.Fatalf("there is no site in it: %s", site)
	}
	c, _ := listens(t)
	for _, m := range regexp.MustCompile("kind: Host\nname: (.*)\n").FindAllStringSubmatch(site, -1) {
		if _, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: m[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Apply(t.Context(), []byte(site), true); err != nil {
		t.Error(err)
	}
	// A cluster that is elsewhere is not taken for one of the server, whether its host is in the documents or has been added before.
	for _, documents := range []string{site, "kind: Application\nname: orders\nsource: postgres:///orders\n"} {
		_, err := c.Apply(t.Context(), []byte(strings.ReplaceAll(documents, "postgres:///orders", "postgres://backup@db1/orders")), true)
		if tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "the cluster of orders is on host db1") {
			t.Errorf("%s: %v", documents, err)
		}
	}
}
