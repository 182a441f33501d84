package proof

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/mount"
)

// found is a file system, or what is in the place of one.
type found struct {
	name   string // of the disk, with the partition
	device string
	fstype string // one that we mount; empty: what else it is
	what   string
}

func (f found) dir() string { return filepath.Join(disksDir, strings.ReplaceAll(f.name, " ", "-")) }

// proveDisks mounts what is on the disks, and checks it.
func (b *box) proveDisks() error {
	b.step("recover")
	list, err := b.lookAtDisks()
	if err != nil {
		return err
	}
	for _, f := range list {
		if f.fstype == "" {
			continue
		}
		if err := f.mount(); err != nil {
			b.checkFS(f) // which may say more
			return err
		}
	}
	b.answered()
	b.step("check")
	for _, f := range list {
		if err := b.checkOne(f); err != nil {
			return err
		}
	}
	if b.spec.Probe == nil || b.reason != "" {
		return nil
	}
	b.step("probe")
	return b.probeDisks(list)
}

// mount mounts a file system, and reads its root.
func (f found) mount() error {
	if err := mountAt(f.device, f.dir(), f.fstype); err != nil {
		return fmt.Errorf("the file system of %s cannot be mounted: %w", f.name, err)
	}
	if _, err := os.ReadDir(f.dir()); err != nil {
		return fmt.Errorf("the file system of %s cannot be read: %w", f.name, err)
	}
	return nil
}

// lookAtDisks finds what is on the disks: a file system, or partitions with some. It reads of every disk.
func (b *box) lookAtDisks() (list []found, err error) {
	for _, d := range b.spec.Disks {
		dev := node(d.Name)
		if err := readFirst(dev); err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.Name, err)
		}
		f, err := b.lookAt(d.Name, dev)
		if err != nil {
			return nil, err
		}
		if f.fstype == "" && b.spec.Type == tidemark.TypeFilesystem {
			return nil, fmt.Errorf("disk %s has no file system: it holds %s", d.Name, f.what)
		}
		inner := []found{f}
		if f.fstype == "" {
			if inner, err = b.lookInto(f); err != nil {
				return nil, fmt.Errorf("disk %s: %w", d.Name, err)
			}
		}
		list = append(list, inner...)
	}
	return list, nil
}

// lookInto finds what is on the partitions of a disk, if it has any.
func (b *box) lookInto(disk found) (list []found, err error) {
	parts, err := partitions(b.ctx, disk.device)
	if err != nil || len(parts) == 0 {
		return []found{disk}, err
	}
	for _, p := range parts {
		f, err := b.lookAtPartition(disk.name, disk.device, p)
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// readFirst reads the begin of a disk.
func readFirst(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadFull(f, make([]byte, 4096))
	return err
}

func (b *box) lookAt(name, device string) (found, error) {
	f := found{name: name, device: device}
	fstype, err := mount.DetectFS(device)
	switch {
	case err == nil:
		f.fstype = fstype
	case errors.Is(err, mount.ErrNoFS):
		if f.what, err = tag(b.ctx, device, "TYPE"); err != nil {
			return f, err
		}
		f.what = cmp.Or(f.what, "nothing that is known")
	default:
		return f, err
	}
	return f, nil
}

// checkOne checks a file system: by the checker that belongs to it while it is not mounted, and then by looking at all that is in it.
func (b *box) checkOne(f found) error {
	if f.fstype == "" {
		return b.check("file system "+f.name, func() (string, error) { return "", skipped("it holds " + f.what + ", which is not looked into") })
	}
	if err := mount.Unmount(f.dir()); err != nil {
		return &troubleError{err}
	}
	if err := b.checkFS(f); err != nil {
		return err
	}
	if err := f.mount(); err != nil {
		return err
	}
	name := "metadata " + f.name
	if b.spec.Deep {
		name = "files " + f.name
	}
	return b.check(name, func() (string, error) { return b.walk(f.dir()) })
}

// checkers are the programs that check a file system and change nothing.
var checkers = map[string][]string{
	"ext4":  {"e2fsck", "-fn"},
	"xfs":   {"xfs_repair", "-n"},
	"btrfs": {"btrfs", "check", "--readonly"},
}

// checkFS has the checker of a file system check it. It was mounted before, so that its journal is replayed.
func (b *box) checkFS(f found) error {
	argv := checkers[f.fstype]
	return b.check(argv[0]+" "+f.name, func() (string, error) {
		cmd := exec.CommandContext(b.ctx, argv[0], append(argv[1:len(argv):len(argv)], f.device)...)
		var said strings.Builder
		w := io.MultiWriter(&said, b)
		cmd.Stdout, cmd.Stderr = w, w
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return "", fmt.Errorf("%s of %s: %w: %s", argv[0], f.name, err, complaint(said.String()))
		}
		return f.fstype, err
	})
}

// complaint is the first line of a checker that is no heading.
func complaint(said string) string {
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "e2fsck ") && !strings.HasPrefix(line, "Pass ") && !strings.HasPrefix(line, "Phase ") && !strings.HasPrefix(line, "- ") &&
			!strings.HasPrefix(line, "Opening ") && !strings.HasPrefix(line, "Checking ") {
			return line
		}
	}
	return "it says nothing more"
}

// walked counts what a walk has seen.
type walked struct{ files, bytes int64 }

// walk looks at every file, directory and attribute below a directory; deep, it reads all that is in them.
func (b *box) walk(root string) (string, error) {
	var n walked
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = b.ctx.Err()
		}
		if err == nil {
			err = b.see(path, d, &n)
		}
		b.progress(tidemark.Progress{Done: n.files, Unit: "files"})
		return err
	})
	if err != nil {
		return "", err
	}
	if b.spec.Deep {
		return fmt.Sprintf("%d files, %s read", n.files, tidemark.FormatSize(n.bytes)), nil
	}
	return fmt.Sprintf("%d files, not read", n.files), nil
}

// see looks at one file.
func (b *box) see(path string, d fs.DirEntry, n *walked) error {
	n.files++
	info, err := d.Info()
	if err != nil {
		return err
	}
	if _, err := unix.Llistxattr(path, nil); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	if info.Mode().Type() == os.ModeSymlink {
		_, err := os.Readlink(path)
		return err
	}
	if !b.spec.Deep || !info.Mode().IsRegular() {
		return nil
	}
	read, err := readAll(b.ctx, path)
	n.bytes += read
	return err
}

// readAll reads what a file has, and leaves its holes out.
func readAll(ctx context.Context, path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		end, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return n, err
		}
		for off = data; off < end; {
			got, err := f.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
			off, n = off+int64(got), n+int64(got)
			if err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
			if got == 0 || ctx.Err() != nil {
				return n, ctx.Err()
			}
		}
	}
}
