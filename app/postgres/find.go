package postgres

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"tidemark"
)

// findDepth is how deep below a file system's root a data directory is looked for: Debian's is
// at postgresql/15/main where /var/lib is a file system.
const findDepth = 5

// FindDataDir returns the path, relative to root, of the only data directory in a file system.
func FindDataDir(root string) (string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if isDataDir(path) {
			found = append(found, rel)
			return filepath.SkipDir
		}
		if rel != "." && strings.Count(rel, "/")+1 >= findDepth {
			return filepath.SkipDir
		}
		return nil
	})
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", tidemark.Errorf(tidemark.NotFound, "no PostgreSQL data directory is on the disk").WithHint("mount the point, and look where it is")
	case len(found) > 1:
		return "", tidemark.Errorf(tidemark.Conflict, "the disk has several PostgreSQL data directories: %s", strings.Join(found, ", ")).WithHint("mount the point, and start the one you want")
	}
	return found[0], nil
}

func isDataDir(dir string) bool {
	for _, name := range []string{"PG_VERSION", "global/pg_control"} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || !st.Mode().IsRegular() {
			return false
		}
	}
	return true
}
