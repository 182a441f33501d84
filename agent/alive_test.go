package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"tidemark"
)

// looks is how often one looks whether the other end is alive in these tests: a loaded machine has to answer within five of them.
const looks = 200 * time.Millisecond

// An agent whose kernel takes everything, and that says nothing, is gone after a while: so are the calls that wait for it, also those that have no
// end of their own. One that answers stays, also if it does not know what it is asked, and one on whose line a long answer is on its way.
func TestSilentIsGone(t *testing.T) {
	for _, end := range []struct {
		name string
		runs func(net.Conn)
		gone bool
	}{
		{"it hangs", func(c net.Conn) { io.Copy(io.Discard, c) }, true},
		{"it hangs and reads nothing", func(c net.Conn) {}, true},
		{"it is alive", func(c net.Conn) { newSession(c).serve(context.Background()) }, false},
		{"it is older", func(c net.Conn) {
			w := newWire(c)
			for m, err := w.receive(); err == nil; m, err = w.receive() {
				err = w.send(message{Call: m.Call, Done: true, Failure: pack(tidemark.Errorf(tidemark.Invalid, "it does not know it"))})
			}
		}, false},
		{"its line is slow", func(c net.Conn) {
			go io.Copy(io.Discard, c)
			for _, err := c.Write([]byte(`{"call":77,"body":"`)); err == nil; _, err = c.Write([]byte("x")) {
				time.Sleep(looks / 2)
			}
		}, false},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			a := NewRemote("a")
			a.every = looks
			ours, theirs := net.Pipe()
			defer theirs.Close()
			taken := make(chan error, 1)
			go func() { taken <- a.Take(ours) }()
			go end.runs(theirs)
			for !a.Connected() {
				time.Sleep(time.Millisecond)
			}
			asked := make(chan error, 1)
			if end.gone {
				go func() {
					_, err := do[none](context.Background(), a, "shoot", none{}, nil)
					asked <- err
				}()
			}
			select {
			case err := <-taken:
				if !end.gone || !errors.Is(err, ErrSilent) {
					t.Errorf("it is taken for gone: %v", err)
				}
			case <-time.After(3 * silentLooks * looks):
				if end.gone {
					t.Fatal("nobody notices")
				}
			}
			if a.Connected() == end.gone {
				t.Errorf("connected: %v", !end.gone)
			}
			if end.gone {
				if err := <-asked; tidemark.KindOf(err) != tidemark.Unavailable {
					t.Errorf("a call: %v", err)
				}
			}
		})
	}
}

// An agent hears that its server is gone, though its kernel is there; of a server that never said that it asks, silence says nothing.
func TestSilentServer(t *testing.T) {
	for asks, name := range map[bool]string{true: "asks", false: "is older"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ours, theirs := net.Pipe()
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			ended := make(chan error, 1)
			go func() { ended <- (&Daemon{Dir: t.TempDir()}).serve(context.Background(), nil, ours) }()
			if asks {
				if err := newWire(theirs).send(message{Verb: alive, Body: mustJSON(looks)}); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-ended:
				if !asks || !errors.Is(err, ErrSilent) {
					t.Errorf("it has ended: %v", err)
				}
			case <-time.After(3 * silentLooks * looks):
				if asks {
					t.Error("it goes on listening")
				}
			}
		})
	}
}

// Whether an agent answers is known soon.
func TestAnswers(t *testing.T) {
	if a := connected(t, "a"); !a.Answers(t.Context(), 10*time.Second) {
		t.Error("it does not answer")
	}
	hangs := NewRemote("b")
	if hangs.Answers(t.Context(), 10*time.Second) {
		t.Error("nobody answers")
	}
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	take(t, hangs, ours)
	if hangs.Answers(t.Context(), 50*time.Millisecond) {
		t.Error("who hangs answers")
	}
}
