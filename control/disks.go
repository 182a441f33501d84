package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/export/nbd"
	"tidemark/mount"
	"tidemark/timeline"
)

// Every disk that the server attaches to its own host is served on the
// server's disk socket, under a name made of its application and disk, and
// attached by a process of its own. So after a restart the server only has to
// serve the same names again: the attachers come back by themselves.

// exportName is the name under which a disk is served to attachers.
func exportName(app, disk string) string { return app + "/" + disk }

// attachmentName is the name of the attacher of a disk.
func attachmentName(app, disk string) string { return app + "@" + disk }

func (c *Control) attachDir() string { return c.path("run", "attached") }

// serveDisk serves the head of a disk on the server's socket; that it is served already is fine.
func (c *Control) serveDisk(a app, d *timeline.Disk) error {
	err := c.exports.Add(&nbd.Export{Name: exportName(a.name, d.Name()), Description: string(a.Type), Device: d})
	if errors.Is(err, nbd.ErrExportExists) {
		return nil
	}
	return err
}

func (c *Control) unserveDisk(a app, disk string) {
	name := exportName(a.name, disk)
	c.nbd.Disconnect(name)
	if err := c.exports.Remove(name); err != nil && !errors.Is(err, nbd.ErrUnknownExport) {
		c.log.Error("an export was not ended", "export", name, "error", err)
	}
}

// attach serves a disk and attaches it to this host.
func (c *Control) attach(ctx context.Context, a app, disk string) (*mount.Attachment, error) {
	d, err := a.t.Disk(disk)
	if err != nil {
		return nil, err
	}
	if err := c.serveDisk(a, d); err != nil {
		return nil, err
	}
	at, err := c.launcher.Attach(ctx, mount.Config{Name: attachmentName(a.name, disk), StateDir: c.attachDir(),
		Socket: c.DiskSocket(), Export: exportName(a.name, disk), Sector: sectorOf(a, d)})
	if err != nil {
		return nil, fmt.Errorf("attach disk %s of %s: %w", disk, a.name, err)
	}
	return at, nil
}

// sectorOf is the sector size that a disk is shown with. Disks that we format
// have sectors of 4 KiB: no write is then smaller than a block. Others had 512 where they came from.
func sectorOf(a app, d *timeline.Disk) int {
	if a.Type != tidemark.TypeVolume && a.Home == nil && d.Size()%block.BlockSize == 0 {
		return 4096
	}
	return 512
}

// attached finds the attachment of a disk.
func (c *Control) attached(a app, disk string) (*mount.Attachment, bool, error) {
	list, err := mount.List(c.attachDir())
	if err != nil {
		return nil, false, err
	}
	for _, at := range list {
		if at.Name() == attachmentName(a.name, disk) {
			return at, true, nil
		}
	}
	return nil, false, nil
}

// cleanUp removes what a dead attacher left. One whose record cannot be read may live, and the
// disk attached a second time would have two writers, each sure of its own: it is left to the user.
func cleanUp(at *mount.Attachment) error {
	if err := at.Err(); err != nil {
		return tidemark.Errorf(tidemark.Corrupt, "what is attached as %s is not known: %w", at.Name(), err).
			WithHint("end its process (`pgrep -af \"tidemark attach\"`), or restart the host, and remove the directory")
	}
	return at.Cleanup(true)
}

// detach takes a disk off this host, if it is attached.
func (c *Control) detach(ctx context.Context, a app, disk string) error {
	at, ok, err := c.attached(a, disk)
	if err != nil || !ok {
		return err
	}
	patience := lettingGo
	if a.Role == roleProof {
		patience = endingSandbox
	}
	err = mount.WhileBusy(ctx, patience, func() error {
		if at.Alive() {
			return at.Detach(ctx, false)
		}
		return cleanUp(at)
	})
	if err != nil {
		return fmt.Errorf("detach disk %s of %s: %w", disk, a.name, err)
	}
	return nil
}

// How long a disk may count as in use that nobody uses any more.
const (
	lettingGo = 3 * time.Second // see mount.WhileBusy
	// What the file systems of a sandbox had not written when it ended is written first.
	endingSandbox = 2 * time.Minute
)

// detachForGood is detach for a disk that is to be deleted. That it cannot be flushed, as when its device was only half made, keeps nobody
// from that; that somebody uses it does.
func (c *Control) detachForGood(ctx context.Context, a app, disk string) error {
	err := c.detach(ctx, a, disk)
	if err == nil || errors.Is(err, mount.ErrBusy) {
		return err
	}
	at, ok, e := c.attached(a, disk)
	if e != nil || !ok || !at.Alive() {
		return err
	}
	c.log.Warn("a disk that is deleted could not be flushed", "application", a.name, "disk", disk, "error", err)
	return at.Detach(ctx, true)
}

// isMounted reports whether something is mounted at dir.
func isMounted(dir string) (bool, error) {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return false, err
	}
	want := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(dir)
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == want {
			return true, nil
		}
	}
	return false, nil
}

// markFrozen bookmarks an application with the file systems frozen that this
// host has mounted from it: the point then needs no journal replay.
func (c *Control) markFrozen(ctx context.Context, a app, m timeline.Mark) (tidemark.Position, error) {
	dirs := c.mountedDirs(a)
	if err := c.agent.Freeze(ctx, dirs); err != nil {
		return 0, fmt.Errorf("freeze the file systems of %s: %w", a.name, err)
	}
	if len(dirs) > 0 && m.Consistency == tidemark.CrashConsistent {
		m.Consistency = tidemark.FilesystemConsistent
	}
	pos, err := a.t.Bookmark(m)
	return pos, errors.Join(err, c.agent.Thaw(context.WithoutCancel(ctx), dirs))
}

// mountedDirs returns where this host has disks of an application mounted.
func (c *Control) mountedDirs(a app) (dirs []string) {
	for _, d := range a.t.Disks() {
		if dir, ok := c.mountedAt(a, d.Name()); ok {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// mountedAt returns where this host has a disk mounted.
func (c *Control) mountedAt(a app, disk string) (string, bool) {
	dir := c.dirOf(a, disk)
	if a.Role == roleMount {
		var m tidemark.Mount
		if err := c.catalog.Get(context.Background(), "mount", a.name, &m); err != nil || m.Path == "" {
			return "", false
		}
		dir = m.Path
	}
	mounted, err := isMounted(dir)
	return dir, err == nil && mounted
}

// dirOf is where a disk of an application or clone is mounted.
func (c *Control) dirOf(a app, disk string) string {
	if a.Role == roleClone {
		return c.path("clones", a.name, disk)
	}
	return c.path("staging", a.name, disk)
}
