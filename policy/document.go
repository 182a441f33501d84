package policy

import (
	"cmp"
	"fmt"
	"slices"

	"tidemark"
)

// DocumentKind is what a document describes.
type DocumentKind string

// The kinds of documents, in the order in which they are made: each may name those before it.
const (
	KindHost        DocumentKind = "Host"
	KindTemplate    DocumentKind = "Template"
	KindProfile     DocumentKind = "Profile"
	KindApplication DocumentKind = "Application"
	KindGroup       DocumentKind = "Group"
)

var kinds = []DocumentKind{KindHost, KindTemplate, KindProfile, KindApplication, KindGroup}

// Application is the wanted state of an application: what is to be protected, and what is promised to it.
type Application struct {
	Name   string   `json:"name"`
	Source string   `json:"source"`         // a URL without secrets, a directory, a device
	Also   []string `json:"also,omitempty"` // more devices, whose writes share one order with those of Source
	Host   string   `json:"host,omitempty"` // that has the source. Empty: the server's own
	SLA    string   `json:"sla,omitempty"`  // the name of a template. Empty: nothing is promised
	// Profile is the name of the profile that says where its copies go. Empty: none.
	Profile string `json:"profile,omitempty"`
	// Options are settings of the application's type.
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Host is the wanted state of a host: that it may join.
type Host struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
}

// Group is the wanted state of a consistency group.
type Group struct {
	Name    string            `json:"name"`
	Members []string          `json:"members"`       // names of applications
	SLA     string            `json:"sla,omitempty"` // the template that the members have, but for those with one of their own. Empty: nothing is promised by the group
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Set is what documents describe, or what a server has. The order within means nothing.
type Set struct {
	Hosts        []Host        `json:"hosts,omitempty"`
	Templates    []Template    `json:"templates,omitempty"`
	Profiles     []Profile     `json:"profiles,omitempty"`
	Applications []Application `json:"applications,omitempty"`
	Groups       []Group       `json:"groups,omitempty"`
}

// object is one document: a *Host, *Template, *Profile, *Application or *Group.
type object interface{ Validate() error }

// newObject returns an empty document of a kind, or nil.
func newObject(kind DocumentKind) object {
	switch kind {
	case KindHost:
		return new(Host)
	case KindTemplate:
		return new(Template)
	case KindProfile:
		return new(Profile)
	case KindApplication:
		return new(Application)
	case KindGroup:
		return new(Group)
	}
	return nil
}

func (s *Set) add(o object) {
	switch o := o.(type) {
	case *Host:
		s.Hosts = append(s.Hosts, *o)
	case *Template:
		s.Templates = append(s.Templates, *o)
	case *Profile:
		s.Profiles = append(s.Profiles, *o)
	case *Application:
		s.Applications = append(s.Applications, *o)
	case *Group:
		s.Groups = append(s.Groups, *o)
	}
}

// named is an object with what identifies it.
type named struct {
	kind   DocumentKind
	name   string
	object object
}

// all lists what is in the set by kind, in the order of [kinds], and by name.
func (s Set) all() (list []named) {
	for i := range s.Hosts {
		list = append(list, named{KindHost, s.Hosts[i].Name, &s.Hosts[i]})
	}
	for i := range s.Templates {
		list = append(list, named{KindTemplate, s.Templates[i].Name, &s.Templates[i]})
	}
	for i := range s.Profiles {
		list = append(list, named{KindProfile, s.Profiles[i].Name, &s.Profiles[i]})
	}
	for i := range s.Applications {
		list = append(list, named{KindApplication, s.Applications[i].Name, &s.Applications[i]})
	}
	for i := range s.Groups {
		list = append(list, named{KindGroup, s.Groups[i].Name, &s.Groups[i]})
	}
	slices.SortStableFunc(list, compareNamed)
	return list
}

func compareNamed(a, b named) int {
	return cmp.Or(cmp.Compare(slices.Index(kinds, a.kind), slices.Index(kinds, b.kind)), cmp.Compare(a.name, b.name))
}

const maxPairs = 256 // options, labels

func (c *checks) pairs(field string, pairs map[string]string) {
	c.That(len(pairs) <= maxPairs, field, fmt.Sprintf("at most %d are allowed", maxPairs), "%d entries are too many", len(pairs))
	for key, value := range pairs {
		c.That(key != "" && len(key) <= 128 && len(value) <= 4096, field, "keys have 1 to 128 bytes, values at most 4096", "the key or value of %.40q is too long or empty", key)
	}
}

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless a can be applied. It never repeats a secret.
func (a Application) Validate() error {
	var c checks
	c.Name("name", a.Name)
	checkSource(&c, "source", a.Source)
	for i, s := range a.Also {
		checkSource(&c, fmt.Sprintf("also[%d]", i), s)
	}
	if a.Host != "" {
		c.Name("host", a.Host)
	}
	if a.SLA != "" {
		c.Name("sla", a.SLA)
	}
	if a.Profile != "" {
		c.Name("profile", a.Profile)
	}
	c.pairs("options", a.Options)
	for key, value := range a.Options {
		checkOption(&c, "options."+key, value)
	}
	c.pairs("labels", a.Labels)
	return c.Err()
}

// checkOption refuses secrets. A file that has one may be named.
func checkOption(c *checks, field, value string) {
	c.That(value == "" || !isSecret(field) && !hasSecret(value), field, "put it into a file that only the server can read, and name the file", "an option is no place for a secret")
}

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless h can be applied.
func (h Host) Validate() error {
	var c checks
	c.Name("name", h.Name)
	c.pairs("labels", h.Labels)
	return c.Err()
}

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless g can be applied.
func (g Group) Validate() error {
	var c checks
	c.Name("name", g.Name)
	c.That(len(g.Members) > 0, "members", "name at least one application", "a group without members does not exist")
	for i, m := range g.Members {
		field := fmt.Sprintf("members[%d]", i)
		c.Name(field, m)
		c.That(!slices.Contains(g.Members[:i], m), field, "name it once", "%.60q is named twice", m)
	}
	if g.SLA != "" {
		c.Name("sla", g.SLA)
	}
	c.pairs("options", g.Options)
	c.pairs("labels", g.Labels)
	return c.Err()
}

// CheckReferences returns an error of kind [tidemark.NotFound] if something in want names a
// template, profile, host or application that is neither in want nor in have.
func CheckReferences(have, want Set) error {
	known := map[DocumentKind]map[string]bool{}
	for _, kind := range kinds {
		known[kind] = map[string]bool{}
	}
	for _, n := range append(have.all(), want.all()...) {
		known[n.kind][n.name] = true
	}
	missing := func(of DocumentKind, name string, kind DocumentKind, ref string) error {
		if ref == "" || known[kind][ref] {
			return nil
		}
		return tidemark.Errorf(tidemark.NotFound, "%s %s names the %s %s, which is not there", of, name, kind, ref).
			WithHint("add its document, or correct the name")
	}
	for _, n := range want.all() {
		switch o := n.object.(type) {
		case *Application:
			if err := cmp.Or(missing(n.kind, n.name, KindTemplate, o.SLA), missing(n.kind, n.name, KindProfile, o.Profile), missing(n.kind, n.name, KindHost, o.Host)); err != nil {
				return err
			}
		case *Group:
			if err := missing(n.kind, n.name, KindTemplate, o.SLA); err != nil {
				return err
			}
			for _, m := range o.Members {
				if err := missing(n.kind, n.name, KindApplication, m); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
