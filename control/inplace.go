package control

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/catalog"
)

// restoredInPlace is the result of a restore in place.
type restoredInPlace struct {
	restored
	// Before is the clone that holds what was there until then.
	Before string `json:"before"`
	// Changed is how many bytes differed; only they were written.
	Changed int64 `json:"changed_bytes"`
}

// stamp names what is made of a moment.
func stamp(at time.Time) string { return at.UTC().Format("20060102-150405") }

// restoreInPlace takes the disks of a tapped application back to a point, by writing what differs through
// the tap. What they held becomes a clone first, so that it can be undone.
func (c *Control) restoreInPlace(ctx context.Context, spec tidemark.RestoreSpec) (tidemark.Job, error) {
	a, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return tidemark.Job{}, err
	}
	switch {
	case spec.To != "":
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "a restore in place goes to no other place").WithHint("give --in-place or --to")
	case spec.Disk != "":
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "a restore in place takes all disks of %s back, which are one point", a.name).WithHint("leave --disk out")
	case !a.tapped():
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "the disks of %s are not tapped", a.name).
			WithHint("restore it with --to; a clone or volume is taken back by `tidemark rewind`")
	}
	if a.Agent != "" {
		return tidemark.Job{}, tidemark.Errorf(tidemark.Invalid, "the disks of %s are on host %s, and are not written from here", a.name, a.Agent).
			WithHint("export the point, and copy it there: `tidemark export " + spec.Ref + " --nbd tcp:HOST:PORT --tls DIR`")
	}
	devices, err := c.openTapped(a) // to see that nobody uses them
	if err != nil {
		return tidemark.Job{}, err
	}
	closeAll(devices)
	return c.run(ctx, "restore", a.name, spec, func(ctx context.Context, t *task) (any, error) {
		begun := time.Now()
		r := restoredInPlace{restored: restored{Ref: spec.Ref, To: a.Source}, Before: c.freeName(a.name + "-before-" + stamp(begun))}
		var err error
		r.Changed, err = c.restoreTapped(ctx, t, a, pos, r.Before)
		r.Bytes, r.Seconds = r.Changed, time.Since(begun).Seconds()
		if err == nil {
			c.event("warning", a.name, "%s was taken back to %s in place; what it held is the clone %s", a.name, spec.Ref, r.Before)
		}
		return r, err
	})
}

// restoreTapped makes the tapped disks of an application what they were at a point. Their present becomes the clone before
// first.
func (c *Control) restoreTapped(ctx context.Context, t *task, a app, pos tidemark.Position, before string) (changed int64, err error) {
	devices, err := c.openTapped(a) // nobody else writes from here on
	if err != nil {
		return 0, err
	}
	defer closeAll(devices)
	// A tap that was overrun by the writes that are now regretted has no point of the present until it has caught up.
	if err := t.doing(ctx, "catch up", undoing{}); err != nil {
		return 0, err
	}
	if err := c.catchUp(ctx, t, a, patience); err != nil {
		return 0, err
	}
	present, err := c.keepPresent(ctx, a, before)
	if err != nil {
		return 0, err
	}
	// From here on the disks are neither one nor the other: what is cut is done again at the next start.
	if err := t.doing(ctx, "write", undoing{TakeBack: &takingBack{Position: pos, Before: before}}); err != nil {
		return 0, err
	}
	changed, err = c.writeTapped(ctx, t, a, pos, present.Position, devices)
	if err != nil {
		return changed, halfRestored(a, pos, before, err)
	}
	return changed, t.doing(ctx, "end", undoing{})
}

// takingBack is a restore in place that has begun to write.
type takingBack struct {
	Position tidemark.Position `json:"position"`
	Before   string            `json:"before"` // the clone of what was there until then
}

// cutTakeBack is the job of one that a stop of the server has cut.
type cutTakeBack struct {
	tidemark.Job
	takingBack
}

// finishTakingBack does again what a stop of the server has cut, when the tap runs. Until then the job is one that must be
// done again, also after the next stop.
func (c *Control) finishTakingBack(b cutTakeBack) {
	c.begin(b.Job, func(ctx context.Context, t *task) (any, error) {
		begun := time.Now()
		a, err := c.app(b.Application)
		if err != nil {
			return nil, err
		}
		r := restoredInPlace{restored: restored{Ref: fmt.Sprintf("%s@%v", a.name, b.Position), To: a.Source}, Before: b.Before}
		if err := c.catchUp(ctx, t, a, forEver); err != nil {
			return nil, err
		}
		if r.Changed, err = c.rewriteTapped(ctx, t, a, b); err != nil {
			err = halfRestored(a, b.Position, b.Before, err)
		}
		r.Bytes, r.Seconds = r.Changed, time.Since(begun).Seconds()
		return r, err
	})
}

// rewriteTapped writes once more what a cut restore in place was about to write.
func (c *Control) rewriteTapped(ctx context.Context, t *task, a app, b cutTakeBack) (changed int64, err error) {
	devices, err := c.openTapped(a)
	if err != nil {
		return 0, err
	}
	defer closeAll(devices)
	present, err := c.shoot(ctx, a, fmt.Sprintf("cut-%s-%d", stamp(time.Now()), t.id))
	if err != nil {
		return 0, err
	}
	return c.writeTapped(ctx, t, a, b.Position, present.Position, devices)
}

// halfRestored says that the disks of an application are in the middle of a restore, and how to go either way.
func halfRestored(a app, pos tidemark.Position, before string, err error) error {
	return tidemark.Errorf(tidemark.Unavailable, "the disks of %s are neither what they were nor what they should be: %w", a.name, err).
		WithHint(fmt.Sprintf("do it again: `tidemark restore %s@%v --in-place`; what they were is the bookmark %s", a.name, pos, before))
}

// How long a restore in place waits for a tap that is away or does not run. One that sends what the timeline lacks is
// waited for however long that takes.
const (
	patience = 10 * time.Second
	forEver  = time.Duration(math.MaxInt64)
)

// catchUp waits until the timeline of a tapped application has all of its disks, and reports how much is there.
func (c *Control) catchUp(ctx context.Context, t *task, a app, patience time.Duration) error {
	seen, total := time.Now(), int64(0)
	for {
		var d tidemark.Application
		c.describeTap(ctx, a, &d)
		switch {
		case d.Tap.State == tidemark.TapFollowing:
			t.report(tidemark.Progress{})
			return nil
		case d.Tap.State == tidemark.TapSyncing:
			seen, total = time.Now(), max(total, d.Tap.LostBytes)
			t.report(tidemark.Progress{Done: total - d.Tap.LostBytes, Total: total, Unit: "bytes"})
		case time.Since(seen) > patience:
			return tidemark.Errorf(tidemark.Unavailable, "%s has no point for now: its tap is %s (%s)", a.name, d.Tap.State, d.Tap.Detail).
				WithHint("`tidemark status` says how the tap is; `tidemark restore --to` needs none")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// keepPresent bookmarks what the disks of an application hold now, and makes a clone of that, both under one name.
func (c *Control) keepPresent(ctx context.Context, a app, name string) (p tidemark.RecoveryPoint, err error) {
	release, err := c.claim(name)
	if err != nil {
		return p, err
	}
	defer release()
	if p, err = c.shoot(ctx, a, name); err != nil {
		return p, err
	}
	note := about{Type: tidemark.TypeVolume, Host: hostname(), Of: a.name + "@" + p.Position.String(), Role: roleClone, Options: a.Options}
	if _, err := a.t.Branch(ctx, name, p.Position, nil, mustJSON(note)); err != nil {
		return p, err
	}
	k := keptClone{Spec: tidemark.CloneSpec{Ref: note.Of, Name: name},
		Clone: tidemark.Clone{Name: name, Source: note.Of, Type: note.Type, State: "kept", Created: time.Now()}}
	return p, c.catalog.Put(ctx, catalog.Clones, name, k)
}

// openTapped opens the tapped devices of an application for itself alone.
func (c *Control) openTapped(a app) (devices []*os.File, err error) {
	for _, d := range a.t.Disks() {
		path := c.tappedDevice(a, d.Name())
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT|unix.O_EXCL, 0)
		if err == nil {
			devices = append(devices, f)
			continue
		}
		closeAll(devices)
		if errors.Is(err, unix.EBUSY) {
			return nil, tidemark.Errorf(tidemark.Conflict, "%s is in use", path).WithHint("stop the application and unmount it first (`findmnt " + path + "`)")
		}
		return nil, tidemark.Errorf(tidemark.Unavailable, "%w", err).WithHint("`tidemark status` says how the tap is")
	}
	return devices, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// writeTapped writes to each disk's device what a point has and the present does not, and flushes it.
func (c *Control) writeTapped(ctx context.Context, t *task, a app, point, present tidemark.Position, devices []*os.File) (changed int64, err error) {
	x := c.store.Begin()
	defer x.End()
	for i, d := range a.t.Disks() {
		then, err := a.t.Root(ctx, x, d.Name(), point)
		if err != nil {
			return changed, err
		}
		now, err := a.t.Root(ctx, x, d.Name(), present)
		if err != nil {
			return changed, err
		}
		n, err := c.writeBack(ctx, now, then, devices[i], t.report)
		changed += n
		if err := errors.Join(err, devices[i].Sync()); err != nil {
			return changed, fmt.Errorf("write disk %s: %w", d.Name(), err)
		}
	}
	return changed, nil
}
