package mount

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestInGuest runs the tests of this package under a kernel that has nbd, which that of
// most test machines has not.
func TestInGuest(t *testing.T) {
	if os.Getenv("TIDEMARK_GUEST") != "" {
		t.Skip("this is the guest")
	}
	need(t, "qemu-system-x86_64", "busybox", "mkfs.ext4", "e2fsck")
	begin := time.Now()
	out, err := exec.Command("testdata/guest.sh", os.Args[0], "-test.v",
		"-test.run=./nbd").CombinedOutput()
	t.Logf("%v\n%s", time.Since(begin), out)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 97 && os.Getenv("CI") == "" {
		t.Skip("needs a kernel from Debian's archive")
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("--- PASS: TestBusyFileSystem/nbd")) {
		t.Error("the guest did not use its kernel's nbd")
	}
}

// TestBusyFileSystem checks the promise where it is hardest to keep: a file system is
// busy while its server is killed again and again, and each time the server
// forgets all that was not flushed.
func TestBusyFileSystem(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		need(t, "mkfs.ext4", "e2fsck")
		s := serve(t, 256<<20)
		a := attach(t, s, func(c *Config) { c.Via, c.ReplayBytes = via, 8<<20 })
		if err := Format(a.Device(), "ext4", "x"); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := MountFS(a.Device(), dir, "ext4", nil); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		stop := make(chan struct{})
		var closing sync.RWMutex
		check := beBusy(t, dir, seed, stop, &closing)
		rng := rand.New(rand.NewPCG(seed, 0))
		kills := rounds(6, 60)
		for i := range kills {
			if i%2 == 0 { // else it may be in the middle of coming back
				reconnected(t, a)
			}
			time.Sleep(time.Duration(50+rng.IntN(250)) * time.Millisecond)
			closing.Lock()
			s.kill()
			time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
			s.start()
			closing.Unlock()
		}
		close(stop)
		check()
		st, err := a.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", st.Server)
		if st.Server.Reconnects < kills/2 || st.Server.Replayed == 0 {
			t.Errorf("%d kills brought only %d reconnects and %d writes replayed", kills, st.Server.Reconnects, st.Server.Replayed)
		}
		if err := Unmount(dir); err != nil {
			t.Fatal(err)
		}
		run(t, "e2fsck", "-fn", a.Device())
		if err := MountFS(a.Device(), dir, "ext4", nil); err != nil {
			t.Fatal(err)
		}
		check()
	})
}

// reconnected waits until the attacher has its server.
func reconnected(t *testing.T, a *Attachment) {
	t.Helper()
	for range 1000 {
		if st, err := a.Status(t.Context()); err == nil && st.Server.Connected {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the attacher does not come back")
}

// beBusy writes and reads files until stop is closed. The function it returns waits for
// the writers, and checks that the files are what was written.
//
// A file is not closed while closing is locked, as it must be while a server is started: a
// new process has, until it runs its program, what this one had open. Were the file closed
// here meanwhile, its last close would be that of the process that is to be the server,
// and ext4 writes a replaced file out in its last close: to a disk that nobody serves yet.
func beBusy(t *testing.T, dir string, seed uint64, stop chan struct{}, closing *sync.RWMutex) (check func()) {
	const writers, files, largest = 3, 6, 64 // pages of 4 KiB
	var content [writers][files][]byte
	var writing sync.WaitGroup
	verify := func(w, f int) error {
		name := filepath.Join(dir, fmt.Sprint(w, "-", f))
		got, err := readDirect(name, len(content[w][f]))
		if err == nil && !bytes.Equal(got, content[w][f]) {
			err = fmt.Errorf("%s: wrong bytes", name)
		}
		return err
	}
	for w := range writers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)+1))
		writing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				f := rng.IntN(files)
				var err error
				if content[w][f] != nil && rng.IntN(2) == 0 {
					err = verify(w, f)
				} else {
					content[w][f] = bytes.Repeat([]byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(w), byte(f)}, 1024*(1+rng.IntN(largest)))
					err = writeFile(filepath.Join(dir, fmt.Sprint(w, "-", f)), content[w][f], rng.IntN(4) == 0, closing)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return func() {
		t.Helper()
		writing.Wait()
		for w := range writers {
			for f := range files {
				if content[w][f] == nil {
					continue
				}
				if err := verify(w, f); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func writeFile(name string, b []byte, sync bool, closing *sync.RWMutex) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if sync && err == nil {
		err = f.Sync()
	}
	closing.RLock()
	defer closing.RUnlock()
	return errors.Join(err, f.Close())
}

// readDirect reads n bytes of a file from its disk.
func readDirect(name string, n int) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := aligned(n)
	defer unix.Munmap(b)
	got, err := f.ReadAt(b, 0)
	return bytes.Clone(b[:got]), err
}
