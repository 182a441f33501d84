package control

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/delta"
	"tidemark/app/postgres"
	"tidemark/export/nbd"
	"tidemark/timeline"
)

// A directory or cluster of another host is captured by two agents: that host's sends it, ours stages it on a disk of this host, and we hand on what
// comes. So a staging disk is always one of ours, and what a host says is read by a process that serves nobody.

// sent reports whether an application is captured from another host, whose agent sends it.
func (a app) sent() bool { return a.Agent != "" && a.Role == "" && !a.tapped() }

// treeOf is what is sent of a source.
func treeOf(source string) (agent.Tree, error) {
	if !isCluster(source) {
		return agent.Tree{Dir: source}, nil
	}
	src, err := postgres.ParseRemote(source)
	return agent.Tree{Postgres: &src}, err
}

// howToSend looks at what is to be captured on another host.
func (c *Control) howToSend(ctx context.Context, spec tidemark.ProtectSpec) (func(context.Context, *task) (app, error), error) {
	x, err := c.hostAgent(ctx, spec.Host)
	if err != nil {
		return nil, err
	}
	if !isCluster(spec.Source) && !filepath.IsAbs(spec.Source) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%q is neither an absolute path nor a database URL", spec.Source).
			WithHint("write it as it is on host " + spec.Host + "; `tidemark discover --host " + spec.Host + "` lists what is there")
	}
	note := about{Type: tidemark.TypeFilesystem, Source: spec.Source, Host: spec.Host, Agent: spec.Host, Options: spec.Options}
	if isCluster(spec.Source) {
		note.Type = tidemark.TypePostgres
	} else {
		note.Source = filepath.Clean(spec.Source)
	}
	tree, err := treeOf(note.Source)
	if err != nil {
		return nil, err
	}
	now, err := x.SourceSize(ctx, tree)
	if err != nil {
		return nil, err
	}
	size, err := stagingSize(spec.Options, now)
	if err != nil {
		return nil, err
	}
	disks := []timeline.DiskSpec{{Name: dataDisk, Size: size}}
	if note.Type != tidemark.TypePostgres {
		return func(ctx context.Context, t *task) (app, error) { return c.makeStaging(ctx, spec.Name, note, disks) }, nil
	}
	return func(ctx context.Context, t *task) (app, error) {
		log, notes, err := c.howToReceive(ctx, spec)
		if err != nil {
			return app{}, err
		}
		if log {
			disks = append(disks, timeline.DiskSpec{Name: logDisk, Size: logDiskSize})
		}
		a, err := c.makeStaging(ctx, spec.Name, note, disks)
		if err != nil {
			return a, err
		}
		for _, w := range notes {
			c.event("warning", a.name, "%s", w)
		}
		c.receiveSent(ctx, a)
		return a, nil
	}, nil
}

// captureSent captures what the agent of another host sends.
func (c *Control) captureSent(ctx context.Context, t *task, a app, bookmark string) (res tidemark.CaptureResult, err error) {
	dir, err := c.staged(ctx, a, dataDisk)
	if err != nil {
		return res, err
	}
	c.receiveSent(ctx, a)
	r, err := c.stageSent(ctx, t, a, dir, &res)
	if err != nil {
		return res, err
	}
	res.ReadBytes, res.ChangedBytes, res.Notes = r.ReadBytes, r.ChangedBytes, append(res.Notes, r.Warnings...)
	for _, f := range r.Inconsistent {
		res.Notes = append(res.Notes, "changed while it was read: "+f)
	}
	if r.Rescan != "" {
		res.Notes = append(res.Notes, r.Rescan)
	}
	mark := timeline.Mark{Name: bookmark, Consistency: tidemark.FilesystemConsistent}
	if a.Type == tidemark.TypePostgres {
		mark = clusterMark(bookmark, r.Postgres)
		mark.Labels[labelStopped] = r.Postgres.Stopped.UTC().Format(time.RFC3339Nano)
	}
	if res.Point, err = c.markCapture(ctx, t, a, mark); err != nil {
		return res, err
	}
	c.pruneLog(ctx, a)
	return res, nil
}

// chunksOf is where it is noted what is staged of an application that is sent: a cache.
func (c *Control) chunksOf(a app) string { return filepath.Join(c.printsOf(a), "chunks") }

// knownOf is what else is staged of an application's host: what is there need not be sent. Of other hosts nothing is, whatever they have: see app/delta/DESIGN.md.
func (c *Control) knownOf(a app) (known []delta.Known) {
	for _, x := range c.apps() {
		if x.sent() && x.Agent == a.Agent && x.name != a.name {
			known = append(known, delta.Known{Dir: c.dirOf(x, dataDisk), Index: c.chunksOf(x)})
		}
	}
	return known
}

const (
	// awayLimit is how long a capture waits for a host that is not connected any more.
	awayLimit = 10 * time.Minute
	awayPause = 500 * time.Millisecond
	// mostFruitless is how many attempts in a row may bring less than fruit, in bytes.
	mostFruitless = 10
	fruit         = 64 << 10
)

// stageSent stages what is sent. Where the connection to the host is lost, it goes on when that is back, from what has come by then.
func (c *Control) stageSent(ctx context.Context, t *task, a app, dir string, res *tidemark.CaptureResult) (agent.Staged, error) {
	x, err := c.hostAgent(ctx, a.Agent)
	if err != nil {
		return agent.Staged{}, err
	}
	tree, err := treeOf(a.Source)
	if err != nil {
		return agent.Staged{}, err
	}
	for fruitless := 0; ; {
		r, err := c.stageOnce(ctx, t, a, x, tree, dir)
		res.ShippedBytes, res.FoundBytes = res.ShippedBytes+r.Shipped, res.FoundBytes+r.FoundBytes
		if fruitless++; r.Shipped >= fruit {
			fruitless = 0
		}
		switch {
		case ctx.Err() != nil:
			return r, context.Cause(ctx)
		case err == nil && !r.Lost:
			return r, nil
		case c.isRemoved(a.Agent, x):
			return r, errHostRemoved(a.Agent)
		case err != nil && !errors.Is(err, agent.ErrInterrupted):
			return r, err
		case fruitless >= mostFruitless:
			return r, tidemark.Errorf(tidemark.Unavailable, "the connection to host %s is lost again and again, and hardly anything comes", a.Agent).
				WithHint("what has come is kept, and does not come again: see the log of its agent, and try again")
		}
		c.event("warning", a.name, "the capture of %s was interrupted: it goes on when host %s is connected", a.name, a.Agent)
		if err := c.awaitHost(ctx, a.Agent, x); err != nil {
			return r, err
		}
	}
}

// awaitHost waits until a host is connected, whose agent this is, unless it is removed.
func (c *Control) awaitHost(ctx context.Context, host string, x *agent.Agent) error {
	patient, cancel := context.WithTimeout(ctx, awayLimit)
	defer cancel()
	for {
		select {
		case <-patient.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return x.Reach(ctx)
		case <-time.After(awayPause):
		}
		switch {
		case c.isRemoved(host, x):
			return errHostRemoved(host)
		case x.Reach(ctx) == nil:
			return nil
		}
	}
}

// stageOnce has the one agent send and the other stage, until both have ended or the connection has. What the sender says of its tree comes first.
func (c *Control) stageOnce(ctx context.Context, t *task, a app, x *agent.Agent, tree agent.Tree, dir string) (r agent.Staged, err error) {
	socket := c.path("run", "c-"+a.t.ID()[:8])
	l, err := nbd.Listen("unix:" + socket)
	if err != nil {
		return r, err
	}
	defer l.Close()
	s, err := x.SendTree(ctx, tree)
	if err != nil {
		return r, err
	}
	defer context.AfterFunc(ctx, func() { s.Conn.Close() })()
	handed := make(chan struct{})
	go func() {
		defer close(handed)
		ours, err := l.Accept()
		if err == nil {
			handOn(s.Conn, ours)
		}
	}()
	r, err = c.agent.StageTree(ctx, tree, socket, agent.Staging{Dir: dir, Index: c.chunksOf(a), Known: c.knownOf(a)}, t.report)
	l.Close()
	<-handed
	if cause := s.Close(); cause != nil && (err != nil || r.Lost) {
		return r, cause
	}
	return r, err
}

// handOn carries what two ends have to say to each other, until one has ended, and closes both.
func handOn(a, b net.Conn) {
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			// The reader finds out by itself that not all has come.
			_, _ = io.CopyBuffer(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}, make([]byte, handedAtOnce))
			ended <- struct{}{}
		}()
	}
	<-ended
	a.Close()
	b.Close()
	<-ended
}

// handedAtOnce is how much is handed on at once, in bytes.
const handedAtOnce = 64 << 10
