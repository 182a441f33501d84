package app

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"tidemark/internal/vfs"
)

// ReadState reads what a staging directory knows of itself, a file of JSON, into st. It reports false, and st means nothing, if there is none that can be read.
func ReadState(path string, st any) bool {
	data, err := vfs.ReadFile(vfs.OS, path)
	return err == nil && json.Unmarshal(data, st) == nil
}

// WriteState replaces such a file, durably. Its directory is made if it is not there.
func WriteState(path string, st any) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if err := vfs.MkdirAll(vfs.OS, filepath.Dir(path)); err != nil {
		return fmt.Errorf("prepare staging: %w", err)
	}
	return vfs.WriteFile(vfs.OS, path, data)
}
