package mount

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/process"
)

// loops are the loop devices that have a tag.
func loops(t *testing.T, tag string) (devices []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		device := "/dev/" + strings.Split(f, "/")[3]
		if got, err := loopTag(device); err == nil && got == tag {
			devices = append(devices, device)
		}
	}
	return devices
}

// An attacher that is killed while its loop device is made leaves neither that nor anything that waits, and nobody else waits for it.
func TestKilledBeforeLoop(t *testing.T) {
	need(t)
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	for _, wait := range []time.Duration{0, 5 * time.Millisecond} { // behind the begin of the making
		s := serve(t, 16<<20)
		cfg := attachConfig{Config: Config{Name: "vol1", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Via: ViaFUSE}, Token: "killed-" + strconv.Itoa(os.Getpid())}
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		if err := makeDir(cfg.dir()); err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(ctl.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		p, err := process.Start("attach")
		if err != nil {
			t.Fatal(err)
		}
		told := make(chan error, 1)
		go func() { told <- tellAttacher(t.Context(), p, cfg) }()
		maker := 0
		within(t, 20*time.Second, "a process that makes the device", func() bool {
			maker = childOf(p.PID())
			return maker != 0
		})
		if err := unix.Flock(int(ctl.Fd()), unix.LOCK_UN); err != nil {
			t.Fatal(err)
		}
		time.Sleep(wait)
		if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		err = <-told
		within(t, 20*time.Second, "the end of both processes", func() bool { return gone(maker) && gone(p.PID()) })
		if err == nil { // it was done already
			a, err := load(cfg.StateDir, cfg.Name)
			if err == nil {
				err = a.Cleanup(true)
			}
			if err != nil {
				t.Error(err)
			}
		}
		if left := loops(t, tagOf(cfg.Token)); len(left) > 0 {
			t.Errorf("%v are left", left)
			run(t, "losetup", "-d", left[0])
		}
	}
}

// No server is asked to flush a disk that is only being attached: it may be away, and whoever makes a loop device has locks that all others need.
func TestAttachFlushesNothing(t *testing.T) {
	need(t)
	s := serve(t, 16<<20)
	mark := s.argv[len(s.argv)-1] + stuck
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(mark) })
	a := attach(t, s, func(c *Config) { c.Via = ViaFUSE })
	flushed := make(chan error, 1)
	go func() { flushed <- a.Flush(t.Context()) }()
	select {
	case err := <-flushed:
		t.Fatalf("a flush that the server has not done: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	if err := <-flushed; err != nil {
		t.Error(err)
	}
}
