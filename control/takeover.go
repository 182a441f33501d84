package control

import (
	"context"

	"tidemark"
	"tidemark/agent"
)

// Where two machines share the data directory, an attacher of the one may live through all that the other does with a disk. It holds what had
// been written, answered and not flushed when its server died, and writes that again as soon as it finds the name of its disk. So a server
// serves a disk by a name that is known to such an attacher only where it is sure that the attacher is one of its own host, and the last one.

// takeOver makes sure, before its disks are served, that nobody knows those of an application by their present names whom this host does not
// know: else they get new ones, durably. It keeps them where attachers of this boot have them, which then come back. What could
// not be renamed is not served.
func (c *Control) takeOver(ctx context.Context, a app) (app, error) {
	if a.elsewhere() || a.followed() {
		return a, nil // hosts are known one by one; and what is followed is written by its tap or machine
	}
	known, err := c.knownHere(a)
	if err == nil && !known {
		if err = c.annotate(ctx, a, func(n *about) { n.Turn++ }); err == nil {
			c.log.Info("the disks are served by new names", "application", a.name)
			a, err = appOf(a.t)
		}
	}
	if err != nil {
		if c.mistaken == nil {
			c.mistaken = map[string]error{}
		}
		c.mistaken[a.t.ID()] = tidemark.Errorf(tidemark.Unavailable, "the disks of %s are not served, for an attacher of another machine may take them for its own: %w", a.name, err).
			WithHint("restart the server when that is mended")
		c.event("error", a.name, "%v", c.mistaken[a.t.ID()])
	}
	return a, err
}

// knownHere reports whether attachers of this boot of our host, and no others, know disks of an application by their present names; or nobody does,
// since these are never attached.
func (c *Control) knownHere(a app) (bool, error) {
	known := a.Type == tidemark.TypeVolume && (a.Role == "" || a.Role == roleClone) // is exported, at most
	for _, d := range a.t.Disks() {
		here, elsewhere, err := agent.Here{Places: agent.PlacesIn(c.o.Dir)}.KnownDisk(c.shownDisk(a, d.Name()))
		if err != nil || elsewhere {
			return false, err
		}
		known = known || here
	}
	return known, nil
}
