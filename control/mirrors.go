package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/capture/qemu"
	"tidemark/export/nbd"
	"tidemark/internal/guard"
	"tidemark/timeline"
)

// A mirrored application is a volume that follows the disks of a virtual machine: QEMU sends every write of the guest to
// an export of the timeline's disk, which is on a socket of its own, and nothing else writes there. The guest must not
// wait for us, whatever happens; what it wrote while we were away is read from the machine afterwards.

// machine is where a mirrored application's disks are.
type machine struct {
	Socket string   `json:"socket"` // QMP
	Disks  []string `json:"disks"`
	NBD    string   `json:"nbd,omitempty"` // socket of the machine's own NBD server, if it has one
}

// machinePrefix begins the source of a machine's disks.
const machinePrefix = "qemu:"

// Options of a mirrored application.
const (
	optionDisk  = "disk"
	optionNBD   = "nbd"
	optionGuest = "guest_agent" // socket of the guest agent
)

// mirrored reports whether the writes of an application come from a virtual machine.
func (a app) mirrored() bool { return a.Machine != nil }

// mirrors are the virtual machines that are followed.
type mirrors struct {
	mu    sync.Mutex
	live  map[string]*mirroring // guarded by mu
	guard *guard.Guard          // lets machines go on when this process stands still; guarded by mu
	beats context.CancelFunc    // guarded by mu
}

// mirroring follows one machine.
type mirroring struct {
	*qemu.Mirror
	cancel context.CancelFunc
	ended  chan struct{}
	begun  chan struct{} // closed when it has come so far that guest's writes are kept, or failed to
}

func (m *mirrors) of(name string) *mirroring {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live[name]
}

// stop ends a mirror; the guest goes on alone.
func (m *mirrors) stop(name string) *mirroring {
	m.mu.Lock()
	x := m.live[name]
	delete(m.live, name)
	m.mu.Unlock()
	if x != nil {
		x.cancel()
		<-x.ended
	}
	return x
}

// stopAll ends all mirrors, at once: each may have to wait for its machine.
func (m *mirrors) stopAll() error {
	m.mu.Lock()
	all, g := m.live, m.guard
	m.live, m.guard = nil, nil
	if m.beats != nil {
		defer m.beats()
	}
	m.mu.Unlock()
	for _, x := range all {
		x.cancel()
	}
	for _, x := range all {
		<-x.ended
	}
	if g == nil {
		return nil
	}
	return g.Close()
}

// guarded has the connections of a listener guarded.
func (m *mirrors) guarded(l net.Listener) (*guard.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.guard == nil {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		m.guard = guard.New(exe, "guard")
		ctx, cancel := context.WithCancel(context.Background())
		m.beats = cancel
		go beat(ctx, m.guard)
	}
	return m.guard.Listen(l.(*net.UnixListener))
}

func beat(ctx context.Context, g *guard.Guard) {
	for ctx.Err() == nil {
		_ = g.Beat() // if it does not arrive, the machines are let go, which is what a guard is for
		select {
		case <-ctx.Done():
		case <-time.After(guard.Limit / 12):
		}
	}
}

// checkMachine refuses what cannot be asked for of a virtual machine.
func checkMachine(spec tidemark.ProtectSpec) error {
	socket := strings.TrimPrefix(spec.Source, machinePrefix)
	switch {
	case !spec.CDP:
		return tidemark.Errorf(tidemark.Invalid, "a virtual machine is protected by its writes").WithHint("add --cdp")
	case !filepath.IsAbs(socket):
		return tidemark.Errorf(tidemark.Invalid, "%q is no absolute path of a QMP socket", socket).WithHint("write qemu:/path/to/qmp.sock")
	case spec.Host != "":
		return tidemark.Errorf(tidemark.Invalid, "a virtual machine is followed on the server's own host").WithHint("leave --host out, or run a server where the machine is")
	case len(spec.Also) > 0:
		return tidemark.Errorf(tidemark.Invalid, "a virtual machine is protected alone").WithHint("protect each machine under its own name; -o disk=NAME,NAME chooses among the disks of one")
	}
	return checkMachineOptions(spec.Options)
}

func checkMachineOptions(options map[string]string) error {
	still := map[string]string{}
	for key, value := range options {
		switch key {
		case optionDisk:
		case optionNBD, optionGuest:
			if !filepath.IsAbs(value) {
				return tidemark.Errorf(tidemark.Invalid, "%q is no absolute path of a socket", value).WithHint("write " + key + "=/path/to/" + key + ".sock")
			}
		case optionScripts, optionTimeout, optionEvery, optionKeep:
			still[key] = value
		default:
			return tidemark.Errorf(tidemark.Invalid, "there is no option %q of a virtual machine", key).
				WithHint("there are disk=NAME,… (else all disks are taken), nbd=PATH and guest_agent=PATH, sockets of the machine's own NBD server and of its guest agent, scripts=DIR, script_timeout=TIME, appshot=INTERVAL and appshot_keep=TIME")
		}
	}
	return checkTapOptions(still)
}

// howToMirror looks at a virtual machine that is to be protected.
func (c *Control) howToMirror(spec tidemark.ProtectSpec) (func(context.Context, *task) (app, error), error) {
	m := machine{Socket: filepath.Clean(strings.TrimPrefix(spec.Source, machinePrefix)), NBD: spec.Options[optionNBD]}
	var names []string
	if asked, ok := spec.Options[optionDisk]; ok {
		names = strings.Split(asked, ",")
	}
	if dir, ok := spec.Options[optionScripts]; ok {
		if err := c.agent.CheckScripts(c.jobs.ctx, dir); err != nil {
			return nil, err
		}
	}
	found, err := qemu.Find(c.jobs.ctx, m.Socket, names)
	if err != nil {
		return nil, err
	}
	var disks []timeline.DiskSpec
	for i, d := range found {
		name := volumeDisk
		if len(found) > 1 {
			name = fmt.Sprintf("%s%d", volumeDisk, i+1)
		}
		m.Disks, disks = append(m.Disks, d.ID()), append(disks, timeline.DiskSpec{Name: name, Size: d.Size})
	}
	note := about{Type: tidemark.TypeVolume, Source: machinePrefix + m.Socket, Host: hostname(), Options: spec.Options, Machine: &m}
	return func(ctx context.Context, t *task) (app, error) {
		line, err := c.set.Create(ctx, spec.Name, disks, newNote(ctx, note))
		if err != nil {
			return app{}, err
		}
		if err := line.SetWindow(windowOf(spec.Window, cdpWindow)); err != nil {
			return app{}, err
		}
		a, err := appOf(line)
		if err != nil {
			return a, err
		}
		x, err := c.mirror(a)
		if err != nil {
			return a, err
		}
		select {
		case <-x.begun:
		case <-ctx.Done():
			return a, ctx.Err()
		}
		if st := x.State(); st.Phase == qemu.Degraded {
			return a, st.Why
		}
		return a, nil
	}, nil
}

// mirror begins to follow a machine, if that is not done already.
func (c *Control) mirror(a app) (*mirroring, error) {
	// Before anybody can ask for the present: the machine may have gone on without us.
	if err := a.t.Lose(0, "the server did not run"); err != nil {
		return nil, err
	}
	c.mirrors.mu.Lock()
	defer c.mirrors.mu.Unlock()
	if x := c.mirrors.live[a.name]; x != nil {
		return x, nil
	}
	if c.mirrors.live == nil {
		c.mirrors.live = map[string]*mirroring{}
	}
	ctx, cancel := context.WithCancel(c.jobs.ctx)
	x := &mirroring{cancel: cancel, ended: make(chan struct{}), begun: make(chan struct{})}
	var once sync.Once
	x.Mirror = &qemu.Mirror{Socket: a.Machine.Socket, Disks: a.Machine.Disks, NBD: a.Machine.NBD, ID: a.t.ID(),
		Dir: c.path("machines", a.t.ID()[:8]), Target: &inlet{Timeline: a.t, c: c, name: a.name}, Logger: c.log,
		Notify: func(s qemu.State) {
			if s.Phase == qemu.Degraded {
				c.event("error", a.name, "the machine of %s is not followed: %v", a.name, s.Why)
			}
			once.Do(func() { close(x.begun) })
		}}
	c.mirrors.live[a.name] = x
	go func() {
		defer close(x.ended)
		var shots sync.WaitGroup
		defer shots.Wait()
		shots.Go(func() { c.keepShots(ctx, a) })
		if err := x.Run(ctx); err != nil {
			c.event("error", a.name, "the machine of %s is not followed any more: %v", a.name, err)
		}
	}()
	return x, nil
}

// unmirror lets a machine go: it is as if it had never been followed.
func (c *Control) unmirror(ctx context.Context, a app) {
	x := c.mirrors.stop(a.name)
	if x == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := x.Forget(ctx); err != nil {
		c.log.Warn("the machine could not be asked to forget its bitmaps; they go with its process", "application", a.name, "error", err)
	}
	if err := os.RemoveAll(x.Dir); err != nil {
		c.log.Error("a directory of sockets was not removed", "directory", x.Dir, "error", err)
	}
}

// resyncMachine has all of a machine's disk compared.
func (c *Control) resyncMachine(a app) error {
	x := c.mirrors.stop(a.name)
	if x != nil {
		if err := x.Distrust(); err != nil {
			return err
		}
	}
	_, err := c.mirror(a)
	return err
}

// inlet is where a machine's writes come into a timeline.
type inlet struct {
	*timeline.Timeline
	c    *Control
	name string

	mu       sync.Mutex
	server   *nbd.Server     // guarded by mu
	listener *guard.Listener // guarded by mu
	shown    []qemu.Inlet    // guarded by mu
}

var _ qemu.Target = (*inlet)(nil)

// Disks implements [qemu.Target].
func (i *inlet) Disks() (list []block.Device) {
	for _, d := range i.Timeline.Disks() {
		list = append(list, d)
	}
	return list
}

// Show implements [qemu.Target].
func (i *inlet) Show(path string, inlets []qemu.Inlet) error {
	l, err := nbd.Listen("unix:" + path)
	if err != nil {
		return err
	}
	g, err := i.c.mirrors.guarded(l)
	if err != nil {
		return errors.Join(fmt.Errorf("begin to guard the machine: %w", err), l.Close())
	}
	table := nbd.NewTable()
	for _, in := range inlets {
		if err := table.Add(&nbd.Export{Name: in.Name, Description: i.name, Device: in.Disk, Idle: in.Gone}); err != nil {
			return errors.Join(err, g.Close())
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.server, i.listener, i.shown = nbd.NewServer(table, nbd.Options{Logger: i.c.log}), g, inlets
	i.c.serve(i.server, g)
	return nil
}

// HangUp implements [qemu.Target].
func (i *inlet) HangUp() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.server == nil {
		return
	}
	for _, in := range i.shown {
		i.server.Disconnect(in.Name)
	}
	i.listener.HangUp()
}

// Hide implements [qemu.Target].
func (i *inlet) Hide() error {
	i.mu.Lock()
	s, l := i.server, i.listener
	i.server, i.listener, i.shown = nil, nil, nil
	i.mu.Unlock()
	if s == nil {
		return nil
	}
	l.HangUp()
	return s.Close()
}

// Lose implements [qemu.Target].
func (i *inlet) Lose(since int64, why string) error {
	gaps := i.Gaps()
	following := len(gaps) > 0 && gaps[len(gaps)-1].To != 0
	err := i.Timeline.Lose(since, why)
	if err == nil && following {
		i.c.event("warning", i.name, "no point of %s can be had from now on, until what is missing was read: %s", i.name, why)
	}
	return err
}

// Whole implements [qemu.Target].
func (i *inlet) Whole(anchor string) error {
	err := i.Timeline.Whole(anchor)
	if err == nil {
		i.c.event("info", i.name, "every write of %s arrives, and any point from now on can be had", i.name)
	}
	return err
}

// describeMirror adds to a description how the machine is followed.
func (c *Control) describeMirror(a app, d *tidemark.Application) {
	if !a.mirrored() {
		return
	}
	d.Tap = &tidemark.Tap{State: tidemark.TapStopped}
	for i, disk := range a.t.Disks() {
		d.Tap.Disks = append(d.Tap.Disks, tidemark.TappedDisk{Disk: disk.Name(), Primary: a.Source + " " + a.Machine.Disks[i]})
	}
	x := c.mirrors.of(a.name)
	if x == nil {
		d.State, d.Detail = "degraded", "its machine is not followed"
		return
	}
	switch st := x.State(); st.Phase {
	case qemu.Ready:
		d.Tap.State = tidemark.TapFollowing
	case qemu.Syncing:
		d.Tap.State, d.Tap.LostBytes = tidemark.TapSyncing, st.Total-st.Done
		if d.State == "ok" {
			d.State, d.Detail = "syncing", fmt.Sprintf("%s of %s are to be compared", tidemark.FormatSize(st.Total-st.Done), tidemark.FormatSize(st.Total))
		}
	case qemu.Starting:
		d.Tap.State = tidemark.TapAway
		if d.State == "ok" {
			d.State, d.Detail = "syncing", "the machine is being looked at"
		}
	default:
		d.Tap.State, d.Tap.Detail = tidemark.TapAway, st.Why.Error()
		d.State, d.Detail = "degraded", "the writes of its machine do not arrive: "+d.Tap.Detail
	}
}
