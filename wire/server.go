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
	"tidemark/internal/shared"
)

// Feed takes the changes of one stream into a timeline, as a timeline.Feed does. One goroutine calls
// Sync while another calls the rest. It keeps nothing of what Apply is given, of which data may lie in memory that the client can
// change at any time ([capture.Change.Own]). An error means that it cannot go on; that a mark cannot be made is no such
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

// Opener opens the stream id into a timeline; before is of the stream that its source sent last. known says whether
// that, with all that was acknowledged of it, or id itself, is what the timeline had last. The text of its error goes to the client.
//
// When it returns, no feed of the timeline that was opened before takes data any more: the client is told of what this one has made durable, and may
// use the memory again that an older one would look at.
type Opener func(ctx context.Context, timeline, id string, before capture.Sent) (f Feed, known bool, err error)

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
	return errors.Join(err, s.memory.Release())
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
	memory  *shared.Memory // of the client; nil: none
	packs   bool           // the client compresses the data of changes
	buf     []byte
	plain   []byte // what was compressed
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
	h, err := s.hello()
	if err != nil {
		return err
	}
	feed, known, err := open(ctx, h.timeline, h.stream, h.before)
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

// hello reads the client's greeting, and says how data are to come before anything else, from version 2 on: in memory that is shared, or
// as they are, or, from version 4 on, compressed. That is for networks: who comes through a unix socket is on this host.
func (s *session) hello() (h greeting, err error) {
	var passed passing
	defer passed.close()
	var r io.Reader = s.conn
	if conn, ok := s.conn.(*net.UnixConn); ok {
		passed.conn = conn
		r = &passed
	}
	kind, body, err := readFrame(r, nil)
	if err != nil {
		return h, err
	}
	if h, err = parseHello(kind, body); err != nil {
		return h, err
	}
	if s.memory, err = passed.memory(h.memory); err != nil || h.version == 1 {
		return h, err
	}
	answer := byte(agreedCarried)
	switch {
	case s.memory != nil:
		answer = agreedShared
	case passed.conn == nil && h.version >= 4:
		answer, s.packs = agreedPacked, true
	}
	return h, s.send(frameAgreed, []byte{answer})
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
	case framePacked:
		if !s.packs {
			return fmt.Errorf("%w: compressed changes, of which nothing was said", ErrProtocol)
		}
		plain, err := unpack(body, s.plain)
		if err != nil {
			return err
		}
		s.plain = plain
		return s.handle(frameChanges, plain)
	case frameShared:
		list, err := parseShared(body, s.memory)
		if err != nil {
			return err
		}
		err = s.feed.Apply(list)
		if errors.Is(err, capture.ErrChanged) {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		return err
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
