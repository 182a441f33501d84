package proof

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// partition is a stretch of a disk.
type partition struct {
	number      int
	offset, len int64 // bytes
}

// sector is the unit in which partx counts, in bytes, whatever the disk's is.
const sector = 512

// partitions asks partx for the partitions of a disk; one without a table has none.
func partitions(ctx context.Context, device string) ([]partition, error) {
	table, err := tag(ctx, device, "PTTYPE")
	if err != nil || table == "" {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "partx", "--pairs", "--output", "NR,START,SECTORS", device).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("the partition table (%s) cannot be read: %s", table, strings.TrimSpace(string(exit.Stderr)))
	}
	if err != nil {
		return nil, err
	}
	return parsePartitions(string(out)), nil
}

// tag asks blkid for one thing about what is on a device; it is empty where blkid knows nothing of it.
func tag(ctx context.Context, device, name string) (string, error) {
	out, err := exec.CommandContext(ctx, "blkid", "-p", "-o", "value", "-s", name, device).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == blkidNothing {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("blkid of %s: %w", device, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// blkidNothing is how blkid ends that knows nothing of a device.
const blkidNothing = 2

var partitionLine = regexp.MustCompile(`NR="(\d{1,5})" START="(\d{1,15})" SECTORS="(\d{1,15})"`)

// parsePartitions reads what partx prints. Extended partitions, which hold others, are two sectors long there and hold nothing.
func parsePartitions(text string) (list []partition) {
	for line := range strings.Lines(text) {
		m := partitionLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		nr, err1 := strconv.Atoi(m[1])
		start, err2 := strconv.ParseInt(m[2], 10, 64)
		sectors, err3 := strconv.ParseInt(m[3], 10, 64)
		if errors.Join(err1, err2, err3) != nil || sectors <= 2 {
			continue
		}
		list = append(list, partition{number: nr, offset: start * sector, len: sectors * sector})
	}
	return list
}

// lookAtPartition gives a partition a device, and looks what is on it.
func (b *box) lookAtPartition(disk, device string, p partition) (found, error) {
	name := fmt.Sprintf("%s partition %d", disk, p.number)
	loop, err := loopOver(device, p)
	if err != nil {
		return found{}, &troubleError{fmt.Errorf("%s: %w", name, err)}
	}
	return b.lookAt(name, loop)
}

// held keeps the loop devices of partitions, which go with their last user: with us.
var held []*os.File

// loopOver puts a loop device over a stretch of a disk.
func loopOver(device string, p partition) (string, error) {
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer disk.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer ctl.Close()
	cfg := unix.LoopConfig{Fd: uint32(disk.Fd()), Size: sector}
	cfg.Info.Offset, cfg.Info.Sizelimit, cfg.Info.Flags = uint64(p.offset), uint64(p.len), unix.LO_FLAGS_AUTOCLEAR
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], "tidemark-proof")
	for range 64 { // somebody else may take the free device before us
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("find a free loop device: %w", err)
		}
		path, err := configure(n, &cfg)
		if !errors.Is(err, unix.EBUSY) {
			return path, err
		}
	}
	return "", errors.New("no loop device to be had: others keep taking them")
}

// configure makes loop device n what it is to be.
func configure(n int, cfg *unix.LoopConfig) (string, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.LOOP_CONFIGURE, uintptr(unsafe.Pointer(cfg))); errno != 0 {
		f.Close()
		return "", errno
	}
	held = append(held, f)
	return path, nil
}
