// Package vfs provides the seam through which every durable file of Tidemark is
// written: on a real disk in production, and in tests on a file system that
// forgets what was not synced, or fails where it is told to.
//
// It is Pebble's file system interface, so that the index (which is Pebble) and
// our own packs, journals and state files share one crash. Files opened here
// follow POSIX: what was written may be lost at a crash until Sync (or
// SyncData) returns, and a created, renamed or removed name may be undone until
// its directory was synced.
//
// # Two rules
//
//   - All durable small files are written by [WriteFile], the only caller of
//     Rename outside of tests. internal/tidy holds the rule.
//   - A failed Sync is final for that file: the kernel may have dropped the
//     dirty pages and called them clean, so that a second Sync "succeeds".
//     Nobody may acknowledge data after it. (See PostgreSQL's "fsyncgate".)
package vfs

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system; File one open file of it. Both are safe for concurrent use.
type (
	FS   = pebblevfs.FS
	File = pebblevfs.File
)

// OS is the file system of this machine.
var OS FS = pebblevfs.Default

// category labels our writes for Pebble's disk statistics.
const category = pebblevfs.WriteCategoryUnspecified

// MemFS is a file system in memory that can be crashed.
type MemFS = pebblevfs.MemFS

// NewMem returns an empty file system in memory that remembers what was synced.
func NewMem() *MemFS { return pebblevfs.NewCrashableMem() }

// Crash returns what would be found after a power cut now: all that was synced,
// and each unsynced 4 KiB block and directory entry with a chance of keep
// percent. The old file system goes on unharmed.
func Crash(fs *MemFS, keep int, rng *rand.Rand) *MemFS {
	return fs.CrashClone(pebblevfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: rng})
}

// Create makes an empty file that can be read and written at any offset. It
// replaces a file of the same name. The name is durable after [SyncDir].
func Create(fs FS, path string) (File, error) {
	if err := fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return fs.OpenReadWrite(path, category)
}

// OpenReadWrite opens a file for reading and writing at any offset, and creates
// it if it is absent.
func OpenReadWrite(fs FS, path string) (File, error) { return fs.OpenReadWrite(path, category) }

// OnDiskFull returns fs, which calls fn when the disk is full and then tries
// once more. Others who write through it wait meanwhile.
func OnDiskFull(fs FS, fn func()) FS { return pebblevfs.OnDiskFull(fs, fn) }

// SyncDir makes the names in dir durable.
func SyncDir(fs FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MkdirAll makes dir and its parents, and makes the names of those that were
// missing durable, and that of the deepest one that was there: whoever made it may have been
// cut off before.
func MkdirAll(fs FS, dir string) error {
	top := dir
	for _, err := fs.Stat(top); errors.Is(err, os.ErrNotExist) && top != fs.PathDir(top); _, err = fs.Stat(top) {
		top = fs.PathDir(top)
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for d := dir; d != fs.PathDir(d); d = fs.PathDir(d) {
		if err := SyncDir(fs, fs.PathDir(d)); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		if d == top {
			break
		}
	}
	return nil
}

// WriteFile replaces the file at path by data. When it returns nil the new
// content survives a power cut; when it returns an error, or the power is cut
// while it runs, either the old or the new content is there, whole.
func WriteFile(fs FS, path string, data []byte) (err error) {
	tmp := path + ".tmp"
	f, err := Create(fs, tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(tmp))
	}
	return Rename(fs, tmp, path)
}

// rewriteWindow is how much WriteAgain has in memory.
const rewriteWindow = 1 << 20

// WriteAgain writes the bytes in [from, to) of a file, which has them, over themselves. A sync that failed may have left them in the page cache, where they look as if
// they were on the disk; the next sync writes what was written since.
func WriteAgain(f File, from, to int64) error {
	buf := make([]byte, max(0, min(to-from, rewriteWindow)))
	for ; from < to; from += int64(len(buf)) {
		buf = buf[:min(to-from, int64(len(buf)))]
		if _, err := io.ReadFull(io.NewSectionReader(f, from, int64(len(buf))), buf); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf, from); err != nil {
			return err
		}
	}
	return nil
}

// Rename gives a synced file its final name, durably.
func Rename(fs FS, from, to string) error {
	if err := fs.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(fs, fs.PathDir(to))
}

// ReadFile returns the content of the file at path.
func ReadFile(fs FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size()), data); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return data, nil
}
