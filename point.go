package tidemark

import (
	"strconv"
	"strings"
	"time"
)

// Position is a place in a timeline's order of writes. It grows by one with
// every record and is never used twice. It prints as #812334.
type Position uint64

// String prints the position as it is parsed in a [Point].
func (p Position) String() string { return "#" + strconv.FormatUint(uint64(p), 10) }

// Point is how a user names a place on a timeline: exactly one of its fields is
// set, or none, which means the latest point.
type Point struct {
	Bookmark string        // a bookmark's name
	Position Position      // a position
	Time     time.Time     // an instant: everything written until then
	Ago      time.Duration // so long before now
	exact    bool          // Position is set, even if it is 0
}

// AtPosition returns the point at a position.
func AtPosition(p Position) Point { return Point{Position: p, exact: true} }

// Latest reports whether p means the newest point.
func (p Point) Latest() bool {
	return p.Bookmark == "" && !p.exact && p.Time.IsZero() && p.Ago == 0
}

// IsPosition reports whether p names a position.
func (p Point) IsPosition() bool { return p.exact }

// String prints p as [ParsePoint] reads it.
func (p Point) String() string {
	switch {
	case p.exact:
		return p.Position.String()
	case p.Bookmark != "":
		return p.Bookmark
	case !p.Time.IsZero():
		return p.Time.UTC().Format(time.RFC3339Nano)
	case p.Ago != 0:
		return "-" + p.Ago.String()
	}
	return "latest"
}

// When returns the instant that p names, if it names one.
func (p Point) When(now time.Time) (time.Time, bool) {
	if !p.Time.IsZero() {
		return p.Time, true
	}
	return now.Add(-p.Ago), p.Ago != 0
}

var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", "2006-01-02T15:04", "2006-01-02"}

// ParsePoint reads the part of a point behind the @: latest (or nothing), #812334 (a
// position), -5m (before now), a time (RFC 3339; without a zone, local time),
// or a bookmark's name.
func ParsePoint(s string) (Point, error) {
	switch {
	case s == "" || s == "latest":
		return Point{}, nil
	case s[0] == '#':
		n, err := strconv.ParseUint(s[1:], 10, 64)
		if err != nil {
			return Point{}, Errorf(Invalid, "%q is not a position", s).WithHint("a position is # and a number, such as #812334")
		}
		return AtPosition(Position(n)), nil
	case s[0] == '-':
		d, err := time.ParseDuration(s[1:])
		if err != nil || d <= 0 {
			return Point{}, Errorf(Invalid, "%q is not a time before now", s).WithHint("write -90s, -5m or -1h30m")
		}
		return Point{Ago: d}, nil
	}
	if t, ok := parseTime(s); ok {
		return Point{Time: t}, nil
	}
	if err := CheckName(s); err != nil {
		return Point{}, Errorf(Invalid, "%q is not a point", s).
			WithHint("write latest, a bookmark, #POSITION, -5m or a time such as 2026-11-23T02:41:07Z")
	}
	return Point{Bookmark: s}, nil
}

func parseTime(s string) (time.Time, bool) {
	for _, l := range timeLayouts {
		if t, err := time.ParseInLocation(l, s, time.Local); err == nil && t.Year() > 1970 {
			return t, true
		}
	}
	return time.Time{}, false
}

// Ref names a point of a timeline: APP@POINT. Without @POINT it is the latest.
type Ref struct {
	App   string // the name of an application, volume or clone
	Point Point
}

// ParseRef reads APP or APP@POINT.
func ParseRef(s string) (Ref, error) {
	app, at, _ := strings.Cut(s, "@")
	if err := CheckName(app); err != nil {
		return Ref{}, err
	}
	p, err := ParsePoint(at)
	return Ref{App: app, Point: p}, err
}

// String prints r as [ParseRef] reads it.
func (r Ref) String() string { return r.App + "@" + r.Point.String() }

// Consistency says what a point promises of its content.
type Consistency string

// The consistencies, weakest first.
const (
	CrashConsistent       Consistency = "crash"       // as after a power cut
	FilesystemConsistent  Consistency = "filesystem"  // file systems were frozen: nothing to repair
	ApplicationConsistent Consistency = "application" // the application vouched for it
)
