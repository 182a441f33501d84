package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"tidemark/internal/vfs"
)

// The index finds a record by its name. It is a cache of the packs' footers in a
// Pebble store without a log: what a crash takes from it is read from the packs again.
//
//	'v'            → version of this layout
//	'n' name       → place of the record
//	'p' pack id    → the entries of this sealed pack have been written before
//
// Pebble loses only the newest writes in a crash, never an older one of them: so
// a pack that has its 'p' has all its entries.
//
// An entry reaches Pebble when its record is durable, not before: an entry that
// survived its record would hide an older copy of it, and make a Put of the same
// content believe that there is nothing to store. Until then it is in memory.
const (
	indexVersion  = "tidemark image index 1"
	indexCache    = 32 << 20 // bytes of Pebble's block cache
	indexMemTable = 8 << 20  // bytes of Pebble's write buffer
	// badMarker lies beside the index when it has to be rebuilt at the next Open.
	badMarker = "index.bad"
)

// place says where a record is, and what must be known before it is read.
type place struct {
	pack   uint64
	ord    uint32 // number of the record in its pack
	off    int64
	length int
	kind   kind
	codec  codec
	log    uint8
	bad    bool // found damaged: as good as absent to a Put
	base   Name // of a patch
}

func (p place) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, p.pack)
	dst = binary.LittleEndian.AppendUint32(dst, p.ord)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(p.off))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(p.length))
	flags := byte(0)
	if p.bad {
		flags = 1
	}
	dst = append(dst, byte(p.kind)<<4|byte(p.codec), p.log, flags)
	if p.codec == codecPatch {
		dst = append(dst, p.base[:]...)
	}
	return dst
}

const placeSize = 8 + 4 + 4 + 4 + 3

func parsePlace(v []byte) (place, error) {
	if len(v) < placeSize {
		return place{}, fmt.Errorf("index entry of %d bytes", len(v))
	}
	p := place{
		pack: binary.LittleEndian.Uint64(v), ord: binary.LittleEndian.Uint32(v[8:]), off: int64(binary.LittleEndian.Uint32(v[12:])),
		length: int(binary.LittleEndian.Uint32(v[16:])), kind: kind(v[20] >> 4), codec: codec(v[20] & 15), log: v[21], bad: v[22]&1 != 0,
	}
	if p.codec == codecPatch {
		if len(v) != placeSize+len(p.base) {
			return place{}, fmt.Errorf("index entry of a patch of %d bytes", len(v))
		}
		copy(p.base[:], v[placeSize:])
	}
	return p, nil
}

// index is safe for concurrent use; changes of one name are ordered by the caller.
type index struct {
	db      *pebble.DB
	ballast *ballast
	bad     atomic.Bool // damage was met

	mu       sync.RWMutex
	fresh    map[Name]place // of records that nobody is syncing yet; guarded by mu
	settling map[Name]place // older ones, whose records are being synced; guarded by mu
	waiting  atomic.Int64   // number of both
}

func openIndex(fs vfs.FS, dir string, b *ballast, log *slog.Logger) (*index, error) {
	cache := pebble.NewCache(indexCache)
	defer cache.Unref()
	o := &pebble.Options{
		FS: vfs.OnDiskFull(fs, b.full), Cache: cache, MemTableSize: indexMemTable, DisableWAL: true, Logger: pebbleLog{log},
		FormatMajorVersion: pebble.FormatNewest, MaxOpenFiles: 200, MemTableStopWritesThreshold: 4,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	x := &index{ballast: b, fresh: map[Name]place{}}
	// Without a listener Pebble ends the process when it meets a damaged file.
	o.EventListener = &pebble.EventListener{DataCorruption: func(i pebble.DataCorruptionInfo) {
		x.bad.Store(true)
		log.Warn("the chunk index is damaged and will be rebuilt when the store is next opened", "file", i.Path, "error", i.Details)
	}}
	db, err := pebble.Open(dir, o)
	if err != nil {
		return nil, err
	}
	x.db = db
	switch v, err := x.raw([]byte("v")); {
	case err != nil:
		return nil, errors.Join(err, db.Close())
	case v == nil:
		err = db.Set([]byte("v"), []byte(indexVersion), pebble.NoSync)
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
	case string(v) != indexVersion:
		return nil, errors.Join(fmt.Errorf("index has layout %q", v), db.Close())
	}
	return x, nil
}

// raw returns a copy of the value of key, nil if there is none.
func (x *index) raw(key []byte) ([]byte, error) {
	v, closer, err := x.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, x.damage(err)
	}
	v = append([]byte{}, v...)
	return v, closer.Close()
}

// damage remembers that the index has to be rebuilt if err says so.
func (x *index) damage(err error) error {
	if pebble.IsCorruptionError(err) {
		x.bad.Store(true)
		return fmt.Errorf("the chunk index is damaged and will be rebuilt when the store is next opened: %w", err)
	}
	return fmt.Errorf("chunk index: %w", err)
}

func nameKey(n *Name) (key [33]byte) {
	key[0] = 'n'
	copy(key[1:], n[:])
	return key
}

// get finds the place of a name.
func (x *index) get(n Name) (place, bool, error) {
	if p, ok := x.getWaiting(n); ok {
		return p, true, nil
	}
	key := nameKey(&n)
	v, closer, err := x.db.Get(key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return place{}, false, nil
	}
	if err != nil {
		return place{}, false, x.damage(err)
	}
	p, err := parsePlace(v)
	if err != nil {
		x.bad.Store(true)
	}
	return p, err == nil, errors.Join(err, closer.Close())
}

func (x *index) getWaiting(n Name) (place, bool) {
	if x.waiting.Load() == 0 {
		return place{}, false
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	p, ok := x.fresh[n]
	if !ok {
		p, ok = x.settling[n]
	}
	return p, ok
}

// set points a name at a record that need not be durable yet.
func (x *index) set(n Name, p place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fresh[n] = p
	x.count()
}

// count brings waiting up to date. The caller holds mu.
func (x *index) count() { x.waiting.Store(int64(len(x.fresh) + len(x.settling))) }

// put points a name at a durable record.
func (x *index) put(n Name, p place) error {
	key := nameKey(&n)
	var buf [placeSize + 32]byte
	if err := x.db.Set(key[:], p.append(buf[:0]), pebble.NoSync); err != nil {
		return x.damage(err)
	}
	return nil
}

// change replaces what is known of a name, wherever that is now.
func (x *index) change(n Name, p place) error {
	if _, ok := x.getWaiting(n); ok {
		x.set(n, p)
		return nil
	}
	return x.put(n, p)
}

// beginSettle is called before a sync of all packs, one at a time: what was set
// before is settled by settle when the sync has succeeded.
func (x *index) beginSettle() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.settling) == 0 {
		x.settling, x.fresh = x.fresh, map[Name]place{}
		return
	}
	maps.Copy(x.settling, x.fresh) // the sync before has failed
	clear(x.fresh)
}

// settleBatch is how many entries settle writes between two looks at what others want.
const settleBatch = 256

// settle writes out what beginSettle set apart.
func (x *index) settle() error {
	x.mu.RLock()
	names := slices.Collect(maps.Keys(x.settling))
	x.mu.RUnlock()
	for some := range slices.Chunk(names, settleBatch) {
		if err := x.settleSome(some, func(_ place, fresh bool) bool { return !fresh }); err != nil {
			return err
		}
	}
	return nil
}

// settlePack writes out what waits for a pack that is durable as a whole.
func (x *index) settlePack(id uint64, entries []entry) error {
	names := make([]Name, len(entries))
	for i, e := range entries {
		names[i] = e.name
	}
	for some := range slices.Chunk(names, settleBatch) {
		if err := x.settleSome(some, func(p place, _ bool) bool { return p.pack == id }); err != nil {
			return err
		}
	}
	return nil
}

func (x *index) settleSome(names []Name, durable func(p place, fresh bool) bool) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, n := range names {
		p, newer := x.fresh[n]
		if !newer || !durable(p, true) {
			var ok bool
			if p, ok = x.settling[n]; !ok || !durable(p, false) {
				continue
			}
			newer = false
		}
		if err := x.put(n, p); err != nil {
			return err
		}
		delete(x.settling, n) // also an older place that was still to come
		if newer {
			delete(x.fresh, n)
		}
	}
	x.count()
	return nil
}

func (x *index) remove(n Name) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.fresh, n)
	delete(x.settling, n)
	x.count()
	key := nameKey(&n)
	if err := x.db.Delete(key[:], pebble.NoSync); err != nil {
		return x.damage(err)
	}
	return nil
}

// within returns the records in [from, to) of a pack that are known to be durable there, by number. It reads the whole index.
func (x *index) within(id uint64, from, to int64) (found map[uint32]entry, err error) {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("n"), UpperBound: []byte("o")})
	if err != nil {
		return nil, x.damage(err)
	}
	found = map[uint32]entry{}
	for it.First(); it.Valid(); it.Next() {
		p, err := parsePlace(it.Value())
		if err != nil || len(it.Key()) != 33 || p.pack != id || p.off < from || p.off >= to {
			continue
		}
		e := entry{head: head{kind: p.kind, codec: p.codec, log: p.log, length: p.length}, off: p.off}
		copy(e.name[:], it.Key()[1:])
		found[p.ord] = e
	}
	if err := it.Close(); err != nil {
		return nil, x.damage(err)
	}
	return found, nil
}

func packIndexKey(id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'p'}, id) }

// setPack notes that all entries of a sealed pack are in the index.
func (x *index) setPack(id uint64) error {
	if err := x.db.Set(packIndexKey(id), nil, pebble.NoSync); err != nil {
		return x.damage(err)
	}
	return nil
}

func (x *index) removePack(id uint64) error {
	if err := x.db.Delete(packIndexKey(id), pebble.NoSync); err != nil {
		return x.damage(err)
	}
	return nil
}

// packs returns the sealed packs whose entries are in the index.
func (x *index) packs() (map[uint64]bool, error) {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: []byte("p"), UpperBound: []byte("q")})
	if err != nil {
		return nil, x.damage(err)
	}
	ids := map[uint64]bool{}
	for it.First(); it.Valid(); it.Next() {
		if k := it.Key(); len(k) == 9 {
			ids[binary.BigEndian.Uint64(k[1:])] = true
		}
	}
	if err := it.Close(); err != nil {
		return nil, x.damage(err)
	}
	return ids, nil
}

// close writes out what only memory has, unless the disk is full: it is read
// from the packs at the next open then.
func (x *index) close() error {
	close(x.ballast.stop)
	var err error
	if !x.ballast.spent() {
		err = x.db.Flush()
	}
	return errors.Join(err, x.db.Close())
}

// pebbleLog passes on what Pebble has to say, of which only errors matter to anybody.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(string, ...any) {}
func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Warn("chunk index", "say", fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble cannot go on. The packs are whole; a restart rebuilds the index.
func (l pebbleLog) Fatalf(format string, args ...any) {
	panic("chunk index: " + fmt.Sprintf(format, args...))
}
