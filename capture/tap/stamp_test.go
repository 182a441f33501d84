package tap

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lacking opens a tap whose timeline cannot be reached, and returns how many bytes are to be sent again.
func lacking(t *testing.T, dir, path, boot string) int64 {
	t.Helper()
	p, err := OpenPrimary(path)
	if err != nil {
		t.Fatal(err)
	}
	line := &timeline{now: sparse{}, marks: map[string]int{}, acknowledged: map[string]uint64{}}
	line.away.Store(true)
	tap, err := Open(Options{Dir: dir, Primaries: []Primary{p}, Sink: line, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), boot: boot})
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, tap)
	return tap.Status().Lost
}

// closeNow closes a tap, whatever is in its queue.
func closeNow(t *testing.T, tap *Tap) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tap.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// mirrored taps a disk until the timeline has all of it, and closes the tap.
func mirrored(t *testing.T, dir, path, boot string) {
	t.Helper()
	p, err := OpenPrimary(path)
	if err != nil {
		t.Fatal(err)
	}
	line := &timeline{now: sparse{}, marks: map[string]int{}, acknowledged: map[string]uint64{}}
	tap, err := Open(Options{Dir: dir, Primaries: []Primary{p}, Sink: line, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), boot: boot})
	if err != nil {
		t.Fatal(err)
	}
	tap.mu.Lock()
	for tap.lost > 0 || tap.gap || len(tap.queue.list) > 0 {
		tap.changed.Wait()
	}
	tap.mu.Unlock()
	closeNow(t, tap)
}

// C1, J4: A disk that was written by others while it was not tapped is sent again as a whole, and one that was not, not.
func TestWrittenWhileNotTapped(t *testing.T) {
	disks := map[string]func(t *testing.T) string{"file": aFile, "device": aDevice}
	for kind, make := range disks {
		t.Run(kind, func(t *testing.T) {
			path, dir := make(t), t.TempDir()
			mirrored(t, dir, path, "one")
			if n := lacking(t, dir, path, "one"); n != 0 {
				t.Errorf("%d bytes are sent again of a disk that nobody wrote to", n)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("mine"), 4096); err != nil || f.Sync() != nil || f.Close() != nil {
				t.Fatal(err)
			}
			if n := lacking(t, dir, path, "one"); n != stampSize {
				t.Errorf("%d bytes are sent again of a disk of %d that was written", n, stampSize)
			}
			mirrored(t, dir, path, "one")
			if n := lacking(t, dir, path, "two"); n != stampSize { // it was written since this host's last real boot
				t.Errorf("after a boot %d bytes are sent again of a disk that was written since", n)
			}
		})
	}
}

const stampSize = 2 << 20

func aFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(stampSize); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	return path
}

func aDevice(t *testing.T) string {
	if os.Getuid() != 0 {
		t.Skip("needs root for a loop device")
	}
	out, err := exec.Command("losetup", "-f", "--show", aFile(t)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return device
}
