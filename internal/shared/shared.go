// Package shared gives two processes of one host memory that the one fills and the other reads, without either having to trust the other.
//
// The owner makes a [Memory] with [New] and passes its file to the reader, once. The reader maps it with [Open], and cannot be
// brought down by it: the memory is sealed, so that nobody makes it shorter while it is read. But whoever filled it can change it at any time. So
// what is read is never believed where it lies: it is copied, by [Copy], and the copy is compared with the checksum that the owner
// made of it.
package shared

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrUnsafe: what was passed is not memory that can be read without fear, or not what was said of it.
	ErrUnsafe = errors.New("this memory cannot be shared")
	// ErrChanged: what was read is not what its owner had put there.
	ErrChanged = errors.New("the shared memory has changed")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum is the checksum of p, CRC-32C.
func Sum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Memory is memory that processes share. Its methods may be called concurrently. A nil Memory is none: it can be held and released.
type Memory struct {
	file *os.File // nil in the reader
	data []byte
	refs atomic.Int64
}

// seals are what a reader insists on: memory that becomes shorter ends the process that touches it (SIGBUS).
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// New returns size bytes of memory, zeroed, which the caller holds. They take room when they are touched. An error means that the host has none
// of this kind.
func New(size int) (*Memory, error) {
	fd, err := create()
	if err != nil {
		return nil, fmt.Errorf("make memory to share: %w", err)
	}
	m := &Memory{file: os.NewFile(uintptr(fd), "shared memory")}
	m.refs.Store(1)
	err = unix.Ftruncate(fd, int64(size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|unix.F_SEAL_SEAL)
	}
	if err == nil {
		m.data, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make %d bytes of memory to share: %w", size, err), m.file.Close())
	}
	return m, nil
}

func create() (fd int, err error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate("tidemark", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("tidemark", flags)
	}
	return fd, err
}

// Open maps what another process passed, for reading only, and closes the file; the caller holds it. size is what that process says of its length, in
// bytes. Anything else than sealed memory of that length is ErrUnsafe; another error means that it cannot be mapped here.
func Open(f *os.File, size int64) (m *Memory, err error) {
	defer f.Close()
	if err := inspect(int(f.Fd()), size); err != nil {
		return nil, err
	}
	m = &Memory{}
	m.refs.Store(1)
	m.data, err = unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of shared memory: %w", size, err)
	}
	return m, nil
}

// inspect refuses what could end a process that reads it. Pages of the kind that is reserved beforehand (hugetlbfs) can: they
// may be missing where there is no room for one more.
func inspect(fd int, size int64) error {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsafe, err)
	}
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	switch {
	case err != nil || int64(fs.Type) != unix.TMPFS_MAGIC:
		return fmt.Errorf("%w: it is none", ErrUnsafe)
	case have&seals != seals:
		return fmt.Errorf("%w: it is not sealed", ErrUnsafe)
	case size <= 0 || size > math.MaxInt || st.Size != size:
		return fmt.Errorf("%w: it has %d bytes and not %d", ErrUnsafe, st.Size, size)
	}
	return nil
}

// Bytes is the memory. It must not be used without being held.
func (m *Memory) Bytes() []byte { return m.data }

// File is what is passed to a reader. It stays the memory's; in a reader there is none.
func (m *Memory) File() *os.File { return m.file }

// Hold keeps the memory until Release.
func (m *Memory) Hold() {
	if m != nil {
		m.refs.Add(1)
	}
}

// Release undoes one Hold, or the making. With the last one the memory is gone here; who else has it mapped keeps it.
func (m *Memory) Release() error {
	if m == nil || m.refs.Add(-1) > 0 {
		return nil
	}
	data := m.data
	m.data = nil
	err := unix.Munmap(data)
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
	}
	return err
}

// Forget gives the room of n bytes at off back to the host, both multiples of its pages: they are zeros then, for all who share them. Only the owner can.
func (m *Memory) Forget(off, n int64) error {
	err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil {
		return fmt.Errorf("give shared memory back: %w", err)
	}
	return nil
}

// Copy copies src, of shared memory, to dst, which is as long and nobody else's, and compares the copy with the checksum of what should be
// there. ErrChanged: it is something else, or cannot be read; then what dst holds means nothing.
func Copy(dst, src []byte, sum uint32) (err error) {
	if err := copyGuarded(dst, src); err != nil {
		return err
	}
	if got := Sum(dst); got != sum {
		return fmt.Errorf("%w: %d bytes with checksum %#x and not %#x", ErrChanged, len(src), got, sum)
	}
	return nil
}

// copyGuarded is copy where a page may be gone for a reason that no seal is against: memory that has failed, a swap that cannot be read.
func copyGuarded(dst, src []byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = fmt.Errorf("%w: %d bytes cannot be read: %w", ErrChanged, len(src), p)
		default:
			panic(p)
		}
	}()
	copy(dst, src)
	return nil
}
