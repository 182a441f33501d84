package journal

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/internal/vfs"
)

const vectors = "../testdata/format/v1/journal"

// vectorRecord is the i-th record of the vectors, from 0.
func vectorRecord(i int) Record {
	r := Record{Kind: Write, Disk: uint16(i % 2), Off: int64(i) << 12, Len: 4096, Payload: page(i)}
	switch i % 10 {
	case 3:
		r.Kind, r.Len, r.Payload = Zero, 1<<20, nil
	case 5:
		r.Kind, r.Len, r.Payload = Reference, 32<<10, bytes.Repeat([]byte{byte(i)}, 64)
	case 7:
		r = Record{Kind: Bookmark, Payload: fmt.Appendf(nil, `{"name":"b%d"}`, i)}
	}
	return r
}

const vectorRecords = 60

// TestFormatVectors reads a journal written by the first version: a packed segment, a sealed one, and one
// that was being written. With TIDEMARK_WRITE_VECTORS set it writes one.
func TestFormatVectors(t *testing.T) {
	if os.Getenv("TIDEMARK_WRITE_VECTORS") != "" {
		writeVectors(t)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(vectors)); err != nil {
		t.Fatal(err)
	}
	j, err := Open(vfs.OS, dir, Options{SegmentSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Verify(0, vectorRecords); err != nil {
		t.Fatal(err)
	}
	i := 0
	err = j.Scan(0, vectorRecords, func(r *Record, p Place) error {
		want := vectorRecord(i)
		i++
		got := make([]byte, len(want.Payload))
		if err := p.Segment.ReadAt(got, p.Off); err != nil {
			return err
		}
		if r.Pos != uint64(i) || r.Time != 1e18+int64(i-1) || r.Kind != want.Kind || r.Disk != want.Disk || r.Off != want.Off || r.Len != want.Len || !bytes.Equal(got, want.Payload) {
			return fmt.Errorf("record %d is %+v", i, *r)
		}
		return nil
	})
	if head, _ := j.Head(); err != nil || i != vectorRecords || head != vectorRecords {
		t.Fatalf("%d records of %d, head %d: %v", i, vectorRecords, head, err)
	}
}

func writeVectors(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(vfs.OS, dir, Options{SegmentSize: 64 << 10, Now: func() time.Time { return time.Unix(1e9, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range vectorRecords {
		r := vectorRecord(i)
		if _, err := j.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if done, err := j.Rewrite(context.Background(), j.Segments()[0].LastPos, nil); err != nil || done.Segments != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if n := len(j.Segments()); n < 3 {
		t.Fatalf("%d segments", n)
	}
	// The last segment as a crash leaves it: without its footer, cut behind its records.
	last := filepath.Join(dir, fmt.Sprintf("seg-%016x", len(j.Segments())))
	if err := os.Truncate(last, j.segments[len(j.segments)-1].end); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(vectors); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(vectors, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
}
