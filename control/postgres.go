package control

import (
	"context"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/timeline"
)

// Labels that a capture of PostgreSQL notes at its point.
const (
	labelStart    = "start_lsn"
	labelStop     = "stop_lsn"
	labelTimeline = "timeline"
	labelSystem   = "system_id"
	labelVersion  = "version"
	labelSegment  = "wal_segment_bytes"
	labelStopped  = "stopped" // by the clock of a cluster's host, if that is another one
)

func statfs(dir string) (st unix.Statfs_t, err error) {
	err = unix.Statfs(dir, &st)
	return st, err
}

func (c *Control) capturePostgres(ctx context.Context, t *task, a app, bookmark string) (res tidemark.CaptureResult, err error) {
	src, err := postgres.ParseSource(a.Source)
	if err != nil {
		return res, err
	}
	dir, err := c.staged(ctx, a, dataDisk)
	if err != nil {
		return res, err
	}
	// Without its disk below it, the log would go into a plain directory, and no clone would see it.
	if _, err := c.staged(ctx, a, logDisk); err != nil {
		return res, err
	}
	if err := c.receive(a); err != nil {
		return res, err
	}
	r, err := c.agent.CapturePostgres(ctx, src, dir, c.printsOf(a), t.report)
	if err != nil {
		return res, err
	}
	res.ReadBytes, res.ChangedBytes, res.Notes = r.ReadBytes, r.ChangedBytes, r.Warnings
	if r.Rescan != "" {
		res.Notes = append(res.Notes, r.Rescan)
	}
	res.Point, err = c.markCapture(ctx, t, a, clusterMark(bookmark, r))
	if err != nil {
		return res, err
	}
	c.pruneLog(ctx, a)
	return res, nil
}

// clusterMark is the mark of a cluster that was captured.
func clusterMark(bookmark string, r *postgres.CaptureResult) timeline.Mark {
	return timeline.Mark{Name: bookmark, Consistency: tidemark.ApplicationConsistent, Labels: map[string]string{
		labelStart: r.StartLSN.String(), labelStop: r.StopLSN.String(), labelTimeline: strconv.FormatUint(uint64(r.Timeline), 10),
		labelSystem: r.SystemID, labelVersion: strconv.Itoa(r.Version), labelSegment: strconv.FormatInt(r.SegSize, 10),
	}}
}

// printsOf is where fingerprints of what is staged are kept: a cache.
func (c *Control) printsOf(a app) string { return c.path("fingerprints", a.name) }

// receivers are the log streams of all databases.
type receivers struct {
	mu     sync.Mutex
	live   map[string]*receiving
	failed map[string]int // by name, how often in a row a log was not pruned
}

type receiving struct {
	cancel context.CancelFunc
	ended  chan struct{}
}

func (r *receivers) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.live[name] != nil
}

func (r *receivers) stop(name string) {
	r.mu.Lock()
	x := r.live[name]
	delete(r.live, name)
	delete(r.failed, name)
	r.mu.Unlock()
	if x != nil {
		x.cancel()
		<-x.ended
	}
}

// unpruned notes whether a log was not pruned, and returns how often in a row it was not: now, or before this time.
func (r *receivers) unpruned(name string, failed bool) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.failed[name]
	if !failed {
		delete(r.failed, name)
		return n
	}
	if r.failed == nil {
		r.failed = map[string]int{}
	}
	r.failed[name] = n + 1
	return n + 1
}

func (r *receivers) stopAll() {
	r.mu.Lock()
	var names []string
	for n := range r.live {
		names = append(names, n)
	}
	r.mu.Unlock()
	for _, n := range names {
		r.stop(n)
	}
}

// logDir is where the log of a database is streamed to, on its staging disk.
func (c *Control) logDir(a app) string { return filepath.Join(c.dirOf(a, logDisk), logTree) }

// logTree is the directory of the log on its disk.
const logTree = "log"

// receive begins to stream a database's log, if that is not done already.
func (c *Control) receive(a app) error {
	c.receivers.mu.Lock()
	defer c.receivers.mu.Unlock()
	if c.receivers.live[a.name] != nil {
		return nil
	}
	log, end, err := c.logOf(a)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &receiving{cancel: cancel, ended: make(chan struct{})}
	if c.receivers.live == nil {
		c.receivers.live = map[string]*receiving{}
	}
	c.receivers.live[a.name] = x
	go func() {
		defer close(x.ended)
		defer end()
		c.keepReceiving(ctx, a, log)
	}()
	return nil
}

// keepReceiving has the agent receive a log until ctx is done. What can go wrong with
// production it deals with itself; what is left is that it dies.
func (c *Control) keepReceiving(ctx context.Context, a app, log agent.Log) {
	for {
		err := c.agent.ReceiveLog(ctx, log, func(g postgres.Gap) { c.event("error", a.name, "the log has a gap: %s", g.Reason) })
		if ctx.Err() != nil {
			return
		}
		c.event("error", a.name, "the log was not received for a moment: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// dropTime bounds how long a cluster is asked to drop a slot: a start of the server waits for it, where a protect was cut.
const dropTime = 20 * time.Second

// dropSlot has a cluster keep no log for us any more, when nobody receives it.
func (c *Control) dropSlot(ctx context.Context, a app) error {
	if a.sent() {
		return c.dropOn(ctx, a.Agent, leftSlot{a.t.ID(), a.Source})
	}
	src, err := postgres.ParseSource(a.Source)
	if err != nil {
		return err
	}
	return postgres.DropSlot(ctx, src, a.t.ID())
}

// pruneLog deletes log that no retained point can use. It comes behind what made or expired a point, which is done: that it fails is told
// if it lasts, and tried again behind the next one.
func (c *Control) pruneLog(ctx context.Context, a app) {
	err := c.tryPruneLog(ctx, a)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		c.log.Error("log that no point needs was not deleted", "application", a.name, "error", err)
	}
	switch n := c.receivers.unpruned(a.name, err != nil); {
	case err != nil && n == lastingPrunes:
		c.event("error", a.name, "the log of %s that no point needs is not deleted, and grows: %v", a.name, err)
	case err == nil && n >= lastingPrunes:
		c.event("info", a.name, "the log of %s that no point needs is deleted again", a.name)
	}
}

// lastingPrunes is how often in a row a log was not pruned when that is told.
const lastingPrunes = 3

func (c *Control) tryPruneLog(ctx context.Context, a app) error {
	points := a.t.PointsFrom(0, 1)
	if !a.hasLog() || len(points) == 0 {
		return nil
	}
	oldest, err := postgres.ParseLSN(points[0].Labels[labelStart])
	if err != nil {
		return err
	}
	return c.agent.PruneLog(ctx, c.logDir(a), oldest)
}

// describeLog adds to a description what the log stream says.
func (c *Control) describeLog(ctx context.Context, a app, d *tidemark.Application) {
	if !c.receivers.has(a.name) {
		if a.hasLog() {
			d.State, d.Detail = "degraded", "its log is not being received"
		}
		return
	}
	st, err := c.agent.LogStatus(ctx, a.t.ID())
	if err == nil && st.Error != "" {
		d.State, d.Detail = "degraded", "log: "+st.Error
	}
	if st.Covered.IsZero() {
		return
	}
	p := a.t.PointsFrom(0, 1)
	if len(p) > 0 && !leadsOn(p[0], st.Oldest) {
		p = a.t.Points()
	}
	if from := firstLedOn(p, st.Oldest); st.Covered.After(from) && !from.IsZero() {
		d.Covered = &tidemark.Interval{From: from, To: st.Covered}
	}
}

// leadsOn reports whether log that begins at a position leads on from a point.
func leadsOn(p tidemark.RecoveryPoint, oldest postgres.LSN) bool {
	stop, err := postgres.ParseLSN(p.Labels[labelStop])
	return err == nil && oldest != 0 && oldest <= stop
}

// firstLedOn is the time of the first point from which log that begins at a position leads on; zero if there is none.
func firstLedOn(points []tidemark.RecoveryPoint, oldest postgres.LSN) time.Time {
	for _, p := range points {
		if leadsOn(p, oldest) {
			return p.Time
		}
	}
	return time.Time{}
}

// describeCoverage adds to points the times of which any point can be had, and the gaps: what the journal has or,
// of a database that is captured, its log.
func (c *Control) describeCoverage(ctx context.Context, a app, p *tidemark.Points) {
	if a.journaled() {
		p.Covered = a.t.Covered()
		for _, g := range a.t.Unreachable() {
			p.Gaps = append(p.Gaps, tidemark.Interval{From: g.Start, To: g.End, Reason: g.Why})
		}
		return
	}
	if !c.receivers.has(a.name) || len(p.Points) == 0 {
		return
	}
	st, err := c.agent.LogStatus(ctx, a.t.ID())
	if err != nil {
		return
	}
	coverByLog(p, st)
}

// coverByLog is describeCoverage by a log, where there are points: behind its beginning, and each gap, it leads on from the next point.
func coverByLog(p *tidemark.Points, st postgres.ReceiverStatus) {
	from := firstLedOn(p.Points, st.Oldest)
	for _, g := range st.Gaps {
		p.Gaps = append(p.Gaps, tidemark.Interval{From: g.FromTime, To: g.ToTime, Reason: g.Reason})
		if g.FromTime.After(from) && !from.IsZero() {
			p.Covered = append(p.Covered, tidemark.Interval{From: from, To: g.FromTime})
		}
		from = firstLedOn(p.Points, g.To)
	}
	if !from.IsZero() && st.Covered.After(from) {
		p.Covered = append(p.Covered, tidemark.Interval{From: from, To: st.Covered})
	}
}
