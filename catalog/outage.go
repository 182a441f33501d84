package catalog

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"tidemark"
)

// ErrAway is in the chain of errors of a catalog whose database cannot be reached.
var ErrAway = errors.New("the catalog's database is away")

// errUnanswered is in the chain of errors of a call that the database may have done, for its answer did not arrive.
var errUnanswered = errors.New("it is not known whether it was done")

// MayBeDone reports whether what failed with an error, and was called with ctx, may have been done all the same: the connection was cut,
// or nobody waited any more, when it was done and before that was told.
func MayBeDone(ctx context.Context, err error) bool {
	return err != nil && (errors.Is(err, errUnanswered) || ctx.Err() != nil)
}

const (
	// connectLimit bounds how long a connection to the database is waited for; callLimit, how long one call of it.
	connectLimit = 5 * time.Second
	callLimit    = 15 * time.Second
	// awayPause is how often a database that is away is looked for.
	awayPause = 500 * time.Millisecond
)

type patience struct{}

// Patient returns a context with which the methods of a catalog wait while its database is away, instead of
// failing: until it is back, ctx is done, or [Catalog.GiveUp] was called.
func Patient(ctx context.Context) context.Context { return context.WithValue(ctx, patience{}, true) }

// impatient is ctx for a call that does harm if it is made twice.
func impatient(ctx context.Context) context.Context { return context.WithValue(ctx, patience{}, nil) }

func isPatient(ctx context.Context) bool { return ctx.Value(patience{}) != nil }

// outage is what is known of a database that is away. While it is, calls fail at once: only who looks for it waits
// for connections that are not answered.
type outage struct {
	remote bool // the database can be away at all
	once   sync.Once
	gaveUp chan struct{} // closed by GiveUp, once

	mu    sync.Mutex
	cause error         // guarded by mu; nil: it is there
	back  chan struct{} // guarded by mu; closed when it is there again
}

// GiveUp ends the waits of patient calls: they fail from now on, as others do. A server that stops calls it.
func (c *Catalog) GiveUp() { c.outage.once.Do(func() { close(c.outage.gaveUp) }) }

// known returns why the database is away, or nil, and what is closed when it is back.
func (o *outage) known() (error, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cause, o.back
}

// begin notes that the database is away; it reports whether that is new.
func (o *outage) begin(cause error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause != nil {
		return false
	}
	o.cause, o.back = cause, make(chan struct{})
	return true
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cause = nil
	close(o.back)
}

// do makes a call of the database. Patient ones are made again after an outage, so they have to be such that this does no harm.
func (c *Catalog) do(ctx context.Context, call func(context.Context) error) error {
	if !c.outage.remote {
		return call(ctx)
	}
	tried := false
	for {
		cause, back := c.outage.known()
		if cause == nil {
			cause = c.try(ctx, call)
			if !isOutage(ctx, cause) {
				return cause
			}
			tried = true
			if c.outage.begin(cause) {
				go c.look()
			}
			_, back = c.outage.known()
		}
		if !isPatient(ctx) {
			return away(cause, tried)
		}
		select {
		case <-back:
		case <-c.outage.gaveUp:
			return away(cause, tried)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Catalog) try(ctx context.Context, call func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	return call(bounded)
}

// look looks for a database that is away until it is back.
func (c *Catalog) look() {
	for {
		bounded, cancel := context.WithTimeout(context.Background(), connectLimit)
		err := c.read.PingContext(bounded)
		cancel()
		if err == nil {
			c.outage.end()
			return
		}
		select {
		case <-c.outage.gaveUp:
			return
		case <-time.After(awayPause):
		}
	}
}

// away is the error of a call that was tried, or was not. One that was may have been done, whatever its cause says: the driver takes a connection
// that was cut behind a statement for one that did not take it, and the statement is sent once more on another, which then may fail to connect.
func away(cause error, tried bool) error {
	if tried {
		cause = errors.Join(errUnanswered, cause)
	}
	return &tidemark.Error{Kind: tidemark.Unavailable, Message: "the catalog's database does not answer",
		Hint:  "mounts, exports and taps go on without it; ask again when it is back",
		Cause: errors.Join(ErrAway, cause)}
}

// isOutage reports whether a call failed because the database cannot be reached, lets nobody in, or is about to stop. A catalog that was opened was let
// in: a password that was changed since is for the administrator to see in the log, and no fault of who asks.
func isOutage(ctx context.Context, err error) bool {
	if err == nil || ctx.Err() != nil {
		return false
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	var p *pgconn.PgError
	if errors.As(err, &p) {
		// 08: connection; 57P: it is shut down, or starts; 53300: it has no connection left.
		return strings.HasPrefix(p.Code, "08") || strings.HasPrefix(p.Code, "57P") || p.Code == "53300"
	}
	var network net.Error
	return errors.As(err, &network) || pgconn.SafeToRetry(err) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}
