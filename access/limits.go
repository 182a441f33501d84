package access

import (
	"fmt"
	"time"

	"tidemark"
)

// Unlimited is the limit that is none. It has to be said: zero is zero.
const Unlimited = -1

// Limits bound what a developer takes. The zero value is the strictest:
// published points, and no copy at all.
type Limits struct {
	// Clones is how many clones and mounts may belong to the user at a time; [Unlimited] is no bound.
	Clones int `json:"clones"`
	// Bytes is what these may take in the pool beyond what they share; [Unlimited] is no bound.
	Bytes int64 `json:"bytes"`
	// Lifetime is how long a copy may live, in seconds; [Unlimited] also allows one without an end.
	Lifetime int64 `json:"lifetime_seconds"`
	// Hosts are where copies may be put. [ServerHost] is the server's own.
	Hosts []Pattern `json:"hosts,omitempty"`
	// Points are which points may be taken.
	Points PointRule `json:"points,omitzero"`
}

// PointRule says which points may be taken. A point that was published always
// may, which is all that the zero value allows: masked data only, where masked
// data is what gets published.
type PointRule struct {
	Any       bool      `json:"any,omitempty"`       // all points
	Bookmarks []Pattern `json:"bookmarks,omitempty"` // also bookmarks with such names
}

func (l Limits) zero() bool {
	return l.Clones == 0 && l.Bytes == 0 && l.Lifetime == 0 && len(l.Hosts) == 0 && !l.Points.Any && len(l.Points.Bookmarks) == 0
}

// Check returns an error of kind [tidemark.Invalid] unless l is well formed.
func (l Limits) Check() error {
	if l.Clones < Unlimited || l.Bytes < Unlimited || l.Lifetime < Unlimited {
		return tidemark.Errorf(tidemark.Invalid, "a limit is a number, or %d for none", Unlimited)
	}
	if err := checkPatterns(l.Hosts); err != nil {
		return err
	}
	return checkPatterns(l.Points.Bookmarks)
}

// allows reports whether the point that o speaks of may be taken.
func (r PointRule) allows(o Object) bool {
	return r.Any || o.Published || o.Bookmark != "" && matchAny(r.Bookmarks, o.Bookmark)
}

// Usage is what belongs to a user now.
type Usage struct {
	Clones int   // clones and mounts
	Bytes  int64 // that they take in the pool beyond what they share
}

// Copy is what somebody asks for that limits are about.
type Copy struct {
	New   int   `json:"new,omitempty"`   // how many clones and mounts come into being; 0 when one is refreshed or lives longer
	Bytes int64 `json:"bytes,omitempty"` // that they are known to take at once; usually none
	// Lifetime is how long it is to live, counted from when it was made; 0 is without an end.
	Lifetime time.Duration `json:"lifetime,omitempty"`
	// Host is where it is put; empty when it stays where it is. The server's own is [ServerHost].
	Host string `json:"host,omitempty"`
	// Point: it is only a point of a copy that is there, and keeps what that has now. All but u.Bytes is without meaning.
	Point bool `json:"point,omitempty"`
}

// Allow returns nil if c may be had beside u, and else says in a few words why not.
// It is a pure function: a caller who lets copies be made at the same time has to
// hold off others of the same user between reading u and making c.
func (l Limits) Allow(u Usage, c Copy) error {
	if c.New < 0 || c.Bytes < 0 || c.Lifetime < 0 || u.Clones < 0 || u.Bytes < 0 {
		return fmt.Errorf("a number of it is negative")
	}
	// Compared by what is left, since a sum could overflow.
	if l.Clones != Unlimited && c.New > 0 && c.New > l.Clones-u.Clones {
		return fmt.Errorf("%d of %d clones and mounts are there", u.Clones, l.Clones)
	}
	if grows := c.New > 0 || c.Bytes > 0 || c.Point; l.Bytes != Unlimited && grows && (u.Bytes >= l.Bytes || c.Bytes > l.Bytes-u.Bytes) {
		return fmt.Errorf("%d of %d bytes are taken", u.Bytes, l.Bytes)
	}
	if c.Point {
		return nil
	}
	if end := time.Duration(min(l.Lifetime, maxSeconds)) * time.Second; l.Lifetime != Unlimited && (c.Lifetime == 0 || c.Lifetime > end) {
		return fmt.Errorf("a copy may live for %s at most", end)
	}
	if c.Host != "" && !matchAny(l.Hosts, c.Host) {
		return fmt.Errorf("copies may not be put on host %s", c.Host)
	}
	return nil
}

const maxSeconds = int64(1<<63-1) / int64(time.Second)
