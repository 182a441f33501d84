package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/agent"
	"tidemark/catalog"
)

// A host may be away when something is to be taken off it, and it may come back as it was, or after a restart. When it comes back, what belongs
// to nothing is taken off it, what was given up in the middle is taken apart, and all that should be there is brought up: as a start
// of the server does for its own host.

// doom says what becomes of a clone or mount that is to be taken apart.
type doom struct {
	// Again is the clone to be made then, under its name: its refresh was cut.
	Again *cloning `json:"again,omitempty"`
	// Refreshed: its refresh has failed, and may be made again.
	Refreshed bool `json:"refreshed,omitempty"`
}

// owned reports whether it stays noted whose it is: what a refresh makes in its place is the same user's, and shared with the same.
func (d doom) owned() bool { return d.Again != nil || d.Refreshed }

// hostAgent returns the agent of a host, if it can be called now; "" is ours.
func (c *Control) hostAgent(ctx context.Context, host string) (*agent.Agent, error) {
	x, err := c.agentOn(host)
	if err == nil && host != "" {
		err = x.Reach(ctx)
	}
	return x, err
}

// abandoned reports whether a clone or mount was on a host that was removed: nothing of it can be reached but what is here.
func (c *Control) abandoned(a app) bool {
	if !a.elsewhere() {
		return false
	}
	_, err := c.agentOn(a.Agent)
	return tidemark.KindOf(err) == tidemark.NotFound
}

// abandon takes apart a clone or mount that was half made. What cannot be done now, for somebody uses it or its host is away, is done when it can be;
// that the clone is to be made again is then up to that moment, too, and an error here.
func (c *Control) abandon(ctx context.Context, name string, d doom) error {
	if d.Again != nil {
		if err := c.noteRefresh(ctx, name, stateUnrefreshed, d.Again); err != nil {
			return err
		}
	}
	err := c.demolish(ctx, name)
	if err == nil {
		if !d.owned() {
			err = c.disown(ctx, name, access.KindClone, access.KindMount)
		}
		return err
	}
	a, aerr := c.app(name)
	if aerr != nil || a.Role == "" { // an application is there for all to see, and to remove
		return err
	}
	if serr := c.annotate(ctx, a, func(n *about) { n.Doomed = &d }); serr != nil {
		return errors.Join(err, serr)
	}
	c.event("warning", name, "%s, which is tried again by itself: %v", a.beingRemoved(), err)
	c.keepDemolishing(a)
	if d.Again != nil {
		return tidemark.Errorf(tidemark.Unavailable, "%s, and is made when that is done: %w", a.beingRemoved(), err)
	}
	return nil
}

// keepDemolishing goes on with what abandon could not do: who uses it may leave, and a host that hangs may answer. Of another host it does so as long as
// that is connected; when it is back from elsewhere, who welcomes it does that.
func (c *Control) keepDemolishing(a app) {
	ctx, there := c.jobs.ctx, func() bool { return true }
	if a.elsewhere() {
		l := c.hosts.link(a.Agent)
		if l == nil {
			return
		}
		ctx, there = l.ctx, l.agent.Connected
	}
	c.jobs.wg.Go(func() {
		for pause := leastWelcomePause; rest(ctx, pause) && there() && c.set.Get(a.t.ID()) != nil; pause = min(2*pause, mostWelcomePause) {
			if c.bringBack(ctx, a.name, make(chan struct{}, 1)) == nil {
				return
			}
		}
	})
}

// beingRemoved says of what is to be taken apart why it is there yet.
func (a app) beingRemoved() string {
	if a.elsewhere() {
		return fmt.Sprintf("%s is being removed, and host %s has not done its part yet", a.name, a.Agent)
	}
	return a.name + " is being removed, and could not be taken off this host yet"
}

// unlessDoomed is why something was not removed; where it is to be taken apart anyway, with what goes on.
func (c *Control) unlessDoomed(name string, cause error) error {
	a, doomed := c.doomed(name)
	if !doomed {
		return cause
	}
	hint := "that is tried again by itself"
	if a.elsewhere() {
		hint += "; if the host is gone for good: `tidemark host rm " + a.Agent + " --force`"
	}
	return tidemark.Errorf(tidemark.Unavailable, "%s: %w", a.beingRemoved(), cause).WithHint(hint)
}

// doomed finds what is to be taken apart as soon as that can be done.
func (c *Control) doomed(name string) (app, bool) {
	a, err := c.app(name)
	return a, err == nil && a.Doomed != nil
}

// cutOff has a host never use the disks of a clone again as they are attached there now, for they are about to change behind its back. When it
// is back, they are attached anew.
func (c *Control) cutOff(ctx context.Context, a app) (app, error) {
	for _, d := range a.t.Disks() {
		c.unserveDisk(a, d.Name())
	}
	if err := c.annotate(ctx, a, func(n *about) { n.Turn++ }); err != nil {
		return a, err
	}
	return appOf(a.t)
}

// welcome makes a host that is connected what it should be.
func (c *Control) welcome(ctx context.Context, host string) {
	select {
	case <-c.back:
	case <-ctx.Done():
		return
	}
	for x, err := c.agentOn(host); err == nil && !x.Connected(); {
		if !rest(ctx, welcomeLook) {
			return
		}
	}
	if err := c.detachStrays(ctx, host); err != nil && ctx.Err() == nil {
		c.event("error", "", "on host %s disks that belong to nothing may be attached: %v", host, err)
	}
	c.dropLeft(ctx, host)
	var all sync.WaitGroup
	turns := make(chan struct{}, welcomeAtOnce)
	for _, name := range c.shownNames(host) {
		all.Go(func() { c.keepBringing(ctx, name, turns) })
	}
	all.Wait()
}

// keepBringing makes a clone or mount what it should be. What fails is told once, and tried again as long as the host is connected: a program
// that was killed may need its time to end.
func (c *Control) keepBringing(ctx context.Context, name string, turns chan struct{}) {
	told := false
	for pause := leastWelcomePause; ; pause = min(2*pause, mostWelcomePause) {
		err := c.bringBack(ctx, name, turns)
		if err == nil || ctx.Err() != nil {
			return
		}
		if !told {
			c.event("error", name, "%s did not come back whole, and is tried again: %v", name, err)
		}
		told = true
		if !rest(ctx, pause) {
			return
		}
	}
}

// bringLater does so for a clone or mount of our own host, which did not come back with the server: what kept it may be over soon.
func (c *Control) bringLater(name string) {
	if rest(c.jobs.ctx, leastWelcomePause) {
		c.keepBringing(c.jobs.ctx, name, make(chan struct{}, 1))
	}
}

// Pauses of who welcomes a host.
const (
	welcomeLook = 10 * time.Millisecond
	welcomeTurn = 200 * time.Millisecond // before a clone that somebody works on is looked at again

	leastWelcomePause = time.Second // before what failed is tried again
	mostWelcomePause  = time.Minute
)

// welcomeAtOnce is how many clones and mounts of a host are brought up at a time.
const welcomeAtOnce = 4

// rest waits, and reports whether ctx is not done.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// detachStrays takes off a host the disks that belong to nothing any more: it was away when they were removed. Where a
// timeline cannot be opened, its disks may be meant, and nothing is touched.
func (c *Control) detachStrays(ctx context.Context, host string) error {
	x, err := c.agentOn(host)
	if err != nil || len(c.set.Damaged()) > 0 {
		return err
	}
	l := c.hosts.link(host)
	if l == nil {
		return nil
	}
	l.disks.showing.Lock()
	defer l.disks.showing.Unlock()
	exports := []string{}
	for _, a := range c.apps() {
		for _, d := range a.t.Disks() {
			if a.elsewhere() && a.Agent == host {
				exports = append(exports, exportOf(a, d.Name()))
			}
		}
	}
	devices, err := x.DetachStrays(ctx, exports)
	for _, d := range devices {
		c.event("warning", "", "the disk %s of host %s belonged to nothing any more, and was detached", d, host)
	}
	return err
}

// bringBack makes one clone or mount what it should be, when it is its turn. While somebody else works on it, that is waited for: it may be up to us
// what he leaves.
func (c *Control) bringBack(ctx context.Context, name string, turns chan struct{}) error {
	leave, err := c.takeTurn(ctx, name, turns)
	if err != nil {
		return err
	}
	again, err := c.bringBackNow(ctx, name)
	leave()
	if err == nil && again != nil {
		_, err = c.ask(WithAsk(ctx, Ask{Queue: true}), "refresh", refreshing{RefreshSpec: tidemark.RefreshSpec{Name: name}, Again: again})
	}
	return err
}

// takeTurn is work with one of turns, as soon as both can be had. It waits without either: who works on one clone keeps no others waiting.
func (c *Control) takeTurn(ctx context.Context, name string, turns chan struct{}) (leave func(), err error) {
	for {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if leave, err := c.work(name); err == nil {
			return func() { leave(); <-turns }, nil
		}
		<-turns
		if !rest(ctx, welcomeTurn) {
			return nil, ctx.Err()
		}
	}
}

// bringBackNow does so, or takes it apart, and then returns the clone to be made in its place, if there is one.
func (c *Control) bringBackNow(ctx context.Context, name string) (again *cloning, err error) {
	defer c.Enter()()
	a, err := c.app(name)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a.Doomed == nil {
		return nil, c.comeBackApp(ctx, a)
	}
	if err := c.demolish(ctx, name); err != nil {
		return nil, err
	}
	c.event("warning", name, "%s was taken off host %s", name, a.host())
	if !a.Doomed.owned() {
		err = c.disown(ctx, name, access.KindClone, access.KindMount)
	}
	return a.Doomed.Again, err
}

// shownNames lists the clones and mounts on a host.
func (c *Control) shownNames(host string) []string {
	names := []string{}
	for _, a := range c.apps() {
		if a.elsewhere() && a.Agent == host {
			names = append(names, a.name)
		}
	}
	return names
}

// removeDoomed takes apart what was waiting for a host that was removed.
func (c *Control) removeDoomed(ctx context.Context, host string) error {
	var errs []error
	for _, a := range c.apps() {
		if a.elsewhere() && a.Agent == host && a.Doomed != nil {
			errs = append(errs, c.demolish(ctx, a.name))
		}
	}
	return errors.Join(errs...)
}

// serveAgain serves the disks that a host has to a host of that name that joins anew.
func (c *Control) serveAgain(host string) error {
	var errs []error
	for _, a := range c.apps() {
		if !a.elsewhere() || a.Agent != host {
			continue
		}
		for _, d := range a.t.Disks() {
			errs = append(errs, c.serveDisk(a, d))
		}
	}
	return errors.Join(errs...)
}

// comeBackMount brings a mount back that its host has lost.
func (c *Control) comeBackMount(ctx context.Context, a app) error {
	m, err := c.mountOf(ctx, a)
	if err != nil {
		return err
	}
	s, err := c.look(ctx, a, m.Disk)
	if err != nil || s.Device != "" && m.State != stateReturning {
		return err
	}
	m.State = stateReturning
	if err := c.catalog.Put(ctx, catalog.Mounts, a.name, m); err != nil {
		return err
	}
	if s.Device == "" || !s.Mounted {
		m.State = "mounted"
		err = c.mountDisk(ctx, a, &m.Mount, false)
	} else {
		m.State, m.Device = "mounted", s.Device
	}
	if err != nil {
		return err
	}
	return c.catalog.Put(ctx, catalog.Mounts, a.name, m)
}

// stateReturning is the state of what is being brought back to a host: if that is cut, the next try goes on with it.
const stateReturning = "returning"

// comeBackClone brings a clone back that its host has lost.
func (c *Control) comeBackClone(ctx context.Context, a app) error {
	k, err := c.cloneOf(ctx, a)
	if err != nil {
		return err
	}
	if k.State != stateReturning {
		whole, err := c.isUp(ctx, a)
		if err != nil || whole {
			return err // the attachers and the database went on without us
		}
		k.State = stateReturning
		if err := c.catalog.Put(ctx, catalog.Clones, a.name, k); err != nil {
			return err
		}
	}
	if err := c.bringUp(ctx, a, &k); err != nil {
		return err
	}
	k.State = "running"
	return c.catalog.Put(ctx, catalog.Clones, a.name, k)
}

// isUp reports whether the disks of a clone are attached and, where they are to be, mounted.
func (c *Control) isUp(ctx context.Context, a app) (bool, error) {
	for _, d := range a.t.Disks() {
		if a.Type != tidemark.TypeVolume && d.Name() != a.dataDisk() {
			continue // the log is needed for the recovery alone
		}
		s, err := c.look(ctx, a, d.Name())
		if err != nil || s.Device == "" || a.Type != tidemark.TypeVolume && !s.Mounted {
			return false, err
		}
	}
	return true, nil
}

// bringUp attaches, mounts and starts what of a clone is not there.
func (c *Control) bringUp(ctx context.Context, a app, k *keptClone) error {
	switch a.Type {
	case tidemark.TypePostgres:
		up, err := c.isUp(ctx, a) // one whose disk is gone may run on for a while
		if err != nil {
			return err
		}
		if _, err := c.database(ctx, a); up && err == nil {
			return nil
		}
		k.Spec.Port = k.Port
		return c.startDatabase(ctx, a, plan{}, k)
	case tidemark.TypeFilesystem:
		dir, err := c.mountClone(ctx, a, dataDisk)
		k.setTree(dir)
		return err
	}
	if !a.elsewhere() {
		return nil // its exports are served as such
	}
	return c.attachClone(ctx, a, k)
}

// attachClone attaches the disks of a clone that is nothing but disks.
func (c *Control) attachClone(ctx context.Context, a app, k *keptClone) error {
	k.Connection = ""
	for _, d := range a.t.Disks() {
		device, err := c.attach(ctx, a, d.Name(), false)
		if err != nil {
			return err
		}
		if k.Connection != "" {
			k.Connection += " "
		}
		k.Connection += device
	}
	return nil
}

// undoRewindElsewhere takes back a rewind that was cut, of a clone on another host, which need not be there for it: it is brought up when it is.
func (c *Control) undoRewindElsewhere(ctx context.Context, a app, u undoing) error {
	if u.Before != "" {
		var err error
		if a, err = c.unwriteElsewhere(ctx, a, u.Before); err != nil {
			return err
		}
	}
	return c.serveElsewhere(ctx, a)
}

// unwriteElsewhere is unwrite of what its host may have the disks of attached, and a file system of them in memory. It returns the application as it is then.
func (c *Control) unwriteElsewhere(ctx context.Context, a app, before string) (app, error) {
	a, err := c.cutOff(ctx, a)
	if err == nil {
		err = c.unwrite(ctx, a, before)
	}
	return a, err
}

// serveElsewhere has the host of an application bring it up, when it can.
func (c *Control) serveElsewhere(ctx context.Context, a app) error {
	for _, d := range a.t.Disks() {
		if err := c.serveDisk(a, d); err != nil {
			return err
		}
	}
	return c.noteReturning(ctx, a)
}

// noteReturning has a clone brought up when its host is back, whatever of it is there.
func (c *Control) noteReturning(ctx context.Context, a app) error {
	var k keptClone
	if err := c.catalog.Get(ctx, catalog.Clones, a.name, &k); err != nil {
		return fmt.Errorf("note that %s has to be brought up: %w", a.name, err)
	}
	k.State = stateReturning
	return c.catalog.Put(ctx, catalog.Clones, a.name, k)
}
