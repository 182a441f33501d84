package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
)

// KindWorkflow is the kind of jobs that only have others done, and wait for them. They count for no limit: if they did, they could keep
// those from running that they wait for.
const KindWorkflow = "workflow"

// Workflow is one version of a workflow.
type Workflow struct {
	Name     string
	Version  int64
	Document string // as it was applied, without what separates it from others
	Author   string // the user who did; empty: the administrator at the socket
	AuthorID string // of that user, as [Catalog.IsUser] has it
	// Token is the API token that he applied it by: its roles and applications narrow what runs of its schedule may do. nil: none.
	Token   *access.Token
	Created time.Time
	Removed *time.Time // when the workflow was removed; nil: it is not
}

type workflowRow struct {
	bun.BaseModel `bun:"table:workflows"`
	Owner         string
	Name          string
	Version       int64
	Document      string
	Author        string
	AuthorID      string
	Token         string // as JSON; empty: none
	Created       int64
	Removed       int64
}

func (r workflowRow) workflow() (w Workflow, err error) {
	w = Workflow{Name: r.Name, Version: r.Version, Document: r.Document, Author: r.Author, AuthorID: r.AuthorID, Created: time.Unix(0, r.Created), Removed: timeOf(r.Removed)}
	if r.Token == "" {
		return w, nil
	}
	if err := json.Unmarshal([]byte(r.Token), &w.Token); err != nil {
		return w, tidemark.Errorf(tidemark.Corrupt, "version %d of the workflow %s cannot be read: %w", r.Version, r.Name, err)
	}
	return w, nil
}

// Same reports whether v says the same, by the rights of the same user, narrowed alike.
func (w Workflow) Same(v Workflow) bool {
	return w.Document == v.Document && w.Author == v.Author && w.AuthorID == v.AuthorID && w.Token.NarrowsAs(v.Token)
}

// PutWorkflow stores w as the newest version of the workflow that it names, and returns it. One that is the newest already stays the one
// that it is. Version and times are not taken from w.
func (c *Catalog) PutWorkflow(ctx context.Context, w Workflow) (kept Workflow, err error) {
	row := workflowRow{Owner: c.owner, Name: w.Name, Document: w.Document, Author: w.Author, AuthorID: w.AuthorID, Created: c.now().UnixNano()}
	if w.Token != nil {
		token, err := json.Marshal(w.Token)
		if err != nil {
			return kept, err
		}
		row.Token = string(token)
	}
	err = c.tx(ctx, "store workflow "+w.Name, func(ctx context.Context, tx bun.Tx) error {
		var last workflowRow
		q := tx.NewSelect().Model(&last).Where("owner = ? AND name = ?", c.owner, w.Name).Order("version DESC").Limit(1)
		if err := q.Scan(ctx); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if last.Version > 0 && last.Removed == 0 {
			if kept, err = last.workflow(); err != nil || kept.Same(w) {
				return err
			}
		}
		row.Version = last.Version + 1
		if kept, err = row.workflow(); err != nil {
			return err
		}
		_, err := tx.NewInsert().Model(&row).Exec(ctx)
		if unique(err) { // two at the same time
			return tidemark.Errorf(tidemark.Conflict, "somebody else has just changed the workflow %s", w.Name).WithHint("look at it, and apply yours again")
		}
		return err
	})
	return kept, err
}

const selectWorkflow = "SELECT name, version, document, author, author_id, token, created, removed FROM workflows WHERE owner = ? "

// Workflow returns a version of a workflow; 0 is the newest, unless it was removed. Other versions are there as long as the catalog is.
func (c *Catalog) Workflow(ctx context.Context, name string, version int64) (Workflow, error) {
	var row workflowRow
	query, args := "AND name = ? AND removed = 0 ORDER BY version DESC LIMIT 1", []any{c.owner, name}
	if version != 0 {
		query, args = "AND name = ? AND version = ?", append(args, version)
	}
	err := c.query(ctx, &row, selectWorkflow+query, args...)
	switch {
	case errors.Is(err, sql.ErrNoRows) && version != 0:
		return Workflow{}, tidemark.Errorf(tidemark.NotFound, "there is no version %d of a workflow %q", version, name).WithHint("`tidemark workflow show` tells which there are")
	case errors.Is(err, sql.ErrNoRows):
		return Workflow{}, noWorkflow(name)
	}
	if err != nil {
		return Workflow{}, wrap(err, "look up workflow %s", name)
	}
	return row.workflow()
}

func noWorkflow(name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no workflow %q", name).WithHint("`tidemark workflow list` lists them")
}

// Workflows returns the newest version of each workflow that was not removed, by name.
func (c *Catalog) Workflows(ctx context.Context) ([]Workflow, error) {
	return c.workflows(ctx, `AND removed = 0 AND version = (SELECT max(w.version) FROM workflows AS w WHERE w.owner = workflows.owner AND w.name = workflows.name)
		ORDER BY name`)
}

// LastVersion returns the newest version that a workflow ever had, also if it was removed, and whether there is one.
func (c *Catalog) LastVersion(ctx context.Context, name string) (Workflow, bool, error) {
	list, err := c.workflows(ctx, "AND name = ? ORDER BY version DESC LIMIT 1", name)
	if len(list) == 0 {
		return Workflow{}, false, err
	}
	return list[0], true, err
}

// Versions returns all versions that a workflow ever had, newest first.
func (c *Catalog) Versions(ctx context.Context, name string) ([]Workflow, error) {
	return c.workflows(ctx, "AND name = ? ORDER BY version DESC", name)
}

func (c *Catalog) workflows(ctx context.Context, query string, args ...any) (list []Workflow, err error) {
	var rows []workflowRow
	err = c.query(ctx, &rows, selectWorkflow+query, append([]any{c.owner}, args...)...)
	if err != nil {
		return nil, wrap(err, "list workflows")
	}
	for _, r := range rows {
		w, err := r.workflow()
		if err != nil {
			return nil, err
		}
		list = append(list, w)
	}
	return list, nil
}

// RemoveWorkflow removes a workflow. Its versions stay, for the runs that there were.
func (c *Catalog) RemoveWorkflow(ctx context.Context, name string) error {
	var n int64
	err := c.do(ctx, func(ctx context.Context) error {
		res, err := c.write.NewRaw("UPDATE workflows SET removed = ? WHERE owner = ? AND name = ? AND removed = 0", c.now().UnixNano(), c.owner, name).Exec(ctx)
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	if err == nil && n == 0 {
		return noWorkflow(name)
	}
	return wrap(err, "remove workflow %s", name)
}

// Runs returns the newest n runs of workflows whose numbers are below before, newest first: of all that have an application's name of
// jobs, or, if that is empty, of any. 0 stands for no bound.
func (c *Catalog) Runs(ctx context.Context, application string, before int64, n int) ([]*Job, error) {
	return c.runs(ctx, n, "(application = ? OR ? = '') AND (id < ? OR ? = 0)", application, application, before, before)
}

// LastScheduled returns the newest run that a schedule began, or nil.
func (c *Catalog) LastScheduled(ctx context.Context, application string) (*Job, error) {
	list, err := c.runs(ctx, 1, "application = ? AND origin = ?", application, string(tidemark.FromSchedule))
	if len(list) == 0 {
		return nil, err
	}
	return list[0], err
}

func (c *Catalog) runs(ctx context.Context, n int, where string, args ...any) ([]*Job, error) {
	var rows []jobRow
	err := c.do(ctx, func(ctx context.Context) error {
		rows = nil
		return c.read.NewSelect().Model(&rows).Where("owner = ? AND kind = '"+KindWorkflow+"'", c.owner).Where(where, args...).Order("id DESC").Limit(int64(n)).Scan(ctx)
	})
	return jobsOf(rows), wrap(err, "list runs of workflows")
}

// PartOf returns the job that is a part of another, or nil if there is none yet.
func (c *Catalog) PartOf(ctx context.Context, parent int64, part string) (*Job, error) {
	var row jobRow
	err := c.query(ctx, &row, "SELECT * FROM jobs WHERE owner = ? AND parent = ? AND part = ? AND part <> ''", c.owner, parent, part)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err, "look up a part of job %d", parent)
	}
	return row.job(), nil
}

// PartAtLast is [Catalog.PartOf] behind all that is under way: the part that an [Catalog.Enqueue] may have recorded whose answer
// did not arrive, or nil if there is none, and will be none of that.
func (c *Catalog) PartAtLast(ctx context.Context, parent int64, part string) (*Job, error) {
	if err := c.changeQueue(ctx, func(context.Context, bun.Tx) error { return nil }); err != nil {
		return nil, wrap(err, "look up a part of job %d", parent)
	}
	return c.PartOf(ctx, parent, part)
}

// PartsOf returns the numbers of the jobs that are parts of another, by part.
func (c *Catalog) PartsOf(ctx context.Context, parent int64) (map[string]int64, error) {
	var rows []jobRow
	err := c.query(ctx, &rows, "SELECT id, part FROM jobs WHERE owner = ? AND parent = ? AND part <> ''", c.owner, parent)
	parts := map[string]int64{}
	for _, r := range rows {
		parts[r.Part] = r.ID
	}
	return parts, wrap(err, "list the parts of job %d", parent)
}

// StepState is how far a step of a run is.
type StepState string

// The states of a step that has begun.
const (
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
)

// RunStep is a step of a run that has begun.
type RunStep struct {
	Step     string // its ID in the plan
	State    StepState
	Result   json.RawMessage // nil: none
	Failure  *tidemark.Error
	Started  time.Time
	Finished *time.Time
}

// BeginStep records that a step of a run begins. To record it once more does no harm.
func (c *Catalog) BeginStep(ctx context.Context, run int64, step string) error {
	return wrap(c.exec(ctx, "INSERT INTO workflow_steps (owner, run, step, state, result, error, started, finished) VALUES (?, ?, ?, ?, '', '', ?, 0) ON CONFLICT DO NOTHING",
		c.owner, run, step, string(StepRunning), c.now().UnixNano()), "record that step %s of run %d begins", step, run)
}

// EndStep records how a step of a run ended: with a result, or a failure that is not nil.
func (c *Catalog) EndStep(ctx context.Context, run int64, step string, result any, failure *tidemark.Error) error {
	state, res, fail := StepDone, []byte(nil), []byte(nil)
	var err error
	if result != nil {
		res, err = json.Marshal(result)
	}
	if failure != nil && err == nil {
		state = StepFailed
		fail, err = json.Marshal(failure)
	}
	if err != nil {
		return err
	}
	return wrap(c.exec(ctx, "UPDATE workflow_steps SET state = ?, result = ?, error = ?, finished = ? WHERE owner = ? AND run = ? AND step = ?",
		string(state), string(res), string(fail), c.now().UnixNano(), c.owner, run, step), "record the end of step %s of run %d", step, run)
}

// RunSteps returns the steps of a run that have begun, by their IDs.
func (c *Catalog) RunSteps(ctx context.Context, run int64) (map[string]RunStep, error) {
	var rows []struct {
		Step, State, Result, Error string
		Started, Finished          int64
	}
	err := c.query(ctx, &rows, "SELECT step, state, result, error, started, finished FROM workflow_steps WHERE owner = ? AND run = ?", c.owner, run)
	steps := map[string]RunStep{}
	for _, r := range rows {
		s := RunStep{Step: r.Step, State: StepState(r.State), Started: time.Unix(0, r.Started), Finished: timeOf(r.Finished)}
		if r.Result != "" {
			s.Result = json.RawMessage(r.Result)
		}
		if r.Error != "" {
			s.Failure = new(tidemark.Error)
			if err := json.Unmarshal([]byte(r.Error), s.Failure); err != nil {
				s.Failure = tidemark.Errorf(tidemark.Internal, "%s", r.Error)
			}
		}
		steps[r.Step] = s
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return steps, wrap(err, "list the steps of run %d", run)
}
