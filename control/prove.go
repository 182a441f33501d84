package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/agent/proof"
	"tidemark/image"
)

// How long a recovery proof and its probe may take, if nothing else was asked for.
const (
	proofTime = 30 * time.Minute
	probeTime = 5 * time.Minute
)

// proving is a recovery proof that goes on.
type proving struct {
	plan  plan
	name  string // of the throw-away clone
	begun time.Time
	limit time.Duration
	probe *proof.Probe
	proof tidemark.Proof
	kept  bool // the point is one that is kept: it gets the stamp
}

// Prove brings a point up in a sandbox, checks it, and stamps it with what was found.
func (c *Control) Prove(ctx context.Context, spec tidemark.ProveSpec) (tidemark.Job, error) {
	return c.ask(ctx, "prove", spec)
}

func (c *Control) proveWork(ctx context.Context, spec tidemark.ProveSpec) (*work, error) {
	x, err := c.planProof(ctx, spec)
	if err != nil {
		return nil, err
	}
	x.name = c.freeName(x.plan.src.name + "-proof")
	run := func(ctx context.Context, t *task) (any, error) {
		err := c.prove(ctx, t, x)
		if e := c.abandon(context.WithoutCancel(ctx), x.name, doom{}); e != nil {
			err = errors.Join(err, fmt.Errorf("take the sandbox away: %w", e))
		}
		return x.proof, err
	}
	spec.Ref = fixed(spec.Ref)
	if spec.Random > 0 {
		spec.Seed = x.proof.Seed
	}
	// The job is one of the throw-away clone: what is proven can be captured meanwhile.
	return &work{app: x.name, of: x.plan.src.name, args: spec, holding: c.claiming(x.name), run: run}, nil
}

// planProof checks a request, and finds the point.
func (c *Control) planProof(ctx context.Context, spec tidemark.ProveSpec) (*proving, error) {
	x := &proving{begun: time.Now(), limit: proofTime}
	x.proof.Stamp = tidemark.Stamp{At: x.begun.UTC(), Deep: spec.Deep, Checks: []tidemark.ProofCheck{}}
	ref, err := tidemark.ParseRef(spec.Ref)
	if err != nil {
		return nil, err
	}
	a, err := c.app(ref.App)
	if err != nil {
		return nil, err
	}
	if spec.Timeout < 0 || spec.ProbeTimeout < 0 || spec.Random < 0 || spec.Seed < 0 {
		return nil, tidemark.Errorf(tidemark.Invalid, "a time or seed is less than 0").WithHint("leave it out")
	}
	if spec.Timeout > 0 {
		x.limit = time.Duration(spec.Timeout) * time.Second
	}
	if spec.Random > 0 {
		if !ref.Point.Latest() {
			return nil, tidemark.Errorf(tidemark.Invalid, "either a point is named, or chosen at random").WithHint("leave @POINT out, or the random")
		}
		spec.Ref, x.proof.Seed, err = c.randomPoint(ctx, a, time.Duration(spec.Random)*time.Second, spec.Seed)
		if err != nil {
			return nil, err
		}
	}
	if x.plan, err = c.planClone(ctx, tidemark.CloneSpec{Ref: spec.Ref}, ""); err != nil {
		return nil, err
	}
	if err := x.describe(); err != nil {
		return nil, err
	}
	return x, x.loadProbe(c.path("probes"), spec)
}

// describe says which point it is.
func (x *proving) describe() (err error) {
	a, pos := x.plan.src, x.plan.pos
	p := &x.proof
	p.Application, p.Position, p.Ref = a.name, pos, a.name+"@"+pos.String()
	if when := x.plan.stop.Time; !when.IsZero() {
		p.Time, p.Ref = when.UTC(), a.name+"@"+when.UTC().Format(time.RFC3339Nano)
		return nil
	}
	kept, err := pointAt(a.t, pos)
	switch {
	case err != nil:
		p.Time, err = a.t.TimeAt(pos)
		p.Time = p.Time.UTC()
		return err
	case kept.Bookmark != "":
		p.Ref = a.name + "@" + kept.Bookmark
	}
	p.Time, x.kept = kept.Time, true
	return nil
}

// loadProbe reads the user's probe, if there is one.
func (x *proving) loadProbe(dir string, spec tidemark.ProveSpec) error {
	if spec.Probe == "" {
		if spec.Database != "" || spec.ProbeTimeout > 0 {
			return tidemark.Errorf(tidemark.Invalid, "a database or time for a probe is given, and no probe").WithHint("give --probe FILE")
		}
		return nil
	}
	p := x.proof
	of := x.plan.src.typeOnceCopied()
	x.probe = &proof.Probe{Dir: dir, Name: spec.Probe, Database: cmp.Or(spec.Database, "postgres"), Limit: probeTime,
		Env: []string{"TIDEMARK_APPLICATION=" + p.Application, "TIDEMARK_POINT=" + p.Ref, "TIDEMARK_TIME=" + p.Time.Format(time.RFC3339Nano)}}
	if spec.ProbeTimeout > 0 {
		x.probe.Limit = time.Duration(spec.ProbeTimeout) * time.Second
	}
	if spec.Database != "" && of != tidemark.TypePostgres {
		return tidemark.Errorf(tidemark.Invalid, "%s has no database", p.Application).WithHint("leave --database out")
	}
	x.proof.Probe = spec.Probe
	return x.probe.Load(of)
}

// typeOnceCopied is the type of a clone of an application: one on tapped disks is brought up as what lies on them.
func (a app) typeOnceCopied() tidemark.AppType {
	if _, ok := a.Options[optionPostgres]; ok && a.tapped() {
		return tidemark.TypePostgres
	}
	return a.Type
}

// randomPoint chooses a point of the last so long at random: one that is kept, or, half of the times if there is a window, any moment of that.
func (c *Control) randomPoint(ctx context.Context, a app, last time.Duration, seed int64) (ref string, _ int64, err error) {
	all := tidemark.Points{Application: a.name, Points: a.t.Points()}
	c.describeCoverage(ctx, a, &all)
	if seed == 0 {
		seed = 1 + rand.Int64N(1<<53-1) // which every reader of JSON can hold
	}
	now := time.Now()
	since := now.Add(-last)
	kept := slices.DeleteFunc(all.Points, func(p tidemark.RecoveryPoint) bool { return p.Time.Before(since) })
	window := clip(all.Covered, since, now)
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	moment, inWindow := anyMoment(window, all.Gaps, rng)
	switch {
	case inWindow && (len(kept) == 0 || rng.IntN(2) == 0):
		return a.name + "@" + moment.UTC().Format(time.RFC3339Nano), seed, nil
	case len(kept) > 0:
		return a.name + "@" + kept[rng.IntN(len(kept))].Position.String(), seed, nil
	}
	return "", 0, tidemark.Errorf(tidemark.NotFound, "%s has no point of the last %v", a.name, last).WithHint("`tidemark points " + a.name + "` lists those it has")
}

// clip cuts intervals to what lies between two times.
func clip(list []tidemark.Interval, from, to time.Time) (clipped []tidemark.Interval) {
	for _, i := range list {
		if i.To.IsZero() || i.To.After(to) {
			i.To = to
		}
		if i.From.Before(from) {
			i.From = from
		}
		if i.To.After(i.From) {
			clipped = append(clipped, i)
		}
	}
	return clipped
}

// anyMoment chooses a moment of intervals, each as likely as any other, that lies in no gap.
func anyMoment(list, gaps []tidemark.Interval, rng *rand.Rand) (time.Time, bool) {
	total := time.Duration(0)
	for _, i := range list {
		total += i.To.Sub(i.From)
	}
	if total <= 0 {
		return time.Time{}, false
	}
	for range 100 { // most of a window is no gap
		at := time.Duration(rng.Int64N(int64(total)))
		for _, i := range list {
			if n := i.To.Sub(i.From); at >= n {
				at -= n
				continue
			}
			when := i.From.Add(at)
			if !slices.ContainsFunc(gaps, func(g tidemark.Interval) bool {
				return !when.Before(g.From) && (g.To.IsZero() || when.Before(g.To))
			}) {
				return when, true
			}
			break
		}
	}
	return time.Time{}, false
}

// prove brings the point up, and stamps it, unless nothing can be said of it.
func (c *Control) prove(ctx context.Context, t *task, x *proving) error {
	bounded, cancel := context.WithDeadline(ctx, x.begun.Add(x.limit))
	defer cancel()
	r, err := c.recoverAside(ctx, bounded, t, x)
	if err == nil && r.Reason == "" && (x.proof.Deep || x.plan.src.typeOnceCopied() == tidemark.TypeVolume) {
		r.Reason, err = c.checkBlocks(bounded, t, x)
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err() // it was cancelled, or the server stops
	case bounded.Err() != nil:
		r.Reason = fmt.Sprintf("the step %q was not done in time: all of it may take %v", t.at(), x.limit)
	case Explain(err).Kind == tidemark.Corrupt: // of what the point is made of
		r.Reason = Explain(err).Message
	default:
		return err
	}
	p := &x.proof
	p.Seconds, p.Result, p.Reason = time.Since(x.begun).Seconds(), tidemark.Proven, r.Reason
	if r.Reason != "" {
		p.Result = tidemark.Unproven
	}
	p.Output = c.keepOutput("proofs", t.id, r.Output)
	return c.stamp(ctx, x)
}

// stepOf does one step, and notes how long it took.
func (x *proving) stepOf(ctx context.Context, t *task, name string, fn func() error) error {
	begun := time.Now()
	if err := t.doing(ctx, name, undoing{Remove: x.name}); err != nil {
		return err
	}
	err := fn()
	x.proof.Steps = append(x.proof.Steps, tidemark.ProofStep{Name: name, Seconds: time.Since(begun).Seconds()})
	return err
}

// recoverAside branches from the point, attaches the disks, and has the agent bring them up in a sandbox and check them. The agent keeps the time itself, and
// reports what it has found by then: only what comes before is bounded by the context that is.
func (c *Control) recoverAside(ctx, bounded context.Context, t *task, x *proving) (r proof.Report, err error) {
	var a app
	err = x.stepOf(bounded, t, "open", func() error {
		if x.plan.log {
			if err := c.completeLog(bounded, &x.plan); err != nil {
				return err
			}
		}
		a, err = c.branch(bounded, x.plan.src, x.name, "", x.plan.pos, x.plan.each, roleProof)
		return err
	})
	if err != nil {
		return r, err
	}
	hide, err := filepath.EvalSymlinks(c.o.Dir)
	if err != nil {
		return r, err
	}
	s := x.sandbox(a, hide)
	err = x.stepOf(bounded, t, "attach", func() error {
		for i, d := range s.Disks {
			var err error
			if s.Disks[i].Device, err = c.attach(bounded, a, d.Name, true); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	before := time.Since(x.begun)
	s.Limit, s.Left = x.limit, max(x.limit-before, time.Millisecond)
	r, err = c.agent.Prove(ctx, s, func(n proof.Note) { x.note(ctx, t, n) })
	if err != nil {
		return r, err
	}
	x.proof.Steps, x.proof.Checks = append(x.proof.Steps, r.Steps...), r.Checks
	if r.Answered > 0 {
		x.proof.RecoverySeconds = before.Seconds() + r.Answered
	}
	return r, nil
}

// note takes how far the sandbox is.
func (x *proving) note(ctx context.Context, t *task, n proof.Note) {
	if n.Progress != nil {
		t.report(*n.Progress)
	}
	if n.Step == "" {
		return
	}
	if err := t.doing(ctx, n.Step, undoing{Remove: x.name}); err != nil && ctx.Err() == nil {
		t.c.log.Error("the step of a job was not recorded", "job", t.id, "error", err)
	}
}

// at is the step that a job is in.
func (t *task) at() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.step
}

// sandbox says what is brought up, when its disks are attached, and which directory is hidden.
func (x *proving) sandbox(a app, hide string) proof.Spec {
	s := proof.Spec{Name: x.name, Type: a.Type, Stop: x.plan.stop, Deep: x.proof.Deep, Probe: x.probe, Hide: hide}
	if a.Type == tidemark.TypeVolume {
		for _, d := range a.t.Disks() {
			s.Disks = append(s.Disks, proof.Disk{Name: d.Name()})
		}
		return s
	}
	s.Data = proof.Place{Disk: a.dataDisk(), Dir: treeDir}
	if a.Home != nil {
		s.Data.Dir = a.Home.Dir
	}
	s.Disks = []proof.Disk{{Name: s.Data.Disk}}
	if x.plan.log {
		s.Log = &proof.Place{Disk: logDisk, Dir: logTree}
		s.Disks = append(s.Disks, proof.Disk{Name: logDisk})
	}
	return s
}

// checkBlocks reads all blocks of the point, and compares them with their hashes. It returns why the point is not proven.
func (c *Control) checkBlocks(ctx context.Context, t *task, x *proving) (reason string, err error) {
	if err := t.doing(ctx, "blocks", undoing{Remove: x.name}); err != nil {
		return "", err
	}
	begun := time.Now()
	session := c.store.Begin()
	defer session.End()
	a := x.plan.src
	var roots []image.Root
	for _, d := range a.t.Disks() {
		pos, ok := x.plan.each[d.Name()]
		if !ok {
			pos = x.plan.pos
		}
		root, err := a.t.Root(ctx, session, d.Name(), pos)
		if err != nil {
			return "", err
		}
		roots = append(roots, root)
	}
	r, err := c.store.Check(ctx, func(k *image.Keeper) error {
		for _, root := range roots {
			if err := k.Root(root); err != nil {
				return err
			}
		}
		return nil
	}, func(done int64) { t.report(tidemark.Progress{Done: done, Unit: "records"}) })
	if err != nil {
		return "", err
	}
	check := tidemark.ProofCheck{Name: "blocks", Result: tidemark.CheckOK, Detail: fmt.Sprintf("%d chunks, %s read", r.Chunks, tidemark.FormatSize(r.Bytes))}
	if len(r.Damage) > 0 {
		d := r.Damage[0]
		check.Result, check.Detail = tidemark.CheckFailed, fmt.Sprintf("%d records are damaged; the first is %v in %s at %d: %s", len(r.Damage), d.Name, d.Pack, d.Offset, d.What)
		reason = check.Detail
	}
	check.Seconds = time.Since(begun).Seconds()
	x.proof.Checks = append(x.proof.Checks, check)
	x.proof.Steps = append(x.proof.Steps, tidemark.ProofStep{Name: "blocks", Seconds: check.Seconds})
	return reason, nil
}

// mostOutputs is how many files with outputs are kept in each directory.
const mostOutputs = 100

// keepOutput keeps what somebody's programs said last, in a directory of the data directory, and returns where. It is there to be read by people:
// that it cannot be kept stops nothing.
func (c *Control) keepOutput(in string, job int64, text string) string {
	dir := c.path(in)
	name := filepath.Join(dir, fmt.Sprintf("%d.log", job))
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(name, []byte(text), 0o600)
	}
	if err == nil {
		err = pruneOutputs(dir)
	}
	if err != nil {
		c.log.Error("the output of a job's programs was not kept", "job", job, "error", err)
		return ""
	}
	return name
}

// pruneOutputs removes the oldest files of a directory, which are named by the numbers of jobs.
func pruneOutputs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	number := func(e os.DirEntry) int64 {
		n, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), ".log"), 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(number(a), number(b)) })
	for _, e := range entries[:max(0, len(entries)-mostOutputs)] {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
