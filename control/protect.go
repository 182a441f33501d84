package control

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/app/volume"
	"tidemark/timeline"
)

// dataDisk is the staging disk of an application's files; logDisk that of a database's log.
const (
	dataDisk = "data"
	logDisk  = "wal"
	// treeDir is where the copy lies on a data disk: the application's own bookkeeping is beside it.
	treeDir = "data"
)

// Protect makes something an application: its timeline is created, and its
// staging disks are formatted and attached. Its first capture is not part of it.
func (c *Control) Protect(ctx context.Context, spec tidemark.ProtectSpec) (tidemark.Job, error) {
	return c.ask(ctx, "protect", spec)
}

func (c *Control) protectWork(ctx context.Context, spec tidemark.ProtectSpec) (*work, error) {
	if spec.CDP && tidemark.CheckName(spec.Source) == nil {
		return c.protectOurs(spec)
	}
	if err := tidemark.CheckName(spec.Name); err != nil {
		return nil, err
	}
	if err := checkOptions(spec); err != nil {
		return nil, err
	}
	how, err := c.howToProtect(ctx, spec)
	if err != nil {
		return nil, err
	}
	if _, err := c.profile(ctx, spec.Profile); err != nil {
		return nil, err
	}
	if spec.SLA != "" {
		t, err := c.template(ctx, spec.SLA)
		if err == nil {
			err = cmp.Or(c.canPromise(willBe(spec), t), c.canPlace(ctx, willBe(spec), t))
		}
		if err != nil {
			return nil, err
		}
	}
	host := spec.Host
	if host == "" {
		host = hostname()
	}
	run := func(ctx context.Context, t *task) (any, error) {
		if err := t.doing(ctx, "prepare", undoing{Remove: spec.Name}); err != nil {
			return nil, err
		}
		a, err := how(ctx, t)
		if err != nil {
			return nil, errors.Join(err, c.demolish(context.WithoutCancel(ctx), spec.Name))
		}
		if spec.SLA != "" || spec.Profile != "" || len(spec.Labels) > 0 {
			err := c.describeAnew(ctx, a, func(n *about) { n.Promise, n.Profile, n.Labels = newPromise(spec.SLA), spec.Profile, spec.Labels })
			if err != nil {
				return nil, errors.Join(err, c.demolish(context.WithoutCancel(ctx), spec.Name))
			}
		} else {
			c.keepPoint(ctx, a)
		}
		c.changed(tidemark.ApplicationMade, a, nil)
		c.event("info", a.name, "%s is protected", a.Source)
		return c.describe(ctx, a), nil
	}
	return &work{app: spec.Name, host: host, args: spec, holding: c.claiming(spec.Name), run: run}, nil
}

// howToProtect looks at what the source is, and refuses what cannot be protected.
func (c *Control) howToProtect(ctx context.Context, spec tidemark.ProtectSpec) (func(context.Context, *task) (app, error), error) {
	if strings.HasPrefix(spec.Source, machinePrefix) {
		return c.howToMirror(spec)
	}
	if spec.CDP {
		return c.howToTap(ctx, spec)
	}
	if spec.Host != "" {
		return c.howToSend(ctx, spec)
	}
	if isCluster(spec.Source) {
		src, err := postgres.ParseSource(spec.Source)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, t *task) (app, error) { return c.protectPostgres(ctx, spec, src) }, nil
	}
	if !filepath.IsAbs(spec.Source) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%q is neither an absolute path nor a database URL", spec.Source).
			WithHint("write /path/to/directory, /dev/device or postgres://…; `tidemark discover` lists what is here")
	}
	st, err := os.Stat(spec.Source)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.NotFound, "the source cannot be read: %w", err).WithHint("`tidemark discover` lists what is here")
	}
	if st.IsDir() {
		if within(c.o.Dir, spec.Source) || within(spec.Source, c.o.Dir) {
			return nil, tidemark.Errorf(tidemark.Invalid, "%s and the data directory %s lie within each other", spec.Source, c.o.Dir).
				WithHint("protect another directory, or move the data directory")
		}
		return func(ctx context.Context, t *task) (app, error) { return c.protectFiles(ctx, spec) }, nil
	}
	size, err := volume.SourceSize(spec.Source)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, t *task) (app, error) { return c.protectDevice(ctx, spec, size) }, nil
}

// isCluster reports whether a source is written as a database is.
func isCluster(source string) bool {
	return strings.Contains(source, "://") || strings.Contains(source, "=") && !filepath.IsAbs(source)
}

// within reports whether a path is dir or lies below it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// checkOptions refuses options that mean nothing, and values that cannot be read.
func checkOptions(spec tidemark.ProtectSpec) error {
	if strings.HasPrefix(spec.Source, machinePrefix) {
		return checkMachine(spec)
	}
	if spec.CDP {
		return checkTapOptions(spec.Options)
	}
	if spec.Window != nil || len(spec.Also) > 0 {
		return tidemark.Errorf(tidemark.Invalid, "only what is protected with --cdp has a window or several disks").WithHint("add --cdp")
	}
	if _, limit := spec.Options["wal_limit"]; limit && spec.Host != "" && !isCluster(spec.Source) {
		return tidemark.Errorf(tidemark.Invalid, "%s has no log that could be limited", spec.Source).WithHint("leave wal_limit out")
	}
	for key, value := range spec.Options {
		if key != "disk_size" && key != "wal_limit" {
			return tidemark.Errorf(tidemark.Invalid, "there is no option %q", key).WithHint("there are disk_size=SIZE and wal_limit=SIZE")
		}
		if _, err := tidemark.ParseSize(value); err != nil {
			return err
		}
	}
	return nil
}

func (c *Control) protectDevice(ctx context.Context, spec tidemark.ProtectSpec, size int64) (app, error) {
	note := about{Type: tidemark.TypeVolume, Source: spec.Source, Host: hostname(), Options: spec.Options}
	t, err := c.set.Create(ctx, spec.Name, []timeline.DiskSpec{{Name: volumeDisk, Size: size}}, newNote(ctx, note))
	if err != nil {
		return app{}, err
	}
	return appOf(t)
}

func (c *Control) protectFiles(ctx context.Context, spec tidemark.ProtectSpec) (app, error) {
	note := about{Type: tidemark.TypeFilesystem, Source: filepath.Clean(spec.Source), Host: hostname(), Options: spec.Options}
	size, err := stagingSize(spec.Options, used(spec.Source))
	if err != nil {
		return app{}, err
	}
	return c.makeStaging(ctx, spec.Name, note, []timeline.DiskSpec{{Name: dataDisk, Size: size}})
}

func (c *Control) protectPostgres(ctx context.Context, spec tidemark.ProtectSpec, src postgres.Source) (app, error) {
	report, err := postgres.Check(ctx, src, postgres.CheckOptions{SetSlotLimit: slotLimit(spec.Options)})
	if err != nil {
		return app{}, err
	}
	if len(report.Problems) > 0 {
		return app{}, tidemark.Errorf(tidemark.Unavailable, "%s cannot be protected: %s", src.Conn, strings.Join(report.Problems, "; "))
	}
	size, err := stagingSize(spec.Options, report.Bytes)
	if err != nil {
		return app{}, err
	}
	note := about{Type: tidemark.TypePostgres, Source: src.Conn, Host: hostname(), Options: spec.Options}
	a, err := c.makeStaging(ctx, spec.Name, note, []timeline.DiskSpec{{Name: dataDisk, Size: size}, {Name: logDisk, Size: logDiskSize}})
	if err != nil {
		return a, err
	}
	for _, w := range report.Warnings {
		c.event("warning", a.name, "%s", w)
	}
	return a, c.receive(a)
}

// logDiskSize is the size of the disk that a database's log is streamed to: thin, so it costs what is on it.
const logDiskSize = 256 << 30

// slotLimit is the option wal_limit, or 0 to leave production's setting alone.
func slotLimit(options map[string]string) int64 {
	n, err := tidemark.ParseSize(options["wal_limit"])
	if err != nil {
		return 0
	}
	return n
}

// stagingSize is the option disk_size, or a thin disk with room for the source to grow.
func stagingSize(options map[string]string, now int64) (int64, error) {
	if s, ok := options["disk_size"]; ok {
		n, err := tidemark.ParseSize(s)
		if err != nil {
			return 0, err
		}
		return n, tidemark.CheckDiskSize(n)
	}
	size := int64(32 << 30)
	for size < 4*now {
		size *= 2
	}
	return size, nil
}

// used is how many bytes the file system that holds dir has in use: no less than dir's.
func used(dir string) int64 {
	st, err := statfs(dir)
	if err != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// makeStaging makes a timeline with staging disks, formats them and mounts them.
func (c *Control) makeStaging(ctx context.Context, name string, note about, disks []timeline.DiskSpec) (app, error) {
	note.Turn = firstTurn
	t, err := c.set.Create(ctx, name, disks, newNote(ctx, note))
	if err != nil {
		return app{}, err
	}
	a, err := appOf(t)
	if err != nil {
		return a, err
	}
	t.SetBulk(true)
	for _, d := range disks {
		device, err := c.attach(ctx, a, d.Name, true)
		if err != nil {
			return a, err
		}
		if err := c.agent.Format(ctx, device, "ext4", "tm-"+d.Name); err != nil {
			return a, err
		}
		if _, err := c.mountOurs(ctx, device, a, d.Name); err != nil {
			return a, err
		}
	}
	return a, nil
}

// mountOptions are of every file system that is mounted for somebody: who has made what is in it has no business on this host.
var mountOptions = []string{"noatime", "nosuid", "nodev"}

// ownFiles reports whether the disk of an application has files that nobody but us has to reach. They have the modes that they have in the
// tree, where the directories above it may keep others out.
func (a app) ownFiles() bool { return a.Role == "" && a.Type == tidemark.TypeFilesystem }

// mountOurs mounts a disk of an application or clone where it belongs, and returns where that is.
func (c *Control) mountOurs(ctx context.Context, device string, a app, disk string) (dir string, err error) {
	x, err := c.agentOf(a)
	if err != nil {
		return "", err
	}
	return x.Mount(ctx, agent.Filesystem{Device: device, Dir: c.dirOf(a, disk), Make: true, Private: a.ownFiles(), Options: mountOptions})
}

// Unprotect ends the protection of an application and deletes its timeline
// with all points. Clones stay. While a job of it runs it is refused; one that waits for its turn fails when that comes.
func (c *Control) Unprotect(ctx context.Context, name string) error {
	a, err := c.app(name)
	if err != nil {
		return err
	}
	if a.Role != "" {
		return tidemark.Errorf(tidemark.Conflict, "%s is a %s", name, a.Role).WithHint("`tidemark clone rm` or `tidemark unmount` removes it")
	}
	if err := c.settled(a); err != nil {
		return err
	}
	leave, err := c.removing(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	return c.remove(ctx, tidemark.ApplicationRemoved, name)
}

// Capture brings the changes of an application in, and ends in a bookmark.
func (c *Control) Capture(ctx context.Context, spec tidemark.CaptureSpec) (tidemark.Job, error) {
	return c.ask(ctx, "capture", spec)
}

func (c *Control) captureWork(_ context.Context, spec tidemark.CaptureSpec) (*work, error) {
	a, err := c.app(spec.Application)
	if err != nil {
		return nil, err
	}
	if spec.Bookmark != "" {
		if err := tidemark.CheckBookmark(spec.Bookmark); err != nil {
			return nil, err
		}
	}
	how := c.captureOf(a)
	if how == nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s has no source to capture from", a.name).WithHint("use `tidemark volume import` or `tidemark bookmark`")
	}
	run := func(ctx context.Context, t *task) (any, error) {
		begun, before := time.Now(), a.t.StoredBytes()
		if res, ok, err := c.capturedBefore(ctx, t, a, spec.Bookmark); ok || err != nil {
			return res, err
		}
		if err := t.doing(ctx, "copy", undoing{}); err != nil {
			return nil, err
		}
		res, err := how(ctx, t, a, bookmarkName(a, spec.Bookmark, begun))
		if err != nil {
			return nil, err
		}
		res.Application, res.Seconds, res.StoredBytes = a.name, time.Since(begun).Seconds(), a.t.StoredBytes()-before
		c.captured.add(res)
		c.event("info", a.name, "captured %s: %s changed, %s stored", res.Point.Bookmark, tidemark.FormatSize(res.ChangedBytes), tidemark.FormatSize(res.StoredBytes))
		return res, nil
	}
	return &work{app: a.name, host: a.host(), args: spec, run: run}, nil
}

// capturedBefore reports whether an attempt of the same job made its bookmark before it was cut: then the capture, or import, is done.
func (c *Control) capturedBefore(ctx context.Context, t *task, a app, bookmark string) (res tidemark.CaptureResult, ok bool, err error) {
	if t.job.Attempt < 2 || bookmark == "" || !a.t.HasBookmark(bookmark) {
		return res, false, nil
	}
	if err := a.t.Fold(ctx); err != nil {
		return res, false, err
	}
	pos, err := a.t.Resolve(tidemark.Point{Bookmark: bookmark})
	if err != nil {
		return res, false, err
	}
	res.Application, res.Notes = a.name, []string{"it was made by an attempt that was cut before it could say what it did"}
	if res.Point, err = pointAt(a.t, pos); err != nil || res.Point.Time.Before(t.job.Created) {
		return res, false, err // somebody else's, made before: the capture itself will say so
	}
	c.keepPoint(ctx, a)
	return res, true, nil
}

type captureFunc func(ctx context.Context, t *task, a app, bookmark string) (tidemark.CaptureResult, error)

// captureOf returns how an application is captured, or nil.
func (c *Control) captureOf(a app) captureFunc {
	switch {
	case a.followed():
		return c.captureFollowed
	case a.Role != "":
		return c.captureClone
	case a.sent():
		return c.captureSent
	case a.Type == tidemark.TypePostgres:
		return c.capturePostgres
	case a.Type == tidemark.TypeFilesystem:
		return c.captureFiles
	case a.Source != "":
		return c.captureDevice
	}
	return nil
}

func (c *Control) captureDevice(ctx context.Context, t *task, a app, bookmark string) (tidemark.CaptureResult, error) {
	size, err := volume.SourceSize(a.Source)
	if err != nil {
		return tidemark.CaptureResult{}, err
	}
	return c.importInto(ctx, t, a, tidemark.ImportSpec{Name: a.name, Path: a.Source, Bookmark: bookmark}, size)
}

func (c *Control) captureFiles(ctx context.Context, t *task, a app, bookmark string) (res tidemark.CaptureResult, err error) {
	dir, err := c.staged(ctx, a, dataDisk)
	if err != nil {
		return res, err
	}
	stats, err := c.agent.SyncFiles(ctx, a.Source, dir, t.report)
	if err != nil {
		return res, err
	}
	res.ReadBytes, res.ChangedBytes, res.Notes = stats.ReadBytes, stats.ChangedBytes, stats.Warnings
	for _, f := range stats.Inconsistent {
		res.Notes = append(res.Notes, "changed while it was read: "+f)
	}
	if stats.Rescan != "" {
		res.Notes = append(res.Notes, stats.Rescan)
	}
	res.Point, err = c.markCapture(ctx, t, a, timeline.Mark{Name: bookmark, Consistency: tidemark.FilesystemConsistent})
	return res, err
}

// captureClone bookmarks a clone: what it wrote is on its timeline already.
func (c *Control) captureClone(ctx context.Context, t *task, a app, bookmark string) (res tidemark.CaptureResult, err error) {
	res.ChangedBytes = a.t.Backlog()
	res.Point, err = c.markCapture(ctx, t, a, timeline.Mark{Name: bookmark, Consistency: tidemark.CrashConsistent})
	return res, err
}

// markCapture bookmarks what a capture brought, and makes its image.
func (c *Control) markCapture(ctx context.Context, t *task, a app, m timeline.Mark) (tidemark.RecoveryPoint, error) {
	if err := t.doing(ctx, "bookmark", undoing{}); err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	pos, err := c.markFrozen(ctx, a, m)
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	if err := t.doing(ctx, "fold", undoing{}); err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	if err := a.t.Fold(ctx); err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	c.keepPoint(ctx, a)
	return pointAt(a.t, pos)
}

// staged returns where a staging disk is mounted, and mounts it if it is not.
func (c *Control) staged(ctx context.Context, a app, disk string) (string, error) {
	s, err := c.look(ctx, a, disk)
	if err != nil || s.Mounted && s.Device != "" {
		return s.Dir, err
	}
	device, err := c.attach(ctx, a, disk, false)
	if err != nil {
		return "", err
	}
	return c.mountOurs(ctx, device, a, disk)
}
