package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/agent/remote"
	"tidemark/agent/taps"
	"tidemark/internal/process"
)

// hang makes the tap of an application whose process lives, and does not answer, as with a disk that hangs.
// asked is sent to when it is asked how it is.
func (p *production) hang(name string) (asked <-chan none) {
	p.t.Helper()
	dir := filepath.Join(p.places.Taps, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	if err := p.tapping(name).save(dir); err != nil {
		p.t.Fatal(err)
	}
	id, err := process.Self()
	if err != nil {
		p.t.Fatal(err)
	}
	record, err := json.Marshal(struct {
		taps.Config
		process.ID
	}{taps.Config{Dir: dir}, id})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tap.json"), record, 0o600); err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { l.Close() })
	came := make(chan none, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			p.t.Cleanup(func() { conn.Close() })
			came <- none{}
		}
	}()
	return came
}

// A tap that does not answer keeps none of the others down: one after another they would wait for it for as long as it may take.
func TestReviveBesideHung(t *testing.T) {
	p := newProduction(t, "one")
	p.must("umount", p.dir("one"))
	s := newSession(nil)
	s.places = p.places
	p.hostDies(s, "one")
	p.hang("a") // is looked at first
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Revive(ctx, p.places) }()
	link := p.places.Device("one", "disk", 1)
	for end := time.Now().Add(reviveLimit / 2); ; time.Sleep(5 * time.Millisecond) {
		if at, ok, err := s.attached("one", "disk"); err == nil && ok && at.Alive() {
			if to, _ := os.Readlink(link); to == at.Device() {
				break
			}
		}
		if time.Now().After(end) {
			t.Error("it waits for the one that hangs")
			break
		}
	}
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "/a/") || strings.Contains(err.Error(), "/one/") {
		t.Errorf("it is told: %v", err)
	}
}

// A server that asks for taps while the agent brings them back gets them: of two who start one tap none fails.
func TestReviveBesideServer(t *testing.T) {
	p := newProduction(t, "one")
	p.must("umount", p.dir("one"))
	a, s := p.agent()
	for range 5 {
		p.hostDies(s, "one")
		const askers = 3
		ended := make(chan error, 1+askers)
		go func() { ended <- Revive(t.Context(), p.places) }()
		for range askers {
			go func() {
				_, err := a.RunTap(t.Context(), p.tapping("one"))
				ended <- err
			}()
		}
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
}

// callers lets every host in, and tells when one lets the server call.
type callers struct{ came chan none }

func (c callers) Redeem(context.Context, string, netip.Addr) (string, error)          { return "here", nil }
func (c callers) Certified(context.Context, string, string, string, netip.Addr) error { return nil }
func (c callers) Admit(context.Context, string, string, netip.Addr, remote.Request) error {
	return nil
}
func (c callers) Take(ctx context.Context, _, _ string, r remote.Request, _ net.Conn) {
	if r.For == remote.Calls {
		c.came <- none{}
	}
	<-ctx.Done()
}

// newServer makes a server of an owner, and where it is to listen.
func newServer(t *testing.T, authority *remote.Authority, owner remote.Owner, log *slog.Logger) (*remote.Server, net.Listener) {
	t.Helper()
	server, err := remote.NewServer(authority, owner, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return server, l
}

// An agent of whose taps one does not answer serves the others, and its server; that all is there is not told before that was tried.
func TestDaemonBesideHung(t *testing.T) {
	authority, err := remote.OpenAuthority(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	owner := callers{make(chan none, 1)}
	server, l := newServer(t, authority, owner, log)
	ctx, cancel := context.WithCancel(t.Context())
	served, ran := make(chan error, 1), make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	p := &production{t: t, places: PlacesIn(t.TempDir())}
	asked := p.hang("a")
	d := Daemon{Dir: filepath.Dir(p.places.Taps), Server: l.Addr().String(), Token: authority.NewToken("here").String(), Logger: log,
		Ready: func(string) { t.Error("all is said to be there") }}
	go func() { ran <- d.Run(ctx) }()
	select {
	case <-owner.came:
	case <-time.After(reviveLimit / 2):
		t.Error("the server cannot call")
	}
	if conn, err := net.Dial("unix", p.places.Feeds); err != nil {
		t.Errorf("taps cannot send: %v", err)
	} else {
		conn.Close()
	}
	<-asked
	cancel()
	l.Close()
	for _, ended := range []chan error{ran, served} {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	end, err := (&session{}).turn(t.Context(), filepath.Join(p.places.Taps, "a")) // whoever brings it back gives up
	if err != nil {
		t.Fatal(err)
	}
	end()
}
