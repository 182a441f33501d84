package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/catalog"
	"tidemark/mount"
)

// lines is what a server logs.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// await waits until something was logged.
func (l *lines) await(t *testing.T, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		found := strings.Contains(l.text.String(), what)
		l.mu.Unlock()
		if found {
			return
		}
	}
	t.Errorf("nobody is told: %s", what)
}

// listens is a server that hosts can join.
func listens(t *testing.T) (*Control, *lines) {
	t.Helper()
	said := &lines{}
	c, err := Open(context.Background(), Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.NewTextHandler(said, nil)), Reserve: -1, CacheBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	<-c.undone
	return c, said
}

// shows makes a point that is shown on a host, and returns the name of its export there.
func shows(t *testing.T, c *Control, host, name string) string {
	t.Helper()
	v, err := c.createVolume(t.Context(), tidemark.VolumeSpec{Name: "of-" + name, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	a, err := c.branch(t.Context(), v, name, host, head, nil, roleMount)
	if err == nil {
		err = c.serveDisk(a, a.t.Disks()[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	return exportOf(a, volumeDisk)
}

// stolen is a copy of a host's identity.
func stolen(t *testing.T, identity string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "stolen")
	if err := os.CopyFS(dir, os.DirFS(identity)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dials is a connection of a host for something.
func dials(t *testing.T, identity, purpose string) net.Conn {
	t.Helper()
	conn, err := remote.DialFrom(t.Context(), identity, remote.Request{For: purpose})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ends waits until a connection was closed by the other end.
func ends(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s goes on", what)
	}
}

// serials are the certificates of a host that are good.
func serials(t *testing.T, c *Control, host string) []string {
	t.Helper()
	var k keptHost
	if err := c.catalog.Get(t.Context(), catalog.Hosts, host, &k); err != nil {
		t.Fatal(err)
	}
	return k.Serials
}

// connections are the certificates that the connections of a host have come with.
func connections(c *Control, host string) (list []string) {
	c.hosts.mu.Lock()
	defer c.hosts.mu.Unlock()
	for x := range c.hosts.live[host].conns {
		list = append(list, x.serial)
	}
	return list
}

// A machine that joins with a new token is the host from then on: what came by a certificate of before has ended, whatever it is for.
func TestTokenEndsConnections(t *testing.T) {
	c, _ := listens(t)
	export := shows(t, c, "two", "x")
	old := stolen(t, host(t, c, "two"))
	disk, err := askFor(t.Context(), old, export, export)
	if err != nil {
		t.Fatal(err)
	}
	conns := map[string]net.Conn{remote.Disk: disk}
	for _, purpose := range []string{remote.Calls, remote.Feed} {
		conns[purpose] = dials(t, old, purpose)
	}
	now := host(t, c, "two")
	for purpose, conn := range conns {
		ends(t, purpose, conn)
	}
	if _, err := askFor(t.Context(), now, export, export); err != nil {
		t.Errorf("the new machine: %v", err)
	}
	if _, err := askFor(t.Context(), old, export, export); tidemark.KindOf(err) != tidemark.Denied || !errors.Is(err, remote.ErrShutOut) {
		t.Errorf("the old one: %v", err)
	}
	// That a disk is not there says nothing of the host; that it was removed does.
	if _, err := askFor(t.Context(), now, "none", "none"); tidemark.KindOf(err) != tidemark.Denied || errors.Is(err, remote.ErrShutOut) {
		t.Errorf("no such disk: %v", err)
	}
	if err := c.RemoveHost(t.Context(), tidemark.HostRemoval{Name: "two", Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := askFor(t.Context(), now, export, export); tidemark.KindOf(err) != tidemark.Denied || !errors.Is(err, remote.ErrShutOut) {
		t.Errorf("a host that was removed: %v", err)
	}
}

// What was begun by a certificate or token that counts no more is not ended: neither a renewal nor a join, nor a connection that was let in just before.
func TestReplacedMeanwhile(t *testing.T) {
	ctx := t.Context()
	c, _ := listens(t)
	h := &c.hosts
	invited := func() string {
		v, err := c.AddHost(ctx, tidemark.HostSpec{Name: "two"})
		if err != nil {
			t.Fatal(err)
		}
		token, err := remote.ParseToken(v.Token)
		if err != nil {
			t.Fatal(err)
		}
		return token.Hash()
	}
	redeemed := func() string {
		hash := invited()
		if host, err := h.Redeem(ctx, hash, netip.Addr{}); host != "two" || err != nil {
			t.Fatalf("%q, %v", host, err)
		}
		return hash
	}
	joined := func(serial string) {
		if err := h.Certified(ctx, "two", redeemed(), serial, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
	}
	removed := func() {
		if err := c.RemoveHost(ctx, tidemark.HostRemoval{Name: "two"}); err != nil {
			t.Fatal(err)
		}
	}
	for what, between := range map[string]func() (good []string){
		"another machine has joined":     func() []string { joined("N"); return []string{"N"} },
		"another machine joins":          func() []string { redeemed(); return nil },
		"it was removed, and is invited": func() []string { removed(); invited(); return nil },
		"it was removed, and joined":     func() []string { removed(); joined("N"); return []string{"N"} },
	} {
		t.Run(what, func(t *testing.T) {
			joined("O")
			if err := h.Admit(ctx, "two", "O", netip.Addr{}, remote.Request{For: remote.Feed}); err != nil {
				t.Fatal(err)
			}
			between()
			if err := h.Certified(ctx, "two", "O", "T", netip.Addr{}); tidemark.KindOf(err) != tidemark.Denied {
				t.Errorf("a renewal: %v", err)
			}
			ours, theirs := net.Pipe()
			defer theirs.Close()
			taken := make(chan struct{})
			go func() {
				h.Take(ctx, "two", "O", remote.Request{For: remote.Feed}, ours)
				close(taken)
			}()
			select {
			case <-taken:
			case <-time.After(20 * time.Second):
				t.Error("a connection was taken")
				ours.Close()
			}

			hash := redeemed()
			good := between()
			if err := h.Certified(ctx, "two", hash, "T", netip.Addr{}); tidemark.KindOf(err) != tidemark.Denied {
				t.Errorf("a join: %v", err)
			}
			if got := serials(t, c, "two"); !slices.Equal(got, good) {
				t.Errorf("%q are good", got)
			}
		})
	}
	joined("O")
	removed()
	if err := h.Certified(ctx, "two", "O", "T", netip.Addr{}); tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("it was removed: %v", err)
	}
	// In peace there are two, until the next is used; who never heard of the next asks for another.
	joined("O")
	for _, next := range []string{"P", "Q"} {
		if err := h.Certified(ctx, "two", "O", next, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		if got := serials(t, c, "two"); !slices.Equal(got, []string{"O", next}) {
			t.Errorf("%q are good", got)
		}
	}
}

// A host whose certificate is renewed goes on with its disks: its attachers come back by the next certificate, when the one before is not good any
// more. A copy of that one does not.
func TestRenewalOfLiving(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx := t.Context()
	c, said := listens(t)
	identity, copied := host(t, c, "two"), shows(t, c, "two", "copied")
	thief, err := askFor(ctx, stolen(t, identity), copied, copied)
	if err != nil {
		t.Fatal(err)
	}
	at, err := mount.Attach(ctx, mount.Config{Name: "x", StateDir: filepath.Join(t.TempDir(), "at"), Export: shows(t, c, "two", "x"), Identity: identity})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := at.Detach(context.Background(), true); err != nil {
			t.Error(err)
		}
	})
	dev, err := os.OpenFile(at.Device(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	block := func(b byte) {
		t.Helper()
		want, got := bytes.Repeat([]byte{b}, 4096), make([]byte, 4096)
		_, err := dev.WriteAt(want, int64(b)*4096)
		if err == nil {
			err = dev.Sync()
		}
		if err == nil {
			_, err = dev.ReadAt(got, int64(b)*4096)
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("write %d: %v", b, err)
		}
	}
	block(1)
	id, err := remote.OpenIdentity(identity)
	if err != nil {
		t.Fatal(err)
	}
	before := serials(t, c, "two")
	if err := id.Renew(ctx, c.hosts.address()); err != nil {
		t.Fatal(err)
	}
	block(2)
	if got := connections(c, "two"); len(got) < 2 || slices.ContainsFunc(got, func(s string) bool { return s != before[0] }) {
		t.Errorf("before the next certificate was used, there are the connections of %q", got)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		for b := byte(3); b < 100; b++ {
			block(b)
		}
	}()
	dials(t, identity, remote.Feed) // which uses it
	said.await(t, "a certificate was replaced, and its connections have ended")
	ends(t, "the copy", thief)
	<-written
	block(100)
	now := serials(t, c, "two")
	if len(now) != 1 || now[0] == before[0] {
		t.Errorf("%q are good, before %q", now, before)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) { // what has ended is not forgotten at once
		got := connections(c, "two")
		if len(got) > 1 && !slices.ContainsFunc(got, func(s string) bool { return s != now[0] }) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("there are connections of %q, and good is %q", got, now)
		}
	}
}

// An agent that says more at once than it has to is cut off, and one is called on a few connections only; both are told.
func TestHostileAgent(t *testing.T) {
	c, said := listens(t)
	two := host(t, c, "two")
	conn := dials(t, two, remote.Calls)
	said.await(t, "a host is connected")
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte("x"), 64<<10)
	_, err := fmt.Fprint(conn, `{"call":1,"body":"`)
	for sent := 0; err == nil && sent < 64<<20; sent += len(piece) {
		_, err = conn.Write(piece)
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("it is listened to: %v", err)
	}
	said.await(t, "has said more than 4 MiB at once")

	l := c.hosts.link("two")
	for range maxCalls { // each held by one that has something to end yet
		l.calls <- struct{}{}
	}
	ends(t, "one connection too many", dials(t, two, remote.Calls))
	said.await(t, "too many connections to be called on")
	<-l.calls
	next := dials(t, two, remote.Calls)
	for end := time.Now().Add(20 * time.Second); !l.agent.Connected(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it cannot come back")
		}
	}
	next.Close()
}

// A server that starts calls no other host, though that has called in: while what was half done is taken back nothing of what is mounted there is served,
// and the host could not unmount it. It is called when all is back.
func TestHostsAreCalledWhenAllIsBack(t *testing.T) {
	c, _ := listens(t)
	identity := host(t, c, "h")
	back := make(chan struct{})
	c.back = back
	dials(t, identity, remote.Calls)
	x, err := c.agentOn("h")
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Second / 4); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := x.Reach(t.Context()); tidemark.KindOf(err) != tidemark.Unavailable {
			t.Fatalf("it can be called: %v", err)
		}
	}
	close(back)
	for end := time.Now().Add(20 * time.Second); !x.Connected(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is never called")
		}
	}
}
