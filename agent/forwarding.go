package agent

import (
	"context"
	"errors"
	"io"
	"net"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/app/postgres"
)

// A cluster of another host is reached through its agent: for each connection that is made to it here, the agent is called, dials one with a ticket, as for
// what it sends, and connects it to the cluster. So the log of a cluster is received here as that of one of this host: see postgres.Forward.

// ErrNoForward: the agent of a host is of another version, and does not know how to forward.
var ErrNoForward = errors.New("cannot have the log of a cluster received")

type forwardArgs struct {
	Source postgres.Source `json:"source"`
	Ticket string          `json:"ticket"`
}

// Forwarded is a connection to a cluster of another host.
type Forwarded struct {
	Conn net.Conn // on which the cluster answers, as to who connects to its socket

	s *Sending
}

// ForwardPostgres has the agent of another host connect to a cluster there. What goes wrong with that, the agent tells as PostgreSQL would, on the connection.
// An error of the way there is of kind Unavailable; one that wraps [ErrNoForward] stays until the agent is updated. Close must be called; ctx ends the
// connection as well. What comes from there is added to count.
func (a *Agent) ForwardPostgres(ctx context.Context, src postgres.Source, count *Carried) (*Forwarded, error) {
	s, err := a.sending(ctx, "source-forward", func(ticket string) any { return forwardArgs{src, ticket} })
	if tidemark.KindOf(err) == tidemark.Invalid {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the agent of host %s %w", a.host, ErrNoForward).
			WithHint("it is of another version than the server: captures go on, and the log is received when the agent is updated")
	}
	if err != nil {
		return nil, err
	}
	p, err := packConn(s.Conn, count)
	if err != nil {
		s.Close()
		return nil, err
	}
	return &Forwarded{p, s}, nil
}

// Close ends the connection, and says what went wrong on the host.
func (f *Forwarded) Close() error { return f.s.Close() }

// doForward connects to a cluster what the server says on a connection of its own.
func doForward(ctx context.Context, s *session, args forwardArgs, _ func(any)) (r sent, err error) {
	if s.dial == nil || len(args.Ticket) != ticketSize || args.Source.Forwarded != "" {
		return r, tidemark.Errorf(tidemark.Invalid, "this agent is not asked to forward by a connection")
	}
	conn, err := s.dial(ctx, remote.Capture)
	if err != nil {
		return sent{Lost: true}, nil
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, args.Ticket); err != nil {
		return sent{Lost: true}, nil
	}
	p, err := packConn(conn, &Carried{})
	if err != nil {
		return r, err
	}
	if err := postgres.Forward(ctx, p, args.Source); err != nil {
		return sent{Failure: pack(err)}, nil
	}
	return r, nil
}
