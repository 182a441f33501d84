package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
)

// book is a feed that writes down what it is told.
type book struct {
	mu      sync.Mutex
	applied uint64
	said    []string
	sum     int64
	full    error
	closed  bool
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
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ended := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = Serve(t.Context(), conn, open)
		}
		ended <- err
	}()
	return &Client{Timeline: "line", Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}}, ended
}

func TestWhatIsSentArrives(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	b := &book{applied: 7}
	client, ended := serve(t, func(_ context.Context, line, id, before string) (Feed, bool, error) {
		if line != "line" || id != "new" || before != "old" {
			t.Errorf("opened %q, %q, %q", line, id, before)
		}
		return b, true, nil
	})
	s, err := client.Open(t.Context(), "new", "old")
	if err != nil {
		t.Fatal(err)
	}
	if s.Applied() != 7 || !s.Known() {
		t.Errorf("applied %d, known %v", s.Applied(), s.Known())
	}
	var want []string
	sent := uint64(7)
	for round := range 40 {
		var list []capture.Change
		for range rng.IntN(60) {
			c := capture.Change{Disk: uint16(rng.IntN(3)), Off: rng.Int64(), Time: rng.Int64(), Len: rng.Int64N(1 << rng.IntN(20))}
			if rng.IntN(4) > 0 {
				c.Data = make([]byte, c.Len)
				for i := range c.Data {
					c.Data[i] = byte(rng.Uint32())
				}
			}
			list = append(list, c)
			want = append(want, note(c))
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
}

func TestRefusalsAreHeard(t *testing.T) {
	client, _ := serve(t, func(context.Context, string, string, string) (Feed, bool, error) {
		return nil, false, errors.New("no such timeline")
	})
	var refused *RefusedError
	if _, err := client.Open(t.Context(), "a", ""); !errors.As(err, &refused) || refused.Text != "no such timeline" {
		t.Errorf("open: %v", err)
	}
	client, _ = serve(t, func(context.Context, string, string, string) (Feed, bool, error) {
		return &book{full: errors.New("no space")}, true, nil
	})
	s, err := client.Open(t.Context(), "a", "")
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
	if _, err := c.Open(ctx, "a", ""); err == nil {
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
	var hello, changes bytes.Buffer
	writeFrame(&hello, frameHello, appendText(appendText(appendText([]byte(magic), "a"), "b"), ""))
	writeFrame(&changes, frameChanges, encodeChanges([]capture.Change{{Len: 3, Data: []byte("abc")}, {Disk: 1, Off: 9, Len: 1 << 40, Time: 5}})...)
	f.Add(hello.Bytes()[headSize:], byte(frameHello))
	f.Add(changes.Bytes()[headSize:], byte(frameChanges))
	f.Add([]byte("12345678\x02\x00no"), byte(frameLose))
	sample := capture.SampleOf(1, 4096, []byte("abc"))
	f.Add(encodeSample(&sample), byte(frameSample))
	f.Fuzz(func(t *testing.T, body []byte, kind byte) {
		if names, err := parseHello(kind, body); err == nil {
			again := []byte(magic)
			for _, n := range names {
				again = appendText(again, n)
			}
			if !bytes.Equal(again, body) {
				t.Errorf("a greeting that is not what it says")
			}
		}
		if list, err := parseChanges(body); err == nil {
			if again := bytes.Join(encodeChanges(list), nil); !bytes.Equal(again, body) {
				t.Errorf("changes that are not what they say")
			}
		}
		if x, err := parseSample(body); err == nil && !bytes.Equal(encodeSample(&x), body) {
			t.Errorf("a sample that is not what it says")
		}
		s := &session{feed: &book{}}
		if kind != frameSync {
			_ = s.handle(kind, body)
		}
		_, _, _ = readFrame(bytes.NewReader(body), nil)
	})
}
