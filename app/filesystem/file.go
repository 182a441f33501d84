package filesystem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app"
	"tidemark/block"
)

// skippedFile is a file that was not read, by proof.
type skippedFile struct {
	rel          string
	size         int64
	mtime, ctime time.Time
}

// fileWorker stages regular files, one after another.
type fileWorker struct {
	*syncer
	cp app.Copier
}

// done adds the worker's counts to the run's.
func (w *fileWorker) done() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st.ReadBytes += w.cp.ReadBytes
	w.st.ChangedBytes += w.cp.ChangedBytes
}

func ctimeOf(fi fs.FileInfo) time.Time { return time.Unix(statOf(fi).Ctim.Unix()) }

// file makes the copy of one regular file equal, or proves that it is.
func (w *fileWorker) file(p *pair, e fs.FileInfo) error {
	rel := filepath.Join(p.rel, e.Name())
	w.count(e.Size())
	have, err := p.dst.Lstat(e.Name())
	if err == nil && statOf(have).Nlink > 1 && statOf(e).Nlink == 1 {
		if err := p.dst.Remove(e.Name()); err != nil {
			return err
		}
		have = nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && have != nil && w.unchanged(p, e, have) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.st.Skipped++
		w.skipped = append(w.skipped, skippedFile{rel, e.Size(), e.ModTime(), ctimeOf(e)})
		return nil
	}
	return w.copy(p, e.Name(), rel)
}

// unchanged is the proof rule: see DESIGN.md.
func (w *fileWorker) unchanged(p *pair, src, have fs.FileInfo) bool {
	horizon := w.prev.Started.Add(-w.margin)
	return w.trust && p.known && src.Size() == have.Size() && src.ModTime().Equal(have.ModTime()) &&
		src.ModTime().Before(horizon) && ctimeOf(src).Before(horizon)
}

// copy reads a file until it did not change meanwhile, at most attempts times.
func (w *fileWorker) copy(p *pair, name, rel string) error {
	in, err := p.src.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := p.dst.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return tidemark.Errorf(tidemark.Denied, "%q cannot be read: %w", rel, err)
	}
	defer in.Close()
	before, err := in.Stat()
	if err != nil {
		return err
	}
	if !before.Mode().IsRegular() {
		return tidemark.Errorf(tidemark.Conflict, "%q became something else than a file while the tree was read", rel).WithHint("try again")
	}
	out, err := p.dst.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("write the copy of %q: %w", rel, err)
	}
	before, err = w.content(in, out, before, rel)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %q: %w", rel, err)
	}
	return w.attributes(p.srcDir, p.dstDir, name, before, rel)
}

// content copies until nothing changed meanwhile, and returns what the file was
// before the last reading. A file without rest is named in the result.
func (w *fileWorker) content(in, out *os.File, before fs.FileInfo, rel string) (fs.FileInfo, error) {
	for range attempts {
		if err := w.copyData(in, out, before.Size()); err != nil {
			return before, err
		}
		if w.opts.afterRead != nil {
			w.opts.afterRead(rel)
		}
		after, err := in.Stat()
		if err != nil {
			return before, err
		}
		if after.Size() == before.Size() && after.ModTime().Equal(before.ModTime()) && ctimeOf(after).Equal(ctimeOf(before)) {
			return before, nil
		}
		before = after
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st.Inconsistent = append(w.st.Inconsistent, rel)
	return before, nil
}

// copyData copies data where there is some, and keeps holes.
func (w *fileWorker) copyData(in, out *os.File, size int64) error {
	st, err := out.Stat()
	if err != nil {
		return err
	}
	have := st.Size()
	if have > size {
		if err := out.Truncate(size); err != nil {
			return err
		}
		have = size
	}
	for off := int64(0); off < size; {
		data, end := extent(in, off, size)
		if data > off {
			if data, err = w.hole(in, out, off, data, have); err != nil {
				return err
			}
		}
		n, err := w.cp.CopyRange(out, in, data, end-data, have)
		if err != nil {
			return err
		}
		if n < end-data {
			break // shorter now: the next look notices
		}
		off = end
	}
	return out.Truncate(size)
}

// extent finds the next data at or after off and its end, on whole blocks. A file system
// that cannot tell has no holes.
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
	return min(max(data&^mask, off), size), min((end+mask)&^mask, size)
}

// hole makes [off, end) of the copy a hole, if a look into the tree's hole finds
// nothing, and returns where copying goes on.
func (w *fileWorker) hole(in, out *os.File, off, end, have int64) (int64, error) {
	var b [block.BlockSize]byte
	at := off + rand.Int64N((end-off+block.BlockSize-1)/block.BlockSize)*block.BlockSize
	n, err := in.ReadAt(b[:min(block.BlockSize, end-at)], at)
	if err != nil && !errors.Is(err, io.EOF) {
		return off, err
	}
	if !bytes.Equal(b[:n], make([]byte, n)) {
		return off, nil // no hole, whatever the file system says: read it
	}
	if have <= off {
		return end, nil
	}
	if data, _ := extent(out, off, min(end, have)); data >= min(end, have) {
		return end, nil
	}
	err = unix.Fallocate(int(out.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, min(end, have)-off)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return off, nil // zeros will do
	}
	w.cp.ChangedBytes += min(end, have) - off
	return end, err
}

// sample compares random blocks of skipped files, and says why dates cannot be
// trusted, if so.
func (s *syncer) sample(src, dst string) (string, error) {
	want := s.opts.Samples
	if want == 0 {
		want = defaultSamples
	}
	ends := make([]int64, len(s.skipped)) // running number of blocks
	var total int64
	for i, f := range s.skipped {
		total += (f.size + block.BlockSize - 1) / block.BlockSize
		ends[i] = total
	}
	from, err := os.OpenRoot(src)
	if err != nil {
		return "", err
	}
	defer from.Close()
	to, err := os.OpenRoot(dst)
	if err != nil {
		return "", err
	}
	defer to.Close()
	for range min(int64(want), total) {
		n := rand.Int64N(total)
		i := sort.Search(len(ends), func(i int) bool { return ends[i] > n })
		if i > 0 {
			n -= ends[i-1]
		}
		s.st.Sampled++
		f := s.skipped[i]
		equal, err := sampleBlock(from, to, f, n*block.BlockSize)
		if err != nil {
			return "", fmt.Errorf("sample %q: %w", f.rel, err)
		}
		if !equal {
			return fmt.Sprintf("%q differs from its copy although its dates say that it was not written", f.rel), nil
		}
	}
	return "", nil
}

// sampleBlock reports that a block is equal, or that the file was written since,
// as its dates show.
func sampleBlock(from, to *os.Root, f skippedFile, off int64) (bool, error) {
	a, err := readBlock(from, f.rel, off)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	b, err := readBlock(to, f.rel, off)
	if err != nil || bytes.Equal(a, b) {
		return err == nil, err
	}
	now, err := from.Lstat(f.rel)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist), nil
	}
	return !now.ModTime().Equal(f.mtime) || !ctimeOf(now).Equal(f.ctime), nil
}

func readBlock(r *os.Root, rel string, off int64) ([]byte, error) {
	f, err := r.Open(rel)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, block.BlockSize)
	n, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}
