package control

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// profiles remembers how many jobs of each profile may run: it is asked for with each look at the queue, and nobody else changes what is of this data
// directory.
type profiles struct {
	mu   sync.Mutex     // held while a profile changes, too
	jobs map[string]int // by name, of those that bound it; nil: not known. guarded by mu, and not altered
}

// change changes profiles.
func (p *profiles) change(how func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobs = nil
	return how()
}

// jobsOf is how many jobs of each profile may run at a time, of those that bound it.
func (c *Control) jobsOf(ctx context.Context) (map[string]int, error) {
	c.profiles.mu.Lock()
	defer c.profiles.mu.Unlock()
	if c.profiles.jobs != nil {
		return c.profiles.jobs, nil
	}
	list, err := c.Profiles(ctx)
	if err != nil {
		return nil, err
	}
	most := map[string]int{}
	for _, p := range list {
		if p.Jobs > 0 {
			most[p.Name] = p.Jobs
		}
	}
	c.profiles.jobs = most
	return most, nil
}

// profileOf is the profile of who has a name; empty: he has none, or there is nobody.
func (c *Control) profileOf(name string) string {
	a, err := c.app(name)
	if err != nil {
		return ""
	}
	return a.Profile
}

// profile returns a profile; with an empty name, the one that says nothing.
func (c *Control) profile(ctx context.Context, name string) (p policy.Profile, err error) {
	if name != "" {
		err = c.catalog.Get(ctx, catalog.Profiles, name, &p)
	}
	return p, err
}

// Profiles lists the profiles, by name.
func (c *Control) Profiles(ctx context.Context) ([]policy.Profile, error) {
	return catalog.List[policy.Profile](ctx, c.catalog, catalog.Profiles)
}

// putProfile stores a profile. What it says of jobs counts from now on, also for those that wait already.
func (c *Control) putProfile(ctx context.Context, p policy.Profile) error {
	defer c.jobs.stir()
	return c.profiles.change(func() error { return c.catalog.Put(ctx, catalog.Profiles, p.Name, p) })
}

// RemoveProfile forgets a profile that no application has.
func (c *Control) RemoveProfile(ctx context.Context, name string) error {
	p, err := c.profile(ctx, name)
	if err != nil {
		return err
	}
	for _, a := range c.apps() {
		if a.Profile == p.Name {
			return tidemark.Errorf(tidemark.Conflict, "%s has the profile %s", a.name, name).WithHint("give it another one: `tidemark profile set " + a.name + " PROFILE`, or none")
		}
	}
	return c.profiles.change(func() error { return c.catalog.Delete(ctx, catalog.Profiles, name) })
}

// SetProfile gives an application a profile, or, with an empty name, none.
func (c *Control) SetProfile(ctx context.Context, application, profile string) error {
	a, err := c.app(application)
	if err != nil {
		return err
	}
	if a.Role == roleMount {
		return tidemark.Errorf(tidemark.Invalid, "%s is a mount, which has no copies", a.name)
	}
	if profile != "" {
		if _, err := c.profile(ctx, profile); err != nil {
			return err
		}
	}
	a.Profile = profile
	for _, name := range a.templates() {
		t, err := c.template(ctx, name)
		if err := cmp.Or(notThere(err), c.canPlace(ctx, a, t)); err != nil {
			return err
		}
	}
	return c.describeAnew(ctx, a, func(n *about) { n.Profile = profile })
}

// canPlace refuses a template that an application cannot have with its profile: neither says where copies go.
func (c *Control) canPlace(ctx context.Context, a app, t policy.Template) error {
	if !t.NeedsPlaces() {
		return nil
	}
	p, err := c.profile(ctx, a.Profile)
	if err != nil {
		return err
	}
	return t.CheckPlaces(a.name, p)
}

// canPlaceAll is canPlace for all that have a template and a profile when documents have been applied.
func (c *Control) canPlaceAll(have, want policy.Set) error {
	templates, profiles := templatesOf(have, want), map[string]policy.Profile{}
	for _, p := range slices.Concat(have.Profiles, want.Profiles) { // what is wanted comes last
		profiles[p.Name] = p
	}
	for _, a := range c.apps() {
		t := templates[willHave(a, want)]
		if i := slices.IndexFunc(want.Applications, func(d policy.Application) bool { return d.Name == a.name }); i >= 0 {
			a.Profile = want.Applications[i].Profile
		}
		if err := t.CheckPlaces(a.name, profiles[a.Profile]); err != nil {
			return err
		}
	}
	for _, d := range want.Applications { // those that are not there yet, too
		t := templates[wantedTemplate(want, d)]
		if err := t.CheckPlaces(d.Name, profiles[d.Profile]); err != nil {
			return err
		}
	}
	return nil
}
