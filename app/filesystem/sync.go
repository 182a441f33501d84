package filesystem

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark"
	"tidemark/app"
)

// DataDir is where in a staging directory the tree is; beside it, .tidemark
// holds what Sync knows about it.
const DataDir = "data"

const (
	// dateMargin is how much older than the last Sync a file's dates must be to prove
	// that Sync saw its last write; see app/postgres, which has the same rule.
	dateMargin     = 5 * time.Second
	defaultSamples = 64
	stateFormat    = 1
	// attempts is how often a file that changes while it is read is read.
	attempts = 3
	workers  = 2
)

// Options tune a Sync; the zero value is right for almost everybody.
type Options struct {
	// FullCompare reads every file, whatever its dates say.
	FullCompare bool
	// Samples is how many 4 KiB blocks of skipped files are compared anyway.
	// Zero means 64; negative none.
	Samples int
	// Progress is told the number of files looked at. It may be nil, and is called
	// from several goroutines, one at a time.
	Progress func(tidemark.Progress)
	// margin is dateMargin, but for tests that have no time.
	margin time.Duration
	// afterRead is called by tests when a file has been read, before it is looked at again.
	afterRead func(rel string)
}

// Stats says what a Sync or a Restore did.
type Stats struct {
	Files        int   `json:"files"`   // entries of all kinds, directories too
	Skipped      int   `json:"skipped"` // files not read, by proof
	Removed      int   `json:"removed"` // entries that the tree has no more
	Bytes        int64 `json:"bytes"`   // of all regular files
	ReadBytes    int64 `json:"readBytes"`
	ChangedBytes int64 `json:"changedBytes"` // written, without metadata
	Sampled      int   `json:"sampled"`      // blocks of skipped files that were compared
	// Inconsistent names the files that changed each time they were read: their copy
	// is a mixture of moments.
	Inconsistent []string `json:"inconsistent,omitempty"`
	// Rescan, if not empty, says why everything was compared although dates were trusted at first.
	Rescan string `json:"rescan,omitempty"`
	// Warnings name what is not in the copy: other file systems mounted within the
	// tree, sockets, attributes that the copy's file system cannot hold.
	Warnings []string  `json:"warnings,omitempty"`
	Started  time.Time `json:"started"`
}

// state is what staging knows about its last whole Sync.
type state struct {
	Format  int       `json:"format"`
	Dirty   bool      `json:"dirty"`
	Started time.Time `json:"started"`
	Dev     uint64    `json:"dev"`
	// Dirs are the inode numbers of the tree's directories, by path. A directory
	// that came from elsewhere brings files whose own dates are old.
	Dirs map[string]uint64 `json:"dirs"`
}

func statePath(staging string) string {
	return filepath.Join(staging, ".tidemark", "filesystem.json")
}

func readState(staging string) state {
	var st state
	if !app.ReadState(statePath(staging), &st) || st.Format != stateFormat {
		return state{Dirty: true}
	}
	return st
}

func writeState(staging string, st state) error {
	st.Format = stateFormat
	return app.WriteState(statePath(staging), st)
}

// syncer is one run over a pair of trees.
type syncer struct {
	ctx     context.Context
	top     *os.Root // of the copy
	trust   bool     // dates may prove a file unchanged
	keep    bool     // what only the copy has stays
	devices bool     // device nodes are made
	margin  time.Duration
	prev    state
	dirs    map[string]uint64 // of this run; nil if nobody wants them
	dev     uint64
	links   map[uint64]string // inode of the tree with several names → path of its copy
	claimed map[uint64]uint64 // inode of the copy with several names → inode of the tree
	opts    Options

	mu      sync.Mutex // guards st and skipped
	st      Stats
	skipped []skippedFile
}

// Sync makes staging/data equal to the directory src, and durable. Only the file
// system that holds src is copied; what is mounted within is named as a warning.
//
// A file that cannot be read is an error that names it. On any error, a crash or a cancellation,
// staging is incomplete and knows it: the next Sync compares everything. One Sync
// at a time may use a staging directory; another gets an error of kind Conflict.
func Sync(ctx context.Context, src, staging string, opts Options) (Stats, error) {
	lock, err := app.LockDir(staging)
	if err != nil {
		return Stats{}, err
	}
	defer lock.Close()
	dev, err := checkTrees(src, staging)
	if err != nil {
		return Stats{}, err
	}
	if opts.margin == 0 {
		opts.margin = dateMargin
	}
	prev := readState(staging)
	started := time.Now()
	dirty := prev
	dirty.Dirty = true
	if err := writeState(staging, dirty); err != nil {
		return Stats{}, err
	}
	dst := filepath.Join(staging, DataDir)
	if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return Stats{}, fmt.Errorf("prepare staging: %w", err)
	}
	s := &syncer{ctx: ctx, trust: !prev.Dirty && !opts.FullCompare && prev.Dev == dev, devices: true, margin: opts.margin, prev: prev, dev: dev, opts: opts}
	if err := s.run(src, dst); err != nil {
		return s.st, err
	}
	if s.trust {
		why, err := s.sample(src, dst)
		if err != nil {
			return s.st, err
		}
		if why != "" {
			s.trust = false
			if err := s.run(src, dst); err != nil {
				return s.st, err
			}
			s.st.Rescan = why
		}
	}
	s.st.Started = started
	if err := app.SyncTree(staging); err != nil {
		return s.st, err
	}
	return s.st, writeState(staging, state{Started: started, Dev: dev, Dirs: s.dirs})
}

// RestoreOptions say how a Restore treats the directory it writes into.
type RestoreOptions struct {
	// Exact removes what the copy has not.
	Exact bool
	// Devices makes device nodes; without it they are left out, with a warning.
	Devices bool
	// Progress is told the number of files looked at. It may be nil.
	Progress func(tidemark.Progress)
}

// Restore makes the directory dst hold the tree src, in place, and durable. Equal
// blocks are not written. Neither tree is trusted: see the package.
func Restore(ctx context.Context, src, dst string, opts RestoreOptions) (Stats, error) {
	if fi, err := os.Stat(src); err != nil || !fi.IsDir() {
		return Stats{}, tidemark.Errorf(tidemark.Invalid, "%s is not a directory that can be read", src)
	}
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return Stats{}, fmt.Errorf("prepare %s: %w", dst, err)
	}
	dev, err := checkTrees(src, dst)
	if err != nil {
		return Stats{}, err
	}
	s := &syncer{ctx: ctx, keep: !opts.Exact, devices: opts.Devices, dev: dev, opts: Options{Progress: opts.Progress}}
	started := time.Now()
	if err := s.run(src, dst); err != nil {
		return s.st, err
	}
	s.st.Started = started
	return s.st, app.SyncTree(dst)
}

// checkTrees refuses trees that lie within one another, and returns the file
// system of src.
func checkTrees(src, dst string) (uint64, error) {
	fi, err := os.Stat(src)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return 0, tidemark.Errorf(tidemark.NotFound, "there is no directory %s", src)
	case err != nil:
		return 0, tidemark.Errorf(tidemark.Denied, "%s cannot be read: %w", src, err)
	case !fi.IsDir():
		return 0, tidemark.Errorf(tidemark.Invalid, "%s is not a directory", src)
	}
	for _, pair := range [][2]string{{src, dst}, {dst, src}} {
		inside, err := within(pair[0], pair[1])
		if err != nil {
			return 0, err
		}
		if inside {
			return 0, tidemark.Errorf(tidemark.Invalid, "%s lies within %s", pair[1], pair[0]).WithHint("a tree cannot be copied into itself")
		}
	}
	return statOf(fi).Dev, nil
}

// within reports that b is a or below a, without a file system's border between.
func within(a, b string) (bool, error) {
	a, err1 := filepath.EvalSymlinks(a)
	b, err2 := filepath.EvalSymlinks(b)
	if err := errors.Join(err1, err2); err != nil {
		return false, err
	}
	top, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	for dir := b; ; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		if os.SameFile(fi, top) {
			return true, nil
		}
		if statOf(fi).Dev != statOf(top).Dev || dir == filepath.Dir(dir) {
			return false, nil
		}
	}
}
