package control

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/app/script"
)

// A LiveClone is a clone that is kept, prepared, and published: only the points of it that are published are for others. What is noted about it
// is noted with its timeline, so that it is in the pool with the data, and does not depend on the catalog.

// live is what is noted about a LiveClone.
type live struct {
	tidemark.Preparation
	// Sources are the references to the points that its data may be of. What it is about to be refreshed from is added before, and what it was
	// of is taken away only when the preparation cannot be undone any more: so one that is cut leaves one too many, never one too few.
	Sources   []string    `json:"sources"`
	Published []published `json:"published,omitempty"`
}

// published is a point that is published. It is so as long as the point has the very images that were searched.
type published struct {
	tidemark.Publication
	Images []tidemark.Image `json:"images"`
}

// labelSources is the label of a point that a preparation ended in: what its data are of, with spaces between.
const labelSources = "sources"

// secretsDir is the directory of the data directory with sensitive values, or queries for them.
const secretsDir = "secrets"

// sqlSuffix is how names of files of SQL end.
const sqlSuffix = ".sql"

// publication returns what was found out about a point when it was published; nil: it is not.
func (a app) publication(p tidemark.RecoveryPoint) *tidemark.Publication {
	if a.Live == nil || len(p.Images) == 0 {
		return nil
	}
	for i, k := range a.Live.Published {
		if k.Position == p.Position && slices.Equal(k.Images, p.Images) {
			return &a.Live.Published[i].Publication
		}
	}
	return nil
}

// publicationAt is publication of the point at a position, whatever images it has.
func (a app) publicationAt(pos tidemark.Position) *tidemark.Publication {
	if a.Live == nil {
		return nil
	}
	i := slices.IndexFunc(a.Live.Published, func(k published) bool { return k.Position == pos })
	if i < 0 {
		return nil
	}
	return &a.Live.Published[i].Publication
}

// Published reports whether the point of an application at a position is published: it was searched for residue, and there was none.
func (c *Control) Published(application string, pos tidemark.Position) (bool, error) {
	a, err := c.app(application)
	if err != nil {
		return false, err
	}
	p, err := pointAt(a.t, pos)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return false, nil
	}
	return a.publication(p) != nil, err
}

// isPublished reports whether that very publication can be seen.
func (c *Control) isPublished(p tidemark.Published) bool {
	a, err := c.app(p.Name)
	if err != nil {
		return false
	}
	k := a.publicationAt(p.Position)
	return k != nil && k.At.Equal(p.At)
}

// expireUnpublished forgets a point that is not published. Nobody publishes it meanwhile.
func (c *Control) expireUnpublished(ctx context.Context, a app, p tidemark.RecoveryPoint) error {
	c.noting.Lock()
	defer c.noting.Unlock()
	now, err := appOf(a.t)
	if err != nil {
		return err
	}
	if now.publicationAt(p.Position) != nil {
		return tidemark.Errorf(tidemark.Conflict, "%s@%s is published, and others may clone it", a.name, p.Bookmark).
			WithHint("end that first: `tidemark liveclone unpublish " + a.name + "@" + p.Bookmark + "`")
	}
	return a.t.Expire(ctx, p.Position)
}

// unpublished refuses a LiveClone of which something is published.
func (c *Control) unpublished(name string) error {
	a, err := c.app(name)
	if err != nil || a.Live == nil || len(a.Live.Published) == 0 {
		return notThere(err)
	}
	p := a.Live.Published[0]
	return tidemark.Errorf(tidemark.Conflict, "%d points of %s are published, and others may clone them", len(a.Live.Published), name).
		WithHint("end that first: `tidemark liveclone unpublish " + name + "@" + p.Bookmark + "`")
}

// liveClone finds a LiveClone.
func (c *Control) liveClone(name string) (app, error) {
	a, err := c.app(name)
	if err == nil && a.Live == nil {
		err = tidemark.Errorf(tidemark.NotFound, "%s is no LiveClone", name).WithHint("`tidemark liveclone make APP NAME` makes one; `tidemark liveclones` lists them")
	}
	return a, err
}

// describeLive adds to a clone what of it is published.
func (k *keptClone) describeLive(a app) {
	if a.Live == nil {
		return
	}
	k.Live = true
	for _, p := range a.Live.Published {
		k.Bookmarks = append(k.Bookmarks, p.Bookmark)
	}
}

// LiveClones lists the LiveClones.
func (c *Control) LiveClones(ctx context.Context) ([]tidemark.LiveClone, error) {
	all, err := c.Clones(ctx)
	list := []tidemark.LiveClone{}
	for _, k := range all {
		a, err := c.app(k.Name)
		if err != nil || a.Live == nil {
			continue
		}
		l := tidemark.LiveClone{Clone: k, Preparation: a.Live.Preparation, Sources: a.Live.Sources, Published: []tidemark.Publication{}}
		for _, p := range a.Live.Published {
			l.Published = append(l.Published, p.Publication)
		}
		if p, err := preparedPoint(a, ""); err == nil {
			p.Published = a.publication(p)
			l.Prepared = &p
		}
		list = append(list, l)
	}
	return list, err
}

// LiveClone describes one LiveClone.
func (c *Control) LiveClone(ctx context.Context, name string) (tidemark.LiveClone, error) {
	list, err := c.LiveClones(ctx)
	return oneOf(list, err, name, func(l tidemark.LiveClone) string { return l.Name }, errNone("LiveClone", name))
}

// preparedPoint finds a point that a preparation ended in: the newest, or that of a name.
func preparedPoint(a app, bookmark string) (p tidemark.RecoveryPoint, err error) {
	for _, p := range slices.Backward(a.t.Points()) {
		_, prepared := p.Labels[labelSources]
		switch {
		case bookmark == "" && prepared, bookmark != "" && p.Bookmark == bookmark && prepared:
			return p, nil
		case bookmark != "" && p.Bookmark == bookmark:
			return p, tidemark.Errorf(tidemark.Invalid, "%s@%s is no point that a preparation ended in", a.name, bookmark).WithHint("prepare it first: `tidemark liveclone prepare " + a.name + "`")
		}
	}
	if bookmark != "" {
		return p, tidemark.Errorf(tidemark.NotFound, "%s has no bookmark %q", a.name, bookmark).WithHint("`tidemark points " + a.name + "` lists them")
	}
	return p, tidemark.Errorf(tidemark.NotFound, "%s was not prepared yet", a.name).WithHint("prepare it first: `tidemark liveclone prepare " + a.name + "`")
}

// ref is a reference to where a plan begins from that means the same later.
func (p plan) ref() string {
	if !p.stop.Time.IsZero() {
		return p.src.name + "@" + p.stop.Time.UTC().Format(time.RFC3339Nano)
	}
	return p.src.name + "@" + p.pos.String()
}

// checkPreparation refuses a preparation that could not be done.
func (c *Control) checkPreparation(ctx context.Context, src app, spec tidemark.CloneSpec) error {
	p := spec.Preparation
	of := src.typeOnceCopied()
	switch {
	case spec.To != "":
		return tidemark.Errorf(tidemark.Invalid, "a LiveClone is of a point, and not of a place behind it").WithHint("name a time as the point: " + src.name + "@TIME")
	case spec.Lifetime != 0:
		return tidemark.Errorf(tidemark.Invalid, "a LiveClone is kept, and has no end").WithHint("leave the lifetime out")
	case p.StepTimeout < 0 || p.StepTimeout > longestLife:
		return tidemark.Errorf(tidemark.Invalid, "a step cannot take %d seconds", p.StepTimeout).WithHint("give 1 or more, or leave it out")
	case of == tidemark.TypeVolume && len(p.Steps) > 0:
		return tidemark.Errorf(tidemark.Invalid, "%s is a volume, in which steps would find no database and no files", src.name).WithHint("leave the steps out, and change the clone through its export")
	case of != tidemark.TypePostgres && p.Database != "":
		return tidemark.Errorf(tidemark.Invalid, "%s has no database", src.name).WithHint("leave the database out")
	}
	x, err := c.hostAgent(ctx, spec.Host)
	if err != nil {
		return err
	}
	for _, file := range p.Steps {
		if strings.HasSuffix(file, sqlSuffix) && of != tidemark.TypePostgres {
			return tidemark.Errorf(tidemark.Invalid, "%s is SQL, and %s has no database", file, src.name).WithHint("name programs")
		}
		if err := x.CheckStep(ctx, file); err != nil {
			return err
		}
	}
	if p.Secrets == "" {
		return nil
	}
	if strings.HasSuffix(p.Secrets, sqlSuffix) && of != tidemark.TypePostgres {
		return tidemark.Errorf(tidemark.Invalid, "%s is SQL, and %s has no database", p.Secrets, src.name).WithHint("name a file with the values, one a line")
	}
	_, err = c.readSecrets(p.Secrets)
	return err
}

// readSecrets reads a file of sensitive values, or a query for them. Only root may be able to read values.
func (c *Control) readSecrets(name string) ([]byte, error) {
	dir := c.path(secretsDir)
	text, _, err := script.Read(dir, name)
	if err != nil || strings.HasSuffix(name, sqlSuffix) {
		return text, err
	}
	path := filepath.Join(dir, name)
	if st, err := os.Stat(path); err != nil || st.Mode()&0o077 != 0 {
		return nil, tidemark.Errorf(tidemark.Denied, "others than root may read the sensitive values in %s", path).WithHint("chmod 600 " + path)
	}
	return text, nil
}

// Unpublish ends that a point of a LiveClone may be cloned by others. Clones of it stay.
func (c *Control) Unpublish(ctx context.Context, name, bookmark string) error {
	gone, err := c.unpublish(ctx, name, func(all []published) []published {
		return slices.DeleteFunc(all, func(p published) bool { return p.Bookmark != bookmark })
	})
	if err == nil && len(gone) == 0 {
		err = tidemark.Errorf(tidemark.NotFound, "%s@%s is not published", name, bookmark).WithHint("`tidemark liveclones` says what is")
	}
	return err
}

// unpublish takes back those of the publications of a LiveClone that which returns of all of them, and returns their bookmarks.
func (c *Control) unpublish(ctx context.Context, name string, which func([]published) []published) (gone []string, err error) {
	a, err := c.liveClone(name)
	if err != nil {
		return nil, err
	}
	at := map[string]tidemark.Position{}
	err = c.annotate(ctx, a, func(n *about) {
		gone = []string{}
		for _, p := range which(slices.Clone(n.Live.Published)) {
			gone, at[p.Bookmark] = append(gone, p.Bookmark), p.Position
		}
		n.Live.Published = slices.DeleteFunc(n.Live.Published, func(p published) bool { return slices.Contains(gone, p.Bookmark) })
	})
	if err != nil {
		return nil, err
	}
	for _, bookmark := range gone {
		c.changed(tidemark.PointUnpublished, a, changedPoint(a, at[bookmark]))
		c.event("info", name, "%s@%s is no longer published", name, bookmark)
	}
	return gone, nil
}

// noteSources changes what the data of a LiveClone may be of.
func (c *Control) noteSources(ctx context.Context, a app, change func([]string) []string) error {
	return c.annotate(ctx, a, func(n *about) { n.Live.Sources = change(n.Live.Sources) })
}

// sourcesOf are the sources of a LiveClone as they are noted now.
func sourcesOf(a app) ([]string, error) {
	now, err := appOf(a.t)
	if err != nil || now.Live == nil {
		return nil, fmt.Errorf("read what %s is made of: %w", a.name, err)
	}
	return now.Live.Sources, nil
}
