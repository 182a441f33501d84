package control

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/residue"
)

// A publish searches one point, byte by byte, for sensitive values, and only if there is none does the point become published, in one step: when
// what is noted with the timeline is replaced. The values themselves are read for this alone, and only fingerprints of them are
// made, with a key that nothing but this job ever has: no file has either.

// publishing is a publish that goes on.
type publishing struct {
	a       app
	point   tidemark.RecoveryPoint
	sources []string // of the data of the point
	key     residue.Key
	prints  []*residue.Fingerprints
	begun   time.Time
	undo    undoing
	res     tidemark.Published
	// unresolved counts values that the search could not put together.
	unresolved int64
}

// searchedWays are how values are searched.
const searchedWays = residue.Folded | residue.Digits | residue.Binary

// mostPlaces is how many places with residue are told of each disk.
const mostPlaces = 100

// Publish checks a point of a LiveClone for residue, and publishes it if there is none.
func (c *Control) Publish(ctx context.Context, spec tidemark.PublishSpec) (tidemark.Job, error) {
	return c.ask(ctx, "publish", spec)
}

func (c *Control) publishWork(_ context.Context, spec tidemark.PublishSpec) (*work, error) {
	a, err := c.liveClone(spec.Name)
	if err != nil {
		return nil, err
	}
	p, err := preparedPoint(a, spec.Bookmark)
	if err != nil {
		return nil, err
	}
	if a.publication(p) != nil {
		return nil, tidemark.Errorf(tidemark.Conflict, "%s@%s is published already", a.name, p.Bookmark).WithHint("`tidemark liveclones` says what is")
	}
	if a.Live.Secrets == "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "it is not known which values must not be in %s", a.name).WithHint("make it with --secrets FILE: without that, nothing can be checked")
	}
	if _, err := c.readSecrets(a.Live.Secrets); err != nil {
		return nil, err
	}
	x := &publishing{a: a, point: p, sources: strings.Fields(p.Labels[labelSources]), key: residue.NewKey(), begun: time.Now()}
	spec.Bookmark = p.Bookmark // the newest may be another when it begins
	w := &work{app: a.name, args: spec}
	w.holding = func(context.Context) (func(), error) { return c.work(a.name) }
	w.run = func(ctx context.Context, t *task) (any, error) {
		x.res = tidemark.Published{Name: a.name, Publication: tidemark.Publication{Position: p.Position, Bookmark: p.Bookmark, By: t.job.AskedBy}}
		err := c.publish(ctx, t, x)
		x.res.Seconds = time.Since(x.begun).Seconds()
		return x.res, err
	}
	return w, nil
}

// publish does all of it.
func (c *Control) publish(ctx context.Context, t *task, x *publishing) error {
	if err := c.gatherPrints(ctx, t, x); err != nil {
		return err
	}
	if err := t.doing(ctx, "search the disks", x.undo); err != nil {
		return err
	}
	for _, d := range x.a.t.Disks() {
		if err := c.searchDisk(ctx, t, x, d.Name()); err != nil {
			return err
		}
	}
	if x.a.Type != tidemark.TypeVolume {
		if err := c.searchFiles(ctx, t, x); err != nil {
			return err
		}
	}
	if err := x.verdict(); err != nil {
		c.event("warning", x.a.name, "%v", err)
		return err
	}
	x.res.At, x.res.Seconds = time.Now().UTC(), time.Since(x.begun).Seconds()
	if err := t.doing(ctx, "publish", undoing{Publishing: &x.res}); err != nil {
		return err
	}
	if err := c.notePublished(ctx, x); err != nil {
		return err
	}
	c.changed(tidemark.PointPublished, x.a, x.point.Changed())
	c.event("info", x.a.name, "%s@%s is published: %d values were searched in %s, and not found", x.a.name, x.point.Bookmark, x.res.Fingerprints, tidemark.FormatSize(x.res.ReadBytes))
	return nil
}

// notePublished publishes the point, if it is still what was searched.
func (c *Control) notePublished(ctx context.Context, x *publishing) error {
	c.noting.Lock()
	defer c.noting.Unlock()
	now, err := pointAt(x.a.t, x.point.Position)
	if err != nil {
		return err
	}
	k := published{Publication: x.res.Publication, Images: x.point.Images}
	if (app{about: about{Live: &live{Published: []published{k}}}}).publication(now) == nil {
		return tidemark.Errorf(tidemark.Conflict, "%s@%s is not what it was when it was searched", x.a.name, x.point.Bookmark).WithHint("publish it again")
	}
	return annotateHeld(ctx, x.a, func(n *about) { n.Live.Published = append(n.Live.Published, k) })
}

// verdict is an error if a value was found, or if that cannot be said.
func (x *publishing) verdict() error {
	ref := x.a.name + "@" + x.point.Bookmark
	if n := len(x.res.Residue); n > 0 {
		f, more := x.res.Residue[0], ""
		if x.res.More {
			more = " or more"
		}
		at := ""
		if f.Place != "" {
			at = ": " + f.Place
		}
		return tidemark.Errorf(tidemark.Conflict, "%s is not published: sensitive values are in %d places%s, the first of them value %d as %s at offset %d of %s%s", ref, n, more, f.Value, f.Encoding, f.Offset, f.Disk, at).
			WithHint("mask what can be seen in a step" + x.cure() + "; the job lists the places")
	}
	if x.unresolved > 0 {
		return tidemark.Errorf(tidemark.Conflict, "%s is not published: %d large values are in pieces that fit together in too many ways to search them all", ref, x.unresolved).
			WithHint("have the preparation rewrite the database")
	}
	return nil
}

// cure is what helps against values that nobody sees any more.
func (x *publishing) cure() string {
	switch x.a.Type {
	case tidemark.TypePostgres:
		return ", and have the preparation rewrite the database"
	case tidemark.TypeFilesystem:
		return ", and have the preparation clear what is left of old files, without --no-rewrite; their names go with a new directory alone"
	}
	return ", and have it write over, or discard, what is not in use"
}

// gatherPrints makes fingerprints of the sensitive values.
func (c *Control) gatherPrints(ctx context.Context, t *task, x *publishing) error {
	text, err := c.readSecrets(x.a.Live.Secrets)
	if err != nil {
		return err
	}
	if !strings.HasSuffix(x.a.Live.Secrets, sqlSuffix) {
		return x.addValues(text)
	}
	for _, source := range x.sources {
		if err := c.gatherFrom(ctx, t, x, source, string(text)); err != nil {
			return fmt.Errorf("gather the sensitive values of %s: %w", source, err)
		}
	}
	if x.res.Fingerprints == 0 {
		return tidemark.Errorf(tidemark.Invalid, "the query %s returns no values", x.a.Live.Secrets).WithHint("without values nothing can be checked")
	}
	return nil
}

// addValues makes fingerprints of the values in a file.
func (x *publishing) addValues(text []byte) error {
	b, err := residue.NewBuilder(x.key, searchedWays)
	if err != nil {
		return err
	}
	refused, err := b.AddLines(bytes.NewReader(text))
	if err != nil {
		return err
	}
	if len(refused) > 0 {
		e := Explain(refused[0].Reason)
		return tidemark.Errorf(tidemark.Invalid, "%d values of %s cannot be searched, the first of them in line %d: %s", len(refused), x.a.Live.Secrets, refused[0].Number, e.Message).WithHint(e.Hint)
	}
	x.add(b.Fingerprints())
	if x.prints[0].Patterns() == 0 {
		return tidemark.Errorf(tidemark.Invalid, "%s has no values", x.a.Live.Secrets).WithHint("write one a line: without values nothing can be checked")
	}
	return nil
}

func (x *publishing) add(f *residue.Fingerprints) {
	x.prints = append(x.prints, f)
	x.res.Fingerprints += f.Values()
}

// aside makes a throw-away branch for something, and removes it when that is done. If the job is cut, it is removed, too.
func (c *Control) aside(ctx context.Context, t *task, x *publishing, step string, p plan, do func(app) error) (err error) {
	name, release, err := c.claimFree(ctx, x.a.name+"-check")
	if err != nil {
		return err
	}
	defer release()
	x.undo = undoing{Remove: name}
	if err := t.doing(ctx, step, x.undo); err != nil {
		return err
	}
	defer func() {
		e := c.abandon(context.WithoutCancel(ctx), name, doom{})
		if e != nil {
			err = errors.Join(err, fmt.Errorf("take %s away: %w", name, e))
			return
		}
		x.undo = undoing{}
	}()
	a, err := c.branch(ctx, p.src, name, "", p.pos, p.each, roleCheck)
	if err != nil {
		return err
	}
	return do(a)
}

// gatherFrom makes fingerprints of what a query returns of a source of the data.
func (c *Control) gatherFrom(ctx context.Context, t *task, x *publishing, source, query string) error {
	p, err := c.planClone(ctx, tidemark.CloneSpec{Ref: source, Name: x.a.name}, x.a.From)
	if err == nil && p.log {
		err = c.completeLog(ctx, &p)
	}
	if tidemark.KindOf(err) == tidemark.NotFound {
		return Explain(err).WithHint("without that point the values are not known: `tidemark liveclone prepare " + x.a.name + " --refresh` takes one that is there")
	}
	if err != nil {
		return err
	}
	return c.aside(ctx, t, x, "gather values", p, func(a app) error {
		k := keptClone{}
		if err := c.startDatabase(ctx, a, p, &k); err != nil {
			return err
		}
		r, err := c.agent.Gather(ctx, agent.Gathering{DataDir: c.dataDir(a), Database: cmp.Or(x.a.Live.Database, "postgres"), SQL: query, Ways: searchedWays, Key: x.key[:]})
		if err != nil {
			return err
		}
		f, err := residue.Read(bytes.NewReader(r.Prints), x.key)
		if err == nil {
			x.add(f)
		}
		return err
	})
}

// searchDisk searches a disk of the point.
func (c *Control) searchDisk(ctx context.Context, t *task, x *publishing, disk string) error {
	s, err := x.a.t.At(disk, x.point.Position)
	if err != nil {
		return err
	}
	defer s.Close()
	for i, prints := range x.prints {
		found := 0
		opts := residue.Options{Disk: disk, Progress: func(done, total int64) { t.report(tidemark.Progress{Done: done, Total: total, Unit: "bytes"}) }}
		r, err := residue.Scan(ctx, s, prints, opts, func(f residue.Finding) bool {
			x.found(f)
			found++
			return found < mostPlaces
		})
		if err != nil {
			return fmt.Errorf("search disk %s: %w", disk, err)
		}
		x.count(*r, i == 0)
	}
	return nil
}

// found notes a finding. The disk named files is what was put together of files.
func (x *publishing) found(f residue.Finding) {
	x.res.Residue = append(x.res.Residue, tidemark.Residue{Disk: f.Disk, Offset: f.Offset, Value: f.Value, Encoding: f.Encoding, Within: f.Within, Place: f.Place})
}

// count adds a search to all. first: it is the first of what it searched.
func (x *publishing) count(r residue.Result, first bool) {
	if first {
		x.res.ReadBytes += r.Searched
	}
	x.unresolved += r.Unresolved
	x.res.More = x.res.More || r.Stopped
}

// searchFiles searches the files of the point, and finds out what lies at the places that were found on its disk.
func (c *Control) searchFiles(ctx context.Context, t *task, x *publishing) error {
	disk := x.a.dataDisk()
	p := plan{src: x.a, pos: x.point.Position}
	return c.aside(ctx, t, x, "search the files", p, func(a app) error {
		dir, err := c.mountClone(ctx, a, disk)
		if err != nil {
			return err
		}
		at, offsets := []int{}, []int64{}
		for i, f := range x.res.Residue {
			if f.Disk == disk {
				at, offsets = append(at, i), append(offsets, f.Offset)
			}
		}
		for i, prints := range x.prints {
			var text bytes.Buffer
			if _, err := prints.WriteTo(&text); err != nil {
				return err
			}
			r, err := c.agent.SearchFiles(ctx, agent.FileSearch{Dir: dir, Prints: text.Bytes(), Key: x.key[:], Offsets: offsets, Most: mostPlaces}, t.report)
			if err != nil {
				return err
			}
			for j, place := range r.Places {
				x.res.Residue[at[j]].Place = place
			}
			for _, f := range r.Findings {
				x.found(f)
			}
			x.count(r.Result, i == 0)
			offsets = nil
		}
		return nil
	})
}
