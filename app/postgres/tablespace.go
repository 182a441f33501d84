package postgres

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"tidemark"
)

// checkTablespaces refuses a copy whose files lie outside of it, for they would
// be production's.
func (r *recovery) checkTablespaces(ctx context.Context) error {
	links, err := os.ReadDir(filepath.Join(r.t.DataDir, "pg_tblspc"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	root, err := filepath.EvalSymlinks(r.t.Root)
	if err != nil {
		return err
	}
	for _, e := range links {
		if e.Type()&fs.ModeSymlink == 0 {
			continue // a directory in place
		}
		if _, err := os.Stat(r.stagedTablespace(e.Name())); err == nil {
			continue // placeTablespaces will lead the link there
		}
		target, err := filepath.EvalSymlinks(filepath.Join(r.t.DataDir, "pg_tblspc", e.Name()))
		if err != nil || !strings.HasPrefix(target, root+"/") {
			return tidemark.Errorf(tidemark.Conflict, "tablespace %s lies outside of the copy", e.Name()).
				WithHint("a clone of it would write into the original's files; protect the tablespace's directory too")
		}
	}
	if link, err := os.Readlink(filepath.Join(r.t.DataDir, "pg_wal")); err == nil {
		return tidemark.Errorf(tidemark.Conflict, "pg_wal of the copy is a link to %s, outside of it", link)
	}
	return r.checkLogTablespaces(ctx)
}

func (r *recovery) stagedTablespace(oid string) string {
	return filepath.Join(r.t.Root, "tablespaces", oid)
}

// checkLogTablespaces refuses to replay the creation of a tablespace: the server
// would make it at its original place, which may be production's. A capture's own
// log never holds one, see [Capture]; that of a disk of a running server may.
func (r *recovery) checkLogTablespaces(ctx context.Context) error {
	if r.archiveRecovery() && (r.t.Stop.immediate() || r.t.WALDir == "") {
		return nil
	}
	tmp, err := os.MkdirTemp("", "tidemark-wal-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	first, segSize, err := r.linkLog(tmp)
	if err != nil || len(first) == 0 {
		return err
	}
	for _, name := range first {
		args := []string{"-q", "-r", "Tablespace", "-p", tmp}
		if r.t.Stop.LSN != 0 {
			if tli, _, ok := parseSegment(name, segSize); ok && r.t.Stop.LSN.segment(tli, segSize) >= name {
				args = append(args, "-e", r.t.Stop.LSN.String())
			}
		}
		// It ends with an error where the log ends; what it printed until then counts.
		out, _ := exec.CommandContext(ctx, filepath.Join(r.bin, "pg_waldump"), append(args, name)...).Output()
		if err := ctx.Err(); err != nil {
			return err
		}
		if m := createTablespace.FindSubmatch(out); m != nil {
			return tidemark.Errorf(tidemark.Conflict, "the log up to this point creates tablespace %s at %s", m[1], m[2]).
				WithHint("replaying it would write into that directory; choose a point at or after the next capture")
		}
	}
	return nil
}

var createTablespace = regexp.MustCompile(`desc: CREATE (\d+) "([^"]*)"`)

// linkLog shows the log that recovery may read as one directory, and returns
// the name of the first file of each timeline that recovery can come to.
func (r *recovery) linkLog(tmp string) (first []string, segSize int64, err error) {
	var paths []string
	for _, glob := range []string{filepath.Join(r.t.DataDir, "pg_wal"), r.t.WALDir, filepath.Join(r.t.WALDir, gapDirs)} {
		for _, ext := range []string{"/????????????????????????", "/????????????????????????.partial"} {
			found, err := filepath.Glob(escapeGlob(glob) + ext)
			if err != nil {
				return nil, 0, err
			}
			paths = append(paths, found...)
		}
	}
	lowest := map[uint32]string{}
	for _, p := range paths {
		st, err := os.Stat(p)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(p), ".partial")
		tli, _, ok := parseSegment(name, st.Size())
		if !ok || tli == r.control.timeline && name < r.control.redoFile || tli < r.control.timeline {
			continue
		}
		segSize = st.Size()
		if err := os.Symlink(p, filepath.Join(tmp, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, 0, err
		}
		if low, ok := lowest[tli]; !ok || name < low {
			lowest[tli] = name
		}
	}
	for _, name := range lowest {
		first = append(first, name)
	}
	return first, segSize, nil
}

// gapDirs matches the directories in which a Receiver sets aside the log before a gap.
const gapDirs = "before-*"

// escapeGlob quotes all of a path but a final gapDirs.
func escapeGlob(path string) string {
	head, gap := strings.CutSuffix(path, gapDirs)
	head = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(head)
	if gap {
		return head + gapDirs
	}
	return head
}

// placeTablespaces makes the links lead into the copy, and removes the map with
// which the server would lead them back to production's directories.
func (r *recovery) placeTablespaces() error {
	home := filepath.Join(r.t.DataDir, "pg_tblspc")
	if err := r.mkdir(home); err != nil {
		return err
	}
	links, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	for _, e := range links {
		target := r.stagedTablespace(e.Name())
		if _, err := os.Stat(target); err != nil {
			continue
		}
		// Relative, so that the pair works wherever the disk is attached next.
		rel, err := filepath.Rel(home, target)
		if err != nil {
			return err
		}
		link := filepath.Join(home, e.Name())
		if have, err := os.Readlink(link); err != nil || have == rel {
			continue
		}
		if err := errors.Join(os.Remove(link), os.Symlink(rel, link)); err != nil {
			return err
		}
	}
	err = os.Remove(filepath.Join(r.t.DataDir, "tablespace_map"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
