package catalog

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
)

const (
	// forgetAtOnce is how many jobs are forgotten in one transaction, which SQLite's other writers wait for: some tens of ms.
	forgetAtOnce = 500
	// forgetPause is what they have for themselves behind it.
	forgetPause = 50 * time.Millisecond
)

// ForgetJobs forgets jobs that have ended, and the steps of runs, but for the newest jobs, of which it keeps so many, and returns how many it forgot. They stay
// counted by [Catalog.CountJobs]. Whatever their number, it keeps
//
//   - jobs that ended within [AnswersLast]: what a request was answered names its job for so long,
//   - runs of which a part has not ended, and all parts of runs that are kept: by these a run that goes on finds what it has done,
//   - of each workflow, the newest run that its schedule began: the next one is counted from it.
func (c *Catalog) ForgetJobs(ctx context.Context, keep int) (n int64, err error) {
	var last int64 // that may be forgotten
	err = c.query(ctx, &last, "SELECT id FROM jobs WHERE owner = ? ORDER BY id DESC LIMIT 1 OFFSET ?", c.owner, keep)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	for err == nil {
		var some []int64
		if some, err = c.forgettable(ctx, last); err != nil || len(some) == 0 {
			break
		}
		if err = c.forgetJobs(ctx, some); err != nil {
			break
		}
		n += int64(len(some))
		select {
		case <-time.After(forgetPause):
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return n, wrap(err, "forget old jobs")
}

// forgettable are the oldest jobs, up to a last one, that may be forgotten. What has ended stays so, and has no more parts; thus nobody is kept from writing while
// they are looked for. Of a run that may go, the parts may when it is gone.
func (c *Catalog) forgettable(ctx context.Context, last int64) (some []int64, err error) {
	err = c.query(ctx, &some, `SELECT id FROM jobs AS j WHERE j.owner = ?0 AND j.id <= ?1 AND j.state NOT IN ('queued', 'running') AND j.finished < ?2
			AND NOT EXISTS (SELECT 1 FROM jobs AS run WHERE run.id = j.parent)
			AND NOT EXISTS (SELECT 1 FROM jobs AS part WHERE part.owner = j.owner AND part.parent = j.id AND part.part <> '' AND part.state IN ('queued', 'running'))
			AND (j.kind <> ?3 OR j.origin <> ?4 OR EXISTS
				(SELECT 1 FROM jobs AS later WHERE later.owner = j.owner AND later.application = j.application AND later.kind = ?3 AND later.origin = ?4 AND later.id > j.id))
		ORDER BY j.id LIMIT ?5`, c.owner, last, c.now().Add(-AnswersLast).UnixNano(), KindWorkflow, string(tidemark.FromSchedule), forgetAtOnce)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return some, err
}

// forgetJobs forgets some jobs, and counts them.
func (c *Catalog) forgetJobs(ctx context.Context, some []int64) error {
	return c.do(ctx, func(ctx context.Context) error {
		return c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			if _, err := tx.NewRaw("DELETE FROM workflow_steps WHERE owner = ? AND run IN (?)", c.owner, bun.In(some)).Exec(ctx); err != nil {
				return err
			}
			var gone []jobRow
			if err := tx.NewRaw("DELETE FROM jobs WHERE owner = ? AND id IN (?) RETURNING kind, state, started, finished", c.owner, bun.In(some)).Scan(ctx, &gone); err != nil {
				return err
			}
			for _, n := range counted(gone) {
				if _, err := tx.NewRaw(`INSERT INTO forgotten_jobs (owner, kind, state, jobs, took) VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, kind, state)
					DO UPDATE SET jobs = forgotten_jobs.jobs + excluded.jobs, took = forgotten_jobs.took + excluded.took`, c.owner, n.Kind, n.State, n.Jobs, int64(n.Took)).Exec(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// counted counts jobs, as CountJobs does.
func counted(rows []jobRow) map[[2]string]JobCount {
	counts := map[[2]string]JobCount{}
	for _, r := range rows {
		k := [2]string{r.Kind, r.State}
		n := counts[k]
		n.Kind, n.State, n.Jobs = r.Kind, tidemark.JobState(r.State), n.Jobs+1
		if r.Started > 0 && r.Finished > 0 {
			n.Took += time.Duration(r.Finished - r.Started)
		}
		counts[k] = n
	}
	return counts
}
