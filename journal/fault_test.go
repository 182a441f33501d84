package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/internal/vfs"
	"tidemark/internal/vfs/lossy"
)

// faults lets the operations that it counts fail, from the n-th on, for a while.
type faults struct {
	err         error
	counts      func(errorfs.OpKind) bool
	first, last int64
	seen        atomic.Int64
	hit         atomic.Bool
}

func (f *faults) String() string { return "faults" }

// MaybeError implements errorfs.Injector.
func (f *faults) MaybeError(op errorfs.Op) error {
	if !f.counts(op.Kind) {
		return nil
	}
	if n := f.seen.Add(1); n < f.first || n > f.last {
		return nil
	}
	f.hit.Store(true)
	return f.err
}

func writes(k errorfs.OpKind) bool { return k.ReadOrWrite() == errorfs.OpIsWrite }
func reads(k errorfs.OpKind) bool  { return k.ReadOrWrite() == errorfs.OpIsRead }
func takesSpace(k errorfs.OpKind) bool {
	return k == errorfs.OpFileWrite || k == errorfs.OpFileWriteAt || k == errorfs.OpCreate || k == errorfs.OpFilePreallocate
}

// work uses a journal in every way, fixed by the seed, and lets errors pass. What was acknowledged is in the model.
func (m *model) work(t *testing.T, fs vfs.FS, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	j, err := openArchived(fs)
	if err != nil {
		return
	}
	for i := range 120 {
		r := Record{Kind: Write, Disk: 1, Off: int64(i) << 12, Len: 4096, Payload: page(i)[:rng.IntN(4096)]}
		if i%40 == 39 {
			r.Payload = bytes.Repeat(page(i), 33)
		}
		if p, err := j.Append(&r); err == nil {
			m.records = append(m.records, r)
			got := make([]byte, len(r.Payload))
			if err := p.Segment.ReadAt(got, p.Off); err == nil && !bytes.Equal(got, r.Payload) {
				t.Fatalf("position %d reads back wrong", r.Pos)
			}
		}
		if i%7 == 6 && j.Sync() == nil {
			m.synced = len(m.records)
		}
		if i%30 == 29 {
			j.Rewrite(context.Background(), uint64(m.synced), nil)
		}
		if i%25 == 24 {
			j.Archive(context.Background(), uint64(m.synced*2/3))
		}
		if i == 110 {
			m.trimmed = min(60, uint64(m.synced))
			j.Trim(context.Background(), m.trimmed)
		}
		if i == 50 {
			m.trimmed = min(20, uint64(m.synced))
			j.Trim(t.Context(), m.trimmed)
		}
	}
	if j.Close() == nil {
		m.synced = len(m.records)
	}
}

// Each operation on the file system fails in turn, once with EIO and for a while with ENOSPC. After the next
// start, with and without a power cut, every record that was synced is there, and nothing is there in halves.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		counts func(errorfs.OpKind) bool
		length int64
	}{
		{"EIO of writes", syscall.EIO, writes, 1},
		{"EIO of reads", syscall.EIO, reads, 1},
		{"ENOSPC", syscall.ENOSPC, takesSpace, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			step := int64(4) // each of them in turn, over some runs
			if os.Getenv("TIDEMARK_LONG") != "" {
				step = 1
			}
			for n := 1 + rand.Int64N(step); ; n += step {
				f := &faults{err: c.err, counts: c.counts, first: n, last: n + c.length - 1}
				mem := vfs.NewMem()
				if err := vfs.MkdirAll(mem, "/j"); err != nil {
					t.Fatal(err)
				}
				var m model
				m.work(t, errorfs.Wrap(mem, f), uint64(n))
				for _, keep := range []int{0, 50, 100} {
					m := m
					fs := vfs.Crash(mem, keep, rand.New(rand.NewPCG(uint64(n), 2)))
					j, err := openArchived(fs)
					if err != nil {
						t.Fatalf("operation %d: open after a crash: %v", n, err)
					}
					m.check(t, j, uint64(n))
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if !f.hit.Load() {
					return
				}
			}
		})
	}
}

// A full disk refuses appends, loses nothing, and is forgotten when there is room.
func TestSpaceComesBack(t *testing.T) {
	for n := int64(1); ; n++ {
		f := &faults{err: syscall.ENOSPC, counts: takesSpace, first: n, last: n + 5}
		mem := vfs.NewMem()
		if err := vfs.MkdirAll(mem, "/j"); err != nil {
			t.Fatal(err)
		}
		j := openSmall(t, mem, "/j")
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		j, err := Open(errorfs.Wrap(mem, f), "/j", Options{SegmentSize: 64 << 10, Logger: quiet})
		if err != nil {
			if n < 10 && errors.Is(err, syscall.ENOSPC) {
				continue
			}
			t.Fatal(err)
		}
		count := 0
		for i := range 60 {
			if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: page(i)}); err == nil {
				count++
			} else if !errors.Is(err, ErrNoSpace) {
				// The one write that must not fail is that of what was accepted: its room was reserved, but not here.
				if !errors.Is(err, ErrFailed) {
					t.Fatalf("operation %d: %v", n, err)
				}
				break
			}
		}
		if err := j.Sync(); err == nil {
			if err := j.Verify(0, uint64(count)); err != nil {
				t.Fatalf("operation %d: %v", n, err)
			}
			if pos, _ := j.Head(); pos != uint64(count) {
				t.Fatalf("operation %d: head is %d after %d appends", n, pos, count)
			}
		} else if !errors.Is(err, ErrFailed) {
			t.Fatalf("operation %d: %v", n, err)
		}
		j.Close()
		if !f.hit.Load() {
			return
		}
	}
}

// An open whose n-th read fails says so, and harms nothing.
func TestOpenOnABadDisk(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	var m model
	m.work(t, mem, 1)
	for n := int64(1); ; n++ {
		c := vfs.Crash(mem, 100, rand.New(rand.NewPCG(1, 1)))
		f := &faults{err: syscall.EIO, counts: func(errorfs.OpKind) bool { return true }, first: n, last: n}
		j, err := openArchived(errorfs.Wrap(c, f))
		if err == nil {
			j.Close()
		}
		hit := f.hit.Load()
		if j, err = openArchived(c); err != nil {
			t.Fatalf("operation %d: the open afterwards: %v", n, err)
		}
		after := m
		after.check(t, j, uint64(n))
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if !hit {
			return
		}
	}
}

// cuts keeps what a power cut would leave before each operation that changes something.
type cuts struct {
	mem   *vfs.MemFS
	model *model
	rng   *rand.Rand
	left  []cutState
}

type cutState struct {
	fs     *vfs.MemFS
	synced int
	op     string
}

func (c *cuts) String() string { return "cuts" }

// MaybeError implements errorfs.Injector.
func (c *cuts) MaybeError(op errorfs.Op) error {
	if writes(op.Kind) {
		for _, keep := range []int{0, 50} {
			c.left = append(c.left, cutState{vfs.Crash(c.mem, keep, c.rng), c.model.synced, fmt.Sprint(op.Kind, " ", op.Path)})
		}
	}
	return nil
}

// The power is cut before each operation of appends, syncs, rolls, trims, packings and closes.
func TestCutBeforeEachOperation(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rounds := 1
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 100
	}
	for range rounds {
		cutRound(t, seed)
		seed++
	}
}

func cutRound(t *testing.T, seed uint64) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	var m model
	c := &cuts{mem: mem, model: &m, rng: rand.New(rand.NewPCG(seed, 3))}
	m.work(t, errorfs.Wrap(mem, c), seed)
	for i, s := range c.left {
		j, err := openArchived(s.fs)
		if err != nil {
			t.Fatalf("seed %d: cut %d, before %s: %v", seed, i, s.op, err)
		}
		after := model{records: m.records, synced: s.synced, trimmed: m.trimmed}
		after.check(t, j, seed)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.left) < 100 {
		t.Errorf("seed %d: %d cuts", seed, len(c.left))
	}
}

// A flipped byte in a segment that was being written is damage if anything behind it proves so, and
// otherwise takes no more than the last batch.
func TestAFlippedByteBeforeTheTail(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	j, err := Open(mem, "/j", Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		pages(t, j, i*5, 5)
	}
	lastBatch := int64(segmentHeaderSize) + 15*footprint(4096)
	for at := int64(segmentHeaderSize); at < j.segments[0].end; at += 509 {
		c := vfs.Crash(mem, 100, rand.New(rand.NewPCG(1, 1)))
		flip(t, c, "/j/seg-0000000000000001", at)
		after, err := Open(c, "/j", Options{})
		switch {
		case err == nil:
			if head, _ := after.Head(); head < 15 || at < lastBatch-8 {
				t.Fatalf("byte %d: %d records, in silence", at, head)
			}
			after.Close()
		case !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "position"):
			t.Fatalf("byte %d: %v", at, err)
		}
	}
}

func flip(t *testing.T, fs vfs.FS, path string, at int64) {
	t.Helper()
	f, err := vfs.OpenReadWrite(fs, path)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A damaged index is rebuilt from the records, of sealed and of packed segments.
func TestADamagedIndexIsRebuilt(t *testing.T) {
	for _, packed := range []bool{false, true} {
		mem := vfs.NewMem()
		if err := vfs.MkdirAll(mem, "/j"); err != nil {
			t.Fatal(err)
		}
		j := openSmall(t, mem, "/j")
		pages(t, j, 0, 100)
		if packed {
			if _, err := j.Rewrite(context.Background(), 100, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := vfs.ReadFile(mem, "/j/seg-0000000000000001")
		if err != nil {
			t.Fatal(err)
		}
		size := int64(trailerSize)
		if packed {
			size = packedTrailerSize
		}
		flip(t, mem, "/j/seg-0000000000000001", int64(len(data))-size-3)
		j = openSmall(t, mem, "/j")
		if err := j.Verify(0, 100); err != nil {
			t.Fatalf("packed=%v: %v", packed, err)
		}
		if _, err := j.Rewrite(context.Background(), 100, nil); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Writers of all sizes beside each other: -race watches, and a power cut takes nothing that a Sync promised.
func TestManyWriters(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	j := openSmall(t, mem, "/j")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 60 {
				r := Record{Kind: Write, Disk: uint16(w), Len: 4096, Payload: page(i)}
				if i%20 == w {
					r.Payload = bytes.Repeat(r.Payload, 40)
				}
				p, err := j.Append(&r)
				if err == nil && i%3 == 0 {
					err = j.Sync()
				}
				got := make([]byte, 4096)
				if err = errors.Join(err, p.Segment.ReadAt(got, p.Off)); err != nil || !bytes.Equal(got, page(i)) {
					t.Errorf("writer %d, record %d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	after := openSmall(t, vfs.Crash(mem, 0, rand.New(rand.NewPCG(1, 1))), "/j")
	if head, _ := after.Head(); head != 8*60 {
		t.Fatalf("%d records", head)
	}
	next := make(map[uint16]int)
	err := after.Scan(0, 8*60, func(r *Record, p Place) error {
		i := next[r.Disk]
		next[r.Disk]++
		got := make([]byte, 4096)
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(i)) {
			return fmt.Errorf("writer %d, record %d: %v", r.Disk, i, err)
		}
		return nil
	})
	if err := errors.Join(err, after.Verify(0, 8*60)); err != nil {
		t.Fatal(err)
	}
}

// What a crash left without its index is packed like any other, also where the file ends before the padding of its last record.
func TestATornSegmentIsPacked(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	j := openSmall(t, mem, "/j")
	pages(t, j, 0, 10)
	payload := bytes.Repeat([]byte("x"), directAfter+3)
	if _, err := j.Append(&Record{Kind: Write, Len: int64(len(payload)), Payload: payload}); err != nil {
		t.Fatal(err)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	j = openSmall(t, vfs.Crash(mem, 0, rand.New(rand.NewPCG(1, 1))), "/j")
	defer j.Close()
	if done, err := j.Rewrite(context.Background(), 11, nil); err != nil || done.Segments != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := j.Verify(0, 11); err != nil || j.Raw(11) || !j.Segments()[0].Sealed {
		t.Fatalf("%v; more to do: %v", err, j.Raw(11))
	}
}

func FuzzScanRecords(f *testing.F) {
	h := segmentHeader{number: 1, firstPos: 1}
	data := make([]byte, segmentHeaderSize)
	for i := range 3 {
		b := make([]byte, footprint(10))
		r := header{Record: Record{Pos: uint64(i) + 1, Time: int64(i) + 1, Kind: Write, Len: 10}, size: 10, sum: crc32.Checksum(b[headerSize:headerSize+10], castagnoli), durable: uint64(i)}
		r.put(b, h.salt())
		data = append(data, b...)
	}
	f.Add(data, uint16(segmentHeaderSize+4), byte(1))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, b byte) {
		if int(at) < len(data) {
			data[at] ^= b
		}
		c, err := scanRecords(bytes.NewReader(data), int64(len(data)), h)
		if err != nil || c.end < segmentHeaderSize || len(c.entries) > 0 && c.end >= int64(len(data))+recordAlign {
			t.Errorf("%d records up to %d of %d bytes: %v", len(c.entries), c.end, len(data), err)
		}
		if from := c.doubtful(h.firstPos); from < 0 || from > c.end {
			t.Errorf("bytes from %d on are doubtful, and the records end at %d", from, c.end)
		}
	})
}

func FuzzPackedBlock(f *testing.F) {
	stored, raw := packBlock(page(1), nil)
	f.Add(stored, raw, int64(4096))
	f.Add(page(1), true, int64(4096))
	f.Fuzz(func(t *testing.T, stored []byte, raw bool, length int64) {
		if length < 0 || length > packedBlock || len(stored) == 0 {
			return
		}
		fs := vfs.NewMem()
		file, err := vfs.Create(fs, "/f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(stored, segmentHeaderSize); err != nil {
			t.Fatal(err)
		}
		p := &packed{end: segmentHeaderSize + length, at: []int64{segmentHeaderSize, segmentHeaderSize + int64(len(stored))}, raw: []bool{raw}, sums: []uint32{crc32.Checksum(stored, castagnoli)}}
		if raw && int64(len(stored)) != length {
			return // parseTable refuses it
		}
		if b, err := p.block(file, 0); err == nil && int64(len(b)) != length {
			t.Errorf("a block of %d bytes, %d are promised", len(b), length)
		} else if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Error(err)
		}
	})
}

// syncFails fails one sync, which others wait for.
type syncFails struct {
	armed   atomic.Bool
	failing chan struct{}
}

func (f *syncFails) String() string { return "syncFails" }

// MaybeError implements errorfs.Injector.
func (f *syncFails) MaybeError(op errorfs.Op) error {
	if op.Kind != errorfs.OpFileSyncData || !f.armed.CompareAndSwap(true, false) {
		return nil
	}
	close(f.failing)
	time.Sleep(time.Millisecond) // so that they do wait
	return syscall.EIO
}

// A file system tells a failed sync once: nobody may take what the next one says for an answer, who comes in just behind it either.
func TestAFailedSyncIsTheLast(t *testing.T) {
	for range 200 {
		mem := vfs.NewMem()
		if err := vfs.MkdirAll(mem, "/j"); err != nil {
			t.Fatal(err)
		}
		f := &syncFails{failing: make(chan struct{})}
		j := openSmall(t, errorfs.Wrap(mem, f), "/j")
		pages(t, j, 0, 20)
		durable := j.Durable()
		if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: page(20)}); err != nil {
			t.Fatal(err)
		}
		f.armed.Store(true)
		ended, over := make(chan error), make(chan struct{})
		go func() {
			<-f.failing
			ended <- j.End()
		}()
		for range 4 { // who has failed has to wait for those who look
			go func() {
				for {
					select {
					case <-over:
						return
					default:
						j.Segments()
					}
				}
			}()
		}
		if err := j.Sync(); !errors.Is(err, ErrFailed) {
			t.Fatalf("sync: %v", err)
		}
		if err := <-ended; !errors.Is(err, ErrFailed) {
			t.Fatalf("end: %v", err)
		}
		close(over)
		if d := j.Durable(); d != durable {
			t.Fatalf("%d records are durable, and of those behind %d the sync failed", d, durable)
		}
		j.Close()
	}
}

// What a failed sync left in the page cache looks as if it were on the disk, and a restart reads it: it must be there before it is promised (fsyncgate).
func TestOpenAfterAFailedSync(t *testing.T) {
	for _, durable := range []int{0, 1, 20} {
		fs := lossy.New()
		if err := vfs.MkdirAll(fs, "/j"); err != nil {
			t.Fatal(err)
		}
		j := openSmall(t, fs, "/j")
		if durable > 0 {
			pages(t, j, 0, durable)
		}
		for i := range 3 {
			if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: page(durable + i)}); err != nil {
				t.Fatal(err)
			}
		}
		fs.FailSync(func(path string) bool { return strings.HasPrefix(path, "/j/seg-") })
		if err := j.Sync(); !errors.Is(err, ErrFailed) {
			t.Fatalf("sync: %v", err)
		}
		j.Close()
		if _, err := Open(fs, "/j", Options{SegmentSize: 256 << 10, Logger: quiet}); err == nil {
			t.Fatal("it opens where nothing can be synced")
		}
		fs.FailSync(func(string) bool { return false })
		j = openSmall(t, fs, "/j")
		if n := j.Durable(); n != uint64(durable+3) {
			t.Fatalf("%d of %d records are found", n, durable+3)
		}
		pages(t, j, durable+3, 1)
		after, err := fs.PowerCut()
		if err != nil {
			t.Fatal(err)
		}
		j.Close()
		j = openSmall(t, after, "/j")
		if err := j.Verify(0, uint64(durable+4)); err != nil || j.Durable() != uint64(durable+4) {
			t.Fatalf("%d of %d records are there after the power cut: %v", j.Durable(), durable+4, err)
		}
		j.Close()
	}
}
