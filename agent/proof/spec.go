package proof

import (
	"time"

	"tidemark"
	"tidemark/app/postgres"
)

// Spec says what is brought up, and what is looked at.
type Spec struct {
	Name  string           `json:"name"` // of the sandbox
	Type  tidemark.AppType `json:"type"`
	Disks []Disk           `json:"disks"` // attached, writable, and thrown away afterwards
	// Data is where the files of a database or a tree lie. Of a database, an empty Dir is looked for.
	Data Place `json:"data"`
	// Log is where the log of a database lies, for Stops beyond a capture; nil: it is not needed.
	Log  *Place        `json:"log,omitempty"`
	Stop postgres.Stop `json:"stop"`
	Deep bool          `json:"deep"` // read everything
	// Hide is a directory that the sandbox does not see, wherever it lies: the server's own.
	Hide string `json:"hide,omitempty"`
	// Probe is what the user wants to be run; nil: nothing.
	Probe *Probe        `json:"probe,omitempty"`
	Limit time.Duration `json:"limit"` // of the whole proof
	Left  time.Duration `json:"left"`  // of that
}

// Disk is an attached disk.
type Disk struct {
	Name   string `json:"name"`
	Device string `json:"device"` // on the host
}

// Place is a directory of a file system on a disk.
type Place struct {
	Disk string `json:"disk"`
	Dir  string `json:"dir"` // relative to the root of its file system
}

// Probe is a program, or SQL, that the user wants to be run in the sandbox.
type Probe struct {
	Dir      string        `json:"dir"`  // that only root can write to
	Name     string        `json:"name"` // of a file in there; one that ends in .sql is SQL
	Database string        `json:"database"`
	Limit    time.Duration `json:"limit"`
	Env      []string      `json:"env"`            // words for a program, beside those that say how to reach what it looks at
	Text     []byte        `json:"text,omitempty"` // what is in the file: see Load
}

// Note tells how far a proof is.
type Note struct {
	Step     string             `json:"step,omitempty"` // that begins now
	Progress *tidemark.Progress `json:"progress,omitempty"`
}

// Report is what a proof found.
type Report struct {
	Steps  []tidemark.ProofStep  `json:"steps"`
	Checks []tidemark.ProofCheck `json:"checks"`
	// Answered is from the call of Run to the application's first answer, in seconds; 0: there was none.
	Answered float64 `json:"answered"`
	Reason   string  `json:"reason,omitempty"` // why the point is not proven, in one line; empty: it is
	Output   string  `json:"output,omitempty"` // what checks and probe said last
}

// event is what the sandbox tells, as a line of JSON.
type event struct {
	Note
	Said     string               `json:"said,omitempty"` // by a check or the probe
	Check    *tidemark.ProofCheck `json:"check,omitempty"`
	Answered bool                 `json:"answered,omitempty"`
	Reason   string               `json:"reason,omitempty"`
	// Trouble is why nothing can be said of the point.
	Trouble *tidemark.Error `json:"trouble,omitempty"`
	Done    bool            `json:"done,omitempty"`
}
