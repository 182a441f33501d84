package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/agent/remote"
)

// taken lets a host in by its newest certificate only while nobody has its place by a copy.
type taken struct {
	came    chan none
	refused chan none

	mu     sync.Mutex
	tokens map[string]bool // that can be used
	good   string          // serial; guarded by mu
	copied bool            // somebody has the place by the certificate that is good
}

func (x *taken) Redeem(_ context.Context, hash string, _ netip.Addr) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.tokens[hash] {
		return "", tidemark.Errorf(tidemark.Denied, "used before")
	}
	delete(x.tokens, hash)
	return "here", nil
}

func (x *taken) Certified(_ context.Context, _, _, serial string, _ netip.Addr) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.good, x.copied = serial, false
	return nil
}

func (x *taken) Admit(_ context.Context, _, serial string, _ netip.Addr, _ remote.Request) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if serial != x.good {
		return tidemark.Errorf(tidemark.Denied, "replaced")
	}
	if x.copied {
		x.refused <- none{}
		return tidemark.Errorf(tidemark.Conflict, "connected already")
	}
	return nil
}

func (x *taken) Take(ctx context.Context, _, _ string, _ remote.Request, _ net.Conn) {
	x.came <- none{}
	<-ctx.Done()
}

// An agent whose place another machine has by a copy of its identity goes on trying, and has it back by a new token.
func TestTakesPlaceBack(t *testing.T) {
	authority, err := remote.OpenAuthority(filepath.Join(t.TempDir(), "authority"))
	if err != nil {
		t.Fatal(err)
	}
	token := authority.NewToken("here")
	owner := &taken{came: make(chan none, 10), refused: make(chan none, 100), tokens: map[string]bool{token.Hash(): true}}
	log := slog.New(slog.DiscardHandler)
	server, l := newServer(t, authority, owner, log)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	dir := t.TempDir()
	run := func(token remote.Token, await ...<-chan none) {
		t.Helper()
		ctx, stop := context.WithCancel(ctx)
		ran := make(chan error, 1)
		go func() {
			ran <- (&Daemon{Dir: dir, Server: l.Addr().String(), Token: token.String(), Logger: log}).Run(ctx)
		}()
		for _, c := range await {
			select {
			case <-c:
			case err := <-ran:
				t.Fatalf("it has ended: %v", err)
			case <-time.After(30 * time.Second):
				t.Fatal("nothing comes")
			}
		}
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
	run(token, owner.came)
	owner.mu.Lock()
	owner.copied = true
	owner.mu.Unlock()
	run(token, owner.refused, owner.refused, owner.refused)
	next := authority.NewToken("here")
	owner.mu.Lock()
	owner.tokens[next.Hash()] = true
	owner.mu.Unlock()
	run(next, owner.came)
	cancel()
	l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
