package control

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark"
)

// liveVolume makes a LiveClone of a volume with a prepared point, on a server of its own.
func liveVolume(t *testing.T) (*Control, app, tidemark.RecoveryPoint) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can have files that only root can write to")
	}
	ctx := context.Background()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, append(make([]byte, 1<<20), []byte("card 4929123400000042 of Schmidt-42")...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 2<<20); err != nil {
		t.Fatal(err)
	}
	c, err := Open(ctx, Options{Dir: filepath.Join(dir, "data"), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(c.path(secretsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"present": "Schmidt-42\n", "absent": "Meier-1234\n"} {
		if err := os.WriteFile(c.path(secretsDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ended(t, c)(c.ImportVolume(ctx, tidemark.ImportSpec{Name: "v", Path: image, Bookmark: "one"}))
	for _, secrets := range []string{"present", "absent"} {
		ended(t, c)(c.Clone(ctx, tidemark.CloneSpec{Ref: "v@one", Name: secrets, Preparation: &tidemark.Preparation{Secrets: secrets}}))
		ended(t, c)(c.Prepare(ctx, tidemark.PrepareSpec{Name: secrets, Bookmark: "ready"}))
	}
	a, err := c.liveClone("absent")
	if err != nil {
		t.Fatal(err)
	}
	p, err := preparedPoint(a, "ready")
	if err != nil {
		t.Fatal(err)
	}
	return c, a, p
}

// ended waits for a job, which must succeed.
func ended(t *testing.T, c *Control) func(tidemark.Job, error) {
	t.Helper()
	return func(j tidemark.Job, err error) {
		t.Helper()
		if j = lasted(t, c, j, err); j.State != tidemark.JobDone {
			t.Fatalf("%s of %s: %s: %+v", j.Kind, j.Application, j.State, j.Error)
		}
	}
}

func lasted(t *testing.T, c *Control, j tidemark.Job, err error) tidemark.Job {
	t.Helper()
	for err == nil && (j.State == tidemark.JobQueued || j.State == tidemark.JobRunning) {
		j, err = c.Job(context.Background(), j.ID, 10*time.Second)
	}
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// TestPublished holds that only what was searched is published, as long as it is that, and that a value that is found publishes nothing.
func TestPublished(t *testing.T) {
	ctx := context.Background()
	c, a, p := liveVolume(t)
	is := func(application string, want bool) {
		t.Helper()
		got, err := c.Published(application, p.Position)
		if err != nil || got != want {
			t.Errorf("%s@%s is published: %v, %v", application, p.Position, got, err)
		}
	}
	taken := func(ref string, want bool) {
		t.Helper()
		got, err := c.Taking(ref)
		if err != nil || got.Published != want {
			t.Errorf("taking %s: %+v, %v", ref, got, err)
		}
	}
	j, err := c.Publish(ctx, tidemark.PublishSpec{Name: "present"})
	if j = lasted(t, c, j, err); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Conflict {
		t.Errorf("a point with a value in it: %+v", j)
	}
	taken("present@ready", false)

	is("absent", false)
	ended(t, c)(c.Publish(ctx, tidemark.PublishSpec{Name: "absent", Bookmark: "ready"}))
	is("absent", true)
	taken("absent@ready", true)
	taken("absent@latest", false)
	taken("v@one", false)
	if _, err := c.Expire(ctx, "absent@ready"); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("a published point was expired: %v", err)
	}
	if err := c.RemoveClone(ctx, "absent"); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("a LiveClone of which a point is published was removed: %v", err)
	}

	// Other images at that place are not what was searched.
	if err := c.annotate(ctx, a, func(n *about) {
		n.Live.Published[0].Images[0].Root = "0" + n.Live.Published[0].Images[0].Root[1:] + "0"
	}); err != nil {
		t.Fatal(err)
	}
	is("absent", false)
	taken("absent@ready", false)
	if err := c.Unpublish(ctx, "absent", "ready"); err != nil {
		t.Error(err)
	}
	if _, err := c.Expire(ctx, "absent@ready"); err != nil {
		t.Errorf("a point that is no longer published: %v", err)
	}
}

// TestPublishCut holds that what a publish had noted before it was cut decides whether it is done.
func TestPublishCut(t *testing.T) {
	ctx := context.Background()
	c, a, p := liveVolume(t)
	x := &publishing{a: a, point: p, res: tidemark.Published{Name: a.name, Publication: tidemark.Publication{Position: p.Position, Bookmark: p.Bookmark, Fingerprints: 1}}}
	u := undoing{Publishing: &x.res}
	if done, err := c.undo(ctx, 1, u); err != nil || done != nil {
		t.Errorf("cut before it was noted: %s, %v", done, err)
	}
	if err := c.notePublished(ctx, x); err != nil {
		t.Fatal(err)
	}
	if done, err := c.undo(ctx, 1, u); err != nil || done == nil {
		t.Errorf("cut when it was noted: %s, %v", done, err)
	}
	if err := c.Unpublish(ctx, a.name, p.Bookmark); err != nil {
		t.Fatal(err)
	}
	// A point that went away while it was searched is not published.
	if _, err := c.Expire(ctx, a.name+"@"+p.Bookmark); err != nil {
		t.Fatal(err)
	}
	var e *tidemark.Error
	if err := c.notePublished(ctx, x); !errors.As(err, &e) || e.Kind != tidemark.NotFound {
		t.Errorf("a point that is gone: %v", err)
	}
}
