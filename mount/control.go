package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

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
func ask(ctx context.Context, socket string, req request) (reply, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return reply{}, fmt.Errorf("%w: %v", ErrStale, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	var r reply
	if err := json.NewEncoder(c).Encode(req); err != nil {
		return r, err
	}
	if err := json.NewDecoder(c).Decode(&r); err != nil {
		return r, errors.Join(fmt.Errorf("the attacher gave no answer to %s: %w", req.Verb, err), ctx.Err())
	}
	switch {
	case r.Busy:
		return r, ErrBusy
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// serveControl answers requests until the listener is closed.
func (a *attacher) serveControl(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed: the attacher ends
		}
		go a.answer(c)
	}
}

func (a *attacher) answer(c net.Conn) {
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var req request
	if err := json.NewDecoder(c).Decode(&req); err != nil {
		return // nobody who knows how to ask
	}
	var r reply
	var err error
	switch req.Verb {
	case verbStatus:
		r.Status = &Status{Device: a.device, Via: a.via, Size: a.relay.Info().Size, ReadOnly: a.cfg.ReadOnly, Server: a.relay.Status()}
	case verbRecord:
		r.Record = a.record.Load()
	case verbFlush:
		err = syncDevice(a.device)
	case verbDetach:
		a.answering.RLock() // the process ends when the disk is gone, but not before the asker is told
		defer a.answering.RUnlock()
		err = a.detach(req.Force)
	default:
		err = fmt.Errorf("unknown request %q", req.Verb)
	}
	if err != nil {
		r.Error, r.Busy = err.Error(), errors.Is(err, ErrBusy)
	}
	json.NewEncoder(c).Encode(r) // the asker may have gone
}
