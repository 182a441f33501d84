package tidemark

// VolumeSpec asks for a new volume.
type VolumeSpec struct {
	Name  string `json:"name" doc:"A new name."`
	Size  int64  `json:"size_bytes" doc:"A multiple of 512 bytes, at most 64 PiB."`
	Chunk int    `json:"chunk_bytes,omitempty" doc:"The size of its chunks: a power of two from 4 KiB to 1 MiB; missing: 16 KiB."`
}

// ImportSpec asks that a volume become equal to a file or block device of the server's host.
// The volume is made if it does not exist.
type ImportSpec struct {
	Name     string `json:"name,omitempty" doc:"The volume. In the API the path says it."`
	Path     string `json:"path" doc:"The file or block device, an absolute path on the server's host."`
	Chunk    int    `json:"chunk_bytes,omitempty" doc:"Of a volume that is made: the size of its chunks."`
	Bookmark string `json:"bookmark,omitempty" doc:"A name for the point; made from the time if missing."`
}

// ProtectSpec asks that something be protected as an application.
type ProtectSpec struct {
	Name    string            `json:"name" doc:"A new name."`
	Source  string            `json:"source" doc:"Postgres://…, an absolute directory, a device or image file, or qemu:SOCKET."`
	Also    []string          `json:"also,omitempty" doc:"With cdp: more devices or image files, whose writes share one order."`
	CDP     bool              `json:"cdp,omitempty" doc:"Journal every write."`
	Host    string            `json:"host,omitempty" doc:"With cdp: the host that the devices are on, if not the server's own."`
	Window  *Window           `json:"window,omitempty" doc:"With cdp: of how much of the past any point can be had."`
	Options map[string]string `json:"options,omitempty" doc:"Settings of the application's type: see the manual of protect."`
	SLA     string            `json:"sla,omitempty" doc:"The template of what is promised to it; missing: nothing."`
	Profile string            `json:"profile,omitempty" doc:"The profile that says where its copies go; missing: none."`
	Labels  map[string]string `json:"labels,omitempty" doc:"What people call it by."`
}

// CaptureSpec asks for a capture.
type CaptureSpec struct {
	Application string `json:"application,omitempty" doc:"The application. In the API the path says it."`
	Bookmark    string `json:"bookmark,omitempty" doc:"A name for the point; made from the time if missing."`
}

// BookmarkSpec asks for a bookmark now, without copying.
type BookmarkSpec struct {
	Application string `json:"application,omitempty" doc:"The application or group. In the API the path says it."`
	Name        string `json:"name" doc:"A name for the point."`
}

// GroupSpec asks that applications join and leave a consistency group, which exists while it has members.
type GroupSpec struct {
	Name    string            `json:"name,omitempty" doc:"The group. In the API the path says it."`
	Join    []string          `json:"join,omitempty" doc:"Applications that join."`
	Leave   []string          `json:"leave,omitempty" doc:"Applications that leave."`
	Options map[string]string `json:"options,omitempty" doc:"Options to be changed: appshot, the interval at which the group is bookmarked, and appshot_keep; an empty value takes one away."`
}

// DiscoverSpec asks what on a host could be protected.
type DiscoverSpec struct {
	Host string // if not the server's own
}

// HostChange asks that what the server grants a host be changed.
type HostChange struct {
	Name  string `json:"name,omitempty" doc:"The host. In the API the path says it."`
	Limit int64  `json:"limit" minimum:"0" doc:"How much is sent to the host, and taken from it, in bits per second; 0: as much as there is."`
}

// HostSpec asks that a host may join.
type HostSpec struct {
	Name string `json:"name" doc:"The name of the host."`
}

// HostRemoval asks that a host is shut out.
type HostRemoval struct {
	Name  string `json:"name" doc:"The name of the host."`
	Force bool   `json:"force,omitempty" doc:"Shut it out though disks are tapped there."`
}

// ExportSpec asks for a point to be served over NBD.
type ExportSpec struct {
	Ref      string `json:"ref" doc:"APP@POINT; APP alone is its latest point."`
	Disk     string `json:"disk,omitempty" doc:"The disk, if the application has several."`
	Writable bool   `json:"writable,omitempty" doc:"Writes go to the volume or clone."`
	Listen   string `json:"listen,omitempty" doc:"Unix:/PATH or tcp:HOST:PORT; missing: the server's own socket."`
	TLS      string `json:"tls,omitempty" doc:"Directory with ca-cert.pem, server-cert.pem and server-key.pem; clients need a certificate too."`
	Insecure bool   `json:"insecure,omitempty" doc:"Serve TCP to everybody who reaches it."`
}

// MountSpec asks for a point to be mounted on a host.
type MountSpec struct {
	Ref      string `json:"ref" doc:"APP@POINT; APP alone is its latest point."`
	Host     string `json:"host,omitempty" doc:"The host, if not the server's own."`
	Disk     string `json:"disk,omitempty" doc:"The disk, if the application has several."`
	Path     string `json:"path,omitempty" doc:"An empty directory to mount its file system on; missing: only the device."`
	Name     string `json:"name,omitempty" doc:"A name for the mount; made from the application's if missing."`
	ReadOnly bool   `json:"read_only,omitempty" doc:"Mount the file system read-only."`
	Lifetime int64  `json:"lifetime_seconds,omitempty" minimum:"1" doc:"For how many seconds it lives; then it is removed by itself. Missing: it stays."`
}

// CloneSpec asks for a clone.
type CloneSpec struct {
	Ref      string `json:"ref" doc:"APP@POINT; APP alone is its latest point."`
	Name     string `json:"name" doc:"A new name."`
	Port     int    `json:"port,omitempty" doc:"The port of its database; missing: a free one."`
	To       string `json:"to,omitempty" doc:"A time, a log position or latest: replay the log so far beyond the point."`
	Host     string `json:"host,omitempty" doc:"The host that it is brought up on, if not the server's own."`
	Listen   string `json:"listen,omitempty" doc:"An IP address of that host on which a database can be reached from others, with passwords; missing: only by its socket."`
	Lifetime int64  `json:"lifetime_seconds,omitempty" minimum:"1" doc:"For how many seconds it lives; then it is removed by itself. Missing: it stays."`
	// Preparation makes it a LiveClone.
	Preparation *Preparation `json:"preparation,omitempty" doc:"Keep it as a LiveClone, and prepare it in that way before others clone it."`
}

// RefreshSpec asks that a clone or mount be made anew from a point, under the same name.
type RefreshSpec struct {
	Name  string `json:"name,omitempty" doc:"The clone. In the API the path says it."`
	Point string `json:"point,omitempty" doc:"A point of its source; missing: latest."`
}

// RewindSpec asks that a clone or volume become again what it was, in place.
type RewindSpec struct {
	Ref  string `json:"ref" doc:"CLONE@POINT, or VOLUME@POINT, of its own timeline."`
	Undo bool   `json:"undo,omitempty" doc:"Go to the point before its last rewind; then ref is a name."`
}

// RestoreSpec asks that a point be written to a file, a device or a directory.
type RestoreSpec struct {
	Ref     string `json:"ref" doc:"APP@POINT; of a group GROUP@POINT."`
	Disk    string `json:"disk,omitempty" doc:"The disk, if the application has several."`
	To      string `json:"to,omitempty" doc:"A new file, a device, or an empty directory, as an absolute path on the server's host."`
	Force   bool   `json:"force,omitempty" doc:"Overwrite what is there."`
	InPlace bool   `json:"in_place,omitempty" doc:"Take the disks of a tapped application themselves back, in place of to."`
}

// HalveSpec asks for the step halfway between a good point and a bad one.
type HalveSpec struct {
	Application string     `json:"application" doc:"The name of an application."`
	Disk        string     `json:"disk,omitempty" doc:"The disk; missing: all."`
	Good        string     `json:"good" doc:"A point, without APP@."`
	Bad         string     `json:"bad" doc:"A later point, without APP@."`
	Skip        []Position `json:"skip,omitempty" doc:"Steps that are of no use."`
	At          float64    `json:"at,omitempty" doc:"Where between: 0 to 1; missing: halfway."`
}

// DiffSpec asks what differs between two points of one timeline or its branches.
type DiffSpec struct {
	A    string `json:"a" doc:"APP@POINT."`
	B    string `json:"b" doc:"APP@POINT."`
	Disk string `json:"disk,omitempty" doc:"The disk; missing: all."`
}

// VerifySpec asks that what is stored be read and hashed.
type VerifySpec struct {
	Ref string `json:"ref,omitempty" doc:"APP or APP@POINT; missing: all that is stored."`
}

// PoolImport asks that all images of another data directory be brought into a server that has none.
type PoolImport struct {
	Path string `json:"path" doc:"The other data directory, an absolute path on the server's host."`
}

// ApplicationChange asks that an application become other than it is.
type ApplicationChange struct {
	Window *Window `json:"window,omitempty" doc:"Of how much of the past of a volume or clone any point can be had; missing: of the last 24 hours."`
}

// Listing says what part of a list is wanted.
type Listing struct {
	Limit  int    // at most so many entries; 0: as many as is usual
	Cursor string // where the part begins: [Page.Next] of the one before; empty: at the beginning
}

// UserSpec asks for a user.
type UserSpec struct {
	Name     string `json:"name" minLength:"1" doc:"A new name."`
	Display  string `json:"display,omitempty" doc:"What people call him."`
	Password string `json:"password,omitempty" doc:"His password; missing: he cannot log in with one."`
}

// UserChange asks that a user be let in or shut out.
type UserChange struct {
	Disabled bool `json:"disabled" doc:"He is not let in."`
}

// PasswordChange asks for another password.
type PasswordChange struct {
	Old string `json:"old,omitempty" doc:"The password until now, where one changes one's own."`
	New string `json:"new" doc:"The new one."`
}

// Login asks for a session.
type Login struct {
	User     string `json:"user" doc:"The user."`
	Password string `json:"password" doc:"His password."`
}

// DeviceWait asks whether a login by device is finished.
type DeviceWait struct {
	Login string `json:"login" doc:"The login."`
}

// Extension asks that a clone or mount live longer, or less long.
type Extension struct {
	Lifetime int64 `json:"lifetime_seconds,omitempty" minimum:"1" doc:"For how many seconds it lives from now on; then it is removed by itself. Missing: it stays."`
}

// JobFilter says which jobs are wanted.
type JobFilter struct {
	States      []JobState // empty: all
	Kind        string     // empty: all
	Application string     // empty: all
	Before      int64      // only those with smaller numbers; 0: all
	Limit       int        // at most so many
}

// ApplySpec asks that the server have what documents say: SLA templates, profiles, applications, groups and workflows.
type ApplySpec struct {
	Documents string `json:"documents" doc:"YAML; the manual of service levels has the format, and that of workflows the one of these."`
	DryRun    bool   `json:"dry_run,omitempty" doc:"Only say what would be changed."`
}

// SLASpec asks that an application have a template of what is promised to it.
type SLASpec struct {
	Application string `json:"application,omitempty" doc:"The application. In the API the path says it."`
	Template    string `json:"template,omitempty" doc:"The template; missing: nothing is promised."`
}

// ProfileSpec asks that an application have a profile.
type ProfileSpec struct {
	Application string `json:"application,omitempty" doc:"The application. In the API the path says it."`
	Profile     string `json:"profile,omitempty" doc:"The profile; missing: none."`
}

// GroupSLASpec asks that the members of a consistency group have a template of what is promised to them.
type GroupSLASpec struct {
	Group    string `json:"group,omitempty" doc:"The group. In the API the path says it."`
	Template string `json:"template,omitempty" doc:"The template; missing: nothing is promised by the group."`
}
