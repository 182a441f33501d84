package app

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tidemark"
)

// LockDir keeps two captures out of one staging directory: the second one's
// error is of kind Conflict. The lock is held until the file it returns is
// closed, and the kernel gives it back when the process ends.
func LockDir(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the staging directory cannot be used: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, tidemark.Errorf(tidemark.Conflict, "another capture into %s is running", path)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return dir, nil
}
