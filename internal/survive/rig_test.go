package survive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/export/nbd"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/mount"
	"tidemark/object"
	"tidemark/timeline"
	"tidemark/wire"
)

// foldAfter is the backlog, in bytes, at which a rig's timeline folds.
const foldAfter = 3 << 20

// rig is a tap, a timeline and the wire between them, all of them the real ones, in the process of the test: so that it can stand between them.
// Production has the disks as block devices.
type rig struct {
	*stage
	rng     *rand.Rand
	bases   []string // what the disks were at the beginning
	files   []string // the primaries
	sizes   []int64
	witness *witness
	ledger  *ledger
	tricks  tricks

	store   *image.Store
	set     *timeline.Set
	line    *timeline.Timeline
	tap     *tap.Tap
	devices []string // as production has them
	seen    []block.Device

	stops []func() // what ends production's side, last first
	mu    sync.Mutex
	conns []net.Conn // of the tap, at the server
}

// tricks are what a rig does wrong on purpose; see TestLiesAreFound.
type tricks struct {
	disk   func(block.Device, int) block.Device        // below the witness, above the tap
	sink   func(capture.Sink) capture.Sink             // before the wire
	record func(*timeline.Feed, *capture.Change) error // behind the ledger
}

// newRig taps disks that are what the files are, and waits until the timeline has them.
func newRig(t *testing.T, s *stage, rng *rand.Rand, tricks tricks, bases ...string) *rig {
	t.Helper()
	x := &rig{stage: s, rng: rng, bases: bases, tricks: tricks, witness: newWitness(len(bases))}
	for i, base := range bases {
		file := filepath.Join(x.dir, fmt.Sprint("primary", i))
		must(t, "cp", "--sparse=always", base, file)
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		x.files, x.sizes = append(x.files, file), append(x.sizes, st.Size())
	}
	x.openTimeline()
	t.Cleanup(x.endProduction)
	x.openTap(x.serveWire())
	x.await("the timeline has the disks", func() bool { return x.ledger.isWhole() && !x.tap.Status().Gap && x.tap.Status().Queued == 0 })
	x.witness.forget()
	for i, d := range x.tap.Disks() {
		var below block.Device = d
		if tricks.disk != nil {
			below = tricks.disk(d, i)
		}
		x.seen = append(x.seen, seenDisk{below, x.witness, i})
	}
	return x
}

// openTimeline makes a data directory as a server has it, with one timeline, which goes to the pool and to the archive soon: points of it
// are made of images and of what lies in the journal, packed or not.
func (x *rig) openTimeline() {
	x.t.Helper()
	if err := os.MkdirAll(x.data, 0o700); err != nil {
		x.t.Fatal(err)
	}
	ctx, quiet := x.t.Context(), slog.New(slog.DiscardHandler)
	bucket, err := object.OpenDir(vfs.OS, filepath.Join(x.data, "pool"))
	if err != nil {
		x.t.Fatal(err)
	}
	x.store, err = image.Open(ctx, image.Options{FS: vfs.OS, Dir: filepath.Join(x.data, "store"), Bucket: bucket, CacheBytes: 64 << 20, Logger: quiet})
	if err != nil {
		x.t.Fatal(err)
	}
	x.set, err = timeline.Open(ctx, x.store, timeline.Options{FS: vfs.OS, Dir: filepath.Join(x.data, "timelines"), Bucket: bucket, Logger: quiet,
		FoldAfter: foldAfter, SegmentSize: 1 << 20, HotBytes: 2 << 20})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(x.closeTimeline)
	about, err := json.Marshal(map[string]any{"type": tidemark.TypeVolume})
	if err != nil {
		x.t.Fatal(err)
	}
	var disks []timeline.DiskSpec
	for i, n := range x.sizes {
		disks = append(disks, timeline.DiskSpec{Name: x.disk(i), Size: n})
	}
	if x.line, err = x.set.Create(ctx, "prod", disks, about); err != nil {
		x.t.Fatal(err)
	}
	if err := x.line.SetWindow(timeline.Window{For: time.Hour}); err != nil {
		x.t.Fatal(err)
	}
	x.ledger = &ledger{line: x.line, record: x.tricks.record}
}

// disk is a disk's name in the timeline.
func (x *rig) disk(i int) string {
	if i == 0 {
		return "disk"
	}
	return fmt.Sprint("disk", i+1)
}

// closeTimeline closes what the server would have open. It can be called again.
func (x *rig) closeTimeline() {
	if x.set == nil {
		return
	}
	if err := errors.Join(x.set.Close(), x.store.Close()); err != nil {
		x.t.Error(err)
	}
	x.set = nil
}

// serveWire takes the tap's connections, as a server does, and returns where.
func (x *rig) serveWire() (path string) {
	x.t.Helper()
	path = filepath.Join(x.dir, "wire.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		x.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	open := func(_ context.Context, _, id string, before capture.Sent) (wire.Feed, bool, error) {
		f, known, err := x.line.Feed(id, before)
		return feed{f, x.ledger}, known, err
	}
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			x.mu.Lock()
			x.conns = append(x.conns, conn)
			x.mu.Unlock()
			all.Go(func() {
				if err := wire.Serve(ctx, conn, open); err != nil && !errors.Is(err, errCut) {
					x.t.Logf("a connection of the tap ended: %v", err)
				}
			})
		}
	})
	x.stops = append(x.stops, func() {
		cancel()
		l.Close()
		all.Wait()
	})
	return path
}

// cutWire ends the tap's connections. It makes another one.
func (x *rig) cutWire() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.conns {
		c.Close()
	}
	x.conns = nil
}

func (x *rig) openTap(path string) {
	x.t.Helper()
	var primaries []tap.Primary
	for i, file := range x.files {
		p, err := tap.OpenPrimary(file)
		if err != nil {
			x.t.Fatal(err)
		}
		primaries = append(primaries, seenPrimary{p, x.witness, i})
	}
	var sink capture.Sink = &wire.Client{Timeline: x.line.ID(), Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	if x.tricks.sink != nil {
		sink = x.tricks.sink(sink)
	}
	var err error
	x.tap, err = tap.Open(tap.Options{Dir: filepath.Join(x.dir, "tap"), Primaries: primaries, Sink: sink, Memory: 256 << 20,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		x.t.Fatal(err)
	}
	x.stops = append(x.stops, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := x.tap.Close(ctx); err != nil {
			x.t.Error(err)
		}
	})
}

// attach gives the disks to this host as block devices, by attachers in processes of their own.
func (x *rig) attach() {
	x.t.Helper()
	table := nbd.NewTable()
	for i, d := range x.seen {
		if err := table.Add(&nbd.Export{Name: fmt.Sprint(i), Device: d}); err != nil {
			x.t.Fatal(err)
		}
	}
	socket := filepath.Join(x.dir, "nbd.sock")
	l, err := nbd.Listen("unix:" + socket)
	if err != nil {
		x.t.Fatal(err)
	}
	server := nbd.NewServer(table, nbd.Options{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	x.stops = append(x.stops, func() {
		if err := server.Close(); err != nil {
			x.t.Error(err)
		}
		serving.Wait()
	})
	for i := range x.seen {
		a, err := mount.Attach(x.t.Context(), mount.Config{Name: fmt.Sprint("prod", i), StateDir: filepath.Join(x.dir, "attached"), Socket: socket, Export: fmt.Sprint(i),
			GiveUp: time.Minute})
		if err != nil {
			x.t.Fatal(err)
		}
		x.devices = append(x.devices, a.Device())
		x.stops = append(x.stops, func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := a.Detach(ctx, x.t.Failed()); err != nil {
				x.t.Errorf("detach: %v", errors.Join(err, a.Cleanup(true)))
			}
		})
	}
}

// endProduction takes away devices, tap and wire, when all is with the timeline. It can be called again.
func (x *rig) endProduction() {
	for len(x.stops) > 0 {
		last := len(x.stops) - 1
		stop := x.stops[last]
		x.stops = x.stops[:last]
		stop()
	}
}

// await waits until something is so.
func (x *rig) await(what string, ok func() bool) {
	x.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatalf("not in a minute: %s; the tap: %+v", what, x.tap.Status())
		}
	}
}

// finish ends production and settles what it did: from here on the past is looked at.
func (x *rig) finish() error {
	x.t.Helper()
	x.await("all is sent", func() bool { return x.tap.Status().Queued == 0 && !x.tap.Status().Gap })
	x.endProduction()
	if err := x.ledger.settle(x.witness); err != nil {
		return err
	}
	if err := x.witness.checkPrimary(); err != nil {
		return err
	}
	return x.checkFiles()
}

// checkFiles holds the primaries to all that was written.
func (x *rig) checkFiles() error {
	p, done, err := x.picture(x.ledger.entries)
	if err != nil {
		return err
	}
	defer done()
	p.reach(len(x.ledger.entries))
	for i, name := range x.files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := errors.Join(p.compare(i, f), p.compareRest(i, f)); err != nil {
			return fmt.Errorf("the primary: %w", err)
		}
	}
	return nil
}

// picture returns the picture of before entries.
func (x *rig) picture(entries []entered) (*picture, func(), error) {
	var bases []io.ReaderAt
	var open []*os.File
	done := func() {
		for _, f := range open {
			f.Close()
		}
	}
	for _, name := range x.bases {
		f, err := os.Open(name)
		if err != nil {
			done()
			return nil, nil, err
		}
		bases, open = append(bases, f), append(open, f)
	}
	p, err := newPicture(entries, bases, x.sizes)
	if err != nil {
		done()
	}
	return p, done, err
}

// meanwhile compares points with what came, while production writes and the timeline folds, packs and archives. Now and then it cuts the wire, or
// makes a bookmark. That goes on until the returned function is called.
func (x *rig) meanwhile() (stop func()) {
	end, looks := make(chan struct{}), 0
	rng := rand.New(rand.NewPCG(x.rng.Uint64(), 3))
	var all sync.WaitGroup
	each := func(pause time.Duration, do func(n int) error) {
		all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-end:
					return
				case <-time.After(pause):
				}
				if err := do(n); err != nil {
					x.t.Errorf("while production writes: %v", err)
					return
				}
			}
		})
	}
	each(20*time.Millisecond, func(int) error {
		entries := x.ledger.soFar()
		if len(entries) == 0 {
			return nil
		}
		n := 1 + rng.IntN(len(entries))
		looks++
		return x.look(entries[:n], entries[n-1].after)
	})
	cuts := rand.New(rand.NewPCG(x.rng.Uint64(), 7))
	each(80*time.Millisecond, func(n int) error {
		switch n % 6 {
		case 0, 1, 2, 3:
			x.ledger.cut.Store(1 + cuts.Int64N(40))
			return nil
		case 4:
			x.cutWire()
			return nil
		}
		name := fmt.Sprint("m", n) // also tells it from another when it comes twice, which it may when the wire is cut
		return x.tap.Bookmark(capture.Mark{Name: name, ID: name, Consistency: tidemark.CrashConsistent})
	})
	return func() {
		close(end)
		all.Wait()
		x.t.Logf("%d looks at the past while it was made", looks)
	}
}

// look compares the point at a position with what entries say.
func (x *rig) look(entries []entered, pos tidemark.Position) error {
	p, done, err := x.picture(entries)
	if err != nil {
		return err
	}
	defer done()
	p.reach(len(entries))
	for i := range x.sizes {
		s, err := x.line.At(x.disk(i), pos)
		if err != nil {
			return err
		}
		if err := errors.Join(p.compare(i, s), s.Close()); err != nil {
			return fmt.Errorf("at %v: %w", pos, err)
		}
	}
	return nil
}

// sparseFile makes a file of a size, in which there is nothing.
func sparseFile(t *testing.T, name string, size int64) string {
	t.Helper()
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

// isZero reports whether there is nothing but zeros in p.
func isZero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }
