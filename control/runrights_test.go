package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
)

// The schedule of who may not run it any more does nothing, also nothing that needs no right of its own or is for failures: each time that it
// is due there is one run, which has failed, and an event and the audit say so.
func TestScheduleWithoutItsAuthor(t *testing.T) {
	loses := map[string]func(c *Control) error{
		"shut out":        func(c *Control) error { return c.catalog.SetDisabled(t.Context(), "ann", true) },
		"removed":         func(c *Control) error { return c.catalog.RemoveUser(t.Context(), "ann") },
		"without a grant": func(c *Control) error { return c.catalog.RemoveGrant(t.Context(), 1) },
	}
	for how, lose := range loses {
		c, ctx, h := serving(t), t.Context(), newHook(t, 200)
		granted(t, c, "ann", access.Operator)
		doc := fmt.Sprintf("kind: Workflow\nname: w\nschedule: {every: 1h}\nsteps:\n  - notify: {message: hi, url: %q}\n  - bookmark: {app: v, name: \"x-{{ run }}\"}\non_failure:\n  - notify: {message: oh, url: %q}\n", h.URL, h.URL)
		if _, err := c.ApplyWorkflow(WithAsk(ctx, by(t, c, "ann")), tidemark.WorkflowSpec{Document: doc}); err != nil {
			t.Fatal(err)
		}
		if j := eventually(t, c, 1)[0].Job; j.State != tidemark.JobDone {
			t.Fatalf("%s: %v", j.State, j.Error)
		}
		if err := lose(c); err != nil {
			t.Fatal(err)
		}
		posted, before := h.got.Load(), len(audited(t, c, "ann"))
		for _, at := range []time.Duration{5 * time.Hour, 0} { // it is due, and then no more
			c.keepSchedules(ctx, time.Now().Add(at))
			eventually(t, c, 2)
		}
		runs := eventually(t, c, 2)
		j := runs[0].Job
		if len(runs) != 2 || j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Denied || !strings.Contains(j.Error.Message, "the workflow w is not run: ann") || !strings.Contains(j.Error.Hint, "apply") {
			t.Fatalf("%s: %d runs, the last %s: %+v", how, len(runs), j.State, j.Error)
		}
		if n := h.got.Load(); n != posted {
			t.Errorf("%s: %d messages, and not %d", how, n, posted)
		}
		if got := ofRun(t, audited(t, c, "ann")[before:], j.ID); !slices.Equal(got, []string{": workflow.run workflow w refused"}) {
			t.Errorf("%s: the audit has %q", how, got)
		}
		r, err := c.RunOf(ctx, j.ID)
		if err != nil || slices.ContainsFunc(r.Steps, func(s tidemark.WorkflowStep) bool { return s.State != "waiting" }) {
			t.Errorf("%s: %+v, %v", how, r.Steps, err)
		}
		events, err := c.catalog.Events(ctx, 100)
		if err != nil || !slices.ContainsFunc(events, func(e tidemark.Event) bool {
			return e.Level == "error" && strings.Contains(e.Message, "the workflow w is not run: ann")
		}) {
			t.Errorf("%s: %+v, %v", how, events, err)
		}
	}
}

// A step that needs no right of its own needs the right to run the workflow when it is its turn, and so do those for failures.
func TestStepsThatNeedTheRunOnly(t *testing.T) {
	c, first, others := serving(t), newHook(t, 200), newHook(t, 200)
	granted(t, c, "ann", access.Operator, "v")
	first.signed = func(*http.Request, []byte) {
		if err := c.catalog.RemoveGrant(t.Context(), 1); err != nil {
			t.Error(err)
		}
	}
	applied(t, c, "", fmt.Sprintf("  - bookmark: {app: v, name: x}\n  - notify: {message: hi, url: %q}\n  - notify: {message: ho, url: %q}\non_failure:\n  - notify: {message: oh, url: %q}\n  - script: {name: sos}\n", first.URL, others.URL, others.URL))
	// The script need not be there to be refused.
	j, err := c.ask(WithAsk(t.Context(), by(t, c, "ann")), "workflow", running{Name: "w", Begun: time.Now()})
	if j = lasted(t, c, j, err); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "step notify-2 of w: ann may not do workflow.run on v") {
		t.Errorf("%s: %+v", j.State, j.Error)
	}
	if first.got.Load() != 1 || others.got.Load() != 0 {
		t.Errorf("%d and %d messages", first.got.Load(), others.got.Load())
	}
	want := []string{"bookmark: application.bookmark application v done", "notify: workflow.run workflow w done", "notify-2: workflow.run workflow w refused",
		"on_failure.notify: workflow.run workflow w refused", "on_failure.script: workflow.run workflow w refused"}
	if got := ofRun(t, audited(t, c, "ann"), j.ID); !slices.Equal(got, want) {
		t.Errorf("%q, and not %q", got, want)
	}
}

// What a run is about stays so when it has removed that, also for who has rights over no more, and when it is begun again where it was cut.
// Of what is there, it counts whose that is now.
func TestRunIsAboutWhatItRemoves(t *testing.T) {
	c, h := serving(t), newHook(t, 200)
	granted(t, c, "ann", access.Developer, "v")
	granted(t, c, "bob", access.Developer, "v")
	ann := WithAsk(t.Context(), by(t, c, "ann"))
	clones := func(user string) {
		t.Helper()
		ended(t, c)(c.Clone(WithAsk(t.Context(), by(t, c, user)), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}))
	}
	clones("ann")
	applied(t, c, "", fmt.Sprintf("  - remove: {clone: k}\n  - notify: {message: gone, url: %q}\n", h.URL))
	var noted running
	h.signed = func(*http.Request, []byte) {
		jobs, err := c.catalog.Runs(t.Context(), "workflow:w", 0, 1)
		var u undoing
		if err == nil {
			err = json.Unmarshal(jobs[0].Undo, &u)
		}
		if err == nil {
			err = json.Unmarshal(u.Args, &noted)
		}
		if err != nil {
			t.Error(err)
		}
	}
	if j := ran(t, c, "ann"); j.State != tidemark.JobDone || len(noted.About) != 1 || noted.About[0].Owner != "ann" {
		t.Fatalf("%s: %v; it is about %+v", j.State, j.Error, noted.About)
	}
	h.signed = nil
	again := func(r running, want tidemark.JobState) {
		t.Helper()
		j, err := c.ask(ann, "workflow", r)
		if j = lasted(t, c, j, err); j.State != want {
			t.Errorf("%s: %v", j.State, j.Error)
		}
	}
	applied(t, c, "", fmt.Sprintf("  - wait: {clone: k}\non_failure:\n  - notify: {message: gone, url: %q}\n", h.URL))
	noted.Version = 0
	again(noted, tidemark.JobFailed)
	if h.got.Load() != 2 {
		t.Errorf("%d messages", h.got.Load())
	}
	clones("bob")
	again(noted, tidemark.JobFailed)
	if h.got.Load() != 2 {
		t.Error("on what is another's by now, it is run")
	}
}
