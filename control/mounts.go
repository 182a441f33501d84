package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/catalog"
)

// Mount shows a point as a disk on a host, and mounts its file system where
// a path is given. The mount is a branch: it can be written, and what is
// written goes with it.
func (c *Control) Mount(ctx context.Context, spec tidemark.MountSpec) (m tidemark.Mount, err error) {
	return c.mountAs(ctx, spec, "mount")
}

// mountAs is Mount. Without a name, the mount is called after the application, and what it is there for.
func (c *Control) mountAs(ctx context.Context, spec tidemark.MountSpec, purpose string) (m tidemark.Mount, err error) {
	begun := time.Now()
	src, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return m, err
	}
	disk, err := src.t.Disk(spec.Disk)
	if err != nil {
		return m, err
	}
	x, err := c.hostAgent(ctx, spec.Host)
	if err != nil {
		return m, err
	}
	if spec.Path != "" {
		if spec.Path, err = x.CheckMountPoint(ctx, spec.Path); err != nil {
			return m, err
		}
	}
	name, release, err := spec.Name, func() {}, error(nil)
	if name == "" {
		name, release, err = c.claimFree(ctx, src.name+"-"+purpose)
	} else {
		release, err = c.claim(ctx, name)
	}
	if err != nil {
		return m, err
	}
	defer release()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.abandon(context.WithoutCancel(ctx), name, doom{}))
		}
	}()
	expires, err := endOf(begun, spec.Lifetime)
	if err != nil {
		return m, err
	}
	m = tidemark.Mount{Name: name, Expires: expires, Ref: src.name + "@" + pos.String(), Host: spec.Host, Disk: disk.Name(), Path: spec.Path, ReadOnly: spec.ReadOnly, Since: begun, State: stateMaking}
	if err = c.catalog.Put(ctx, catalog.Mounts, name, keptMount{Mount: m}); err != nil {
		return m, err
	}
	if err = c.own(ctx, access.KindMount, name, src, askOf(ctx).By); err != nil {
		return m, err
	}
	a, err := c.branch(ctx, src, name, spec.Host, pos, nil, roleMount)
	if err != nil {
		return m, err
	}
	m.State = "mounted"
	if err = c.mountDisk(ctx, a, &m, true); err != nil {
		return m, err
	}
	m.Seconds = time.Since(begun).Seconds()
	if err = c.catalog.Put(ctx, catalog.Mounts, name, keptMount{m, a.t.ID()}); err == nil {
		c.changed(tidemark.MountMade, a, nil)
	}
	return m, err
}

// mountDisk attaches the disk of a mount, and mounts its file system where that was asked for. fresh: the mount is being made.
func (c *Control) mountDisk(ctx context.Context, a app, m *tidemark.Mount, fresh bool) error {
	device, err := c.attach(ctx, a, m.Disk, fresh)
	if err != nil {
		return err
	}
	m.Device = device
	if m.Path == "" {
		m.State = "attached"
		return nil
	}
	opts := slices.Clone(mountOptions)
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	x, err := c.agentOf(a)
	if err == nil {
		_, err = x.Mount(ctx, agent.Filesystem{Device: m.Device, Dir: m.Path, Options: opts})
	}
	if tidemark.KindOf(err) == tidemark.Unavailable { // the host, not the disk
		return err
	}
	if err != nil {
		return tidemark.Errorf(tidemark.Invalid, "disk %s of %s cannot be mounted: %w", m.Disk, m.Ref, err).
			WithHint("without DIR the disk is only attached, and can be looked at with blkid and fsck")
	}
	return nil
}

// freeName makes a name that nobody has, from one that may be taken.
func (c *Control) freeName(base string) string {
	for i := 1; ; i++ {
		name := numbered(base, i)
		if _, err := c.app(name); err != nil {
			return name
		}
	}
}

// numbered is the i-th name of those that are made from one: itself, and then with a number.
func numbered(base string, i int) string {
	base = base[:min(len(base), tidemark.MaxName-4)]
	if i == 1 {
		return base
	}
	return fmt.Sprintf("%s%d", base, i)
}

// claimFree is claim of a name that is base, or base and a number: the first that nobody has, nor is about to have.
func (c *Control) claimFree(ctx context.Context, base string) (name string, release func(), err error) {
	for i := 1; ; i++ {
		name = numbered(base, i)
		release, err = c.claim(ctx, name)
		if tidemark.KindOf(err) != tidemark.Conflict || i == 999 {
			return name, release, err
		}
	}
}

// branch makes the timeline of a clone or mount on a host.
func (c *Control) branch(ctx context.Context, src app, name, host string, pos tidemark.Position, each map[string]tidemark.Position, r role) (app, error) {
	note := about{Type: src.Type, Host: host, Agent: host, Of: src.name + "@" + pos.String(), From: src.firstID(), Role: r, Options: src.Options, Home: src.Home}
	if host == "" {
		note.Host, note.Turn = hostname(), firstTurn
	}
	if _, ok := src.Options[optionPostgres]; ok && src.tapped() && r != roleMount {
		note.Type, note.Home = tidemark.TypePostgres, &home{Disk: src.t.Disks()[0].Name()}
	}
	t, err := src.t.Branch(ctx, name, pos, each, newNote(ctx, note))
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
	kept, err := catalog.List[keptMount](ctx, c.catalog, catalog.Mounts)
	if err != nil {
		return nil, err
	}
	list := make([]tidemark.Mount, len(kept))
	var all sync.WaitGroup // a host that hangs is waited for once
	for i, m := range kept {
		all.Go(func() {
			list[i] = m.Mount
			list[i].State = c.mountState(ctx, m)
		})
	}
	all.Wait()
	return list, nil
}

// States of clones and mounts that are not looked at.
const (
	stateAway   = "host away"    // the agent of its host, another one, is not connected, or does not answer
	stateGone   = "host removed" // what is left of it is here
	stateDoomed = "being removed"
)

// mountState is how a mount is.
func (c *Control) mountState(ctx context.Context, m keptMount) string {
	a, err := c.app(m.Name)
	if err != nil || !m.of(a) {
		return "its timeline is gone"
	}
	if m.State == stateMaking && a.Doomed == nil {
		return m.State
	}
	if state := c.stateKnown(a); state != "" {
		return state
	}
	s, err := c.look(ctx, a, m.Disk)
	switch {
	case err != nil && a.elsewhere():
		return stateAway
	case err != nil || s.Device == "":
		return "detached"
	}
	return m.State
}

// stateKnown is how a clone or mount is, as far as that is known without asking its host; empty: it has to be asked.
func (c *Control) stateKnown(a app) string {
	x, err := c.agentOn(a.Agent)
	switch {
	case tidemark.KindOf(err) == tidemark.NotFound:
		return stateGone
	case a.Doomed != nil:
		return stateDoomed
	case a.elsewhere() && (err != nil || !x.Connected()):
		return stateAway
	}
	return ""
}

// Unmount takes a mount back; what was written to it is gone.
func (c *Control) Unmount(ctx context.Context, name string) error {
	leave, err := c.removing(ctx, name)
	if err != nil {
		return c.unlessDoomed(name, err)
	}
	defer leave()
	var m keptMount
	if err := c.catalog.Get(ctx, catalog.Mounts, name, &m); err != nil {
		return err
	}
	if c.isAnother(name, m.of) { // of the mount, the catalog's entry alone is left
		return c.dropMount(ctx, name)
	}
	if err := c.remove(ctx, tidemark.MountRemoved, name); err != nil {
		return c.unlessDoomed(name, err)
	}
	return c.disown(ctx, name, access.KindMount)
}

// demolish takes a clone, mount or application apart, ends its exports and deletes its timeline; what is already gone is fine.
func (c *Control) demolish(ctx context.Context, name string) error {
	a, err := c.app(name)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return errors.Join(c.catalog.Delete(ctx, catalog.Mounts, name), c.forgetClone(ctx, name))
	}
	if err != nil {
		return err
	}
	if !c.abandoned(a) {
		if err := c.stopDatabase(ctx, a); err != nil {
			return err
		}
	}
	if a.tapped() {
		if err := c.untap(ctx, a); err != nil {
			return err
		}
	}
	if a.mirrored() {
		c.unmirror(ctx, a)
	}
	c.endLog(ctx, a)
	if err := c.takeDown(ctx, a, c.detachForGood); err != nil {
		return err
	}
	if err := c.endExports(ctx, a); err != nil {
		return err
	}
	if err := a.t.Remove(ctx); err != nil {
		return err
	}
	return errors.Join(c.endExports(ctx, a), // those that were begun meanwhile
		c.catalog.Delete(ctx, catalog.Mounts, name), c.forgetClone(ctx, name), c.forgetNoted(ctx, a))
}

// takeDown unmounts and detaches all disks of an application, clone or mount.
func (c *Control) takeDown(ctx context.Context, a app, detach func(context.Context, app, string) error) error {
	if c.abandoned(a) {
		for _, d := range a.t.Disks() {
			c.unserveDisk(a, d.Name())
		}
		return nil
	}
	x, err := c.agentOf(a)
	if err != nil {
		return err
	}
	for _, d := range a.t.Disks() {
		s, err := c.look(ctx, a, d.Name())
		if err != nil {
			return err
		}
		if s.Mounted {
			if err := x.Unmount(ctx, s.Dir, leaving); err != nil {
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
	if a.Role == roleMount {
		return nil
	}
	return x.RemoveEmpty(ctx, filepath.Dir(c.dirOf(a, dataDisk)))
}

// leaving is how long an unmount waits for a user that is just leaving.
const leaving = 2 * time.Second
