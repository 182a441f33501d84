package tidemark

import "time"

// ChangeKind says what has changed.
type ChangeKind string

// The kinds of changes.
const (
	PointMade           ChangeKind = "point-made"          // it is listed from now on
	PointRemoved        ChangeKind = "point-removed"       // it was forgotten
	PointPublished      ChangeKind = "point-published"     // others may clone it
	PointUnpublished    ChangeKind = "point-unpublished"   // they may not any more
	PointProven         ChangeKind = "point-proven"        // it came up in a sandbox
	PointUnproven       ChangeKind = "point-unproven"      // it did not
	GapBegun            ChangeKind = "gap-begun"           // behind its point none can be had
	GapClosed           ChangeKind = "gap-closed"          // from its point on they can again
	ApplicationMade     ChangeKind = "application-made"    // it is protected, or a new volume
	ApplicationRemoved  ChangeKind = "application-removed" // with all its points
	CloneMade           ChangeKind = "clone-made"          // it is up
	CloneRemoved        ChangeKind = "clone-removed"       // also when it is made anew
	MountMade           ChangeKind = "mount-made"          // it is shown on its host
	MountRemoved        ChangeKind = "mount-removed"       // from its host
	ApplicationRewound  ChangeKind = "rewound"             // its disks are what they were at its point
	ApplicationRestored ChangeKind = "restored"            // likewise, in place: those of production
)

// TimelineChange is something that is other than before with the timeline of an application, clone or mount. It is told when it is durable, and when lists show it.
type TimelineChange struct {
	ID          string        `json:"id" doc:"What a stream goes on behind, as Last-Event-ID. Nothing else is to be read from it."`
	Kind        ChangeKind    `json:"kind" enum:"point-made,point-removed,point-published,point-unpublished,point-proven,point-unproven,gap-begun,gap-closed,application-made,application-removed,clone-made,clone-removed,mount-made,mount-removed,rewound,restored" doc:"What has changed. More kinds may come."`
	Time        time.Time     `json:"time" doc:"When it was told, by the clock of the server."`
	Application string        `json:"application" doc:"The name of the application, volume, clone or mount that it is about."`
	Of          string        `json:"of,omitempty" doc:"Of a clone or mount that was made or removed: APP@POINT that it was made of."`
	Point       *ChangedPoint `json:"point,omitempty" doc:"The point that it is about. Of a gap that begins, the last before it; of one that was closed, the first behind it; of a rewind or a restore, the one that was gone back to."`
	Gap         *Interval     `json:"gap,omitempty" doc:"The gap that has begun, or was closed, and why there is one."`
	Reason      string        `json:"reason,omitempty" doc:"Why a point is not proven."`
}

// ChangedPoint is a point as a [TimelineChange] speaks of it.
type ChangedPoint struct {
	Position    Position    `json:"position" doc:"Where on the timeline."`
	Time        time.Time   `json:"time,omitzero" doc:"What was written until then is in it."`
	Bookmark    string      `json:"bookmark,omitempty" doc:"Its name, if it has one."`
	Consistency Consistency `json:"consistency,omitempty" enum:"crash,filesystem,application" doc:"What it promises of its content, if it is a bookmark."`
}

// Changed is the point as a [TimelineChange] speaks of it.
func (p RecoveryPoint) Changed() *ChangedPoint {
	return &ChangedPoint{Position: p.Position, Time: p.Time, Bookmark: p.Bookmark, Consistency: p.Consistency}
}

// Reasons of a [Sync].
const (
	SyncBegun  = "begun"  // the stream begins here
	SyncMissed = "missed" // changes were not told, and cannot be any more
	SyncRights = "rights" // who reads may see more, or less, than before
)

// Sync says that what was read before says nothing of what is there now: lists have to be asked for again. What changes behind it is told.
type Sync struct {
	ID     string `json:"id" doc:"What a stream goes on behind, as Last-Event-ID."`
	Reason string `json:"reason" enum:"begun,missed,rights" doc:"Why: the stream begins here; changes were missed; or who reads may see more, or less, than before."`
}

// Advance is a hint of how far a timeline has come. Each replaces the one before; none is kept, and some are never sent.
type Advance struct {
	Application string    `json:"application" doc:"The name of the application, volume, clone or mount."`
	Position    Position  `json:"position" doc:"Its newest position."`
	Time        time.Time `json:"time" doc:"The time of its newest write."`
	Oldest      time.Time `json:"oldest,omitzero" doc:"From when on any point can be had, where any can."`
}

// ChangeFilter says which changes are wanted.
type ChangeFilter struct {
	Application string // only of this one, and that clones and mounts of it were made and removed; empty: all
	After       string // those behind the [TimelineChange] or [Sync] with this ID; empty: from now on
	Advances    bool   // and how far timelines have come
}

// ChangeMessage is what one message of a stream of changes has: one of the three.
type ChangeMessage struct {
	Sync    *Sync           `json:"sync,omitempty"`
	Change  *TimelineChange `json:"change,omitempty"`
	Advance *Advance        `json:"advance,omitempty"`
}
