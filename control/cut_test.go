package control

import (
	"context"
	"os"
	"path/filepath"
	"slices"
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
	done, err := c.undo(ctx, undoing{Stopped: "v", Done: mustJSON(tidemark.Rewound{Name: "v"})})
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
