package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/block"
	"tidemark/catalog"
	"tidemark/image"
	"tidemark/timeline"
)

// A preparation changes a LiveClone in place: its points, and what is published of them, stay. It is a rewind in this: before
// anything is changed the present is a bookmark, and whatever cuts it, or makes it fail, the clone is made again what that bookmark holds.
// The bookmark is forgotten when the preparation is done.

// preparing is a preparation that goes on.
type preparing struct {
	a       app
	from    *plan    // what it is refreshed from; nil: it is not
	sources []string // of the data that are prepared
	undo    undoing
	begun   time.Time
	spec    tidemark.PrepareSpec
	res     tidemark.Prepared
	output  strings.Builder
}

// stepTime is how long a step may take, if nothing else was asked for.
const stepTime = time.Hour

// Prepare prepares a LiveClone, and bookmarks the result.
func (c *Control) Prepare(ctx context.Context, spec tidemark.PrepareSpec) (tidemark.Job, error) {
	return c.ask(ctx, "prepare", spec)
}

func (c *Control) prepareWork(ctx context.Context, spec tidemark.PrepareSpec) (*work, error) {
	a, err := c.liveClone(spec.Name)
	if err == nil {
		_, err = c.hostAgent(ctx, a.Agent)
	}
	if err != nil {
		return nil, err
	}
	if spec.Bookmark != "" {
		if err := tidemark.CheckBookmark(spec.Bookmark); err != nil {
			return nil, err
		}
		if a.t.HasBookmark(spec.Bookmark) {
			return nil, tidemark.Errorf(tidemark.Conflict, "%s has a bookmark %q already", a.name, spec.Bookmark).WithHint("choose another name")
		}
	}
	x := &preparing{a: a, begun: time.Now(), spec: spec}
	switch {
	case spec.Refresh:
		if x.from, err = c.planRefresh(ctx, a, spec.Point); err != nil {
			return nil, err
		}
		if spec.Point != "" {
			_, spec.Point, _ = strings.Cut(fixed(x.from.src.name+"@"+spec.Point), "@")
		}
	case spec.Point != "":
		return nil, tidemark.Errorf(tidemark.Invalid, "a point is named, and no refresh asked for").WithHint("ask for a refresh, too, or leave the point out")
	}
	w := &work{app: a.name, host: a.host(), args: spec}
	w.holding = func(ctx context.Context) (func(), error) {
		if _, err := c.idleExports(ctx, a); err != nil {
			return nil, err
		}
		return c.work(a.name)
	}
	w.run = func(ctx context.Context, t *task) (any, error) { return c.prepareLive(ctx, t, x) }
	return w, nil
}

// planRefresh finds the point of its source that a LiveClone is to hold.
func (c *Control) planRefresh(ctx context.Context, a app, point string) (*plan, error) {
	ref, err := tidemark.ParseRef(a.Of)
	if err != nil {
		return nil, err
	}
	from, err := c.sourceOf(ctx, a, ref.App)
	if err != nil {
		return nil, err
	}
	p, err := c.planClone(ctx, tidemark.CloneSpec{Ref: ref.App + "@" + cmp.Or(point, "latest"), Name: a.name}, from)
	if err != nil {
		return nil, err
	}
	same := slices.EqualFunc(a.t.Disks(), p.src.t.Disks(), func(a, b *timeline.Disk) bool { return a.Describe() == b.Describe() })
	if !same {
		return nil, tidemark.Errorf(tidemark.Conflict, "%s has other disks than %s", p.src.name, a.name).WithHint("make another LiveClone of it")
	}
	return &p, nil
}

// prepareLive does all of a preparation.
func (c *Control) prepareLive(ctx context.Context, t *task, x *preparing) (tidemark.Prepared, error) {
	a := x.a
	before := unusedName([]app{a}, "before-prepare-"+x.begun.UTC().Format(nameTime))
	if err := a.t.Fold(ctx); err != nil { // a branch can show its own positions only then
		return x.res, err
	}
	x.res.Name, x.undo = a.name, undoing{Stopped: a.name}
	var err error
	if x.sources, err = sourcesOf(a); err != nil {
		return x.res, err
	}
	err = c.beginPreparing(ctx, t, x, before)
	for _, step := range []func(context.Context, *task, *preparing) error{c.runSteps, c.clearResidue, c.endPreparing} {
		if err == nil {
			err = step(ctx, t, x)
		}
	}
	if x.output.Len() > 0 {
		x.res.Output = c.keepOutput("prepared", t.id, x.output.String())
	}
	if err == nil {
		err = c.settlePreparing(ctx, t, x, before)
	} else {
		err = c.takeBack(ctx, t, a, before, "preparation", x.explain(err))
	}
	if err != nil {
		return x.res, err
	}
	c.keepPoint(ctx, a)
	x.res.Seconds = time.Since(x.begun).Seconds()
	c.event("info", a.name, "%s is prepared: %s@%s", a.name, a.name, x.res.Point.Bookmark)
	return x.res, nil
}

// explain adds to why a preparation failed where its steps said more.
func (x *preparing) explain(err error) error {
	if x.res.Output == "" {
		return err
	}
	e := Explain(err)
	return e.WithHint(strings.TrimPrefix(e.Hint+"; what the steps said is in "+x.res.Output, "; "))
}

// step does one step, and notes how long it took.
func (x *preparing) step(ctx context.Context, t *task, name string, fn func() error) error {
	begun := time.Now()
	if err := t.doing(ctx, name, x.undo); err != nil {
		return err
	}
	err := fn()
	x.res.Steps = append(x.res.Steps, tidemark.ProofStep{Name: name, Seconds: time.Since(begun).Seconds()})
	return err
}

// beginPreparing bookmarks the present, and brings the clone up with what is to be prepared.
func (c *Control) beginPreparing(ctx context.Context, t *task, x *preparing, before string) error {
	a := x.a
	mark := timeline.Mark{Name: before, Consistency: tidemark.CrashConsistent}
	if err := x.step(ctx, t, "stop", func() error { return c.standDown(ctx, a) }); err != nil {
		return err
	}
	x.undo.Before = before
	if x.from == nil {
		return x.step(ctx, t, "start", func() error {
			_, err := a.t.Bookmark(mark)
			if err == nil {
				err = a.t.Fold(ctx)
			}
			if err == nil {
				x.res.Connection, err = c.standUp(ctx, a)
			}
			return err
		})
	}
	if err := x.step(ctx, t, "refresh", func() error { return c.refreshInPlace(ctx, t, x, mark) }); err != nil {
		return err
	}
	return x.step(ctx, t, "start", func() error { return c.recoverRefreshed(ctx, x) })
}

// refreshInPlace makes the disks of a LiveClone hold what those of its source do.
func (c *Control) refreshInPlace(ctx context.Context, t *task, x *preparing, mark timeline.Mark) error {
	p := x.from
	if p.log {
		if err := c.completeLog(ctx, p); err != nil {
			return err
		}
	}
	err := c.annotate(ctx, x.a, func(n *about) {
		n.From = p.src.firstID() // which an older release did not note
		n.Live.Sources = append(slices.DeleteFunc(n.Live.Sources, func(r string) bool { return r == p.ref() }), p.ref())
	})
	if err != nil {
		return err
	}
	then := func(s *image.Session, disk string) (image.Root, error) {
		pos, ok := p.each[disk]
		if !ok {
			pos = p.pos
		}
		return p.src.t.Root(ctx, s, disk, pos)
	}
	if _, err = c.rewriteTo(ctx, x.a, then, mark, "it was refreshed from "+p.ref(), t.report); err != nil {
		return err
	}
	x.sources = []string{p.ref()} // nothing of what it was before is left on its disks
	return nil
}

// recoverRefreshed brings up what a refresh has written.
func (c *Control) recoverRefreshed(ctx context.Context, x *preparing) (err error) {
	a := x.a
	if a.Type == tidemark.TypePostgres {
		k, err := c.cloneOf(ctx, a)
		if err != nil {
			return err
		}
		k.Spec.Port = k.Port
		if err := c.startDatabase(ctx, a, *x.from, &k); err != nil {
			return err
		}
		if err := c.catalog.Put(ctx, catalog.Clones, a.name, k); err != nil {
			return err
		}
	}
	x.res.Connection, err = c.standUp(ctx, a)
	return err
}

// runSteps runs the steps of a preparation on the host of the clone.
func (c *Control) runSteps(ctx context.Context, t *task, x *preparing) error {
	a := x.a
	agentOf, err := c.agentOf(a)
	if err != nil {
		return err
	}
	p := a.Live.Preparation
	for _, file := range p.Steps {
		s := agent.Step{Timeline: a.t.ID(), File: file, DataDir: c.dataDir(a), Postgres: a.Type == tidemark.TypePostgres, Database: cmp.Or(p.Database, "postgres"),
			Limit: stepTime, Env: []string{"TIDEMARK_CLONE=" + a.name, "TIDEMARK_SOURCE=" + strings.Join(x.sources, " ")}}
		if p.StepTimeout > 0 {
			s.Limit = time.Duration(p.StepTimeout) * time.Second
		}
		err := x.step(ctx, t, "step "+file, func() error {
			end, err := agentOf.RunStep(ctx, s)
			fmt.Fprintf(&x.output, "%s:\n%s\n", file, end.Output)
			if err == nil && end.Failure != "" {
				err = tidemark.Errorf(tidemark.Invalid, "the step %s failed: %s", file, end.Failure)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// clearResidue takes off a clone what masking has left of what was masked.
func (c *Control) clearResidue(ctx context.Context, t *task, x *preparing) error {
	switch {
	case x.a.Live.NoRewrite:
		return nil
	case x.a.Type == tidemark.TypePostgres:
		return c.rewriteDatabase(ctx, t, x)
	case x.a.Type == tidemark.TypeFilesystem:
		return c.clearFiles(ctx, t, x)
	}
	return nil
}

// clearFiles takes off a tree what is left of files that were changed or removed.
func (c *Control) clearFiles(ctx context.Context, t *task, x *preparing) error {
	disk := x.a.dataDisk()
	s, err := c.look(ctx, x.a, disk)
	if err != nil {
		return err
	}
	agentOf, err := c.agentOf(x.a)
	if err != nil {
		return err
	}
	return x.step(ctx, t, "clear", func() error {
		return agentOf.ClearFiles(ctx, agent.Clearing{Device: s.Device, Dir: c.dirOf(x.a, disk)})
	})
}

// rewriteDatabase takes off a database what masking has left of what was masked.
func (c *Control) rewriteDatabase(ctx context.Context, t *task, x *preparing) error {
	a := x.a
	k, err := c.cloneOf(ctx, a)
	if err != nil {
		return err
	}
	k.Spec.Port = k.Port
	s, err := c.look(ctx, a, a.dataDisk())
	if err != nil {
		return err
	}
	agentOf, err := c.agentOf(a)
	if err != nil {
		return err
	}
	r := agent.Rewriting{Device: s.Device, Target: c.targetOf(a, c.dataDir(a), &k, postgres.Stop{})}
	return x.step(ctx, t, "rewrite", func() error {
		return agentOf.RewritePostgres(ctx, r, func(what string) {
			if err := t.doing(ctx, what, x.undo); err != nil && ctx.Err() == nil {
				c.log.Error("the step of a job was not recorded", "job", t.id, "error", err)
			}
		})
	})
}

// endPreparing stops the clone cleanly, and bookmarks it.
func (c *Control) endPreparing(ctx context.Context, t *task, x *preparing) error {
	a := x.a
	x.res.Source = strings.Join(x.sources, " ")
	return x.step(ctx, t, "bookmark", func() error {
		if err := c.standDown(ctx, a); err != nil {
			return err
		}
		if err := clearLog(a); err != nil {
			return err
		}
		mark := timeline.Mark{Name: cmp.Or(x.spec.Bookmark, timedName(a, "prepared-", time.Now())), Consistency: tidemark.ApplicationConsistent, Labels: map[string]string{labelSources: x.res.Source}}
		pos, err := a.t.Bookmark(mark)
		if err == nil {
			err = a.t.Fold(ctx)
		}
		if err == nil {
			x.res.Point, err = pointAt(a.t, pos)
		}
		return err
	})
}

// settlePreparing makes it final that a preparation is done, and brings the clone up again. What it was before is forgotten: from here on nothing is
// taken back.
func (c *Control) settlePreparing(ctx context.Context, t *task, x *preparing, before string) error {
	a := x.a
	x.undo = undoing{Stopped: a.name, Forget: before, Done: mustJSON(x.res)}
	err := x.step(ctx, t, "start again", func() (err error) {
		if err := c.noteSources(ctx, a, func([]string) []string { return x.sources }); err != nil {
			return err
		}
		c.forgetPoint(ctx, a, before)
		x.res.Connection, err = c.standUp(ctx, a)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s@%s is prepared, but %s did not come up again: %w", a.name, x.res.Point.Bookmark, a.name, err)
	}
	return nil
}

// clearLog discards the log of its source that a database was recovered with. It is not needed again, and has all that was masked.
func clearLog(a app) error {
	disks := a.t.Disks()
	i := slices.IndexFunc(disks, func(d *timeline.Disk) bool { return d.Name() == logDisk })
	if a.Type != tidemark.TypePostgres || a.Home != nil || i < 0 { // no log was received
		return nil
	}
	d := disks[i]
	var full []block.Extent // a discard of all of a large disk that is mostly holes would take long to fold
	err := d.Extents(0, d.Size(), func(e block.Extent) bool {
		if !e.Hole {
			full = append(full, e)
		}
		return true
	})
	for _, e := range full {
		if err == nil {
			err = d.Discard(e.Off, e.Len)
		}
	}
	return err
}
