package survive

import (
	"cmp"
	enc "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/timeline"
)

// target is a position to look at, and the time that it was asked for by.
type target struct {
	pos  tidemark.Position
	when int64 // Unix nanoseconds; 0: it was asked for as it is
	what string
}

// shown is a point as it is looked at: opened, and found to hold what it must.
type shown struct {
	worker int
	pos    tidemark.Position
	when   int64 // time of the last change in it
	disks  []*timeline.Snapshot
}

// watchers is how many look at points at a time.
const watchers = 2

// long reports whether all is to be looked at, however long that takes.
func long() bool { return os.Getenv("TIDEMARK_LONG") != "" }

// flushes returns what each flush of production names: the time at which it began. All that was answered before is to be durable
// by it, and so it is where a file system or a database can be after a power cut and rely on what it has.
func (x *rig) flushes() (list []target) {
	x.t.Helper()
	for _, d := range x.witness.noted() {
		if d.flush {
			list = append(list, x.resolve(d.from, d.String()))
		}
	}
	return list
}

// times returns n random times while production wrote.
func (x *rig) times(n int) (list []target) {
	x.t.Helper()
	deeds := x.witness.noted()
	first, last := deeds[0].from, deeds[len(deeds)-1].from
	for range n {
		when := first + x.rng.Int64N(last-first)
		list = append(list, x.resolve(when, "a time"))
	}
	return list
}

// resolve has the timeline say which position a time names.
func (x *rig) resolve(when int64, what string) target {
	x.t.Helper()
	pos, err := x.line.Resolve(tidemark.Point{Time: time.Unix(0, when)})
	if err != nil {
		x.t.Fatalf("%s: %v", what, err)
	}
	return target{pos, when, what}
}

// positions returns n random positions, or all if there are no more.
func (x *rig) positions(n int) (list []target) {
	entries := x.ledger.entries
	first, last := entries[0].before, entries[len(entries)-1].after
	if tidemark.Position(n) > last-first {
		for pos := first; pos <= last; pos++ {
			list = append(list, target{pos: pos, what: "a position"})
		}
		return list
	}
	for range n {
		list = append(list, target{pos: first + tidemark.Position(x.rng.Uint64N(uint64(last-first)+1)), what: "a position"})
	}
	return list
}

// showAll opens each target, holds it to what was written, and then has it visited. Visits of several workers are made at a time.
func (x *rig) showAll(list []target, visit func(*shown) error) error {
	slices.SortStableFunc(list, func(a, b target) int { return cmp.Compare(a.pos, b.pos) })
	var all errgroup.Group
	for w := range watchers {
		part := list[len(list)*w/watchers : len(list)*(w+1)/watchers]
		all.Go(func() error { return x.showPart(w, part, visit) })
	}
	return all.Wait()
}

// showPart is showAll of targets in order.
func (x *rig) showPart(worker int, list []target, visit func(*shown) error) error {
	p, done, err := x.picture(x.ledger.entries)
	if err != nil {
		return err
	}
	defer done()
	for i, m := range list {
		if i == 0 || m.pos != list[i-1].pos {
			s, err := x.show(p, m.pos, i%100 == 0)
			if err == nil {
				s.worker = worker
				err = errors.Join(visit(s), s.close())
			}
			if err != nil {
				return fmt.Errorf("at %v, %s: %w", m.pos, m.what, err)
			}
		}
		if m.when != 0 {
			if err := allows(x.witness.noted(), p.changes, m.when); err != nil {
				return fmt.Errorf("at %v, %s, %v: %w", m.pos, m.what, time.Unix(0, m.when), err)
			}
		}
	}
	return nil
}

// show opens a position and compares it with the picture: with all that was ever written, or with whole disks.
func (x *rig) show(p *picture, pos tidemark.Position, whole bool) (s *shown, err error) {
	s = &shown{pos: pos}
	for i := range x.sizes {
		d, err := x.line.At(x.disk(i), pos)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.disks = append(s.disks, d)
	}
	least, most := x.ledger.at(pos)
	for n := least; n <= most; n++ {
		p.reach(n)
		if err = s.compare(p, whole); !errors.Is(err, errOther) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.when = p.when()
	return s, nil
}

func (s *shown) compare(p *picture, whole bool) error {
	for i, d := range s.disks {
		if err := p.compare(i, d); err != nil {
			return err
		}
		if whole {
			if err := p.compareRest(i, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shown) close() (err error) {
	for _, d := range s.disks {
		err = errors.Join(err, d.Close())
	}
	return err
}

// TestEveryMomentOfThreeDisks has three disks under one tap written to by fio, by one who writes to each only when the one before has answered, and by two who
// write over each other. Then the disks are looked at as they were when each flush began, at times and at positions between: they hold what was
// answered before, and nothing that began later, in one order across the disks. (Lessons J3, J4, J7.)
func TestEveryMomentOfThreeDisks(t *testing.T) {
	beside(t)
	need(t, "fio")
	rng := seeded(t)
	s := newStage(t)
	var bases []string
	for i := range 3 {
		bases = append(bases, sparseFile(t, fmt.Sprint(s.dir, "/base", i), 8<<20))
	}
	x := newRig(t, s, rng, tricks{}, bases...)
	x.attach()
	stop := x.meanwhile()
	x.writeInTurn()
	stop()
	if err := x.finish(); err != nil {
		t.Fatal(err)
	}
	times, positions := 500, 2500
	if long() {
		times, positions = 5000, 1<<30
	}
	flushes := x.flushes()
	list := slices.Concat(flushes, x.bookmarks(), x.times(times), x.positions(positions))
	// What goes on by itself meanwhile may be late on a busy machine: that it is asked for, too.
	for end := time.Now().Add(time.Minute); x.line.Backlog() > foldAfter; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are not folded a minute after the last was written", x.line.Backlog())
		}
	}
	if err := errors.Join(x.line.Fold(t.Context()), x.line.Pack(t.Context()), x.line.Archive(t.Context())); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := x.showAll(list, inTurn); err != nil {
		t.Error(err)
	}
	t.Logf("%d changes, %d flushes, %d moments in %v; %d bytes are archived", len(x.ledger.entries), len(flushes), len(list), time.Since(begin), x.line.ArchivedBytes())
	if len(x.ledger.entries) < 1000 || len(flushes) < 100 || x.line.ArchivedBytes() == 0 {
		t.Error("that is too little to look at")
	}
}

// bookmarks returns the marks that came with the stream, and holds them to where they lie in it.
func (x *rig) bookmarks() (list []target) {
	x.t.Helper()
	for _, m := range x.ledger.marks {
		pos, err := x.line.Resolve(tidemark.Point{Bookmark: m.name})
		if err != nil {
			x.t.Fatal(err)
		}
		if least, most := x.ledger.at(pos); m.changes < least || m.changes > most {
			x.t.Errorf("bookmark %s is behind %d to %d changes, and came behind %d", m.name, least, most, m.changes)
		}
		list = append(list, target{pos: pos, what: "bookmark " + m.name})
	}
	return list
}

const (
	fioPart   = 2 << 20  // of each disk, at its beginning, is fio's
	holePart  = 1 << 20  // behind it is written and discarded
	rivalPart = 32 << 10 // and behind that rivals write
	turnAt    = 6<<20 + 512
)

// writeInTurn writes to all disks at once.
func (x *rig) writeInTurn() {
	x.t.Helper()
	end, turns := make(chan struct{}), 0
	rng := rand.New(rand.NewPCG(x.rng.Uint64(), 4))
	var turning sync.WaitGroup
	turning.Go(func() { turns = x.takeTurns(end, rng) })
	for range 2 {
		rng := rand.New(rand.NewPCG(x.rng.Uint64(), 6))
		turning.Go(func() { x.rival(end, rng) })
	}
	loops := 3
	if long() {
		loops = 10
	}
	args := []string{"--ioengine=libaio", "--direct=1", "--bsrange=4k-24k", "--rw=randwrite", "--iodepth=4", "--fsync=8", "--size=2M", fmt.Sprint("--loops=", loops),
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", fmt.Sprint("--randseed=", x.rng.Uint32())}
	for i, d := range x.devices {
		args = append(args, fmt.Sprint("--name=d", i), "--filename="+d)
	}
	fio := exec.Command("fio", args...)
	fio.Dir = x.dir
	if out, err := fio.CombinedOutput(); err != nil {
		x.t.Errorf("fio: %v: %s", err, out)
	}
	close(end)
	turning.Wait()
	x.t.Logf("%d turns", turns)
	if turns < 20 {
		x.t.Error("these are too few turns")
	}
}

// takeTurns writes a number to the first disk, then to the second, and so on, each when the one before has answered, and
// in between to a part of a disk that it discards then, in sectors.
func (x *rig) takeTurns(end chan struct{}, rng *rand.Rand) (turns int) {
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		x.t.Error(err)
		return 0
	}
	defer unix.Munmap(buf)
	var disks []*os.File
	for _, d := range x.devices {
		f, err := os.OpenFile(d, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			x.t.Error(err)
			return 0
		}
		defer f.Close()
		disks = append(disks, f)
	}
	for n := 1; ; n++ {
		for i, f := range disks {
			select {
			case <-end:
				return n
			default:
			}
			enc.LittleEndian.PutUint64(buf, uint64(n))
			_, err := f.WriteAt(buf[:512], turnAt)
			if err == nil && n%8 == 0 {
				err = x.writeHole(f, buf, rng)
			}
			if err != nil {
				x.t.Errorf("turn %d, disk %d: %v", n, i, err)
				return n
			}
		}
	}
}

// rival writes to a part of the last disk to which others write as well, without asking them: whose bytes are there in the end, the primary decides.
func (x *rig) rival(end chan struct{}, rng *rand.Rand) {
	f, err := os.OpenFile(x.devices[len(x.devices)-1], os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		x.t.Error(err)
		return
	}
	defer f.Close()
	buf, err := unix.Mmap(-1, 0, rivalPart/2, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		x.t.Error(err)
		return
	}
	defer unix.Munmap(buf)
	for {
		select {
		case <-end:
			return
		case <-time.After(time.Millisecond):
		}
		p := buf[:512*(1+rng.IntN(len(buf)/512))]
		for at := 0; at < len(p); at += 512 {
			enc.LittleEndian.PutUint64(p[at:], rng.Uint64())
		}
		if _, err := f.WriteAt(p, fioPart+holePart+rng.Int64N((rivalPart-int64(len(p)))/512+1)*512); err != nil {
			x.t.Error(err)
			return
		}
	}
}

// writeHole writes some sectors, and discards some others.
func (x *rig) writeHole(f *os.File, buf []byte, rng *rand.Rand) error {
	place := func() (off, n int64) {
		n = 512 * (1 + rng.Int64N(int64(len(buf)/512)))
		return fioPart + rng.Int64N((holePart-n)/512)*512, n
	}
	off, n := place()
	enc.LittleEndian.PutUint64(buf[8:], rng.Uint64())
	if _, err := f.WriteAt(buf[:n], off); err != nil {
		return err
	}
	off, n = place()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// inTurn holds a point to the order in which takeTurns wrote: no disk is ahead of the one before it, and the last is a turn behind at most.
func inTurn(s *shown) error {
	var turns []uint64
	for _, d := range s.disks {
		var p [8]byte
		if _, err := io.ReadFull(io.NewSectionReader(d, turnAt, 8), p[:]); err != nil {
			return err
		}
		turns = append(turns, enc.LittleEndian.Uint64(p[:]))
	}
	for i := range turns[1:] {
		if turns[i+1] > turns[i] || turns[i+1]+1 < turns[0] {
			return fmt.Errorf("the disks are at turns %v, and each was written to behind the one before", turns)
		}
	}
	return nil
}
