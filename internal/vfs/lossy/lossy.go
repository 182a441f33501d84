// Package lossy is a file system in memory, for tests, whose page cache believes itself. When it is told to fail a sync of a file, what
// was written to that file since the sync before stays readable and counts as clean: the next sync succeeds and does not write it, and a power cut shows
// what was there before. So do the file systems of Linux ("fsyncgate": Rebello and others, Can Applications Recover from fsync
// Failures?, USENIX ATC 2020).
package lossy

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"tidemark/internal/vfs"
)

// pageSize is what is clean or dirty as a whole, in bytes.
const pageSize = 4096

// FS is such a file system. It is safe for concurrent use.
type FS struct {
	vfs.FS
	mem *vfs.MemFS

	mu    sync.Mutex
	disks map[string]*disk // by name of the file; guarded by mu
	fails func(path string) bool
}

// disk is what a file has on the disk, and which of its pages are still to be written there.
type disk struct {
	content []byte
	dirty   map[int64]bool
}

// New returns an empty file system.
func New() *FS {
	mem := vfs.NewMem()
	return &FS{FS: mem, mem: mem, disks: map[string]*disk{}, fails: func(string) bool { return false }}
}

// FailSync has the syncs of files fail for which fails returns true; it is not called concurrently.
func (fs *FS) FailSync(fails func(path string) bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.fails = fails
}

// PowerCut returns what is found after one: all that syncs have written, and nothing else.
func (fs *FS) PowerCut() (*FS, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	mem := vfs.Crash(fs.mem, 0, rand.New(rand.NewPCG(1, 1)))
	after := &FS{FS: mem, mem: mem, disks: map[string]*disk{}, fails: func(string) bool { return false }}
	for path, d := range fs.disks {
		if _, err := mem.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue // its name was not synced
		}
		f, err := vfs.Create(mem, path)
		if err != nil {
			return nil, err
		}
		_, err = f.WriteAt(d.content, 0)
		if err := errors.Join(err, f.Sync(), f.Close(), vfs.SyncDir(mem, mem.PathDir(path))); err != nil {
			return nil, err
		}
		after.disks[path] = &disk{content: append([]byte{}, d.content...), dirty: map[int64]bool{}}
	}
	return after, nil
}

// Create implements vfs.FS.
func (fs *FS) Create(path string, c pebblevfs.DiskWriteCategory) (vfs.File, error) {
	f, err := fs.FS.Create(path, c)
	if err != nil {
		return nil, err
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.disks, path)
	return fs.wrap(path, f), nil
}

// OpenReadWrite implements vfs.FS.
func (fs *FS) OpenReadWrite(path string, c pebblevfs.DiskWriteCategory, o ...pebblevfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(path, c, o...)
	if err != nil {
		return nil, err
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.wrap(path, f), nil
}

// wrap returns f, the file at path. The caller holds mu.
func (fs *FS) wrap(path string, f vfs.File) vfs.File {
	d := fs.disks[path]
	if d == nil {
		d = &disk{dirty: map[int64]bool{}}
		fs.disks[path] = d
	}
	return &file{File: f, fs: fs, path: path, d: d}
}

// Link implements vfs.FS.
func (fs *FS) Link(from, to string) error { return fs.rename(from, to, fs.FS.Link, false) }

// Rename implements vfs.FS.
func (fs *FS) Rename(from, to string) error { return fs.rename(from, to, fs.FS.Rename, true) }

func (fs *FS) rename(from, to string, do func(from, to string) error, move bool) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if err := do(from, to); err != nil {
		return err
	}
	if d := fs.disks[from]; d != nil {
		fs.disks[to] = d
	}
	if move {
		delete(fs.disks, from)
	}
	return nil
}

// Remove implements vfs.FS.
func (fs *FS) Remove(path string) error {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	err := fs.FS.Remove(path)
	if err == nil {
		delete(fs.disks, path)
	}
	return err
}

// file is an open file.
type file struct {
	vfs.File
	fs   *FS
	path string
	d    *disk

	mu  sync.Mutex
	end int64 // where Write goes on; guarded by mu
}

// Write implements vfs.File.
func (f *file) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.File.Write(p)
	f.touch(f.end, n)
	f.end += int64(n)
	return n, err
}

// WriteAt implements vfs.File.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.touch(off, n)
	return n, err
}

// touch marks the pages of n bytes at off dirty.
func (f *file) touch(off int64, n int) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	for p := off / pageSize; p*pageSize < off+int64(n); p++ {
		f.d.dirty[p] = true
	}
}

// SyncData implements vfs.File.
func (f *file) SyncData() error { return f.Sync() }

// SyncTo implements vfs.File.
func (f *file) SyncTo(int64) (bool, error) { return true, f.Sync() }

// Sync implements vfs.File.
func (f *file) Sync() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	defer clear(f.d.dirty)
	if f.fs.fails(f.path) {
		return syscall.EIO
	}
	for p := range f.d.dirty {
		if err := f.writePage(p); err != nil {
			return err
		}
	}
	return f.File.Sync()
}

// writePage brings a page to the disk. The caller holds the file system's mu.
func (f *file) writePage(p int64) error {
	st, err := f.File.Stat()
	if err != nil {
		return err
	}
	from, to := p*pageSize, min((p+1)*pageSize, st.Size())
	if n := to - int64(len(f.d.content)); n > 0 {
		f.d.content = append(f.d.content, make([]byte, n)...)
	}
	_, err = f.File.ReadAt(f.d.content[from:to], from)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}
