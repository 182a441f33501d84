package survive

import (
	"bytes"
	enc "encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/mount"
)

// TestLogged has the kernel's own recorder of writes judge the tap: below a tapped disk lies dm-log-writes, which
// logs whatever reaches the primary, in order and with its flushes. What the timeline says the
// disk held must be what that log says.
func TestLogged(t *testing.T) {
	if inGuest {
		logged(t)
		return
	}
	besideInGuest(t)
	need(t, "mkfs.ext4", "dmsetup")
	runInGuest(t, "drivers/block/brd drivers/md/dm-mod drivers/md/dm-log-writes", "dmsetup")
}

const loggedSize = 32 << 20

// logged is the test, in the guest.
func logged(t *testing.T) {
	t.Setenv("DM_DISABLE_UDEV", "1")
	tool(t, "modprobe", "brd", "rd_nr=2", "rd_size=196608")
	tool(t, "modprobe", "dm-mod")
	tool(t, "modprobe", "dm-log-writes")
	tool(t, "dmsetup", "create", "logged", "--table", fmt.Sprintf("0 %d log-writes /dev/ram0 /dev/ram1", loggedSize/512))
	_ = exec.Command("/bin/busybox", "mount", "-t", "debugfs", "debugfs", "/sys/kernel/debug").Run()
	s := newStage(t)
	w := watchSteps(t, s.logFile(), s.data+"/taps/*/tap.log", s.data+"/*/*/attach*.log", "/run/tidemark/*/*.log", s.data+"/*/*/*.log", "/tmp/*/*.log")
	s.start()
	w.step("protect")
	a := ask[tidemark.Application](s, "protect", "/dev/mapper/logged", "--cdp", "--name", "prod")
	x := &tapping{stage: s, rng: seeded(t), device: a.Tap.Disks[0].Device}
	w.step("follow")
	x.follows()
	mark := func(name string) {
		w.step("bookmark %s", name)
		s.run("bookmark", "prod", name)
		w.step("mark %s", name)
		tool(t, "dmsetup", "message", "logged", "0", "mark", name)
		w.step("writes after %s", name)
	}
	const bursts = 24
	x.writeBursts(bursts, mark)
	x.writeFiles()
	mark("files")
	held := map[string][]byte{}
	for _, name := range x.chosen(bursts) {
		w.step("restore %s", name)
		out := filepath.Join(s.dir, "out")
		s.run("restore", "prod@"+name, "--to", out, "--force")
		held[name] = readAll(t, out)
	}
	w.step("unprotect")
	s.run("unprotect", "prod")
	tool(t, "dmsetup", "remove", "logged")
	compareLog(t, held, bursts)
}

// tool runs a program that has to succeed.
func tool(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

func readAll(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeBursts writes some ranges at random, makes them durable, and marks that, so many times.
func (x *tapping) writeBursts(n int, mark func(name string)) {
	x.t.Helper()
	f, err := os.OpenFile(x.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		x.t.Fatal(err)
	}
	defer unix.Munmap(buf)
	for i := range n {
		for range 1 + x.rng.IntN(12) {
			p := buf[:4096*(1+x.rng.IntN(64))]
			for at := 0; at < len(p); at += 512 {
				enc.LittleEndian.PutUint64(p[at:], x.rng.Uint64())
			}
			off := x.rng.Int64N((loggedSize-int64(len(p)))/4096) * 4096
			if i%2 == 1 {
				off %= 1 << 20 // where the bursts write over each other
			}
			if _, err := f.WriteAt(p, off); err != nil {
				x.t.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			x.t.Fatal(err)
		}
		mark(fmt.Sprint("burst", i))
	}
}

// writeFiles has a file system on the disk, and files written to it by several writers.
func (x *tapping) writeFiles() {
	x.t.Helper()
	if err := mount.Format(x.device, "ext4", "x"); err != nil {
		x.t.Fatal(err)
	}
	dir := x.t.TempDir()
	if err := mount.MountFS(x.device, dir, "ext4", nil); err != nil {
		x.t.Fatal(err)
	}
	var writing sync.WaitGroup
	for w := range 3 {
		writing.Go(func() {
			for i := range 12 {
				name := filepath.Join(dir, fmt.Sprint(w, "-", i%4))
				b := bytes.Repeat([]byte{byte(w), byte(i), 1, 2}, 1024*(1+i))
				if err := writeDurably(name, b); err != nil {
					x.t.Error(err)
					return
				}
			}
		})
	}
	writing.Wait()
	if err := mount.Unmount(dir); err != nil {
		x.t.Fatal(err)
	}
}

func writeDurably(name string, b []byte) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// chosen are the names of the marks at which all bytes are compared.
func (x *tapping) chosen(bursts int) []string {
	names := []string{"files", fmt.Sprint("burst", bursts-1)}
	for _, i := range x.rng.Perm(bursts - 1)[:6] {
		names = append(names, fmt.Sprint("burst", i))
	}
	return names
}

// Flags of an entry of dm-log-writes (drivers/md/dm-log-writes.c of Linux).
const (
	logFlush = 1 << iota
	logFUA
	logDiscard
	logMark
)

// compareLog replays the log and compares what it says the disk held at each mark.
func compareLog(t *testing.T, held map[string][]byte, bursts int) {
	t.Helper()
	f, err := os.Open("/dev/ram1")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var super struct {
		Magic, Version, Entries uint64
		Sector                  uint32
	}
	if err := enc.Read(f, enc.LittleEndian, &super); err != nil || super.Magic != 0x6a736677736872 {
		t.Fatalf("no log of writes: %+v %v", super, err)
	}
	sector, at := int64(super.Sector), int64(super.Sector)
	disk := make([]byte, loggedSize)
	compared, flushes := 0, 0
	for range super.Entries {
		var e struct{ Sector, Count, Flags, Len uint64 }
		if err := enc.Read(io.NewSectionReader(f, at, sector), enc.LittleEndian, &e); err != nil {
			t.Fatal(err)
		}
		at += sector
		to, n := int64(e.Sector)*sector, int64(e.Count)*sector
		switch {
		case e.Flags&logMark != 0:
			name := make([]byte, e.Len)
			if _, err := f.ReadAt(name, at-sector+32); err != nil {
				t.Fatal(err)
			}
			key := strings.TrimRight(string(name), "\x00")
			if want, ok := held[key]; ok {
				compared++
				sameAs(t, key, want, disk)
			}
			if strings.HasPrefix(key, "burst") && flushes == 0 {
				t.Errorf("%s was made durable, and no flush reached the primary", key)
			}
			flushes = 0
		case e.Flags&logDiscard != 0:
			clear(disk[to : to+n])
		default:
			if _, err := f.ReadAt(disk[to:to+n], at); err != nil {
				t.Fatal(err)
			}
			at += n
		}
		if e.Flags&logFlush != 0 {
			flushes++
		}
	}
	if compared != len(held) {
		t.Errorf("%d of %d marks were found in the log of %d entries", compared, len(held), super.Entries)
	}
	t.Logf("%d entries, %d marks compared", super.Entries, compared)
}

// sameAs compares what the timeline says a disk held with what the log says.
func sameAs(t *testing.T, mark string, timeline, log []byte) {
	t.Helper()
	if bytes.Equal(timeline, log) {
		return
	}
	for i := range timeline {
		if timeline[i] != log[i] {
			t.Errorf("at %s the timeline and the primary's log differ from byte %d on", mark, i)
			return
		}
	}
}
