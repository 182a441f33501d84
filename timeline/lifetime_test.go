package timeline

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/image"
	"tidemark/internal/vfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// oneLine makes a timeline of one disk.
func oneLine(t testing.TB, w *world) *Timeline {
	t.Helper()
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	must(t, err)
	return line
}

// Remove does not wait for an image that nobody will look at.
func TestRemoveEndsFold(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "a", Size: diskSize}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := line.foldBacklog(t.Context()); err != nil || line.background.Load() == nil {
		t.Fatalf("the folder says nothing of what it does: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	line.background.Store(&cancel)
	line.foldMu.Lock() // as who folds
	folding := make(chan struct{})
	go func() {
		defer line.foldMu.Unlock()
		<-ctx.Done()
		close(folding)
	}()
	if err := line.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-folding
}

// What is removed while a reclaim or a verification looks at everything is not missing.
func TestKeepBesideRemove(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer w.close(t)
	for _, name := range []string{"stays", "goes"} {
		line, err := w.set.Create(t.Context(), name, []DiskSpec{{Name: "d", Size: diskSize}}, nil)
		must(t, err)
		must(t, line.SetWindow(Window{For: time.Hour}))
		_, err = line.Disks()[0].WriteAt(pattern(1), 0)
		must(t, err)
		_, err = line.Bookmark(Mark{Name: "one"})
		must(t, err)
		must(t, line.Fold(t.Context()))
		must(t, line.journal.End())
	}
	lines := w.set.List()
	gone := lines[1]
	must(t, gone.Remove(t.Context()))
	for range 10 { // until nothing holds its journal any more, that can be read no longer then
		runtime.GC()
		if err := gone.journal.Verify(0, 1); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	_, err := w.store.Check(t.Context(), func(k *image.Keeper) error { return keepAll(k, lines) }, nil)
	must(t, err)
	must(t, gone.VerifyJournal())
}

// A pool that is not there, as where its file system is not mounted, makes nothing of what is here go.
func TestPoolIsNotThere(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line := oneLine(t, w)
	_, err := line.Disks()[0].WriteAt(pattern(7), 4096)
	must(t, err)
	must(t, line.Disks()[0].Flush())
	w.close(t)
	must(t, mem.Rename("/d/pool", "/d/away"))
	w, err = openWorld(mem, "/d")
	must(t, err)
	if len(w.set.List()) > 0 || len(w.set.Damaged()) != 1 {
		t.Fatalf("without its pool there are %v, and damaged %v", w.set.List(), w.set.Damaged())
	}
	w.close(t)
	must(t, mem.RemoveAll("/d/pool"))
	must(t, mem.Rename("/d/away", "/d/pool"))
	w = open(t, mem, "/d")
	defer w.close(t)
	got := make([]byte, 4096)
	if _, err := w.set.List()[0].Disks()[0].ReadAt(got, 4096); err != nil || !bytes.Equal(got, pattern(7)) {
		t.Fatalf("what was flushed is not there when the pool is back: %v", err)
	}
}

// A branch that could not be opened loses nothing: its parent keeps what it needs, and stays.
func TestBranchThatCannotBeOpened(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line := oneLine(t, w)
	for n := range int64(100) { // several segments
		_, err := line.Disks()[0].WriteAt(pattern(uint64(n+1)), n*4096)
		must(t, err)
	}
	head, _ := line.Head()
	branch, err := line.Branch(t.Context(), "b", head, nil, nil)
	must(t, err)
	_, err = branch.Disks()[0].WriteAt(pattern(1000), 0)
	must(t, err)
	must(t, branch.Disks()[0].Flush())
	must(t, line.Fold(t.Context()))
	id := branch.ID()
	w.close(t)
	key := "/d/pool/" + descriptorKey(id, 1)
	must(t, mem.Rename(key, "/d/descriptor"))
	w, err = openWorld(mem, "/d")
	must(t, err)
	if w.set.Damaged()[id] == nil {
		t.Fatal("the branch is not said to be damaged")
	}
	line = w.set.List()[0]
	must(t, line.trim(t.Context()))
	if err := line.Remove(t.Context()); tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatalf("removing what it needs: %v", err)
	}
	w.close(t)
	must(t, mem.Rename("/d/descriptor", key))
	w = open(t, mem, "/d")
	defer w.close(t)
	branch = w.set.Get(id)
	for n := range int64(100) {
		want := pattern(uint64(n + 1))
		if n == 0 {
			want = pattern(1000)
		}
		got := make([]byte, 4096)
		if _, err := branch.Disks()[0].ReadAt(got, n*4096); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("block %d of the branch: %v", n, err)
		}
	}
}

// Who branches from what is about to be removed gets a branch that stays, or none.
func TestBranchBesideRemove(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	defer func() { w.close(t) }()
	line := oneLine(t, w)
	_, err := line.Disks()[0].WriteAt(pattern(1), 0)
	must(t, err)
	cancelled := make(chan struct{})
	cancel := context.CancelFunc(sync.OnceFunc(func() { close(cancelled) }))
	line.background.Store(&cancel)
	line.foldMu.Lock()
	removed := make(chan error)
	go func() { removed <- line.Remove(context.Background()) }()
	<-cancelled // it has seen that nobody depends on it, and waits for the fold
	head, _ := line.Head()
	branch, err := line.Branch(t.Context(), "b", head, nil, nil)
	line.foldMu.Unlock()
	must(t, <-removed)
	if err != nil {
		return
	}
	must(t, branch.Fold(t.Context()))
	w.close(t)
	w = open(t, mem, "/d")
	got := make([]byte, 4096)
	if _, err := w.set.Get(branch.ID()).Disks()[0].ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1)) {
		t.Fatalf("the branch does not hold what it began with: %v", err)
	}
}

// That a stream is not known is told its source until it begins another.
func TestUnknownFeedStaysUnknown(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	defer func() { w.close(t) }()
	line := oneLine(t, w)
	feed := func(id, before string, want bool) {
		t.Helper()
		if _, known, err := line.Feed(id, capture.Sent{ID: before}); err != nil || known != want {
			t.Errorf("stream %q behind %q is known: %v, and should be %v: %v", id, before, known, want, err)
		}
	}
	feed("a", "", true)
	feed("a", "", true)
	feed("c", "b", false)
	feed("c", "b", false)
	w.close(t)
	w = open(t, mem, "/d")
	line = w.set.List()[0]
	feed("c", "b", false)
	feed("d", "c", true)
	feed("d", "c", true)
}

// A stream is known with as many changes as were acknowledged, and not with fewer: the timeline was put back to an older state. Also behind a fold, and
// a restart; and whoever says nothing of what was acknowledged is believed.
func TestFeedWithLessIsUnknown(t *testing.T) {
	for _, c := range []struct {
		name      string
		id        string
		before    capture.Sent
		want, has bool // has: the same stream, with its changes
	}{
		{"as many", "b", capture.Sent{ID: "a", Durable: 3}, true, false},
		{"fewer were acknowledged", "b", capture.Sent{ID: "a", Durable: 2}, true, false},
		{"nothing is said", "b", capture.Sent{ID: "a"}, true, false},
		{"more", "b", capture.Sent{ID: "a", Durable: 4}, false, false},
		{"of another stream", "b", capture.Sent{ID: "c", Durable: 1}, false, false},
		{"the same, as many", "a", capture.Sent{ID: "a", Durable: 3}, true, true},
		{"the same, more", "a", capture.Sent{ID: "a", Durable: 4}, false, false},
		{"the same, behind more of the one before", "a", capture.Sent{ID: "z", Durable: 9}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			w := open(t, mem, "/d")
			defer func() { w.close(t) }()
			line := oneLine(t, w)
			f, _, err := line.Feed("a", capture.Sent{})
			if err != nil {
				t.Fatal(err)
			}
			change := []capture.Change{{Len: 4096, Data: pattern(1)}}
			if err := errors.Join(f.Apply(change), f.Apply(change), line.Fold(t.Context()), f.Apply(change)); err != nil {
				t.Fatal(err)
			}
			if n, err := f.Sync(); err != nil || n != 3 {
				t.Fatalf("%d are durable: %v", n, err)
			}
			for i := range 4 {
				f, known, err := line.Feed(c.id, c.before)
				if err != nil || known != c.want {
					t.Errorf("known: %v, and should be %v: %v", known, c.want, err)
				}
				if n := f.Applied(); (n == 3) != c.has {
					t.Errorf("it has %d changes", n)
				}
				if i == 1 {
					w.close(t)
					w = open(t, mem, "/d")
					line = w.set.List()[0]
				}
			}
			if c.id == "b" {
				if _, known, err := line.Feed("d", capture.Sent{ID: "b"}); err != nil || !known {
					t.Errorf("what follows is known: %v: %v", known, err)
				}
			}
		})
	}
}

// A cut that the server makes of its own accord, as behind a start, has the time of what was written last, so that a gap that begins then
// covers all the time since.
func TestCutOfOurOwnIsNoNews(t *testing.T) {
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	defer w.close(t)
	line := oneLine(t, w)
	if _, err := line.Disks()[0].WriteAt(pattern(1), 0); err != nil {
		t.Fatal(err)
	}
	_, written := line.Head()
	time.Sleep(20 * time.Millisecond)
	line.paused.Store(true)
	if err := line.cutAndFold(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, newest := line.Head(); !newest.After(written) || newest.Sub(written) > time.Millisecond {
		t.Errorf("the cut is of %v, and the write before it of %v", newest, written)
	}
	if err := line.Lose(0, "nobody listened"); err != nil {
		t.Fatal(err)
	}
	if _, err := line.Resolve(tidemark.Point{Time: written.Add(10 * time.Millisecond)}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("a time in which nobody listened names a point: %v", err)
	}
}

// Whoever resumes a stream that is not known any more, and ends before it hears that, has noted nothing: the next source names the same stream, with
// fewer changes than were acknowledged, and is not known either. It is when it follows a stream that was told to be unknown.
func TestUnheardLossIsToldAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		lose func(line *Timeline, f *Feed) error
		told uint64 // that were acknowledged
	}{
		{"it was put back", func(*Timeline, *Feed) error { return nil }, 3},
		{"a sample differs", func(line *Timeline, f *Feed) error {
			if err := f.Sample(capture.SampleOf(0, 0, pattern(9))); !errors.Is(err, ErrDiffers) {
				return errors.Join(errors.New("the sample is believed"), err)
			}
			return nil
		}, 2},
		{"it has another stream", func(line *Timeline, _ *Feed) error {
			_, _, err := line.Feed("z", capture.Sent{ID: "y"})
			return err
		}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			w := open(t, mem, "/d")
			defer func() { w.close(t) }()
			line := oneLine(t, w)
			f, _, err := line.Feed("a", capture.Sent{})
			if err != nil {
				t.Fatal(err)
			}
			change := []capture.Change{{Len: 4096, Data: pattern(1)}}
			if err := errors.Join(f.Apply(change), f.Apply(change), c.lose(line, f)); err != nil {
				t.Fatal(err)
			}
			feed := func(id string, before capture.Sent, want bool) {
				t.Helper()
				for range 2 {
					if _, known, err := line.Feed(id, before); err != nil || known != want {
						t.Errorf("stream %q behind %+v is known: %v, and should be %v: %v", id, before, known, want, err)
					}
					w.close(t)
					w = open(t, mem, "/d")
					line = w.set.List()[0]
				}
			}
			feed("a", capture.Sent{ID: "a", Durable: c.told}, false)
			feed("b", capture.Sent{ID: "a"}, false)
			feed("c", capture.Sent{ID: "b"}, true)
		})
	}
}
