package mount

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// within waits until something is so.
func within(t *testing.T, d time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v later: not %s", d, what)
		}
	}
}

// gone reports whether no thread of a process is left. It is not enough that it is dead: one thread that waits keeps open what it had.
func gone(pid int) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid)))
	return errors.Is(err, os.ErrNotExist)
}

// flushing returns the process that waits for a flush on behalf of an attacher, or 0.
func flushing(attacher int) int {
	stats, _ := filepath.Glob("/proc/[0-9]*/task/*/stat")
	for _, s := range stats {
		b, _ := os.ReadFile(s)
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		pid, _ := strconv.Atoi(strings.Split(s, "/")[2])
		if len(f) > 1 && f[0] == "D" && (f[1] == strconv.Itoa(attacher) || pid == attacher) {
			return pid
		}
	}
	return 0
}

// waitsForServer are the ways in which an attacher comes to wait for a flush of its device while its server is away.
var waitsForServer = map[string]func(t *testing.T, a *Attachment){
	"signal": func(t *testing.T, a *Attachment) { unix.Kill(a.rec.PID, unix.SIGTERM) },
	"detach": func(t *testing.T, a *Attachment) { go a.Detach(t.Context(), false) },
	"flush":  func(t *testing.T, a *Attachment) { go a.Flush(t.Context()) },
}

// TestEndsWhileServerIsAway checks that an attacher can be ended while it flushes its device and its server is away: by force, and by kill -9.
func TestEndsWhileServerIsAway(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		for how, wait := range waitsForServer {
			for _, end := range []string{"force", "kill"} {
				t.Run(how+" "+end, func(t *testing.T) { testEndsWhileServerIsAway(t, via, wait, end == "kill") })
			}
		}
	})
}

func testEndsWhileServerIsAway(t *testing.T, via Via, wait func(*testing.T, *Attachment), kill bool) {
	s := serve(t, 16<<20)
	a := attach(t, s, func(c *Config) { c.Via = via })
	dev, err := os.OpenFile(a.Device(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dev.WriteAt(aligned(4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	s.kill()
	within(t, 10*time.Second, "without a session", func() bool {
		st, err := a.Status(t.Context())
		return err == nil && !st.Server.Connected
	})
	wait(t, a)
	within(t, 20*time.Second, "a process that waits for the flush", func() bool { return flushing(a.PID()) != 0 })
	if st, err := a.Status(t.Context()); err != nil || st.Server.GaveUp {
		t.Fatalf("it answers nobody meanwhile: %+v, %v", st, err)
	}
	if kill {
		unix.Kill(a.PID(), unix.SIGKILL)
	} else {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := a.Detach(ctx, true); err != nil {
			t.Error(err)
		}
	}
	within(t, 20*time.Second, "the end of the attacher with all its threads", func() bool { return gone(a.PID()) })
	if kill {
		if err := a.Cleanup(true); err != nil {
			t.Fatal(err)
		}
	}
	within(t, 20*time.Second, "the end of the device", func() bool {
		tag, err := deviceTag(a.Device())
		return err == nil && tag != tagOf(a.rec.Token)
	})
	if all, err := List(a.Config().StateDir); len(all) != 0 || err != nil {
		t.Errorf("left: %v, %v", all, err)
	}
}

// TestSignalIsHeededWhenServerIsBack checks that a detach that a signal asked for while the server was away is done when it is back.
func TestSignalIsHeededWhenServerIsBack(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		s := serve(t, 16<<20)
		a := attach(t, s, func(c *Config) { c.Via = via })
		s.kill()
		for range 3 { // they are one
			unix.Kill(a.rec.PID, unix.SIGTERM)
			time.Sleep(100 * time.Millisecond)
		}
		within(t, 20*time.Second, "a process that waits for the flush", func() bool { return flushing(a.PID()) != 0 })
		s.start()
		within(t, 20*time.Second, "detached", func() bool { return gone(a.PID()) })
		if _, err := Find(a.Config().StateDir, a.Name()); !errors.Is(err, ErrNotFound) {
			t.Errorf("its state is still there: %v", err)
		}
	})
}
