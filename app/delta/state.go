package delta

import (
	"path/filepath"
	"time"

	"tidemark/app"
)

// stateFormat is the version of the state file; another one means "trust nothing".
const stateFormat = 1

// state is what a staging directory knows about its last whole Receive.
type state struct {
	Format int  `json:"format"`
	Dirty  bool `json:"dirty"`
	// Started is when that began to look at the tree, by the sender's clock.
	Started  time.Time `json:"started"`
	Owner    string    `json:"owner,omitempty"`
	Line     string    `json:"line"`
	Position uint64    `json:"position"`
	// Dirs are the inode numbers of the tree's directories, by path. A directory that came from elsewhere brings files whose
	// own dates are old.
	Dirs map[string]uint64 `json:"dirs"`
}

// ownDir is what is in a staging directory beside the tree.
const ownDir = ".tidemark"

func statePath(staging string) string { return filepath.Join(staging, ownDir, "delta.json") }

func readState(staging string) state {
	var st state
	if !app.ReadState(statePath(staging), &st) || st.Format != stateFormat {
		return state{Dirty: true}
	}
	return st
}

func writeState(staging string, st state) error {
	st.Format = stateFormat
	return app.WriteState(statePath(staging), st)
}
