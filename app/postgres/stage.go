package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// localStage is a staging directory of this host: directories are made to match at once, and files are listed.
type localStage struct {
	staging string
	items   []item
	removed int
}

func (s *localStage) file(it item) error {
	s.items = append(s.items, it)
	return nil
}

func (s *localStage) link(rel, target string) error {
	path := filepath.Join(s.staging, rel)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// enter makes a staged directory with the owner and mode of its source.
func (s *localStage) enter(rel string, a attr) error {
	path := filepath.Join(s.staging, rel)
	fi, err := os.Lstat(path)
	switch {
	case err == nil && !fi.IsDir():
		if err := os.Remove(path); err != nil {
			return err
		}
		fallthrough
	case errors.Is(err, fs.ErrNotExist):
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	return setOwner(path, a, a.mode.Perm())
}

// leave removes what the staged directory has and its source has not.
func (s *localStage) leave(rel string, keep map[string]bool) error {
	if rel == "data/pg_wal" {
		return nil // copyLog sees to it
	}
	list, err := os.ReadDir(filepath.Join(s.staging, rel))
	if err != nil {
		return err
	}
	for _, e := range list {
		if keep[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(s.staging, rel, e.Name())); err != nil {
			return fmt.Errorf("remove what the cluster dropped: %w", err)
		}
		s.removed++
	}
	return nil
}
