package control

import (
	"context"
	"errors"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// What the catalog has of a mount or clone can outlive it: the server is killed, or the catalog goes away, between the end of the one and that of the
// other. The name is free then, and who removes what an entry is about must not take what has its name for that.

// keptMount is a mount as the catalog has it.
type keptMount struct {
	tidemark.Mount
	// Timeline is the ID of the mount's. Empty: that was not there yet when it was entered, or an older release has entered it.
	Timeline string `json:"timeline,omitempty"`
}

// of reports whether it is the entry of an application, and not of a mount that had its name before. Without an ID it is that of the latest mount of
// its name, which was entered before it was made.
func (m keptMount) of(a app) bool {
	return a.Role == roleMount && a.name == m.Name && (m.Timeline == "" || m.Timeline == a.t.ID())
}

// isAnother reports whether something has the name of an entry that is not what the entry is of.
func (c *Control) isAnother(name string, of func(app) bool) bool {
	a, err := c.app(name)
	return err == nil && !of(a)
}

// isGone reports whether what an entry is of is not there any more. What cannot be opened is there. id is that of its timeline; empty: it is not known.
func (c *Control) isGone(name, id string, of func(app) bool) bool {
	damaged := c.set.Damaged()
	if damaged[id] != nil || id == "" && len(damaged) > 0 {
		return false
	}
	a, err := c.app(name)
	return tidemark.KindOf(err) == tidemark.NotFound || err == nil && !of(a)
}

// dropEntries forgets the mounts and clones that are gone, but for clones that are made again.
func (c *Control) dropEntries(ctx context.Context) error {
	mounts, merr := catalog.List[keptMount](ctx, c.catalog, catalog.Mounts)
	clones, err := catalog.List[keptClone](ctx, c.catalog, catalog.Clones)
	errs := []error{merr, err}
	for _, m := range mounts {
		errs = append(errs, c.unlessWorkedOn(m.Name, func() error {
			var now keptMount
			if err := c.catalog.Get(ctx, catalog.Mounts, m.Name, &now); err != nil || !c.isGone(m.Name, now.Timeline, now.of) {
				return notThere(err)
			}
			return c.dropMount(ctx, m.Name)
		}))
	}
	for _, k := range clones {
		errs = append(errs, c.unlessWorkedOn(k.Name, func() error {
			var now keptClone
			if err := c.catalog.Get(ctx, catalog.Clones, k.Name, &now); err != nil || now.Again != nil || !c.isGone(k.Name, "", now.of) {
				return notThere(err)
			}
			return c.dropClone(ctx, k.Name)
		}))
	}
	return errors.Join(errs...)
}

// unlessWorkedOn calls fn while nobody works on a clone or mount, or makes one, if that is so now.
func (c *Control) unlessWorkedOn(name string, fn func() error) error {
	leave, err := c.work(name)
	if err != nil {
		return nil
	}
	defer leave()
	return fn()
}

// dropMount forgets a mount that is gone, and whose it was.
func (c *Control) dropMount(ctx context.Context, name string) error {
	return errors.Join(c.catalog.Delete(ctx, catalog.Mounts, name), c.disown(ctx, name, access.KindMount))
}

// dropClone forgets a clone that is gone, and whose it was.
func (c *Control) dropClone(ctx context.Context, name string) error {
	return errors.Join(c.catalog.Delete(ctx, catalog.Clones, name), c.disown(ctx, name, access.KindClone))
}
