// Package volume provides the import of a raw disk, a file or a block device,
// into a Tidemark disk: all of it is read, and only what differs is written.
//
// The source must not change meanwhile: what is imported is a raw copy without
// quiescing, and a file whose size or date changes during the import is an
// error. (A block device cannot be watched so; unmount it, or import a snapshot.)
//
// The pad rule: a source of n bytes fills the first n bytes of the destination.
// If the destination is larger, the rest is left as it is; a smaller one is
// refused. n must be a multiple of 512, the sector that every disk is made of.
package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/block"
)

const (
	sector = 512
	// piece is read, compared and written at once.
	piece = 1 << 20
	// holePiece bounds the list of extents that is held for a hole.
	holePiece = 1 << 30
	// readers overlap the source's reading with comparing and writing.
	readers = 2
)

// Stats says what an import did.
type Stats struct {
	Size         int64         `json:"size"`         // of the source, in bytes
	ReadBytes    int64         `json:"readBytes"`    // read from the source, without holes
	HoleBytes    int64         `json:"holeBytes"`    // known to be zeros without reading
	ChangedBytes int64         `json:"changedBytes"` // written or discarded in the destination
	Elapsed      time.Duration `json:"elapsed"`      // in nanoseconds
}

// Options tune an import; the zero value is right.
type Options struct {
	// Progress is told the bytes of the source dealt with, in order. It may be nil.
	Progress func(tidemark.Progress)
	// afterOpen is called by tests before the first read.
	afterOpen func()
}

// job is a part of the source.
type job struct {
	off, n int64
	hole   bool
}

// SourceSize returns the size in bytes of a file or block device, if [Import]
// would take it.
func SourceSize(src string) (int64, error) {
	f, size, err := open(src)
	if err != nil {
		return 0, err
	}
	return size, f.Close()
}

// Import makes the beginning of dst equal to the file or block device src and
// flushes it. Blocks of 4 KiB that are equal already are not written. On an
// error, dst is a mixture of old and new; importing again mends it.
func Import(ctx context.Context, src string, dst block.Device, opts Options) (Stats, error) {
	begun := time.Now()
	f, size, err := open(src)
	if err != nil {
		return Stats{}, err
	}
	defer f.Close()
	if size > dst.Size() {
		return Stats{}, tidemark.Errorf(tidemark.Invalid, "%s has %d bytes and the volume only %d", src, size, dst.Size()).WithHint("import into a larger volume")
	}
	before, err := f.Stat()
	if err != nil {
		return Stats{}, err
	}
	if opts.afterOpen != nil {
		opts.afterOpen()
	}
	st, err := run(ctx, f, size, dst, opts)
	if err != nil {
		return Stats{}, err
	}
	after, err := f.Stat()
	if err != nil {
		return Stats{}, err
	}
	if before.Mode().IsRegular() && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
		return Stats{}, changed(src)
	}
	if err := dst.Flush(); err != nil {
		return Stats{}, fmt.Errorf("flush the imported volume: %w", err)
	}
	st.Size, st.Elapsed = size, time.Since(begun)
	return st, nil
}

func changed(src string) error {
	return tidemark.Errorf(tidemark.Conflict, "%s changed while it was imported", src).WithHint("stop what writes to it, or import a snapshot of it")
}

// open opens a source and finds its size. Nothing but a regular file or a block
// device is opened: the opening alone of a fifo waits, of a tape rewinds.
func open(src string) (*os.File, int64, error) {
	fi, err := os.Stat(src)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, 0, tidemark.Errorf(tidemark.NotFound, "there is no %s", src)
	case err != nil:
		return nil, 0, tidemark.Errorf(tidemark.Invalid, "%s cannot be read: %w", src, err)
	}
	isDevice := fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0
	if !fi.Mode().IsRegular() && !isDevice {
		return nil, 0, tidemark.Errorf(tidemark.Invalid, "%s is neither a regular file nor a block device", src)
	}
	f, err := os.OpenFile(src, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, tidemark.Errorf(tidemark.Denied, "%s cannot be read: %w", src, err)
	}
	size, err := f.Seek(0, io.SeekEnd) // the size of a device too
	if err == nil {
		err = checkSize(src, size)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

func checkSize(src string, size int64) error {
	switch {
	case size == 0:
		return tidemark.Errorf(tidemark.Invalid, "%s is empty", src)
	case size%sector != 0:
		return tidemark.Errorf(tidemark.Invalid, "%s has %d bytes, which is not a multiple of %d", src, size, sector).
			WithHint(fmt.Sprintf("truncate -s %%%d adds the missing zeros", sector))
	}
	return nil
}

// run reads and compares with several workers, each piece by itself.
func run(ctx context.Context, f *os.File, size int64, dst block.Device, opts Options) (Stats, error) {
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan job, readers)
	g.Go(func() error {
		defer close(jobs)
		return split(f, size, func(j job) error {
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	sum := make(chan Stats)
	for range readers {
		g.Go(func() error {
			w := worker{src: f, dst: dst, new: make([]byte, piece), old: make([]byte, piece)}
			for j := range jobs {
				st, err := w.do(j)
				if err != nil {
					return err
				}
				select {
				case sum <- st:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}
	errc := make(chan error, 1)
	go func() { errc <- g.Wait(); close(sum) }()
	var total Stats
	for st := range sum {
		total.ReadBytes += st.ReadBytes
		total.HoleBytes += st.HoleBytes
		total.ChangedBytes += st.ChangedBytes
		if opts.Progress != nil {
			opts.Progress(tidemark.Progress{Done: total.ReadBytes + total.HoleBytes, Total: size, Unit: "bytes"})
		}
	}
	return total, <-errc
}

// split cuts [0, size) into pieces of data and holes, in order. A file system that
// cannot tell holes has none.
func split(f *os.File, size int64, emit func(job) error) error {
	for off := int64(0); off < size; {
		data, end := extent(f, off, size)
		for ; off < data; off += min(holePiece, data-off) {
			if err := emit(job{off: off, n: min(holePiece, data-off), hole: true}); err != nil {
				return err
			}
		}
		for off = data; off < end; {
			n := min(piece-off%piece, end-off)
			if err := emit(job{off: off, n: n}); err != nil {
				return err
			}
			off += n
		}
	}
	return nil
}

// extent finds the next data at or after off, and its end, on whole blocks.
func extent(f *os.File, off, size int64) (data, end int64) {
	fd := int(f.Fd())
	data, err := unix.Seek(fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size, size
	}
	if err != nil {
		return off, size
	}
	if end, err = unix.Seek(fd, data, unix.SEEK_HOLE); err != nil {
		end = size
	}
	const mask = block.BlockSize - 1
	return max(data&^mask, off), min((end+mask)&^mask, size)
}

// worker compares pieces. It has buffers of its own.
type worker struct {
	src      *os.File
	dst      block.Device
	new, old []byte
}

func (w *worker) do(j job) (Stats, error) {
	if !j.hole {
		return w.data(j)
	}
	empty, err := w.looksEmpty(j)
	if err != nil {
		return Stats{}, err
	}
	if !empty {
		return w.untrusted(j)
	}
	n, err := w.clear(j.off, j.n)
	return Stats{HoleBytes: j.n, ChangedBytes: n}, err
}

// looksEmpty reads a random block of what the file system calls a hole: file
// systems have called data holes before.
func (w *worker) looksEmpty(j job) (bool, error) {
	blocks := (j.n + block.BlockSize - 1) / block.BlockSize
	off := j.off + rand.Int64N(blocks)*block.BlockSize
	p := w.new[:min(block.BlockSize, j.off+j.n-off)]
	if err := w.read(p, off); err != nil {
		return false, err
	}
	return isZero(p), nil
}

// untrusted reads all of a hole that is none.
func (w *worker) untrusted(j job) (sum Stats, err error) {
	for end := j.off + j.n; j.off < end; j.off += piece {
		st, err := w.data(job{off: j.off, n: min(piece, end-j.off)})
		if err != nil {
			return sum, err
		}
		sum.ReadBytes += st.ReadBytes
		sum.ChangedBytes += st.ChangedBytes
	}
	return sum, nil
}

func (w *worker) data(j job) (Stats, error) {
	p := w.new[:j.n]
	if err := w.read(p, j.off); err != nil {
		return Stats{}, err
	}
	n, err := w.merge(p, j.off)
	return Stats{ReadBytes: j.n, ChangedBytes: n}, err
}

// read fills p; a source that is shorter than it was has changed.
func (w *worker) read(p []byte, off int64) error {
	_, err := w.src.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		return changed(w.src.Name())
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", w.src.Name(), err)
	}
	return nil
}

// merge writes the blocks of p that dst does not hold already, neighbours together.
func (w *worker) merge(p []byte, off int64) (written int64, err error) {
	old := w.old[:len(p)]
	if _, err := w.dst.ReadAt(old, off); err != nil {
		return 0, fmt.Errorf("read the volume: %w", err)
	}
	if bytes.Equal(p, old) {
		return 0, nil
	}
	for i := 0; i < len(p); {
		end := min(i+block.BlockSize, len(p))
		if bytes.Equal(p[i:end], old[i:end]) {
			i = end
			continue
		}
		for end < len(p) {
			next := min(end+block.BlockSize, len(p))
			if bytes.Equal(p[end:next], old[end:next]) {
				break
			}
			end = next
		}
		if _, err := w.dst.WriteAt(p[i:end], off+int64(i)); err != nil {
			return written, fmt.Errorf("write the volume: %w", err)
		}
		written += int64(end - i)
		i = end
	}
	return written, nil
}

// clear makes a hole in dst where it has none: its own holes are skipped without
// reading, and data that is not zeros is discarded.
func (w *worker) clear(off, n int64) (cleared int64, err error) {
	var data []block.Extent // not read from within Extents: the disk may hold a lock there
	err = block.Extents(w.dst, off, n, func(e block.Extent) bool {
		if !e.Hole {
			data = append(data, e)
		}
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("list the volume's extents: %w", err)
	}
	for _, e := range data {
		c, err := w.clearData(e.Off, e.Len)
		if cleared += c; err != nil {
			return cleared, err
		}
	}
	return cleared, nil
}

func (w *worker) clearData(off, n int64) (cleared int64, err error) {
	for end := off + n; off < end; {
		old := w.old[:min(piece, end-off)]
		if _, err := w.dst.ReadAt(old, off); err != nil {
			return cleared, fmt.Errorf("read the volume: %w", err)
		}
		if !isZero(old) {
			if err := w.dst.Discard(off, int64(len(old))); err != nil {
				return cleared, fmt.Errorf("discard in the volume: %w", err)
			}
			cleared += int64(len(old))
		}
		off += int64(len(old))
	}
	return cleared, nil
}

var zeros [block.BlockSize]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
