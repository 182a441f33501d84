package remote

import (
	"bufio"
	"context"
	"crypto/tls"
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
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
)

// owner lets hosts in as a server does, without a catalog.
type owner struct {
	mu      sync.Mutex
	tokens  map[string]string   // hash: host
	serials map[string][]string // of hosts
	// admitting is called before a certificate is looked at; nil: nothing is.
	admitting func()
}

func (o *owner) Redeem(_ context.Context, hash string, _ netip.Addr) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	host, ok := o.tokens[hash]
	if !ok {
		return "", tidemark.Errorf(tidemark.Denied, "used before")
	}
	delete(o.tokens, hash)
	o.serials[host] = nil
	return host, nil
}

func (o *owner) Certified(_ context.Context, host, _, serial string, _ netip.Addr) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.serials[host] = append(o.serials[host], serial)
	return nil
}

func (o *owner) Admit(_ context.Context, host, serial string, _ netip.Addr, r Request) error {
	if o.admitting != nil {
		o.admitting()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.serials[host], serial) {
		return tidemark.Errorf(tidemark.Denied, "not let in")
	}
	if r.For == Disk && r.Disk != "of "+host {
		return tidemark.Errorf(tidemark.Denied, "not shown there")
	}
	return nil
}

// Take answers a line with who said it.
func (o *owner) Take(_ context.Context, host, _ string, r Request, conn net.Conn) {
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil {
		fmt.Fprintf(conn, "%s on %s: %s", host, strings.TrimSpace(r.For+" "+r.Disk), line)
	}
}

// site is a server that listens.
type site struct {
	*owner
	authority *Authority
	address   string
	shown     atomic.Pointer[tls.Certificate] // by the server, instead of its own; nil: its own
}

func newSite(t *testing.T) *site {
	t.Helper()
	a, err := OpenAuthority(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	o := &owner{tokens: map[string]string{}, serials: map[string][]string{}}
	s, err := NewServer(a, o, nil, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := &site{owner: o, authority: a, address: l.Addr().String()}
	own := &s.config.Certificates[0]
	s.config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		if other := at.shown.Load(); other != nil {
			return other, nil
		}
		return own, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		l.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return at
}

// invite makes a token.
func (s *site) invite(host string) Token {
	t := s.authority.NewToken(host)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[t.Hash()] = host
	return t
}

func (s *site) join(t *testing.T, host string) (*Identity, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "identity")
	id, err := Join(t.Context(), s.address, s.invite(host), dir)
	if err != nil {
		t.Fatal(err)
	}
	return id, dir
}

// says sends a line and returns the answer.
func says(id *Identity, address, purpose string) (string, error) {
	conn, err := id.Dial(context.Background(), address, Request{For: purpose})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func denied(t *testing.T, what string, err error) {
	t.Helper()
	if tidemark.KindOf(err) != tidemark.Denied {
		t.Errorf("%s: %v", what, err)
	}
}

// A host joins, is known from then on, also when it has started anew, and its certificate has a successor.
func TestJoin(t *testing.T) {
	s := newSite(t)
	id, dir := s.join(t, "db1")
	if got, err := says(id, s.address, Feed); got != "db1 on feed: hello" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
	id, err := OpenIdentity(dir)
	if err != nil || id.Host() != "db1" {
		t.Fatal(err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, identityFile))
	if id.Due() {
		t.Error("a new certificate is due")
	}
	if err := id.Renew(t.Context(), s.address); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(filepath.Join(dir, identityFile))
	if string(before) == string(after) {
		t.Error("nothing was renewed")
	}
	if got, err := says(id, s.address, Calls); got != "db1 on calls: hello" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
	for _, f := range []string{filepath.Join(dir, identityFile)} {
		if st, err := os.Stat(f); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f, st.Mode(), err)
		}
	}
}

// A token is good once, for the server that made it, and for nobody who changes it.
func TestTokens(t *testing.T) {
	s, other := newSite(t), newSite(t)
	token := s.invite("db1")
	if _, err := Join(t.Context(), other.address, token, t.TempDir()); err == nil || !strings.Contains(err.Error(), "not the server that made the token") {
		t.Errorf("another server: %v", err)
	}
	wrong := token
	wrong.Secret += "x"
	_, err := Join(t.Context(), s.address, wrong, t.TempDir())
	denied(t, "a wrong secret", err)
	if _, err := Join(t.Context(), s.address, token, t.TempDir()); err != nil {
		t.Fatal(err) // what others tried did not use it up
	}
	_, err = Join(t.Context(), s.address, token, t.TempDir())
	denied(t, "a second time", err)
}

// Nobody comes in without a certificate of this authority that is good, and that the owner takes.
func TestTurnedAway(t *testing.T) {
	s, other := newSite(t), newSite(t)
	id, _ := s.join(t, "db1")
	stranger, _ := other.join(t, "db1")
	_, err := says(stranger, s.address, Feed)
	denied(t, "a host of another server", err)
	if _, err := says(id, s.address, "something"); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("an unknown purpose: %v", err)
	}
	_, err = says(forged(t, id, stranger), s.address, Feed)
	denied(t, "a certificate of another authority", err)
	s.mu.Lock()
	s.serials["db1"] = nil
	s.mu.Unlock()
	_, err = says(id, s.address, Feed)
	denied(t, "a revoked certificate", err)
	nobody := &tls.Config{InsecureSkipVerify: true}
	conn, err := tls.Dial("tcp", s.address, nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = ask(conn, opening{Request: Request{For: Feed}})
	denied(t, "no certificate", err)
}

// forged is a host that trusts the server of one identity, and shows the certificate of another.
func forged(t *testing.T, at, as *Identity) *Identity {
	t.Helper()
	return &Identity{key: as.key, cert: as.cert, authority: at.authority}
}

// A certificate whose time is over is not used, and one that the server finds too old is refused; both say that it may be the clock.
func TestExpired(t *testing.T) {
	s := newSite(t)
	id, _ := s.join(t, "db1")
	old := *id.cert
	old.NotAfter = time.Now().Add(-time.Hour)
	id.cert = &old
	_, err := says(id, s.address, Feed)
	denied(t, "an old certificate", err)
	if !strings.Contains(err.Error(), "clock") {
		t.Errorf("no word of the clock: %v", err)
	}
	old.NotAfter, old.NotBefore = time.Now().Add(time.Hour), time.Now().Add(-2*hostLife)
	if !id.Due() {
		t.Error("it is not due")
	}
}

// Who connects and says nothing, or too much, or rubbish, is no harm to others.
func TestRubbish(t *testing.T) {
	s := newSite(t)
	id, _ := s.join(t, "db1")
	for range 40 {
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	conn, err := tls.Dial("tcp", s.address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write([]byte(strings.Repeat("x", 1<<20)))
	if got, err := says(id, s.address, Feed); got != "db1 on feed: hello" || err != nil {
		t.Fatalf("%q %v", got, err)
	}
}

// An authority that is damaged is not replaced by another one: all hosts would be shut out.
func TestAuthorityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenAuthority(dir)
	if err != nil || a.Fingerprint() != b.Fingerprint() {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, authorityFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Error(err)
	}
	if _, err := OpenIdentity(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Whoever dials by what is in the directory finds the server that is noted there and the certificate of now; and a host gets its own disks alone.
func TestDialFrom(t *testing.T) {
	s := newSite(t)
	id, dir := s.join(t, "db1")
	dial := func(disk string) (string, error) {
		conn, err := DialFrom(t.Context(), dir, Request{For: Disk, Disk: disk, Client: "x", Session: 1})
		if err != nil {
			return "", err
		}
		defer conn.Close()
		fmt.Fprintln(conn, "hello")
		line, err := bufio.NewReader(conn).ReadString('\n')
		return strings.TrimSpace(line), err
	}
	if _, err := dial("of db1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a server that nobody has noted: %v", err)
	}
	for range 2 {
		if err := id.SetServer(s.address); err != nil {
			t.Fatal(err)
		}
		if got, err := dial("of db1"); got != "db1 on disk of db1: hello" || err != nil {
			t.Fatalf("%q %v", got, err)
		}
		if err := id.Renew(t.Context(), s.address); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		s.serials["db1"] = s.serials["db1"][len(s.serials["db1"])-1:] // that of before is good for nothing
		s.mu.Unlock()
	}
	_, err := dial("of db2")
	denied(t, "the disk of another host", err)
	st, err := os.Stat(filepath.Join(dir, addressFile))
	if err != nil || st.Size() != int64(len(s.address)) {
		t.Errorf("%v %v", st, err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add("tidemark1:db1:ABCDEFGHIJKLMNOPQRSTUVWXYZ:" + strings.Repeat("0f", 32))
	f.Add("::::")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err == nil && tok.String() != strings.TrimSpace(s) {
			t.Errorf("%q became %q", s, tok)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	f.Add([]byte(`{"for":"feed"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o opening
		_ = readLine(strings.NewReader(string(b)), &o)
		var a answer
		_ = readLine(strings.NewReader(string(b)), &a)
	})
}
