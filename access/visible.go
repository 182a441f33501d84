package access

import "slices"

// Filter says which objects of a kind an action is allowed on, so that a list
// can be made by a query and need not ask for one object after the other. An
// object is shown if All is set, or if one of Any shows it.
type Filter struct {
	All    bool
	Any    []Clause
	User   string   // whose own is meant
	Groups []string // with whom something may be shared, beside User
}

// Clause is one way to be shown: the scope covers the object, the token too,
// and the object is at the level.
type Clause struct {
	Scope Scope
	Level Level // [Own], [Open] or [All]
	// Token, if not empty, are the applications that the token is for.
	Token []Pattern
}

// Visible returns what p may do a to, whatever the point: for actions that
// take the data of one, [Decide] has to be asked as well. It is the same
// answer as Decide gives for each object.
func Visible(p Principal, grants []Grant, a Action) Filter {
	f := Filter{User: p.User, Groups: p.Groups}
	e := entries[a]
	switch {
	case e == nil, !p.Method.Known(), (p.Method == ByToken) != (p.Token != nil):
		return f
	case p.Method == BySocket:
		f.All = true
		return f
	case p.User == "", p.Token != nil && a == TokenManage:
		return f
	}
	for _, g := range grants {
		if g.Check() != nil || !g.Subject.is(p) {
			continue
		}
		for _, c := range g.clauses(p, e) {
			f.All = f.All || c.Scope.Kind == Everything && c.Level == All && len(c.Token) == 0
			f.Any = append(f.Any, c)
		}
	}
	if f.All {
		f.Any = nil
	}
	return f
}

// Shows reports whether o is one of those that f is about. It does not look at o's kind.
func (f Filter) Shows(o Object) bool {
	p := Principal{User: f.User, Groups: f.Groups}
	return f.All || slices.ContainsFunc(f.Any, func(c Clause) bool { return c.judge(p, o) == granted })
}

// judge says whether c holds o, and if not what is missing.
func (c Clause) judge(p Principal, o Object) verdict {
	switch {
	case len(c.Token) > 0 && !(Scope{Kind: Applications, Names: c.Token}).Covers(o):
		return noToken
	case !c.Scope.Covers(o):
		return noScope
	case !o.reached(p, c.Level):
		return noReach
	}
	return granted
}

// clauses are the ways in which g lets p do an action: none, if p's token does not.
func (g Grant) clauses(p Principal, e *entry) []Clause {
	level := g.Role.Level(e.action)
	var bound []Pattern
	if p.Token != nil {
		level = min(level, p.Token.level(e.action))
		bound = p.Token.Applications
	}
	if level == None {
		return nil
	}
	everything := Scope{Kind: Everything}
	switch e.action {
	case TokenView, TokenManage:
		// One's own are one's own, whatever the grant is about.
		return []Clause{{everything, Own, bound}, {g.Scope, level, bound}}
	case HostView, HostUse:
		// Hosts hold no data of applications, so that a token's do not matter.
		list := []Clause{{g.Scope, level, nil}}
		if g.Role.Limited() && len(g.Limits.Hosts) > 0 {
			list = append(list, Clause{Scope{Kind: Hosts, Names: g.Limits.Hosts}, level, nil})
		}
		return list
	}
	if e.has(common) {
		return []Clause{{everything, level, nil}}
	}
	return []Clause{{g.Scope, level, bound}}
}
