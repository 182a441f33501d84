package residue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// Names are the names of relations by their path in the data directory without fork and segment, such as base/5/16384.
type Names map[string]string

// RelationNames reads the names of the relations of the database that conn is connected to, indexes and TOAST tables too.
func RelationNames(ctx context.Context, conn *pgx.Conn) (Names, error) {
	rows, err := conn.Query(ctx, `SELECT pg_relation_filepath(oid), oid::regclass::text FROM pg_class WHERE pg_relation_filepath(oid) IS NOT NULL`)
	if err != nil {
		return nil, fmt.Errorf("read the names of relations: %w", err)
	}
	names := Names{}
	var path, name string
	if _, err := pgx.ForEachRow(rows, []any{&path, &name}, func() error { names[path] = name; return nil }); err != nil {
		return nil, fmt.Errorf("read the names of relations: %w", err)
	}
	return names, nil
}

var (
	relationPath = regexp.MustCompile(`(?:^|/)((?:base/\d+|global|pg_tblspc/\d+/PG_[^/]+/\d+)/\d+)(_fsm|_vm|_init)?(?:\.(\d+))?$`)
	segmentPath  = regexp.MustCompile(`(?:^|/)pg_wal/([0-9A-F]{24})(?:\.partial)?$`)
)

// describe says what lies in a file at an offset.
func (n Names) describe(path string, off int64) string {
	if m := segmentPath.FindStringSubmatch(path); m != nil {
		return fmt.Sprintf("WAL segment %s, offset %d", m[1], off)
	}
	m := relationPath.FindStringSubmatch(path)
	if m == nil {
		return fmt.Sprintf("file %s, offset %d", path, off)
	}
	var segment int64
	fmt.Sscan(m[3], &segment)
	what := m[1] + m[2]
	if name := n[m[1]]; name != "" {
		what = name + m[2] + " (" + m[1] + ")"
	}
	return fmt.Sprintf("relation %s, page %d", what, segment<<17+off/8192) // segments are of 1 GiB
}

// FileMap knows which file has which bytes of a block device. It is a [Describer].
type FileMap struct {
	names   Names
	extents []fileExtent // by off
}

type fileExtent struct {
	off, len int64  // on the device
	at       int64  // in the file
	path     string // below the mount point
}

// NewFileMap asks the file system that is mounted at dir (ext4 or XFS, on one whole device) where its files lie, by FIEMAP. Files of other
// file systems mounted below are left out. What changes later is not seen. names may be nil.
func NewFileMap(dir string, names Names) (*FileMap, error) {
	var root unix.Stat_t
	if err := unix.Stat(dir, &root); err != nil {
		return nil, fmt.Errorf("map the files of %s: %w", dir, err)
	}
	m := &FileMap{names: names}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Dev != root.Dev {
			if err == nil && d.IsDir() {
				return filepath.SkipDir
			}
			return ignoreGone(err)
		}
		if !d.Type().IsRegular() && !d.IsDir() {
			return nil
		}
		rel, _ := filepath.Rel(dir, path) // path begins with dir
		return ignoreGone(m.add(path, rel))
	})
	if err != nil {
		return nil, fmt.Errorf("map the files of %s: %w", dir, err)
	}
	slices.SortFunc(m.extents, func(a, b fileExtent) int { return cmp.Compare(a.off, b.off) })
	return m, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// struct fiemap and fiemap_extent of linux/fiemap.h.
type (
	fiemap struct {
		start, length                 uint64
		flags, mapped, count, reserve uint32
		extents                       [64]fiemapExtent
	}
	fiemapExtent struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
)

const (
	iocFiemap     = 0xc020660b // FS_IOC_FIEMAP: _IOWR('f', 11, struct fiemap)
	fiemapSync    = 1          // FIEMAP_FLAG_SYNC
	extentLast    = 0x1        // FIEMAP_EXTENT_LAST
	extentUnknown = 0x6        // FIEMAP_EXTENT_UNKNOWN, FIEMAP_EXTENT_DELALLOC: it has no place yet
)

// add asks for the extents of one file or directory.
func (m *FileMap) add(path, rel string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", rel, err)
	}
	defer unix.Close(fd)
	for start := uint64(0); ; {
		req := fiemap{start: start, length: 1<<63 - 1 - start, flags: fiemapSync, count: uint32(len(fiemap{}.extents))}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocFiemap, uintptr(unsafe.Pointer(&req))); e != 0 {
			if e == unix.EOPNOTSUPP || e == unix.ENOTTY { // small directories in their inodes
				return nil
			}
			return fmt.Errorf("FIEMAP of %s: %w", rel, e)
		}
		for _, e := range req.extents[:req.mapped] {
			if e.flags&extentUnknown == 0 {
				m.extents = append(m.extents, fileExtent{int64(e.physical), int64(e.length), int64(e.logical), rel})
			}
			start = e.logical + e.length
			if e.flags&extentLast != 0 {
				return nil
			}
		}
		if req.mapped == 0 {
			return nil
		}
	}
}

// Describe says which file, relation and page, or WAL segment has a byte of the device.
func (m *FileMap) Describe(off int64) string {
	i, exact := slices.BinarySearchFunc(m.extents, off, func(e fileExtent, off int64) int { return cmp.Compare(e.off, off) })
	if !exact {
		i--
	}
	if i < 0 || off >= m.extents[i].off+m.extents[i].len {
		return "free space, or the file system's own (its journal, for one)"
	}
	e := m.extents[i]
	return m.names.describe(strings.TrimPrefix(e.path, "./"), e.at+off-e.off)
}
