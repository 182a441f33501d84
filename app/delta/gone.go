package delta

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// goneDir is where a staging directory has, until a Receive is whole, what it has no more: it may be elsewhere now.
const goneDir = ownDir + "/gone"

// gone is what was taken out of a staged tree. Each of it has a new name, for its old path may lead through links, or what is there may be gone, too. Its
// methods may be called concurrently.
type gone struct {
	top  *os.Root
	root string
	keep bool // something may be found by its content

	mu    sync.Mutex
	moved map[string]string // where something is that had a path
}

// dismiss takes something out of the tree. What may be found elsewhere by its content stays until the end, while there is room.
func (g *gone) dismiss(path string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	fi, err := g.top.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && g.keep && (fi.IsDir() || fi.Mode().IsRegular()) && g.spacious() {
		to := filepath.Join(goneDir, rand.Text())
		if g.top.MkdirAll(goneDir, 0o700) == nil && g.top.Rename(path, to) == nil {
			if g.moved == nil {
				g.moved = map[string]string{}
			}
			g.moved[path] = to
			return nil
		}
	}
	return errors.Join(err, g.top.RemoveAll(path))
}

// keeps reports whether what is dismissed now stays.
func (g *gone) keeps() bool { return g.keep && g.spacious() }

// any reports whether something was dismissed and stays.
func (g *gone) any() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.moved) > 0
}

// where returns where something is that had a path, if it, or a directory above it, was dismissed.
func (g *gone) where(path string) (string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.moved) == 0 {
		return "", false
	}
	for above := path; above != "."; above = filepath.Dir(above) {
		if to, ok := g.moved[above]; ok {
			return to + path[len(above):], true
		}
	}
	return "", false
}

// spacious reports whether more than a twentieth of the staging disk is free, of its blocks and of its inodes.
func (g *gone) spacious() bool {
	var st unix.Statfs_t
	return unix.Statfs(g.root, &st) == nil && st.Bavail > st.Blocks/20 && (st.Files == 0 || st.Ffree > st.Files/20)
}

// giveWay removes what was dismissed, of a Receive that was cut, too.
func (g *gone) giveWay() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved = nil
	return g.top.RemoveAll(goneDir)
}

// room does something that needs room on the staging disk. What was dismissed gives way; it may just have given way to somebody else, so there may be room
// now in any case.
func (g *gone) room(do func() error) error {
	err := do()
	if errors.Is(err, unix.ENOSPC) {
		_ = g.giveWay() // whatever stays, do says whether there is room
		return do()
	}
	return err
}

// write writes to a staged file.
func (g *gone) write(f *file, b []byte, off int64) (n int, err error) {
	err = g.room(func() (err error) {
		n, err = f.out.WriteAt(b, off)
		return err
	})
	return n, err
}
