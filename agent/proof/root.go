package proof

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/room"
)

// Directories of a sandbox.
const (
	disksDir = "/disks" // where file systems are mounted
	nodesDir = "/dev/tidemark"
	runDir   = "/run/tidemark"
)

// enter gives this process, which has namespaces of its own, a network with nothing but itself, and a root in which nothing of production
// has a name. Others than root can read the disks of the point.
func enter(disks []Disk, hide string) error {
	if err := raiseLoopback(); err != nil {
		return fmt.Errorf("bring up the loopback device: %w", err)
	}
	numbers, err := numbersOf(disks)
	if err != nil {
		return err
	}
	r := room.Room{Hide: []string{hide}, Make: []string{disksDir, nodesDir, runDir},
		Devices: []room.Device{{Name: "loop-control", Mode: unix.S_IFCHR | 0o600, Number: unix.Mkdev(10, 237)}}}
	for i, d := range disks {
		name := strings.TrimPrefix(filepath.Join(nodesDir, d.Name), "/dev/")
		r.Devices = append(r.Devices, room.Device{Name: name, Mode: unix.S_IFBLK | 0o644, Number: numbers[i]})
	}
	return r.Enter()
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
