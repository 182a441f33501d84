package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/catalog"
	"tidemark/timeline"
)

// keptClone is a clone as the catalog has it.
type keptClone struct {
	tidemark.Clone
	Spec tidemark.CloneSpec `json:"spec"`
	// Again is how it is made again, from when its refresh takes the old one away until the new one runs. A clone that has it and no
	// timeline was not lost: its refresh has failed, or goes on.
	Again *cloning `json:"again,omitempty"`
}

// of reports whether it is the entry of an application, and not of a clone that had its name before.
func (k keptClone) of(a app) bool { return a.Role == roleClone && a.name == k.Name }

// Clone makes a thin writable copy of a point and brings its application up.
func (c *Control) Clone(ctx context.Context, spec tidemark.CloneSpec) (tidemark.Job, error) {
	return c.ask(ctx, "clone", spec)
}

// cloneWork makes a clone whose name nobody has.
func (c *Control) cloneWork(ctx context.Context, spec cloning) (*work, error) {
	return c.cloneAs(ctx, spec, c.claim)
}

// cloneAs makes a clone whose name is had by claim.
func (c *Control) cloneAs(ctx context.Context, spec cloning, claim func(ctx context.Context, name string) (release func(), err error)) (*work, error) {
	src, err := c.planClone(ctx, spec.CloneSpec, spec.From)
	if err == nil {
		_, err = c.hostAgent(ctx, spec.Host)
	}
	if err != nil {
		return nil, err
	}
	if err := tidemark.CheckName(spec.Name); err != nil {
		return nil, err
	}
	if _, err := endOf(time.Now(), spec.Lifetime); err != nil {
		return nil, err
	}
	if spec.Preparation != nil {
		if err := c.checkPreparation(ctx, src.src, spec.CloneSpec); err != nil {
			return nil, err
		}
	}
	args := cloning{CloneSpec: fixedClone(spec.CloneSpec), From: src.src.firstID(), First: spec.First}
	w := &work{app: spec.Name, host: cmp.Or(spec.Host, hostname()), args: args}
	w.holding = func(ctx context.Context) (func(), error) {
		if err := c.portIsFree(ctx, spec); err != nil {
			return nil, err
		}
		return claim(ctx, spec.Name)
	}
	w.run = func(ctx context.Context, t *task) (any, error) {
		leave, err := c.canBranch(ctx, &src, spec.Host)
		if err != nil {
			return nil, err
		}
		defer leave()
		if err := t.doing(ctx, "branch", undoing{Remove: spec.Name}); err != nil {
			return nil, err
		}
		if err := c.ownMade(ctx, access.KindClone, spec.Name, src.src, t.job); err != nil {
			return nil, err
		}
		k, err := c.makeClone(ctx, src, spec)
		if err != nil {
			return nil, errors.Join(err, c.abandon(context.WithoutCancel(ctx), spec.Name, doom{}))
		}
		return k.Clone, nil
	}
	return w, nil
}

// fixedClone is a request in which nothing is counted from now.
func fixedClone(spec tidemark.CloneSpec) tidemark.CloneSpec {
	spec.Ref = fixed(spec.Ref)
	if p, err := tidemark.ParsePoint(spec.To); err == nil && p.Ago != 0 {
		when, _ := p.When(time.Now())
		spec.To = tidemark.Point{Time: when}.String()
	}
	return spec
}

// plan is where a clone comes from, and how far its log is replayed.
type plan struct {
	src  app
	pos  tidemark.Position
	each map[string]tidemark.Position
	stop postgres.Stop
	log  bool // the log disk is needed
	// begun is when its making began to make the clone: see canBranch.
	begun time.Time
}

// planClone checks a request and finds the point to branch from. from is the first ID of the source; empty: of whoever has the name now.
func (c *Control) planClone(ctx context.Context, spec tidemark.CloneSpec, from string) (plan, error) {
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return plan{}, err
	}
	a, err := c.app(ref.App)
	if err == nil {
		err = a.mustBe(from, spec.Name)
	}
	if err != nil {
		return plan{}, err
	}
	if spec.Port < 0 || spec.Port > 65535 {
		return plan{}, tidemark.Errorf(tidemark.Invalid, "%d is no port", spec.Port).WithHint("use 1 to 65535, or leave it out for a free one")
	}
	if _, cluster := a.Options[optionPostgres]; spec.Listen != "" && a.Type != tidemark.TypePostgres && !(a.tapped() && cluster) {
		return plan{}, tidemark.Errorf(tidemark.Invalid, "%s is no database that could listen", a.name).WithHint("leave --listen out")
	}
	if spec.Listen != "" && net.ParseIP(spec.Listen) == nil {
		return plan{}, tidemark.Errorf(tidemark.Invalid, "%q is no IP address", spec.Listen).WithHint("give an address of the clone's host, or 0.0.0.0 for all of them")
	}
	if a.Type == tidemark.TypePostgres && a.Role == "" {
		return c.planDatabase(a, ref.Point, spec.To)
	}
	if spec.To != "" {
		return plan{}, tidemark.Errorf(tidemark.Invalid, "%s has no log to replay", a.name).WithHint("leave --to out, or name a point of " + a.name)
	}
	pos, err := c.resolve(ctx, a, ref.Point)
	return plan{src: a, pos: pos}, err
}

func newestPoint(a app) (tidemark.RecoveryPoint, error) {
	if p, ok := a.t.Latest(); ok {
		return p, nil
	}
	return tidemark.RecoveryPoint{}, tidemark.Errorf(tidemark.NotFound, "%s has no point yet", a.name).WithHint("capture it first: `tidemark capture " + a.name + "`")
}

// portIsFree refuses a port that another clone was given: databases that only
// have a socket each would not notice, but whoever reads their port would.
func (c *Control) portIsFree(ctx context.Context, spec cloning) error {
	kept, err := catalog.List[keptClone](ctx, c.catalog, catalog.Clones)
	for _, k := range kept {
		if spec.Port != 0 && k.Port == spec.Port && k.Host == spec.Host && k.Name != spec.Name {
			return tidemark.Errorf(tidemark.Conflict, "port %d is that of the clone %s", k.Port, k.Name).WithHint("choose another, or leave it out for a free one")
		}
	}
	return err
}

// planDatabase finds the capture that a recovery begins with.
func (c *Control) planDatabase(a app, at tidemark.Point, to string) (plan, error) {
	p := plan{src: a}
	until, err := stopAt(at, to)
	if err != nil {
		return p, err
	}
	if until == (postgres.Stop{}) {
		base, err := newestPoint(a)
		if err == nil && !at.Latest() {
			var pos tidemark.Position
			if pos, err = a.t.Resolve(at); err == nil {
				base, err = pointAt(a.t, pos)
			}
		}
		p.pos = base.Position
		return p, err
	}
	if !a.hasLog() {
		return p, a.errNoLog()
	}
	base, err := baseFor(a, at, until)
	if err != nil {
		return p, err
	}
	p.pos, p.stop, p.log = base.Position, until, true
	return p, nil
}

// stopAt reads how far the log is to be replayed: --to, or a time as the point.
func stopAt(at tidemark.Point, to string) (s postgres.Stop, err error) {
	switch {
	case to == "latest":
		return postgres.Stop{Latest: true}, nil
	case to != "":
		if lsn, err := postgres.ParseLSN(to); err == nil {
			return postgres.Stop{LSN: lsn}, nil
		}
		p, err := tidemark.ParsePoint(to)
		when, ok := p.When(time.Now())
		if err != nil || !ok {
			return s, tidemark.Errorf(tidemark.Invalid, "%q is neither a time nor a log position", to).WithHint("write 2026-11-23T02:41:07Z, -5m, 0/3000060 or latest")
		}
		return postgres.Stop{Time: when}, nil
	}
	if when, ok := at.When(time.Now()); ok {
		return postgres.Stop{Time: when}, nil
	}
	return s, nil
}

// baseFor finds the newest capture that the log leads on from to the place asked for.
func baseFor(a app, at tidemark.Point, s postgres.Stop) (tidemark.RecoveryPoint, error) {
	if at.Bookmark != "" || at.IsPosition() {
		pos, err := a.t.Resolve(at)
		if err != nil {
			return tidemark.RecoveryPoint{}, err
		}
		return pointAt(a.t, pos)
	}
	points := a.t.Points()
	for i := len(points) - 1; i >= 0; i-- {
		p := points[i]
		lsn, err := postgres.ParseLSN(p.Labels[labelStop])
		if err != nil {
			continue
		}
		if s.Latest || !s.Time.IsZero() && !capturedAt(p).After(s.Time) || s.LSN != 0 && lsn <= s.LSN {
			return p, nil
		}
	}
	err := tidemark.Errorf(tidemark.NotFound, "%s has no capture before the place asked for", a.name)
	if len(points) > 0 {
		return tidemark.RecoveryPoint{}, err.WithHint("its oldest ended at " + points[0].Time.Local().Format(time.RFC3339) + ", " + points[0].Labels[labelStop])
	}
	return tidemark.RecoveryPoint{}, err.WithHint("capture it first: `tidemark capture " + a.name + "`")
}

// capturedAt is when what a capture of a database has was so, by the clock that a recovery goes by: that of the cluster's host.
func capturedAt(p tidemark.RecoveryPoint) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, p.Labels[labelStopped]); err == nil {
		return t
	}
	return p.Time
}

// canBranch makes sure, as far as that can be known, that a clone can be made on a host: the host is there, and all of the source that it needs, which
// stays until leave is called, whatever is expired. It changes nothing, so that a refresh that cannot be done leaves the old clone alone.
func (c *Control) canBranch(ctx context.Context, p *plan, host string) (leave func(), err error) {
	p.begun = time.Now()
	if _, err := c.hostAgent(ctx, host); err != nil {
		return nil, err
	}
	if p.log {
		if err := c.completeLog(ctx, p); err != nil {
			return nil, err
		}
	}
	var open []*timeline.Snapshot
	leave = func() {
		for _, s := range open {
			s.Close()
		}
	}
	if head, _ := p.src.t.Head(); p.pos >= head { // the present, which is there
		return leave, nil
	}
	for _, d := range p.src.t.Disks() {
		s, err := p.src.t.At(d.Name(), p.pos)
		if err != nil {
			leave()
			return nil, err
		}
		open = append(open, s)
	}
	return leave, nil
}

// makeClone makes a clone of what canBranch has looked at.
func (c *Control) makeClone(ctx context.Context, p plan, spec cloning) (keptClone, error) {
	k := keptClone{Spec: spec.CloneSpec, Clone: tidemark.Clone{Name: spec.Name, Type: p.src.Type, Host: spec.Host, State: "starting", Created: p.begun}}
	if p.log { // which has gone on since, and what is behind its end then may be no place of the journal any more
		if err := p.toEndOfLog(); err != nil {
			return k, err
		}
	}
	a, err := c.branch(ctx, p.src, spec.Name, spec.Host, p.pos, p.each, roleClone)
	if err == nil && spec.First != "" {
		err = c.annotate(ctx, a, func(n *about) { n.First = spec.First })
	}
	if err == nil && spec.Preparation != nil {
		err = c.annotate(ctx, a, func(n *about) { n.Live = &live{Preparation: *spec.Preparation, Sources: []string{p.ref()}} })
	}
	if err != nil {
		return k, err
	}
	k.Source, k.Type = a.Of, a.Type
	switch {
	case a.Type == tidemark.TypePostgres:
		err = c.startDatabase(ctx, a, p, &k)
	case a.Type == tidemark.TypeVolume && !a.elsewhere():
		err = c.exportClone(ctx, a, &k)
	default:
		err = c.bringUp(ctx, a, &k)
	}
	if err != nil {
		return k, err
	}
	k.State, k.Seconds = "running", time.Since(p.begun).Seconds()
	k.Expires, _ = endOf(p.begun, spec.Lifetime) // it was checked when it was asked for
	if err = c.catalog.Put(ctx, catalog.Clones, k.Name, k); err == nil {
		c.changed(tidemark.CloneMade, a, nil)
	}
	return k, err
}

// completeLog makes sure that the log reaches as far as asked, and lets the
// clone have the log disk as it is now.
func (c *Control) completeLog(ctx context.Context, p *plan) error {
	if c.receivers.has(p.src.name) {
		st, err := c.agent.LogStatus(ctx, p.src.t.ID())
		if err != nil {
			return err
		}
		if p.stop.LSN > st.Flushed || p.stop.Latest || !p.stop.Time.IsZero() && p.stop.Time.After(st.Covered) {
			if err := c.forceLog(ctx, p); err != nil {
				return err
			}
			if st, err = c.agent.LogStatus(ctx, p.src.t.ID()); err != nil {
				return err
			}
		} else {
			p.stop.Covered = !p.stop.Time.IsZero()
		}
		if err := p.unbroken(st); err != nil {
			return err
		}
	}
	return p.toEndOfLog()
}

// toEndOfLog takes all of the log that is there now.
func (p *plan) toEndOfLog() error {
	d, err := p.src.t.Disk(logDisk)
	if err != nil {
		return err
	}
	if err := d.Flush(); err != nil {
		return err
	}
	head, _ := p.src.t.Head()
	p.each = map[string]tidemark.Position{logDisk: head}
	return nil
}

// unbroken refuses a clone of which the log does not lead from the capture to the place asked for: recovery would end before, as if nothing more had happened.
func (p *plan) unbroken(st postgres.ReceiverStatus) error {
	base, err := pointAt(p.src.t, p.pos)
	if err != nil {
		return err
	}
	if !leadsOn(base, st.Oldest) {
		return tidemark.Errorf(tidemark.Unavailable, "the log of %s does not lead on from its capture of %s: it was not received yet", p.src.name, base.Time.Format(time.RFC3339)).
			WithHint("name a point, or a time after a later capture: `tidemark points " + p.src.name + "` says from when on it is received")
	}
	for _, g := range st.Gaps {
		before := p.stop.LSN != 0 && p.stop.LSN <= g.From || !p.stop.Time.IsZero() && !p.stop.Time.After(g.FromTime)
		if before || leadsOn(base, g.To) {
			continue
		}
		return tidemark.Errorf(tidemark.Unavailable, "%s cannot be recovered so far: its log has a gap from %s to %s (%s)", p.src.name,
			g.FromTime.Format(time.RFC3339), g.ToTime.Format(time.RFC3339), g.Reason).WithHint("choose a time outside the gap; from the next capture on, all can be had again")
	}
	return nil
}

// forceLog asks production for the log up to now.
func (c *Control) forceLog(ctx context.Context, p *plan) error {
	if p.stop.Time.After(time.Now()) {
		return tidemark.Errorf(tidemark.Invalid, "%s has not come yet", p.stop.Time.Format(time.RFC3339)).WithHint("leave the time out for the newest state")
	}
	bounded, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := c.agent.ForceLog(bounded, p.src.t.ID(), 0); err != nil {
		st, _ := c.agent.LogStatus(ctx, p.src.t.ID())
		return tidemark.Errorf(tidemark.Unavailable, "the log of %s does not reach so far: %w", p.src.name, err).
			WithHint("it covers all until " + st.Covered.Local().Format(time.RFC3339))
	}
	p.stop.Covered = !p.stop.Time.IsZero()
	return nil
}

// setTree notes where the disk with a tree is mounted.
func (k *keptClone) setTree(dir string) {
	k.Path = filepath.Join(dir, treeDir)
	k.Connection = k.Path
}

// mountClone attaches and mounts a disk of a clone, unless that is done, and returns where it is.
func (c *Control) mountClone(ctx context.Context, a app, disk string) (dir string, err error) {
	s, err := c.look(ctx, a, disk)
	if err != nil || s.Mounted && s.Device != "" {
		return s.Dir, err
	}
	device, err := c.attach(ctx, a, disk, false)
	if err != nil {
		return "", err
	}
	return c.mountOurs(ctx, device, a, disk)
}

// startDatabase brings the database of a clone up.
func (c *Control) startDatabase(ctx context.Context, a app, p plan, k *keptClone) error {
	if _, err := c.mountClone(ctx, a, a.dataDisk()); err != nil {
		return err
	}
	dir, err := c.findHome(ctx, a)
	if err != nil {
		return err
	}
	t := c.targetOf(a, dir, k, p.stop)
	if p.log {
		if _, err := c.mountClone(ctx, a, logDisk); err != nil {
			return err
		}
		t.WALDir = c.logDir(a)
	}
	x, err := c.agentOf(a)
	if err != nil {
		return err
	}
	in, err := x.RecoverPostgres(ctx, t)
	if err != nil {
		return err
	}
	k.setDatabase(in)
	return nil
}

// targetOf says how the database of a clone is brought up.
func (c *Control) targetOf(a app, dataDir string, k *keptClone, stop postgres.Stop) postgres.Target {
	return postgres.Target{Name: a.name, DataDir: dataDir, Root: c.dirOf(a, a.dataDisk()), Port: k.Spec.Port, Stop: stop, SocketDir: c.socketDir(a), Listen: k.Spec.Listen}
}

// setDatabase notes how a database is reached.
func (k *keptClone) setDatabase(in *postgres.Instance) {
	k.Connection, k.Port = in.Reach(), in.Port
}

// dataDisk is the disk with the files of a database or tree.
func (a app) dataDisk() string {
	if a.Home != nil {
		return a.Home.Disk
	}
	return dataDisk
}

// dataDir is where the files of a database or tree are, if its disk is mounted.
func (c *Control) dataDir(a app) string {
	if a.Home != nil {
		return filepath.Join(c.dirOf(a, a.Home.Disk), filepath.Join("/", a.Home.Dir)) // what a host has said stays within the disk
	}
	return filepath.Join(c.dirOf(a, dataDisk), treeDir)
}

// findHome is dataDir of a clone whose disk is mounted; where it is not known yet, it is looked for, and noted.
func (c *Control) findHome(ctx context.Context, a app) (string, error) {
	if a.Home != nil && a.Home.Dir == "" {
		x, err := c.agentOf(a)
		if err != nil {
			return "", err
		}
		dir, err := x.LocatePostgres(ctx, c.dirOf(a, a.Home.Disk))
		if err != nil {
			return "", err
		}
		if !filepath.IsLocal(dir) {
			return "", tidemark.Errorf(tidemark.Invalid, "the host of %s says that its database is in %q, which is not on its disk", a.name, dir)
		}
		a.Home.Dir = dir
		if err := c.annotate(ctx, a, func(n *about) { n.Home = a.Home }); err != nil {
			return "", err
		}
	}
	return c.dataDir(a), nil
}

// socketDir is where the database of a clone has its socket: the same after a
// refresh or a restart, so that connection strings stay true, short enough for
// a socket, and another one for the clone of that name of another server or host.
func (c *Control) socketDir(a app) string {
	whose := c.o.Dir
	if a.elsewhere() {
		whose += "@" + a.Agent
	}
	return fmt.Sprintf("/run/tidemark/%s-%08x", a.name, crc32.ChecksumIEEE([]byte(whose)))
}

// stopDatabase stops the database of a clone, if it runs.
func (c *Control) stopDatabase(ctx context.Context, a app) error {
	if a.Type != tidemark.TypePostgres || a.Role != roleClone && a.Role != roleCheck {
		return nil
	}
	x, err := c.agentOf(a)
	if err != nil {
		return err
	}
	return x.StopPostgres(ctx, c.dataDir(a))
}

// database finds the running database of a clone.
func (c *Control) database(ctx context.Context, a app) (agent.Database, error) {
	x, err := c.agentOf(a)
	if err != nil {
		return agent.Database{}, err
	}
	return x.FindPostgres(ctx, c.dataDir(a))
}

// exportClone serves the disks of a clone that is nothing but disks.
func (c *Control) exportClone(ctx context.Context, a app, k *keptClone) error {
	var uris []string
	for _, d := range a.t.Disks() {
		e, err := c.Export(ctx, tidemark.ExportSpec{Ref: a.name, Disk: d.Name(), Writable: true})
		if err != nil {
			return err
		}
		uris = append(uris, e.URI)
	}
	k.Connection = strings.Join(uris, " ")
	return nil
}

// Clones lists the clones.
func (c *Control) Clones(ctx context.Context) ([]tidemark.Clone, error) {
	kept, err := catalog.List[keptClone](ctx, c.catalog, catalog.Clones)
	if err != nil {
		return nil, err
	}
	kept = append(kept, c.halfMade(kept)...)
	slices.SortFunc(kept, func(a, b keptClone) int { return compare(a.Name, b.Name) })
	list := make([]tidemark.Clone, len(kept))
	var all sync.WaitGroup // a host that hangs is waited for once
	for i, k := range kept {
		all.Go(func() {
			a, err := c.app(k.Name)
			is := err == nil && k.of(a)
			if !is && k.Again == nil {
				k.State = "its timeline is gone"
			} else if is {
				k.OwnBytes = a.t.StoredBytes() + a.t.JournalBytes()
				k.State = c.cloneState(ctx, a, k.State)
				k.describeLive(a)
			}
			list[i] = k.Clone
		})
	}
	all.Wait()
	return list, nil
}

// halfMade are the clones that are being removed before they were entered among those that are kept.
func (c *Control) halfMade(kept []keptClone) (list []keptClone) {
	for _, a := range c.apps() {
		if a.Doomed == nil || a.Role != roleClone || slices.ContainsFunc(kept, func(k keptClone) bool { return k.Name == a.name }) {
			continue
		}
		list = append(list, keptClone{Clone: tidemark.Clone{Name: a.name, Source: a.Of, Type: a.Type, Host: a.Agent, Created: a.t.Describe().Created}})
	}
	return list
}

func (c *Control) cloneState(ctx context.Context, a app, last string) string {
	if state := c.stateKnown(a); state != "" {
		return state
	}
	if a.Type == tidemark.TypeVolume && !a.elsewhere() {
		return last
	}
	up, err := c.isUp(ctx, a)
	switch {
	case err != nil && a.elsewhere():
		return stateAway
	case !up:
		return "detached"
	case a.Type == tidemark.TypeVolume:
		return "attached"
	case a.Type != tidemark.TypePostgres:
		return "mounted"
	}
	in, err := c.database(ctx, a)
	switch {
	case tidemark.KindOf(err) == tidemark.Unavailable:
		return "hangs"
	case err != nil:
		return "stopped"
	}
	return string(in.Status)
}

// RemoveClone stops a clone and deletes it. Clones of it stay.
func (c *Control) RemoveClone(ctx context.Context, name string) error {
	leave, err := c.removing(ctx, name)
	if err != nil {
		return c.unlessDoomed(name, err)
	}
	defer leave()
	if err := c.unpublished(name); err != nil {
		return err
	}
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err == nil && c.isAnother(name, k.of) { // of the clone, the catalog's entry alone is left
		return c.dropClone(ctx, name)
	}
	if a, doomed := c.doomed(name); doomed && a.Role == roleClone { // there may be no clone of that name for anybody else
		err = c.demolish(ctx, name)
	} else {
		err = c.removeClone(ctx, name)
	}
	if err != nil {
		return c.unlessDoomed(name, err)
	}
	return c.dropClone(ctx, name) // a refresh may have kept it
}

// removeClone does so, while nobody else works on it.
func (c *Control) removeClone(ctx context.Context, name string) error {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil {
		return err
	}
	if c.isAnother(name, k.of) {
		return tidemark.Errorf(tidemark.Conflict, "%s is no clone any more: another has its name", name).WithHint("`tidemark status` says what it is")
	}
	return c.remove(ctx, tidemark.CloneRemoved, k.Name)
}

// Refresh makes a clone anew from a point of what it was made of, under the
// same name and port. What was written to it is gone.
func (c *Control) Refresh(ctx context.Context, spec tidemark.RefreshSpec) (tidemark.Job, error) {
	return c.ask(ctx, "refresh", refreshing{RefreshSpec: spec})
}

// refreshing is a refresh as it is recorded.
type refreshing struct {
	tidemark.RefreshSpec
	// From is the first ID of the source when it was asked for: another of that name is not meant.
	From string `json:"from,omitempty"`
	// Again is what is left to be done of a refresh that was cut or has failed, when the old clone was taken away for it.
	Again *cloning `json:"again,omitempty"`
}

func (c *Control) refreshWork(ctx context.Context, r refreshing) (*work, error) {
	if r.Again != nil { // a clone that has its name now is another one, and stays
		w, err := c.cloneAs(ctx, *r.Again, c.claimAnew)
		if err == nil {
			w.args, w.run = r, c.refreshAgain(*r.Again)
		}
		return w, err
	}
	if a, err := c.app(r.Name); err == nil && a.Live != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is a LiveClone, which is refreshed when it is prepared", r.Name).WithHint("`tidemark liveclone prepare " + r.Name + " --refresh`")
	}
	again, err := c.cloneAnew(ctx, r.RefreshSpec)
	if err != nil {
		return nil, err
	}
	p, err := c.planClone(ctx, again.CloneSpec, cmp.Or(r.From, again.From))
	if err != nil {
		return nil, err
	}
	again.CloneSpec, again.From = fixedClone(again.CloneSpec), p.src.firstID()
	r.From = again.From
	if r.Point != "" {
		_, r.Point, _ = strings.Cut(again.Ref, "@")
	}
	if _, err := c.agentOn(again.Host); err != nil { // one that is away may be there when it begins
		return nil, err
	}
	run := func(ctx context.Context, t *task) (any, error) {
		leave, err := c.canBranch(ctx, &p, again.Host)
		if err != nil {
			return nil, err
		}
		defer leave()
		u := undoing{Remove: r.Name, Again: &again}
		if old, err := c.app(r.Name); err == nil {
			u.Old = old.t.ID()
		}
		if err := t.doing(ctx, "remove", u); err != nil {
			return nil, err
		}
		if err := c.noteRefresh(ctx, r.Name, stateRefreshing, &again); err != nil {
			return nil, err
		}
		if err := c.removeClone(ctx, r.Name); err != nil {
			return nil, errors.Join(fmt.Errorf("take the old clone away: %w", err), c.notTakenAway(context.WithoutCancel(ctx), again))
		}
		return c.refresh(ctx, t, p, again)
	}
	holding := func(context.Context) (func(), error) { return c.work(r.Name) }
	return &work{app: r.Name, host: cmp.Or(again.Host, hostname()), args: r, holding: holding, run: run}, nil
}

// refreshAgain makes the clone of a refresh that was cut.
func (c *Control) refreshAgain(again cloning) func(context.Context, *task) (any, error) {
	return func(ctx context.Context, t *task) (any, error) {
		p, err := c.planClone(ctx, again.CloneSpec, again.From)
		if err != nil {
			return nil, err
		}
		leave, err := c.canBranch(ctx, &p, again.Host)
		if err != nil {
			return nil, err
		}
		defer leave()
		if err := t.doing(ctx, "branch", undoing{Remove: again.Name, Again: &again}); err != nil {
			return nil, err
		}
		if err := c.noteRefresh(ctx, again.Name, stateRefreshing, &again); err != nil {
			return nil, err
		}
		return c.refresh(ctx, t, p, again)
	}
}

// refresh makes the new clone, when the old one is gone.
func (c *Control) refresh(ctx context.Context, t *task, p plan, again cloning) (any, error) {
	t.again = mustJSON(refreshing{RefreshSpec: tidemark.RefreshSpec{Name: again.Name}, Again: &again})
	n, err := c.makeClone(ctx, p, again)
	if err != nil {
		ctx, e := context.WithoutCancel(ctx), Explain(err)
		err = e.WithHint(strings.TrimPrefix(e.Hint+"; `tidemark refresh "+again.Name+"` makes the clone again", "; "))
		return nil, errors.Join(err, c.noteRefresh(ctx, again.Name, stateUnrefreshed, &again), c.abandon(ctx, again.Name, doom{Refreshed: true}))
	}
	return n.Clone, nil
}

// States of a clone that a refresh has taken away.
const (
	stateRefreshing  = "being refreshed"
	stateUnrefreshed = "refresh failed" // or was cut; it may be begun again by itself
)

// noteRefresh notes that a clone is made again, and how, so that whatever becomes of that it is still known: it can be refreshed once more, or
// removed, by who might do so before.
func (c *Control) noteRefresh(ctx context.Context, name, state string, again *cloning) error {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil {
		return notThere(err)
	}
	k.State, k.Again = state, again
	return c.catalog.Put(ctx, catalog.Clones, name, k)
}

// notTakenAway notes what is left of a clone that a refresh has failed to take away: the clone, or nothing.
func (c *Control) notTakenAway(ctx context.Context, again cloning) error {
	if _, err := c.app(again.Name); tidemark.KindOf(err) == tidemark.NotFound {
		return c.noteRefresh(ctx, again.Name, stateUnrefreshed, &again)
	}
	return c.noteRefresh(ctx, again.Name, "running", nil)
}

// forgetClone deletes the catalog's entry of a clone that was taken apart, unless it is made again.
func (c *Control) forgetClone(ctx context.Context, name string) error {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, name, &k); err != nil || k.Again != nil {
		return notThere(err)
	}
	return c.catalog.Delete(ctx, catalog.Clones, name)
}
