package timeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"tidemark"
	"tidemark/image"
)

// Rewrite is the right to write what the disks of a timeline shall hold from now on, such as what they held at an
// earlier point, as if it were one write. Until it ends nobody else can write, and no point behind
// From can be had: what is there by then is neither the old nor the new.
//
// A crash does not end it. The timeline is then found in that state, and whoever begins a Rewrite goes
// on with it: to the end, or back to From, which is a bookmark.
type Rewrite struct {
	t *Timeline
	// From is the last point before it.
	From tidemark.Position
}

// ErrRewriting: the disks are being rewritten as a whole, and nobody else can write.
var ErrRewriting = errors.New("the disk is being rewound")

// Rewrite bookmarks the present, which m names, and begins a rewrite of it; or it goes on with one that was cut, and the
// mark is ignored. The caller sees to it that there is one at a time, and that nobody is in the middle of a write.
// Why is what is told of the gap that it leaves. All is durable when Rewrite returns.
func (t *Timeline) Rewrite(m Mark, why string) (*Rewrite, error) {
	if g := t.openGapOf(); g != nil && g.Rewrite {
		return &Rewrite{t: t, From: g.From}, nil
	}
	if t.fed.Load() {
		return nil, fmt.Errorf("%s: %w", t.Name(), ErrFed)
	}
	if err := t.canMark(m); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if err := t.makeRoom(); err != nil {
		return nil, err
	}
	c, err := t.shut(m, payload, why)
	if err != nil {
		return nil, err
	}
	t.set.askFold(t)
	return &Rewrite{t: t, From: c.pos}, nil
}

// shut makes the bookmark and begins the gap behind it, with nothing in between.
func (t *Timeline) shut(m Mark, payload []byte, why string) (c *cut, err error) {
	err = t.withRoom(func() (err error) {
		c, err = t.shutOnce(m, payload, why)
		return err
	})
	return c, err
}

func (t *Timeline) shutOnce(m Mark, payload []byte, why string) (*cut, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.freezeHeld(&m, payload, 0)
	if err != nil {
		return nil, t.writeError("mark a point", err)
	}
	if err := t.journal.Sync(); err != nil {
		return nil, t.writeError("mark a point", err)
	}
	if err := t.addGap(Gap{From: c.pos, Start: time.Unix(0, c.time).UTC(), Why: why, Rewrite: true}); err != nil {
		return nil, err
	}
	t.rewriting.Store(true)
	return c, nil
}

// Rewriting reports whether a rewrite has not ended, and since which point.
func (t *Timeline) Rewriting() (from tidemark.Position, ok bool) {
	if g := t.openGapOf(); g != nil && g.Rewrite {
		return g.From, true
	}
	return 0, false
}

// Present returns an image of what a disk holds now, which stays until x ends.
func (r *Rewrite) Present(ctx context.Context, x *image.Session, disk string) (image.Root, error) {
	i, err := r.t.diskIndex(disk)
	if err != nil {
		return image.Root{}, err
	}
	c, err := r.t.cut(nil)
	if err != nil {
		return image.Root{}, err
	}
	v, n, pin, err := r.t.pinned(x, i, c.pos, r.t.viewOf)
	if err != nil {
		return image.Root{}, err
	}
	defer r.t.unpinOne(pin)
	m, err := r.t.imageOf(ctx, x, v, n, atOnce)
	return m.root(), err
}

// Disk returns what writes to a disk during the rewrite.
func (r *Rewrite) Disk(name string) (io.WriterAt, error) {
	d, err := r.t.Disk(name)
	return rewritten{d}, err
}

type rewritten struct{ d *Disk }

// WriteAt implements [io.WriterAt].
func (w rewritten) WriteAt(p []byte, off int64) (int, error) {
	return w.d.writeAll(p, off, w.d.t.byReference)
}

// End makes what was written durable, and lets the timeline go on. It returns the first point behind the rewrite.
func (r *Rewrite) End() (tidemark.Position, error) {
	if err := r.t.closeGap(); err != nil {
		return 0, err
	}
	r.t.rewriting.Store(false)
	r.t.facts.Lock()
	defer r.t.facts.Unlock()
	for _, g := range slices.Backward(r.t.state.Gaps) {
		if g.Rewrite {
			return g.To, nil
		}
	}
	return 0, nil
}
