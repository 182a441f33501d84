package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/remote"
	"tidemark/app/postgres"
	"tidemark/internal/mountinfo"
	"tidemark/mount"
)

// A disk of the server is shown on a host by an attacher there, which speaks to the server itself: over a socket on the server's own host,
// and by the host's identity from another one. The agent only starts attachers and finds them again, so they outlive it.

// ShownDisk says which disk of the server is shown on a host, and how.
type ShownDisk struct {
	Application string `json:"application"`
	Disk        string `json:"disk"`
	// Export is what the server serves it as to this host. A disk that is attached as another one is not this disk.
	Export string `json:"export"`
	Sector int    `json:"sector,omitempty"` // of the device, in bytes; 0: 512
	// Dir is where its file system is mounted, or is to be; relative: below the agent's data directory. Empty: nowhere.
	Dir string `json:"dir,omitempty"`
	// Fresh: the disk was made just now, and that it is attached already is an error.
	Fresh bool `json:"fresh,omitempty"`
	// Patience is how long the disk may be in use when it is detached; 0: for a moment, as it may be by who just lets go of it.
	Patience time.Duration `json:"patience,omitempty"`
	// Deleted: the disk is deleted when it is detached. That it cannot be flushed, as when its device was only half made, keeps nobody
	// from that; that somebody uses it does.
	Deleted bool `json:"deleted,omitempty"`
}

func (d ShownDisk) name() string { return attachmentName(d.Application, d.Disk) }

func (d ShownDisk) check() error {
	return errors.Join(tidemark.CheckName(d.Application), tidemark.CheckName(d.Disk))
}

// Shown is how a disk is shown on a host.
type Shown struct {
	// Device is its block device; empty: it is not attached as that export by a process that lives.
	Device string `json:"device,omitempty"`
	// Attached: there is an attachment of that name, of whatever sort.
	Attached bool   `json:"attached"`
	Dir      string `json:"dir,omitempty"` // where it is, or would be, mounted; absolute
	Mounted  bool   `json:"mounted"`       // something is mounted at Dir
	// Mounts are all places where the device is mounted, the latest first.
	Mounts []mount.Mounted `json:"mounts,omitempty"`
}

// Here shows disks on this host: what the verbs of an agent do, and what a server does on its own host without one, for the start of
// an attacher touches no disk. Its methods may be called concurrently.
type Here struct {
	Places   Places
	Launcher *mount.Launcher // nil: attachers are started when they are needed
}

// AttachDisk has a disk attached, and returns its device. One that is attached already is left as it is; what is left of an attacher that
// has died, or shows another disk by this name, is taken away first. What the host could not do now, and may do in a moment, is an error of kind
// Unavailable.
func (h Here) AttachDisk(ctx context.Context, d ShownDisk) (device string, err error) {
	at, err := h.find(d)
	if err != nil {
		return "", err
	}
	if at != nil && !d.Fresh {
		if h.shows(ctx, at, d) {
			return at.Device(), nil
		}
		if err := h.Remove(ctx, at); err != nil {
			return "", notAttached(d, err)
		}
	}
	attach := mount.Attach
	if h.Launcher != nil {
		attach = h.Launcher.Attach
	}
	cfg := mount.Config{Name: d.name(), StateDir: h.Places.Attached, Export: d.Export, Sector: d.Sector}
	if cfg.Identity = h.Places.Identity; cfg.Identity == "" {
		cfg.Socket = h.Places.Disks
	}
	if at, err = attach(ctx, cfg); err != nil {
		return "", notAttached(d, err)
	}
	return at.Device(), nil
}

// notAttached is why a disk was not attached. What is neither told already nor a fault of ours passes: a process was killed, a device was busy.
func notAttached(d ShownDisk, err error) error {
	var told *tidemark.Error
	if errors.As(err, &told) || errors.Is(err, mount.ErrConfig) || errors.Is(err, mount.ErrExists) || errors.Is(err, context.Canceled) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("attach disk %s of %s: %w", d.Disk, d.Application, err)
	}
	return tidemark.Errorf(tidemark.Unavailable, "attach disk %s of %s: %w", d.Disk, d.Application, err).WithHint("try again in a moment")
}

// LookDisk says how a disk is shown.
func (h Here) LookDisk(ctx context.Context, d ShownDisk) (s Shown, err error) {
	if d.Dir != "" {
		s.Dir = h.Places.abs(d.Dir)
		if s.Mounted, err = isMounted(s.Dir); err != nil {
			return s, err
		}
	}
	at, err := h.find(d)
	if err != nil || at == nil {
		return s, err
	}
	if s.Attached = true; h.shows(ctx, at, d) {
		s.Device = at.Device()
		s.Mounts, err = mount.Mounts(s.Device)
	}
	return s, err
}

// KnownDisk says who knows a disk by its present export: an attacher that this host has started since its own start, alive or not, or one of before
// or of another host, which shares the state directory.
func (h Here) KnownDisk(d ShownDisk) (here, elsewhere bool, err error) {
	at, err := h.find(d)
	if err != nil || at == nil || at.Config().Export != d.Export {
		return false, false, err
	}
	here = at.ThisBoot()
	return here, !here, nil
}

// DetachDisk takes a disk off this host, if it is attached. While it is mounted, or in use otherwise, nothing is changed, and
// it is an error.
func (h Here) DetachDisk(ctx context.Context, d ShownDisk) error {
	at, err := h.find(d)
	if err != nil || at == nil {
		return err
	}
	err = mount.WhileBusy(ctx, cmp.Or(d.Patience, lettingGo), func() error {
		if h.shows(ctx, at, d) {
			return at.Detach(ctx, false)
		}
		return h.Remove(ctx, at)
	})
	if err != nil && d.Deleted && !errors.Is(err, mount.ErrBusy) && at.Alive() {
		slog.Warn("a disk that is deleted could not be flushed", "application", d.Application, "disk", d.Disk, "error", err)
		err = at.Detach(ctx, true)
	}
	if errors.Is(err, mount.ErrBusy) {
		return tidemark.Errorf(tidemark.Conflict, "disk %s of %s is in use%s", d.Disk, d.Application, by(at.Device())).
			WithHint("end what uses it, and try again")
	}
	if err != nil {
		return fmt.Errorf("detach disk %s of %s: %w", d.Disk, d.Application, err)
	}
	return nil
}

// by says who uses a device, if that is known.
func by(device string) string {
	users, _ := mount.Users(device) // what is to be said can be said without
	var names []string
	for _, u := range users[:min(3, len(users))] {
		names = append(names, u.String())
	}
	if len(names) == 0 {
		return ""
	}
	return ": " + strings.Join(names, "; ")
}

// detachStrays takes off this host the disks of the server that are served as none of these exports.
func (h Here) detachStrays(ctx context.Context, exports []string) (devices []string, err error) {
	list, err := mount.List(h.Places.Attached)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, at := range list {
		cfg := at.Config()
		if cfg.Identity == "" || slices.Contains(exports, cfg.Export) {
			continue // a tapped disk is not the server's; and of one whose record is damaged nothing is known
		}
		if err := h.Remove(ctx, at); err != nil {
			errs = append(errs, err)
			continue
		}
		devices = append(devices, at.Device())
	}
	return devices, errors.Join(errs...)
}

// find returns the attachment of a disk, or nil.
func (h Here) find(d ShownDisk) (*mount.Attachment, error) {
	at, err := mount.Find(h.Places.Attached, d.name())
	if errors.Is(err, mount.ErrNotFound) {
		return nil, nil
	}
	return at, err
}

// shows reports whether an attachment is of this disk, and works.
func (h Here) shows(ctx context.Context, at *mount.Attachment, d ShownDisk) bool {
	cfg := at.Config()
	if !at.Alive() || at.Err() != nil || cfg.Export != d.Export || cfg.Identity != h.Places.Identity {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, askStatus)
	defer cancel()
	st, err := at.Status(ctx)
	if err != nil {
		return ctx.Err() != nil // it has no time for us, but lives, and may have what would be lost with it; else it has just ended
	}
	return !st.Server.GaveUp // all that is left of its disk are errors, for good
}

// askStatus is how long an attacher has to say how it is.
const askStatus = 2 * time.Second

// Remove takes an attachment away that is of no use, with all that is still on it. One whose record cannot be read may live, and the disk
// attached a second time would have two writers, each sure of its own: it is left to the user.
func (h Here) Remove(ctx context.Context, at *mount.Attachment) error {
	if err := at.Err(); err != nil {
		return tidemark.Errorf(tidemark.Corrupt, "what is attached as %s is not known: %w", at.Name(), err).
			WithHint("end its process (`pgrep -af \"tidemark attach\"`), or restart the host, and remove the directory")
	}
	mounted, err := at.Mounts()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, m := range mounted {
		if at.ThisBoot() && h.Places.holds(m.Dir) { // a device of that name that was made since is another one
			postgres.Kill(m.Dir) // its disk is gone, and its socket would be in the way of the next one
		}
	}
	if !at.Alive() {
		return at.Cleanup(true)
	}
	err = at.Detach(ctx, true)
	for _, m := range mounted {
		if e := unix.Unmount(m.Dir, unix.MNT_DETACH); e != nil && !errors.Is(e, unix.EINVAL) { // EINVAL: it is gone
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", m.Dir, e))
		}
	}
	return err
}

// abs is a path as it is on this host: one that is not absolute is below the data directory.
func (p Places) abs(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(p.Dir, path)
}

// holds reports whether a path is where disks of clones are mounted.
func (p Places) holds(path string) bool {
	rel, err := filepath.Rel(filepath.Join(p.Dir, ClonesDir), path)
	return err == nil && filepath.IsLocal(rel)
}

// ClonesDir is the directory of a data directory below which disks of clones are mounted.
const ClonesDir = "clones"

// isMounted reports whether something is mounted at dir.
func isMounted(dir string) (bool, error) {
	all, err := mountinfo.Read("/proc/self/mountinfo")
	return slices.ContainsFunc(all, func(m mountinfo.Mount) bool { return m.Dir == dir }), err
}

// attachLimit is how long a host may take to attach a disk, or to take it off.
const attachLimit = 2 * time.Minute

// AttachDisk is [Here.AttachDisk] on the agent's host.
func (a *Agent) AttachDisk(ctx context.Context, d ShownDisk) (device string, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	return do[string](ctx, a, "disk-attach", d, nil)
}

func doAttachDisk(ctx context.Context, s *session, d ShownDisk, _ func(any)) (string, error) {
	if err := d.check(); err != nil {
		return "", err
	}
	return s.here().AttachDisk(ctx, d)
}

// LookDisk is [Here.LookDisk] on the agent's host. One that does not answer at once is an error of kind Unavailable.
func (a *Agent) LookDisk(ctx context.Context, d ShownDisk) (Shown, error) {
	return soon[Shown](ctx, a, "disk-look", d)
}

func doLookDisk(ctx context.Context, s *session, d ShownDisk, _ func(any)) (Shown, error) {
	if err := d.check(); err != nil {
		return Shown{}, err
	}
	return s.here().LookDisk(ctx, d)
}

// DetachDisk is [Here.DetachDisk] on the agent's host.
func (a *Agent) DetachDisk(ctx context.Context, d ShownDisk) error {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	_, err := do[none](ctx, a, "disk-detach", d, nil)
	return err
}

func doDetachDisk(ctx context.Context, s *session, d ShownDisk, _ func(any)) (none, error) {
	if err := d.check(); err != nil {
		return none{}, err
	}
	return none{}, s.here().DetachDisk(ctx, d)
}

// DetachStrays takes off another host the disks of the server that are not served as one of these exports any more, whatever is on
// them, and returns their devices.
func (a *Agent) DetachStrays(ctx context.Context, exports []string) (devices []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	return do[[]string](ctx, a, "disk-strays", exports, nil)
}

func doDetachStrays(ctx context.Context, s *session, exports []string, _ func(any)) ([]string, error) {
	return s.here().detachStrays(ctx, exports)
}

func (s *session) here() Here { return Here{Places: s.places} }

// DialDisk is the [mount.Dialer] of attachers on other hosts.
func DialDisk(ctx context.Context, identity, export string, s mount.Session) (net.Conn, error) {
	conn, err := remote.DialFrom(ctx, identity, remote.Request{For: remote.Disk, Disk: export, Client: s.Attacher, Session: s.Number})
	if errors.Is(err, remote.ErrShutOut) {
		err = fmt.Errorf("%w: %w", mount.ErrShutOut, err)
	}
	return conn, err
}

// CheckMountPoint returns the path, without links, of an empty directory of the agent's host to mount on.
func (a *Agent) CheckMountPoint(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	return do[string](ctx, a, "check-dir", path, nil)
}

// checkLimit is how long a host may take to look at a directory.
const checkLimit = 30 * time.Second

func doCheckMountPoint(_ context.Context, _ *session, asked string, _ func(any)) (string, error) {
	if !filepath.IsAbs(asked) {
		return "", tidemark.Errorf(tidemark.Invalid, "%q is not an absolute path", asked).WithHint("write it from / on")
	}
	path, err := filepath.EvalSymlinks(asked)
	if errors.Is(err, os.ErrNotExist) {
		return "", tidemark.Errorf(tidemark.NotFound, "there is no directory %s", asked).WithHint("make it first")
	}
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "the directory cannot be used: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return "", tidemark.Errorf(tidemark.Invalid, "%s is no directory that can be mounted on: %w", path, err)
	}
	if len(entries) > 0 {
		return "", tidemark.Errorf(tidemark.Conflict, "%s is not empty", path).WithHint("mount on an empty directory")
	}
	return path, nil
}

// RemoveEmpty removes the empty directories below and at dir, and nothing else. A dir that is not absolute is below the agent's data directory.
func (a *Agent) RemoveEmpty(ctx context.Context, dir string) error {
	_, err := do[none](ctx, a, "remove-empty", dir, nil)
	return err
}

func doRemoveEmpty(_ context.Context, s *session, dir string, _ func(any)) (none, error) {
	dir = s.places.abs(dir)
	if !s.own && !s.places.holds(dir) {
		return none{}, errNotOurs(dir)
	}
	return none{}, removeEmpty(dir)
}

func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			return fmt.Errorf("%s is still there", filepath.Join(dir, e.Name()))
		}
		if err := removeEmpty(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// errNotOurs refuses what a server asks of another host that is not of its own disks.
func errNotOurs(what string) error {
	return tidemark.Errorf(tidemark.Denied, "%s is not of a disk that is shown here", what)
}

// ofClone is the path of what belongs to a clone, on this host. From the server of another host nothing else is taken. A path below the directory
// of clones that leads out of its clone's is refused: what is on a disk is whoever's who wrote it.
func (s *session) ofClone(path string) (string, error) {
	path = s.places.abs(path)
	if path == "" || !s.places.holds(path) {
		if path != "" && !s.own {
			return "", errNotOurs(path)
		}
		return path, nil
	}
	return path, s.places.staysIn(path)
}

// staysIn returns an error if a path below the directory of clones leads out of its clone's directory.
func (p Places) staysIn(path string) error {
	clones := filepath.Join(p.Dir, ClonesDir)
	rel, err := filepath.Rel(clones, path)
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(rel, string(filepath.Separator))
	home, err := filepath.EvalSymlinks(filepath.Join(clones, name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is nothing to be led to
	} else if err != nil {
		return err
	}
	if rel, err := filepath.Rel(home, real); err != nil || !filepath.IsLocal(rel) {
		return tidemark.Errorf(tidemark.Invalid, "%s leads to %s, which is not on the disk of that clone", path, real)
	}
	return nil
}

// checkDevice refuses a device that is no disk of the server's, where that is not of this host.
func (s *session) checkDevice(device string) error {
	if s.own {
		return nil
	}
	list, err := mount.List(s.places.Attached)
	if err != nil {
		return err
	}
	for _, at := range list {
		if at.Device() == device && at.Config().Identity != "" {
			return nil
		}
	}
	return errNotOurs(device)
}
