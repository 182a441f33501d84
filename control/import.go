package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// A pool comes in beside ours, below a name that no key begins with. Only when it is whole, and nothing else is here, are its objects linked to their
// own names; what fails before the stores are open with them is taken back, at once or by the next start. So there is the whole of it, or
// the empty server of before.
const (
	incoming = ".import"   // in the pool's directory: what is brought in
	arrived  = ".imported" // what is only to be swept away
	// openKeys begins the keys there of packs that the other server had not sealed.
	openKeys = "open/"
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
	if err := c.isEmpty(); err != nil {
		return nil, err
	}
	run := func(ctx context.Context, t *task) (any, error) { return c.importPool(ctx, t, dir) }
	return &work{args: dir, holding: c.claimServer, run: run}, nil
}

// isEmpty is an error if the server has a timeline.
func (c *Control) isEmpty() error {
	if n := len(c.set.List()) + len(c.set.Damaged()); n > 0 {
		return tidemark.Errorf(tidemark.Conflict, "this server holds %d timelines", n).WithHint("import into an empty server: start one with a new --data")
	}
	return nil
}

// claimServer keeps everybody from making anything until release, if there is nothing, and nothing is being made.
func (c *Control) claimServer(context.Context) (release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.unlessImporting(); err != nil {
		return nil, err
	}
	if err := c.isEmpty(); err != nil {
		return nil, err
	}
	if names := slices.Sorted(maps.Keys(c.names)); len(names) > 0 {
		return nil, tidemark.Errorf(tidemark.Conflict, "%s is being made", names[0]).WithHint("import into an empty server: start one with a new --data")
	}
	c.importing = true
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.importing = false
	}, nil
}

// unlessImporting is an error while a pool is brought in: what is made meanwhile would not live through it. The caller holds mu.
func (c *Control) unlessImporting() error {
	if c.importing {
		return tidemark.Errorf(tidemark.Conflict, "a pool is being imported, and nothing can be made meanwhile").WithHint("wait for it: `tidemark jobs`")
	}
	return nil
}

func (c *Control) importPool(ctx context.Context, t *task, dir string) (res tidemark.ImportResult, err error) {
	lock, err := lockSource(dir)
	if err != nil {
		return res, err
	}
	defer lock.Close()
	if _, err := c.fs.Stat(c.path("pool", incoming)); !errors.Is(err, os.ErrNotExist) {
		return res, errors.Join(err, tidemark.Errorf(tidemark.Unavailable, "an import of before was not taken back").WithHint("start the server again, which does so"))
	}
	if err := c.stage(ctx, t, dir, &res); err != nil {
		return res, errors.Join(err, c.letGo())
	}
	if err := c.reopen(ctx); err != nil {
		return res, err
	}
	for _, a := range c.apps() {
		c.keepPoint(ctx, a)
	}
	c.brought(&res)
	c.changes.lose()
	c.event("info", "", "imported %d timelines with %d points from %s", res.Applications, res.Points, dir)
	return res, nil
}

// brought adds to the result of an import what there is now.
func (c *Control) brought(res *tidemark.ImportResult) {
	for _, a := range c.apps() {
		res.Applications++
		res.Points += len(a.t.Points())
		res.Names = append(res.Names, a.name)
	}
}

// stage copies all that is needed of another data directory to where a pool comes in.
func (c *Control) stage(ctx context.Context, t *task, dir string, res *tidemark.ImportResult) (err error) {
	staged, err := object.OpenDir(c.fs, c.path("pool", incoming))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, staged.Close()) }()
	if err := c.copyPool(ctx, t, staged, filepath.Join(dir, "pool"), res); err != nil {
		return err
	}
	open := filepath.Join(dir, "store", "open")
	entries, err := os.ReadDir(open)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if _, err := copyObject(ctx, staged, openKeys+e.Name(), filepath.Join(open, e.Name())); err != nil {
			return err
		}
	}
	return t.doing(ctx, "open", undoing{Imported: res})
}

// letGo removes what was staged; from when that has another name, nothing is done with it any more.
func (c *Control) letGo() error {
	from, to := c.path("pool", incoming), c.path("pool", arrived)
	if err := c.fs.RemoveAll(to); err != nil {
		return err
	}
	if err := vfs.Rename(c.fs, from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := c.fs.RemoveAll(to); err != nil {
		c.log.Warn("what an import had copied is left until the next start", "directory", to, "error", err)
	}
	return nil
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

// copyPool puts every object of a pool's directory into a bucket.
func (c *Control) copyPool(ctx context.Context, t *task, to object.Bucket, pool string, res *tidemark.ImportResult) error {
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
		n, err := copyObject(ctx, to, key, path)
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

func copyObject(ctx context.Context, to object.Bucket, key, path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := to.Put(ctx, key, f, st.Size()); err != nil && !errors.Is(err, object.ErrExists) {
		return 0, fmt.Errorf("import %s: %w", key, err)
	}
	return st.Size(), nil
}

// reopen takes in what was staged, and opens the stores anew. Nobody uses them meanwhile: requests wait at the gate, and there is nothing in
// them, or it is refused. What fails is taken back.
func (c *Control) reopen(ctx context.Context) error {
	c.gate.Lock()
	defer c.gate.Unlock()
	if err := errors.Join(c.isEmpty(), c.catalog.Check(ctx)); err != nil {
		return errors.Join(err, c.letGo())
	}
	ctx = context.WithoutCancel(ctx) // whatever becomes of it, the stores are open at the end
	err := errors.Join(c.set.Close(), c.store.Close())
	if err == nil {
		err = c.takeIn(ctx)
	}
	if err == nil {
		err = c.openPool(ctx)
	}
	if err == nil {
		if err = c.letGo(); err == nil {
			return nil
		}
		err = errors.Join(err, c.set.Close(), c.store.Close())
	}
	return errors.Join(err, c.openPoolAlone(ctx))
}

// takeIn gives what was staged the places of what is ours.
func (c *Control) takeIn(ctx context.Context) error {
	if err := c.fs.RemoveAll(c.path("store")); err != nil {
		return err
	}
	if err := vfs.MkdirAll(c.fs, c.path("store", "open")); err != nil {
		return err
	}
	return c.eachStaged(ctx, func(key, path string) error {
		if name, ok := strings.CutPrefix(key, openKeys); ok {
			data, err := vfs.ReadFile(c.fs, path)
			if err == nil {
				err = vfs.WriteFile(c.fs, c.path("store", "open", name), data)
			}
			return err
		}
		if err := c.bucket.Adopt(ctx, key, path); err != nil && !errors.Is(err, object.ErrExists) {
			return err
		}
		return nil
	})
}

// eachStaged calls fn for each object that was staged, with the path where it is.
func (c *Control) eachStaged(ctx context.Context, fn func(key, path string) error) error {
	staged, err := object.OpenDir(c.fs, c.path("pool", incoming))
	if err != nil {
		return err
	}
	err = staged.List(ctx, "", func(o object.Info) error {
		if err := fn(o.Key, c.path("pool", incoming, o.Key)); err != nil {
			return fmt.Errorf("import %s: %w", o.Key, err)
		}
		return nil
	})
	return errors.Join(err, staged.Close())
}

// openPoolAlone is openPool without a pool that was not brought in whole.
func (c *Control) openPoolAlone(ctx context.Context) error {
	if err := c.undoImport(ctx); err != nil {
		return fmt.Errorf("take back the import of a pool: %w", err)
	}
	return c.openPool(ctx)
}

// undoImport takes back, while the stores are closed, a pool that was not brought in whole. The server was empty, and nothing was made since:
// what has the names of what was staged is of it.
func (c *Control) undoImport(ctx context.Context) error {
	_, err := c.fs.Stat(c.path("pool", incoming))
	if err == nil {
		err = c.eachStaged(ctx, func(key, _ string) error {
			if parts := strings.Split(key, "/"); parts[0] == "timelines" {
				if err := c.fs.RemoveAll(c.path(parts[:2]...)); err != nil {
					return err
				}
			}
			return c.bucket.Delete(ctx, key)
		})
		err = errors.Join(err, c.fs.RemoveAll(c.path("store")))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return c.letGo()
}

// Enter lets a request use the server until leave is called; it waits while the stores are opened anew.
func (c *Control) Enter() (leave func()) {
	c.gate.RLock()
	return c.gate.RUnlock
}
