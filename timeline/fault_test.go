package timeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark"
	"tidemark/block"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// failing lets operations that write fail, from the n-th on, for a while.
type failing struct {
	err         error
	first, last int64
	seen        atomic.Int64
	hit         atomic.Bool
}

func (f *failing) String() string { return "failing" }

// MaybeError implements errorfs.Injector.
func (f *failing) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	// The chunk index has a reserve of its own, and stops the process rather than go on wrongly.
	if strings.Contains(op.Path, "/store/index") || errors.Is(f.err, syscall.ENOSPC) && !takesSpace(op.Kind) {
		return nil
	}
	if n := f.seen.Add(1); n < f.first || n > f.last {
		return nil
	}
	f.hit.Store(true)
	return f.err
}

func takesSpace(k errorfs.OpKind) bool {
	return k == errorfs.OpFileWrite || k == errorfs.OpFileWriteAt || k == errorfs.OpCreate || k == errorfs.OpLink || k == errorfs.OpFilePreallocate
}

// TestFaults (D1, F3) lets each operation on the file system fail in turn, once with EIO
// and for a while with ENOSPC. Whatever was acknowledged by a flush is there after
// the next start, each other block holds something that was written to it, and
// when space is back the timeline goes on.
func TestFaults(t *testing.T) {
	step := int64(7)
	if os.Getenv("TIDEMARK_LONG") != "" {
		step = 1
	}
	for _, c := range []struct {
		err    error
		length int64
	}{{syscall.EIO, 1}, {syscall.ENOSPC, 20}} {
		t.Run(c.err.Error(), func(t *testing.T) {
			for n := int64(1); ; n += step {
				f := &failing{err: c.err, first: n, last: n + c.length - 1}
				faultRound(t, f, uint64(n))
				if !f.hit.Load() {
					break
				}
			}
		})
	}
}

// written is what blocks may hold: the last value acknowledged, and those written since.
type written struct {
	may  [diskSize/block.BlockSize + 1][]byte
	rng  *rand.Rand
	next byte
}

func faultRound(t *testing.T, f *failing, seed uint64) {
	mem := vfs.NewMem()
	open(t, mem, "/d").close(t)
	w := &written{rng: rand.New(rand.NewPCG(seed, 1))}
	for i := range w.may {
		w.may[i] = []byte{0}
	}
	id := w.work(t, errorfs.Wrap(mem, f))
	after := vfs.Crash(mem, int(seed%3)*50, w.rng)
	fresh := open(t, after, "/d")
	defer fresh.close(t)
	if id == "" {
		return // it was never created
	}
	line := fresh.set.Get(id)
	if line == nil {
		t.Fatalf("fault at operation %d: the timeline is gone", f.first)
	}
	w.check(t, line.Disks()[0], f)
	if err := line.Fold(context.Background()); err != nil {
		t.Fatalf("fault at operation %d: fold afterwards: %v", f.first, err)
	}
	w.check(t, line.Disks()[0], f)
	r, err := fresh.store.Check(context.Background(), fresh.set.Keep, nil)
	if err != nil || len(r.Damage) > 0 {
		t.Fatalf("fault at operation %d: verify: %v %v", f.first, err, r.Damage)
	}
}

// work uses a timeline in every way and lets errors pass. It returns the
// timeline's id if it was acknowledged.
func (w *written) work(t *testing.T, fs vfs.FS) string {
	ctx := context.Background()
	at, err := openWorld(fs, "/d")
	if err != nil {
		return ""
	}
	defer func() {
		at.set.Close()
		at.store.Close()
		at.bucket.Close()
	}()
	line, err := at.set.Create(ctx, "x", []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		return ""
	}
	line.SetWindow(Window{For: time.Hour})
	d := line.Disks()[0]
	for i := range 6 {
		for range 12 {
			w.write(d)
		}
		if d.Flush() == nil {
			w.acknowledge(d)
		}
		if _, err := line.Bookmark(Mark{Name: fmt.Sprint("m", i)}); err == nil {
			w.acknowledge(d)
		}
		if line.Fold(ctx) == nil && i == 3 {
			at.store.Reclaim(ctx, at.set.Keep)
		}
		line.Pack(ctx)
		line.Archive(ctx)
		if b, err := line.Branch(ctx, fmt.Sprint("b", i), line.newestPoint(), nil, nil); err == nil && i%2 == 0 {
			b.Remove(ctx)
		}
		line.Rename(ctx, fmt.Sprint("x", i))
	}
	return line.ID()
}

func (t *Timeline) newestPoint() tidemark.Position {
	p := t.Points()
	if len(p) == 0 {
		head, _ := t.Head()
		return head
	}
	return p[len(p)-1].Position
}

func (w *written) write(d *Disk) {
	first := w.rng.IntN(len(w.may) - 20)
	n := []int{1, 1, 4, 18}[w.rng.IntN(4)]
	w.next++
	for b := first; b < first+n; b++ {
		w.may[b] = append(w.may[b], w.next)
	}
	d.WriteAt(bytes.Repeat([]byte{w.next}, n*block.BlockSize), int64(first)*block.BlockSize)
}

func (w *written) read(d *Disk, b int) (byte, error) {
	var p [512]byte
	_, err := d.ReadAt(p[:], int64(b)*block.BlockSize)
	return p[0], err
}

// acknowledge notes that nothing but what the disk holds now may come back.
func (w *written) acknowledge(d *Disk) {
	for b := range w.may {
		if got, err := w.read(d, b); err == nil {
			w.may[b] = []byte{got}
		}
	}
}

func (w *written) check(t *testing.T, d *Disk, f *failing) {
	t.Helper()
	for b, may := range w.may {
		got, err := w.read(d, b)
		if err != nil || !bytes.Contains(may, []byte{got}) {
			t.Fatalf("%v at operation %d: block %d holds %d (%v), not one of %v", f.err, f.first, b, got, err, may)
		}
	}
}

// TestDamagedPoint (D2) flips a bit in the object of a point: that point is named, no
// other is affected, nothing is reclaimed until it is forgotten.
func TestDamagedPoint(t *testing.T) {
	ctx := context.Background()
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line := twoPoints(t, w)
	points := line.Points()
	w.close(t)
	flip(t, mem, "/d/pool/"+imageKey(line.ID(), points[0].Position))

	w = open(t, mem, "/d")
	defer w.close(t)
	line = w.set.Get(line.ID())
	if got := line.Points(); len(got) != 1 || got[0].Bookmark != "two" {
		t.Fatalf("points: %+v", got)
	}
	if d := w.set.Damage(); len(d) != 1 || !strings.Contains(d[0].Error(), "x@"+points[0].Position.String()) {
		t.Fatalf("damage: %v", d)
	}
	if _, err := w.store.Reclaim(ctx, w.set.Keep); err == nil {
		t.Fatal("chunks were reclaimed that a damaged point may need")
	}
	if err := line.Expire(ctx, points[0].Position); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Reclaim(ctx, w.set.Keep); err != nil || len(w.set.Damage()) > 0 {
		t.Fatalf("after the damaged point is forgotten: %v %v", err, w.set.Damage())
	}
}

// TestDamagedState (D2) flips a bit in the state: the timeline stands on its newest
// point with the journal behind it, or, if the journal does not reach back so far, says so.
func TestDamagedState(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line := twoPoints(t, w)
	if _, err := line.Disks()[0].WriteAt(bytes.Repeat([]byte{9}, 8192), 0); err != nil {
		t.Fatal(err)
	}
	id := line.ID()
	w.close(t)
	flip(t, mem, "/d/timelines/"+id+"/state")
	w = open(t, mem, "/d")
	line = w.set.Get(id)
	var b [1]byte
	if _, err := line.Disks()[0].ReadAt(b[:], 0); err != nil || b[0] != 9 {
		t.Fatalf("read %d, %v", b[0], err)
	}
	// Fold without a point, so that the state alone knows the base, and forget the journal before it.
	if _, err := line.cut(nil); err != nil {
		t.Fatal(err)
	}
	if err := line.Fold(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	w = open(t, mem, "/d") // begins a segment
	if err := w.set.Get(id).Fold(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	flip(t, mem, "/d/timelines/"+id+"/state")
	w, err := openWorld(mem, "/d")
	if err != nil {
		t.Fatal(err)
	}
	defer w.close(t)
	if d := w.set.Damage(); len(d) != 1 || !strings.Contains(d[0].Error(), "not whole") {
		t.Fatalf("a gap between point and journal went unnoticed: %v", d)
	}
}

// TestDescriptorNumbers: a name whose number may have been used by a failed change is not lost.
func TestDescriptorNumbers(t *testing.T) {
	ctx := context.Background()
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line := twoPoints(t, w)
	b := &unsure{Bucket: w.set.o.Bucket}
	w.set.o.Bucket = b
	b.fail = true
	if err := line.Rename(ctx, "wrong"); err == nil {
		t.Fatal("a failed rename went unnoticed")
	}
	b.fail = false
	if err := line.Rename(ctx, "right"); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	w = open(t, mem, "/d")
	defer w.close(t)
	if name := w.set.Get(line.ID()).Name(); name != "right" {
		t.Fatalf("the name is %q", name)
	}
}

// unsure is a bucket that stores an object and then says that it failed.
type unsure struct {
	object.Bucket
	fail bool
}

func (b *unsure) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	err := b.Bucket.Put(ctx, key, r, size)
	if b.fail {
		return errors.Join(err, syscall.EIO)
	}
	return err
}

// twoPoints makes a timeline x with the bookmarks one and two.
func twoPoints(t *testing.T, w *world) *Timeline {
	t.Helper()
	line, err := w.set.Create(t.Context(), "x", []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"one", "two"} {
		if _, err := line.Disks()[0].WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 64<<10), 32<<10); err != nil {
			t.Fatal(err)
		}
		if _, err := line.Bookmark(Mark{Name: name}); err != nil {
			t.Fatal(err)
		}
		if err := line.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return line
}

func flip(t *testing.T, fs vfs.FS, path string) {
	t.Helper()
	data, err := vfs.ReadFile(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 4
	if err := vfs.WriteFile(fs, path, data); err != nil {
		t.Fatal(err)
	}
}

// FuzzUnseal feeds anything to the reader of descriptors, points and states.
func FuzzUnseal(f *testing.F) {
	for _, v := range []any{&state{ID: "a"}, &descriptor{Name: "x"}, &manifest{Position: 7, Disks: []diskImage{{Name: "a"}}}} {
		data, err := seal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var m manifest
		if unseal(data, &m) == nil {
			for _, d := range m.Disks {
				if r := d.root(); r.Size < 0 || r.Chunk < 0 {
					t.Fatalf("a root of %d bytes in chunks of %d", r.Size, r.Chunk)
				}
			}
		}
		unseal(data, &state{})
		unseal(data, &descriptor{})
	})
}
