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
	Args  json.RawMessage // the request
	Terms json.RawMessage // those of [NewJob]; empty: none
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
	Owner         string
	Host          string
	Priority      int64
	Queued        int64
	NotBefore     int64
	Attempts      int64
	MaxAttempts   int64
	Holder        string
	LeaseEnd      int64
	Cancelling    int64
	AskedBy       string
	AskerID       string
	Origin        string
	Parent        int64
	Part          string
	FirstID       string
	Profile       string
	Terms         string
}

// ErrLost is in the chain of errors about a job that does not run here any more: another process of its owner took it over.
var ErrLost = errors.New("the job runs elsewhere")

// Step records what a job does now, and what to undo if it is cut from here on.
func (c *Catalog) Step(ctx context.Context, id int64, step string, undo any) error {
	body, err := json.Marshal(undo)
	if err != nil {
		return err
	}
	return c.ours(ctx, id, "record a step", "UPDATE jobs SET step = ?, undo = ? WHERE state = 'running'", step, string(body))
}

// Progress records how far a job is.
func (c *Catalog) Progress(ctx context.Context, id int64, p tidemark.Progress) error {
	return c.ours(ctx, id, "record the progress", "UPDATE jobs SET done = ?, total = ?, unit = ? WHERE state = 'running'", p.Done, p.Total, p.Unit)
}

// Finish records how a job ended. To record it once more does no harm.
func (c *Catalog) Finish(ctx context.Context, id int64, state tidemark.JobState, result any, failure *tidemark.Error) error {
	res, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fail, err := json.Marshal(failure)
	if err != nil {
		return err
	}
	return c.ours(ctx, id, "record the end", "UPDATE jobs SET state = ?, result = ?, error = ?, finished = ?, lease_end = 0, undo = '' WHERE state <> 'queued'",
		state, string(res), string(fail), c.now().UnixNano())
}

// ours changes a job that runs here. Another is left as it is, with an error that is [ErrLost].
func (c *Catalog) ours(ctx context.Context, id int64, what, statement string, args ...any) error {
	var n int64
	err := c.do(ctx, func(ctx context.Context) error {
		res, err := c.write.NewRaw(statement+" AND id = ? AND holder = ?", append(args, id, c.holder)...).Exec(ctx)
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	if err == nil && n == 0 {
		return tidemark.Errorf(tidemark.Conflict, "job %d was taken over by another server: %w", id, ErrLost)
	}
	return wrap(err, "%s of job %d", what, id)
}

// Job returns one job.
func (c *Catalog) Job(ctx context.Context, id int64) (*Job, error) {
	var row jobRow
	err := c.query(ctx, &row, "SELECT * FROM jobs WHERE id = ? AND owner = ?", id, c.owner)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noJob(id)
	}
	if err != nil {
		return nil, wrap(err, "look up job %d", id)
	}
	return row.job(), nil
}

func noJob(id int64) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no job %d", id).WithHint("`tidemark jobs` lists them")
}

// Jobs returns the jobs that a filter lets through, newest first.
func (c *Catalog) Jobs(ctx context.Context, f tidemark.JobFilter) ([]tidemark.Job, error) {
	var rows []jobRow
	err := c.do(ctx, func(ctx context.Context) error {
		rows = nil
		q := c.read.NewSelect().Model(&rows).Where("owner = ?", c.owner).Order("id DESC").Limit(int64(f.Limit))
		if len(f.States) > 0 {
			q.Where("state IN (?)", bun.In(f.States))
		}
		if f.Kind != "" {
			q.Where("kind = ?", f.Kind)
		}
		if f.Application != "" {
			q.Where("application = ?", f.Application)
		}
		if f.Before != 0 {
			q.Where("id < ?", f.Before)
		}
		return q.Scan(ctx)
	})
	list := make([]tidemark.Job, len(rows))
	for i := range rows {
		list[i] = rows[i].job().Job
	}
	return list, wrap(err, "list jobs")
}

func (r *jobRow) job() *Job {
	j := &Job{Job: tidemark.Job{ID: r.ID, Kind: r.Kind, Application: r.Application, Host: r.Host, State: tidemark.JobState(r.State), Step: r.Step,
		Progress: tidemark.Progress{Done: r.Done, Total: r.Total, Unit: r.Unit}, Created: time.Unix(0, r.Created),
		Priority: int(r.Priority), Attempt: int(r.Attempts), MaxAttempts: int(r.MaxAttempts),
		AskedBy: r.AskedBy, AskerID: r.AskerID, Origin: tidemark.JobOrigin(r.Origin), Parent: r.Parent, Profile: r.Profile, FirstID: r.FirstID},
		Args: json.RawMessage(r.Args), Undo: json.RawMessage(r.Undo), Terms: json.RawMessage(r.Terms)}
	j.Started, j.Finished = timeOf(r.Started), timeOf(r.Finished)
	if j.State == tidemark.JobQueued {
		j.NotBefore = timeOf(r.NotBefore)
	}
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

func jobsOf(rows []jobRow) []*Job {
	list := make([]*Job, len(rows))
	for i := range rows {
		list[i] = rows[i].job()
	}
	return list
}

func timeOf(ns int64) *time.Time {
	if ns == 0 {
		return nil
	}
	t := time.Unix(0, ns)
	return &t
}
