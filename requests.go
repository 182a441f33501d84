package tidemark

// VolumeSpec asks for a new volume.
type VolumeSpec struct {
	Name  string `json:"name"`
	Size  int64  `json:"size_bytes"`
	Chunk int    `json:"chunk_bytes,omitempty"` // 0: DefaultChunk
}

// ImportSpec asks that a volume become equal to a file or block device of the server's host.
// The volume is made if it does not exist.
type ImportSpec struct {
	Name     string `json:"name"`
	Path     string `json:"path"`
	Chunk    int    `json:"chunk_bytes,omitempty"`
	Bookmark string `json:"bookmark,omitempty"`
}

// ProtectSpec asks that something be protected as an application.
type ProtectSpec struct {
	Name    string            `json:"name"`
	Source  string            `json:"source"`            // postgres://…, an absolute directory, a device or image file; with CDP also a volume or clone
	Also    []string          `json:"also,omitempty"`    // with CDP: more devices or image files, whose writes share one order
	CDP     bool              `json:"cdp,omitempty"`     // journal every write
	Host    string            `json:"host,omitempty"`    // with CDP: the host that the devices are on, if not the server's own
	Window  *Window           `json:"window,omitempty"`  // with CDP: how much of the past any point can be had of
	Options map[string]string `json:"options,omitempty"` // see docs of the application's type
	SLA     string            `json:"sla,omitempty"`     // the template of what is promised to it; empty: nothing
	Labels  map[string]string `json:"labels,omitempty"`  // what people call it by
}

// CaptureSpec asks for a capture.
type CaptureSpec struct {
	Application string `json:"application"`
	Bookmark    string `json:"bookmark,omitempty"` // a name for the point; made from the time if empty
}

// BookmarkSpec asks for a bookmark now, without copying.
type BookmarkSpec struct {
	Application string `json:"application"`
	Name        string `json:"name"`
}

// GroupSpec asks that applications join and leave a consistency group, which exists while it has members.
type GroupSpec struct {
	Name  string   `json:"name"`
	Join  []string `json:"join,omitempty"`
	Leave []string `json:"leave,omitempty"`
	// Options are to be changed: appshot, the interval at which the group is bookmarked, and appshot_keep. An empty value takes one away.
	Options map[string]string `json:"options,omitempty"`
}

// DiscoverSpec asks what on a host could be protected.
type DiscoverSpec struct {
	Host string `json:"host,omitempty"` // if not the server's own
}

// HostChange asks that what the server grants a host be changed.
type HostChange struct {
	Name string `json:"name"`
	// Limit is how much is sent to the host, and taken from it, in bits per second; 0: as much as there is.
	Limit int64 `json:"limit"`
}

// HostSpec asks that a host may join.
type HostSpec struct {
	Name string `json:"name"`
}

// HostRemoval asks that a host is shut out.
type HostRemoval struct {
	Name  string `json:"name"`
	Force bool   `json:"force,omitempty"` // though disks are tapped there
}

// ExportSpec asks for a point to be served over NBD.
type ExportSpec struct {
	Ref      string `json:"ref"`
	Disk     string `json:"disk,omitempty"` // needed if the application has several
	Writable bool   `json:"writable"`
	Listen   string `json:"listen,omitempty"`   // unix:/path or tcp:HOST:PORT; empty: the server's own socket
	TLS      string `json:"tls,omitempty"`      // directory with ca-cert.pem, server-cert.pem and server-key.pem; clients need a certificate too
	Insecure bool   `json:"insecure,omitempty"` // serve TCP to everybody who reaches it
}

// MountSpec asks for a point to be mounted on a host.
type MountSpec struct {
	Ref      string `json:"ref"`
	Host     string `json:"host,omitempty"` // if not the server's own
	Disk     string `json:"disk,omitempty"`
	Path     string `json:"path,omitempty"` // empty: only the device
	Name     string `json:"name,omitempty"` // empty: made from the application's name
	ReadOnly bool   `json:"read_only"`
}

// CloneSpec asks for a clone.
type CloneSpec struct {
	Ref  string `json:"ref"`
	Name string `json:"name"`
	Port int    `json:"port,omitempty"` // 0: a free one
	To   string `json:"to,omitempty"`   // a time or an LSN to recover to, beyond the point
	Host string `json:"host,omitempty"` // that it is brought up on, if not the server's own
	// Listen is an IP address of that host on which a database can be reached from others, with passwords; empty: only by its socket.
	Listen string `json:"listen,omitempty"`
}

// RefreshSpec asks that a clone or mount be made anew from a point, under the same name.
type RefreshSpec struct {
	Name  string `json:"name"`
	Point string `json:"point,omitempty"` // of its source; empty: latest
}

// RewindSpec asks that a clone or volume become again what it was, in place.
type RewindSpec struct {
	Ref  string `json:"ref"`            // the clone or volume, and a point of its own timeline
	Undo bool   `json:"undo,omitempty"` // to the point before its last rewind; then Ref is a name
}

// RestoreSpec asks that a point be written to a file, a device or a directory.
type RestoreSpec struct {
	Ref   string `json:"ref"`
	Disk  string `json:"disk,omitempty"`
	To    string `json:"to,omitempty"`
	Force bool   `json:"force,omitempty"` // overwrite what is there
	// InPlace takes the disks of a tapped application themselves back, in place of To.
	InPlace bool `json:"in_place,omitempty"`
}

// HalveSpec asks for the step halfway between a good point and a bad one.
type HalveSpec struct {
	Application string     `json:"application"`
	Disk        string     `json:"disk,omitempty"` // empty: all disks
	Good        string     `json:"good"`           // a point, without APP@
	Bad         string     `json:"bad"`
	Skip        []Position `json:"skip,omitempty"` // steps that are of no use
	At          float64    `json:"at,omitempty"`   // where between: 0 to 1; 0 means halfway
}

// DiffSpec asks what differs between two points of one timeline or its branches.
type DiffSpec struct {
	A    string `json:"a"`
	B    string `json:"b"`
	Disk string `json:"disk,omitempty"` // empty: all disks
}

// JobFilter asks for some of the jobs, newest first.
type JobFilter struct {
	States      []JobState `json:"states,omitempty"` // empty: all
	Kind        string     `json:"kind,omitempty"`
	Application string     `json:"application,omitempty"`
	// Before is the number of a job: those that are older are listed. With that of the last job of a list, the list goes on.
	Before int64 `json:"before,omitempty"`
	Limit  int   `json:"limit,omitempty"` // 0: 50; at most 1000
}

// ApplySpec asks that the server have what documents say: SLA templates, applications and groups.
type ApplySpec struct {
	Documents string `json:"documents"`         // YAML; see docs/sla.md
	DryRun    bool   `json:"dry_run,omitempty"` // only say what would be changed
}

// SLASpec asks that an application have a template of what is promised to it.
type SLASpec struct {
	Application string `json:"application"`
	Template    string `json:"template,omitempty"` // empty: nothing is promised
}
