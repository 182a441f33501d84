package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Ask sends one request, as JSON, to the process that answers at a socket, and decodes its answer.
// If nobody is there the error is ErrEnded.
func Ask(ctx context.Context, socket string, request, answer any) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrEnded, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewEncoder(c).Encode(request); err != nil {
		return err
	}
	if err := json.NewDecoder(c).Decode(answer); err != nil {
		return errors.Join(fmt.Errorf("the process gave no answer: %w", err), ctx.Err())
	}
	return nil
}

// requestTime is how long a request may take to arrive.
const requestTime = 10 * time.Second

// Answer gives each request that comes to a listener to a call of handle of its own, with what sends the
// answer, until the listener is closed.
func Answer[R any](l net.Listener, handle func(request R, answer func(any))) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetReadDeadline(time.Now().Add(requestTime))
			var r R
			if json.NewDecoder(c).Decode(&r) != nil {
				return // nobody who knows how to ask
			}
			handle(r, func(a any) { json.NewEncoder(c).Encode(a) }) // the asker may have gone
		}()
	}
}
