package mount

import (
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/block"
	"tidemark/block/blocktest"
	"tidemark/export/nbd"
)

// forgetful is a disk that keeps what was not flushed in the memory of its process
// alone, so that a kill loses all of it.
type forgetful struct {
	file *os.File
	size int64

	mu    sync.Mutex
	dirty map[int64][]byte // by the offset of a block
}

func openForgetful(path string) (*forgetful, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &forgetful{file: f, size: st.Size(), dirty: map[int64][]byte{}}, nil
}

func (d *forgetful) Size() int64 { return d.size }

// each calls fn for the part of every block that [off, off+n) touches.
func (d *forgetful) each(off, n int64, fn func(at, from, to int64) error) error {
	for end := off + n; off < end; {
		at := off &^ (block.BlockSize - 1)
		to := min(end, at+block.BlockSize)
		if err := fn(at, off-at, to-at); err != nil {
			return err
		}
		off = to
	}
	return nil
}

func (d *forgetful) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(d, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.file.ReadAt(p, off); err != nil {
		return 0, err
	}
	return len(p), d.each(off, int64(len(p)), func(at, from, to int64) error {
		if b := d.dirty[at]; b != nil {
			copy(p[at+from-off:], b[from:to])
		}
		return nil
	})
}

func (d *forgetful) WriteAt(p []byte, off int64) (int, error) {
	if err := block.Check(d, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(p), d.each(off, int64(len(p)), func(at, from, to int64) error {
		b, err := d.own(at)
		copy(b[from:to], p[at+from-off:])
		return err
	})
}

// own returns a block that may be changed.
func (d *forgetful) own(at int64) ([]byte, error) {
	if b := d.dirty[at]; b != nil {
		return b, nil
	}
	b := make([]byte, min(block.BlockSize, d.size-at))
	d.dirty[at] = b
	_, err := d.file.ReadAt(b, at)
	return b, err
}

// Discard forgets nothing: holes are made at once.
func (d *forgetful) Discard(off, n int64) error {
	if err := block.Check(d, off, n); err != nil || n == 0 {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, b := range d.dirty {
		if from, to := max(at, off), min(at+int64(len(b)), off+n); from < to {
			clear(b[from-at : to-at])
		}
	}
	return unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Flush puts all into the page cache, which outlives the process.
func (d *forgetful) Flush() error {
	for exists(d.file.Name() + stuck) {
		time.Sleep(5 * time.Millisecond)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, b := range d.dirty {
		if _, err := d.file.WriteAt(b, at); err != nil {
			return err
		}
		delete(d.dirty, at)
	}
	return nil
}

// stuck is behind the name of a disk's file in that of one that keeps flushes from ending.
const stuck = ".stuck"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// serveForgetful is the process of a server: it serves the file at a path as the
// export "disk", and as the read-only "fixed", at an address, until it is killed.
func serveForgetful(addr, path string) error {
	d, err := openForgetful(path)
	if err != nil {
		return err
	}
	table := nbd.NewTable()
	for name, readOnly := range map[string]bool{"disk": false, "fixed": true} {
		if err := table.Add(&nbd.Export{Name: name, Device: d, ReadOnly: readOnly}); err != nil {
			return err
		}
	}
	l, err := nbd.Listen(addr)
	if err != nil {
		return err
	}
	return nbd.NewServer(table, nbd.Options{}).Serve(l)
}

// TestForgetfulIsADevice makes sure that the tests' server is a disk.
func TestForgetfulIsADevice(t *testing.T) {
	path := newDisk(t, t.TempDir(), 2<<20+512)
	open := func() block.Device {
		d, err := openForgetful(path)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	blocktest.Device(t, open(), 0, open)
}
