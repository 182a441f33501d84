package mount

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// loopShape is how a loop device is to be.
type loopShape struct {
	Sector   int
	ReadOnly bool
}

// attachLoop puts a free loop device over a file and returns its path. The tag
// is kept by the kernel as the name of the file, so that a device is known as ours.
func attachLoop(file *os.File, as loopShape, tag string) (string, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	if err := loopTurn(ctl); err != nil {
		return "", err
	}
	cfg := unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(as.Sector)}
	cfg.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if as.ReadOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], tag)
	for range 64 { // somebody else may take the free device before us
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("find a free loop device: %w", err)
		}
		path := fmt.Sprintf("/dev/loop%d", n)
		err = configureLoop(path, &cfg)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return "", fmt.Errorf("configure %s: %w", path, err)
		}
	}
	return "", errors.New("no loop device to be had: others keep taking them")
}

// loopTurn waits until no other attacher is about to take a loop device. Two that
// take the same do each other harm: who comes second opens a device that is in use,
// for which the kernel reads from it, and waits as long as its server is away.
// An attacher that does not get on is not waited for, since the race is rare.
func loopTurn(ctl *os.File) error {
	for range 200 {
		err := unix.Flock(int(ctl.Fd()), unix.LOCK_EX|unix.LOCK_NB) // until it is closed
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock /dev/loop-control: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func configureLoop(path string, cfg *unix.LoopConfig) error {
	dev, err := openNode(path)
	if err != nil {
		return err
	}
	defer dev.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.LOOP_CONFIGURE, uintptr(unsafe.Pointer(cfg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// openNode opens a device that LOOP_CTL_GET_FREE has just made: udev may take a
// moment to make its node.
func openNode(path string) (*os.File, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || wait > time.Second {
			return f, err
		}
		time.Sleep(wait)
	}
}

// loopTag returns the tag of a loop device, "" if it is not in use.
func loopTag(path string) (string, error) {
	dev, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer dev.Close()
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask %s what it is: %w", path, err)
	}
	return strings.TrimRight(string(info.File_name[:]), "\x00"), nil
}

// detachLoop takes a loop device down if it still has our tag. Unless forced it
// refuses with ErrBusy while the device is mounted or held exclusively. With
// force, the kernel takes it down at its last close.
func detachLoop(path, tag string, force bool) error {
	mode := os.O_RDONLY | unix.O_EXCL
	if force {
		mode = os.O_RDONLY
	}
	dev, err := os.OpenFile(path, mode, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s: %w", path, ErrBusy)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO):
		return nil
	case err != nil:
		return err
	}
	defer dev.Close()
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if errors.Is(err, unix.ENXIO) || err == nil && strings.TrimRight(string(info.File_name[:]), "\x00") != tag {
		return nil // already gone, or somebody else's by now
	}
	if err != nil {
		return fmt.Errorf("ask %s what it is: %w", path, err)
	}
	if !force {
		if err := dev.Sync(); err != nil {
			return fmt.Errorf("flush %s: %w", path, err)
		}
	}
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	return nil
}
