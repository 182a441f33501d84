package mount

import (
	"context"
	"crypto/sha256"
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

// rounds is how often the long tests repeat.
func rounds(short, long int) int {
	if os.Getenv("TIDEMARK_LONG") != "" {
		return long
	}
	return short
}

// TestSurvivesServerKills checks J1's promise for mounts: while fio writes and
// verifies through a file system, the server is killed and started again.
func TestSurvivesServerKills(t *testing.T) {
	need(t, "fio", "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair")
	for fs, check := range map[string][]string{"ext4": {"e2fsck", "-fn"}, "xfs": {"xfs_repair", "-n"}} {
		t.Run(fs, func(t *testing.T) {
			s := serveQEMU(t, 1<<30)
			a := attach(t, s, func(c *Config) { c.ReplayBytes = 16 << 20 })
			if err := Format(a.Device(), fs, "x"); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := MountFS(a.Device(), dir, "auto", nil); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH)
			fio := exec.Command("fio", "--name=v", "--filename="+filepath.Join(dir, "data"), "--size=128M",
				"--rw=randwrite", "--bsrange=4k-256k", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--fsync=64",
				"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--loops=4")
			fio.Dir = t.TempDir()
			out, err := os.Create(filepath.Join(fio.Dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			fio.Stdout, fio.Stderr = out, out
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- fio.Wait() }()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			kills := rounds(10, 50)
			for i := range kills {
				if i%2 == 0 { // the others may hit a handshake, or no session at all
					awaitSession(t, a, i/2)
				}
				time.Sleep(time.Duration(rng.IntN(250)) * time.Millisecond)
				s.kill()
				time.Sleep(time.Duration(rng.IntN(50)) * time.Millisecond)
				s.start()
			}
			if err := <-ended; err != nil {
				b, _ := os.ReadFile(out.Name())
				t.Fatalf("fio: %v\n%s", err, b)
			}
			st, err := a.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d kills, %+v", kills, st.Server)
			if err := Unmount(dir); err != nil {
				t.Fatal(err)
			}
			run(t, append(check, a.Device())...)
		})
	}
}

// awaitSession waits until the attachment has come back to its server at least
// n times.
func awaitSession(t *testing.T, a *Attachment, n int) {
	t.Helper()
	for range 3000 {
		st, err := a.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st.Server.Connected && st.Server.Reconnects >= n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the attacher has not come back %d times", n)
}

// TestWaitsForServer checks that I/O waits while there is no server.
func TestWaitsForServer(t *testing.T) { eachVia(t, testWaitsForServer) }

func testWaitsForServer(t *testing.T, via Via) {
	s := serve(t, 64<<20)
	a := attach(t, s, func(c *Config) { c.Via = via })
	dev, err := os.OpenFile(a.Device(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	buf := aligned(1 << 20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	if _, err := dev.WriteAt(buf, 1<<20); err != nil {
		t.Fatal(err)
	}
	s.kill()
	done := make(chan error, 1)
	go func() {
		_, err := dev.WriteAt(buf, 8<<20)
		done <- errors.Join(err, dev.Sync())
	}()
	pause := time.Duration(rounds(1, 5)) * time.Second
	select {
	case err := <-done:
		t.Fatalf("a write ended without a server: %v", err)
	case <-time.After(pause):
	}
	s.start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(buf)
	for _, off := range []int64{1 << 20, 8 << 20} {
		got := aligned(1 << 20)
		if _, err := dev.ReadAt(got, off); err != nil || sha256.Sum256(got) != want {
			t.Fatalf("at %d: wrong bytes, %v", off, err)
		}
	}
}

func aligned(n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return b
}

// TestGivesUp checks that with GiveUp the I/O fails in the end.
func TestGivesUp(t *testing.T) { eachVia(t, testGivesUp) }

func testGivesUp(t *testing.T, via Via) {
	s := serve(t, 64<<20)
	a := attach(t, s, func(c *Config) { c.GiveUp, c.Via = 200*time.Millisecond, via })
	s.kill()
	dev, err := os.OpenFile(a.Device(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := dev.ReadAt(aligned(4096), 32<<20); !errors.Is(err, unix.EIO) {
		t.Fatalf("a read without a server: %v", err)
	}
}

// TestStaleIsFoundAndCleaned kills the attacher under a mounted file system.
func TestStaleIsFoundAndCleaned(t *testing.T) { eachVia(t, testStaleIsFoundAndCleaned) }

func testStaleIsFoundAndCleaned(t *testing.T, via Via) {
	need(t, "mkfs.ext4")
	s := serve(t, 128<<20)
	a := attach(t, s, func(c *Config) { c.Via = via })
	if err := Format(a.Device(), "ext4", "x"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := MountFS(a.Device(), dir, "ext4", []string{"commit=1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), a.Config()); !errors.Is(err, ErrExists) {
		t.Fatalf("attached twice: %v", err)
	}
	if err := writeFile(filepath.Join(dir, "x"), []byte("x"), false, new(sync.RWMutex)); err != nil {
		t.Fatal(err)
	}
	s.kill()
	time.Sleep(1500 * time.Millisecond) // the file system's journal is in flight, and nobody holds its mount
	unix.Kill(a.rec.PID, unix.SIGKILL)
	for i := 0; a.Alive(); i++ {
		if i == 500 {
			t.Fatal("the attacher does not die")
		}
		time.Sleep(10 * time.Millisecond)
	}
	all, err := List(a.Config().StateDir)
	if err != nil || len(all) != 1 || all[0].Alive() {
		t.Fatalf("%v, %v", all, err)
	}
	if err := all[0].Detach(t.Context(), false); !errors.Is(err, ErrStale) {
		t.Fatalf("detach of a stale attachment: %v", err)
	}
	if err := all[0].Cleanup(false); !errors.Is(err, ErrBusy) {
		t.Fatalf("clean-up under a mounted file system: %v", err)
	}
	if err := all[0].Cleanup(true); err != nil {
		t.Fatal(err)
	}
	if all, err := List(a.Config().StateDir); len(all) != 0 || err != nil {
		t.Fatalf("%v, %v", all, err)
	}
	for i := 0; ; i++ { // the kernel takes it down at its last close
		if tag, err := deviceTag(a.Device()); tag != tagOf(a.rec.Token) && err == nil {
			break
		} else if i == 300 {
			t.Fatalf("%s is still ours: %v", a.Device(), err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestTermIsRefusedWhileMounted checks SIGTERM, and that it works when unused.
func TestTermIsRefusedWhileMounted(t *testing.T) { eachVia(t, testTermIsRefusedWhileMounted) }

func testTermIsRefusedWhileMounted(t *testing.T, via Via) {
	need(t, "mkfs.ext4")
	s := serve(t, 128<<20)
	a := attach(t, s, func(c *Config) { c.Via = via })
	if err := Format(a.Device(), "ext4", "x"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := MountFS(a.Device(), dir, "ext4", nil); err != nil {
		t.Fatal(err)
	}
	unix.Kill(a.rec.PID, unix.SIGTERM)
	time.Sleep(50 * time.Millisecond)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o600); err != nil || !a.Alive() {
		t.Fatalf("gone at SIGTERM: %v", err)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	for i := 0; a.Alive(); i++ {
		if i == 2000 {
			t.Fatal("goes on after SIGTERM")
		}
		if i%50 == 0 { // what was just unmounted may count as in use for a moment more
			unix.Kill(a.rec.PID, unix.SIGTERM)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := Find(a.Config().StateDir, a.Name()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("its state is still there: %v", err)
	}
}

func TestBadConfig(t *testing.T) {
	ok := Config{Name: "a", StateDir: t.TempDir(), Socket: "/nowhere/sock"}
	for what, change := range map[string]func(*Config){
		"path":        func(c *Config) { c.Name = "../x" },
		"empty":       func(c *Config) { c.Name = "" },
		"hidden":      func(c *Config) { c.Name = ".x" },
		"slash":       func(c *Config) { c.Name = "a/b" },
		"newline":     func(c *Config) { c.Name = "a\n" },
		"no server":   func(c *Config) { c.Socket = "" },
		"two servers": func(c *Config) { c.Address = "h:1" },
		"sector":      func(c *Config) { c.Sector = 1024 },
		"connections": func(c *Config) { c.Connections = 99 },
		"uri":         func(c *Config) { c.URI = "http://x/" },
		"state":       func(c *Config) { c.StateDir = "" },
		"give up":     func(c *Config) { c.GiveUp = -1 },
	} {
		c := ok
		change(&c)
		if _, err := Attach(t.Context(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := Attach(ctx, ok); err == nil {
		t.Error("attached to nothing")
	} else {
		t.Log(err)
	}
	if left, _ := os.ReadDir(ok.StateDir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestURI(t *testing.T) {
	for uri, want := range map[string]string{
		"nbd+unix:///vol@12?socket=/run/x.sock": "unix /run/x.sock vol@12",
		"nbd://host/vol":                        "tcp host:10809 vol",
		"nbd://[::1]:99/":                       "tcp [::1]:99 ",
	} {
		c := Config{Name: "a", StateDir: "/x", URI: uri}
		if err := c.check(); err != nil {
			t.Errorf("%s: %v", uri, err)
		}
		network, address := c.endpoint()
		if got := fmt.Sprint(network, " ", address, " ", c.Export); got != want {
			t.Errorf("%s: %q, want %q", uri, got, want)
		}
	}
}
