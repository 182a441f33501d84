// Package catalogtest provides tests with a PostgreSQL of their own for a catalog, and with a gate before it, by which
// it is away, or does not get an answer through, when a test wants that.
package catalogtest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// StartPostgres starts a server of the test's own and returns its socket directory. The test is skipped where PostgreSQL 15 is not installed.
func StartPostgres(t *testing.T) string {
	t.Helper()
	const bin = "/usr/lib/postgresql/15/bin/"
	if _, err := os.Stat(bin + "initdb"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("PostgreSQL 15 is not installed")
		}
		t.Skip("PostgreSQL 15 is not installed")
	}
	dir, err := os.MkdirTemp("/tmp", "tmcat")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	initdb := exec.Command(bin+"initdb", "-D", dir+"/data", "-A", "trust", "-U", "postgres", "--no-sync")
	initdb.SysProcAttr = attr
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	pg := exec.Command(bin+"postgres", "-D", dir+"/data", "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off")
	pg.SysProcAttr = attr
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pg.Process.Signal(syscall.SIGINT); pg.Wait() })
	for range 200 {
		if exec.Command("psql", "-h", dir, "-U", "postgres", "-c", "SELECT 1").Run() == nil {
			return dir
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("PostgreSQL did not start")
	return ""
}

// Gate stands between a catalog and its database.
type Gate struct {
	to     string // the database's socket
	listen net.Listener

	mu     sync.Mutex
	mute   bool // connections are taken, and not answered
	closed bool
	open   []net.Conn
	loss   *loss // nil: none is wanted
}

// NewGate returns an open gate before the server with a socket directory, until the test ends.
func NewGate(t *testing.T, server string) *Gate {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "tmgate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	const name = ".s.PGSQL.5432"
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{to: filepath.Join(server, name), listen: l}
	t.Cleanup(func() { l.Close(); g.Set(true, false) })
	go g.serve()
	return g
}

// URL is the place of the catalog behind the gate.
func (g *Gate) URL() string {
	return fmt.Sprintf("postgres://postgres@/postgres?host=%s", filepath.Dir(g.listen.Addr().String()))
}

// Set closes the gate, opens it, or lets it stand there and say nothing. What is connected is cut.
func (g *Gate) Set(closed, mute bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set(closed, mute)
}

func (g *Gate) set(closed, mute bool) {
	g.closed, g.mute = closed, mute
	for _, c := range g.open {
		c.Close()
	}
	g.open = nil
}

// LoseCommit has the database commit the next transaction in which a statement has a text, and does not let the answer through: the
// connection is cut instead, and, if stay is true, all others are, and the gate is closed. What it returns is closed when that was done.
func (g *Gate) LoseCommit(text string, stay bool) <-chan struct{} {
	return g.lose(text, "commit\x00", stay)
}

// LoseAnswer does so with the next statement outside of a transaction that has a text.
func (g *Gate) LoseAnswer(text string, stay bool) <-chan struct{} { return g.lose(text, text, stay) }

func (g *Gate) lose(text, end string, stay bool) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loss = &loss{text: []byte(text), end: []byte(end), stay: stay, done: make(chan struct{})}
	return g.loss.done
}

// loss is an answer that is to be lost.
type loss struct {
	text, end []byte // it is to what has the end, behind what has the text or in it
	on        *link  // that had the text
	stay      bool
	done      chan struct{}
}

// link is a connection through the gate.
type link struct {
	in, out net.Conn
	losing  *loss // whose answer comes next; guarded by Gate.mu
}

func (g *Gate) serve() {
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
		l := &link{in: in, out: out}
		go func() { pump(out, in, func(said []byte) bool { return g.asked(l, said) }); out.Close() }()
		go func() { pump(in, out, func([]byte) bool { return g.answered(l) }); in.Close() }()
	}
}

// pump copies what passes, until one side ends or something does not pass.
func pump(to io.Writer, from io.Reader, passes func([]byte) bool) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !passes(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// asked looks at what goes to the database. All of it passes.
func (g *Gate) asked(l *link, said []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.loss != nil && g.loss.on == nil && bytes.Contains(said, g.loss.text) {
		g.loss.on = l
	}
	if g.loss != nil && g.loss.on == l && bytes.Contains(said, g.loss.end) {
		l.losing, g.loss = g.loss, nil
	}
	return true
}

// answered reports whether what the database answers passes.
func (g *Gate) answered(l *link) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.losing == nil {
		return true
	}
	if l.losing.stay {
		g.set(true, false)
	}
	close(l.losing.done)
	return false
}
