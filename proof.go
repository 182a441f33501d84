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
	Name    string      `json:"name" doc:"Such as pg_amcheck, or e2fsck data."`
	Result  CheckResult `json:"result" enum:"ok,failed,skipped" doc:"What was found. Of a proof that is proven, never failed."`
	Detail  string      `json:"detail,omitempty" doc:"More of it, in one line."`
	Seconds float64     `json:"seconds" doc:"How long it took, in seconds."`
}

// ProofStep is one step of a recovery proof: open, attach, start, recover, check, probe, and blocks where these are read.
type ProofStep struct {
	Name    string  `json:"name" doc:"One of open, attach, start, recover, check, probe and blocks."`
	Seconds float64 `json:"seconds" doc:"How long it took, in seconds."`
}

// Stamp is what a recovery proof says of a point.
type Stamp struct {
	At      time.Time `json:"at" doc:"When the proof was asked for."`
	Seconds float64   `json:"seconds" doc:"How many seconds it took from then to its end."`
	// RecoverySeconds is what a recovery time objective is about.
	RecoverySeconds float64      `json:"recovery_seconds,omitempty" doc:"How many seconds it took from the request to the application's first answer; missing: it gave none."`
	Result          ProofResult  `json:"result" enum:"proven,failed" doc:"What came of it."`
	Reason          string       `json:"reason,omitempty" doc:"Why it failed, in one line."`
	Deep            bool         `json:"deep,omitempty" doc:"Everything was read."`
	Checks          []ProofCheck `json:"checks" doc:"What was looked at."`
}

// Proof is a recovery proof: a point was brought up in a sandbox, and checked.
type Proof struct {
	Application string    `json:"application" doc:"The name of an application."`
	Ref         string    `json:"ref" doc:"APP@POINT that was brought up."`
	Position    Position  `json:"position" doc:"Where on the timeline."`
	Time        time.Time `json:"time" doc:"The time of the point."`
	Stamp
	Steps  []ProofStep `json:"steps" doc:"What was done."`
	Probe  string      `json:"probe,omitempty" doc:"The user's program or SQL file."`
	Seed   int64       `json:"seed,omitempty" doc:"What chose the point, where it was chosen at random: the same seed chooses the same while the points are the same."`
	Output string      `json:"output,omitempty" doc:"A file of the server's host with what the checks and the probe said last."`
}

// ProveSpec asks for a recovery proof.
type ProveSpec struct {
	Ref          string `json:"ref" doc:"APP@POINT; APP alone is its latest point. With random_seconds a name."`
	Probe        string `json:"probe,omitempty" doc:"A file of the directory probes of the data directory."`
	Database     string `json:"database,omitempty" doc:"The database that the probe connects to; missing: postgres."`
	Deep         bool   `json:"deep,omitempty" doc:"Read everything."`
	Timeout      int64  `json:"timeout_seconds,omitempty" doc:"How many seconds all of it may take; missing: 30 minutes."`
	ProbeTimeout int64  `json:"probe_timeout_seconds,omitempty" doc:"How many seconds the probe may take; missing: 5 minutes."`
	Random       int64  `json:"random_seconds,omitempty" doc:"Prove a point of the last so many seconds that is chosen at random."`
	Seed         int64  `json:"seed,omitempty" doc:"With random_seconds: choose as the proof with that seed chose."`
}
