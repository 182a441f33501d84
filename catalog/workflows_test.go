package catalog

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"tidemark"
	"tidemark/access"
)

// Versions are kept for ever, one that changes nothing is none, and one that was removed comes back as a new one.
func workflows(t *testing.T, c *Catalog) {
	ctx := context.Background()
	put := func(name, document string, version int64) {
		t.Helper()
		if w, err := c.PutWorkflow(ctx, Workflow{Name: name, Document: document, Author: "ann"}); err != nil || w.Version != version || w.Document != document || w.Author != "ann" {
			t.Fatalf("%+v, %v", w, err)
		}
	}
	last := func(name string, version int64, removed bool) {
		t.Helper()
		if w, there, err := c.LastVersion(ctx, name); err != nil || there != (version > 0) || w.Version != version || (w.Removed != nil) != removed {
			t.Fatalf("%+v, %v, %v", w, there, err)
		}
	}
	last("b", 0, false)
	put("b", "one", 1)
	put("b", "one", 1)
	last("b", 1, false)
	token := &access.Token{ID: 1, User: "ann", Name: "ci", Roles: []access.Role{access.Auditor}}
	for i, by := range []Workflow{{Author: "ann", Token: token}, {Author: "ann", Token: &access.Token{ID: 2, Roles: token.Roles}}, {Author: "bob"}} {
		by.Name, by.Document = "by", "one"
		w, err := c.PutWorkflow(ctx, by)
		if err != nil || w.Version != []int64{1, 1, 2}[i] || w.Author != by.Author || w.Token.NarrowsAs(nil) != (by.Token == nil) {
			t.Fatalf("%+v, %v", w, err)
		}
	}
	if err := c.RemoveWorkflow(ctx, "by"); err != nil {
		t.Fatal(err)
	}
	put("b", "two", 2)
	put("a", "other", 1)
	if list, err := c.Workflows(ctx); err != nil || len(list) != 2 || list[0].Name != "a" || list[1].Version != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := c.RemoveWorkflow(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveWorkflow(ctx, "b"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatal(err)
	}
	last("b", 2, true)
	if _, err := c.Workflow(ctx, "b", 0); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatal(err)
	}
	if w, err := c.Workflow(ctx, "b", 1); err != nil || w.Document != "one" || w.Removed == nil {
		t.Fatalf("%+v, %v", w, err)
	}
	put("b", "two", 3)
	if w, err := c.Workflow(ctx, "b", 0); err != nil || w.Version != 3 || w.Removed != nil {
		t.Fatalf("%+v, %v", w, err)
	}
	if v, err := c.Versions(ctx, "b"); err != nil || len(v) != 3 || v[0].Version != 3 {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := c.Workflow(ctx, "b", 4); tidemark.KindOf(err) != tidemark.NotFound || !strings.Contains(err.Error(), "version 4") {
		t.Fatal(err)
	}
	runOf(t, c)
}

// A part of a run is one job, the steps of a run are recorded once each, and a run takes no place from what it waits for.
func runOf(t *testing.T, c *Catalog) {
	ctx := context.Background()
	run := enqueue(t, c, NewJob{Kind: KindWorkflow, Application: "workflow:b", Origin: tidemark.FromSchedule})
	if got := claim(t, c, Limits{Host: 1, All: 1}); got != run {
		t.Fatalf("claimed %d", got)
	}
	part := enqueue(t, c, NewJob{Application: "x", Parent: run, Part: "capture"})
	if again := enqueue(t, c, NewJob{Application: "x", Parent: run, Part: "capture"}); again != part {
		t.Fatal("a part is there twice")
	}
	enqueue(t, c, NewJob{Application: "y", Parent: run, Part: "y"})
	enqueue(t, c, NewJob{Application: "z", Parent: run, Part: "z"})
	if got := claim(t, c, Limits{Host: 1, All: 1}); got != part {
		t.Fatalf("the run takes the place of its part: claimed %d", got)
	}
	if j, err := c.PartOf(ctx, run, "capture"); err != nil || j == nil || j.ID != part {
		t.Fatalf("%+v, %v", j, err)
	}
	if j, err := c.PartOf(ctx, run, ""); err != nil || j != nil {
		t.Fatalf("%+v, %v", j, err)
	}
	if p, err := c.PartsOf(ctx, run); err != nil || len(p) != 3 || p["capture"] != part {
		t.Fatalf("%+v, %v", p, err)
	}
	if l, err := c.Load(ctx); err != nil || l.All != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	if list, err := c.Runs(ctx, "", 0, 9); err != nil || len(list) != 1 || list[0].ID != run {
		t.Fatalf("%v, %v", list, err)
	}
	if j, err := c.LastScheduled(ctx, "workflow:b"); err != nil || j == nil || j.ID != run {
		t.Fatalf("%v, %v", j, err)
	}
	if j, err := c.LastScheduled(ctx, "workflow:c"); err != nil || j != nil {
		t.Fatalf("%v, %v", j, err)
	}
	stepsOf(t, c, run)
}

func stepsOf(t *testing.T, c *Catalog, run int64) {
	ctx := context.Background()
	for _, s := range []string{"good", "good", "bad", "begun"} {
		if err := c.BeginStep(ctx, run, s); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.EndStep(ctx, run, "good", map[string]int{"n": 7}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.EndStep(ctx, run, "bad", nil, tidemark.Errorf(tidemark.NotFound, "gone")); err != nil {
		t.Fatal(err)
	}
	if err := c.BeginStep(ctx, run, "good"); err != nil {
		t.Fatal(err)
	}
	steps, err := c.RunSteps(ctx, run)
	if err != nil || len(steps) != 3 {
		t.Fatalf("%+v, %v", steps, err)
	}
	var result map[string]int
	if good := steps["good"]; good.State != StepDone || json.Unmarshal(good.Result, &result) != nil || result["n"] != 7 || good.Finished == nil {
		t.Errorf("%+v", good)
	}
	if bad := steps["bad"]; bad.State != StepFailed || bad.Failure == nil || bad.Failure.Kind != tidemark.NotFound || bad.Result != nil {
		t.Errorf("%+v", bad)
	}
	if begun := steps["begun"]; begun.State != StepRunning || begun.Finished != nil || begun.Failure != nil {
		t.Errorf("%+v", begun)
	}
}
