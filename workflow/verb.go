package workflow

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strings"

	"tidemark"
	"tidemark/internal/strictyaml"
	"tidemark/policy"
)

// Body is what one step does: a pointer to one of the structs below. A new verb is such a struct, a field of [Item], and an entry in
// control's table of what does it; nothing else names them.
type Body interface {
	// check takes up what cannot be, with all texts filled in.
	check(c *checks, at string)
	// String says in a few words what is done.
	String() string
}

// Capture brings the changes of an application or clone in.
type Capture struct {
	App      string `json:"app"`
	Bookmark string `json:"bookmark,omitempty"` // the point's name; empty: one made of the time
}

func (b *Capture) check(c *checks, at string) {
	c.Name(at+".app", b.App)
	if b.Bookmark != "" {
		c.Bookmark(at+".bookmark", b.Bookmark)
	}
}

// String says what is done.
func (b *Capture) String() string {
	if b.Bookmark == "" {
		return "capture " + b.App
	}
	return fmt.Sprintf("capture %s as %s", b.App, b.Bookmark)
}

// Bookmark marks the present of an application, clone or volume.
type Bookmark struct {
	App  string `json:"app"`
	Name string `json:"name"`
}

func (b *Bookmark) check(c *checks, at string) {
	c.Name(at+".app", b.App)
	c.Bookmark(at+".name", b.Name)
}

// String says what is done.
func (b *Bookmark) String() string { return fmt.Sprintf("bookmark %s as %s", b.App, b.Name) }

// Clone makes a clone.
type Clone struct {
	Source string `json:"source"`         // APP or APP@POINT
	Name   string `json:"name"`           // of the clone
	Host   string `json:"host,omitempty"` // empty: the server's own
	To     string `json:"to,omitempty"`   // how far a log is replayed
	Listen string `json:"listen,omitempty"`
	Port   int    `json:"port,omitempty"`
	// Replace: a clone of that name, host and source is made anew from the point, and keeps its port.
	Replace  bool            `json:"replace,omitempty"`
	Lifetime policy.Duration `json:"lifetime,omitzero"` // after which it is removed by itself; 0: it stays
	SLA      string          `json:"sla,omitempty"`     // the template that it has
}

func (b *Clone) check(c *checks, at string) {
	_, err := tidemark.ParseRef(b.Source)
	c.Good(at+".source", err)
	c.Name(at+".name", b.Name)
	if b.Host != "" {
		c.Name(at+".host", b.Host)
	}
	if b.SLA != "" {
		c.Name(at+".sla", b.SLA)
	}
	c.That(b.Port >= 0 && b.Port <= 65535, at+".port", "use 1 to 65535, or leave it away", "%d is no port", b.Port)
	c.duration(at+".lifetime", b.Lifetime)
	c.That(!b.Replace || b.To == "", at+".to", "name a point in source", "what replaces a clone is made of a point")
}

// String says what is done.
func (b *Clone) String() string {
	s := fmt.Sprintf("clone %s to %s", b.Source, b.Name)
	if b.Replace {
		s = fmt.Sprintf("clone %s to %s, or make that anew", b.Source, b.Name)
	}
	if b.Host != "" {
		s += " on " + b.Host
	}
	return s
}

// Refresh makes a clone anew.
type Refresh struct {
	Clone string `json:"clone"`
	Point string `json:"point,omitempty"` // of its source; empty: the newest
}

func (b *Refresh) check(c *checks, at string) {
	c.Name(at+".clone", b.Clone)
	if b.Point != "" {
		_, err := tidemark.ParsePoint(b.Point)
		c.Good(at+".point", err)
	}
}

// String says what is done.
func (b *Refresh) String() string {
	return fmt.Sprintf("refresh %s from %s", b.Clone, cmp.Or(b.Point, "latest"))
}

// Prepare prepares a LiveClone, and bookmarks the result.
type Prepare struct {
	Clone    string `json:"clone"`
	Refresh  bool   `json:"refresh,omitempty"`  // take the data of its source first
	Point    string `json:"point,omitempty"`    // with Refresh: of its source; empty: the newest
	Bookmark string `json:"bookmark,omitempty"` // the point's name; empty: one made of the time
}

func (b *Prepare) check(c *checks, at string) {
	c.Name(at+".clone", b.Clone)
	if b.Bookmark != "" {
		c.Bookmark(at+".bookmark", b.Bookmark)
	}
	c.That(b.Refresh || b.Point == "", at+".point", "add refresh: true", "a point is of the source")
	if b.Point != "" {
		_, err := tidemark.ParsePoint(b.Point)
		c.Good(at+".point", err)
	}
}

// String says what is done.
func (b *Prepare) String() string {
	s := "prepare " + b.Clone
	if b.Refresh {
		s += " from " + cmp.Or(b.Point, "latest")
	}
	if b.Bookmark != "" {
		s += " as " + b.Bookmark
	}
	return s
}

// Publish publishes a point that a preparation ended in, if no sensitive value is left in it. Residue is a failure.
type Publish struct {
	Clone    string `json:"clone"`
	Bookmark string `json:"bookmark,omitempty"` // empty: the newest
}

func (b *Publish) check(c *checks, at string) {
	c.Name(at+".clone", b.Clone)
	if b.Bookmark != "" {
		c.Name(at+".bookmark", b.Bookmark)
	}
}

// String says what is done.
func (b *Publish) String() string {
	return fmt.Sprintf("publish %s@%s", b.Clone, cmp.Or(b.Bookmark, "latest"))
}

// Unpublish takes back what is published: one point, or all by age and number. Clones of them stay.
type Unpublish struct {
	Clone     string          `json:"clone"`
	Bookmark  string          `json:"bookmark,omitempty"` // empty: all that are old
	OlderThan policy.Duration `json:"older_than,omitzero"`
	Keep      int             `json:"keep,omitempty"` // the newest so many stay published
}

func (b *Unpublish) check(c *checks, at string) {
	c.Name(at+".clone", b.Clone)
	if b.Bookmark != "" {
		c.Name(at+".bookmark", b.Bookmark)
	}
	c.which(at, b.OlderThan, b.Keep, b.Bookmark != "")
}

// String says what is done.
func (b *Unpublish) String() string {
	if b.Bookmark != "" {
		return fmt.Sprintf("unpublish %s@%s", b.Clone, b.Bookmark)
	}
	return "unpublish points of " + b.Clone + but(b.OlderThan, b.Keep)
}

// Prove brings a point up in a sandbox and checks it. A point that is not good is a failure.
type Prove struct {
	Ref   string `json:"ref"`
	Probe string `json:"probe,omitempty"`
}

func (b *Prove) check(c *checks, at string) {
	_, err := tidemark.ParseRef(b.Ref)
	c.Good(at+".ref", err)
	if b.Probe != "" {
		c.Name(at+".probe", b.Probe)
	}
}

// String says what is done.
func (b *Prove) String() string { return "prove " + b.Ref }

// Wait waits until a clone answers.
type Wait struct {
	Clone string `json:"clone"`
}

func (b *Wait) check(c *checks, at string) { c.Name(at+".clone", b.Clone) }

// String says what is done.
func (b *Wait) String() string { return "wait until " + b.Clone + " answers" }

// Remove takes a clone away. That there is none is fine.
type Remove struct {
	Clone string `json:"clone"`
}

func (b *Remove) check(c *checks, at string) { c.Name(at+".clone", b.Clone) }

// String says what is done.
func (b *Remove) String() string { return "remove the clone " + b.Clone }

// Expire removes clones by name and age, or forgets points of an application by name, age and number.
type Expire struct {
	Clones    string          `json:"clones,omitempty"` // a pattern of names, such as qa-*
	App       string          `json:"app,omitempty"`    // whose points are forgotten
	Points    string          `json:"points,omitempty"` // a pattern of bookmarks
	OlderThan policy.Duration `json:"older_than,omitzero"`
	Keep      int             `json:"keep,omitempty"` // the newest so many stay
}

func (b *Expire) check(c *checks, at string) {
	c.That((b.Clones != "") != (b.App != ""), at, `write clones: "qa-*", or app: shop and points: "nightly-*"`, "it is about clones, or about points of an application")
	c.That((b.App != "") == (b.Points != ""), at, `write app: shop and points: "nightly-*"`, "app goes with points")
	c.which(at, b.OlderThan, b.Keep, false)
	if b.App != "" {
		c.Name(at+".app", b.App)
	}
	for field, pattern := range map[string]string{"clones": b.Clones, "points": b.Points} {
		_, err := path.Match(pattern, "")
		c.That(err == nil && len(pattern) <= tidemark.MaxName, at+"."+field, "write a name with * and ?", "%.60q is no pattern", pattern)
	}
}

// Matches reports whether the pattern, of clones or points, has a name.
func (b *Expire) Matches(name string) bool {
	ok, _ := path.Match(cmp.Or(b.Clones, b.Points), name)
	return ok
}

// String says what is done.
func (b *Expire) String() string {
	s := "remove clones " + b.Clones
	if b.App != "" {
		s = fmt.Sprintf("forget points %s of %s", b.Points, b.App)
	}
	return s + but(b.OlderThan, b.Keep)
}

// which checks what says which of many are meant, by age and number, unless one is named.
func (c *checks) which(at string, olderThan policy.Duration, keep int, named bool) {
	c.That((olderThan > 0 || keep > 0) != named, at, "write older_than: 7d, or keep: 3, or both", "it does not say which stay")
	c.duration(at+".older_than", olderThan)
	c.That(keep >= 0 && keep <= 100_000, at+".keep", "write 1 to 100000", "%d is not possible", keep)
}

// but says which are meant.
func but(olderThan policy.Duration, keep int) (s string) {
	if olderThan > 0 {
		s += " older than " + olderThan.String()
	}
	if keep > 0 {
		s += fmt.Sprintf(", but the newest %d", keep)
	}
	return s
}

// Script runs a program of the administrator's directory on the server's host.
type Script struct {
	Name string `json:"name"` // of its file
	// Args are told to it as TIDEMARK_ARG_ and the name in capital letters. No other variables can be set: many change what a program does.
	Args map[string]string `json:"args,omitempty"`
	// Again: if it was cut, it is run once more. Else the run fails, for nobody knows how far it came.
	Again bool `json:"again,omitempty"`
}

func (b *Script) check(c *checks, at string) {
	c.Name(at+".name", b.Name)
	c.That(len(b.Args) <= MaxParameters, at+".args", fmt.Sprintf("at most %d are allowed", MaxParameters), "%d entries are too many", len(b.Args))
	for _, key := range slices.Sorted(maps.Keys(b.Args)) {
		c.paramName(at+".args."+key, key)
		c.Good(at+".args."+key, checkText(b.Args[key]))
	}
}

// String says what is done.
func (b *Script) String() string { return "run the script " + b.Name }

// Level is how much something matters.
type Level string

// The levels of messages.
const (
	LevelInfo    Level = "info" // also if empty
	LevelWarning Level = "warning"
	LevelError   Level = "error"
)

// Notify records an event, and tells it to a URL.
type Notify struct {
	Message string `json:"message"`
	Level   Level  `json:"level,omitempty"`
	URL     string `json:"url,omitempty"`    // to which JSON is posted; empty: to none
	Secret  string `json:"secret,omitempty"` // the name of a file of the server, with the key of the signature
}

func (b *Notify) check(c *checks, at string) {
	c.That(b.Message != "", at+".message", "write what is to be told", "it is empty")
	c.Good(at+".message", checkText(b.Message))
	c.That(slices.Contains([]Level{"", LevelInfo, LevelWarning, LevelError}, b.Level), at+".level", "there are info, warning and error", "%.20q is no level", string(b.Level))
	if b.Secret != "" {
		c.Name(at+".secret", b.Secret)
	}
	c.That(b.Secret == "" || b.URL != "", at+".secret", "leave it away, or give a url", "it signs what is posted to a URL")
	if b.URL == "" {
		return
	}
	c.Good(at+".url", tidemark.CheckPostURL(b.URL)) // which does not repeat it, unlike checkText
}

// String says what is done.
func (b *Notify) String() string {
	s := fmt.Sprintf("tell %q", b.Message)
	if u, err := url.Parse(b.URL); err == nil && u.Host != "" {
		s += " to " + u.Host // a path may be a secret
	}
	return s
}

// verb is a body with what it is called.
type verb struct {
	kind string
	body Body
}

// verbs are those that an item has; it should be one, or none in a group.
func (x Item) verbs() (list []verb) {
	v := reflect.ValueOf(x)
	for _, f := range strictyaml.Fields(v.Type()) {
		if b, ok := v.Field(f.Index).Interface().(Body); ok && !v.Field(f.Index).IsNil() {
			list = append(list, verb{f.Name, b})
		}
	}
	return list
}

// Verbs are the names of all verbs, in the order of [Item].
func Verbs() (names []string) {
	t := reflect.TypeFor[Item]()
	for _, f := range strictyaml.Fields(t) {
		if t.Field(f.Index).Type.Implements(reflect.TypeFor[Body]()) {
			names = append(names, f.Name)
		}
	}
	return names
}

func verbNames() string { return strings.Join(Verbs(), ", ") }
