package control

import (
	"context"
	"errors"
	"fmt"

	"tidemark"
	"tidemark/access"
	"tidemark/block"
	"tidemark/catalog"
	"tidemark/export/nbd"
)

// kept is an export as the catalog has it.
type keptExport struct {
	tidemark.Export
	Listen   string            `json:"listen"`
	TLS      string            `json:"tls,omitempty"`
	Insecure bool              `json:"insecure,omitempty"`
	Position tidemark.Position `json:"position"`
	// Timeline is the ID of what is exported: another of that name is not. Empty: an older release made the export.
	Timeline string `json:"timeline,omitempty"`
}

// of reports whether it is an export of an application, and not of another that had its name before.
func (k keptExport) of(a app) bool {
	r, err := tidemark.ParseRef(k.Ref)
	return err == nil && r.App == a.name && (k.Timeline == "" || k.Timeline == a.t.ID())
}

// Export serves a point over NBD until Unexport. The latest point of a volume
// or clone can be served writable: then writes go to it.
func (c *Control) Export(ctx context.Context, spec tidemark.ExportSpec) (tidemark.Export, error) {
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return tidemark.Export{}, err
	}
	a, pos, err := c.at(ctx, spec.Ref)
	if err != nil {
		return tidemark.Export{}, err
	}
	d, err := a.t.Disk(spec.Disk)
	if err != nil {
		return tidemark.Export{}, err
	}
	if spec.Writable && !ref.Point.Latest() {
		return tidemark.Export{}, tidemark.Errorf(tidemark.Invalid, "%s is a point of the past and cannot be written", spec.Ref).
			WithHint("clone or mount it, and write to that")
	}
	if spec.Writable && a.Type != tidemark.TypeVolume && a.Role == "" {
		return tidemark.Export{}, tidemark.Errorf(tidemark.Conflict, "%s is written by its captures", a.name).WithHint("clone it, and export the clone")
	}
	if spec.Writable && a.followed() {
		return tidemark.Export{}, tidemark.Errorf(tidemark.Conflict, "%s is written by its tap alone", a.name).WithHint("clone it, and export the clone")
	}
	k := keptExport{Listen: spec.Listen, TLS: spec.TLS, Insecure: spec.Insecure, Position: pos, Timeline: a.t.ID(),
		Export: tidemark.Export{Ref: spec.Ref, Disk: d.Name(), Writable: spec.Writable, Size: d.Size()}}
	if k.Listen == "" {
		k.Listen = c.ownSocket().addr
	}
	return c.beginExport(ctx, a, k)
}

// beginExport gives an export a name, serves it and keeps it.
func (c *Control) beginExport(ctx context.Context, a app, k keptExport) (_ tidemark.Export, err error) {
	c.exporting.Lock()
	defer c.exporting.Unlock()
	if now, err := c.app(a.name); err != nil || !k.of(now) {
		return tidemark.Export{}, tidemark.Errorf(tidemark.Conflict, "%s was removed meanwhile", a.name).WithHint("`tidemark status` lists what there is")
	}
	if k.Name, err = c.exportFor(ctx, a.name, k.Disk); err != nil {
		return tidemark.Export{}, err
	}
	owner := askOf(ctx).By
	if owner == "" && a.Role == roleClone { // it is a part of the clone
		o, err := c.objectOf(ctx, a)
		if owner = o.Owner; err != nil {
			return tidemark.Export{}, err
		}
	}
	if err := c.own(ctx, access.KindExport, k.Name, a, owner); err != nil {
		return tidemark.Export{}, err
	}
	if err := c.serveExport(a, &k); err != nil {
		return tidemark.Export{}, errors.Join(err, c.disown(context.WithoutCancel(ctx), k.Name, access.KindExport))
	}
	if err := c.catalog.Put(ctx, catalog.Exports, k.Name, k); err != nil {
		return tidemark.Export{}, errors.Join(err, c.endExport(k), c.disown(context.WithoutCancel(ctx), k.Name, access.KindExport))
	}
	return k.Export, nil
}

// exportFor makes a name for an export; the first of an application has its name.
func (c *Control) exportFor(ctx context.Context, app, disk string) (string, error) {
	base := app
	if disk != volumeDisk {
		base = app + "-" + disk
	}
	kept, err := catalog.List[keptExport](ctx, c.catalog, catalog.Exports)
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, e := range kept {
		taken[e.Name] = true
	}
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name = fmt.Sprintf("%s-%d", base, i)
		}
		if !taken[name] {
			return name, nil
		}
	}
}

// serveExport begins to serve an export.
func (c *Control) serveExport(a app, k *keptExport) error {
	e := &nbd.Export{Name: k.Name, Description: k.Ref, ReadOnly: !k.Writable}
	if k.Writable {
		if err := halfRewound(a); err != nil {
			return err
		}
		d, err := a.t.Disk(k.Disk)
		if err != nil {
			return err
		}
		e.Device = d
	} else {
		s, err := a.t.At(k.Disk, k.Position)
		if err != nil {
			return err
		}
		e.Device, e.Release = block.Reader(s), func() { s.Close() }
	}
	s, err := c.openSocket(k)
	if err == nil {
		if err = s.table.Add(e); err != nil {
			err = errors.Join(err, c.closeSocket(s))
		}
	}
	if err != nil {
		if e.Release != nil {
			e.Release()
		}
		return err
	}
	k.URI = nbd.URI(s.addr, k.Name, s.tls != "")
	return nil
}

// Exports lists what is exported.
func (c *Control) Exports(ctx context.Context) ([]tidemark.Export, error) {
	kept, err := catalog.List[keptExport](ctx, c.catalog, catalog.Exports)
	list := make([]tidemark.Export, 0, len(kept))
	for _, k := range kept {
		list = append(list, k.Export)
	}
	return list, err
}

// Unexport ends an export; clients of it are disconnected.
func (c *Control) Unexport(ctx context.Context, name string) error {
	c.exporting.Lock()
	defer c.exporting.Unlock()
	var k keptExport
	if err := c.catalog.Get(ctx, catalog.Exports, name, &k); err != nil {
		return err
	}
	return c.unexport(ctx, k)
}

// unexport does so, while exporting is held.
func (c *Control) unexport(ctx context.Context, k keptExport) error {
	if err := errors.Join(c.catalog.Delete(ctx, catalog.Exports, k.Name), c.disown(ctx, k.Name, access.KindExport)); err != nil {
		return err
	}
	return c.endExport(k)
}

// endExports ends all exports of an application that is removed: what gets its name later is not what they were given out for.
func (c *Control) endExports(ctx context.Context, a app) error {
	c.exporting.Lock()
	defer c.exporting.Unlock()
	kept, err := catalog.List[keptExport](ctx, c.catalog, catalog.Exports)
	if err != nil {
		return err
	}
	for _, k := range kept {
		if !k.of(a) {
			continue
		}
		if err := c.unexport(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (c *Control) endExport(k keptExport) error {
	s := c.socketOf(k)
	err := s.table.Remove(k.Name)
	if errors.Is(err, nbd.ErrUnknownExport) {
		err = nil
	}
	s.server.Disconnect(k.Name)
	return errors.Join(err, c.closeSocket(s))
}
