package timeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark"
	"tidemark/capture"
	"tidemark/internal/shared"
	"tidemark/internal/vfs"
)

// source is the other end of a feed: it has sent changes, in order, and knows what the disks
// hold after each.
type source struct {
	t       *testing.T
	rng     *rand.Rand
	changes []capture.Change
	durable int                       // of these, acknowledged as durable
	at      map[tidemark.Position]int // how many changes a position is behind
	lost    bool                      // a gap is open, as was acknowledged
	unsure  bool                      // the picture was taken while that changed
	memory  *shared.Memory            // that data of changes lie in
}

// share lets some changes have their data in shared memory.
func (s *source) share(list []capture.Change) []capture.Change {
	if s.memory == nil {
		s.memory = newShared(s.t, 1<<20)
	}
	list = slices.Clone(list)
	at := 0
	for i := range list {
		if list[i].Data != nil && s.rng.IntN(2) == 0 {
			at += place(&list[i], s.memory, at)
		}
	}
	return list
}

func newShared(t *testing.T, size int) *shared.Memory {
	t.Helper()
	m, err := shared.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Release() })
	return m
}

// place moves the data of a change to shared memory, and returns how long they are.
func place(c *capture.Change, m *shared.Memory, at int) int {
	n := copy(m.Bytes()[at:], c.Data)
	c.Data, c.Memory, c.At, c.Sum = m.Bytes()[at:at+n], m, int64(at), shared.Sum(c.Data)
	return n
}

// Data in shared memory that change before they are taken, whatever becomes of them: what came before them is applied, they are not, and
// the stream can be resumed with what they were.
func TestChangedDataAreRefused(t *testing.T) {
	for _, c := range []struct {
		what   string
		change capture.Change
		bulk   bool
	}{
		{"whole blocks", capture.Change{Off: 8192, Len: 8192}, false},
		{"a piece of a block", capture.Change{Off: 8192 + 512, Len: 1024}, false},
		{"chunks that go to the pool", capture.Change{Off: 0, Len: 1 << 20}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := open(t, vfs.NewMem(), "/d")
			defer w.close(t)
			line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "disk", Size: 4 << 20, Chunk: testChunk}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			line.SetBulk(c.bulk)
			m := newShared(t, 2<<20)
			list := []capture.Change{{Off: 2 << 20, Len: 4096, Data: bytes.Repeat([]byte("before"), 4096)[:4096]}, c.change, {Off: 3 << 20, Len: 4096, Data: bytes.Repeat([]byte("behind"), 4096)[:4096]}}
			list[1].Data = bytes.Repeat([]byte("data"), 1<<18)[:c.change.Len]
			at := 0
			for i := range list {
				at += place(&list[i], m, at)
			}
			list[1].Data[len(list[1].Data)/2] ^= 4
			f, _, err := line.Feed("s", capture.Sent{})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Apply(list); !errors.Is(err, capture.ErrChanged) || f.Applied() != 1 {
				t.Fatalf("%d were applied: %v", f.Applied(), err)
			}
			if err := f.Apply(list[2:]); err == nil {
				t.Error("it takes more after an error")
			}
			if f, _, err = line.Feed("s", capture.Sent{}); err != nil {
				t.Fatal(err)
			}
			list[1].Data[len(list[1].Data)/2] ^= 4
			if err := f.Apply(list[1:]); err != nil || f.Applied() != 3 {
				t.Fatalf("%d were applied: %v", f.Applied(), err)
			}
			for i := range list {
				got := make([]byte, list[i].Len)
				if _, err := line.Disks()[0].ReadAt(got, list[i].Off); err != nil || !bytes.Equal(got, list[i].Data) {
					t.Errorf("change %d is not there: %v", i, err)
				}
			}
		})
	}
}

// next makes a change that differs from all before it.
func (s *source) next() capture.Change {
	c := capture.Change{Disk: uint16(s.rng.IntN(2)), Time: int64(len(s.changes) + 1)}
	var n int64
	switch s.rng.IntN(5) {
	case 0: // a piece of a block
		c.Off = s.rng.Int64N(diskSize/512) * 512
		n = min(512*(1+s.rng.Int64N(7)), 4096-c.Off%4096)
	case 1: // whole chunks, many
		c.Off = s.rng.Int64N(diskSize/testChunk) * testChunk
		n = 64 << 10
	default:
		c.Off = s.rng.Int64N(diskSize/4096) * 4096
		n = 4096 * (1 + s.rng.Int64N(4))
	}
	c.Len = min(n, diskSize-c.Off)
	if s.rng.IntN(6) > 0 {
		c.Data = make([]byte, c.Len)
		if s.rng.IntN(10) > 0 {
			copy(c.Data, fmt.Sprintf("change %d ", len(s.changes)))
			for i := 64; i < len(c.Data); i += 64 {
				c.Data[i] = byte(s.rng.Uint32())
			}
		}
	}
	s.changes = append(s.changes, c)
	return c
}

// content is what the disks hold after the first n changes.
func (s *source) content(n int) (data [2][]byte) {
	for i := range data {
		data[i] = make([]byte, diskSize)
	}
	for _, c := range s.changes[:n] {
		p := data[c.Disk][c.Off : c.Off+c.Len]
		clear(p)
		copy(p, c.Data)
	}
	return data
}

// TestFeedResumes (J3, R4) sends a stream of changes and cuts the power at random operations on
// the file system. What was acknowledged is there after the restart, nothing is half
// there, and the timeline knows to the change where to go on.
func TestFeedResumes(t *testing.T) {
	rounds := 60
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 5000
	}
	base := rand.Uint64()
	for n := range rounds {
		if t.Failed() {
			return
		}
		feedRound(t, base+uint64(n))
	}
}

func feedRound(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	s := &source{t: t, rng: rng, at: map[tidemark.Position]int{}}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("seed %d: %s", seed, fmt.Sprintf(format, args...))
	}
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}, {Name: "b", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		fail("%v", err)
	}
	id := line.ID()
	if rng.IntN(2) == 0 {
		if err := line.SetWindow(Window{For: time.Hour}); err != nil {
			fail("%v", err)
		}
	}
	if _, known, err := line.Feed("stream", capture.Sent{}); err != nil || !known {
		fail("first feed: known %v, %v", known, err)
	}
	w.close(t)
	for range 4 {
		cam := &camera{fs: mem, rng: rng, left: 20 + rng.IntN(400)}
		w := open(t, errorfs.Wrap(mem, cam), "/d")
		line := w.set.Get(id)
		feed, known, err := line.Feed("stream", capture.Sent{})
		if err != nil || !known {
			fail("feed: known %v, %v", known, err)
		}
		s.resume(feed, fail)
		s.check(line, fail)
		for cam.picture() == nil && len(s.changes) < 400 {
			s.step(line, feed, func() bool { return cam.picture() == nil }, fail)
		}
		w.close(t)
		if shot := cam.picture(); shot != nil {
			mem = shot
		}
	}
}

// resume compares how far the timeline says it has come with what was acknowledged, and
// forgets what came after it.
func (s *source) resume(f *Feed, fail func(string, ...any)) {
	has := int(f.Applied())
	if has < s.durable || has > len(s.changes) {
		fail("%d changes were sent and %d durable, and it says that it has %d", len(s.changes), s.durable, has)
	}
	s.changes, s.durable = s.changes[:has], has
	for pos, n := range s.at {
		if n > has {
			delete(s.at, pos)
		}
	}
	if f.Lost() != s.lost && !s.unsure {
		fail("a gap is open: %v, and it says %v", s.lost, f.Lost())
	}
	s.lost, s.unsure = f.Lost(), false
}

// step does something; whole says whether the picture was not taken meanwhile.
func (s *source) step(line *Timeline, f *Feed, whole func() bool, fail func(string, ...any)) {
	switch s.rng.IntN(12) {
	case 0:
		n, err := f.Sync()
		if err != nil || int(n) != len(s.changes) {
			fail("sync of %d: %d, %v", len(s.changes), n, err)
		}
		if whole() {
			s.durable = int(n)
		}
	case 1:
		if err := line.Fold(context.Background()); err != nil {
			fail("fold: %v", err)
		}
	case 2:
		m := Mark{Name: fmt.Sprintf("mark-%d-%d", len(s.changes), s.rng.Uint32()), Consistency: tidemark.CrashConsistent}
		m.ID = m.Name
		pos, err := f.Bookmark(m)
		if (err != nil) != f.Lost() {
			fail("bookmark: %v", err)
		}
		if again, twice := f.Bookmark(m); err == nil && (twice != nil || again != pos) {
			fail("the same mark again: %v and not %v, %v", again, pos, twice)
		}
		if err == nil && whole() {
			s.durable = len(s.changes)
		}
	case 3:
		err := error(nil)
		if f.Lost() {
			err = f.Whole()
		} else {
			err = f.Lose(0, "a test")
		}
		if err != nil || f.Lost() == s.lost {
			fail("gap: %v", err)
		}
		s.lost, s.unsure = f.Lost(), !whole()
	default:
		var list []capture.Change
		for range 1 + s.rng.IntN(4) {
			list = append(list, s.next())
		}
		if err := f.Apply(s.share(list)); err != nil {
			fail("apply: %v", err)
		}
		pos, _ := line.Head()
		s.at[pos] = len(s.changes)
	}
}

// check compares the head, and some points, with what they must be.
func (s *source) check(line *Timeline, fail func(string, ...any)) {
	now := s.content(len(s.changes))
	for i, d := range line.Disks() {
		got := make([]byte, diskSize)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, now[i]) {
			fail("disk %d differs after %d changes: %v", i, len(s.changes), err)
		}
	}
	left := 6
	for pos, n := range s.at {
		if left--; left < 0 {
			return
		}
		snap, err := line.At("a", pos)
		inGap := false
		for _, g := range line.Gaps() {
			inGap = inGap || g.within(pos)
		}
		switch {
		case inGap:
			if tidemark.KindOf(err) != tidemark.Unavailable {
				fail("%v lies in a gap, and: %v", pos, err)
			}
			continue
		case tidemark.KindOf(err) == tidemark.NotFound:
			continue // folded, and there is no window
		case err != nil:
			fail("at %v: %v", pos, err)
		}
		got := make([]byte, diskSize)
		if _, err := snap.ReadAt(got, 0); err != nil || !bytes.Equal(got, s.content(n)[0]) {
			fail("%v differs from the disk after %d changes: %v", pos, n, err)
		}
		if err := snap.Close(); err != nil {
			fail("%v", err)
		}
	}
}

func TestFeedIsTheOnlyWriter(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "a", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := line.Disks()[0]
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	first, known, err := line.Feed("one", capture.Sent{})
	if err != nil || !known {
		t.Fatal(known, err)
	}
	if _, err := d.WriteAt(make([]byte, 4096), 0); !errors.Is(err, ErrFed) {
		t.Errorf("write beside the feed: %v", err)
	}
	if err := d.Discard(0, 4096); !errors.Is(err, ErrFed) {
		t.Errorf("discard beside the feed: %v", err)
	}
	if err := first.Apply([]capture.Change{{Off: 0, Len: 4096, Data: bytes.Repeat([]byte{1}, 4096)}}); err != nil {
		t.Fatal(err)
	}
	if err := first.Apply([]capture.Change{{Disk: 1, Off: 0, Len: 4096}}); !errors.Is(err, capture.ErrChange) {
		t.Errorf("a change of a disk that is not there: %v", err)
	}
	second, known, err := line.Feed("two", capture.Sent{ID: "one"})
	if err != nil || !known || second.Applied() != 0 {
		t.Fatal(known, err, second.Applied())
	}
	if err := first.Apply([]capture.Change{{Off: 0, Len: 4096}}); err == nil {
		t.Error("a feed that was replaced takes changes")
	}
	if _, known, err = line.Feed("four", capture.Sent{ID: "three"}); err != nil || known {
		t.Errorf("a source that missed a stream is taken for known: %v", err)
	}
	if err := line.EndFeed(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("after the feed: %v", err)
	}
}

// J1, J7: A time within a gap names no point, one outside does; the time of a change is its source's.
func TestGapsHaveTimes(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	defer w.close(t)
	w.set.o.Now = func() time.Time { return now }
	line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "a", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := line.Feed("one", capture.Sent{})
	if err != nil {
		t.Fatal(err)
	}
	write := func(ago time.Duration) tidemark.Position {
		t.Helper()
		if err := f.Apply([]capture.Change{{Off: 0, Len: 4096, Data: bytes.Repeat([]byte{7}, 4096), Time: now.Add(-ago).UnixNano()}}); err != nil {
			t.Fatal(err)
		}
		pos, at := line.Head()
		if !at.Equal(now.Add(-ago)) {
			t.Errorf("a change of %v is noted as of %v", now.Add(-ago), at)
		}
		return pos
	}
	before := write(10 * time.Second)
	if err := f.Lose(now.Add(-8*time.Second).UnixNano(), "the queue was full"); err != nil {
		t.Fatal(err)
	}
	write(5 * time.Second)
	if _, err := f.Bookmark(Mark{Name: "m", Consistency: tidemark.CrashConsistent}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("bookmark in a gap: %v", err)
	}
	if _, err := line.At("a", before+1); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("a point in a gap that lasts: %v", err)
	}
	if err := f.Whole(); err != nil {
		t.Fatal(err)
	}
	end := line.Gaps()[0]
	now = now.Add(time.Minute)
	after := write(time.Second)
	for _, c := range []struct {
		when time.Time
		pos  tidemark.Position // 0: none
	}{
		{end.Start.Add(-time.Second), before}, {end.Start, before},
		{end.Start.Add(time.Millisecond), 0}, {end.Start.Add(2 * time.Second), 0},
		{end.End, end.To}, {end.End.Add(time.Second), end.To}, {now, after},
	} {
		pos, err := line.Resolve(tidemark.Point{Time: c.when})
		if c.pos == 0 && tidemark.KindOf(err) != tidemark.Unavailable || c.pos != 0 && (err != nil || pos != c.pos) {
			t.Errorf("%v names %v, not %v: %v", c.when, pos, c.pos, err)
		}
	}
}

// J7: A mark has the time at which the disks were so, not that at which it came.
func TestFeedMarkOfThePast(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "a", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := line.Feed("s", capture.Sent{})
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-time.Second)
	if err := f.Apply([]capture.Change{{Len: 4096, Data: make([]byte, 4096), Time: then.UnixNano()}}); err != nil {
		t.Fatal(err)
	}
	pos, err := f.Bookmark(Mark{Name: "m", ID: "1", Consistency: tidemark.CrashConsistent, Time: then.UnixNano() + 5})
	if err != nil {
		t.Fatal(err)
	}
	if err := line.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	points := line.Points()
	if len(points) != 1 || points[0].Position != pos || points[0].Time.UnixNano() != then.UnixNano()+5 {
		t.Errorf("%+v, and the mark was at %v", points, then.UnixNano()+5)
	}
}

// Of what lies between two points that were taken apart no point can be had, now and after a restart; of all else it can, also while
// the disks do not follow their source.
func TestVoid(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 3))
	t.Logf("seed %d", seed)
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, err := w.set.Create(t.Context(), "fed", []DiskSpec{{Name: "a", Size: diskSize}, {Name: "b", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := line.Feed("one", capture.Sent{})
	if err != nil {
		t.Fatal(err)
	}
	s := &source{t: t, rng: rng}
	var voids [][2]tidemark.Position
	var from tidemark.Position
	for range 6 {
		for range 1 + rng.IntN(8) {
			if err := f.Apply([]capture.Change{s.next()}); err != nil {
				t.Fatal(err)
			}
		}
		pos, _ := line.Head()
		if from != 0 && rng.IntN(2) == 0 {
			voids = append(voids, [2]tidemark.Position{from, pos})
		}
		from = pos
	}
	rng.Shuffle(len(voids), func(i, j int) { voids[i], voids[j] = voids[j], voids[i] })
	if err := f.Lose(0, "the queue was full"); err != nil {
		t.Fatal(err)
	}
	for _, v := range voids {
		if err := line.Void(v[0], v[1], "it was taken back"); err != nil {
			t.Fatal(err)
		}
	}
	head := from
	for _, when := range []string{"now", "after a restart"} {
		if !line.Lacks() {
			t.Errorf("%s: the gap that lasts is forgotten", when)
		}
		for pos := tidemark.Position(1); pos <= head; pos++ {
			inside := false
			for _, v := range voids {
				inside = inside || pos > v[0] && pos < v[1]
			}
			snap, err := line.At("a", pos)
			if inside && tidemark.KindOf(err) != tidemark.Unavailable || !inside && err != nil {
				t.Errorf("%s: %v, inside %v: %v", when, pos, inside, err)
			}
			if err != nil {
				continue
			}
			got := make([]byte, diskSize)
			if _, err := snap.ReadAt(got, 0); err != nil || !bytes.Equal(got, s.content(int(pos))[0]) {
				t.Errorf("%s: %v holds something else (%v)", when, pos, err)
			}
			snap.Close()
		}
		w.close(t)
		w = open(t, mem, "/d")
		line = w.set.Get(line.ID())
	}
	w.close(t)
}

// Gaps that overlap, as where what was sent again ended in the middle of a restore, leave no step that cannot be had.
func TestVoidsOverlap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 4))
	t.Logf("seed %d", seed)
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	const head = 60
	for i := range 20 {
		line, err := w.set.Create(t.Context(), fmt.Sprint("fed", i), []DiskSpec{{Name: "a", Size: diskSize}, {Name: "b", Size: diskSize}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, _, err := line.Feed("one", capture.Sent{})
		if err != nil {
			t.Fatal(err)
		}
		s := &source{t: t, rng: rng}
		for range head {
			if err := f.Apply([]capture.Change{s.next()}); err != nil {
				t.Fatal(err)
			}
		}
		ends, inside := map[tidemark.Position]bool{}, map[tidemark.Position]bool{}
		for range 4 {
			from := 1 + tidemark.Position(rng.IntN(head-2))
			to := from + 1 + tidemark.Position(rng.IntN(head-int(from)))
			if err := line.Void(from, to, "it was taken back"); err != nil {
				t.Fatal(err)
			}
			ends[to] = true
			for pos := from + 1; pos < to; pos++ {
				inside[pos] = true
			}
		}
		var want []tidemark.Position
		for pos := tidemark.Position(1); pos <= head; pos++ {
			snap, err := line.At("a", pos)
			if (err == nil) == inside[pos] {
				t.Errorf("%v, inside %v: %v", pos, inside[pos], err)
			}
			if err == nil {
				snap.Close()
			}
			if !inside[pos] && (ends[pos] || s.changes[pos-1].Disk == 0) {
				want = append(want, pos)
			}
		}
		steps, err := line.Steps("a", 0, head)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(steps.List, want) {
			t.Errorf("steps are %v, and not %v", steps.List, want)
		}
	}
}
