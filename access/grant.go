package access

import (
	"slices"

	"tidemark"
)

// MaxSubject is the longest name of a user or group, in bytes.
const MaxSubject = 128

// SubjectKind is what may be given a grant.
type SubjectKind string

// The kinds of subjects.
const (
	User  SubjectKind = "user"
	Group SubjectKind = "group" // of users; not a consistency group
)

// Subject is whom a grant is for, or with whom a clone is shared.
type Subject struct {
	Kind SubjectKind `json:"kind"`
	Name string      `json:"name"`
}

// String is user:NAME or group:NAME.
func (s Subject) String() string { return string(s.Kind) + ":" + s.Name }

// Check returns an error of kind [tidemark.Invalid] unless s can be stored.
func (s Subject) Check() error {
	switch s.Kind {
	case User:
		return CheckUser(s.Name)
	case Group:
		return CheckGroup(s.Name)
	}
	return tidemark.Errorf(tidemark.Invalid, "%q is neither a user nor a group", shorten(string(s.Kind)))
}

// is reports that the principal is s, or in s.
func (s Subject) is(p Principal) bool {
	switch s.Kind {
	case User:
		return s.Name != "" && s.Name == p.User
	case Group:
		return s.Name != "" && slices.Contains(p.Groups, s.Name)
	}
	return false
}

// CheckUser returns an error of kind [tidemark.Invalid] unless s can name a
// user: 1 to [MaxSubject] bytes of a-z A-Z 0-9 . _ - + @, the first one a letter or digit.
// An address of mail is such a name.
func CheckUser(s string) error { return checkSubject("user", s, ".-_+@") }

// CheckGroup returns an error of kind [tidemark.Invalid] unless s can name a
// group of users. It may have / and : and spaces as well, as the groups of directories do.
func CheckGroup(s string) error { return checkSubject("group", s, ".-_+@/: ") }

func checkSubject(kind, s, also string) error {
	if s == "" || len(s) > MaxSubject {
		return tidemark.Errorf(tidemark.Invalid, "the name of a %s has 1 to %d bytes", kind, MaxSubject)
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		other := slices.Contains([]byte(also), c) && (i > 0 || c == '/')
		if !alnum && !other {
			return tidemark.Errorf(tidemark.Invalid, "the name %q of a %s has %q at byte %d", shorten(s), kind, string(s[i:i+1]), i+1).
				WithHint("begin with a letter or digit, and use letters, digits and " + also)
		}
	}
	return nil
}

// ScopeKind is what a scope is made of.
type ScopeKind string

// The kinds of scopes.
const (
	Everything   ScopeKind = "everything"
	Applications ScopeKind = "applications"
	Hosts        ScopeKind = "hosts"
)

// Scope is what a grant is about. Its zero value is about nothing.
type Scope struct {
	Kind ScopeKind `json:"kind"`
	// Names are patterns of applications or hosts; empty for everything.
	//
	// An application covers all that was made of it: clones, clones of these,
	// mounts, exports and jobs. A clone is covered by its own name only if that
	// stands here without wildcards, as the name of a LiveClone would: nobody gets
	// rights over a copy by choosing its name. A run of a workflow is covered if
	// all that its steps are about is.
	//
	// A host covers itself, and what is on it.
	Names []Pattern `json:"names,omitempty"`
}

// Check returns an error of kind [tidemark.Invalid] unless s is well formed.
func (s Scope) Check() error {
	switch s.Kind {
	case Everything:
		if len(s.Names) > 0 {
			return tidemark.Errorf(tidemark.Invalid, "a scope of everything names nothing")
		}
		return nil
	case Applications, Hosts:
		if len(s.Names) == 0 {
			return tidemark.Errorf(tidemark.Invalid, "a scope of %s has to name some", s.Kind).WithHint("* stands for all of them")
		}
		return checkPatterns(s.Names)
	}
	return tidemark.Errorf(tidemark.Invalid, "there is no scope %q", shorten(string(s.Kind))).WithHint("the scopes are everything, applications and hosts")
}

// Covers reports whether s is about o.
func (s Scope) Covers(o Object) bool {
	switch s.Kind {
	case Everything:
		return true
	case Applications:
		return s.coversData(o)
	case Hosts:
		switch o.Kind {
		case KindHost:
			return matchAny(s.Names, o.Name)
		case KindApplication, KindClone, KindMount, KindExport, KindJob:
			return o.Host != "" && matchAny(s.Names, o.Host)
		}
	}
	return false
}

func (s Scope) coversData(o Object) bool {
	switch o.Kind {
	case KindApplication:
		return matchAny(s.Names, o.Name)
	case KindGroup:
		return len(o.Members) > 0 && !slices.ContainsFunc(o.Members, func(m string) bool { return !matchAny(s.Names, m) })
	case KindClone, KindMount, KindExport, KindJob:
		if len(o.Parts) > 0 {
			return !slices.ContainsFunc(o.Parts, func(part Object) bool { return !s.coversData(part) })
		}
		return o.Source != "" && matchAny(s.Names, o.Source) ||
			o.Kind == KindClone && exactly(s.Names, o.Name) ||
			slices.ContainsFunc(o.Via, func(c string) bool { return exactly(s.Names, c) })
	}
	return false
}

// Grant gives a subject a role over a scope.
type Grant struct {
	ID      int64   `json:"id,omitempty"`
	Subject Subject `json:"subject"`
	Role    Role    `json:"role"`
	Scope   Scope   `json:"scope"`
	// Limits hold for roles that are [Role.Limited]; others have none.
	Limits Limits `json:"limits,omitzero"`
}

// Check returns an error of kind [tidemark.Invalid] unless g is well formed.
// [Decide] passes over a grant that is not.
func (g Grant) Check() error {
	if err := g.Subject.Check(); err != nil {
		return err
	}
	if _, err := ParseRole(string(g.Role)); err != nil {
		return err
	}
	if !g.Role.Limited() && !g.Limits.zero() {
		return tidemark.Errorf(tidemark.Invalid, "the role %s has no limits", g.Role).WithHint("only developers have")
	}
	if err := g.Limits.Check(); err != nil {
		return err
	}
	return g.Scope.Check()
}
