package postgres

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// Whoever calls it by mistake keeps his root.
func TestEnterRoomRefuses(t *testing.T) {
	if err := EnterRoom(); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("%v", err)
	}
}

// A server in a room is found by its number there, only in its own directory, and no longer when it has ended.
func TestOutOfRoom(t *testing.T) {
	need(t, os.Getuid() == 0, "root")
	dir := t.TempDir()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	server := t.TempDir() + "/postgres"
	if err := os.WriteFile(server, text, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(server, "100")
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := os.WriteFile(dir+"/postmaster.pid", []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	if err := os.WriteFile(other+"/postmaster.pid", []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // looked for, and remembered
		if pid, _ := livePostmaster(dir); pid != cmd.Process.Pid {
			t.Errorf("the server is %d, not %d", pid, cmd.Process.Pid)
		}
	}
	if pid, _ := livePostmaster(other); pid != 0 {
		t.Errorf("%d is the server of a directory that has none", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if pid, _ := livePostmaster(dir); pid == 0 {
			return
		} else if time.Now().After(end) {
			t.Fatalf("%d is still the server", pid)
		}
	}
}
