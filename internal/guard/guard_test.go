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
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus // all of its threads stand still
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatal(status, err)
	}
	if err := echo(t, c); err == nil {
		t.Error("a process that stands still has answered")
	}
	if err := echo(t, dial(t, path)); err == nil { // who comes now is turned away
		t.Error("a process that stands still has answered")
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); echo(t, dial(t, path)) != nil; {
		if time.Now().After(end) {
			t.Fatal("it is not served again")
		}
	}
	// A peer of a process that dies is hung up on, though the guard has a copy of its connection.
	c = dial(t, path)
	if err := echo(t, c); err != nil {
		t.Fatal(err)
	}
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
