package timeline

import (
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/wire"
)

// absent is a primary that costs nothing.
type absent struct{ block.Device }

func (absent) Size() int64                            { return 64 << 20 }
func (absent) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (absent) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (absent) Flush() error                           { return nil }
func (absent) Zero(_, _ int64) error                  { return nil }
func (absent) Close() error                           { return nil }

// carried is a connection that is no unix socket: nothing is shared through it.
type carried struct{ net.Conn }

// BenchmarkTapped writes pages through a tap to a timeline on disk, in one process, and says what processor time each MiB takes on its
// way from the writer to the page cache of the journal.
func BenchmarkTapped(b *testing.B) {
	for _, way := range []struct {
		name string
		conn func(net.Conn) net.Conn
	}{
		{"shared", func(c net.Conn) net.Conn { return c }},
		{"inline", func(c net.Conn) net.Conn { return carried{c} }},
	} {
		b.Run(way.name, func(b *testing.B) { benchTapped(b, way.conn) })
	}
}

func benchTapped(b *testing.B, as func(net.Conn) net.Conn) {
	line := benchTimeline(b)
	socket := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				wire.Serve(ctx, conn, func(_ context.Context, _, id string, before capture.Sent) (wire.Feed, bool, error) {
					f, known, err := line.Feed(id, before)
					return marking{f}, known, err
				})
			})
		}
	})
	x, err := tap.Open(tap.Options{Dir: b.TempDir(), Primaries: []tap.Primary{absent{}}, Logger: quiet, Sink: &wire.Client{Timeline: line.ID(),
		Dial: func(ctx context.Context) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			return as(c), err
		}}})
	if err != nil {
		b.Fatal(err)
	}
	settle := func(most int64) {
		for s := x.Status(); s.Gap || s.Queued > most; s = x.Status() {
			time.Sleep(time.Millisecond)
		}
	}
	settle(0)
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 8<<10)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	const perMiB = 1 << 20 / (8 << 10)
	b.SetBytes(1 << 20)
	b.ResetTimer()
	before := cpuTime(b)
	for range b.N {
		for range perMiB {
			if _, err := x.Disks()[0].WriteAt(p, rng.Int64N(64<<20/int64(len(p)))*int64(len(p))); err != nil {
				b.Fatal(err)
			}
		}
		settle(16 << 20)
	}
	settle(0)
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/MiB")
	b.StopTimer()
	if err := x.Close(context.Background()); err != nil {
		b.Error(err)
	}
	cancel()
	l.Close()
	serving.Wait()
}

// benchTimeline is a timeline on the file system of temporary files that folds nothing.
func benchTimeline(b *testing.B) *Timeline {
	dir := b.TempDir()
	bucket, err := object.OpenDir(vfs.OS, filepath.Join(dir, "pool"))
	if err != nil {
		b.Fatal(err)
	}
	store, err := image.Open(b.Context(), image.Options{FS: vfs.OS, Dir: filepath.Join(dir, "store"), Bucket: bucket, Logger: quiet})
	if err != nil {
		b.Fatal(err)
	}
	set, err := Open(b.Context(), store, Options{FS: vfs.OS, Dir: filepath.Join(dir, "timelines"), Bucket: bucket, Logger: quiet, Manual: true, Reserve: -1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := set.Close(); err != nil {
			b.Error(err)
		}
		if err := store.Close(); err != nil {
			b.Error(err)
		}
	})
	line, err := set.Create(b.Context(), "tapped", []DiskSpec{{Name: "disk", Size: 64 << 20}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	return line
}

// cpuTime is the processor time that this process has taken.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
