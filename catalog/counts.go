package catalog

import (
	"context"
	"time"

	"tidemark"
)

// JobCount says how many jobs of a kind are in a state.
type JobCount struct {
	Kind  string
	State tidemark.JobState
	Jobs  int64
	Took  time.Duration // those that have ended, all together
}

// CountJobs counts the jobs of each kind and state, with those that were forgotten.
func (c *Catalog) CountJobs(ctx context.Context) ([]JobCount, error) {
	var rows []struct {
		Kind  string
		State string
		Jobs  int64
		Took  int64
	}
	err := c.query(ctx, &rows, `SELECT kind, state, CAST(SUM(jobs) AS BIGINT) AS jobs, CAST(SUM(took) AS BIGINT) AS took FROM (
			SELECT kind, state, 1 AS jobs, CASE WHEN finished > 0 AND started > 0 THEN finished - started ELSE 0 END AS took FROM jobs WHERE owner = ?0
			UNION ALL SELECT kind, state, jobs, took FROM forgotten_jobs WHERE owner = ?0
		) AS counted GROUP BY kind, state ORDER BY kind, state`, c.owner)
	if err != nil {
		return nil, wrap(err, "count jobs")
	}
	list := make([]JobCount, len(rows))
	for i, r := range rows {
		list[i] = JobCount{Kind: r.Kind, State: tidemark.JobState(r.State), Jobs: r.Jobs, Took: time.Duration(r.Took)}
	}
	return list, nil
}
