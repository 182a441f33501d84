package timeline

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

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

// TestPointsOfTheArchive (J3) has the points of a history that lies in the pool, also after a restart, and of a branch; then a
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

// TestRemovedWhileArchived removes a timeline while the bucket takes a segment of its journal: what fails by that is told nobody.
func TestRemovedWhileArchived(t *testing.T) {
	bucket, k := &hooked{}, &heard{}
	w, err := openWorld(vfs.NewMem(), "/d", func(o *Options) {
		bucket.Bucket = o.Bucket
		o.Bucket, o.Notify, o.HotBytes = bucket, k.notify, 1<<30
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { w.close(t) }()
	line, _ := longHistory(t, w, rand.New(rand.NewPCG(rand.Uint64(), 1)))
	w.set.o.HotBytes = 64 << 10
	removed := make(chan error, 1)
	bucket.put = sync.OnceFunc(func() {
		go func() { removed <- line.Remove(t.Context()) }()
		for !line.removed() {
			time.Sleep(time.Millisecond)
		}
	})
	err = line.keepHistory(t.Context())
	if err := errors.Join(err, <-removed); err != nil {
		t.Error(err)
	}
	if k.has("error", "") {
		t.Errorf("%q", k.list)
	}
}

// hooked is a bucket that takes no segment of a journal, and calls put instead.
type hooked struct {
	object.Bucket
	put func()
}

func (h *hooked) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if strings.Contains(key, "/journal/") {
		h.put()
		return errPoisoned
	}
	return h.Bucket.Put(ctx, key, r, size)
}

// poisoned is a bucket that never takes some segments of journals.
type poisoned struct {
	object.Bucket
	bad atomic.Pointer[regexp.Regexp] // their keys; nil: it takes all
}

var errPoisoned = errors.New("it is refused, whatever is tried")

func (p *poisoned) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	if bad := p.bad.Load(); bad != nil && bad.MatchString(key) {
		return errPoisoned
	}
	return p.Bucket.Put(ctx, key, r, size)
}

// String implements errorfs.Injector, as MaybeError does.
func (p *poisoned) String() string { return "poisoned" }

// MaybeError refuses files on our own disk, too.
func (p *poisoned) MaybeError(op errorfs.Op) error {
	if bad := p.bad.Load(); bad != nil && op.Kind == errorfs.OpOpen && bad.MatchString(op.Path) {
		return errPoisoned
	}
	return nil
}

// TestPoisonedSegment (J2) has a bucket that takes one segment of the journal never, or none at all, or has no segment ever packed, while much more is
// written than the window may hold. The window stays as short as it was asked to be, all else goes on, at once, it is told, and every point that is offered has
// its bytes. When the bucket takes it again, nothing is left of that.
func TestPoisonedSegment(t *testing.T) {
	for name, bad := range map[string]string{"one": "/journal/.*/0000000000000009-", "all": "/journal/.*/", "unpacked": "/rewrite$"} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			bucket, k := &poisoned{}, &heard{}
			bucket.bad.Store(regexp.MustCompile(bad))
			var fs vfs.FS = vfs.NewMem()
			if name == "unpacked" {
				fs = errorfs.Wrap(fs, bucket)
			}
			w, err := openWorld(fs, "/d", func(o *Options) {
				bucket.Bucket = o.Bucket
				o.Bucket, o.Notify, o.Manual, o.FoldAfter, o.SegmentSize, o.HotBytes = bucket, k.notify, false, 192<<10, 64<<10, 128<<10
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { w.close(t) }()
			const window = 1 << 20
			line, err := w.set.Create(t.Context(), "a", []DiskSpec{{Name: "d", Size: diskSize}}, nil)
			if err == nil {
				err = line.SetWindow(Window{For: time.Hour, Bytes: window})
			}
			if err != nil {
				t.Fatal(err)
			}
			var history []remembered
			now := make([]byte, diskSize)
			told := false
			write := func(blocks int) {
				t.Helper()
				for i := range blocks {
					pos := writeNoise(t, line, rng, now)
					if i%10 == 0 {
						history = append(history, remembered{pos, bytes.Clone(now)})
					}
				}
				// Much less than the pause behind a fold that failed.
				for end := time.Now().Add(foldRetry / 3); line.due() || line.JournalBytes() > window+512<<10; time.Sleep(10 * time.Millisecond) {
					told = told || line.Trouble() != nil
					if time.Now().After(end) {
						t.Fatalf("the journal takes %d bytes of %d, and %d are not folded; %v", line.JournalBytes(), window, line.Backlog(), line.Trouble())
					}
				}
				told = told || line.Trouble() != nil
			}
			for range 20 {
				write(100) // more than is waited for
			}
			if !told || !k.has("error a ", errPoisoned.Error()) {
				t.Errorf("told by the status: %v; by events: %q", told, k.list)
			}
			opened := 0
			check := func() {
				t.Helper()
				from := line.anyPoint()
				for _, h := range history {
					same, err := h.shows(line)
					if err == nil && !same || err != nil && (h.pos >= from || tidemark.KindOf(err) != tidemark.NotFound) {
						t.Fatalf("at %v, of those from %v on: %v, %v", h.pos, from, same, err)
					}
					if err == nil {
						opened++
					}
				}
			}
			check()
			bucket.bad.Store(nil)
			write(100)
			for end := time.Now().Add(foldRetry / 3); line.Trouble() != nil || line.ArchivedBytes() == 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%d bytes are archived, and %v", line.ArchivedBytes(), line.Trouble())
				}
			}
			check()
			if opened < 20 {
				t.Errorf("%d points of %d were there, in two looks", opened, len(history))
			}
		})
	}
}

// writeNoise writes a block that nothing makes smaller, somewhere.
func writeNoise(t *testing.T, line *Timeline, rng *rand.Rand, now []byte) tidemark.Position {
	t.Helper()
	off := rng.Int64N(diskSize/4096) * 4096
	for i := range 4096 {
		now[off+int64(i)] = byte(rng.Uint32())
	}
	if _, err := line.Disks()[0].WriteAt(now[off:off+4096], off); err != nil {
		t.Fatal(err)
	}
	pos, _ := line.Head()
	return pos
}

// heard collects what operators are told.
type heard struct {
	mu   sync.Mutex
	list []string
}

func (k *heard) notify(level, timeline, message string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.list = append(k.list, level+" "+timeline+" "+message)
	return nil
}

func (k *heard) has(prefix, part string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.list, func(s string) bool { return strings.HasPrefix(s, prefix) && strings.Contains(s, part) })
}

// TestColdByAge (K1) archives what is older than the hot set, by the times of records and not by the clock.
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
