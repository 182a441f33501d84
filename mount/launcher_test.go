package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inReserve waits until a launcher has a process in reserve, and returns its id.
func inReserve(t *testing.T, l *Launcher) int {
	t.Helper()
	for range 500 {
		select {
		case p := <-l.reserve:
			l.reserve <- p
			return p.PID()
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("nothing comes into reserve")
	return 0
}

func TestLauncherTakesFromReserve(t *testing.T) {
	need(t)
	l := NewLauncher()
	s := serve(t, 64<<20)
	c := Config{Name: "a", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Via: ViaFUSE}
	for range 3 {
		pid := inReserve(t, l)
		a, err := l.Attach(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if a.PID() != pid {
			t.Errorf("attached by process %d, not %d of the reserve", a.PID(), pid)
		}
		if log, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid)); err != nil || filepath.Base(log) != logName {
			t.Errorf("it logs to %s: %v", log, err)
		}
		if err := a.Detach(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	pid := inReserve(t, l)
	l.Close()
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d outlives its launcher", pid)
	}
}

// A process that died in reserve costs nothing but time.
func TestLauncherReserveDies(t *testing.T) {
	need(t)
	s := serve(t, 64<<20)
	l := NewLauncher()
	defer l.Close()
	pid := inReserve(t, l)
	if p, err := os.FindProcess(pid); err != nil || p.Kill() != nil {
		t.Fatal("cannot kill", pid, err)
	}
	for end := time.Now().Add(20 * time.Second); unix.Kill(pid, 0) == nil && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	a, err := l.Attach(t.Context(), Config{Name: "a", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Via: ViaFUSE})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
}

// Bad configuration takes nothing from the reserve, and what fails leaves nothing.
func TestLauncherErrors(t *testing.T) {
	need(t)
	l := NewLauncher()
	defer l.Close()
	pid := inReserve(t, l)
	dir := t.TempDir()
	if _, err := l.Attach(t.Context(), Config{Name: "../a", StateDir: dir, Socket: "/x"}); !errors.Is(err, ErrConfig) {
		t.Errorf("bad name: %v", err)
	}
	if now := inReserve(t, l); now != pid {
		t.Errorf("process %d is in reserve, %d was", now, pid)
	}
	if _, err := l.Attach(t.Context(), Config{Name: "a", StateDir: dir, Socket: "/nonexistent"}); err == nil {
		t.Error("attached without a server")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
