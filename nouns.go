package tidemark

import "time"

// AppType is the sort of an application.
type AppType string

// The application types.
const (
	TypePostgres   AppType = "postgres"   // a PostgreSQL cluster
	TypeFilesystem AppType = "filesystem" // a directory tree
	TypeVolume     AppType = "volume"     // a block volume that lives on Tidemark, or is imported
)

// Timeline names the history of an application's disks.
type Timeline struct {
	ID      string    `json:"id"`               // 32 hex digits, never used twice
	Parent  string    `json:"parent,omitempty"` // the timeline it branched from
	Point   *Position `json:"point,omitempty"`  // where it branched
	Created time.Time `json:"created"`
}

// Disk is one virtual block device of a timeline.
type Disk struct {
	Name  string `json:"name"`
	Size  int64  `json:"size_bytes"`
	Chunk int    `json:"chunk_bytes"`
}

// Application is the unit of protection. Volumes and clones are applications too.
type Application struct {
	Name     string            `json:"name"`
	Type     AppType           `json:"type"`
	Clone    bool              `json:"clone,omitempty"`  // a writable copy that branched from another application
	Source   string            `json:"source,omitempty"` // what is protected: a URL without secrets, a directory, a device
	Host     string            `json:"host,omitempty"`
	Timeline Timeline          `json:"timeline"`
	Disks    []Disk            `json:"disks"`
	Created  time.Time         `json:"created"`
	Options  map[string]string `json:"options,omitempty"` // settings of the application's type
	State    string            `json:"state"`             // ok, capturing, degraded …
	Detail   string            `json:"detail,omitempty"`  // one line about State
	Latest   *RecoveryPoint    `json:"latest,omitempty"`
	Covered  *Interval         `json:"covered,omitempty"` // the any-point window, where there is one (log stream)
	Window   *Window           `json:"window,omitempty"`  // of the journal, where there is one
	Lost     *Interval         `json:"lost,omitempty"`    // any-point history given up for space, while the window is shorter for it
	Tap      *Tap              `json:"tap,omitempty"`     // of disks whose every write is journaled
}

// Window is how much of the past any point can be had of: at most so long, and at most so many bytes of journal.
type Window struct {
	Seconds int64 `json:"seconds"`
	Bytes   int64 `json:"bytes,omitempty"` // 0: no bound
}

// TapState is how far a tap is.
type TapState string

// The states of a tap. In all of them the tapped disk works.
const (
	TapSyncing   TapState = "syncing"   // what the timeline lacks is being sent; no points meanwhile
	TapFollowing TapState = "following" // every write arrives
	TapAway      TapState = "away"      // the tap cannot reach the server, and queues or notes what is written
	TapStopped   TapState = "stopped"   // its process does not run
)

// Tap is what stands in front of the disks of an application, and journals their writes.
type Tap struct {
	State  TapState     `json:"state"`
	Detail string       `json:"detail,omitempty"` // one line about State
	Host   string       `json:"host,omitempty"`   // that it runs on, if that is not the server's
	Disks  []TappedDisk `json:"disks"`
	// LostBytes have to be read from the disks again; QueuedBytes are on their way.
	LostBytes   int64   `json:"lost_bytes"`
	QueuedBytes int64   `json:"queued_bytes"`
	Lag         float64 `json:"lag_seconds"` // age of the oldest write that has not arrived
}

// TappedDisk is one disk with a tap in front of it.
type TappedDisk struct {
	Disk    string `json:"disk"`
	Primary string `json:"primary"`          // the disk itself
	Device  string `json:"device,omitempty"` // what to use instead of it; a path that stays
}

// Image is a disk's content at one point.
type Image struct {
	Disk string `json:"disk"`
	Root string `json:"root"` // hash of all its bytes
	Size int64  `json:"size_bytes"`
}

// RecoveryPoint is a point that can be mounted, cloned or restored.
type RecoveryPoint struct {
	Position    Position          `json:"position"`
	Time        time.Time         `json:"time"`
	Bookmark    string            `json:"bookmark"`
	Consistency Consistency       `json:"consistency"`
	Images      []Image           `json:"images"`
	Labels      map[string]string `json:"labels,omitempty"` // what the application recorded: LSNs, versions
	// Hold is for how long the application's writes were held, in milliseconds, where they were.
	Hold float64 `json:"hold_ms,omitempty"`
	// Proven is what the newest recovery proof of the point says, if there was one.
	Proven *Stamp `json:"proven,omitempty"`
}

// Interval is a stretch of time of a timeline.
type Interval struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to,omitzero"`      // zero: it lasts
	Reason string    `json:"reason,omitempty"` // why it is not recoverable, where it is not
}

// Points is all that can be recovered of an application.
type Points struct {
	Application string          `json:"application"`
	Points      []RecoveryPoint `json:"points"`
	Covered     []Interval      `json:"covered,omitempty"` // any point within
	Gaps        []Interval      `json:"gaps,omitempty"`    // no point within, and why
	Moments     []Proof         `json:"moments,omitempty"` // recovery proofs of other points than those that are kept, newest first
}

// VolumeInfo is a volume with what it takes in the pool.
type VolumeInfo struct {
	Application
	Size         int64 `json:"size_bytes"`
	LogicalBytes int64 `json:"logical_bytes"` // bytes that are not holes
	StoredBytes  int64 `json:"stored_bytes"`  // bytes of the pool and journal that its timeline refers to
	JournalBytes int64 `json:"journal_bytes"` // of them, those of the journal
}

// CaptureResult is what a capture did.
type CaptureResult struct {
	Application  string        `json:"application"`
	Point        RecoveryPoint `json:"point"`
	ReadBytes    int64         `json:"read_bytes"`    // read from the source
	ChangedBytes int64         `json:"changed_bytes"` // that differed, at a grain of 4 KiB
	StoredBytes  int64         `json:"stored_bytes"`  // added to the pool
	Seconds      float64       `json:"seconds"`
	Notes        []string      `json:"notes,omitempty"`
}

// Group is a consistency group: applications that are bookmarked in one moment.
type Group struct {
	Name    string            `json:"name"`
	Members []string          `json:"members"`
	Options map[string]string `json:"options,omitempty"` // how often it is bookmarked by itself
}

// GroupPoint is one moment of all members of a group.
type GroupPoint struct {
	Group    string        `json:"group"`
	Bookmark string        `json:"bookmark"`
	Points   []MemberPoint `json:"points"`
	Hold     float64       `json:"hold_ms"` // for how long their writes were held
}

// MemberPoint is the point of one member of a group.
type MemberPoint struct {
	Application string `json:"application"`
	RecoveryPoint
}

// GroupRestored is what a restore in place of a group did.
type GroupRestored struct {
	Group string `json:"group"`
	Ref   string `json:"ref"` // GROUP@POINT that its members are again
	// Before is the bookmark of what all of them held until then.
	Before  string           `json:"before"`
	Members []MemberRestored `json:"members"`
	Changed int64            `json:"changed_bytes"`
	Seconds float64          `json:"seconds"`
}

// MemberRestored is what became of one member.
type MemberRestored struct {
	Application string `json:"application"`
	To          string `json:"to"`
	Before      string `json:"before"`        // the clone that holds what was there until then
	Changed     int64  `json:"changed_bytes"` // written, at a grain of 4 KiB
}

// Export is a point served over the network.
type Export struct {
	Name     string `json:"name"`
	Ref      string `json:"ref"`
	Disk     string `json:"disk"`
	URI      string `json:"uri"` // NBD URI
	Writable bool   `json:"writable"`
	Size     int64  `json:"size_bytes"`
}

// Mount is a point shown to a host as a disk, and its file system mounted where asked.
type Mount struct {
	Name     string    `json:"name"`
	Ref      string    `json:"ref"`
	Host     string    `json:"host,omitempty"` // that it is on, if not the server's own
	Disk     string    `json:"disk"`
	Device   string    `json:"device"`
	Path     string    `json:"path,omitempty"`
	ReadOnly bool      `json:"read_only"`
	Since    time.Time `json:"since"`
	State    string    `json:"state"`
	Seconds  float64   `json:"seconds,omitempty"`
}

// Clone is a thin writable copy with its application up.
type Clone struct {
	Name       string    `json:"name"`
	Source     string    `json:"source"` // APP@POINT it was made of
	Type       AppType   `json:"type"`
	Host       string    `json:"host,omitempty"` // that it is on, if not the server's own
	Connection string    `json:"connection"`     // how to reach it; of several disks: each of them, with spaces between
	Port       int       `json:"port,omitempty"`
	Path       string    `json:"path,omitempty"`
	State      string    `json:"state"`
	Created    time.Time `json:"created"`
	Seconds    float64   `json:"seconds"`
	// OwnBytes is what the clone's own writes take on disk: what it costs.
	OwnBytes int64 `json:"own_bytes"`
}

// Rewound is what a rewind did.
type Rewound struct {
	Name string    `json:"name"`
	Ref  string    `json:"ref"`  // APP@POINT that it is again
	Time time.Time `json:"time"` // of that point
	// Before is the bookmark of what it held until then.
	Before       string  `json:"before"`
	ChangedBytes int64   `json:"changed_bytes"` // written, at a grain of 4 KiB
	Connection   string  `json:"connection,omitempty"`
	Seconds      float64 `json:"seconds"`
}

// JobState is how far a job is.
type JobState string

// The states of a job.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Job is long work that survives the client that asked for it, and a crash of the server.
type Job struct {
	ID          int64    `json:"id"`
	Kind        string   `json:"kind"` // capture, clone, reclaim, verify …
	Application string   `json:"application,omitempty"`
	Host        string   `json:"host,omitempty"` // that it works on, where it is of one
	State       JobState `json:"state"`
	Step        string   `json:"step,omitempty"`
	Progress    Progress `json:"progress"`
	// Waits says why a queued job has not begun.
	Waits    string     `json:"waits,omitempty"`
	Priority int        `json:"priority"` // the highest begins first
	Created  time.Time  `json:"created"`
	Started  *time.Time `json:"started,omitempty"` // last
	Finished *time.Time `json:"finished,omitempty"`
	// NotBefore is when a queued job may begin.
	NotBefore   *time.Time `json:"not_before,omitempty"`
	Attempt     int        `json:"attempt"` // how often it was begun
	MaxAttempts int        `json:"max_attempts"`
	Error       *Error     `json:"error,omitempty"`  // of a queued job: why its last attempt failed
	Result      any        `json:"result,omitempty"` // the result type of its kind, as JSON
	AskedBy     string     `json:"asked_by,omitempty"`
	Origin      JobOrigin  `json:"origin,omitempty"`
	Parent      int64      `json:"parent,omitempty"` // the job that it is a part of
}

// JobOrigin says how it came to a job.
type JobOrigin string

// The origins of a job.
const (
	FromHand     JobOrigin = ""         // somebody asked for it, to begin at once
	FromQueue    JobOrigin = "queue"    // somebody asked for it, to begin when it can
	FromSchedule JobOrigin = "schedule" // a policy did
)

// Progress counts work: Done of Total units. Total 0 means unknown.
type Progress struct {
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
	Unit  string `json:"unit,omitempty"` // bytes, files, chunks
}

// Event is something that happened and that an operator may want to know.
type Event struct {
	Time        time.Time `json:"time"`
	Level       string    `json:"level"` // info, warning, error
	Application string    `json:"application,omitempty"`
	Message     string    `json:"message"`
}

// PoolStatus is what the pool holds and saves.
type PoolStatus struct {
	Path          string `json:"path"`
	LogicalBytes  int64  `json:"logical_bytes"`  // what all points of all disks would take as full copies, without holes
	PhysicalBytes int64  `json:"physical_bytes"` // what the pool takes
	JournalBytes  int64  `json:"journal_bytes"`  // what the journals take
	ArchivedBytes int64  `json:"archived_bytes"` // that of them which was moved into the pool
	FreeBytes     int64  `json:"free_bytes"`
	ReserveBytes  int64  `json:"reserve_bytes"` // with fewer free, the oldest any-point history is given up
	Packs         int64  `json:"packs"`
	Chunks        int64  `json:"chunks"`
	Health        string `json:"health"`
}

// Status is the state of a server.
type Status struct {
	Version      string        `json:"version"`
	DataDir      string        `json:"data_dir"`
	Started      time.Time     `json:"started"`
	Applications []Application `json:"applications"`
	Mounts       []Mount       `json:"mounts"`
	Clones       []Clone       `json:"clones"`
	Jobs         []Job         `json:"jobs"` // queued, running, and the latest finished
	Pool         PoolStatus    `json:"pool"`
	// K is the most layers and segments touched to materialise any point now; KLimit is its bound.
	K      int `json:"k"`
	KLimit int `json:"k_limit"`
	// Agents is the address at which the agents of other hosts are let in; empty: nowhere.
	Agents string  `json:"agents,omitempty"`
	Events []Event `json:"events,omitempty"`
	// Warnings are what an operator should look at now, one line each.
	Warnings []string `json:"warnings,omitempty"`
}

// HostState is how a host is.
type HostState string

// The states of a host.
const (
	HostInvited   HostState = "invited"   // it has a token, and has not joined
	HostConnected HostState = "connected" // its agent is there
	HostAway      HostState = "away"      // its agent is not; its disks work all the same
)

// Host is a machine with an agent, which is not the server's own.
type Host struct {
	Name         string     `json:"name"`
	State        HostState  `json:"state"`
	Joined       *time.Time `json:"joined,omitempty"`
	Applications []string   `json:"applications"`    // that are tapped there
	Shown        []string   `json:"shown"`           // clones and mounts that are there
	Limit        int64      `json:"limit,omitempty"` // of what is sent to it, and taken from it, in bits per second; 0: none
}

// Invitation lets a host join.
type Invitation struct {
	Host    string    `json:"host"`
	Token   string    `json:"token"`  // a secret
	Server  string    `json:"server"` // where the server listens for agents
	Expires time.Time `json:"expires"`
}

// Discovered is something on a host that could be protected.
type Discovered struct {
	Type   AppType           `json:"type"`
	Source string            `json:"source"` // what `tidemark protect` takes
	Detail string            `json:"detail"`
	Size   int64             `json:"size_bytes"`
	Labels map[string]string `json:"labels,omitempty"`
}

// DiffExtent is a run of bytes that differs between two points.
type DiffExtent struct {
	Disk string `json:"disk"`
	Off  int64  `json:"offset"`
	Len  int64  `json:"length"`
}

// Diff is what differs between two points.
type Diff struct {
	A            string       `json:"a"`
	B            string       `json:"b"`
	ChangedBytes int64        `json:"changed_bytes"`
	Extents      []DiffExtent `json:"extents"`
}

// Step is a place on a timeline at which its disks became other than they were at the step before.
type Step struct {
	Position Position  `json:"position"`
	Time     time.Time `json:"time"`
	Bookmark string    `json:"bookmark,omitempty"`
}

// Halves is what lies between a good point and a bad one.
type Halves struct {
	Good Step `json:"good"`
	Bad  Step `json:"bad"` // the first at which the disks were what they were at the point asked for
	// Between is how many steps lie between, not counting those that are of no use; Next is one of them.
	Between int   `json:"between"`
	Next    *Step `json:"next,omitempty"`
	// Write is the only write between the two, if there is just one.
	Write *DiffExtent `json:"write,omitempty"`
}

// Bisected is what a bisection found.
type Bisected struct {
	Application string `json:"application"`
	Good        Step   `json:"good"` // the last good point
	Bad         Step   `json:"bad"`  // the first bad one
	// Write is the write that made it bad, if it was found.
	Write *DiffExtent `json:"write,omitempty"`
	// Skipped lie between the two, and could not be told.
	Skipped []Step `json:"skipped,omitempty"`
	Left    int    `json:"left"`   // steps between the two that were not looked at, because of the resolution
	Probes  int    `json:"probes"` // points that were looked at
	// ChangedBytes and Extents are what differs between the two.
	ChangedBytes int64        `json:"changed_bytes"`
	Extents      []DiffExtent `json:"extents"`
	Notes        []string     `json:"notes,omitempty"`
	Seconds      float64      `json:"seconds"`
}

// VerifyResult is what a verify read and found.
type VerifyResult struct {
	Chunks  int64    `json:"chunks"`
	Bytes   int64    `json:"bytes"`
	Damaged []string `json:"damaged,omitempty"` // one line for each damaged chunk, with the points it affects
	Seconds float64  `json:"seconds"`
}

// ReclaimResult is what a reclaim gave back.
type ReclaimResult struct {
	FreedBytes     int64   `json:"freed_bytes"`
	PacksDeleted   int64   `json:"packs_deleted"`
	PacksRewritten int64   `json:"packs_rewritten"`
	LiveBytes      int64   `json:"live_bytes"`
	Seconds        float64 `json:"seconds"`
}

// ImportResult is what was brought back from another pool.
type ImportResult struct {
	Applications int      `json:"applications"`
	Points       int      `json:"points"`
	Packs        int      `json:"packs"`
	Bytes        int64    `json:"bytes"`
	Names        []string `json:"names"`
}
