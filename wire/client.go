package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"tidemark/capture"
	"tidemark/internal/shared"
)

// Client is a timeline of a server, as a place that takes changes. Its fields do not change once it is used.
type Client struct {
	// Dial makes a connection to the server.
	Dial func(ctx context.Context) (net.Conn, error)
	// Timeline names the timeline to the server.
	Timeline string
}

var _ capture.Sink = (*Client)(nil)

// RefusedError is what a server says when it takes no more.
type RefusedError struct{ Text string }

// Error implements error.
func (e *RefusedError) Error() string { return e.Text }

// Open implements [capture.Sink].
func (c *Client) Open(ctx context.Context, id string, before capture.Sent, m *shared.Memory) (capture.Stream, error) {
	h := greeting{version: len(magics), timeline: c.Timeline, stream: id, before: before}
	for ; ; h.version-- {
		s, err := c.open(ctx, h, m)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errOlder) { // which version 1 does not say
			return nil, err
		}
	}
}

func (c *Client) open(ctx context.Context, h greeting, m *shared.Memory) (*stream, error) {
	conn, err := c.Dial(ctx)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = s.greet(h, m)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// stream is one connection.
type stream struct {
	conn    net.Conn
	memory  *shared.Memory // that the server reads; nil: none
	packs   bool           // the data of changes are compressed
	known   bool
	applied uint64
	buf     []byte
	packer  packer // of who calls Apply

	sending sync.Mutex // a frame goes out whole
}

func (s *stream) send(kind byte, parts ...[]byte) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return writeFrame(s.conn, kind, parts...)
}

// greet says what the stream is, and passes the memory where that can be.
func (s *stream) greet(h greeting, m *shared.Memory) (err error) {
	if socket, local := s.conn.(*net.UnixConn); local && m != nil && h.version > 1 {
		h.memory = uint64(len(m.Bytes()))
		err = writePassing(socket, m.File(), frameHello, h.encode())
	} else {
		m = nil
		err = s.send(frameHello, h.encode())
	}
	if err == nil && h.version > 1 {
		err = s.agree(h, m)
	}
	if err != nil {
		return err
	}
	body, err := s.answer(frameWelcome, 9)
	if err != nil {
		return err
	}
	s.known, s.applied = body[0] == 1, binary.LittleEndian.Uint64(body[1:])
	return nil
}

// errOlder: the server does not know this version of the protocol, whose greeting it refuses.
var errOlder = errors.New("the server has an older version of the protocol")

// agree hears whether the server takes the memory that was passed, or nil, and whether it wants data compressed.
func (s *stream) agree(h greeting, m *shared.Memory) error {
	body, err := s.answer(frameAgreed, 1)
	var refused *RefusedError
	if errors.As(err, &refused) {
		return fmt.Errorf("%w: %w", errOlder, err)
	}
	if err != nil {
		return err
	}
	switch {
	case body[0] == agreedShared:
		s.memory = m
	case body[0] == agreedPacked && h.version >= 4:
		s.packs = true
	}
	return nil
}

// answer reads the server's next frame, which has to be of a kind and a length.
func (s *stream) answer(kind byte, length int) ([]byte, error) {
	got, body, err := readFrame(s.conn, s.buf)
	if err != nil {
		return nil, err
	}
	s.buf = body
	if got == frameRefused {
		return nil, &RefusedError{Text: string(body)}
	}
	if got != kind || len(body) != length {
		return nil, fmt.Errorf("%w: a frame of kind %d and %d bytes", ErrProtocol, got, len(body))
	}
	return body, nil
}

// Applied implements [capture.Stream].
func (s *stream) Applied() uint64 { return s.applied }

// Known implements [capture.Stream].
func (s *stream) Known() bool { return s.known }

// Shares implements [capture.Stream].
func (s *stream) Shares() bool { return s.memory != nil }

// Apply implements [capture.Stream].
func (s *stream) Apply(list []capture.Change) error {
	for len(list) > 0 {
		n, err := s.sendSome(list)
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// sendSome sends the first changes of a list, as many as go into a frame and have their data in the same place, and returns how many.
func (s *stream) sendSome(list []capture.Change) (n int, err error) {
	shares := s.inMemory(&list[0])
	size := 0
	for ; n < len(list); n++ {
		c := &list[n]
		more := changeSize + len(c.Data)
		if shares {
			more = sharedSize
		}
		if n > 0 && (size+more > maxBatch || s.inMemory(c) != shares) {
			break
		}
		size += more
	}
	if shares {
		return n, s.send(frameShared, encodeShared(list[:n]))
	}
	parts := encodeChanges(list[:n])
	if s.packs {
		if packed := s.packer.pack(parts); packed != nil {
			return n, s.send(framePacked, packed)
		}
	}
	return n, s.send(frameChanges, parts...)
}

// inMemory reports whether the server is told where the data of a change lie.
func (s *stream) inMemory(c *capture.Change) bool {
	return s.memory != nil && (c.Memory == s.memory || c.Data == nil)
}

// Lose implements [capture.Stream].
func (s *stream) Lose(since int64, why string) error {
	return s.send(frameLose, appendText(binary.LittleEndian.AppendUint64(nil, uint64(since)), why))
}

// Bookmark implements [capture.Stream].
func (s *stream) Bookmark(m capture.Mark) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.send(frameMark, body)
}

// Sample implements [capture.Stream].
func (s *stream) Sample(x capture.Sample) error { return s.send(frameSample, encodeSample(&x)) }

// Whole implements [capture.Stream].
func (s *stream) Whole() error { return s.send(frameWhole) }

// Sync implements [capture.Stream].
func (s *stream) Sync() (durable uint64, err error) {
	if err := s.send(frameSync); err != nil {
		return 0, s.reason(err)
	}
	body, err := s.answer(frameSynced, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(body), nil
}

// reason returns what the server said before it closed the connection, if it did, instead of err.
func (s *stream) reason(err error) error {
	var refused *RefusedError
	if _, aerr := s.answer(frameSynced, 8); errors.As(aerr, &refused) {
		return refused
	}
	return err
}

// Close implements [capture.Stream].
func (s *stream) Close() error { return s.conn.Close() }
