package control

import (
	"context"
	"fmt"
	"time"

	"tidemark"
	"tidemark/app/volume"
	"tidemark/block"
	"tidemark/timeline"
)

// volumeDisk is the name of a volume's only disk.
const volumeDisk = "disk"

// volumeWindow is for how long any point of a volume can be recovered.
var volumeWindow = timeline.Window{For: time.Hour, Bytes: 1 << 30}

// CreateVolume makes an empty volume.
func (c *Control) CreateVolume(ctx context.Context, spec tidemark.VolumeSpec) (tidemark.VolumeInfo, error) {
	a, err := c.createVolume(ctx, spec)
	if err != nil {
		return tidemark.VolumeInfo{}, err
	}
	return c.volumeInfo(ctx, a)
}

func (c *Control) createVolume(ctx context.Context, spec tidemark.VolumeSpec) (app, error) {
	release, err := c.claim(ctx, spec.Name)
	if err != nil {
		return app{}, err
	}
	defer release()
	note := about{Type: tidemark.TypeVolume, Host: hostname()}
	t, err := c.set.Create(ctx, spec.Name, []timeline.DiskSpec{{Name: volumeDisk, Size: spec.Size, Chunk: spec.Chunk}}, newNote(ctx, note))
	if err != nil {
		return app{}, err
	}
	if err := t.SetWindow(volumeWindow); err != nil {
		return app{}, err
	}
	a, err := appOf(t)
	if err == nil {
		c.keepPoint(ctx, a)
		c.changed(tidemark.ApplicationMade, a, nil)
	}
	return a, err
}

// Volumes lists the volumes.
func (c *Control) Volumes(ctx context.Context) ([]tidemark.VolumeInfo, error) {
	list := []tidemark.VolumeInfo{}
	for _, a := range c.apps() {
		if a.Type != tidemark.TypeVolume || a.Role == roleMount {
			continue
		}
		v, err := c.volumeInfo(ctx, a)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// Volume describes one volume, or any other application's disks as one.
func (c *Control) Volume(ctx context.Context, name string) (tidemark.VolumeInfo, error) {
	a, err := c.app(name)
	if err != nil {
		return tidemark.VolumeInfo{}, err
	}
	return c.volumeInfo(ctx, a)
}

func (c *Control) volumeInfo(ctx context.Context, a app) (tidemark.VolumeInfo, error) {
	v := tidemark.VolumeInfo{Application: c.describe(ctx, a), JournalBytes: a.t.JournalBytes()}
	v.StoredBytes = a.t.StoredBytes() + v.JournalBytes
	for _, d := range a.t.Disks() {
		v.Size += d.Size()
		err := d.Extents(0, d.Size(), func(e block.Extent) bool {
			if !e.Hole {
				v.LogicalBytes += e.Len
			}
			return true
		})
		if err != nil {
			return v, fmt.Errorf("measure disk %s of %s: %w", d.Name(), a.name, err)
		}
	}
	return v, nil
}

// ImportVolume makes a volume equal to a file or block device, and bookmarks it.
func (c *Control) ImportVolume(ctx context.Context, spec tidemark.ImportSpec) (tidemark.Job, error) {
	return c.ask(ctx, "import", spec)
}

// importing is an import as it is recorded.
type importing struct {
	tidemark.ImportSpec
	// Anew: an attempt that was cut found no volume of that name, and made it. One that is there now is somebody else's.
	Anew bool `json:"anew,omitempty"`
}

func (c *Control) importWork(_ context.Context, spec importing) (*work, error) {
	if err := tidemark.CheckName(spec.Name); err != nil {
		return nil, err
	}
	if spec.Bookmark != "" {
		if err := tidemark.CheckBookmark(spec.Bookmark); err != nil {
			return nil, err
		}
	}
	size, err := volume.SourceSize(spec.Path)
	if err != nil {
		return nil, err
	}
	run := func(ctx context.Context, t *task) (any, error) { return c.importVolume(ctx, t, spec, size) }
	return &work{app: spec.Name, host: hostname(), args: spec, run: run}, nil
}

func (c *Control) importVolume(ctx context.Context, t *task, spec importing, size int64) (tidemark.CaptureResult, error) {
	begun := time.Now()
	res := tidemark.CaptureResult{Application: spec.Name}
	a, err := c.app(spec.Name)
	fresh := tidemark.KindOf(err) == tidemark.NotFound
	switch {
	case err == nil && spec.Anew:
		err = tidemark.Errorf(tidemark.Conflict, "there is an application, volume or clone %q by now, which the import would change", spec.Name).WithHint("ask for it again, if that is meant")
	case err == nil:
		if before, ok, err := c.capturedBefore(ctx, t, a, spec.Bookmark); ok || err != nil {
			return before, err
		}
	case fresh:
		spec.Anew = true
		if err := t.doing(ctx, "create", undoing{Remove: spec.Name, Args: mustJSON(spec)}); err != nil {
			return res, err
		}
		a, err = c.createVolume(ctx, tidemark.VolumeSpec{Name: spec.Name, Size: size, Chunk: spec.Chunk})
	}
	if err != nil {
		return res, err
	}
	if res, err = c.importInto(ctx, t, a, spec.ImportSpec, size); err != nil {
		if fresh {
			if e := c.remove(context.WithoutCancel(ctx), tidemark.ApplicationRemoved, spec.Name); e != nil {
				c.log.Error("a half-imported volume was not removed", "volume", spec.Name, "error", e)
			}
		}
		return res, err
	}
	res.Seconds = time.Since(begun).Seconds()
	c.captured.add(res)
	return res, nil
}

func (c *Control) importInto(ctx context.Context, t *task, a app, spec tidemark.ImportSpec, size int64) (tidemark.CaptureResult, error) {
	res := tidemark.CaptureResult{Application: a.name}
	disks := a.t.Disks()
	if a.Type != tidemark.TypeVolume || len(disks) != 1 {
		return res, tidemark.Errorf(tidemark.Conflict, "%s is no volume", a.name).WithHint("import under another name")
	}
	if a.followed() {
		return res, tidemark.Errorf(tidemark.Conflict, "%s is written by its tap alone", a.name).WithHint("import under another name")
	}
	if disks[0].Size() != size {
		return res, tidemark.Errorf(tidemark.Conflict, "%s has %d bytes and the volume %s has %d", spec.Path, size, a.name, disks[0].Size()).
			WithHint("import it under another name")
	}
	if c.exports.Users(exportOf(a, volumeDisk)) > 0 {
		return res, tidemark.Errorf(tidemark.Conflict, "the volume %s is in use", a.name).WithHint("unmount it first")
	}
	before := a.t.StoredBytes()
	a.t.SetBulk(true)
	defer a.t.SetBulk(false)
	stats, err := volume.Import(ctx, spec.Path, disks[0], volume.Options{Progress: t.report})
	if err != nil {
		return res, err
	}
	pos, err := c.bookmarkNow(ctx, a, bookmarkName(a, spec.Bookmark, time.Now()), tidemark.CrashConsistent, map[string]string{"source": spec.Path})
	if err != nil {
		return res, err
	}
	res.ReadBytes, res.ChangedBytes, res.StoredBytes = stats.ReadBytes, stats.ChangedBytes, a.t.StoredBytes()-before
	res.Point, err = pointAt(a.t, pos)
	return res, err
}

// bookmarkNow bookmarks the present of a timeline and makes its image.
func (c *Control) bookmarkNow(ctx context.Context, a app, name string, consistency tidemark.Consistency, labels map[string]string) (tidemark.Position, error) {
	pos, err := a.t.Bookmark(timeline.Mark{Name: name, Consistency: consistency, Labels: labels})
	if err != nil {
		return 0, err
	}
	if err := a.t.Fold(ctx); err != nil {
		return 0, err
	}
	c.keepPoint(ctx, a)
	return pos, nil
}

// bookmarkName is what the user asked for, or a name made of the time.
func bookmarkName(a app, asked string, at time.Time) string {
	if asked != "" {
		return asked
	}
	return timedName(a, capturedPrefix, at)
}

// capturedPrefix begins the names of captures that nobody named.
const capturedPrefix = "c"

// nameTime is how names are made of a time; [madeName] tells them from others.
const nameTime = "20060102-150405.000"

// timedName is a name made of the time that no bookmark of an application has.
func timedName(a app, prefix string, at time.Time) string {
	return unusedName([]app{a}, prefix+at.UTC().Format(nameTime))
}

// RemoveVolume deletes a volume with all its points. While a job of it runs it is refused.
func (c *Control) RemoveVolume(ctx context.Context, name string) error {
	a, err := c.app(name)
	if err != nil {
		return err
	}
	if a.Type != tidemark.TypeVolume || a.Role != "" || a.followed() {
		return tidemark.Errorf(tidemark.Conflict, "%s is no volume of its own", name).WithHint("`tidemark unprotect`, `tidemark clone rm` and `tidemark unmount` remove the others")
	}
	leave, err := c.removing(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	if err := c.free(ctx, a); err != nil {
		return err
	}
	if err := c.tellRemoval(ctx, tidemark.ApplicationRemoved, name, func() error { return a.t.Remove(ctx) }); err != nil {
		return err
	}
	return c.forgetNoted(ctx, a)
}

// free fails if an application is exported, or somebody uses its disks.
func (c *Control) free(ctx context.Context, a app) error {
	exports, err := c.Exports(ctx)
	if err != nil {
		return err
	}
	for _, e := range exports {
		if r, err := tidemark.ParseRef(e.Ref); err == nil && r.App == a.name {
			return tidemark.Errorf(tidemark.Conflict, "%s is exported as %s", a.name, e.Name).WithHint("end that first: `tidemark unexport " + e.Name + "`")
		}
	}
	for _, d := range a.t.Disks() {
		if n := exportOf(a, d.Name()); c.exports.Users(n) > 0 {
			return tidemark.Errorf(tidemark.Conflict, "disk %s of %s is in use", d.Name(), a.name).WithHint("end the mounts and exports of it first: `tidemark mounts`")
		}
	}
	return nil
}
