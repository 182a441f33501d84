package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/app/script"
	"tidemark/capture/tap"
	"tidemark/internal/vfs"
	"tidemark/mount"
)

// A tapped disk is a primary that a tap has open, attached from the tap's socket by an attacher like any disk of ours. Production uses
// what the attacher makes. Neither process needs the agent, or the server: we start them, and find them again.

// Places are where an agent keeps what outlives it, below one directory.
type Places struct {
	Dir      string `json:"dir"`      // the data directory
	Taps     string `json:"taps"`     // directories of taps, by the ids of their timelines
	Attached string `json:"attached"` // of attached disks
	Devices  string `json:"devices"`  // links to tapped disks
	Feeds    string `json:"feeds"`    // the socket on which the server takes what taps send
	Held     string `json:"held"`     // notes of applications that are held for an AppShot
	Disks    string `json:"disks"`    // the socket on which the server of this host serves its disks
	// Identity is the directory of who this host is to a server elsewhere, which serves its disks over the network; empty: the server is here.
	Identity string `json:"identity,omitempty"`
}

// PlacesIn are the places in a data directory.
func PlacesIn(dir string) Places {
	return Places{Dir: dir, Taps: filepath.Join(dir, "taps"), Attached: filepath.Join(dir, "run", "attached"), Devices: filepath.Join(dir, "devices"),
		Feeds: filepath.Join(dir, "run", "taps.sock"), Held: filepath.Join(dir, "run", "held"), Disks: filepath.Join(dir, "run", "nbd.sock")}
}

// Device is the path at which a tapped disk is found, whatever its device is called today. disks is how many the application has.
func (p Places) Device(application, disk string, disks int) string {
	if disks == 1 {
		return filepath.Join(p.Devices, application)
	}
	return filepath.Join(p.Devices, application+"-"+disk)
}

// attachmentName is the name of the attacher of a disk.
func attachmentName(application, disk string) string { return application + "@" + disk }

// Tapping says what is tapped, and how.
type Tapping struct {
	Timeline    string    `json:"timeline"` // its id
	Application string    `json:"application"`
	Disks       []TapDisk `json:"disks"`
	// Memory and Spill bound the queue, in bytes.
	Memory int   `json:"memory,omitempty"`
	Spill  int64 `json:"spill,omitempty"`
}

// TapDisk is a disk of a [Tapping].
type TapDisk struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"` // that it has in the timeline
	Primary string `json:"primary"`
}

// Primary is a disk that could be tapped.
type Primary struct {
	Path string `json:"path"` // without links
	Size int64  `json:"size"`
	// Tapped: it is one of those that were said to be tapped, and is not looked at further.
	Tapped bool `json:"tapped,omitempty"`
	// Ours is the attached disk of ours that it is, as APPLICATION@DISK; it is not looked at further then.
	Ours string `json:"ours,omitempty"`
}

// Inspection asks about a disk.
type Inspection struct {
	Path    string   `json:"path"`
	Tapped  []string `json:"tapped,omitempty"`  // those of the host that are tapped
	Scripts string   `json:"scripts,omitempty"` // a directory of programs that would make its application still
}

// InspectTap looks whether a disk can be tapped: see [tap.Inspect]. One that is in use is an error of kind Conflict.
func (a *Agent) InspectTap(ctx context.Context, q Inspection) (Primary, error) {
	return do[Primary](ctx, a, "tap-inspect", q, nil)
}

func doInspectTap(_ context.Context, s *session, q Inspection, _ func(any)) (p Primary, err error) {
	path := q.Path
	if q.Scripts != "" {
		if _, err := script.Load(q.Scripts); err != nil {
			return p, err
		}
	}
	if p.Path, err = filepath.EvalSymlinks(path); err != nil {
		return p, tidemark.Errorf(tidemark.NotFound, "the disk cannot be tapped: %w", err).WithHint("`lsblk` lists the devices of this host")
	}
	if p.Tapped = slices.Contains(q.Tapped, p.Path); p.Tapped {
		return p, nil
	}
	list, err := mount.List(s.places.Attached)
	if err != nil {
		return p, err
	}
	for _, at := range list {
		if at.Device() == p.Path {
			p.Ours = at.Name()
			return p, nil
		}
	}
	p.Size, err = tap.Inspect(p.Path)
	switch {
	case errors.Is(err, tap.ErrBusy):
		err = tidemark.Errorf(tidemark.Conflict, "%w", err).
			WithHint("a disk is tapped while nobody uses it: unmount it (`findmnt " + path + "`, `lsof " + path + "`), protect it, and mount what is shown instead of it")
	case err != nil:
		err = tidemark.Errorf(tidemark.Invalid, "%w", err).WithHint("give a block device, or a file that is the image of a disk")
	}
	return p, err
}

// Running is a tap that runs.
type Running struct {
	taps.Status
	Devices []string `json:"devices"` // to be used instead of the primaries
	// Withheld: they are not shown to production: see [Agent.WithholdTap].
	Withheld bool `json:"withheld,omitempty"`
}

// RunTap has the tap of disks run, and the disks attached, and returns how it is. All that is so already is left as it is.
func (a *Agent) RunTap(ctx context.Context, t Tapping) (Running, error) {
	return do[Running](ctx, a, "tap-run", t, nil)
}

func doRunTap(ctx context.Context, s *session, t Tapping, _ func(any)) (r Running, err error) {
	if err := t.check(); err != nil {
		return r, err
	}
	end, err := s.turn(ctx, s.tapDir(t.Timeline))
	if err != nil {
		return r, err
	}
	defer end()
	return s.runTap(ctx, t, true)
}

// runTap does so, when it is our turn. Disks that are withheld are attached only if the server has asked, which opens them then.
func (s *session) runTap(ctx context.Context, t Tapping, asked bool) (r Running, err error) {
	tapCfg := s.tapConfig(t)
	x, err := taps.Find(tapCfg.Dir)
	if err != nil || !x.Alive() { // a record that cannot be read is made anew
		if x, err = taps.Start(ctx, tapCfg); err != nil {
			var other error
			if x, other = taps.Find(tapCfg.Dir); other != nil || !x.Alive() { // what shows the disks starts it, too
				return r, err
			}
		}
	}
	if err := t.save(tapCfg.Dir); err != nil {
		return r, err
	}
	if r.Status, err = x.Status(ctx); err != nil {
		return r, err
	}
	if r.Withheld, err = s.withheld(t.Timeline); err != nil || r.Withheld && !asked {
		return r, err
	}
	err = s.attachAll(ctx, t, x, &r)
	return r, err
}

// attachAll has the disks of a tap attached.
func (s *session) attachAll(ctx context.Context, t Tapping, x *taps.Tap, r *Running) error {
	revive, err := json.Marshal(s.tapConfig(t))
	if err != nil {
		return err
	}
	for i, d := range t.Disks {
		if r.Sizes[i] != d.Size {
			return tidemark.Errorf(tidemark.Conflict, "%s has %d bytes now, and had %d", d.Primary, r.Sizes[i], d.Size).
				WithHint("unprotect it and protect it anew")
		}
		cfg := mount.Config{Name: attachmentName(t.Application, d.Name), StateDir: s.places.Attached, Socket: x.Socket(), Export: taps.Export(i), Sector: r.Sectors[i],
			Revive: &mount.Revive{Arg: taps.Arg, Config: revive}}
		link := s.places.Device(t.Application, d.Name, len(t.Disks))
		device, err := s.attachTapped(ctx, t, d, cfg)
		switch {
		case err != nil:
		case r.Withheld:
			err = unlink(link)
		default:
			err = linkDevice(link, device)
		}
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, link)
	}
	return nil
}

// savedName is the file in a tap's directory that says what is tapped, for an agent whose server is away.
const savedName = "tapping.json"

// save notes what is tapped, if that is not noted yet.
func (t Tapping) save(dir string) error {
	data, err := json.MarshalIndent(t, "", "\t")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, savedName)
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) {
		return nil
	}
	return vfs.WriteFile(vfs.OS, path, data)
}

// reviveLimit is how long one tap may take to come back.
const reviveLimit = 30 * time.Second

// Revive has the taps of a host run, and their disks attached, as they were before its restart: with no server, and before one is
// ready. Only disks that are withheld are not attached. What cannot be had, or not in half a minute, is an error; the rest is there, and
// none waits for another.
func Revive(ctx context.Context, p Places) error {
	files, err := filepath.Glob(filepath.Join(p.Taps, "*", savedName))
	if err != nil {
		return err
	}
	s := newSession(nil)
	s.places = p
	errs := make([]error, len(files))
	var all sync.WaitGroup
	for i, f := range files {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, reviveLimit)
			defer cancel()
			if err := s.revive(ctx, f); err != nil {
				errs[i] = fmt.Errorf("the tap of %s: %w", f, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// revive has one tap run as a file says. Where its disks were being taken back to a point, they stay withheld until the server has done that.
func (s *session) revive(ctx context.Context, saved string) error {
	end, err := s.turn(ctx, filepath.Dir(saved))
	if err != nil {
		return err
	}
	defer end()
	data, err := os.ReadFile(saved)
	if errors.Is(err, os.ErrNotExist) { // it was taken out meanwhile
		return nil
	}
	var t Tapping
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err == nil {
		err = t.check()
	}
	if err == nil {
		err = s.hide(t, true)
	}
	if err == nil {
		_, err = s.runTap(ctx, t, false)
	}
	return err
}

// turnPatience is how long the end of a tap waits for whoever is starting it.
const turnPatience = 5 * time.Second

// turn waits until nobody else starts a tap, here or in another process: after a restart of the host, we may do that while the server asks for it.
func (s *session) turn(ctx context.Context, dir string) (end func() error, err error) {
	if err := vfs.MkdirAll(vfs.OS, dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "turn"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := waitLock(ctx, f); err != nil {
		return nil, errors.Join(fmt.Errorf("somebody else is starting the tap: %w", err), f.Close())
	}
	return f.Close, nil
}

// check refuses names that would lead to other places.
func (t Tapping) check() error {
	if err := errors.Join(tidemark.CheckName(t.Timeline), tidemark.CheckName(t.Application)); err != nil {
		return err
	}
	for _, d := range t.Disks {
		if err := tidemark.CheckName(d.Name); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) tapDir(timeline string) string { return filepath.Join(s.places.Taps, timeline) }

// findTap finds the tap of a timeline.
func (s *session) findTap(timeline string) (*taps.Tap, error) {
	if err := tidemark.CheckName(timeline); err != nil {
		return nil, err
	}
	return taps.Find(s.tapDir(timeline))
}

func (s *session) tapConfig(t Tapping) taps.Config {
	cfg := taps.Config{Dir: s.tapDir(t.Timeline), Server: s.places.Feeds, Timeline: t.Timeline, Memory: t.Memory, Spill: t.Spill}
	for _, d := range t.Disks {
		cfg.Primaries = append(cfg.Primaries, d.Primary)
	}
	return cfg
}

// attached finds the attachment of a tapped disk.
func (s *session) attached(application, disk string) (*mount.Attachment, bool, error) {
	at, err := mount.Find(s.places.Attached, attachmentName(application, disk))
	if errors.Is(err, mount.ErrNotFound) {
		return nil, false, nil
	}
	return at, err == nil, err
}

// attachTapped has a tapped disk attached, and returns its device.
func (s *session) attachTapped(ctx context.Context, t Tapping, d TapDisk, cfg mount.Config) (device string, err error) {
	at, ok, err := s.attached(t.Application, d.Name)
	if err != nil {
		return "", err
	}
	if ok && !at.Alive() {
		if err := at.Cleanup(false); err != nil { // never by force: production's file system is on it
			return "", tidemark.Errorf(tidemark.Unavailable, "the process that showed disk %s of %s has died: %w", d.Name, t.Application, err).
				WithHint("unmount " + at.Device() + "; then it is shown again")
		}
		ok = false
	}
	if !ok {
		if at, err = mount.Attach(ctx, cfg); err != nil {
			return "", fmt.Errorf("attach the tapped disk %s of %s: %w", d.Name, t.Application, err)
		}
	}
	return at.Device(), nil
}

// linkDevice makes a link to a device, if it is not there already.
func linkDevice(link, device string) error {
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

// TapStatus asks a tap how it is: see [taps.Tap.Status]. That there is none is an error of kind NotFound.
func (a *Agent) TapStatus(ctx context.Context, timeline string) (taps.Status, error) {
	return soon[taps.Status](ctx, a, "tap-status", timeline)
}

func doTapStatus(ctx context.Context, s *session, timeline string, _ func(any)) (taps.Status, error) {
	x, err := s.findTap(timeline)
	if errors.Is(err, taps.ErrNotFound) {
		err = tidemark.Errorf(tidemark.NotFound, "it has not run yet")
	}
	if err != nil {
		return taps.Status{}, err
	}
	return x.Status(ctx)
}

// awaitArgs bounds how long the end of a tap is waited for.
type awaitArgs struct {
	Timeline string
	For      time.Duration
}

// TapEnd is how a tap ended.
type TapEnd struct {
	Ended bool   `json:"ended"`
	Words string `json:"words,omitempty"` // the last of its log
}

// AwaitTap waits for a while for the end of a tap. One that does not run is not waited for.
func (a *Agent) AwaitTap(ctx context.Context, timeline string, d time.Duration) (TapEnd, error) {
	return do[TapEnd](ctx, a, "tap-await", awaitArgs{timeline, d}, nil)
}

func doAwaitTap(ctx context.Context, s *session, args awaitArgs, _ func(any)) (TapEnd, error) {
	x, err := s.findTap(args.Timeline)
	if errors.Is(err, taps.ErrNotFound) || err == nil && !x.Alive() {
		return TapEnd{}, nil
	}
	if err != nil {
		return TapEnd{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, args.For)
	defer cancel()
	if x.Await(bounded) == nil {
		return TapEnd{Ended: true, Words: x.LastWords()}, nil
	}
	return TapEnd{}, ctx.Err()
}

// StopTap detaches tapped disks and ends their tap: the primaries alone are what the disks were. While they are in use nothing is changed, and it
// is an error of kind Conflict.
func (a *Agent) StopTap(ctx context.Context, t Tapping) error {
	_, err := do[none](ctx, a, "tap-stop", t, nil)
	return err
}

func doStopTap(ctx context.Context, s *session, t Tapping, _ func(any)) (none, error) {
	if err := t.check(); err != nil {
		return none{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, turnPatience)
	defer cancel()
	if end, err := s.turn(bounded, s.tapDir(t.Timeline)); err == nil { // who starts it and hangs with its disk does not keep it
		defer end()
	}
	for _, d := range t.Disks {
		if err := s.detachTapped(ctx, t, d); err != nil {
			return none{}, err
		}
	}
	if err := os.Remove(filepath.Join(s.tapDir(t.Timeline), savedName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return none{}, err
	}
	if x, err := s.findTap(t.Timeline); err == nil {
		if err := x.Stop(ctx); err != nil {
			return none{}, fmt.Errorf("stop the tap of %s: %w", t.Application, err)
		}
	}
	return none{}, os.RemoveAll(s.tapDir(t.Timeline))
}

func (s *session) detachTapped(ctx context.Context, t Tapping, d TapDisk) error {
	at, ok, err := s.attached(t.Application, d.Name)
	if err != nil {
		return err
	}
	if ok {
		err = detach(ctx, at)
	}
	if err != nil {
		return fmt.Errorf("detach the tapped disk %s of %s: %w", d.Name, t.Application, err)
	}
	return unlink(s.places.Device(t.Application, d.Name, len(t.Disks)))
}

// lettingGo is how long a disk may count as in use that was just unmounted: see [mount.WhileBusy]. On a host under load, who has its mounts in
// a namespace that has just begun may not come to letting go of them for seconds.
const lettingGo = 10 * time.Second

// detach takes a tapped disk off this host, never by force: production uses it.
func detach(ctx context.Context, at *mount.Attachment) error {
	err := mount.WhileBusy(ctx, lettingGo, func() error {
		if at.Alive() {
			return at.Detach(ctx, false)
		}
		return at.Cleanup(false)
	})
	if errors.Is(err, mount.ErrBusy) {
		return tidemark.Errorf(tidemark.Conflict, "the tapped disk %s is in use%s", at.Device(), by(at.Device())).
			WithHint("unmount it first (`findmnt " + at.Device() + "`); afterwards use the disk itself")
	}
	return err
}

// ResyncTap has everything sent again: see [taps.Tap.Resync].
func (a *Agent) ResyncTap(ctx context.Context, timeline string) error {
	_, err := do[none](ctx, a, "tap-resync", timeline, nil)
	return err
}

func doResyncTap(ctx context.Context, s *session, timeline string, _ func(any)) (none, error) {
	x, err := s.findTap(timeline)
	if err != nil {
		return none{}, err
	}
	return none{}, x.Resync(ctx)
}

// ThawTapped lets the file systems on tapped disks go on, which an agent that was killed may have left frozen.
func (a *Agent) ThawTapped(ctx context.Context, t Tapping) error {
	_, err := do[none](ctx, a, "tap-thaw", t, nil)
	return err
}

func doThawTapped(_ context.Context, s *session, t Tapping, _ func(any)) (none, error) {
	dirs, err := s.tappedMounts(t)
	return none{}, errors.Join(err, s.thaw(dirs))
}

// tappedMounts returns where production has tapped disks mounted.
func (s *session) tappedMounts(t Tapping) (dirs []string, err error) {
	for _, d := range t.Disks {
		at, ok, err := s.attached(t.Application, d.Name)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		mounted, err := mount.Mounts(at.Device())
		if err != nil {
			return nil, err
		}
		if len(mounted) > 0 && !mounted[0].ReadOnly { // to hold it once holds all of its mounts
			dirs = append(dirs, mounted[0].Dir)
		}
	}
	return dirs, nil
}
