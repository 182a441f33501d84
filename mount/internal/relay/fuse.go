package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of the FUSE protocol (linux/fuse.h) a file system of one file needs.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseSetattr     = 4
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatfs      = 17
	fuseRelease     = 18
	fuseFsync       = 20
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseDestroy     = 38
	fuseBatchForget = 42
	fuseFallocate   = 43

	fuseMajor, fuseMinor = 7, 31

	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15 // without it the kernel waits for each direct request
	initMaxPages  = 1 << 22

	openDirectIO             = 1 << 0
	openNoFlush              = 1 << 5 // Linux 5.16; see openDisk
	openParallelDirectWrites = 1 << 6

	inHeader  = 40
	outHeader = 16
	ioHeader  = 40 // fuse_read_in and fuse_write_in

	rootNode = 1
	diskNode = 2
	diskName = "disk"

	// maxTransfer is the largest read or write, the most that FUSE offers.
	maxTransfer = 1 << 20

	// maxBackground is how many direct requests the kernel sends at once.
	maxBackground = 256

	// iocClone is FUSE_DEV_IOC_CLONE.
	iocClone = 0x8004e500

	attrValid = 1 << 30 // seconds; the size of a disk does not change

	fallocKeepSize  = unix.FALLOC_FL_KEEP_SIZE
	fallocPunchHole = unix.FALLOC_FL_PUNCH_HOLE
	fallocZeroRange = unix.FALLOC_FL_ZERO_RANGE
)

var native = binary.NativeEndian

// Front shows a relay as a file.
type Front struct {
	r         *Relay
	channels  []*channel // each a /dev/fuse
	stop      int        // an eventfd: readable when the readers shall end
	readers   sync.WaitGroup
	done      chan struct{} // the kernel let go of the file system
	doneOnce  sync.Once
	closeOnce sync.Once
	inUse     atomic.Bool
}

// Show mounts a file system whose only file is the relayed disk, in no directory,
// and returns the file. The file system goes away with the last use of the file;
// readers is how many goroutines serve it.
//
// The caller must close the file before the process ends, or hand it to the kernel
// and close it: a process that dies with a file of its own FUSE file system open
// can wait for itself.
func (r *Relay) Show(readers int) (*Front, *os.File, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("eventfd: %w", err)
	}
	f := &Front{r: r, stop: stop, done: make(chan struct{})}
	if err := f.openDev(-1); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	mnt, err := f.mount()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	defer unix.Close(mnt)
	for len(f.channels) < readers {
		if err := f.openDev(f.channels[0].fd); err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
	}
	for i := range f.channels[1:] {
		f.serve(i + 1)
	}
	mode := os.O_RDWR
	if r.opt.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := openDisk(mnt, mode)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open the disk's file: %w", err), f.Close())
	}
	return f, file, nil
}

// openDisk opens the disk's file, for the second time. At the first close the kernel asks
// for FUSE's FLUSH, hears that there is none, and never asks again. If it
// asked only when the file is given up for good, a process that is killed in
// between would ask itself at its end, and wait for ever.
func openDisk(mnt, mode int) (*os.File, error) {
	for first := true; ; first = false {
		fd, err := unix.Openat(mnt, diskName, mode|unix.O_CLOEXEC|unix.O_DIRECT, 0)
		if err != nil {
			return nil, err
		}
		if !first {
			return os.NewFile(uintptr(fd), diskName), nil
		}
		if err := unix.Close(fd); err != nil {
			return nil, err
		}
	}
}

// InUse says that the file may be written from now on. Before, a flush has nothing to flush, and is not sent: whoever puts a device over the file flushes it,
// with locks that all users of such devices need, and would wait for a server that is away.
func (f *Front) InUse() { f.inUse.Store(true) }

// Done is closed when the kernel has let go of the file system.
func (f *Front) Done() <-chan struct{} { return f.done }

// Close aborts the file system: whoever still uses it gets errors.
func (f *Front) Close() error {
	var err error
	f.closeOnce.Do(func() {
		one := [8]byte{1}
		_, err = unix.Write(f.stop, one[:])
		f.readers.Wait()
		for _, c := range f.channels {
			err = errors.Join(err, unix.Close(c.fd))
		}
		err = errors.Join(err, unix.Close(f.stop))
	})
	return err
}

// openDev opens /dev/fuse, as one more channel of the one at fd unless that is -1.
func (f *Front) openDev(fd int) error {
	n, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse: %w", err)
	}
	if fd >= 0 {
		if err := unix.IoctlSetPointerInt(n, iocClone, fd); err != nil {
			return errors.Join(fmt.Errorf("clone /dev/fuse: %w", err), unix.Close(n))
		}
	}
	f.channels = append(f.channels, &channel{n})
	return nil
}

// mount makes the file system and starts its first reader, which the kernel
// needs in order to finish.
func (f *Front) mount() (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	for _, kv := range [][2]string{
		{"source", "tidemark"}, {"subtype", "tidemark"}, {"fd", fmt.Sprint(f.channels[0].fd)},
		{"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
	} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("fuse option %s: %w", kv[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create the fuse file system: %w", err)
	}
	f.serve(0)
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsmount fuse: %w", err)
	}
	return mnt, nil
}

// serve reads requests from channel i until the file system is gone.
func (f *Front) serve(i int) {
	rd := &reader{f: f, to: f.channels[i], lane: f.r.lanes[i%len(f.r.lanes)], buf: make([]byte, maxTransfer+4096)}
	f.readers.Go(func() {
		defer f.doneOnce.Do(func() { close(f.done) })
		rd.run()
	})
}

// reader turns the requests of one channel into requests to the server.
type reader struct {
	f    *Front
	to   *channel
	lane *lane
	next int
	busy bool // the lane is taken
	buf  []byte
}

// run waits for requests and handles them until there will be no more. It waits
// in poll(2): Go's poller would cost a thread's waking more for each burst.
func (rd *reader) run() {
	fds := []unix.PollFd{{Fd: int32(rd.to.fd), Events: unix.POLLIN}, {Fd: int32(rd.f.stop), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 || rd.drain() {
			return
		}
	}
}

// drain handles all requests there are, and sends what they ask of the server
// in one go. It reports true when there will be no more.
func (rd *reader) drain() (gone bool) {
	defer rd.letGo()
	for {
		n, err := unix.Read(rd.to.fd, rd.buf)
		switch {
		case err == nil:
			rd.handle(rd.buf[:n])
		case err == unix.EAGAIN:
			return false
		case err == unix.EINTR, err == unix.ENOENT: // ENOENT: the request was withdrawn
		default:
			return true // ENODEV: the file system is gone
		}
	}
}

// take takes the lane for the present batch.
func (rd *reader) take() *lane {
	if !rd.busy {
		lanes := rd.f.r.lanes
		rd.next++
		rd.lane = lanes[rd.next%len(lanes)]
		rd.lane.begin()
		rd.busy = true
	}
	return rd.lane
}

func (rd *reader) letGo() {
	if rd.busy {
		rd.lane.end()
		rd.busy = false
	}
}

// handle does one request.
func (rd *reader) handle(b []byte) {
	if len(b) < inHeader {
		return
	}
	op, unique, node := native.Uint32(b[4:]), native.Uint64(b[8:]), native.Uint64(b[16:])
	b = b[inHeader:]
	switch op {
	case fuseRead, fuseWrite, fuseFallocate:
		if node != diskNode || len(b) < 32 {
			rd.to.end(unique, unix.EINVAL)
			return
		}
		rd.transfer(op, unique, b)
	case fuseFsync:
		if !rd.f.inUse.Load() {
			rd.to.end(unique, 0)
			return
		}
		rd.take().flush(rd.to, unique)
	case fuseForget, fuseBatchForget: // have no answer
	case fuseInterrupt:
		// Requests are not interrupted: a write that was sent cannot be taken back.
		// This answer tells the kernel not to ask again.
		rd.to.end(unique, unix.ENOSYS)
	default:
		rd.meta(op, unique, node, b)
	}
}

// transfer does a request that touches the disk's bytes.
func (rd *reader) transfer(op uint32, unique uint64, b []byte) {
	off := native.Uint64(b[8:])
	n := uint64(native.Uint32(b[16:])) // of a read or write
	if op == fuseFallocate {
		n = native.Uint64(b[16:])
	}
	size := uint64(rd.f.r.info.Size)
	if off > size || n > size-off || n > 1<<32-1 {
		rd.to.end(unique, unix.EINVAL)
		return
	}
	if op != fuseRead && rd.f.r.opt.ReadOnly {
		rd.to.end(unique, unix.EROFS)
		return
	}
	switch op {
	case fuseRead:
		if n > maxTransfer {
			rd.to.end(unique, unix.EINVAL)
			return
		}
		rd.take().read(rd.to, unique, int64(off), uint32(n))
	case fuseWrite:
		if uint64(len(b)) != ioHeader+n {
			rd.to.end(unique, unix.EINVAL)
			return
		}
		rd.take().write(rd.to, unique, int64(off), b[ioHeader:])
	case fuseFallocate:
		rd.fallocate(unique, int64(off), uint32(n), native.Uint32(b[24:]))
	}
}

// fallocate is how the loop driver discards and zeroes. After either the bytes
// must read as zeros, so both are NBD's "write zeroes" and never its "trim",
// which promises nothing about content.
func (rd *reader) fallocate(unique uint64, off int64, n uint32, mode uint32) {
	hole := mode == fallocPunchHole|fallocKeepSize
	zero := mode&^fallocKeepSize == fallocZeroRange
	if !hole && !zero || !rd.f.r.info.canZero() {
		rd.to.end(unique, unix.EOPNOTSUPP)
		return
	}
	rd.take().zero(rd.to, unique, off, n, zero)
}

// meta answers what is not about the disk's bytes.
func (rd *reader) meta(op uint32, unique, node uint64, b []byte) {
	var out []byte
	switch op {
	case fuseInit:
		out = rd.f.init(b)
	case fuseLookup:
		if node != rootNode || string(b) != diskName+"\x00" {
			rd.to.end(unique, unix.ENOENT)
			return
		}
		out = make([]byte, 40, 128)
		native.PutUint64(out, diskNode)
		native.PutUint64(out[16:], attrValid)
		native.PutUint64(out[24:], attrValid)
		out = rd.f.attr(out, diskNode)
	case fuseGetattr:
		out = make([]byte, 16, 104)
		native.PutUint64(out, attrValid)
		out = rd.f.attr(out, node)
	case fuseOpen:
		out = make([]byte, 16)
		native.PutUint32(out[8:], openDirectIO|openNoFlush|openParallelDirectWrites)
	case fuseStatfs:
		out = make([]byte, 80)
		native.PutUint32(out[40:], 4096) // the loop driver's grain of discard
		native.PutUint32(out[44:], 255)
		native.PutUint32(out[48:], 4096)
	case fuseRelease, fuseDestroy:
	case fuseSetattr:
		rd.to.end(unique, unix.EPERM)
		return
	default:
		rd.to.end(unique, unix.ENOSYS)
		return
	}
	rd.to.reply(unique, out)
}

// init agrees with the kernel on how to talk.
func (f *Front) init(b []byte) []byte {
	out := make([]byte, 64)
	native.PutUint32(out, fuseMajor)
	native.PutUint32(out[4:], fuseMinor)
	native.PutUint32(out[12:], (initAsyncRead|initBigWrites|initAsyncDIO|initMaxPages)&native.Uint32(b[12:]))
	native.PutUint16(out[16:], maxBackground)
	native.PutUint16(out[18:], maxBackground*3/4)
	n := min(maxTransfer, f.r.info.MaxBlock)
	native.PutUint32(out[20:], uint32(n))
	native.PutUint32(out[24:], 1)
	native.PutUint16(out[28:], uint16(max(1, n/os.Getpagesize())))
	return out
}

// attr appends a fuse_attr.
func (f *Front) attr(out []byte, node uint64) []byte {
	mode, size := uint32(unix.S_IFDIR|0o500), uint64(0)
	if node == diskNode {
		mode, size = unix.S_IFREG|0o600, uint64(f.r.info.Size)
	}
	a := make([]byte, 88)
	native.PutUint64(a, node)
	native.PutUint64(a[8:], size)
	native.PutUint64(a[16:], size/512)
	native.PutUint32(a[60:], mode)
	native.PutUint32(a[64:], 1)
	native.PutUint32(a[80:], 4096)
	return append(out, a...)
}

// channel is one /dev/fuse. The kernel takes each answer whole, so that any
// number of goroutines may answer at once.
type channel struct{ fd int }

// reply sends an answer that is not made of the server's bytes.
func (c *channel) reply(unique uint64, body []byte) {
	b := make([]byte, outHeader, outHeader+128)
	native.PutUint32(b, uint32(outHeader+len(body)))
	native.PutUint64(b[8:], unique)
	// An error means that the kernel no longer waits: the file system was aborted.
	unix.Write(c.fd, append(b, body...))
}

func (c *channel) end(unique uint64, e unix.Errno) {
	var b [outHeader]byte
	native.PutUint32(b[:], outHeader)
	native.PutUint32(b[4:], uint32(-int32(e)))
	native.PutUint64(b[8:], unique)
	unix.Write(c.fd, b[:])
}

// answer neither copies nor allocates.
func (c *channel) answer(l *lane, s slot, e unix.Errno, data []byte) {
	n := outHeader
	native.PutUint32(l.head[4:], uint32(-int32(e)))
	native.PutUint64(l.head[8:], s.unique)
	if e == 0 && s.op == opWrite { // a fuse_write_out
		n += 8
		native.PutUint32(l.head[16:], s.n)
		native.PutUint32(l.head[20:], 0)
	}
	native.PutUint32(l.head[:], uint32(n+len(data)))
	l.iov[0].Base = &l.head[0]
	l.iov[0].SetLen(n)
	parts := 1
	if len(data) > 0 {
		l.iov[1].Base = &data[0]
		l.iov[1].SetLen(len(data))
		parts = 2
	}
	syscall.Syscall(unix.SYS_WRITEV, uintptr(c.fd), uintptr(unsafe.Pointer(&l.iov[0])), uintptr(parts))
}
