// Package app provides what all kinds of applications share: bringing one staged
// file up to date in place, and making a directory tree durable.
//
// The kinds themselves are the packages below it: [tidemark/app/postgres],
// [tidemark/app/filesystem] and [tidemark/app/volume]. They know nothing of
// timelines and images: they work on directories and disks that they are handed.
//
// A staged file lies on a disk whose changes are kept, so a write of bytes that
// are there already is not free: it becomes history. [Copier] therefore reads
// the staged copy too, and writes only the 4 KiB blocks that differ.
package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"tidemark/block"
)

// copyBuf is how much is read at once: large enough that the calls cost
// nothing beside the copying, small enough for the L2 cache to hold both sides.
const copyBuf = 512 << 10

// writeBackAfter is how much is written before the kernel begins to write it back.
const writeBackAfter = 8 << 20

var zeros [block.BlockSize]byte

// Copier makes files equal to others in place. It holds the buffers; one
// goroutine uses a Copier at a time. The zero value is ready.
type Copier struct {
	src, dst []byte
	// ReadBytes counts what was read from sources, ChangedBytes what was written
	// to copies, in bytes, over the life of the Copier.
	ReadBytes, ChangedBytes int64

	behind int // bytes written since the kernel was last told to write back
}

// Copy makes dst's content equal to what src reads as now, up to its end, and returns the
// length. Only differing blocks of 4 KiB are written, zeros where dst has nothing are left
// as holes, and dst is cut to the length of src. Nothing is synced.
//
// If src is written meanwhile, a block of dst is what one of the reads saw.
func (c *Copier) Copy(dst, src *os.File) (int64, error) {
	c.alloc()
	st, err := dst.Stat()
	if err != nil {
		return 0, err
	}
	have := st.Size()
	var off int64
	for {
		n, err := readFull(src, c.src, off)
		if err != nil {
			return off, fmt.Errorf("read %s: %w", src.Name(), err)
		}
		if err := c.Merge(dst, c.src[:n], off, have); err != nil {
			return off, err
		}
		off += int64(n)
		if n < len(c.src) {
			break
		}
	}
	return off, c.setLength(dst, off, have)
}

// CopyRange makes dst's bytes [off, off+n) equal to those of src, for callers
// that know where src has data. have is the length dst had before. It returns the
// bytes that src yielded, fewer than n only at its end.
func (c *Copier) CopyRange(dst, src *os.File, off, n, have int64) (int64, error) {
	c.alloc()
	var done int64
	for done < n {
		want := min(n-done, int64(len(c.src)))
		got, err := readFull(src, c.src[:want], off+done)
		if err != nil {
			return done, fmt.Errorf("read %s: %w", src.Name(), err)
		}
		if err := c.Merge(dst, c.src[:got], off+done, have); err != nil {
			return done, err
		}
		if done += int64(got); int64(got) < want {
			break
		}
	}
	return done, nil
}

// Merge writes those 4 KiB blocks of p to dst at off that differ from what dst
// holds; have is the length dst had before this copy began, beyond which it is
// known to read as zeros.
func (c *Copier) Merge(dst *os.File, p []byte, off, have int64) error {
	c.alloc()
	c.ReadBytes += int64(len(p))
	old := c.dst[:0]
	if off < have {
		old = c.dst[:min(int64(len(p)), have-off)]
		n, err := readFull(dst, old, off)
		if err != nil {
			return fmt.Errorf("read staged copy %s: %w", dst.Name(), err)
		}
		old = old[:n]
	}
	if len(old) == len(p) && bytes.Equal(old, p) {
		return nil
	}
	return c.writeRuns(dst, p, old, off)
}

// writeRuns writes the differing blocks of p, neighbours in one call.
func (c *Copier) writeRuns(dst *os.File, p, old []byte, off int64) error {
	start := -1
	flush := func(end int) error {
		if start < 0 {
			return nil
		}
		err := c.write(dst, p[start:end], off+int64(start))
		start = -1
		return err
	}
	for i := 0; i < len(p); i += block.BlockSize {
		end := min(i+block.BlockSize, len(p))
		if same(p[i:end], old, i) {
			if err := flush(i); err != nil {
				return err
			}
		} else if start < 0 {
			start = i
		}
	}
	return flush(len(p))
}

// write writes a run of blocks that differ. From time to time it has the kernel begin to write
// back, which otherwise waits for a tenth of the memory, or for the sync at the end.
func (c *Copier) write(dst *os.File, p []byte, off int64) error {
	n, err := dst.WriteAt(p, off)
	c.ChangedBytes += int64(n)
	if err != nil {
		return fmt.Errorf("write staged copy: %w", err)
	}
	if c.behind += n; c.behind >= writeBackAfter {
		c.behind = 0
		// It is a hint: an error of the disk is met again by the sync that ends a capture.
		_ = unix.SyncFileRange(int(dst.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}

// same reports that block b equals the staged bytes at index i, where what lies
// past their end reads as zeros.
func same(b, old []byte, i int) bool {
	if i >= len(old) {
		return bytes.Equal(b, zeros[:len(b)])
	}
	known := min(len(b), len(old)-i)
	return bytes.Equal(b[:known], old[i:i+known]) && bytes.Equal(b[known:], zeros[:len(b)-known])
}

func (c *Copier) setLength(dst *os.File, size, have int64) error {
	st, err := dst.Stat()
	if err != nil {
		return err
	}
	if st.Size() == size {
		return nil
	}
	if size < have {
		c.ChangedBytes += block.BlockSize // the inode and the tail block
	}
	return dst.Truncate(size)
}

func (c *Copier) alloc() {
	if c.src == nil {
		c.src, c.dst = make([]byte, copyBuf), make([]byte, copyBuf)
	}
}

// readFull reads until p is full or the file ends, and calls neither an error.
func readFull(f *os.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// SyncTree makes everything on the file system that holds dir durable, and
// reports writeback errors that happened since dir was last synced so.
func SyncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", dir, err)
	}
	return nil
}
