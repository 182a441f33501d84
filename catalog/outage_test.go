package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
)

// gate stands between a catalog and its database, and can be closed.
type gate struct {
	t      *testing.T
	to     string // the database's socket
	listen net.Listener

	mu     sync.Mutex
	mute   bool // connections are taken, and not answered
	closed bool
	open   []net.Conn
}

func newGate(t *testing.T, to string) *gate {
	dir, err := os.MkdirTemp("/tmp", "tmgate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, to: to, listen: l}
	t.Cleanup(func() { l.Close(); g.set(true, false) })
	go g.serve()
	return g
}

func (g *gate) serve() {
	for {
		in, err := g.listen.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.open = append(g.open, in)
		mute, closed := g.mute, g.closed
		g.mu.Unlock()
		if closed {
			in.Close()
			continue
		}
		if mute {
			continue
		}
		out, err := net.Dial("unix", g.to)
		if err != nil {
			in.Close()
			continue
		}
		go func() { io.Copy(out, in); out.Close() }()
		go func() { io.Copy(in, out); in.Close() }()
	}
}

// set closes the gate, opens it, or lets it stand there and say nothing. What is connected is cut.
func (g *gate) set(closed, mute bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.mute = closed, mute
	for _, c := range g.open {
		c.Close()
	}
	g.open = nil
}

// While the database is away calls fail at once, with one clear line, and patient ones wait; both work again by themselves.
func TestAway(t *testing.T) {
	ctx := context.Background()
	g := newGate(t, filepath.Join(startPostgres(t), ".s.PGSQL.5432"))
	c := openFor(t, fmt.Sprintf("postgres://postgres@/postgres?host=%s", filepath.Dir(g.listen.Addr().String())), "us")
	enqueue(t, c, NewJob{Application: "a"})
	claim(t, c, plenty)
	for _, mute := range []bool{false, true} {
		g.set(!mute, mute)
		err := c.Put(ctx, Mounts, "m", "x") // this one may wait for an answer
		if !errors.Is(err, ErrAway) || tidemark.KindOf(err) != tidemark.Unavailable {
			t.Fatalf("mute %v: %v", mute, err)
		}
		begun := time.Now()
		for range 100 {
			if err := c.Put(ctx, Mounts, "m", "x"); !errors.Is(err, ErrAway) {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d > time.Second {
			t.Fatalf("calls that fail at once took %v", d)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Step(Patient(ctx), 1, fmt.Sprint("step", mute), nil) }()
		hurried, cancel := context.WithTimeout(Patient(ctx), 50*time.Millisecond)
		if err := c.Step(hurried, 1, "never", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
		select {
		case err := <-ended:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		g.set(false, false)
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it waits although the database is back")
		}
		if j, err := c.Job(ctx, 1); err != nil || j.Step != fmt.Sprint("step", mute) {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	g.set(true, false)
	ended := make(chan error, 1)
	go func() { ended <- c.Step(Patient(ctx), 1, "x", nil) }()
	time.Sleep(100 * time.Millisecond)
	c.GiveUp()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrAway) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits although it shall give up")
	}
}

// A URL that cannot be used is told without its password.
func TestBadURL(t *testing.T) {
	for _, at := range []string{"postgres://u:hush@host:port/db", "postgres://u:hush@/db?host=/nowhere&connect_timeout=1", "postgresql://u:hush@127.0.0.1:1/db"} {
		_, err := Open(context.Background(), at, "us")
		if err == nil {
			t.Fatalf("%s: opened", at)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if s := e.Error(); len(s) == 0 || strings.Contains(s, "hush") {
				t.Fatalf("it tells the password: %v", e)
			}
		}
	}
}
