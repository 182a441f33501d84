package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/export/nbd"
	"tidemark/image"
	"tidemark/timeline"
)

// A rewind writes to the disks of a clone or volume what differs between now and a point of its past. So its timeline
// goes on: what it held until then is a bookmark before the rewind, and to undo a rewind is another one.
//
// While it is written the timeline is closed to everybody else, durably (see timeline.Rewrite). A rewind that is cut by then is
// undone at the next start, whether the catalog is still there or not; one that is cut later is done, and only what
// runs on the disks is brought up.

// labelRewound is the label of the bookmark before a rewind: the position that it went to.
const labelRewound = "rewound_to"

// Rewind makes a clone or volume what it was at a point of its own timeline, in place: its name, port and connection stay.
func (c *Control) Rewind(ctx context.Context, spec tidemark.RewindSpec) (tidemark.Job, error) {
	return c.ask(ctx, "rewind", spec)
}

func (c *Control) rewindWork(ctx context.Context, spec tidemark.RewindSpec) (*work, error) {
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return nil, err
	}
	a, err := c.app(ref.App)
	if err == nil {
		err = rewindable(a)
	}
	if err != nil {
		return nil, err
	}
	pos, err := rewindTo(a, ref.Point, spec.Undo)
	if err == nil && a.elsewhere() {
		_, err = c.hostAgent(ctx, a.Agent)
	}
	if err != nil {
		return nil, err
	}
	spec.Ref = fixed(spec.Ref)
	w := &work{app: a.name, host: a.host(), args: spec}
	w.holding = func(ctx context.Context) (func(), error) {
		if _, err := c.idleExports(ctx, a); err != nil {
			return nil, err
		}
		return c.work(a.name)
	}
	w.run = func(ctx context.Context, t *task) (any, error) { return c.rewind(ctx, t, a, pos) }
	return w, nil
}

// rewindable refuses what cannot be rewound.
func rewindable(a app) error {
	switch {
	case a.Live != nil:
		return tidemark.Errorf(tidemark.Invalid, "%s is a LiveClone, of which it is known what its data are of", a.name).WithHint("`tidemark liveclone prepare " + a.name + " --refresh` makes it anew")
	case a.Role == roleMount:
		return tidemark.Errorf(tidemark.Invalid, "%s is a mount", a.name).WithHint("unmount it, and mount the point instead")
	case a.tapped():
		return tidemark.Errorf(tidemark.Invalid, "%s is a disk of production, which its tap alone writes", a.name).WithHint("`tidemark restore " + a.name + "@POINT --in-place` takes it back")
	case a.mirrored():
		return tidemark.Errorf(tidemark.Invalid, "%s is the disk of a virtual machine, which alone writes it", a.name).WithHint("clone it, and rewind the clone; or `tidemark restore` a point of it")
	case !a.journaled():
		return tidemark.Errorf(tidemark.Invalid, "%s is written by its captures", a.name).WithHint("clone it, and rewind the clone; or `tidemark restore` a point of it")
	}
	return nil
}

// rewindTo finds the position to go back to.
func rewindTo(a app, p tidemark.Point, undo bool) (tidemark.Position, error) {
	switch {
	case !undo && p.Latest():
		return 0, tidemark.Errorf(tidemark.Invalid, "it is not said how far %s is to go back", a.name).WithHint(fmt.Sprintf("write %s@-5m, or another point: `tidemark points %s` lists them", a.name, a.name))
	case !undo:
		return a.t.Resolve(p)
	case !p.Latest():
		return 0, tidemark.Errorf(tidemark.Invalid, "an undo goes to the point before the last rewind, and takes no other").WithHint("leave the point or --undo out")
	}
	if from, ok := a.t.Rewriting(); ok {
		return from, nil
	}
	for _, p := range slices.Backward(a.t.Points()) {
		if p.Labels[labelRewound] != "" {
			return p.Position, nil
		}
	}
	return 0, tidemark.Errorf(tidemark.NotFound, "%s was not rewound, or the point before that was expired", a.name).WithHint("`tidemark points " + a.name + "` lists what it can go back to")
}

// idleExports returns the writable exports of an application. It fails if somebody uses one, or the disks themselves.
func (c *Control) idleExports(ctx context.Context, a app) (list []keptExport, err error) {
	kept, err := catalog.List[keptExport](ctx, c.catalog, catalog.Exports)
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		if !k.Writable || !k.of(a) {
			continue
		}
		if c.socketOf(k).table.Users(k.Name) > 0 {
			return nil, tidemark.Errorf(tidemark.Conflict, "%s is in use: somebody is connected to its export %s", a.name, k.Name).
				WithHint("have them disconnect first, for the disk would change under them; or end the export: `tidemark unexport " + k.Name + "`")
		}
		list = append(list, k)
	}
	for _, d := range a.t.Disks() {
		if a.Type == tidemark.TypeVolume && !a.elsewhere() && c.exports.Users(exportOf(a, d.Name())) > 0 {
			return nil, tidemark.Errorf(tidemark.Conflict, "disk %s of %s is in use", d.Name(), a.name).WithHint("end that first: `tidemark mounts`")
		}
	}
	return list, nil
}

func (c *Control) rewind(ctx context.Context, t *task, a app, pos tidemark.Position) (res tidemark.Rewound, err error) {
	res = tidemark.Rewound{Name: a.name, Ref: a.name + "@" + pos.String(), Before: "before-rewind-" + time.Now().UTC().Format("20060102-150405.000")}
	begun := time.Now()
	release, err := c.holdPoint(ctx, a, pos)
	if err != nil {
		return res, err
	}
	defer release()
	if res.Time, err = a.t.TimeAt(pos); err != nil {
		return res, err
	}
	if from, ok := a.t.Rewriting(); ok { // one that could not be undone
		p, err := pointAt(a.t, from)
		if err != nil {
			return res, err
		}
		res.Before = p.Bookmark
	}
	mark := timeline.Mark{Name: res.Before, Consistency: tidemark.CrashConsistent, Labels: map[string]string{labelRewound: pos.String()}}
	dirs, err := c.mountedDirs(ctx, a)
	if err != nil {
		return res, err
	}
	if len(dirs) > 0 {
		mark.Consistency = tidemark.FilesystemConsistent // by the unmount
	}
	if err := t.doing(ctx, "stop", undoing{Stopped: a.name}); err != nil {
		return res, err
	}
	if err := c.standDown(ctx, a); err != nil {
		_, up := c.standUp(context.WithoutCancel(ctx), a)
		return res, errors.Join(err, up)
	}
	err = t.doing(ctx, "write back", undoing{Stopped: a.name, Before: res.Before})
	if err == nil {
		res.ChangedBytes, err = c.rewrite(ctx, a, pos, mark, t.report)
	}
	res.Seconds = time.Since(begun).Seconds()
	if err == nil {
		err = t.doing(ctx, "start", undoing{Stopped: a.name, Done: mustJSON(res)})
	}
	if err == nil {
		res.Connection, err = c.standUp(ctx, a)
	}
	if err != nil {
		return res, c.takeBack(ctx, t, a, res.Before, "rewind", err)
	}
	res.Seconds = time.Since(begun).Seconds()
	c.event("info", a.name, "%s is again what it was at %s, %s; what it held until then is %s@%s", a.name, pos, res.Time.Local().Format(time.RFC3339), a.name, res.Before)
	if err := a.t.Fold(ctx); err != nil { // it is asked for again
		c.log.Warn("folding after a rewind", "application", a.name, "error", err)
	}
	c.changed(tidemark.ApplicationRewound, a, changedPoint(a, pos))
	c.keepPoint(ctx, a)
	return res, nil
}

// holdPoint keeps what a point needs until release, and fails if the point cannot be had.
func (c *Control) holdPoint(ctx context.Context, a app, pos tidemark.Position) (release func(), err error) {
	// A branch can show its own positions when it no longer stands on its parent's journal.
	if err := a.t.Fold(ctx); err != nil {
		return nil, err
	}
	var held []*timeline.Snapshot
	release = func() {
		for _, s := range held {
			s.Close()
		}
	}
	for _, d := range a.t.Disks() {
		s, err := a.t.At(d.Name(), pos)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, s)
	}
	return release, nil
}

// rewrite makes the disks of an application hold what they held at pos, as one step of its timeline.
func (c *Control) rewrite(ctx context.Context, a app, pos tidemark.Position, mark timeline.Mark, report func(tidemark.Progress)) (changed int64, err error) {
	then := func(x *image.Session, disk string) (image.Root, error) { return a.t.Root(ctx, x, disk, pos) }
	return c.rewriteTo(ctx, a, then, mark, "it was rewound to "+pos.String(), report)
}

// rewriteTo makes the disks of an application hold images, as one step of its timeline. why is what is told of the gap that it leaves.
func (c *Control) rewriteTo(ctx context.Context, a app, image func(x *image.Session, disk string) (image.Root, error), mark timeline.Mark, why string, report func(tidemark.Progress)) (changed int64, err error) {
	r, err := a.t.Rewrite(mark, why)
	if err != nil {
		return 0, err
	}
	x := c.store.Begin()
	defer x.End()
	a.t.SetBulk(true) // what is written is in the pool already
	defer a.t.SetBulk(false)
	for _, d := range a.t.Disks() {
		then, err := image(x, d.Name())
		if err != nil {
			return changed, err
		}
		now, err := r.Present(ctx, x, d.Name())
		if err != nil {
			return changed, err
		}
		onto, err := r.Disk(d.Name())
		if err != nil {
			return changed, err
		}
		n, err := c.writeBack(ctx, now, then, onto, report)
		changed += n
		if err != nil {
			return changed, fmt.Errorf("write back disk %s of %s: %w", d.Name(), a.name, err)
		}
	}
	_, err = r.End()
	return changed, err
}

// takeBack makes an application what it was before a rewind, or something else that was done to it, that failed because of cause. A server that
// stops leaves that to the next one.
func (c *Control) takeBack(ctx context.Context, t *task, a app, before, what string, cause error) error {
	if errors.Is(context.Cause(ctx), errStopping) {
		return cause
	}
	ctx = context.WithoutCancel(ctx)
	err := t.doing(ctx, "undo", undoing{Stopped: a.name, Before: before})
	if err == nil {
		err = c.standDown(ctx, a)
		if err != nil && a.elsewhere() { // the host may be away, and is not needed for that
			return errors.Join(cause, c.takeBackElsewhere(ctx, t, a, before))
		}
	}
	if err == nil {
		err = c.unwrite(ctx, a, before)
	}
	if err == nil { // what is written from here on is nothing to be taken back
		err = t.doing(ctx, "start", undoing{Stopped: a.name})
	}
	if err == nil {
		_, err = c.standUp(ctx, a)
		if err != nil && a.elsewhere() {
			err = c.noteReturning(ctx, a)
		}
	}
	if err != nil {
		return errors.Join(cause, fmt.Errorf("%s could not be made what it was before, either: %w; it is %s@%s", a.name, err, a.name, before))
	}
	return fmt.Errorf("%s is what it was before the %s, which failed: %w", a.name, what, cause)
}

// takeBackElsewhere does so where the host of a clone could not take it down.
func (c *Control) takeBackElsewhere(ctx context.Context, t *task, a app, before string) error {
	a, err := c.unwriteElsewhere(ctx, a, before)
	if err == nil {
		err = t.doing(ctx, "start", undoing{Stopped: a.name})
	}
	if err == nil {
		err = c.serveElsewhere(ctx, a)
	}
	if err == nil {
		a, err = c.app(a.name) // it comes back
	}
	if _, away := c.hostAgent(ctx, a.Agent); err != nil || away != nil {
		return err // it is brought up when the host is back
	}
	return c.comeBackApp(ctx, a)
}

// unwrite takes the writes of a rewind back, and forgets the bookmark before it.
func (c *Control) unwrite(ctx context.Context, a app, before string) error {
	pos, err := a.t.Resolve(tidemark.Point{Bookmark: before})
	if tidemark.KindOf(err) == tidemark.NotFound {
		return nil // it had not begun
	}
	if err != nil {
		return err
	}
	same, err := c.holdsStill(ctx, a, pos)
	if err != nil {
		return err
	}
	again := timeline.Mark{Name: before + "-x", Consistency: tidemark.CrashConsistent}
	if !same {
		if _, err := c.rewrite(ctx, a, pos, again, func(tidemark.Progress) {}); err != nil {
			return err
		}
	}
	c.forgetPoint(ctx, a, before)
	c.forgetPoint(ctx, a, again.Name)
	return nil
}

// holdsStill reports whether the disks hold what they held at pos, and no rewind is under way.
func (c *Control) holdsStill(ctx context.Context, a app, pos tidemark.Position) (bool, error) {
	if _, ok := a.t.Rewriting(); ok {
		return false, nil
	}
	x := c.store.Begin()
	defer x.End()
	head, _ := a.t.Head()
	for _, d := range a.t.Disks() {
		then, err := a.t.Root(ctx, x, d.Name(), pos)
		if err != nil {
			return false, err
		}
		if now, err := a.t.Root(ctx, x, d.Name(), head); err != nil || now != then {
			return false, err
		}
	}
	return true, nil
}

// forgetPoint expires a bookmark that is of no use to anybody.
func (c *Control) forgetPoint(ctx context.Context, a app, name string) {
	err := a.t.Fold(ctx)
	if err == nil && a.t.HasBookmark(name) {
		var pos tidemark.Position
		if pos, err = a.t.Resolve(tidemark.Point{Bookmark: name}); err == nil {
			err = a.t.Expire(ctx, pos)
		}
	}
	if err != nil {
		c.log.Warn("a bookmark of a rewind that was undone is left", "application", a.name, "bookmark", name, "error", err)
	}
}

// standDown takes a clone or volume off this host, and out of everybody's reach, unless somebody uses it.
func (c *Control) standDown(ctx context.Context, a app) error {
	exports, err := c.idleExports(ctx, a)
	if err != nil {
		return err
	}
	for _, k := range exports {
		s := c.socketOf(k)
		if err := s.table.Remove(k.Name); err != nil && !errors.Is(err, nbd.ErrUnknownExport) {
			return err
		}
		s.server.Disconnect(k.Name)
	}
	if err := c.stopDatabase(ctx, a); err != nil {
		return err
	}
	return c.takeDown(ctx, a, c.detach)
}

// standUp brings a clone or volume to where standDown took it from, and returns how it is reached.
func (c *Control) standUp(ctx context.Context, a app) (connection string, err error) {
	if err := halfRewound(a); err != nil {
		return "", err
	}
	for _, d := range a.t.Disks() {
		if err := c.serveDisk(a, d); err != nil {
			return "", err
		}
	}
	exports, err := c.idleExports(ctx, a)
	if err != nil {
		return "", err
	}
	for _, k := range exports {
		connection = k.URI
		if err := c.serveExport(a, &k); err != nil && !errors.Is(err, nbd.ErrExportExists) {
			return "", err
		}
	}
	if a.Role != roleClone {
		return connection, nil
	}
	k, err := c.cloneOf(ctx, a)
	if err != nil {
		return "", err
	}
	if a.Type == tidemark.TypeVolume && !a.elsewhere() {
		return k.Connection, nil
	}
	if err = c.bringUp(ctx, a, &k); err == nil {
		err = c.catalog.Put(ctx, catalog.Clones, a.name, k)
	}
	return k.Connection, err
}

// undoRewrites takes back the rewinds that were cut while they wrote, before anybody reaches the disks.
func (c *Control) undoRewrites(ctx context.Context) {
	for _, a := range c.apps() {
		from, ok := a.t.Rewriting()
		if !ok {
			continue
		}
		if _, err := c.rewrite(ctx, a, from, timeline.Mark{}, func(tidemark.Progress) {}); err != nil {
			c.event("error", a.name, "the rewind of %s was cut, and could not be undone: %v", a.name, err)
		} else {
			c.event("warning", a.name, "the rewind of %s was cut by a stop of the server and undone", a.name)
		}
	}
}

// halfRewound is an error if a rewind of an application was cut, and neither ended nor undone.
func halfRewound(a app) error {
	if from, ok := a.t.Rewriting(); ok {
		return tidemark.Errorf(tidemark.Unavailable, "%s is in the middle of a rewind", a.name).WithHint(fmt.Sprintf("wait for it (`tidemark jobs`); if it was cut, `tidemark rewind %s@%s` takes it back", a.name, from))
	}
	return nil
}

// undoRewind takes back a rewind that was cut, and off this host what is left there of the clone; it is brought up
// afterwards, like everything at a start.
func (c *Control) undoRewind(ctx context.Context, u undoing) error {
	a, err := c.app(u.Stopped)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return nil
	}
	if err == nil && a.elsewhere() {
		return c.undoRewindElsewhere(ctx, a, u)
	}
	if err == nil {
		err = c.stopDatabase(ctx, a)
	}
	if err == nil {
		err = c.takeDown(ctx, a, c.detach)
	}
	if err == nil && u.Before != "" {
		err = c.unwrite(ctx, a, u.Before)
	}
	for _, d := range a.t.Disks() {
		if err == nil {
			err = c.serveDisk(a, d)
		}
	}
	return err
}
