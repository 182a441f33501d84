package control

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/catalog"
	"tidemark/internal/vfs"
	"tidemark/mount"
)

// The catalog can be lost: then the mounts and clones that are on timelines are
// adopted as they are found. That an entry is missing is never a reason to
// delete what somebody wrote; that is why a mount that is being made is entered
// before its timeline exists, with a state that says so.

// openCatalog opens the catalog. A damaged file is put aside, under a name that says when, and a new
// one is begun: what it knew is in the pool and on the host, but for the history of jobs and events.
func (c *Control) openCatalog(ctx context.Context) (err error) {
	if c.o.Catalog != "" {
		c.catalog, err = catalog.Open(ctx, c.o.Catalog, c.identity)
		return err
	}
	path := c.path("catalog.db")
	if c.catalog, err = catalog.Open(ctx, path, c.identity); err == nil {
		if err = c.catalog.Check(ctx); err == nil {
			return nil
		}
		err = errors.Join(err, c.catalog.Close())
		c.catalog = nil
	}
	if tidemark.KindOf(err) != tidemark.Corrupt {
		return err
	}
	aside := path + time.Now().UTC().Format(".damaged-20060102-150405")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if e := vfs.Rename(vfs.OS, path+suffix, aside+suffix); e != nil && !errors.Is(e, os.ErrNotExist) {
			return errors.Join(err, e)
		}
	}
	c.log.Error("the catalog is damaged: it was put aside, and is made anew from the pool", "file", aside, "error", err)
	if c.catalog, err = catalog.Open(ctx, path, c.identity); err != nil {
		return err
	}
	c.event("error", "", "the catalog was damaged; it is now %s, and the history of jobs and events begins anew", aside)
	return nil
}

// stateMaking is the state of a mount whose request was not answered yet.
const stateMaking = "mounting"

// removeUnanswered takes away the mounts that the last server was making when it was cut, or had made for a restore: nobody was told of them.
func (c *Control) removeUnanswered(ctx context.Context) error {
	list, err := catalog.List[keptMount](ctx, c.catalog, catalog.Mounts)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.State != stateMaking && !c.isForRestore(m.Mount) || c.isAnother(m.Name, m.of) {
			continue
		}
		if err := c.abandon(ctx, m.Name, doom{}); err != nil {
			c.event("error", m.Name, "the mount %s was cut by a stop of the server, and could not be undone: %v", m.Name, err)
		} else {
			c.event("warning", m.Name, "the mount %s was cut by a stop of the server and undone", m.Name)
		}
	}
	left, err := filepath.Glob(c.path("run", restoreDirs+"*"))
	for _, dir := range left {
		if e := os.Remove(dir); e != nil {
			c.log.Warn("the directory of a restore that was cut is left", "error", e)
		}
	}
	return err
}

// Forget deletes what is left of a timeline that cannot be opened, and of what is noted of it, and takes its disks off this host.
func (c *Control) Forget(ctx context.Context, id string) error {
	if err := c.set.Forget(ctx, id); err != nil {
		return err
	}
	c.event("warning", "", "what was left of the damaged timeline %s was deleted", id)
	return errors.Join(c.dropEntries(ctx), c.removeStrays(ctx))
}

// removeStrays takes off this host the disks whose timelines are gone, which an attacher that began
// late can leave. Where a timeline cannot be opened, its disks may be meant, and nothing is touched.
func (c *Control) removeStrays(ctx context.Context) error {
	list, err := mount.List(c.attachDir())
	if err != nil || len(c.set.Damaged()) > 0 {
		return err
	}
	site := agent.Here{Places: agent.PlacesIn(c.o.Dir)}
	for _, at := range list {
		name, _, _ := strings.Cut(at.Name(), "@")
		if _, err := c.app(name); tidemark.KindOf(err) != tidemark.NotFound {
			continue
		}
		err := site.Remove(ctx, at)
		c.event("warning", name, "the disk %s belonged to nothing any more, and was detached: %v", at.Device(), err)
	}
	return nil
}

// mountOf returns the catalog's entry of a mount, made anew if there is none.
func (c *Control) mountOf(ctx context.Context, a app) (m keptMount, err error) {
	err = c.catalog.Get(ctx, catalog.Mounts, a.name, &m)
	if err == nil && m.of(a) || notThere(err) != nil {
		return m, err
	}
	disks := a.t.Disks()
	m = keptMount{tidemark.Mount{Name: a.name, Ref: a.Of, Host: a.Agent, Disk: disks[0].Name(), State: "attached", Since: a.t.Describe().Created}, a.t.ID()}
	for _, d := range disks {
		s, err := c.look(ctx, a, d.Name())
		if err != nil {
			return m, err
		}
		if s.Device == "" {
			continue
		}
		m.Disk, m.Device = d.Name(), s.Device
		if len(s.Mounts) > 0 {
			m.Path, m.ReadOnly, m.State = s.Mounts[0].Dir, s.Mounts[0].ReadOnly, "mounted"
		}
	}
	c.event("warning", a.name, "the mount %s was not in the catalog, and was adopted", a.name)
	return m, c.catalog.Put(ctx, catalog.Mounts, a.name, m)
}

// cloneOf returns the catalog's entry of a clone, made anew if there is none.
// A database keeps the port that it has; one that is down gets a new one when it is brought up.
func (c *Control) cloneOf(ctx context.Context, a app) (k keptClone, err error) {
	err = c.catalog.Get(ctx, catalog.Clones, a.name, &k)
	if tidemark.KindOf(err) != tidemark.NotFound {
		return k, err
	}
	k = keptClone{Spec: tidemark.CloneSpec{Ref: a.Of, Name: a.name, Host: a.Agent},
		Clone: tidemark.Clone{Name: a.name, Source: a.Of, Type: a.Type, Host: a.Agent, State: "running", Created: a.t.Describe().Created}}
	switch {
	case a.Type == tidemark.TypePostgres:
		if in, err := c.database(ctx, a); err == nil {
			k.setDatabase(in.Instance)
			k.Spec.Listen = in.Listen
		}
	case a.Type == tidemark.TypeFilesystem:
		s, err := c.look(ctx, a, dataDisk)
		if err != nil {
			return k, err
		}
		k.setTree(s.Dir)
	case a.elsewhere():
		if err := c.attachClone(ctx, a, &k); err != nil {
			return k, err
		}
	default:
		if err := c.exportClone(ctx, a, &k); err != nil {
			return k, err
		}
	}
	c.event("warning", a.name, "the clone %s was not in the catalog, and was adopted", a.name)
	return k, c.catalog.Put(ctx, catalog.Clones, a.name, k)
}

// beginJobs finishes restores in place that were cut, and begins what is queued.
func (c *Control) beginJobs() {
	for _, b := range c.takeBacks {
		c.finishTakingBack(b)
	}
	c.takeBacks = nil
	c.jobs.wg.Go(c.dispatch)
	c.jobs.wg.Go(c.sweepCopies)
	c.jobs.wg.Go(c.forgetJobs)
}
