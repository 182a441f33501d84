package control

import (
	"context"
	"net"

	"golang.org/x/time/rate"
)

// hostLimit bounds what the server sends to a host, and what it takes from it, each in bytes per second and over all connections of the host
// together. Calls are not counted: they are short, and a bookmark must not wait behind a disk.
type hostLimit struct{ sent, taken *rate.Limiter }

// limitPiece is how much is sent or taken at once where there is a limit, in bytes: small enough that the others of a host get their turn.
const limitPiece = 64 << 10

func newHostLimit(bits int64) hostLimit {
	l := hostLimit{rate.NewLimiter(rate.Inf, limitPiece), rate.NewLimiter(rate.Inf, limitPiece)}
	l.set(bits)
	return l
}

// set changes the limit, of what is under way, too; 0: there is none.
func (l hostLimit) set(bits int64) {
	limit := rate.Inf
	if bits > 0 {
		limit = rate.Limit(bits) / 8
	}
	l.sent.SetLimit(limit)
	l.taken.SetLimit(limit)
}

// on returns a connection that keeps to the limit until ctx is done.
func (l hostLimit) on(ctx context.Context, conn net.Conn) net.Conn {
	return limitedConn{conn, ctx, l}
}

type limitedConn struct {
	net.Conn
	ctx   context.Context
	limit hostLimit
}

// Read waits behind what it has read: who sends is slowed down by what is not read meanwhile.
func (c limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), limitPiece)])
	if werr := c.limit.taken.WaitN(c.ctx, n); err == nil {
		err = werr
	}
	return n, err
}

func (c limitedConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), limitPiece)]
		if err := c.limit.sent.WaitN(c.ctx, len(piece)); err != nil {
			return n, err
		}
		k, err := c.Conn.Write(piece)
		n += k
		if err != nil {
			return n, err
		}
		p = p[len(piece):]
	}
	return n, nil
}
