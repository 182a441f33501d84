package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"tidemark"
	"tidemark/agent"
	"tidemark/agent/taps"
	"tidemark/capture"
	"tidemark/export/nbd"
	"tidemark/timeline"
	"tidemark/wire"
)

// A tapped application is a volume whose disks are elsewhere: each primary is a device or file of a host, open in
// the process of a tap there. The agent of that host, which may be ours, starts taps and finds them again; the server has it do so, and takes the
// stream of changes, which is the only thing that writes to the timeline.

// cdpWindow is for how long any point of a tapped disk can be recovered, unless another time is asked for.
var cdpWindow = timeline.Window{For: 24 * time.Hour}

// tapped reports whether the writes of an application come from a tap.
func (a app) tapped() bool { return len(a.Taps) > 0 }

// What a tap may keep of writes that the server has not, in memory and then on disk, unless its options say otherwise.
const (
	tapMemory = 64 << 20
	tapSpill  = 1 << 30
)

// sizeOption is the size that an option of an application says, or else usual.
func (a app) sizeOption(key string, usual int64) int64 {
	if text, ok := a.Options[key]; ok {
		if n, err := tidemark.ParseSize(text); err == nil {
			return n
		}
	}
	return usual
}

// tappings are the taps that the server keeps running.
type tappings struct {
	mu     sync.Mutex
	live   map[string]*tapping
	shots  map[string]chan shotResult // who waits for a mark, by its id; guarded by mu
	late   map[string]bool            // ids of marks that are to be forgotten if they still come; guarded by mu
	turns  map[string]chan struct{}   // of AppShots of an application, one at a time; guarded by mu
	socket net.Listener
}

// tapping keeps one tap running.
type tapping struct {
	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	err    error // why the tap does not run, or its disks are not attached
	// failing is the ailment that the tap told last, without the numbers in it.
	failing string
	devices []string // where the host shows the tapped disks
}

// ailment is what is wrong with a tap that runs, or with its disks; empty: nothing.
func ailment(st taps.Status) string {
	switch {
	case st.Failing != "":
		return "the disk itself fails: " + st.Failing
	case st.Unsafe != "":
		return "if its host loses power now, its history may be wrong without notice: " + st.Unsafe
	}
	return ""
}

// fails notes what is wrong with the tap, and reports whether that was not so before. That a disk fails
// at another place is the same.
func (x *tapping) fails(st agent.Running) bool {
	kind := strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, ailment(st.Status))
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.failing
	x.failing = kind
	return kind != "" && kind != was
}

// set notes how the tap was found, and reports whether that is new.
func (x *tapping) set(r agent.Running, err error) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err == nil {
		x.devices = r.Devices
	}
	changed = (err == nil) != (x.err == nil) || err != nil && err.Error() != x.err.Error()
	x.err = err
	return changed
}

// shown is where the host shows the tapped disks, if that is known.
func (x *tapping) shown() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.devices
}

func (x *tapping) trouble() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// tapping is what the agent of an application's host is told of its tap.
func (c *Control) tapping(a app) agent.Tapping {
	t := agent.Tapping{Timeline: a.t.ID(), Application: a.name,
		Memory: int(a.sizeOption(optionMemory, tapMemory)), Spill: a.sizeOption(optionQueue, tapSpill)}
	for i, d := range a.t.Disks() {
		t.Disks = append(t.Disks, agent.TapDisk{Name: d.Name(), Size: d.Size(), Primary: a.Taps[i]})
	}
	return t
}

// serveTaps takes the streams of taps.
func (c *Control) serveTaps() error {
	c.taps.live, c.taps.shots, c.taps.late = map[string]*tapping{}, map[string]chan shotResult{}, map[string]bool{}
	l, err := nbd.Listen("unix:" + agent.PlacesIn(c.o.Dir).Feeds)
	if err != nil {
		return err
	}
	c.taps.socket = l
	c.jobs.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.jobs.wg.Go(func() {
				c.takeFeed(c.jobs.ctx, "", conn)
			})
		}
	})
	return nil
}

// takeFeed takes the stream of a tap that runs on a host; "" is this one.
func (c *Control) takeFeed(ctx context.Context, host string, conn net.Conn) {
	err := wire.Serve(ctx, conn, func(_ context.Context, id, stream string, before capture.Sent) (wire.Feed, bool, error) {
		return c.openFeed(host, id, stream, before)
	})
	if err != nil {
		c.log.Warn("the stream of a tap ended", "host", host, "error", err)
	}
}

// openFeed lets a tap of a host write to its timeline.
func (c *Control) openFeed(host, id, stream string, before capture.Sent) (wire.Feed, bool, error) {
	t := c.set.Get(id)
	if t == nil {
		return nil, false, fmt.Errorf("there is no timeline %q", id)
	}
	a, err := appOf(t)
	if err != nil {
		return nil, false, err
	}
	if !a.tapped() || a.Agent != host {
		return nil, false, fmt.Errorf("timeline %s is not of disks that are tapped on host %q", id, host)
	}
	f, known, err := t.Feed(stream, before)
	return &feed{Feed: f, c: c, a: a}, known, err
}

// feed is a timeline's feed that tells what happens.
type feed struct {
	*timeline.Feed
	c *Control
	a app
}

// Lose implements [wire.Feed].
func (f *feed) Lose(since int64, why string) error {
	had := f.Lost()
	err := f.Feed.Lose(since, why)
	if err == nil && !had && len(f.a.t.Gaps()) > 1 {
		f.c.event("warning", f.a.name, "no point of %s can be had from now on, until what is missing was sent: %s", f.a.name, why)
	}
	return err
}

// Whole implements [wire.Feed].
func (f *feed) Whole() error {
	had := f.Lost()
	err := f.Feed.Whole()
	if err == nil && had {
		f.c.event("info", f.a.name, "every write of %s arrives, and any point from now on can be had", f.a.name)
	}
	return err
}

// Sample implements [wire.Feed].
func (f *feed) Sample(s capture.Sample) error {
	err := f.Feed.Sample(s)
	if errors.Is(err, timeline.ErrDiffers) {
		f.c.event("error", f.a.name, "all of %s is sent again, and its points so far may lack what was written past the tap: %v", f.a.name, err)
	}
	return err
}

// shotResult is what became of a mark.
type shotResult struct {
	pos  tidemark.Position
	time int64 // Unix nanoseconds, of the tap
	err  error
}

// Bookmark implements [wire.Feed].
func (f *feed) Bookmark(m capture.Mark) error {
	waiting, refused := f.c.taps.take(m.ID)
	if refused {
		return nil
	}
	pos, err := f.Feed.Bookmark(m)
	if waiting != nil {
		waiting <- shotResult{pos, m.Time, err}
	} else if err != nil {
		f.c.event("error", f.a.name, "the bookmark %s of %s was lost: %v", m.Name, f.a.name, err)
	}
	switch tidemark.KindOf(err) {
	case tidemark.Conflict, tidemark.Unavailable, tidemark.Invalid:
		return nil // the stream goes on without it
	}
	return err
}

// of returns what keeps an application's tap running, or nil.
func (p *tappings) of(name string) *tapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.live[name]
}

// stop ends the keeping of a tap, which goes on by itself.
func (p *tappings) stop(name string) {
	p.mu.Lock()
	x := p.live[name]
	delete(p.live, name)
	p.mu.Unlock()
	if x != nil {
		x.cancel()
		<-x.ended
	}
}

// stopAll ends the keeping of all taps, at once: each may have to wait until an application was let go on.
func (p *tappings) stopAll() {
	p.mu.Lock()
	var names []string
	for n, x := range p.live {
		names = append(names, n)
		x.cancel()
	}
	l := p.socket
	p.mu.Unlock()
	if l != nil {
		l.Close()
	}
	for _, n := range names {
		p.stop(n)
	}
}

// tapDisk refuses what cannot be tapped on a host, and returns its path without links, and its size.
func (c *Control) tapDisk(ctx context.Context, x *agent.Agent, spec tidemark.ProtectSpec, path string) (agent.Primary, error) {
	if real, err := filepath.EvalSymlinks(path); spec.Host == "" && err == nil && within(real, c.o.Dir) {
		return agent.Primary{}, tidemark.Errorf(tidemark.Invalid, "%s lies in the data directory %s", path, c.o.Dir).WithHint("tap a disk of production")
	}
	p, err := x.InspectTap(ctx, agent.Inspection{Path: path, Tapped: c.tappedOn(spec.Host), Scripts: spec.Options[optionScripts]})
	if err != nil {
		return p, err
	}
	name, _, _ := strings.Cut(p.Ours, "@")
	switch a, ok := c.tapOf(spec.Host, p.Path); {
	case ok:
		return p, tidemark.Errorf(tidemark.Conflict, "%s is tapped already, as %s", path, a.name).
			WithHint("`tidemark status` shows the device to use instead of it")
	case name != "":
		return p, tidemark.Errorf(tidemark.Conflict, "%s is a disk of %s, whose writes are journaled already", path, name).
			WithHint("`tidemark protect " + name + " --cdp --window 24h` keeps any point of it for longer")
	}
	return p, tidemark.CheckDiskSize(p.Size)
}

// tappedOn lists the disks of a host that have a tap.
func (c *Control) tappedOn(host string) (paths []string) {
	for _, t := range c.set.List() {
		if a, err := appOf(t); err == nil && a.Agent == host {
			paths = append(paths, a.Taps...)
		}
	}
	return paths
}

// tapOf finds the application that has a tap on a disk of a host.
func (c *Control) tapOf(host, path string) (app, bool) {
	for _, t := range c.set.List() {
		if a, err := appOf(t); err == nil && a.Agent == host && slices.Contains(a.Taps, path) {
			return a, true
		}
	}
	return app{}, false
}

// howToTap looks at disks that are to be tapped.
func (c *Control) howToTap(ctx context.Context, spec tidemark.ProtectSpec) (func(context.Context, *task) (app, error), error) {
	x, err := c.agentOn(spec.Host)
	if err != nil {
		return nil, err
	}
	note := about{Type: tidemark.TypeVolume, Source: spec.Source, Host: spec.Host, Agent: spec.Host, Options: spec.Options}
	if spec.Host == "" {
		note.Host = hostname()
	}
	var disks []timeline.DiskSpec
	for i, path := range append([]string{spec.Source}, spec.Also...) {
		p, err := c.tapDisk(ctx, x, spec, path)
		if err != nil {
			return nil, err
		}
		if slices.Contains(note.Taps, p.Path) {
			return nil, tidemark.Errorf(tidemark.Invalid, "%s is named twice", path)
		}
		name := volumeDisk
		if len(spec.Also) > 0 {
			name = fmt.Sprintf("%s%d", volumeDisk, i+1)
		}
		note.Taps, disks = append(note.Taps, p.Path), append(disks, timeline.DiskSpec{Name: name, Size: p.Size})
	}
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
		running, err := x.RunTap(ctx, c.tapping(a))
		if err == nil {
			c.keepTapped(a, running.Devices)
		}
		return a, err
	}, nil
}

// windowOf is the window that was asked for, or else usual.
func windowOf(asked *tidemark.Window, usual timeline.Window) timeline.Window {
	if asked == nil {
		return usual
	}
	w := timeline.Window{For: time.Duration(asked.Seconds) * time.Second, Bytes: asked.Bytes}
	if w.For == 0 {
		w.For = usual.For
	}
	return w
}

// runTap has the tap of an application run, and its disks attached.
func (c *Control) runTap(ctx context.Context, a app) (agent.Running, error) {
	x, err := c.agentOn(a.Agent)
	if err != nil {
		return agent.Running{}, err
	}
	return x.RunTap(ctx, c.tapping(a))
}

// tappedDevice is the path at which a tapped disk of this host is found, whatever its device is called today.
func (c *Control) tappedDevice(a app, disk string) string {
	return agent.PlacesIn(c.o.Dir).Device(a.name, disk, len(a.Taps))
}

// reviveLimit is how long a start of the server waits for taps.
const reviveLimit = 30 * time.Second

// reviveTaps has the taps of this host run again, as they were before a restart of it. Production needs them, and not
// us: they do not wait until the stores are open, which may take its time behind a power cut, or fail. done is closed when they run, or
// could not be had so far; [Control.keepTap] goes on with them.
func (c *Control) reviveTaps(ctx context.Context) (done <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, reviveLimit)
	end := make(chan struct{})
	go func() {
		if err := agent.Revive(ctx, agent.PlacesIn(c.o.Dir)); err != nil {
			c.log.Error("not all that was tapped is tapped again", "error", err)
		}
		cancel()
	}()
	go func() {
		<-ctx.Done() // one whose disk hangs is not waited for
		close(end)
	}()
	return end
}

// Pauses of who keeps a tap running.
const (
	tapLook  = 2 * time.Second // between two looks at a tap that runs
	tapRetry = time.Second     // before one that does not run is tried again
)

// keepTapped keeps the tap of an application running, until it is stopped. devices are those of its disks, if that is known.
func (c *Control) keepTapped(a app, devices []string) {
	c.taps.mu.Lock()
	defer c.taps.mu.Unlock()
	if c.taps.live[a.name] != nil {
		return
	}
	ctx, cancel := context.WithCancel(c.jobs.ctx)
	x := &tapping{cancel: cancel, ended: make(chan struct{}), devices: devices}
	c.taps.live[a.name] = x
	go func() {
		defer close(x.ended)
		var both sync.WaitGroup
		both.Go(func() { c.keepTap(ctx, a, x) })
		both.Go(func() { c.keepShots(ctx, a) })
		both.Wait()
	}()
}

func (c *Control) keepTap(ctx context.Context, a app, x *tapping) {
	for ctx.Err() == nil {
		r, err := c.runTap(ctx, a)
		if err == nil && r.Withheld {
			err = c.showAgain(ctx, a)
		}
		if ctx.Err() != nil {
			return
		}
		if x.set(r, err) {
			if err != nil {
				c.event("error", a.name, "the tap of %s is not seen to run: %v", a.name, err)
			} else {
				c.log.Info("the tap runs", "application", a.name)
			}
		}
		pause := tapLook
		if err != nil {
			pause = tapRetry
		} else if x.fails(r) {
			c.event("error", a.name, "%s is tapped, but %s", a.name, ailment(r.Status))
		}
		c.awaitTap(ctx, a, pause)
	}
}

// awaitTap waits until the tap of an application ends, or for a while.
func (c *Control) awaitTap(ctx context.Context, a app, pause time.Duration) {
	bounded, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	if x, err := c.agentOn(a.Agent); err == nil {
		end, err := x.AwaitTap(bounded, a.t.ID(), pause)
		if err == nil && end.Ended && ctx.Err() == nil {
			c.event("error", a.name, "the tap of %s has died, and is started anew: %s", a.name, end.Words)
			return
		}
	}
	<-bounded.Done()
}

// untap takes a tap out: the primary alone is what the disk was. While the tapped disk is in use nothing is changed.
func (c *Control) untap(ctx context.Context, a app) (err error) {
	c.taps.stop(a.name)
	defer func() {
		if err != nil {
			c.keepTapped(a, nil)
		}
	}()
	x, err := c.agentOn(a.Agent)
	if tidemark.KindOf(err) == tidemark.NotFound { // the host was removed, with its right to send
		c.event("warning", a.name, "the tap of %s on host %s was left to itself: that host was removed", a.name, a.Agent)
		return nil
	}
	if err != nil {
		return err
	}
	return x.StopTap(ctx, c.tapping(a))
}

// Resync has everything of an application's tapped disks sent again.
func (c *Control) Resync(ctx context.Context, name string) error {
	a, err := c.app(name)
	if err != nil {
		return err
	}
	if a.mirrored() {
		return c.resyncMachine(a)
	}
	if !a.tapped() {
		return tidemark.Errorf(tidemark.Invalid, "%s is not tapped", name).WithHint("`tidemark protect DEVICE --cdp` taps a disk")
	}
	x, err := c.agentOn(a.Agent)
	if err == nil {
		err = x.ResyncTap(ctx, a.t.ID())
	}
	if err == nil {
		c.event("warning", name, "all of %s is sent again, as was asked for", name)
	}
	return err
}

// describeTapped describes the disks of a tapped application.
func (c *Control) describeTapped(a app, kept *tapping) (list []tidemark.TappedDisk) {
	var devices []string
	if kept != nil {
		devices = kept.shown()
	}
	for i, disk := range a.t.Disks() {
		d := tidemark.TappedDisk{Disk: disk.Name(), Primary: a.Taps[i]}
		if a.Agent == "" {
			d.Device = c.tappedDevice(a, disk.Name())
		} else if i < len(devices) {
			d.Device = devices[i]
		}
		list = append(list, d)
	}
	return list
}

// tapStatus asks a tap how it is.
func (c *Control) tapStatus(ctx context.Context, a app) (taps.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, tapLook)
	defer cancel()
	x, err := c.agentOn(a.Agent)
	if err != nil {
		return taps.Status{}, err
	}
	return x.TapStatus(ctx, a.t.ID())
}

// describeTap adds to a description how the tap is.
func (c *Control) describeTap(ctx context.Context, a app, d *tidemark.Application) {
	w := a.t.Window()
	if l := a.t.Lost(); l != nil {
		d.Lost = &tidemark.Interval{From: l.From, To: l.To, Reason: "given up because the disk ran out of space"}
	}
	if w.For > 0 {
		d.Window = &tidemark.Window{Seconds: int64(w.For / time.Second), Bytes: w.Bytes}
	}
	if covered := a.t.Covered(); a.journaled() && len(covered) > 0 {
		d.Covered = &tidemark.Interval{From: covered[0].From, To: covered[len(covered)-1].To}
	}
	if !a.tapped() {
		return
	}
	kept := c.taps.of(a.name)
	d.Tap = &tidemark.Tap{Host: a.Agent, Disks: c.describeTapped(a, kept)}
	if kept != nil && kept.trouble() != nil {
		d.Tap.State, d.Tap.Detail = tidemark.TapStopped, kept.trouble().Error()
		d.State, d.Detail = "degraded", "its tap is not seen to run: "+d.Tap.Detail
	}
	st, err := c.tapStatus(ctx, a)
	if err != nil {
		d.Tap.State, d.Tap.Detail = tidemark.TapStopped, err.Error()
		d.State, d.Detail = "degraded", "its tap is not seen to run: "+d.Tap.Detail
		return
	}
	d.Tap.LostBytes, d.Tap.QueuedBytes, d.Tap.Lag = st.Lost, st.Queued, st.Lag.Seconds()
	switch {
	case d.Tap.State != "":
	case !st.Online:
		d.Tap.State, d.Tap.Detail = tidemark.TapAway, st.Trouble
	case st.Gap:
		d.Tap.State, d.Tap.Detail = tidemark.TapSyncing, st.Unread
	default:
		d.Tap.State = tidemark.TapFollowing
	}
	switch ill := ailment(st); {
	case ill != "":
		d.Tap.Detail = ill
		d.State, d.Detail = "degraded", ill
	case d.Tap.State == tidemark.TapSyncing && d.State == "ok":
		d.State, d.Detail = "syncing", tidemark.FormatSize(st.Lost)+" are to be sent"
	}
}
