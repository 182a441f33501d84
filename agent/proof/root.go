package proof

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// shown are the directories of the host that a sandbox sees, read-only: programs, what they need, and their configuration.
var shown = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc", "nix"}

// Directories of a sandbox.
const (
	disksDir = "/disks" // where file systems are mounted
	nodesDir = "/dev/tidemark"
	runDir   = "/run/tidemark"
)

// enter gives this process, which has namespaces of its own, a network with nothing but itself, and a root in which nothing of production
// has a name.
func enter(disks []Disk, hide string) error {
	if err := raiseLoopback(); err != nil {
		return fmt.Errorf("bring up the loopback device: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("part from the host's mounts: %w", err)
	}
	const root = "/tmp" // any directory that is there: what is mounted on it only we see
	numbers, err := numbersOf(disks)
	if err != nil {
		return err
	}
	unix.Umask(0)
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID, "mode=0755,size=32m"); err != nil {
		return fmt.Errorf("make a new root: %w", err)
	}
	for _, name := range shown {
		if err := show(name, root); err != nil {
			return fmt.Errorf("show /%s: %w", name, err)
		}
	}
	if err := cover(filepath.Join(root, hide), hide); err != nil {
		return fmt.Errorf("hide %s: %w", hide, err)
	}
	if err := furnish(root); err != nil {
		return err
	}
	if err := makeNodes(root, disks, numbers); err != nil {
		return err
	}
	return pivot(root)
}

// raiseLoopback brings up lo.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// numbersOf are the device numbers of disks, while the host's /dev is there.
func numbersOf(disks []Disk) ([]uint64, error) {
	numbers := make([]uint64, len(disks))
	for i, d := range disks {
		var st unix.Stat_t
		if err := unix.Stat(d.Device, &st); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return nil, fmt.Errorf("disk %s: %s is no block device", d.Name, d.Device)
		}
		numbers[i] = st.Rdev
	}
	return numbers, nil
}

// show makes a directory of the host, with what is mounted below it, one of the new root, read-only and without privileges.
func show(name, root string) error {
	from, to := "/"+name, filepath.Join(root, name)
	st, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
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
func cover(dir, name string) error {
	if st, err := os.Stat(dir); name == "" || err != nil || !st.IsDir() {
		return nil
	}
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	for _, line := range slices.Backward(lines) { // the deepest first
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		at := unescape.Replace(f[1])
		if at != dir && !strings.HasPrefix(at, dir+"/") {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k")
}

// unescape reads how the kernel writes the names of directories.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// furnish makes what programs expect of a root.
func furnish(root string) error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"dev", 0o755}, {"dev/shm", 0o1777}, {"dev/tidemark", 0o755}, {"proc", 0o555}, {"tmp", 0o1777}, {"run", 0o755}, {"run/tidemark", 0o755},
		{"disks", 0o755}, {"var", 0o755}, {"root", 0o700}} {
		if err := os.Mkdir(filepath.Join(root, d.name), 0o755); err != nil {
			return err
		}
		if err := unix.Chmod(filepath.Join(root, d.name), uint32(d.mode)); err != nil {
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
		unix.Mount("tmpfs", filepath.Join(root, "dev/shm"), "tmpfs", plain|unix.MS_NOEXEC, "mode=1777,size=1g"))
}

// makeNodes makes the devices of the new root: those that have no disk behind them, and the disks of the point, which others than root can read.
func makeNodes(root string, disks []Disk, numbers []uint64) error {
	for _, c := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{{"null", 0o666, 1, 3}, {"zero", 0o666, 1, 5}, {"full", 0o666, 1, 7}, {"random", 0o666, 1, 8}, {"urandom", 0o666, 1, 9}, {"loop-control", 0o600, 10, 237}} {
		if err := mknod(filepath.Join(root, "dev", c.name), unix.S_IFCHR|c.mode, unix.Mkdev(c.major, c.minor)); err != nil {
			return err
		}
	}
	for i, d := range disks {
		if err := mknod(filepath.Join(root, nodesDir, d.Name), unix.S_IFBLK|0o644, numbers[i]); err != nil {
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
