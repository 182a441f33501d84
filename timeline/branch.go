package timeline

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidemark"
	"tidemark/image"
	"tidemark/internal/vfs"
)

// DiskSpec describes a disk of a new timeline.
type DiskSpec struct {
	Name  string
	Size  int64 // bytes, a multiple of 512
	Chunk int   // bytes; 0: tidemark.DefaultChunk
}

func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Create makes a timeline of empty disks.
func (s *Set) Create(ctx context.Context, name string, disks []DiskSpec, about json.RawMessage) (*Timeline, error) {
	if err := checkDisks(name, disks); err != nil {
		return nil, err
	}
	t := s.blank(newID())
	t.desc = descriptor{ID: t.id, Name: name, Created: time.Now().UTC(), About: about}
	for _, d := range disks {
		t.state.Disks = append(t.state.Disks, diskState{Name: d.Name, measured: measured{Size: d.Size, Chunk: d.Chunk}})
	}
	return t, s.establish(ctx, t, nil)
}

func checkDisks(name string, disks []DiskSpec) error {
	if err := tidemark.CheckName(name); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i := range disks {
		d := &disks[i]
		if d.Chunk == 0 {
			d.Chunk = tidemark.DefaultChunk
		}
		if err := tidemark.CheckName(d.Name); err != nil {
			return err
		}
		if err := tidemark.CheckDiskSize(d.Size); err != nil {
			return err
		}
		if err := tidemark.CheckChunk(int64(d.Chunk)); err != nil {
			return err
		}
		if seen[d.Name] {
			return tidemark.Errorf(tidemark.Invalid, "there are two disks of the name %q", d.Name).WithHint("name them apart")
		}
		seen[d.Name] = true
	}
	if len(disks) == 0 {
		return tidemark.Errorf(tidemark.Invalid, "a timeline needs a disk").WithHint("give one or more")
	}
	return nil
}

// Branch makes a writable timeline that begins as t was at pos, or, for the
// disks named in each, at another position of theirs. Nothing is copied: its cost does
// not depend on the size of the disks or the length of the history. In the background
// the branch then gets images of its own, and needs t no more.
func (t *Timeline) Branch(ctx context.Context, name string, pos tidemark.Position, each map[string]tidemark.Position, about json.RawMessage) (*Timeline, error) {
	if err := tidemark.CheckName(name); err != nil {
		return nil, err
	}
	x := t.set.store.Begin()
	defer x.End()
	pos, err := t.settle(pos)
	if err != nil {
		return nil, err
	}
	if err := t.journal.Sync(); err != nil {
		return nil, t.writeError("branch", err)
	}
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	if t.removing() { // of which everything else waits until nobody holds trimMu
		return nil, tidemark.Errorf(tidemark.NotFound, "%s is being removed", t.Name())
	}
	b := t.set.blank(newID())
	b.desc = descriptor{ID: b.id, Name: name, Parent: t.id, Point: &pos, Created: time.Now().UTC(), About: about}
	begin := &cut{origin: true, layers: make([]*layer, len(t.disks))}
	pin, unfolded := pos, false
	views := make([]*view, len(t.disks))
	for i, d := range t.disks {
		at := pos
		if p, ok := each[d.name]; ok {
			at = p
		}
		v, n, err := t.viewAt(x, i, at)
		if err != nil {
			return nil, err
		}
		if at, err = t.flat(ctx, x, i, at, &v, &n); err != nil {
			return nil, err
		}
		views[i] = v
		st := diskState{Name: d.name, measured: n.image}
		if len(v.layers) > 0 {
			st.Origin = &origin{Timeline: t.id, Disk: uint16(i), After: n.pos, UpTo: at}
			begin.layers[i] = v.layers[0]
			pin, unfolded = min(pin, n.pos), true
		}
		b.state.Disks = append(b.state.Disks, st)
		begin.pos = max(begin.pos, at)
	}
	b.state.Base = begin.pos
	if !unfolded {
		return b, t.set.establish(ctx, b, nil)
	}
	t.pin(b.id, pin)
	if err := t.set.establish(ctx, b, begin); err != nil {
		t.unpinOne(b.id)
		return nil, err
	}
	t.set.askFold(b)
	return b, nil
}

// flat turns a view with several layers, or whose layers are not all of t's
// own journal, into one that a branch can be described by: an image and one layer.
func (t *Timeline) flat(ctx context.Context, x *image.Session, i int, at tidemark.Position, v **view, n *nearest) (tidemark.Position, error) {
	head, _ := t.Head()
	at = min(at, head)
	if len((*v).layers) == 0 || len((*v).layers) == 1 && !n.foreign {
		return at, nil
	}
	if !n.foreign {
		y, err := t.replay(uint16(i), n.image, n.pos, at)
		if err != nil {
			return at, err
		}
		*v = newView(t.set.store, n.image, y)
		return at, nil
	}
	made, err := t.imageOf(ctx, x, *v, *n, atOnce)
	if err != nil {
		return at, err
	}
	if err := t.set.store.Sync(); err != nil {
		return at, err
	}
	*n = nearest{pos: at, image: made}
	*v = newView(t.set.store, made)
	return at, nil
}

func (t *Timeline) pin(child string, pos tidemark.Position) {
	t.facts.Lock()
	defer t.facts.Unlock()
	t.pins[child] = pos
}

func (t *Timeline) unpinOne(child string) {
	t.facts.Lock()
	defer t.facts.Unlock()
	delete(t.pins, child)
	delete(t.shown, child)
}

// Rename gives the timeline another name.
func (t *Timeline) Rename(ctx context.Context, name string) error {
	if err := tidemark.CheckName(name); err != nil {
		return err
	}
	return t.redescribe(ctx, func(d *descriptor) { d.Name = name })
}

// SetAbout replaces what the owner says about the timeline.
func (t *Timeline) SetAbout(ctx context.Context, about json.RawMessage) error {
	return t.redescribe(ctx, func(d *descriptor) { d.About = about })
}

// redescribe stores a changed descriptor under the next number, then deletes
// the one before. A number is never used twice: one whose Put failed may be there all the same.
func (t *Timeline) redescribe(ctx context.Context, change func(*descriptor)) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	d, old := t.desc, t.descNo
	change(&d)
	t.descNo++
	if err := putSealed(ctx, t.set.o.Bucket, descriptorKey(t.id, t.descNo), d); err != nil {
		return err
	}
	t.desc = d
	return t.set.o.Bucket.Delete(ctx, descriptorKey(t.id, old))
}

// Remove deletes the timeline with all its points. Branches of it stay: those
// that still read its journal are folded first.
func (t *Timeline) Remove(ctx context.Context) error {
	for {
		child, err := t.dependent()
		if err != nil {
			return err
		}
		if child != nil {
			if err := child.Fold(ctx); err != nil {
				return fmt.Errorf("make branch %s independent: %w", child.Name(), err)
			}
			continue
		}
		if cancel := t.background.Load(); cancel != nil {
			(*cancel)() // an image of what is removed would be for nobody
		}
		t.foldMu.Lock()
		doomed, err := t.doom()
		if doomed {
			break
		}
		t.foldMu.Unlock()
		if err != nil { // else somebody has branched from it meanwhile
			return err
		}
	}
	defer t.foldMu.Unlock()
	t.set.forget(t)
	t.set.unpin(t.id)
	if err := t.journal.Close(); err != nil {
		t.set.o.Logger.Warn("closing a removed journal", "timeline", t.id, "error", err)
	}
	// Whoever archives a segment of it, or trims it, comes to an end before everything is erased.
	t.archiveMu.Lock()
	defer t.archiveMu.Unlock()
	t.lockTrim()
	defer t.trimMu.Unlock()
	return t.set.erase(ctx, t.id)
}

// dependent returns a branch that still reads the timeline's journal, if there is one.
func (t *Timeline) dependent() (*Timeline, error) {
	t.facts.Lock()
	pins := maps.Clone(t.pins)
	t.facts.Unlock()
	damaged := t.set.Damaged()
	for id := range pins {
		if damaged[id] != nil {
			return nil, tidemark.Errorf(tidemark.Conflict, "the branch %s of %s cannot be opened, and needs its journal", id, t.Name()).
				WithHint("`tidemark verify` says what is wrong with it; `tidemark forget " + id + "` deletes it")
		}
		if child := t.set.Get(id); child != nil && child.dependsOn(t) {
			return child, nil
		}
	}
	return nil, nil
}

// dependsOn reports whether the timeline is a branch of another that still reads its journal.
func (t *Timeline) dependsOn(parent *Timeline) bool {
	t.facts.Lock()
	defer t.facts.Unlock()
	return slices.ContainsFunc(t.state.Disks, func(d diskState) bool { return d.Origin != nil && d.Origin.Timeline == parent.id })
}

func (t *Timeline) removing() bool {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.state.Removing
}

// doom makes it durable that the timeline is removed, unless a branch depends on it: none can be made from now on. Who calls holds foldMu.
func (t *Timeline) doom() (doomed bool, err error) {
	t.lockTrim() // so that nobody is about to branch
	defer t.trimMu.Unlock()
	if child, err := t.dependent(); child != nil || err != nil {
		return false, err
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	t.state.Removing = true
	if err := t.saveState(); err != nil {
		t.state.Removing = false
		return false, err
	}
	t.cuts = nil
	return true, nil
}

// erase deletes what is stored of a timeline; the state goes last, so that an
// interrupted erase is found and finished at the next start.
func (s *Set) erase(ctx context.Context, id string) error {
	s.dead.Store(true)
	var keys []string
	found, err := listBelow(ctx, s.o.Bucket, "timelines/"+id+"/")
	if err != nil {
		return err
	}
	if l := found[id]; l != nil {
		for _, a := range l.segments {
			keys = append(keys, s.shelfOf(id).prefix+a.Name)
		}
		for _, pos := range l.images {
			keys = append(keys, imageKey(id, pos))
		}
		for _, n := range l.descriptors {
			keys = append(keys, descriptorKey(id, n))
		}
	}
	for _, k := range keys {
		if err := s.o.Bucket.Delete(ctx, k); err != nil {
			return fmt.Errorf("delete %s: %w", k, err)
		}
	}
	dir := s.dirOf(id)
	if err := s.o.FS.RemoveAll(s.o.FS.PathJoin(dir, "journal")); err != nil {
		return err
	}
	if err := s.o.FS.RemoveAll(dir); err != nil {
		return err
	}
	return vfs.SyncDir(s.o.FS, s.o.Dir)
}
