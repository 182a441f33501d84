package agent

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/app/postgres"
	"tidemark/capture"
)

// connected is the agent of another host that is connected, and works below a directory of its own.
func connected(t *testing.T, host string) *Agent {
	t.Helper()
	a := NewRemote(host)
	ours, theirs := net.Pipe()
	s := newSession(theirs)
	s.places = PlacesIn(t.TempDir())
	go s.serve(context.Background())
	take(t, a, ours)
	return a
}

// take lets an agent take a connection, and waits until it has.
func take(t *testing.T, a *Agent, conn net.Conn) {
	t.Helper()
	taken := make(chan struct{})
	go func() {
		a.Take(conn)
		close(taken)
	}()
	t.Cleanup(func() {
		a.Close()
		<-taken
	})
	for !a.Connected() {
		time.Sleep(time.Millisecond)
	}
}

func shotOf(name string) Shot {
	return Shot{Members: []ShotMember{{Tapping: Tapping{Timeline: name, Application: name}, Mark: capture.Mark{Name: "m", ID: name}}}}
}

// Where one host cannot mark, the others, which wait for it, go on at once, and the error is that host's.
func TestTogetherFails(t *testing.T) {
	a, b := connected(t, "a"), connected(t, "b")
	begun := time.Now()
	_, err := ShootTogether(t.Context(), []Part{{a, shotOf("one")}, {b, shotOf("two")}})
	if err == nil || !strings.Contains(err.Error(), "no such tap") {
		t.Errorf("%v", err)
	}
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("it took %v", d)
	}
}

// A host that is not connected fails the shot; the connected one is not held up.
func TestTogetherWithout(t *testing.T) {
	_, err := ShootTogether(t.Context(), []Part{{connected(t, "a"), shotOf("one")}, {NewRemote("b"), shotOf("two")}})
	if err == nil || !strings.Contains(err.Error(), "host b is not connected") {
		t.Errorf("%v", err)
	}
}

// An agent that is at more barriers than there are is listened to, and noticed when it is silent.
func TestTogetherBeside(t *testing.T) {
	a := NewRemote("a")
	a.every, a.grace = looks, looks
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		w := newWire(theirs)
		for m, err := w.receive(); err == nil; m, err = w.receive() {
			for range 50 {
				if m.Verb == "shoot" && w.send(message{Call: m.Call, Note: true}) != nil {
					return
				}
			}
		}
	}()
	taken := make(chan error, 1)
	go func() { taken <- a.Take(ours) }()
	for !a.Connected() {
		time.Sleep(time.Millisecond)
	}
	if _, err := ShootTogether(t.Context(), []Part{{a, shotOf("one")}, {connected(t, "b"), shotOf("two")}}); err == nil {
		t.Error("there is a shot")
	}
	select {
	case <-taken:
	case <-time.After(3 * silentLooks * looks):
		t.Error("it is connected for ever")
	}
}

// An agent that hangs does not hold up whoever gives up.
func TestSilentAgent(t *testing.T) {
	a := NewRemote("a")
	a.grace = 20 * time.Millisecond
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	take(t, a, ours)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := a.TapStatus(ctx, "x"); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("%v", err)
	}
}

// An agent of another host does what taps and shown disks need, and nothing else, and leads to no place outside of its own.
func TestRemoteVerbs(t *testing.T) {
	a := connected(t, "a")
	if err := a.Format(t.Context(), "/dev/null", "ext4", "x"); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("format: %v", err)
	}
	denied := func(what string, err error) {
		if tidemark.KindOf(err) != tidemark.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := a.Mount(t.Context(), Filesystem{Device: "/dev/null", Dir: "/"})
	denied("mount a device of the host", err)
	_, err = a.RecoverPostgres(t.Context(), postgres.Target{Name: "x", DataDir: "/var/lib/postgresql"})
	denied("recover a database of the host", err)
	_, err = a.RecoverPostgres(t.Context(), postgres.Target{Name: "x", DataDir: "clones/x/data", WALDir: "clones/../../etc"})
	denied("recover with files of the host", err)
	denied("stop a database of the host", a.StopPostgres(t.Context(), "/var/lib/postgresql"))
	denied("remove a directory of the host", a.RemoveEmpty(t.Context(), "/tmp"))
	if err := a.DetachDisk(t.Context(), ShownDisk{Application: "../x", Disk: "d"}); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("detach: %v", err)
	}
	if _, err := do[none](t.Context(), a, "hello", greeting{}, nil); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("hello: %v", err)
	}
	for _, bad := range []string{"../x", "", "a/b"} {
		if _, err := a.TapStatus(t.Context(), bad); tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("status of %q: %v", bad, err)
		}
		if err := a.StopTap(t.Context(), Tapping{Timeline: "t", Application: bad}); tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("stop of %q: %v", bad, err)
		}
		if err := a.StopTap(t.Context(), Tapping{Timeline: "t", Application: "a", Disks: []TapDisk{{Name: bad}}}); tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("stop of disk %q: %v", bad, err)
		}
	}
}

// The newest connection of a host is the one that counts; without one, calls say so.
func TestTakenOver(t *testing.T) {
	a := connected(t, "a")
	ours, theirs := net.Pipe()
	s := newSession(theirs)
	s.places = PlacesIn(t.TempDir())
	go s.serve(t.Context())
	a.mu.Lock()
	before := a.link
	a.mu.Unlock()
	take(t, a, ours)
	<-before.gone
	if _, err := a.TapStatus(t.Context(), "x"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("%v", err)
	}
	theirs.Close()
	for a.Connected() {
		time.Sleep(time.Millisecond)
	}
	if _, err := a.TapStatus(t.Context(), "x"); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("%v", err)
	}
}
