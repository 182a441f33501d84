package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"tidemark/block"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// seeded returns a source of chance whose seed is printed if the test fails.
func seeded(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("TIDEMARK_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}

// rounds is n, or a hundred times that in the long mode.
func rounds(n int) int {
	if os.Getenv("TIDEMARK_LONG") != "" {
		return 100 * n
	}
	return n
}

var quiet = slog.New(slog.DiscardHandler)

func testOptions(fs vfs.FS, b object.Bucket) Options {
	return Options{FS: fs, Dir: "/pool", Bucket: b, CacheBytes: 4 << 20, PackBytes: 256 << 10, Logger: quiet}
}

func mustOpen(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, ErrClosed) && !t.Failed() {
			t.Log("close:", err)
		}
	})
	return s
}

func mustDir(t testing.TB, fs vfs.FS) *object.Dir {
	t.Helper()
	b, err := object.OpenDir(fs, "/bucket")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// page fills p with something like a page of a database: words that repeat and some that do not.
func page(rng *rand.Rand, p []byte) {
	for i := 0; i < len(p); i += 64 {
		n := copy(p[i:], fmt.Sprintf("row %08d balance %06d filler filler ", rng.IntN(1e8), rng.IntN(1e6)))
		for j := i + n; j < min(i+64, len(p)); j++ {
			p[j] = byte(rng.Uint32() & 15)
		}
	}
}

// disk is the model of an image: its bytes.
type disk struct {
	chunk int
	data  []byte
}

func (d *disk) padded(i int) []byte {
	c := make([]byte, d.chunk)
	copy(c, d.data[i*d.chunk:])
	return c
}

// write changes a random range of the model and returns the chunks touched.
func (d *disk) write(rng *rand.Rand) (from, to int) {
	n := 1 + rng.IntN(min(len(d.data), 3*d.chunk))
	off := rng.IntN(len(d.data) - n + 1)
	switch rng.IntN(4) {
	case 0:
		clear(d.data[off : off+n])
	case 1:
		for i := range n {
			d.data[off+i] = byte(rng.Uint32())
		}
	default:
		page(rng, d.data[off:off+n])
	}
	return off / d.chunk, (off + n - 1) / d.chunk
}

// save puts the chunks from..to of the model and commits them.
func (d *disk) save(x *Session, base Root, from, to int) (Root, error) {
	var changes []Change
	v := x.s.View(base)
	for i := from; i <= to; i++ {
		prev, err := v.ChunkName(int64(i))
		if err != nil {
			return Root{}, err
		}
		n, err := x.Put(d.padded(i), prev)
		if err != nil {
			return Root{}, err
		}
		changes = append(changes, Change{int64(i), n})
	}
	rand.Shuffle(len(changes), func(i, j int) { changes[i], changes[j] = changes[j], changes[i] })
	return x.Commit(base, changes)
}

// same reads all of an image and compares it with want.
func same(s *Store, r Root, want []byte) error {
	got := make([]byte, r.Size)
	if _, err := s.View(r).ReadAt(got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("image %v has other bytes than the model", r)
	}
	return nil
}

// TestModel writes at random and compares every image with an array of bytes,
// whichever way it is read, before and after the store is opened again.
func TestModel(t *testing.T) {
	for _, chunk := range []int{4 << 10, 16 << 10, 64 << 10, 1 << 20} {
		t.Run(strconv.Itoa(chunk), func(t *testing.T) { testModel(t, chunk) })
	}
}

func testModel(t *testing.T, chunk int) {
	rng := seeded(t)
	fs := vfs.NewMem()
	o := testOptions(fs, mustDir(t, fs))
	o.Fast = rng.IntN(2) == 0
	s := mustOpen(t, o)
	d := &disk{chunk: chunk, data: make([]byte, max(5, min(40, 2<<20/chunk))*chunk-rng.IntN(chunk))}
	root := Empty(int64(len(d.data)), chunk)
	history := map[Root][]byte{root: bytes.Clone(d.data)}
	for step := range min(60, 20<<20/chunk) {
		x := s.Begin()
		from, to := d.write(rng)
		next, err := d.save(x, root, from, to)
		must(t, err)
		checkDiff(t, s, root, next, history[root], d.data)
		root = next
		if old, ok := history[root]; ok && !bytes.Equal(old, d.data) {
			t.Fatal("two contents with one root")
		}
		history[root] = bytes.Clone(d.data)
		x.End()
		if step == 10 {
			must(t, s.Close())
			s = mustOpen(t, o)
		}
		readParts(t, rng, s.View(root), d.data)
	}
	for r, want := range history {
		must(t, same(s, r, want))
	}
	checkCanonical(t, s, root, d)
	checkClean(t, s, root)
}

func readParts(t *testing.T, rng *rand.Rand, v *View, want []byte) {
	t.Helper()
	for range 8 {
		off := rng.IntN(len(want))
		p := make([]byte, rng.IntN(min(len(want)-off, 70_000)+1))
		v.Prefetch(int64(off), int64(len(p)))
		_, err := v.ReadAt(p, int64(off))
		must(t, err)
		if !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("read of %d at %d differs", len(p), off)
		}
		clear(p)
		if ok, err := v.TryReadAt(p, int64(off), rng.IntN(2) == 0); err != nil || ok && !bytes.Equal(p, want[off:off+len(p)]) {
			t.Fatalf("try at %d: %v %v", off, ok, err)
		}
		at := int64(off)
		must(t, v.Extents(int64(off), int64(len(p)), func(e block.Extent) bool {
			if e.Off != at || e.Len <= 0 {
				t.Fatalf("extent %+v does not follow %d", e, at)
			}
			at += e.Len
			if e.Hole && len(bytes.Trim(want[e.Off:e.Off+e.Len], "\x00")) > 0 {
				t.Fatalf("G8: data called a hole: %+v", e)
			}
			return true
		}))
		if at != int64(off+len(p)) {
			t.Fatalf("extents end at %d, want %d", at, off+len(p))
		}
	}
	if _, err := v.ReadAt(make([]byte, 2), int64(len(want))-1); !errors.Is(err, block.ErrBounds) {
		t.Fatal(err)
	}
}

func checkDiff(t *testing.T, s *Store, a, b Root, was, is []byte) {
	t.Helper()
	got := map[int64]bool{}
	must(t, s.Diff(a, b, func(i int64, x, y Name) error { got[i] = true; return nil }))
	for i := range max(a.Chunks(), b.Chunks()) {
		x, y := cut(was, i, a.Chunk), cut(is, i, a.Chunk)
		if bytes.Equal(x, y) == got[i] {
			t.Fatalf("diff of chunk %d: %v", i, got[i])
		}
	}
}

// cut is chunk i of data, filled up with zeros.
func cut(data []byte, i int64, chunk int) []byte {
	c := make([]byte, chunk)
	if off := i * int64(chunk); off < int64(len(data)) {
		copy(c, data[off:])
	}
	return c
}

// checkCanonical writes the same content in one go: it must have the same root.
func checkCanonical(t *testing.T, s *Store, root Root, d *disk) {
	t.Helper()
	x := s.Begin()
	defer x.End()
	again, err := d.save(x, Empty(root.Size, root.Chunk), 0, int(root.Chunks())-1)
	must(t, err)
	if again != root {
		t.Fatalf("same content, roots %v and %v", root, again)
	}
	if st := x.Stats(); st.Records != 0 {
		t.Fatalf("same content stored again: %+v", st)
	}
}

func checkClean(t *testing.T, s *Store, roots ...Root) {
	t.Helper()
	c, err := s.Check(t.Context(), keep(roots...), nil)
	must(t, err)
	p, err := s.CheckPacks(t.Context())
	must(t, err)
	if len(c.Damage)+len(p.Damage) > 0 {
		t.Fatalf("damage: %+v %+v", c.Damage, p.Damage)
	}
}

func keep(roots ...Root) func(*Keeper) error {
	return func(k *Keeper) error {
		for _, r := range roots {
			if err := k.Root(r); err != nil {
				return err
			}
		}
		return nil
	}
}

// TestTree compares Commit, Diff and Resize on trees of several levels with a map.
func TestTree(t *testing.T) {
	rng := seeded(t)
	s := mustOpen(t, testOptions(vfs.NewMem(), object.NewMem()))
	x := s.Begin()
	defer x.End()
	const chunk = MinChunk
	model := map[int64]Name{}
	chunks := int64(70_000) // three levels
	root := Empty(chunks*chunk, chunk)
	for range 40 {
		was := root
		var changes []Change
		old := map[int64]Name{}
		for range rng.IntN(30) {
			i := rng.Int64N(chunks)
			if rng.IntN(2) == 0 {
				i %= 300
			}
			p := make([]byte, chunk)
			p[0], p[1] = byte(rng.IntN(4)), byte(rng.IntN(4))
			n, err := x.Put(p, model[i])
			must(t, err)
			if _, ok := old[i]; !ok {
				old[i] = model[i]
			}
			changes = append(changes, Change{i, n})
			model[i] = n
		}
		var err error
		root, err = x.Commit(root, changes)
		must(t, err)
		must(t, s.Diff(was, root, func(i int64, a, b Name) error {
			if o, ok := old[i]; !ok || o != a || model[i] != b || a == b {
				return fmt.Errorf("diff of chunk %d is wrong", i)
			}
			delete(old, i)
			return nil
		}))
		for i, n := range old {
			if n != model[i] {
				t.Fatalf("diff left out chunk %d", i)
			}
		}
		if rng.IntN(3) == 0 {
			chunks = 1 + rng.Int64N(100_000)
			if rng.IntN(2) == 0 {
				chunks = 1 + rng.Int64N(300)
			}
			was, root = root, resize(t, x, root, chunks*chunk)
			for i := range model {
				if i >= chunks {
					delete(model, i)
				}
			}
			must(t, s.Diff(was, root, func(i int64, a, b Name) error {
				if i < chunks {
					return fmt.Errorf("resize to %d changed chunk %d", chunks, i)
				}
				return nil
			}))
		}
		checkTree(t, x, root, model)
	}
}

func resize(t *testing.T, x *Session, r Root, size int64) Root {
	t.Helper()
	to, err := x.Resize(r, size)
	must(t, err)
	return to
}

// checkTree compares a tree with the model, and its root with that of a tree made in one go.
func checkTree(t *testing.T, x *Session, root Root, model map[int64]Name) {
	t.Helper()
	v := x.s.View(root)
	var changes []Change
	for i, n := range model {
		got, err := v.ChunkName(i)
		must(t, err)
		if got != n {
			t.Fatalf("chunk %d is %v, want %v", i, got, n)
		}
		changes = append(changes, Change{i, n})
	}
	again, err := x.Commit(Empty(root.Size, root.Chunk), changes)
	must(t, err)
	if again != root {
		t.Fatalf("root %v, made in one go %v", root, again)
	}
}

func TestResizeZeroesTheTail(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem(), object.NewMem()))
	x := s.Begin()
	defer x.End()
	d := &disk{chunk: 16 << 10, data: make([]byte, 100_000)}
	page(seeded(t), d.data)
	full, err := d.save(x, Empty(100_000, 16<<10), 0, 6)
	must(t, err)
	small := resize(t, x, full, 50_001)
	must(t, same(s, small, d.data[:50_001]))
	back := resize(t, x, small, 100_000)
	must(t, same(s, back, append(bytes.Clone(d.data[:50_001]), make([]byte, 49_999)...)))
	if resize(t, x, small, 0).Name != (Name{}) {
		t.Fatal("an empty disk has content")
	}
}

func TestBadInput(t *testing.T) {
	s := mustOpen(t, testOptions(vfs.NewMem(), object.NewMem()))
	x := s.Begin()
	for _, n := range []int{0, 1, 4095, 12 << 10, 2 << 20} {
		if _, err := x.Put(make([]byte, n), Name{}); !errors.Is(err, ErrBadRoot) {
			t.Errorf("chunk of %d bytes: %v", n, err)
		}
	}
	for _, r := range []Root{{}, {Size: -1, Chunk: 4096}, {Size: 1, Chunk: 5000}, {Size: 1 << 61, Chunk: 4096}} {
		if _, err := x.Commit(r, nil); !errors.Is(err, ErrBadRoot) {
			t.Errorf("%+v: %v", r, err)
		}
		if _, err := s.View(r).ReadAt(make([]byte, 1), 0); err == nil {
			t.Errorf("%+v was read", r)
		}
	}
	if _, err := x.Commit(Empty(1<<20, 4096), []Change{{Index: 256}}); !errors.Is(err, ErrBadRoot) {
		t.Error(err)
	}
	if err := same(s, Root{Name: Name{1}, Size: 4096, Chunk: 4096}, nil); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	if err := s.Diff(Empty(1, 4096), Empty(1, 8192), nil); !errors.Is(err, ErrBadRoot) {
		t.Error(err)
	}
	x.End()
	if _, err := x.Put(make([]byte, 4096), Name{}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestConcurrentPutAndRead(t *testing.T) {
	s := mustOpen(t, Options{Dir: t.TempDir(), Bucket: object.NewMem(), PackBytes: 1 << 20, CacheBytes: 4 << 20, Logger: quiet})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 7))
			x := s.Begin()
			defer x.End()
			d := &disk{chunk: 16 << 10, data: make([]byte, 1<<20)}
			root := Empty(1<<20, 16<<10)
			for range 10 {
				from, to := d.write(rng)
				var err error
				if root, err = d.save(x, root, from, to); err == nil {
					err = errors.Join(same(s, root, d.data), s.Sync())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestPatches: a small change of a page costs little, reads see it, and a chain of
// changes never makes a patch of a patch.
func TestPatches(t *testing.T) {
	rng := seeded(t)
	s := mustOpen(t, testOptions(vfs.NewMem(), object.NewMem()))
	d := &disk{chunk: 16 << 10, data: make([]byte, 4<<20)}
	page(rng, d.data)
	x := s.Begin()
	root, err := d.save(x, Empty(4<<20, 16<<10), 0, 255)
	must(t, err)
	x.End()
	for range 20 {
		x := s.Begin()
		i := rng.IntN(256)
		for range 3 {
			page(rng, d.data[i*d.chunk+rng.IntN(100)*64:][:64])
		}
		root, err = d.save(x, root, i, i)
		must(t, err)
		if st := x.Stats(); st.StoredBytes > 2500 {
			t.Errorf("192 bytes changed, %d stored", st.StoredBytes)
		}
		x.End()
	}
	must(t, same(s, root, d.data))
	checkClean(t, s, root)
}
