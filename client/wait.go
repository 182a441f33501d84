package client

import (
	"context"
	"encoding/json"
	"time"

	"tidemark"
)

// Result waits for the end of a job that was asked for, and returns its result. report, if not nil, is told the job as it goes on.
// If ctx is done, the job goes on without us.
func Result[T any](ctx context.Context, c *Client, j tidemark.Job, err error, report func(tidemark.Job)) (T, error) {
	var v T
	if err == nil {
		err = c.Wait(ctx, j.ID, &v, report)
	}
	return v, err
}

// pollEvery is how often progress is asked for.
const pollEvery = 300 * time.Millisecond

// job is a job with a result that is not read yet.
type job struct {
	tidemark.Job
	Result json.RawMessage `json:"result"`
}

// Wait waits for a job to end and decodes its result into res, a pointer or nil. The server tells of the job as it goes on; if that
// fails, it is asked again and again.
func (c *Client) Wait(ctx context.Context, id int64, res any, report func(tidemark.Job)) error {
	if j, err := c.follow(ctx, id, report); err == nil {
		_, err := j.end(res)
		return err
	}
	for {
		j, err := get[job](ctx, c, jobPath(id)+"?wait="+pollEvery.String())
		if err != nil {
			return err
		}
		if report != nil {
			report(j.Job)
		}
		if ended, err := j.end(res); ended {
			return err
		}
	}
}

// end reports whether a job has ended, and how.
func (j job) end(res any) (ended bool, err error) {
	switch j.State {
	case tidemark.JobDone:
		if res == nil || len(j.Result) == 0 {
			return true, nil
		}
		return true, json.Unmarshal(j.Result, res)
	case tidemark.JobFailed, tidemark.JobCancelled:
		if j.Error == nil {
			return true, tidemark.Errorf(tidemark.Internal, "job %d is %s", j.ID, j.State)
		}
		return true, j.Error
	}
	return false, nil
}
