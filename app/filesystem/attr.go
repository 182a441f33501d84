package filesystem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/app"
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
	want, err := app.ReadXattrs(from)
	if err != nil {
		return err
	}
	return app.SetXattrs(to, want, func(k string, why error) { s.warn("attribute %s of %q cannot be kept: %s", k, rel, why) })
}
