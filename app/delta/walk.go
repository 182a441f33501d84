package delta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Walk is told what is in a tree: each directory is entered before what is in it is named, and left behind that.
type Walk struct {
	ctx  context.Context
	s    *sender
	dirs uint64
}

// Dir is a directory that was entered, and is not left yet.
type Dir uint64

// Enter says that there is a directory by a path. All above it must have been entered.
func (w *Walk) Enter(path string, a Attr) (Dir, error) {
	d := Dir(w.dirs)
	w.dirs++
	return d, w.s.send(w.ctx, message{kind: msgEnter, name: path, attr: &a})
}

// File names a file.
func (w *Walk) File(d Dir, name string, a Attr) error {
	s := w.s
	s.mu.Lock()
	s.told++
	for s.told-s.settled > farAhead && w.ctx.Err() == nil {
		s.changed.Wait()
	}
	s.mu.Unlock()
	return s.send(w.ctx, message{kind: msgFile, dir: uint64(d), name: name, attr: &a})
}

// Keep names something that is staged, and stays as it is.
func (w *Walk) Keep(d Dir, name string) error {
	return w.s.send(w.ctx, message{kind: msgKeep, dir: uint64(d), name: name})
}

// Link names a symbolic link. Its target may be anything: nobody follows it.
func (w *Walk) Link(d Dir, name, target string, a Attr) error {
	return w.s.send(w.ctx, message{kind: msgLink, dir: uint64(d), name: name, target: target, attr: &a})
}

// Special names a fifo or device node.
func (w *Walk) Special(d Dir, name string, a Attr) error {
	return w.s.send(w.ctx, message{kind: msgSpecial, dir: uint64(d), name: name, attr: &a})
}

// Hard gives a file that was named, by its path, one more name.
func (w *Walk) Hard(d Dir, name, file string) error {
	return w.s.send(w.ctx, message{kind: msgHard, dir: uint64(d), name: name, target: file})
}

// Leave says that a directory was told; whole: what is staged of it and was not named is gone.
func (w *Walk) Leave(d Dir, whole bool) error {
	return w.s.send(w.ctx, message{kind: msgLeave, dir: uint64(d), flag: flag(whole)})
}

// Warn says what should be known of the tree.
func (w *Walk) Warn(format string, args ...any) error {
	return w.s.send(w.ctx, message{kind: msgWarn, body: fmt.Appendf(nil, format, args...)})
}

// AttrOf returns what lstat has found, with the extended attributes that are given.
func AttrOf(fi fs.FileInfo, xattrs map[string][]byte) Attr {
	st := fi.Sys().(*syscall.Stat_t)
	return Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Modified: st.Mtim.Nano(), Changed: st.Ctim.Nano(),
		Inode: st.Ino, Links: uint64(st.Nlink), Device: uint64(st.Rdev), Xattrs: xattrs}
}

// SmallFile returns a file without a name that has some bytes, and the owner, mode and time of attributes, for what a source has in memory.
func SmallFile(data []byte, a Attr) (f *os.File, err error) {
	f, err = os.CreateTemp("", "tidemark-")
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(data); err == nil && os.Geteuid() == 0 {
		err = f.Chown(int(a.UID), int(a.GID))
	}
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), a.Mode&0o7777)
	}
	if err == nil {
		err = os.Chtimes(f.Name(), time.Time{}, time.Unix(0, a.Modified))
	}
	if err = errors.Join(err, os.Remove(f.Name())); err != nil {
		f.Close()
	}
	return f, err
}
