package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/image"
	"tidemark/timeline"
)

// Status describes the server.
func (c *Control) Status(ctx context.Context) (tidemark.Status, error) {
	s := tidemark.Status{Version: tidemark.Version, DataDir: c.o.Dir, Started: c.started, KLimit: timeline.KLimit, Pool: new(tidemark.PoolStatus), K: new(int)}
	var err error
	if s.Applications, err = c.Applications(ctx); err != nil {
		return s, err
	}
	if s.Mounts, err = c.Mounts(ctx); err != nil {
		return s, err
	}
	if s.Clones, err = c.Clones(ctx); err != nil {
		return s, err
	}
	if s.Jobs, err = c.Jobs(ctx, tidemark.JobFilter{Limit: 10}); err != nil {
		return s, err
	}
	if s.Events, err = c.catalog.Events(ctx, 10); err != nil {
		return s, err
	}
	for _, t := range c.set.List() {
		timelineStatus(t, &s)
	}
	c.proofStatus(ctx, &s)
	c.spaceStatus(&s)
	c.warnOfTrail(&s)
	c.warnOfClock(&s)
	c.warnOfPromises(&s)
	c.warnOfTwice(&s)
	if err := c.webhookStatus(ctx, &s); err != nil {
		return s, err
	}
	s.Agents = c.hosts.address()
	return s, c.poolStatus(s.Pool)
}

// timelineStatus adds to a status what a timeline has, and what should be known of it.
func timelineStatus(t *timeline.Timeline, s *tidemark.Status) {
	if behind := t.ClockBehind(); behind > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the clock is %v behind the newest write of %s: until it has come there, what is written has times just behind that one",
			behind.Round(time.Second), t.Name()))
	}
	k := t.K()
	if k > timeline.KLimit {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s is written faster than it is folded, with %s to go: until that is done, to open a point near its present touches up to %d segments of its journal",
			t.Name(), tidemark.FormatSize(t.Backlog()), k))
	}
	*s.K = max(*s.K, k)
	s.Pool.JournalBytes += t.JournalBytes()
	s.Pool.ArchivedBytes += t.ArchivedBytes()
}

func (c *Control) poolStatus(p *tidemark.PoolStatus) error {
	st := c.store.Stats()
	p.Path, p.PhysicalBytes, p.Packs, p.Chunks, p.Health = c.path("pool"), st.PhysicalBytes, int64(st.Packs), st.Records, "ok"
	for _, t := range c.set.List() {
		n, err := t.LogicalBytes()
		if err != nil {
			c.log.Error("points could not be measured", "timeline", t.Name(), "error", err)
		}
		p.LogicalBytes += n
		if t.Trouble() != nil {
			p.Health = "degraded"
		}
	}
	if d := c.set.Damage(); len(d) > 0 {
		p.Health = fmt.Sprintf("damaged: %v", d[0])
	}
	fs, err := statfs(c.o.Dir)
	p.FreeBytes = int64(fs.Bavail) * fs.Bsize
	return err
}

// Verify reads and hashes all that is needed by a point, an application, or, with an empty reference, by all.
func (c *Control) Verify(ctx context.Context, ref string) (tidemark.Job, error) {
	return c.ask(ctx, "verify", ref)
}

func (c *Control) verifyWork(ctx context.Context, ref string) (*work, error) {
	var mark func(*image.Keeper) error
	if ref != "" {
		var err error
		if mark, err = c.markOf(ctx, ref); err != nil {
			return nil, err
		}
	}
	run := func(ctx context.Context, t *task) (any, error) {
		begun := time.Now()
		var v tidemark.VerifyResult
		if mark == nil {
			v.Damaged = c.verifyTimelines(ctx)
			mark = c.markAll
		}
		if err := c.verifyPool(ctx, t, mark, &v); err != nil {
			return nil, err
		}
		v.Seconds = time.Since(begun).Seconds()
		if len(v.Damaged) > 0 {
			c.event("error", "", "verify found damage in %d places; the first: %s", len(v.Damaged), v.Damaged[0])
		}
		return v, nil
	}
	of, _, _ := strings.Cut(ref, "@")
	return &work{of: of, args: fixed(ref), run: run}, nil
}

// verifyTimelines says what is damaged of timelines, points and journals.
func (c *Control) verifyTimelines(ctx context.Context) (damaged []string) {
	for _, err := range c.set.Damage() {
		damaged = append(damaged, err.Error())
	}
	for _, t := range c.set.List() {
		if err := t.VerifyJournal(); err != nil && ctx.Err() == nil {
			damaged = append(damaged, err.Error())
		}
	}
	return damaged
}

// markAll marks what can be listed; what cannot was reported by verifyTimelines.
func (c *Control) markAll(k *image.Keeper) error {
	if err := c.set.KeepReadable(k); err != nil {
		c.log.Error("verify could not list all that is needed", "error", err)
	}
	return nil
}

// verifyPool reads what is marked.
func (c *Control) verifyPool(ctx context.Context, t *task, mark func(*image.Keeper) error, v *tidemark.VerifyResult) error {
	total := c.store.Stats().Records
	r, err := c.store.Check(ctx, mark, func(done int64) {
		t.report(tidemark.Progress{Done: done, Total: max(total, done), Unit: "records"})
	})
	if err != nil {
		return err
	}
	v.Chunks, v.Bytes = r.Chunks, r.Bytes
	for _, d := range r.Damage {
		v.Damaged = append(v.Damaged, fmt.Sprintf("%v in %s at %d: %s; affects %s", d.Name, d.Pack, d.Offset, d.What, c.pointsWith(d.Roots)))
	}
	return nil
}

// markOf marks one point, or all points of an application.
func (c *Control) markOf(ctx context.Context, ref string) (func(*image.Keeper) error, error) {
	r, err := tidemark.ParseRef(ref)
	if err != nil {
		return nil, err
	}
	a, err := c.app(r.App)
	if err != nil {
		return nil, err
	}
	points := a.t.Points()
	if strings.Contains(ref, "@") {
		pos, err := c.resolve(ctx, a, r.Point)
		if err != nil {
			return nil, err
		}
		p, err := pointAt(a.t, pos)
		if err != nil {
			return nil, err
		}
		points = []tidemark.RecoveryPoint{p}
	}
	chunks := map[string]int{}
	for _, d := range a.t.Disks() {
		chunks[d.Name()] = d.Chunk()
	}
	return func(k *image.Keeper) error {
		for _, p := range points {
			for _, i := range p.Images {
				name, err := image.ParseName(i.Root)
				if err == nil {
					err = k.Root(image.Root{Name: name, Size: i.Size, Chunk: chunks[i.Disk]})
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	}, nil
}

// pointsWith names the points that have one of the images.
func (c *Control) pointsWith(roots []image.Root) string {
	bad := map[string]bool{}
	for _, r := range roots {
		bad[r.Name.String()] = true
	}
	var names []string
	for _, t := range c.set.List() {
		for _, p := range t.Points() {
			for _, i := range p.Images {
				if bad[i.Root] {
					names = append(names, t.Name()+"@"+p.Bookmark+" disk "+i.Disk)
				}
			}
		}
	}
	if len(names) == 0 {
		return "no retained point, but what is written now"
	}
	return strings.Join(names, ", ")
}

// Reclaim gives the space of expired points back.
func (c *Control) Reclaim(ctx context.Context) (tidemark.Job, error) {
	return c.ask(ctx, "reclaim", nil)
}

func (c *Control) reclaimWork(context.Context, struct{}) (*work, error) {
	run := func(ctx context.Context, _ *task) (any, error) {
		begun := time.Now()
		bounded, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		r, err := c.store.Reclaim(bounded, c.set.Keep)
		if err == nil {
			err = c.set.SweepArchives(ctx)
		}
		if err != nil {
			return nil, err
		}
		return tidemark.ReclaimResult{FreedBytes: r.BytesFreed - r.BytesMoved, PacksDeleted: int64(r.PacksDeleted),
			LiveBytes: c.store.Stats().PhysicalBytes, Seconds: time.Since(begun).Seconds()}, nil
	}
	return &work{run: run}, nil
}

// comeBack finds what the last server left: staging disks, mounts, clones, exports and cut jobs.
func (c *Control) comeBack(ctx context.Context) error {
	if err := c.beginWebhooks(ctx); err != nil { // of what happens here, too
		return err
	}
	for _, a := range c.apps() {
		if a.mirrored() {
			continue // its disk is written by its machine alone
		}
		a, err := c.takeOver(ctx, a)
		if err != nil {
			continue
		}
		for _, d := range a.t.Disks() {
			if err := c.serveDisk(a, d); err != nil {
				return err
			}
		}
	}
	c.undoRewrites(ctx)
	for _, a := range c.apps() { // an agent that was killed in the middle of a bookmark
		var err error
		switch {
		case a.Agent != "" && !a.sent(): // the agent of that host sees to it
		case a.tapped():
			err = c.agent.ThawTapped(ctx, c.tapping(a))
		default:
			var dirs []string
			if dirs, err = c.mountedDirs(ctx, a); err == nil {
				_, err = c.agent.Thaw(ctx, dirs)
			}
		}
		if err != nil {
			c.event("error", a.name, "a file system of %s may be frozen: %v", a.name, err)
		}
	}
	if err := c.undoCut(ctx); err != nil {
		return err
	}
	close(c.undone)
	if err := errors.Join(c.removeUnanswered(ctx), c.dropEntries(ctx), c.removeStrays(ctx), c.comeBackExports(ctx)); err != nil {
		return err
	}
	for _, a := range c.apps() {
		if a.elsewhere() {
			continue // when its host is connected: see welcome
		}
		if a.Doomed != nil {
			if c.bringBack(ctx, a.name, make(chan struct{}, 1)) != nil {
				c.keepDemolishing(a)
			}
			continue
		}
		if err := c.comeBackApp(ctx, a); err != nil {
			c.event("error", a.name, "%s did not come back whole: %v", a.name, err)
			if a.Role != "" {
				c.jobs.wg.Go(func() { c.bringLater(a.name) })
			}
		}
	}
	groups, err := c.Groups(ctx)
	if err != nil {
		return err
	}
	for _, g := range groups {
		c.keepGroup(g.Name)
	}
	if err := c.beginClock(ctx); err != nil {
		return err
	}
	if err := c.beginPromises(ctx); err != nil {
		return err
	}
	c.beginJobs()
	c.keepReserve()
	close(c.back)
	return nil
}

// comeBackExports serves the exports again; before that, nothing of what is undone has reached anybody.
func (c *Control) comeBackExports(ctx context.Context) error {
	kept, err := catalog.List[keptExport](ctx, c.catalog, catalog.Exports)
	if err != nil {
		return err
	}
	for _, k := range kept {
		a, err := c.app(strings.SplitN(k.Ref, "@", 2)[0])
		switch {
		case err != nil:
		case k.of(a):
			err = c.serveExport(a, &k)
		default:
			c.event("warning", "", "the export %s was of another %s, which is gone, and was ended", k.Name, a.name)
			err = c.Unexport(ctx, k.Name)
		}
		if err != nil {
			c.event("error", "", "the export %s did not come back: %v", k.Name, err)
		}
	}
	return nil
}

// comeBackApp makes one application, clone or mount as it was.
func (c *Control) comeBackApp(ctx context.Context, a app) error {
	if a.Role == roleProof || a.Role == roleCheck { // one whose job is not known any more, or could not be undone
		return c.abandon(ctx, a.name, doom{})
	}
	c.keepPoint(ctx, a)
	if err := halfRewound(a); err != nil {
		return err
	}
	if a.Type == tidemark.TypeVolume && a.Role == roleClone && !a.elsewhere() {
		_, err := c.cloneOf(ctx, a)
		return err
	}
	if a.tapped() {
		c.keepTapped(a, nil)
		return nil
	}
	if a.mirrored() {
		_, err := c.mirror(a)
		return err
	}
	if a.Type == tidemark.TypeVolume && a.Role == "" {
		return nil
	}
	switch a.Role {
	case roleMount:
		return c.comeBackMount(ctx, a)
	case roleClone:
		return c.comeBackClone(ctx, a)
	}
	a.t.SetBulk(true)
	for _, d := range a.t.Disks() {
		if _, err := c.staged(ctx, a, d.Name()); err != nil {
			return err
		}
	}
	if a.hasLog() {
		return c.receive(a)
	}
	return nil
}
