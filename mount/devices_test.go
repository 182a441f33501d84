package mount

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDevicesReadOnly attaches a disk that takes no writes, by the server's will and by ours.
func TestDevicesReadOnly(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		for _, export := range []string{"disk", "fixed"} {
			t.Run(export, func(t *testing.T) {
				s := serve(t, 16<<20)
				if export == "fixed" {
					cfg := Config{Name: "v", StateDir: t.TempDir(), Socket: s.socket, Export: export, Via: via}
					if _, err := Attach(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "read-only") {
						t.Fatalf("a writable device of a read-only export: %v", err)
					}
				}
				a := attach(t, s, func(c *Config) { c.Export, c.ReadOnly, c.Via = export, true, via })
				dev, err := os.Open(a.Device())
				if err != nil {
					t.Fatal(err)
				}
				defer dev.Close()
				if ro, err := unix.IoctlGetInt(int(dev.Fd()), unix.BLKROGET); ro != 1 || err != nil {
					t.Errorf("the device is not read-only: %d, %v", ro, err)
				}
				if _, err := dev.ReadAt(make([]byte, 4096), 8<<20); err != nil {
					t.Error(err)
				}
				w, err := os.OpenFile(a.Device(), os.O_RDWR, 0)
				if err == nil {
					_, err = w.Write(make([]byte, 4096))
					err = errors.Join(err, w.Sync(), w.Close())
				}
				if err == nil {
					t.Error("a read-only device was written")
				}
				if st, err := a.Status(t.Context()); err != nil || !st.ReadOnly {
					t.Errorf("%+v, %v", st, err)
				}
				dev.Close()
				if err := a.Detach(t.Context(), false); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}

// TestDevicesSectors checks the sizes that the kernel sees.
func TestDevicesSectors(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		need(t, "mkfs.ext4")
		for _, sector := range []int{512, 4096} {
			t.Run(strconv.Itoa(sector), func(t *testing.T) {
				s := serve(t, 32<<20)
				a := attach(t, s, func(c *Config) { c.Sector, c.Via = sector, via })
				dev, err := os.OpenFile(a.Device(), os.O_RDWR|unix.O_DIRECT, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer dev.Close()
				if got, err := unix.IoctlGetInt(int(dev.Fd()), unix.BLKSSZGET); got != sector || err != nil {
					t.Errorf("sectors of %d bytes, %v", got, err)
				}
				if end, err := dev.Seek(0, 2); end != 32<<20 || err != nil {
					t.Errorf("%d bytes, %v", end, err)
				}
				buf := aligned(4096)
				_, err = dev.WriteAt(buf[:512], 512)
				if ok := err == nil; ok != (sector == 512) {
					t.Errorf("a write of 512 bytes: %v", err)
				}
				dev.Close()
				if err := Format(a.Device(), "ext4", "x"); err != nil {
					t.Fatal(err)
				}
				dir := t.TempDir()
				if err := MountFS(a.Device(), dir, "ext4", nil); err != nil {
					t.Fatal(err)
				}
				if err := Unmount(dir); err != nil {
					t.Fatal(err)
				}
			})
		}
	})
	t.Run("not whole", func(t *testing.T) {
		need(t)
		s := serve(t, 4096+512)
		cfg := Config{Name: "v", StateDir: t.TempDir(), Socket: s.socket, Export: "disk", Sector: 4096}
		if _, err := Attach(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "not a multiple") {
			t.Fatalf("a disk of a sector and a half: %v", err)
		}
	})
}

// Flags of a thread in /proc/PID/task/TID/stat: what PR_SET_IO_FLUSHER sets.
const (
	memallocNoIO  = 0x00080000
	localThrottle = 0x00100000
)

// TestDevicesHoldMemory checks what keeps an attacher from waiting for memory that
// only it can free: no thread may cause write-back, its memory is locked,
// and it is the last to be killed.
func TestDevicesHoldMemory(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		s := serve(t, 16<<20)
		a := attach(t, s, func(c *Config) { c.Via = via })
		if !mayHoldMemory(t) {
			t.Skip("this root has no CAP_SYS_RESOURCE: see TestInGuest")
		}
		proc := filepath.Join("/proc", strconv.Itoa(a.rec.PID))
		tasks, err := filepath.Glob(proc + "/task/*/stat")
		if err != nil || len(tasks) == 0 {
			t.Fatal(tasks, err)
		}
		for _, task := range tasks {
			stat := read(t, task)
			flags, err := strconv.ParseUint(strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])[6], 10, 64)
			if err != nil || flags&memallocNoIO == 0 || flags&localThrottle == 0 {
				t.Errorf("%s: flags %#x, %v: the thread may wait for write-back", task, flags, err)
			}
		}
		locked := ""
		for line := range strings.Lines(read(t, proc+"/status")) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "VmLck:" {
				locked = f[1]
			}
		}
		if n, _ := strconv.Atoi(locked); n < 64<<10 {
			t.Errorf("%q KiB are locked, less than the replay log alone", locked)
		}
		if adj := strings.TrimSpace(read(t, proc+"/oom_score_adj")); adj != "-900" {
			t.Errorf("oom_score_adj is %s", adj)
		}
	})
}

// mayHoldMemory reports whether we have the capability that all this needs, which
// containers often take away.
func mayHoldMemory(t *testing.T) bool {
	for line := range strings.Lines(read(t, "/proc/self/status")) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && caps&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return false
}

// TestDevicesTCP attaches over TCP, and loses nothing when that server is killed.
func TestDevicesTCP(t *testing.T) {
	need(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := &server{t: t, address: addr}
	s.argv = []string{os.Args[0], "serve", "tcp:" + addr, newDisk(t, t.TempDir(), 16<<20)}
	s.start()
	t.Cleanup(s.kill)
	a := attach(t, s, func(c *Config) { c.Socket, c.URI = "", "nbd://"+addr+"/disk" })
	dev, err := os.OpenFile(a.Device(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	buf := aligned(1 << 20)
	for i := range buf {
		buf[i] = byte(i * 11)
	}
	if _, err := dev.WriteAt(buf, 4<<20); err != nil {
		t.Fatal(err)
	}
	s.kill() // and with it what was written
	s.start()
	got := aligned(1 << 20)
	if _, err := dev.ReadAt(got, 4<<20); err != nil || !bytes.Equal(got, buf) {
		t.Fatalf("wrong bytes, %v", err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDevicesOfDamagedRecords checks that one bad attach.json hides no other
// attachment, nor its own while its attacher lives.
func TestDevicesOfDamagedRecords(t *testing.T) {
	need(t)
	s := serve(t, 16<<20)
	a := attach(t, s, nil)
	state := a.Config().StateDir
	for name, content := range map[string]string{"torn": `{"Name": "to`, "empty": "", "other": `{"Name": "vol1", "PID": 1}`} {
		if err := os.Mkdir(filepath.Join(state, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(state, name, recordName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, recordName), []byte("\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := List(state)
	if err != nil || len(all) != 4 {
		t.Fatalf("%d attachments, %v", len(all), err)
	}
	for _, b := range all {
		if b.Name() == a.Name() {
			if b.Err() != nil || !b.Alive() || b.Device() != a.Device() {
				t.Errorf("the living one: %v, alive %v, device %q", b.Err(), b.Alive(), b.Device())
			}
			continue
		}
		if !errors.Is(b.Err(), ErrDamaged) || b.Alive() || b.Device() != "" {
			t.Errorf("%s: %v, alive %v, device %q", b.Name(), b.Err(), b.Alive(), b.Device())
		}
		if err := b.Cleanup(false); !errors.Is(err, ErrDamaged) {
			t.Errorf("clean up %s: %v", b.Name(), err)
		}
		if err := b.Cleanup(true); err != nil {
			t.Error(err)
		}
	}
	if all, err := List(state); len(all) != 1 || err != nil {
		t.Fatalf("%v, %v", all, err)
	}
}
