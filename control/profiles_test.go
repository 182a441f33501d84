package control

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// A profile bounds the jobs that schedules ask for of its applications, from the moment on in which it is changed.
func TestProfileJobs(t *testing.T) {
	c, _ := listens(t)
	for _, name := range []string{"a", "b"} {
		if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: name, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	declared(t, c, "kind: Profile\nname: slow\njobs: 1\n")
	for _, name := range []string{"a", "b"} {
		if err := c.SetProfile(t.Context(), name, "slow"); err != nil {
			t.Fatal(err)
		}
	}
	ends, other := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(other) })
	running := func(name string, until chan struct{}) tidemark.Job {
		j, err := c.addJob(t.Context(), catalog.NewJob{Kind: "verify", Application: name, Profile: c.profileOf(name), Now: true, MaxAttempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		c.begin(j.Job, func(ctx context.Context, _ *task) (any, error) {
			select {
			case <-until:
			case <-ctx.Done():
			}
			return nil, nil
		})
		return j.Job
	}
	first := running("a", ends)
	if first.Profile != "slow" {
		t.Fatalf("%+v", first)
	}
	scheduled := func() tidemark.Job {
		ctx := WithAsk(t.Context(), Ask{Queue: true, Origin: tidemark.FromSchedule, By: "sla gold"})
		j, err := c.Verify(ctx, "b")
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	waiting := scheduled()
	time.Sleep(3 * lookPause)
	if j, err := c.Job(t.Context(), waiting.ID, 0); err != nil || j.State != tidemark.JobQueued || !strings.HasPrefix(j.Waits, "for a job of the profile slow to end: 1 run") {
		t.Fatalf("%+v, %v", j, err)
	}
	over := func(id int64) {
		t.Helper()
		j, err := c.Job(t.Context(), id, time.Minute)
		if err != nil || j.State != tidemark.JobDone {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	close(ends)
	over(first.ID)
	over(waiting.ID)
	running("a", other)
	waiting = scheduled()
	if _, err := c.Apply(t.Context(), []byte("kind: Profile\nname: slow\njobs: 2\n"), false); err != nil {
		t.Fatal(err)
	}
	over(waiting.ID)
}

// A profile is kept, changed and removed like a template, and what says where copies go is there while something needs it.
func TestProfiles(t *testing.T) {
	c, _ := listens(t)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "a", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetProfile(t.Context(), "a", "far"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("there is none: %v", err)
	}
	const far = "kind: Profile\nname: far\nreplicate: hamburg\n"
	const gold = "---\nkind: Template\nname: gold\ncapture: {every: 1h}\nreplicate: {every: 1h}\n"
	changes, applied := declared(t, c, far+gold)
	if len(changes) != 2 || changes[1] != "make Profile far: replicate: hamburg" || len(applied.Notes) != 2 {
		t.Errorf("it does %q, and says %q", changes, applied.Notes)
	}
	if changes, _ := declared(t, c, far+gold); len(changes) != 0 {
		t.Errorf("again, it does %q", changes)
	}
	if err := c.SetSLA(t.Context(), "a", "gold"); tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "says where to") {
		t.Errorf("copied to nowhere: %v", err)
	}
	if err := c.SetProfile(t.Context(), "a", "far"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetSLA(t.Context(), "a", "gold"); err != nil {
		t.Fatal(err)
	}
	list, err := c.Compliance(t.Context())
	if err != nil || len(list) != 1 || list[0].Profile != "far" || list[0].Template != "gold" {
		t.Errorf("%+v, %v", list, err)
	}
	for what, err := range map[string]error{
		"taken away":     c.SetProfile(t.Context(), "a", ""),
		"says no more":   applyError(t, c, "kind: Profile\nname: far\njobs: 1\n"),
		"needs one more": applyError(t, c, strings.Replace(far+gold, "replicate: {every: 1h}", "vault: {every: 1d}", 1)),
		"a new one":      applyError(t, c, "kind: Application\nname: b\nsource: /srv\nsla: gold\n"),
	} {
		if tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "where to") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := c.RemoveProfile(t.Context(), "far"); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("in use: %v", err)
	}
	if err := c.SetSLA(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.SetProfile(t.Context(), "a", ""); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveProfile(t.Context(), "far"); err != nil {
		t.Fatal(err)
	}
	if left, err := c.Profiles(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("%+v, %v", left, err)
	}
}

func applyError(t *testing.T, c *Control, documents string) error {
	t.Helper()
	before, err := c.declared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Apply(t.Context(), []byte(documents), false)
	after, aerr := c.declared(t.Context())
	if aerr != nil {
		t.Fatal(aerr)
	}
	changes, derr := policy.Difference(before, after)
	if derr != nil || slices.ContainsFunc(changes, func(x policy.Change) bool { return x.Action != policy.ActionLeave }) {
		t.Errorf("what was refused has changed something: %v, %v", changes, derr)
	}
	return err
}
