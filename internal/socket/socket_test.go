package socket

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns two ends of a unix socket.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return take(t, nc), take(t, far)
}

func take(t *testing.T, nc net.Conn) *Conn {
	t.Helper()
	c, err := Take(nc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A peer whose socket is full, and who waits until he can write, notices an abort, though our descriptor stays open.
func TestAbortWakesWriter(t *testing.T) {
	ours, theirs, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	defer theirs.Close()
	fd := int(theirs.Fd())
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for sent := 0; err == nil; {
		var n int
		n, err = syscall.Write(fd, make([]byte, 64<<10))
		if sent += n; sent > 64<<20 {
			t.Fatal("it never is full")
		}
	}
	if err != syscall.EAGAIN {
		t.Fatal(err)
	}
	ours.Abort()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(p, 10_000); err != nil || n != 1 || p[0].Revents&unix.POLLOUT == 0 {
		t.Errorf("it can be written to: %#x, %v", p[0].Revents, err)
	}
	if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d bytes are left, %v", n, err)
	}
}

func TestCarriesBytesBothWays(t *testing.T) {
	a, b := pair(t)
	long := make([]byte, 8<<20) // more than any buffer
	for i := range long {
		long[i] = byte(i * 7)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := a.Write(long)
		sent <- errors.Join(err, a.Close())
	}()
	got, err := io.ReadAll(b)
	if err != nil || string(got) != string(long) {
		t.Fatalf("read %d bytes, %v; want %d", len(got), err, len(long))
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// A thread that waits in the kernel must be woken by whoever gives the connection up.
func TestWaitersAreWoken(t *testing.T) {
	for name, end := range map[string]func(c *Conn){
		"Abort": (*Conn).Abort, "Close": func(c *Conn) { c.Close() }, "CloseRead": (*Conn).CloseRead,
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := pair(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				if n, err := a.Read(make([]byte, 1)); err == nil {
					t.Errorf("read %d bytes of nothing", n)
				}
			})
			if name != "CloseRead" {
				wg.Go(func() {
					if n, err := a.Write(make([]byte, 64<<20)); err == nil {
						t.Errorf("wrote %d bytes to nobody", n)
					}
				})
			}
			time.Sleep(20 * time.Millisecond) // so that they wait; if they do not yet, they fail at once
			end(a)
			woken := make(chan struct{})
			go func() { wg.Wait(); close(woken) }()
			select {
			case <-woken:
			case <-time.After(10 * time.Second):
				t.Fatal("still waiting")
			}
		})
	}
}

func TestWhatArrivedIsReadAfterCloseRead(t *testing.T) {
	a, b := pair(t)
	if _, err := b.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	a.CloseRead()
	if got, err := io.ReadAll(a); err != nil || string(got) != "last" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := a.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
}

func TestNoSocket(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	if _, err := Take(a); !errors.Is(err, ErrNoSocket) {
		t.Fatal(err)
	}
	go b.Write([]byte{1})
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Fatal("the connection was touched:", err)
	}
}

func TestUseAfterClose(t *testing.T) {
	a, _ := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a.Abort()
	a.CloseRead()
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Fatal("read from a closed socket")
	}
}
