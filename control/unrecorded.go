package control

import (
	"context"
	"encoding/json"
	"time"

	"tidemark"
)

// end is how a job ended.
type end struct {
	state   tidemark.JobState
	result  any
	failure *tidemark.Error
}

// record puts down how a job ended. On a full disk that is not possible: then
// whoever asks is told from memory, and it is tried again until there is room.
// If the server ends before, the next one finds the job running and undoes it.
func (c *Control) record(id int64, e end) {
	err := c.catalog.Finish(context.Background(), id, e.state, e.result, e.failure)
	if err != nil && c.giveReserve(err) {
		err = c.catalog.Finish(context.Background(), id, e.state, e.result, e.failure)
	}
	if err == nil {
		return
	}
	c.log.Error("a job's end was not recorded", "job", id, "error", err)
	c.jobs.mu.Lock()
	c.jobs.unrecorded[id] = e
	c.jobs.mu.Unlock()
	c.jobs.wg.Go(func() {
		for err != nil {
			select {
			case <-c.jobs.ctx.Done():
				return
			case <-time.After(time.Second):
			}
			err = c.catalog.Finish(context.Background(), id, e.state, e.result, e.failure)
		}
		c.jobs.mu.Lock()
		delete(c.jobs.unrecorded, id)
		c.jobs.mu.Unlock()
	})
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
