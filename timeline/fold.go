package timeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
)

// Fold turns what was frozen by bookmarks, branches and the backlog into
// images, oldest first, until nothing frozen is left. When it returns, every bookmark
// made before has its image.
func (t *Timeline) Fold(ctx context.Context) error {
	defer t.set.hurry()()
	if err := t.fold(ctx, atOnce); err != nil {
		return err
	}
	if t.journal.Raw(t.folded()) && t.asked.CompareAndSwap(false, true) {
		t.set.askFold(t) // which packs, when nobody waits
	}
	return nil
}

// fold is Fold, by workers that begin so.
func (t *Timeline) fold(ctx context.Context, begin begin) error {
	t.foldMu.Lock()
	defer t.foldMu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		c := t.oldestCut()
		if c == nil {
			break
		}
		err := t.withRoom(func() error { return t.foldCut(ctx, c, begin) })
		t.facts.Lock()
		t.failed = err
		t.facts.Unlock()
		if err != nil {
			return fmt.Errorf("fold %s up to %v: %w", t.Name(), c.pos, err)
		}
	}
	return t.trim(ctx)
}

// keepHistory keeps history quick to open, small and short, behind a fold. Each of these goes on where another one fails, and the
// next fold does not wait: one segment that cannot be read, or that the bucket does not take, must not let the journal
// grow. What failed is told, and tried again behind the next fold, and later.
func (t *Timeline) keepHistory(ctx context.Context) error {
	err, raw := t.checkpoint(ctx), t.Pack(ctx)
	if ctx.Err() != nil { // it was cut, which is no reason to let go of what is not packed
		return errors.Join(err, raw)
	}
	t.facts.Lock()
	t.raw = raw != nil
	t.facts.Unlock()
	err = errors.Join(err, raw, t.trim(ctx)) // now that it is known what history takes
	err = errors.Join(err, t.Archive(ctx))
	if t.removed() {
		return nil // what failed by that is kept for nobody any more
	}
	if ctx.Err() != nil {
		return err
	}
	t.facts.Lock()
	was, name := t.unkept, t.desc.Name
	t.unkept = err
	t.facts.Unlock()
	switch {
	case err != nil && was == nil:
		t.set.notify("error", name, fmt.Sprintf("the history of %s is not kept as it should be, which is tried again: %v", name, err))
	case err == nil && was != nil:
		t.set.notify("info", name, fmt.Sprintf("the history of %s is kept as it should be again", name))
	}
	return err
}

// Pack compresses what only history needs of the journal: records that are in an image, and are
// kept for the window or for branches. It goes on in the background by itself.
func (t *Timeline) Pack(ctx context.Context) error {
	packed := make(chan error)
	go func() {
		_, err := t.journal.Rewrite(ctx, t.folded(), t.aside(ctx).rest)
		packed <- err
	}()
	if err := <-packed; err != nil {
		return fmt.Errorf("pack the journal of %s: %w", t.Name(), err)
	}
	return nil
}

// folded is the position up to which everything is in an image.
func (t *Timeline) folded() uint64 {
	t.facts.Lock()
	defer t.facts.Unlock()
	return uint64(t.state.Base)
}

func (t *Timeline) oldestCut() *cut {
	t.facts.Lock()
	defer t.facts.Unlock()
	if len(t.cuts) == 0 {
		return nil
	}
	return t.cuts[0]
}

// foldCut makes the images of one cut and lets the head stand on them. The
// order is what makes it safe: chunks durable, then the manifest that names
// them, then the state that builds on them, then the journal may forget.
func (t *Timeline) foldCut(ctx context.Context, c *cut, begin begin) error {
	if err := t.settled(c); err != nil {
		return err
	}
	if err := t.verifyRecords(c); err != nil {
		return err
	}
	x := t.set.store.Begin()
	defer x.End()
	t.facts.Lock()
	images := t.base()
	t.facts.Unlock()
	if err := t.keepBase(ctx, images); err != nil {
		return err
	}
	for i, y := range c.layers {
		if y == nil {
			continue
		}
		var err error
		if images[i], err = t.set.commitLayer(ctx, x, images[i], y, begin); err != nil {
			return fmt.Errorf("disk %s: %w", t.disks[i].name, err)
		}
	}
	if err := t.set.store.Sync(); err != nil {
		return err
	}
	m := t.manifest(c, images)
	if c.mark != nil || t.Window().open() && !c.origin {
		if err := putSealed(ctx, t.set.o.Bucket, imageKey(t.id, c.pos), m); err != nil {
			return err
		}
		t.addPoint(m)
	}
	t.addStored(x.Stats().StoredBytes)
	return t.standOn(c, images)
}

// settled makes sure that the journal holds all up to c, durably: a base beyond
// the journal's end would let positions be used twice. Whoever made the cut may have failed to.
func (t *Timeline) settled(c *cut) error {
	if c.origin || t.journal.Durable() >= uint64(c.pos) {
		return nil
	}
	return t.journal.Sync()
}

// verifyRecords compares the records that c is made of with their checksums:
// a byte that went bad in a journal must not get a good name in an image.
func (t *Timeline) verifyRecords(c *cut) error {
	t.facts.Lock()
	base := t.state.Base
	disks := slices.Clone(t.state.Disks)
	t.facts.Unlock()
	if !c.origin {
		return t.journal.Verify(uint64(base), uint64(c.pos))
	}
	for _, d := range disks {
		if d.Origin == nil {
			continue
		}
		parent := t.set.Get(d.Origin.Timeline)
		if parent == nil {
			return tidemark.Errorf(tidemark.Internal, "the timeline %s that %s branched from is gone", d.Origin.Timeline, t.Name())
		}
		if err := parent.journal.Verify(uint64(d.Origin.After), uint64(d.Origin.UpTo)); err != nil {
			return err
		}
	}
	return nil
}

// keepBase retains the images that the head stood on until now, where any
// point of the window behind them can be asked for.
func (t *Timeline) keepBase(ctx context.Context, images []measured) error {
	t.facts.Lock()
	base, wanted := t.state.Base, t.state.Window.open()
	for _, d := range t.state.Disks {
		wanted = wanted && d.Origin == nil
	}
	if i := t.firstPointFrom(base); i < len(t.points) && t.points[i].Position == base {
		wanted = false
	}
	t.facts.Unlock()
	if !wanted {
		return nil
	}
	m := t.manifest(&cut{pos: base, time: t.timeOfBase(base).UnixNano()}, images)
	if err := putSealed(ctx, t.set.o.Bucket, imageKey(t.id, base), m); err != nil {
		return err
	}
	t.addPoint(m)
	return nil
}

// timeOfBase is the time of the record at the base, which is no point. If that cannot be read it is the latest that it may have.
func (t *Timeline) timeOfBase(base tidemark.Position) time.Time {
	at, err := t.TimeAt(base)
	if err == nil {
		return at
	}
	for _, s := range t.journal.Segments() {
		if s.LastPos >= uint64(base) {
			return fromNano(s.Last)
		}
	}
	_, at = t.Head()
	return at
}

func (t *Timeline) manifest(c *cut, images []measured) manifest {
	m := manifest{Timeline: t.id, Position: c.pos, Time: time.Unix(0, c.time).UTC(), Mark: c.mark}
	for i, of := range images {
		m.Disks = append(m.Disks, diskImage{Name: t.disks[i].name, measured: of})
	}
	return m
}

func (t *Timeline) addPoint(m manifest) {
	t.facts.Lock()
	defer t.facts.Unlock()
	if i := t.firstPointFrom(m.Position); i == len(t.points) || t.points[i].Position != m.Position {
		t.points = slices.Insert(t.points, i, m)
		t.tellPoint(tidemark.PointMade, m)
	}
}

// standOn makes the images of c, now durable, the base of the head, and drops its layers.
func (t *Timeline) standOn(c *cut, images []measured) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state
	t.state.Disks = slices.Clone(old.Disks)
	for i := range t.state.Disks {
		t.state.Disks[i].measured = images[i]
		if c.origin {
			t.state.Disks[i].Origin = nil
		}
	}
	t.state.Base = c.pos
	if c.pos > old.Feed.Pos && old.Feed.ID != "" { // else it was made before the feed began
		t.state.Feed.Seq, t.state.Feed.Pos = c.fedSeq, c.pos
	}
	if err := t.saveState(); err != nil {
		t.state = old
		return err
	}
	t.cuts = slices.Delete(t.cuts, 0, 1) // which leaves nothing of it behind: its layers hold segments
	t.backlog.Add(-c.bytes)
	for i, d := range t.disks {
		d.dropLayer(c.layers[i], images[i])
		if old.Disks[i].Root != images[i].Root {
			t.set.dead.Store(true) // the old one may be of no point
		}
	}
	if c.origin {
		t.set.unpin(t.id)
	}
	return nil
}

// dropLayer replaces the oldest layer, whose content base now has, by base. It
// waits for cuts, which also replace the head: the caller holds facts, as they do.
func (d *Disk) dropLayer(y *layer, base measured) {
	if y == nil {
		return
	}
	v := d.head.Load()
	next := *v
	next.layers = slices.DeleteFunc(slices.Clone(v.layers), func(l *layer) bool { return l == y })
	next.base = v.store.View(base.root())
	d.head.Store(&next)
}

// commitLayer returns the image that has the layer's writes over base, made by workers that begin so.
func (s *Set) commitLayer(ctx context.Context, x *image.Session, base measured, y *layer, begin begin) (measured, error) {
	f := folder{ctx: ctx, x: x, v: newView(s.store, base, y), y: y, held: base.Held}
	leaves := make(chan int64, 16)
	var wg sync.WaitGroup
	for range foldWorkers {
		wg.Go(func() {
			w := begin(ctx)
			buf := make([]byte, f.v.chunk)
			for first := range leaves {
				f.fold(w, first, buf)
			}
		})
	}
	err := y.leaves(func(first int64) error {
		leaves <- first
		return f.failure()
	})
	close(leaves)
	wg.Wait()
	if err = f.failure(); err != nil {
		return base, err
	}
	root, err := x.Commit(base.root(), f.changes)
	made := measured{Root: root.Name, Size: root.Size, Chunk: root.Chunk, Held: f.held}
	if !base.noted() {
		made.Held = 0
	}
	return made, err
}

// foldWorkers hash and compress side by side.
const foldWorkers = 2

// folder makes chunks of a layer's blocks.
type folder struct {
	ctx context.Context
	x   *image.Session
	v   *view
	y   *layer

	mu      sync.Mutex
	changes []image.Change
	held    int64 // bytes that are not holes, with these changes
	err     error
}

func (f *folder) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = f.ctx.Err()
	}
	return f.err
}

func (f *folder) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// fold puts the changed chunks of one leaf.
func (f *folder) fold(w *worker, first int64, buf []byte) {
	start := first * block.BlockSize
	end := min(start+leafBytes, f.v.size)
	var changes []image.Change
	held := int64(0)
	for off := start; off < end && f.failure() == nil; off += f.v.chunk {
		w.rest()
		name, prev, touched, err := f.chunk(off, buf)
		if err != nil {
			f.fail(err)
			return
		}
		if touched && name != prev {
			changes = append(changes, image.Change{Index: off / f.v.chunk, Name: name})
			held += f.heldBy(name, off) - f.heldBy(prev, off)
		}
	}
	f.mu.Lock()
	f.changes = append(f.changes, changes...)
	f.held += held
	f.mu.Unlock()
}

// heldBy is what a chunk at off holds of the disk if it has a name.
func (f *folder) heldBy(name image.Name, off int64) int64 {
	if name.IsZero() {
		return 0
	}
	return min(f.v.chunk, f.v.size-off)
}

// chunk stores the chunk at off, if the layer has some of it.
func (f *folder) chunk(off int64, buf []byte) (name, prev image.Name, touched bool, err error) {
	blocks := f.v.chunk / block.BlockSize
	first := f.y.get(off / block.BlockSize)
	touched, same := first != 0, true
	for b := int64(1); b < blocks; b++ {
		l := f.y.get(off/block.BlockSize + b)
		touched = touched || l != 0
		same = same && l == first
	}
	if !touched {
		return name, prev, false, nil
	}
	if prev, err = f.v.base.ChunkName(off / f.v.chunk); err != nil {
		return name, prev, true, err
	}
	if same && first.kind() == byReference {
		err = f.y.segment(first).ReadAt(name[:], first.offset())
		return name, prev, true, err
	}
	if same && first.kind() == isZero && f.wholeChunk(off) {
		return image.Name{}, prev, true, nil
	}
	n := min(f.v.chunk, f.v.size-off)
	if _, err = f.v.ReadAt(buf[:n], off); err != nil {
		return name, prev, true, err
	}
	clear(buf[n:])
	name, err = f.x.Put(buf, prev)
	return name, prev, true, err
}

// wholeChunk reports that the chunk at off ends within the disk.
func (f *folder) wholeChunk(off int64) bool { return off+f.v.chunk <= f.v.size }
