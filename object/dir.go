package object

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"tidemark/internal/vfs"
)

// Dir is a bucket in a directory: each object is a file, whose path is its key.
// An object is written beside its place, synced, renamed, and its directory
// synced, so that a crash leaves it whole or absent.
type Dir struct {
	fs   vfs.FS
	root string

	mu      sync.Mutex
	open    map[string]*openFile // files kept open for reading
	clock   uint64
	pending map[string]bool // keys being put
	temp    uint64
}

type openFile struct {
	vfs.File
	refs int
	used uint64
	gone bool // deleted: close with the last reference
}

// maxOpen is how many files a Dir keeps open. Packs of 64 MiB: 32 GiB within reach without an open call.
const maxOpen = 512

// OpenDir opens the bucket in the directory root, which is made if it is
// missing. What a crash left of unfinished puts is removed.
func OpenDir(fs vfs.FS, root string) (*Dir, error) {
	d := &Dir{fs: fs, root: root, open: map[string]*openFile{}, pending: map[string]bool{}}
	tmp := fs.PathJoin(root, tempDir)
	if err := vfs.MkdirAll(fs, tmp); err != nil {
		return nil, fmt.Errorf("open the bucket in %s: %w", root, err)
	}
	names, err := fs.List(tmp)
	if err != nil {
		return nil, fmt.Errorf("open the bucket in %s: %w", root, err)
	}
	for _, n := range names {
		if err := fs.Remove(fs.PathJoin(tmp, n)); err != nil {
			return nil, fmt.Errorf("open the bucket in %s: %w", root, err)
		}
	}
	return d, nil
}

// tempDir holds what is being put. No key can begin with a dot.
const tempDir = ".tmp"

func (d *Dir) path(key string) string { return d.fs.PathJoin(d.root, key) }

// claim reserves key for one put.
func (d *Dir) claim(key string) (tmp string, err error) {
	if err := CheckKey(key); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.fs.Stat(d.path(key)); err == nil || d.pending[key] {
		return "", fmt.Errorf("%w: %s", ErrExists, key)
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	d.pending[key] = true
	d.temp++
	return d.fs.PathJoin(d.root, tempDir, fmt.Sprintf("put-%d", d.temp)), nil
}

func (d *Dir) unclaim(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.pending, key)
}

// Put implements [Bucket].
func (d *Dir) Put(ctx context.Context, key string, r io.Reader, size int64) error {
	tmp, err := d.claim(key)
	if err != nil {
		return err
	}
	defer d.unclaim(key)
	if err := d.writeTemp(ctx, tmp, r, size); err != nil {
		return errors.Join(fmt.Errorf("put %s: %w", key, err), ignoreAbsent(d.fs.Remove(tmp)))
	}
	return d.publish(tmp, key)
}

// Adopt makes the synced file at path, on the bucket's file system, the object key. It is Put without the copy.
func (d *Dir) Adopt(_ context.Context, key, path string) error {
	if _, err := d.claim(key); err != nil {
		return err
	}
	defer d.unclaim(key)
	return d.publish(path, key)
}

func (d *Dir) publish(from, key string) error {
	to := d.path(key)
	if _, err := d.fs.Stat(d.fs.PathDir(to)); err != nil {
		if err := vfs.MkdirAll(d.fs, d.fs.PathDir(to)); err != nil {
			return fmt.Errorf("put %s: %w", key, err)
		}
	}
	if err := vfs.Rename(d.fs, from, to); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (d *Dir) writeTemp(ctx context.Context, tmp string, r io.Reader, size int64) (err error) {
	f, err := vfs.Create(d.fs, tmp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	buf := make([]byte, min(size+1, 1<<20))
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
		if err == io.EOF {
			if at != size {
				return fmt.Errorf("%d bytes were announced, and %d came", size, at)
			}
			return f.Sync()
		}
		if err != nil {
			return err
		}
	}
}

// ReadAt implements [Bucket].
func (d *Dir) ReadAt(_ context.Context, key string, p []byte, off int64) error {
	f, err := d.acquire(key)
	if err != nil {
		return err
	}
	defer d.release(key, f)
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s: %w", key, err)
}

func (d *Dir) acquire(key string) (*openFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clock++
	if f := d.open[key]; f != nil {
		f.refs++
		f.used = d.clock
		return f, nil
	}
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	file, err := d.fs.Open(d.path(key))
	if err != nil {
		return nil, notFound(key, err)
	}
	if len(d.open) >= maxOpen {
		d.closeOldest()
	}
	f := &openFile{File: file, refs: 1, used: d.clock}
	d.open[key] = f
	return f, nil
}

func (d *Dir) closeOldest() {
	oldest := ""
	for k, f := range d.open {
		if f.refs == 0 && (oldest == "" || f.used < d.open[oldest].used) {
			oldest = k
		}
	}
	if oldest != "" {
		d.open[oldest].Close()
		delete(d.open, oldest)
	}
}

func (d *Dir) release(_ string, f *openFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f.refs--; f.refs == 0 && f.gone {
		f.Close()
	}
}

func notFound(key string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return fmt.Errorf("open %s: %w", key, err)
}

// Stat implements [Bucket].
func (d *Dir) Stat(_ context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	st, err := d.fs.Stat(d.path(key))
	if err != nil {
		return Info{}, notFound(key, err)
	}
	return Info{Key: key, Size: st.Size()}, nil
}

// List implements [Bucket].
func (d *Dir) List(ctx context.Context, prefix string, fn func(Info) error) error {
	var found []Info
	if err := d.walk(ctx, "", &found); err != nil {
		return fmt.Errorf("list %q: %w", prefix, err)
	}
	slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Key, b.Key) })
	for _, o := range found {
		if strings.HasPrefix(o.Key, prefix) {
			if err := fn(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// walk finds the objects below the key prefix dir.
func (d *Dir) walk(ctx context.Context, dir string, found *[]Info) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := d.fs.List(d.fs.PathJoin(d.root, dir))
	if err != nil {
		return err
	}
	for _, n := range names {
		key := strings.TrimPrefix(dir+"/"+n, "/")
		if CheckKey(key) != nil {
			continue // not ours: .tmp, lost+found …
		}
		st, err := d.fs.Stat(d.path(key))
		switch {
		case errors.Is(err, os.ErrNotExist): // deleted meanwhile
		case err != nil:
			return err
		case st.IsDir():
			if err := d.walk(ctx, key, found); err != nil {
				return err
			}
		default:
			*found = append(*found, Info{Key: key, Size: st.Size()})
		}
	}
	return nil
}

// Delete implements [Bucket].
func (d *Dir) Delete(_ context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	d.mu.Lock()
	if f := d.open[key]; f != nil {
		f.gone = true
		if f.refs == 0 {
			f.Close()
		}
		delete(d.open, key)
	}
	d.mu.Unlock()
	if err := d.fs.Remove(d.path(key)); err != nil {
		if ignoreAbsent(err) == nil {
			return nil
		}
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return vfs.SyncDir(d.fs, d.fs.PathDir(d.path(key)))
}

// Close closes the files that are kept open.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for k, f := range d.open {
		err = errors.Join(err, f.Close())
		delete(d.open, k)
	}
	return err
}
