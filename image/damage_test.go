package image

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
)

// filled returns a store with a few images of one disk in several sealed packs.
func filled(t *testing.T, rng *rand.Rand, o Options) (*Store, []Root, [][]byte) {
	t.Helper()
	s := mustOpen(t, o)
	d := &disk{chunk: 16 << 10, data: make([]byte, 600<<10)}
	page(rng, d.data)
	root := Empty(int64(len(d.data)), d.chunk)
	var roots []Root
	var contents [][]byte
	for i := range 6 {
		x := s.Begin()
		from, to := 0, len(d.data)/d.chunk
		if i > 0 {
			from, to = d.write(rng)
		}
		var err error
		root, err = d.save(x, root, from, min(to, int(root.Chunks())-1))
		must(t, err)
		x.End()
		roots, contents = append(roots, root), append(contents, bytes.Clone(d.data))
	}
	must(t, s.Sync())
	s.sealing.Wait()
	return s, roots, contents
}

// flip inverts one bit of a file.
func flip(t *testing.T, fs vfs.FS, path string, at int64) {
	t.Helper()
	f, err := vfs.OpenReadWrite(fs, path)
	must(t, err)
	var p [1]byte
	_, err = f.ReadAt(p[:], at)
	must(t, err)
	p[0] ^= 0x10
	_, err = f.WriteAt(p[:], at)
	must(t, errors.Join(err, f.Close()))
}

// TestFlips (D2, G6, G7) flips a bit of every kind of byte of a pack: what is read is right or
// a typed error, the scrubs name the damage and its images, Reclaim deletes nothing it should
// not, and putting the content again heals.
func TestFlips(t *testing.T) {
	rng := seeded(t)
	for range rounds(40) {
		fs := vfs.NewMem()
		o := testOptions(fs, mustDir(t, fs))
		o.PackBytes, o.CacheBytes = 64<<10, -1
		s, roots, contents := filled(t, rng, o)
		must(t, s.Close())
		pack := pick(t, rng, fs)
		st, err := fs.Stat(pack)
		must(t, err)
		at := rng.Int64N(st.Size())
		if rng.IntN(3) == 0 {
			at = st.Size() - 1 - rng.Int64N(min(st.Size(), 400)) // the footer
		}
		flip(t, fs, pack, at)
		if rng.IntN(2) == 0 {
			must(t, fs.RemoveAll("/pool/index"))
		}
		s = mustOpen(t, o)
		found := damagedRoots(t, s, roots, contents)
		p, err := s.CheckPacks(t.Context())
		must(t, err)
		c, err := s.Check(t.Context(), keep(roots...), nil)
		must(t, err)
		if len(p.Damage) == 0 && len(c.Damage) == 0 {
			t.Fatalf("a flip at %d of %s of %d bytes was not noticed", at, pack, st.Size())
		}
		named := map[Root]bool{}
		for _, d := range c.Damage {
			for _, r := range d.Roots {
				named[r] = true
			}
		}
		for r := range found {
			if !named[r] {
				t.Fatalf("image %v cannot be read, and the scrub does not say so: %+v", r, c.Damage)
			}
		}
		heal(t, s, roots, contents)
		must(t, s.Close())
	}
}

// damagedRoots reads every image; wrong bytes end the test.
func damagedRoots(t *testing.T, s *Store, roots []Root, contents [][]byte) map[Root]bool {
	t.Helper()
	found := map[Root]bool{}
	for i, r := range roots {
		got := make([]byte, r.Size)
		_, err := s.View(r).ReadAt(got, 0)
		if err == nil && !bytes.Equal(got, contents[i]) {
			t.Fatal("wrong bytes were served")
		}
		if err != nil && !isDamage(err) {
			t.Fatalf("not a typed error: %v", err)
		}
		if err != nil {
			found[r] = true
		}
	}
	return found
}

// heal puts all contents again, whole: everything can be read afterwards.
func heal(t *testing.T, s *Store, roots []Root, contents [][]byte) {
	t.Helper()
	x := s.Begin()
	defer x.End()
	for i, r := range roots {
		d := &disk{chunk: r.Chunk, data: contents[i]}
		again, err := d.save(x, Empty(r.Size, r.Chunk), 0, int(r.Chunks())-1)
		must(t, err)
		if again != r {
			t.Fatal("another root")
		}
	}
	must(t, s.Sync())
	s.nodes = newNodeCache(1)
	for i, r := range roots {
		must(t, same(s, r, contents[i]))
	}
}

func pick(t *testing.T, rng *rand.Rand, fs vfs.FS) string {
	t.Helper()
	names, err := fs.List("/bucket/packs")
	must(t, err)
	slices.Sort(names)
	return "/bucket/packs/" + names[rng.IntN(len(names))]
}

// TestLostPack (G6): a pack that vanished is noticed, and Reclaim refuses to run.
func TestLostPack(t *testing.T) {
	rng := seeded(t)
	fs := vfs.NewMem()
	o := testOptions(fs, mustDir(t, fs))
	o.PackBytes, o.CacheBytes = 64<<10, -1
	s, roots, contents := filled(t, rng, o)
	must(t, s.Close())
	must(t, fs.Remove(pick(t, rng, fs)))
	s = mustOpen(t, o)
	s.endPack()
	before, _ := countPacks(t, o.Bucket)
	if len(damagedRoots(t, s, roots, contents)) == 0 {
		t.Skip("nothing live was in it")
	}
	if _, err := s.Reclaim(t.Context(), keep(roots...)); !errors.Is(err, ErrMissing) {
		t.Fatal(err)
	}
	if now, _ := countPacks(t, o.Bucket); now != before {
		t.Fatal("packs were deleted")
	}
	heal(t, s, roots, contents)
}

// TestIndexIsACache deletes the index, or damages its files: the store opens with all it had.
func TestIndexIsACache(t *testing.T) {
	rng := seeded(t)
	for i := range 12 {
		fs := vfs.NewMem()
		o := testOptions(fs, mustDir(t, fs))
		o.PackBytes = 64 << 10
		s, roots, contents := filled(t, rng, o)
		must(t, s.Close())
		if i == 0 {
			must(t, fs.RemoveAll("/pool/index"))
		} else {
			damageIndex(t, rng, fs)
		}
		for try := 0; ; try++ {
			s, err := Open(t.Context(), o)
			must(t, err)
			for i, r := range roots {
				err = errors.Join(err, same(s, r, contents[i]))
			}
			err = errors.Join(err, s.Close())
			if err == nil {
				break
			}
			if try == 2 {
				t.Fatalf("opened again, and still: %v", err)
			}
		}
	}
}

func damageIndex(t *testing.T, rng *rand.Rand, fs vfs.FS) {
	t.Helper()
	names, err := fs.List("/pool/index")
	must(t, err)
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool {
		st, err := fs.Stat("/pool/index/" + n)
		return err != nil || st.IsDir() || st.Size() == 0 || strings.HasPrefix(n, "OPTIONS")
	})
	path := "/pool/index/" + names[rng.IntN(len(names))]
	st, err := fs.Stat(path)
	must(t, err)
	for range 1 + st.Size()/200 {
		flip(t, fs, path, rng.Int64N(st.Size()))
	}
}

// FuzzPack feeds arbitrary bytes to the parsers of records, footers and patches.
func FuzzPack(f *testing.F) {
	rec := appendRecord(nil, head{kind: kindChunk, codec: codecRaw, log: 12, name: Name{1}}, make([]byte, 4096))
	f.Add(rec)
	f.Add(appendFooter(nil, 7, []entry{{head: head{kind: kindNode, codec: codecPatch, log: nodeLog, length: 64, name: Name{2}}}}))
	base, content := make([]byte, 16<<10), make([]byte, 16<<10)
	content[5000] = 1
	f.Add(encodeChunkPatch(nil, content, base, Name{3}, new([]byte)))
	f.Add(appendNote(nil, note{synced: 5, count: 3}, 7, 9))
	f.Fuzz(func(t *testing.T, p []byte) {
		if h, body, err := parseRecord(p); err == nil {
			again := appendRecord(nil, h, body)
			if !bytes.Equal(again, p[:len(again)]) {
				t.Fatal("a record that was read is not written the same")
			}
			_ = decodeFull(h.codec, make([]byte, 1<<h.log), body)
		}
		if n, ok := parseNote(p, 7, 9); ok && !bytes.Equal(appendNote(nil, n, 7, 9)[3:], p[3:noteSize]) {
			t.Fatal("a note that was read is not written the same")
		}
		for _, size := range []int64{int64(len(p)), 1 << 30} {
			if tr, entries, err := parseFooter(p, size); err == nil && !bytes.Equal(appendFooter(nil, tr.id, entries), p) {
				t.Fatal("a footer that was read is not written the same")
			}
		}
		for _, n := range []int{4 << 10, 16 << 10, 1 << 20} {
			_ = decodeChunkPatch(make([]byte, n), p, new([]byte))
		}
		_ = decodeNodePatch(make([]byte, nodeSize), p)
		for c := codecRaw; c < codecPatch; c++ {
			_ = decodeFull(c, make([]byte, 4096), p)
		}
		_, _ = parsePlace(p)
	})
}

// vectors is where packs written by earlier versions are kept: they must open for ever.
const vectors = "../testdata/format/v1/image"

// vectorRoot is the image in the vector: 60 chunks of 4 KiB, written three times.
const vectorRootFile = "root.txt"

func vectorDisk() *disk {
	d := &disk{chunk: 4096, data: make([]byte, 60*4096)}
	page(rand.New(rand.NewPCG(11, 12)), d.data)
	clear(d.data[10*4096 : 20*4096])
	return d
}

// TestFormatVectors opens a pool written by the first version. With TIDEMARK_WRITE_VECTORS set it writes one.
func TestFormatVectors(t *testing.T) {
	if os.Getenv("TIDEMARK_WRITE_VECTORS") != "" {
		writeVectors(t)
	}
	root, err := os.ReadFile(filepath.Join(vectors, vectorRootFile))
	must(t, err)
	name, err := ParseName(strings.TrimSpace(string(root)))
	must(t, err)
	b, err := object.OpenDir(vfs.OS, t.TempDir())
	must(t, err)
	packs, err := os.ReadDir(filepath.Join(vectors, "packs"))
	must(t, err)
	for _, p := range packs {
		data, err := os.ReadFile(filepath.Join(vectors, "packs", p.Name()))
		must(t, err)
		must(t, object.PutBytes(t.Context(), b, "packs/"+p.Name(), data))
	}
	s := mustOpen(t, Options{Dir: t.TempDir(), Bucket: b, Logger: quiet})
	d := vectorDisk()
	copy(d.data[5*4096+100:], "changed")
	r := Root{Name: name, Size: int64(len(d.data)), Chunk: d.chunk}
	must(t, same(s, r, d.data))
	checkClean(t, s, r)
}

func writeVectors(t *testing.T) {
	b, err := object.OpenDir(vfs.OS, vectors)
	must(t, err)
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), Bucket: b, Logger: quiet, PackBytes: 1})
	must(t, err)
	s.o.PackBytes = 1 << 20
	d := vectorDisk()
	x := s.Begin()
	root, err := d.save(x, Empty(int64(len(d.data)), d.chunk), 0, 29)
	must(t, err)
	s.o.Fast = true
	root, err = d.save(x, root, 30, 59)
	must(t, err)
	copy(d.data[5*4096+100:], "changed")
	root, err = d.save(x, root, 5, 5)
	must(t, err)
	random := make([]byte, 4096)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	s.o.PackBytes = 1
	_, err = x.Put(random, Name{}) // raw; and ends the pack
	must(t, err)
	x.End()
	must(t, s.Close())
	must(t, os.RemoveAll(filepath.Join(vectors, ".tmp")))
	must(t, os.WriteFile(filepath.Join(vectors, vectorRootFile), []byte(root.Name.String()+"\n"), 0o644))
}
