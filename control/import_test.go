package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"tidemark"
	"tidemark/catalog"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// source is the data directory of a server that has ended, with volumes of one bookmark each, whose bytes are in a pack that was not sealed.
func source(t *testing.T, volumes ...string) string {
	t.Helper()
	dir := t.TempDir()
	c := serverIn(t, dir)
	for _, name := range volumes {
		wrote(t, c, name, "of before")
	}
	closes(t, c)
	return dir
}

// wrote makes a volume, writes to it and bookmarks it.
func wrote(t *testing.T, c *Control, name, what string) {
	t.Helper()
	a, err := c.createVolume(t.Context(), tidemark.VolumeSpec{Name: name, Size: 1 << 20})
	if err == nil {
		_, err = a.t.Disks()[0].WriteAt([]byte(what), 4096)
	}
	if err == nil {
		_, err = c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: name, Name: "kept"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// holdsBytes holds what the present and the bookmark of a volume have.
func holdsBytes(t *testing.T, c *Control, name, want string) {
	t.Helper()
	for _, ref := range []string{name, name + "@kept"} {
		a, pos, err := c.at(t.Context(), ref)
		if err != nil {
			t.Error(err)
			continue
		}
		s, err := a.t.At(volumeDisk, pos)
		if err != nil {
			t.Error(err)
			continue
		}
		got := make([]byte, len(want))
		if _, err := s.ReadAt(got, 4096); err != nil || string(got) != want {
			t.Errorf("%s reads %q, and not %q: %v", ref, got, want, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// empty holds that a server has nothing, nor anything of a pool, and can be used.
func empty(t *testing.T, c *Control) {
	t.Helper()
	if err := c.isEmpty(); err != nil {
		t.Error(err)
	}
	if err := c.bucket.List(t.Context(), "", func(o object.Info) error { return errors.New(o.Key + " is left") }); err != nil {
		t.Error(err)
	}
	for _, pattern := range []string{c.path("pool", ".import*"), c.path("timelines", "*")} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("%v are left", left)
		}
	}
	wrote(t, c, "mine", "of now")
	holdsBytes(t, c, "mine", "of now")
}

// failsOnce is a file system of which one file below a directory cannot be made.
type failsOnce struct {
	vfs.FS
	below  string
	failed bool
}

func (f *failsOnce) OpenReadWrite(name string, category pebblevfs.DiskWriteCategory, opts ...pebblevfs.OpenOption) (vfs.File, error) {
	if !f.failed && strings.HasPrefix(name, f.below) {
		f.failed = true
		return nil, errors.New("the disk has an error")
	}
	return f.FS.OpenReadWrite(name, category, opts...)
}

// staging imports dir, and waits, with all of it copied, until it is let go on, or fails.
func staging(t *testing.T, c *Control, dir string) (goOn func(error) tidemark.Job) {
	t.Helper()
	let, staged := make(chan error), make(chan struct{})
	w, err := c.poolImportWork(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	release, err := w.hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	j, err := c.addJob(t.Context(), catalog.NewJob{Kind: "pool import", Now: true, MaxAttempts: 1, Args: dir})
	if err != nil {
		t.Fatal(err)
	}
	c.begin(j.Job, func(ctx context.Context, task *task) (any, error) {
		defer release()
		res := &tidemark.ImportResult{}
		err := c.stage(ctx, task, dir, res)
		close(staged)
		if err = errors.Join(err, <-let); err != nil {
			return nil, errors.Join(err, c.letGo())
		}
		return res, c.reopen(ctx)
	})
	<-staged
	return func(err error) tidemark.Job {
		let <- err
		return lasted(t, c, j.Job, nil)
	}
}

// A pool is brought into an empty server, with what was not sealed of it.
func TestImportPool(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	j, err := c.ImportPool(t.Context(), source(t, "a", "b"))
	ended(t, c)(j, err)
	holdsBytes(t, c, "a", "of before")
	holdsBytes(t, c, "b", "of before")
	wrote(t, c, "mine", "of now")
	holdsBytes(t, c, "mine", "of now")
	if left, _ := filepath.Glob(c.path("pool", ".import*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	if _, err := c.ImportPool(t.Context(), source(t, "c")); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("a second one: %v", err)
	}
}

// While a pool is brought in nothing is made, and no other is brought in. It does not begin while something is made.
func TestNothingIsMadeDuringImport(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	dir, file := source(t, "a"), filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := c.claim(t.Context(), "mine")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ImportPool(t.Context(), dir); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "mine is being made") {
		t.Errorf("while a volume is made: %v", err)
	}
	release()
	goOn := staging(t, c, dir)
	for what, try := range map[string]func() error{
		"volume create": func() error {
			_, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "mine", Size: 1 << 20})
			return err
		},
		"volume import": func() error {
			j, err := c.ImportVolume(t.Context(), tidemark.ImportSpec{Name: "mine", Path: file})
			if err != nil {
				return err
			}
			if j = lasted(t, c, j, nil); j.Error == nil {
				return nil
			}
			return j.Error
		},
		"protect": func() error {
			_, err := c.Protect(t.Context(), tidemark.ProtectSpec{Name: "mine", Source: file})
			return err
		},
		"pool import": func() error { _, err := c.ImportPool(t.Context(), dir); return err },
	} {
		if err := try(); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "a pool is being imported") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if j := goOn(nil); j.State != tidemark.JobDone {
		t.Fatalf("it is %s: %v", j.State, j.Error)
	}
	holdsBytes(t, c, "a", "of before")
	wrote(t, c, "mine", "of now")
}

// What came to be all the same is not harmed: the import is refused, and leaves the server as it is.
func TestImportHarmsNothing(t *testing.T) {
	c := serverIn(t, t.TempDir())
	defer closes(t, c)
	goOn := staging(t, c, source(t, "a"))
	c.mu.Lock()
	c.importing = false
	c.mu.Unlock()
	wrote(t, c, "mine", "of now")
	if j := goOn(nil); j.State != tidemark.JobFailed || j.Error.Kind != tidemark.Conflict {
		t.Errorf("it is %s: %v", j.State, j.Error)
	}
	holdsBytes(t, c, "mine", "of now")
	if names := namesOf(c); !slices.Equal(names, []string{"mine"}) {
		t.Errorf("there are %v", names)
	}
}

func namesOf(c *Control) (names []string) {
	for _, a := range c.apps() {
		names = append(names, a.name)
	}
	return names
}

// An import that fails, or is cut wherever that is, leaves the server as it was; one that was done when it was cut is told as done.
func TestImportCut(t *testing.T) {
	dir, ctx := source(t, "a"), context.Background()
	t.Run("copying fails", func(t *testing.T) {
		c := serverIn(t, t.TempDir())
		defer closes(t, c)
		if j := staging(t, c, dir)(errors.New("the other directory has an error")); j.State != tidemark.JobFailed {
			t.Errorf("it is %s", j.State)
		}
		empty(t, c)
	})
	t.Run("opening fails", func(t *testing.T) {
		c := serverIn(t, t.TempDir())
		defer closes(t, c)
		goOn := staging(t, c, dir)
		c.fs = &failsOnce{FS: c.fs, below: c.path("store", "open")}
		if j := goOn(nil); j.State != tidemark.JobFailed || !strings.Contains(j.Error.Message, "the disk has an error") {
			t.Errorf("it is %s: %v", j.State, j.Error)
		}
		empty(t, c)
	})
	for name, until := range map[string]func(*Control) error{
		"copied":   func(*Control) error { return nil },
		"taken in": func(c *Control) error { return errors.Join(c.set.Close(), c.store.Close(), c.takeIn(ctx)) },
		"opened": func(c *Control) error {
			return errors.Join(c.set.Close(), c.store.Close(), c.takeIn(ctx), c.openPool(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			into := t.TempDir()
			c := serverIn(t, into)
			j, err := c.addJob(ctx, catalog.NewJob{Kind: "pool import", Now: true, MaxAttempts: 1, Args: dir})
			if err == nil {
				err = errors.Join(c.stage(ctx, &task{c: c, id: j.ID}, dir, &tidemark.ImportResult{}), until(c))
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Close() // its stores may be closed
			c = serverIn(t, into)
			defer closes(t, c)
			if j := lasted(t, c, j.Job, nil); j.State != tidemark.JobFailed {
				t.Errorf("it is %s", j.State)
			}
			empty(t, c)
		})
	}
	t.Run("done", func(t *testing.T) {
		into := t.TempDir()
		c := serverIn(t, into)
		j, err := c.addJob(ctx, catalog.NewJob{Kind: "pool import", Now: true, MaxAttempts: 1, Args: dir})
		if err == nil {
			err = errors.Join(c.stage(ctx, &task{c: c, id: j.ID}, dir, &tidemark.ImportResult{Bytes: 7}), c.reopen(ctx))
		}
		if err != nil {
			t.Fatal(err)
		}
		closes(t, c)
		c = serverIn(t, into)
		defer closes(t, c)
		if j := lasted(t, c, j.Job, nil); j.State != tidemark.JobDone || !strings.Contains(string(mustJSON(j.Result)), `"names":["a"]`) {
			t.Errorf("it is %s: %v", j.State, j.Result)
		}
		holdsBytes(t, c, "a", "of before")
	})
}
