package mount

import (
	"context"
	"encoding/binary"
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

// TestEndsWhenNobodyKnowsIt checks that an attacher without a server ends when it was taken for dead, and leaves alone what is in its place.
func TestEndsWhenNobodyKnowsIt(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		need(t, "mkfs.ext4")
		s := serve(t, 64<<20)
		a := attach(t, s, func(c *Config) { c.Via = via })
		if err := Format(a.Device(), "ext4", "x"); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := MountFS(a.Device(), dir, "ext4", nil); err != nil {
			t.Fatal(err)
		}
		s.kill()
		other := []byte(`{"Name": "vol1", "Token": "another"}`)
		if err := os.WriteFile(filepath.Join(a.dir, recordName), other, 0o600); err != nil {
			t.Fatal(err)
		}
		within(t, 30*time.Second, "ended", func() bool { return gone(a.PID()) })
		within(t, 10*time.Second, "unmounted", func() bool { // by the process that takes the device down, which may outlive it
			list, err := Mounts(a.Device())
			return err != nil || len(list) == 0
		})
		within(t, 10*time.Second, "the end of the device", func() bool {
			tag, err := deviceTag(a.Device())
			return err == nil && tag != tagOf(a.rec.Token)
		})
		if got := read(t, filepath.Join(a.dir, recordName)); got != string(other) {
			t.Errorf("the record of another is %s", got)
		}
	})
}

// TestOrphanEndsWhileItSaves has the starter die when the attacher has looked for it the last time, and has yet to write its record.
func TestOrphanEndsWhileItSaves(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		s := serve(t, 16<<20)
		cfg := Config{Name: "vol1", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Via: via}
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		ac := attachConfig{Config: cfg, Token: "orphan-" + strconv.Itoa(os.Getpid())}
		if err := makeDir(ac.dir()); err != nil {
			t.Fatal(err)
		}
		saving, goOn := holdOpen(t, ac.dir(), recordName+".tmp")
		in, err := json.Marshal(ac)
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "attach")
		cmd.Stdin, cmd.ExtraFiles = strings.NewReader(string(in)), []*os.File{w}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		w.Close()
		defer sweepDevices(tagOf(ac.Token))
		select {
		case <-saving:
		case <-time.After(20 * time.Second):
			t.Fatal("it does not come to write its record")
		}
		r.Close() // we are gone
		within(t, 20*time.Second, "given up", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			q, err := ask(ctx, filepath.Join(ac.dir(), socketName), request{Verb: verbStatus})
			return err == nil && q.Status.Server.GaveUp
		})
		goOn()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("it ended as if all were well")
			}
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			t.Fatal("it lives on with a device of errors")
		}
		a, err := Find(cfg.StateDir, cfg.Name)
		if err != nil || a.Alive() {
			t.Fatalf("%+v, %v", a, err)
		}
		if tag, err := deviceTag(a.Device()); err != nil || tag == tagOf(ac.Token) {
			t.Errorf("its device is still there: %v", err)
		}
		if err := a.Cleanup(false); err != nil {
			t.Error(err)
		}
	})
}

// holdOpen keeps whoever opens a file of a directory waiting, from when opening is closed until goOn is called.
func holdOpen(t *testing.T, dir, name string) (opening <-chan struct{}, goOn func()) {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Skipf("needs fanotify: %v", err)
	}
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_PERM|unix.FAN_EVENT_ON_CHILD, unix.AT_FDCWD, dir); err != nil {
		unix.Close(fd)
		t.Skipf("needs permission events of fanotify: %v", err)
	}
	events := os.NewFile(uintptr(fd), "fanotify")
	t.Cleanup(func() { events.Close() }) // lets go of all who wait
	came, pass := make(chan struct{}), make(chan struct{})
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := events.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) >= fanotifyEvent; b = b[fanotifyEvent:] {
				file := int32(native.Uint32(b[16:]))
				path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
				if filepath.Base(path) == name {
					close(came)
					<-pass
				}
				allow := native.AppendUint32(native.AppendUint32(nil, uint32(file)), unix.FAN_ALLOW)
				events.Write(allow)
				unix.Close(int(file))
			}
		}
	}()
	return came, func() { close(pass) }
}

// fanotifyEvent is the size of a struct fanotify_event_metadata.
const fanotifyEvent = 24

var native = binary.NativeEndian
