package timeline

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
	"tidemark/object"
)

// longHistory makes a timeline with a window, whose history is longer than what stays hot, and notes what it held.
func longHistory(t *testing.T, w *world, rng *rand.Rand) (line *Timeline, history []remembered) {
	t.Helper()
	line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
	if err == nil {
		err = line.SetWindow(Window{For: time.Hour})
	}
	if err != nil {
		t.Fatal(err)
	}
	now := make([]byte, diskSize)
	for i := range 500 {
		off := rng.Int64N(diskSize/4096) * 4096
		for j := range 4096 {
			now[off+int64(j)] = byte(rng.Uint32())
		}
		if _, err := line.Disks()[0].WriteAt(now[off:off+4096], off); err != nil {
			t.Fatal(err)
		}
		pos, _ := line.Head()
		history = append(history, remembered{pos, bytes.Clone(now)})
		if i%100 == 99 {
			bookmarkOnly(t, line, string(rune('a'+i/100)))
		}
	}
	return line, history
}

// bookmarkOnly makes a bookmark and its image.
func bookmarkOnly(t *testing.T, line *Timeline, name string) {
	t.Helper()
	_, err := line.Bookmark(Mark{Name: name, Consistency: tidemark.CrashConsistent})
	if err == nil {
		err = line.foldBacklog(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// shows reads the disk as it was and compares.
func (r *remembered) shows(line *Timeline) (same bool, err error) {
	s, err := line.At("", r.pos)
	if err != nil {
		return false, err
	}
	defer s.Close()
	got := make([]byte, diskSize)
	_, err = s.ReadAt(got, 0)
	return bytes.Equal(got, r.data), err
}

// archivedKeys are the objects of archived segments, oldest first.
func archivedKeys(t *testing.T, w *world) (keys []string) {
	t.Helper()
	err := w.bucket.List(context.Background(), "timelines/", func(o object.Info) error {
		if strings.Contains(o.Key, "/journal/") {
			keys = append(keys, o.Key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestPointsOfTheArchive has the points of a history that lies in the pool, also after a restart, and of a branch; then a
// segment is lost: its points are refused as damaged and shown as a gap, and nothing else is affected.
func TestPointsOfTheArchive(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, history := longHistory(t, w, rng)
	if n, keys := line.ArchivedBytes(), archivedKeys(t, w); n == 0 || n >= line.JournalBytes() || len(keys) < 4 {
		t.Fatalf("%d bytes of %d are archived, in %d segments", n, line.JournalBytes(), len(keys))
	}
	check := func() {
		t.Helper()
		for range 40 {
			h := history[rng.IntN(len(history))]
			if same, err := h.shows(line); err != nil || !same {
				t.Fatalf("at %v: %v, %v", h.pos, same, err)
			}
		}
		if err := line.VerifyJournal(); err != nil {
			t.Fatal(err)
		}
	}
	check()
	w.close(t)
	w = open(t, mem, "/d")
	line = w.set.List()[0]
	check()

	keys := archivedKeys(t, w)
	if err := w.bucket.Delete(t.Context(), keys[1]); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	w = open(t, mem, "/d")
	defer func() { w.close(t) }()
	line = w.set.List()[0]
	gaps := line.Unreachable()
	if len(gaps) != 1 || len(line.Gaps()) != 0 || gaps[0].Why == "" {
		t.Fatalf("gaps: %+v", gaps)
	}
	refused := 0
	for _, h := range history {
		same, err := h.shows(line)
		switch inside := gaps[0].within(h.pos); {
		case err == nil && (!same || inside):
			t.Fatalf("%v in the gap %+v: %v", h.pos, gaps[0], same)
		case err != nil && (!inside || tidemark.KindOf(err) != tidemark.Corrupt):
			t.Fatalf("%v outside of the gap %+v: %v", h.pos, gaps[0], err)
		case err != nil:
			refused++
		}
	}
	if refused == 0 {
		t.Error("nothing is refused")
	}
	if err := line.VerifyJournal(); tidemark.KindOf(err) == "" || err == nil {
		t.Errorf("verify says %v", err)
	}
}

// TestRemoveTakesTheArchive removes a timeline: nothing of it is left in the bucket. That of a journal which is lost goes
// when space is asked for, and not before.
func TestRemoveTakesTheArchive(t *testing.T) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	mem := vfs.NewMem()
	w := open(t, mem, "/d")
	line, _ := longHistory(t, w, rng)
	w.close(t)
	if err := mem.RemoveAll("/d/timelines"); err != nil {
		t.Fatal(err)
	}
	w = open(t, mem, "/d")
	defer func() { w.close(t) }()
	line = w.set.Get(line.ID())
	if line == nil || len(line.Points()) != 5 {
		t.Fatalf("the bookmarks did not come back: %+v", line)
	}
	if len(archivedKeys(t, w)) == 0 {
		t.Error("the archive of the lost journal is gone at once")
	}
	if err := w.set.SweepArchives(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys := archivedKeys(t, w); len(keys) > 0 {
		t.Errorf("left: %v", keys)
	}
	if err := line.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, _ := longHistory(t, w, rng)
	if len(archivedKeys(t, w)) == 0 {
		t.Fatal("nothing was archived")
	}
	if err := other.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys := archivedKeys(t, w); len(keys) > 0 {
		t.Errorf("left: %v", keys)
	}
}

// TestColdByAge archives what is older than the hot set, by the times of records and not by the clock.
func TestColdByAge(t *testing.T) {
	w := open(t, vfs.NewMem(), "/d")
	defer func() { w.close(t) }()
	now := time.Now()
	w.set.o.Now = func() time.Time { return now }
	w.set.o.HotBytes, w.set.o.HotFor = 0, time.Hour
	line, _ := longHistory(t, w, rand.New(rand.NewPCG(1, 1)))
	now = now.Add(2 * time.Hour)
	if line.cold() != 0 {
		t.Error("what is the newest is cold")
	}
	w.set.o.HotFor = time.Nanosecond
	if err := line.Archive(t.Context()); err != nil || line.ArchivedBytes() == 0 {
		t.Errorf("%d bytes are archived: %v", line.ArchivedBytes(), err)
	}
}
