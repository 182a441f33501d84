package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// attr is what lstat says and the copy rule needs.
type attr struct {
	size         int64
	mtime, ctime time.Time
	uid, gid     int
	mode         fs.FileMode
	raw          uint32 // mode as the kernel has it
	inode        uint64
}

func attrOf(fi fs.FileInfo) attr {
	st := fi.Sys().(*syscall.Stat_t)
	return attr{size: fi.Size(), mtime: fi.ModTime(), ctime: time.Unix(st.Ctim.Unix()),
		uid: int(st.Uid), gid: int(st.Gid), mode: fi.Mode(), raw: st.Mode, inode: st.Ino}
}

// item is one file to be staged.
type item struct {
	src  string // absolute
	rel  string // below the staging directory
	attr attr
}

// Names whose content belongs to the running server and not to a copy, as
// pg_basebackup leaves them out.
var (
	emptyDirs = map[string]bool{"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true,
		"pg_serial": true, "pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true}
	skipTop = map[string]bool{"postmaster.pid": true, "postmaster.opts": true, "backup_label": true, "backup_label.old": true,
		"tablespace_map": true, "tablespace_map.old": true, "backup_manifest": true, "postgresql.auto.conf.tmp": true,
		"current_logfiles": true, "current_logfiles.tmp": true, "recovery.signal": true, "standby.signal": true, logName: true}
	relFile  = regexp.MustCompile(`^(\d+)(_(?:fsm|vm|init))?(\.\d+)?$`)
	tempRel  = regexp.MustCompile(`^t\d+_\d+(_(?:fsm|vm))?(\.\d+)?$`)
	tsVerDir = regexp.MustCompile(`^PG_\d+_\d+$`)
)

// stage is told what is in a cluster: each directory before what is in it. Paths are those below the staging directory.
type stage interface {
	// enter has the directory rel be there.
	enter(rel string, a attr) error
	file(it item) error
	link(rel, target string) error
	// leave has nothing be there that is in rel and not in keep.
	leave(rel string, keep map[string]bool) error
}

// walker tells what is to be staged.
type walker struct {
	ctx      context.Context
	out      stage
	dataDir  string
	logDir   string // absolute, or empty
	warnings []string
	control  *item // pg_control, which is copied last
}

// data walks the data directory and its tablespaces.
func (w *walker) data() error {
	if err := w.dir(w.dataDir, "data"); err != nil {
		return err
	}
	if w.control == nil {
		return fmt.Errorf("%s has no global/pg_control", w.dataDir)
	}
	return nil
}

// dir stages directory src as rel: makes it, removes what the source has no
// more, and lists its files. A directory that vanishes meanwhile is no error: a
// dropped database, of which the log knows.
func (w *walker) dir(src, rel string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fi, err := os.Stat(src)
	if err == nil {
		err = w.out.enter(rel, attrOf(fi))
	}
	if err != nil {
		return ignoreVanished(err, src)
	}
	keep := map[string]bool{}
	if !w.isEmptyDir(src, rel) {
		if err := w.entries(src, rel, keep); err != nil {
			return err
		}
	}
	return w.leave(rel, keep)
}

func ignoreVanished(err error, src string) error {
	var pe *fs.PathError
	if errors.Is(err, fs.ErrNotExist) && errors.As(err, &pe) && strings.HasPrefix(pe.Path, src) {
		return nil
	}
	return err
}

func (w *walker) isEmptyDir(src, rel string) bool {
	name, top := strings.CutPrefix(rel, "data/")
	return top && emptyDirs[name] || src == w.logDir
}

func (w *walker) entries(src, rel string, keep map[string]bool) error {
	list, err := os.ReadDir(src)
	if err != nil {
		return ignoreVanished(err, src)
	}
	unlogged := unloggedIn(list)
	for _, e := range list {
		name := e.Name()
		if w.excluded(rel, name, unlogged) {
			continue
		}
		fi, err := os.Lstat(filepath.Join(src, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := w.entry(filepath.Join(src, name), filepath.Join(rel, name), fi, keep); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(src, rel string, fi fs.FileInfo, keep map[string]bool) error {
	if fi.Mode()&fs.ModeSymlink != 0 {
		if filepath.Dir(rel) == "data/pg_tblspc" {
			keep[fi.Name()] = true
			return w.tablespace(src, rel)
		}
		target, err := os.Stat(src)
		if err != nil || target.IsDir() && rel != "data/pg_wal" {
			w.warnings = append(w.warnings, fmt.Sprintf("symbolic link %s is not captured", src))
			return nil
		}
		fi = target
	}
	switch {
	case fi.IsDir():
		keep[filepath.Base(rel)] = true
		return w.dir(src, rel)
	case fi.Mode().IsRegular():
		keep[filepath.Base(rel)] = true
		it := item{src: src, rel: rel, attr: attrOf(fi)}
		if rel == "data/global/pg_control" {
			w.control = &it
			return nil
		}
		return w.out.file(it)
	}
	return nil // sockets and the like are not data
}

// tablespace stages the target of a link in pg_tblspc beside the data directory,
// and a relative link to it, so that the pair works wherever it is mounted.
func (w *walker) tablespace(src, rel string) error {
	oid := filepath.Base(rel)
	home := filepath.Join("tablespaces", oid)
	target, err := filepath.EvalSymlinks(src)
	if err != nil {
		return ignoreVanished(err, src)
	}
	fi, err := os.Stat(target)
	if err != nil {
		return ignoreVanished(err, target)
	}
	for _, d := range []string{"tablespaces", home} {
		if err := w.out.enter(d, attrOf(fi)); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(target)
	if err != nil {
		return ignoreVanished(err, target)
	}
	keep := map[string]bool{}
	for _, e := range list {
		if tsVerDir.MatchString(e.Name()) { // one per server version that uses the place
			keep[e.Name()] = true
			if err := w.dir(filepath.Join(target, e.Name()), filepath.Join(home, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := w.leave(home, keep); err != nil {
		return err
	}
	return w.out.link(rel, filepath.Join("..", "..", home))
}

// leave ends a directory. The log comes when the backup has ended.
func (w *walker) leave(rel string, keep map[string]bool) error {
	if rel == "data" {
		keep["pg_wal"] = true
	}
	return w.out.leave(rel, keep)
}

// unloggedIn finds relations with an init fork: their other forks are made
// afresh by recovery.
func unloggedIn(list []fs.DirEntry) map[string]bool {
	var found map[string]bool
	for _, e := range list {
		if m := relFile.FindStringSubmatch(e.Name()); m != nil && m[2] == "_init" {
			if found == nil {
				found = map[string]bool{}
			}
			found[m[1]] = true
		}
	}
	return found
}

func (w *walker) excluded(rel, name string, unlogged map[string]bool) bool {
	if rel == "data" && skipTop[name] {
		return true
	}
	if strings.HasPrefix(name, "pgsql_tmp") || strings.HasPrefix(name, "pg_internal.init") {
		return true
	}
	if tempRel.MatchString(name) {
		return true
	}
	m := relFile.FindStringSubmatch(name)
	return m != nil && unlogged[m[1]] && m[2] != "_init"
}

// setOwner gives path the owner and mode, and touches it only if they differ.
func setOwner(path string, a attr, mode fs.FileMode) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if have := attrOf(fi); os.Geteuid() == 0 && (have.uid != a.uid || have.gid != a.gid) {
		if err := os.Lchown(path, a.uid, a.gid); err != nil {
			return err
		}
	}
	if fi.Mode().Perm() != mode {
		return os.Chmod(path, mode)
	}
	return nil
}
