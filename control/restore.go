package control

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
	"tidemark/timeline"
)

// Restore writes a point to a file or device, or the files of it to a directory.
func (c *Control) Restore(ctx context.Context, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	return c.ask(ctx, "restore", restoring{RestoreSpec: spec})
}

// restoring is a restore as it is recorded.
type restoring struct {
	tidemark.RestoreSpec
	Group bool `json:"group,omitempty"` // the reference is that of a group
}

func (c *Control) restoreWork(ctx context.Context, r restoring) (*work, error) {
	switch {
	case r.Group:
		return c.groupRestoreWork(ctx, r.RestoreSpec)
	case r.InPlace:
		return c.inPlaceWork(ctx, r.RestoreSpec)
	}
	return c.restoreElsewhere(ctx, r.RestoreSpec)
}

func (c *Control) restoreElsewhere(ctx context.Context, spec tidemark.RestoreSpec) (*work, error) {
	a, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(spec.To) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%q is not an absolute path", spec.To).WithHint("write it from / on")
	}
	toDir, err := checkTarget(a, spec)
	if err != nil {
		return nil, err
	}
	recorded := spec
	recorded.Ref = fixed(spec.Ref)
	run := func(ctx context.Context, t *task) (any, error) {
		begun := time.Now()
		r := tidemark.Restored{Ref: spec.Ref, To: spec.To}
		var err error
		if toDir {
			r.Bytes, r.Notes, err = c.restoreFiles(ctx, t, a, pos, spec)
		} else {
			r.Bytes, err = restoreDisk(ctx, t, a, pos, spec)
		}
		r.Seconds = time.Since(begun).Seconds()
		return r, err
	}
	return &work{host: hostname(), means: meant{Name: a.name}, args: restoring{RestoreSpec: recorded}, run: run}, nil
}

// checkTarget reports whether a restore goes to a directory, and refuses what it
// cannot go to. A new name becomes a file if a disk is restored, and a directory if
// files are: those of a volume are a disk, unless a directory is there. Nothing is
// opened: the opening alone of a pipe waits for ever.
func checkTarget(a app, spec tidemark.RestoreSpec) (dir bool, err error) {
	st, err := os.Stat(spec.To)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if up, err := os.Stat(filepath.Dir(spec.To)); err != nil || !up.IsDir() {
			return false, tidemark.Errorf(tidemark.NotFound, "there is no directory %s", filepath.Dir(spec.To)).WithHint("make it first")
		}
		return a.Type != tidemark.TypeVolume && spec.Disk == "", nil
	case err != nil:
		return false, tidemark.Errorf(tidemark.Invalid, "%s cannot be restored to: %w", spec.To, err)
	case st.IsDir():
		entries, err := os.ReadDir(spec.To)
		if err == nil && len(entries) > 0 && !spec.Force {
			err = tidemark.Errorf(tidemark.Conflict, "%s is not empty", spec.To).WithHint("--force writes into it")
		}
		return true, err
	case !st.Mode().IsRegular() && st.Mode().Type() != os.ModeDevice:
		return false, tidemark.Errorf(tidemark.Invalid, "%s is neither a file, nor a block device, nor a directory", spec.To).WithHint("name a new file")
	case !spec.Force:
		return false, tidemark.Errorf(tidemark.Conflict, "%s exists", spec.To).WithHint("--force overwrites it")
	}
	return false, nil
}

// restoreDirs begins the names of the directories, in that of the server's run, that points are mounted at to be copied.
const restoreDirs = "restore-"

// isForRestore reports whether a mount is there for a restore alone.
func (c *Control) isForRestore(m tidemark.Mount) bool {
	run, err := filepath.EvalSymlinks(c.path("run")) // as paths of mounts are
	return err == nil && m.Host == "" && strings.HasPrefix(m.Path, filepath.Join(run, restoreDirs))
}

// restoreFiles mounts the point and copies its tree. A mount that is left when this is cut is found by where it is.
func (c *Control) restoreFiles(ctx context.Context, t *task, a app, pos tidemark.Position, spec tidemark.RestoreSpec) (n int64, notes []string, err error) {
	disk := spec.Disk
	if disk == "" && a.Type != tidemark.TypeVolume {
		disk = dataDisk
	}
	dir, err := os.MkdirTemp(c.path("run"), restoreDirs)
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	m, err := c.mountAs(ctx, tidemark.MountSpec{Ref: a.name + "@" + pos.String(), Disk: disk, Path: dir}, "restore")
	if err != nil {
		return 0, nil, err
	}
	defer func() { err = errors.Join(err, c.Unmount(context.WithoutCancel(ctx), m.Name)) }()
	from := dir
	if a.Type != tidemark.TypeVolume {
		from = filepath.Join(dir, treeDir)
	}
	stats, err := c.agent.RestoreFiles(ctx, from, spec.To, t.report)
	return stats.ReadBytes, stats.Warnings, err
}

// restoreDisk writes a disk's bytes to a file or device; holes stay holes in a new file.
func restoreDisk(ctx context.Context, t *task, a app, pos tidemark.Position, spec tidemark.RestoreSpec) (n int64, err error) {
	s, err := a.t.At(spec.Disk, pos)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	f, err := os.OpenFile(spec.To, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, tidemark.Errorf(tidemark.Invalid, "%s cannot be written: %w", spec.To, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	regular := st.Mode().IsRegular()
	if regular {
		if err := errors.Join(f.Truncate(0), f.Truncate(s.Size())); err != nil {
			return 0, err
		}
	} else if end, err := f.Seek(0, io.SeekEnd); err != nil || end < s.Size() {
		return 0, errors.Join(err, tidemark.Errorf(tidemark.Invalid, "%s has %d bytes and the disk %d", spec.To, end, s.Size()).WithHint("use a larger device"))
	}
	if n, err = copyDisk(ctx, t, f, s, regular); err != nil {
		return n, err
	}
	return n, f.Sync()
}

// copyDisk copies all of s; skipHoles leaves out what reads as zeros.
func copyDisk(ctx context.Context, t *task, to io.WriterAt, s *timeline.Snapshot, skipHoles bool) (int64, error) {
	buf, copied := make([]byte, 1<<20), int64(0)
	var failed error
	err := s.Extents(0, s.Size(), func(e block.Extent) bool {
		if e.Hole && skipHoles {
			return true
		}
		for off := e.Off; off < e.Off+e.Len && failed == nil; {
			p := buf[:min(int64(len(buf)), e.Off+e.Len-off)]
			if _, failed = s.ReadAt(p, off); failed == nil {
				_, failed = to.WriteAt(p, off)
			}
			if failed == nil {
				failed = ctx.Err()
			}
			off += int64(len(p))
			copied += int64(len(p))
			t.report(tidemark.Progress{Done: off, Total: s.Size(), Unit: "bytes"})
		}
		return failed == nil
	})
	return copied, errors.Join(err, failed)
}

// maxDiff is the most extents that a diff lists.
const maxDiff = 100_000

// Diff lists what differs between two points.
func (c *Control) Diff(ctx context.Context, spec tidemark.DiffSpec) (tidemark.Diff, error) {
	d := tidemark.Diff{A: spec.A, B: spec.B, Extents: []tidemark.DiffExtent{}}
	a, apos, err := c.at(ctx, spec.A)
	if err != nil {
		return d, err
	}
	b, bpos, err := c.at(ctx, spec.B)
	if err != nil {
		return d, err
	}
	x := c.store.Begin()
	defer x.End()
	for _, disk := range a.t.Disks() {
		if spec.Disk != "" && spec.Disk != disk.Name() {
			continue
		}
		if err := c.diffDisk(ctx, x, a, apos, b, bpos, disk.Name(), &d); err != nil {
			return d, err
		}
	}
	return d, nil
}

func (c *Control) diffDisk(ctx context.Context, x *image.Session, a app, apos tidemark.Position, b app, bpos tidemark.Position, disk string, d *tidemark.Diff) error {
	ra, err := a.t.Root(ctx, x, disk, apos)
	if err != nil {
		return err
	}
	rb, err := b.t.Root(ctx, x, disk, bpos)
	if err != nil {
		return err
	}
	if ra.Size != rb.Size || ra.Chunk != rb.Chunk {
		return tidemark.Errorf(tidemark.Invalid, "disk %s is not the same disk in %s and %s", disk, d.A, d.B)
	}
	return c.differing(ra, rb, func(off int64, pa, pb []byte) error {
		return differingBlocks(pa, pb, func(from, to int) error { return addDiff(d, disk, off+int64(from), int64(to-from)) })
	})
}

// addDiff adds a run of differing bytes.
func addDiff(d *tidemark.Diff, disk string, off, n int64) error {
	d.ChangedBytes += n
	if k := len(d.Extents) - 1; k >= 0 && d.Extents[k].Disk == disk && d.Extents[k].Off+d.Extents[k].Len == off {
		d.Extents[k].Len += n
		return nil
	}
	if len(d.Extents) == maxDiff {
		return tidemark.Errorf(tidemark.Unavailable, "more than %d extents differ", maxDiff).WithHint("compare points that are nearer to each other")
	}
	d.Extents = append(d.Extents, tidemark.DiffExtent{Disk: disk, Off: off, Len: n})
	return nil
}
