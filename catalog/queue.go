package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
)

// LeaseFor is how long a running job is held without being renewed. Who holds the lock of a data directory takes its
// jobs over at once, whatever their leases say; what a lease decides is for how long a server that died counts on its hosts.
const LeaseFor = 30 * time.Second

// NewJob is a job that is asked for.
type NewJob struct {
	Kind        string
	Application string // of which one job runs at a time; empty: of none
	FirstID     string // by which whoever asks knows it, for a name can be another's by the time the job begins; empty: whoever has the name
	Host        string // that it works on; empty: on none
	Profile     string // of its application; empty: none
	Args        any    // the request
	// Terms are looked at again when it begins; empty: there are none.
	Terms json.RawMessage
	// Now: it begins at once if it can, and is refused if its application is busy. Else it is queued.
	Now         bool
	Priority    int
	NotBefore   time.Time // zero: any time
	MaxAttempts int       // how often it may be begun
	AskedBy     string
	AskerID     string // of that user, as [Catalog.IsUser] has it
	Origin      tidemark.JobOrigin
	Parent      int64
	Part        string // of the parent, that it is; there is one job of each part. Empty: it is no part
}

// Limits bound how many jobs run at a time.
type Limits struct {
	Host int // on one host, of all owners together
	All  int // of this owner
	// Profiles are how many jobs of one profile, of this owner, may run for one more to begin that a policy asked for; a profile that is not here has no bound.
	Profiles map[string]int
}

// Enqueue records a job. One that is to begin now is running when this returns, and held here, unless a limit is reached:
// then it is queued. If a job of its application runs already, it is refused, with an error of kind Conflict that names the other.
// If a part is there already, that job is returned as it is now; a part is not to begin now.
//
// If the database went away meanwhile, and is back within settleFor, the job is recorded, once. Else a job that is no part, and may be
// recorded all the same, is withdrawn before another is begun: who was told that it failed does not have it done. Of a part, [Catalog.PartAtLast] tells.
func (c *Catalog) Enqueue(ctx context.Context, n NewJob, l Limits) (*Job, error) {
	body, err := json.Marshal(n.Args)
	if err != nil {
		return nil, err
	}
	part := n.Part != ""
	if !part {
		n.Part = rand.Text() // by which it is found again
	}
	j, err := c.enqueue(ctx, n, l, string(body))
	if MayBeDone(ctx, err) && ctx.Err() == nil {
		again, cancel := context.WithTimeout(Patient(ctx), settleFor)
		defer cancel()
		if k, e := c.enqueue(again, n, l, string(body)); again.Err() == nil && !errors.Is(e, ErrAway) {
			return k, wrap(e, "record a job") // as it would have been at first
		}
	}
	if MayBeDone(ctx, err) && !part {
		c.doubts.add(n.Part)
	}
	return j, wrap(err, "record a job")
}

// settleFor is how long a database that went away is waited for by who does not know whether it recorded a job: a connection that is
// cut is made anew in that time, and who asked can wait for so long.
const settleFor = 2 * time.Second

// enqueue records a job, if it is not there. So it can be called again.
func (c *Catalog) enqueue(ctx context.Context, n NewJob, l Limits, args string) (*Job, error) {
	var row jobRow
	err := c.changeQueue(ctx, func(ctx context.Context, tx bun.Tx) error {
		row = jobRow{}
		err := tx.NewSelect().Model(&row).Where("owner = ? AND parent = ? AND part = ? AND part <> ''", c.owner, n.Parent, n.Part).Scan(ctx)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if n.Now {
			if err := c.busy(ctx, tx, n.Application); err != nil {
				return err
			}
		}
		row = c.rowOf(n, args)
		if _, err := tx.NewInsert().Model(&row).Returning("id").Exec(ctx); err != nil || !n.Now {
			return err
		}
		_, err = c.claim(ctx, tx, l, &row, row.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	return row.job(), nil
}

// rowOf is how a job is queued.
func (c *Catalog) rowOf(n NewJob, args string) jobRow {
	now := c.now().UnixNano()
	row := jobRow{Kind: n.Kind, Application: n.Application, Host: n.Host, State: string(tidemark.JobQueued), Args: args,
		Owner: c.owner, Priority: int64(n.Priority), Created: now, Queued: now, MaxAttempts: int64(n.MaxAttempts),
		AskedBy: n.AskedBy, AskerID: n.AskerID, Origin: string(n.Origin), Parent: n.Parent, Part: n.Part, FirstID: n.FirstID, Profile: n.Profile, Terms: string(n.Terms)}
	if !n.NotBefore.IsZero() {
		row.NotBefore = n.NotBefore.UnixNano()
	}
	return row
}

// changeQueue runs a transaction that begins jobs. There is one at a time, of all processes: so a limit that was looked at still holds when it is used.
// Behind an earlier one, it sees whether that took place. Jobs that are in doubt are withdrawn first.
func (c *Catalog) changeQueue(ctx context.Context, change func(context.Context, bun.Tx) error) error {
	return c.do(ctx, func(ctx context.Context) error {
		doubted := c.doubts.all()
		err := c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			if c.outage.remote {
				if _, err := tx.NewRaw("SELECT pg_advisory_xact_lock(?)", queueLock).Exec(ctx); err != nil {
					return err
				}
			}
			if err := c.withdraw(ctx, tx, doubted); err != nil {
				return err
			}
			return change(ctx, tx)
		})
		if err == nil {
			c.doubts.settle(doubted)
		}
		return err
	})
}

// withdraw ends the jobs that were recorded of some whose callers were told that they failed. None of them runs: what the database began of
// them, nobody here heard of.
func (c *Catalog) withdraw(ctx context.Context, tx bun.Tx, parts []string) error {
	if len(parts) == 0 {
		return nil
	}
	fail, err := json.Marshal(tidemark.Errorf(tidemark.Unavailable, "the catalog's database went away when the job was recorded").WithHint("ask for it again"))
	if err != nil {
		return err
	}
	_, err = tx.NewRaw(`UPDATE jobs SET state = 'failed', error = ?, finished = ?, lease_end = 0, undo = ''
		WHERE owner = ? AND part IN (?) AND (state = 'queued' OR state = 'running' AND holder = ?)`,
		string(fail), c.now().UnixNano(), c.owner, bun.In(parts), c.holder).Exec(ctx)
	return err
}

// doubts are the jobs of which nobody knows whether they were recorded, by their parts. They are no more than calls were
// under way when the database went away.
type doubts struct {
	mu    sync.Mutex
	parts map[string]bool // guarded by mu
}

func (d *doubts) add(part string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.parts == nil {
		d.parts = map[string]bool{}
	}
	d.parts[part] = true
}

func (d *doubts) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.parts))
}

func (d *doubts) settle(parts []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range parts {
		delete(d.parts, p)
	}
}

// queueLock is the number of the advisory lock of PostgreSQL that changeQueue takes: "tidemark" in ASCII.
const queueLock int64 = 0x746964656d61726b

// busy is an error that names the running job of an application, if there is one.
func (c *Catalog) busy(ctx context.Context, tx bun.Tx, application string) error {
	var row jobRow
	err := tx.NewSelect().Model(&row).Where("owner = ? AND application = ? AND application <> '' AND state = 'running'", c.owner, application).Limit(1).Scan(ctx)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return tidemark.Errorf(tidemark.Conflict, "%s is busy: job %d (%s) is running", application, row.ID, row.Kind).
		WithHint("wait for it or cancel it: `tidemark jobs`")
}

// Claim begins the queued job whose turn it is, and returns it, or nil if none can begin. It runs, and is held here, from here on: of all
// who claim at the same time, one gets it. The highest priority comes first, and then the oldest; one that has to wait for
// a time, its application or a limit does not keep others waiting.
//
// A job that was queued at a time that is still to come waits no longer: the clock was set back, and nobody knows by how much.
func (c *Catalog) Claim(ctx context.Context, l Limits) (j *Job, err error) {
	var waiting []int64
	// What is usual, that there is none, costs no transaction.
	if err := c.query(ctx, &waiting, "SELECT id FROM jobs WHERE owner = ? AND state = 'queued' LIMIT 1", c.owner); err != nil || len(waiting) == 0 {
		return nil, wrap(err, "look for a job")
	}
	err = c.changeQueue(ctx, func(ctx context.Context, tx bun.Tx) error {
		j = nil
		var row jobRow
		ok, err := c.claim(ctx, tx, l, &row, 0)
		if ok {
			j = row.job()
		}
		return err
	})
	return j, wrap(err, "begin a job")
}

// claim begins the job whose turn it is, or that of an id, into row, and reports whether it did.
func (c *Catalog) claim(ctx context.Context, tx bun.Tx, l Limits, row *jobRow, id int64) (bool, error) {
	now := c.now()
	which := "(q.not_before <= ?now OR q.queued > ?now)"
	if id != 0 {
		which = "q.id = ?id"
	}
	full, err := c.fullProfiles(ctx, tx, l)
	if err != nil {
		return false, err
	}
	if len(full) > 0 {
		which += " AND NOT (q.origin = ?schedule AND q.profile IN (?full))"
	}
	lock := ""
	if c.outage.remote {
		lock = "FOR UPDATE SKIP LOCKED"
	}
	err = tx.NewRaw(`UPDATE jobs SET state = 'running', holder = ?holder, lease_end = ?lease, started = ?now, attempts = attempts + 1, not_before = 0
		WHERE id = (SELECT q.id FROM jobs AS q WHERE q.owner = ?owner AND q.state = 'queued' AND `+which+`
			AND NOT EXISTS (SELECT 1 FROM jobs AS r WHERE r.owner = q.owner AND r.application = q.application AND r.application <> '' AND r.state = 'running')
			AND (q.host = '' OR ?host > (SELECT count(*) FROM jobs AS r WHERE r.host = q.host AND r.state = 'running' AND (r.owner = q.owner OR r.lease_end > ?now)))
			AND (q.kind = ?waiter OR ?all > (SELECT count(*) FROM jobs AS r WHERE r.owner = q.owner AND r.state = 'running' AND r.kind <> ?waiter))
			ORDER BY q.priority DESC, q.id LIMIT 1 `+lock+`)
		RETURNING *`, claimArgs{Holder: c.holder, Owner: c.owner, Now: now.UnixNano(), Lease: now.Add(LeaseFor).UnixNano(), ID: id, Host: l.Host, All: l.All, Waiter: KindWorkflow,
		Schedule: string(tidemark.FromSchedule), Full: bun.In(full)}).Scan(ctx, row)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// claimArgs are what stands behind the question marks of a claim.
type claimArgs struct {
	Holder, Owner  string
	Waiter         string
	Now, Lease, ID int64
	Host, All      int
	Schedule       string
	Full           any // the names of profiles that are full, for IN
}

// fullProfiles are the profiles of which as many jobs run as may.
func (c *Catalog) fullProfiles(ctx context.Context, tx bun.Tx, l Limits) (full []string, err error) {
	if len(l.Profiles) == 0 {
		return nil, nil
	}
	var running []profileLoad
	err = tx.NewRaw("SELECT profile, count(*) AS jobs FROM jobs WHERE owner = ? AND state = 'running' AND profile <> '' GROUP BY profile", c.owner).Scan(ctx, &running)
	for _, r := range running {
		if most, bounded := l.Profiles[r.Profile]; bounded && r.Jobs >= most {
			full = append(full, r.Profile)
		}
	}
	return full, err
}

// profileLoad is how many jobs of a profile run.
type profileLoad struct {
	Profile string
	Jobs    int
}

// TakeOver makes all running jobs of the owner ours that are held by others, and returns them, oldest first: they were cut. The
// caller holds the lock of the data directory, so those others are dead; should one live, what it records of them is refused with [ErrLost].
func (c *Catalog) TakeOver(ctx context.Context) ([]*Job, error) {
	var rows []jobRow
	err := c.do(ctx, func(ctx context.Context) error {
		if _, err := c.write.NewRaw("UPDATE jobs SET holder = ?, lease_end = ? WHERE owner = ? AND state = 'running' AND holder <> ?",
			c.holder, c.now().Add(LeaseFor).UnixNano(), c.owner, c.holder).Exec(ctx); err != nil {
			return err
		}
		rows = nil
		return c.write.NewSelect().Model(&rows).Where("owner = ? AND state = 'running' AND holder = ?", c.owner, c.holder).Order("id").Scan(ctx)
	})
	return jobsOf(rows), wrap(err, "take over running jobs")
}

// Held is a job that runs here.
type Held struct {
	ID         int64
	Cancelling bool // somebody wants it cancelled
	Origin     tidemark.JobOrigin
	Attempt    int
}

// Renew makes the leases of all jobs that are held here last longer, and returns the jobs.
func (c *Catalog) Renew(ctx context.Context) ([]Held, error) {
	var rows []jobRow
	err := c.do(ctx, func(ctx context.Context) error {
		rows = nil
		return c.write.NewRaw("UPDATE jobs SET lease_end = ? WHERE owner = ? AND holder = ? AND state = 'running' RETURNING *",
			c.now().Add(LeaseFor).UnixNano(), c.owner, c.holder).Scan(ctx, &rows)
	})
	list := make([]Held, len(rows))
	for i, r := range rows {
		list[i] = Held{ID: r.ID, Cancelling: r.Cancelling != 0, Origin: tidemark.JobOrigin(r.Origin), Attempt: int(r.Attempts)}
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return list, wrap(err, "renew the leases of jobs")
}

// Again says how a job is begun again.
type Again struct {
	Attempt int // that has ended
	After   time.Duration
	Args    json.RawMessage // the request, where it is to be another; else nil
	Failure *tidemark.Error // of the last attempt
}

// Requeue makes a job that runs here, and has nothing to be undone any more, a queued one. If somebody wants it cancelled, it is
// cancelled instead. To record it once more does no harm.
func (c *Catalog) Requeue(ctx context.Context, id int64, a Again) error {
	fail, err := json.Marshal(a.Failure)
	if err != nil {
		return err
	}
	cancelled, err := json.Marshal(tidemark.Errorf(tidemark.Cancelled, "the job was cancelled"))
	if err != nil {
		return err
	}
	now := c.now()
	return c.ours(ctx, id, "begin again", `UPDATE jobs SET state = CASE cancelling WHEN 0 THEN 'queued' ELSE 'cancelled' END,
		finished = CASE cancelling WHEN 0 THEN 0 ELSE ? END, error = CASE cancelling WHEN 0 THEN ? ELSE ? END, queued = ?, not_before = ?, args = CASE ? WHEN '' THEN args ELSE ? END,
		lease_end = 0, step = '', undo = '', done = 0, total = 0, unit = '' WHERE state IN ('running', 'queued') AND attempts = ?`,
		now.UnixNano(), string(fail), string(cancelled), now.UnixNano(), now.Add(a.After).UnixNano(), string(a.Args), string(a.Args), a.Attempt)
}

// Cancel ends a queued job, or notes that somebody wants a running one cancelled, which its holder is told by [Catalog.Renew]; it reports whether it runs.
func (c *Catalog) Cancel(ctx context.Context, id int64) (running bool, err error) {
	var now jobRow
	err = c.do(ctx, func(ctx context.Context) error {
		return c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			q := tx.NewSelect().Model(&now).Where("id = ? AND owner = ?", id, c.owner)
			if c.outage.remote {
				q.For("UPDATE")
			}
			if err := q.Scan(ctx); err != nil {
				return err
			}
			switch tidemark.JobState(now.State) {
			case tidemark.JobQueued:
				fail, err := json.Marshal(tidemark.Errorf(tidemark.Cancelled, "the %s was cancelled", now.Kind))
				if err != nil {
					return err
				}
				_, err = tx.NewRaw("UPDATE jobs SET state = 'cancelled', finished = ?, error = ? WHERE id = ?", c.now().UnixNano(), string(fail), id).Exec(ctx)
				return err
			case tidemark.JobRunning:
				running = true
				_, err := tx.NewRaw("UPDATE jobs SET cancelling = 1 WHERE id = ?", id).Exec(ctx)
				return err
			}
			return tidemark.Errorf(tidemark.Conflict, "job %d is not running: it is %s", id, now.State).WithHint("`tidemark jobs` lists the running ones")
		})
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, noJob(id)
	}
	return running, wrap(err, "cancel job %d", id)
}

// Over returns those of some jobs that neither wait nor run any more.
func (c *Catalog) Over(ctx context.Context, ids []int64) ([]tidemark.Job, error) {
	var rows []jobRow
	err := c.do(ctx, func(ctx context.Context) error {
		rows = nil
		return c.read.NewSelect().Model(&rows).Where("owner = ? AND id IN (?) AND state NOT IN ('queued', 'running')", c.owner, bun.In(ids)).Scan(ctx)
	})
	list := make([]tidemark.Job, len(rows))
	for i := range rows {
		list[i] = rows[i].job().Job
	}
	return list, wrap(err, "look which jobs are over")
}

// Load is what runs, and so why others wait.
type Load struct {
	All   int            // jobs of the owner
	Hosts map[string]int // jobs on each host, of all owners
	// Profiles are the jobs of each profile, of the owner.
	Profiles map[string]int
	Busy     map[string]tidemark.Job
}

// Load returns what runs now.
func (c *Catalog) Load(ctx context.Context) (Load, error) {
	l := Load{Hosts: map[string]int{}, Profiles: map[string]int{}, Busy: map[string]tidemark.Job{}}
	var rows []jobRow
	err := c.query(ctx, &rows, "SELECT * FROM jobs WHERE state = 'running' AND (owner = ? OR lease_end > ?)", c.owner, c.now().UnixNano())
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	for _, r := range rows {
		l.Hosts[r.Host]++
		if r.Owner == c.owner {
			if r.Kind != KindWorkflow {
				l.All++
			}
			l.Profiles[r.Profile]++
			l.Busy[r.Application] = r.job().Job
		}
	}
	return l, wrap(err, "list running jobs")
}
