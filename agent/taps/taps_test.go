package taps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/wire"
)

// TestMain makes this test binary the process of a tap, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "tap" {
		if err := Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// copyOf is a server's side: what came, as a disk.
type copyOf struct {
	mu     sync.Mutex
	data   []byte
	stream string
	seq    uint64
	lost   bool
	marks  []string
}

func (c *copyOf) open(_ context.Context, timeline, id string, before capture.Sent) (wire.Feed, bool, error) {
	if timeline != "t" {
		return nil, false, errors.New("no such timeline")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.stream == id || c.stream == before.ID
	if c.stream != id {
		c.stream, c.seq = id, 0
	}
	return c, known, nil
}

func (c *copyOf) locked(fn func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn()
	return nil
}

func (c *copyOf) Applied() (n uint64) { c.locked(func() { n = c.seq }); return n }
func (c *copyOf) Apply(list []capture.Change) error {
	for i := range list {
		if err := list[i].Own(); err != nil {
			return err
		}
	}
	return c.locked(func() {
		for _, x := range list {
			clear(c.data[x.Off : x.Off+x.Len])
			copy(c.data[x.Off:], x.Data)
			c.seq++
		}
	})
}
func (c *copyOf) Lose(int64, string) error    { return c.locked(func() { c.lost = true }) }
func (c *copyOf) Sample(capture.Sample) error { return nil }
func (c *copyOf) Whole() error                { return c.locked(func() { c.lost = false }) }
func (c *copyOf) Bookmark(m capture.Mark) error {
	return c.locked(func() { c.marks = append(c.marks, m.Name) })
}
func (c *copyOf) Sync() (uint64, error) { return c.Applied(), nil }
func (c *copyOf) Close() error          { return nil }

// serve takes changes on a socket until the test ends, or stop is called.
func (c *copyOf) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go wire.Serve(ctx, conn, c.open)
		}
	}()
	var once sync.Once
	stop = func() { once.Do(func() { l.Close(); cancel() }) }
	t.Cleanup(stop)
	return stop
}

const diskSize = 8 << 20

// fixture is a primary with a tap.
type fixture struct {
	t    *testing.T
	dir  string
	copy *copyOf
	cfg  Config
}

func newFixture(t *testing.T) *fixture {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	// A socket's path is short, and a test's directory need not be.
	dir, err := os.MkdirTemp("", "taps")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, copy: &copyOf{data: make([]byte, diskSize)},
		cfg: Config{Dir: filepath.Join(dir, "tap"), Primaries: []string{filepath.Join(dir, "disk")}, Server: filepath.Join(dir, "server.sock"), Timeline: "t"}}
	if err := os.WriteFile(f.cfg.Primaries[0], bytes.Repeat([]byte("first"), diskSize)[:diskSize], 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) start() *Tap {
	f.t.Helper()
	x, err := Start(f.t.Context(), f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if x.Alive() {
			unix.Kill(x.PID(), unix.SIGKILL)
		}
	})
	return x
}

// write writes through the tap.
func (f *fixture) write(x *Tap, pattern byte, off, n int) {
	f.t.Helper()
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P %d %d %d", pattern, off, n), "-c", "flush",
		"nbd+unix:///"+Export(0)+"?socket="+x.Socket()).CombinedOutput()
	if err != nil {
		f.t.Fatalf("%v: %s", err, out)
	}
}

// follows waits until the copy is what the primary is.
func (f *fixture) follows(x *Tap) {
	f.t.Helper()
	var last string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		s, err := x.Status(f.t.Context())
		if err != nil {
			f.t.Fatal(err)
		}
		last = fmt.Sprintf("%+v", s)
		if !s.Online || s.Gap || s.Queued > 0 {
			continue
		}
		want, err := os.ReadFile(f.cfg.Primaries[0])
		if err != nil {
			f.t.Fatal(err)
		}
		f.copy.mu.Lock()
		defer f.copy.mu.Unlock()
		if !bytes.Equal(f.copy.data, want) || f.copy.lost {
			f.t.Fatalf("the copy is another; lost %v", f.copy.lost)
		}
		return
	}
	f.t.Fatalf("the server does not follow: %s", last)
}

func TestTapProcess(t *testing.T) {
	f := newFixture(t)
	f.copy.serve(t, f.cfg.Server)
	x := f.start()
	f.write(x, 7, 1<<20, 300_032)
	f.follows(x)
	if s, err := x.Status(t.Context()); err != nil || !s.Shared {
		t.Errorf("the server does not read the tap's memory: %+v, %v", s, err)
	}
	if err := x.Bookmark(t.Context(), capture.Mark{Name: "m", ID: "1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), f.cfg); err == nil || !strings.Contains(err.Error(), "another tap") {
		t.Errorf("a second tap: %v", err)
	}
	other := f.cfg
	other.Dir = filepath.Join(f.dir, "other")
	if _, err := Start(t.Context(), other); err == nil || !strings.Contains(err.Error(), tap.ErrBusy.Error()) {
		t.Errorf("a tap of a tapped disk: %v", err)
	}
	found, err := Find(f.cfg.Dir)
	if err != nil || found.PID() != x.PID() || !found.Alive() {
		t.Fatalf("found %+v: %v", found, err)
	}
	if err := found.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if x.Alive() || len(f.copy.marks) != 1 {
		t.Errorf("it is alive %v, marks %v", x.Alive(), f.copy.marks)
	}
	if _, err := x.Status(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("status of one that ended: %v", err)
	}
	if _, err := Find(t.TempDir()); !errors.Is(err, ErrNotFound) {
		t.Errorf("found in an empty directory: %v", err)
	}
}

// C1, J4: A tap that is killed while its server is away leaves nothing undone.
func TestTapProcessKilled(t *testing.T) {
	f := newFixture(t)
	stop := f.copy.serve(t, f.cfg.Server)
	x := f.start()
	f.follows(x)
	stop()
	f.write(x, 9, 4096, 1<<20)
	s, err := x.Status(t.Context())
	if err != nil || s.Queued == 0 && s.Lost == 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	unix.Kill(x.PID(), unix.SIGKILL)
	if err := x.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	x = f.start()
	if s, err := x.Status(t.Context()); err != nil || s.Lost < 1<<20 || s.Lost > 2<<20 {
		t.Fatalf("after the kill %+v, %v", s, err)
	}
	if err := x.Bookmark(t.Context(), capture.Mark{Name: "m"}); !errors.Is(err, tap.ErrGap) {
		t.Errorf("a bookmark in a gap: %v", err)
	}
	f.copy.serve(t, f.cfg.Server)
	f.follows(x)
}

func TestTapRefuses(t *testing.T) {
	f := newFixture(t)
	for what, primary := range map[string]string{"no such file": filepath.Join(f.dir, "none"), "neither": f.dir, "neither a block device nor a file": "/dev/null"} {
		cfg := f.cfg
		cfg.Primaries = []string{f.cfg.Primaries[0], primary}
		if _, err := Start(t.Context(), cfg); err == nil {
			t.Errorf("%s: tapped %s", what, primary)
		}
	}
	x := f.start() // what failed has let go of everything
	if err := x.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// carryCounted gives each connection to a socket one to a server of another host, as an agent does, and counts what it brings there.
func carryCounted(t *testing.T, socket, address string) *atomic.Int64 {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	n := new(atomic.Int64)
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", address)
			if err != nil {
				near.Close()
				continue
			}
			t.Cleanup(func() { near.Close(); far.Close() })
			go func() {
				buf := make([]byte, 64<<10)
				for {
					k, err := near.Read(buf)
					n.Add(int64(k))
					if _, werr := far.Write(buf[:k]); err != nil || werr != nil {
						far.Close()
						return
					}
				}
			}()
			go func() {
				io.Copy(struct{ io.Writer }{near}, far)
				near.Close()
			}()
		}
	}()
	return n
}

// What a tap sends to a server of another host is compressed on its way, and arrives as it was.
func TestTapOfAnotherHostCompresses(t *testing.T) {
	f := newFixture(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go wire.Serve(t.Context(), conn, f.copy.open)
		}
	}()
	sent := carryCounted(t, f.cfg.Server, l.Addr().String())
	x := f.start()
	f.follows(x) // all of the disk, which is text
	if s, err := x.Status(t.Context()); err != nil || s.Shared {
		t.Errorf("the server reads memory of another host: %+v, %v", s, err)
	}
	if n := sent.Load(); n > diskSize/10 {
		t.Errorf("%d bytes went for a disk of %d", n, diskSize)
	}
	before := sent.Load()
	f.write(x, 0xa5, 1<<20, 4<<20)
	f.follows(x)
	t.Logf("%d bytes went for the disk, and %d for 4 MiB of one byte", before, sent.Load()-before)
	if n := sent.Load() - before; n > 4<<20/50 {
		t.Errorf("%d bytes went for 4 MiB of one byte", n)
	}
}
