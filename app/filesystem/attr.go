package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// attributes gives the copy of an entry the owner, mode, extended attributes and
// time of the original, each only where it differs. The order matters: a change of
// owner clears set-user-ID bits and capabilities, and each change dates the file.
func (s *syncer) attributes(srcDir, dstDir *os.File, name string, fi fs.FileInfo, rel string) error {
	want := statOf(fi)
	var have unix.Stat_t
	if err := unix.Fstatat(int(dstDir.Fd()), name, &have, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil // its original vanished, and it was removed
		}
		return fmt.Errorf("look at the copy of %q: %w", rel, err)
	}
	wrap := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("set attributes of %q: %w", rel, err)
	}
	mode := uint32(want.Mode & 0o7777)
	owned := os.Geteuid() != 0 || have.Uid == want.Uid && have.Gid == want.Gid
	if !owned {
		if err := unix.Fchownat(int(dstDir.Fd()), name, int(want.Uid), int(want.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return wrap(err)
		}
	}
	link := want.Mode&unix.S_IFMT == unix.S_IFLNK
	if !link && (!owned || have.Mode&0o7777 != mode) {
		// The entry is ours and no link: it was made or looked at in this open directory.
		if err := unix.Fchmodat(int(dstDir.Fd()), name, mode, 0); err != nil {
			return wrap(err)
		}
	}
	if err := s.xattrs(srcDir, dstDir, name, rel); err != nil {
		return wrap(err)
	}
	if unix.Fstatat(int(dstDir.Fd()), name, &have, unix.AT_SYMLINK_NOFOLLOW) == nil && have.Mtim.Nano() == fi.ModTime().UnixNano() {
		return nil
	}
	return wrap(setTime(dstDir, name, fi.ModTime()))
}

// xattrs makes the extended attributes equal, ACLs and capabilities among them.
func (s *syncer) xattrs(srcDir, dstDir *os.File, name, rel string) error {
	// Through the open directories: the last name is not followed by these calls.
	from := fmt.Sprintf("/proc/self/fd/%d/%s", srcDir.Fd(), name)
	to := fmt.Sprintf("/proc/self/fd/%d/%s", dstDir.Fd(), name)
	want, err := readXattrs(from)
	if err != nil {
		return err
	}
	have, err := readXattrs(to)
	if err != nil {
		return err
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			if err := unix.Lremovexattr(to, k); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %s: %w", k, err)
			}
		}
	}
	for k, v := range want {
		if old, ok := have[k]; ok && bytes.Equal(old, v) {
			continue
		}
		err := unix.Lsetxattr(to, k, v, 0)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
			s.warn("attribute %s of %q cannot be kept: %s", k, rel, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}

// readXattrs returns all extended attributes of a path; none where there can be none.
func readXattrs(path string) (map[string][]byte, error) {
	list := make([]byte, 1024)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10) // the kernel's limit
		n, err = unix.Llistxattr(path, list)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	all := map[string][]byte{}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
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
