package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"

	"tidemark"
	"tidemark/internal/vfs"
)

// identityOf returns the identity of a data directory, 32 hex digits, and makes one for a directory that has none. The caller
// holds the directory's lock. It is durable before anything in a catalog carries it.
func identityOf(dir string) (string, error) {
	path := filepath.Join(dir, "identity")
	have, err := os.ReadFile(path)
	if err == nil {
		if b, err := hex.DecodeString(string(have)); err != nil || len(b) != 16 {
			return "", tidemark.Errorf(tidemark.Corrupt, "%s is no identity of a data directory", path).
				WithHint("bring it back from a backup; or remove it: then a catalog in PostgreSQL is made anew from the pool, without the history of jobs and events")
		}
		return string(have), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", tidemark.Errorf(tidemark.Unavailable, "the identity of the data directory cannot be read: %w", err)
	}
	b := make([]byte, 16)
	rand.Read(b) // it never fails
	id := hex.EncodeToString(b)
	if err := vfs.WriteFile(vfs.OS, path, []byte(id)); err != nil {
		return "", tidemark.Errorf(tidemark.Unavailable, "the identity of the data directory cannot be written: %w", err).WithHint("make room on its disk")
	}
	return id, nil
}
