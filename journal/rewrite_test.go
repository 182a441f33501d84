package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/internal/vfs"
)

// pages appends records of 4 KiB that compress well, and returns where they lie.
func pages(t *testing.T, j *Journal, from, n int) (places []Place) {
	t.Helper()
	for i := from; i < from+n; i++ {
		p, err := j.Append(&Record{Kind: Write, Off: int64(i) << 12, Len: 4096, Payload: page(i)})
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, p)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	return places
}

func page(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%016d", i), 256) }

// quiet is for journals that are damaged on purpose.
var quiet = slog.New(slog.DiscardHandler)

func openSmall(t *testing.T, fs vfs.FS, dir string) *Journal {
	t.Helper()
	j, err := Open(fs, dir, Options{SegmentSize: 256 << 10, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func bytesOf(j *Journal) (n int64) {
	for _, s := range j.Segments() {
		n += s.Bytes
	}
	return n
}

// Segments shrink in place; who holds them reads on, and they are the same after the next start.
func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	j := openSmall(t, vfs.OS, dir)
	places := pages(t, j, 0, 500)
	for _, p := range places {
		p.Segment.Acquire()
	}
	before := bytesOf(j)
	if !j.Raw(500) {
		t.Error("there is nothing to do")
	}
	done, err := j.Rewrite(context.Background(), 500, nil)
	if err != nil || done.Segments < 5 || done.After*10 > done.Before {
		t.Fatalf("%+v, %v", done, err)
	}
	if after := bytesOf(j); after*2 > before || j.Raw(500) {
		t.Errorf("%d bytes, %d before; more to do: %v", after, before, j.Raw(500))
	}
	got := make([]byte, 4096)
	for i, p := range places {
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(i)) {
			t.Fatalf("record %d: %v", i, err)
		}
		if err := p.Segment.ReadAt(got[:100], p.Off+1234); err != nil || !bytes.Equal(got[:100], page(i)[1234:1334]) {
			t.Fatalf("the middle of record %d: %v", i, err)
		}
		p.Segment.Release()
	}
	if again, err := j.Rewrite(context.Background(), 500, nil); err != nil || again.Segments != 0 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if err := j.Trim(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = openSmall(t, vfs.OS, dir)
	defer j.Close()
	first := j.Segments()[0].FirstPos - 1
	if first == 0 {
		t.Error("nothing was trimmed")
	}
	if err := j.Verify(first, 500); err != nil {
		t.Error(err)
	}
	n := int(first)
	err = j.Scan(first, 500, func(r *Record, p Place) error {
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(n)) {
			return fmt.Errorf("record %d: %v", n, err)
		}
		n++
		return nil
	})
	if err != nil || n != 500 {
		t.Errorf("read up to %d: %v", n, err)
	}
}

// What does not get smaller stays as it is, and is not tried again.
func TestRewriteLeavesWhatIsDense(t *testing.T) {
	dir := t.TempDir()
	j := openSmall(t, vfs.OS, dir)
	defer j.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for range 200 {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: p}); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := j.Rewrite(context.Background(), 200, nil); err != nil || done.Segments != 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if j.Raw(200) {
		t.Error("it is tried again")
	}
	if _, err := os.Stat(dir + "/" + rewriteName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a try was left behind: %v", err)
	}
}

// Packing beside appends, reads and trims: -race watches.
func TestRewriteBesideEverything(t *testing.T) {
	j := openSmall(t, vfs.OS, t.TempDir())
	defer j.Close()
	var wg sync.WaitGroup
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			if _, err := j.Rewrite(context.Background(), j.Durable(), nil); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		got := make([]byte, 4096)
		for !stop.Load() {
			head := j.Durable()
			first := j.Segments()[0].FirstPos
			err := j.Scan(max(first-1, head-min(head, 300)), head, func(r *Record, p Place) error {
				if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(int(r.Off>>12))) {
					return fmt.Errorf("position %d: %w", r.Pos, errors.Join(err, errors.New("wrong bytes")))
				}
				return nil
			})
			if err != nil && first == j.Segments()[0].FirstPos {
				t.Error(err)
			}
		}
	})
	for n := range 20 {
		pages(t, j, n*100, 100)
		if n%5 == 4 {
			if err := j.Trim(t.Context(), uint64(n*100-300)); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
}

// failOnce fails one operation that writes.
type failOnce struct {
	err  error
	n    int64
	seen atomic.Int64
}

func (f *failOnce) String() string { return "failOnce" }

func (f *failOnce) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && f.seen.Add(1) == f.n {
		return f.err
	}
	return nil
}

// Each operation of a packing fails in turn, and then the power fails: all records are there.
func TestRewriteFaults(t *testing.T) {
	for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := int64(1); ; n++ {
			mem := vfs.NewMem()
			if err := vfs.MkdirAll(mem, "/j"); err != nil {
				t.Fatal(err)
			}
			j := openSmall(t, mem, "/j")
			pages(t, j, 0, 200)
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			f := &failOnce{err: fault, n: 1 << 40}
			j = openSmall(t, errorfs.Wrap(mem, f), "/j")
			f.seen.Store(0)
			f.n = n
			_, err := j.Rewrite(context.Background(), 200, nil)
			hit := f.seen.Load() >= n
			if hit != (err != nil) && err != nil {
				t.Fatalf("operation %d: %v", n, err)
			}
			if err := j.Verify(0, 200); err != nil {
				t.Fatalf("%v at operation %d: %v", fault, n, err)
			}
			after := openSmall(t, vfs.Crash(mem, int(n%3)*50, rand.New(rand.NewPCG(uint64(n), 1))), "/j")
			if head, _ := after.Head(); head != 200 {
				t.Fatalf("%v at operation %d: %d records after a crash", fault, n, head)
			}
			if err := after.Verify(0, 200); err != nil {
				t.Fatalf("%v at operation %d: after a crash: %v", fault, n, err)
			}
			if _, err := after.Rewrite(context.Background(), 200, nil); err != nil {
				t.Fatalf("%v at operation %d: once more: %v", fault, n, err)
			}
			if !hit {
				break
			}
		}
	}
}

func FuzzPackedTrailer(f *testing.F) {
	stored, raw := packBlock(page(1), nil)
	table := tableEntry(nil, stored, raw)
	end := packedEnd(table, segmentHeaderSize+int64(len(stored)), []entry{{time: 1, kind: Write, len: 4096, size: 4032}}, 0, segmentHeaderSize+4096)
	f.Add(end, int64(segmentHeaderSize+len(stored)+len(end)))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if len(b) < packedTrailerSize {
			return
		}
		tr, err := parsePackedTrailer(b[len(b)-packedTrailerSize:], size)
		if err != nil || tr.tableLen > int64(len(b)) {
			return
		}
		if p, err := parseTable(b[:tr.tableLen], tr); err == nil && p.at[len(p.at)-1] != tr.tableAt {
			t.Error("a table that does not fit was taken")
		}
	})
}
