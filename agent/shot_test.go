package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/script"
	"tidemark/capture"
	"tidemark/mount"
	stream "tidemark/wire"
)

// marks is a server's side of all taps of a host: it keeps their marks, and nothing else.
type marks struct {
	mu     sync.Mutex
	stream string
	seq    uint64
	came   []capture.Mark
}

// open begins a stream, or goes on with it.
func (m *marks) open(id string, before capture.Sent) (known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known = m.stream == id || m.stream == before.ID
	if m.stream != id {
		m.stream, m.seq = id, 0
	}
	return known
}

func (m *marks) Applied() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seq
}

func (m *marks) Apply(list []capture.Change) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq += uint64(len(list))
	return nil
}

func (m *marks) Bookmark(k capture.Mark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.came = append(m.came, k)
	return nil
}

func (m *marks) Lose(int64, string) error    { return nil }
func (m *marks) Sample(capture.Sample) error { return nil }
func (m *marks) Whole() error                { return nil }
func (m *marks) Sync() (uint64, error)       { return m.Applied(), nil }
func (m *marks) Close() error                { return nil }

// named waits for the marks of a name.
func (m *marks) named(t *testing.T, name string, n int) (list []capture.Mark) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		m.mu.Lock()
		list = nil
		for _, k := range m.came {
			if k.Name == name {
				list = append(list, k)
			}
		}
		m.mu.Unlock()
		if len(list) >= n {
			return list
		}
	}
	t.Fatalf("%d of %d marks %s came", len(list), n, name)
	return nil
}

// production is a host with tapped disks, each with a mounted file system.
type production struct {
	t      *testing.T
	places Places
	marks  map[string]*marks // by application
}

func newProduction(t *testing.T, applications ...string) *production {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	// A socket's path is short, and a test's directory need not be.
	dir, err := os.MkdirTemp("", "shot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &production{t: t, places: PlacesIn(dir), marks: map[string]*marks{}}
	if err := os.MkdirAll(filepath.Dir(p.places.Feeds), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", p.places.Feeds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, name := range applications {
		p.marks[name] = &marks{}
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go stream.Serve(context.Background(), conn, func(_ context.Context, timeline, id string, before capture.Sent) (stream.Feed, bool, error) {
				if m := p.marks[timeline]; m != nil {
					return m, m.open(id, before), nil
				}
				return nil, false, errors.New("no such timeline")
			})
		}
	}()
	for _, name := range applications {
		p.tap(name)
	}
	return p
}

const productionSize = 64 << 20

func (p *production) dir(name string) string { return filepath.Join(filepath.Dir(p.places.Taps), name) }

func (p *production) tapping(name string) Tapping {
	return Tapping{Timeline: name, Application: name, Disks: []TapDisk{{Name: "disk", Size: productionSize, Primary: p.dir(name) + ".img"}}}
}

// tap makes a disk with a file system, taps it, and mounts what is shown.
func (p *production) tap(name string) {
	p.t.Helper()
	image, dir := p.dir(name)+".img", p.dir(name)
	p.must("truncate", "-s", fmt.Sprint(productionSize), image)
	p.must("mkfs.ext4", "-q", image)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	s := newSession(nil)
	s.places = p.places
	r, err := doRunTap(p.t.Context(), s, p.tapping(name), nil)
	p.t.Cleanup(func() { p.untap(s, name) })
	if err != nil {
		p.t.Fatal(err)
	}
	p.must("mount", r.Devices[0], dir)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		st, err := doTapStatus(p.t.Context(), s, name, nil)
		if err == nil && st.Online && !st.Gap {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("%s is not followed: %+v, %v", name, st, err)
		}
	}
}

func (p *production) must(argv ...string) {
	p.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		p.t.Fatalf("%v: %v: %s", argv, err, out)
	}
}

// untap takes all away, also after a test that failed.
func (p *production) untap(s *session, name string) {
	mount.Thaw(p.dir(name))
	for range 100 {
		if err := mount.Unmount(p.dir(name)); err == nil || errors.Is(err, unix.EINVAL) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := doStopTap(ctx, s, p.tapping(name), nil); err != nil {
		p.t.Error(err)
	}
}

// scripts makes programs that say what they do in a log, and do more.
func (p *production) scripts(name, pre, post string) string {
	p.t.Helper()
	dir := p.dir(name + "-scripts")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	for what, text := range map[string]string{script.Pre: pre, script.Post: post} {
		text = fmt.Sprintf("#!/bin/sh\necho %s $TIDEMARK_BOOKMARK >>%s/log\n%s\n", what, dir, text)
		if err := os.WriteFile(filepath.Join(dir, what), []byte(text), 0o700); err != nil {
			p.t.Fatal(err)
		}
	}
	return dir
}

// log is what the programs of an application said.
func (p *production) log(name string) string {
	text, _ := os.ReadFile(filepath.Join(p.dir(name+"-scripts"), "log"))
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

func (p *production) member(name, mark, scripts string) ShotMember {
	return ShotMember{Tapping: p.tapping(name), Mark: capture.Mark{Name: mark, ID: mark + "-" + name}, Scripts: scripts, ScriptLimit: 300 * time.Millisecond}
}

// agent is an agent in this process, which a test may change before its first call.
func (p *production) agent() (*Agent, *session) {
	p.t.Helper()
	a := NewRemote("here")
	ours, theirs := net.Pipe()
	s := newSession(theirs)
	s.places = p.places
	ended := make(chan none)
	go func() {
		s.serve(context.Background())
		close(ended)
	}()
	take(p.t, a, ours)
	p.t.Cleanup(func() {
		theirs.Close()
		<-ended
	})
	return a, s
}

// shoot makes a shot of one application and returns what came of it, which is what has come into the stream.
func (p *production) shoot(a *Agent, m ShotMember) (MemberResult, ShotResult) {
	p.t.Helper()
	r, err := a.Shoot(p.t.Context(), Shot{Members: []ShotMember{m}})
	if err != nil {
		p.t.Fatal(err)
	}
	got, came := r.Members[0], p.marks[m.Tapping.Timeline].named(p.t, m.Mark.Name, 1)[0]
	if came.Consistency != got.Mark.Consistency || came.Labels[LabelProblems] != got.Mark.Labels[LabelProblems] {
		p.t.Errorf("%s came as %+v, and was told as %+v", m.Mark.Name, came, got.Mark)
	}
	writable(p.t, p.dir(m.Tapping.Timeline))
	return got, r
}

// An AppShot is as consistent as what its application was made still by, and holds writes no longer than it says.
func TestShoot(t *testing.T) {
	p := newProduction(t, "one")
	a, _ := p.agent()
	got, r := p.shoot(a, p.member("one", "plain", ""))
	if got.Mark.Consistency != tidemark.FilesystemConsistent || r.Hold <= 0 || r.Hold > shotLimits.frozen || got.Scripts != 0 {
		t.Errorf("a mounted file system: %+v, held for %v", got, r.Hold)
	}
	dir := p.scripts("one", "sleep 0.1", "sleep 0.1")
	got, r = p.shoot(a, p.member("one", "scripts", dir))
	if got.Mark.Consistency != tidemark.ApplicationConsistent || len(got.Problems) > 0 || got.Scripts < 200*time.Millisecond {
		t.Errorf("with programs: %+v", got)
	}
	if r.Hold <= 0 || r.Hold >= got.Scripts {
		t.Errorf("writes were held for %v of the %v that the programs took", r.Hold, got.Scripts)
	}
	if log := p.log("one"); log != "pre scripts, post scripts" {
		t.Errorf("ran: %s", log)
	}
}

// hangingDisk is a disk to which nothing can be written back at a certain time.
type hangingDisk struct {
	hang chan none
	mu   sync.Mutex
	left int // until then; guarded by mu
}

func (d *hangingDisk) hangsAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

func (d *hangingDisk) sync(string) error {
	d.mu.Lock()
	d.left--
	hangs := d.left == 0
	d.mu.Unlock()
	if hangs {
		<-d.hang
	}
	return nil
}

// Whatever fails or hangs, there is a mark that says so, and the application goes on.
func TestShootFails(t *testing.T) {
	p := newProduction(t, "one")
	a, s := p.agent()
	d := &hangingDisk{hang: make(chan none)}
	t.Cleanup(func() { close(d.hang) })
	s.syncFS = d.sync
	s.limits.write, s.limits.again = 200*time.Millisecond, 250*time.Millisecond
	for _, c := range []struct {
		name, pre, post string
		prepare         func(dir string)
		consistency     tidemark.Consistency
		problem, after  string
		ran             string
	}{
		{name: "pre-hangs", pre: "sleep 100", problem: "killed: it took longer", ran: "pre, post"},
		{name: "pre-fails", pre: "echo no room >&2; exit 3", problem: "exit status 3: no room", ran: "pre, post"},
		{name: "post-hangs", post: "sleep 100", consistency: tidemark.ApplicationConsistent, after: "killed: it took longer", ran: "pre, post"},
		{name: "post-fails", post: "exit 4", consistency: tidemark.ApplicationConsistent, after: "exit status 4", ran: "pre, post"},
		{name: "open", prepare: func(dir string) { os.Chmod(filepath.Join(dir, script.Pre), 0o722) }, problem: "others than root"},
		{name: "open-dir", prepare: func(dir string) { os.Chmod(dir, 0o777) }, problem: "others than root"},
		{name: "disk-hangs", prepare: func(string) { d.hangsAt(1) }, problem: "it hangs, and was given up after 200ms"},
		{name: "disk-hangs-yet", prepare: func(string) { d.hangsAt(0) }, problem: "it hangs since the last time"},
		{name: "disk-hangs-later", prepare: func(string) {
			s.mu.Lock()
			clear(s.writing)
			s.mu.Unlock()
			d.hangsAt(2)
		}, problem: "it hangs, and was given up after 250ms", ran: "pre, post"},
	} {
		os.RemoveAll(p.dir("one-scripts"))
		dir := p.scripts("one", c.pre, c.post)
		if c.prepare != nil {
			c.prepare(dir)
		}
		if c.consistency == "" {
			c.consistency = tidemark.CrashConsistent
		}
		begun := time.Now()
		got, r := p.shoot(a, p.member("one", c.name, dir))
		if d := time.Since(begun); d > 10*time.Second {
			t.Errorf("%s: it took %v", c.name, d)
		}
		problem, after := got.Mark.Labels[LabelProblems], strings.Join(got.Problems, "; ")
		if got.Mark.Consistency != c.consistency || !strings.Contains(problem, c.problem) || (c.problem == "") != (problem == "") {
			t.Errorf("%s: it is %s-consistent, with %q", c.name, got.Mark.Consistency, problem)
		}
		if !strings.Contains(after, c.after) || (c.after == "") != (after == "") {
			t.Errorf("%s: afterwards %q", c.name, after)
		}
		if ran := strings.ReplaceAll(p.log("one"), " "+c.name, ""); ran != c.ran {
			t.Errorf("%s: ran %q", c.name, ran)
		}
		if r.Hold > 2*time.Second || c.problem != "" && r.Hold != 0 {
			t.Errorf("%s: writes were held for %v", c.name, r.Hold)
		}
		if _, err := os.Stat(p.places.heldFile("one")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: it is noted as held: %v", c.name, err)
		}
	}
}

// proceeded lets the part of a shot that has a barrier go on so often.
func proceeded(t *testing.T, a *Agent, barrier string, arrived chan none, n int) {
	t.Helper()
	for range n {
		if !gather(t.Context(), arrived, 1) || !proceed(t.Context(), []Part{{Agent: a}}, barrier) {
			t.Fatal("it did not proceed")
		}
	}
}

// A freeze ends by itself when what is waited for does not come, and the mark says that it did.
func TestFreezeEnds(t *testing.T) {
	p := newProduction(t, "one")
	a, s := p.agent()
	s.limits.frozen = 500 * time.Millisecond
	arrived, ended := make(chan none, barriers), make(chan ShotResult, 1)
	shot := Shot{Members: []ShotMember{p.member("one", "late", "")}, Barrier: "b"}
	go func() {
		r, err := do[ShotResult](t.Context(), a, "shoot", shot, func(json.RawMessage) { arrived <- none{} })
		if err != nil {
			t.Error(err)
		}
		ended <- r
	}()
	proceeded(t, a, "b", arrived, 2)
	if !gather(t.Context(), arrived, 1) {
		t.Fatal("it is not frozen")
	}
	begun := time.Now()
	writable(t, p.dir("one")) // while the shot waits
	if d := time.Since(begun); d > 5*time.Second {
		t.Errorf("a write was held for %v", d)
	}
	if !proceed(t.Context(), []Part{{Agent: a}}, "b") {
		t.Fatal("it did not proceed")
	}
	proceeded(t, a, "b", arrived, 2)
	r := <-ended
	if m := r.Members[0].Mark; m.Consistency != tidemark.CrashConsistent || !strings.Contains(m.Labels[LabelProblems], "went on before the mark") {
		t.Errorf("%+v", m)
	}
	if r.Hold < 400*time.Millisecond || r.Hold > 5*time.Second {
		t.Errorf("held for %v", r.Hold)
	}
}

// frozenNow has a shot stand where its application is held and its file system frozen.
func (p *production) frozenNow(a *Agent, name string) {
	p.t.Helper()
	arrived := make(chan none, barriers)
	m := p.member(name, "cut", p.scripts(name, "", ""))
	go do[ShotResult](p.t.Context(), a, "shoot", Shot{Members: []ShotMember{m}, Barrier: "b"}, func(json.RawMessage) { arrived <- none{} })
	proceeded(p.t, a, "b", arrived, 2)
	if !gather(p.t.Context(), arrived, 1) {
		p.t.Fatal("it is not frozen")
	}
}

// An agent that is killed in the middle of an AppShot leaves a file system frozen and an application held; the next agent lets both go on.
func TestKilledInShot(t *testing.T) {
	p := newProduction(t, "one")
	cfg := Config{Lock: filepath.Join(t.TempDir(), "lock"), Places: p.places}
	a := New(cfg)
	defer a.Close()
	first := pid(t, a)
	p.frozenNow(a, "one")
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(shotLimits.frozen + time.Second/2) // its own guard is gone with it
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(filepath.Join(p.dir("one"), "y"), []byte("y"), 0o600) }()
	select {
	case err := <-wrote:
		t.Fatalf("it is not frozen: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if log := p.log("one"); log != "pre cut" {
		t.Errorf("ran: %s", log)
	}
	if second := pid(t, a); second == first {
		t.Fatal("it was not killed")
	}
	select {
	case err := <-wrote:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it stays frozen")
	}
	got, _ := p.shoot(a, p.member("one", "next", p.dir("one-scripts")))
	if log := p.log("one"); log != "pre cut, post cut, pre next, post next" || got.Mark.Consistency != tidemark.ApplicationConsistent {
		t.Errorf("ran: %s; then %+v", log, got)
	}
}

// So does an agent whose server ends, before it ends itself.
func TestServerEndsInShot(t *testing.T) {
	p := newProduction(t, "one")
	a := New(Config{Lock: filepath.Join(t.TempDir(), "lock"), Places: p.places})
	p.frozenNow(a, "one")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	writable(t, p.dir("one"))
	if log := p.log("one"); log != "pre cut, post cut" {
		t.Errorf("ran: %s", log)
	}
}

// stalls writes to a file system until stop is called, which returns how long the slowest write took.
func stalls(t *testing.T, dir string) (stop func() time.Duration) {
	end, worst := make(chan none), make(chan time.Duration)
	go func() {
		var most time.Duration
		for i := 0; ; i++ {
			select {
			case <-end:
				worst <- most
				return
			case <-time.After(time.Millisecond):
			}
			begun := time.Now()
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("w", i%16)), make([]byte, 4096), 0o600); err != nil {
				t.Error(err)
			}
			most = max(most, time.Since(begun))
		}
	}()
	return func() time.Duration {
		close(end)
		return <-worst
	}
}

// While a program of one member of a group hangs, the others write: a file system is frozen only when all programs have ended.
func TestGroupScriptHangs(t *testing.T) {
	p := newProduction(t, "one", "two")
	const hangs = 4 * time.Second // beside which the noise of a busy host is small
	a, _ := p.agent()
	b, _ := p.agent()
	slow := p.member("two", "g", p.scripts("two", "sleep 100", ""))
	slow.ScriptLimit = hangs
	for _, c := range []struct {
		name  string
		parts []Part
	}{
		{"one host", []Part{{a, Shot{Members: []ShotMember{p.member("one", "g", ""), slow}}}}},
		{"two hosts", []Part{{a, Shot{Members: []ShotMember{p.member("one", "g", "")}}}, {b, Shot{Members: []ShotMember{slow}}}}},
	} {
		stop := stalls(t, p.dir("one"))
		begun := time.Now()
		results, err := ShootTogether(t.Context(), c.parts)
		took, worst := time.Since(begun), stop()
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var list []MemberResult
		var hold time.Duration
		for _, r := range results {
			list, hold = append(list, r.Members...), max(hold, r.Hold)
		}
		if took < hangs || worst >= hangs/2 || hold >= hangs/2 {
			t.Errorf("%s: of %v, a write took %v, and writes were held for %v", c.name, took, worst, hold)
		}
		if list[0].Mark.Consistency != tidemark.FilesystemConsistent || list[1].Mark.Consistency != tidemark.CrashConsistent {
			t.Errorf("%s: %+v", c.name, list)
		}
	}
}

// In a group, programs run side by side, and none waits for the post of another.
func TestGroupScripts(t *testing.T) {
	p := newProduction(t, "one", "two")
	a, _ := p.agent()
	var shot Shot
	for _, name := range []string{"one", "two"} {
		m := p.member(name, "g", p.scripts(name, "sleep 1", "sleep 1"))
		m.ScriptLimit = 20 * time.Second
		shot.Members = append(shot.Members, m)
	}
	begun := time.Now()
	r, err := a.Shoot(t.Context(), shot)
	took := time.Since(begun)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Members {
		if m.Mark.Consistency != tidemark.ApplicationConsistent || m.Scripts < 2*time.Second {
			t.Errorf("%+v", m)
		}
	}
	if took > 3500*time.Millisecond {
		t.Errorf("one after the other: %v", took)
	}
	if r.Hold <= 0 || r.Hold > time.Second {
		t.Errorf("held for %v", r.Hold)
	}
}
