package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog/catalogtest"
)

func TestSQLite(t *testing.T) {
	conformance(t, func(t *testing.T) string { return filepath.Join(t.TempDir(), "catalog.db") })
}

func TestPostgres(t *testing.T) {
	server := catalogtest.StartPostgres(t)
	n := 0
	conformance(t, func(t *testing.T) string {
		n++
		name := fmt.Sprintf("c%d", n)
		if out, err := exec.Command("psql", "-h", server, "-U", "postgres", "-c", "CREATE DATABASE "+name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return fmt.Sprintf("postgres://postgres@/%s?host=%s", name, server)
	})
}

func conformance(t *testing.T, where func(t *testing.T) string) {
	open := func(t *testing.T, at string) *Catalog {
		t.Helper()
		return openFor(t, at, "us")
	}
	t.Run("Things", func(t *testing.T) { things(t, open(t, where(t))) })
	t.Run("Jobs", func(t *testing.T) { jobs(t, open(t, where(t))) })
	t.Run("Parts", func(t *testing.T) { parts(t, open(t, where(t))) })
	t.Run("Answers", func(t *testing.T) { answers(t, open(t, where(t))) })
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, open(t, where(t))) })
	t.Run("Owners", func(t *testing.T) { owners(t, where(t)) })
	t.Run("Order", func(t *testing.T) { order(t, open(t, where(t))) })
	t.Run("Limits", func(t *testing.T) { limits(t, where(t)) })
	t.Run("Profiles", func(t *testing.T) { profiles(t, where(t)) })
	t.Run("Again", func(t *testing.T) { again(t, open(t, where(t))) })
	t.Run("Cancel", func(t *testing.T) { cancel(t, where(t)) })
	t.Run("TakeOver", func(t *testing.T) { takeOver(t, where(t)) })
	t.Run("Workflows", func(t *testing.T) { workflows(t, open(t, where(t))) })
	t.Run("Webhooks", func(t *testing.T) { webhooks(t, open(t, where(t))) })
	t.Run("Forgotten", func(t *testing.T) { forgotten(t, open(t, where(t))) })
	t.Run("ForgottenJobs", func(t *testing.T) { forgottenJobs(t, where(t)) })
	t.Run("InOrder", func(t *testing.T) { inOrder(t, open(t, where(t))) })
	t.Run("OwnWebhooks", func(t *testing.T) { ownWebhooks(t, where(t)) })
	t.Run("Pages", func(t *testing.T) { pages(t, open(t, where(t))) })
	t.Run("Upgrade", func(t *testing.T) { upgrade(t, where(t)) })
	t.Run("Race", func(t *testing.T) { race(t, where(t)) })
	t.Run("Model", func(t *testing.T) { model(t, where(t)) })
}

func openFor(t *testing.T, at, owner string) *Catalog {
	t.Helper()
	c, err := Open(context.Background(), at, owner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func things(t *testing.T, c *Catalog) {
	ctx := context.Background()
	for _, name := range []string{"b", "a", "c'; DROP TABLE things; --"} {
		if err := c.Put(ctx, Mounts, name, tidemark.Mount{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Put(ctx, Mounts, "a", tidemark.Mount{Name: "a", Device: "/dev/loop7"}); err != nil {
		t.Fatal(err)
	}
	list, err := List[tidemark.Mount](ctx, c, Mounts)
	if err != nil || len(list) != 3 || list[0].Device != "/dev/loop7" {
		t.Fatalf("list: %+v, %v", list, err)
	}
	if l, err := List[tidemark.Clone](ctx, c, Clones); err != nil || len(l) != 0 {
		t.Fatalf("another sort: %v, %v", l, err)
	}
	if err := c.Delete(ctx, Mounts, "a"); err != nil {
		t.Fatal(err)
	}
	var m tidemark.Mount
	if err := c.Get(ctx, Mounts, "a", &m); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatalf("get of nothing: %v", err)
	}
	for _, name := range []string{"a@1", "a@2", "a-b@1", "A@1", "%@1"} {
		if err := c.Put(ctx, Shots, name, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(c.DeleteBelow(ctx, Shots, "a@"), c.DeleteBelow(ctx, Shots, "%@"), c.DeleteBelow(ctx, Mounts, "A@")); err != nil {
		t.Fatal(err)
	}
	if l, err := List[string](ctx, c, Shots); err != nil || len(l) != 2 || !slices.Contains(l, "a-b@1") || !slices.Contains(l, "A@1") {
		t.Fatalf("below another name: %v, %v", l, err)
	}
	if err := c.AddEvent(ctx, tidemark.Event{Time: time.Now(), Level: "warning", Application: "a", FirstID: "7", Message: "x"}); err != nil {
		t.Fatal(err)
	}
	if e, err := c.Events(ctx, 10); err != nil || len(e) != 1 || e[0].Message != "x" || e[0].FirstID != "7" {
		t.Fatalf("events: %v, %v", e, err)
	}
}

func jobs(t *testing.T, c *Catalog) {
	ctx := context.Background()
	j, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "orders", Args: tidemark.CaptureSpec{Application: "orders"}, FirstID: "7", Terms: []byte(`{"x":1}`), Now: true}, plenty)
	if err != nil || j.State != tidemark.JobRunning || j.Attempt != 1 || j.Started == nil || string(j.Args) != `{"application":"orders"}` {
		t.Fatalf("%+v, %v", j, err)
	}
	if _, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "orders", Now: true}, plenty); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "job 1 (capture) is running") {
		t.Fatalf("two at a time: %v", err)
	}
	for _, kind := range []string{"reclaim", "verify"} { // of no application
		if j, err := c.Enqueue(ctx, NewJob{Kind: kind, Now: true}, plenty); err != nil || j.State != tidemark.JobRunning {
			t.Fatalf("%s: %+v, %v", kind, j, err)
		}
	}
	if err := c.Step(ctx, j.ID, "copy", map[string]string{"unfreeze": "x"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Progress(ctx, j.ID, tidemark.Progress{Done: 5, Total: 10, Unit: "bytes"}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Job(ctx, j.ID)
	if err != nil || got.Step != "copy" || got.Progress.Done != 5 || got.FirstID != "7" || string(got.Terms) != `{"x":1}` || string(got.Undo) != `{"unfreeze":"x"}` {
		t.Fatalf("job: %+v, %v", got, err)
	}
	for range 2 { // also if the first answer did not arrive
		if err := c.Finish(ctx, j.ID, tidemark.JobFailed, nil, tidemark.Errorf(tidemark.Unavailable, "no room").WithHint("make some")); err != nil {
			t.Fatal(err)
		}
	}
	got, err = c.Job(ctx, j.ID)
	if err != nil || got.State != tidemark.JobFailed || got.Error.Hint != "make some" || got.Finished == nil || len(got.Undo) > 0 {
		t.Fatalf("finished job: %+v, %v", got, err)
	}
	if _, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "orders", Now: true}, plenty); err != nil {
		t.Fatalf("after it ended: %v", err)
	}
	if _, err := c.Job(ctx, 999); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatalf("no job: %v", err)
	}
}

func concurrent(t *testing.T, c *Catalog) {
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 30 {
				name := fmt.Sprintf("%d-%d", w, i)
				if err := c.Put(context.Background(), Exports, name, name); err != nil {
					t.Error(err)
				}
				if _, err := List[string](context.Background(), c, Exports); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, _ := List[string](context.Background(), c, Exports); len(l) != 180 {
		t.Errorf("%d of 180", len(l))
	}
}

// Nobody else can read the files of a catalog, or lock them; of an older release they could.
func TestFilesArePrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o022))
	at := filepath.Join(t.TempDir(), "catalog.db")
	for _, mode := range []os.FileMode{0o600, 0o644} {
		for range 2 {
			c, err := Open(t.Context(), at, "us")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Put(t.Context(), Exports, "x", "x"); err != nil {
				t.Fatal(err)
			}
			files, err := filepath.Glob(at + "*")
			if err != nil || len(files) != 3 {
				t.Fatalf("%q, %v", files, err)
			}
			for _, name := range files {
				st, err := os.Stat(name)
				if err != nil || st.Mode().Perm() != 0o600 {
					t.Errorf("%s has %v, %v", name, st.Mode(), err)
				}
				if err := os.Chmod(name, mode); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// D2: a flipped byte is an error, never a panic.
func TestDamagedFile(t *testing.T) {
	at := filepath.Join(t.TempDir(), "catalog.db")
	c, err := Open(context.Background(), at, "us")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := c.Put(context.Background(), Mounts, fmt.Sprint(i), tidemark.Mount{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	good, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(good); off += 997 {
		bad := append([]byte(nil), good...)
		for i := off; i < min(off+64, len(bad)); i++ {
			bad[i] ^= 0xff
		}
		os.Remove(at + "-wal")
		os.Remove(at + "-shm")
		if err := os.WriteFile(at, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(context.Background(), at, "us")
		if err != nil {
			continue
		}
		List[tidemark.Mount](context.Background(), c, Mounts)
		c.Close()
	}
	if err := os.WriteFile(at, []byte("this is no database, and long enough to look like one............................................."), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), at, "us"); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Fatalf("a text file: %v", err)
	}
}
