package postgres

import (
	"fmt"
	"path/filepath"
	"time"

	"tidemark/app"
)

// stateFormat is the version of the state file; another one means "trust nothing".
const stateFormat = 1

// stageState is what a staging directory knows about its last capture. It lies
// in the staging directory itself, so an older point of the disk has the state that
// is true of it.
type stageState struct {
	Format int `json:"format"`
	// Dirty: a capture began and did not end. Nothing staged may be taken for
	// equal to the source by its dates.
	Dirty bool `json:"dirty"`
	// Started is when the last whole capture looked at its first file.
	Started   time.Time `json:"started"`
	SystemID  string    `json:"systemId"`
	Timeline  uint32    `json:"timeline"`
	StopLSN   LSN       `json:"stopLsn"`
	SegSize   int64     `json:"segSize"`
	Superuser string    `json:"superuser"`
	// Seal names this state to the fingerprints that were kept of it.
	Seal string `json:"seal,omitempty"`
}

func statePath(staging string) string { return filepath.Join(staging, ".tidemark", "postgres.json") }

// readState returns the state of a staging directory; one that is absent or
// cannot be understood counts as dirty.
func readState(staging string) stageState {
	var st stageState
	if !app.ReadState(statePath(staging), &st) || st.Format != stateFormat {
		return stageState{Format: stateFormat, Dirty: true}
	}
	return st
}

// writeState replaces the state, durably.
func writeState(staging string, st stageState) error {
	if err := app.WriteState(statePath(staging), st); err != nil {
		return fmt.Errorf("write the capture's state: %w", err)
	}
	return nil
}
