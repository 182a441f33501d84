package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/process"
	"tidemark/internal/vfs"
)

// Files of an attachment's directory.
const (
	recordName = "attach.json"
	socketName = "control.sock"
	logName    = "attacher.log"
)

// Attachment is one attached disk. Its methods may be called concurrently.
type Attachment struct {
	rec      record
	dir      string
	starting starting // who was to attach it, if there is no record
	damaged  error    // its record cannot be read, and its attacher does not answer
}

// List returns the attachments below a state directory: alive, stale, and those whose
// Err is not nil. A directory that does not exist has none.
func List(stateDir string) ([]*Attachment, error) {
	names, err := os.ReadDir(stateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*Attachment
	for _, e := range names {
		if !e.IsDir() || checkName(e.Name()) != nil {
			continue
		}
		a, err := load(stateDir, e.Name())
		if err != nil {
			continue // it was detached this moment
		}
		all = append(all, a)
	}
	return all, nil
}

// Find returns the attachment of a name, or ErrNotFound.
func Find(stateDir, name string) (*Attachment, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	return load(stateDir, name)
}

// load reads an attachment's record. A directory without one is of an attacher that
// starts, or died while it started: a stale attachment without a device. Where
// the record is damaged, a living attacher is asked for it.
func load(stateDir, name string) (*Attachment, error) {
	a := &Attachment{dir: filepath.Join(stateDir, name)}
	a.rec.Name = name
	b, err := vfs.ReadFile(vfs.OS, filepath.Join(a.dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		if _, serr := os.Stat(a.dir); serr != nil {
			return nil, fmt.Errorf("%s: %w", name, ErrNotFound)
		}
		a.starting = readStarting(a.dir)
		return a, nil
	}
	var rec record
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err == nil && rec.Name != name {
		err = fmt.Errorf("it is of %q", rec.Name)
	}
	if err == nil {
		a.rec = rec
		return a, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), askRecord)
	defer cancel()
	if r, aerr := ask(ctx, filepath.Join(a.dir, socketName), request{Verb: verbRecord}); aerr == nil && r.Record != nil {
		a.rec = *r.Record
		return a, nil
	}
	a.damaged = fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(a.dir, recordName), err)
	return a, nil
}

// askRecord is how long an attacher has to say what its record should hold.
const askRecord = 2 * time.Second

// Err returns nil, or an error that wraps ErrDamaged: what is attached is not known.
// Such an attachment has its name alone, and counts as stale.
func (a *Attachment) Err() error { return a.damaged }

// Name returns the attachment's name.
func (a *Attachment) Name() string { return a.rec.Name }

// Device returns the path of its block device, "" if it never came up.
func (a *Attachment) Device() string { return a.rec.Device }

// Via returns what made the device, "" if it never came up.
func (a *Attachment) Via() Via { return a.rec.Made }

// Config returns what it was attached with.
func (a *Attachment) Config() Config { return a.rec.Config }

// PID returns the process id of its attacher, which may have ended; 0 if the device never came up.
func (a *Attachment) PID() int { return a.rec.PID }

// Since returns when it was attached.
func (a *Attachment) Since() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, a.rec.Since) // the zero time if it never came up
	return t
}

// Mounts returns what is mounted from its device. A device that is gone, or was given to somebody else since, as after a restart of the host, has nothing of it.
func (a *Attachment) Mounts() ([]Mounted, error) {
	if a.rec.Device == "" {
		return nil, nil
	}
	if tag, err := deviceTag(a.rec.Device); err != nil || tag != tagOf(a.rec.Token) {
		return nil, err
	}
	return Mounts(a.rec.Device)
}

// Alive reports whether its attacher runs. An attachment that is not alive is
// stale: its device, if still there, gives errors, and Cleanup removes it.
func (a *Attachment) Alive() bool { return a.rec.ID.Alive() }

// ThisBoot reports whether it was attached on this host since that was started. The attacher of another one is not alive here, but where hosts
// share the state directory it may live on the other.
func (a *Attachment) ThisBoot() bool { return a.rec.ID.ThisBoot() }

// Status asks the attacher how it is. ErrStale if there is none.
func (a *Attachment) Status(ctx context.Context) (Status, error) {
	r, err := a.ask(ctx, request{Verb: verbStatus})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, errors.New("the attacher gave no status")
	}
	return *r.Status, nil
}

// Flush makes durable at the server what was written to the device itself. It
// does not write back what a mounted file system still holds: see [Freeze].
func (a *Attachment) Flush(ctx context.Context) error {
	_, err := a.ask(ctx, request{Verb: verbFlush})
	return err
}

func (a *Attachment) ask(ctx context.Context, req request) (reply, error) {
	if !a.Alive() {
		return reply{}, fmt.Errorf("%s: %w", a.Name(), ErrStale)
	}
	r, err := ask(ctx, filepath.Join(a.dir, socketName), req)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", req.Verb, a.Name(), err)
	}
	return r, err
}

// Detach flushes, takes the device down, ends the attacher and removes its state.
// While the device is mounted or held it returns ErrBusy and changes nothing.
//
// With force it goes on regardless: a file system mounted from the device gets
// I/O errors from then on, and loses what it had not written back.
func (a *Attachment) Detach(ctx context.Context, force bool) error {
	fd, err := a.rec.ID.Open()
	if err != nil {
		return fmt.Errorf("%s: %w", a.Name(), ErrStale)
	}
	defer unix.Close(fd)
	if _, err := a.ask(ctx, request{Verb: verbDetach, Force: force}); err != nil && !force {
		return err
	}
	if err := process.Await(ctx, fd); err != nil {
		return fmt.Errorf("detach %s: %w", a.Name(), err)
	}
	if _, err := os.Stat(a.dir); err == nil {
		return a.Cleanup(force)
	}
	return nil
}

// WhileBusy calls fn, and again for as long as patience lasts while it returns ErrBusy. A device that was just unmounted may count as in use for
// some ten milliseconds more: a new mount namespace, of whatever program, begins with all that is mounted on the host.
func WhileBusy(ctx context.Context, patience time.Duration, fn func() error) error {
	for end := time.Now().Add(patience); ; {
		err := fn()
		if !errors.Is(err, ErrBusy) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Cleanup removes what a stale attachment left: mounts of its device, the device,
// and its state. While the device is mounted it returns ErrBusy unless forced;
// with force the mounts are taken away even from programs that use them.
// It refuses with ErrBusy if the attachment is alive, and, unless forced, with
// ErrDamaged if its record is damaged: its device is not known then, and stays.
// An attacher whose starter died while it started is waited for, some 20 seconds at most: until
// it has ended, its directory stays. While its starter lives, it is ErrBusy.
func (a *Attachment) Cleanup(force bool) error {
	if a.Alive() {
		return fmt.Errorf("%s has a living attacher: %w", a.Name(), ErrBusy)
	}
	if a.damaged != nil && !force {
		return fmt.Errorf("clean up %s: %w", a.Name(), a.damaged)
	}
	if err := a.endStarting(); err != nil {
		return fmt.Errorf("clean up %s: %w", a.Name(), err)
	}
	if a.rec.Device != "" {
		if err := a.removeDevice(force); err != nil {
			return fmt.Errorf("clean up %s: %w", a.Name(), err)
		}
	}
	return os.RemoveAll(a.dir)
}

func (a *Attachment) removeDevice(force bool) error {
	tag := tagOf(a.rec.Token)
	got, err := deviceTag(a.rec.Device)
	if err != nil || got != tag {
		return err // "": gone, or somebody else's by now
	}
	if !force {
		return removeUnused(a.rec.Device, tag)
	}
	mounted, err := Mounts(a.rec.Device)
	if err != nil {
		return err
	}
	// The device goes first: that fails what the kernel's nbd driver was asked for when the
	// attacher died, and an unmount waits for it.
	if err := detachDevice(a.rec.Device, tag, true); err != nil {
		return err
	}
	for _, m := range mounted {
		if err := unix.Unmount(m.Dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Dir, err)
		}
	}
	return nil
}

// removeUnused takes down a device whose attacher is gone, unless it is in use: ErrBusy. It is not flushed, for
// there is nobody to flush it to.
func removeUnused(path, tag string) error {
	dev, err := openUnused(path)
	if dev == nil {
		return err
	}
	return errors.Join(detachDevice(path, tag, true), dev.Close()) // closed last: nobody else can mount it in between
}

// newRecord describes the running process.
func newRecord(cfg attachConfig, device string, via Via) (record, error) {
	self, err := process.Self()
	return record{
		attachConfig: cfg, ID: self,
		Device: device, Made: via, Since: time.Now().UTC().Format(time.RFC3339Nano),
	}, err
}
