package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/app/delta"
	"tidemark/app/filesystem"
	"tidemark/app/postgres"
)

// What is captured on another host is sent by its agent, on a connection that it dials with a ticket, and staged by ours, to which the server hands what
// comes: see package delta. The server says what is to be sent; the agent has nothing to ask with.

// Tree is what is captured on another host: a directory, or a cluster.
type Tree struct {
	Dir      string           `json:"dir,omitempty"` // absolute; empty: Postgres
	Postgres *postgres.Source `json:"postgres,omitempty"`
}

// open begins to send a tree.
func (t Tree) open(ctx context.Context) (openTree, error) {
	if t.Postgres != nil {
		return postgres.OpenBackup(ctx, *t.Postgres)
	}
	return filesystem.OpenSource(t.Dir)
}

type openTree interface {
	delta.Source
	io.Closer
}

// tops are the names that a tree fills in a staging directory.
func (t Tree) tops() []string {
	if t.Postgres != nil {
		return postgres.Tops
	}
	return []string{filesystem.DataDir}
}

// sendVerbs are what an agent of another host can do for captures, and for the log between them.
var sendVerbs = map[string]verb{
	"source-look": on(doLookSource),
	"source-send": on(doSendSource),

	"source-forward": on(doForward),
}

// SourceSize looks at what is to be captured on the agent's host, and returns how many bytes it has, or no less. What cannot be captured is an error.
func (a *Agent) SourceSize(ctx context.Context, t Tree) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	return do[int64](ctx, a, "source-look", t, nil)
}

func doLookSource(ctx context.Context, _ *session, t Tree, _ func(any)) (int64, error) {
	if t.Postgres != nil {
		r, err := postgres.CheckCapture(ctx, *t.Postgres)
		if err != nil {
			return 0, err
		}
		return r.Bytes, nil
	}
	if err := filesystem.CheckSource(t.Dir); err != nil {
		if tidemark.KindOf(err) == tidemark.Invalid {
			err = tidemark.Errorf(tidemark.Invalid, "%w", err).WithHint("a block device or image of another host is protected with --cdp")
		}
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(t.Dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil // of the whole file system
}

type sendArgs struct {
	Tree   Tree   `json:"tree"`
	Ticket string `json:"ticket"`
}

// sent is how a call to send ended. Where there is neither, the receiver has it all.
type sent struct {
	Lost    bool     `json:"lost,omitempty"`    // its connection has ended too soon
	Failure *failure `json:"failure,omitempty"` // of the tree itself
}

// Sending is what the agent of another host sends, or forwards, on a connection that it has dialled.
type Sending struct {
	Conn net.Conn // on which it comes

	taken  chan<- none
	cancel context.CancelFunc
	ended  <-chan none
	result sent  // set before ended is closed, like err
	err    error // of the call: the agent was lost
}

// SendTree has the agent of another host send a tree. An error that wraps [ErrInterrupted] is of the way there: it can be tried again. Close must be called.
func (a *Agent) SendTree(ctx context.Context, t Tree) (*Sending, error) {
	return a.sending(ctx, "source-send", func(ticket string) any { return sendArgs{t, ticket} })
}

// sending makes a call for which the agent dials a connection with a ticket.
func (a *Agent) sending(ctx context.Context, verb string, args func(ticket string) any) (*Sending, error) {
	ended := make(chan none)
	x := &Sending{ended: ended}
	ctx, x.cancel = context.WithCancel(ctx)
	ticket, came := rand.Text(), make(chan dialled, 1)
	a.expect(ticket, came)
	go func() {
		x.result, x.err = do[sent](ctx, a, verb, args(ticket), nil)
		close(ended)
	}()
	select {
	case d := <-came:
		x.Conn, x.taken = d.conn, d.taken
		return x, nil
	case <-ended:
		a.expect(ticket, nil)
		select {
		case d := <-came: // it is of no use any more
			close(d.taken)
		default:
		}
		x.cancel()
		err := x.failure()
		if err == nil {
			err = fmt.Errorf("%w: the agent of host %s did not connect", ErrInterrupted, a.host)
		}
		return nil, err
	}
}

// Close ends the connection, and says what went wrong on the host: nil if nothing did but the connection.
func (x *Sending) Close() error {
	x.Conn.Close() // which the agent understands
	select {
	case <-x.ended:
	case <-time.After(graceTime):
		x.cancel()
		<-x.ended
	}
	x.cancel()
	close(x.taken)
	err := x.failure()
	if errors.Is(err, ErrInterrupted) {
		return nil
	}
	return err
}

// failure is why the call has ended; an error that wraps ErrInterrupted if that was not the tree's fault.
func (x *Sending) failure() error {
	switch {
	case x.err != nil && tidemark.KindOf(x.err) == tidemark.Invalid: // the agent does not know it
		return x.err
	case x.err != nil:
		return fmt.Errorf("%w: %w", ErrInterrupted, x.err)
	case x.result.Failure != nil:
		return x.result.Failure
	case x.result.Lost:
		return ErrInterrupted
	}
	return nil
}

// doSendSource sends a tree on a connection of its own.
func doSendSource(ctx context.Context, s *session, args sendArgs, _ func(any)) (r sent, err error) {
	if s.dial == nil || len(args.Ticket) != ticketSize {
		return r, tidemark.Errorf(tidemark.Invalid, "this agent is not asked to send by a connection")
	}
	src, err := args.Tree.open(ctx)
	if err != nil {
		return sent{Failure: pack(err)}, nil
	}
	defer src.Close() // that it is over is known
	conn, err := s.dial(ctx, remote.Capture)
	if err != nil {
		return sent{Lost: true}, nil
	}
	if _, err := io.WriteString(conn, args.Ticket); err != nil {
		conn.Close()
		return sent{Lost: true}, nil
	}
	err = delta.Send(ctx, conn, src)
	switch {
	case errors.Is(err, delta.ErrLost):
		r.Lost = true
	case err != nil:
		r.Failure = pack(err)
	}
	return r, nil
}

// Staging is where a tree is staged.
type Staging struct {
	Dir string `json:"dir"`
	// Index and Known are as in [delta.Options].
	Index string        `json:"index,omitempty"`
	Known []delta.Known `json:"known,omitempty"`
}

// stageArgs say what comes on a socket, and where it is staged.
type stageArgs struct {
	Socket  string
	Staging Staging
	Kind    string
}

// Staged is what came of a tree.
type Staged struct {
	delta.Stats
	Postgres *postgres.CaptureResult `json:"postgres,omitempty"` // of a cluster
	Lost     bool                    `json:"lost,omitempty"`     // the connection has ended too soon: what has come is staged
}

// StageTree stages what a [Sending] brings, which the caller hands on at a socket, once somebody connects there. Where the connection ended too
// soon, that is in the result.
func (a *Agent) StageTree(ctx context.Context, t Tree, socket string, staging Staging, progress func(tidemark.Progress)) (Staged, error) {
	kind := ""
	if t.Postgres != nil {
		kind = "postgres"
	}
	return do[Staged](ctx, a, "stage", stageArgs{socket, staging, kind}, progressOf(progress))
}

func doStage(ctx context.Context, _ *session, args stageArgs, note func(any)) (r Staged, err error) {
	var t Tree
	if args.Kind == "postgres" {
		t.Postgres = &postgres.Source{}
	}
	conn, err := net.Dial("unix", args.Socket)
	if err != nil {
		return r, err
	}
	opts := delta.Options{Tops: t.tops(), Index: args.Staging.Index, Known: args.Staging.Known, Progress: rarely(note)}
	r.Stats, err = delta.Receive(ctx, conn, args.Staging.Dir, opts, func(st delta.Stats) error {
		if t.Postgres == nil {
			return nil
		}
		if err := json.Unmarshal(st.Result, &r.Postgres); err != nil || r.Postgres == nil {
			return tidemark.Errorf(tidemark.Invalid, "the agent does not say what it has captured").WithHint("server and agent must be of one version")
		}
		return postgres.NoteStaged(args.Staging.Dir, r.Postgres)
	})
	if errors.Is(err, delta.ErrLost) {
		r.Lost, err = true, nil
	}
	return r, err
}
