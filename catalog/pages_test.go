package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tidemark"
)

// parts: what is asked for part by part is what there is.
func parts(t *testing.T, c *Catalog) {
	ctx := context.Background()
	for i := range 9 {
		if err := c.AddEvent(ctx, tidemark.Event{Time: time.Unix(int64(i), 0), Level: "info", Message: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		j, err := c.Enqueue(ctx, NewJob{Kind: "verify", Application: fmt.Sprint("app", i%2), Now: true}, plenty)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Finish(ctx, j.ID, tidemark.JobDone, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	var down, up []string
	for before := int64(0); ; {
		list, err := c.EventsBefore(ctx, before, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			down = append(down, e.Message)
			before = e.ID
		}
	}
	for after := int64(0); ; {
		list, err := c.EventsAfter(ctx, after, 4)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			up = append(up, e.Message)
			after = e.ID
		}
	}
	if want := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8"}; !slices.Equal(up, want) {
		t.Errorf("%v", up)
	}
	if slices.Reverse(down); !slices.Equal(up, down) {
		t.Errorf("%v, and backwards %v", up, down)
	}
	counts, err := c.CountJobs(ctx)
	if err != nil || len(counts) != 1 || counts[0].Kind != "verify" || counts[0].State != tidemark.JobDone || counts[0].Jobs != 9 || counts[0].Took <= 0 {
		t.Errorf("%+v, %v", counts, err)
	}
	if err := c.Put(ctx, Shots, "a", 1); err != nil {
		t.Fatal(err)
	}
	many := []string{"a"}
	for i := range 1200 {
		many = append(many, fmt.Sprint(i))
	}
	if found, err := Named[int](ctx, c, Shots, many); err != nil || len(found) != 1 || found["a"] != 1 {
		t.Errorf("%v, %v", found, err)
	}
}

// answers: a key is taken once, and its answer stays as long as it is good. Who had a key once changes nothing for who has it now.
func answers(t *testing.T, c *Catalog) {
	ctx := context.Background()
	take := func(k Key, print string) *Asked {
		t.Helper()
		a, err := c.TakeKey(ctx, k, print)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	one, two, three := NewKey("key", "server"), NewKey("key", "server"), NewKey("key", "server")
	if a := take(one, "one"); a != nil {
		t.Fatalf("the first is told of %+v", a)
	}
	if a := take(one, "one"); a != nil {
		t.Fatalf("who asks again, because he did not hear it, is told of %+v", a)
	}
	if a := take(two, "two"); a == nil || a.Fingerprint != "one" || a.Server != "server" || a.Answer != nil {
		t.Fatalf("%+v", a)
	}
	want := Answer{Status: 201, Media: "application/json", Location: "/v1/x", Body: `{"a":"ä"}`}
	if err := errors.Join(c.ReleaseKey(ctx, two), c.Answered(ctx, two, want)); err != nil {
		t.Fatal(err)
	}
	if a := take(two, "two"); a == nil || a.Fingerprint != "one" || a.Answer != nil {
		t.Fatalf("who does not have the key changed it: %+v", a)
	}
	if err := c.ReleaseKey(ctx, one); err != nil {
		t.Fatal(err)
	}
	if a := take(two, "two"); a != nil {
		t.Fatalf("what was released is not free: %+v", a)
	}
	if err := errors.Join(c.ReleaseKey(ctx, one), c.Answered(ctx, one, want)); err != nil {
		t.Fatal(err)
	}
	if a := take(three, "two"); a == nil || a.Fingerprint != "two" || a.Answer != nil {
		t.Fatalf("who had the key before changed it: %+v", a)
	}
	for range 2 {
		if err := c.Answered(ctx, two, want); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []Key{two, three} {
		if a := take(k, "two"); a == nil || a.Answer == nil || *a.Answer != want {
			t.Fatalf("%+v", a)
		}
	}
	old := time.Now().Add(-AnswersLast - time.Minute).UnixNano()
	if err := c.exec(ctx, "UPDATE answers SET asked = ? WHERE key = ?", old, "key"); err != nil {
		t.Fatal(err)
	}
	if a := take(three, "two"); a != nil {
		t.Fatalf("after a day it is still %+v", a)
	}
	if err := errors.Join(c.ReleaseKey(ctx, two), c.Answered(ctx, two, want)); err != nil {
		t.Fatal(err)
	}
	if a := take(one, "two"); a == nil || a.Answer != nil {
		t.Fatalf("who had the key a day ago changed it: %+v", a)
	}
}
