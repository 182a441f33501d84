package control

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"tidemark/internal/vfs"
)

// A server has its data directory for as long as it has the lock of that. Storage that machines share takes a lock from one that does not answer for a while,
// stopped or cut off, and gives it to the server that stands by; the first one does not hear of it, and goes on when it can. So who has got the lock
// also makes a new file in the directory. Who has not looked for a moment looks at it before anything is called durable, or deleted.

// ownerFresh is for how long it holds that the directory was ours: far less than any storage waits before it takes a lock away.
const ownerFresh = time.Second

// owner is who has the data directory. Its methods may be called concurrently.
type owner struct {
	path string
	mine ownerFile
	seen atomic.Int64 // when the directory was ours, in nanoseconds since the machine was started, sleep included
	lost func(error)  // called when it is another's
}

// ownerFile tells the file of one owner from that of another. To look at it takes no descriptor, of which there may be none left.
type ownerFile struct {
	dev, ino uint64
	written  unix.Timespec
}

func lookAtOwner(path string) (ownerFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ownerFile{}, fmt.Errorf("whose the data directory is cannot be told: %s: %w", path, err)
	}
	return ownerFile{st.Dev, st.Ino, st.Mtim}, nil
}

// takeOwnership makes a new file in the directory, whose lock is held. What is in it is for people.
func takeOwnership(path string, lost func(error)) (*owner, error) {
	w := &owner{path: path, lost: lost}
	host, _ := os.Hostname()
	err := vfs.WriteFile(vfs.OS, path, fmt.Appendf(nil, "process %d on %s since %s\n", os.Getpid(), host, time.Now().UTC().Format(time.RFC3339Nano)))
	if err == nil {
		w.mine, err = lookAtOwner(path)
	}
	if err != nil {
		return nil, fmt.Errorf("take the data directory: %w", err)
	}
	w.seen.Store(sinceBoot())
	return w, nil
}

// sinceBoot also counts while a process is stopped, or the machine asleep: clock_gettime(2), CLOCK_BOOTTIME.
func sinceBoot() int64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return t.Nano()
}

// check returns an error unless the directory is ours.
func (w *owner) check() error {
	now := sinceBoot()
	if now-w.seen.Load() < int64(ownerFresh) {
		return nil
	}
	found, err := lookAtOwner(w.path)
	if err != nil {
		return err
	}
	if found != w.mine {
		err := fmt.Errorf("another server has taken over the data directory (%s)", w.path)
		w.lost(err)
		return err
	}
	w.seen.Store(now)
	return nil
}

// watch looks again and again, until done is closed.
func (w *owner) watch(done <-chan struct{}) {
	tick := time.NewTicker(ownerFresh / 2)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			w.seen.Store(min(w.seen.Load(), sinceBoot()-int64(ownerFresh)))
			_ = w.check() // who wants to write is told, and if the directory is another's that was done
		}
	}
}

// ownedFS is the machine's file system for what is in a data directory: nothing is durable, or deleted, unless the directory is ours.
type ownedFS struct {
	vfs.FS
	w *owner
}

// Create implements vfs.FS.
func (fs ownedFS) Create(path string, c pebblevfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(path, c)
	return fs.file(f, err)
}

// OpenReadWrite implements vfs.FS.
func (fs ownedFS) OpenReadWrite(path string, c pebblevfs.DiskWriteCategory, o ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(path, c, o...)
	return fs.file(f, err)
}

// ReuseForWrite implements vfs.FS.
func (fs ownedFS) ReuseForWrite(from, to string, c pebblevfs.DiskWriteCategory) (vfs.File, error) {
	if err := fs.w.check(); err != nil {
		return nil, err
	}
	f, err := fs.FS.ReuseForWrite(from, to, c)
	return fs.file(f, err)
}

// OpenDir implements vfs.FS.
func (fs ownedFS) OpenDir(path string) (vfs.File, error) {
	f, err := fs.FS.OpenDir(path)
	return fs.file(f, err)
}

func (fs ownedFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return ownedFile{f, fs.w}, nil
}

// Remove implements vfs.FS.
func (fs ownedFS) Remove(path string) error {
	if err := fs.w.check(); err != nil {
		return err
	}
	return fs.FS.Remove(path)
}

// RemoveAll implements vfs.FS.
func (fs ownedFS) RemoveAll(path string) error {
	if err := fs.w.check(); err != nil {
		return err
	}
	return fs.FS.RemoveAll(path)
}

// Rename implements vfs.FS.
func (fs ownedFS) Rename(from, to string) error {
	if err := fs.w.check(); err != nil {
		return err
	}
	return fs.FS.Rename(from, to)
}

// Link implements vfs.FS.
func (fs ownedFS) Link(from, to string) error {
	if err := fs.w.check(); err != nil {
		return err
	}
	return fs.FS.Link(from, to)
}

// ownedFile is a file of an ownedFS.
type ownedFile struct {
	vfs.File
	w *owner
}

// Sync implements vfs.File.
func (f ownedFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	return f.w.check()
}

// SyncData implements vfs.File.
func (f ownedFile) SyncData() error {
	if err := f.File.SyncData(); err != nil {
		return err
	}
	return f.w.check()
}
