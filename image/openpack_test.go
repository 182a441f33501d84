package image

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/internal/vfs"
	"tidemark/internal/vfs/lossy"
	"tidemark/object"
)

// flipped is a store that was closed with ten chunks in an open pack, and opened again when a bit of one, the victim, was flipped.
type flipped struct {
	t      *testing.T
	rng    *rand.Rand
	o      Options
	s      *Store
	chunks [][]byte
	names  []Name
	victim int
}

// newFlipped makes one. closed is called while it is closed.
func newFlipped(t *testing.T, rng *rand.Rand, closed func(fs vfs.FS)) *flipped {
	t.Helper()
	fs := vfs.NewMem()
	x := &flipped{t: t, rng: rng, o: testOptions(fs, mustDir(t, fs)), victim: rng.IntN(9)}
	x.o.CacheBytes = -1
	x.s = mustOpen(t, x.o)
	for range 10 {
		x.add()
	}
	must(t, x.s.Sync())
	at, p, err := x.s.locate(x.names[x.victim])
	must(t, err)
	path, off := p.path, at.off+headSize+int64(rng.IntN(at.length))
	must(t, x.s.Close())
	flip(t, fs, path, off)
	closed(fs)
	x.s = mustOpen(t, x.o)
	return x
}

func (x *flipped) put(p []byte) Name {
	x.t.Helper()
	session := x.s.Begin()
	defer session.End()
	n, err := session.Put(p, Name{})
	must(x.t, err)
	return n
}

// add puts another chunk.
func (x *flipped) add() {
	x.t.Helper()
	p := make([]byte, 16<<10)
	page(x.rng, p)
	x.chunks, x.names = append(x.chunks, p), append(x.names, x.put(p))
}

// read reads a chunk, which may be damaged and must not be wrong.
func (x *flipped) read(i int) error {
	x.t.Helper()
	got := make([]byte, 16<<10)
	err := x.s.ReadChunk(x.names[i], 16<<10, got, 0)
	if err == nil && !bytes.Equal(got, x.chunks[i]) {
		x.t.Fatalf("chunk %d is wrong", i)
	}
	return err
}

// reclaim takes away all that is not live.
func (x *flipped) reclaim(live map[int]bool) {
	x.t.Helper()
	_, err := x.s.Reclaim(x.t.Context(), func(k *Keeper) error {
		for i := range live {
			if err := k.Name(x.names[i]); err != nil {
				return err
			}
		}
		return nil
	})
	must(x.t, err)
}

func (x *flipped) reopen() {
	x.t.Helper()
	must(x.t, x.s.Close())
	x.s = mustOpen(x.t, x.o)
}

// TestFlipInOpenPack (D2) flips a bit of a record in a pack that still grows: that record alone is lost, what lies behind it is found, is not written
// over, and the content of the lost one is stored again.
func TestFlipInOpenPack(t *testing.T) {
	rng := seeded(t)
	for range rounds(20) {
		x := newFlipped(t, rng, func(fs vfs.FS) {
			if rng.IntN(2) == 0 {
				must(t, fs.RemoveAll("/pool/index"))
			}
		})
		x.add()
		must(t, x.s.Sync())
		for i := range x.names {
			if err := x.read(i); (err != nil) != (i == x.victim) || err != nil && !isDamage(err) {
				t.Fatalf("chunk %d, with chunk %d damaged: %v", i, x.victim, err)
			}
		}
		if damaged, err := x.s.Doubt(errors.Join(x.read(x.victim))); !damaged || err != nil {
			t.Fatalf("what is damaged is not taken for that: %v", err)
		}
		x.put(x.chunks[x.victim])
		must(t, x.s.Sync())
		x.reopen()
		for i := range x.names {
			must(t, x.read(i))
		}
		must(t, x.s.Close())
	}
}

// A record that was damaged in an open pack takes nothing else with it: not when a reclaim empties the pack, and not
// when others come behind.
func TestReclaimBehindAFlip(t *testing.T) {
	rng := seeded(t)
	for range rounds(20) {
		x := newFlipped(t, rng, func(vfs.FS) {})
		for range 3 {
			x.add()
		}
		must(t, x.s.Sync())
		if rng.IntN(2) == 0 {
			x.reopen()
		}
		live := map[int]bool{}
		for range 3 { // so few that the pack is emptied
			if i := rng.IntN(len(x.names)); i != x.victim {
				live[i] = true
			}
		}
		x.reclaim(live)
		for i := range live {
			if err := x.read(i); err != nil {
				t.Fatalf("chunk %d of %d, with chunk %d damaged, after a reclaim that was told of it: %v", i, len(x.names), x.victim, err)
			}
		}
		must(t, x.s.Close())
	}
}

// syncFails has the next syncs fail, so many of them.
type syncFails struct{ n atomic.Int64 }

func (f *syncFails) String() string { return "syncFails" }

// MaybeError implements errorfs.Injector.
func (f *syncFails) MaybeError(op errorfs.Op) error {
	if op.Kind != errorfs.OpFileSync && op.Kind != errorfs.OpFileSyncData || !strings.Contains(op.Path, "/open/") || f.n.Add(-1) < 0 {
		return nil
	}
	return syscall.EIO
}

// A sync that failed is not made good by another: not one of the seal's by one of Sync, nor the other way.
func TestFailedSyncOfAPackSticks(t *testing.T) {
	for _, first := range []string{"seal", "sync"} {
		f := &syncFails{}
		mem := vfs.NewMem()
		o := testOptions(errorfs.Wrap(mem, f), mustDir(t, mem))
		s := mustOpen(t, o)
		x := s.Begin()
		p := make([]byte, 16<<10)
		page(seeded(t), p)
		_, err := x.Put(p, Name{})
		must(t, err)
		x.End()
		f.n.Store(1)
		if first == "seal" {
			err = s.cur.seal()
		} else {
			err = s.cur.sync()
		}
		if !errors.Is(err, errSync) {
			t.Fatalf("%s: %v", first, err)
		}
		f.n.Store(0)
		if err := s.Sync(); !errors.Is(err, errSync) {
			t.Errorf("a sync behind a failed %s: %v", first, err)
		}
		_, err = s.Reclaim(t.Context(), func(*Keeper) error { return nil })
		t.Logf("a reclaim behind a failed %s: %v", first, err)
		err = o.Bucket.List(t.Context(), "packs/", func(i object.Info) error {
			t.Errorf("%s is in the bucket, and its %s had failed", i.Key, first)
			return nil
		})
		must(t, err)
		if err := s.Close(); err == nil {
			t.Error("the store closes as if all were well")
		}
	}
}

// Damage of the index that is met while the store is opened, by what an open pack holds, is mended by the next time.
func TestIndexDamageMetByOpen(t *testing.T) {
	rng := seeded(t)
	mem := vfs.NewMem()
	o := testOptions(mem, mustDir(t, mem))
	o.PackBytes = 64 << 20
	s := mustOpen(t, o)
	x := s.Begin()
	for range 3000 {
		p := make([]byte, 4<<10)
		page(rng, p)
		_, err := x.Put(p, Name{})
		must(t, err)
	}
	x.End()
	must(t, s.Close())
	names, err := mem.List("/pool/index")
	must(t, err)
	largest, size := "", int64(0)
	for _, n := range names {
		if st, err := mem.Stat("/pool/index/" + n); err == nil && strings.HasSuffix(n, ".sst") && st.Size() > size {
			largest, size = "/pool/index/"+n, st.Size()
		}
	}
	for at := int64(0); at < size/2; at += 1000 {
		flip(t, mem, largest, at)
	}
	if _, err := Open(t.Context(), o); err == nil {
		t.Fatal("the damage was not met")
	}
	s, err = Open(t.Context(), o)
	if err != nil {
		t.Fatalf("opened again: %v", err)
	}
	must(t, s.Close())
}

// fullUntil is a disk without room for packs until the reserve of the index was given up, or a pack was deleted.
type fullUntil struct{ full atomic.Bool }

func (f *fullUntil) String() string { return "fullUntil" }

// MaybeError implements errorfs.Injector.
func (f *fullUntil) MaybeError(op errorfs.Op) error {
	if op.Kind == errorfs.OpRemove && (strings.HasSuffix(op.Path, "/ballast") || strings.Contains(op.Path, "/packs/")) {
		f.full.Store(false)
	}
	if f.full.Load() && op.Kind == errorfs.OpFileWriteAt && strings.Contains(op.Path, "/open/") {
		return syscall.ENOSPC
	}
	return nil
}

// A full disk gets room by a reclaim, though what is to be moved has none.
func TestReclaimOnAFullDisk(t *testing.T) {
	rng := seeded(t)
	f, mem := &fullUntil{}, vfs.NewMem()
	o := testOptions(errorfs.Wrap(mem, f), mustDir(t, mem))
	o.PackBytes = 256 << 10
	s := mustOpen(t, o)
	x := s.Begin()
	var names []Name
	for range 40 { // two packs, and some
		p := make([]byte, 16<<10)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		n, err := x.Put(p, Name{})
		must(t, err)
		names = append(names, n)
	}
	x.End()
	must(t, s.Sync())
	s.sealing.Wait()
	f.full.Store(true)
	r, err := s.Reclaim(t.Context(), func(k *Keeper) error { return k.Name(names[20]) }) // of the second pack, next to nothing else
	must(t, err)
	if r.PacksDeleted == 0 || r.PacksLeft != 1 {
		t.Errorf("nothing was deleted, or nothing left: %+v", r)
	}
	got := make([]byte, 16<<10)
	must(t, s.ReadChunk(names[20], 16<<10, got, 0))
	if r, err = s.Reclaim(t.Context(), func(k *Keeper) error { return k.Name(names[20]) }); err != nil || r.PacksDeleted == 0 || r.PacksLeft > 0 {
		t.Errorf("now that there is room: %+v, %v", r, err)
	}
	must(t, s.ReadChunk(names[20], 16<<10, got, 0))
	must(t, s.Close())
}

// overwritten is a store that was closed with records in an open pack, each synced for itself, and opened again when a page of the pack, before the last
// record, was overwritten. It returns which records lie in that.
func overwritten(t *testing.T, rng *rand.Rand, closed func(fs vfs.FS)) (x *flipped, hit map[int]bool) {
	t.Helper()
	fs := vfs.NewMem()
	x = &flipped{t: t, rng: rng, o: testOptions(fs, mustDir(t, fs))}
	x.o.CacheBytes, x.o.PackBytes = -1, 4<<20
	x.s = mustOpen(t, x.o)
	var path string
	var places []place
	for range 10 {
		for range 1 + rng.IntN(3) {
			x.add()
		}
		must(t, x.s.Sync())
		for i := len(places); i < len(x.names); i++ {
			at, p, err := x.s.locate(x.names[i])
			must(t, err)
			places, path = append(places, at), p.path
		}
	}
	must(t, x.s.Close())
	from := places[rng.IntN(len(places)-3)].off - rng.Int64N(4096)
	from = max(0, from)
	rubbish := make([]byte, 4096)
	for i := range rubbish {
		rubbish[i] = byte(rng.Uint32())
	}
	f, err := vfs.OpenReadWrite(fs, path)
	must(t, err)
	_, err = f.WriteAt(rubbish, from)
	must(t, errors.Join(err, f.Sync(), f.Close()))
	closed(fs)
	x.s = mustOpen(t, x.o)
	hit = map[int]bool{}
	for i, at := range places {
		if at.off < from+4096 && at.off+headSize+int64(at.length) > from {
			hit[i] = true
		}
	}
	return x, hit
}

// Damage that hides where a record of an open pack begins takes that record alone: what lies behind was promised, and is not written over. Where the index is
// gone as well, it takes what was synced together with it.
func TestABadPageInOpenPack(t *testing.T) {
	rng := seeded(t)
	for round := range rounds(40) {
		noIndex := round%2 == 1
		x, hit := overwritten(t, rng, func(fs vfs.FS) {
			if noIndex {
				must(t, fs.RemoveAll("/pool/index"))
			}
		})
		before := len(x.names)
		x.add()
		must(t, x.s.Sync())
		x.reopen()
		for i := range x.names {
			err := x.read(i)
			if hit[i] && err == nil || !hit[i] && err != nil && !noIndex {
				t.Fatalf("chunk %d of %d, with %v damaged: %v", i, before, hit, err)
			}
		}
		if err := errors.Join(x.read(0), x.read(before-1), x.read(before)); err != nil && !hit[0] {
			t.Fatalf("the first, the last, and one that was added then: %v", err)
		}
		for i := range before {
			x.put(x.chunks[i])
		}
		must(t, x.s.Sync())
		for range 2 {
			for i := range x.names {
				must(t, x.read(i))
			}
			x.reopen()
		}
		must(t, x.s.Close())
	}
}

// The same with a reclaim in between, which knows the records of a pack by their number.
func TestReclaimBehindABadPage(t *testing.T) {
	rng := seeded(t)
	for range rounds(20) {
		x, hit := overwritten(t, rng, func(vfs.FS) {})
		live := map[int]bool{}
		for range 3 { // so few that the pack is emptied
			if i := rng.IntN(len(x.names)); !hit[i] {
				live[i] = true
			}
		}
		x.reclaim(live)
		x.reopen()
		for i := range live {
			must(t, x.read(i))
		}
		must(t, x.s.Close())
	}
}

// What a failed sync left in the page cache looks as if it were on the disk, and the next Open reads it: it must be there before a Put counts on it (fsyncgate).
func TestOpenAfterAFailedSync(t *testing.T) {
	rng := seeded(t)
	for durable := range 3 {
		fs := lossy.New()
		x := &flipped{t: t, rng: rng, o: testOptions(fs, mustDir(t, fs))}
		x.o.CacheBytes = -1
		x.s = mustOpen(t, x.o)
		for range durable {
			x.add()
			must(t, x.s.Sync())
		}
		for range 3 {
			x.add()
		}
		fs.FailSync(func(path string) bool { return strings.HasPrefix(path, "/pool/open/") })
		if err := x.s.Sync(); err == nil {
			t.Fatal("the sync did not fail")
		}
		_ = x.s.Close()
		if s, err := Open(t.Context(), x.o); err == nil {
			_ = s.Close()
			t.Fatal("it opens where nothing can be synced")
		}
		fs.FailSync(func(string) bool { return false })
		x.s = mustOpen(t, x.o)
		for _, p := range x.chunks {
			x.put(p)
		}
		must(t, x.s.Sync())
		after, err := fs.PowerCut()
		must(t, err)
		must(t, x.s.Close())
		x.o = testOptions(after, mustDir(t, after))
		x.s = mustOpen(t, x.o)
		for i := range x.names {
			must(t, x.read(i))
		}
		must(t, x.s.Close())
	}
}
