package filesystem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app"
	"tidemark/app/delta"
)

// Source is a directory tree that [delta.Send] can send: it is staged as [Sync] would stage it.
type Source struct {
	root *os.Root
	dev  uint64
}

// OpenSource opens a directory to be sent.
func OpenSource(dir string) (*Source, error) {
	if err := CheckSource(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	fi, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return &Source{root: root, dev: statOf(fi).Dev}, nil
}

// CheckSource refuses what is no directory that can be read.
func CheckSource(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return tidemark.Errorf(tidemark.NotFound, "there is no directory %s", dir)
	case err != nil:
		return tidemark.Errorf(tidemark.Denied, "%s cannot be read: %w", dir, err)
	case !fi.IsDir():
		return tidemark.Errorf(tidemark.Invalid, "%s is not a directory", dir)
	}
	return nil
}

// Close closes the directory.
func (s *Source) Close() error { return s.root.Close() }

// Hello implements [delta.Source].
func (s *Source) Hello() delta.Hello {
	return delta.Hello{Line: fmt.Sprint(s.dev), Now: time.Now()}
}

// Result implements [delta.Source].
func (s *Source) Result() (position uint64, result any) { return 0, nil }

// Open implements [delta.Source].
func (s *Source) Open(path string) (*os.File, error) {
	rel, err := filepath.Rel(DataDir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return nil, fs.ErrNotExist
	}
	f, err := s.root.OpenFile(rel, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, fs.ErrNotExist // it was a file when it was told
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = tidemark.Errorf(tidemark.Denied, "%q cannot be read: %w", rel, err)
	}
	return f, err
}

// Attr implements [delta.Source].
func (s *Source) Attr(f *os.File) (delta.Attr, error) {
	fi, err := f.Stat()
	if err != nil {
		return delta.Attr{}, err
	}
	x, err := readXattrsOf(f)
	return delta.AttrOf(fi, x), err
}

// readXattrsOf returns the extended attributes of an open file.
func readXattrsOf(f *os.File) (map[string][]byte, error) {
	list := make([]byte, 64<<10) // the kernel's limit
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if errors.Is(err, unix.EOPNOTSUPP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read attribute %s: %w", name, err)
		}
		all[name] = value[:n:n]
	}
	return all, nil
}

// Walk implements [delta.Source].
func (s *Source) Walk(ctx context.Context, _ int, w *delta.Walk) (last bool, err error) {
	root, err := s.root.OpenRoot(".")
	if err != nil {
		return false, err
	}
	v := visit{ctx: ctx, s: s, w: w, links: map[uint64]string{}}
	return true, v.dir(root, DataDir)
}

// visit is one walk through a tree.
type visit struct {
	ctx   context.Context
	s     *Source
	w     *delta.Walk
	links map[uint64]string // inode with several names → the path that was named first
}

// dir tells what is in a directory, which it closes.
func (v *visit) dir(root *os.Root, path string) (err error) {
	defer root.Close()
	if err := v.ctx.Err(); err != nil {
		return err
	}
	open, err := root.Open(".")
	if err != nil {
		return err
	}
	defer open.Close()
	a, err := v.s.Attr(open)
	if err != nil {
		return fmt.Errorf("look at %q: %w", path, err)
	}
	d, err := v.w.Enter(path, a)
	if err != nil {
		return err
	}
	names, err := open.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", path, err)
	}
	sort.Strings(names)
	var below []string
	for _, name := range names {
		isDir, err := v.entry(root, open, d, path, name)
		if err != nil {
			return fmt.Errorf("look at %q: %w", filepath.Join(path, name), err)
		}
		if isDir {
			below = append(below, name)
		}
	}
	for _, name := range below {
		sub, err := root.OpenRoot(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // it vanished
		}
		if err != nil {
			return fmt.Errorf("open directory %q: %w", filepath.Join(path, name), err)
		}
		if err := v.dir(sub, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return v.w.Leave(d, true)
}

// entry names what is in a directory, but for a directory.
func (v *visit) entry(root *os.Root, open *os.File, d delta.Dir, dir, name string) (isDir bool, err error) {
	fi, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // vanished
	}
	if err != nil {
		return false, err
	}
	path := filepath.Join(dir, name)
	switch st := statOf(fi); {
	case st.Dev != v.s.dev:
		return false, v.w.Warn("another file system is mounted at %q: it is not copied", path)
	case fi.Mode()&fs.ModeSocket != 0:
		return false, v.w.Warn("socket %q is not copied", path)
	case fi.IsDir():
		return true, nil
	case st.Nlink > 1 && fi.Mode().IsRegular():
		if first, ok := v.links[st.Ino]; ok {
			return false, v.w.Hard(d, name, first)
		}
		v.links[st.Ino] = path
	}
	x, err := app.ReadXattrs(fmt.Sprintf("/proc/self/fd/%d/%s", open.Fd(), name))
	if err != nil {
		return false, err
	}
	a := delta.AttrOf(fi, x)
	switch {
	case fi.Mode().IsRegular():
		return false, v.w.File(d, name, a)
	case fi.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return false, v.w.Link(d, name, target, a)
	}
	return false, v.w.Special(d, name, a)
}
