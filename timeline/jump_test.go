package timeline

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/internal/vfs"
)

// jumper is a timeline under a clock that somebody sets, with all that it has ever told.
type jumper struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	fs   *vfs.MemFS
	w    *world
	line *Timeline
	feed *Feed // nil: the disk is written as it is

	now   time.Time
	disk  []byte
	told  []telling
	marks []string
}

// telling is what somebody was told: what the disk was at a time.
type telling struct {
	when time.Time
	data []byte
}

func (j *jumper) open(id string) {
	j.t.Helper()
	w, err := openWorld(j.fs, "/d", func(o *Options) { o.Now = func() time.Time { return j.now } })
	if err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
	j.w = w
	if id == "" {
		j.line, err = w.set.Create(j.t.Context(), "jumps", []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}}, nil)
		if err == nil {
			err = j.line.SetWindow(Window{For: time.Hour})
		}
	} else {
		j.line = w.set.Get(id)
	}
	if err == nil && j.feed != nil {
		j.feed, _, err = j.line.Feed("stream", capture.Sent{})
	}
	if err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
}

// write changes the disk; the source of a fed one has the same clock.
func (j *jumper) write() {
	n := 4096 * (1 + j.rng.Int64N(3))
	off := j.rng.Int64N((diskSize-n)/4096) * 4096
	p := j.disk[off : off+n]
	copy(p, fmt.Sprintf("%d at %v", j.rng.Uint64(), j.now))
	var err error
	if j.feed != nil {
		err = j.feed.Apply([]capture.Change{{Off: off, Len: n, Data: p, Time: j.now.UnixNano()}})
	} else {
		_, err = j.line.Disks()[0].WriteAt(p, off)
	}
	if err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
}

// ask asks what the disk was at a time, and keeps the answer.
func (j *jumper) ask(when time.Time) {
	if data := j.shown(when); data != nil {
		j.told = append(j.told, telling{when, data})
	}
}

// shown is what the disk is shown to have been, nil if that is refused.
func (j *jumper) shown(when time.Time) []byte {
	j.t.Helper()
	pos, err := j.line.Resolve(tidemark.Point{Time: when})
	if kind := tidemark.KindOf(err); kind == tidemark.Invalid || kind == tidemark.NotFound {
		return nil
	}
	if err != nil {
		j.t.Fatalf("seed %d: at %v: %v", j.seed, when, err)
	}
	snap, err := j.line.At("a", pos)
	if err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
	defer snap.Close()
	data := make([]byte, diskSize)
	if _, err := snap.ReadAt(data, 0); err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
	return data
}

func (j *jumper) mark() {
	name := fmt.Sprintf("m%d", len(j.marks))
	var err error
	if j.feed != nil {
		_, err = j.feed.Bookmark(Mark{Name: name, ID: name, Consistency: tidemark.CrashConsistent, Time: j.now.UnixNano()})
	} else {
		_, err = j.line.Bookmark(Mark{Name: name, Consistency: tidemark.CrashConsistent})
	}
	if err != nil {
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
	j.marks = append(j.marks, name)
}

// restart ends the server, well or by a power cut behind what is durable.
func (j *jumper) restart() {
	id := j.line.ID()
	after := j.fs
	if j.rng.IntN(2) == 0 {
		after = vfs.Crash(j.fs, 0, j.rng)
	}
	j.w.close(j.t)
	j.fs = after
	j.open(id)
	if _, err := j.line.Disks()[0].ReadAt(j.disk, 0); err != nil { // what was not durable may be gone
		j.t.Fatalf("seed %d: %v", j.seed, err)
	}
}

// check asks for everything that was told again, and looks at the order of the bookmarks.
func (j *jumper) check() {
	j.t.Helper()
	for _, x := range j.told {
		if got := j.shown(x.when); got == nil || !bytes.Equal(got, x.data) {
			j.t.Fatalf("seed %d: %v names another point than it did", j.seed, x.when)
		}
	}
	points := j.line.Points()
	for i := 1; i < len(points); i++ {
		a, b := points[i-1], points[i]
		if b.Position <= a.Position || !b.Time.After(a.Time) {
			j.t.Fatalf("seed %d: %s is behind %s: %v and %v", j.seed, b.Bookmark, a.Bookmark, b, a)
		}
	}
	if len(points) > len(j.marks) {
		j.t.Fatalf("seed %d: %d points of %d bookmarks", j.seed, len(points), len(j.marks))
	}
}

func (j *jumper) step() {
	switch j.rng.IntN(14) {
	default:
		j.now = j.now.Add(time.Duration(1 + j.rng.IntN(int(time.Second))))
		j.write()
	case 0, 1:
		j.ask(j.now)
	case 2, 3:
		_, newest := j.line.Head()
		j.ask(newest.Add(time.Duration(j.rng.Int64N(int64(10*time.Second))) - 8*time.Second))
	case 4:
		j.mark()
	case 5:
		if err := j.line.Fold(j.t.Context()); err != nil {
			j.t.Fatalf("seed %d: %v", j.seed, err)
		}
	case 6:
		j.restart()
	case 7: // somebody sets the clock
		j.now = j.now.Add(time.Duration(j.rng.Int64N(int64(4*time.Hour))) - 2*time.Hour)
	case 8: // NTP does
		j.now = j.now.Add(time.Duration(j.rng.Int64N(int64(4*time.Second))) - 2*time.Second)
	}
}

// TestClockIsSet (J7, K1) sets the clock back and forward while a timeline is written, with power cuts in between: points keep their
// order, and a time that was told to name a point names that for ever.
func TestClockIsSet(t *testing.T) {
	rounds := 40
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 2000
	}
	base := rand.Uint64()
	asked := 0
	for n := range rounds {
		j := &jumper{t: t, seed: base + uint64(n), fs: vfs.NewMem(), disk: make([]byte, diskSize), now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
		j.rng = rand.New(rand.NewPCG(j.seed, 9))
		if n%2 == 0 {
			j.feed = &Feed{}
		}
		j.open("")
		for range 120 {
			j.step()
		}
		if err := j.line.Fold(t.Context()); err != nil {
			t.Fatalf("seed %d: %v", j.seed, err)
		}
		j.check()
		j.w.close(t)
		asked += len(j.told)
	}
	if asked < 10*rounds {
		t.Errorf("only %d times were shown in %d rounds", asked, rounds)
	}
}

// J7, K1: While the clock is behind the records, nobody is told what was five minutes ago; a time of the day still names a point.
func TestClockBehind(t *testing.T) {
	j := &jumper{t: t, rng: rand.New(rand.NewPCG(1, 1)), fs: vfs.NewMem(), disk: make([]byte, diskSize), now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	j.open("")
	defer func() { j.w.close(t) }()
	j.write()
	at := j.now
	was := bytes.Clone(j.disk)
	j.now = j.now.Add(time.Minute)
	j.write()
	j.now = j.now.Add(-time.Hour)
	if _, err := j.line.Resolve(tidemark.Point{Ago: time.Minute}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("a minute ago, when the clock was set back an hour: %v", err)
	}
	if got := j.shown(at.Add(30 * time.Second)); !bytes.Equal(got, was) {
		t.Error("a time that the clock has before it, and the journal behind it, is shown wrongly")
	}
	if _, err := j.line.Resolve(tidemark.Point{Time: at.Add(2 * time.Hour)}); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("a time that neither has: %v", err)
	}
	j.write() // and goes on
	j.now = j.now.Add(2 * time.Hour)
	if _, err := j.line.Resolve(tidemark.Point{Ago: time.Minute}); err != nil {
		t.Errorf("a minute ago, with the clock ahead again: %v", err)
	}
}

// J7, K1: What a time names outlives a power cut though nothing was written behind it, and a bookmark outlives the journal that it was made in: what
// is written next is later than both, by a clock that was set back.
func TestToldSurvives(t *testing.T) {
	j := &jumper{t: t, rng: rand.New(rand.NewPCG(1, 1)), fs: vfs.NewMem(), disk: make([]byte, diskSize), now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	j.open("")
	id := j.line.ID()
	j.write()
	j.mark()
	if err := j.line.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	j.now = j.now.Add(time.Hour)
	j.ask(j.now)
	again := func(spoil func(fs *vfs.MemFS)) {
		t.Helper()
		after := vfs.Crash(j.fs, 0, j.rng)
		j.w.close(t)
		spoil(after)
		j.fs, j.now = after, j.now.Add(-30*time.Minute)
		j.open(id)
		j.write()
		j.check()
	}
	again(func(*vfs.MemFS) {})
	if len(j.told) != 1 {
		t.Fatal("nothing was told")
	}

	j.mark()
	if err := j.line.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	marked := j.line.Points()[1].Time
	j.told = nil
	again(func(fs *vfs.MemFS) {
		if err := fs.RemoveAll("/d/timelines/" + id); err != nil {
			t.Fatal(err)
		}
	})
	if _, at := j.line.Head(); !at.After(marked) {
		t.Errorf("a write behind the bookmark of %v has the time %v", marked, at)
	}
}

// A time names one point for ever while others write: what they write between the answer and the look at it belongs behind it.
func TestTimesBesideWriters(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	line, err := w.set.Create(t.Context(), "busy", []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.SetWindow(Window{For: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := line.Disks()[0].WriteAt(bytes.Repeat([]byte{1}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var writing sync.WaitGroup
	for n := range 3 {
		writing.Go(func() {
			p := make([]byte, 4096)
			for i := 0; ; i++ {
				select {
				case <-end:
					return
				default:
				}
				copy(p, fmt.Sprint(n, " wrote ", i))
				if _, err := line.Disks()[0].WriteAt(p, int64(n)*4096); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	shown := func(when time.Time) []byte {
		pos, err := line.Resolve(tidemark.Point{Time: when})
		if err != nil {
			t.Fatal(err)
		}
		snap, err := line.At("a", pos)
		if err != nil {
			t.Fatal(err)
		}
		defer snap.Close()
		data := make([]byte, 3*4096)
		if _, err := snap.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		return data
	}
	told := map[time.Time][]byte{}
	for range 300 {
		now := time.Now()
		told[now] = shown(now)
	}
	close(end)
	writing.Wait()
	for when, data := range told {
		if !bytes.Equal(shown(when), data) {
			t.Fatalf("%v names another point than it did", when)
		}
	}
	w.close(t)
}
