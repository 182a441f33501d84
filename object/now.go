package object

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// NowReader is the power of a bucket that can tell, without waiting for a
// medium, whether it has a range of an object in memory. Where it has, a reader
// saves the hand-over to somebody who may wait.
type NowReader interface {
	// ReadAtNow fills p from offset off of the object and returns true if that
	// takes no waiting. False, with unspecified p, says nothing but that ReadAt
	// must be asked: it tells what is wrong, if anything is.
	ReadAtNow(key string, p []byte, off int64) bool
}

var (
	_ NowReader = (*Dir)(nil)
	_ NowReader = (*Mem)(nil)
)

// nowMode is how a file is read without waiting; it depends on its file system.
type nowMode = int32

const (
	nowUnknown nowMode = iota
	nowAsk             // the kernel answers EAGAIN where it would wait
	nowAlways          // the file lies in memory as a whole
	nowNever           // there is no telling
)

// ReadAtNow implements [NowReader] with RWF_NOWAIT: what is in the page cache is read.
func (d *Dir) ReadAtNow(key string, p []byte, off int64) bool {
	d.mu.Lock()
	e, ok := d.open[key]
	if !ok { // to open it takes a look at the directory, which may wait
		d.mu.Unlock()
		return false
	}
	h := e.Value.(*handle)
	h.refs++
	d.mu.Unlock()
	ok = readNow(h, p, off)
	d.release(h)
	return ok
}

func readNow(h *handle, p []byte, off int64) bool {
	fd := int(h.f.Fd())
	if fd < 0 || off < 0 { // not a file of the kernel's, or what it would take for the place of the last read
		return false
	}
	mode := atomic.LoadInt32(&h.now)
	if mode == nowUnknown {
		mode = nowModeOf(fd)
		atomic.StoreInt32(&h.now, mode)
	}
	flags := 0
	switch mode {
	case nowAsk:
		flags = unix.RWF_NOWAIT
	case nowNever:
		return false
	}
	n, err := unix.Preadv2(fd, [][]byte{p}, off, flags)
	return err == nil && n == len(p)
}

// nowModeOf finds out with a read of one byte. A file system that refuses the
// flag may be one that has no medium: tmpfs.
func nowModeOf(fd int) nowMode {
	var b [1]byte
	_, err := unix.Preadv2(fd, [][]byte{b[:]}, 0, unix.RWF_NOWAIT)
	if err == nil || errors.Is(err, unix.EAGAIN) {
		return nowAsk
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil && (st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC) {
		return nowAlways
	}
	return nowNever
}

// ReadAtNow implements [NowReader].
func (m *Mem) ReadAtNow(key string, p []byte, off int64) bool {
	m.mu.RLock()
	data, ok := m.objects[key]
	m.mu.RUnlock()
	return ok && off >= 0 && off <= int64(len(data)) && copy(p, data[off:]) == len(p)
}
