package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"tidemark/internal/shared"
	"tidemark/internal/vfs"
)

// model is what a journal must hold.
type model struct {
	records []Record
	synced  int    // of records, how many a Sync promised
	trimmed uint64 // the newest position that may be gone
}

func TestCrashesLoseNothingThatWasSynced(t *testing.T) {
	rounds := 60
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 3000
	}
	for i := range rounds {
		seed := uint64(time.Now().UnixNano()) + uint64(i)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { crashRound(t, seed) }) {
			return
		}
	}
}

func crashRound(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	fs := vfs.NewMem()
	if err := vfs.MkdirAll(fs, "/j"); err != nil {
		t.Fatal(err)
	}
	var m model
	for range 5 {
		j, err := openArchived(fs)
		if err != nil {
			t.Fatalf("seed %d: open: %v", seed, err)
		}
		m.check(t, j, seed)
		for range 1 + rng.IntN(200) {
			m.step(t, j, rng)
		}
		if rng.IntN(4) == 0 {
			if err := j.Close(); err != nil {
				t.Fatalf("seed %d: close: %v", seed, err)
			}
			m.synced = len(m.records)
		}
		fs = vfs.Crash(fs, []int{0, 50, 100}[rng.IntN(3)], rng)
	}
}

func (m *model) step(t *testing.T, j *Journal, rng *rand.Rand) {
	if rng.IntN(10) == 0 {
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
		m.synced = len(m.records)
		return
	}
	if rng.IntN(40) == 0 && m.synced > 0 {
		m.trimmed = max(m.trimmed, uint64(rng.IntN(m.synced)))
		if err := j.Trim(t.Context(), m.trimmed); err != nil {
			t.Fatal(err)
		}
		return
	}
	if rng.IntN(40) == 0 && m.synced > 0 {
		if _, err := j.Archive(context.Background(), uint64(rng.IntN(m.synced))); err != nil {
			t.Fatal(err)
		}
		return
	}
	if rng.IntN(30) == 0 {
		if _, err := j.Rewrite(context.Background(), uint64(m.synced), nil); err != nil {
			t.Fatal(err)
		}
		return
	}
	if rng.IntN(2) == 0 {
		m.append(t, j, rng)
	} else {
		m.appendAll(t, j, rng)
	}
}

// record makes a record, whose payload may lie in memory that others write to.
func (m *model) record(rng *rand.Rand) Record {
	r := Record{Kind: Write, Disk: uint16(rng.IntN(3)), Off: rng.Int64N(1 << 40), Len: rng.Int64N(9000), Payload: make([]byte, rng.IntN(9000))}
	if rng.IntN(30) == 0 {
		r.Payload = make([]byte, directAfter+rng.IntN(9000))
	}
	if rng.IntN(8) == 0 {
		r.Kind, r.Payload = Zero, nil
	}
	mask := uint32(1)
	if rng.IntN(4) == 0 {
		mask = 0xff
	}
	for i := range r.Payload {
		r.Payload[i] = byte(rng.Uint32() & mask)
	}
	if rng.IntN(2) == 0 {
		r.Shared, r.Sum = true, shared.Sum(r.Payload)
	}
	return r
}

func (m *model) append(t *testing.T, j *Journal, rng *rand.Rand) {
	r := m.record(rng)
	p, err := j.Append(&r)
	if err != nil {
		t.Fatal(err)
	}
	m.appended(t, r, p)
}

// appendAll appends some records together. If one of them is not what it should be, those before it are appended, and no more.
func (m *model) appendAll(t *testing.T, j *Journal, rng *rand.Rand) {
	list := make([]Record, 1+rng.IntN(6))
	for i := range list {
		list[i] = m.record(rng)
	}
	good := len(list)
	if i := rng.IntN(len(list)); rng.IntN(4) == 0 && len(list[i].Payload) > 0 {
		list[i].Shared, list[i].Sum = true, shared.Sum(list[i].Payload)
		list[i].Payload[rng.IntN(len(list[i].Payload))] ^= 1
		good = i
	}
	places := make([]Place, len(list))
	n, err := j.AppendAll(list, places)
	if n != good || (err != nil) != (good < len(list)) || err != nil && !errors.Is(err, ErrChanged) {
		t.Fatalf("%d of %d records were appended, and not %d: %v", n, len(list), good, err)
	}
	for i := range n {
		m.appended(t, list[i], places[i])
	}
}

// appended notes a record, and reads it.
func (m *model) appended(t *testing.T, r Record, p Place) {
	t.Helper()
	if r.Pos != uint64(len(m.records)+1) {
		t.Fatalf("position %d behind %d records", r.Pos, len(m.records))
	}
	got := make([]byte, len(r.Payload))
	if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, r.Payload) {
		t.Fatalf("position %d reads back wrong: %v", r.Pos, err)
	}
	m.records = append(m.records, r)
}

// check compares the journal with the model, and lets the model forget what was lost rightly.
func (m *model) check(t *testing.T, j *Journal, seed uint64) {
	head, _ := j.Head()
	if head < uint64(m.synced) || head > uint64(len(m.records)) {
		t.Fatalf("seed %d: head is %d, %d records were synced of %d", seed, head, m.synced, len(m.records))
	}
	m.records = m.records[:head]
	m.synced = len(m.records)
	first := min(j.Segments()[0].FirstPos-1, head)
	if first > m.trimmed {
		t.Fatalf("seed %d: positions up to %d are gone, and up to %d were trimmed", seed, first, m.trimmed)
	}
	i := int(first)
	err := j.Scan(first, head, func(r *Record, p Place) error {
		w := m.records[i]
		i++
		got := make([]byte, len(w.Payload))
		if err := p.Segment.ReadAt(got, p.Off); err != nil {
			return err
		}
		if r.Pos != w.Pos || r.Time != w.Time || r.Kind != w.Kind || r.Off != w.Off || r.Len != w.Len || !bytes.Equal(got, w.Payload) {
			return fmt.Errorf("position %d: got %+v", w.Pos, *r)
		}
		return nil
	})
	if err != nil || i != len(m.records) {
		t.Fatalf("seed %d: scan saw %d of %d records: %v", seed, i, len(m.records), err)
	}
	if err := j.Verify(first, head); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

func TestAppendRefusesWhatRecoveryWould(t *testing.T) {
	fs := vfs.NewMem()
	if err := vfs.MkdirAll(fs, "/j"); err != nil {
		t.Fatal(err)
	}
	j, err := Open(fs, "/j", Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Record{{}, {Kind: 9}, {Kind: Zero, Off: -1}, {Kind: Zero, Len: -1}, {Kind: Write, Payload: make([]byte, MaxPayload+1)}} {
		if _, err := j.Append(&r); !errors.Is(err, ErrRecord) {
			t.Errorf("kind %d, offset %d, length %d: %v", r.Kind, r.Off, r.Len, err)
		}
	}
	if pos, _ := j.Head(); pos != 0 {
		t.Errorf("head is %d after refusals", pos)
	}
}

func FuzzParsers(f *testing.F) {
	h := segmentHeader{number: 1, firstPos: 1}
	f.Add(h.encode())
	f.Add(footer([]entry{{time: 1, kind: Write, len: 4096, size: 4096}}, 0, segmentHeaderSize+footprint(4096)))
	b := make([]byte, headerSize)
	r := header{Record: Record{Pos: 1, Time: 1, Kind: Zero, Len: 5}}
	r.put(b, 7)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		parseSegmentHeader(b)
		parseRecord(b, 7)
		if len(b) >= trailerSize {
			if tr, ok := parseTrailer(b[len(b)-trailerSize:], int64(len(b))+segmentHeaderSize); ok && tr.length <= int64(len(b)) {
				parseIndex(b[:tr.length], tr, 0)
			}
		}
		parseIndex(b, trailer{records: 3, end: 500, sum: crc32.Checksum(b, castagnoli)}, 0)
	})
}

func TestAFlippedByteIsNeverSilent(t *testing.T) {
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("packed=%v", packed), func(t *testing.T) { flipBytes(t, packed) })
	}
}

func flipBytes(t *testing.T, packed bool) {
	fs := vfs.NewMem()
	if err := vfs.MkdirAll(fs, "/j"); err != nil {
		t.Fatal(err)
	}
	o := Options{SegmentSize: 8 << 10, Logger: quiet}
	j, err := Open(fs, "/j", o)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := j.Append(&Record{Kind: Write, Len: 1000, Payload: bytes.Repeat([]byte{byte(i + 1)}, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if packed {
		if done, err := j.Rewrite(context.Background(), 20, nil); err != nil || done.Segments < 2 {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := fs.List("/j")
	for _, name := range names {
		data, err := vfs.ReadFile(fs, "/j/"+name)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); at += max(1, min(61, len(data)/50)) {
			c := vfs.Crash(fs, 100, rand.New(rand.NewPCG(1, 1)))
			f, err := vfs.OpenReadWrite(c, "/j/"+name)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt([]byte{data[at] ^ 0x40}, int64(at))
			f.Close()
			if err := reread(c, o); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s at %d: %v", name, at, err)
			}
		}
	}
}

// reread opens and verifies; it fails if anything is read that was not written, or missing in silence.
func reread(fs vfs.FS, o Options) error {
	j, err := Open(fs, "/j", o)
	if err != nil {
		return err
	}
	defer j.Close()
	head, _ := j.Head()
	if err := j.Verify(0, head); err != nil {
		return err
	}
	if head != 20 {
		return fmt.Errorf("%d of 20 records, in silence", head)
	}
	return nil
}

func TestClockSetBack(t *testing.T) { // K1
	fs := vfs.NewMem()
	vfs.MkdirAll(fs, "/j")
	now := time.Unix(1e9, 0)
	j, err := Open(fs, "/j", Options{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	var last int64
	for i := range 100 {
		now = now.AddDate([]int{10, -10, 0}[i%3], 0, 0)
		r := Record{Kind: Zero}
		if _, err := j.Append(&r); err != nil {
			t.Fatal(err)
		}
		if r.Time <= last {
			t.Fatalf("record %d at %d is not after %d", r.Pos, r.Time, last)
		}
		last = r.Time
		if got, err := j.At(r.Time); err != nil || got != r.Pos {
			t.Fatalf("At(%d) = %d, want %d: %v", r.Time, got, r.Pos, err)
		}
	}
}

func TestTrimKeepsWhatIsHeld(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(vfs.OS, dir, Options{SegmentSize: 64 << 10, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	r := Record{Kind: Write, Len: 4096, Payload: bytes.Repeat([]byte("x"), 4096)}
	p, err := j.Append(&r)
	if err != nil {
		t.Fatal(err)
	}
	p.Segment.Acquire()
	for range 100 {
		if _, err := j.Append(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := j.Trim(t.Context(), 50); err != nil {
		t.Fatal(err)
	}
	if s := j.Segments(); s[0].FirstPos == 1 {
		t.Fatal("nothing was trimmed")
	}
	got := make([]byte, 4096)
	if err := p.Segment.ReadAt(got, p.Off); err != nil || got[0] != 'x' {
		t.Fatalf("a held segment cannot be read: %v", err)
	}
	p.Segment.Release()
	if err := j.Scan(0, 60, func(*Record, Place) error { return nil }); err == nil {
		t.Fatal("a scan of trimmed records succeeded")
	}
}

func BenchmarkDurable64Writers(b *testing.B) {
	j, err := Open(vfs.OS, b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	var wg sync.WaitGroup
	for w := range 64 {
		n := b.N / 64
		if w < b.N%64 {
			n++
		}
		wg.Go(func() {
			p := make([]byte, 4096)
			for range n {
				if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: p}); err != nil {
					b.Error(err)
				}
				if err := j.Sync(); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.SetBytes(4096)
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{4 << 10, 1 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			j, err := Open(vfs.OS, b.TempDir(), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer j.Close()
			p := make([]byte, n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := j.Append(&Record{Kind: Write, Len: int64(n), Payload: p}); err != nil {
					b.Fatal(err)
				}
				if pos, _ := j.Head(); pos%64000 == 0 {
					j.Trim(b.Context(), pos-1)
				}
			}
		})
	}
}

// A payload in shared memory that changes while it is appended, again and again: what was appended has the checksum of
// what lies in the journal, and is what it should be.
func TestPayloadChangesUnderAppend(t *testing.T) {
	j, err := Open(vfs.NewMem(), "/", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	m, err := shared.New(64 << 10)
	if err != nil {
		t.Skip(err)
	}
	defer m.Release()
	want := bytes.Repeat([]byte("right"), 8192)[:32<<10]
	end := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			if i%2 == 0 {
				copy(m.Bytes(), want)
			} else {
				m.Bytes()[i%len(want)]++
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	taken, refused := 0, 0
	for begin := time.Now(); (taken < 100 || refused < 100) && time.Since(begin) < 20*time.Second; {
		p, err := j.Append(&Record{Kind: Write, Len: int64(len(want)), Payload: m.Bytes()[:len(want)], Shared: true, Sum: shared.Sum(want)})
		if errors.Is(err, ErrChanged) {
			refused++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		taken++
		got := make([]byte, len(want))
		if err := p.Segment.ReadAt(got, p.Off); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("something else was appended: %v", err)
		}
	}
	close(end)
	writer.Wait()
	if taken == 0 || refused == 0 {
		t.Errorf("%d were taken, and %d refused", taken, refused)
	}
	head, _ := j.Head()
	if err := j.Verify(0, head); err != nil || head != uint64(taken) {
		t.Errorf("%d were taken, head %d: %v", taken, head, err)
	}
}

// What is on either side of a position in the segment that holds both, and the end of the last segment beside others who append.
func TestStraddledAndEnd(t *testing.T) {
	mem := vfs.NewMem()
	if err := vfs.MkdirAll(mem, "/j"); err != nil {
		t.Fatal(err)
	}
	j := openSmall(t, mem, "/j")
	defer j.Close()
	pages(t, j, 0, 10)
	straddled := func(pos uint64, before, behind int64) {
		t.Helper()
		a, b, err := j.Straddled(pos)
		if err != nil || a/4096 != before || b/4096 != behind {
			t.Errorf("%d bytes are before the end of %d and %d behind it, of pages %d and %d: %v", a, pos, b, before, behind, err)
		}
	}
	straddled(4, 4, 6)
	straddled(0, 0, 0)
	straddled(10, 0, 0)
	if err := j.End(); err != nil {
		t.Fatal(err)
	}
	pages(t, j, 10, 5)
	straddled(4, 4, 11)
	straddled(10, 0, 0)
	straddled(12, 2, 3)
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := j.Append(&Record{Kind: Write, Len: 4096, Payload: page(1)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		segments := j.Segments()
		last := segments[len(segments)-1]
		if err := j.End(); err != nil {
			t.Error(err)
		}
		if segments = j.Segments(); segments[len(segments)-1].Number == last.Number && last.LastPos >= last.FirstPos {
			t.Errorf("segment %d was not ended", last.Number)
		}
	}
	close(stop)
	writers.Wait()
	if head, _ := j.Head(); j.Sync() != nil || j.Verify(0, head) != nil {
		t.Error("records are not what they were")
	}
}
