package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// task is what the tests ask of a process.
type task struct {
	Dir  string
	Fail string // the word
	Mute bool   // ends without a word
}

// TestMain makes this test binary a process that can be started, too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "child" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

func child() int {
	var do task
	if err := ReadConfig(os.Stdin, &do); err != nil {
		if errors.Is(err, io.EOF) {
			return 0
		}
		return 2
	}
	s := FromStarter()
	if err := OwnLog(do.Dir, "log"); err != nil || do.Mute {
		fmt.Fprintln(os.Stderr, "muted")
		return 1
	}
	if do.Fail != "" {
		s.Tell(errors.New(do.Fail))
		return 1
	}
	self, err := Self()
	if err != nil {
		return 1
	}
	if err := os.WriteFile(filepath.Join(do.Dir, "id"), fmt.Appendf(nil, "%d %s %s", self.PID, self.Started, self.Boot), 0o600); err != nil {
		return 1
	}
	s.Tell(nil)
	time.Sleep(time.Minute)
	return 0
}

func start(t *testing.T) *Process {
	t.Helper()
	p, err := Start("child")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTell(t *testing.T) {
	dir, p := t.TempDir(), start(t)
	if err := p.Tell(t.Context(), task{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	var id ID
	b, err := os.ReadFile(filepath.Join(dir, "id"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &id.PID, &id.Started, &id.Boot); err != nil || id.PID != p.PID() {
		t.Fatalf("%q: %v", b, err)
	}
	fd, err := id.Open()
	if err != nil || !id.Alive() {
		t.Fatalf("a process that runs is %v, %v", id.Alive(), err)
	}
	later := id
	later.Started += "0"
	if later.Alive() || (ID{}).Alive() {
		t.Error("what does not run is alive")
	}
	p.Kill()
	if err := Await(t.Context(), fd); err != nil {
		t.Fatal(err)
	}
	if _, err := id.Open(); !errors.Is(err, ErrEnded) || id.Alive() {
		t.Errorf("a process that ended is %v, %v", id.Alive(), err)
	}
}

func TestTellFails(t *testing.T) {
	dir := t.TempDir()
	if err := start(t).Tell(t.Context(), task{Dir: dir, Fail: "no disk"}); err == nil || err.Error() != "no disk" {
		t.Errorf("its word was %v", err)
	}
	if err := start(t).Tell(t.Context(), task{Dir: dir, Mute: true}); !errors.Is(err, ErrSilent) {
		t.Errorf("without a word: %v", err)
	}
	if s := LastLine(filepath.Join(dir, "log")); s != "muted" {
		t.Errorf("it said %q last", s)
	}
}

// What is not needed ends, also when who started it is killed: the kernel closes its input then.
func TestDismiss(t *testing.T) {
	p := start(t)
	if !p.Lives() {
		t.Fatal("it ended at once")
	}
	p.Dismiss()
	if p.Lives() {
		t.Error("it goes on")
	}
}
