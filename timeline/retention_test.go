package timeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// keptBlocks is how many blocks the disk of a keeping has.
const keptBlocks = 24

// keeping is a timeline of whose history things are taken away, and a model of every moment of it.
type keeping struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	fs   *vfs.MemFS
	w    *world
	line *Timeline
	now  time.Time
	ran  atomic.Int64 // for how long the server has run, in nanoseconds

	mu     sync.Mutex // guards what follows, where others look on
	blocks [keptBlocks]uint64
	number uint64
	past   []moment // after every write, oldest first
	marks  int
	open   []*Snapshot
}

// moment is what the disk held from a write on, as the numbers of its blocks.
type moment struct {
	pos    tidemark.Position
	time   time.Time
	blocks [keptBlocks]uint64
}

// pattern is a block with a number, which nothing makes smaller; 0 is one of zeros.
func pattern(n uint64) []byte {
	p := make([]byte, 4096)
	if n == 0 {
		return p
	}
	rng := rand.New(rand.NewPCG(n, 7))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
	return p
}

func newKeeping(t *testing.T, seed uint64) *keeping {
	k := &keeping{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 5)), fs: vfs.NewMem(), now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	setFree(k.fs, 9<<20)
	k.start()
	var err error
	k.line, err = k.w.set.Create(t.Context(), "kept", []DiskSpec{{Name: "d", Size: keptBlocks * 4096, Chunk: testChunk}}, nil)
	k.must(err)
	k.must(k.line.SetWindow(Window{For: time.Hour}))
	_, at := k.line.Head()
	k.past = append(k.past, moment{time: at})
	return k
}

func (k *keeping) fatalf(format string, args ...any) {
	k.t.Helper()
	k.t.Fatalf("seed %d: %s", k.seed, fmt.Sprintf(format, args...))
}

func (k *keeping) must(err error) {
	k.t.Helper()
	if err != nil {
		k.fatalf("%v", err)
	}
}

func (k *keeping) start() {
	k.t.Helper()
	k.ran.Store(0)
	var err error
	k.w, err = openWorld(k.fs, "/d", func(o *Options) {
		o.SegmentSize, o.FoldAfter, o.HotBytes = 64<<10, 96<<10, 128<<10
		o.Now, o.Elapsed = func() time.Time { return k.now }, func() time.Duration { return time.Duration(k.ran.Load()) }
		o.Notify = func(string, string, string) error { return nil }
	})
	k.must(err)
}

// write writes some blocks, of one number each.
func (k *keeping) write(writes int) {
	k.t.Helper()
	for range writes {
		k.mu.Lock()
		k.now = k.now.Add(time.Duration(1+k.rng.IntN(2000)) * time.Millisecond)
		first := k.rng.IntN(keptBlocks)
		n := 1 + k.rng.IntN(min(3, keptBlocks-first))
		var err error
		if k.rng.IntN(8) == 0 {
			clear(k.blocks[first : first+n])
			err = k.line.Disks()[0].Discard(int64(first)*4096, int64(n)*4096)
		} else {
			var p []byte
			for i := range n {
				k.number++
				k.blocks[first+i] = k.number
				p = append(p, pattern(k.number)...)
			}
			_, err = k.line.Disks()[0].WriteAt(p, int64(first)*4096)
		}
		pos, at := k.line.Head()
		k.past = append(k.past, moment{pos, at, k.blocks})
		k.mu.Unlock()
		k.must(err)
	}
}

// atPosition and atTime are what the disk held.
func (k *keeping) atPosition(pos tidemark.Position) moment {
	return k.past[sort.Search(len(k.past), func(i int) bool { return k.past[i].pos > pos })-1]
}

func (k *keeping) atTime(at time.Time) moment {
	return k.past[max(0, sort.Search(len(k.past), func(i int) bool { return k.past[i].time.After(at) })-1)]
}

// differs says where a copy is not what the disk held at a moment.
func (m *moment) differs(s io.ReaderAt) error {
	got := make([]byte, 4096)
	for i, n := range m.blocks {
		if _, err := s.ReadAt(got, int64(i)*4096); err != nil {
			return err
		}
		if !bytes.Equal(got, pattern(n)) {
			return fmt.Errorf("%w: block %d at %v is not that of write %d", errWrong, i, m.pos, n)
		}
	}
	return nil
}

var errWrong = errors.New("wrong bytes")

// shows opens a position, which must be there and be what the disk held at a moment.
func (k *keeping) shows(what string, pos tidemark.Position, want moment) {
	k.t.Helper()
	s, err := k.line.At("d", pos)
	if err != nil {
		k.fatalf("%s, %v: %v; any point from %v on, covered %+v", what, pos, err, k.line.anyPoint(), k.line.Covered())
	}
	if err := want.differs(s); err != nil {
		k.fatalf("%s, %v: %v", what, pos, err)
	}
	if k.rng.IntN(40) == 0 && len(k.open) < 3 {
		k.open = append(k.open, s)
		return
	}
	k.must(s.Close())
}

// showsTime opens a time, which must be covered.
func (k *keeping) showsTime(what string, at time.Time) {
	k.t.Helper()
	pos, err := k.line.Resolve(tidemark.Point{Time: at})
	if err != nil {
		k.fatalf("%s, %v: %v; covered %+v", what, at, err, k.line.Covered())
	}
	k.shows(what, pos, k.atTime(at))
}

// check opens everything that is advertised: each bookmark, both ends of each stretch of time that is covered and times in it, positions from the first on of
// which any can be had, and steps. What was open before is still what it was.
func (k *keeping) check() {
	k.t.Helper()
	for _, p := range k.line.Points() {
		k.shows("the bookmark "+p.Bookmark, p.Position, k.atPosition(p.Position))
	}
	for _, c := range k.line.Covered() {
		k.showsTime("the begin of what is covered", c.From)
		k.showsTime("the end of what is covered", c.To)
		for range 4 {
			k.showsTime("a time that is covered", c.From.Add(time.Duration(k.rng.Int64N(int64(c.To.Sub(c.From))+1))))
		}
	}
	head, _ := k.line.Head()
	from := k.line.anyPoint()
	k.shows("the first position", from, k.atPosition(from))
	for range 4 {
		pos := from + tidemark.Position(k.rng.Uint64N(uint64(head-from)+1))
		k.shows("a position", pos, k.atPosition(pos))
	}
	steps, err := k.line.Steps("", 0, head)
	k.must(err)
	for range min(3, len(steps.List)) {
		pos := steps.List[k.rng.IntN(len(steps.List))]
		k.shows("a step", pos, k.atPosition(pos))
	}
	for _, s := range k.open {
		was := k.atPosition(s.Position)
		if err := was.differs(s); err != nil {
			k.fatalf("open before: %v", err)
		}
	}
}

// retain takes some of history away, in one of the ways in which that happens, or moves it.
func (k *keeping) retain() (what string) {
	k.t.Helper()
	ctx := k.t.Context()
	switch k.rng.IntN(9) {
	case 0, 1:
		k.must(k.line.foldBacklog(ctx))
		return "a fold, which packs, trims and archives"
	case 2:
		w := Window{For: time.Duration(1+k.rng.IntN(60)) * time.Minute}
		if k.rng.IntN(2) == 0 {
			w.Bytes = 64<<10 + k.rng.Int64N(1<<20)
		}
		if k.rng.IntN(6) == 0 {
			w.For = 0
		}
		k.must(k.line.SetWindow(w))
		k.must(k.line.trim(ctx))
		return fmt.Sprintf("the window %+v", w)
	case 3:
		k.pass(time.Duration(k.rng.IntN(40)) * time.Minute)
		k.must(k.line.trim(ctx))
		return "time, and the window moves on"
	case 4:
		if list := k.line.Points(); len(list) > 0 {
			p := list[k.rng.IntN(len(list))]
			k.must(k.line.Expire(ctx, p.Position))
			return "the end of " + p.Bookmark
		}
		return "nothing"
	case 5:
		k.w.set.freeFullest()
		return "the oldest that can be given"
	case 6:
		if k.rng.IntN(3) == 0 {
			setFree(k.fs, 1<<20-1)
			k.w.set.keepRoom(ctx)
			setFree(k.fs, 9<<20)
			return "all that can be given"
		}
		_, err := k.w.store.Reclaim(ctx, k.w.set.Keep)
		k.must(err)
		return "a reclaim"
	case 7:
		k.branch()
		return "a branch that comes and goes"
	default:
		k.restart()
		return "a restart"
	}
}

// pass lets time pass for the server.
func (k *keeping) pass(d time.Duration) {
	k.ran.Add(int64(d))
	k.now = k.now.Add(d)
}

// branch makes a branch of a position, and removes it again, behind a fold of its own or not.
func (k *keeping) branch() {
	k.t.Helper()
	from, head := k.line.anyPoint(), tidemark.Position(0)
	head, _ = k.line.Head()
	pos := from + tidemark.Position(k.rng.Uint64N(uint64(head-from)+1))
	b, err := k.line.Branch(k.t.Context(), "branch", pos, nil, nil)
	k.must(err)
	if k.rng.IntN(2) == 0 {
		k.must(k.line.foldBacklog(k.t.Context()))
		k.must(k.line.trim(k.t.Context()))
	}
	was := k.atPosition(pos)
	at, _ := b.Head()
	s, err := b.At("d", at)
	k.must(err)
	if err := was.differs(s); err != nil {
		k.fatalf("a branch of %v: %v", pos, err)
	}
	k.must(s.Close())
	k.must(b.Remove(k.t.Context()))
}

func (k *keeping) restart() {
	k.t.Helper()
	k.close()
	k.start()
	k.line = k.w.set.List()[0]
}

func (k *keeping) close() {
	k.t.Helper()
	for _, s := range k.open {
		k.must(s.Close())
	}
	k.open = nil
	k.w.close(k.t)
}

func (k *keeping) bookmark() {
	k.t.Helper()
	k.marks++
	_, err := k.line.Bookmark(Mark{Name: fmt.Sprintf("m%d", k.marks), Consistency: tidemark.CrashConsistent})
	k.must(err)
	k.must(k.line.Fold(k.t.Context()))
}

// TestRetentionKeepsWhatItOffers (J6) takes history away in every way in which it goes: windows that get short or move on, the end of bookmarks, room that
// is made. After each of them everything that is advertised can be opened, and is byte for byte what the disk held.
func TestRetentionKeepsWhatItOffers(t *testing.T) {
	rounds := 12
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 1000
	}
	base := rand.Uint64()
	trimmed := 0
	for round := range rounds {
		k := newKeeping(t, base+uint64(round))
		for range 40 {
			k.write(k.rng.IntN(40))
			if k.rng.IntN(4) == 0 {
				k.bookmark()
			}
			was := k.line.oldestInJournal()
			what := k.retain()
			if k.line.oldestInJournal() > was {
				trimmed++
			}
			func() {
				defer func() {
					if t.Failed() {
						t.Log("behind", what)
					}
				}()
				k.check()
			}()
		}
		k.close()
	}
	if trimmed < 2*rounds {
		t.Errorf("seed %d: in %d rounds history got shorter %d times only", base, rounds, trimmed)
	}
}

// TestRetentionRacesRestores (J5) reads points of the past slowly while history is taken away beneath. Whoever has opened one, taken its image or branched
// from it reads what the disk held, to the end and without an error; who comes too late is told so.
func TestRetentionRacesRestores(t *testing.T) {
	rounds := 6
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 300
	}
	base := rand.Uint64()
	var exact, refused atomic.Int64
	for round := range rounds {
		k := newKeeping(t, base+uint64(round))
		k.write(100)
		var over atomic.Bool
		ended := make(chan error, 3)
		for i := range uint64(cap(ended)) {
			rng := rand.New(rand.NewPCG(k.seed, 100+i))
			go func() {
				var err error
				for !over.Load() && err == nil {
					err = k.restore(rng, &exact, &refused)
				}
				ended <- err
			}()
		}
		for range 60 {
			k.write(k.rng.IntN(30))
			k.take()
		}
		over.Store(true)
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Errorf("seed %d: %v", k.seed, err)
			}
		}
		k.check()
		k.close()
	}
	if exact.Load() < 20*int64(rounds) || refused.Load() == 0 {
		t.Errorf("seed %d: %d restores, and %d came too late", base, exact.Load(), refused.Load())
	}
}

// take takes history away while others read it.
func (k *keeping) take() {
	k.t.Helper()
	ctx := k.t.Context()
	switch k.rng.IntN(6) {
	case 0:
		k.bookmark()
	case 1:
		if list := k.line.Points(); len(list) > 0 {
			k.must(k.line.Expire(ctx, list[k.rng.IntN(len(list))].Position))
		}
	case 2:
		k.must(k.line.SetWindow(Window{For: time.Hour, Bytes: 64<<10 + k.rng.Int64N(512<<10)}))
	case 3:
		k.w.set.freeFullest()
	case 4:
		if _, err := k.w.store.Reclaim(ctx, k.w.set.Keep); err != nil {
			k.fatalf("%v", err)
		}
	}
	k.must(k.line.foldBacklog(ctx))
}

// restore reads a point of the past, one that is probably still there.
func (k *keeping) restore(rng *rand.Rand, exact, refused *atomic.Int64) error {
	k.mu.Lock()
	oldest := sort.Search(len(k.past), func(i int) bool { return k.past[i].pos >= k.line.anyPoint() })
	oldest = max(0, oldest-rng.IntN(20))
	want := k.past[oldest+rng.IntN(max(1, min(100, len(k.past)-oldest)))]
	k.mu.Unlock()
	s, done, err := k.reach(rng.IntN(3), want.pos)
	if tidemark.KindOf(err) == tidemark.NotFound {
		refused.Add(1)
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %v: %w", want.pos, err)
	}
	for range 3 { // long enough for several folds
		if err := want.differs(s); err != nil {
			return errors.Join(err, done())
		}
		time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
	}
	exact.Add(1)
	return done()
}

// reach makes a copy of a position, in one of three ways, which stays until done is called.
func (k *keeping) reach(way int, pos tidemark.Position) (r io.ReaderAt, done func() error, err error) {
	switch way {
	case 0:
		s, err := k.line.At("d", pos)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	case 1:
		x := k.w.store.Begin()
		root, err := k.line.Root(k.t.Context(), x, "d", pos)
		if err != nil {
			x.End()
			return nil, nil, err
		}
		return k.w.store.View(root), func() error { x.End(); return nil }, nil
	}
	b, err := k.line.Branch(k.t.Context(), "branch", pos, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	return b.Disks()[0], func() error { return b.Remove(k.t.Context()) }, nil
}

// The base of the head whose bookmark is expired stays for the any-point window, with the time that it had: a time before it does not name it.
func TestBaseKeepsItsTime(t *testing.T) {
	k := newKeeping(t, 1)
	k.write(3)
	k.bookmark()
	k.write(3)
	between := k.now.Add(time.Millisecond)
	k.write(5)
	k.bookmark()
	points := k.line.Points()
	k.must(k.line.Expire(t.Context(), points[1].Position))
	k.write(5)
	k.must(k.line.Fold(t.Context()))
	k.bookmark()
	k.must(k.line.SetWindow(Window{Bytes: 1}))
	k.must(k.line.Pack(t.Context()))
	k.must(k.line.trim(t.Context()))
	for _, m := range k.line.points {
		if m.Position == points[1].Position && !m.Time.Equal(points[1].Time) {
			t.Errorf("at %v was %v, and it is said to have been %v", m.Position, points[1].Time, m.Time)
		}
	}
	if pos, err := k.line.Resolve(tidemark.Point{Time: between}); err == nil && pos > k.atTime(between).pos {
		t.Errorf("%v, which was at %v, names %v", between, k.atTime(between).pos, pos)
	}
	k.close()
}

// What nobody needs of the journal goes, though little is written behind it, but always some: where the segment goes on, where it was full just then, and
// where the server was started again.
func TestJournalOfWhatIsQuietGoes(t *testing.T) {
	for _, c := range []struct {
		what    string
		busy    int // blocks
		restart bool
	}{
		{"in the last segment", 100, false},
		{"in the one before", 250, false},
		{"of a server that was restarted", 100, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			q := newQuieting(t)
			defer func() { q.w.close(t) }()
			for n := range c.busy {
				q.write(n)
			}
			_, err := q.line.Bookmark(Mark{Name: "busy"})
			q.must(err)
			q.must(q.line.Fold(t.Context()))
			for range 20 { // which fills the segment, if it was full but for little
				q.write(0)
			}
			if c.restart {
				q.w.close(t)
				q.open()
			}
			q.goes(c.busy)
		})
	}
}

// quieting is a timeline that was busy, and now writes a little every minute.
type quieting struct {
	t    *testing.T
	fs   vfs.FS
	ran  atomic.Int64
	w    *world
	line *Timeline
	n    uint64
	held map[int]uint64
}

func newQuieting(t *testing.T) *quieting {
	q := &quieting{t: t, fs: vfs.NewMem(), held: map[int]uint64{}}
	q.open()
	_, err := q.w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: 2 << 20}}, nil)
	q.must(err)
	q.line = q.w.set.List()[0]
	q.must(q.line.SetWindow(Window{For: time.Minute}))
	return q
}

func (q *quieting) must(err error) {
	q.t.Helper()
	if err != nil {
		q.t.Fatal(err)
	}
}

func (q *quieting) open() {
	q.t.Helper()
	var err error
	q.w, err = openWorld(q.fs, "/d", func(o *Options) {
		begun := q.ran.Load()
		o.Elapsed = func() time.Duration { return time.Duration(q.ran.Load() - begun) }
		o.SegmentSize = 1 << 20
	})
	q.must(err)
	if list := q.w.set.List(); len(list) > 0 {
		q.line = list[0]
	}
}

func (q *quieting) write(block int) {
	q.t.Helper()
	q.n++
	_, err := q.line.Disks()[0].WriteAt(pattern(q.n), int64(block)*4096)
	q.must(err)
	q.held[block] = q.n
}

// minute is one, as the keeper has it.
func (q *quieting) minute() {
	q.t.Helper()
	q.ran.Add(int64(time.Minute))
	q.write(0)
	q.must(q.line.Disks()[0].Flush())
	q.must(q.line.trim(q.t.Context()))
	q.must(q.line.shedTail())
}

// goes holds that the journal becomes small, soon and once.
func (q *quieting) goes(blocks int) {
	t, before := q.t, q.line.JournalBytes()
	t.Helper()
	q.line.asked.Store(true) // a fold is asked for, and goes on for so long
	q.ran.Add(int64(time.Second))
	if q.must(q.line.shedTail()); q.line.due() || q.line.JournalBytes() < before {
		t.Errorf("the journal of %d bytes has %d, and what a point of the last minute is made from is among them", before, q.line.JournalBytes())
	}
	for range 3 {
		q.minute()
	}
	if !q.line.due() {
		t.Fatal("nothing was asked for")
	}
	q.must(q.line.foldBacklog(t.Context()))
	q.minute()
	q.minute()
	if n := q.line.JournalBytes(); n > 64<<10 {
		t.Errorf("%d bytes are left of the journal's %d", n, before)
	}
	for n := range blocks {
		got := make([]byte, 4096)
		if _, err := q.line.Disks()[0].ReadAt(got, int64(n)*4096); err != nil || !bytes.Equal(got, pattern(q.held[n])) {
			t.Fatalf("block %d is not what was written: %v", n, err)
		}
	}
	if q.line.due() {
		t.Error("more was asked for")
	}
	shed := len(q.line.journal.Segments())
	for range 5 {
		q.minute()
	}
	if n := len(q.line.journal.Segments()); n > shed || q.line.due() {
		t.Errorf("segments grew from %d to %d, for next to nothing", shed, n)
	}
}

// A bookmark that goes takes nothing of the window with it: where its image is what the oldest points are made from, that stays until the window has passed it.
func TestWindowOutlivesItsBookmark(t *testing.T) {
	q := newQuieting(t)
	defer func() { q.w.close(t) }()
	q.must(q.line.SetWindow(Window{For: time.Hour}))
	mark := func(name string) tidemark.Position {
		pos, err := q.line.Bookmark(Mark{Name: name})
		q.must(err)
		q.must(q.line.Fold(t.Context()))
		return pos
	}
	for n := range 20 {
		q.write(n)
	}
	first := mark("first")
	q.must(q.line.journal.End())
	q.must(q.line.trim(t.Context()))
	q.ran.Add(int64(61 * time.Minute)) // the window begins here
	var between []tidemark.Position
	for n := range 20 {
		q.write(n)
		at, _ := q.line.Head()
		between = append(between, at)
	}
	mark("second")
	q.must(q.line.trim(t.Context()))
	if oldest := q.line.oldestInJournal(); oldest != first {
		t.Fatalf("the journal begins at %v, and the window at %v", oldest, first)
	}

	readable := func() {
		t.Helper()
		for n, pos := range between {
			s, err := q.line.At("d", pos)
			q.must(err)
			got := make([]byte, 4096)
			if _, err := s.ReadAt(got, int64(n)*4096); err != nil || !bytes.Equal(got, pattern(uint64(21+n))) {
				t.Fatalf("%v is not what was written: %v", pos, err)
			}
			q.must(s.Close())
		}
	}
	readable()
	q.must(q.line.Expire(t.Context(), first))
	for range 2 {
		if list := q.line.Points(); len(list) != 1 || list[0].Bookmark != "second" {
			t.Fatalf("points are %v", list)
		}
		if err := q.line.Expire(t.Context(), first); tidemark.KindOf(err) != tidemark.NotFound {
			t.Fatalf("what is gone was expired again: %v", err)
		}
		readable()
		q.w.close(t)
		q.open()
	}
	for range 130 { // two hours
		q.minute()
	}
	q.must(q.line.Fold(t.Context()))
	q.minute()
	if _, err := q.line.At("d", between[0]); err == nil {
		t.Error("the window has passed it")
	}
	keys := 0
	q.must(q.w.set.o.Bucket.List(t.Context(), imageKey(q.line.id, first), func(object.Info) error { keys++; return nil }))
	if keys > 0 || len(q.line.state.Unmarked) > 0 {
		t.Errorf("the image of the bookmark is still there (%d), and %v", keys, q.line.state.Unmarked)
	}
}
