package delta

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// goneDir is where a staging directory has, until a Receive is whole, what it has no more by the same path: it may be elsewhere now.
const goneDir = ownDir + "/gone"

// dismiss takes something out of the tree. What may be found elsewhere by its content stays until the end, while there is room.
func (r *receiver) dismiss(path string) error {
	fi, err := r.top.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || r.notes == nil || !fi.IsDir() && !fi.Mode().IsRegular() || !r.spacious() {
		return errors.Join(err, r.top.RemoveAll(path))
	}
	to := filepath.Join(goneDir, path)
	if err := r.top.MkdirAll(filepath.Dir(to), 0o700); errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTDIR) {
		return r.top.RemoveAll(path) // below what was a file when it was dismissed
	} else if err != nil {
		return err
	}
	if err := r.top.RemoveAll(to); err != nil {
		return err
	}
	return r.top.Rename(path, to)
}

// spacious reports whether more than a twentieth of the staging disk is free.
func (r *receiver) spacious() bool {
	var st unix.Statfs_t
	return unix.Statfs(r.root, &st) == nil && st.Bavail > st.Blocks/20
}

// write writes to a staged file. What is dismissed gives way.
func (r *receiver) write(f *file, b []byte, off int64) (int, error) {
	n, err := f.out.WriteAt(b, off)
	if !errors.Is(err, unix.ENOSPC) {
		return n, err
	}
	if _, none := os.Lstat(filepath.Join(r.root, goneDir)); none != nil {
		return n, err
	}
	if err := r.top.RemoveAll(goneDir); err != nil {
		return n, err
	}
	return f.out.WriteAt(b, off)
}
