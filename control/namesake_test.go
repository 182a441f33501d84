package control

import (
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
)

// namesake removes a user, and adds another of his name, who has a role over applications.
func namesake(t *testing.T, c *Control, user string, role access.Role, names ...access.Pattern) {
	t.Helper()
	if err := c.catalog.RemoveUser(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	granted(t, c, user, role, names...)
}

// What somebody's workflow does on a schedule is not done by the rights of a later user of his name, before that one applies it himself.
func TestScheduleOfANamesake(t *testing.T) {
	c, ctx := serving(t), t.Context()
	granted(t, c, "ann", access.Operator)
	doc := "kind: Workflow\nname: w\nschedule: {every: 1h}\nsteps:\n  - bookmark: {app: v, name: \"x-{{ run }}\"}\n"
	if _, err := c.ApplyWorkflow(WithAsk(ctx, by(t, c, "ann")), tidemark.WorkflowSpec{Document: doc}); err != nil {
		t.Fatal(err)
	}
	if j := eventually(t, c, 1)[0].Job; j.State != tidemark.JobDone {
		t.Fatalf("%s: %v", j.State, j.Error)
	}
	namesake(t, c, "ann", access.Owner, "v")
	c.keepSchedules(ctx, time.Now().Add(5*time.Hour))
	if j := eventually(t, c, 2)[0].Job; j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "ann, for whom this is done, is no user any more") {
		t.Errorf("%s: %v", j.State, j.Error)
	}
	a, err := c.Apply(WithAsk(ctx, by(t, c, "ann")), []byte(doc), false)
	if err != nil || len(a.Changes) != 1 || a.Changes[0].String() != "change Workflow w: version: 1 → 2, author: ann, a former user → ann" {
		t.Errorf("%+v, %v", a, err)
	}
	c.keepSchedules(ctx, time.Now().Add(10*time.Hour))
	if j := eventually(t, c, 3)[0].Job; j.State != tidemark.JobDone {
		t.Errorf("%s: %v", j.State, j.Error)
	}
}

// What somebody has asked for that is not done yet, and what he has had done, belongs to no later user of his name, and takes none of his room.
func TestJobsOfANamesake(t *testing.T) {
	c, ctx := serving(t), t.Context()
	granted(t, c, "ann", access.Operator)
	applied(t, c, "", "  - bookmark: {app: v, name: x}\n")
	later := by(t, c, "ann")
	later.Queue, later.NotBefore = true, time.Now().Add(2*time.Second)
	clone, err := c.Clone(WithAsk(ctx, later), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"})
	if err != nil {
		t.Fatal(err)
	}
	run, err := c.Run(WithAsk(ctx, later), "w", tidemark.RunSpec{})
	if err != nil {
		t.Fatal(err)
	}
	owner := func(want string) {
		t.Helper()
		if o, err := c.Object(ctx, access.KindJob, "1"); err != nil || o.Owner != want {
			t.Errorf("it belongs to %q: %v", o.Owner, err)
		}
	}
	if clone.ID != 1 {
		t.Fatalf("%+v", clone)
	}
	owner("ann")
	namesake(t, c, "ann", access.Operator)
	owner(former)
	if u, err := c.usage(ctx, access.Principal{User: "ann", UserID: by(t, c, "ann").UserID}); err != nil || u.Clones != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	for _, j := range []tidemark.Job{clone, run} {
		if j = lasted(t, c, j, nil); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Denied || !strings.Contains(j.Error.Message, "is no user any more") {
			t.Errorf("the %s is %s: %v", j.Kind, j.State, j.Error)
		}
	}
	if o, err := c.catalog.Object(ctx, access.KindClone, "k"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("%+v, %v", o, err)
	}
	// What the administrator at the socket has asked for stays his, and what a schedule of an SLA template has is no user's.
	for by, want := range map[string]string{"": "", "sla gold": former} {
		if o, err := c.JobObject(ctx, tidemark.Job{ID: 1, AskedBy: by}); err != nil || o.Owner != want {
			t.Errorf("what %q has asked for is of %q: %v", by, o.Owner, err)
		}
	}
}

// A part of a run is of who has asked for the run, and not of who has his name.
func TestPartsAreOfWhoAsked(t *testing.T) {
	c := serving(t)
	granted(t, c, "ann", access.Operator)
	applied(t, c, "", "  - clone: {source: v@pub-1, name: k}\n")
	ann := by(t, c, "ann")
	j := ran(t, c, "ann")
	part, err := c.catalog.PartOf(t.Context(), j.ID, "clone")
	if err != nil || part == nil || part.AskerID != ann.UserID || ann.UserID == "" {
		t.Fatalf("%+v, %v", part, err)
	}
	if o, err := c.catalog.Object(t.Context(), access.KindClone, "k"); err != nil || o.Owner != "ann" {
		t.Errorf("%+v, %v", o, err)
	}
}
