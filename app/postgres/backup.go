package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/app/delta"
)

// Tops are the names in a staging directory that a [Backup] fills.
var Tops = []string{"data", "tablespaces", "config"}

// Backup is a cluster in backup mode that [delta.Send] can send: it is staged as [Capture] would stage it. The order is that of a capture: all
// files but pg_control, then that, then the end of the backup, its label and its log.
type Backup struct {
	c *capture

	mu     sync.Mutex           // guards what follows: files are opened while others are told
	spaces map[string]string    // OID of a tablespace → where it lies
	files  map[string]string    // configuration, by its staged path → where it lies: it is of several directories
	small  map[string]smallFile // by staged path
}

// smallFile is a file that we have in memory.
type smallFile struct {
	data []byte
	attr delta.Attr
}

// OpenBackup connects to a cluster and enters backup mode, which ends by Close at the latest.
func OpenBackup(ctx context.Context, src Source) (*Backup, error) {
	conn, err := src.Connect(ctx)
	if err != nil {
		return nil, err
	}
	b := &Backup{c: &capture{src: src, conn: conn}, spaces: map[string]string{}, files: map[string]string{}, small: map[string]smallFile{}}
	if err = b.c.examine(ctx); err == nil {
		err = b.c.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// Close ends the connection, and with it backup mode and the temporary slot, where they have not ended.
func (b *Backup) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return b.c.conn.Close(ctx)
}

// Hello implements [delta.Source].
func (b *Backup) Hello() delta.Hello {
	return delta.Hello{Owner: "cluster " + b.c.res.SystemID, Line: strconv.FormatUint(uint64(b.c.res.Timeline), 10), Position: uint64(b.c.res.StartLSN),
		Now: b.c.res.Started, Torn: true}
}

// Result implements [delta.Source]: what is told is a [CaptureResult].
func (b *Backup) Result() (position uint64, result any) { return uint64(b.c.res.StopLSN), &b.c.res }

// Walk implements [delta.Source].
func (b *Backup) Walk(ctx context.Context, round int, w *delta.Walk) (last bool, err error) {
	switch round {
	case 0:
		return false, b.all(ctx, w)
	case 1:
		return false, b.control(w)
	}
	if err := b.c.stop(ctx); err != nil {
		return false, err
	}
	return true, b.end(w)
}

// all tells what there is, but for pg_control and the log.
func (b *Backup) all(ctx context.Context, to *delta.Walk) error {
	out := &sentStage{b: b, w: to, dirs: map[string]delta.Dir{}, config: map[string]bool{}}
	w := &walker{ctx: ctx, out: out, dataDir: b.c.facts.DataDir, logDir: b.c.logDir()}
	if err := w.data(); err != nil {
		return fmt.Errorf("look through the cluster: %w", err)
	}
	if d, ok := out.dirs["tablespaces"]; ok {
		if err := to.Leave(d, true); err != nil {
			return err
		}
	}
	for _, text := range w.warnings {
		if err := to.Warn("%s", text); err != nil {
			return err
		}
	}
	for dir := range b.c.facts.configDirs() {
		if err := b.config(out, dir); err != nil {
			return fmt.Errorf("capture configuration: %w", err)
		}
	}
	for _, rel := range slices.Backward(out.configDirs) {
		if err := to.Leave(out.dirs[rel], true); err != nil {
			return err
		}
	}
	return nil
}

// config tells what is in a directory of configuration. All of them are staged as one.
func (b *Backup) config(out *sentStage, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		staged := filepath.Join("config", rel)
		fi, err := os.Stat(path)
		switch {
		case err != nil:
			return nil // a dangling link
		case e.IsDir():
			if _, ok := out.dirs[staged]; ok {
				return nil
			}
			a := attrOf(fi)
			a.raw = unix.S_IFDIR | 0o700
			out.configDirs = append(out.configDirs, staged)
			return out.enter(staged, a)
		case !fi.Mode().IsRegular() || fi.Size() > maxConfigFile || out.config[staged]:
			return nil // no configuration, or one of that name is there
		}
		out.config[staged] = true
		b.note(func() { b.files[staged] = path })
		return out.file(item{src: path, rel: staged, attr: attrOf(fi)})
	})
}

// control tells of pg_control alone.
func (b *Backup) control(w *delta.Walk) error {
	const rel = "data/global/pg_control"
	path := filepath.Join(b.c.facts.DataDir, "global", "pg_control")
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	data, err := readControlFile(path)
	if err != nil {
		return err
	}
	return b.within(w, "data", false, func(delta.Dir) error {
		return b.within(w, "data/global", false, func(d delta.Dir) error { return b.tellSmall(w, d, rel, data, sentAttr(attrOf(fi))) })
	})
}

// end tells what makes the copy recoverable: label, map and log.
func (b *Backup) end(w *delta.Walk) error {
	owner, err := os.Stat(b.c.facts.DataDir)
	if err != nil {
		return err
	}
	a := sentAttr(attrOf(owner))
	a.Mode, a.Modified, a.Inode = unix.S_IFREG|0o600, time.Now().UnixNano(), 0
	a.Changed = a.Modified
	logDir := filepath.Join(b.c.facts.DataDir, "pg_wal")
	names, err := b.c.res.logFiles(logDir)
	if err != nil {
		return err
	}
	return b.within(w, "data", false, func(d delta.Dir) error {
		for name, text := range map[string]string{"backup_label": b.c.label, "tablespace_map": b.c.spcmap} {
			if text == "" {
				continue // and of the last capture it was taken away by the first round
			}
			if err := b.tellSmall(w, d, filepath.Join("data", name), []byte(text), a); err != nil {
				return err
			}
		}
		return b.within(w, "data/pg_wal", true, func(d delta.Dir) error {
			for _, name := range names {
				fi, err := os.Stat(filepath.Join(logDir, name))
				if err != nil {
					return err
				}
				if err := w.File(d, name, sentAttr(attrOf(fi))); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// within tells something of the data directory, or of one below it; whole: what is not told is gone.
func (b *Backup) within(w *delta.Walk, rel string, whole bool, fn func(delta.Dir) error) error {
	fi, err := os.Stat(b.path(rel))
	if err != nil {
		return err
	}
	d, err := w.Enter(rel, sentAttr(attrOf(fi)))
	if err == nil {
		err = fn(d)
	}
	if err != nil {
		return err
	}
	return w.Leave(d, whole)
}

func (b *Backup) tellSmall(w *delta.Walk, d delta.Dir, rel string, data []byte, a delta.Attr) error {
	a.Size = int64(len(data))
	b.note(func() { b.small[rel] = smallFile{data, a} })
	return w.File(d, filepath.Base(rel), a)
}

func (b *Backup) note(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
}

// path is where on this host lies what is staged as rel.
func (b *Backup) path(rel string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.files[rel]; p != "" {
		return p
	}
	if rest, ok := strings.CutPrefix(rel, "tablespaces/"); ok {
		oid, rest, _ := strings.Cut(rest, "/")
		return filepath.Join(b.spaces[oid], rest)
	}
	return filepath.Join(b.c.facts.DataDir, strings.TrimPrefix(rel, "data"))
}

// Open implements [delta.Source].
func (b *Backup) Open(rel string) (*os.File, error) {
	b.mu.Lock()
	x, ok := b.small[rel]
	b.mu.Unlock()
	if ok {
		return delta.SmallFile(x.data, x.attr)
	}
	if !filepath.IsLocal(rel) {
		return nil, fs.ErrNotExist
	}
	return os.Open(b.path(rel))
}

// Attr implements [delta.Source].
func (b *Backup) Attr(f *os.File) (delta.Attr, error) {
	fi, err := f.Stat()
	if err != nil {
		return delta.Attr{}, err
	}
	return sentAttr(attrOf(fi)), nil
}

func sentAttr(a attr) delta.Attr {
	return delta.Attr{Mode: a.raw&unix.S_IFMT | a.raw&0o777, UID: uint32(a.uid), GID: uint32(a.gid), Size: a.size, Modified: a.mtime.UnixNano(), Changed: a.ctime.UnixNano(),
		Inode: a.inode, Links: 1}
}

// sentStage tells the receiver what is in a cluster.
type sentStage struct {
	b          *Backup
	w          *delta.Walk
	dirs       map[string]delta.Dir
	config     map[string]bool // files that were told
	configDirs []string        // in the order in which they were entered
}

func (s *sentStage) enter(rel string, a attr) error {
	if _, ok := s.dirs[rel]; ok && rel == "tablespaces" {
		return nil
	}
	d, err := s.w.Enter(rel, sentAttr(a))
	s.dirs[rel] = d
	return err
}

func (s *sentStage) file(it item) error {
	if rest, ok := strings.CutPrefix(it.rel, "tablespaces/"); ok {
		oid, rest, _ := strings.Cut(rest, "/")
		s.b.note(func() { s.b.spaces[oid] = strings.TrimSuffix(it.src, "/"+rest) })
	}
	return s.w.File(s.dirs[filepath.Dir(it.rel)], filepath.Base(it.rel), sentAttr(it.attr))
}

func (s *sentStage) link(rel, target string) error {
	fi, err := os.Lstat(s.b.path(rel))
	if err != nil {
		return ignoreVanished(err, s.b.path(rel))
	}
	a := sentAttr(attrOf(fi))
	return s.w.Link(s.dirs[filepath.Dir(rel)], filepath.Base(rel), target, a)
}

func (s *sentStage) leave(rel string, keep map[string]bool) error {
	d := s.dirs[rel]
	if rel == "data/global" {
		if err := s.w.Keep(d, "pg_control"); err != nil {
			return err
		}
	}
	return s.w.Leave(d, rel != "data/pg_wal") // the log comes when the backup has ended
}

// NoteStaged notes in a staging directory, for recovery, what cluster a [Backup] was of.
func NoteStaged(staging string, r *CaptureResult) error {
	return writeState(staging, stageState{Format: stateFormat, Dirty: true, SystemID: r.SystemID, SegSize: r.SegSize, Superuser: r.Superuser, Timeline: r.Timeline, StopLSN: r.StopLSN})
}
