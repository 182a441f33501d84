package catalog

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"tidemark"
)

// kept are the numbers of the jobs that have to stay when all but the newest so many are forgotten at a time, as one would explain it.
func kept(rows map[int64]jobRow, keep int, now time.Time) map[int64]bool {
	ids := slices.Sorted(maps.Keys(rows))
	must, scheduled := map[int64]bool{}, map[string]int64{}
	for n, id := range ids {
		r := rows[id]
		goesOn := r.State == string(tidemark.JobQueued) || r.State == string(tidemark.JobRunning)
		if n >= len(ids)-keep || goesOn || r.Finished >= now.Add(-AnswersLast).UnixNano() {
			must[id] = true
		}
		if goesOn {
			must[r.Parent] = true
		}
		if r.Kind == KindWorkflow && r.Origin == string(tidemark.FromSchedule) {
			scheduled[r.Application] = id
		}
	}
	for _, id := range scheduled {
		must[id] = true
	}
	delete(must, 0)          // which is no run
	for _, id := range ids { // parts come behind their runs
		must[id] = must[id] || must[rows[id].Parent]
	}
	maps.DeleteFunc(must, func(_ int64, must bool) bool { return !must })
	return must
}

// someJobs are jobs and runs with their parts, most of which have ended.
func someJobs(rng *rand.Rand, owner string, n int, now time.Time) map[int64]jobRow {
	rows, runs := map[int64]jobRow{}, []int64{0}
	for i := range n {
		id := int64(i + 1)
		begun := now.Add(-time.Duration(n-i) * time.Hour).UnixNano()
		r := jobRow{ID: id, Owner: owner, Kind: "capture", Application: fmt.Sprint("app", id), State: string(tidemark.JobDone), Created: begun, Started: begun, Part: fmt.Sprint("part", id)}
		switch rng.IntN(4) {
		case 0:
			r.Kind, r.Application = KindWorkflow, fmt.Sprint("workflow/", rng.IntN(3))
			if rng.IntN(2) == 0 {
				r.Origin = string(tidemark.FromSchedule)
			}
			runs = append(runs, id)
		case 1, 2:
			r.Parent = runs[rng.IntN(len(runs))]
		}
		if rng.IntN(5) == 0 {
			r.State = string(tidemark.JobFailed)
		}
		if r.Finished = begun + rng.Int64N(int64(time.Hour)); rng.IntN(12) == 0 {
			r.State, r.Finished = string(tidemark.JobQueued), 0
		}
		rows[id] = r
	}
	return rows
}

func does(t *testing.T, c *Catalog, statement string, args ...any) {
	t.Helper()
	if err := c.exec(context.Background(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

// forgottenJobs holds what the doc of ForgetJobs says, and that nothing that was counted is counted less.
func forgottenJobs(t *testing.T, at string) {
	ctx := context.Background()
	c := openFor(t, at, "us")
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	now := time.Now()
	c.now = func() time.Time { return now }
	gone := int64(0)
	for range 12 {
		does(t, c, "DELETE FROM jobs")
		does(t, c, "DELETE FROM workflow_steps")
		n := 20 + rng.IntN(60)
		if rng.IntN(4) == 0 {
			n = 2*forgetAtOnce + rng.IntN(100)
		}
		rows := someJobs(rng, c.owner, n, now)
		list := slices.Collect(maps.Values(rows))
		if _, err := c.write.NewInsert().Model(&list).Exec(ctx); err != nil {
			t.Fatal(err)
		}
		does(t, c, "INSERT INTO workflow_steps (owner, run, step, state, result, error, started, finished) SELECT owner, id, 'one', 'done', '', '', 1, 2 FROM jobs WHERE kind = ?", KindWorkflow)
		before, err := c.CountJobs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		keep := rng.IntN(n)
		forgot, err := c.ForgetJobs(ctx, keep)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		gone += forgot
		want := kept(rows, keep, now)
		if int(forgot) != n-len(want) {
			t.Errorf("seed %d: of %d jobs %d were forgotten, and %d are to be kept", seed, n, forgot, len(want))
		}
		for id, r := range rows {
			_, err := c.Job(ctx, id)
			if there := err == nil; there != want[id] {
				t.Fatalf("seed %d: job %d is there: %v, %v; keep %d of %d: %+v", seed, id, there, err, keep, n, r)
			}
		}
		var left int
		if err := c.query(ctx, &left, "SELECT COUNT(*) FROM workflow_steps AS s WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE id = s.run)"); err != nil || left != 0 {
			t.Errorf("seed %d: of runs that are forgotten %d steps are left, %v", seed, left, err)
		}
		if err := c.query(ctx, &left, "SELECT COUNT(*) FROM jobs WHERE kind = ? AND NOT EXISTS (SELECT 1 FROM workflow_steps AS s WHERE s.run = jobs.id)", KindWorkflow); err != nil || left != 0 {
			t.Errorf("seed %d: %d runs that are kept have lost their steps, %v", seed, left, err)
		}
		if after, err := c.CountJobs(ctx); err != nil || !slices.Equal(after, before) {
			t.Errorf("seed %d: counted were %v, and now %v, %v", seed, before, after, err)
		}
		if n, err := c.ForgetJobs(ctx, keep); err != nil || n != 0 {
			t.Errorf("seed %d: then %d more are forgotten, %v", seed, n, err)
		}
	}
	if gone == 0 {
		t.Errorf("seed %d: nothing was ever forgotten", seed)
	}
}
