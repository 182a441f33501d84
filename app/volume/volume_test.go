package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"tidemark"
	"tidemark/block"
)

// disk is a file as a disk, that counts writes and can fail.
type disk struct {
	f       *os.File
	size    int64
	mu      sync.Mutex
	written int64
	flushed int
	fail    error
}

func newDisk(t testing.TB, size int64) *disk {
	f, err := os.Create(filepath.Join(t.TempDir(), "dst"))
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &disk{f: f, size: size}
}

func (d *disk) Size() int64                             { return d.size }
func (d *disk) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }
func (d *disk) Flush() error                            { d.flushed++; return d.fail }
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return 0, d.fail
	}
	d.written += int64(len(p))
	return d.f.WriteAt(p, off)
}
func (d *disk) Discard(off, n int64) error { _, err := d.f.WriteAt(make([]byte, n), off); return err }

var _ block.Device = (*disk)(nil)

// A source of data and holes is imported again and again while it changes at random.
func TestImportModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const size = 5<<20 + 3*512
	src := filepath.Join(t.TempDir(), "src")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, 6<<20)
	if _, err := d.f.WriteAt([]byte{7}, size); err != nil { // beyond the source: stays
		t.Fatal(err)
	}
	for round := range 20 {
		var touched int64
		for range rng.IntN(5) {
			off, n := rng.Int64N(size), rng.Int64N(200_000)
			n = min(n, size-off)
			if rng.IntN(3) == 0 {
				err = syscall.Fallocate(int(f.Fd()), 0x3, off, max(n, 1)) // punch a hole
			} else {
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				_, err = f.WriteAt(p, off)
			}
			if err != nil {
				t.Fatal(err)
			}
			touched += n + 2*block.BlockSize
		}
		d.written = 0
		var last tidemark.Progress
		st, err := Import(context.Background(), src, d, Options{Progress: func(p tidemark.Progress) { last = p }})
		if err != nil {
			t.Fatalf("seed %d round %d: %v", seed, round, err)
		}
		if st.ReadBytes+st.HoleBytes != size || last.Done != size {
			t.Errorf("seed %d round %d: dealt with %d+%d, progress %d of %d bytes", seed, round, st.ReadBytes, st.HoleBytes, last.Done, size)
		}
		if d.written > touched {
			t.Errorf("seed %d round %d: wrote %d bytes for %d changed", seed, round, d.written, touched)
		}
		compare(t, src, d, seed)
	}
	if _, err := Import(context.Background(), src, d, Options{}); err != nil || d.flushed != 21 {
		t.Errorf("flushed %d times, %v", d.flushed, err)
	}
}

func compare(t *testing.T, src string, d *disk, seed uint64) {
	t.Helper()
	want, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want)+1)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got[:len(want)]) || got[len(want)] != 7 {
		t.Fatalf("seed %d: the volume differs from its source", seed)
	}
}

func TestImportRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, n := range map[string]int64{"empty": 0, "odd": 1000, "big": 4 << 20} {
		if err := os.WriteFile(path(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path(name), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(path("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string]string{
		dir: "neither", path("fifo"): "neither", "/dev/null": "neither", path("absent"): "there is no",
		path("empty"): "empty", path("odd"): "multiple of 512", path("big"): "only",
	} {
		d := newDisk(t, 1<<20)
		_, err := Import(context.Background(), src, d, Options{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") || d.written != 0 {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestChangingSourceIsAnError(t *testing.T) {
	for name, change := range map[string]func(f *os.File) error{
		"grown":   func(f *os.File) error { return f.Truncate(4 << 20) },
		"shorter": func(f *os.File) error { return f.Truncate(1 << 20) },
		"written": func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 5); return err },
	} {
		src := filepath.Join(t.TempDir(), "src")
		if err := os.WriteFile(src, bytes.Repeat([]byte("a"), 2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(src, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Import(context.Background(), src, newDisk(t, 4<<20), Options{afterOpen: func() {
			if err := change(f); err != nil {
				t.Error(err)
			}
		}})
		f.Close()
		if tidemark.KindOf(err) != tidemark.Conflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImportFailsWhole(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	if err := os.WriteFile(src, bytes.Repeat([]byte("a"), 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDisk(t, 8<<20)
	d.fail = errors.New("disk broken")
	if _, err := Import(context.Background(), src, d, Options{}); !errors.Is(err, d.fail) {
		t.Errorf("write error: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Import(ctx, src, newDisk(t, 8<<20), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestImportBlockDevice(t *testing.T) {
	img := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(img, bytes.Repeat([]byte("tide"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", img).Output()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("CI must have loop devices: %v", err)
		}
		t.Skip("needs root and loop devices")
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	if n, err := SourceSize(dev); err != nil || n != 1<<20 {
		t.Errorf("size of %s: %d, %v", dev, n, err)
	}
	d := newDisk(t, 2<<20)
	st, err := Import(context.Background(), dev, d, Options{})
	if err != nil || st.ChangedBytes != 1<<20 {
		t.Errorf("%s: %+v, %v", dev, st, err)
	}
}

func BenchmarkImportUnchanged(b *testing.B) {
	src := filepath.Join(b.TempDir(), "src")
	const size = 256 << 20
	if err := os.WriteFile(src, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
		b.Fatal(err)
	}
	d := newDisk(b, size)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := Import(context.Background(), src, d, Options{}); err != nil {
			b.Fatal(fmt.Errorf("import: %w", err))
		}
	}
}
