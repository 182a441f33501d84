package timeline

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"tidemark"
	"tidemark/block"
	"tidemark/internal/vfs"
)

// told collects what operators were told.
type told struct {
	fails bool
	list  []string
}

func (k *told) notify(level, timeline, message string) error {
	if k.fails {
		return errors.New("the ledger is full")
	}
	k.list = append(k.list, level+" "+timeline+" "+message)
	return nil
}

// setFree lets the disk have so many bytes free of 10 MiB, of which 1 MiB is the reserve.
func setFree(mem *vfs.MemFS, free uint64) {
	mem.TestingSetDiskUsage(pebblevfs.DiskUsage{AvailBytes: free, TotalBytes: 10 << 20, UsedBytes: 10<<20 - free})
}

// TestOldestHistoryGoes (J1, J6) takes the room away: history goes, of all timelines the oldest first, and is told; bookmarks stay, with
// their bytes, and so does what a snapshot shows; and what was told is remembered over a restart.
func TestOldestHistoryGoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	k := &told{}
	w.set.o.Notify = k.notify
	line, history := longHistory(t, w, rng)
	opened, err := line.At("", history[450].pos)
	if err != nil {
		t.Fatal(err)
	}
	if got := line.Lost(); got != nil || w.set.Room().Spent {
		t.Fatalf("lost: %+v", got)
	}
	oldest := line.oldestInJournal()
	setFree(mem, 1<<20-1)
	k.fails = true
	w.set.keepRoom(t.Context())
	w.set.tellLosses(false)
	lost := line.Lost()
	if lost == nil || !w.set.Room().Spent || line.oldestInJournal() <= oldest {
		t.Fatalf("lost: %+v, room %+v", lost, w.set.Room())
	}
	if line.oldestInJournal() > history[450].pos {
		t.Error("what a snapshot reads was given up")
	}
	got := make([]byte, diskSize)
	if _, err := opened.ReadAt(got, 0); err != nil || !bytes.Equal(got, history[450].data) {
		t.Errorf("the snapshot changed: %v", err)
	}
	if covered := line.Covered(); len(covered) == 0 || covered[0].From.Before(lost.To) {
		t.Errorf("covered %+v, lost %+v", covered, lost)
	}
	if same, err := history[10].shows(line); err == nil {
		t.Errorf("a point that was given up is shown: %v", same)
	}
	for _, p := range line.Points() {
		if same, err := (&remembered{p.Position, history[99].data}).shows(line); err != nil || p.Bookmark == "a" && !same {
			t.Errorf("the bookmark %s: %v, %v", p.Bookmark, same, err)
		}
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	setFree(mem, 9<<20)

	w = open(t, mem, "/d")
	defer func() { w.close(t) }()
	k.fails = false
	w.set.o.Notify = k.notify
	line = w.set.List()[0]
	if again := line.Lost(); again == nil || !again.To.Equal(lost.To) {
		t.Errorf("after a restart: %+v", again)
	}
	w.set.tellLosses(false)
	w.set.tellLosses(false)
	n := 0
	for _, s := range k.list {
		if strings.HasPrefix(s, "error a ") && strings.Contains(s, "were given up") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("told %d times: %q", n, k.list)
	}
	line.ranBefore += 2 * time.Hour
	if line.Lost() != nil {
		t.Error("the window is whole again, and a loss is shown")
	}
}

// TestOldestOfAllGoesFirst has two timelines: that with the older history gives first.
func TestOldestOfAllGoesFirst(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer func() { w.close(t) }()
	w.set.o.Notify = (&told{}).notify
	rng := rand.New(rand.NewPCG(2, 1))
	older, _ := longHistory(t, w, rng)
	newer, _ := longHistory(t, w, rng)
	begins, last := newer.oldestInJournal(), older.givable()
	for range last {
		if older.oldestInJournal() >= tidemark.Position(last[len(last)-1].LastPos) {
			break
		}
		if !w.set.freeFullest() {
			t.Fatal("there is nothing to give")
		}
		if newer.Lost() != nil && older.givable() != nil || newer.oldestInJournal() != begins && newer.Lost() == nil {
			t.Fatal("the newer history went first")
		}
	}
	if older.Lost() == nil || newer.Lost() != nil {
		t.Errorf("lost: %+v and %+v", older.Lost(), newer.Lost())
	}
	for w.set.freeFullest() {
	}
	if newer.Lost() == nil || len(newer.givable()) > 0 {
		t.Errorf("left: %+v", newer.givable())
	}
}

// TestWhatIsGivenUpComesBack has somebody read the present while the history below it is given up. The files of what is forgotten take space for
// as long as he does, and not for longer: though nothing is written, and so nothing else happens here, the next who needs room has it.
func TestWhatIsGivenUpComesBack(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer func() { w.close(t) }()
	w.set.o.Notify = (&told{}).notify
	rng := rand.New(rand.NewPCG(1, 1))
	line, _ := longHistory(t, w, rng)
	p := make([]byte, 4096)
	for i := range int64(diskSize / 4096) { // more than a segment
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		if _, err := line.Disks()[0].WriteAt(p, i*4096); err != nil {
			t.Fatal(err)
		}
	}
	reads := line.Disks()[0].head.Load()
	bookmarkOnly(t, line, "z")
	for w.set.freeFullest() {
	}
	if line.Lost() == nil || w.set.lingering() == 0 {
		t.Fatalf("lost %+v, and %d segments are held", line.Lost(), w.set.lingering())
	}
	runtime.KeepAlive(reads)
	for end := time.Now().Add(3 * lingerRest); !w.set.freeFullest() || w.set.lingering() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d segments that nobody reads take space", w.set.lingering())
		}
	}
	if w.set.freeFullest() {
		t.Error("there is no end of what can be given")
	}
}

// writesTo is a disk of so many MiB, and what writes the MiB at off of it, to the journal.
func writesTo(t *testing.T, size int64) (mem *vfs.MemFS, w *world, line *Timeline, write func(off int64) error) {
	t.Helper()
	mem = vfs.NewMem()
	w = open(t, mem, "/d")
	t.Cleanup(func() { w.close(t) })
	w.set.o.ReferenceAfter = 1 << 30
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: size << 20}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte{7}, 1<<20)
	return mem, w, line, func(off int64) error {
		_, err := line.Disks()[0].WriteAt(p, off<<20)
		return err
	}
}

// TestReclaimsWhatNoPointHas writes a disk over that has no points: of the image of before, nobody needs anything. When space runs out and there is no history to
// give, its room comes back, though the pool was reclaimed just now.
func TestReclaimsWhatNoPointHas(t *testing.T) {
	mem, w, line, _ := writesTo(t, 2)
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 2<<20)
	for range 2 {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		w.set.dead.Store(false)
		if _, err := line.Disks()[0].WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := line.cut(nil); err != nil {
			t.Fatal(err)
		}
		if err := line.Fold(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.set.reclaimNext = time.Now().Add(time.Hour)
	setFree(mem, 1<<20-1)
	w.set.o.Notify = (&told{}).notify
	w.set.keepRoom(t.Context())
	if r, err := w.set.store.Reclaim(t.Context(), w.set.Keep); err != nil || w.set.dead.Load() || r.PacksDeleted > 0 || r.DeadRecords*4 > r.LiveRecords {
		t.Errorf("what is dead is there: %+v, %v", r, err)
	}
	got := make([]byte, len(p))
	if _, err := line.Disks()[0].ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the present changed: %v", err)
	}
}

// TestWritersLeaveRoomToFold refuses a writer who would take the room that a fold needs, and lets him go on when there is.
func TestWritersLeaveRoomToFold(t *testing.T) {
	mem, w, line, write := writesTo(t, 16)
	setFree(mem, 5<<20)
	for i := range int64(4) {
		if err := write(i); err != nil {
			t.Fatal(err)
		}
	}
	setFree(mem, 1<<20)
	if err := write(4); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("a write that takes the last room: %v", err)
	}
	if err := line.Fold(t.Context()); err != nil {
		t.Fatal(err)
	}
	bookmarkOnly(t, line, "all")
	if err := write(4); err != nil {
		t.Fatalf("when all is folded: %v", err)
	}
	w.set.o.Reserve = -1
	setFree(mem, 1)
	if err := write(5); err != nil {
		t.Fatalf("without a reserve: %v", err)
	}
}

// TestWritersLeaveRoomForEachCut has a bookmark wait for its fold: it becomes an image beside that of what is written over it, and both need room.
func TestWritersLeaveRoomForEachCut(t *testing.T) {
	mem, _, line, writeTo := writesTo(t, 2)
	write := func() error { return errors.Join(writeTo(0), writeTo(1)) }
	setFree(mem, 9<<20)
	for range 2 {
		if err := write(); err != nil {
			t.Fatal(err)
		}
	}
	setFree(mem, 3<<20) // for one image, and some
	if err := write(); err != nil {
		t.Fatalf("with room for the only image: %v", err)
	}
	if _, err := line.Bookmark(Mark{Name: "kept", Consistency: tidemark.CrashConsistent}); err != nil {
		t.Fatal(err)
	}
	if err := write(); !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("a write that takes the room of the second image: %v", err)
	}
	setFree(mem, 5<<20)
	if err := write(); err != nil {
		t.Fatalf("with room for two: %v", err)
	}
}

// TestReserveHoldsThoughThePoolRefuses (J2) lets space run out beside a pool, on another file system, that takes no history: then history goes that should
// have moved there, the reserve is there again, bookmarks stay, and it is told.
func TestReserveHoldsThoughThePoolRefuses(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	mem, bucket, k := vfs.NewMem(), &poisoned{}, &told{}
	w, err := openWorld(mem, "/d", func(o *Options) {
		bucket.Bucket = o.Bucket
		o.Bucket, o.PoolDir, o.Notify = bucket, "/d/pool", k.notify
		o.HotBytes = 0
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.close(t) }()
	line, history := longHistory(t, w, rand.New(rand.NewPCG(seed, 1)))
	bucket.bad.Store(regexp.MustCompile("/journal/"))
	before := line.JournalBytes()
	setFree(mem, 1<<20-1)
	w.set.keepRoom(t.Context())
	w.set.tellLosses(true)
	if line.Lost() == nil || line.ArchivedBytes() > 0 || line.JournalBytes() > before/2 {
		t.Errorf("%+v is lost, %d bytes are archived, and the journal takes %d bytes of %d", line.Lost(), line.ArchivedBytes(), line.JournalBytes(), before)
	}
	if !slices.ContainsFunc(k.list, func(s string) bool { return strings.Contains(s, "were given up") }) {
		t.Errorf("told: %q", k.list)
	}
	for i, p := range line.Points() {
		if same, err := (&remembered{p.Position, history[100*i+99].data}).shows(line); err != nil || !same {
			t.Errorf("the bookmark %s: %v, %v", p.Bookmark, same, err)
		}
	}
}
