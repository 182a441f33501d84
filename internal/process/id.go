package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ID names one process of one boot of the host. The zero value names none.
type ID struct {
	PID     int
	Started string // the process's start time, as in /proc/PID/stat
	Boot    string // the boot it belongs to
}

// Self returns the name of the present process.
func Self() (ID, error) { return Of(os.Getpid()) }

// Of returns the name of the process that has a number now; ErrEnded if it is one that only waits to be reaped. The number of a child
// is its own for as long as it was not waited for.
func Of(pid int) (ID, error) {
	boot, err := bootID()
	if err != nil {
		return ID{}, err
	}
	started, err := startOf(pid)
	return ID{PID: pid, Started: started, Boot: boot}, err
}

// Alive reports whether the process runs.
func (n ID) Alive() bool {
	if n.PID == 0 {
		return false
	}
	if !n.ThisBoot() {
		return false
	}
	started, err := startOf(n.PID)
	return err == nil && started == n.Started
}

// ThisBoot reports whether it names a process of this boot of this host. One of another boot ended with that, unless it is on another host.
func (n ID) ThisBoot() bool {
	boot, err := bootID()
	return err == nil && boot == n.Boot
}

// ErrEnded: the process has ended.
var ErrEnded = errors.New("the process has ended")

// Open returns a descriptor of the process, which the caller closes; ErrEnded if it does not run.
func (n ID) Open() (pidfd int, err error) {
	if n.PID == 0 {
		return -1, ErrEnded
	}
	fd, err := unix.PidfdOpen(n.PID, 0)
	if err != nil {
		return -1, ErrEnded
	}
	if !n.Alive() { // it was another's
		unix.Close(fd)
		return -1, ErrEnded
	}
	return fd, nil
}

// Await waits for the end of a process that Open has returned, or of ctx.
func Await(ctx context.Context, pidfd int) error {
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return ctx.Err()
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// startOf returns the start time of a process that is not a zombie.
func startOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// Fields are counted from behind the name, which may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return "", fmt.Errorf("process %d: %w", pid, ErrEnded)
	}
	return f[19], nil
}
