package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"tidemark/internal/process"
)

// An attacher never uses its own device, nor puts it over its own file. Whoever flushes a device, opens, makes or closes it may wait for the server, in the
// kernel and beyond the reach of kill -9, and the loop driver holds locks meanwhile that every other user of loop devices needs; and as long as a thread of the attacher waits, /dev/fuse stays open, so the kernel never learns
// that nobody will answer. So another process does it, for which this one is a server like any other.

// chore is what an attacher has another process do with its device.
type chore struct {
	Verb   string // verbFlush, verbDetach, verbRemove or verbLoop
	Device string
	Token  string
	Force  bool
	Loop   loopShape
}

// verbRemove has the device taken down by force, and with it what is mounted from it. Nobody asks for it at the control socket.
const verbRemove = "remove"

// verbLoop has a loop device put over the file that comes with the chore.
const verbLoop = "loop"

// order is what a process that attaches is told: to attach a disk, or to do a chore for one that has.
type order struct {
	attachConfig
	Chore *chore `json:",omitempty"`
}

// run does the chore, and writes the reply.
func (c *chore) run(w io.Writer) error {
	var r reply
	err := fmt.Errorf("%w: unknown chore %q", ErrConfig, c.Verb)
	switch c.Verb {
	case verbFlush:
		err = syncDevice(c.Device)
	case verbDetach:
		err = detachDevice(c.Device, tagOf(c.Token), c.Force)
	case verbRemove:
		var a Attachment
		a.rec.Device, a.rec.Token = c.Device, c.Token
		err = a.removeDevice(true)
	case verbLoop:
		signal.Ignore(unix.SIGPIPE) // that nobody hears us is an error
		r.Device, err = attachLoop(os.NewFile(3, "disk"), c.Loop, tagOf(c.Token))
	}
	r.fail(err)
	err = json.NewEncoder(w).Encode(r)
	if err != nil && r.Device != "" { // the attacher is gone
		err = errors.Join(err, detachDevice(r.Device, tagOf(c.Token), true))
	}
	return err
}

// putLoop has another process put a loop device over a file of ours.
func (a *attacher) putLoop(file *os.File) (device string, err error) {
	var r reply
	c := chore{Verb: verbLoop, Token: a.cfg.Token, Loop: loopShape{a.cfg.Sector, a.cfg.ReadOnly}}
	if err := process.Apart("attach", order{Chore: &c}, &r, file); err != nil {
		return "", err
	}
	return r.Device, r.err()
}

// apart has another process do something with our device.
func (a *attacher) apart(verb string, force bool) error {
	var r reply
	if err := process.Apart("attach", order{Chore: &chore{Verb: verb, Device: a.device, Token: a.cfg.Token, Force: force}}, &r); err != nil {
		return fmt.Errorf("%s %s: %w", verb, a.device, err)
	}
	return r.err()
}

// syncDevice makes durable at the server what was written to a device.
func syncDevice(device string) error {
	dev, err := os.Open(device)
	if err != nil {
		return err
	}
	return errors.Join(dev.Sync(), dev.Close())
}
