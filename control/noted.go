package control

import (
	"context"
	"errors"
	"maps"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/timeline"
)

// What the catalog notes of applications and points beside their timelines goes when these do. Where it could not, as where the catalog was away or an older
// release left it, it goes at the next start.

// stillMarked are the times of the points that a timeline has.
func stillMarked(times map[tidemark.Position]time.Time, line *timeline.Timeline) map[tidemark.Position]time.Time {
	kept := maps.Clone(times)
	maps.DeleteFunc(kept, func(pos tidemark.Position, _ time.Time) bool { return !line.Marked(pos) })
	return kept
}

// forgetNoted forgets what is noted of an application that is gone: what was done for it, its proofs and its AppShots, too.
func (c *Control) forgetNoted(ctx context.Context, a app) error {
	c.promises.mu.Lock()
	c.promises.drop(a.t.ID())
	c.promises.mu.Unlock()
	return errors.Join(c.catalog.Delete(ctx, catalog.Applications, a.name), c.forgetProofs(ctx, a),
		c.catalog.Delete(ctx, catalog.Promises, a.t.ID()), c.catalog.DeleteBelow(ctx, catalog.Shots, shotsOf(a.name)))
}

// forgetLeft forgets what is noted of applications that there are no more. Of a timeline that cannot be opened the ID is known, and not the name.
func (c *Control) forgetLeft(ctx context.Context) error {
	damaged, ids, names := c.set.Damaged(), map[string]bool{}, map[string]bool{}
	for _, t := range c.set.List() {
		ids[t.ID()], names[t.Name()] = true, true
	}
	records, err := catalog.List[record](ctx, c.catalog, catalog.Promises)
	if err != nil {
		return err
	}
	for _, r := range records {
		if !ids[r.ID] && damaged[r.ID] == nil {
			if err := c.catalog.Delete(ctx, catalog.Promises, r.ID); err != nil {
				return err
			}
		}
	}
	if len(damaged) > 0 {
		return nil
	}
	shots, err := catalog.List[shotNote](ctx, c.catalog, catalog.Shots)
	if err != nil {
		return err
	}
	for _, n := range shots {
		if names[n.Application] {
			continue
		}
		names[n.Application] = true // all of them go
		if err := c.catalog.DeleteBelow(ctx, catalog.Shots, shotsOf(n.Application)); err != nil {
			return err
		}
	}
	return nil
}

const (
	// keptJobs is how many jobs are kept, those that have not ended among them. It bounds the file, in which a job takes a KiB with its indexes, and so there is no
	// age for which all are kept: of a thousand applications that are captured every hour this is a week, which a bound of 90 days would make 2 GiB.
	keptJobs = 200_000
	// forgetJobsEvery is how often more are forgotten.
	forgetJobsEvery = time.Hour
)

// forgetJobs forgets old jobs that have ended, until the server stops. There may be millions of them at first, of an older release.
func (c *Control) forgetJobs() {
	for ctx := c.jobs.ctx; ctx.Err() == nil; rest(ctx, forgetJobsEvery) {
		if _, err := c.catalog.ForgetJobs(ctx, keptJobs); err != nil && ctx.Err() == nil {
			c.log.Error("old jobs were not forgotten", "error", err)
		}
	}
}
