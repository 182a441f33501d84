package mount

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/mountinfo"
)

// Numbers of the ioctls FIFREEZE and FITHAW (linux/fs.h).
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// ErrNoFS is returned where a device holds no file system that we know.
var ErrNoFS = errors.New("no known file system on the device")

// signatures are where the file systems that we mount put their magic.
var signatures = []struct {
	fs    string
	off   int64
	magic string
}{
	{"xfs", 0, "XFSB"},
	{"ext4", 1080, "\x53\xef"},
	{"btrfs", 65536 + 64, "_BHRfS_M"},
}

// DetectFS returns the type of the file system on a device: ext4 (also for ext2
// and ext3, which its driver mounts), xfs or btrfs. Otherwise ErrNoFS.
func DetectFS(device string) (string, error) {
	f, err := os.Open(device)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, 128<<10)
	n, err := f.ReadAt(buf, 0)
	if n == 0 && err != nil {
		return "", fmt.Errorf("read %s: %w", device, err)
	}
	for _, s := range signatures {
		if end := int(s.off) + len(s.magic); end <= n && string(buf[s.off:end]) == s.magic {
			return s.fs, nil
		}
	}
	return "", fmt.Errorf("%s: %w", device, ErrNoFS)
}

// mountFlags are the options that the kernel takes as flags.
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "rw": 0, "noatime": unix.MS_NOATIME, "relatime": unix.MS_RELATIME,
	"nodev": unix.MS_NODEV, "nosuid": unix.MS_NOSUID, "noexec": unix.MS_NOEXEC, "sync": unix.MS_SYNCHRONOUS,
}

// MountFS mounts a device's file system on a directory that exists. With fstype
// "" or "auto" the type is detected. Options that the kernel has flags for (ro,
// noatime, nodev, nosuid, noexec, sync, relatime, rw) become flags; all others go
// to the file system as they are. An xfs is mounted with nouuid: the disk that it is a copy of
// may be mounted on the same host.
//
// The image of a running machine needs its journal replayed, which writes: a
// read-only device can only be mounted with ext4's noload or xfs's norecovery, and
// then shows the state before the replay. Attach a writable branch instead where
// the content must be right.
func MountFS(device, dir, fstype string, opts []string) error {
	if fstype == "" || fstype == "auto" {
		var err error
		if fstype, err = DetectFS(device); err != nil {
			return err
		}
	}
	var flags uintptr
	var rest []string
	for _, o := range opts {
		if strings.ContainsAny(o, ",\x00") || o == "" {
			return fmt.Errorf("mount option %q: give one option each", o)
		}
		if f, ok := mountFlags[o]; ok {
			flags |= f
			continue
		}
		rest = append(rest, o)
	}
	if fstype == "xfs" && !slices.Contains(rest, "nouuid") {
		rest = append(rest, "nouuid")
	}
	if err := unix.Mount(device, dir, fstype, flags, strings.Join(rest, ",")); err != nil {
		return fmt.Errorf("mount %s on %s as %s: %w", device, dir, fstype, err)
	}
	return nil
}

// Unmount unmounts a directory. While it is used it returns ErrBusy.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmount %s: %w", dir, ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// mkfs says how to make each file system quietly, over whatever is there, with a label.
var mkfs = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-L"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-L"},
	"btrfs": {"mkfs.btrfs", "-q", "-f", "-L"},
}

// Format makes an empty file system (ext4, xfs or btrfs) on a device. What was
// there is lost. A label may have up to 12 bytes (xfs), 16 (ext4) or 255 (btrfs).
func Format(device, fstype, label string) error {
	argv, ok := mkfs[fstype]
	if !ok {
		return fmt.Errorf("format %s: unknown file system %q: use ext4, xfs or btrfs", device, fstype)
	}
	if st, err := os.Stat(device); err != nil || st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return errors.Join(fmt.Errorf("format %s: not a block device", device), err)
	}
	out, err := exec.Command(argv[0], append(slices.Clone(argv[1:]), label, device)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("format %s as %s: %w: %s", device, fstype, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Freeze writes back the file system mounted on dir and stops its writes until
// Thaw. Whoever freezes must thaw, also when what was in between failed.
func Freeze(dir string) error { return ioctlDir(dir, "freeze", ioctlFreeze) }

// Thaw lets a frozen file system go on.
func Thaw(dir string) error { return ioctlDir(dir, "thaw", ioctlThaw) }

func ioctlDir(dir, what string, req uint) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), req, 0); err != nil {
		return fmt.Errorf("%s %s: %w", what, dir, err)
	}
	return nil
}

// Mounted is a place where a device's file system is mounted.
type Mounted struct {
	Dir      string
	ReadOnly bool
}

// Mounts returns where a device is mounted in this mount namespace, by whatever name it was mounted, the
// latest mount first.
func Mounts(device string) (list []Mounted, err error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, err
	}
	return mountsIn("/proc/self/mountinfo", st.Rdev)
}

// mountsIn returns where the device of a number is mounted in the mount namespace that a file tells of.
func mountsIn(info string, number uint64) (list []Mounted, err error) {
	all, err := mountinfo.Read(info)
	want := fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))
	for _, m := range slices.Backward(all) {
		if m.Number == want || isDevice(m.Source, number) { // btrfs has device numbers of its own
			list = append(list, Mounted{Dir: m.Dir, ReadOnly: m.ReadOnly || m.FSReadOnly})
		}
	}
	return list, err
}

// isDevice reports whether a path is the block device of a number.
func isDevice(path string, number uint64) bool {
	var st unix.Stat_t
	return strings.HasPrefix(path, "/") && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == number
}
