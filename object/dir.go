package object

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"

	"tidemark/internal/vfs"
)

// maxHandles is how many files a Dir keeps open for reading: far below the
// usual limit of 1024 a process, enough for the packs of a busy pool.
const maxHandles = 256

// tmpDir holds files on their way in; a key cannot begin with a dot.
const tmpDir = ".tmp"

// Adopter is the power of a bucket that can take over a file instead of copying it.
type Adopter interface {
	// Adopt makes the file at path, which the caller has synced and will not
	// write again, the object of that key. The outcomes are those of Put. The
	// file keeps its old name too, which is the caller's to remove.
	Adopt(ctx context.Context, key, path string) error
}

// Dir is a [Bucket] in a directory: one file an object, its path the key. It
// also has the powers of an [Adopter] and a [NowReader].
//
// An object comes in under a temporary name, is synced, linked to its own name,
// and then its directory is synced. A link, unlike a rename, fails when the name
// is taken, so two processes that put the same key cannot both win.
type Dir struct {
	fs   vfs.FS
	root string

	mu   sync.Mutex
	open map[string]*list.Element // of *handle; guarded by mu
	lru  *list.List               // front is the most recently used; guarded by mu
	dirs map[string]bool          // directories known to be durable; guarded by mu
}

// handle is a file open for reading; it is closed when the last user let go.
type handle struct {
	key  string
	f    vfs.File
	refs int     // users, plus one while it is in the table; guarded by Dir.mu
	now  nowMode // atomic; see ReadAtNow
}

var _ Adopter = (*Dir)(nil)

// OpenDir opens the bucket in the directory root, which it makes if there is
// none, and removes what interrupted Puts left.
func OpenDir(fsys vfs.FS, root string) (*Dir, error) {
	tmp := fsys.PathJoin(root, tmpDir)
	if err := vfs.MkdirAll(fsys, tmp); err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	names, err := fsys.List(tmp)
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	for _, n := range names {
		if err := fsys.Remove(fsys.PathJoin(tmp, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open bucket: %w", err)
		}
	}
	return &Dir{fs: fsys, root: root, open: map[string]*list.Element{}, lru: list.New(), dirs: map[string]bool{}}, nil
}

func (d *Dir) path(key string) string { return d.fs.PathJoin(d.root, key) }

// Put implements [Bucket].
func (d *Dir) Put(ctx context.Context, key string, r io.Reader, size int64) (err error) {
	if err := CheckKey(key); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("put %s: %w", key, err)
		}
	}()
	if _, err := d.Stat(ctx, key); err == nil {
		return existing(vfs.SyncDir(d.fs, d.fs.PathDir(d.path(key)))) // as in link
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	tmp := d.fs.PathJoin(d.root, tmpDir, fmt.Sprintf("%016x", rand.Uint64()))
	if err := d.writeTmp(ctx, tmp, r, size); err != nil {
		return errors.Join(err, d.removeTmp(tmp))
	}
	err = d.link(tmp, key)
	return errors.Join(err, d.removeTmp(tmp))
}

// existing is ErrExists, unless that what is there could not be made durable.
func existing(err error) error {
	if err != nil {
		return err
	}
	return ErrExists
}

func (d *Dir) removeTmp(tmp string) error {
	if err := d.fs.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *Dir) writeTmp(ctx context.Context, tmp string, r io.Reader, size int64) error {
	f, err := vfs.Create(d.fs, tmp)
	if err != nil {
		return err
	}
	err = copyAll(ctx, f, r, size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// copyAll copies exactly size bytes.
func copyAll(ctx context.Context, f io.WriterAt, r io.Reader, size int64) error {
	buf := make([]byte, min(size+1, 1<<20))
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf[:min(size-off+1, int64(len(buf)))])
		if off+int64(n) > size {
			return fmt.Errorf("more than the %d bytes announced", size)
		}
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case err == nil:
		case (err == io.EOF || err == io.ErrUnexpectedEOF) && off == size:
			return nil
		case err == io.EOF:
			return fmt.Errorf("%w: got %d of %d bytes", io.ErrUnexpectedEOF, off, size)
		default:
			return err
		}
	}
}

// link gives a synced file the name of key, durably.
func (d *Dir) link(from, key string) error {
	to := d.path(key)
	dir := d.fs.PathDir(to)
	if err := d.mkdir(dir); err != nil {
		return err
	}
	if err := d.fs.Link(from, to); err != nil {
		if errors.Is(err, fs.ErrExist) { // but whoever made it may have been killed before it was durable
			return existing(vfs.SyncDir(d.fs, dir))
		}
		return err
	}
	if err := vfs.SyncDir(d.fs, dir); err != nil {
		// The name may or may not survive: take it back, so that absent is the answer.
		return errors.Join(err, d.fs.Remove(to))
	}
	return nil
}

func (d *Dir) mkdir(dir string) error {
	d.mu.Lock()
	known := d.dirs[dir]
	d.mu.Unlock()
	if known {
		return nil
	}
	if err := vfs.MkdirAll(d.fs, dir); err != nil {
		return err
	}
	d.mu.Lock()
	d.dirs[dir] = true
	d.mu.Unlock()
	return nil
}

// Adopt implements [Adopter]. It fails, and changes nothing, when the file is
// on another file system.
func (d *Dir) Adopt(ctx context.Context, key, from string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.link(from, key); err != nil {
		return fmt.Errorf("adopt %s: %w", key, err)
	}
	return nil
}

// ReadAt implements [Bucket].
func (d *Dir) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	h, err := d.acquire(key)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, notFound(err))
	}
	defer d.release(h)
	if err := ctx.Err(); err != nil {
		return err
	}
	n, err := h.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at %d: %w", key, off, err)
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return err
}

// acquire returns the open file of key; the caller releases it.
func (d *Dir) acquire(key string) (*handle, error) {
	d.mu.Lock()
	if e, ok := d.open[key]; ok {
		d.lru.MoveToFront(e)
		h := e.Value.(*handle)
		h.refs++
		d.mu.Unlock()
		return h, nil
	}
	d.mu.Unlock()
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	f, err := d.fs.Open(d.path(key))
	if err != nil {
		return nil, err
	}
	h := &handle{key: key, f: f, refs: 2}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.open[key]; ok { // another reader was faster: keep his, use ours once
		h.refs = 1
		d.lru.MoveToFront(e)
		return h, nil
	}
	d.open[key] = d.lru.PushFront(h)
	if d.lru.Len() > maxHandles {
		d.forget(d.lru.Back())
	}
	return h, nil
}

// forget takes a handle out of the table. The caller holds mu.
func (d *Dir) forget(e *list.Element) {
	h := d.lru.Remove(e).(*handle)
	delete(d.open, h.key)
	d.drop(h)
}

func (d *Dir) release(h *handle) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(h)
}

// drop lets go of one reference. A close of a file that was only read cannot
// lose anything, so its error is of no use to anybody. The caller holds mu.
func (d *Dir) drop(h *handle) {
	if h.refs--; h.refs == 0 {
		_ = h.f.Close()
	}
}

// Stat implements [Bucket].
func (d *Dir) Stat(ctx context.Context, key string) (Info, error) {
	if err := CheckKey(key); err != nil {
		return Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	st, err := d.fs.Stat(d.path(key))
	if err == nil && st.IsDir() {
		err = ErrNotFound
	}
	if err != nil {
		return Info{}, fmt.Errorf("stat %s: %w", key, notFound(err))
	}
	return Info{Key: key, Size: st.Size()}, nil
}

// List implements [Bucket].
func (d *Dir) List(ctx context.Context, prefix string, fn func(Info) error) error {
	return d.walk(ctx, "", prefix, fn)
}

// walk lists the objects below the directory dir of the bucket, in order of key.
func (d *Dir) walk(ctx context.Context, dir, prefix string, fn func(Info) error) error {
	names, err := d.fs.List(d.path(dir))
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	var entries []listed
	for _, n := range names {
		key := path.Join(dir, n)
		if strings.HasPrefix(n, ".") || !strings.HasPrefix(key, prefix) && !strings.HasPrefix(prefix, key+"/") {
			continue
		}
		st, err := d.fs.Stat(d.path(key))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		entries = append(entries, listed{key: key, size: st.Size(), dir: st.IsDir()})
	}
	slices.SortFunc(entries, func(a, b listed) int { return strings.Compare(a.order(), b.order()) })
	for _, e := range entries {
		if err = ctx.Err(); err != nil {
			return err
		}
		switch {
		case e.dir:
			err = d.walk(ctx, e.key, prefix, fn)
		case strings.HasPrefix(e.key, prefix):
			err = fn(Info{Key: e.key, Size: e.size})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type listed struct {
	key  string
	size int64
	dir  bool
}

// order is what sorts directories among files as their keys would: "a-b" before "a/b" before "a0".
func (l listed) order() string {
	if l.dir {
		return l.key + "/"
	}
	return l.key
}

// Delete implements [Bucket].
func (d *Dir) Delete(ctx context.Context, key string) error {
	if err := CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err := d.fs.Remove(d.path(key))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	d.mu.Lock()
	if e, ok := d.open[key]; ok {
		d.forget(e)
	}
	d.mu.Unlock()
	if err != nil {
		return nil
	}
	if err := vfs.SyncDir(d.fs, d.fs.PathDir(d.path(key))); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// Close closes the files kept open for reading. The bucket can be used on.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.lru.Len() > 0 {
		d.forget(d.lru.Back())
	}
	return nil
}

// PutBytes stores data under key; its outcomes are those of [Bucket.Put].
func PutBytes(ctx context.Context, b Bucket, key string, data []byte) error {
	return b.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
}
