package survive

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/taps"
)

// tapping is a server with a tapped disk of production.
type tapping struct {
	*stage
	rng    *rand.Rand
	disk   string // the primary
	device string // the tapped disk
}

// newTapping taps a new file of a size, in which prepare may make something first.
func newTapping(t *testing.T, size int64, prepare func(disk string), options ...string) *tapping {
	t.Helper()
	return newTappingOn(t, "6G", size, prepare, options...)
}

// newTappingOn is newTapping with a file system of another size for the data directory.
func newTappingOn(t *testing.T, room string, size int64, prepare func(disk string), options ...string) *tapping {
	t.Helper()
	return newTappingIn(newStage(t), room, size, prepare, options...)
}

// newTappingIn is newTappingOn on a stage.
func newTappingIn(s *stage, room string, size int64, prepare func(disk string), options ...string) *tapping {
	t := s.t
	t.Helper()
	x := &tapping{stage: s, rng: seeded(t)}
	x.disk = filepath.Join(x.dir, "disk")
	if err := os.WriteFile(x.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(x.disk, size); err != nil {
		t.Fatal(err)
	}
	prepare(x.disk)
	x.smallData(room) // that can be filled
	x.start()
	t.Cleanup(func() { // before the stage is struck, but behind its disks
		if tap := x.tap(); tap != nil && t.Failed() {
			log, _ := os.ReadFile(filepath.Join(tap.Config().Dir, "tap.log"))
			t.Logf("the tap's log: %s", log[max(0, len(log)-4000):])
		}
	})
	a := ask[tidemark.Application](x.stage, append([]string{"protect", x.disk, "--cdp", "--name", "prod"}, options...)...)
	x.device = a.Tap.Disks[0].Device
	x.follows()
	return x
}

// tap is the process of the tap.
func (x *tapping) tap() *taps.Tap {
	dirs, _ := filepath.Glob(filepath.Join(x.data, "taps", "*"))
	for _, d := range dirs {
		if t, err := taps.Find(d); err == nil && t.Alive() {
			return t
		}
	}
	return nil
}

// follows waits until the timeline has all of the disk.
func (x *tapping) follows() {
	x.t.Helper()
	var last string
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		s := ask[tidemark.Status](x.stage, "status")
		if len(s.Applications) != 1 || s.Applications[0].Tap == nil {
			x.t.Fatalf("no tapped application: %+v", s.Applications)
		}
		tap := s.Applications[0].Tap
		if tap.State == tidemark.TapFollowing && tap.QueuedBytes == 0 {
			return
		}
		last = fmt.Sprintf("%+v", *tap)
	}
	x.t.Fatalf("the timeline does not follow: %s", last)
}

// same compares the primary with what the timeline has.
func (x *tapping) same() {
	x.t.Helper()
	x.follows()
	out := filepath.Join(x.dir, "out")
	x.run("restore", "prod@latest", "--to", out, "--force")
	if have, want := checksum(x.t, out), checksum(x.t, x.disk); have != want {
		said, _ := exec.Command("cmp", out, x.disk).CombinedOutput()
		x.t.Fatalf("the timeline is not what the disk is: %s", said)
	}
}

// TestTapped (J1, J4) writes and verifies through a tap while the server is killed, stopped and started, and the
// tap is killed: production never sees an error, and in the end the timeline has every byte.
func TestTapped(t *testing.T) {
	beside(t)
	need(t, "fio")
	x := newTapping(t, 96<<20, func(string) {}, "-o", "queue_memory=4MiB", "-o", "queue=8MiB")
	for round := range max(3, rounds()/2) {
		f := x.startWriter(round)
		for range 3 {
			x.disturb()
		}
		if err := f.wait(); err != nil {
			t.Fatalf("production was disturbed: %v", err)
		}
		x.same()
	}
	for _, g := range ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps {
		if g.To.IsZero() || g.To.Before(g.From) || g.Reason == "" {
			t.Errorf("a gap that is over: %+v", g)
		}
	}
	x.run("unprotect", "prod")
}

// startWriter starts fio on the tapped disk itself.
func (x *tapping) startWriter(n int) *fio {
	f := &fio{}
	f.cmd = exec.Command("fio", "--name=v", "--filename="+x.device, "--size=64M", "--rw=randwrite", "--bsrange=4k-128k",
		"--ioengine=libaio", "--direct=1", "--iodepth=8", "--fsync=64", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
		"--rate=,60m", "--max_latency=60s", "--randseed="+strconv.Itoa(n+1))
	f.cmd.Dir, f.cmd.Stdout, f.cmd.Stderr = x.dir, &f.said, &f.said
	if err := f.cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { f.cmd.Process.Kill() })
	return f
}

// disturb does something bad to the server or the tap, and mends it.
func (x *tapping) disturb() {
	x.t.Helper()
	wait := func(most int) { time.Sleep(time.Duration(x.rng.IntN(most)) * time.Millisecond) }
	wait(200)
	switch x.rng.IntN(4) {
	case 0:
		x.end(syscall.SIGKILL)
		wait(500)
		x.start()
	case 1:
		x.cmd.Process.Signal(syscall.SIGSTOP)
		wait(700)
		x.cmd.Process.Signal(syscall.SIGCONT)
	case 2:
		if tap := x.tap(); tap != nil {
			syscall.Kill(tap.PID(), syscall.SIGKILL)
		}
		wait(200)
	case 3:
		x.end(syscall.SIGKILL)
		if tap := x.tap(); tap != nil {
			syscall.Kill(tap.PID(), syscall.SIGKILL)
		}
		wait(200)
		x.start()
	}
}

// head marks the present and returns its position.
func (x *tapping) head() tidemark.Position {
	x.t.Helper()
	return ask[tidemark.RecoveryPoint](x.stage, "bookmark", "prod", fmt.Sprintf("m%d", x.rng.Uint64())).Position
}

// TestEveryMomentOfADatabase (J7) keeps a database on a tapped disk busy, and then brings it up as it was at moments of
// that time: what was committed before is there, and the database is whole.
func TestEveryMomentOfADatabase(t *testing.T) {
	beside(t)
	need(t, "mkfs.xfs", "psql")
	at := ""
	x := newTapping(t, 1<<30, func(disk string) {
		at = filepath.Join(filepath.Dir(disk), "at")
		must(t, "mkfs.xfs", "-q", disk)
	}, "-o", "postgres=postgres://postgres@/postgres?host=/nowhere") // that there is one is enough to bring it up
	if err := os.MkdirAll(at, 0o711); err != nil {
		t.Fatal(err)
	}
	must(t, "mount", x.device, at)
	if err := os.Chmod(at, 0o711); err != nil {
		t.Fatal(err)
	}
	p := newProduction(t, at)
	p.load()
	sql(t, p.conn(), "CREATE TABLE noted (i int)")
	must(t, "sync", "-f", at) // initdb was told not to
	stop := p.bench(100)
	var committed []time.Time // the i-th number was committed before
	for i := range 60 {
		sql(t, p.conn(), fmt.Sprintf("INSERT INTO noted VALUES (%d)", i))
		committed = append(committed, time.Now())
	}
	stop()
	x.follows()
	for range max(3, rounds()/2) {
		i := x.rng.IntN(len(committed) - 1)
		moment := committed[i].Add(time.Duration(x.rng.Int64N(int64(committed[i+1].Sub(committed[i])))))
		c := ask[tidemark.Clone](x.stage, "clone", "prod@"+moment.UTC().Format(time.RFC3339Nano), "then")
		if n := sql(t, c.Connection, fmt.Sprintf("SELECT count(*) FROM noted WHERE i <= %d", i)); n != strconv.Itoa(i+1) {
			t.Errorf("at %v, after number %d was committed, there are %s numbers", moment, i, n)
		}
		consistent(t, c.Connection)
		x.run("clone", "rm", "then")
	}
	p.stop(syscall.SIGINT)
	if err := unmount(at); err != nil {
		t.Fatal(err)
	}
	x.run("unprotect", "prod")
}

// TestJustPast (J7) asks for the time that it is behind a write that is on its way: the answer waits for the write, or says that it does not know.
func TestJustPast(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4")
	const size = 4 << 20
	x := newTapping(t, size, func(string) {}, "--window", "1h")
	f, err := os.OpenFile(x.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(x.dir, "then")
	stop, goOn := func() { syscall.Kill(x.tap().PID(), syscall.SIGSTOP) }, func() { syscall.Kill(x.tap().PID(), syscall.SIGCONT) }
	for n := range 8 {
		for i := range buf {
			buf[i] = byte(n + 1)
		}
		if _, err := f.WriteAt(buf, int64(n)*int64(len(buf))); err != nil {
			t.Fatal(err)
		}
		now := "prod@" + time.Now().UTC().Format(time.RFC3339Nano)
		stop() // with the write in its queue, most likely
		time.AfterFunc(300*time.Millisecond, goOn)
		x.run("restore", now, "--to", out, "--force")
		have, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if want := bytes.Repeat([]byte{byte(n + 1)}, len(buf)); !bytes.Equal(have[n*len(buf):(n+1)*len(buf)], want) {
			t.Errorf("the write just before %s is not in what is shown for then", now)
		}
	}
	stop()
	now := "prod@" + time.Now().UTC().Format(time.RFC3339Nano)
	x.refused([]string{"is not known yet", "prod@latest"}, "restore", now, "--to", out, "--force")
	x.run("restore", "prod@latest", "--to", out, "--force")
	goOn()
	x.follows()
	x.run("restore", now, "--to", out, "--force")
	f.Close()
	x.run("unprotect", "prod")
}
