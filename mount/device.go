package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/mount/internal/nbdctl"
)

// attachNBD makes a device of the kernel's nbd driver and returns its path.
func attachNBD(ctl *nbdctl.Control, cfg nbdctl.Config, maxTransfer int) (string, error) {
	// No timeout is set: a connection without one, if it is the only one, is never given up.
	n, err := ctl.Connect(cfg)
	if err != nil {
		return "", err
	}
	path := nbdctl.Path(n)
	err = nbdctl.SetMaxTransfer(n, maxTransfer)
	if err == nil {
		var node *os.File
		if node, err = openNode(path); err == nil {
			err = node.Close()
		}
	}
	if err != nil {
		return "", errors.Join(err, ctl.Disconnect(n))
	}
	return path, nil
}

// detachNBD takes a device of the kernel's nbd driver down; see detachDevice.
func detachNBD(index int, tag string, force bool) error {
	path := nbdctl.Path(index)
	if got, err := nbdctl.Backend(path); err != nil || got != tag {
		return err // already gone, or somebody else's by now
	}
	if !force {
		dev, err := openUnused(path)
		if dev == nil {
			return err
		}
		defer dev.Close() // after the disconnection: nobody else can mount it in between
		if err := dev.Sync(); err != nil {
			return fmt.Errorf("flush %s: %w", path, err)
		}
	}
	ctl, err := nbdctl.Open()
	if err != nil {
		return err
	}
	err = ctl.Disconnect(index)
	if got, berr := nbdctl.Backend(path); berr == nil && got != tag {
		err = nil // it went by itself
	}
	return errors.Join(err, ctl.Close())
}

// openUnused opens a block device for us alone: ErrBusy if somebody uses it, and neither device nor error if it is gone.
func openUnused(path string) (*os.File, error) {
	dev, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s: %w", path, ErrBusy)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return dev, nil
}

// detachDevice takes a block device down if it still has our tag. Unless forced it
// refuses with ErrBusy while the device is mounted or held exclusively. With
// force, whoever has it open gets errors.
func detachDevice(path, tag string, force bool) error {
	if n, ok := nbdctl.Index(path); ok {
		return detachNBD(n, tag, force)
	}
	return detachLoop(path, tag, force)
}

// deviceTag returns the tag of a block device, "" if it is not in use.
func deviceTag(path string) (string, error) {
	if _, ok := nbdctl.Index(path); ok {
		return nbdctl.Backend(path)
	}
	return loopTag(path)
}

// sweepDevices takes down the block devices of a tag.
func sweepDevices(tag string) error {
	devs, err := filepath.Glob("/sys/block/loop*/loop")
	nbds, nerr := filepath.Glob("/sys/block/nbd*/backend")
	err = errors.Join(err, nerr)
	for _, d := range append(devs, nbds...) {
		path := "/dev/" + filepath.Base(filepath.Dir(d))
		if got, terr := deviceTag(path); terr == nil && got == tag {
			err = errors.Join(err, detachDevice(path, tag, true))
		}
	}
	return err
}
