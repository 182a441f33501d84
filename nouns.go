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
	ID      string    `json:"id" doc:"32 hex digits, never used twice."`
	Parent  string    `json:"parent,omitempty" doc:"The timeline it branched from."`
	Point   *Position `json:"point,omitempty" doc:"The position at which it branched from its parent."`
	Created time.Time `json:"created" doc:"When it was made."`
}

// Disk is one virtual block device of a timeline.
type Disk struct {
	Name  string `json:"name" doc:"Its name."`
	Size  int64  `json:"size_bytes" doc:"Its size in bytes."`
	Chunk int    `json:"chunk_bytes" doc:"The size of its chunks in bytes: a power of two."`
}

// Application is the unit of protection. Volumes and clones are applications too.
type Application struct {
	Name     string            `json:"name" doc:"Its name."`
	Type     AppType           `json:"type" enum:"postgres,filesystem,volume" doc:"Its type."`
	Clone    bool              `json:"clone,omitempty" doc:"A writable copy that branched from another application."`
	Source   string            `json:"source,omitempty" doc:"What is protected: a URL without secrets, a directory, a device."`
	Host     string            `json:"host,omitempty" doc:"The host it is on, if not the server's own."`
	Timeline Timeline          `json:"timeline" doc:"Its history."`
	Disks    []Disk            `json:"disks" doc:"Its disks."`
	Created  time.Time         `json:"created" doc:"When it was made."`
	Options  map[string]string `json:"options,omitempty" doc:"Settings of the application's type."`
	Labels   map[string]string `json:"labels,omitempty" doc:"What people call it by."`
	Profile  string            `json:"profile,omitempty" doc:"The profile that says where its copies go."`
	State    string            `json:"state" doc:"One of ok, capturing, degraded and others."`
	Detail   string            `json:"detail,omitempty" doc:"One line about its state."`
	Latest   *RecoveryPoint    `json:"latest,omitempty" doc:"Its newest bookmark."`
	Covered  *Interval         `json:"covered,omitempty" doc:"Of which any point can be had: the window, or the log stream."`
	Window   *Window           `json:"window,omitempty" doc:"The window of its journal, where there is one."`
	Lost     *Interval         `json:"lost,omitempty" doc:"Any-point history given up for space, while the window is shorter for it."`
	Tap      *Tap              `json:"tap,omitempty" doc:"What stands in front of its disks, where every write is journaled."`
}

// Window is how much of the past any point can be had of: at most so long, and at most so many bytes of journal.
type Window struct {
	Seconds int64 `json:"seconds" doc:"How far back, in seconds."`
	Bytes   int64 `json:"bytes,omitempty" doc:"At most so many bytes of journal; 0: no bound."`
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
	State       TapState     `json:"state" enum:"syncing,following,away,stopped" doc:"How far it is."`
	Detail      string       `json:"detail,omitempty" doc:"One line about its state."`
	Host        string       `json:"host,omitempty" doc:"The host it runs on, if not the server's own."`
	Disks       []TappedDisk `json:"disks" doc:"Its disks."`
	LostBytes   int64        `json:"lost_bytes" doc:"What has to be read from the disks again."`
	QueuedBytes int64        `json:"queued_bytes" doc:"What is on its way."`
	Lag         float64      `json:"lag_seconds" doc:"The age in seconds of the oldest write that has not arrived."`
}

// TappedDisk is one disk with a tap in front of it.
type TappedDisk struct {
	Disk    string `json:"disk" doc:"The disk of the timeline."`
	Primary string `json:"primary" doc:"The disk itself."`
	Device  string `json:"device,omitempty" doc:"What to use instead of it; a path that stays."`
}

// Image is a disk's content at one point.
type Image struct {
	Disk string `json:"disk" doc:"The name of a disk."`
	Root string `json:"root" doc:"Hash of all its bytes."`
	Size int64  `json:"size_bytes" doc:"Its size in bytes."`
}

// RecoveryPoint is a point that can be mounted, cloned or restored.
type RecoveryPoint struct {
	Position    Position          `json:"position" doc:"Where on the timeline."`
	Time        time.Time         `json:"time" doc:"What was written until then is in it."`
	Bookmark    string            `json:"bookmark" doc:"Its name."`
	Consistency Consistency       `json:"consistency" enum:"crash,filesystem,application" doc:"What it promises of its content."`
	Images      []Image           `json:"images" doc:"The content of its disks."`
	Labels      map[string]string `json:"labels,omitempty" doc:"What the application recorded: LSNs, versions."`
	Hold        float64           `json:"hold_ms,omitempty" doc:"For how many milliseconds the application's writes were held, where they were."`
	Proven      *Stamp            `json:"proven,omitempty" doc:"What the newest recovery proof of the point says, if there was one."`
	Published   *Publication      `json:"published,omitempty" doc:"That it was found to be free of residue, and is fit for others."`
}

// Interval is a stretch of time of a timeline.
type Interval struct {
	From   time.Time `json:"from" doc:"Where it begins."`
	To     time.Time `json:"to,omitzero" doc:"Where it ends; missing: it lasts."`
	Reason string    `json:"reason,omitempty" doc:"Why it is not recoverable, where it is not."`
}

// Points is all that can be recovered of an application.
type Points struct {
	Application string          `json:"application" doc:"The name of an application."`
	Points      []RecoveryPoint `json:"points" doc:"Its points."`
	Covered     []Interval      `json:"covered,omitempty" doc:"Any point within can be had."`
	Gaps        []Interval      `json:"gaps,omitempty" doc:"No point within can be had, and why."`
	Moments     []Proof         `json:"moments,omitempty" doc:"Recovery proofs of other points than those that are kept, newest first."`
}

// Intervals says of which times of an application any point can be had.
type Intervals struct {
	Application string     `json:"application" doc:"The name of an application."`
	Covered     []Interval `json:"covered,omitempty" doc:"Any point within can be had."`
	Gaps        []Interval `json:"gaps,omitempty" doc:"No point within can be had, and why."`
}

// VolumeInfo is a volume with what it takes in the pool.
type VolumeInfo struct {
	Application
	Size         int64 `json:"size_bytes" doc:"Its size in bytes."`
	LogicalBytes int64 `json:"logical_bytes" doc:"Bytes that are not holes."`
	StoredBytes  int64 `json:"stored_bytes" doc:"Bytes of the pool and journal that its timeline refers to."`
	JournalBytes int64 `json:"journal_bytes" doc:"What of stored_bytes is journal."`
}

// CaptureResult is what a capture did.
type CaptureResult struct {
	Application  string        `json:"application" doc:"The name of an application."`
	Point        RecoveryPoint `json:"point" doc:"The point that it ended in."`
	ReadBytes    int64         `json:"read_bytes" doc:"What was read from the source."`
	ChangedBytes int64         `json:"changed_bytes" doc:"What differed, at a grain of 4 KiB."`
	StoredBytes  int64         `json:"stored_bytes" doc:"What was added to the pool."`
	ShippedBytes int64         `json:"shipped_bytes,omitempty" doc:"What came from another host, compressed."`
	FoundBytes   int64         `json:"found_bytes,omitempty" doc:"What another host need not send, for it is staged of that host elsewhere."`
	Seconds      float64       `json:"seconds" doc:"How long it took, in seconds."`
	Notes        []string      `json:"notes,omitempty" doc:"What is worth knowing about it, one line each."`
}

// Group is a consistency group: applications that are bookmarked in one moment.
type Group struct {
	Name    string            `json:"name" doc:"Its name."`
	Members []string          `json:"members" doc:"Its members."`
	Options map[string]string `json:"options,omitempty" doc:"How often it is bookmarked by itself."`
	Labels  map[string]string `json:"labels,omitempty" doc:"What people call it by."`
	SLA     string            `json:"sla,omitempty" doc:"The SLA template that its members have."`
}

// GroupPoint is one moment of all members of a group.
type GroupPoint struct {
	Group    string        `json:"group" doc:"The name of the group."`
	Bookmark string        `json:"bookmark" doc:"The name of a bookmark."`
	Points   []MemberPoint `json:"points" doc:"The point of each member."`
	Hold     float64       `json:"hold_ms" doc:"For how many milliseconds their writes were held."`
}

// MemberPoint is the point of one member of a group.
type MemberPoint struct {
	Application string `json:"application" doc:"The name of an application."`
	RecoveryPoint
}

// Restored is what a restore wrote.
type Restored struct {
	Ref     string   `json:"ref" doc:"APP@POINT that was restored."`
	To      string   `json:"to" doc:"Where it went."`
	Bytes   int64    `json:"bytes" doc:"How many bytes were written."`
	Seconds float64  `json:"seconds" doc:"How long it took, in seconds."`
	Notes   []string `json:"notes,omitempty" doc:"Files that could not be restored as they were, one line each."`
}

// RestoredInPlace is what a restore in place did.
type RestoredInPlace struct {
	Restored
	Before  string `json:"before" doc:"The clone that holds what was there until then."`
	Changed int64  `json:"changed_bytes" doc:"How many bytes were written, at a grain of 4 KiB."`
}

// GroupRestored is what a restore in place of a group did.
type GroupRestored struct {
	Group   string           `json:"group" doc:"The name of the group."`
	Ref     string           `json:"ref" doc:"GROUP@POINT that its members are again."`
	Before  string           `json:"before" doc:"The bookmark of what all of them held until then."`
	Members []MemberRestored `json:"members" doc:"What became of each."`
	Changed int64            `json:"changed_bytes" doc:"How much differs."`
	Seconds float64          `json:"seconds" doc:"How long it took, in seconds."`
}

// MemberRestored is what became of one member.
type MemberRestored struct {
	Application string `json:"application" doc:"The name of an application."`
	To          string `json:"to" doc:"The disks that were taken back."`
	Before      string `json:"before" doc:"The clone that holds what was there until then."`
	Changed     int64  `json:"changed_bytes" doc:"Written, at a grain of 4 KiB."`
}

// Export is a point served over the network.
type Export struct {
	Name     string `json:"name" doc:"Its name."`
	Ref      string `json:"ref" doc:"APP@POINT."`
	Disk     string `json:"disk" doc:"The name of a disk."`
	URI      string `json:"uri" doc:"NBD URI."`
	Writable bool   `json:"writable" doc:"Writes go to the volume or clone."`
	Size     int64  `json:"size_bytes" doc:"Its size in bytes."`
}

// Mount is a point shown to a host as a disk, and its file system mounted where asked.
type Mount struct {
	Name     string     `json:"name" doc:"Its name."`
	Ref      string     `json:"ref" doc:"APP@POINT."`
	Host     string     `json:"host,omitempty" doc:"The host that it is on, if not the server's own."`
	Disk     string     `json:"disk" doc:"The name of a disk."`
	Device   string     `json:"device" doc:"The block device."`
	Path     string     `json:"path,omitempty" doc:"Where it is mounted."`
	ReadOnly bool       `json:"read_only" doc:"Nothing can be written to it."`
	Since    time.Time  `json:"since" doc:"Since when."`
	State    string     `json:"state" doc:"One of mounted, attached, detached and others."`
	Seconds  float64    `json:"seconds,omitempty" doc:"How long it took to mount, in seconds."`
	Expires  *time.Time `json:"expires,omitempty" doc:"When it is removed by itself; missing: never."`
}

// Clone is a thin writable copy with its application up.
type Clone struct {
	Name       string     `json:"name" doc:"Its name."`
	Source     string     `json:"source" doc:"APP@POINT it was made of."`
	Type       AppType    `json:"type" enum:"postgres,filesystem,volume" doc:"Its type."`
	Host       string     `json:"host,omitempty" doc:"The host that it is on, if not the server's own."`
	Connection string     `json:"connection" doc:"How to reach it; of several disks: each of them, with spaces between."`
	Port       int        `json:"port,omitempty" doc:"The port of its database."`
	Path       string     `json:"path,omitempty" doc:"Where its files are."`
	State      string     `json:"state" doc:"One of running, mounted, stopped, detached and others."`
	Created    time.Time  `json:"created" doc:"When it was made."`
	Seconds    float64    `json:"seconds" doc:"How long it took to make, in seconds."`
	Expires    *time.Time `json:"expires,omitempty" doc:"When it is removed by itself; missing: never."`
	OwnBytes   int64      `json:"own_bytes" doc:"What the clone's own writes take on disk: what it costs."`
	Live       bool       `json:"live,omitempty" doc:"It is a LiveClone: kept, and prepared before others may clone it."`
	Bookmarks  []string   `json:"published_bookmarks,omitempty" doc:"Of a LiveClone: the points that are published."`
}

// Rewound is what a rewind did.
type Rewound struct {
	Name         string    `json:"name" doc:"Its name."`
	Ref          string    `json:"ref" doc:"APP@POINT that it is again."`
	Time         time.Time `json:"time" doc:"The time of that point."`
	Before       string    `json:"before" doc:"The bookmark of what it held until then."`
	ChangedBytes int64     `json:"changed_bytes" doc:"Written, at a grain of 4 KiB."`
	Connection   string    `json:"connection,omitempty" doc:"How to reach it."`
	Seconds      float64   `json:"seconds" doc:"How long it took, in seconds."`
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
	ID          int64      `json:"id" doc:"Its number."`
	Kind        string     `json:"kind" doc:"One of capture, clone, reclaim, verify and others."`
	Application string     `json:"application,omitempty" doc:"The application it is of, where it is of one."`
	Host        string     `json:"host,omitempty" doc:"The host that it works on, where it is of one."`
	State       JobState   `json:"state" enum:"queued,running,done,failed,cancelled" doc:"How far it is."`
	Step        string     `json:"step,omitempty" doc:"What it does now."`
	Progress    Progress   `json:"progress" doc:"How far it is."`
	Waits       string     `json:"waits,omitempty" doc:"Why a queued job has not begun."`
	Priority    int        `json:"priority" doc:"The highest begins first."`
	Created     time.Time  `json:"created" doc:"When it was asked for."`
	Started     *time.Time `json:"started,omitempty" doc:"When it last began."`
	Finished    *time.Time `json:"finished,omitempty" doc:"When it ended."`
	NotBefore   *time.Time `json:"not_before,omitempty" doc:"When a queued job may begin."`
	Attempt     int        `json:"attempt" doc:"How often it was begun."`
	MaxAttempts int        `json:"max_attempts" doc:"How often it may be begun."`
	Error       *Error     `json:"error,omitempty" doc:"Why it failed; of a queued job: why its last attempt did."`
	Result      any        `json:"result,omitempty" doc:"The result type of its kind, as JSON."`
	AskedBy     string     `json:"asked_by,omitempty" doc:"Who asked for it."`
	AskerID     string     `json:"-"` // which of all who ever had that name: for the server alone
	Origin      JobOrigin  `json:"origin,omitempty" enum:"queue,schedule" doc:"How it came to it: it was asked for and waited, or a policy asked for it; missing: it was asked for, to begin at once."`
	Parent      int64      `json:"parent,omitempty" doc:"The job that it is a part of."`
	Profile     string     `json:"profile,omitempty" doc:"The profile of its application, when it was asked for."`

	FirstID string `json:"-"` // of its application: that of [Event]
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
	Done  int64  `json:"done" doc:"Units that are done."`
	Total int64  `json:"total" doc:"Units in all; 0: not known."`
	Unit  string `json:"unit,omitempty" doc:"One of bytes, files, records and others."`
}

// Event is something that happened and that an operator may want to know.
type Event struct {
	ID          int64     `json:"id" doc:"Its number: later ones have higher numbers."`
	Time        time.Time `json:"time" doc:"When."`
	Level       string    `json:"level" enum:"info,warning,error" doc:"How grave it is."`
	Application string    `json:"application,omitempty" doc:"The application it is about, where it is about one."`
	Message     string    `json:"message" doc:"What happened, one line."`

	// FirstID is the ID of that application, by which a server knows it and tells nobody else: its name can be another's later. Empty: it is not known.
	FirstID string `json:"-"`
}

// PoolStatus is what the pool holds and saves.
type PoolStatus struct {
	Path          string `json:"path" doc:"Where it lies."`
	LogicalBytes  int64  `json:"logical_bytes" doc:"What all points of all disks would take as full copies, without holes."`
	PhysicalBytes int64  `json:"physical_bytes" doc:"What the pool takes."`
	JournalBytes  int64  `json:"journal_bytes" doc:"What the journals take."`
	ArchivedBytes int64  `json:"archived_bytes" doc:"What of journal_bytes was moved into the pool."`
	FreeBytes     int64  `json:"free_bytes" doc:"What is free where the data directory lies."`
	ReserveBytes  int64  `json:"reserve_bytes" doc:"With fewer free, the oldest any-point history is given up."`
	Packs         int64  `json:"packs" doc:"How many packs there are."`
	Chunks        int64  `json:"chunks" doc:"How many chunks there are."`
	Health        string `json:"health" doc:"One of ok and degraded, or what is damaged."`
}

// Status is the state of a server.
type Status struct {
	Version      string        `json:"version" doc:"The version of the server."`
	DataDir      string        `json:"data_dir,omitempty" doc:"Where everything lies; missing: who asks may not see the pool."`
	Started      time.Time     `json:"started" doc:"Since when it runs."`
	Applications []Application `json:"applications" doc:"Applications and volumes."`
	Mounts       []Mount       `json:"mounts" doc:"Mounts."`
	Clones       []Clone       `json:"clones" doc:"Clones."`
	Jobs         []Job         `json:"jobs" doc:"The newest jobs, newest first."`
	Pool         *PoolStatus   `json:"pool,omitempty" doc:"The pool; missing: who asks may not see it."`
	K            *int          `json:"k,omitempty" doc:"The most layers and segments touched to materialise any point now; missing: who asks may not see the pool."`
	KLimit       int           `json:"k_limit" doc:"The bound of k."`
	Agents       string        `json:"agents,omitempty" doc:"Where the agents of other hosts are let in; missing: nowhere, or who asks may not see the pool."`
	Events       []Event       `json:"events,omitempty" doc:"The newest events, newest first."`
	Warnings     []string      `json:"warnings,omitempty" doc:"What an operator should look at now, one line each."`
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
	Name         string            `json:"name" doc:"Its name."`
	State        HostState         `json:"state" enum:"invited,connected,away" doc:"Whether its agent is there."`
	Problem      string            `json:"problem,omitempty" doc:"What an operator should look at, in one line; missing: nothing."`
	Joined       *time.Time        `json:"joined,omitempty" doc:"When it joined."`
	Applications []string          `json:"applications" doc:"The applications that are tapped there."`
	Shown        []string          `json:"shown" doc:"The clones and mounts that are there."`
	Limit        int64             `json:"limit,omitempty" doc:"Of what is sent to it, and taken from it, in bits per second; missing: none."`
	Labels       map[string]string `json:"labels,omitempty" doc:"What people call it by."`
}

// User is somebody who may log in. He has a password, or an OpenID provider that vouches for him under Issuer and Subject, or
// neither as yet.
type User struct {
	Name     string    `json:"name" doc:"Its name."`
	Display  string    `json:"display,omitempty" doc:"What people call him."`
	Issuer   string    `json:"issuer,omitempty" doc:"The OpenID provider that vouches for him."`
	Subject  string    `json:"subject,omitempty" doc:"What that calls him."`
	Disabled bool      `json:"disabled,omitempty" doc:"He is not let in."`
	Created  time.Time `json:"created" doc:"When he was added."`
}

// UserGroup is a group of users, to which grants can be given.
type UserGroup struct {
	Name    string   `json:"name" doc:"Its name."`
	Members []string `json:"members" doc:"The users in it."`
}

// DeviceLogin is a login at an OpenID provider that is finished in a browser, on any device.
type DeviceLogin struct {
	Login    string    `json:"login" doc:"By which it is waited for. It is a secret."`
	Code     string    `json:"code" doc:"What the user types in there."`
	Address  string    `json:"address" doc:"Where."`
	Complete string    `json:"complete,omitempty" doc:"The same with the code in it."`
	Expires  time.Time `json:"expires" doc:"Until when."`
}

// Issued is a secret that is shown once.
type Issued struct {
	ID      int64     `json:"id" doc:"The number of the API token or session."`
	Secret  string    `json:"secret" doc:"What is sent as Authorization: Bearer. It is not kept, and cannot be shown again."`
	Expires time.Time `json:"expires" doc:"When it ends."`
}

// Invitation lets a host join.
type Invitation struct {
	Host    string    `json:"host" doc:"The name of the host."`
	Token   string    `json:"token" doc:"A secret."`
	Server  string    `json:"server" doc:"Where the server listens for agents."`
	Expires time.Time `json:"expires" doc:"Until when the token is good."`
}

// Discovered is something on a host that could be protected.
type Discovered struct {
	Type   AppType           `json:"type" enum:"postgres,filesystem,volume" doc:"Its type."`
	Source string            `json:"source" doc:"What tidemark protect takes."`
	Detail string            `json:"detail" doc:"What it is, one line."`
	Size   int64             `json:"size_bytes" doc:"How large it is."`
	Labels map[string]string `json:"labels,omitempty" doc:"What else is known of it."`
}

// DiffExtent is a run of bytes that differs between two points.
type DiffExtent struct {
	Disk string `json:"disk" doc:"The name of a disk."`
	Off  int64  `json:"offset" doc:"Where it begins, in bytes."`
	Len  int64  `json:"length" doc:"How long it is, in bytes."`
}

// Diff is what differs between two points.
type Diff struct {
	A            string       `json:"a" doc:"APP@POINT."`
	B            string       `json:"b" doc:"APP@POINT."`
	ChangedBytes int64        `json:"changed_bytes" doc:"How much differs."`
	Extents      []DiffExtent `json:"extents" doc:"What differs."`
}

// Step is a place on a timeline at which its disks became other than they were at the step before.
type Step struct {
	Position Position  `json:"position" doc:"Where on the timeline."`
	Time     time.Time `json:"time" doc:"When."`
	Bookmark string    `json:"bookmark,omitempty" doc:"The name of a bookmark."`
}

// Halves is what lies between a good point and a bad one.
type Halves struct {
	Good    Step        `json:"good" doc:"The step at the good point."`
	Bad     Step        `json:"bad" doc:"The first at which the disks were what they were at the point asked for."`
	Between int         `json:"between" doc:"How many steps lie between, not counting those that are of no use."`
	Next    *Step       `json:"next,omitempty" doc:"One of them."`
	Write   *DiffExtent `json:"write,omitempty" doc:"The only write between the two, if there is just one."`
}

// Bisected is what a bisection found.
type Bisected struct {
	Application  string       `json:"application" doc:"The name of an application."`
	Good         Step         `json:"good" doc:"The last good point."`
	Bad          Step         `json:"bad" doc:"The first bad one."`
	Write        *DiffExtent  `json:"write,omitempty" doc:"The write that made it bad, if it was found."`
	Skipped      []Step       `json:"skipped,omitempty" doc:"Steps between the two that could not be told."`
	Left         int          `json:"left" doc:"Steps between the two that were not looked at, because of the resolution."`
	Probes       int          `json:"probes" doc:"Points that were looked at."`
	ChangedBytes int64        `json:"changed_bytes" doc:"How much differs between the two."`
	Extents      []DiffExtent `json:"extents" doc:"What differs between the two."`
	Notes        []string     `json:"notes,omitempty" doc:"What is worth knowing about it, one line each."`
	Seconds      float64      `json:"seconds" doc:"How long it took, in seconds."`
}

// VerifyResult is what a verify read and found.
type VerifyResult struct {
	Chunks  int64    `json:"chunks" doc:"Chunks that were read."`
	Bytes   int64    `json:"bytes" doc:"Bytes that were read."`
	Damaged []string `json:"damaged,omitempty" doc:"One line for each damaged chunk, with the points it affects."`
	Seconds float64  `json:"seconds" doc:"How long it took, in seconds."`
}

// ReclaimResult is what a reclaim gave back.
type ReclaimResult struct {
	FreedBytes     int64   `json:"freed_bytes" doc:"What was given back."`
	PacksDeleted   int64   `json:"packs_deleted" doc:"Packs that were deleted."`
	PacksRewritten int64   `json:"packs_rewritten" doc:"Packs that were written anew."`
	LiveBytes      int64   `json:"live_bytes" doc:"What the pool takes afterwards."`
	Seconds        float64 `json:"seconds" doc:"How long it took, in seconds."`
}

// ImportResult is what was brought back from another pool.
type ImportResult struct {
	Applications int      `json:"applications" doc:"How many applications."`
	Points       int      `json:"points" doc:"How many points."`
	Packs        int      `json:"packs" doc:"How many packs."`
	Bytes        int64    `json:"bytes" doc:"How much it is."`
	Names        []string `json:"names" doc:"The names of the applications."`
}
