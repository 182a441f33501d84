package access

import (
	"cmp"
	"fmt"
	"strings"
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

// Allow returns nil if c may be had beside u, and else an error of kind [tidemark.Denied] that says in a few words why not, with what helps as its hint.
// It is a pure function: a caller who lets copies be made at the same time has to
// hold off others of the same user between reading u and making c.
func (l Limits) Allow(u Usage, c Copy) error {
	if s := l.short(u, c); s != nil {
		return tidemark.Errorf(tidemark.Denied, "%s", s.why).WithHint(cmp.Or(s.cure, askForGrant))
	}
	return nil
}

// shortfall is why a copy is beyond limits, and what helps him who wants it; no cure: nothing but a grant with other limits.
type shortfall struct{ why, cure string }

// short returns nil if c may be had beside u.
func (l Limits) short(u Usage, c Copy) *shortfall {
	if c.New < 0 || c.Bytes < 0 || c.Lifetime < 0 || u.Clones < 0 || u.Bytes < 0 {
		return &shortfall{why: "a number of it is negative"}
	}
	// Compared by what is left, since a sum could overflow.
	if l.Clones != Unlimited && c.New > 0 && c.New > l.Clones-u.Clones {
		return &shortfall{fmt.Sprintf("%d of %d clones and mounts are there", u.Clones, l.Clones), unless(c.New > l.Clones, "remove one of them")}
	}
	if grows := c.New > 0 || c.Bytes > 0 || c.Point; l.Bytes != Unlimited && grows && (u.Bytes >= l.Bytes || c.Bytes > l.Bytes-u.Bytes) {
		return &shortfall{fmt.Sprintf("%d of %d bytes are taken", u.Bytes, l.Bytes), unless(c.Bytes >= l.Bytes, "remove one of the clones, or refresh it")}
	}
	if c.Point {
		return nil
	}
	if end := time.Duration(min(l.Lifetime, maxSeconds)) * time.Second; l.Lifetime != Unlimited && (c.Lifetime == 0 || c.Lifetime > end) {
		return &shortfall{fmt.Sprintf("a copy may live for %s at most", brief(end)), unless(end == 0, lifeCure(end, c))}
	}
	if c.Host != "" && !matchAny(l.Hosts, c.Host) {
		return &shortfall{fmt.Sprintf("copies may not be put on host %s", c.Host), unless(len(l.Hosts) == 0, hostCure(l.Hosts))}
	}
	return nil
}

// unless is cure, or none if there is no cure.
func unless(hopeless bool, cure string) string {
	if hopeless {
		return ""
	}
	return cure
}

// lifeCure is what helps when a copy would live for longer than end.
func lifeCure(end time.Duration, c Copy) string {
	if c.New == 0 {
		return "say a shorter time with --for: it counts from when it was made"
	}
	return fmt.Sprintf("say how long it lives with --for %s, or less", brief(end))
}

// hostCure is what helps when a copy would be put on another host than the limits name.
func hostCure(hosts []Pattern) string {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		if names[i] = string(h); h == ServerHost {
			names[i] = "the server's own host, without --host"
		}
	}
	return "they may be put on " + strings.Join(names, ", ")
}

// brief is a time as people write it: 8h, not 8h0m0s.
func brief(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

const maxSeconds = int64(1<<63-1) / int64(time.Second)
