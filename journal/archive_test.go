package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"tidemark/internal/vfs"
)

// shelf is an archive in a directory: what is stored is whole and durable, or absent.
type shelf struct {
	fs    vfs.FS
	reads atomic.Int64 // bytes
}

func (a *shelf) path(name string) string { return "/a/" + strings.ReplaceAll(name, "/", "_") }

func (a *shelf) Store(ctx context.Context, name, path string, size int64) error {
	if _, err := a.fs.Stat(a.path(name)); err == nil {
		return fs.ErrExist
	}
	data, err := vfs.ReadFile(a.fs, path)
	if err == nil && int64(len(data)) != size {
		err = fmt.Errorf("%d bytes, %d were announced", len(data), size)
	}
	if err != nil {
		return err
	}
	return vfs.WriteFile(a.fs, a.path(name), data)
}

func (a *shelf) ReadAt(name string, p []byte, off int64) error {
	f, err := a.fs.Open(a.path(name))
	if err != nil {
		return err
	}
	n, err := f.ReadAt(p, off)
	a.reads.Add(int64(n))
	if err == io.EOF && n < len(p) {
		err = io.ErrUnexpectedEOF
	}
	return errors.Join(err, f.Close())
}

func (a *shelf) Delete(ctx context.Context, name string) error {
	if err := a.fs.Remove(a.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return vfs.SyncDir(a.fs, "/a")
}

// withArchive returns options with a shelf in fs, as it is now.
func withArchive(fs vfs.FS, o Options) (Options, error) {
	a := &shelf{fs: fs}
	o.Archive, o.Archived = a, nil
	if err := vfs.MkdirAll(fs, "/a"); err != nil {
		return o, err
	}
	names, err := fs.List("/a")
	for _, name := range names {
		st, e := fs.Stat("/a/" + name)
		if err = errors.Join(err, e); e == nil {
			o.Archived = append(o.Archived, Archived{Name: strings.ReplaceAll(name, "_", "/"), Size: st.Size()})
		}
	}
	return o, err
}

func openArchived(fs vfs.FS) (*Journal, error) {
	o, err := withArchive(fs, Options{SegmentSize: 64 << 10, Logger: quiet})
	if err != nil {
		return nil, err
	}
	return Open(fs, "/j", o)
}

func mustOpenArchived(t *testing.T, fs vfs.FS) *Journal {
	t.Helper()
	if err := vfs.MkdirAll(fs, "/j"); err != nil {
		t.Fatal(err)
	}
	j, err := openArchived(fs)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// archivedIn counts the segments that are in the archive.
func archivedIn(j *Journal) (n int) {
	for _, s := range j.Segments() {
		if s.Archived {
			n++
		}
	}
	return n
}

// readPages compares records (after, upTo] with what pages appended.
func readPages(j *Journal, after, upTo uint64) error {
	got, i := make([]byte, 4096), int(after)
	err := j.Scan(after, upTo, func(r *Record, p Place) error {
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(i)) {
			return fmt.Errorf("position %d: %w", r.Pos, errors.Join(err, errors.New("wrong bytes")))
		}
		i++
		return nil
	})
	if err == nil && i != int(upTo) {
		err = fmt.Errorf("read up to %d", i)
	}
	return err
}

// Segments go to the archive and are read from there, by those who hold them, too, and after the next start. Who looks
// for records reads none of them. Trimmed ones leave the archive.
func TestArchive(t *testing.T) {
	mem := vfs.NewMem()
	j := mustOpenArchived(t, mem)
	places := pages(t, j, 0, 200)
	for _, p := range places {
		p.Segment.Acquire()
	}
	done, err := j.Archive(t.Context(), 150)
	if err != nil || done.Segments < 5 || archivedIn(j) != done.Segments {
		t.Fatalf("%+v, %v", done, err)
	}
	for i, p := range places {
		got := make([]byte, 4096)
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, page(i)) {
			t.Fatalf("held record %d: %v", i, err)
		}
		p.Segment.Release()
	}
	if err := errors.Join(readPages(j, 0, 200), j.Verify(0, 200), j.Close()); err != nil {
		t.Fatal(err)
	}
	j = mustOpenArchived(t, mem)
	a := j.o.Archive.(*shelf)
	if n := archivedIn(j); n != done.Segments || a.reads.Load() > 0 {
		t.Errorf("%d archived segments of %d; %d bytes were read from the archive", n, done.Segments, a.reads.Load())
	}
	n := 0
	if err := j.Scan(0, 150, func(*Record, Place) error { n++; return nil }); err != nil || n != 150 || a.reads.Load() > 0 {
		t.Errorf("%d records, %v; %d bytes were read from the archive", n, err, a.reads.Load())
	}
	for i := range uint64(200) {
		r := j.segments[0].head.after + int64(i) // no record's time
		if _, err := j.At(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(readPages(j, 0, 200), j.Verify(0, 200)); err != nil {
		t.Fatal(err)
	}
	if again, err := j.Archive(t.Context(), 150); err != nil || again.Segments != 0 {
		t.Errorf("once more: %+v, %v", again, err)
	}
	if err := j.Trim(t.Context(), 150); err != nil {
		t.Fatal(err)
	}
	left, _ := mem.List("/a")
	files, _ := mem.List("/j")
	if len(left) > 0 || strings.Contains(fmt.Sprint(files), outlinePrefix) {
		t.Errorf("left behind: %v %v", left, files)
	}
	if err := errors.Join(readPages(j, j.Segments()[0].FirstPos-1, 200), j.Close()); err != nil {
		t.Fatal(err)
	}
}

// An outline is a cache: where it is lost or damaged, the archive is asked, and it is there again.
func TestOutlinesAreRebuilt(t *testing.T) {
	for name, harm := range map[string]func(*testing.T, vfs.FS, string){
		"lost": func(t *testing.T, fs vfs.FS, path string) {
			if err := fs.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"damaged":          func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, 200) },
		"damaged header":   func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, 20) },
		"damaged in index": func(t *testing.T, fs vfs.FS, path string) { flip(t, fs, path, segmentHeaderSize+8+10) },
		"cut": func(t *testing.T, fs vfs.FS, path string) {
			data, err := vfs.ReadFile(fs, path)
			if err == nil {
				err = vfs.WriteFile(fs, path, data[:len(data)-9])
			}
			if err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem()
			j := mustOpenArchived(t, mem)
			pages(t, j, 0, 100)
			if _, err := j.Archive(t.Context(), 80); err != nil {
				t.Fatal(err)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			path := j.outlineOf(2)
			harm(t, mem, path)
			for range 2 {
				j = mustOpenArchived(t, mem)
				if err := errors.Join(readPages(j, 0, 100), j.Verify(0, 100)); err != nil {
					t.Fatal(err)
				}
				if _, err := mem.Stat(path); err != nil {
					t.Errorf("there is no outline again: %v", err)
				}
				if err := j.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// J3, D2: A segment that is missing or damaged in the archive is named, and affects its own records only, in the middle as at the old end.
func TestMissingInTheArchive(t *testing.T) {
	for _, number := range []int{1, 3} {
		for _, how := range []string{"missing", "damaged"} {
			t.Run(fmt.Sprint(how, " ", number), func(t *testing.T) { harmArchived(t, number, how == "missing") })
		}
	}
}

func harmArchived(t *testing.T, number int, missing bool) {
	mem := vfs.NewMem()
	j := mustOpenArchived(t, mem)
	pages(t, j, 0, 150)
	if _, err := j.Archive(t.Context(), 120); err != nil {
		t.Fatal(err)
	}
	bad := j.Segments()[number-1]
	path := j.o.Archive.(*shelf).path(j.segments[number-1].name())
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	want := ErrCorrupt
	if missing {
		want = ErrMissing
		if err := mem.Remove(path); err != nil {
			t.Fatal(err)
		}
	} else {
		flip(t, mem, path, 300)
	}
	for range 2 { // a loss is remembered
		j = mustOpenArchived(t, mem)
		if s := j.Segments()[number-1]; s.FirstPos != bad.FirstPos || s.LastPos != bad.LastPos || s.After != bad.After {
			t.Fatalf("%+v, before %+v", s, bad)
		}
		if err := errors.Join(readPages(j, 0, bad.FirstPos-1), readPages(j, bad.LastPos, 150)); err != nil {
			t.Errorf("other records: %v", err)
		}
		if err := readPages(j, 0, 150); !errors.Is(err, want) {
			t.Errorf("a scan: %v", err)
		}
		if err := j.Verify(0, 150); !errors.Is(err, want) || !strings.Contains(err.Error(), "position") {
			t.Errorf("verify: %v", err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	j = mustOpenArchived(t, mem)
	if err := j.Trim(t.Context(), bad.LastPos); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Verify(bad.LastPos, 150), j.Close()); err != nil {
		t.Error(err)
	}
	j = mustOpenArchived(t, mem)
	if s := j.Segments()[0]; s.FirstPos != bad.LastPos+1 {
		t.Errorf("after a trim it begins with %+v", s)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// What an older try left under a segment's name is replaced, and what the archive has of another journal is left alone.
func TestArchiveOverRemains(t *testing.T) {
	mem := vfs.NewMem()
	j := mustOpenArchived(t, mem)
	pages(t, j, 0, 60)
	if err := vfs.WriteFile(mem, j.o.Archive.(*shelf).path(j.segments[0].name()), []byte("half of it")); err != nil {
		t.Fatal(err)
	}
	other := archiveName{id: [16]byte{1}, number: 1, first: 1, last: 9}
	if err := vfs.WriteFile(mem, j.o.Archive.(*shelf).path(other.String()), []byte("another's")); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Archive(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(readPages(j, 0, 60), j.Close()); err != nil {
		t.Fatal(err)
	}
	j = mustOpenArchived(t, mem)
	if err := errors.Join(readPages(j, 0, 60), j.Trim(t.Context(), 60), j.Close()); err != nil {
		t.Fatal(err)
	}
	if left, _ := mem.List("/a"); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// A start at which nothing is written leaves a segment without records. Neither the first of all nor one between others keeps
// those behind it from the archive, and neither counts as lost.
func TestArchiveOfStartsWithoutWrites(t *testing.T) {
	mem := vfs.NewMem()
	for i := range 8 {
		j := mustOpenArchived(t, mem)
		if i%3 == 2 {
			pages(t, j, i/3*60, 60)
		}
		head, _ := j.Head()
		if _, err := j.Archive(t.Context(), head); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(readPages(j, 0, head), j.Close()); err != nil {
			t.Fatalf("start %d: %v", i, err)
		}
	}
	j := mustOpenArchived(t, mem)
	if n := len(j.Segments()); archivedIn(j) < n-2 { // the last takes records, and the one before it is of the last start
		t.Errorf("%d segments of %d are archived", archivedIn(j), n)
	}
	if err := errors.Join(readPages(j, 0, 120), j.Close()); err != nil {
		t.Fatal(err)
	}
}

// What does not get smaller is archived too.
func TestArchiveDense(t *testing.T) {
	mem := vfs.NewMem()
	j := mustOpenArchived(t, mem)
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 4096)
	for range 100 {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: p}); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := j.Rewrite(t.Context(), 100, nil); err != nil || done.Segments > 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	if done, err := j.Archive(t.Context(), 60); err != nil || done.Segments < 3 {
		t.Fatalf("%+v, %v", done, err)
	}
	if err := errors.Join(j.Verify(0, 100), j.Close()); err != nil {
		t.Fatal(err)
	}
}

// Archiving beside appends, packing, reads and trims: -race watches.
func TestArchiveBesideEverything(t *testing.T) {
	mem := vfs.NewMem()
	j := mustOpenArchived(t, mem)
	var stop atomic.Bool
	ended := make(chan error, 2)
	go func() {
		for !stop.Load() {
			if _, err := j.Archive(context.Background(), j.Durable()); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	go func() {
		for !stop.Load() {
			head := j.Durable()
			first := j.Segments()[0].FirstPos
			if err := readPages(j, max(first-1, head-min(head, 100)), head); err != nil && first == j.Segments()[0].FirstPos {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for n := range 40 {
		pages(t, j, n*50, 50)
		if n%5 == 4 {
			if err := j.Trim(t.Context(), uint64(n*50-200)); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	if err := errors.Join(<-ended, <-ended, j.Verify(j.Segments()[0].FirstPos-1, 2000), j.Close()); err != nil {
		t.Error(err)
	}
}

func FuzzArchiveName(f *testing.F) {
	n := archiveName{id: [16]byte{1, 2, 3}, number: 7, first: 100, last: 200, after: 1e18, time: 1e18 + 5}
	f.Add(n.String())
	f.Add(strings.Replace(n.String(), "-", "_", 1))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if n, ok := parseArchiveName(s); ok && (n.String() != s || n.last < n.first || n.number == 0) {
			t.Errorf("%q was taken for %+v", s, n)
		}
	})
}
