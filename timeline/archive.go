package timeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/journal"
	"tidemark/object"
)

// shelf is the part of the pool's bucket that has the archived journal of a timeline. It is a [journal.Archive].
type shelf struct {
	fs     vfs.FS
	bucket object.Bucket
	prefix string // of keys; ends with a slash
}

func (s *Set) shelfOf(id string) *shelf {
	return &shelf{fs: s.o.FS, bucket: s.o.Bucket, prefix: "timelines/" + id + "/journal/"}
}

// Store implements [journal.Archive]. Where bucket and journal are on one file system nothing is copied.
func (a *shelf) Store(ctx context.Context, name, path string, size int64) error {
	if d, ok := a.bucket.(object.Adopter); ok {
		if err := d.Adopt(ctx, a.prefix+name, path); err == nil || errors.Is(err, object.ErrExists) {
			return existing(err)
		}
	}
	f, err := a.fs.Open(path)
	if err != nil {
		return err
	}
	err = existing(a.bucket.Put(ctx, a.prefix+name, io.NewSectionReader(f, 0, size), size))
	return errors.Join(err, f.Close())
}

func existing(err error) error {
	if errors.Is(err, object.ErrExists) {
		return errors.Join(fs.ErrExist, err)
	}
	return err
}

// ReadAt implements [journal.Archive].
func (a *shelf) ReadAt(name string, p []byte, off int64) error {
	err := a.bucket.ReadAt(context.Background(), a.prefix+name, p, off)
	if errors.Is(err, object.ErrNotFound) {
		return errors.Join(fs.ErrNotExist, err)
	}
	return err
}

// Delete implements [journal.Archive].
func (a *shelf) Delete(ctx context.Context, name string) error {
	return a.bucket.Delete(ctx, a.prefix+name)
}

// Archive moves what is out of the hot set of the journal to the pool's bucket, the oldest first. It goes on in
// the background by itself.
func (t *Timeline) Archive(ctx context.Context) error {
	t.archiveMu.Lock()
	defer t.archiveMu.Unlock()
	if t.removed() {
		return nil
	}
	if _, err := t.journal.Archive(ctx, t.cold()); err != nil {
		return fmt.Errorf("archive the journal of %s: %w", t.Name(), err)
	}
	return nil
}

// cold returns the position up to which the journal is out of the hot set; 0 if nothing is that is here. Ages
// are counted back from the newest record: no clock that jumps moves what is not old.
func (t *Timeline) cold() uint64 {
	o := &t.set.o
	_, newest := t.journal.Head()
	base, bytes := t.folded(), int64(0)
	for _, s := range slices.Backward(t.journal.Segments()) {
		if s.Archived {
			return 0
		}
		if s.LastPos > base || s.LastPos < s.FirstPos {
			continue
		}
		bytes += s.Bytes
		if o.HotBytes > 0 && bytes > o.HotBytes || o.HotFor > 0 && newest-s.Last > int64(o.HotFor) {
			return s.LastPos
		}
	}
	return 0
}

// SweepArchives deletes what was archived of journals that are lost. Nothing can be read of it, for its positions are used
// again; still it stays until somebody wants the space: who finds the lost journal can put it back until then.
func (s *Set) SweepArchives(ctx context.Context) error {
	for _, t := range s.List() {
		if err := t.sweepStrays(ctx); err != nil {
			return fmt.Errorf("delete the archive of a lost journal of %s: %w", t.Name(), err)
		}
	}
	return nil
}

func (t *Timeline) sweepStrays(ctx context.Context) error {
	t.archiveMu.Lock()
	defer t.archiveMu.Unlock()
	shelf := t.set.shelfOf(t.id)
	for len(t.strays) > 0 {
		if err := shelf.Delete(ctx, t.strays[0]); err != nil {
			return err
		}
		t.strays = t.strays[1:]
	}
	return nil
}

// strayNames returns the archived files of other journals than the one with an identity.
func strayNames(list []journal.Archived, id string) (names []string) {
	for _, a := range list {
		if !strings.HasPrefix(a.Name, id+"/") {
			names = append(names, a.Name)
		}
	}
	return names
}

// journalError says of an error of reading the journal whose it is, and what it means.
func (t *Timeline) journalError(err error) error {
	err = fmt.Errorf("read the journal of %s: %w", t.Name(), err)
	if errors.Is(err, journal.ErrMissing) || errors.Is(err, journal.ErrCorrupt) {
		return tidemark.Errorf(tidemark.Corrupt, "%w", err).
			WithHint("bookmarks, the present, and points of other times are not affected; what is damaged is forgotten when the window has passed it")
	}
	return err
}

// missing returns the stretches whose points cannot be had because segments of the journal are missing, oldest first.
func (t *Timeline) missing() (list []Gap) {
	t.facts.Lock()
	created := t.desc.Created
	t.facts.Unlock()
	for _, s := range t.journal.Segments() {
		if s.Missing == nil {
			continue
		}
		g := Gap{From: tidemark.Position(s.FirstPos - 1), To: tidemark.Position(s.LastPos) + 1, Why: s.Missing.Error()}
		g.Start, g.End = fromNano(s.After), fromNano(s.Last)
		if g.Start.Before(created) { // the first segment has nothing before it
			g.Start = created
		}
		if m := t.imageFrom(tidemark.Position(s.LastPos)); m != nil {
			g.To, g.End = m.Position, m.Time
		}
		list = append(list, g)
	}
	return list
}

// imageFrom returns the oldest retained point, with or without a bookmark, at or behind a position, or nil.
func (t *Timeline) imageFrom(pos tidemark.Position) *manifest {
	t.facts.Lock()
	defer t.facts.Unlock()
	if i := t.firstPointFrom(pos); i < len(t.points) {
		m := t.points[i]
		return &m
	}
	return nil
}
