package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Hold keeps the present process out of the way of the memory it may be needed to free: its threads do not
// wait for write-back, and its memory is locked. Where it may not, as its error says, it runs without: the
// deadlock needs memory pressure.
func Hold() error {
	var err error
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); errno != 0 && errno != unix.ENOTSUP {
		err = fmt.Errorf("cannot mark it as one that writes back: %w", errno)
	}
	if lerr := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); lerr != nil {
		err = errors.Join(err, fmt.Errorf("cannot lock its memory: %w", lerr))
	}
	// Not permitted in some containers, and then nothing is lost but a precaution.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
	return err
}
