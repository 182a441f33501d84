package control

import (
	"context"
	"time"

	"tidemark"
	"tidemark/policy"
)

// The catalog says whether a job that a schedule asked for is still to be waited for: what is noted here of one would last for ever if its end is never
// told, as that of one that anybody who has the catalog has cancelled while it waited.

// settleRuns ends the runs whose jobs are over, and did not end here. One that was cancelled has failed.
func (c *Control) settleRuns(ctx context.Context) error {
	jobs := c.promises.jobs()
	if len(jobs) == 0 {
		return nil
	}
	over, err := c.catalog.Over(ctx, jobs)
	if err != nil {
		return err
	}
	for _, j := range over {
		c.jobs.mu.Lock()
		_, live := c.jobs.live[j.ID]
		c.jobs.mu.Unlock()
		pol, _ := policyOf(j.Kind)
		id, begun := c.promises.ofJob(j.ID, pol)
		if live || id == "" { // who ran it here tells, or has told
			continue
		}
		r := policy.Run{Policy: pol, State: policy.RunDone, Started: begun.begun, Finished: time.Now()}
		if j.Error != nil {
			r.State, r.Error = policy.RunFailed, j.Error.Message
		}
		c.ended(id, r)
	}
	return nil
}

// jobs are those of the runs that are under way.
func (p *promises) jobs() (list []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, all := range p.running {
		for _, r := range all {
			if r.job != 0 {
				list = append(list, r.job)
			}
		}
	}
	return list
}

// beginJob asks for the job that does what is due, and notes it. That it ended is told after that, however soon it ends.
func (c *Control) beginJob(id string, pol policy.Policy, begun run, ask func() (tidemark.Job, error)) error {
	c.promises.asking.Lock()
	defer c.promises.asking.Unlock()
	job, err := ask()
	if err == nil {
		begun.job = job.ID
		c.promises.begun(id, pol, begun)
	}
	return err
}
