package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/block"
	"tidemark/export/nbd"
)

// slow is a disk in memory, whose writes of a certain byte wait until they may go on.
type slow struct {
	mu    sync.Mutex // guards bytes
	bytes []byte
	byte  byte
	came  chan struct{}
	goOn  chan struct{}
}

func (s *slow) Size() int64 { return int64(len(s.bytes)) }

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(p, s.bytes[off:]), block.Check(s, off, int64(len(p)))
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	if p[0] == s.byte {
		close(s.came)
		<-s.goOn
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return copy(s.bytes[off:], p), block.Check(s, off, int64(len(p)))
}

func (s *slow) Flush() error { return nil }

func (s *slow) Discard(off, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.bytes[off : off+n])
	return nil
}

// nbdClient speaks the least of NBD that there is.
type nbdClient struct {
	t *testing.T
	net.Conn
}

// open negotiates an export, and returns the error of the connection, if it ends.
func (c nbdClient) open(name string) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c, hello); err != nil {
		return err
	}
	msg := binary.BigEndian.AppendUint32(nil, 3)
	msg = append(msg, "IHAVEOPT"...)
	msg = binary.BigEndian.AppendUint32(msg, 1) // NBD_OPT_EXPORT_NAME
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(name)))
	if _, err := c.Write(append(msg, name...)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 10))
	return err
}

// write asks for a block of one byte to be written.
func (c nbdClient) write(b byte, off uint64) error {
	msg := binary.BigEndian.AppendUint32(nil, 0x25609513)
	msg = binary.BigEndian.AppendUint32(msg, 1) // NBD_CMD_WRITE
	msg = binary.BigEndian.AppendUint64(msg, uint64(b))
	msg = binary.BigEndian.AppendUint64(msg, off)
	msg = binary.BigEndian.AppendUint32(msg, block.BlockSize)
	data := make([]byte, block.BlockSize)
	for i := range data {
		data[i] = b
	}
	_, err := c.Write(append(msg, data...))
	return err
}

func (c nbdClient) answered() error {
	p := make([]byte, 16)
	if _, err := io.ReadFull(c, p); err != nil {
		return err
	}
	if e := binary.BigEndian.Uint32(p[4:]); e != 0 {
		return fmt.Errorf("error %d", e)
	}
	return nil
}

// session makes a connection of a session.
func session(t *testing.T, h *hostDisks, client string, number uint64) nbdClient {
	t.Helper()
	ours, theirs := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() {
		h.serve(t.Context(), remote.Request{For: remote.Disk, Disk: "d", Client: client, Session: number}, theirs)
		theirs.Close()
	})
	t.Cleanup(func() { ours.Close(); served.Wait() })
	if err := ours.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return nbdClient{t, ours}
}

// A write that came in one session is done before the next session begins: it cannot land on what that writes.
func TestSessionsFollow(t *testing.T) {
	d := &slow{bytes: make([]byte, 1<<20), byte: 'a', came: make(chan struct{}), goOn: make(chan struct{})}
	h := &hostDisks{served: map[string]*hostDisk{}}
	if err := h.add(&nbd.Export{Name: "d", Device: d}); err != nil {
		t.Fatal(err)
	}
	first := session(t, h, "x", 1)
	if err := errors.Join(first.open("d"), first.write('a', 0)); err != nil {
		t.Fatal(err)
	}
	<-d.came
	second := session(t, h, "x", 2)
	began := make(chan error, 1)
	go func() { began <- second.open("d") }()
	if err := first.answered(); err == nil {
		t.Error("a write was answered that waits")
	}
	select {
	case err := <-began:
		t.Fatalf("the next session began while a write of the last was not done: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	late := session(t, h, "x", 1) // one that was on its way for long
	if err := late.open("d"); err == nil {
		t.Error("a connection of an earlier session was let in")
	}
	close(d.goOn)
	if err := <-began; err != nil {
		t.Fatal(err)
	}
	beside := session(t, h, "x", 2)
	if err := errors.Join(beside.open("d"), second.write('b', 0), second.answered(), beside.write('b', block.BlockSize), beside.answered()); err != nil {
		t.Fatalf("the connections of one session: %v", err)
	}
	got := make([]byte, 1)
	if _, err := d.ReadAt(got, 0); err != nil || got[0] != 'b' {
		t.Errorf("%q, %v", got, err)
	}
	other := session(t, h, "y", 1) // an attacher that was started anew
	if err := errors.Join(other.open("d"), other.write('c', 0), other.answered()); err != nil {
		t.Fatal(err)
	}
	if err := second.write('b', 0); err == nil && second.answered() == nil {
		t.Error("two attachers have the disk")
	}
	if err := h.remove("d"); err != nil {
		t.Fatal(err)
	}
	if err := session(t, h, "y", 2).open("d"); err == nil {
		t.Error("a disk that was removed is served")
	}
}

// host joins a server, and returns the directory of its identity.
func host(t *testing.T, c *Control, name string) string {
	t.Helper()
	v, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	token, err := remote.ParseToken(v.Token)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "identity")
	id, err := remote.Join(t.Context(), v.Server, token, dir)
	if err == nil {
		err = id.SetServer(v.Server)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// askFor opens a disk of a server as a host does, and returns what it is told.
func askFor(ctx context.Context, identity, disk, export string) (net.Conn, error) {
	conn, err := remote.DialFrom(ctx, identity, remote.Request{For: remote.Disk, Disk: disk, Client: "x", Session: 1})
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	return conn, nbdClient{Conn: conn}.open(export)
}

// A host gets the disks that are shown there, by whatever name it asks for one, and none of another host or of the server's own; one
// whose certificate was replaced or revoked gets none any more.
func TestDisksOfHosts(t *testing.T) {
	ctx := t.Context()
	c, err := Open(ctx, Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	one, two := host(t, c, "one"), host(t, c, "two")
	v, err := c.createVolume(ctx, tidemark.VolumeSpec{Name: "vol", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	shown := map[string]string{"the server's own": exportName("vol", volumeDisk)}
	for _, name := range []string{"one", "two"} {
		a, err := c.branch(ctx, v, "m-"+name, name, head, nil, roleMount)
		if err == nil {
			err = c.serveDisk(a, a.t.Disks()[0])
		}
		if err != nil {
			t.Fatal(err)
		}
		shown[name] = exportOf(a, volumeDisk)
	}
	conn, err := askFor(ctx, one, shown["one"], shown["one"])
	if err != nil {
		t.Fatalf("its own disk: %v", err)
	}
	for what, name := range shown {
		if what == "one" {
			continue
		}
		if _, err := askFor(ctx, one, name, name); tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("the disk of %s: %v", what, err)
		}
		if _, err := askFor(ctx, one, shown["one"], name); err == nil {
			t.Errorf("the disk of %s by way of its own", what)
		}
	}
	if _, err := askFor(ctx, one, "", ""); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("no name: %v", err)
	}

	// Who has stolen the certificate of a host is that host, until it is renewed.
	stolen := filepath.Join(t.TempDir(), "stolen")
	if err := os.CopyFS(stolen, os.DirFS(two)); err != nil {
		t.Fatal(err)
	}
	if _, err := askFor(ctx, stolen, shown["one"], shown["one"]); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("by the certificate of another host: %v", err)
	}
	id, err := remote.OpenIdentity(two)
	if err == nil {
		err = id.Renew(ctx, c.hosts.address())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := askFor(ctx, two, shown["two"], shown["two"]); err != nil {
		t.Fatalf("by the next certificate: %v", err)
	}
	if _, err := askFor(ctx, stolen, shown["two"], shown["two"]); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("by a certificate that was replaced: %v", err)
	}

	// A host that is removed loses its disks at once.
	if err := c.RemoveHost(ctx, tidemark.HostRemoval{Name: "one"}); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("a host with a mount: %v", err)
	}
	if err := c.RemoveHost(ctx, tidemark.HostRemoval{Name: "one", Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1<<10)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("what a host has that was removed: %v", err)
	}
	if _, err := askFor(ctx, one, shown["one"], shown["one"]); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("a host that was removed: %v", err)
	}
	// It joins anew, as the same.
	if _, err := askFor(ctx, host(t, c, "one"), shown["one"], shown["one"]); err != nil {
		t.Errorf("a host that joined anew: %v", err)
	}
}
