package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// ImportPool brings all images of another server's data directory into this
// server, which must be empty. The other directory is only read.
func (c *Control) ImportPool(ctx context.Context, dir string) (tidemark.Job, error) {
	return c.ask(ctx, "pool import", dir)
}

func (c *Control) poolImportWork(_ context.Context, dir string) (*work, error) {
	if !filepath.IsAbs(dir) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%q is not an absolute path", dir).WithHint("write it from / on")
	}
	if st, err := os.Stat(filepath.Join(dir, "pool")); err != nil || !st.IsDir() {
		return nil, tidemark.Errorf(tidemark.NotFound, "%s holds no pool", dir).WithHint("name a data directory: it has a directory pool in it")
	}
	if n := len(c.set.List()) + len(c.set.Damaged()); n > 0 {
		return nil, tidemark.Errorf(tidemark.Conflict, "this server holds %d timelines", n).WithHint("import into an empty server: start one with a new --data")
	}
	run := func(ctx context.Context, t *task) (any, error) { return c.importPool(ctx, t, dir) }
	return &work{args: dir, run: run}, nil
}

func (c *Control) importPool(ctx context.Context, t *task, dir string) (res tidemark.ImportResult, err error) {
	lock, err := lockSource(dir)
	if err != nil {
		return res, err
	}
	defer lock.Close()
	if err := c.copyPool(ctx, t, filepath.Join(dir, "pool"), &res); err != nil {
		return res, err
	}
	if err := c.reopen(ctx, filepath.Join(dir, "store", "open")); err != nil {
		return res, err
	}
	for _, a := range c.apps() {
		res.Applications++
		res.Points += len(a.t.Points())
		res.Names = append(res.Names, a.name)
		c.keepPoint(ctx, a)
	}
	c.changes.lose()
	c.event("info", "", "imported %d timelines with %d points from %s", res.Applications, res.Points, dir)
	return res, nil
}

// lockSource makes sure that no server writes to the other directory, if it can tell.
func lockSource(dir string) (*os.File, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) {
		return os.Open(dir)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(tidemark.Errorf(tidemark.Conflict, "a server runs on %s", dir).WithHint("stop it first"), f.Close())
	}
	return f, nil
}

// copyPool puts every object of a pool's directory into our bucket.
func (c *Control) copyPool(ctx context.Context, t *task, pool string, res *tidemark.ImportResult) error {
	return filepath.WalkDir(pool, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		key, err := filepath.Rel(pool, path)
		if err == nil && d.IsDir() && filepath.Dir(key) == "timelines" && !hasPoint(path) {
			// A clone or mount of which nothing was captured: its writes were in the other server's journal.
			c.event("warning", "", "%s was not imported: it has no point", key)
			return filepath.SkipDir
		}
		if ok, _ := filepath.Match("timelines/*/journal", key); err == nil && d.IsDir() && ok {
			return filepath.SkipDir // of a journal whose newer part is not in the pool: nothing could be read of it
		}
		if err != nil || d.IsDir() || object.CheckKey(key) != nil {
			if d.IsDir() && key != "." && object.CheckKey(key) != nil {
				return filepath.SkipDir
			}
			return err
		}
		n, err := c.copyObject(ctx, key, path)
		if err != nil {
			return err
		}
		res.Bytes += n
		res.Packs++
		t.report(tidemark.Progress{Done: res.Bytes, Unit: "bytes"})
		return nil
	})
}

// hasPoint reports whether a timeline's directory in a pool holds a point.
func hasPoint(dir string) bool {
	points, err := filepath.Glob(filepath.Join(dir, "image-*"))
	return err != nil || len(points) > 0
}

func (c *Control) copyObject(ctx context.Context, key, path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := c.bucket.Put(ctx, key, f, st.Size()); err != nil && !errors.Is(err, object.ErrExists) {
		return 0, fmt.Errorf("import %s: %w", key, err)
	}
	return st.Size(), nil
}

// reopen opens the stores anew, with the packs in open that the other server
// had not sealed. Nobody uses the stores meanwhile: there was nothing in them, and requests wait at the gate.
func (c *Control) reopen(ctx context.Context, open string) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := errors.Join(c.set.Close(), c.store.Close(), c.catalog.Check(ctx)); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path("store")); err != nil {
		return err
	}
	if err := vfs.MkdirAll(vfs.OS, c.path("store", "open")); err != nil {
		return err
	}
	entries, err := os.ReadDir(open)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(open, e.Name()))
		if err == nil {
			err = vfs.WriteFile(vfs.OS, c.path("store", "open", e.Name()), data)
		}
		if err != nil {
			return fmt.Errorf("import an open pack: %w", err)
		}
	}
	return c.openPool(ctx)
}

// Enter lets a request use the server until leave is called; it waits while the stores are opened anew.
func (c *Control) Enter() (leave func()) {
	c.gate.RLock()
	return c.gate.RUnlock
}
