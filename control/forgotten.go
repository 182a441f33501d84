package control

import (
	"maps"
	"slices"
	"time"

	"tidemark"
	"tidemark/policy"
)

// come are the points whose time has come: one that is of a time to come has no other go.
func come(points []policy.Point, now time.Time) []policy.Point {
	return slices.DeleteFunc(slices.Clone(points), func(x policy.Point) bool { return x.Time.After(now) })
}

// toForget are those of the points of an application, whose time has come, that a template lets go now.
func (c *Control) toForget(a app, t policy.Template, points []policy.Point, now time.Time) []policy.Verdict {
	if t.Keep == nil || c.settled(a) != nil {
		return nil
	}
	return slices.DeleteFunc(policy.Keep(t, points, now), func(v policy.Verdict) bool { return !v.Expire || a.publicationAt(v.Position) != nil })
}

// forgotten says which applications lose points at once when documents are applied, for they have another template then, or it says something else.
func (c *Control) forgotten(have, want policy.Set, changes []policy.Change) (list []policy.Forgotten) {
	templates, anew := templatesOf(have, want), map[string]bool{}
	for _, x := range changes {
		if x.Kind == policy.KindTemplate && x.Action != policy.ActionLeave {
			anew[x.Name] = true
		}
	}
	now := c.aging()
	for _, a := range c.apps() {
		p, _ := a.promised()
		name := willHave(a, want)
		t, ok := templates[name]
		if !ok || name == p.template() && !anew[name] {
			continue
		}
		if n := len(c.toForget(a, t, come(keptPoints(a, a.t.Points(), c.promises.verified(a.t.ID())), now), now)); n > 0 {
			list = append(list, policy.Forgotten{Application: a.name, Template: name, Points: n})
		}
	}
	return list
}

// verified is when points of an application were proved good, by position. It is not altered.
func (p *promises) verified(id string) map[tidemark.Position]time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.records[id]; k != nil {
		return k.Verified
	}
	return nil
}

// templatesOf are the templates that there are when what is wanted is there, by name.
func templatesOf(have, want policy.Set) map[string]policy.Template {
	templates := map[string]policy.Template{}
	for _, t := range slices.Concat(have.Templates, want.Templates) { // what is wanted comes last
		templates[t.Name] = t
	}
	return templates
}

// willHave is the template that an application has when documents have been applied: as promised has it now.
func willHave(a app, want policy.Set) string {
	own := a.Promise.template()
	if i := slices.IndexFunc(want.Applications, func(d policy.Application) bool { return d.Name == a.name }); i >= 0 {
		own = want.Applications[i].SLA
	}
	if own != "" {
		return own
	}
	byGroup := map[string]string{}
	for _, g := range a.Groups {
		byGroup[g] = a.Notes[g].Promise.template()
	}
	for _, g := range want.Groups {
		delete(byGroup, g.Name)
		if slices.Contains(g.Members, a.name) {
			byGroup[g.Name] = g.SLA
		}
	}
	for _, g := range slices.Sorted(maps.Keys(byGroup)) {
		if byGroup[g] != "" {
			return byGroup[g]
		}
	}
	return ""
}
