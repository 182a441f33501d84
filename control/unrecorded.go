package control

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// end is how an attempt of a job ended.
type end struct {
	state   tidemark.JobState
	result  any
	failure *tidemark.Error
	again   *catalog.Again // it is begun again
}

// put puts it down.
func (e end) put(ctx context.Context, cat *catalog.Catalog, id int64) error {
	if e.again != nil {
		return cat.Requeue(ctx, id, *e.again)
	}
	return cat.Finish(ctx, id, e.state, e.result, e.failure)
}

// record puts down how a job ended. On a full disk, or while the catalog is away, that is not possible: then
// whoever asks is told from memory, if the catalog can be asked at all, and it is tried again until it succeeds.
// If the server ends before, the next one finds the job running and undoes it.
func (c *Control) record(id int64, e end) {
	err := e.put(context.Background(), c.catalog, id)
	if err != nil && c.giveReserve(err) {
		err = e.put(context.Background(), c.catalog, id)
	}
	if c.recorded(id, err) {
		return
	}
	c.log.Error("a job's end was not recorded", "job", id, "error", err)
	c.jobs.mu.Lock()
	c.jobs.unrecorded[id] = e
	c.jobs.mu.Unlock()
	c.jobs.wg.Go(func() {
		again := time.NewTicker(time.Second)
		defer again.Stop()
		for !c.recordLate(id) {
			select {
			case <-c.jobs.ctx.Done():
				return
			case <-again.C:
			}
		}
	})
}

// recordLate puts down an end that could not be recorded, and reports whether there is nothing more to put down.
func (c *Control) recordLate(id int64) bool {
	c.jobs.late.Lock()
	defer c.jobs.late.Unlock()
	c.jobs.mu.Lock()
	e, ok := c.jobs.unrecorded[id]
	c.jobs.mu.Unlock()
	if !ok {
		return true
	}
	if !c.recorded(id, e.put(context.Background(), c.catalog, id)) {
		return false
	}
	c.jobs.mu.Lock()
	delete(c.jobs.unrecorded, id)
	c.jobs.mu.Unlock()
	c.jobs.stir()
	return true
}

// recordAllLate puts down the ends that could not be recorded, if that is possible now: who was told from memory that a
// job is over may ask for the next one at once.
func (c *Control) recordAllLate() {
	c.jobs.mu.Lock()
	ids := slices.Collect(maps.Keys(c.jobs.unrecorded))
	c.jobs.mu.Unlock()
	for _, id := range ids {
		if !c.recordLate(id) {
			return
		}
	}
}

// recorded reports whether there is nothing more to put down: it was, or the job is another's now.
func (c *Control) recorded(id int64, err error) bool {
	if errors.Is(err, catalog.ErrLost) {
		c.log.Error("the end of a job was not recorded, for it is not ours any more", "job", id, "error", err)
		return true
	}
	return err == nil
}

// amend adds to a job from the catalog the end that could not be recorded.
func (r *runner) amend(j *tidemark.Job) error {
	r.mu.Lock()
	e, ok := r.unrecorded[j.ID]
	r.mu.Unlock()
	if !ok {
		return nil
	}
	j.State, j.Error = e.state, e.failure
	if e.result == nil {
		return nil
	}
	b, err := json.Marshal(e.result)
	j.Result = json.RawMessage(b)
	return err
}
