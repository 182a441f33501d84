package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"tidemark/app/postgres"
	"tidemark/export/nbd"
	"tidemark/mount"
	"tidemark/timeline"
)

// captured is what one capture by a process of its own came to.
type captured struct {
	Seconds       float64 // from the first look at the cluster until its image is durable
	CopySeconds   float64 // of these, until the staging disk holds the cluster
	FoldSeconds   float64 // of these, from the bookmark on
	StoredBytes   int64   // what the pool grew by
	ChangedBytes  int64   // what was written into the staging disk's files
	ReadBytes     int64
	PeakRSS       int64 // of server and capture together, which are one process
	CPUSeconds    float64
	AttachSeconds float64 // not part of Seconds: the product leaves staging disks attached
}

// stagingSize is that of the disk a cluster is captured into.
const stagingSize = 16 << 30

// capture is what our capturing process does: it serves the timeline "pg" to
// itself, captures a cluster into it, and prints what that came to.
func capture(args []string) error {
	f := flag.NewFlagSet("capture", flag.ExitOnError)
	dir := f.String("data", "", "data `directory`")
	conn := f.String("conn", "", "of the `cluster`")
	profile := f.String("profile", "", "write a CPU profile of the capture to `file`")
	f.Parse(args)
	if *profile != "" {
		file, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx := context.Background()
	w, err := openWorld(*dir, 0)
	if err != nil {
		return err
	}
	t, err := w.named("pg")
	if err != nil {
		if t, err = w.set.Create(ctx, "pg", []timeline.DiskSpec{{Name: "data", Size: stagingSize}}, nil); err != nil {
			return err
		}
	}
	out, err := captureInto(ctx, w, t, *dir, *conn)
	if err := errors.Join(err, w.close()); err != nil {
		return err
	}
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return err
	}
	out.PeakRSS = peakRSS(os.Getpid())
	out.CPUSeconds = time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds()
	return json.NewEncoder(os.Stdout).Encode(out)
}

func captureInto(ctx context.Context, w *world, t *timeline.Timeline, dir, conn string) (out captured, err error) {
	begin := time.Now()
	t.SetBulk(true)
	staging, release, err := stage(ctx, t, dir)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, release()) }()
	out.AttachSeconds = time.Since(begin).Seconds()
	before := w.store.Stats().PhysicalBytes
	src, err := postgres.ParseSource(conn)
	if err != nil {
		return out, err
	}
	begin = time.Now()
	r, err := postgres.Capture(ctx, src, staging, postgres.CaptureOptions{Prints: dir + "/fingerprints"})
	if err != nil {
		return out, err
	}
	out.ReadBytes, out.ChangedBytes = r.ReadBytes, r.ChangedBytes
	if err := mount.Freeze(staging); err != nil {
		return out, err
	}
	out.CopySeconds = time.Since(begin).Seconds()
	_, err = t.Bookmark(timeline.Mark{Name: time.Now().Format("150405.000"), Consistency: "application"})
	if err := errors.Join(err, mount.Thaw(staging)); err != nil {
		return out, err
	}
	if err := t.Fold(ctx); err != nil {
		return out, err
	}
	if err := w.store.Sync(); err != nil {
		return out, err
	}
	out.Seconds = time.Since(begin).Seconds()
	out.FoldSeconds = out.Seconds - out.CopySeconds
	out.StoredBytes = w.store.Stats().PhysicalBytes - before
	return out, nil
}

// stage serves a timeline's disk, attaches it, formats it the first time, and
// mounts it; release undoes that.
func stage(ctx context.Context, t *timeline.Timeline, dir string) (at string, release func() error, err error) {
	table := nbd.NewTable()
	if err := table.Add(&nbd.Export{Name: t.Name(), Device: t.Disks()[0]}); err != nil {
		return "", nil, err
	}
	socket := dir + "/stage.sock"
	l, err := nbd.Listen("unix:" + socket)
	if err != nil {
		return "", nil, err
	}
	server := nbd.NewServer(table, nbd.Options{})
	go server.Serve(l)
	a, err := mount.Attach(ctx, mount.Config{Name: "staging", StateDir: filepath.Join(dir, "attached"), Socket: socket, Export: t.Name()})
	if err != nil {
		return "", nil, err
	}
	undo := func() error { return errors.Join(a.Detach(context.Background(), true), server.Close()) }
	if _, err := mount.DetectFS(a.Device()); errors.Is(err, mount.ErrNoFS) {
		err = mount.Format(a.Device(), "ext4", "staging")
		if err != nil {
			return "", nil, errors.Join(err, undo())
		}
	}
	at = dir + "/staging"
	if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", nil, errors.Join(err, undo())
	}
	if err := mount.MountFS(a.Device(), at, "ext4", []string{"noatime"}); err != nil {
		return "", nil, errors.Join(err, undo())
	}
	return at, func() error { return errors.Join(mount.Unmount(at), undo()) }, nil
}
