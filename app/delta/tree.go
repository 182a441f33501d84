package delta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enter makes a directory.
func (r *receiver) enter(m message) error {
	path := m.name
	if m.attr == nil || m.attr.Mode&unix.S_IFMT != unix.S_IFDIR || !filepath.IsLocal(path) || filepath.Clean(path) != path || path == "." {
		return malformed("directory %q", path)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	above, name := filepath.Split(path)
	if above == "" {
		if !r.isTop(path) {
			return malformed("directory %q", path)
		}
		if r.round == nil {
			r.round = map[string]bool{}
		}
		r.round[path] = true
	} else {
		parent := r.dirs[strings.TrimSuffix(above, "/")]
		if parent == nil || parent.seen == nil || parent.seen[name] {
			return malformed("directory %q", path)
		}
		parent.seen[name] = true
	}
	old := r.dirs[path]
	if old == nil {
		if err := r.makeDir(path); err != nil {
			return err
		}
		r.order = append(r.order, path)
	} else if old.seen != nil {
		return malformed("directory %q twice", path)
	}
	d := &directory{path: path, attr: *m.attr, known: !r.prev.Dirty && r.prev.Dirs[path] == m.attr.Inode, seen: map[string]bool{}}
	r.dirs[path] = d
	r.byNumber = append(r.byNumber, d)
	return nil
}

func (r *receiver) isTop(name string) bool {
	for _, t := range r.opts.Tops {
		if t == name {
			return true
		}
	}
	return false
}

// makeDir makes a staged directory, and takes away what else is there.
func (r *receiver) makeDir(path string) error {
	fi, err := r.top.Lstat(path)
	if err == nil && fi.IsDir() {
		return nil
	}
	if err == nil {
		err = r.gone.dismiss(path)
		r.st.Removed++
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return r.gone.room(func() error { return r.top.Mkdir(path, 0o700) })
}

// directoryOf is the directory that a message is about, while it is entered.
func (r *receiver) directoryOf(m message) (*directory, error) {
	if m.dir >= uint64(len(r.byNumber)) || r.byNumber[m.dir].seen == nil {
		return nil, malformed("directory %d", m.dir)
	}
	return r.byNumber[m.dir], nil
}

// entry takes what is in a directory.
func (r *receiver) entry(m message) error {
	d, err := r.directoryOf(m)
	if err != nil {
		return err
	}
	if m.name == "" || m.name == "." || m.name == ".." || strings.ContainsAny(m.name, "/\x00") || d.seen[m.name] {
		return malformed("name %q in %q", m.name, d.path)
	}
	path := filepath.Join(d.path, m.name)
	r.mu.Lock()
	defer r.mu.Unlock()
	d.seen[m.name] = true
	if m.kind == msgKeep {
		return nil
	}
	r.forget(path)
	switch {
	case m.kind == msgHard:
		if !filepath.IsLocal(m.target) || !r.isTop(strings.SplitN(m.target, "/", 2)[0]) {
			return malformed("a link to %q", m.target)
		}
		r.hard = append(r.hard, hardLink{path, m.target})
		return nil
	case m.attr == nil:
		return malformed("nothing is known of %q", path)
	case m.kind == msgFile && m.attr.Mode&unix.S_IFMT == unix.S_IFREG:
		r.left++
		r.st.Files++
		r.st.Bytes += m.attr.Size
		r.queue = append(r.queue, &file{named: named{path: path}, known: d.known, attr: *m.attr})
		r.turn.Broadcast()
		return nil
	case m.kind == msgLink && m.attr.Mode&unix.S_IFMT == unix.S_IFLNK || m.kind == msgSpecial && special(m.attr.Mode):
		return r.special(path, m)
	}
	return malformed("%q is of mode %o", path, m.attr.Mode)
}

func special(mode uint32) bool {
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFIFO || kind == unix.S_IFCHR || kind == unix.S_IFBLK
}

// forget forgets the directories at a path and below it, where something else is from now on.
func (r *receiver) forget(path string) {
	if r.dirs[path] == nil {
		return
	}
	for p := range r.dirs {
		if p == path || strings.HasPrefix(p, path+"/") {
			r.dirs[p].seen = nil
			delete(r.dirs, p)
		}
	}
}

// leave takes away what a directory has no more.
func (r *receiver) leave(m message) error {
	d, err := r.directoryOf(m)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := d.seen
	d.seen = nil
	if m.flag == 0 {
		return nil
	}
	f, err := r.top.Open(d.path)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if seen[name] {
			continue
		}
		path := filepath.Join(d.path, name)
		r.forget(path)
		if err := r.gone.dismiss(path); err != nil {
			return fmt.Errorf("remove %q from the copy: %w", path, err)
		}
		r.st.Removed++
	}
	return nil
}
