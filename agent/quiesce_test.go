package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
)

// guestAgent is a guest agent of QEMU with a guest that has two file systems.
type guestAgent struct {
	socket string
	mu     sync.Mutex
	frozen bool
	since  time.Time
	worst  time.Duration // that it was frozen
	did    []string
	slow   time.Duration // that a freeze takes
	refuse string        // why it freezes nothing
	mute   bool          // it answers nobody
	cut    bool          // it hangs up instead of saying that it has frozen
	stuck  string        // why it thaws nothing
	none   bool          // it says that it has frozen no file system
	conn   net.Conn      // of the client
}

func newGuestAgent(t *testing.T) *guestAgent {
	dir, err := os.MkdirTemp("", "qga")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guestAgent{socket: filepath.Join(dir, "sock")}
	l, err := net.Listen("unix", g.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // one client at a time, as of a channel
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.conn = conn
			g.mu.Unlock()
			g.serve(conn)
			conn.Close()
		}
	}()
	return g
}

// serve speaks as qemu-ga does: what another client has not read comes first.
func (g *guestAgent) serve(conn net.Conn) {
	conn.Write([]byte("{\"return\": 12}\n\xff{\"return\": 3}\n"))
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		text := strings.TrimPrefix(string(line), "\xff")
		var req struct {
			Execute   string
			Arguments struct{ ID int64 }
		}
		if err := json.Unmarshal([]byte(text), &req); err != nil {
			conn.Write([]byte("{\"error\": {\"class\": \"GenericError\", \"desc\": \"bad JSON\"}}\n"))
			continue
		}
		g.mu.Lock()
		mute, cut, slow := g.mute, g.cut, g.slow
		g.mu.Unlock()
		if mute {
			continue
		}
		if req.Execute == "guest-sync-delimited" {
			conn.Write([]byte("\xff{\"return\": " + string(mustJSON(req.Arguments.ID)) + "}\n"))
			continue
		}
		if req.Execute == "guest-fsfreeze-freeze" {
			time.Sleep(slow)
		}
		answer := g.do(req.Execute)
		if cut && req.Execute == "guest-fsfreeze-freeze" {
			return
		}
		conn.Write([]byte(answer + "\n"))
	}
}

// hangUp ends what its client waits for.
func (g *guestAgent) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mute = false
	g.conn.Close()
}

func (g *guestAgent) do(what string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case what == "guest-fsfreeze-freeze" && g.frozen:
		return `{"error": {"class": "CommandNotFound", "desc": "freeze has been disabled: the agent is in frozen state"}}`
	case what == "guest-fsfreeze-thaw" && g.stuck != "":
		return `{"error": {"class": "GenericError", "desc": "` + g.stuck + `"}}`
	case what == "guest-fsfreeze-freeze" && g.refuse != "":
		return `{"error": {"class": "GenericError", "desc": "` + g.refuse + `"}}`
	case what == "guest-fsfreeze-freeze":
		g.frozen, g.since = true, time.Now()
		if g.none {
			return `{"return": 0}`
		}
	case what == "guest-fsfreeze-thaw" && g.frozen:
		g.frozen, g.worst = false, max(g.worst, time.Since(g.since))
	default:
		return `{"return": 0}`
	}
	g.did = append(g.did, strings.TrimPrefix(what, "guest-fsfreeze-"))
	return `{"return": 2}`
}

func (g *guestAgent) is() (frozen bool, worst time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frozen, g.worst
}

// thawed waits until it is not frozen.
func (g *guestAgent) thawed(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if frozen, _ := g.is(); !frozen {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it stays frozen")
		}
	}
}

// hostOf is a host with an agent of the server's own, and room for scripts.
func hostOf(t *testing.T) (*production, Config) {
	p := newProduction(t)
	return p, Config{Lock: filepath.Join(t.TempDir(), "lock"), Places: p.places}
}

// A guest is frozen behind pre, when its point is marked, and goes on before post.
func TestQuiesce(t *testing.T) {
	p, cfg := hostOf(t)
	a, g := New(cfg), newGuestAgent(t)
	defer a.Close()
	q := Quiescing{Timeline: "vm", Bookmark: "m", Guest: g.socket}
	seen := func(want tidemark.Consistency, frozen bool) func(capture.Mark) error {
		return func(m capture.Mark) error {
			if is, _ := g.is(); is != frozen || m.Consistency != want || m.Name != "m" {
				t.Errorf("marked while frozen is %v: %+v", is, m)
			}
			return nil
		}
	}
	r, err := a.Quiesce(t.Context(), q, seen(tidemark.FilesystemConsistent, true))
	if err != nil || !r.Lasted || r.Hold <= 0 || len(r.Problems) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	g.thawed(t)
	q.Scripts = p.scripts("vm", "", "")
	if r, err = a.Quiesce(t.Context(), q, seen(tidemark.ApplicationConsistent, true)); err != nil || !r.Lasted || r.Scripts <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if log := p.log("vm"); log != "pre m, post m" {
		t.Errorf("ran: %s", log)
	}
	// What cannot be marked goes on, too.
	full := errors.New("no room")
	if _, err = a.Quiesce(t.Context(), q, func(capture.Mark) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	g.thawed(t)
	if log := p.log("vm"); log != "pre m, post m, pre m, post m" {
		t.Errorf("ran: %s", log)
	}
	if left, _ := filepath.Glob(p.places.heldFile("*")); len(left) > 0 {
		t.Errorf("noted as held: %v", left)
	}
}

// A guest that cannot be frozen, or not for so long, has a point that says so.
func TestQuiesceFails(t *testing.T) {
	p, _ := hostOf(t)
	a, s := p.agent()
	tapVerbs["quiesce"] = on(doQuiesce)
	t.Cleanup(func() { delete(tapVerbs, "quiesce") })
	s.limits.freeze, s.limits.frozen = 300*time.Millisecond, 600*time.Millisecond
	for _, c := range []struct {
		name    string
		spoil   func(*guestAgent)
		slow    time.Duration // how long the freeze takes
		marking time.Duration // and the mark
		problem string
	}{
		{name: "refused", spoil: func(g *guestAgent) { g.refuse = "not supported" }, problem: "not supported"},
		{name: "mute", spoil: func(g *guestAgent) { g.mute = true }, problem: "could not be frozen within 300ms"},
		{name: "slow", slow: time.Second, problem: "could not be frozen within 300ms"},
		{name: "none", spoil: func(g *guestAgent) { g.none = true }, problem: "has frozen no file system"},
		{name: "frozen before", spoil: func(g *guestAgent) { g.frozen, g.since = true, time.Now() }, problem: "is in frozen state"},
		{name: "cut", spoil: func(g *guestAgent) { g.cut = true }, problem: "guest-fsfreeze-freeze: EOF"},
		{name: "slow mark", marking: time.Second},
	} {
		g := newGuestAgent(t)
		g.mu.Lock()
		g.slow = c.slow
		if c.spoil != nil {
			c.spoil(g)
		}
		g.mu.Unlock()
		begun := time.Now()
		timeline := strings.ReplaceAll(c.name, " ", "-")
		r, err := a.Quiesce(t.Context(), Quiescing{Timeline: timeline, Bookmark: "m", Guest: g.socket}, func(m capture.Mark) error {
			time.Sleep(c.marking)
			want := tidemark.CrashConsistent
			if c.problem == "" {
				want = tidemark.FilesystemConsistent
			}
			if problem := m.Labels[LabelProblems]; m.Consistency != want || !strings.Contains(problem, c.problem) {
				t.Errorf("%s: marked as %+v", c.name, m)
			}
			return nil
		})
		if err != nil || r.Lasted {
			t.Errorf("%s: %+v, %v", c.name, r, err)
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("%s: it took %v", c.name, d)
		}
		time.Sleep(c.slow) // its freeze comes when nobody wants it
		g.thawed(t)
		if _, worst := g.is(); worst > 3*time.Second {
			t.Errorf("%s: it was frozen for %v", c.name, worst)
		}
		g.hangUp()
		forgotten(t, p.places.heldFile(timeline))
	}
}

// forgotten waits until nothing is noted as held.
func forgotten(t *testing.T, file string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(file)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it stays noted: %s, %v", file, err)
		}
	}
}

// set changes how a guest is.
func (g *guestAgent) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// A guest whose thaw fails is asked again until it is thawed, and is noted until then. Meanwhile nothing is held for its points.
func TestGuestStuck(t *testing.T) {
	p, cfg := hostOf(t)
	a, g := New(cfg), newGuestAgent(t)
	defer a.Close()
	quiesce := func(want tidemark.Consistency, problem string) Quiesced {
		t.Helper()
		r, err := a.Quiesce(t.Context(), Quiescing{Timeline: "vm", Bookmark: "m", Guest: g.socket}, func(m capture.Mark) error {
			if m.Consistency != want || !strings.Contains(m.Labels[LabelProblems], problem) {
				t.Errorf("marked as %+v", m)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return r
	}
	stick := func() { g.stuck = "no such device" }
	g.set(stick)
	if r := quiesce(tidemark.FilesystemConsistent, ""); len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "no such device") {
		t.Errorf("it stays frozen, and the problems are %q", r.Problems)
	}
	quiesce(tidemark.CrashConsistent, "may be frozen since the last time")
	if _, err := os.Stat(p.places.heldFile("vm")); err != nil {
		t.Errorf("it is not noted: %v", err)
	}
	g.set(func() { g.stuck = "" })
	g.thawed(t)
	forgotten(t, p.places.heldFile("vm"))
	for end, still := time.Now().Add(10*time.Second), false; !still; { // the agent forgets it a moment after its note
		_, err := a.Quiesce(t.Context(), Quiescing{Timeline: "vm", Bookmark: "m", Guest: g.socket}, func(m capture.Mark) error {
			still = m.Consistency == tidemark.FilesystemConsistent
			return nil
		})
		if err != nil || time.Now().After(end) {
			t.Fatalf("a guest that was thawed is not frozen again: %v", err)
		}
	}

	// So it is by the next agent, when this one ended before.
	g.set(stick)
	quiesce(tidemark.FilesystemConsistent, "")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = New(cfg)
	defer a.Close()
	quiesce(tidemark.CrashConsistent, "may be frozen since the last time")
	g.set(func() { g.stuck = "" })
	g.thawed(t)
	forgotten(t, p.places.heldFile("vm"))
}

// An agent whose server ends waits for a freeze that nobody wants any more, and thaws what that has frozen.
func TestServerEndsInFreeze(t *testing.T) {
	p, cfg := hostOf(t)
	a, g := New(cfg), newGuestAgent(t)
	g.set(func() { g.slow = 5 * time.Second })
	if _, err := a.Quiesce(t.Context(), Quiescing{Timeline: "vm", Bookmark: "m", Guest: g.socket}, func(capture.Mark) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.places.heldFile("vm")); err != nil {
		t.Errorf("it is not noted: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	g.set(func() {
		if g.frozen || strings.Join(g.did, " ") != "freeze thaw" {
			t.Errorf("frozen: %v, behind %q", g.frozen, g.did)
		}
	})
	forgotten(t, p.places.heldFile("vm"))
}

// An agent that is killed leaves the guest frozen; the next one thaws it.
func TestKilledInQuiesce(t *testing.T) {
	p, cfg := hostOf(t)
	a, g := New(cfg), newGuestAgent(t)
	defer a.Close()
	first := pid(t, a)
	q := Quiescing{Timeline: "vm", Bookmark: "m", Guest: g.socket, Scripts: p.scripts("vm", "", "")}
	_, err := a.Quiesce(t.Context(), q, func(capture.Mark) error {
		proc, err := os.FindProcess(first)
		if err != nil {
			return err
		}
		if frozen, _ := g.is(); !frozen {
			t.Error("it is not frozen")
		}
		return proc.Kill()
	})
	// The agent that is asked to go on is that one, or the next, which does not know the shot.
	if kind := tidemark.KindOf(err); kind != tidemark.Unavailable && kind != tidemark.NotFound {
		t.Errorf("%v", err)
	}
	pid(t, a)
	g.thawed(t)
	for end := time.Now().Add(10 * time.Second); p.log("vm") != "pre m, post m"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("ran: %s", p.log("vm"))
		}
	}
}
