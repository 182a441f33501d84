package mount

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/process"
	"tidemark/mount/internal/relay"
)

// Verbs of the control socket: one JSON request and one JSON answer per connection.
const (
	verbStatus = "status"
	verbFlush  = "flush"
	verbDetach = "detach"
	verbRecord = "record" // what attach.json should hold
)

type request struct {
	Verb  string
	Force bool `json:",omitempty"`
}

type reply struct {
	Error  string  `json:",omitempty"`
	Busy   bool    `json:",omitempty"` // Error is ErrBusy
	Status *Status `json:",omitempty"`
	Record *record `json:",omitempty"`
	Device string  `json:",omitempty"` // that was made
}

// Status is what an attacher says about itself.
type Status struct {
	Device   string
	Via      Via   // what makes the device
	Size     int64 // bytes
	ReadOnly bool
	Server   relay.Status // of the connection to the server
}

// ask sends one request to the attacher at a socket.
func ask(ctx context.Context, socket string, req request) (r reply, err error) {
	err = process.Ask(ctx, socket, req, &r)
	switch {
	case errors.Is(err, process.ErrEnded):
		return r, fmt.Errorf("%w: %w", ErrStale, err)
	case err != nil:
		return r, fmt.Errorf("%s: %w", req.Verb, err)
	}
	return r, r.err()
}

// fail makes an error, if it is one, the reply.
func (r *reply) fail(err error) {
	if err != nil {
		r.Error, r.Busy = err.Error(), errors.Is(err, ErrBusy)
	}
}

// err is the error that a reply tells of.
func (r *reply) err() error {
	switch {
	case r.Busy:
		return ErrBusy
	case r.Error != "":
		return errors.New(r.Error)
	}
	return nil
}

// answer does what a request asks for.
func (a *attacher) answer(req request, send func(any)) {
	var r reply
	var err error
	switch req.Verb {
	case verbStatus:
		r.Status = &Status{Device: a.device, Via: a.via, Size: a.relay.Info().Size, ReadOnly: a.cfg.ReadOnly, Server: a.relay.Status()}
	case verbRecord:
		r.Record = a.record.Load()
	case verbFlush:
		err = a.apart(verbFlush, false)
	case verbDetach:
		a.answering.RLock() // the process ends when the disk is gone, but not before the asker is told
		defer a.answering.RUnlock()
		err = a.detach(req.Force)
	default:
		err = fmt.Errorf("unknown request %q", req.Verb)
	}
	r.fail(err)
	send(r)
}
