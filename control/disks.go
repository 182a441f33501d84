package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/block"
	"tidemark/catalog"
	"tidemark/export/nbd"
	"tidemark/timeline"
)

// Every disk that the server attaches to a host is served to that host alone, under a name made of its timeline and disk, and
// attached by a process of its own there. So after a restart the server only has to
// serve the same names again: the attachers come back by themselves. Those who should not find other names: see takeOver.

// site shows disks of ours on one host: on our own, or by the agent of another one.
type site interface {
	AttachDisk(ctx context.Context, d agent.ShownDisk) (device string, err error)
	LookDisk(ctx context.Context, d agent.ShownDisk) (agent.Shown, error)
	DetachDisk(ctx context.Context, d agent.ShownDisk) error
}

// elsewhere reports whether a clone or mount is on another host.
func (a app) elsewhere() bool { return a.Agent != "" && a.Role != "" }

// siteOf is where the disks of an application are shown, if they are.
func (c *Control) siteOf(a app) (site, error) {
	if a.elsewhere() {
		return c.agentOn(a.Agent)
	}
	return agent.Here{Places: agent.PlacesIn(c.o.Dir), Launcher: c.launcher}, nil
}

// agentOf is the agent of the host on which the disks of an application are shown.
func (c *Control) agentOf(a app) (*agent.Agent, error) {
	if a.elsewhere() {
		return c.agentOn(a.Agent)
	}
	return c.agent, nil
}

// exportName is the name under which a disk of turn 0 is served on our own host: one that nobody attaches, or that an older release has attached.
func exportName(app, disk string) string { return app + "/" + disk }

// exportOf is the name under which a disk is served to attachers of its host. An attacher may outlive
// what we know of it, and come back: so a name is never that of another disk, nor of one that was changed while nobody could take it off the host.
func exportOf(a app, disk string) string {
	if a.Turn == 0 && !a.elsewhere() {
		return exportName(a.name, disk)
	}
	return fmt.Sprintf("%s/%s/%d", a.t.ID(), disk, a.Turn)
}

// firstTurn is that of what is made to be attached to our own host.
const firstTurn = 1

// shownDisk is what the host of an application is told of its disk.
func (c *Control) shownDisk(a app, disk string) agent.ShownDisk {
	d := agent.ShownDisk{Application: a.name, Disk: disk, Export: exportOf(a, disk), Dir: c.dirOf(a, disk)}
	if x, err := a.t.Disk(disk); err == nil {
		d.Sector = sectorOf(a, x)
	}
	return d
}

func (c *Control) attachDir() string { return c.path("run", "attached") }

// serveDisk serves the head of a disk to its host; that it is served already is fine.
func (c *Control) serveDisk(a app, d *timeline.Disk) error {
	e := &nbd.Export{Name: exportOf(a, d.Name()), Description: string(a.Type), Device: d}
	if a.elsewhere() {
		return c.hosts.serveDisk(a.Agent, e)
	}
	if err := c.mistaken[a.t.ID()]; err != nil {
		return err
	}
	err := c.exports.Add(e)
	if errors.Is(err, nbd.ErrExportExists) {
		return nil
	}
	return err
}

func (c *Control) unserveDisk(a app, disk string) {
	name := exportOf(a, disk)
	if a.elsewhere() {
		c.hosts.unserveDisk(a.Agent, name)
		return
	}
	if err := c.exports.Remove(name); err != nil && !errors.Is(err, nbd.ErrUnknownExport) {
		c.log.Error("an export was not ended", "export", name, "error", err)
	}
	c.nbd.Disconnect(name)
}

// attach serves a disk and attaches it to its host. fresh: it was made just now.
func (c *Control) attach(ctx context.Context, a app, disk string, fresh bool) (device string, err error) {
	d, err := a.t.Disk(disk)
	if err != nil {
		return "", err
	}
	at, err := c.siteOf(a)
	if err != nil {
		return "", err
	}
	if err := c.serveDisk(a, d); err != nil {
		return "", err
	}
	defer c.hosts.showing(a.Agent)()
	shown := c.shownDisk(a, disk)
	shown.Fresh = fresh
	return at.AttachDisk(ctx, shown)
}

// look says how a disk is shown on its host.
func (c *Control) look(ctx context.Context, a app, disk string) (agent.Shown, error) {
	at, err := c.siteOf(a)
	if err != nil {
		return agent.Shown{}, err
	}
	return at.LookDisk(ctx, c.shownDisk(a, disk))
}

// sectorOf is the sector size that a disk is shown with. Disks that we format
// have sectors of 4 KiB: no write is then smaller than a block. Others had 512 where they came from.
func sectorOf(a app, d *timeline.Disk) int {
	if a.Type != tidemark.TypeVolume && a.Home == nil && d.Size()%block.BlockSize == 0 {
		return 4096
	}
	return 512
}

// detach takes a disk off its host, if it is attached.
func (c *Control) detach(ctx context.Context, a app, disk string) error {
	return c.detachAs(ctx, a, c.shownDisk(a, disk))
}

// detachForGood is detach for a disk that is to be deleted.
func (c *Control) detachForGood(ctx context.Context, a app, disk string) error {
	d := c.shownDisk(a, disk)
	d.Deleted = true
	return c.detachAs(ctx, a, d)
}

func (c *Control) detachAs(ctx context.Context, a app, d agent.ShownDisk) error {
	at, err := c.siteOf(a)
	if err != nil {
		return err
	}
	if a.Role == roleProof {
		d.Patience = endingSandbox
	}
	return at.DetachDisk(ctx, d)
}

// endingSandbox is how long the disks of a sandbox that has ended may be in use: what its file systems had not written is written first.
const endingSandbox = 2 * time.Minute

// markFrozen bookmarks an application with the file systems frozen that its
// host has mounted from it: the point then needs no journal replay.
func (c *Control) markFrozen(ctx context.Context, a app, m timeline.Mark) (tidemark.Position, error) {
	dirs, err := c.mountedDirs(ctx, a)
	if err != nil {
		return 0, fmt.Errorf("freeze the file systems of %s: %w", a.name, err)
	}
	if len(dirs) == 0 {
		return a.t.Bookmark(m)
	}
	x, err := c.agentOf(a)
	if err != nil {
		return 0, err
	}
	bounded, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	if err := x.Freeze(bounded, dirs); err != nil {
		return 0, fmt.Errorf("freeze the file systems of %s: %w", a.name, err)
	}
	if m.Consistency == tidemark.CrashConsistent {
		m.Consistency = tidemark.FilesystemConsistent
	}
	pos, err := a.t.Bookmark(m)
	lasted, terr := x.Thaw(context.WithoutCancel(ctx), dirs)
	if err == nil && a.elsewhere() && (terr != nil || !lasted) { // nobody knows whether they were frozen at the mark
		c.forgetPoint(context.WithoutCancel(ctx), a, m.Name)
		return 0, errors.Join(tidemark.Errorf(tidemark.Unavailable, "the file systems of %s on host %s did not stay frozen until the bookmark was made", a.name, a.Agent).
			WithHint("try again when the host can be reached"), terr)
	}
	return pos, errors.Join(err, terr)
}

// freezeLimit is how long file systems may take to be frozen.
const freezeLimit = time.Minute

// mountedDirs returns where its host has disks of an application mounted.
func (c *Control) mountedDirs(ctx context.Context, a app) (dirs []string, err error) {
	for _, d := range a.t.Disks() {
		s, err := c.look(ctx, a, d.Name())
		if err != nil {
			return nil, err
		}
		if s.Mounted {
			dirs = append(dirs, s.Dir)
		}
	}
	return dirs, nil
}

// dirOf is where a disk of an application, clone or mount is mounted, or is to be; empty: nowhere. On another host, what is not absolute is below
// the data directory of its agent.
func (c *Control) dirOf(a app, disk string) string {
	switch {
	case a.Role == roleMount:
		var m tidemark.Mount
		if err := c.catalog.Get(context.Background(), catalog.Mounts, a.name, &m); err != nil || m.Disk != disk {
			return ""
		}
		return m.Path
	case a.elsewhere():
		return filepath.Join(agent.ClonesDir, a.name, disk)
	case a.Role == roleClone || a.Role == roleCheck:
		return c.path(agent.ClonesDir, a.name, disk)
	}
	return c.path("staging", a.name, disk)
}
