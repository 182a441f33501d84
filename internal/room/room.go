// Package room gives a process a root of its own, in which nothing of the host has a name but its programs, their configuration, and
// what the process is given.
//
// The process has to be root, and the first one of a process namespace of its own (CLONE_NEWPID). Its mount namespace begins with all that is mounted on
// the host, and so keeps all of that in use until the room is entered. Whoever becomes another program in there, by exec, does best to make it just before ([Room.Enter]).
// Afterwards no mount of the host is in use by it but what it shows and keeps; these, until its last process has ended and a moment longer.
package room

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/mountinfo"
)

// shown are the directories of the host that every room sees, read-only: programs, what they need, and their configuration. Debian links the dictionaries of
// PostgreSQL's text search into the last.
var shown = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/opt", "/etc", "/nix", "/var/cache/postgresql"}

// Room is what a process is given.
type Room struct {
	// Hide are directories that are empty in the room, wherever they lie.
	Hide []string
	// Keep are directories that are what they are on the host. They must have no link in their names; they may be below what is hidden.
	Keep []Kept
	// Make are directories that are made, empty.
	Make []string
	// Devices are made in /dev, beside those that have no disk behind them.
	Devices []Device
}

// Kept is a directory of the host.
type Kept struct {
	Path     string
	ReadOnly bool
}

// Device is a device of a room.
type Device struct {
	Name   string // below /dev
	Mode   uint32 // with its type
	Number uint64
}

// Enter gives the calling thread, and the threads that share its mount namespace, the room. That must not be the host's. After an error the process must
// end: it may have half of it.
func (r Room) Enter() error {
	// What the host unmounts meanwhile goes here, too, where the host shares its mounts, as systemd does.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w", err)
	}
	const root = "/tmp" // any directory that is there: what is mounted on it only we see
	kept, err := r.openKept()
	if err != nil {
		return err
	}
	hidden := resolved(r.Hide)
	defer unix.Umask(unix.Umask(0))
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID, "mode=0755,size=32m"); err != nil {
		return fmt.Errorf("make a new root: %w", err)
	}
	for _, dir := range shown {
		if err := show(dir, root); err != nil {
			return fmt.Errorf("show %s: %w", dir, err)
		}
	}
	for _, dir := range hidden {
		if err := cover(filepath.Join(root, dir)); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if err := furnish(root, r.Make); err != nil {
		return err
	}
	if err := makeNodes(root, r.Devices); err != nil {
		return err
	}
	if err := unix.Mount("", root, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from what the host will mount: %w", err)
	}
	if err := pivot(root); err != nil {
		return err
	}
	return r.placeKept(kept)
}

// openKept takes the directories that are kept, while they have a name.
func (r Room) openKept() (trees []int, err error) {
	for _, k := range r.Keep {
		fd, err := unix.OpenTree(unix.AT_FDCWD, k.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("keep %s: %w", k.Path, err)
		}
		trees = append(trees, fd)
	}
	return trees, nil
}

// placeKept gives them their names in the new root. Nobody vouches for what is in them, so it has no privileges.
func (r Room) placeKept(trees []int) error {
	for i, k := range r.Keep {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
		if k.ReadOnly {
			attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
		}
		err := os.MkdirAll(k.Path, 0o755)
		if err == nil {
			err = unix.MountSetattr(trees[i], "", unix.AT_EMPTY_PATH, &attr)
		}
		if err == nil {
			err = unix.MoveMount(trees[i], "", unix.AT_FDCWD, k.Path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err := errors.Join(err, unix.Close(trees[i])); err != nil {
			return fmt.Errorf("keep %s: %w", k.Path, err)
		}
	}
	return nil
}

// resolved are directories by their names without links, those that are there.
func resolved(dirs []string) (list []string) {
	for _, dir := range dirs {
		if real, err := filepath.EvalSymlinks(dir); err == nil && dir != "" {
			list = append(list, real)
		}
	}
	return list
}

// show makes a directory of the host, with what is mounted below it, one of the new root, read-only and without privileges.
func show(from, root string) error {
	to := filepath.Join(root, from)
	st, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() == os.ModeSymlink { // as /bin is to /usr/bin
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	}
	if !st.IsDir() {
		return nil
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	return unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, &attr)
}

// cover takes away what is mounted below a directory, which would count as in use, and puts an empty one in its place; where it is not shown, nothing is done.
// Only root can write to that one, and so gives what is kept below it a name.
func cover(dir string) error {
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil
	}
	all, err := mountinfo.Read("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(all) { // the deepest first
		if m.Dir != dir && !strings.HasPrefix(m.Dir, dir+"/") {
			continue
		}
		if err := unix.Unmount(m.Dir, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k")
}

// furnish makes what programs expect of a root, and further directories.
func furnish(root string, further []string) error {
	for _, d := range []struct {
		name string
		mode uint32
	}{{"dev", 0o755}, {"dev/shm", 0o1777}, {"proc", 0o555}, {"tmp", 0o1777}, {"run", 0o755}, {"var", 0o755}, {"root", 0o700}} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, d.name), 0o755), unix.Chmod(filepath.Join(root, d.name), d.mode)); err != nil {
			return err
		}
	}
	for _, dir := range further {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, link := range [][2]string{{"/tmp", "var/tmp"}, {"/run", "var/run"}, {"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"},
		{"/proc/self/fd/1", "dev/stdout"}, {"/proc/self/fd/2", "dev/stderr"}} {
		if err := os.Symlink(link[0], filepath.Join(root, link[1])); err != nil {
			return err
		}
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV
	return errors.Join(
		unix.Mount("proc", filepath.Join(root, "proc"), "proc", plain|unix.MS_NOEXEC, ""),
		unix.Mount("tmpfs", filepath.Join(root, "tmp"), "tmpfs", plain, "mode=1777,size=1g"),
		unix.Mount("tmpfs", filepath.Join(root, "dev/shm"), "tmpfs", plain|unix.MS_NOEXEC, "mode=1777")) // half of the memory, as usual: parallel queries share theirs there
}

// makeNodes makes the devices of the new root: those that have no disk behind them, and further ones.
func makeNodes(root string, further []Device) error {
	for _, c := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}} {
		if err := mknod(filepath.Join(root, "dev", c.name), unix.S_IFCHR|0o666, unix.Mkdev(c.major, c.minor)); err != nil {
			return err
		}
	}
	for _, d := range further {
		if err := mknod(filepath.Join(root, "dev", d.Name), d.Mode, d.Number); err != nil {
			return err
		}
	}
	return nil
}

func mknod(name string, mode uint32, number uint64) error {
	if err := unix.Mknod(name, mode, int(number)); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// pivot makes root the root, and lets go of the old one.
func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // the old one is then over the new one
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return os.Chdir("/")
}
