package access

import "time"

// Method is how a principal proved who he is.
type Method string

// The methods. The zero value is none, and allows nothing.
const (
	BySocket   Method = "socket"   // the server's own unix socket: its administrator
	ByPassword Method = "password" // a session that began with a password
	ByOIDC     Method = "oidc"     // a session that began at an OpenID provider
	ByToken    Method = "token"    // an API token
)

// What records of the audit have for a method where nobody came himself. Nobody is let in by these: they are not [Method.Known].
const (
	ByRun  Method = "workflow" // a step of a run, in the name of who asked for the run
	ByJob  Method = "job"      // a job that begins later than it was asked for, in the name of who did
	ByHost Method = "host"     // the agent of a host, by its join token or its certificate
)

// Known reports whether m is one of the methods.
func (m Method) Known() bool {
	switch m {
	case BySocket, ByPassword, ByOIDC, ByToken:
		return true
	}
	return false
}

// Administrator is what the administrator at the server's own socket is called, who has no name.
const Administrator = "the administrator at the socket"

// Principal is somebody who asks. Only who has checked his secret makes one.
type Principal struct {
	User   string // empty for the socket
	UserID string // which of all who ever had that name
	Groups []string
	Method Method
	// Token is the one that he came with, if [ByToken]. It narrows what he may do.
	Token *Token
}

// String is the user's name, or what stands for it.
func (p Principal) String() string {
	switch {
	case p.Method == BySocket:
		return Administrator
	case p.User == "":
		return "nobody"
	}
	return p.User
}

// Self is what somebody is told about himself.
type Self struct {
	User   string   `json:"user,omitempty" doc:"His name; missing: the administrator at the socket."`
	Groups []string `json:"groups,omitempty" doc:"The groups that he is in."`
	Method Method   `json:"method" doc:"How he proved who he is: socket, password, oidc or token."`
	Token  *Token   `json:"token,omitempty" doc:"The API token that he came with."`
	Grants []Grant  `json:"grants" doc:"What was granted to him. A token that has roles or applications allows less of it."`
}

// TokenSpec asks for an API token.
type TokenSpec struct {
	User         string    `json:"user,omitempty" doc:"For whom; missing: for oneself."`
	Name         string    `json:"name" doc:"What its user calls it."`
	Lifetime     int64     `json:"lifetime_seconds" minimum:"1" doc:"For how many seconds it is good: for a year at most."`
	Roles        []Role    `json:"roles,omitempty" doc:"Only what one of these roles may do; missing: all that its user may do."`
	Applications []Pattern `json:"applications,omitempty" doc:"Only what belongs to applications with such names; missing: all."`
}

// ShareSpec says with whom a clone is shared.
type ShareSpec struct {
	With []Subject `json:"with" doc:"All with whom it is shared from now on."`
}

// Shared is with whom a clone is shared now.
type Shared struct {
	Name  string    `json:"name" doc:"The clone."`
	With  []Subject `json:"with" doc:"All with whom it is shared."`
	Notes []string  `json:"notes,omitempty" doc:"With whom it is shared to no effect, for want of rights over what it was made of: one line each."`
}

// AuditResult is what a check of the audit found.
type AuditResult struct {
	Records     int64      `json:"records" doc:"How many records hold together, from the first to the last."`
	Checkpoints int        `json:"checkpoints" doc:"How many signed checkpoints of this server they were held against."`
	Through     int64      `json:"through" doc:"The record up to which these reach. What comes after it could be cut off, and nothing here would show it."`
	At          *time.Time `json:"at,omitempty" doc:"When the newest of these was made."`
	// Copies of checkpoints that were given: how many there were, how far they reach, and how many of them have another key
	// than that of this server, as those of another server that shares the catalog.
	Copies        int   `json:"copies" doc:"How many copies of checkpoints, kept elsewhere, they were held against."`
	CopiesThrough int64 `json:"copies_through" doc:"The record up to which these reach."`
	OtherKeys     int   `json:"other_keys" doc:"How many of the copies were signed with another key than this server's."`
	Waiting       int   `json:"waiting" doc:"How many records are not in the audit yet, for the catalog could not take them when it was time."`
}

// Object is what an action is done to, with all that the decision has to know of it.
type Object struct {
	Kind Kind
	Name string
	// Owner is the user to whom a clone, mount, export, job or token belongs; empty: nobody.
	Owner string
	// Source is the application whose data a clone, mount, export or job has, and
	// Via the clones in between, if it was not made of the application itself. A
	// mount of a clone dev of orders has Source orders and Via dev.
	Source string
	Via    []string
	// Members are the applications of a consistency group.
	Members []string
	// Parts are what the steps of a run of a workflow, which is a job, are about.
	Parts []Object
	// Host is where it is, or where an application's production is.
	Host string
	// Shared are those with whom a clone was shared.
	Shared []Subject
	// Published says that the point which is asked for, or the clone, is fit for others.
	Published bool
	// Bookmark is the name of the point that is asked for, where it has one.
	Bookmark string
}

// reached reports whether o is at a level of p's.
func (o Object) reached(p Principal, l Level) bool {
	own := o.Owner != "" && o.Owner == p.User
	switch l {
	case All:
		return true
	case Open:
		return own || o.Owner == "" || o.lent(p)
	case Own:
		return own
	}
	return false
}

// lent reports that o was published, or shared with p.
func (o Object) lent(p Principal) bool {
	if o.Published {
		return true
	}
	for _, s := range o.Shared {
		if s.is(p) {
			return true
		}
	}
	return false
}
