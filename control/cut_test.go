package control

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark"
	"tidemark/catalog"
	"tidemark/timeline"
)

// A rewind that was cut when it was done is told at once, and can be undone.
func TestRewindCutWhenDone(t *testing.T) {
	c, _, _ := liveVolume(t)
	ctx := context.Background()
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	pos, err := a.t.Bookmark(timeline.Mark{Name: "before-rewind-x", Labels: map[string]string{labelRewound: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	done, err := c.undo(ctx, 1, undoing{Stopped: "v", Done: mustJSON(tidemark.Rewound{Name: "v"})})
	if err != nil || len(done) == 0 {
		t.Fatalf("it is not done: %s, %v", done, err)
	}
	if back, err := rewindTo(a, tidemark.Point{}, true); err != nil || back != pos {
		t.Errorf("an undo goes to %v and not to %v: %v", back, pos, err)
	}
}

// An import that was cut and undone when it had made its volume leaves another volume alone that has the name by then.
func TestImportAnew(t *testing.T) {
	c, _, _ := liveVolume(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := c.ask(context.Background(), "import", importing{ImportSpec: tidemark.ImportSpec{Name: "v", Path: image}, Anew: true})
	if j = lasted(t, c, j, err); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Conflict {
		t.Errorf("it is %s: %v", j.State, j.Error)
	}
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(a.t.Points()); n != 1 {
		t.Errorf("the volume has %d points", n)
	}
}

// That somebody wants a running job cancelled is recorded before he is told so: it is not begun again when the server is killed then.
func TestCancelIsRecorded(t *testing.T) {
	c, _, _ := liveVolume(t)
	ctx := context.Background()
	k, err := c.addJob(ctx, catalog.NewJob{Kind: "clone", Application: "slow", Now: true, MaxAttempts: 3})
	if err != nil {
		t.Fatal(err)
	}
	let := make(chan struct{})
	c.begin(k.Job, func(ctx context.Context, _ *task) (any, error) {
		<-ctx.Done()
		<-let
		return nil, ctx.Err()
	})
	if err := c.CancelJob(ctx, k.ID); err != nil {
		t.Error(err)
	}
	held, err := c.catalog.Renew(ctx)
	if i := slices.IndexFunc(held, func(h catalog.Held) bool { return h.ID == k.ID }); err != nil || i < 0 || !held[i].Cancelling {
		t.Errorf("it is not recorded: %+v, %v", held, err)
	}
	close(let)
	if j := lasted(t, c, k.Job, nil); j.State != tidemark.JobCancelled {
		t.Errorf("it is %s", j.State)
	}
}

// A job that somebody cancels is cancelled, whichever it returns of why its context is done and its cause; that is nothing that failed.
func TestCancelledIsNoFailure(t *testing.T) {
	c := serving(t)
	for name, why := range map[string]func(context.Context) error{"done": context.Context.Err, "cause": context.Cause} {
		j, err := c.addJob(t.Context(), catalog.NewJob{Kind: "capture", Application: name, Now: true, MaxAttempts: 5})
		if err != nil {
			t.Fatal(err)
		}
		c.begin(j.Job, func(ctx context.Context, _ *task) (any, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("read the source: %w", why(ctx))
		})
		if err := c.CancelJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		k := lasted(t, c, j.Job, nil)
		if k.State != tidemark.JobCancelled || k.Error == nil || k.Error.Kind != tidemark.Cancelled {
			t.Errorf("%s: it is %s: %+v", name, k.State, k.Error)
		}
		list, err := c.EventsAfter(t.Context(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		told := slices.DeleteFunc(list, func(e tidemark.Event) bool { return e.Application != name })
		if len(told) != 1 || told[0].Level != "info" || !strings.Contains(told[0].Message, "was cancelled") {
			t.Errorf("%s: it is told %+v", name, told)
		}
	}
}

// Two that need a name at the same time, which nobody has given, get two: as restores of one application do, each of which mounts it.
func TestNamesAtOnce(t *testing.T) {
	c, _, _ := liveVolume(t)
	var names []string
	for range 3 {
		name, release, err := c.claimFree(t.Context(), "v")
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		names = append(names, name)
	}
	if want := []string{"v2", "v3", "v4"}; !slices.Equal(names, want) { // v is the volume's
		t.Errorf("%v, and not %v", names, want)
	}
}

// What was half made is taken back by what the job made, or was to take away. Something that has its name by then, for the job had ended before and that
// could not be recorded, is another's and stays.
func TestUndoIsOfWhatTheJobMade(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	c := serverIn(t, dir)
	jobs := map[string]int64{}
	for _, x := range []struct {
		name string
		by   func(job int64) context.Context // who makes it
		old  bool
	}{
		{"mine", func(job int64) context.Context { return context.WithValue(ctx, jobID{}, job) }, false},
		{"old", func(int64) context.Context { return ctx }, true},
		{"others", func(job int64) context.Context { return context.WithValue(ctx, jobID{}, job+100) }, false},
		{"hand", func(int64) context.Context { return ctx }, false},
	} {
		j, err := c.addJob(ctx, catalog.NewJob{Kind: "clone", Application: x.name, Now: true, MaxAttempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		jobs[x.name] = j.ID
		v, err := c.createVolume(x.by(j.ID), tidemark.VolumeSpec{Name: x.name, Size: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		u := undoing{Remove: x.name}
		if x.old {
			u.Old = v.t.ID()
		}
		if err := c.catalog.Step(ctx, j.ID, "branch", u); err != nil {
			t.Fatal(err)
		}
	}
	closes(t, c)
	c = serverIn(t, dir)
	defer closes(t, c)
	for name, stays := range map[string]bool{"mine": false, "old": false, "others": true, "hand": true} {
		if _, err := c.app(name); (err == nil) != stays {
			t.Errorf("%s: %v", name, err)
		}
		j, err := c.Job(ctx, jobs[name], 0)
		if err != nil || (j.State == tidemark.JobFailed) != stays || strings.Contains(j.Error.Message, "stays") != stays {
			t.Errorf("%s: %+v, %v", name, j, err)
		}
	}
}
