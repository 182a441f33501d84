package catalog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"tidemark"
)

// webhooks: what is said of one is kept, and how far it has come.
func webhooks(t *testing.T, c *Catalog) {
	ctx := context.Background()
	works := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(level, app string) {
		t.Helper()
		works(c.AddEvent(ctx, tidemark.Event{Time: time.Unix(7, 0), Level: level, Application: app, Message: level + " of " + app}))
	}
	get := func() Webhook {
		t.Helper()
		w, err := c.Webhook(ctx, "ops")
		works(err)
		works(c.CountPending(ctx, &w))
		return w
	}
	add("error", "orders") // before it was added
	spec := tidemark.WebhookSpec{Name: "ops", URL: "https://example.com/x", Level: "warning", Applications: []string{"ord*"}, Secret: "key"}
	works(c.AddWebhook(ctx, spec, "ann", 1))
	if err := c.AddWebhook(ctx, spec, "ann", 2); tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatal(err)
	}
	spec.Name = "more"
	if err := c.AddWebhook(ctx, spec, "ann", 1); tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatal(err)
	}
	w := get()
	if w.URL != spec.URL || w.Level != "warning" || !slices.Equal(w.Applications, spec.Applications) || w.Secret != "key" || w.Author != "ann" || w.State != tidemark.WebhookOK || w.Pending != 0 || w.Seen == 0 {
		t.Fatalf("%+v", w)
	}
	add("info", "orders")
	add("warning", "orders")
	add("error", "files")
	add("error", "")
	add("error", "orders2")
	if w = get(); w.Pending != 2 || w.Oldest == nil || !w.Oldest.Equal(time.Unix(7, 0)) {
		t.Fatalf("%+v", w)
	}
	works(c.NotTaken(ctx, "ops", "no"))
	since := get().FailingSince
	works(c.NotTaken(ctx, "ops", "still no"))
	if w = get(); w.State != tidemark.WebhookFailing || w.Error != "still no" || since == nil || !w.FailingSince.Equal(*since) || w.Failed != 2 {
		t.Fatalf("%+v", w)
	}
	list, err := c.EventsAfter(ctx, w.Seen, 100)
	works(err)
	for range 2 { // also if the first answer did not arrive
		works(c.Taken(ctx, w, list[1].ID))
	}
	if w = get(); w.State != tidemark.WebhookOK || w.Error != "" || w.Delivered != 1 || w.Pending != 1 || w.Last == nil {
		t.Fatalf("%+v", w)
	}
	works(c.Unwanted(ctx, "ops", list[3].ID))
	works(c.Unwanted(ctx, "ops", list[0].ID))
	if w = get(); w.Seen != list[3].ID || w.Pending != 1 {
		t.Fatalf("%+v", w)
	}
	works(c.ChangeWebhook(ctx, "ops", func(s *tidemark.WebhookSpec) error { s.Off, s.Applications = true, nil; return nil }))
	add("error", "")
	if w = get(); w.State != tidemark.WebhookOff || w.Pending != 0 || w.Applications != nil && len(w.Applications) != 0 {
		t.Fatalf("%+v", w)
	}
	works(c.ChangeWebhook(ctx, "ops", func(s *tidemark.WebhookSpec) error { s.Off = false; return nil }))
	if w = get(); w.State != tidemark.WebhookOK || w.Pending != 0 || w.URL != spec.URL {
		t.Fatalf("%+v", w)
	}
	works(c.RemoveWebhook(ctx, "ops"))
	for _, err := range []error{c.RemoveWebhook(ctx, "ops"), c.ChangeWebhook(ctx, "ops", nil)} {
		if tidemark.KindOf(err) != tidemark.NotFound {
			t.Fatal(err)
		}
	}
	works(c.Taken(ctx, w, 1<<40)) // who was about to say so has not noticed yet
	if all, err := c.Webhooks(ctx); err != nil || len(all) != 0 {
		t.Fatalf("%+v, %v", all, err)
	}
}

// forgotten holds against a model what webhooks miss, whatever is recorded, taken and forgotten in whatever order.
func forgotten(t *testing.T, c *Catalog) {
	ctx := context.Background()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	works := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	works(c.AddWebhook(ctx, tidemark.WebhookSpec{Name: "w", URL: "https://x", Level: "warning"}, "", 9))
	works(c.AddWebhook(ctx, tidemark.WebhookSpec{Name: "off", URL: "https://x", Level: "info", Off: true}, "", 9))
	wanted, taken, told := 0, 0, int64(0)
	for range 300 {
		switch w, err := c.Webhook(ctx, "w"); rng.IntN(5) {
		case 0, 1:
			level := tidemark.EventLevels()[rng.IntN(3)]
			works(c.AddEvent(ctx, tidemark.Event{Time: time.Now(), Level: level}))
			if level != "info" {
				wanted++
			}
		case 2, 3: // it is posted, and some of the events are forgotten before that is recorded
			works(err)
			list, err := c.EventsAfter(ctx, w.Seen, 100)
			works(err)
			if i := slices.IndexFunc(list, w.Wants); i >= 0 {
				if rng.IntN(2) == 0 {
					_, err := c.ForgetEvents(ctx, rng.IntN(6))
					works(err)
				}
				works(c.Taken(ctx, w, list[i].ID))
				taken++
			}
		case 4:
			_, err := c.ForgetEvents(ctx, rng.IntN(6))
			works(err)
			if w, err = c.Webhook(ctx, "w"); err == nil && w.Missed > 0 && rng.IntN(2) == 0 {
				err = c.ToldMissed(ctx, w)
				told += w.Missed
			}
			works(err)
		}
		w, err := c.Webhook(ctx, "w")
		works(err)
		works(c.CountPending(ctx, &w))
		if got := int64(taken) + told + w.Missed + w.Pending; got != int64(wanted) {
			t.Fatalf("of %d events %d were taken, %d are told as missed, %d are missed, and %d wait", wanted, taken, told, w.Missed, w.Pending)
		}
	}
	if off, err := c.Webhook(ctx, "off"); err != nil || off.Missed != 0 {
		t.Errorf("%+v, %v", off, err)
	}
}

// inOrder: who follows the events while they are recorded sees them all.
func inOrder(t *testing.T, c *Catalog) {
	ctx := context.Background()
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for n := range writers {
		wg.Go(func() {
			for i := range each {
				if err := c.AddEvent(ctx, tidemark.Event{Time: time.Now(), Level: "info", Message: fmt.Sprint(n, "/", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() { wg.Wait(); close(written) }()
	seen, after, over := 0, int64(0), false
	for {
		list, err := c.EventsAfter(ctx, after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 && over {
			break
		}
		if len(list) == 0 {
			select {
			case <-written:
				over = true
			default:
			}
			continue
		}
		seen, after = seen+len(list), list[len(list)-1].ID
	}
	if seen != writers*each {
		t.Errorf("of %d events %d were seen", writers*each, seen)
	}
}

// ownWebhooks: servers that share a catalog have webhooks of their own, of their own events.
func ownWebhooks(t *testing.T, at string) {
	ctx := context.Background()
	us := openFor(t, at, "us")
	if !Remote(at) {
		return // a file has one owner
	}
	them := openFor(t, at, "them")
	for _, c := range []*Catalog{us, them} {
		if err := c.AddWebhook(ctx, tidemark.WebhookSpec{Name: "w", URL: "https://" + c.owner, Level: "info"}, "", 1); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := them.AddEvent(ctx, tidemark.Event{Time: time.Now(), Level: "info"}); err != nil {
			t.Fatal(err)
		}
	}
	for c, want := range map[*Catalog]int64{us: 0, them: 3} {
		w, err := c.Webhook(ctx, "w")
		if err == nil {
			err = c.CountPending(ctx, &w)
		}
		if err != nil || w.URL != "https://"+c.owner || w.Pending != want {
			t.Errorf("%+v, %v", w, err)
		}
	}
	if _, err := us.ForgetEvents(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if list, err := them.Events(ctx, 9); err != nil || len(list) != 3 {
		t.Errorf("%v, %v", list, err)
	}
	if err := us.RemoveWebhook(ctx, "w"); err != nil {
		t.Fatal(err)
	}
	if _, err := them.Webhook(ctx, "w"); err != nil {
		t.Error(err)
	}
}
