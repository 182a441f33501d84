package control

import (
	"fmt"
	"testing"

	"tidemark"
	"tidemark/access"
)

// TestNobodyFollows holds that to tell costs nothing then, and that nothing is kept when it has been so for a while.
func TestNobodyFollows(t *testing.T) {
	c := &Control{}
	c.changes.keep = 4
	change := tidemark.TimelineChange{Kind: tidemark.PointMade, Application: "v"}
	tell := func() { c.changes.tell("id", change, nil) }
	if n := testing.AllocsPerRun(100, tell); n > 0 || c.changes.ring != nil {
		t.Errorf("%v allocations, and %d changes are kept", n, len(c.changes.ring))
	}
	f, err := c.FollowChanges("")
	if err != nil {
		t.Fatal(err)
	}
	_, again, _ := f.Next(10)
	tell()
	f.Close()
	tell()
	f, err = c.FollowChanges(again.ID) // who comes back has missed nothing
	if err != nil {
		t.Fatal(err)
	}
	if list, again, _ := f.Next(10); len(list) != 2 || again != nil {
		t.Errorf("%+v, %+v", list, again)
	}
	c.changes.turnOff()
	if c.changes.ring == nil {
		t.Error("it was turned off while somebody follows")
	}
	f.Close()
	c.changes.turnOff() // as it is done after keptFor
	if c.changes.ring != nil || c.changes.gone != nil || c.changes.on.Load() {
		t.Error("it is not turned off")
	}
	tell()
	f, err = c.FollowChanges(again.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, now, _ := f.Next(10); now == nil || now.Reason != tidemark.SyncMissed || now.ID == again.ID {
		t.Errorf("%+v behind %+v", now, again)
	}
}

// TestKeptChanges holds that no more is kept than was said, also of what was removed, and that each follower is told all of it or that he was not.
func TestKeptChanges(t *testing.T) {
	c := &Control{}
	c.changes.keep = 4
	follow := func(after string) *Follower {
		t.Helper()
		f, err := c.FollowChanges(after)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(f.Close)
		return f
	}
	slow := follow("")
	_, begun, _ := slow.Next(1)
	var ids []string
	for i := range 100 {
		id := fmt.Sprint(i)
		_, _, wake := follow("").Next(1) // the sync
		if wake != nil {
			t.Fatal("a stream begins without a sync")
		}
		c.changes.tell(id, tidemark.TimelineChange{Kind: tidemark.CloneRemoved, Application: id}, &access.Object{Name: id})
		if len(c.changes.gone) > 4 || len(c.changes.ring) != 4 {
			t.Fatalf("%d removed, %d changes are kept", len(c.changes.gone), len(c.changes.ring))
		}
		newest := follow(begun.ID)
		if i < 4 {
			list, again, _ := newest.Next(10)
			if len(list) != i+1 || again != nil {
				t.Fatalf("of %d changes %d are told, %+v", i+1, len(list), again)
			}
			ids = append(ids, list[i].ID)
		} else if list, again, _ := newest.Next(10); len(list) > 0 || again == nil || again.Reason != tidemark.SyncMissed {
			t.Fatalf("%d are told of %d, of which 4 are kept: %+v", len(list), i+1, again)
		}
	}
	if list, again, _ := follow(ids[3]).Next(10); list != nil || again == nil {
		t.Errorf("%+v, %+v", list, again)
	}
	_, now, _ := slow.Next(10)
	if now == nil || now.Reason != tidemark.SyncMissed {
		t.Fatalf("who reads slowly is told %+v", now)
	}
	list, again, wake := slow.Next(10)
	if len(list) > 0 || again != nil || wake == nil {
		t.Fatalf("behind that come %+v, %+v", list, again)
	}
	c.changes.tell("x", tidemark.TimelineChange{Kind: tidemark.PointMade}, nil)
	<-wake
	if list, _, _ := slow.Next(10); len(list) != 1 || list[0].Timeline != "x" {
		t.Errorf("%+v", list)
	}
	c.changes.lose()
	if _, again, _ := slow.Next(10); again == nil || again.Reason != tidemark.SyncMissed {
		t.Errorf("when all is other than before: %+v", again)
	}
}

// TestVerdictsAreTold holds that publications and recovery proofs are told, with the point that they are about, and nothing of a check that failed.
func TestVerdictsAreTold(t *testing.T) {
	ctx := t.Context()
	c, a, p := liveVolume(t)
	f, err := c.FollowChanges("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Next(1) // the sync
	next := func(kind tidemark.ChangeKind) tidemark.TimelineChange {
		t.Helper()
		list, again, _ := f.Next(10)
		if again != nil || len(list) != 1 || list[0].Kind != kind || list[0].Application != a.name || list[0].Point == nil || *list[0].Point != *p.Changed() {
			t.Fatalf("%+v, %+v: not that of %+v: %s", list, again, p, kind)
		}
		if o, known, err := c.OfTimeline(ctx, list[0].Timeline); err != nil || !known || o.Name != a.name || o.Kind != access.KindClone {
			t.Errorf("it is about %+v, %v, %v", o, known, err)
		}
		return list[0].TimelineChange
	}
	j, err := c.Publish(ctx, tidemark.PublishSpec{Name: "present"})
	if j = lasted(t, c, j, err); j.State != tidemark.JobFailed {
		t.Errorf("a point with a value in it: %+v", j)
	}
	ended(t, c)(c.Publish(ctx, tidemark.PublishSpec{Name: a.name, Bookmark: p.Bookmark}))
	next(tidemark.PointPublished)
	if err := c.Unpublish(ctx, a.name, "other"); err == nil {
		t.Error("what is not published was unpublished")
	}
	if err := c.Unpublish(ctx, a.name, p.Bookmark); err != nil {
		t.Fatal(err)
	}
	next(tidemark.PointUnpublished)

	x := &proving{plan: plan{src: a}, kept: true, proof: tidemark.Proof{Application: a.name, Ref: a.name + "@" + p.Bookmark, Position: p.Position, Time: p.Time}}
	x.proof.Result = tidemark.Proven
	if err := c.stamp(ctx, x); err != nil {
		t.Fatal(err)
	}
	next(tidemark.PointProven)
	x.proof.Result, x.proof.Reason = tidemark.Unproven, "it did not answer"
	if err := c.stamp(ctx, x); err == nil {
		t.Error("it is proven")
	}
	if got := next(tidemark.PointUnproven); got.Reason != "it did not answer" {
		t.Errorf("the reason is %q", got.Reason)
	}

	// What a job has going on is nobody's to see, and what is being removed is still whose it was.
	hidden, err := c.branch(ctx, a, "aside", "", p.Position, nil, roleProof)
	if err != nil {
		t.Fatal(err)
	}
	if _, known, err := c.OfTimeline(ctx, hidden.t.ID()); known || err != nil {
		t.Errorf("a sandbox is shown: %v", err)
	}
	err = c.tellRemoval(ctx, tidemark.CloneRemoved, a.name, func() error {
		if err := a.t.Remove(ctx); err != nil {
			return err
		}
		if o, known, err := c.OfTimeline(ctx, a.t.ID()); err != nil || !known || o.Name != a.name {
			t.Errorf("while it is removed it is %+v, %v, %v", o, known, err)
		}
		return tidemark.Errorf(tidemark.Unavailable, "the catalog is away")
	})
	if list, _, _ := f.Next(10); err == nil || len(list) != 1 || list[0].Kind != tidemark.CloneRemoved {
		t.Errorf("%v: %+v is told", err, list)
	}
	if len(c.changes.leaving) > 0 {
		t.Errorf("%+v is still being removed", c.changes.leaving)
	}
}
