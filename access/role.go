package access

import (
	"slices"

	"tidemark"
)

// Role is a set of actions that belong to somebody's work.
type Role string

// The roles.
const (
	// Admin may do everything in the scope; over everything, also say who else may.
	Admin Role = "admin"
	// Operator runs protection: all of it but who may do what, the audit, and the server's settings.
	Operator Role = "operator"
	// Owner uses an application to the full, restores it, and says what others get of it.
	// He cannot make its past shorter: a stolen account of his destroys no history.
	Owner Role = "owner"
	// Developer makes copies for himself within the limits of his grant.
	Developer Role = "developer"
	// Auditor sees that everything exists and what was done, and none of the data.
	Auditor Role = "auditor"
)

// roles are the columns of the table, in order.
var roles = [...]Role{Admin, Operator, Owner, Developer, Auditor}

// Roles returns all roles, the mightiest first.
func Roles() []Role { return slices.Clone(roles[:]) }

// Limited reports that grants of the role have [Limits], which hold.
func (r Role) Limited() bool { return r == Developer }

// Level returns how far r may do a: [None] for a role or action that is not known.
func (r Role) Level(a Action) Level {
	e, i := entries[a], slices.Index(roles[:], r)
	if e == nil || i < 0 {
		return None
	}
	return e.levels[i]
}

// ParseRole returns the role of that name. Its error is of kind [tidemark.Invalid].
func ParseRole(s string) (Role, error) {
	if slices.Contains(roles[:], Role(s)) {
		return Role(s), nil
	}
	return "", tidemark.Errorf(tidemark.Invalid, "there is no role %q", shorten(s)).WithHint("the roles are admin, operator, owner, developer and auditor")
}

// Level is how far within its scope a role may do an action. Higher levels hold the lower ones.
type Level int

// The levels.
const (
	None Level = iota
	Own        // of what belongs to the principal
	Open       // also of what was shared with him or published, and of what belongs to nobody
	All        // of everything in the scope
)

// String is the word that the table in docs/access.md has.
func (l Level) String() string {
	if l < None || l > All {
		return "?"
	}
	return [...]string{"–", "own", "open", "all"}[l]
}

// shorten keeps what others sent from filling a line.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
