package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/export/nbd"
	"tidemark/internal/vfs"
	"tidemark/mount"
	"tidemark/timeline"
	"tidemark/wire"
)

// A tapped application is a volume whose disks are elsewhere: each primary is a device or file of this host, open in
// the process of the tap, and attached from there by an attacher like any disk of ours. Production uses what the
// attacher makes. None of both processes needs the server; it starts them, finds them again, and takes the
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
	shots  map[string]chan shotResult // who waits for a mark, by its id
	socket net.Listener
}

// tapping keeps one tap running.
type tapping struct {
	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	err    error // why the tap does not run, or its disks are not attached
	// failing is what the tap told last that is wrong with the primary, without the numbers in it.
	failing string
}

// fails notes how the primary is, and reports whether something is wrong with it that was not before. That it fails
// at another place is the same.
func (x *tapping) fails(st taps.Status) bool {
	kind := strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, st.Failing)
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.failing
	x.failing = kind
	return kind != "" && kind != was
}

func (x *tapping) set(err error) (changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed = (err == nil) != (x.err == nil) || err != nil && err.Error() != x.err.Error()
	x.err = err
	return changed
}

func (x *tapping) trouble() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

func (c *Control) tapDir(a app) string { return c.path("taps", a.t.ID()) }

func (c *Control) tapSocket() string { return c.path("run", "taps.sock") }

// serveTaps takes the streams of taps.
func (c *Control) serveTaps() error {
	c.taps.live, c.taps.shots = map[string]*tapping{}, map[string]chan shotResult{}
	l, err := nbd.Listen("unix:" + c.tapSocket())
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
				if err := wire.Serve(c.jobs.ctx, conn, c.openFeed); err != nil {
					c.log.Warn("the stream of a tap ended", "error", err)
				}
			})
		}
	})
	return nil
}

// openFeed lets a tap write to its timeline.
func (c *Control) openFeed(_ context.Context, id, stream, before string) (wire.Feed, bool, error) {
	t := c.set.Get(id)
	if t == nil {
		return nil, false, fmt.Errorf("there is no timeline %q", id)
	}
	a, err := appOf(t)
	if err != nil {
		return nil, false, err
	}
	if !a.tapped() {
		return nil, false, fmt.Errorf("%s is not tapped", a.name)
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

// shotResult is what became of a mark.
type shotResult struct {
	pos  tidemark.Position
	time int64 // Unix nanoseconds, of the tap
	err  error
}

// Bookmark implements [wire.Feed].
func (f *feed) Bookmark(m capture.Mark) error {
	pos, err := f.Feed.Bookmark(m)
	if waiting := f.c.taps.awaited(m.ID); waiting != nil {
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

// await registers for what becomes of the mark with an id.
func (p *tappings) await(id string) <-chan shotResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan shotResult, 1)
	p.shots[id] = ch
	return ch
}

// awaited returns who waits for a mark, once.
func (p *tappings) awaited(id string) chan shotResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := p.shots[id]
	delete(p.shots, id)
	return ch
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

func (p *tappings) stopAll() {
	p.mu.Lock()
	var names []string
	for n := range p.live {
		names = append(names, n)
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

// tapDisk refuses what cannot be tapped, and returns its path without links, and its size.
func (c *Control) tapDisk(path string) (string, int64, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", 0, tidemark.Errorf(tidemark.NotFound, "the disk cannot be tapped: %w", err).WithHint("`lsblk` lists the devices of this host")
	}
	if within(real, c.o.Dir) {
		return "", 0, tidemark.Errorf(tidemark.Invalid, "%s lies in the data directory %s", path, c.o.Dir).WithHint("tap a disk of production")
	}
	if a, ok := c.tapOf(real); ok {
		return "", 0, tidemark.Errorf(tidemark.Conflict, "%s is tapped already, as %s", path, a.name).
			WithHint("`tidemark status` shows the device to use instead of it")
	}
	list, err := mount.List(c.attachDir())
	if err != nil {
		return "", 0, err
	}
	for _, at := range list {
		if at.Device() == real {
			name, _, _ := strings.Cut(at.Name(), "@")
			return "", 0, tidemark.Errorf(tidemark.Conflict, "%s is a disk of %s, whose writes are journaled already", path, name).
				WithHint("`tidemark protect " + name + " --cdp --window 24h` keeps any point of it for longer")
		}
	}
	size, err := tap.Inspect(real)
	switch {
	case errors.Is(err, tap.ErrBusy):
		return "", 0, tidemark.Errorf(tidemark.Conflict, "%w", err).
			WithHint("a disk is tapped while nobody uses it: unmount it (`findmnt " + path + "`, `lsof " + path + "`), protect it, and mount what is shown instead of it")
	case err != nil:
		return "", 0, tidemark.Errorf(tidemark.Invalid, "%w", err).WithHint("give a block device, or a file that is the image of a disk")
	}
	return real, size, tidemark.CheckDiskSize(size)
}

// tapOf finds the application that has a tap on a disk.
func (c *Control) tapOf(path string) (app, bool) {
	for _, t := range c.set.List() {
		if a, err := appOf(t); err == nil && slices.Contains(a.Taps, path) {
			return a, true
		}
	}
	return app{}, false
}

// howToTap looks at disks that are to be tapped.
func (c *Control) howToTap(spec tidemark.ProtectSpec) (func(context.Context, *task) (app, error), error) {
	var paths []string
	var disks []timeline.DiskSpec
	for i, path := range append([]string{spec.Source}, spec.Also...) {
		real, size, err := c.tapDisk(path)
		if err != nil {
			return nil, err
		}
		if slices.Contains(paths, real) {
			return nil, tidemark.Errorf(tidemark.Invalid, "%s is named twice", path)
		}
		name := volumeDisk
		if len(spec.Also) > 0 {
			name = fmt.Sprintf("%s%d", volumeDisk, i+1)
		}
		paths, disks = append(paths, real), append(disks, timeline.DiskSpec{Name: name, Size: size})
	}
	note := about{Type: tidemark.TypeVolume, Source: spec.Source, Host: hostname(), Options: spec.Options, Taps: paths}
	return func(ctx context.Context, t *task) (app, error) {
		line, err := c.set.Create(ctx, spec.Name, disks, mustJSON(note))
		if err != nil {
			return app{}, err
		}
		if err := line.SetWindow(windowOf(spec.Window, cdpWindow)); err != nil {
			return app{}, err
		}
		a, err := appOf(line)
		if err == nil {
			err = c.tapNow(ctx, a)
		}
		if err == nil {
			c.keepTapped(a)
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

// tapNow has the tap of an application run, and its disks attached.
func (c *Control) tapNow(ctx context.Context, a app) error {
	x, err := taps.Find(c.tapDir(a))
	if err != nil && !errors.Is(err, taps.ErrNotFound) {
		c.log.Error("a tap's record cannot be read; it is started anew", "application", a.name, "error", err)
	}
	if err != nil || !x.Alive() {
		x, err = taps.Start(ctx, taps.Config{Dir: c.tapDir(a), Primaries: a.Taps, Server: c.tapSocket(), Timeline: a.t.ID(),
			Memory: int(a.sizeOption(optionMemory, tapMemory)), Spill: a.sizeOption(optionQueue, tapSpill)})
		if err != nil {
			return err
		}
	}
	st, err := x.Status(ctx)
	if err != nil {
		return err
	}
	for i, d := range a.t.Disks() {
		if st.Sizes[i] != d.Size() {
			return tidemark.Errorf(tidemark.Conflict, "%s has %d bytes now, and had %d", a.Taps[i], st.Sizes[i], d.Size()).
				WithHint("unprotect it and protect it anew")
		}
		if err := c.attachTapped(ctx, a, i, mount.Config{Name: attachmentName(a.name, d.Name()), StateDir: c.attachDir(), Socket: x.Socket(), Export: taps.Export(i), Sector: st.Sectors[i]}); err != nil {
			return err
		}
	}
	return nil
}

// attachTapped has a tapped disk attached, and its device where it is expected.
func (c *Control) attachTapped(ctx context.Context, a app, i int, cfg mount.Config) error {
	disk := a.t.Disks()[i].Name()
	at, ok, err := c.attached(a, disk)
	if err != nil {
		return err
	}
	if ok && !at.Alive() {
		if err := at.Cleanup(false); err != nil { // never by force: production's file system is on it
			return tidemark.Errorf(tidemark.Unavailable, "the process that showed disk %s of %s has died: %w", disk, a.name, err).
				WithHint("unmount " + at.Device() + "; then it is shown again")
		}
		ok = false
	}
	if !ok {
		if at, err = c.launcher.Attach(ctx, cfg); err != nil {
			return fmt.Errorf("attach the tapped disk %s of %s: %w", disk, a.name, err)
		}
	}
	return c.linkDevice(c.tappedDevice(a, disk), at.Device())
}

// tappedDevice is the path at which a tapped disk is found, whatever its device is called today.
func (c *Control) tappedDevice(a app, disk string) string {
	if len(a.Taps) == 1 {
		return c.path("devices", a.name)
	}
	return c.path("devices", a.name+"-"+disk)
}

// linkDevice makes a link to a device, if it is not there already.
func (c *Control) linkDevice(link, device string) error {
	if to, err := os.Readlink(link); err == nil && to == device {
		return nil
	}
	if err := vfs.MkdirAll(vfs.OS, filepath.Dir(link)); err != nil {
		return err
	}
	next := link + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(device, next); err != nil {
		return err
	}
	return vfs.Rename(vfs.OS, next, link)
}

// Pauses of who keeps a tap running.
const (
	tapLook  = 2 * time.Second // between two looks at a tap that runs
	tapRetry = time.Second     // before one that does not run is tried again
)

// keepTapped keeps the tap of an application running, until it is stopped.
func (c *Control) keepTapped(a app) {
	c.taps.mu.Lock()
	defer c.taps.mu.Unlock()
	if c.taps.live[a.name] != nil {
		return
	}
	ctx, cancel := context.WithCancel(c.jobs.ctx)
	x := &tapping{cancel: cancel, ended: make(chan struct{})}
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
		err := c.tapNow(ctx, a)
		if ctx.Err() != nil {
			return
		}
		if x.set(err) {
			if err != nil {
				c.event("error", a.name, "the tap of %s does not run: %v", a.name, err)
			} else {
				c.log.Info("the tap runs", "application", a.name)
			}
		}
		pause := tapLook
		if err != nil {
			pause = tapRetry
		} else {
			c.lookAtPrimary(ctx, a, x)
		}
		c.awaitTap(ctx, a, pause)
	}
}

// lookAtPrimary tells when something goes wrong with what is tapped.
func (c *Control) lookAtPrimary(ctx context.Context, a app, x *tapping) {
	p, err := taps.Find(c.tapDir(a))
	if err != nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, tapLook)
	defer cancel()
	if st, err := p.Status(bounded); err == nil && x.fails(st) {
		c.event("error", a.name, "the disk of %s itself fails: %s", a.name, st.Failing)
	}
}

// awaitTap waits until the tap of an application ends, or for a while.
func (c *Control) awaitTap(ctx context.Context, a app, pause time.Duration) {
	bounded, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	if x, err := taps.Find(c.tapDir(a)); err == nil && x.Alive() {
		if x.Await(bounded) == nil && ctx.Err() == nil {
			c.event("error", a.name, "the tap of %s has died, and is started anew: %s", a.name, x.LastWords())
		}
		return
	}
	<-bounded.Done()
}

// untap takes a tap out: the primary alone is what the disk was. While the tapped disk is in use nothing is changed.
func (c *Control) untap(ctx context.Context, a app) (err error) {
	c.taps.stop(a.name)
	defer func() {
		if err != nil {
			c.keepTapped(a)
		}
	}()
	for _, d := range a.t.Disks() {
		if err := c.detachTapped(ctx, a, d.Name()); err != nil {
			return err
		}
	}
	if x, err := taps.Find(c.tapDir(a)); err == nil {
		if err := x.Stop(ctx); err != nil {
			return fmt.Errorf("stop the tap of %s: %w", a.name, err)
		}
	}
	return os.RemoveAll(c.tapDir(a))
}

func (c *Control) detachTapped(ctx context.Context, a app, disk string) error {
	at, ok, err := c.attached(a, disk)
	if err != nil {
		return err
	}
	if ok && at.Alive() {
		err = at.Detach(ctx, false)
	} else if ok {
		err = at.Cleanup(false)
	}
	if errors.Is(err, mount.ErrBusy) {
		return tidemark.Errorf(tidemark.Conflict, "the tapped disk %s of %s is in use", at.Device(), a.name).
			WithHint("unmount it first (`findmnt " + at.Device() + "`); afterwards mount " + a.Taps[0] + " itself")
	}
	if err != nil {
		return fmt.Errorf("detach the tapped disk %s of %s: %w", disk, a.name, err)
	}
	if err := os.Remove(c.tappedDevice(a, disk)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Resync has everything of an application's tapped disks sent again.
func (c *Control) Resync(ctx context.Context, name string) error {
	a, err := c.app(name)
	if err != nil {
		return err
	}
	if !a.tapped() {
		return tidemark.Errorf(tidemark.Invalid, "%s is not tapped", name).WithHint("`tidemark protect DEVICE --cdp` taps a disk")
	}
	x, err := taps.Find(c.tapDir(a))
	if err == nil {
		err = x.Resync(ctx)
	}
	if err == nil {
		c.event("warning", name, "all of %s is sent again, as was asked for", name)
	}
	return err
}

// describeTap adds to a description how the tap is.
func (c *Control) describeTap(ctx context.Context, a app, d *tidemark.Application) {
	w := a.t.Window()
	if w.For > 0 {
		d.Window = &tidemark.Window{Seconds: int64(w.For / time.Second), Bytes: w.Bytes}
	}
	if covered := a.t.Covered(); a.journaled() && len(covered) > 0 {
		d.Covered = &tidemark.Interval{From: covered[0].From, To: covered[len(covered)-1].To}
	}
	if !a.tapped() {
		return
	}
	d.Tap = &tidemark.Tap{}
	for i, disk := range a.t.Disks() {
		d.Tap.Disks = append(d.Tap.Disks, tidemark.TappedDisk{Disk: disk.Name(), Primary: a.Taps[i], Device: c.tappedDevice(a, disk.Name())})
	}
	if x := c.taps.of(a.name); x != nil && x.trouble() != nil {
		d.Tap.State, d.Tap.Detail = tidemark.TapStopped, x.trouble().Error()
		d.State, d.Detail = "degraded", "its tap does not run: "+d.Tap.Detail
	}
	x, err := taps.Find(c.tapDir(a))
	if err != nil {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, tapLook)
	defer cancel()
	st, err := x.Status(bounded)
	if err != nil {
		d.Tap.State, d.Tap.Detail = tidemark.TapStopped, err.Error()
		d.State, d.Detail = "degraded", "its tap does not run: "+d.Tap.Detail
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
	switch {
	case st.Failing != "":
		d.Tap.Detail = "the disk itself fails: " + st.Failing
		d.State, d.Detail = "degraded", d.Tap.Detail
	case d.Tap.State == tidemark.TapSyncing && d.State == "ok":
		d.State, d.Detail = "syncing", tidemark.FormatSize(st.Lost)+" are to be sent"
	}
}
