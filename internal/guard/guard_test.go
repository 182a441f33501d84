package guard

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this binary the guard, and a process that is guarded, as well.
func TestMain(m *testing.M) {
	switch os.Getenv("GUARD_TEST") {
	case "guard":
		if err := Run(os.Stdin, time.Second); err != nil && !errors.Is(err, errGone) {
			panic(err)
		}
		os.Exit(0)
	case "server":
		serve(os.Getenv("GUARD_SOCKET"))
	}
	os.Exit(m.Run())
}

// serve echoes what it is sent.
func serve(path string) {
	os.Setenv("GUARD_TEST", "guard")
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	g := New(exe)
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	gl, err := g.Listen(l.(*net.UnixListener))
	if err != nil {
		panic(err)
	}
	go func() {
		for ; ; time.Sleep(100 * time.Millisecond) {
			g.Beat()
		}
	}()
	for {
		c, err := gl.Accept()
		if err != nil {
			panic(err)
		}
		go io.Copy(c, c)
	}
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// echo sends a byte and waits for it to come back.
func echo(t *testing.T, c net.Conn) error {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte{7}); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("nobody hung up")
	}
	return err
}

// served returns a connection that is served, and stays: what the guard had begun to hang up when the server went on may
// still meet the first ones.
func served(t *testing.T, path string) net.Conn {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		c := dial(t, path)
		if echo(t, c) != nil {
			continue
		}
		time.Sleep(200 * time.Millisecond) // several of the guard's rounds
		if echo(t, c) == nil {
			return c
		}
	}
	t.Fatal("it is not served again")
	return nil
}

// fill sends until there is no more room.
func fill(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var err error
	for err == nil {
		_, err = c.Write(make([]byte, 64<<10))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
}

// writable waits until a connection can be written to, as those do who have more to send than there is room for.
func writable(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var p []unix.PollFd
	cerr := raw.Control(func(fd uintptr) {
		p = []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for end := time.Now().Add(10 * time.Second); p[0].Revents&unix.POLLOUT == 0 && time.Now().Before(end) && err == nil; time.Sleep(10 * time.Millisecond) {
			_, err = unix.Poll(p, 0) // which returns at once where the peer is gone
		}
	})
	if err := errors.Join(err, cerr); err != nil || p[0].Revents&unix.POLLOUT == 0 {
		t.Errorf("who has more to send is not told: %#x, %v", p[0].Revents, err)
	}
}

// TestStandsStill stops a server: its peers are hung up on, and served again when it goes on.
func TestStandsStill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "GUARD_TEST=server", "GUARD_SOCKET="+path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	c := dial(t, path)
	for range 20 { // longer than the limit
		if err := echo(t, c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	full := dial(t, path)
	if err := echo(t, full); err != nil { // it is let in
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus // all of its threads stand still
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatal(status, err)
	}
	fill(t, full)
	if err := echo(t, c); err == nil {
		t.Error("a process that stands still has answered")
	}
	writable(t, full)
	if err := echo(t, dial(t, path)); err == nil { // who comes now is turned away
		t.Error("a process that stands still has answered")
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c = served(t, path)
	// A peer of a process that dies is hung up on, though the guard has a copy of its connection.
	cmd.Process.Kill()
	if err := echo(t, c); err == nil {
		t.Error("a dead process has answered")
	}
}

// TestGuardDies kills the guard: the next one watches the same peers.
func TestGuardDies(t *testing.T) {
	t.Setenv("GUARD_TEST", "guard")
	g := New(os.Args[0])
	defer g.Close()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	gl, err := g.Listen(l.(*net.UnixListener))
	if err != nil {
		t.Fatal(err)
	}
	defer gl.Close()
	c := dial(t, l.Addr().String())
	if _, err := gl.Accept(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	ended := g.conn
	err = unix.Shutdown(int(ended.Fd()), unix.SHUT_RDWR) // it ends, and we cannot reach it, as if it were killed
	g.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := g.Beat()
		g.mu.Lock()
		again := g.conn != ended
		g.mu.Unlock()
		if err == nil && again {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if err := echo(t, c); err == nil { // we beat no more
		t.Error("somebody has answered")
	}
}

// TestClose: a listener that nobody connects to, and a connection that is silent, end at once.
func TestClose(t *testing.T) {
	t.Setenv("GUARD_TEST", "guard")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := New(exe)
	defer g.Close()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	gl, err := g.Listen(l.(*net.UnixListener))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	accepted := make(chan net.Conn, 1)
	go func() {
		for {
			c, err := gl.Accept()
			if err != nil {
				done <- nil
				return
			}
			accepted <- c
		}
	}()
	dial(t, path)
	c := <-accepted
	go func() {
		_, err := c.Read(make([]byte, 1))
		done <- err
	}()
	time.Sleep(50 * time.Millisecond) // both wait in the kernel, if they can
	go func() {
		if err := errors.Join(c.Close(), gl.Close()); err != nil {
			t.Error(err)
		}
	}()
	for range 2 {
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("who waits for a peer was not woken")
		}
	}
}
