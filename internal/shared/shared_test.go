package shared

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// duplicate is another descriptor of a file, as a reader gets one.
func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func newMemory(t *testing.T, size int) *Memory {
	t.Helper()
	m, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestWhatIsPutIsRead(t *testing.T) {
	m := newMemory(t, 64<<10)
	copy(m.Bytes()[5000:], "what was put")
	r, err := Open(duplicate(t, m.File()), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	src, got := r.Bytes()[5000:5012], make([]byte, 12)
	if err := Copy(got, src, Sum([]byte("what was put"))); err != nil || string(got) != "what was put" {
		t.Errorf("%q: %v", got, err)
	}
	m.Bytes()[5003]++
	if err := Copy(got, src, Sum([]byte("what was put"))); !errors.Is(err, ErrChanged) {
		t.Errorf("after a change: %v", err)
	}
	// Pages that are given back are zeros, and no fault, on both sides.
	if err := m.Forget(4096, 4096); err != nil {
		t.Fatal(err)
	}
	if err := Copy(got, src, Sum(make([]byte, 12))); err != nil || !bytes.Equal(m.Bytes()[5000:5012], got) {
		t.Errorf("%q: %v", got, err)
	}
	m.Bytes()[5000] = 7
	if err := m.Release(); err != nil {
		t.Error(err)
	}
	if src[0] != 7 { // the reader keeps it
		t.Error("gone with its owner")
	}
	if err := r.Release(); err != nil {
		t.Error(err)
	}
}

// What the seals promise holds: the owner itself cannot make it shorter.
func TestNobodyMakesItShorter(t *testing.T) {
	m := newMemory(t, 8192)
	defer m.Release()
	for _, n := range []int64{4096, 0, 16384} {
		if err := unix.Ftruncate(int(m.File().Fd()), n); !errors.Is(err, unix.EPERM) {
			t.Errorf("to %d bytes: %v", n, err)
		}
	}
}

func TestUnsafeMemoryIsRefused(t *testing.T) {
	memfd := func(flags, seals int, size int64) *os.File {
		fd, err := unix.MemfdCreate("test", flags)
		if err != nil {
			t.Skip(err)
		}
		f := os.NewFile(uintptr(fd), "test")
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if seals != 0 {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
				t.Fatal(err)
			}
		}
		return f
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	plain, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	const sealing = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	for _, c := range []struct {
		name string
		f    *os.File
		size int64
	}{
		{"a file", plain, 8192},
		{"a pipe", read, 8192},
		{"not to be sealed", memfd(unix.MFD_CLOEXEC, 0, 8192), 8192},
		{"not sealed", memfd(sealing, 0, 8192), 8192},
		{"may become shorter", memfd(sealing, unix.F_SEAL_GROW, 8192), 8192},
		{"may become longer", memfd(sealing, unix.F_SEAL_SHRINK, 8192), 8192},
		{"too small", memfd(sealing, seals, 4096), 8192},
		{"too large", memfd(sealing, seals, 16384), 8192},
		{"empty", memfd(sealing, seals, 0), 0},
		{"a negative size", memfd(sealing, seals, 8192), -8192},
		{"a huge size", memfd(sealing, seals, 8192), math.MaxInt64},
	} {
		if m, err := Open(c.f, c.size); !errors.Is(err, ErrUnsafe) {
			t.Errorf("%s: %v, %v", c.name, m, err)
		}
		if err := c.f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: it was left open: %v", c.name, err)
		}
	}
}

// A page that is gone, here because a file that was never sealed has become shorter, is an error and not the end.
func TestFaultIsAnError(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	if err := Copy(make([]byte, 8192), data, 0); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
	if err := Copy(make([]byte, 4096), data[:4096], Sum(make([]byte, 4096))); err != nil {
		t.Errorf("what is left: %v", err)
	}
}

func TestNoMemory(t *testing.T) {
	var m *Memory
	m.Hold()
	if err := m.Release(); err != nil {
		t.Error(err)
	}
}
