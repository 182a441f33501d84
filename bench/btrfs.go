package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// btrfsPool is a btrfs in a file, with the subvolume src for the files at hand.
type btrfsPool struct{ at, src string }

// newBtrfs makes and mounts a btrfs of a size in bytes at a directory.
func newBtrfs(ctx context.Context, at string, size int64) (*btrfsPool, error) {
	if err := errors.Join(os.Mkdir(at, 0o755), sparseFile(at+".img", size)); err != nil {
		return nil, err
	}
	p := &btrfsPool{at, at + "/src"}
	for _, argv := range [][]string{{"mkfs.btrfs", "-q", at + ".img"}, {"mount", "-o", "loop,noatime", at + ".img", at}, {"btrfs", "subvolume", "create", p.src}} {
		if _, err := run(ctx, argv...); err != nil {
			p.remove()
			return nil, err
		}
	}
	return p, nil
}

// remove unmounts the btrfs; its file goes with the directory it is in.
func (p *btrfsPool) remove() { run(context.Background(), "umount", p.at) }

// sendScript returns the shell command that saves src into a directory as btrfs
// does: a snapshot, and what it has that the one before has not, compressed.
func (p *btrfsPool) sendScript(pass string, round int, to string) string {
	name, from := fmt.Sprintf("%s/s%d", p.at, round+1), fmt.Sprintf("-p %s/s%d", p.at, round)
	if pass == "full" {
		name, from = p.at+"/s0", ""
	}
	return fmt.Sprintf("set -e; btrfs -q subvolume snapshot -r %s %s; btrfs -q send %s %s | zstd -q -1 -c >%s/%s", p.src, name, from, name, to, filepath.Base(name))
}

// patchTree makes the files below to those below from, without the server's log,
// and writes only the blocks of 4 KiB that differ. It returns the bytes in such
// blocks, and all bytes.
func patchTree(from, to string) (changed, total int64, err error) {
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && d.Name() == "pg_wal":
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		c, n, err := patchFile(path, filepath.Join(to, rel))
		changed, total = changed+c, total+n
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return changed, total, removeGone(from, to)
}

// removeGone removes the files below to that are not below from.
func removeGone(from, to string) error {
	return filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(to, path)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Join(from, rel)); errors.Is(err, fs.ErrNotExist) {
			return os.Remove(path)
		}
		return nil
	})
}

func patchFile(from, to string) (changed, total int64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, 0, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, 0, err
	}
	defer dst.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, end := io.ReadFull(src, x)
		m, err := dst.ReadAt(y[:n], total) // a shorter one differs
		if err != nil && err != io.EOF {
			return changed, total, err
		}
		for i := 0; i < n; i += 4096 {
			j := min(i+4096, n)
			if j <= m && bytes.Equal(x[i:j], y[i:j]) {
				continue
			}
			if _, err := dst.WriteAt(x[i:j], total+int64(i)); err != nil {
				return changed, total, err
			}
			changed += int64(j - i)
		}
		total += int64(n)
		if end == io.EOF || end == io.ErrUnexpectedEOF {
			return changed, total, dst.Truncate(total)
		}
		if end != nil {
			return changed, total, end
		}
	}
}
