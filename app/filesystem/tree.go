package filesystem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"tidemark"
)

// pair is a directory of the tree and its copy, both open, so that no link that
// appears meanwhile leads us elsewhere.
type pair struct {
	src, dst       *os.Root
	srcDir, dstDir *os.File
	rel            string // "" at the top
	known          bool   // the same directory was here at the last Sync
}

func statOf(fi fs.FileInfo) *syscall.Stat_t { return fi.Sys().(*syscall.Stat_t) }

func openPair(src, dst *os.Root, rel string) (*pair, error) {
	p := &pair{src: src, dst: dst, rel: rel}
	var err error
	if p.srcDir, err = src.Open("."); err != nil {
		return nil, errors.Join(err, src.Close(), dst.Close())
	}
	if p.dstDir, err = dst.Open("."); err != nil {
		return nil, errors.Join(err, p.srcDir.Close(), src.Close(), dst.Close())
	}
	return p, nil
}

func (p *pair) close() {
	p.srcDir.Close() // all were only read through
	p.dstDir.Close()
	p.src.Close()
	p.dst.Close()
}

// run walks both trees from the top.
func (s *syncer) run(src, dst string) error {
	s.links, s.claimed, s.dirs = map[uint64]string{}, map[uint64]uint64{}, map[string]uint64{}
	s.st, s.skipped = Stats{Sampled: s.st.Sampled, Removed: s.st.Removed}, nil
	var err error
	if s.top, err = os.OpenRoot(dst); err != nil {
		return err
	}
	defer s.top.Close()
	from, err := os.OpenRoot(src)
	if err != nil {
		return err
	}
	to, err := os.OpenRoot(dst)
	if err != nil {
		return errors.Join(err, from.Close())
	}
	p, err := openPair(from, to, "")
	if err != nil {
		return err
	}
	defer p.close()
	fi, err := p.srcDir.Stat()
	if err != nil {
		return err
	}
	return s.dir(p, fi)
}

// dir makes the copy of one directory equal: first what is gone, then files, then
// the directories below, at last its own attributes, because all of these date it.
func (s *syncer) dir(p *pair, fi fs.FileInfo) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	ino := statOf(fi).Ino
	p.known = s.prev.Dirs[p.rel] == ino
	s.dirs[p.rel] = ino
	entries, err := s.list(p)
	if err != nil {
		return err
	}
	if err := s.removeExtra(p, entries); err != nil {
		return err
	}
	if err := s.files(p, entries); err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := s.subdir(p, e); err != nil {
				return err
			}
		}
	}
	s.count(0)
	return s.attributes(p.srcDir, p.dstDir, ".", fi, filepath.Join(p.rel, "."))
}

// list returns the directory's entries that are to be copied, by name.
func (s *syncer) list(p *pair) ([]fs.FileInfo, error) {
	names, err := p.srcDir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read directory %q: %w", p.rel, err)
	}
	sort.Strings(names)
	entries := make([]fs.FileInfo, 0, len(names))
	for _, name := range names {
		fi, err := p.src.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // vanished
		}
		if err != nil {
			return nil, fmt.Errorf("look at %q: %w", filepath.Join(p.rel, name), err)
		}
		switch rel := filepath.Join(p.rel, name); {
		case statOf(fi).Dev != s.dev:
			s.warn("another file system is mounted at %q: it is not copied", rel)
		case fi.Mode()&fs.ModeSocket != 0:
			s.warn("socket %q is not copied", rel)
		case fi.Mode()&fs.ModeDevice != 0 && !s.devices:
			s.warn("device node %q is not made", rel)
		default:
			entries = append(entries, fi)
		}
	}
	return entries, nil
}

func (s *syncer) warn(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Warnings = append(s.st.Warnings, fmt.Sprintf(format, args...))
}

func (s *syncer) count(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.st.Files++
	s.st.Bytes += size
	if s.opts.Progress != nil {
		s.opts.Progress(tidemark.Progress{Done: int64(s.st.Files), Unit: "files"})
	}
}

// removeExtra removes from the copy what the tree has not, and what there is of
// another kind than in the tree.
func (s *syncer) removeExtra(p *pair, entries []fs.FileInfo) error {
	kinds := make(map[string]fs.FileMode, len(entries))
	for _, e := range entries {
		kinds[e.Name()] = e.Mode().Type()
	}
	have, err := p.dstDir.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("read the copy of directory %q: %w", p.rel, err)
	}
	for _, h := range have {
		kind, wanted := kinds[h.Name()]
		if wanted && kind == h.Type() || !wanted && s.keep {
			continue
		}
		if err := p.dst.RemoveAll(h.Name()); err != nil {
			return fmt.Errorf("remove %q from the copy: %w", filepath.Join(p.rel, h.Name()), err)
		}
		s.st.Removed++
	}
	return nil
}

// files stages everything but directories. Files with one name are independent
// of each other and go to the workers; names that share an inode do not.
func (s *syncer) files(p *pair, entries []fs.FileInfo) error {
	var single []fs.FileInfo
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if e.Mode().IsRegular() && statOf(e).Nlink == 1 {
			single = append(single, e)
			continue
		}
		if err := s.shared(p, e); err != nil {
			return err
		}
	}
	if len(single) == 0 {
		return nil
	}
	n := min(workers, len(single))
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			w := fileWorker{syncer: s}
			defer w.done()
			for j := i; j < len(single); j += n {
				if err := s.ctx.Err(); err != nil {
					return err
				}
				if err := w.file(p, single[j]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// shared stages what is no plain file, or has several names.
func (s *syncer) shared(p *pair, e fs.FileInfo) error {
	rel := filepath.Join(p.rel, e.Name())
	st := statOf(e)
	if st.Nlink > 1 {
		if first, ok := s.links[st.Ino]; ok {
			s.count(0)
			return s.link(p, e.Name(), first, rel)
		}
		s.links[st.Ino] = rel
	}
	if err := s.unshare(p, e); err != nil {
		return err
	}
	if e.Mode().IsRegular() {
		w := fileWorker{syncer: s}
		defer w.done()
		return w.file(p, e)
	}
	s.count(0)
	if err := s.special(p, e); err != nil {
		return fmt.Errorf("copy %q: %w", rel, err)
	}
	return s.attributes(p.srcDir, p.dstDir, e.Name(), e, rel)
}

// link gives the copy of an inode another name.
func (s *syncer) link(p *pair, name, first, rel string) error {
	a, err := s.top.Lstat(first)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it vanished while it was copied
	}
	if err != nil {
		return err
	}
	b, err := p.dst.Lstat(name)
	if err == nil && os.SameFile(a, b) {
		return nil
	}
	if err == nil {
		if err := p.dst.Remove(name); err != nil {
			return err
		}
	}
	if err := s.top.Link(first, rel); err != nil {
		return fmt.Errorf("link %q to %q: %w", rel, first, err)
	}
	return nil
}

// unshare makes sure that the copy's inode at this name belongs to this inode of
// the tree alone, because it is about to be written in place. In a Restore, other
// names of it may lie outside of the directory: so it is always replaced.
func (s *syncer) unshare(p *pair, e fs.FileInfo) error {
	have, err := p.dst.Lstat(e.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if h := statOf(have); h.Nlink > 1 {
		mine, ours := statOf(e), s.claimed[h.Ino]
		if s.prev.Dirs != nil && mine.Nlink > 1 && (ours == 0 || ours == mine.Ino) {
			s.claimed[h.Ino] = mine.Ino
			return nil
		}
		return p.dst.Remove(e.Name())
	}
	return nil
}

// special makes a symbolic link, fifo or device node, unless it is there.
func (s *syncer) special(p *pair, e fs.FileInfo) error {
	name := e.Name()
	have, err := p.dst.Lstat(name)
	exists := err == nil
	if e.Mode()&fs.ModeSymlink != 0 {
		want, err := p.src.Readlink(name)
		if err != nil {
			return err
		}
		if exists {
			if got, err := p.dst.Readlink(name); err == nil && got == want {
				return nil
			}
			if err := p.dst.Remove(name); err != nil {
				return err
			}
		}
		return p.dst.Symlink(want, name) // any target: nothing of ours follows it
	}
	st := statOf(e)
	if exists {
		if statOf(have).Rdev == st.Rdev {
			return nil
		}
		if err := p.dst.Remove(name); err != nil {
			return err
		}
	}
	return unix.Mknodat(int(p.dstDir.Fd()), name, st.Mode&unix.S_IFMT|0o600, int(st.Rdev))
}

// subdir goes down into a directory. One that vanished is gone from the copy too.
func (s *syncer) subdir(p *pair, e fs.FileInfo) error {
	name, rel := e.Name(), filepath.Join(p.rel, e.Name())
	from, err := p.src.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) {
		return p.dst.RemoveAll(name)
	}
	if err != nil {
		return fmt.Errorf("open directory %q: %w", rel, err)
	}
	if err := p.dst.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return errors.Join(err, from.Close())
	}
	to, err := p.dst.OpenRoot(name)
	if err != nil {
		return errors.Join(fmt.Errorf("open the copy of directory %q: %w", rel, err), from.Close())
	}
	sub, err := openPair(from, to, rel)
	if err != nil {
		return err
	}
	defer sub.close()
	now, err := sub.srcDir.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(now, e) {
		return tidemark.Errorf(tidemark.Conflict, "directory %q was replaced while it was read", rel).WithHint("try again")
	}
	return s.dir(sub, now)
}

// setTime gives an entry the tree's modification time.
func setTime(dir *os.File, name string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
