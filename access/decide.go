package access

import (
	"cmp"
	"fmt"

	"tidemark"
)

// Decision is the answer to who may do what.
type Decision struct {
	Allowed bool
	// Reason says in a line why, for the audit and for who asked. It tells
	// nothing of the object but what the question had.
	Reason string
	// Grant is the one that allowed it; nil for the socket, and if it was denied.
	Grant *Grant

	allowing []Grant // all that did, for their limits
	ask      string  // who wanted to do what
	cure     string  // what he can do about it; empty: nothing but to ask for a grant
}

// Err is nil if it was allowed, and else an error of kind [tidemark.Denied].
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return tidemark.Errorf(tidemark.Denied, "%s: %s", d.ask, d.Reason).WithHint(cmp.Or(d.cure, askForGrant))
}

// Decide says whether p may do a to o.
//
// It is allowed if a grant for p, or for a group that p is in, has a role that
// may do it to an object that belongs to p as this one does, if the scope of
// that grant covers o, and if its limits allow the point. A token has to allow
// it, too. Everything else is denied; so is what is not known or not well
// formed. Whether there is room for another copy is [Decision.Within].
func Decide(p Principal, grants []Grant, a Action, o Object) Decision {
	d := Decision{ask: fmt.Sprintf("%s may not do %s", p, shorten(string(a)))}
	if o.Name != "" {
		d.ask += " on " + shorten(o.Name)
	}
	e := entries[a]
	switch {
	case e == nil:
		return d.deny("there is no such action")
	case !a.on(o.Kind):
		return d.deny(fmt.Sprintf("it is nothing that is done to a %s", shorten(string(o.Kind))))
	case !p.Method.Known() || p.Method != BySocket && p.User == "" || (p.Method == ByToken) != (p.Token != nil):
		return d.deny("it is not known who asks")
	case p.Method == BySocket:
		return d.allow("the server's own socket", nil)
	case p.Token != nil && a == TokenManage:
		d.cure = "log in with a password, or at the provider"
		return d.deny("a token makes and revokes no tokens")
	}
	why := noGrant
	for i := range grants {
		r := judge(p, grants[i], e, o)
		why = max(why, r)
		if r == granted {
			d.allowing = append(d.allowing, grants[i])
		}
	}
	if why != granted {
		d.cure = why.cure(e, o)
		return d.deny(why.String())
	}
	g := widest(d.allowing)
	return d.allow(fmt.Sprintf("grant %d: %s of %s", g.ID, g.Role, g.Scope.Kind), g)
}

// widest prefers a grant without limits.
func widest(grants []Grant) *Grant {
	for i := range grants {
		if !grants[i].Role.Limited() {
			return &grants[i]
		}
	}
	return &grants[0]
}

// Within says whether what was allowed may also be had in that amount. One
// grant has to allow all of it: what is left of several does not add up.
func (d Decision) Within(u Usage, c Copy) Decision {
	if !d.Allowed || d.Grant == nil {
		return d
	}
	var short *shortfall
	for i := range d.allowing {
		g := &d.allowing[i]
		if !g.Role.Limited() {
			d.Grant = g
			return d
		}
		s := g.Limits.short(u, c)
		if s == nil {
			d.Grant = g
			return d
		}
		if short == nil {
			short = s
			short.why = fmt.Sprintf("the limits of grant %d do not allow it: %s", g.ID, s.why)
		}
	}
	d.cure = short.cure
	return d.deny(short.why)
}

func (d Decision) allow(reason string, g *Grant) Decision {
	d.Allowed, d.Reason, d.Grant = true, reason, g
	return d
}

func (d Decision) deny(reason string) Decision {
	d.Allowed, d.Reason, d.Grant, d.allowing = false, reason, nil, nil
	return d
}

// verdict is what a single grant says, ordered by how near it came.
type verdict int

const (
	noGrant verdict = iota
	noAction
	noToken
	noScope
	noReach
	noPoint
	granted
)

func (v verdict) String() string {
	return [...]string{
		"no grant is for this user or his groups",
		"no role that was granted may do that",
		"the token does not allow it",
		"no grant with such a role covers it",
		"it belongs to somebody else, and was not shared",
		"the limits of the grant do not allow this point",
		"granted",
	}[v]
}

// askForGrant is the hint where nothing else helps.
const askForGrant = "ask an administrator for a grant"

// cure is what helps somebody who was denied e on o so; empty: nothing but a grant.
func (v verdict) cure(e *entry, o Object) string {
	switch {
	case v == noToken:
		return "use another token, or make one that may do it"
	case v == noReach && o.Kind == KindClone && o.Owner != "" && Developer.Level(e.action) == Open:
		return "ask him to share it"
	case v == noPoint:
		of := o.Name
		if e.action == CloneRefresh || e.action == MountRefresh { // the points are those of what it was made of
			of = append([]string{o.Source}, o.Via...)[len(o.Via)]
		}
		return fmt.Sprintf("name a published point, as NAME@POINT: `tidemark points %s` shows which are", shorten(of))
	}
	return ""
}

// judge says what one grant has to say.
func judge(p Principal, g Grant, e *entry, o Object) verdict {
	if g.Check() != nil || !g.Subject.is(p) {
		return noGrant
	}
	if g.Role.Level(e.action) == None {
		return noAction
	}
	parts := g.clauses(p, e)
	if len(parts) == 0 {
		return noToken
	}
	v := noToken
	for _, c := range parts {
		v = max(v, c.judge(p, o))
	}
	if v == granted && !g.allowsPoint(p, e, o) {
		return noPoint
	}
	return v
}

// allowsPoint reports whether the limits of g let a point be taken. What
// belongs to p he has already; only a refresh brings new data into it.
func (g Grant) allowsPoint(p Principal, e *entry, o Object) bool {
	if !g.Role.Limited() || !e.has(takes) {
		return true
	}
	fresh := e.action == CloneRefresh || e.action == MountRefresh
	if o.Owner != "" && o.Owner == p.User && !fresh {
		return true
	}
	return g.Limits.Points.allows(o)
}
