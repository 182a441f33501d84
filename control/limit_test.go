package control

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"tidemark/capture"
	"tidemark/wire"
)

// What goes over a connection arrives as it was, not faster than the limit, and at once when there is none any more.
func TestLimit(t *testing.T) {
	const size = 512 << 10
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 7)
	}
	l := newHostLimit(16 << 20) // 2 MiB/s, and the first 64 KiB at once
	for _, way := range []string{"sent", "taken"} {
		ours, theirs := net.Pipe()
		from, to := l.on(t.Context(), ours), net.Conn(theirs)
		if way == "taken" {
			from, to = theirs, l.on(t.Context(), ours)
		}
		begun := time.Now()
		go func() {
			from.Write(data)
			from.Close()
		}()
		got, err := io.ReadAll(to)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: %d bytes, %v", way, len(got), err)
		}
		if took := time.Since(begun); took < 200*time.Millisecond {
			t.Errorf("%s: %d bytes in %v", way, size, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go io.Copy(io.Discard, theirs)
	l.set(64e3)
	ended := make(chan error, 1)
	go func() {
		_, err := l.on(ctx, ours).Write(make([]byte, 8<<20))
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("8 MiB went at once: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("who was cut has written all")
	}
	l.set(0)
	begun := time.Now()
	if _, err := l.on(t.Context(), ours).Write(make([]byte, 8<<20)); err != nil || time.Since(begun) > 10*time.Second {
		t.Errorf("without a limit: %v, %v", time.Since(begun), err)
	}
}

// received counts what a stream of changes has brought, and keeps none of it.
type received struct {
	wire.Feed
	n uint64
}

func (r *received) Applied() uint64                   { return r.n }
func (r *received) Apply(list []capture.Change) error { r.n += uint64(len(list)); return nil }
func (r *received) Sync() (uint64, error)             { return r.n, nil }
func (r *received) Close() error                      { return nil }

// Of the stream of a tap, the limit is of what is left of it when it was compressed.
func TestLimitOfCompressed(t *testing.T) {
	l := newHostLimit(1 << 20) // 128 KiB/s: 16 MiB as they are would take two minutes
	ours, theirs := net.Pipe()
	go wire.Serve(t.Context(), l.on(t.Context(), ours), func(context.Context, string, string, capture.Sent) (wire.Feed, bool, error) {
		return &received{}, true, nil
	})
	client := wire.Client{Timeline: "line", Dial: func(context.Context) (net.Conn, error) { return theirs, nil }}
	s, err := client.Open(t.Context(), "a", capture.Sent{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	begun := time.Now()
	data := bytes.Repeat([]byte("tidemark"), 1<<17)
	for i := range 16 {
		if err := s.Apply([]capture.Change{{Off: int64(i) << 20, Len: 1 << 20, Data: data}}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.Sync(); err != nil || n != 16 {
		t.Errorf("%d changes are durable: %v", n, err)
	}
	if took := time.Since(begun); took > time.Minute {
		t.Errorf("16 MiB took %v", took)
	}
}
