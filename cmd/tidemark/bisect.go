package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// bisectSpec is what was asked for.
type bisectSpec struct {
	app, disk      string
	good, bad      string
	resolution     time.Duration
	clone, noMount bool
	life           int64 // of what is mounted or cloned for a point, in seconds; 0: it stays until it was looked at
	command        []string
}

// bisect searches, and takes back all that it mounts and clones, also when it is interrupted.
func bisect(ctx context.Context, spec bisectSpec) (res tidemark.Bisected, err error) {
	begun := time.Now()
	p := &prober{bisectSpec: spec, server: server()}
	good, _ := tidemark.ParsePoint(spec.good) // was checked
	bad, _ := tidemark.ParsePoint(spec.bad)
	if p.dir, err = os.MkdirTemp("", "tidemark-bisect-"); err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, os.Remove(p.dir)) }()
	if p.life == 0 {
		me, err := p.server.Self(ctx)
		if err != nil {
			return res, err
		}
		p.life = allowedLife(me.Grants)
	}
	res, err = client.Bisect(ctx, p, client.Search{Good: good, Bad: bad, Resolution: spec.resolution, Tell: p.tell})
	if err != nil {
		return res, p.explain(ctx, res, err)
	}
	res.Application = spec.app
	p.addChanges(ctx, &res)
	res.Seconds = time.Since(begun).Seconds()
	return res, nil
}

// allowedLife is how long a copy may live by all grants that say so, in seconds; 0: without an end.
func allowedLife(grants []access.Grant) (life int64) {
	for _, g := range grants {
		if n := g.Limits.Lifetime; g.Role.Limited() && n > 0 && (life == 0 || n < life) {
			life = n
		}
	}
	return life
}

// explain says of an interruption what was known by then.
func (p *prober) explain(ctx context.Context, res tidemark.Bisected, err error) error {
	if ctx.Err() == nil {
		return err
	}
	known := "nothing is known yet"
	if res.Bad.Position > 0 {
		known = fmt.Sprintf("%s is good and %s is bad", res.Good.Position, res.Bad.Position)
	}
	return tidemark.Errorf(tidemark.Cancelled, "the search was interrupted, and what it mounted was taken back; %s", known)
}

// addChanges adds what differs between the last good and the first bad point.
func (p *prober) addChanges(ctx context.Context, res *tidemark.Bisected) {
	d, err := p.server.Diff(ctx, tidemark.DiffSpec{A: p.ref(res.Good), B: p.ref(res.Bad), Disk: p.disk})
	res.ChangedBytes, res.Extents = d.ChangedBytes, d.Extents
	if res.Extents == nil {
		res.Extents = []tidemark.DiffExtent{}
	}
	if err != nil {
		res.Notes = append(res.Notes, fmt.Sprintf("what differs is not known: %v", err))
	}
}

// prober looks at points with the user's command.
type prober struct {
	bisectSpec
	server *client.Client
	dir    string // mount point
	probes int
	took   time.Duration // by the last probe
	why    string        // a point was bad without asking the command
	ends   time.Time     // when what is mounted or cloned for the point has lived its time; zero: never
}

func (p *prober) ref(s tidemark.Step) string { return p.app + "@" + s.Position.String() }

// Halve implements [client.History].
func (p *prober) Halve(ctx context.Context, good, bad tidemark.Point, skip []tidemark.Position, at float64) (tidemark.Halves, error) {
	return p.server.Halve(ctx, tidemark.HalveSpec{Application: p.app, Disk: p.disk, Good: good.String(), Bad: bad.String(), Skip: skip, At: at})
}

// tell prints a line for each probe.
func (p *prober) tell(s tidemark.Step, v client.Verdict, left int) {
	why := ""
	if p.why != "" {
		why = ": " + p.why
	}
	fmt.Fprintf(os.Stderr, "step %d of about %d: %s %s is %s (%s)%s\n", p.probes, p.probes+left+p.endsLeft(), p.ref(s), s.Time.Local().Format("2006-01-02 15:04:05.000"), v, seconds(p.took.Seconds()), why)
}

// endsLeft is 1 as long as the bad end was not looked at.
func (p *prober) endsLeft() int { return max(0, 2-p.probes) }

// Probe implements [client.History].
func (p *prober) Probe(ctx context.Context, s tidemark.Step) (v client.Verdict, err error) {
	begun := time.Now()
	p.probes++
	p.why, p.ends = "", time.Time{}
	if p.life > 0 {
		p.ends = begun.Add(time.Duration(p.life) * time.Second)
	}
	env := []string{"TIDEMARK_POINT=" + p.ref(s), "TIDEMARK_TIME=" + s.Time.UTC().Format(time.RFC3339Nano)}
	if p.clone {
		v, err = p.probeClone(ctx, s, env)
	} else {
		v, err = p.probeMount(ctx, s, env)
	}
	p.took = time.Since(begun)
	return v, err
}

// probeMount looks at a mounted point. Mounting takes so little that it is not interrupted: what is not known to be mounted could not be taken back.
func (p *prober) probeMount(ctx context.Context, s tidemark.Step, env []string) (v client.Verdict, err error) {
	whole := context.WithoutCancel(ctx)
	m, err := p.mount(whole, s)
	if tidemark.KindOf(err) == tidemark.Invalid && p.probes > 1 {
		p.why = err.Error()
		return client.Bad, nil
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, p.gone(p.server.Unmount(whole, m.Name))) }()
	env = append(env, "TIDEMARK_DEVICE="+m.Device)
	if m.Path != "" {
		env = append(env, "TIDEMARK_MOUNT="+m.Path)
	}
	return p.run(ctx, env)
}

// mount mounts a point. If the good end, which is the first, has no file system that can be mounted, disks are only attached from then on.
func (p *prober) mount(ctx context.Context, s tidemark.Step) (m tidemark.Mount, err error) {
	spec := tidemark.MountSpec{Ref: p.ref(s), Disk: p.disk, Lifetime: p.life}
	if p.noMount {
		return p.server.Mount(ctx, spec)
	}
	spec.Path = p.dir
	m, err = p.server.Mount(ctx, spec)
	if tidemark.KindOf(err) == tidemark.Invalid && p.probes == 1 {
		spec.Path = ""
		attached, e := p.server.Mount(ctx, spec)
		if e != nil {
			return m, err // it was not about the file system
		}
		m = attached
		fmt.Fprintf(os.Stderr, "nothing is mounted, and the command gets TIDEMARK_DEVICE alone: %v\n", err)
		p.noMount, err = true, nil
	}
	return m, err
}

// probeClone looks at a clone that is brought up from a point.
func (p *prober) probeClone(ctx context.Context, s tidemark.Step, env []string) (v client.Verdict, err error) {
	whole := context.WithoutCancel(ctx)
	name := fmt.Sprintf("%s-bisect-%d", p.app[:min(len(p.app), tidemark.MaxName-16)], os.Getpid())
	j, err := p.server.Clone(whole, tidemark.CloneSpec{Ref: p.ref(s), Name: name, Lifetime: p.life})
	if err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.server.Cancel(whole, j.ID) }) // fails if it has just ended
	var k tidemark.Clone
	err = p.server.Wait(whole, j.ID, &k, nil)
	stop()
	if err != nil && p.late() {
		return "", p.overdue()
	}
	if err != nil {
		ended, e := p.server.Job(whole, j.ID)
		if e == nil && ended.State == tidemark.JobFailed && p.probes > 1 {
			p.why = "it does not come up: " + strings.Join(strings.Fields(err.Error()), " ")
			return client.Bad, nil
		}
		return "", err
	}
	defer func() { err = errors.Join(err, p.gone(p.server.RemoveClone(whole, name))) }()
	return p.run(ctx, append(env, "TIDEMARK_CONNECTION="+k.Connection))
}

// gone is err of a removal, and nil if the server came first, since the time was over.
func (p *prober) gone(err error) error {
	if tidemark.KindOf(err) == tidemark.NotFound && p.late() {
		return nil
	}
	return err
}

// late reports that what is mounted or cloned for the point has lived its time: what a command says of it then means nothing.
func (p *prober) late() bool { return !p.ends.IsZero() && !time.Now().Before(p.ends) }

func (p *prober) overdue() error {
	life := time.Duration(p.life) * time.Second
	return tidemark.Errorf(tidemark.Cancelled, "nothing is known of a point after %s, for which it is mounted or cloned", life).WithHint("give the command more time with --for, as far as your grants allow")
}

// patience is how long a command has to end when the search is interrupted.
const patience = 10 * time.Second

// run runs the command, which says by its exit code what a point is. What it prints goes to stderr, as all
// that is not the result. It has a process group of its own, so that nothing of it is left that would hold what is mounted.
func (p *prober) run(ctx context.Context, env []string) (client.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if !p.ends.IsZero() {
		bounded, cancel = context.WithDeadline(ctx, p.ends)
	}
	defer cancel()
	cmd := exec.CommandContext(bounded, p.command[0], p.command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = patience
	err := cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // fails if nothing is left
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if p.late() {
		return "", p.overdue()
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return client.Good, nil
	case !errors.As(err, &exit):
		return "", tidemark.Errorf(tidemark.Invalid, "the command cannot be run: %w", err)
	case exit.ExitCode() == 125:
		return client.Unknown, nil
	case exit.ExitCode() > 0 && exit.ExitCode() <= 127:
		return client.Bad, nil
	}
	return "", tidemark.Errorf(tidemark.Cancelled, "the command ended the search: %v", exit).WithHint("it says good with 0, bad with 1 to 127, and with 125 that it cannot tell")
}
