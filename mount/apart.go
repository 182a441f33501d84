package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"tidemark/internal/process"
)

// An attacher never uses its own device once that is up. Whoever flushes a device, opens or closes it may wait for the server, in the
// kernel and beyond the reach of kill -9; and as long as a thread of the attacher waits, /dev/fuse stays open, so the kernel never learns
// that nobody will answer. So another process does it, for which this one is a server like any other.

// chore is what an attacher has another process do with its device.
type chore struct {
	Verb   string // verbFlush, verbDetach or verbRemove
	Device string
	Token  string
	Force  bool
}

// verbRemove has the device taken down by force, and with it what is mounted from it. Nobody asks for it at the control socket.
const verbRemove = "remove"

// order is what a process that attaches is told: to attach a disk, or to do a chore for one that has.
type order struct {
	attachConfig
	Chore *chore `json:",omitempty"`
}

// run does the chore, and writes the reply.
func (c *chore) run(w io.Writer) error {
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
	}
	var r reply
	r.fail(err)
	return json.NewEncoder(w).Encode(r)
}

// apart has another process do something with our device.
func (a *attacher) apart(verb string, force bool) error {
	var r reply
	if err := process.Apart("attach", order{Chore: &chore{verb, a.device, a.cfg.Token, force}}, &r); err != nil {
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
