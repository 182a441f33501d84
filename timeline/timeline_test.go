package timeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/object"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// world is a server's storage on one file system.
type world struct {
	fs     vfs.FS
	bucket *object.Dir
	store  *image.Store
	set    *Set
}

func open(t testing.TB, fs vfs.FS, root string) *world {
	t.Helper()
	w, err := openWorld(fs, root)
	if err != nil {
		t.Fatal(err)
	}
	for id, err := range w.set.Damaged() {
		t.Fatalf("timeline %s: %v", id, err)
	}
	return w
}

func openWorld(fs vfs.FS, root string, also ...func(*Options)) (*world, error) {
	w := &world{fs: fs}
	var err error
	if w.bucket, err = object.OpenDir(fs, root+"/pool"); err != nil {
		return nil, err
	}
	if w.store, err = image.Open(context.Background(), image.Options{FS: fs, Dir: root + "/store", Bucket: w.bucket, CacheBytes: 8 << 20, Logger: quiet}); err != nil {
		return nil, err
	}
	o := Options{FS: fs, Dir: root + "/timelines", Bucket: w.bucket, Logger: quiet,
		SegmentSize: 256 << 10, FoldAfter: 64 << 20, ReferenceAfter: 300 << 10, HotBytes: 64 << 10, Manual: true}
	for _, change := range also {
		change(&o)
	}
	w.set, err = Open(context.Background(), w.store, o)
	return w, err
}

func (w *world) close(t testing.TB) {
	t.Helper()
	if err := w.set.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.bucket.Close(); err != nil {
		t.Fatal(err)
	}
}

const (
	diskSize  = 640<<10 + 512 // not a multiple of a block
	testChunk = 16 << 10
)

// past is the content of a timeline's disks at a position.
type past struct {
	pos  tidemark.Position
	time time.Time
	data [2][]byte
}

// line is a timeline and what it must hold.
type line struct {
	id      string
	now     [2][]byte
	history []past // after every operation, oldest first
	flushed int    // index in history that is durable
	marks   map[string]past
}

func (l *line) note(t *Timeline) {
	pos, at := t.Head()
	l.history = append(l.history, past{pos: pos, time: at, data: l.copy()})
}

func (l *line) copy() (c [2][]byte) {
	for i := range l.now {
		c[i] = bytes.Clone(l.now[i])
	}
	return c
}

// model drives a world at random and checks it.
type model struct {
	t      *testing.T
	seed   uint64
	rng    *rand.Rand
	camera *camera
	w      *world
	lines  []*line
	n      int
}

// camera takes a picture of what a power cut would leave, at one operation on the file system.
type camera struct {
	mu   sync.Mutex
	fs   *vfs.MemFS
	rng  *rand.Rand
	left int
	shot *vfs.MemFS
}

func (c *camera) String() string { return "camera" }

// MaybeError implements errorfs.Injector: it never fails.
func (c *camera) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left == 0 {
		c.shot = c.crash()
	}
	return nil
}

func (c *camera) crash() *vfs.MemFS {
	return vfs.Crash(c.fs, []int{0, 50, 100}[c.rng.IntN(3)], c.rng)
}

func (c *camera) picture() *vfs.MemFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shot
}

func (m *model) fatalf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("seed %d: %s", m.seed, fmt.Sprintf(format, args...))
}

// TestModel cuts the power at any operation on the file system, 6 times a round.
func TestModel(t *testing.T) {
	rounds := 84
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 1700
	} else if testing.Short() {
		rounds = 3
	}
	for i := range rounds {
		seed := uint64(time.Now().UnixNano()) + uint64(i)
		if s := os.Getenv("TIDEMARK_SEED"); s != "" {
			fmt.Sscan(s, &seed)
		}
		m := &model{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 9))}
		m.run()
	}
}

func (m *model) run() {
	m.open(vfs.NewMem())
	m.create()
	for range 6 {
		before := m.steps()
		switch fs := m.camera.picture(); {
		case fs != nil:
			m.leave()
			m.open(m.stumble(fs))
			m.doubt(before)
		case m.rng.IntN(3) == 0:
			m.w.close(m.t)
			for _, l := range m.lines {
				l.flushed = len(l.history) - 1
			}
			m.open(m.camera.fs)
		default:
			fs := m.camera.crash()
			m.leave()
			m.open(m.stumble(fs))
		}
		m.afterRestart()
	}
	m.checkAll()
	m.verify()
	m.w.close(m.t)
}

// open starts a server on fs.
func (m *model) open(fs *vfs.MemFS) {
	m.camera = &camera{fs: fs, rng: m.rng}
	m.w = open(m.t, errorfs.Wrap(fs, m.camera), "/d")
}

// stumble starts a server on fs now and then and cuts its power while it comes up.
func (m *model) stumble(fs *vfs.MemFS) *vfs.MemFS {
	if m.rng.IntN(3) > 0 {
		return fs
	}
	m.camera = &camera{fs: fs, rng: m.rng, left: 1 + m.rng.IntN(60)}
	m.w = open(m.t, errorfs.Wrap(fs, m.camera), "/d")
	m.leave()
	if shot := m.camera.picture(); shot != nil {
		return shot
	}
	return m.camera.crash()
}

// leave lets go of a server whose power has failed: it closes on a file system
// that nobody looks at again.
func (m *model) leave() { m.w.close(m.t) }

// promise is what was acknowledged of a line.
type promise struct {
	line    *line
	flushed int
	marks   []string
}

// steps works until the power fails, or for a while. It returns what had been
// acknowledged before the last step.
func (m *model) steps() (before []promise) {
	m.camera.mu.Lock()
	m.camera.left = 1 + m.rng.IntN(200)
	m.camera.mu.Unlock()
	for range 40 {
		before = before[:0]
		for _, l := range m.lines {
			before = append(before, promise{line: l, flushed: l.flushed, marks: slices.Collect(maps.Keys(l.marks))})
		}
		m.step()
		if m.camera.picture() != nil {
			break
		}
	}
	return before
}

// doubt takes back what the last step, during which the power failed, did to
// the model: it may have happened, or not.
func (m *model) doubt(before []promise) {
	var lines []*line
	for _, b := range before {
		if m.w.set.Get(b.line.id) == nil && !slices.Contains(m.lines, b.line) {
			continue // it was being removed
		}
		b.line.flushed = b.flushed
		maps.DeleteFunc(b.line.marks, func(name string, _ past) bool { return !slices.Contains(b.marks, name) })
		lines = append(lines, b.line)
	}
	for _, l := range m.lines {
		known := slices.ContainsFunc(before, func(b promise) bool { return b.line == l })
		if !known && m.w.set.Get(l.id) != nil {
			lines = append(lines, l)
		}
	}
	m.lines = lines
}

func (m *model) create() {
	m.n++
	t, err := m.w.set.Create(context.Background(), fmt.Sprintf("t%d", m.n), []DiskSpec{{Name: "a", Size: diskSize, Chunk: testChunk}, {Name: "b", Size: diskSize}}, nil)
	if err != nil {
		m.fatalf("create: %v", err)
	}
	if m.rng.IntN(2) == 0 {
		if err := t.SetWindow(Window{For: time.Hour}); err != nil {
			m.fatalf("window: %v", err)
		}
	}
	l := &line{id: t.ID(), marks: map[string]past{}}
	for i := range l.now {
		l.now[i] = make([]byte, diskSize)
	}
	l.note(t)
	m.lines = append(m.lines, l)
}

func (m *model) step() {
	l := m.lines[m.rng.IntN(len(m.lines))]
	t := m.w.set.Get(l.id)
	switch m.rng.IntN(25) {
	case 0:
		m.bookmark(l, t)
	case 1:
		if err := t.Fold(context.Background()); err != nil {
			m.fatalf("fold: %v", err)
		}
	case 2, 3:
		if err := t.Disks()[0].Flush(); err != nil {
			m.fatalf("flush: %v", err)
		}
		l.flushed = len(l.history) - 1
	case 4:
		if len(m.lines) < 6 {
			m.branch(l, t)
		}
	case 5:
		m.checkPoint(l, t)
	case 6:
		if len(m.lines) > 2 && m.rng.IntN(3) == 0 {
			m.remove(l, t)
		}
	case 7:
		m.expire(l, t)
	case 8:
		if m.rng.IntN(3) == 0 {
			if _, err := m.w.store.Reclaim(context.Background(), m.w.set.Keep); err != nil {
				m.fatalf("reclaim: %v", err)
			}
		}
	case 9:
		if err := t.Pack(context.Background()); err != nil {
			m.fatalf("pack: %v", err)
		}
		if err := t.Archive(context.Background()); err != nil {
			m.fatalf("archive: %v", err)
		}
	case 10:
		m.rewrite(l, t)
	case 11:
		if m.rng.IntN(2) == 0 {
			m.checkSteps(l, t)
		}
	default:
		m.write(l, t)
	}
}

func (m *model) write(l *line, t *Timeline) {
	i := m.rng.IntN(2)
	d := t.Disks()[i]
	n := []int64{512, 4096, 4096, 5000, 16 << 10, 100 << 10, 300 << 10}[m.rng.IntN(7)]
	off := m.rng.Int64N(diskSize - n)
	if m.rng.IntN(3) > 0 {
		off &^= 4095
	}
	p := l.now[i][off : off+n]
	switch m.rng.IntN(6) {
	case 0:
		clear(p)
		if err := d.Discard(off, n); err != nil {
			m.fatalf("discard: %v", err)
		}
	case 1: // a few bytes changed in place
		for k := m.rng.IntN(50); k < len(p); k += 1000 {
			p[k]++
		}
		m.writeAt(d, p, off)
	default:
		for k := range p {
			p[k] = byte(m.rng.Uint32()) & 0x3f
		}
		m.writeAt(d, p, off)
	}
	l.note(t)
	got := make([]byte, n)
	if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
		m.fatalf("what was written reads back wrong: %v", err)
	}
}

func (m *model) writeAt(d *Disk, p []byte, off int64) {
	if _, err := d.WriteAt(p, off); err != nil {
		m.fatalf("write: %v", err)
	}
}

func (m *model) bookmark(l *line, t *Timeline) {
	m.n++
	name := fmt.Sprintf("m%d", m.n)
	pos, err := t.Bookmark(Mark{Name: name, Consistency: tidemark.CrashConsistent})
	if err != nil {
		m.fatalf("bookmark: %v", err)
	}
	l.marks[name] = past{pos: pos, data: l.copy()}
	l.note(t)
	l.flushed = len(l.history) - 1
}

func (m *model) branch(l *line, t *Timeline) {
	from, data := tidemark.Position(0), l.copy()
	for _, p := range l.marks {
		if m.rng.IntN(2) == 0 {
			from, data = p.pos, p.data
		}
		break
	}
	if from == 0 {
		from, _ = t.Head()
	}
	m.n++
	b, err := t.Branch(context.Background(), fmt.Sprintf("b%d", m.n), from, nil, nil)
	if err != nil {
		m.fatalf("branch at %v: %v", from, err)
	}
	c := &line{id: b.ID(), marks: map[string]past{}}
	for i := range data {
		c.now[i] = bytes.Clone(data[i])
	}
	c.note(b)
	l.note(t)
	l.flushed = len(l.history) - 1
	m.lines = append(m.lines, c)
	m.checkHead(c, b)
}

// rewrite makes the disks hold what they held once.
func (m *model) rewrite(l *line, t *Timeline) {
	m.n++
	name := fmt.Sprintf("m%d", m.n)
	r, err := t.Rewrite(Mark{Name: name, Consistency: tidemark.CrashConsistent}, "because")
	if err != nil {
		m.fatalf("rewrite: %v", err)
	}
	l.marks[name] = past{pos: r.From, data: l.copy()}
	l.history = append(l.history, l.marks[name])
	l.flushed = len(l.history) - 1
	m.rewriteTo(l, t, r, l.history[m.rng.IntN(len(l.history))])
	l.note(t)
	l.flushed = len(l.history) - 1
}

func (m *model) rewriteTo(l *line, t *Timeline, r *Rewrite, p past) {
	for i, d := range t.Disks() {
		m.checkPresent(r, d)
		w, err := r.Disk(d.Name())
		if err != nil {
			m.fatalf("rewrite: %v", err)
		}
		have := make([]byte, diskSize)
		if _, err := d.ReadAt(have, 0); err != nil {
			m.fatalf("read: %v", err)
		}
		for b := 0; b < diskSize; b += block.BlockSize {
			e := min(b+block.BlockSize, diskSize)
			if bytes.Equal(have[b:e], p.data[i][b:e]) {
				continue
			}
			if _, err := w.WriteAt(p.data[i][b:e], int64(b)); err != nil {
				m.fatalf("rewrite: %v", err)
			}
		}
		l.now[i] = bytes.Clone(p.data[i])
	}
	m.shut(t)
	pos, err := r.End()
	if head, _ := t.Head(); err != nil || pos != head {
		m.fatalf("the rewrite ends at %v, and the head is %v: %v", pos, head, err)
	}
	m.checkHead(l, t)
}

// checkPresent compares the image of a disk that is being rewritten with what it holds.
func (m *model) checkPresent(r *Rewrite, d *Disk) {
	x := m.w.store.Begin()
	defer x.End()
	root, err := r.Present(context.Background(), x, d.Name())
	if err != nil {
		m.fatalf("present: %v", err)
	}
	got, want := make([]byte, diskSize), make([]byte, diskSize)
	_, err1 := m.w.store.View(root).ReadAt(got, 0)
	_, err2 := d.ReadAt(want, 0)
	if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
		m.fatalf("the image of the present of disk %s is wrong: %v %v", d.Name(), err1, err2)
	}
}

// shut holds that a timeline is closed to others during a rewrite.
func (m *model) shut(t *Timeline) {
	d := t.Disks()[0]
	if _, err := d.WriteAt(make([]byte, 4096), 0); !errors.Is(err, ErrRewriting) {
		m.fatalf("a write in the middle of a rewrite: %v", err)
	}
	if err := d.Discard(0, 4096); !errors.Is(err, ErrRewriting) {
		m.fatalf("a discard in the middle of a rewrite: %v", err)
	}
	from, ok := t.Rewriting()
	if head, _ := t.Head(); !ok || head == from {
		return
	}
	head, _ := t.Head()
	if _, err := t.At("a", head); tidemark.KindOf(err) != tidemark.Unavailable {
		m.fatalf("a point in the middle of a rewrite: %v", err)
	}
	if _, err := t.Branch(context.Background(), "never", head, nil, nil); tidemark.KindOf(err) != tidemark.Unavailable {
		m.fatalf("a branch in the middle of a rewrite: %v", err)
	}
}

// goOn ends the rewrite that the power failed in, back where it began or somewhere else.
func (m *model) goOn(l *line, t *Timeline) {
	from, ok := t.Rewriting()
	if !ok {
		return
	}
	m.shut(t)
	at := slices.IndexFunc(l.history, func(p past) bool { return p.pos == from })
	if at < 0 {
		m.fatalf("a rewrite from %v, which never began", from)
	}
	before := l.history[at]
	l.history = l.history[:at+1] // what came behind lies in the gap
	for i, d := range t.Disks() {
		s, err := t.At(d.Name(), from)
		if err != nil {
			m.fatalf("open what was before the rewrite: %v", err)
		}
		got := make([]byte, diskSize)
		if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, before.data[i]) {
			m.fatalf("what was before the rewrite differs: %v", err)
		}
		s.Close()
	}
	r, err := t.Rewrite(Mark{}, "again")
	if err != nil || r.From != from {
		m.fatalf("go on with a rewrite: %v, from %v", err, r.From)
	}
	if m.rng.IntN(3) == 0 {
		before = l.history[m.rng.IntN(len(l.history))]
	}
	m.rewriteTo(l, t, r, before)
}

func (m *model) remove(l *line, t *Timeline) {
	if err := t.Remove(context.Background()); err != nil {
		m.fatalf("remove: %v", err)
	}
	for i := range m.lines {
		if m.lines[i] == l {
			m.lines = append(m.lines[:i], m.lines[i+1:]...)
			return
		}
	}
}

func (m *model) expire(l *line, t *Timeline) {
	for name, p := range l.marks {
		if pointOf(t, p.pos) {
			if err := t.Expire(context.Background(), p.pos); err != nil {
				m.fatalf("expire: %v", err)
			}
			delete(l.marks, name)
		}
		return
	}
}

func pointOf(t *Timeline, pos tidemark.Position) bool {
	for _, p := range t.Points() {
		if p.Position == pos {
			return true
		}
	}
	return false
}

// afterRestart lets the model forget what was lost rightly, and fails if anything else was.
func (m *model) afterRestart() {
	for _, l := range m.lines {
		t := m.w.set.Get(l.id)
		if t == nil {
			m.fatalf("timeline %s is gone", l.id)
		}
		head, _ := t.Head()
		if head < l.history[l.flushed].pos {
			m.fatalf("head %v, but %v was flushed", head, l.history[l.flushed].pos)
		}
		n := l.flushed
		for n+1 < len(l.history) && l.history[n+1].pos <= head {
			n++
		}
		exact := l.history[n].pos == head || n+1 == len(l.history)
		for i, d := range t.Disks() {
			got := make([]byte, diskSize)
			if _, err := d.ReadAt(got, 0); err != nil {
				m.fatalf("read after restart: %v", err)
			}
			want := l.history[n].data[i]
			if !exact { // an operation was cut between its records: either content, block by block
				mix(got, want, l.history[n+1].data[i])
			}
			if !bytes.Equal(got, want) {
				m.fatalf("disk %d of %s differs after a restart at %v", i, t.Name(), head)
			}
			if _, err := d.ReadAt(l.now[i], 0); err != nil {
				m.fatalf("read: %v", err)
			}
		}
		l.history = l.history[:n+1]
		m.goOn(l, t)
		l.note(t)
		l.flushed = len(l.history) - 1
		for name, p := range l.marks {
			if _, err := t.Resolve(tidemark.Point{Bookmark: name}); err != nil {
				m.fatalf("bookmark %s at %v: %v", name, p.pos, err)
			}
		}
	}
}

// mix makes got equal to want where it equals other.
func mix(got, want, other []byte) {
	for b := 0; b < len(got); b += block.BlockSize {
		e := min(b+block.BlockSize, len(got))
		if bytes.Equal(got[b:e], other[b:e]) {
			copy(got[b:e], want[b:e])
		}
	}
}

func (m *model) checkHead(l *line, t *Timeline) {
	for i, d := range t.Disks() {
		got := make([]byte, diskSize)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, l.now[i]) {
			m.fatalf("head of disk %d of %s differs: %v", i, t.Name(), err)
		}
	}
}

// checkPoint opens a bookmark, or any position that the journal still has.
func (m *model) checkPoint(l *line, t *Timeline) {
	var p past
	for _, p = range l.marks {
		break
	}
	if q := l.history[m.rng.IntN(len(l.history))]; (p.pos == 0 || m.rng.IntN(2) == 0) && t.state.Window.For > 0 && q.pos > t.oldestInJournal() {
		p = q
	}
	if p.pos == 0 {
		return
	}
	for i, d := range t.Disks() {
		s, err := t.At(d.Name(), p.pos)
		if err != nil {
			m.fatalf("open %s@%v: %v", t.Name(), p.pos, err)
		}
		got := make([]byte, diskSize)
		if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, p.data[i]) {
			m.fatalf("disk %d of %s@%v differs: %v", i, t.Name(), p.pos, err)
		}
		m.checkExtents(s, p.data[i])
		s.Close()
	}
}

func (m *model) checkExtents(r block.Extenter, data []byte) {
	at := int64(0)
	err := r.Extents(0, diskSize, func(e block.Extent) bool {
		if e.Off != at || e.Len <= 0 || e.Hole && !zeros(data[e.Off:e.Off+e.Len]) {
			m.fatalf("extent %+v at %d", e, at)
		}
		at += e.Len
		return true
	})
	if err != nil || at != diskSize {
		m.fatalf("extents end at %d: %v", at, err)
	}
}

func (m *model) checkAll() {
	for _, l := range m.lines {
		t := m.w.set.Get(l.id)
		m.checkHead(l, t)
		for range 5 {
			m.checkPoint(l, t)
		}
		m.checkHeld(t)
		m.checkStretches(t)
	}
}

// checkSteps holds that every step can be opened, and that nothing changes between two.
func (m *model) checkSteps(l *line, t *Timeline) {
	if err := t.Fold(context.Background()); err != nil { // else a branch cannot show its positions
		m.fatalf("fold: %v", err)
	}
	from := m.rng.IntN(len(l.history))
	to := from + m.rng.IntN(len(l.history)-from)
	steps, err := t.Steps("", l.history[from].pos, l.history[to].pos)
	if err != nil {
		m.fatalf("steps of %v to %v: %v", l.history[from].pos, l.history[to].pos, err)
	}
	if !slices.IsSorted(steps.List) || len(slices.Compact(slices.Clone(steps.List))) != len(steps.List) {
		m.fatalf("steps in no order: %v", steps.List)
	}
	for range min(3, len(steps.List)) {
		pos := steps.List[m.rng.IntN(len(steps.List))]
		if pos <= l.history[from].pos || pos > l.history[to].pos {
			m.fatalf("step %v is not in (%v, %v]", pos, l.history[from].pos, l.history[to].pos)
		}
		m.content(t, pos)
		if _, err := t.TimeAt(pos); err != nil {
			m.fatalf("time of %v: %v", pos, err)
		}
	}
	for range 3 {
		p := l.history[from+m.rng.IntN(to-from+1)]
		n, _ := slices.BinarySearch(steps.List, p.pos+1) // steps at or before p
		if p.pos < steps.any || n == 0 {
			continue
		}
		if got := m.content(t, steps.List[n-1]); !bytes.Equal(got[0], p.data[0]) || !bytes.Equal(got[1], p.data[1]) {
			m.fatalf("%v is not what it was at the step before it, %v", p.pos, steps.List[n-1])
		}
	}
}

// content reads what the disks held.
func (m *model) content(t *Timeline, pos tidemark.Position) (data [2][]byte) {
	for i, d := range t.Disks() {
		s, err := t.At(d.Name(), pos)
		if err != nil {
			m.fatalf("open %s@%v: %v", t.Name(), pos, err)
		}
		data[i] = make([]byte, diskSize)
		if _, err := s.ReadAt(data[i], 0); err != nil {
			m.fatalf("read %s@%v: %v", t.Name(), pos, err)
		}
		s.Close()
	}
	return data
}

// verify reads everything that any timeline needs.
func (m *model) verify() {
	r, err := m.w.store.Check(context.Background(), func(k *image.Keeper) error { return m.w.set.Keep(k) }, nil)
	if err != nil {
		m.fatalf("verify: %v", err)
	}
	if len(r.Damage) > 0 {
		m.fatalf("verify found damage: %v", r.Damage)
	}
}
