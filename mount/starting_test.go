package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowStart says, in the environment of an attacher of the tests, how long it takes to begin.
const slowStart = "TIDEMARK_TEST_SLOW_START"

// startSlowly has an attacher take its time, where the environment says so.
func startSlowly() {
	d, _ := time.ParseDuration(os.Getenv(slowStart))
	time.Sleep(d)
}

// attachFor attaches a disk as a server does that is killed then: it is the life of a process.
func attachFor(config string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	if _, err := Attach(context.Background(), cfg); err != nil {
		return err
	}
	time.Sleep(time.Minute)
	return errors.New("nobody has killed it")
}

// childOf returns a process that another one has started, or 0.
func childOf(pid int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		b, _ := os.ReadFile(s)
		_, rest, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(strings.Split(s, "/")[2])
			return n
		}
	}
	return 0
}

// opened reports whether a process has a file open.
func opened(pid int, path string) bool {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, l := range links {
		if to, _ := os.Readlink(l); to == path {
			return true
		}
	}
	return false
}

// TestAttachBehindOrphan kills who attaches a disk while its attacher starts, and has the next one attach a disk by the same name at once.
func TestAttachBehindOrphan(t *testing.T) {
	t.Run("that has not begun", func(t *testing.T) {
		testAttachBehindOrphan(t, func(int) bool { return true })
	})
	t.Run("that is stuck", func(t *testing.T) {
		testAttachBehindOrphan(t, func(pid int) bool { return unix.Kill(pid, unix.SIGSTOP) == nil })
	})
	t.Run("that waits for a loop device", func(t *testing.T) {
		ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
		if err != nil {
			t.Skip(err)
		}
		defer ctl.Close()
		if err := unix.Flock(int(ctl.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		testAttachBehindOrphan(t, func(pid int) bool { return opened(childOf(pid), "/dev/loop-control") })
	})
}

// testAttachBehindOrphan kills the starter when its attacher has come so far.
func testAttachBehindOrphan(t *testing.T, soFar func(attacher int) bool) {
	need(t)
	s := serve(t, 16<<20)
	cfg := Config{Name: "vol1", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Via: ViaFUSE}
	config, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	starter := exec.Command(os.Args[0], "attachfor", string(config))
	starter.Stderr, starter.Env = os.Stderr, append(os.Environ(), slowStart+"=500ms")
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	defer starter.Wait()
	defer starter.Process.Kill()
	attacher := 0
	within(t, 20*time.Second, "an attacher that starts", func() bool {
		if attacher = childOf(starter.Process.Pid); attacher == 0 {
			return false
		}
		_, err := os.Stat(filepath.Join(cfg.StateDir, cfg.Name))
		return err == nil && soFar(attacher)
	})
	var old *Attachment
	within(t, 20*time.Second, "noted who attaches it", func() bool {
		old, err = Find(cfg.StateDir, cfg.Name)
		return err == nil && old.starting.PID == attacher
	})
	if err := old.Cleanup(true); !errors.Is(err, ErrBusy) {
		t.Errorf("cleaned up while it is attached: %v", err)
	}
	time.Sleep(100 * time.Millisecond) // it is told what to attach
	starter.Process.Kill()
	starter.Wait()

	if old, err = Find(cfg.StateDir, cfg.Name); err != nil || old.Alive() {
		t.Fatalf("%+v, %v", old, err)
	}
	if err := old.Cleanup(true); err != nil {
		t.Fatal(err)
	}
	if old.starting.Alive() {
		t.Error("the orphan lives, and its directory is removed")
	}
	t.Setenv(slowStart, "1500ms") // it is behind the orphan with all it does
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	a, err := Attach(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Error(err)
	}
	within(t, 20*time.Second, "the end of the orphan", func() bool { return gone(attacher) })
	if left, _ := os.ReadDir(cfg.StateDir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
