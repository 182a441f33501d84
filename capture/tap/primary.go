package tap

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

// ErrBusy: somebody else has the disk: it is mounted, or tapped already.
var ErrBusy = errors.New("the disk is in use")

// host is a Primary that is a block device or a file of this host.
type host struct {
	f      *os.File
	size   int64
	failed atomic.Pointer[error] // of a Flush: what the kernel has dropped then, nobody knows

	sync     func(fd int) error // Fdatasync
	flushing sync.Mutex         // held by who syncs: the kernel tells a failure once
	begun    atomic.Uint64      // how many syncs have begun
	done     uint64             // the last that has succeeded; guarded by flushing
}

var _ Primary = (*host)(nil)

// OpenPrimary opens a block device or a regular file as a disk to be tapped, for itself alone:
// a device that is mounted, or a file that is locked, is ErrBusy.
func OpenPrimary(path string) (Primary, error) {
	// Whether O_EXCL is heeded depends on what is opened: of a device it means that nobody else, a mount
	// included, has it so; of a file without O_CREAT nothing.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s: %w", path, ErrBusy)
	}
	if err != nil {
		return nil, err
	}
	h := &host{f: f, sync: unix.Fdatasync}
	if err := h.look(path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// Inspect returns the size of a disk in bytes, if it could be tapped now.
func Inspect(path string) (size int64, err error) {
	p, err := OpenPrimary(path)
	if err != nil {
		return 0, err
	}
	return p.Size(), p.Close()
}

// Sector returns the length in bytes of the sectors that a disk of this host should be shown with.
func Sector(p Primary) (int, error) {
	h, ok := p.(*host)
	if !ok {
		return 512, nil
	}
	st, err := h.f.Stat()
	if err != nil || st.Mode()&fs.ModeDevice == 0 {
		return 512, err
	}
	n, err := unix.IoctlGetInt(int(h.f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return 0, fmt.Errorf("sectors of %s: %w", h.f.Name(), err)
	}
	return n, nil
}

// shownBy returns the loop device that shows a file, if one does: who writes there and who writes to the
// file do not know of each other.
func shownBy(path string) (device string, err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.TrimSuffix(string(b), "\n") == real {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(name))), nil
		}
	}
	return "", nil
}

func (h *host) look(path string) error {
	st, err := h.f.Stat()
	if err != nil {
		return err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		h.size = st.Size()
		if device, err := shownBy(path); err != nil {
			return err
		} else if device != "" {
			return fmt.Errorf("%s is shown as %s: %w", path, device, ErrBusy)
		}
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		if h.size, err = h.f.Seek(0, io.SeekEnd); err != nil {
			return fmt.Errorf("size of %s: %w", path, err)
		}
	default:
		return fmt.Errorf("%s is neither a block device nor a file", path)
	}
	if h.size == 0 || h.size%512 != 0 {
		return fmt.Errorf("%s has %d bytes: a disk has a multiple of 512", path, h.size)
	}
	if err := unix.Flock(int(h.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w", path, ErrBusy)
	}
	return nil
}

func (h *host) Size() int64 { return h.size }

func (h *host) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(h, off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := h.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) { // no end of a disk is here
		err = fmt.Errorf("%s ends at %d: %w", h.f.Name(), off+int64(n), io.ErrUnexpectedEOF)
	}
	return n, err
}

// Health implements healthy.
func (h *host) Health() (sound int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(h.f.Fd()), &st); err != nil {
		return h.size, fmt.Errorf("look at %s: %w", h.f.Name(), err)
	}
	size := st.Size
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		if size, err = h.f.Seek(0, io.SeekEnd); err != nil {
			return h.size, fmt.Errorf("size of %s: %w", h.f.Name(), err)
		}
	} else if st.Nlink == 0 {
		return h.size, fmt.Errorf("%s was deleted, and what is in it goes when its last user ends", h.f.Name())
	}
	if size < h.size {
		return size, fmt.Errorf("%s has shrunk: it has %d bytes, and had %d", h.f.Name(), size, h.size)
	}
	return h.size, nil
}

func (h *host) WriteAt(p []byte, off int64) (int, error) {
	if err := h.usable(off, int64(len(p))); err != nil {
		return 0, err
	}
	return h.f.WriteAt(p, off)
}

// usable reports why [off, off+n) cannot be written.
func (h *host) usable(off, n int64) error {
	if err := h.failed.Load(); err != nil {
		return *err
	}
	return block.Check(h, off, n)
}

// Flush makes durable what was written before. Who comes while another syncs waits for the next sync, which serves all who have come by
// then: two at once would both wait for the same write, and of its failure the kernel tells only one.
func (h *host) Flush() error {
	want := h.begun.Load() + 1
	h.flushing.Lock()
	defer h.flushing.Unlock()
	if err := h.failed.Load(); err != nil {
		return *err
	}
	if h.done >= want {
		return nil
	}
	n := h.begun.Add(1)
	if err := h.sync(int(h.f.Fd())); err != nil {
		err = fmt.Errorf("flush %s: %w", h.f.Name(), err)
		h.failed.CompareAndSwap(nil, &err)
		// What the kernel could not write it keeps in memory as if it had. Who reads next, to see what the disk
		// has, has to be told what is on the medium.
		_ = unix.Fadvise(int(h.f.Fd()), 0, 0, unix.FADV_DONTNEED)
		return err
	}
	h.done = n
	return nil
}

func (h *host) Discard(off, n int64) error { return h.Zero(off, n) }

// Zero frees the space where that can be done: for files a hole, for devices what BLKZEROOUT makes of it, which
// the kernel turns into a discard if the device promises zeros after one.
func (h *host) Zero(off, n int64) error {
	if err := h.usable(off, n); err != nil || n == 0 {
		return err
	}
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	for {
		switch err := unix.Fallocate(int(h.f.Fd()), mode, off, n); {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			return h.writeZeros(off, n)
		default:
			return err
		}
	}
}

func (h *host) writeZeros(off, n int64) error {
	var zero [64 << 10]byte
	for n > 0 {
		k, err := h.f.WriteAt(zero[:min(n, int64(len(zero)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

func (h *host) Close() error { return h.f.Close() }
