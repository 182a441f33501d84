package agent

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/klauspost/compress/zstd"

	"tidemark"
	"tidemark/app/postgres"
)

// What an agent cannot connect to is told on the connection, as PostgreSQL would; an agent that knows nothing of it is told apart.
func TestForwardPostgres(t *testing.T) {
	f := newFar(t, "far")
	x, err := f.ForwardPostgres(t.Context(), postgres.Source{Conn: "host=/nowhere port=5432"}, &Carried{})
	if err != nil {
		t.Fatal(err)
	}
	client := pgproto3.NewFrontend(x.Conn, x.Conn)
	client.Send(&pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: map[string]string{"user": "x", "replication": "true"}})
	if err := client.Flush(); err != nil {
		t.Fatal(err)
	}
	m, err := client.Receive()
	if r, ok := m.(*pgproto3.ErrorResponse); !ok || !strings.Contains(r.Message, "/nowhere/.s.PGSQL.5432") || r.Hint == "" {
		t.Errorf("%#v, %v", m, err)
	}
	if err := x.Close(); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("at the end the agent says: %v", err)
	}
	if _, err := f.dialled[0].Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("its connection is open: %v", err)
	}
	if _, err := f.ForwardPostgres(t.Context(), postgres.Source{Forwarded: "/elsewhere"}, &Carried{}); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("what is forwarded to that host is not forwarded again: %v", err)
	}
	older := newAgent(t, filepath.Join(t.TempDir(), "lock")) // our own does not know that verb, either
	if _, err := older.ForwardPostgres(t.Context(), postgres.Source{Conn: "host=/nowhere"}, &Carried{}); tidemark.KindOf(err) != tidemark.Unavailable || !errors.Is(err, ErrNoForward) || !strings.Contains(err.Error(), "captures go on") {
		t.Errorf("an agent of another version: %v", err)
	}
}

// What is written to a packed connection arrives at once, and as it was; what is like what went before costs little.
func TestPackedConn(t *testing.T) {
	near, far := net.Pipe()
	a, err := packConn(near, &Carried{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := packConn(far, &Carried{})
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	text := make([]byte, 100<<10)
	for i := range text {
		text[i] = byte(r.Uint32())
	}
	for round := range 200 {
		part := text[:1+r.IntN(len(text))]
		if round%3 == 0 {
			part = part[:min(len(part), 5)]
		}
		var writing sync.WaitGroup
		writing.Go(func() {
			if _, err := a.Write(part); err != nil {
				t.Error(err)
			}
		})
		got := make([]byte, len(part))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, part) {
			t.Fatalf("seed %d, round %d: %v", seed, round, err)
		}
		writing.Wait()
		writing.Go(func() { b.Write(part[:1]) })
		if _, err := io.ReadFull(a, got[:1]); err != nil {
			t.Fatalf("seed %d, round %d: back: %v", seed, round, err)
		}
		writing.Wait()
	}
	if plain, packed := b.count.Plain.Load(), b.count.Packed.Load(); packed > plain/10 {
		t.Errorf("%d bytes came as %d", plain, packed)
	}
	a.Close()
	if _, err := b.Read(text); err == nil {
		t.Error("the end is not seen")
	}
}

// A host cannot have us take more memory than we mean to, nor take something for data that is none.
func TestPackedConnHostile(t *testing.T) {
	greedy, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	var wide bytes.Buffer
	greedy.Reset(&wide)
	if _, err := greedy.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := greedy.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, said := range map[string][]byte{"a large window": wide.Bytes(), "no frame": []byte("GET / HTTP/1.0\r\n\r\n"), "nothing": nil} {
		near, far := net.Pipe()
		p, err := packConn(near, &Carried{})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			far.SetDeadline(time.Now().Add(10 * time.Second))
			far.Write(said)
			far.Close()
		}()
		if n, err := p.Read(make([]byte, 200)); err == nil {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}
