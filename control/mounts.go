package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/catalog"
)

// Mount shows a point as a disk on this host, and mounts its file system where
// a path is given. The mount is a branch: it can be written, and what is
// written goes with it.
func (c *Control) Mount(ctx context.Context, spec tidemark.MountSpec) (m tidemark.Mount, err error) {
	begun := time.Now()
	src, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return m, err
	}
	disk, err := src.t.Disk(spec.Disk)
	if err != nil {
		return m, err
	}
	if spec.Path != "" {
		if spec.Path, err = checkMountPoint(spec.Path); err != nil {
			return m, err
		}
	}
	name := spec.Name
	if name == "" {
		name = c.freeName(src.name + "-mount")
	}
	release, err := c.claim(name)
	if err != nil {
		return m, err
	}
	defer release()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.demolish(context.WithoutCancel(ctx), name))
		}
	}()
	m = tidemark.Mount{Name: name, Ref: src.name + "@" + pos.String(), Disk: disk.Name(), Path: spec.Path, ReadOnly: spec.ReadOnly, Since: begun, State: stateMaking}
	if err = c.catalog.Put(ctx, catalog.Mounts, name, m); err != nil {
		return m, err
	}
	a, err := c.branch(ctx, src, name, pos, nil, roleMount)
	if err != nil {
		return m, err
	}
	m.State = "mounted"
	if err = c.mountDisk(ctx, a, &m); err != nil {
		return m, err
	}
	m.Seconds = time.Since(begun).Seconds()
	return m, c.catalog.Put(ctx, catalog.Mounts, name, m)
}

func (c *Control) mountDisk(ctx context.Context, a app, m *tidemark.Mount) error {
	at, err := c.attach(ctx, a, m.Disk)
	if err != nil {
		return err
	}
	m.Device = at.Device()
	if m.Path == "" {
		m.State = "attached"
		return nil
	}
	opts := []string{"noatime"}
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	if err := c.agent.Mount(ctx, agent.Filesystem{Device: m.Device, Dir: m.Path, Options: opts}); err != nil {
		return tidemark.Errorf(tidemark.Invalid, "disk %s of %s cannot be mounted: %w", m.Disk, m.Ref, err).
			WithHint("without DIR the disk is only attached, and can be looked at with blkid and fsck")
	}
	return nil
}

// checkMountPoint returns the absolute path of an empty directory to mount on.
func checkMountPoint(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", tidemark.Errorf(tidemark.Invalid, "%q is not an absolute path", path).WithHint("write it from / on")
	}
	asked := path
	path, err := filepath.EvalSymlinks(asked)
	if errors.Is(err, os.ErrNotExist) {
		return "", tidemark.Errorf(tidemark.NotFound, "there is no directory %s", asked).WithHint("make it first")
	}
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "the directory cannot be used: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "%s is no directory that can be mounted on: %w", path, err)
	}
	if len(entries) > 0 {
		return "", tidemark.Errorf(tidemark.Conflict, "%s is not empty", path).WithHint("mount on an empty directory")
	}
	return path, nil
}

// freeName makes a name that nobody has, from one that may be taken.
func (c *Control) freeName(base string) string {
	base = base[:min(len(base), tidemark.MaxName-4)]
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name = fmt.Sprintf("%s%d", base, i)
		}
		if _, err := c.app(name); err != nil {
			return name
		}
	}
}

// branch makes the timeline of a clone or mount.
func (c *Control) branch(ctx context.Context, src app, name string, pos tidemark.Position, each map[string]tidemark.Position, r role) (app, error) {
	note := about{Type: src.Type, Host: hostname(), Of: src.name + "@" + pos.String(), Role: r, Options: src.Options, Home: src.Home}
	if _, ok := src.Options[optionPostgres]; ok && src.tapped() && r != roleMount {
		note.Type, note.Home = tidemark.TypePostgres, &home{Disk: src.t.Disks()[0].Name()}
	}
	t, err := src.t.Branch(ctx, name, pos, each, mustJSON(note))
	if err != nil {
		return app{}, err
	}
	if r == roleClone {
		if err := t.SetWindow(volumeWindow); err != nil {
			return app{}, err
		}
	}
	return appOf(t)
}

// Mounts lists the mounts.
func (c *Control) Mounts(ctx context.Context) ([]tidemark.Mount, error) {
	list, err := catalog.List[tidemark.Mount](ctx, c.catalog, catalog.Mounts)
	if err != nil {
		return nil, err
	}
	for i := range list {
		m := &list[i]
		if a, err := c.app(m.Name); err != nil {
			m.State = "its timeline is gone"
		} else if at, ok, err := c.attached(a, m.Disk); err != nil || !ok || !at.Alive() {
			m.State = "detached"
		}
	}
	return list, nil
}

// Unmount takes a mount back; what was written to it is gone.
func (c *Control) Unmount(ctx context.Context, name string) error {
	var m tidemark.Mount
	if err := c.catalog.Get(ctx, catalog.Mounts, name, &m); err != nil {
		list, e := c.Mounts(ctx)
		if e != nil {
			return e
		}
		for _, o := range list {
			if o.Path != "" && o.Path == name {
				return c.Unmount(ctx, o.Name)
			}
		}
		return err
	}
	return c.demolish(ctx, name)
}

// demolish takes a clone or mount apart and deletes its timeline; what is already gone is fine.
func (c *Control) demolish(ctx context.Context, name string) error {
	a, err := c.app(name)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return errors.Join(c.catalog.Delete(ctx, catalog.Mounts, name), c.catalog.Delete(ctx, catalog.Clones, name))
	}
	if err != nil {
		return err
	}
	if err := c.stopDatabase(ctx, a); err != nil {
		return err
	}
	if a.tapped() {
		if err := c.untap(ctx, a); err != nil {
			return err
		}
	}
	if a.mirrored() {
		c.unmirror(ctx, a)
	}
	if err := c.takeDown(ctx, a, c.detachForGood); err != nil {
		return err
	}
	if err := a.t.Remove(ctx); err != nil {
		return err
	}
	return errors.Join(c.catalog.Delete(ctx, catalog.Mounts, name), c.catalog.Delete(ctx, catalog.Clones, name), c.catalog.Delete(ctx, catalog.Applications, name),
		c.forgetProofs(ctx, a))
}

// takeDown unmounts and detaches all disks of an application, clone or mount.
func (c *Control) takeDown(ctx context.Context, a app, detach func(context.Context, app, string) error) error {
	for _, d := range a.t.Disks() {
		if dir, ok := c.mountedAt(a, d.Name()); ok {
			if err := c.agent.Unmount(ctx, dir, leaving); err != nil {
				return err
			}
		}
		if err := detach(ctx, a, d.Name()); err != nil {
			return err
		}
		c.unserveDisk(a, d.Name())
	}
	if err := os.RemoveAll(c.printsOf(a)); err != nil {
		return err
	}
	for _, top := range []string{"staging", "clones"} {
		if err := removeEmpty(c.path(top, a.name)); err != nil {
			return err
		}
	}
	return nil
}

// leaving is how long an unmount waits for a user that is just leaving.
const leaving = 2 * time.Second

// removeEmpty removes the empty directories below and at dir, and nothing else.
func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			return fmt.Errorf("%s is still there", filepath.Join(dir, e.Name()))
		}
		if err := removeEmpty(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}
