package room

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes this test binary the first process of a room, too, which becomes a shell, and a host that shares its mounts, which becomes one as well.
func TestMain(m *testing.M) {
	if len(os.Args) != 3 {
		os.Exit(m.Run())
	}
	become := map[string]func() error{"room": enter, "host": func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") }}
	err := become[os.Args[1]]()
	if err == nil {
		err = syscall.Exec("/bin/sh", []string{"sh", "-c", os.Args[2]}, os.Environ())
	}
	fmt.Println(err)
	os.Exit(1)
}

func enter() error {
	var r Room
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return r.Enter()
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must be root")
		}
		t.Skip("needs root")
	}
}

// inside runs a script in a room.
func inside(t *testing.T, r Room, script string) string {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "room", script)
	cmd.Stdin = strings.NewReader(string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// What is hidden is not seen, though it lies where programs are; what is kept of it is, at its place, and nothing is in use when the room is gone.
func TestKeptBelowHidden(t *testing.T) {
	needsRoot(t)
	ours, err := os.MkdirTemp("/opt", "tidemark room-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(ours) })
	link := t.TempDir() + "/link"
	mine, log, other := filepath.Join(ours, "clones/mine"), filepath.Join(ours, "clones/log"), filepath.Join(ours, "clones/other")
	err = os.Symlink(ours, link)
	for _, dir := range []string{mine, log, other} {
		err = errors.Join(err, os.MkdirAll(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Error("unmount", dir, err)
			}
		})
		err = errors.Join(err, os.WriteFile(dir+"/file", []byte(filepath.Base(dir)+"\n"), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	r := Room{Hide: []string{link}, Keep: []Kept{{Path: mine}, {Path: log, ReadOnly: true}}, Make: []string{"/made/for it"}}
	out := inside(t, r, `cd "`+ours+`"; find . ! -type d | sort; cat clones/mine/file; echo more >>clones/mine/file && echo written
		echo more 2>/dev/null >>clones/log/file || echo read-only; touch /usr/x 2>/dev/null || echo read-only; ls -d "/made/for it"
		grep -c "other" /proc/self/mounts; grep " /opt/.*mine" /proc/self/mounts | cut -d" " -f4; ls /proc | grep -c "^[0-9]" | sed "s/^[2-9]$/few/"; ls /dev /home /srv /var/lib 2>/dev/null | grep -v :`)
	want := "./clones/log/file\n./clones/mine/file\nmine\nwritten\nread-only\nread-only\n/made/for it\n0\nrw,nosuid,nodev,relatime,size=64k\nfew\n" +
		"fd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\nurandom\nzero\n"
	if !strings.HasPrefix(out, want) || strings.TrimSpace(out[len(want):]) != "" {
		t.Errorf("%s, not %s", out, want)
	}
	if got, err := os.ReadFile(mine + "/file"); err != nil || string(got) != "mine\nmore\n" {
		t.Errorf("%q, %v", got, err)
	}
}

// What the host mounts later is not seen in a room, though the host shares its mounts.
func TestMountedLater(t *testing.T) {
	needsRoot(t)
	dir, err := os.MkdirTemp("/usr/local", "tidemark room-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	said := t.TempDir()
	text, err := json.Marshal(Room{Keep: []Kept{{Path: said}}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "host", `set -e; mount -t tmpfs before "$DIR"; touch "$DIR/before"
		unshare --pid --fork "$PROGRAM" room 'touch "$SAID/in"; while ! [ -e "$SAID/mounted" ]; do sleep 0.01; done; ls "$DIR"; ls "$SAID"' <"$SAID/room" &
		while ! [ -e "$SAID/in" ]; do sleep 0.01; done
		mount -t tmpfs later "$DIR"; touch "$DIR/later" "$SAID/mounted"; wait`)
	cmd.Env = append(os.Environ(), "DIR="+dir, "SAID="+said, "PROGRAM="+os.Args[0])
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if err := os.WriteFile(said+"/room", text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "before\nin\nmounted\nroom\n"; string(out) != want {
		t.Errorf("%q, not %q", out, want)
	}
}
