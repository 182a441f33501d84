package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// flaky is a bucket whose n-th read fails.
type flaky struct {
	object.Bucket
	left atomic.Int64 // reads until the one that fails; negative: none will
}

var errFlaky = errors.New("injected")

func (f *flaky) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if f.left.Add(-1) == 0 {
		return errFlaky
	}
	return f.Bucket.ReadAt(ctx, key, p, off)
}

// world is a catalog of live roots with the bytes each must have, and writers
// that are in the middle of their work.
type world struct {
	t       *testing.T
	rng     *rand.Rand
	s       *Store
	live    map[Root][]byte
	writers []*writer
	names   map[Name][]byte // live by name alone, as a journal's references are
	busy    bool
	bucket  *flaky
	past    [][]byte // contents that were live once
}

type writer struct {
	x    *Session
	root Root
	disk disk
}

const worldChunk, worldSize = 4 << 10, 300 * 4 << 10

// mark lists what is live at the moment it is called.
func (w *world) mark(k *Keeper) error {
	live, names := maps.Clone(w.live), maps.Clone(w.names)
	for r := range live {
		if w.rng.IntN(4) == 0 {
			w.step("marking")
		}
		if err := k.Root(r); err != nil {
			return err
		}
	}
	for n := range names {
		if err := k.Name(n); err != nil {
			return err
		}
	}
	return nil
}

// step does a few random things, as other goroutines would at that moment.
func (w *world) step(string) {
	if w.busy {
		return
	}
	w.busy = true
	left := w.bucket.left.Swap(-1) // only reads of the mark fail
	defer func() { w.busy = false; w.bucket.left.Store(left) }()
	for range w.rng.IntN(5) {
		switch k := w.rng.IntN(10); {
		case k < 2 && len(w.writers) < 3:
			w.begin()
		case k < 6 && len(w.writers) > 0:
			w.write(w.writers[w.rng.IntN(len(w.writers))])
		case k < 8 && len(w.writers) > 0:
			w.finish(w.rng.IntN(len(w.writers)))
		case k == 8 && len(w.live) > 2:
			for r := range w.live {
				delete(w.live, r)
				break
			}
		default:
			clear(w.names)
		}
	}
}

func (w *world) begin() {
	wr := &writer{x: w.s.Begin(), root: Empty(worldSize, worldChunk), disk: disk{chunk: worldChunk, data: make([]byte, worldSize)}}
	for r, data := range w.live { // stand on any live image: it is held while it is known to be live
		wr.root, wr.disk.data = r, bytes.Clone(data)
		wr.x.Hold(r)
		break
	}
	w.writers = append(w.writers, wr)
}

// write changes the writer's disk: something new, or something that another image has or had.
func (w *world) write(wr *writer) {
	from, to := 0, 0
	if len(w.past) > 0 && w.rng.IntN(4) == 0 { // the content of an image that may be dead by now
		wr.disk.data = bytes.Clone(w.past[w.rng.IntN(len(w.past))])
		to = worldSize/worldChunk - 1
	} else if w.rng.IntN(2) == 0 {
		i := w.rng.IntN(worldSize / worldChunk)
		from, to = i, i
		small := rand.New(rand.NewPCG(uint64(w.rng.IntN(40)), 0)) // of 40 contents: many meet again
		page(small, wr.disk.data[i*worldChunk:(i+1)*worldChunk])
	} else {
		from, to = wr.disk.write(w.rng)
	}
	root, err := wr.disk.save(wr.x, wr.root, from, to)
	if err != nil {
		w.t.Fatal(err)
	}
	wr.root = root
}

// finish publishes a writer's image, or a name of it, or nothing, and ends its session.
func (w *world) finish(i int) {
	wr := w.writers[i]
	w.writers = append(w.writers[:i], w.writers[i+1:]...)
	switch w.rng.IntN(4) {
	case 0:
	case 1:
		c := make([]byte, worldChunk)
		page(w.rng, c)
		n, err := wr.x.Put(c, Name{})
		if err != nil {
			w.t.Fatal(err)
		}
		w.names[n] = c
	default:
		w.live[wr.root] = wr.disk.data
		w.past = append(w.past, wr.disk.data)
	}
	wr.x.End()
}

// hook stands between the steps of Reclaim.
func (w *world) hook(step string) {
	if step == "wait" && len(w.writers) > 0 {
		left := w.bucket.left.Swap(-1)
		w.finish(0)
		w.bucket.left.Store(left)
	}
	for range 4 {
		w.step(step)
	}
}

// verify reads all that is live from the packs.
func (w *world) verify() error {
	w.s.nodes = newNodeCache(1)
	for r, want := range w.live {
		if err := same(w.s, r, want); err != nil {
			return err
		}
	}
	for _, wr := range w.writers {
		if err := same(w.s, wr.root, wr.disk.data); err != nil {
			return fmt.Errorf("of a session: %w", err)
		}
	}
	got := make([]byte, worldChunk)
	for n, want := range w.names {
		if err := w.s.ReadChunk(n, worldChunk, got, 0); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("name %s: %w", n.short(), err)
		}
	}
	return nil
}

// TestReclaimModel (G1, G2, G3, G4, G5) runs Reclaim among writers and expiry
// interleaved at every step of it, and makes a read of the mark fail in every
// third run: no byte that is live is ever lost, and after a failed mark no pack is.
func TestReclaimModel(t *testing.T) {
	rng := seeded(t)
	deleted := 0
	for range rounds(8) {
		deleted += reclaimWorld(t, rand.New(rand.NewPCG(rng.Uint64(), 0)))
	}
	if deleted == 0 {
		t.Error("no pack was ever deleted: the test shows nothing")
	}
}

func reclaimWorld(t *testing.T, rng *rand.Rand) (deleted int) {
	fs := vfs.NewMem()
	bucket := &flaky{Bucket: mustDir(t, fs)}
	bucket.left.Store(-1)
	w := &world{t: t, rng: rng, live: map[Root][]byte{}, names: map[Name][]byte{}, bucket: bucket}
	o := testOptions(fs, bucket)
	o.CacheBytes, o.PackBytes, o.NodeBytes, o.hook = -1, 32<<10, 1, w.hook
	w.s = mustOpen(t, o)
	for round := range 12 {
		for range 8 {
			w.step("")
		}
		w.s.sealing.Wait()
		fails := round%3 == 2
		if fails {
			bucket.left.Store(1 + rng.Int64N(40))
		}
		packs, _ := countPacks(t, bucket)
		r, err := w.s.Reclaim(t.Context(), w.mark)
		bucket.left.Store(-1)
		deleted += r.PacksDeleted
		if err != nil && !errors.Is(err, errFlaky) {
			t.Fatal(err)
		}
		w.s.sealing.Wait()
		if now, _ := countPacks(t, bucket); err != nil && r.PacksDeleted == 0 && now < packs {
			t.Fatalf("G3: %v, and yet of %d packs %d are left", err, packs, now)
		}
		if err := w.verify(); err != nil {
			t.Fatalf("round %d, after %v: %v", round, r, err)
		}
		if round%4 == 3 {
			w.reopen(o, fs)
		}
	}
	checkClean(t, w.s, slicesOf(w.live)...)
	return deleted
}

func slicesOf(m map[Root][]byte) (roots []Root) {
	for r := range m {
		roots = append(roots, r)
	}
	return roots
}

// reopen closes the store, sometimes deletes its index, and opens it again: a
// restart ends all sessions.
func (w *world) reopen(o Options, fs vfs.FS) {
	for len(w.writers) > 0 {
		w.finish(0)
	}
	must(w.t, w.s.Close())
	if w.rng.IntN(2) == 0 {
		must(w.t, fs.RemoveAll("/pool/index"))
	}
	w.s = mustOpen(w.t, o)
	if err := w.verify(); err != nil {
		w.t.Fatalf("after a restart: %v", err)
	}
}

func countPacks(t *testing.T, b object.Bucket) (n int, bytes int64) {
	t.Helper()
	must(t, b.List(t.Context(), "packs/", func(o object.Info) error { n++; bytes += o.Size; return nil }))
	return n, bytes
}

// TestReclaimEveryMarkRead (G3) fails each read of the first mark in turn.
func TestReclaimEveryMarkRead(t *testing.T) {
	bucket := &flaky{Bucket: object.NewMem()}
	bucket.left.Store(-1)
	o := testOptions(vfs.NewMem(), bucket)
	o.PackBytes, o.CacheBytes, o.NodeBytes = 16<<10, -1, 1
	s := mustOpen(t, o)
	rng := seeded(t)
	d := &disk{chunk: 4096, data: make([]byte, 400<<10)}
	page(rng, d.data)
	x := s.Begin()
	root, err := d.save(x, Empty(400<<10, 4096), 0, 99)
	must(t, err)
	dead := &disk{chunk: 4096, data: make([]byte, 400<<10)}
	page(rng, dead.data)
	_, err = dead.save(x, Empty(400<<10, 4096), 0, 99)
	must(t, err)
	x.End()
	s.sealing.Wait()
	s.endPack()
	before, _ := countPacks(t, bucket)
	for n := int64(1); ; n++ {
		marking := true
		s.nodes = newNodeCache(1)
		bucket.left.Store(n)
		_, err := s.Reclaim(t.Context(), func(k *Keeper) error {
			err := k.Root(root)
			if bucket.left.Load() > 0 {
				marking = false
				bucket.left.Store(-1)
			}
			return err
		})
		if err == nil {
			break
		}
		if now, _ := countPacks(t, bucket); now != before || !marking {
			t.Fatalf("read %d failed: %d of %d packs are left: %v", n, now, before, err)
		}
	}
	if now, _ := countPacks(t, bucket); now >= before {
		t.Fatalf("nothing was reclaimed: %d of %d packs", now, before)
	}
	must(t, same(s, root, d.data))
}

// TestReclaimWaits (G2): a session that found a dead chunk to be there keeps it,
// though it publishes only after the first mark.
func TestReclaimWaits(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem(), object.NewMem()))
	s.o.PackBytes = 16 << 10
	rng := seeded(t)
	d := &disk{chunk: 4096, data: make([]byte, 200<<10)}
	page(rng, d.data)
	x := s.Begin()
	_, err := d.save(x, Empty(200<<10, 4096), 0, 49)
	must(t, err)
	x.End() // nothing marks it: dead
	s.sealing.Wait()

	x = s.Begin()
	root, err := d.save(x, Empty(200<<10, 4096), 0, 49)
	must(t, err)
	x.mu.Lock()
	clear(x.held) // the session as such must protect its hits, not only what it committed
	x.mu.Unlock()
	var live []Root
	s.o.hook = func(step string) {
		if step == "wait" {
			live = append(live, root)
			x.End()
		}
	}
	r, err := s.Reclaim(t.Context(), func(k *Keeper) error { return keep(live...)(k) })
	must(t, err)
	if r.PacksDeleted == 0 || len(live) == 0 {
		t.Fatalf("nothing was condemned: %+v", r)
	}
	s.nodes = newNodeCache(1)
	must(t, same(s, root, d.data))

	s.sealing.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	reader := s.Begin() // only holds: nobody waits for it
	defer reader.End()
	y := s.Begin()
	defer y.End()
	_, err = y.Put(bytes.Repeat([]byte{1}, 4096), Name{})
	must(t, err)
	s.o.hook = func(step string) {
		if step == "wait" {
			cancel()
		}
	}
	if _, err := s.Reclaim(ctx, keep()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	must(t, same(s, root, d.data))
}
