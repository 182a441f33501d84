package qemu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/export/nbd"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/timeline"
)

const diskSize = 24<<20 + 512*3 // no multiple of a block

// machine is a qemu-storage-daemon whose disks a guest writes over NBD.
type machine struct {
	t     *testing.T
	dir   string
	disks int
	qmp   string   // socket, if it is another than ours
	args  []string // of the disks' nodes
	cmd   *exec.Cmd

	running sync.RWMutex // held by guests while they write or connect, and by who has to stop them (see DESIGN.md)
}

// user is whom machines run as, if not nil.
var user *syscall.Credential

func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// newMachine starts a machine with disks of random content.
func newMachine(t *testing.T, rng *rand.Rand, format string, disks int) *machine {
	t.Helper()
	need(t, "qemu-storage-daemon")
	m := &machine{t: t, dir: t.TempDir(), disks: disks}
	if user != nil {
		for _, path := range []string{filepath.Dir(m.dir), m.dir} {
			if err := os.Chown(path, int(user.Uid), int(user.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range disks {
		m.makeImage(rng, m.image(i), format)
		m.args = append(m.args, "--blockdev", fmt.Sprintf("file,node-name=file%d,discard=unmap,filename=%s", i, m.image(i)),
			"--blockdev", fmt.Sprintf("%s,node-name=disk%d,file=file%d,discard=unmap", format, i, i),
			"--export", fmt.Sprintf("nbd,id=guest%d,node-name=disk%d,writable=on,name=guest%d", i, i, i))
	}
	m.start()
	t.Cleanup(m.stop)
	return m
}

func (m *machine) image(i int) string { return filepath.Join(m.dir, fmt.Sprintf("disk%d.img", i)) }

func (m *machine) makeImage(rng *rand.Rand, path, format string) {
	m.t.Helper()
	data := make([]byte, diskSize)
	for off := 0; off < len(data); off += 1 << 20 {
		if rng.IntN(3) > 0 {
			noise(rng, data[off:min(len(data), off+700<<10)])
		}
	}
	raw := filepath.Join(m.dir, "raw.img")
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		m.t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", format, raw, path).CombinedOutput(); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
	if user != nil {
		if err := os.Chown(path, int(user.Uid), int(user.Gid)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func noise(rng *rand.Rand, p []byte) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], rng.Uint64())
	}
}

func (m *machine) socket() string { return cmp.Or(m.qmp, filepath.Join(m.dir, "qmp.sock")) }
func (m *machine) other() string  { return filepath.Join(m.dir, "other.sock") } // QMP, for the test
func (m *machine) nbd() string    { return filepath.Join(m.dir, "nbd.sock") }

func (m *machine) start() {
	m.t.Helper()
	os.Remove(m.socket())
	os.Remove(m.other())
	args := append([]string{"--nbd-server", "addr.type=unix,addr.path=" + m.nbd()}, m.args...)
	args = append(args,
		"--chardev", "socket,id=qmp,path="+m.socket()+",server=on,wait=off", "--monitor", "chardev=qmp",
		"--chardev", "socket,id=other,path="+m.other()+",server=on,wait=off", "--monitor", "chardev=other")
	m.cmd = exec.Command("qemu-storage-daemon", args...)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "the machine starts", func() bool {
		g, err := m.tryGuest(0)
		if err != nil {
			return false
		}
		g.Close()
		return answers(m.socket())
	})
}

// stop kills the machine, which must have lived until then.
func (m *machine) stop() {
	m.t.Helper()
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	if end := m.cmd.ProcessState.Sys().(syscall.WaitStatus); end.Signal() != syscall.SIGKILL {
		m.t.Errorf("the machine ended by itself: %v", m.cmd.ProcessState)
	}
	m.cmd = nil
}

// guest is the guest's view of a disk.
type guest struct {
	t *testing.T
	m *machine
	*source
}

// guest is that of the first disk.
func (m *machine) guest() guest { return m.guestOf(0) }

func (m *machine) guestOf(i int) guest {
	m.t.Helper()
	g, err := m.tryGuest(i)
	if err != nil {
		m.t.Fatal(err)
	}
	return g
}

// tryGuest connects to a disk. It waits while guests have to be still, as those of a machine that is stopped do not connect either.
func (m *machine) tryGuest(i int) (guest, error) {
	m.running.RLock()
	defer m.running.RUnlock()
	s, err := openSource(m.t.Context(), m.nbd(), fmt.Sprintf("guest%d", i), "")
	return guest{m.t, m, s}, err
}

const (
	cmdWrite  = 1
	cmdTrim   = 4
	cmdZeroes = 6
)

// do makes a change to the disk, which must not fail.
func (g guest) do(cmd uint16, off, n int64, p []byte) {
	g.t.Helper()
	if err := g.try(cmd, off, n, p); err != nil {
		g.t.Errorf("the guest's command %d of %d bytes at %d failed: %v", cmd, n, off, err)
	}
}

// try makes a change to the disk.
func (g guest) try(cmd uint16, off, n int64, p []byte) error {
	g.m.running.RLock()
	defer g.m.running.RUnlock()
	g.cookie++
	b := make([]byte, 28, 28+len(p))
	binary.BigEndian.PutUint32(b, magicRequest)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], g.cookie)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(n))
	_, err := g.conn.Write(append(b, p...))
	if err == nil {
		err = g.done()
	}
	return err
}

// done reads an answer without data: QEMU sends a simple reply for those.
func (g guest) done() error {
	if err := g.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	var h [16]byte
	if _, err := io.ReadFull(g.conn, h[:]); err != nil {
		return err
	}
	if errno := binary.BigEndian.Uint32(h[4:]); errno != 0 {
		return fmt.Errorf("error %d", errno)
	}
	return nil
}

func (g guest) write(p []byte, off int64) {
	g.t.Helper()
	g.do(cmdWrite, off, int64(len(p)), p)
}

// content is what the machine's disks hold, one behind the other.
func (m *machine) content() []byte {
	m.t.Helper()
	data := make([]byte, m.disks*diskSize)
	for i := range m.disks {
		g := m.guestOf(i)
		for off := 0; off < diskSize; off += pullSize {
			if err := g.read(data[i*diskSize:][off:min(diskSize, off+pullSize)], int64(off)); err != nil {
				m.t.Fatal(err)
			}
		}
		g.Close()
	}
	return data
}

// scribble writes something somewhere, as guests do.
func (g guest) scribble(rng *rand.Rand) {
	g.t.Helper()
	n := int64(512 * (1 + rng.IntN(4)))
	switch rng.IntN(4) {
	case 0:
		n = 4096 * (1 + rng.Int64N(4))
	case 1:
		n = 4096 * (1 + rng.Int64N(64))
	}
	off := clockEnd + rng.Int64N((diskSize-clockEnd-n)/512)*512
	switch rng.IntN(12) {
	case 0:
		g.do(cmdZeroes, off, n, nil)
	case 1:
		g.do(cmdTrim, off, n, nil)
	default:
		p := make([]byte, n)
		noise(rng, p)
		g.write(p, off)
	}
}

// busy writes until the function that it returns is called.
func (m *machine) busy(seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range uint64(3) {
		wg.Go(func() {
			rng, g := rand.New(rand.NewPCG(seed, i)), m.guestOf(int(i)%m.disks)
			defer g.Close()
			for ctx.Err() == nil && !m.t.Failed() {
				g.scribble(rng)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// world is a server with one timeline.
type world struct {
	t     *testing.T
	fs    *vfs.MemFS
	dir   string
	store *image.Store
	set   *timeline.Set
	line  *timeline.Timeline
	srv   *nbd.Server
	shown []Inlet

	read []atomic.Int64                // bytes read of each of our disks
	hang atomic.Pointer[chan struct{}] // if not nil, writes to our disks wait until it is closed
	dead atomic.Bool                   // the server was killed: nothing reaches the timeline any more
	life sync.RWMutex                  // held by writes, and by who kills
}

func newWorld(t *testing.T, disks int) *world {
	var specs []timeline.DiskSpec
	for i := range disks {
		specs = append(specs, timeline.DiskSpec{Name: fmt.Sprintf("disk%d", i), Size: diskSize})
	}
	w := &world{t: t, fs: vfs.NewMem(), dir: t.TempDir(), read: make([]atomic.Int64, disks)}
	w.open()
	var err error
	if w.line, err = w.set.Create(t.Context(), "vm", specs, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.line.SetWindow(timeline.Window{For: time.Hour, Bytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.close() })
	return w
}

func (w *world) open() {
	w.t.Helper()
	bucket, err := object.OpenDir(w.fs, "/d/pool")
	if err == nil {
		w.store, err = image.Open(w.t.Context(), image.Options{FS: w.fs, Dir: "/d/store", Bucket: bucket, CacheBytes: 16 << 20})
	}
	if err == nil {
		w.set, err = timeline.Open(w.t.Context(), w.store, timeline.Options{FS: w.fs, Dir: "/d/timelines", Bucket: bucket})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.t.Helper()
	if err := errors.Join(w.set.Close(), w.store.Close()); err != nil {
		w.t.Error(err)
	}
}

// restart opens everything again; after a power cut only what was synced is there.
func (w *world) restart(cut bool) {
	w.t.Helper()
	id := w.line.ID()
	if cut {
		fs := vfs.Crash(w.fs, 0, nil)
		w.close()
		w.fs = fs
	} else {
		w.close()
	}
	w.open()
	w.line = w.set.Get(id)
}

// kill ends the server without a word to the machine, and starts another; after a power cut only what was synced is there.
func (w *world) kill(stop func(), cut bool) {
	w.t.Helper()
	w.life.Lock() // no write is half done, as none is of a process that is gone
	w.dead.Store(true)
	w.life.Unlock()
	if err := w.Hide(); err != nil {
		w.t.Error(err)
	}
	stop()
	w.restart(cut)
	w.dead.Store(false)
}

// mortal is a disk of a server that can be killed.
type mortal struct {
	*timeline.Disk
	w      *world
	number int
}

var errDead = errors.New("the server was killed")

func (d mortal) ReadAt(p []byte, off int64) (int, error) {
	d.w.read[d.number].Add(int64(len(p)))
	return d.Disk.ReadAt(p, off)
}

func (d mortal) WriteAt(p []byte, off int64) (int, error) {
	return len(p), d.change(func() error { _, err := d.Disk.WriteAt(p, off); return err })
}

func (d mortal) WriteBulkAt(p []byte, off int64) (int, error) {
	return len(p), d.change(func() error { _, err := d.Disk.WriteBulkAt(p, off); return err })
}

func (d mortal) Discard(off, n int64) error {
	return d.change(func() error { return d.Disk.Discard(off, n) })
}

func (d mortal) change(do func() error) error {
	if c := d.w.hang.Load(); c != nil {
		<-*c
	}
	d.w.life.RLock()
	defer d.w.life.RUnlock()
	return d.w.alive(do)
}

// Disks implements Target, as all of these do.
func (w *world) Disks() (list []block.Device) {
	for i, d := range w.line.Disks() {
		list = append(list, mortal{d, w, i})
	}
	return list
}

func (w *world) Show(path string, inlets []Inlet) error {
	l, err := nbd.Listen("unix:" + path)
	if err != nil {
		return err
	}
	table := nbd.NewTable()
	for _, in := range inlets {
		if err := table.Add(&nbd.Export{Name: in.Name, Device: in.Disk, Idle: in.Gone}); err != nil {
			return err
		}
	}
	w.srv, w.shown = nbd.NewServer(table, nbd.Options{}), inlets
	go w.srv.Serve(l)
	return nil
}

func (w *world) HangUp() {
	for _, in := range w.shown {
		w.srv.Disconnect(in.Name)
	}
}

func (w *world) Hide() error {
	if w.srv == nil {
		return nil
	}
	return w.srv.Close()
}

// alive does something to the timeline, unless the server is dead.
func (w *world) alive(do func() error) error {
	if w.dead.Load() {
		return errDead
	}
	return do()
}

func (w *world) Lose(since int64, why string) error {
	return w.alive(func() error { return w.line.Lose(since, why) })
}

func (w *world) Whole(anchor string) error {
	return w.alive(func() error { return w.line.Whole(anchor) })
}

func (w *world) SetAnchor(anchor string) error {
	return w.alive(func() error { return w.line.SetAnchor(anchor) })
}

func (w *world) Anchor() string { return w.line.Anchor() }

// follow runs a mirror until the function that it returns is called.
func (w *world) follow(m *machine, with ...func(*Mirror)) (*Mirror, func()) {
	mirror := &Mirror{Socket: m.socket(), NBD: m.nbd(), ID: w.line.ID(), Dir: filepath.Join(w.dir, "m"), Target: w,
		Logger: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
	mirror.retryAfter = 50 * time.Millisecond
	mirror.still = func() func() {
		m.running.Lock()
		return m.running.Unlock
	}
	for i := range m.disks {
		mirror.Disks = append(mirror.Disks, fmt.Sprintf("disk%d", i))
	}
	for _, fn := range with {
		fn(mirror)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mirror.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return mirror, stop
}

func ready(t *testing.T, m *Mirror) {
	t.Helper()
	eventually(t, "the mirror is ready", func() bool { return m.State().Phase == Ready })
}

// same waits until the timeline's newest point is what the machine has: what was discarded is read again a moment later.
func (w *world) same(m *machine) {
	w.t.Helper()
	want := m.content()
	eventually(w.t, "the timeline is what the machine's disk is", func() bool {
		head, _ := w.line.Head()
		got, err := w.at(head)
		return err == nil && bytes.Equal(got, want)
	})
}

// at is what all disks held at a position, one behind the other.
func (w *world) at(pos tidemark.Position) ([]byte, error) {
	var all []byte
	for _, d := range w.line.Disks() {
		s, err := w.line.At(d.Name(), pos)
		if err != nil {
			return nil, err
		}
		defer s.Close()
		data := make([]byte, s.Size())
		if _, err = s.ReadAt(data, 0); err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	return all, nil
}

// eventually waits for something that takes as long as it takes.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it was waited in vain: %s", what)
		}
	}
}

func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			fmt.Fprintln(t.Output(), "seed", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1))
}
