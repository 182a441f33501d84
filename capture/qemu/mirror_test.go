package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/block"
)

// TestInitialSync (C6) follows a machine whose guest writes all the time.
func TestInitialSync(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			rng := seeded(t)
			m, w := newMachine(t, rng, format, 1), newWorld(t, 1)
			quiet := m.busy(rng.Uint64())
			mirror, _ := w.follow(m)
			ready(t, mirror)
			quiet()
			w.same(m)
		})
	}
}

// TestEveryWrite finds each write at the position where it came in.
func TestEveryWrite(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	mirror, _ := w.follow(m)
	ready(t, mirror)
	g := m.guest()
	defer g.Close()
	model := m.content()
	type past struct {
		pos  tidemark.Position
		data []byte
	}
	var all []past
	for range 60 {
		p := make([]byte, 512*(1+rng.IntN(40)))
		noise(rng, p)
		off := rng.Int64N((diskSize-int64(len(p)))/512) * 512
		g.write(p, off)
		copy(model[off:], p)
		pos, _ := w.line.Head()
		all = append(all, past{pos, bytes.Clone(model)})
	}
	for i, x := range all {
		got, err := w.at(x.pos)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, x.data) {
			t.Fatalf("at %v the timeline is not what the disk was after write %d", x.pos, i)
		}
	}
}

// Where a clock lies; nobody else writes before clockEnd.
const (
	clockAt  = 8192
	clockEnd = 16384
)

// clock is a guest that writes a number, and the next, and so on.
type clock struct {
	begun, done []time.Time // of each number, from 1
	n           atomic.Int64
}

func (c *clock) run(g guest, ctx context.Context) {
	for n := uint64(1); ctx.Err() == nil && !g.t.Failed(); n++ {
		p := make([]byte, 4096)
		binary.BigEndian.PutUint64(p, n)
		c.begun = append(c.begun, time.Now())
		g.write(p, clockAt)
		c.done = append(c.done, time.Now())
		c.n.Add(1)
		time.Sleep(2 * time.Millisecond)
	}
}

// await waits for so many more writes.
func (c *clock) await(t *testing.T, n int64) {
	t.Helper()
	n += c.n.Load()
	eventually(t, "the guest writes", func() bool { return c.n.Load() >= n })
}

// check holds that every moment that the timeline offers is what the disk was, and returns how
// many of the moments between two writes it offers.
func (c *clock) check(w *world) (offered int) {
	w.t.Helper()
	for i := range len(c.done) - 1 {
		when := c.done[i].Add(c.begun[i+1].Sub(c.done[i]) / 2)
		pos, err := w.line.Resolve(tidemark.Point{Time: when})
		if err != nil {
			continue
		}
		s, err := w.line.At("disk0", pos)
		if err != nil {
			continue
		}
		var p [8]byte
		if _, err := s.ReadAt(p[:], clockAt); err != nil {
			w.t.Fatal(err)
		}
		s.Close()
		if n := binary.BigEndian.Uint64(p[:]); n != uint64(i+1) {
			w.t.Fatalf("at %v the disk held %d, and the timeline says %d (gaps: %+v)", when, i+1, n, w.line.Gaps())
		}
		offered++
	}
	return offered
}

// mended waits for a number of gaps to be closed.
func (w *world) mended(n int) {
	w.t.Helper()
	eventually(w.t, "the gap is closed", func() bool {
		gaps := w.line.Gaps()
		return len(gaps) >= n && gaps[len(gaps)-1].To != 0
	})
}

// TestServerDies (J4) kills the server under writes: the guest notices nothing, what the timeline offers is true, and
// a bitmap says what has to be read again.
func TestServerDies(t *testing.T) {
	for _, cut := range []bool{false, true} {
		rng := seeded(t)
		m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
		mirror, stop := w.follow(m)
		ready(t, mirror)
		ctx, cancel := context.WithCancel(t.Context())
		var c clock
		ended := make(chan struct{})
		g := m.guest()
		go func() { defer close(ended); c.run(g, ctx) }()
		quiet := m.busy(rng.Uint64())
		for range 3 {
			c.await(t, 20) // are kept
			w.kill(stop, cut)
			c.await(t, 10) // are missed
			mirror, stop = w.follow(m)
			ready(t, mirror)
		}
		quiet()
		c.await(t, 20)
		cancel()
		<-ended
		w.same(m)
		offered := c.check(w)
		least := 60
		if cut { // which takes with it what was not flushed: a quarter of a second
			least = 15
		}
		if n := len(w.line.Gaps()); n != 4 || offered < least {
			t.Errorf("%d gaps, and %d of %d moments are offered", n, offered, len(c.done))
		}
		stop()
	}
}

// TestResyncReadsWhatChanged holds that a server that was away reads what was written meanwhile, and no more.
func TestResyncReadsWhatChanged(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	soon := func(m *Mirror) { m.turnEvery, m.turnAfter = time.Millisecond, time.Millisecond }
	mirror, stop := w.follow(m, soon)
	ready(t, mirror)
	g := m.guest()
	defer g.Close()
	p := make([]byte, 1<<20)
	noise(rng, p)
	g.write(p, 4<<20) // kept, and durable: a turn lets its mark go
	eventually(t, "a new bitmap is begun", func() bool { return dirty(t, m) == 0 })
	w.kill(stop, true)
	g.write(p[:4096], 9<<20)
	g.write(p[:512], 64<<10)
	w.read[0].Store(0)
	mirror, _ = w.follow(m)
	ready(t, mirror)
	if n := w.read[0].Load(); n == 0 || n > 2*granule+samples*block.BlockSize { // not the holes in them
		t.Errorf("%d bytes were compared, of 2 granules written", n)
	}
	w.same(m)
}

// dirty is how much is marked in the machine's bitmaps of ours.
func dirty(t *testing.T, m *machine) (n int64) {
	t.Helper()
	for _, b := range inspect(t, m).bitmaps {
		n += b.Count
	}
	return n
}

// found is what is ours in a machine, by whoever has its QMP socket.
type found struct {
	bitmaps []bitmap
	nodes   []string
	jobs    []string
}

// inspect asks the machine on its second QMP socket.
func inspect(t *testing.T, m *machine) (f found) {
	t.Helper()
	q, err := Dial(t.Context(), m.other())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var nodes []node
	var jobs []job
	err = errors.Join(q.Run(t.Context(), "query-named-block-nodes", map[string]any{"flat": true}, &nodes), q.Run(t.Context(), "query-block-jobs", nil, &jobs))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "tidemark-") {
			f.nodes = append(f.nodes, n.Name)
		}
		for _, b := range n.Bitmaps {
			if b.Name != "" { // the mirror's own has none
				f.bitmaps = append(f.bitmaps, b)
			}
		}
	}
	for _, j := range jobs {
		f.jobs = append(f.jobs, j.ID)
	}
	return f
}

// TestForget leaves the machine as it was.
func TestForget(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "qcow2", 1), newWorld(t, 1)
	want := m.content()
	mirror, stop := w.follow(m)
	ready(t, mirror)
	if f := inspect(t, m); len(f.bitmaps) != 1 || len(f.nodes) != 1 || len(f.jobs) != 1 {
		t.Errorf("while it is mirrored the machine has %+v", f)
	}
	stop()
	if f := inspect(t, m); len(f.bitmaps) != 1 || len(f.nodes) != 0 || len(f.jobs) != 0 {
		t.Errorf("after the mirror has stopped the machine has %+v", f)
	}
	if err := mirror.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f := inspect(t, m); len(f.bitmaps) != 0 || len(f.nodes) != 0 || len(f.jobs) != 0 {
		t.Errorf("the machine has %+v left", f)
	}
	if !bytes.Equal(m.content(), want) {
		t.Error("the disk is not what it was")
	}
	if _, err := os.Stat(mirror.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestMachineRestarts (C1, C4) follows a machine that was killed, and with it its bitmaps, and whose disk was changed meanwhile.
func TestMachineRestarts(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	mirror, _ := w.follow(m)
	ready(t, mirror)
	g := m.guest()
	for range 20 {
		g.scribble(rng)
	}
	g.Close()
	m.stop()
	eventually(t, "the machine is missed", func() bool { return mirror.State().Phase == Degraded })
	f, err := os.OpenFile(m.image(0), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("while it was off"), 5<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	m.start()
	ready(t, mirror)
	w.same(m)
	if n := len(w.line.Gaps()); n != 2 {
		t.Errorf("%d gaps: %+v", n, w.line.Gaps())
	}
}

// TestDiskHangs (J1) holds that a guest does not wait for a disk of ours that hangs, and that the write which comes
// late is not offered as if it had been there in time.
func TestDiskHangs(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	mirror, _ := w.follow(m, func(m *Mirror) { m.stall = 500 * time.Millisecond })
	ready(t, mirror)
	ctx, cancel := context.WithCancel(t.Context())
	var c clock
	ended := make(chan struct{})
	g := m.guest()
	go func() { defer close(ended); c.run(g, ctx) }()
	c.await(t, 20)
	shut := make(chan struct{})
	w.hang.Store(&shut)
	p := make([]byte, 4<<20) // more than what leads to us takes while we do not
	noise(rng, p)
	other := m.guest()
	defer other.Close()
	begun := time.Now()
	other.write(p, 1<<20)
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("the guest waited for %v", took)
	}
	c.await(t, 20) // the guest goes on
	close(shut)
	w.mended(2)
	c.await(t, 20)
	cancel()
	<-ended
	w.same(m)
	c.check(w)
}

// TestOfAnotherUser follows a machine that runs as somebody else.
func TestOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to run a machine as nobody")
	}
	rng := seeded(t)
	const nobody = 65534
	user = &syscall.Credential{Uid: nobody, Gid: nobody}
	defer func() { user = nil }()
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	if err := errors.Join(os.Chmod(w.dir, 0o711), os.Chmod(filepath.Dir(w.dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	mirror, _ := w.follow(m)
	ready(t, mirror)
	w.same(m)
}

// TestWholeMachine follows a whole QEMU, with the NBD server that we begin in it.
func TestWholeMachine(t *testing.T) {
	need(t, "qemu-system-x86_64")
	need(t, "qemu-img")
	rng, w, dir := seeded(t), newWorld(t, 1), t.TempDir()
	image, socket, other := filepath.Join(dir, "disk"), filepath.Join(dir, "qmp.sock"), filepath.Join(dir, "other.sock")
	data := make([]byte, diskSize)
	noise(rng, data[3<<20:4<<20])
	if err := os.WriteFile(image, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults", "-drive", "if=none,id=vda,format=raw,discard=unmap,file="+image,
		"-qmp", "unix:"+socket+",server=on,wait=off", "-qmp", "unix:"+other+",server=on,wait=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	eventually(t, "the machine starts", func() bool { return answers(other) })
	q, err := Dial(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	do := func(command string) {
		t.Helper()
		var said string
		err := q.Run(t.Context(), "human-monitor-command", map[string]any{"command-line": "qemu-io vda \"" + command + "\""}, &said)
		if err != nil || strings.Contains(strings.ToLower(said), "error") || strings.Contains(said, "failed") {
			t.Fatalf("%s: %s %v", command, said, err)
		}
	}
	do("write -P 7 1M 64k")
	m := &machine{t: t, qmp: socket, disks: 1}
	mirror, stop := w.follow(m, func(m *Mirror) { m.NBD, m.Disks = "", []string{"vda"} })
	ready(t, mirror)
	do("write -P 8 2M 4k")
	do("discard 1M 4k")
	do("write -z 3M 512k")
	disk := func() []byte {
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	now := func() []byte {
		head, _ := w.line.Head()
		got, err := w.at(head)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	eventually(t, "the timeline is what the disk is", func() bool { return bytes.Equal(now(), disk()) })
	if got := now(); got[1<<20+4096] != 7 || got[2<<20] != 8 || got[3<<20] != 0 {
		t.Error("what was written is not there")
	}
	// Our NBD server is gone when nothing is read: others may begin theirs.
	addr := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": filepath.Join(dir, "theirs")}}}
	eventually(t, "the NBD server is free", func() bool { return q.Run(t.Context(), "nbd-server-start", addr, nil) == nil })
	w.kill(stop, true)
	do("write -P 9 5M 4k")
	mirror, _ = w.follow(m, func(m *Mirror) { m.NBD, m.Disks = "", []string{"vda"} })
	eventually(t, "it is said that their NBD server is in the way", func() bool {
		why := mirror.State().Why
		return why != nil && strings.Contains(why.Error(), "NBD server is in use")
	})
	if err := q.Run(t.Context(), "nbd-server-stop", nil, nil); err != nil {
		t.Fatal(err)
	}
	ready(t, mirror)
	if !bytes.Equal(now(), disk()) || now()[5<<20] != 9 {
		t.Error("the timeline is not what the disk is")
	}
}

// TestBitmapLies changes an image behind QEMU's back while the server is away (C3): the bitmap knows nothing of it, and is not believed.
func TestBitmapLies(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	mirror, stop := w.follow(m)
	ready(t, mirror)
	stop()
	w.restart(false)
	overwrite(t, rng, m.image(0))
	mirror, _ = w.follow(m)
	ready(t, mirror)
	w.same(m)
}

// TestOneBitmapIsBad (C4) has the server find, of two disks, the bitmap of one gone, or one that lacks a change: that disk is compared as a
// whole, and of the other what its bitmap names. Both are what the machine's disks are.
func TestOneBitmapIsBad(t *testing.T) {
	for _, how := range []string{"gone", "short of a change"} {
		t.Run(how, func(t *testing.T) {
			rng := seeded(t)
			m, w := newMachine(t, rng, "raw", 2), newWorld(t, 2)
			mirror, stop := w.follow(m)
			ready(t, mirror)
			w.kill(stop, true)
			bad := rng.IntN(2)
			p := make([]byte, 4096)
			for i := range 2 { // in no hole, so that there is something to compare
				noise(rng, p)
				g := m.guestOf(i)
				g.write(p, 1<<20)
				g.Close()
			}
			if how == "gone" {
				dropBitmaps(t, m, fmt.Sprintf("disk%d", bad))
			} else {
				overwrite(t, rng, m.image(bad))
			}
			w.read[0].Store(0)
			w.read[1].Store(0)
			mirror, _ = w.follow(m)
			ready(t, mirror)
			if n := w.read[bad].Load(); n < diskSize/8 { // holes are not read
				t.Errorf("of the disk with the bad bitmap %d bytes were compared", n)
			}
			if n := w.read[1-bad].Load(); n == 0 || n > 3*granule+samples*block.BlockSize {
				t.Errorf("of the other disk %d bytes were compared, of a granule that was written", n)
			}
			w.same(m)
		})
	}
}

// dropBitmaps takes the bitmaps out of a node.
func dropBitmaps(t *testing.T, m *machine, name string) {
	t.Helper()
	list := inspect(t, m).bitmaps
	q, err := Dial(t.Context(), m.other())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for _, b := range list {
		_ = q.Run(t.Context(), "block-dirty-bitmap-remove", map[string]any{"node": name, "name": b.Name}, nil) // one name may be on both
	}
}

// overwrite changes a good part of an image behind QEMU's back.
func overwrite(t *testing.T, rng *rand.Rand, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, diskSize/3)
	noise(rng, p)
	if _, err := f.WriteAt(p, rng.Int64N(diskSize/2)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBypass (C2) notices writes to the disk that do not come through the mirror.
func TestBypass(t *testing.T) {
	rng := seeded(t)
	m, w := newMachine(t, rng, "raw", 1), newWorld(t, 1)
	mirror, _ := w.follow(m, func(m *Mirror) { m.turnEvery, m.turnAfter = time.Millisecond, time.Millisecond })
	ready(t, mirror)
	q, err := Dial(t.Context(), m.other())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	// A new user of the node itself: it does not know of the filter above.
	err = q.Run(t.Context(), "block-export-add", map[string]any{"type": "nbd", "id": "by", "name": "by", "node-name": "disk0", "writable": true}, nil)
	if err != nil {
		t.Skip(err) // a QEMU that does not let that happen
	}
	s, err := openSource(t.Context(), m.nbd(), "by", "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, 4096)
	noise(rng, p)
	guest{t, m, s}.write(p, 2<<20)
	w.mended(2)
	if why := w.line.Gaps()[1].Why; !strings.Contains(why, "did not come through") {
		t.Error(why)
	}
	w.same(m)
}

// TestMarks compares marks with a plain set.
func TestMarks(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		m, want := newMarks(diskSize), map[int64]bool{}
		for range rng.IntN(20) {
			off := rng.Int64N(diskSize)
			n := 1 + rng.Int64N(min(diskSize-off, 5*granule))
			m.add(off, n)
			for g := off / granule; g <= (off+n-1)/granule; g++ {
				want[g] = true
			}
		}
		if m.bytes() != int64(len(want))*granule {
			t.Fatalf("%d bytes of %d granules", m.bytes(), len(want))
		}
		for _, e := range m.take(diskSize) {
			for g := e.off / granule; g*granule < e.off+e.n; g++ {
				if !want[g] {
					t.Fatalf("granule %d was not added", g)
				}
				delete(want, g)
			}
		}
		if len(want) > 0 || m.bytes() != 0 {
			t.Fatalf("granules %v are missing", want)
		}
	}
}
