package residue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app"
)

// ClearFiles removes from the mounted file system of dir what is left of files that were changed or removed: the journal of an ext4 is made
// anew, and free space is discarded. fs takes it off for a moment, so nobody may use it. A file system that can be neither
// frozen nor asked to discard is left as it is, and so are the names of removed files in the blocks of their directories; [Scan] says what is there.
func ClearFiles(ctx context.Context, fs Remounter, dir string) error {
	if err := renewJournal(ctx, fs, dir); err != nil {
		return err
	}
	err := trim(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return nil
	}
	return err
}

func (p *preparation) renewJournal(ctx context.Context) error {
	r, ok := p.clone.(Remounter)
	if !ok {
		return nil
	}
	return renewJournal(ctx, r, p.dir)
}

// renewJournal takes the journal off an ext4 and gives it another, which is zeros. The blocks of the old one are free space then. The log of
// XFS has no contents of files.
func renewJournal(ctx context.Context, r Remounter, dir string) error {
	if err := app.SyncTree(dir); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("ask for the file system: %w", err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC {
		return nil
	}
	device, err := r.Unmount(ctx)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	for _, args := range [][]string{{"-O", "^has_journal"}, {"-O", "has_journal"}} {
		if out, err := exec.CommandContext(ctx, "tune2fs", append(args, device)...).CombinedOutput(); err != nil {
			return tidemark.Errorf(tidemark.Unavailable, "tune2fs %s %s: %v: %s", args[0], args[1], err, bytes.TrimSpace(out)).
				WithHint("run it by hand: an ext4 without a journal is whole, but must be checked after a crash")
		}
	}
	if err := r.Mount(ctx); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

func (p *preparation) clearFree(ctx context.Context) error {
	err := trim(p.dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		if !p.opts.Fill {
			return tidemark.Errorf(tidemark.Unavailable, "the disk of %s cannot discard", p.dir).WithHint("prepare it with Fill, which writes zeros to all free space")
		}
		return fillFree(ctx, p.dir)
	}
	return err
}

// trim discards all free space of the file system of dir. What was removed is free only when the journal has committed that, and XFS
// gives the blocks of removed files back some time later, in the background, and at the latest when it is frozen.
func trim(dir string) error {
	if err := app.SyncTree(dir); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := freeBeyondEnds(d); err != nil {
		return err
	}
	if err := checkpoint(dir); err != nil {
		return err
	}
	req := struct{ start, len, min uint64 }{len: math.MaxUint64} // struct fstrim_range of linux/fs.h
	const fitrim = 0xc0185879                                    // FITRIM
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), fitrim, uintptr(unsafe.Pointer(&req))); e != 0 {
		return fmt.Errorf("discard the free space of %s: %w", dir, e)
	}
	return app.SyncTree(dir)
}

// freeBeyondEnds has the XFS of d give back the blocks that it has set aside beyond the ends of files, for what may be appended to them. They hold what was there
// before, and are no free space that could be discarded. XFS does so by itself some minutes after a file was closed.
func freeBeyondEnds(d *os.File) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("ask for the file system: %w", err)
	}
	if st.Type != unix.XFS_SUPER_MAGIC {
		return nil
	}
	req := struct { // xfs_fs_eofblocks of xfs/xfs_fs.h
		version, flags, uid, gid, project, _ uint32
		least                                uint64
		_                                    [12]uint64
	}{version: 1, flags: 1} // XFS_EOF_FLAGS_SYNC: wait for those that are written to
	const freeEOFBlocks = 0x8080583a // XFS_IOC_FREE_EOFBLOCKS
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), freeEOFBlocks, uintptr(unsafe.Pointer(&req))); e != 0 {
		return fmt.Errorf("free the blocks beyond the ends of files on %s: %w", d.Name(), e)
	}
	return nil
}

// fillFree writes a file of zeros into all free space of the file system of dir, an ext4, and removes it.
func fillFree(ctx context.Context, dir string) (err error) {
	restore, err := lendReserve(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, restore()) }()
	for {
		f, err := os.CreateTemp(dir, ".tidemark-zeros-*")
		if errors.Is(err, unix.ENOSPC) {
			return checkpoint(dir)
		}
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		n, err := writeZeros(ctx, f)
		if err != nil {
			return fmt.Errorf("fill the free space of %s: %w", dir, err)
		}
		// What was set aside for the places of delayed writes is free when they are written.
		if n == 0 {
			return checkpoint(dir)
		}
	}
}

// checkpoint has the file system write all that is in its journal to where it belongs, by freezing it for a moment. Of a file of zeros that is
// removed before that, blocks that tell where it lay would never be written, and keep what they held.
func checkpoint(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for _, request := range []uintptr{0xc0045877, 0xc0045878} { // FIFREEZE, FITHAW of linux/fs.h
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), request, 0); e != 0 {
			return fmt.Errorf("freeze the file system of %s for a moment: %w", dir, e)
		}
	}
	return nil
}

// writeZeros writes to f until there is no space left, and returns how much that was.
func writeZeros(ctx context.Context, f *os.File) (total int64, err error) {
	buf := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := f.Write(buf)
		total += int64(n)
		switch {
		case err != nil && !errors.Is(err, unix.ENOSPC):
			return total, err
		case n == 0 && len(buf) == 512:
			return total, f.Sync()
		case n == 0:
			buf = buf[:len(buf)/2]
		}
	}
	return total, ctx.Err()
}

// lendReserve lets files have what an ext4 keeps for itself, up to 4096 blocks that not even root gets, until restore is called.
func lendReserve(dir string) (restore func() error, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, fmt.Errorf("fill the free space of %s: %w", dir, err)
	}
	device, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return nil, fmt.Errorf("fill the free space of %s: %w", dir, err)
	}
	name := filepath.Join("/sys/fs/ext4", filepath.Base(device), "reserved_clusters")
	old, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, tidemark.Errorf(tidemark.Unavailable, "the free space of %s cannot be filled with zeros: only that of an ext4 can, to its end", dir).
			WithHint("use a disk that can discard")
	}
	if err != nil {
		return nil, fmt.Errorf("fill the free space of %s: %w", dir, err)
	}
	if err := os.WriteFile(name, []byte("0"), 0); err != nil {
		return nil, fmt.Errorf("fill the free space of %s: %w", dir, err)
	}
	return func() error { return os.WriteFile(name, bytes.TrimSpace(old), 0) }, nil
}
