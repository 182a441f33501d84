package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
)

// Job is a job with what only its runner needs.
type Job struct {
	tidemark.Job
	Args json.RawMessage // the request
	// Undo is what must be taken back if the job is cut: written before each step that makes something.
	Undo json.RawMessage
}

type jobRow struct {
	bun.BaseModel `bun:"table:jobs"`
	ID            int64 `bun:",pk,autoincrement"`
	Kind          string
	Application   string
	State         string
	Step          string
	Done          int64
	Total         int64
	Unit          string
	Args          string
	Undo          string
	Result        string
	Error         string
	Created       int64
	Started       int64
	Finished      int64
}

// AddJob records a job that is about to run. An application has one running
// job at a time: a second is refused with an error of kind Conflict that names the first.
func (c *Catalog) AddJob(ctx context.Context, kind, application string, args any) (*Job, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	row := &jobRow{Kind: kind, Application: application, State: string(tidemark.JobRunning), Args: string(body), Created: now, Started: now}
	if _, err := c.write.NewInsert().Model(row).Returning("id").Exec(ctx); unique(err) {
		return nil, c.busy(ctx, application)
	} else if err != nil {
		return nil, wrap(err, "record a job")
	}
	return row.job(), nil
}

func (c *Catalog) busy(ctx context.Context, application string) error {
	var row jobRow
	err := c.read.NewSelect().Model(&row).Where("application = ? AND state = ?", application, tidemark.JobRunning).Limit(1).Scan(ctx)
	if err != nil {
		return tidemark.Errorf(tidemark.Conflict, "another job of %s is running", application).WithHint("wait for it: `tidemark jobs`")
	}
	return tidemark.Errorf(tidemark.Conflict, "%s is busy: job %d (%s) is running", application, row.ID, row.Kind).
		WithHint("wait for it or cancel it: `tidemark jobs`")
}

// Step records what a job does now, and what to undo if it is cut from here on.
func (c *Catalog) Step(ctx context.Context, id int64, step string, undo any) error {
	body, err := json.Marshal(undo)
	if err != nil {
		return err
	}
	_, err = c.write.NewUpdate().Model((*jobRow)(nil)).Set("step = ?", step).Set("undo = ?", string(body)).Where("id = ?", id).Exec(ctx)
	return wrap(err, "record a step of job %d", id)
}

// Progress records how far a job is.
func (c *Catalog) Progress(ctx context.Context, id int64, p tidemark.Progress) error {
	_, err := c.write.NewUpdate().Model((*jobRow)(nil)).Set("done = ?, total = ?, unit = ?", p.Done, p.Total, p.Unit).Where("id = ?", id).Exec(ctx)
	return wrap(err, "record the progress of job %d", id)
}

// Finish records how a job ended.
func (c *Catalog) Finish(ctx context.Context, id int64, state tidemark.JobState, result any, failure *tidemark.Error) error {
	res, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fail, err := json.Marshal(failure)
	if err != nil {
		return err
	}
	_, err = c.write.NewUpdate().Model((*jobRow)(nil)).Set("state = ?", state).Set("result = ?", string(res)).Set("error = ?", string(fail)).
		Set("finished = ?", time.Now().UnixNano()).Set("undo = ''").Where("id = ?", id).Exec(ctx)
	return wrap(err, "record the end of job %d", id)
}

// Job returns one job.
func (c *Catalog) Job(ctx context.Context, id int64) (*Job, error) {
	var row jobRow
	err := c.read.NewSelect().Model(&row).Where("id = ?", id).Scan(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, tidemark.Errorf(tidemark.NotFound, "there is no job %d", id).WithHint("`tidemark jobs` lists them")
	}
	if err != nil {
		return nil, wrap(err, "look up job %d", id)
	}
	return row.job(), nil
}

// Jobs returns the newest n jobs, newest first.
func (c *Catalog) Jobs(ctx context.Context, n int) ([]tidemark.Job, error) {
	var rows []jobRow
	if err := c.read.NewSelect().Model(&rows).Order("id DESC").Limit(int64(n)).Scan(ctx); err != nil {
		return nil, wrap(err, "list jobs")
	}
	list := make([]tidemark.Job, len(rows))
	for i := range rows {
		list[i] = rows[i].job().Job
	}
	return list, nil
}

// Running returns the jobs that have not ended: at start, those that a crash cut.
func (c *Catalog) Running(ctx context.Context) ([]*Job, error) {
	var rows []jobRow
	if err := c.read.NewSelect().Model(&rows).Where("state = ?", tidemark.JobRunning).Order("id").Scan(ctx); err != nil {
		return nil, wrap(err, "list running jobs")
	}
	list := make([]*Job, len(rows))
	for i := range rows {
		list[i] = rows[i].job()
	}
	return list, nil
}

func (r *jobRow) job() *Job {
	j := &Job{Job: tidemark.Job{ID: r.ID, Kind: r.Kind, Application: r.Application, State: tidemark.JobState(r.State), Step: r.Step,
		Progress: tidemark.Progress{Done: r.Done, Total: r.Total, Unit: r.Unit}, Created: time.Unix(0, r.Created)},
		Args: json.RawMessage(r.Args), Undo: json.RawMessage(r.Undo)}
	j.Started, j.Finished = timeOf(r.Started), timeOf(r.Finished)
	if r.Result != "" && r.Result != "null" {
		j.Result = json.RawMessage(r.Result)
	}
	if r.Error != "" && r.Error != "null" {
		j.Error = new(tidemark.Error)
		if err := json.Unmarshal([]byte(r.Error), j.Error); err != nil {
			j.Error = tidemark.Errorf(tidemark.Internal, "%s", r.Error)
		}
	}
	return j
}

func timeOf(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns)
	return &t
}
