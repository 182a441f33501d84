package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// Errors of the store; test with errors.Is.
var (
	// ErrFailed: an earlier sync failed. What was written since the last good one
	// may be lost, so nothing more is taken until the store is opened again.
	ErrFailed = errors.New("image store failed earlier and must be reopened")
	// ErrClosed: the store or session was closed.
	ErrClosed = errors.New("image store is closed")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("image store is in use by another process")
)

// Defaults of [Options].
const (
	defaultPackBytes  = 64 << 20
	defaultCacheBytes = 256 << 20
	defaultNodeBytes  = 64 << 20
)

// Options say where a store lives and how much it may use.
type Options struct {
	FS         vfs.FS        // of Dir; vfs.OS if nil
	Dir        string        // holds the open packs and the index; one store at a time
	Bucket     object.Bucket // holds the sealed packs
	CacheBytes int64         // of decoded chunks, off the heap; 0: 256 MiB, < 0: none
	NodeBytes  int64         // of decoded tree nodes, on the heap; 0: 64 MiB
	PackBytes  int64         // at which a pack is sealed; 0: 64 MiB; at most 1 GiB
	Fast       bool          // s2 instead of zstd for what is new: three times the speed, a third more bytes
	Logger     *slog.Logger  // slog.Default if nil

	hook func(step string) // called by tests between the steps of Reclaim
}

// Store is an image store. All methods may be called concurrently.
type Store struct {
	o    Options
	fs   vfs.FS
	log  *slog.Logger
	lock io.Closer

	index *index
	cache *cache
	nodes *nodeCache

	now     object.NowReader // the bucket, if it has that power
	numbers packNumbers
	marked  atomic.Uint64 // how often a record was marked as damaged

	packsMu sync.RWMutex
	packs   map[uint64]*pack // all of them; guarded by packsMu

	appendMu sync.Mutex
	cur      *pack  // takes the next record; guarded by appendMu
	lastID   uint64 // of the newest pack; guarded by appendMu

	appended atomic.Int64 // records appended since open
	syncMu   sync.Mutex   // one group commit at a time
	synced   int64        // of appended, how many are durable; guarded by syncMu

	sealMu  sync.Mutex     // one pack is sealed at a time
	sealing sync.WaitGroup // background seals

	names  [256]sync.Mutex  // by first byte: orders the changes of a name's place
	loads  [1024]sync.Mutex // by two bytes: one decode of a chunk at a time
	failed atomic.Pointer[error]
	closed atomic.Bool

	sessions sessions
	reclaim  sync.Mutex // one Reclaim at a time
	prefetch chan struct{}
	count    counters
}

type counters struct {
	puts, zeros, hits, records, stored, logical, nodeHits, cacheHits, cacheMisses atomic.Int64
}

// Stats are figures of a store. Bytes, unless they say otherwise.
type Stats struct {
	Packs, OpenPacks int
	Records          int64 // chunks and nodes in all packs, dead ones too
	PhysicalBytes    int64 // of all packs

	// Since the store was opened:
	ChunksPut     int64 // chunks given to Put
	ZeroChunks    int64 // of these, zeros
	DedupHits     int64 // of these, there already
	LogicalBytes  int64 // of new chunks before they were encoded
	StoredRecords int64
	StoredBytes   int64 // of new records as stored, nodes and heads included
	CacheHits     int64 // reads served from decoded chunks
	CacheMisses   int64
	CacheBytes    int64 // of memory that holds decoded chunks
}

// Stats returns the store's figures.
func (s *Store) Stats() Stats {
	st := Stats{
		ChunksPut: s.count.puts.Load(), ZeroChunks: s.count.zeros.Load(), DedupHits: s.count.hits.Load(),
		LogicalBytes: s.count.logical.Load(), StoredRecords: s.count.records.Load(), StoredBytes: s.count.stored.Load(),
		CacheHits: s.count.cacheHits.Load(), CacheMisses: s.count.cacheMisses.Load(), CacheBytes: s.cache.bytes(),
	}
	for _, p := range s.allPacks() {
		st.Packs++
		if !p.sealed.Load() {
			st.OpenPacks++
		}
		st.Records += p.records.Load()
		st.PhysicalBytes += p.stored.Load()
	}
	return st
}

func (s *Store) pack(id uint64) *pack {
	s.packsMu.RLock()
	defer s.packsMu.RUnlock()
	return s.packs[id]
}

func (s *Store) allPacks() []*pack {
	s.packsMu.RLock()
	defer s.packsMu.RUnlock()
	all := make([]*pack, 0, len(s.packs))
	for _, p := range s.packs {
		all = append(all, p)
	}
	return all
}

// fail makes err final if it is the failure of a sync.
func (s *Store) fail(err error) error {
	if errors.Is(err, errSync) {
		s.failed.CompareAndSwap(nil, &err)
	}
	return err
}

// ready returns why nothing can be written, if so.
func (s *Store) ready() error {
	if s.closed.Load() {
		return ErrClosed
	}
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("%w: %w", ErrFailed, *err)
	}
	return nil
}

// locate finds the record of a name in a pack that exists.
func (s *Store) locate(n Name) (place, *pack, error) {
	at, ok, err := s.index.get(n)
	if err != nil {
		return place{}, nil, err
	}
	if ok {
		if p := s.pack(at.pack); p != nil {
			return at, p, nil
		}
	}
	return place{}, nil, fmt.Errorf("%w: %s", ErrMissing, n)
}

// usable reports that a new reference to n may count on its record: it is there,
// not damaged, not about to be deleted, and so is its base.
func (s *Store) usable(n Name) (place, bool, error) {
	at, p, err := s.locate(n)
	if errors.Is(err, ErrMissing) || err == nil && (at.bad || p.condemned.Load()) {
		return place{}, false, nil
	}
	if err != nil {
		return place{}, false, err
	}
	if at.codec != codecPatch {
		return at, true, nil
	}
	base, p, err := s.locate(at.base)
	if errors.Is(err, ErrMissing) {
		return place{}, false, nil
	}
	return at, err == nil && !base.bad && !p.condemned.Load() && base.codec != codecPatch, err
}

// append adds a record to the current pack and to the index. The caller holds names[n[0]].
func (s *Store) append(h head, body []byte) (place, error) {
	s.appendMu.Lock()
	defer s.appendMu.Unlock()
	if err := s.ready(); err != nil {
		return place{}, err
	}
	if s.cur == nil {
		if err := s.newPack(); err != nil {
			return place{}, err
		}
	}
	if s.cur.full(headSize + len(body)) {
		if err := s.cur.flush(); err != nil {
			return place{}, err
		}
	}
	p := s.cur
	at, end := p.add(h, body)
	s.appended.Add(1)
	s.count.records.Add(1)
	s.count.stored.Add(int64(headSize + len(body)))
	if end >= s.o.PackBytes {
		s.cur = nil
		s.sealing.Go(func() { s.sealLater(p) })
	}
	s.index.set(h.name, at)
	return at, nil
}

// Sync makes everything put before durable. Concurrent calls share the work, and
// it is cheap when there is nothing to do. After the failure of an fsync it fails
// for ever; after a full disk it may be called again.
func (s *Store) Sync() error {
	want := s.appended.Load()
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	if err := s.ready(); err != nil {
		return err
	}
	if s.synced >= want {
		return nil
	}
	now := s.appended.Load()
	s.index.beginSettle()
	for _, p := range s.allPacks() {
		if !p.sealed.Load() {
			if err := p.sync(); err != nil {
				return s.fail(err)
			}
		}
	}
	if err := s.index.settle(); err != nil {
		return err
	}
	s.synced = now
	return nil
}

// Close syncs and closes the store. Views and sessions of it are of no use afterwards.
func (s *Store) Close() error {
	err := s.Sync()
	if s.closed.Swap(true) {
		return ErrClosed
	}
	s.appendMu.Lock() // whoever is appending ends, and nobody begins
	s.appendMu.Unlock()
	s.sealing.Wait()
	for _, p := range s.allPacks() {
		p.fileMu.Lock()
		if p.file != nil {
			err = errors.Join(err, p.file.Close())
			p.file = nil
		}
		p.fileMu.Unlock()
	}
	s.cache.close()
	return errors.Join(err, s.noteDamage(), s.index.close(), s.lock.Close())
}

// noteDamage has the next Open rebuild an index in which damage was met.
func (s *Store) noteDamage() error {
	if !s.index.bad.Load() {
		return nil
	}
	return vfs.WriteFile(s.fs, s.fs.PathJoin(s.o.Dir, badMarker), nil)
}

// readPack reads len(dst) bytes at off of a pack, wherever it is.
func (s *Store) readPack(p *pack, dst []byte, off int64) error {
	if !p.sealed.Load() {
		if ok, err := p.readOpen(dst, off); ok {
			return err
		}
		if s.closed.Load() {
			return ErrClosed
		}
	}
	return s.o.Bucket.ReadAt(context.Background(), p.key, dst, off)
}
