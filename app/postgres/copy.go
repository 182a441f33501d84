package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark"
	"tidemark/app"
	"tidemark/block"
)

const (
	// dateMargin is how much older than the last capture a file's dates must be to
	// prove anything. A write first dates the file and then changes it, in ticks of
	// some milliseconds: a date from before the margin cannot belong to a write
	// that the last capture missed.
	dateMargin = 5 * time.Second
	// copyWorkers overlaps one file's reading with another's comparing.
	copyWorkers    = 2
	defaultSamples = 64
	// maxConfigFile keeps what is not configuration out of staging/config.
	maxConfigFile = 1 << 20
)

// copyAll stages all files but label and log; pg_control comes last, so that it never
// is older than a page that is newer.
func (c *capture) copyAll(ctx context.Context) error {
	staged := &localStage{staging: c.staging}
	w := &walker{ctx: ctx, out: staged, dataDir: c.facts.DataDir, logDir: c.logDir()}
	if err := w.data(); err != nil {
		return fmt.Errorf("look through the cluster: %w", err)
	}
	if err := c.pruneTablespaces(staged); err != nil {
		return err
	}
	c.res.Removed, c.res.Warnings = staged.removed, w.warnings
	c.res.Files = len(staged.items) + 1
	c.items = staged.items
	for _, it := range staged.items {
		c.res.Bytes += it.attr.size
	}
	if err := c.step("walked"); err != nil {
		return err
	}
	skipped, err := c.copyItems(ctx, staged.items)
	if err != nil {
		return err
	}
	if c.res.Rescan, err = c.sample(skipped); err != nil {
		return err
	}
	if c.res.Rescan != "" {
		c.trust = false
		if skipped, err = c.copyItems(ctx, skipped); err != nil {
			return err
		}
	}
	c.res.Skipped = len(skipped)
	if err := c.copyConfig(); err != nil {
		return err
	}
	return c.copyControl(*w.control)
}

func (c *capture) logDir() string {
	dir := c.facts.logDir
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(c.facts.DataDir, dir)
	}
	return filepath.Clean(dir)
}

// pruneTablespaces removes staged tablespaces that no link names any more.
func (c *capture) pruneTablespaces(staged *localStage) error {
	links, err := os.ReadDir(filepath.Join(c.staging, "data", "pg_tblspc"))
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, e := range links {
		keep[e.Name()] = true
	}
	if _, err := os.Stat(filepath.Join(c.staging, "tablespaces")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return staged.leave("tablespaces", keep)
}

// copyItems stages files with several workers and returns those it skipped.
func (c *capture) copyItems(ctx context.Context, items []item) ([]item, error) {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan item)
	g.Go(func() error {
		defer close(work)
		for _, it := range items {
			select {
			case work <- it:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	var mu sync.Mutex // guards skipped, seen and c.res
	var skipped []item
	var seen int64
	for range copyWorkers {
		g.Go(func() error {
			var cp app.Copier
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				c.res.ReadBytes += cp.ReadBytes
				c.res.ChangedBytes += cp.ChangedBytes
			}()
			for it := range work {
				done, err := c.copyItem(&cp, it)
				if err != nil {
					return err
				}
				mu.Lock()
				if !done {
					skipped = append(skipped, it)
				}
				seen += it.attr.size
				c.progress(seen)
				mu.Unlock()
			}
			return nil
		})
	}
	return skipped, g.Wait()
}

func (c *capture) progress(done int64) {
	if c.opts.Progress != nil {
		c.opts.Progress(tidemark.Progress{Done: done, Total: c.res.Bytes, Unit: "bytes"})
	}
}

// copyItem stages one file; false means that it is proven to be staged already.
func (c *capture) copyItem(cp *app.Copier, it item) (bool, error) {
	dst := filepath.Join(c.staging, it.rel)
	staged, err := os.Lstat(dst)
	if err == nil && !staged.Mode().IsRegular() {
		if err := os.RemoveAll(dst); err != nil {
			return false, err
		}
		staged = nil
	}
	if c.trust && err == nil && staged != nil && c.unchanged(it.attr, attrOf(staged)) {
		return false, nil
	}
	return true, copyFile(cp, it.src, dst, c.prints, it.rel)
}

// unchanged is the proof rule: see DESIGN.md. A staged file carries the date that
// its source had before it was read.
func (c *capture) unchanged(src, staged attr) bool {
	horizon := c.prev.Started.Add(-c.opts.margin)
	return src.size == staged.size && src.mtime.Equal(staged.mtime) &&
		src.mtime.Before(horizon) && src.ctime.Before(horizon) &&
		src.mode == staged.mode && (os.Geteuid() != 0 || src.uid == staged.uid && src.gid == staged.gid)
}

// copyFile makes dst equal to src, with its owner, mode and date. A src that
// vanished takes dst with it. prints, which may be nil, knows dst as rel.
func copyFile(cp *app.Copier, src, dst string, prints *app.Prints, rel string) error {
	in, err := os.Open(src)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	defer in.Close()
	before, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("staging: %w", err)
	}
	_, err = prints.Copy(cp, out, in, rel)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("capture %s: %w", src, err)
	}
	a := attrOf(before)
	if err := setOwner(dst, a, a.mode.Perm()); err != nil {
		return err
	}
	return setDate(dst, a.mtime)
}

func setDate(path string, t time.Time) error {
	if fi, err := os.Lstat(path); err == nil && fi.ModTime().Equal(t) {
		return nil
	}
	return os.Chtimes(path, t, t)
}

// sample compares random blocks of files that were skipped. It returns why dates
// cannot be trusted here, if so.
func (c *capture) sample(skipped []item) (string, error) {
	want := c.opts.Samples
	if want == 0 {
		want = defaultSamples
	}
	ends := make([]int64, len(skipped)) // running number of blocks
	var total int64
	for i, it := range skipped {
		total += (it.attr.size + block.BlockSize - 1) / block.BlockSize
		ends[i] = total
	}
	for range min(int64(want), total) {
		n := rand.Int64N(total)
		i := sort.Search(len(ends), func(i int) bool { return ends[i] > n })
		start := int64(0)
		if i > 0 {
			start = ends[i-1]
		}
		c.res.Sampled++
		equal, err := c.sampleBlock(skipped[i], (n-start)*block.BlockSize)
		if err != nil || !equal {
			return fmt.Sprintf("%s differs from its copy although its dates say that it was not written", skipped[i].src), err
		}
	}
	return "", nil
}

// sampleBlock reports that one block is staged as it is, or that the file was
// written just now, which its dates show and the log repairs.
func (c *capture) sampleBlock(it item, off int64) (bool, error) {
	var a, b [block.BlockSize]byte
	n, err1 := readAt(it.src, a[:], off)
	m, err2 := readAt(filepath.Join(c.staging, it.rel), b[:], off)
	if err2 != nil {
		return false, fmt.Errorf("sample staged copy: %w", err2)
	}
	if err1 == nil && n == m && bytes.Equal(a[:n], b[:m]) {
		return true, nil
	}
	now, err := os.Lstat(it.src)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err1, fs.ErrNotExist) {
		return true, nil
	}
	if err := errors.Join(err, err1); err != nil {
		return false, fmt.Errorf("sample: %w", err)
	}
	return now.ModTime() != it.attr.mtime || attrOf(now).ctime != it.attr.ctime, nil
}

func readAt(path string, p []byte, off int64) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if n > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// copyControl stages pg_control. The server writes it in one piece, but a read
// beside the write may see half: so it is read until twice the same.
func (c *capture) copyControl(it item) error {
	data, err := readControlFile(it.src)
	if err != nil {
		return err
	}
	return c.writeSmall(it.rel, data, it.attr)
}

func readControlFile(path string) ([]byte, error) {
	last, err := os.ReadFile(path)
	for range 100 {
		if err != nil {
			return nil, fmt.Errorf("capture pg_control: %w", err)
		}
		var again []byte
		if again, err = os.ReadFile(path); err == nil && bytes.Equal(last, again) {
			return last, nil
		}
		last = again
	}
	return nil, tidemark.Errorf(tidemark.Unavailable, "%s changes without rest", path)
}

func (c *capture) writeSmall(rel string, data []byte, a attr) error {
	out, err := os.OpenFile(filepath.Join(c.staging, rel), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := out.Stat()
	if err == nil {
		var cp app.Copier
		if err = cp.Merge(out, data, 0, st.Size()); err == nil {
			err = out.Truncate(int64(len(data)))
		}
		c.res.ReadBytes += cp.ReadBytes
		c.res.ChangedBytes += cp.ChangedBytes
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("stage %s: %w", rel, err)
	}
	return setOwner(filepath.Join(c.staging, rel), a, a.mode.Perm())
}

// copyConfig stages configuration that lies outside of the data directory, as
// Debian has it.
func (c *capture) copyConfig() error {
	home := filepath.Join(c.staging, "config")
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	for dir := range c.facts.configDirs() {
		if err := c.copyConfigDir(dir, home); err != nil {
			return fmt.Errorf("capture configuration: %w", err)
		}
	}
	return nil
}

// configDirs are the directories of configuration that do not lie in the data directory.
func (r *Report) configDirs() map[string]bool {
	inside := func(p string) bool { return strings.HasPrefix(p, r.DataDir+"/") }
	dirs := map[string]bool{}
	for _, f := range []string{r.ConfigFile, r.hba, r.ident} {
		if f != "" && !inside(f) {
			dirs[filepath.Dir(f)] = true
		}
	}
	return dirs
}

func (c *capture) copyConfigDir(dir, home string) error {
	var cp app.Copier
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(home, rel), 0o700)
		}
		fi, err := os.Stat(path)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() > maxConfigFile {
			return nil // a dangling link, or no configuration
		}
		return copyFile(&cp, path, filepath.Join(home, rel), nil, "")
	})
}

// copyLog stages the log from StartLSN to StopLSN, and the history of its timeline.
func (c *capture) copyLog(data string) error {
	from, to := filepath.Join(c.facts.DataDir, "pg_wal"), filepath.Join(data, "pg_wal")
	names, err := c.res.logFiles(from)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	var cp app.Copier
	defer func() { c.res.ReadBytes += cp.ReadBytes; c.res.ChangedBytes += cp.ChangedBytes }()
	for _, name := range names {
		keep[name] = true
		if err := copyFile(&cp, filepath.Join(from, name), filepath.Join(to, name), nil, ""); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(to)
	for _, e := range list {
		if !keep[e.Name()] {
			err = errors.Join(err, os.RemoveAll(filepath.Join(to, e.Name())))
		}
	}
	return err
}

// logFiles names the files of the log from StartLSN to StopLSN, which are there and whole, and those of the history of timelines.
func (r *CaptureResult) logFiles(dir string) (names []string, err error) {
	seg := uint64(r.SegSize)
	for n := uint64(r.StartLSN) / seg; n <= uint64(r.StopLSN-1)/seg; n++ {
		name := segmentName(r.Timeline, n, r.SegSize)
		names = append(names, name)
		if err := checkSegment(filepath.Join(dir, name), n*seg); err != nil {
			return nil, err
		}
	}
	list, err := os.ReadDir(dir)
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".history") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// checkSegment makes sure that a log file is there and holds the positions that
// its name says: its first page carries its own position.
func checkSegment(path string, start uint64) error {
	var head [16]byte
	n, err := readAt(path, head[:], 0)
	if errors.Is(err, fs.ErrNotExist) {
		return tidemark.Errorf(tidemark.Unavailable, "the server removed log file %s during the capture", filepath.Base(path)).
			WithHint("raise max_slot_wal_keep_size and capture again")
	}
	if err != nil {
		return err
	}
	if n < len(head) || binary.NativeEndian.Uint64(head[8:]) != start {
		return tidemark.Errorf(tidemark.Corrupt, "log file %s does not begin at position %s", path, LSN(start))
	}
	return nil
}
