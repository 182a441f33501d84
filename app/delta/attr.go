package delta

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/app"
)

// attributes gives a staged entry the owner, mode, extended attributes and time of the original, each only where it differs. The order matters: a
// change of owner clears set-user-ID bits and capabilities, and each change dates the entry. All above it are directories that we have made
// or looked at, and nobody else writes here: so a path leads nowhere else, and its last name is not followed.
func (r *receiver) attributes(path string, a Attr) error {
	full := filepath.Join(r.root, path)
	var have unix.Stat_t
	err := unix.Lstat(full, &have)
	if err == nil && have.Mode&unix.S_IFMT != a.Mode&unix.S_IFMT {
		err = unix.ESTALE
	}
	link := a.Mode&unix.S_IFMT == unix.S_IFLNK
	owned := os.Geteuid() != 0 || have.Uid == a.UID && have.Gid == a.GID
	if err == nil && !owned {
		err = unix.Lchown(full, int(a.UID), int(a.GID))
	}
	if mode := a.Mode & 0o7777; err == nil && !link && (!owned || have.Mode&0o7777 != mode) {
		err = unix.Fchmodat(unix.AT_FDCWD, full, mode, 0)
	}
	if err == nil {
		err = app.SetXattrs(full, a.Xattrs, func(name string, why error) { r.warn("attribute %s of %q cannot be kept: %s", name, path, why) })
	}
	if err == nil {
		err = unix.Lstat(full, &have)
	}
	if err == nil && have.Mtim.Nano() != a.Modified {
		ts := unix.NsecToTimespec(a.Modified)
		err = unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set attributes of %q: %w", path, err)
	}
	return nil
}
