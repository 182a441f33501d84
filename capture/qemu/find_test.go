package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark"
)

// TestFindRefuses holds that whatever is wrong with a socket or a name is said in one clear line.
func TestFindRefuses(t *testing.T) {
	m := newMachine(t, seeded(t), "raw", 1)
	dir := t.TempDir()
	plain, dead, alien, silent := filepath.Join(dir, "plain"), filepath.Join(dir, "dead"), filepath.Join(dir, "alien"), filepath.Join(dir, "silent")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	listen(t, dead, nil).Close()
	listen(t, alien, []byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	listen(t, silent, []byte{})
	for _, c := range []struct{ socket, disk, want string }{
		{filepath.Join(dir, "none"), "", "there is no QMP socket"},
		{plain, "", "nobody listens"},
		{dead, "", "nobody listens"},
		{alien, "", "is no QMP socket"},
		{silent, "", "does not answer"},
		{m.nbd(), "", "is no QMP socket"},
		{m.socket(), "vda", `has no disk "vda"`},
	} {
		var names []string
		if c.disk != "" {
			names = []string{c.disk}
		}
		_, err := Find(t.Context(), c.socket, names)
		var e *tidemark.Error
		if !errors.As(err, &e) || !strings.Contains(e.Error(), c.want) || e.Hint == "" || strings.Contains(e.Error(), "\n") {
			t.Errorf("%s: %v", c.want, err)
		}
	}
	list, err := Find(t.Context(), m.socket(), nil)
	if err != nil || len(list) != 1 || list[0].ID() != "disk0" || list[0].Size != diskSize {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestNoRights is refused the machine's socket.
func TestNoRights(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be somebody else for a moment")
	}
	m := newMachine(t, seeded(t), "raw", 1)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with this goroutine
		const nobody = 65534
		if err := unix.Setfsuid(nobody); err != nil {
			failed <- err
			return
		}
		_, err := Find(context.Background(), m.socket(), nil)
		failed <- err
	}()
	if err := <-failed; tidemark.KindOf(err) != tidemark.Denied || !strings.Contains(err.Error(), "permission denied") {
		t.Error(err)
	}
}

// TestResized: a disk is not resized while it is followed, and one that was in between is not taken for what it was.
func TestResized(t *testing.T) {
	m, w := newMachine(t, seeded(t), "raw", 1), newWorld(t, 1)
	mirror, stop := w.follow(m)
	ready(t, mirror)
	q, err := Dial(t.Context(), m.other())
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Run(t.Context(), "block_resize", map[string]any{"node-name": "disk0", "size": diskSize + 1<<20}, nil); err == nil {
		t.Error("QEMU let the disk be resized under a mirror")
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
	gaps := len(w.line.Gaps())
	m.stop()
	if err := os.Truncate(m.image(0), diskSize+1<<20); err != nil {
		t.Fatal(err)
	}
	m.start()
	mirror, _ = w.follow(m)
	eventually(t, "the new size is noticed", func() bool { return mirror.State().Phase == Degraded })
	if why := mirror.State().Why; !strings.Contains(why.Error(), "bytes, and its timeline has") {
		t.Error(why)
	}
	if len(w.line.Gaps()) != gaps || w.line.Gaps()[gaps-1].To != 0 {
		t.Errorf("the gap does not last: %+v", w.line.Gaps())
	}
	if left := inspect(t, m); len(left.jobs) > 0 {
		t.Error(left.jobs)
	}
}

// listen serves a socket on which everybody is told the same; nothing at all, if that is empty.
func listen(t *testing.T, path string, say []byte) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if len(say) > 0 {
				c.Write(say)
				c.Close()
			}
		}
	}()
	return l
}
