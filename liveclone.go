package tidemark

import "time"

// Preparation says how a LiveClone is prepared before others may clone it.
type Preparation struct {
	Steps       []string `json:"steps,omitempty" doc:"Files of the directory preparations of the clone's host, run in this order: SQL if the name ends in .sql, else programs."`
	Database    string   `json:"database,omitempty" doc:"The database that SQL runs in; missing: postgres."`
	StepTimeout int64    `json:"step_timeout_seconds,omitempty" minimum:"1" doc:"How many seconds each step may take; missing: an hour."`
	NoRewrite   bool     `json:"no_rewrite,omitempty" doc:"Leave out what takes residue off: of a PostgreSQL tables, WAL and free space are not made anew, of a file tree journal and free space."`
	Secrets     string   `json:"secrets,omitempty" doc:"A file of the directory secrets of the data directory: the sensitive values, one a line, or, if its name ends in .sql, a query that returns them of the source. Without it nothing can be published."`
}

// LiveClone is a clone that is kept and prepared before others may clone it.
type LiveClone struct {
	Clone
	Preparation Preparation    `json:"preparation" doc:"How it is prepared."`
	Sources     []string       `json:"sources" doc:"APP@POINT that its data are of; several only after a refresh that was cut."`
	Prepared    *RecoveryPoint `json:"prepared,omitempty" doc:"The newest point that a preparation ended in."`
	Published   []Publication  `json:"published" doc:"The points that are published, oldest first."`
}

// Publication says that a point was found to be free of residue, and is fit for others.
type Publication struct {
	Position     Position  `json:"position" doc:"Where on the timeline."`
	Bookmark     string    `json:"bookmark" doc:"The name of the point."`
	At           time.Time `json:"at" doc:"When the check ended."`
	By           string    `json:"by,omitempty" doc:"Who asked for it; missing: somebody at the server's socket."`
	Fingerprints int       `json:"fingerprints" doc:"How many sensitive values were searched."`
	ReadBytes    int64     `json:"read_bytes" doc:"How much was searched for them: all of its disks that is no hole, and the files on them."`
}

// Residue is a place where a sensitive value was found. It never has the value in it.
type Residue struct {
	Disk     string `json:"disk" doc:"The disk; or files, for what was found only when the blocks of a file were put together."`
	Offset   int64  `json:"offset" doc:"In bytes, on the disk."`
	Value    int    `json:"value" doc:"The number of the value: its line, or its place in what the query returned."`
	Encoding string `json:"encoding" doc:"How it is written there: UTF-8, int8, numeric, digits and others."`
	Within   string `json:"within,omitempty" doc:"What had to be decoded to find it."`
	Place    string `json:"place,omitempty" doc:"What lies there: a relation and page, a segment of WAL, another file, or none."`
}

// PrepareSpec asks that a LiveClone be prepared.
type PrepareSpec struct {
	Name     string `json:"name,omitempty" doc:"The LiveClone. In the API the path says it."`
	Refresh  bool   `json:"refresh,omitempty" doc:"Take the data of its source first. What was written to it is gone; its points stay."`
	Point    string `json:"point,omitempty" doc:"With refresh: a point of the source; missing: latest."`
	Bookmark string `json:"bookmark,omitempty" doc:"A name for the point that it ends in; made from the time if missing."`
}

// Prepared is what a preparation did.
type Prepared struct {
	Name       string        `json:"name" doc:"The LiveClone."`
	Source     string        `json:"source" doc:"APP@POINT that its data are of."`
	Point      RecoveryPoint `json:"point" doc:"The point that it ended in, which can be published."`
	Steps      []ProofStep   `json:"steps" doc:"What was done."`
	Output     string        `json:"output,omitempty" doc:"A file of the server's host with what the steps said last."`
	Connection string        `json:"connection,omitempty" doc:"How to reach it."`
	Seconds    float64       `json:"seconds" doc:"How long it took, in seconds."`
}

// PublishSpec asks that a point of a LiveClone be checked for residue, and published if there is none.
type PublishSpec struct {
	Name     string `json:"name,omitempty" doc:"The LiveClone. In the API the path says it."`
	Bookmark string `json:"bookmark,omitempty" doc:"A point that a preparation ended in; missing: the newest."`
}

// Published is what a publish found.
type Published struct {
	Name string `json:"name" doc:"The LiveClone."`
	Publication
	Residue []Residue `json:"residue,omitempty" doc:"Where sensitive values were found, at most 100 places of each disk. Then nothing is published."`
	More    bool      `json:"more,omitempty" doc:"There are more places than that."`
	Seconds float64   `json:"seconds" doc:"How long it took, in seconds."`
}
