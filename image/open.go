package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// Open opens the store, and makes it if there is none. Open packs are read up to
// their last whole record. An index that is missing, damaged or older than the
// packs is brought up to date from them.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := newStore(o)
	if err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		s.cache.close()
		if s.index != nil {
			err = errors.Join(err, s.index.db.Close(), s.noteDamage())
		}
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", o.Dir, err), s.lock.Close())
	}
	return s, nil
}

func newStore(o Options) (*Store, error) {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.PackBytes = or(o.PackBytes, defaultPackBytes)
	o.CacheBytes = or(o.CacheBytes, defaultCacheBytes)
	o.NodeBytes = or(o.NodeBytes, defaultNodeBytes)
	if o.Bucket == nil || o.Dir == "" || o.PackBytes < 0 || o.PackBytes > 1<<30 {
		return nil, fmt.Errorf("open image store: options need a directory, a bucket, and packs of at most 1 GiB")
	}
	if o.hook == nil {
		o.hook = func(string) {}
	}
	if err := vfs.MkdirAll(o.FS, o.FS.PathJoin(o.Dir, "open")); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	lock, err := o.FS.Lock(o.FS.PathJoin(o.Dir, "LOCK"))
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrLocked, o.Dir, err)
	}
	now, _ := o.Bucket.(object.NowReader)
	return &Store{
		now: now,
		o:   o, fs: o.FS, log: o.Logger, lock: lock, packs: map[uint64]*pack{}, prefetch: make(chan struct{}, prefetchers),
		cache: newCache(o.CacheBytes), nodes: newNodeCache(o.NodeBytes),
	}, nil
}

func or(n, otherwise int64) int64 {
	if n == 0 {
		return otherwise
	}
	return n
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.index, err = s.openOrRebuild(); err != nil {
		return err
	}
	if err := s.findSealed(ctx); err != nil {
		return err
	}
	return s.findOpen(ctx)
}

// openOrRebuild opens the index, or an empty one in place of one that is damaged.
func (s *Store) openOrRebuild() (*index, error) {
	dir, marker := s.fs.PathJoin(s.o.Dir, "index"), s.fs.PathJoin(s.o.Dir, badMarker)
	b := newBallast(s.fs, s.o.Dir, s.log)
	_, err := s.fs.Stat(marker)
	if errors.Is(err, fs.ErrNotExist) {
		x, err := openIndex(s.fs, dir, b, s.log)
		if err == nil {
			return x, nil
		}
		s.log.Warn("the chunk index is damaged: rebuilding it from the packs", "error", err)
	} else if err != nil {
		return nil, err
	}
	if err := s.fs.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := s.fs.Remove(marker); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return openIndex(s.fs, dir, b, s.log)
}

// findSealed registers the packs in the bucket, oldest first, and brings into the index what it lacks.
func (s *Store) findSealed(ctx context.Context) error {
	indexed, err := s.index.packs()
	if err != nil {
		return err
	}
	var missing []*pack
	err = s.o.Bucket.List(ctx, "packs/", func(o object.Info) error {
		id, err := strconv.ParseUint(strings.TrimPrefix(o.Key, "packs/"), 16, 64)
		if err != nil || packKey(id) != o.Key {
			s.log.Warn("not a pack", "key", o.Key)
			return nil
		}
		p := &pack{id: id, key: o.Key}
		p.sealed.Store(true)
		p.stored.Store(o.Size)
		s.packs[id] = p
		s.lastID = max(s.lastID, id)
		if !indexed[id] {
			missing = append(missing, p)
		}
		delete(indexed, id)
		return nil
	})
	if err != nil {
		return err
	}
	for id := range indexed { // gone from the bucket: its entries lead nowhere
		if err := s.index.removePack(id); err != nil {
			return err
		}
	}
	for _, p := range s.packs {
		if t, err := s.trailer(p); err == nil {
			p.records.Store(int64(t.count))
		}
	}
	for _, p := range missing {
		if err := s.indexPack(p); err != nil {
			return err
		}
	}
	return nil
}

// trailer reads the trailer of a sealed pack.
func (s *Store) trailer(p *pack) (trailer, error) {
	size := p.stored.Load()
	if size < trailerSize {
		return trailer{}, fmt.Errorf("%w: pack of %d bytes", errNotFooter, size)
	}
	var buf [trailerSize]byte
	if err := s.readPack(p, buf[:], size-trailerSize); err != nil {
		return trailer{}, err
	}
	t, err := parseTrailer(buf[:], size)
	if err == nil && t.id != p.id {
		err = fmt.Errorf("%w: of pack %016x", errNotFooter, t.id)
	}
	return t, err
}

// footer reads the entries of a sealed pack. Damage is an errNotFooter.
func (s *Store) footer(p *pack) ([]entry, error) {
	t, err := s.trailer(p)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, t.footerSize())
	if err := s.readPack(p, buf, p.stored.Load()-t.footerSize()); err != nil {
		return nil, err
	}
	_, entries, err := parseFooter(buf, p.stored.Load())
	return entries, err
}

// indexPack brings the entries of a sealed pack into the index: from its footer,
// or record by record if that is damaged.
func (s *Store) indexPack(p *pack) error {
	entries, err := s.footer(p)
	if errors.Is(err, errNotFooter) {
		s.log.Warn("the footer of a pack is damaged: reading its records", "pack", p.key, "error", err)
		entries, err = s.scanSealed(p)
	}
	if err != nil {
		return fmt.Errorf("index %s: %w", p.key, err)
	}
	p.records.Store(int64(len(entries)))
	if err := s.indexEntries(p, entries); err != nil {
		return fmt.Errorf("index %s: %w", p.key, err)
	}
	return s.index.setPack(p.id)
}

// indexEntries points the index at the records of a pack, but where a newer pack has them too. What is damaged is
// no answer to anybody: where the index has it, that is noted there.
func (s *Store) indexEntries(p *pack, entries []entry) error {
	for i, e := range entries {
		if e.name == (Name{}) {
			continue // it was not found, only counted
		}
		old, ok, err := s.index.get(e.name)
		if err != nil {
			return err
		}
		here := ok && old.pack == p.id && old.off == e.off
		if !here && (e.damaged || ok && old.pack >= p.id && s.pack(old.pack) != nil) {
			continue
		}
		at := place{pack: p.id, ord: uint32(i), off: e.off, length: e.length, kind: e.kind, codec: e.codec, log: e.log, bad: e.damaged || here && old.bad}
		switch {
		case e.codec != codecPatch:
		case e.damaged:
			at.base = old.base
		default:
			if err := s.readPack(p, at.base[:], e.off+headSize); err != nil {
				return err
			}
		}
		if here && old == at {
			continue
		}
		if err := s.index.put(e.name, at); err != nil {
			return err
		}
	}
	return nil
}

// findOpen reads the packs that were open when the store last went away. The
// newest goes on if it has room, the others are sealed.
func (s *Store) findOpen(ctx context.Context) error {
	names, err := s.fs.List(s.fs.PathJoin(s.o.Dir, "open"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	var found []*pack
	for _, name := range names {
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			continue
		}
		path := s.fs.PathJoin(s.o.Dir, "open", name)
		if p := s.packs[id]; p != nil { // it had just reached the bucket
			if err := s.forgetOpen(ctx, p, path); err != nil {
				return err
			}
			continue
		}
		p, err := s.recoverPack(id, path)
		if err != nil {
			return fmt.Errorf("recover pack %s: %w", name, err)
		}
		if p != nil {
			found = append(found, p)
		}
	}
	for i, p := range found {
		if i == len(found)-1 && p.stored.Load() < s.o.PackBytes/2 {
			s.cur = p
			continue
		}
		if err := s.sealPack(ctx, p); err != nil {
			s.log.Warn("a pack cannot be sealed yet", "pack", p.key, "error", err)
		}
	}
	return nil
}

// forgetOpen removes the open name of a pack that is in the bucket: durably, for whoever gave it to the bucket may have been killed before
// it was that.
func (s *Store) forgetOpen(ctx context.Context, p *pack, path string) error {
	if a, ok := s.o.Bucket.(object.Adopter); ok {
		if err := a.Adopt(ctx, p.key, path); err != nil && !errors.Is(err, object.ErrExists) {
			return fmt.Errorf("keep %s: %w", p.key, err)
		}
	}
	return s.fs.Remove(path)
}

// recoverPack reads an open pack up to its last whole record; nil if there is none in it.
func (s *Store) recoverPack(id uint64, path string) (*pack, error) {
	f, err := vfs.OpenReadWrite(s.fs, path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	p := &pack{id: id, key: packKey(id), path: path, file: f, known: st.Size(), written: st.Size()}
	c, err := s.scan(p, st.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.lastID = max(s.lastID, id)
	if len(c.entries) == 0 {
		return nil, errors.Join(f.Close(), s.fs.Remove(path))
	}
	p.entries, p.written = c.entries, c.end
	p.stored.Store(p.written)
	p.records.Store(int64(len(c.entries)))
	s.packs[id] = p
	// What was read may not be durable: it must be before anybody counts on it.
	if err := s.makeDurable(p, c.synced); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, s.indexEntries(p, c.entries)
}

// makeDurable syncs a pack that was read, of which nothing says that it is durable beyond offset synced.
func (s *Store) makeDurable(p *pack, synced int64) error {
	err := p.writeAgain(synced)
	if errors.Is(err, syscall.ENOSPC) { // of a file system that writes nothing in place
		s.index.ballast.lend()
		err = p.writeAgain(synced)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(p.file.Sync(), vfs.SyncDir(s.fs, s.fs.PathDir(p.path))); err != nil {
		return err
	}
	p.setSynced()
	return nil
}

// newPack begins a pack. The caller holds appendMu.
//
// Its id is the time, so that newer packs sort later, and a random part, so that
// no id is ever used again: an index that is out of date must not be misled.
func (s *Store) newPack() error {
	id := uint64(time.Now().UnixMilli())<<20 | rand.Uint64N(1<<20)
	if id <= s.lastID {
		id = s.lastID + 1 + rand.Uint64N(1<<20)
	}
	path := s.fs.PathJoin(s.o.Dir, "open", fmt.Sprintf("%016x", id))
	f, err := vfs.Create(s.fs, path)
	if err != nil {
		return fmt.Errorf("begin a pack: %w", err)
	}
	if err := vfs.SyncDir(s.fs, s.fs.PathDir(path)); err != nil {
		return s.fail(errors.Join(fmt.Errorf("%w: begin a pack: %w", errSync, err), f.Close()))
	}
	p := &pack{id: id, key: packKey(id), path: path, file: f}
	s.packsMu.Lock()
	s.packs[id] = p
	s.packsMu.Unlock()
	s.cur, s.lastID = p, id
	return nil
}

// sealLater seals a pack in the background. If it fails, the pack stays what it
// is, open and durable by Sync, and is sealed with the next one or at the next Open.
func (s *Store) sealLater(p *pack) {
	s.sealMu.Lock()
	defer s.sealMu.Unlock()
	s.appendMu.Lock()
	cur := s.cur
	s.appendMu.Unlock()
	for _, q := range s.allPacks() {
		if q == cur || q.sealed.Load() || q.id > p.id {
			continue
		}
		if err := s.sealPack(context.Background(), q); err != nil {
			s.log.Warn("a pack cannot be sealed yet", "pack", q.key, "error", s.fail(err))
		}
	}
}

// sealPack moves a pack that takes no more records into the bucket.
func (s *Store) sealPack(ctx context.Context, p *pack) error {
	if err := p.seal(); err != nil {
		return err
	}
	if err := s.index.settlePack(p.id, p.entries); err != nil { // nobody adds to them any more
		return err
	}
	if err := s.hand(ctx, p); err != nil && !errors.Is(err, object.ErrExists) {
		return err
	}
	if err := s.index.setPack(p.id); err != nil {
		return err
	}
	if err := p.letGo(); err != nil {
		return err
	}
	// If the name comes back after a crash, Open finds the pack in the bucket and removes it again.
	if err := s.fs.Remove(p.path); err != nil {
		return fmt.Errorf("remove the open name of %s: %w", p.key, err)
	}
	return nil
}

// hand gives the file of a pack to the bucket: its name if the bucket can take it, or its bytes.
func (s *Store) hand(ctx context.Context, p *pack) error {
	if a, ok := s.o.Bucket.(object.Adopter); ok {
		if err := a.Adopt(ctx, p.key, p.path); err == nil || errors.Is(err, object.ErrExists) {
			return err
		}
	}
	size := p.stored.Load()
	return s.o.Bucket.Put(ctx, p.key, io.NewSectionReader(p.file, 0, size), size)
}
