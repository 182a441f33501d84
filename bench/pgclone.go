package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/app/volume"
	"tidemark/mount"
	"tidemark/timeline"

	"golang.org/x/sys/unix"
)

const (
	plain   = "plain ext4"
	btrfs   = "btrfs snapshot"
	tide150 = "tidemark, 150 GB disk"
)

// pgSide is a way from "I want a copy" to a data directory that a server can
// start on. undo takes the copy away again, after the server has stopped.
type pgSide struct {
	side string
	up   func(ctx context.Context, round int) (dir string, undo func() error, err error)
}

// benchPGClone brings a database up on a copy, and lets pgbench run there.
func benchPGClone(ctx context.Context, e *env, r *Result) error {
	scale := 100 // 1.5 GB
	if e.quick {
		scale = 6
	}
	root := e.disk + "/src"
	if err := os.Chmod(e.disk, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	c, err := newCluster(ctx, root, scale)
	if err != nil {
		return err
	}
	if err := c.stop(stopFast); err != nil {
		return err
	}
	pool, err := newBtrfs(ctx, e.disk+"/btrfs", 6<<30)
	if err != nil {
		return err
	}
	defer pool.remove()
	if err := e.pgDisks(ctx, root, pool); err != nil {
		return err
	}
	t, err := e.serveOurs(ctx, e.disk+"/data", e.disk+"/tidemark.sock", quarterOfMemory(), r.Name)
	if err != nil {
		return err
	}
	defer stopAll(t)
	sides := []pgSide{e.upPlain(root), e.upBtrfs(pool), e.upQSD(), e.upOurs(t, tide, "golden"), e.upOurs(t, tide150, "golden150")}
	if err := e.roundsPG(ctx, r, c.sockets, sides); err != nil {
		return err
	}
	rowsPG(r)
	if err := e.journalCost(ctx, r, t, c.sockets); err != nil {
		return err
	}
	r.note("A database of %d MB at rest, on a disk, everything in the page cache. Plain ext4 is the server's own start on files that are there already.", scale*15)
	return nil
}

// pgDisks makes what the sides clone: raw disks with ext4 that hold the data
// directory, our timelines of them, and a btrfs that holds the same files.
func (e *env) pgDisks(ctx context.Context, root string, pool *btrfsPool) error {
	w, err := openWorld(e.disk+"/data", 0)
	if err != nil {
		return err
	}
	for name, size := range map[string]int64{"golden": 4 << 30, "golden150": 150e9 / 4096 * 4096} {
		raw := fmt.Sprintf("%s/%s.raw", e.disk, name)
		if err := sparseFile(raw, size); err != nil {
			return err
		}
		if _, err := run(ctx, "mkfs.ext4", "-q", "-F", "-d", root, raw); err != nil {
			return err
		}
		t, err := w.set.Create(ctx, name, []timeline.DiskSpec{{Name: "disk", Size: size}}, nil)
		if err != nil {
			return err
		}
		t.SetBulk(true)
		if _, err := volume.Import(ctx, raw, t.Disks()[0], volume.Options{}); err != nil {
			return err
		}
		if _, err := t.Bookmark(timeline.Mark{Name: "golden"}); err != nil {
			return err
		}
		if err := t.Fold(ctx); err != nil {
			return err
		}
	}
	if err := w.close(); err != nil {
		return err
	}
	if _, err := run(ctx, "cp", "-a", root+"/pg", pool.src+"/"); err != nil {
		return err
	}
	_, err = run(ctx, "sync", "-f", pool.at)
	return err
}

func sparseFile(file string, size int64) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (e *env) upPlain(root string) pgSide {
	return pgSide{plain, func(ctx context.Context, round int) (string, func() error, error) {
		return root + "/pg", func() error { return nil }, nil
	}}
}

func (e *env) upBtrfs(pool *btrfsPool) pgSide {
	return pgSide{btrfs, func(ctx context.Context, round int) (string, func() error, error) {
		clone := fmt.Sprintf("%s/clone%d", pool.at, round)
		_, err := run(ctx, "btrfs", "subvolume", "snapshot", pool.src, clone)
		return clone + "/pg", func() error {
			_, err := run(context.Background(), "btrfs", "subvolume", "delete", clone)
			return err
		}, err
	}}
}

func (e *env) upQSD() pgSide {
	return pgSide{qsd, func(ctx context.Context, round int) (string, func() error, error) {
		file := fmt.Sprintf("%s/overlay%d.qcow2", e.disk, round)
		if err := overlay(ctx, file, e.disk+"/golden.raw", "raw"); err != nil {
			return "", nil, err
		}
		a, err := attachQSD(ctx, file, "qcow2", e.disk+"/qsd")
		if err != nil {
			return "", nil, err
		}
		return e.mountPG(a, fmt.Sprintf("%s/mnt-qsd%d", e.disk, round))
	}}
}

func (e *env) upOurs(t *server, side, of string) pgSide {
	return pgSide{side, func(ctx context.Context, round int) (string, func() error, error) {
		clone := fmt.Sprintf("%s@%s-%d", of, of, round)
		a, err := e.attachOurs(ctx, t, clone, filepath.Join(e.disk, "attached"))
		if err != nil {
			return "", nil, err
		}
		return e.mountPG(a, fmt.Sprintf("%s/mnt-%s", e.disk, clone))
	}}
}

// mountPG mounts an attached disk and returns the data directory on it.
func (e *env) mountPG(a *attached, at string) (string, func() error, error) {
	if err := errors.Join(os.MkdirAll(at, 0o755), mount.MountFS(a.device, at, "ext4", []string{"noatime"})); err != nil {
		return "", nil, errors.Join(err, a.detach())
	}
	return at + "/pg", func() error { return errors.Join(mount.Unmount(at), a.detach()) }, nil
}

func (e *env) roundsPG(ctx context.Context, r *Result, sockets string, sides []pgSide) error {
	for round := range e.rounds {
		for _, s := range sides {
			if err := e.turnPG(ctx, r, sockets, s, round); err != nil {
				return fmt.Errorf("%s: %w", s.side, err)
			}
		}
		slices.Reverse(sides)
	}
	return nil
}

// turnPG times one side's copy until it answers, and then loads it.
func (e *env) turnPG(ctx context.Context, r *Result, sockets string, s pgSide, round int) (err error) {
	begin := time.Now()
	dir, undo, err := s.up(ctx, round)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()
	cloned := time.Since(begin)
	c, err := startPG(dir, sockets)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(c.stop(stopFast), err) }()
	if err := c.ready(ctx); err != nil {
		return err
	}
	v := map[string]float64{"s": time.Since(begin).Seconds(), "clone_s": cloned.Seconds()}
	if s.side != tide150 {
		span := "5"
		if e.quick {
			span = "2"
		}
		if v["tps"], err = c.pgbench(ctx, "-c", "8", "-j", "2", "-T", span); err != nil {
			return err
		}
	}
	r.add(Sample{s.side, "copy", round, v})
	return nil
}

func rowsPG(r *Result) {
	seconds := func(side, unit string) string { return number(r.median(side, "copy", unit)) }
	for _, side := range []string{tide, tide150} {
		r.row(side+": clone to SELECT 1 ÷ "+btrfs, r.ratio(side, btrfs, "copy", "s"), "x", atMost(1.5), atMost(1.15),
			"%s s, %s of them until mounted; btrfs %s s; qemu-storage-daemon %s s; the server's own start %s s",
			seconds(side, "s"), seconds(side, "clone_s"), seconds(btrfs, "s"), seconds(qsd, "s"), seconds(plain, "s"))
	}
	r.row("clone to SELECT 1, 150 GB sparse disk ÷ the small one", r.ratio(tide150, tide, "copy", "s"), "x", Bound{}, Bound{}, "a disk of 4 GiB; the same files on both")
	tps := func(side string) string { return number(r.median(side, "copy", "tps")) }
	r.row("pgbench on the clone ÷ "+qsd, r.ratio(tide, qsd, "copy", "tps"), "x", atLeast(1), atLeast(1.7),
		"%s against %s transactions/s; btrfs %s, plain ext4 %s", tps(tide), tps(qsd), tps(btrfs), tps(plain))
	r.row("pgbench on the clone ÷ "+plain, r.ratio(tide, plain, "copy", "tps"), "x", Bound{}, atLeast(0.65), "")
}

// journalCost says what keeping all that a database wrote takes, in the journal
// as it is written and in the image that it is folded into.
func (e *env) journalCost(ctx context.Context, r *Result, t *server, sockets string) error {
	a, err := e.attachOurs(ctx, t, "golden@writes", filepath.Join(e.disk, "attached"))
	if err != nil {
		return err
	}
	dir, undo, err := e.mountPG(a, e.disk+"/mnt-writes")
	if err != nil {
		return err
	}
	raw, err := e.work(ctx, dir, sockets, a.device)
	if err := errors.Join(err, undo()); err != nil {
		return err
	}
	stopAll(t)
	w, err := openWorld(e.disk+"/data", 0)
	if err != nil {
		return err
	}
	defer w.close()
	line, err := w.named("writes")
	if err != nil {
		return err
	}
	written := float64(line.JournalBytes())
	if err := line.SetWindow(timeline.Window{For: 24 * time.Hour}); err != nil {
		return err
	}
	if _, err := line.Bookmark(timeline.Mark{Name: "worked"}); err != nil {
		return err
	}
	if err := errors.Join(line.Fold(ctx), line.Pack(ctx)); err != nil {
		return err
	}
	stored, journal := float64(line.StoredBytes()), float64(line.JournalBytes())
	r.row("journal + image bytes ÷ raw bytes written, any-point window open", (journal+stored)/raw, "x", atMost(0.35), atMost(0.22),
		"%s MB of writes through ext4: journal %s (%s before it was packed), image %s",
		number(raw/1e6), number(journal/1e6), number(written/1e6), number(stored/1e6))
	if err := errors.Join(line.SetWindow(timeline.Window{}), line.Fold(ctx)); err != nil {
		return err
	}
	r.row("the same when the window has passed", (float64(line.JournalBytes())+stored)/raw, "x", Bound{}, Bound{}, "journal %s MB", number(float64(line.JournalBytes())/1e6))
	return nil
}

// work runs pgbench on a mounted clone and returns the bytes its device was
// told to write.
func (e *env) work(ctx context.Context, dir, sockets, device string) (float64, error) {
	before, err := written(device)
	if err != nil {
		return 0, err
	}
	c, err := startPG(dir, sockets)
	if err != nil {
		return 0, err
	}
	transactions := "8000"
	if e.quick {
		transactions = "200"
	}
	err = c.ready(ctx)
	if err == nil {
		_, err = c.pgbench(ctx, "-c", "8", "-j", "2", "-t", transactions)
	}
	if err := errors.Join(err, c.stop(stopFast)); err != nil {
		return 0, err
	}
	if _, err := run(ctx, "sync", "-f", dir); err != nil {
		return 0, err
	}
	after, err := written(device)
	return after - before, err
}

// written returns the bytes a block device was ever told to write.
func written(device string) (float64, error) {
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	if err != nil {
		return 0, err
	}
	sectors, err := strconv.ParseFloat(strings.Fields(string(b))[6], 64)
	return sectors * 512, err
}

// quarterOfMemory is what the product takes for decoded chunks unless told otherwise.
func quarterOfMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0 // the store's own default
	}
	return int64(info.Totalram) * int64(info.Unit) / 4
}
