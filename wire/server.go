package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"tidemark/capture"
)

// Feed takes the changes of one stream into a timeline, as a timeline.Feed does. One goroutine calls
// Sync while another calls the rest. An error means that it cannot go on; that a mark cannot be made is no such
// thing, and told to whoever asked for it.
type Feed interface {
	Applied() uint64
	Apply(list []capture.Change) error
	Lose(since int64, why string) error
	Whole() error
	Bookmark(m capture.Mark) error
	Sample(s capture.Sample) error
	Sync() (durable uint64, err error)
	Close() error
}

// Opener opens the stream id into a timeline; before is the stream that its source sent last. known says whether
// that, or id itself, is what the timeline had last. The text of its error goes to the client.
type Opener func(ctx context.Context, timeline, id, before string) (f Feed, known bool, err error)

// Serve serves one connection until it ends or ctx does, and closes it. It returns nil if the client went away.
func Serve(ctx context.Context, conn net.Conn, open Opener) error {
	s := &session{conn: conn}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := s.serve(ctx, open)
	if err != nil && !errors.Is(err, io.EOF) {
		// The client may be gone; then nobody hears it.
		_ = s.send(frameRefused, []byte(err.Error())[:min(len(err.Error()), maxText)])
	}
	err = errors.Join(ignoreEnd(err), ignoreEnd(conn.Close()))
	s.syncing.Wait()
	return err
}

// ignoreEnd returns nil for what a client that went away leaves.
func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

type session struct {
	conn    net.Conn
	feed    Feed
	buf     []byte
	syncing sync.WaitGroup
	sending sync.Mutex // a frame goes out whole
}

func (s *session) send(kind byte, parts ...[]byte) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return writeFrame(s.conn, kind, parts...)
}

func (s *session) serve(ctx context.Context, open Opener) (err error) {
	if err := s.welcome(ctx, open); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.feed.Close()) }()
	for {
		kind, body, err := readFrame(s.conn, s.buf)
		if err != nil {
			return err
		}
		s.buf = body
		if err := s.handle(kind, body); err != nil {
			return err
		}
	}
}

// welcome answers the client's first frame.
func (s *session) welcome(ctx context.Context, open Opener) error {
	kind, body, err := readFrame(s.conn, nil)
	if err != nil {
		return err
	}
	names, err := parseHello(kind, body)
	if err != nil {
		return err
	}
	feed, known, err := open(ctx, names[0], names[1], names[2])
	if err != nil {
		return err
	}
	s.feed = feed
	answer := make([]byte, 9)
	if known {
		answer[0] = 1
	}
	binary.LittleEndian.PutUint64(answer[1:], feed.Applied())
	if err := s.send(frameWelcome, answer); err != nil {
		return errors.Join(err, feed.Close())
	}
	return nil
}

// parseHello returns the names of the timeline, of the stream, and of the one before it.
func parseHello(kind byte, body []byte) (names [3]string, err error) {
	if kind != frameHello || len(body) < len(magic) || string(body[:len(magic)]) != magic {
		return names, fmt.Errorf("%w: no greeting of this version", ErrProtocol)
	}
	body = body[len(magic):]
	for i := range names {
		if names[i], body, err = cutText(body); err != nil {
			return names, err
		}
	}
	if len(body) > 0 {
		return names, fmt.Errorf("%w: a greeting of %d bytes too many", ErrProtocol, len(body))
	}
	return names, nil
}

// handle does what a frame asks for.
func (s *session) handle(kind byte, body []byte) error {
	switch kind {
	case frameChanges:
		list, err := parseChanges(body)
		if err != nil {
			return err
		}
		return s.feed.Apply(list)
	case frameLose:
		if len(body) < 8 {
			return fmt.Errorf("%w: a loss of %d bytes", ErrProtocol, len(body))
		}
		why, _, err := cutText(body[8:])
		if err != nil {
			return err
		}
		return s.feed.Lose(int64(binary.LittleEndian.Uint64(body)), why)
	case frameWhole:
		return s.feed.Whole()
	case frameMark:
		var m capture.Mark
		if err := json.Unmarshal(body, &m); err != nil {
			return fmt.Errorf("%w: a mark that cannot be read: %w", ErrProtocol, err)
		}
		return s.feed.Bookmark(m)
	case frameSample:
		x, err := parseSample(body)
		if err != nil {
			return err
		}
		return s.feed.Sample(x)
	case frameSync:
		s.sync()
		return nil
	}
	return fmt.Errorf("%w: a frame of kind %d", ErrProtocol, kind)
}

// sync makes durable what was applied, while more is. The client asks for one at a time.
func (s *session) sync() {
	s.syncing.Wait()
	s.syncing.Go(func() {
		durable, err := s.feed.Sync()
		if err != nil {
			_ = s.send(frameRefused, []byte(err.Error()))
			s.conn.Close() // ends serve
			return
		}
		_ = s.send(frameSynced, binary.LittleEndian.AppendUint64(nil, durable)) // else the next read fails
	})
}
