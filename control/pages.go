package control

import (
	"context"
	"slices"

	"tidemark"
	"tidemark/catalog"
)

// Application describes one application, volume, clone or mount.
func (c *Control) Application(ctx context.Context, name string) (tidemark.Application, error) {
	a, err := c.app(name)
	if err != nil {
		return tidemark.Application{}, err
	}
	return c.describe(ctx, a), nil
}

// PointsFrom lists the first n points of an application from a position on. It takes no longer if there are many others.
func (c *Control) PointsFrom(ctx context.Context, name string, from tidemark.Position, n int) ([]tidemark.RecoveryPoint, error) {
	a, err := c.app(name)
	if err != nil {
		return nil, err
	}
	p := tidemark.Points{Application: name, Points: a.t.PointsFrom(from, n)}
	c.addProofs(ctx, a, &p)
	for i := range p.Points {
		p.Points[i].Published = a.publication(p.Points[i])
	}
	return p.Points, c.addHolds(ctx, name, p.Points)
}

// addHolds adds to points for how long the writes of their AppShots were held.
func (c *Control) addHolds(ctx context.Context, name string, points []tidemark.RecoveryPoint) error {
	keys := make([]string, len(points))
	for i, p := range points {
		keys[i] = shotNote{Application: name, Bookmark: p.Bookmark}.key()
	}
	notes, err := catalog.Named[shotNote](ctx, c.catalog, catalog.Shots, keys)
	if err != nil {
		return err
	}
	for i := range points {
		if n, ok := notes[keys[i]]; ok {
			n.describe(&points[i])
		}
	}
	return nil
}

// Point describes one point of an application.
func (c *Control) Point(ctx context.Context, name string, at tidemark.Position) (tidemark.RecoveryPoint, error) {
	points, err := c.PointsFrom(ctx, name, at, 1)
	if err == nil && (len(points) == 0 || points[0].Position != at) {
		err = tidemark.Errorf(tidemark.NotFound, "%s has no retained point at %v", name, at).WithHint("`tidemark points " + name + "` lists them")
	}
	if err != nil {
		return tidemark.RecoveryPoint{}, err
	}
	return points[0], nil
}

// Intervals says of which times of an application any point can be had.
func (c *Control) Intervals(ctx context.Context, name string) (tidemark.Intervals, error) {
	a, err := c.app(name)
	if err != nil {
		return tidemark.Intervals{}, err
	}
	p := tidemark.Points{Application: name}
	if !a.journaled() { // the log counts from its captures on
		p.Points = a.t.Points()
	}
	c.describeCoverage(ctx, a, &p)
	return tidemark.Intervals{Application: name, Covered: p.Covered, Gaps: p.Gaps}, nil
}

// Moments lists the recovery proofs of an application's points that are not kept, newest first.
func (c *Control) Moments(ctx context.Context, name string) ([]tidemark.Proof, error) {
	a, err := c.app(name)
	if err != nil {
		return nil, err
	}
	list := []tidemark.Proof{}
	kept, err := c.proofsOf(ctx, a)
	for _, k := range kept {
		if !k.Kept {
			list = append(list, k.Proof)
		}
	}
	return list, err
}

// Group describes one consistency group.
func (c *Control) Group(ctx context.Context, name string) (tidemark.Group, error) {
	list, err := c.Groups(ctx)
	return oneOf(list, err, name, func(g tidemark.Group) string { return g.Name }, errNoGroup(name))
}

// Mounted describes one mount.
func (c *Control) Mounted(ctx context.Context, name string) (tidemark.Mount, error) {
	list, err := c.Mounts(ctx)
	return oneOf(list, err, name, func(m tidemark.Mount) string { return m.Name }, errNone("mount", name))
}

// Cloned describes one clone.
func (c *Control) Cloned(ctx context.Context, name string) (tidemark.Clone, error) {
	list, err := c.Clones(ctx)
	return oneOf(list, err, name, func(k tidemark.Clone) string { return k.Name }, errNone("clone", name))
}

// Exported describes one export.
func (c *Control) Exported(ctx context.Context, name string) (tidemark.Export, error) {
	list, err := c.Exports(ctx)
	return oneOf(list, err, name, func(e tidemark.Export) string { return e.Name }, errNone("export", name))
}

// Host describes one host.
func (c *Control) Host(ctx context.Context, name string) (tidemark.Host, error) {
	list, err := c.Hosts(ctx)
	return oneOf(list, err, name, func(h tidemark.Host) string { return h.Name }, errNone("host", name))
}

func errNone(kind, name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no %s %q", kind, name).WithHint("a list of the " + kind + "s has their names")
}

// oneOf finds the entry of a list that has a name.
func oneOf[T any](list []T, err error, name string, nameOf func(T) string, missing error) (v T, _ error) {
	if err != nil {
		return v, err
	}
	i := slices.IndexFunc(list, func(x T) bool { return nameOf(x) == name })
	if i < 0 {
		return v, missing
	}
	return list[i], nil
}

// EventsBefore lists the newest n events whose numbers are below before, newest first; 0 stands for no bound.
func (c *Control) EventsBefore(ctx context.Context, before int64, n int) ([]tidemark.Event, error) {
	return c.catalog.EventsBefore(ctx, before, n)
}

// Pool describes the pool.
func (c *Control) Pool(ctx context.Context) (tidemark.PoolStatus, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return tidemark.PoolStatus{}, err
	}
	return *s.Pool, nil
}
