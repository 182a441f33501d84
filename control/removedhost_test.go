package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// Nobody waits for a host that was removed, also if another of its name joins at once: a capture of it, and a restore in place there, end.
func TestNobodyWaitsForRemovedHost(t *testing.T) {
	c, _ := listens(t)
	host(t, c, "h")
	x, err := c.agentOn("h")
	if err != nil {
		t.Fatal(err)
	}
	tappedVolume(t, c, "tapped")
	a, err := c.app("tapped")
	if err == nil {
		err = c.annotate(t.Context(), a, func(n *about) { n.Agent = "h" })
	}
	if err == nil {
		a, err = c.app("tapped")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	waits := map[string]func() error{
		"a capture": func() error { return c.awaitHost(ctx, "h", x) },
		"a restore": func() error {
			_, err := c.catchUp(ctx, a, forEver, func(tidemark.Progress) {})
			return err
		},
	}
	type end struct {
		what string
		err  error
	}
	ends := make(chan end, len(waits))
	for what, wait := range waits {
		go func() { ends <- end{what, wait()} }()
	}
	time.Sleep(2 * awayPause)
	if len(ends) > 0 {
		t.Fatalf("a host that is away is not waited for: %v", <-ends)
	}
	if err := c.RemoveHost(t.Context(), tidemark.HostRemoval{Name: "h", Force: true}); err != nil {
		t.Fatal(err)
	}
	for range waits {
		if e := <-ends; tidemark.KindOf(e.err) != tidemark.NotFound || !strings.Contains(e.err.Error(), "host h was removed") {
			t.Errorf("%s: %v", e.what, e.err)
		}
	}
	host(t, c, "h")
	if err := c.awaitHost(ctx, "h", x); err == nil || !strings.Contains(err.Error(), "host h was removed") {
		t.Errorf("another of its name was taken for it: %v", err)
	}
}
