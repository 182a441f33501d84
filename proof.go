package tidemark

import "time"

// ProofResult is what became of a recovery proof.
type ProofResult string

// The results of a recovery proof.
const (
	// Proven: the point came up, and all that was checked is as it should be.
	Proven ProofResult = "proven"
	// Unproven: the point did not come up, or not in time, or a check or the probe failed.
	Unproven ProofResult = "failed"
)

// CheckResult is what became of one check of a recovery proof.
type CheckResult string

// The results of a check.
const (
	CheckOK      CheckResult = "ok"
	CheckFailed  CheckResult = "failed"
	CheckSkipped CheckResult = "skipped" // there is nothing to be checked, or nothing to check it with: Detail says which
)

// ProofCheck is one thing that a recovery proof looked at.
type ProofCheck struct {
	Name    string      `json:"name"`             // such as pg_amcheck, or e2fsck data
	Result  CheckResult `json:"result"`           // of a proof that is proven, never failed
	Detail  string      `json:"detail,omitempty"` // one line
	Seconds float64     `json:"seconds"`
}

// ProofStep is one step of a recovery proof: open, attach, start, recover, check, probe, and blocks where these are read.
type ProofStep struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

// Stamp is what a recovery proof says of a point.
type Stamp struct {
	At      time.Time `json:"at"`      // when the proof was asked for
	Seconds float64   `json:"seconds"` // from then to its end
	// RecoverySeconds is from the request to the application's first answer: what a recovery time objective is about. 0: it gave none.
	RecoverySeconds float64      `json:"recovery_seconds,omitempty"`
	Result          ProofResult  `json:"result"`
	Reason          string       `json:"reason,omitempty"` // why it failed, in one line
	Deep            bool         `json:"deep,omitempty"`
	Checks          []ProofCheck `json:"checks"`
}

// Proof is a recovery proof: a point was brought up in a sandbox, and checked.
type Proof struct {
	Application string    `json:"application"`
	Ref         string    `json:"ref"` // APP@POINT that was brought up
	Position    Position  `json:"position"`
	Time        time.Time `json:"time"` // of the point
	Stamp
	Steps []ProofStep `json:"steps"`
	Probe string      `json:"probe,omitempty"` // the user's program or SQL file
	// Seed is what chose the point, where it was chosen at random: the same seed chooses the same while the points are the same.
	Seed int64 `json:"seed,omitempty"`
	// Output is a file of the server's host with what the checks and the probe said last.
	Output string `json:"output,omitempty"`
}

// ProveSpec asks for a recovery proof.
type ProveSpec struct {
	Ref      string `json:"ref"`                // with Random: a name
	Probe    string `json:"probe,omitempty"`    // a file of the directory probes of the data directory
	Database string `json:"database,omitempty"` // that the probe connects to; empty: postgres
	Deep     bool   `json:"deep,omitempty"`     // read everything
	// Timeout is how long all of it may take, and ProbeTimeout how long the probe may, in seconds. 0: 30 minutes, and 5.
	Timeout      int64 `json:"timeout_seconds,omitempty"`
	ProbeTimeout int64 `json:"probe_timeout_seconds,omitempty"`
	// Random proves a point of the last so many seconds that is chosen at random, by Seed if that is not 0.
	Random int64 `json:"random_seconds,omitempty"`
	Seed   int64 `json:"seed,omitempty"`
}
