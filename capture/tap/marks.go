package tap

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// marks is which regions of a disk the timeline may lack, in memory that outlives the process.
type marks struct {
	bits  bitmap
	fresh bool // there were none
	sync  func() error
	close func() error
}

// mapFile maps a file of marks for n regions. It takes all of its room now: memory without a place in the file
// would end the process at its first touch.
func mapFile(path string, n int64) (m marks, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return m, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return m, err
	}
	size := max(wordsFor(n), 1) * 8
	m.fresh = st.Size() != size
	if m.fresh {
		err = f.Truncate(0) // what it held was of another disk
	}
	if err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	}
	if err != nil {
		return m, fmt.Errorf("make room for marks: %w", err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return m, fmt.Errorf("map %s: %w", path, err)
	}
	_ = unix.Mlock(mem) // where it may not, a page that was taken away is read again
	m.bits = bitmap{words: unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8), n: n}
	m.sync = func() error { return unix.Msync(mem, unix.MS_SYNC) }
	m.close = func() error { return errors.Join(unix.Munmap(mem)) }
	return m, nil
}
