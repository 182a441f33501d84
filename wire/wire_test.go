package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/capture"
	"tidemark/internal/shared"
)

// book is a feed that writes down what it is told.
type book struct {
	mu      sync.Mutex
	applied uint64
	said    []string
	sum     int64
	full    error
	closed  bool
	shared  int // changes whose data came in shared memory
}

func (b *book) Applied() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.applied
}

func (b *book) Apply(list []capture.Change) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range list {
		if c.Memory != nil {
			b.shared++
		}
		if err := c.Own(); err != nil {
			return err
		}
		b.said = append(b.said, note(c))
		b.applied++
	}
	return b.full
}

func note(c capture.Change) string {
	return fmt.Sprint(c.Disk, c.Off, c.Len, c.Time, c.Data == nil, crc(c.Data))
}

func crc(p []byte) (n uint64) {
	for _, b := range p {
		n = n*31 + uint64(b)
	}
	return n
}

func (b *book) Lose(since int64, why string) error {
	b.said = append(b.said, fmt.Sprint("lose ", since, why))
	return nil
}
func (b *book) Bookmark(m capture.Mark) error {
	b.said = append(b.said, fmt.Sprint("mark ", m))
	return nil
}
func (b *book) Sample(s capture.Sample) error {
	b.said = append(b.said, fmt.Sprintf("sample %d at %d of %d: %x", s.Len, s.Off, s.Disk, s.Sum[:4]))
	return nil
}
func (b *book) Whole() error          { b.said = append(b.said, "whole"); return nil }
func (b *book) Sync() (uint64, error) { return b.Applied(), b.full }
func (b *book) Close() error          { b.closed = true; return nil }

// serve serves a book on a socket, and returns its client and what Serve returned.
func serve(t *testing.T, open Opener) (*Client, <-chan error) {
	return serveOn(t, "unix", func(ctx context.Context, conn net.Conn) error { return Serve(ctx, conn, open) })
}

// serveOn gives connections to fn, and returns a client and what fn returned.
func serveOn(t *testing.T, network string, fn func(context.Context, net.Conn) error) (*Client, <-chan error) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ended := make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := fn(t.Context(), conn); !errors.Is(err, errOlder) {
				ended <- err
			}
		}
	}()
	return &Client{Timeline: "line", Dial: dialer(network, l)}, ended
}

func dialer(network string, l net.Listener) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
}

// TestWhatIsSentArrives holds a client and a server to what they are for, whether data are shared, carried or compressed.
func TestWhatIsSentArrives(t *testing.T) {
	for _, c := range []struct {
		name   string
		serve  func(*testing.T, Opener) (*Client, <-chan error)
		offers bool
		shares bool
		packs  bool
		speaks int // the version of who speaks the older one
	}{
		{"carried", serve, false, false, false, 4},
		{"shared", serve, true, true, false, 4},
		{"by somebody who carries", carry, true, false, false, 4},
		{"to a server of version 3", serveOlder("unix", 3), true, true, false, 3},
		{"to a server of version 2", serveOlder("unix", 2), true, true, false, 2},
		{"to a server of version 1", serveOlder("unix", 1), true, false, false, 1},
		{"from a client of version 3", serve, true, true, false, 3},
		{"from a client of version 2", serve, true, true, false, 2},
		{"from a client of version 1", serve, true, false, false, 1},
		{"compressed", serveTCP, true, false, true, 4},
		{"by somebody who carries to another host", carryFar, true, false, true, 4},
		{"to another host, of version 3", serveOlder("tcp", 3), true, false, false, 3},
		{"to another host, of version 1", serveOlder("tcp", 1), true, false, false, 1},
		{"from another host, of version 3", serveTCP, true, false, false, 3},
		{"from another host, of version 2", serveTCP, true, false, false, 2},
		{"from another host, of version 1", serveTCP, true, false, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m *shared.Memory
			if c.offers {
				m = newMemory(t, 8<<20)
			}
			before := capture.Sent{ID: "old", Durable: 1<<63 + 5}
			if c.speaks < 3 {
				before.Durable = 0
			}
			version := len(magics)
			if strings.HasPrefix(c.name, "from ") {
				version = c.speaks
			}
			arrives(t, c.serve, version, before, m, c.shares, c.packs)
		})
	}
}

func newMemory(t testing.TB, size int) *shared.Memory {
	t.Helper()
	m, err := shared.New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Release(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// openAs opens a stream as a client does whose newest version that is.
func (c *Client) openAs(ctx context.Context, version int, id string, before capture.Sent, m *shared.Memory) (capture.Stream, error) {
	if version == len(magics) {
		return c.Open(ctx, id, before, m)
	}
	return c.open(ctx, greeting{version: version, timeline: c.Timeline, stream: id, before: before}, m)
}

func arrives(t *testing.T, serve func(*testing.T, Opener) (*Client, <-chan error), version int, told capture.Sent, m *shared.Memory, shares, packs bool) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	b := &book{applied: 7}
	client, ended := serve(t, func(_ context.Context, line, id string, before capture.Sent) (Feed, bool, error) {
		if line != "line" || id != "new" || before != told {
			t.Errorf("opened %q, %q, %+v", line, id, before)
		}
		return b, true, nil
	})
	s, err := client.openAs(t.Context(), version, "new", capture.Sent{ID: "old", Durable: 1<<63 + 5}, m)
	if err != nil {
		t.Fatal(err)
	}
	if s.Applied() != 7 || !s.Known() || s.Shares() != shares || s.(*stream).packs != packs {
		t.Errorf("applied %d, known %v, shares %v, packs %v", s.Applied(), s.Known(), s.Shares(), s.(*stream).packs)
	}
	var want []string
	sent := uint64(7)
	for round := range 40 {
		var list []capture.Change
		at := 0
		for range rng.IntN(60) {
			c := capture.Change{Disk: uint16(rng.IntN(3)), Off: rng.Int64(), Time: rng.Int64(), Len: rng.Int64N(1 << rng.IntN(20))}
			if rng.IntN(4) > 0 {
				c.Data = make([]byte, c.Len)
				kinds := uint32(1) << rng.IntN(9) // of bytes: from one to all
				for i := range c.Data {
					c.Data[i] = byte(rng.Uint32() % kinds)
				}
			}
			want = append(want, note(c))
			if c.Data != nil && m != nil && rng.IntN(4) > 0 && at+len(c.Data) <= len(m.Bytes()) { // mixed with such as are carried
				at += put(&c, m, at)
			}
			list = append(list, c)
		}
		if err := s.Apply(list); err != nil {
			t.Fatal(err)
		}
		sent += uint64(len(list))
		switch round % 10 {
		case 3:
			err, want = s.Lose(12345, "why not"), append(want, "lose 12345why not")
		case 6:
			err, want = s.Whole(), append(want, "whole")
		case 8:
			m := capture.Mark{Name: "m", Consistency: tidemark.CrashConsistent, Labels: map[string]string{"lsn": "0/1"}, ID: "x", Time: rng.Int64()}
			err, want = s.Bookmark(m), append(want, fmt.Sprint("mark ", m))
		}
		if err != nil {
			t.Fatal(err)
		}
		if n, err := s.Sync(); err != nil || n != sent {
			t.Fatalf("%d are durable, %d were sent: %v", n, sent, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the server ended with %v", err)
	}
	if !b.closed || !reflect.DeepEqual(b.said, want) {
		t.Errorf("%d things arrived of %d, or others; closed %v", len(b.said), len(want), b.closed)
	}
	if (b.shared > 0) != shares {
		t.Errorf("the data of %d changes came in shared memory", b.shared)
	}
}

// put moves the data of a change into memory, and returns how long they are.
func put(c *capture.Change, m *shared.Memory, at int) int {
	n := copy(m.Bytes()[at:], c.Data)
	c.Sum = shared.Sum(c.Data)
	c.Data, c.Memory, c.At = m.Bytes()[at:at+n], m, int64(at)
	return n
}

// carry serves a book behind somebody who carries bytes between two sockets, and nothing else.
func carry(t *testing.T, open Opener) (*Client, <-chan error) {
	return carryTo(t, serve, open)
}

// carryFar is carry, with the book on another host, as an agent carries.
func carryFar(t *testing.T, open Opener) (*Client, <-chan error) {
	return carryTo(t, serveTCP, open)
}

func carryTo(t *testing.T, serve func(*testing.T, Opener) (*Client, <-chan error), open Opener) (*Client, <-chan error) {
	client, ended := serve(t, open)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := client.Dial(context.Background())
		if err != nil {
			near.Close()
			return
		}
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				io.Copy(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]})
				way[0].Close()
			}()
		}
	}()
	return &Client{Timeline: client.Timeline, Dial: dialer("unix", l)}, ended
}

// serveOlder serves a book as a server of an older version does: it refuses newer greetings.
func serveOlder(network string, version int) func(*testing.T, Opener) (*Client, <-chan error) {
	return func(t *testing.T, open Opener) (*Client, <-chan error) {
		return serveOn(t, network, func(ctx context.Context, conn net.Conn) error {
			if slices.Contains(magics[:version], peek(t, conn)) {
				return Serve(ctx, conn, open)
			}
			_, _, err := readFrame(conn, nil)
			return errors.Join(errOlder, err, writeFrame(conn, frameRefused, []byte("no greeting of this version")), conn.Close())
		})
	}
}

// peek returns what the greeting begins with that comes on a socket, and leaves it there.
func peek(t *testing.T, conn net.Conn) string {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Error(err)
		return ""
	}
	head := make([]byte, headSize+len(magics[0]))
	err = raw.Read(func(fd uintptr) bool {
		n, _, err := unix.Recvfrom(int(fd), head, unix.MSG_PEEK)
		return n == len(head) || err != nil && err != unix.EAGAIN
	})
	if err != nil {
		t.Error(err)
	}
	return string(head[headSize:])
}

func serveTCP(t *testing.T, open Opener) (*Client, <-chan error) {
	return serveOn(t, "tcp", func(ctx context.Context, conn net.Conn) error { return Serve(ctx, conn, open) })
}

// Clients of older versions are served as they always were, and the greetings are what docs/format/wire.md says.
func TestGreetings(t *testing.T) {
	for _, c := range []struct {
		hello  string
		before capture.Sent
		agreed bool
	}{
		{"TMWIRE01\x04\x00line\x01\x00a\x03\x00old", capture.Sent{ID: "old"}, false},
		{"TMWIRE02\x04\x00line\x01\x00a\x03\x00old\x00\x00\x00\x00\x00\x00\x00\x00", capture.Sent{ID: "old"}, true},
		{"TMWIRE03\x04\x00line\x01\x00a\x03\x00old\x07\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", capture.Sent{ID: "old", Durable: 263}, true},
		{"TMWIRE04\x04\x00line\x01\x00a\x03\x00old\x07\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", capture.Sent{ID: "old", Durable: 263}, true},
	} {
		t.Run(c.hello[:8], func(t *testing.T) {
			client, _ := serve(t, func(_ context.Context, line, id string, before capture.Sent) (Feed, bool, error) {
				if line != "line" || id != "a" || before != c.before {
					t.Errorf("opened %q, %q, %+v", line, id, before)
				}
				return &book{applied: 3}, true, nil
			})
			conn, err := client.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := writeFrame(conn, frameHello, []byte(c.hello)); err != nil {
				t.Fatal(err)
			}
			if c.agreed {
				if kind, body, err := readFrame(conn, nil); err != nil || kind != frameAgreed || !bytes.Equal(body, []byte{0}) {
					t.Errorf("a frame of kind %d, %x: %v", kind, body, err)
				}
			}
			kind, body, err := readFrame(conn, nil)
			if err != nil || kind != frameWelcome || !bytes.Equal(body, []byte{1, 3, 0, 0, 0, 0, 0, 0, 0}) {
				t.Errorf("a frame of kind %d, %x: %v", kind, body, err)
			}
		})
	}
}

// open lists the descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// What is passed instead of memory, or with it, is refused, and nothing of it stays open.
func TestUnsafeMemoryIsRefused(t *testing.T) {
	good := newMemory(t, 1<<20)
	bare, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	unsealed := os.NewFile(uintptr(bare), "test")
	defer unsealed.Close()
	if err := unsealed.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var many []*os.File
	for range 40 {
		many = append(many, good.File())
	}
	for _, c := range []struct {
		name    string
		version int
		size    uint64
		files   []*os.File
	}{
		{"not sealed", 4, 1 << 20, []*os.File{unsealed}},
		{"a file", 3, 1 << 20, []*os.File{file}},
		{"smaller than said", 3, 2 << 20, []*os.File{good.File()}},
		{"larger than said", 3, 1 << 19, []*os.File{good.File()}},
		{"larger than there can be", 3, 1 << 63, []*os.File{good.File()}},
		{"of no bytes", 3, 0, []*os.File{good.File()}},
		{"two", 3, 1 << 20, []*os.File{good.File(), good.File()}},
		{"many", 3, 1 << 20, many},
		{"from an older client", 1, 0, []*os.File{good.File()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, ended := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) {
				t.Error("a timeline was opened")
				return &book{}, true, nil
			})
			conn, err := client.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			before := openFiles(t)
			h := greeting{version: c.version, timeline: "line", stream: "a", memory: c.size}
			hello := h.encode()
			var fds []int
			for _, f := range c.files {
				fds = append(fds, int(f.Fd()))
			}
			frame := append(header(frameHello, hello), hello...)
			if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(frame, unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			if kind, body, err := readFrame(conn, nil); err != nil || kind != frameRefused {
				t.Errorf("a frame of kind %d, %q: %v", kind, body, err)
			}
			conn.Close()
			if err := <-ended; !errors.Is(err, ErrProtocol) {
				t.Errorf("the server: %v", err)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d descriptors were open, and %d are", before, after)
			}
		})
	}
}

// Descriptors that come later, with frames that need none, do not stay open.
func TestDescriptorsThatNobodyAskedFor(t *testing.T) {
	m := newMemory(t, 1<<20)
	b := &book{}
	client, ended := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return b, true, nil })
	s, err := client.Open(t.Context(), "a", capture.Sent{}, m)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	for range 50 {
		body := encodeShared([]capture.Change{{Len: 4096}})
		if err := writePassing(s.(*stream).conn.(*net.UnixConn), m.File(), frameShared, body); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Sync(); err != nil || n != 50 {
		t.Errorf("%d are durable: %v", n, err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors were open, and %d are", before, after)
	}
	s.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Places outside of the memory, and data that are not what they should be, end the connection.
func TestWrongPlacesAreRefused(t *testing.T) {
	m := newMemory(t, 64<<10)
	for _, c := range []struct {
		name   string
		at, n  int64
		change byte
	}{
		{"behind the end", 64 << 10, 1, 0},
		{"beyond the end", 60 << 10, 8 << 10, 0},
		{"before the beginning", -4096, 8192, 0},
		{"around the end of all numbers", math.MaxInt64 - 100, 200, 0},
		{"of a negative length", 8192, -4096, 0},
		{"changed", 4096, 4096, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &book{}
			client, ended := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return b, true, nil })
			s, err := client.Open(t.Context(), "a", capture.Sent{}, m)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			x := capture.Change{Len: c.n, Data: []byte{}, Memory: m, At: c.at, Sum: shared.Sum(make([]byte, 4096))}
			m.Bytes()[5000] = c.change
			if err := s.Apply([]capture.Change{{Len: 4096}, x}); err != nil {
				t.Fatal(err)
			}
			var refused *RefusedError
			if _, err := s.Sync(); !errors.As(err, &refused) || !strings.Contains(refused.Text, ErrProtocol.Error()) {
				t.Errorf("sync: %v", err)
			}
			if err := <-ended; !errors.Is(err, ErrProtocol) {
				t.Errorf("the server: %v", err)
			}
		})
	}
	t.Run("of no memory", func(t *testing.T) {
		client, ended := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) { return &book{}, true, nil })
		s, err := client.Open(t.Context(), "a", capture.Sent{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.(*stream).send(frameShared, encodeShared([]capture.Change{{Len: 4096}})); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, ErrProtocol) {
			t.Errorf("the server: %v", err)
		}
	})
}

func TestRefusalsAreHeard(t *testing.T) {
	client, _ := serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) {
		return nil, false, errors.New("no such timeline")
	})
	var refused *RefusedError
	if _, err := client.Open(t.Context(), "a", capture.Sent{}, nil); !errors.As(err, &refused) || refused.Text != "no such timeline" {
		t.Errorf("open: %v", err)
	}
	client, _ = serve(t, func(context.Context, string, string, capture.Sent) (Feed, bool, error) {
		return &book{full: errors.New("no space")}, true, nil
	})
	s, err := client.Open(t.Context(), "a", capture.Sent{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Apply([]capture.Change{{Len: 4096}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sync(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("sync: %v", err)
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s")) // nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c := &Client{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}
	if _, err := c.Open(ctx, "a", capture.Sent{}, nil); err == nil {
		t.Error("opened without an answer")
	}
}

// A bit that the connection flips is noticed.
func TestDamageIsNoticed(t *testing.T) {
	var frame bytes.Buffer
	if err := writeFrame(&frame, frameChanges, encodeChanges([]capture.Change{{Len: 512, Data: make([]byte, 512)}, {Off: 4096, Len: 4096}})...); err != nil {
		t.Fatal(err)
	}
	for bit := range frame.Len() * 8 {
		b := bytes.Clone(frame.Bytes())
		b[bit/8] ^= 1 << (bit % 8)
		if _, _, err := readFrame(bytes.NewReader(b), nil); err == nil {
			t.Fatalf("bit %d", bit)
		}
	}
	for n := range frame.Len() {
		if _, _, err := readFrame(bytes.NewReader(frame.Bytes()[:n]), nil); n > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	var changes bytes.Buffer
	writeFrame(&changes, frameChanges, encodeChanges([]capture.Change{{Len: 3, Data: []byte("abc")}, {Disk: 1, Off: 9, Len: 1 << 40, Time: 5}})...)
	for i := range magics {
		h := greeting{version: i + 1, timeline: "a", stream: "b", before: capture.Sent{ID: "c", Durable: 9}, memory: 1 << 20}
		f.Add(h.encode(), byte(frameHello))
	}
	f.Add(changes.Bytes()[headSize:], byte(frameChanges))
	f.Add([]byte("12345678\x02\x00no"), byte(frameLose))
	sample := capture.SampleOf(1, 4096, []byte("abc"))
	f.Add(encodeSample(&sample), byte(frameSample))
	m := newMemory(f, 64<<10)
	inside := capture.Change{Len: 4096, Data: m.Bytes()[:4096], Memory: m, At: 4096, Sum: shared.Sum(make([]byte, 4096))}
	f.Add(encodeShared([]capture.Change{inside, {Disk: 1, Off: 9, Len: 1 << 40, Time: 5}}), byte(frameShared))
	inside.At = 64<<10 - 4095
	f.Add(encodeShared([]capture.Change{inside}), byte(frameShared))
	f.Fuzz(func(t *testing.T, body []byte, kind byte) {
		if h, err := parseHello(kind, body); err == nil && !bytes.Equal(h.encode(), body) {
			t.Errorf("a greeting that is not what it says")
		}
		if list, err := parseChanges(body); err == nil {
			if again := bytes.Join(encodeChanges(list), nil); !bytes.Equal(again, body) {
				t.Errorf("changes that are not what they say")
			}
		}
		if list, err := parseShared(body, m); err == nil {
			if again := encodeShared(list); !bytes.Equal(again, body) {
				t.Errorf("changes in memory that are not what they say")
			}
			for i := range list {
				_ = list[i].Own() // reads all of it
			}
		}
		if x, err := parseSample(body); err == nil && !bytes.Equal(encodeSample(&x), body) {
			t.Errorf("a sample that is not what it says")
		}
		for _, s := range []*session{{feed: &book{}}, {feed: &book{}, memory: m}, {feed: &book{}, packs: true}} {
			if kind != frameSync {
				_ = s.handle(kind, body)
			}
		}
		_, _, _ = readFrame(bytes.NewReader(body), nil)
	})
}
