package mount

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/mount/internal/relay"
)

// errOrphan is why an attacher ends whose starter is gone.
var errOrphan = errors.New("the process that asked for the disk is gone")

// starterLook is how often an attacher that starts looks whether anybody still
// waits for it. Long enough to cost nothing; short enough that who comes next
// does not wait.
const starterLook = 50 * time.Millisecond

// watchStarter ends the relay when nobody waits for the device any more, until
// stop is called. The starter is most often the server itself, so when it is
// killed, requests wait that the kernel makes while it sets the device up; and
// the loop driver holds locks meanwhile that every other user of a loop device
// on the host needs. The next server undoes what was being attached and never
// serves it again: without us, all of them would wait for ever.
func watchStarter(pipe *os.File, r *relay.Relay) (stop func()) {
	if pipe == nil {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(starterLook)
		defer tick.Stop()
		for !starterGone(pipe) {
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
		r.Close()
	}()
	return func() {
		close(end)
		<-ended
	}
}

// starterGone reports whether the reading end of the ready pipe is closed.
func starterGone(pipe *os.File) bool {
	if pipe == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(pipe.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1 && fds[0].Revents&unix.POLLERR != 0
}
