package survive

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidemark/capture/qemu"
)

// guestAgentProgram is QEMU's guest agent, if need be from Debian's archive: it is never installed, because it freezes the host that it runs on.
func guestAgentProgram(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("qemu-ga"); err == nil {
		return path
	}
	dir := t.TempDir()
	fetch := exec.Command("sh", "-c", "apt-get download -q qemu-guest-agent && dpkg -x *.deb .")
	fetch.Dir = dir
	if out, err := fetch.CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: %s", err, out)
		}
		t.Skipf("needs qemu-ga: %s", out)
	}
	return filepath.Join(dir, "usr", "sbin", "qemu-ga")
}

// The guest agent itself freezes a file system for us, and thaws it, in a machine with a stock kernel.
func TestGuestAgent(t *testing.T) {
	if !inGuest {
		besideInGuest(t)
		runInGuest(t, "", guestAgentProgram(t))
		return
	}
	must(t, "busybox", "truncate", "-s", "16M", "/tmp/disk")
	must(t, "mkfs.ext4", "-q", "/tmp/disk")
	must(t, "busybox", "mkdir", "/tmp/at")
	must(t, "busybox", "mount", "-o", "loop", "/tmp/disk", "/tmp/at")
	agent := exec.Command("qemu-ga", "-m", "unix-listen", "-p", "/tmp/qga.sock", "-t", "/tmp", "-f", "/tmp/qga.pid")
	agent.Stderr = os.Stderr
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Process.Kill() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if listens(t, "/tmp/qga.sock") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not listen")
		}
	}
	for range 3 {
		if err := qemu.FreezeGuest(t.Context(), "/tmp/qga.sock"); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() { wrote <- os.WriteFile("/tmp/at/x", []byte("x"), 0o600) }()
		select {
		case err := <-wrote:
			t.Fatalf("it is not frozen: %v", err)
		case <-time.After(300 * time.Millisecond):
		}
		if err := qemu.FreezeGuest(t.Context(), "/tmp/qga.sock"); err == nil || !strings.Contains(err.Error(), "guest-fsfreeze-freeze") {
			t.Errorf("frozen twice: %v", err)
		}
		if err := qemu.ThawGuest(t.Context(), "/tmp/qga.sock"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-wrote:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it stays frozen")
		}
	}
	if err := qemu.ThawGuest(t.Context(), "/tmp/qga.sock"); err != nil {
		t.Errorf("thaw what is not frozen: %v", err)
	}
}

// listens reports whether somebody listens on a socket. That it has its name does not say so, and to connect would be a conversation.
func listens(t *testing.T, path string) bool {
	list, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	const accepts = "00010000" // __SO_ACCEPTCON
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) == 8 && f[3] == accepts && f[7] == path {
			return true
		}
	}
	return false
}
