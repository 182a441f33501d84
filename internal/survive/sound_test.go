package survive

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/timeline"
)

// fileSystem is one that points are looked at with, and what finds its faults.
type fileSystem struct {
	name, size, options string
	make, check         []string
}

var fileSystems = []fileSystem{
	{"ext4", "64M", "defaults", []string{"mkfs.ext4", "-q", "-J", "size=4"}, []string{"e2fsck", "-fn"}},
	{"xfs", "320M", "nouuid", []string{"mkfs.xfs", "-q"}, []string{"xfs_repair", "-n"}},
}

// TestEveryPointIsSound has files made, changed, renamed and deleted on a tapped disk, by some who call fsync. Then it looks at the
// disk at each flush and at writes between: it holds what was written; the kernel mounts it, which replays the log of the file
// system, and mends nothing else; each file whose fsync had returned is there; and after that the file system's own check finds nothing. Some
// points the server mounts. (Lessons J3, J4, J7.)
func TestEveryPointIsSound(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", "mkfs.xfs", "e2fsck", "xfs_repair")
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) { fs.soundness(t) })
	}
}

func (fs fileSystem) soundness(t *testing.T) {
	size, err := tidemark.ParseSize(fs.size)
	if err != nil {
		t.Fatal(err)
	}
	rng, s := seeded(t), newStage(t)
	base := sparseFile(t, s.dir+"/base", size)
	must(t, fs.make[0], append(slices.Clone(fs.make[1:]), base)...)
	x := newRig(t, s, rng, tricks{}, base)
	x.attach()
	stop, n := x.meanwhile(), &notes{}
	x.useFiles(n)
	stop()
	if err := x.finish(); err != nil {
		t.Fatal(err)
	}
	checked, compared, mounted := 100, 1000, 10
	if long() {
		checked, compared, mounted = 2000, 10000, 60
	}
	begin, c := time.Now(), newCopies(x)
	flushes := x.flushes()
	var sound atomic.Int64
	err = x.showAll(append(flushes, x.positions(checked)...), func(s *shown) error {
		sound.Add(1)
		return c.mounted(s, fs.options, func(at string) error { return n.check(at, s.when) }, fs.sound)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d changes, %d flushes, %d notes; %d points are sound, in %v", len(x.ledger.entries), len(flushes), len(n.list), sound.Load(), time.Since(begin))
	if len(flushes) < 100 || len(n.list) < 50 {
		t.Error("that is too little to look at")
	}
	if err := x.showAll(slices.Concat(x.bookmarks(), x.times(compared/2), x.positions(compared)), func(*shown) error { return nil }); err != nil {
		t.Fatal(err)
	}
	x.mountSome(fs, n, mounted)
}

// sound has a file system's own check look at it, which changes nothing. e2fsck calls wrong counts no error, but asks whether to mend them.
func (fs fileSystem) sound(disk string) error {
	argv := append(slices.Clone(fs.check), disk)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("? no")) {
		return fmt.Errorf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// tryTool runs a program that has to succeed.
func tryTool(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// notes are files that were written once, and whose fsync has returned.
type notes struct {
	mu   sync.Mutex
	list []note
}

type note struct{ begun, done int64 }

// write writes the next note below a directory.
func (n *notes) write(at string) error {
	n.mu.Lock()
	i := len(n.list)
	n.list = append(n.list, note{begun: time.Now().UnixNano()})
	n.mu.Unlock()
	dir := filepath.Join(at, "notes")
	if err := errors.Join(os.MkdirAll(dir, 0o700), writeSynced(filepath.Join(dir, fmt.Sprint(i)), noteText(i)), syncFile(dir)); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list[i].done = time.Now().UnixNano()
	return nil
}

func noteText(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "note %d\n", i), 1+i%900) }

func writeSynced(name string, p []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(p); err != nil {
		return err
	}
	return f.Sync()
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// check looks for the notes in a file system as it was at a time: those that were done before are there, and no later ones.
func (n *notes) check(at string, when int64) error {
	for i, x := range n.list {
		name := filepath.Join(at, "notes", fmt.Sprint(i))
		switch _, err := os.Lstat(name); {
		case x.done < when:
			if p, err := os.ReadFile(name); err != nil || !bytes.Equal(p, noteText(i)) {
				return fmt.Errorf("note %d was synced %v before, and is not there as it was: %v", i, time.Duration(when-x.done), err)
			}
		case x.begun > when && err == nil:
			return fmt.Errorf("note %d is there, and was written %v later", i, time.Duration(x.begun-when))
		}
	}
	return nil
}

// useFiles makes, changes, renames and deletes files, and writes notes.
func (x *rig) useFiles(n *notes) {
	x.t.Helper()
	at := filepath.Join(x.dir, "at")
	if err := os.MkdirAll(at, 0o700); err != nil {
		x.t.Fatal(err)
	}
	must(x.t, "mount", x.devices[0], at)
	var users sync.WaitGroup
	uses := 300
	if long() {
		uses = 3000
	}
	for u := range 3 {
		rng := rand.New(rand.NewPCG(x.rng.Uint64(), 5))
		users.Go(func() {
			for i := range uses {
				err := useFile(rng, filepath.Join(at, fmt.Sprint("u", u)), byte(i))
				if err == nil && i%6 == 0 {
					err = n.write(at)
				}
				if err != nil {
					x.t.Error(err)
					return
				}
			}
		})
	}
	users.Wait()
	if err := unmount(at); err != nil {
		x.t.Fatal(err)
	}
}

// useFile does one thing with one of a user's files.
func useFile(rng *rand.Rand, home string, fill byte) error {
	dir := filepath.Join(home, fmt.Sprint("d", rng.IntN(8)))
	file := filepath.Join(dir, fmt.Sprint("f", rng.IntN(10)))
	switch rng.IntN(8) {
	case 0:
		os.Remove(file)
	case 1:
		os.Rename(file, file+"x")
	case 2:
		return os.RemoveAll(dir)
	case 3:
		if err := os.Truncate(file, rng.Int64N(60_000)); err != nil && !os.IsNotExist(err) {
			return err
		}
	default:
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		return os.WriteFile(file, bytes.Repeat([]byte{fill}, rng.IntN(40_000)), 0o600)
	}
	return nil
}

// copies are files in memory that points are copied to, as a whole, one for each worker: what is mounted of them is no part of the product, so
// that thousands can be.
type copies struct{ dir string }

// newCopies makes room for copies until the test ends.
func newCopies(x *rig) *copies {
	x.t.Helper()
	c := &copies{filepath.Join(x.dir, "copies")}
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		x.t.Fatal(err)
	}
	must(x.t, "mount", "-t", "tmpfs", "-o", "mode=711", "tmpfs", c.dir)
	x.t.Cleanup(func() { _ = syscall.Unmount(c.dir, syscall.MNT_DETACH) })
	return c
}

// mounted copies a point of one disk and mounts it. Then, of what that has left, it has the check made.
func (c *copies) mounted(s *shown, options string, use, check func(string) error) error {
	file, at := filepath.Join(c.dir, fmt.Sprint("disk", s.worker)), filepath.Join(c.dir, fmt.Sprint("at", s.worker))
	err := errors.Join(os.MkdirAll(at, 0o711), writeOut(s.disks[0], file))
	if err == nil {
		err = tryTool("mount", "-o", "loop,"+options, file, at)
	}
	if err != nil {
		return err
	}
	if err := errors.Join(use(at), unmount(at)); err != nil {
		return err
	}
	return check(file)
}

// unmount unmounts what nobody uses but, for a moment, a process that is being started by somebody else of this one: until it
// runs its own program it has our files open. When it returns, all is written: what is started in a mount namespace of its own, by whomever, has
// the file system mounted too until it has left for a root of its own.
func unmount(at string) error {
	device, err := deviceAt(at)
	if err != nil {
		return err
	}
	file := backing(device)
	const tries = 1000
	for range tries {
		if err = syscall.Unmount(at, 0); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	for range tries {
		if !mountedSomewhere(device, file) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s was unmounted, and its device is still in use", at)
}

// deviceAt is the device whose file system is mounted at a directory.
func deviceAt(at string) (string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == at {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("nothing is mounted at %s", at)
}

// backing is the file that a loop device shows; empty: it shows none, or is another device.
func backing(device string) string {
	text, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	return string(text)
}

// mountedSomewhere reports whether a device, which showed a file, has a file system that is mounted in any namespace. A loop device may be gone with its
// last mount, and be somebody else's.
func mountedSomewhere(device, file string) bool {
	if backing(device) != file {
		return false
	}
	f, err := os.OpenFile(device, os.O_RDONLY|syscall.O_EXCL, 0)
	if err == nil {
		f.Close()
	}
	return errors.Is(err, syscall.EBUSY)
}

// writeOut writes all of a disk to a file that is made anew.
func writeOut(d *timeline.Snapshot, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(d.Size()); err != nil {
		return err
	}
	buf, failed := make([]byte, pictureSize), error(nil)
	err = d.Extents(0, d.Size(), func(e block.Extent) bool {
		for ; !e.Hole && e.Len > 0 && failed == nil; e.Off, e.Len = e.Off+pictureSize, e.Len-pictureSize {
			p := buf[:min(e.Len, pictureSize)]
			if _, failed = d.ReadAt(p, e.Off); failed == nil && !isZero(p) {
				_, failed = f.WriteAt(p, e.Off)
			}
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}

// mountSome has the server, the real one, mount some points of the timeline that it finds in its data directory.
func (x *rig) mountSome(fs fileSystem, n *notes, count int) {
	x.t.Helper()
	list := x.positions(count)
	slices.SortFunc(list, func(a, b target) int { return int(a.pos) - int(b.pos) })
	if err := x.line.EndFeed(); err != nil {
		x.t.Fatal(err)
	}
	x.closeTimeline()
	x.start()
	p, done, err := x.picture(x.ledger.entries)
	if err != nil {
		x.t.Fatal(err)
	}
	defer done()
	at := filepath.Join(x.dir, "point")
	if err := os.MkdirAll(at, 0o700); err != nil {
		x.t.Fatal(err)
	}
	begin := time.Now()
	for _, m := range list {
		ref := fmt.Sprintf("prod@%v", m.pos)
		least, most := x.ledger.at(m.pos)
		p.reach(least)
		got := ask[tidemark.Mount](x.stage, "mount", ref)
		err := compareDevice(p, got.Device, most)
		if err == nil {
			err = tryTool("mount", "-o", fs.options, got.Device, at)
		}
		if err == nil {
			err = errors.Join(n.check(at, p.when()), unmount(at), fs.sound(got.Device))
		}
		if err != nil {
			x.t.Fatalf("%s: %v", ref, err)
		}
		x.run("unmount", got.Name)
	}
	x.t.Logf("%d mounts in %v", len(list), time.Since(begin))
	x.end(syscall.SIGTERM)
}

// compareDevice holds the only disk, as a device, to the picture, or to those up to most changes.
func compareDevice(p *picture, device string, most int) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		if err = p.compare(0, f); !errors.Is(err, errOther) || p.changes >= most {
			return errors.Join(err, p.compareRest(0, f))
		}
		p.reach(p.changes + 1)
	}
}
