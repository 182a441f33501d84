package residue

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

// Files shows all regular files below a directory as one disk, with holes between them. Values that a file system keeps in
// blocks far apart are in one piece here, so that a scan of the files finds what a scan of the disk cannot, and the other way round.
// It is a [Describer] of itself. It may be read concurrently.
type Files struct {
	dir   string
	names Names
	list  []placedFile // by off
	size  int64
}

type placedFile struct {
	off, len int64
	path     string
}

// fileAlign is where files begin: farther apart than anything that is searched, and aligned as pages are.
const fileAlign = 1 << 20

// OpenFiles lists the files below a directory. Symbolic links are followed where PostgreSQL has tablespaces, pg_tblspc, and for
// pg_wal. Files must not shrink while they are read. names may be nil.
func OpenFiles(dir string, names Names) (*Files, error) {
	f := &Files{dir: dir, names: names}
	err := f.walk(".")
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", dir, err)
	}
	return f, nil
}

func (f *Files) walk(rel string) error {
	list, err := os.ReadDir(filepath.Join(f.dir, rel))
	if err != nil {
		return ignoreGone(err)
	}
	for _, d := range list {
		path := filepath.Join(rel, d.Name())
		info, err := d.Info()
		if err == nil && info.Mode().Type() == fs.ModeSymlink && (rel == "pg_tblspc" || path == "pg_wal") {
			info, err = os.Stat(filepath.Join(f.dir, path))
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case info.IsDir():
			if err := f.walk(path); err != nil {
				return err
			}
		case info.Mode().IsRegular() && info.Size() > 0:
			f.list = append(f.list, placedFile{f.size, info.Size(), path})
			f.size += (info.Size() + 2*fileAlign - 1) &^ (fileAlign - 1)
		}
	}
	return nil
}

// Size is the length of all, with what is between them.
func (f *Files) Size() int64 { return f.size }

// at returns the number of the last file that begins at or before an offset.
func (f *Files) at(off int64) int {
	i, exact := slices.BinarySearchFunc(f.list, off, func(p placedFile, off int64) int { return cmp.Compare(p.off, off) })
	if !exact {
		i--
	}
	return i
}

// ReadAt reads of the files, and zeros between them.
func (f *Files) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(f, off, int64(len(p))); err != nil {
		return 0, err
	}
	clear(p)
	end := off + int64(len(p))
	for i := max(f.at(off), 0); i < len(f.list) && f.list[i].off < end; i++ {
		e := f.list[i]
		from, to := max(off, e.off), min(end, e.off+e.len)
		if from >= to {
			continue
		}
		if err := f.read(e, p[from-off:to-off], from-e.off); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// read opens the file for each piece: there may be more files than this process may have open.
func (f *Files) read(e placedFile, p []byte, off int64) error {
	file, err := os.Open(filepath.Join(f.dir, e.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since: its blocks are found on the disk
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err = file.ReadAt(p, off); err == io.EOF {
		err = nil // cut since
	}
	return err
}

// Extents tells holes of and between the files.
func (f *Files) Extents(off, n int64, fn func(block.Extent) bool) error {
	if err := block.Check(f, off, n); err != nil {
		return err
	}
	end := off + n
	for i := max(f.at(off), 0); i < len(f.list) && f.list[i].off < end && off < end; i++ {
		e := f.list[i]
		parts, err := f.data(e, off, end)
		if err != nil {
			return err
		}
		for _, d := range parts {
			if d.off > off && !fn(block.Extent{Off: off, Len: d.off - off, Hole: true}) || !fn(block.Extent{Off: d.off, Len: d.end - d.off}) {
				return nil
			}
			off = d.end
		}
	}
	if off < end {
		fn(block.Extent{Off: off, Len: end - off, Hole: true})
	}
	return nil
}

// data lists the parts of a file that are no holes, within [off, end) of all.
func (f *Files) data(e placedFile, off, end int64) (list []span, err error) {
	file, err := os.Open(filepath.Join(f.dir, e.path))
	if err != nil {
		return nil, ignoreGone(err)
	}
	defer file.Close()
	for at, stop := max(off-e.off, 0), min(end-e.off, e.len); at < stop; {
		from, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && from >= stop {
			break
		}
		to, err2 := unix.Seek(int(file.Fd()), from, unix.SEEK_HOLE)
		if err != nil || err2 != nil { // it cannot tell
			from, to = at, stop
		}
		to = min(to, stop)
		list = append(list, span{e.off + from, e.off + to})
		at = to
	}
	return list, nil
}

// Describe says which file, relation and page, or WAL segment an offset is in.
func (f *Files) Describe(off int64) string {
	i := f.at(off)
	if i < 0 || off >= f.list[i].off+f.list[i].len {
		return "between files"
	}
	return f.names.describe(f.list[i].path, off-f.list[i].off)
}
