package taps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/internal/process"
	"tidemark/internal/vfs"
)

// Files of a tap's directory, beside what [tap.Options] says of it.
const (
	recordName  = "tap.json"
	controlName = "control.sock"
	diskName    = "nbd.sock"
	logName     = "tap.log"
)

// Config says what to tap and how.
type Config struct {
	// Dir is the tap's own directory, which must not lie on a tapped disk. It survives the process, and
	// a reboot: what is in it tells the next tap of these disks what the server lacks.
	Dir string
	// Primaries are the paths of the disks, in the order of the timeline's.
	Primaries []string
	// Server is the path of the socket on which the server takes changes.
	Server string
	// Timeline is the id of the disks' timeline there.
	Timeline string
	// Memory and Spill bound the queue, in bytes; see [tap.Options].
	Memory int   `json:",omitempty"`
	Spill  int64 `json:",omitempty"`
}

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound: there is no tap in that directory.
	ErrNotFound = errors.New("no such tap")
	// ErrEnded: the tap's process has ended.
	ErrEnded = errors.New("the tap's process has ended")
	// ErrAttached: somebody has the tapped disks attached.
	ErrAttached = errors.New("the tapped disk is attached")
)

// record is the content of tap.json.
type record struct {
	Config
	process.ID
	Since time.Time
}

// Tap is the process of a tap, which may have ended. Its methods may be called concurrently.
type Tap struct{ rec record }

// Status is how a tap is.
type Status struct {
	tap.Status
	// Attached is how many connections to its disks there are.
	Attached int `json:"attached"`
	// Sizes and Sectors are the sizes of its disks, and of their sectors, in bytes.
	Sizes   []int64 `json:"sizes"`
	Sectors []int   `json:"sectors"`
}

// Arg is the argument with which this executable is the process of a tap, which reads its [Config].
const Arg = "tap"

// Start starts the process of a tap, and returns when
// it serves its disks. It goes on when the caller ends. If the disks cannot be tapped the error says why; that they are in
// use is in its text.
func Start(ctx context.Context, cfg Config) (*Tap, error) {
	if n := len(filepath.Join(cfg.Dir, controlName)); n > 107 {
		return nil, fmt.Errorf("%s is too long a path for a unix socket", cfg.Dir)
	}
	if err := vfs.MkdirAll(vfs.OS, cfg.Dir); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	p, err := process.Start(Arg)
	if err == nil {
		err = p.Tell(ctx, cfg)
	}
	if errors.Is(err, process.ErrSilent) {
		err = fmt.Errorf("%w: %s", err, process.LastLine(filepath.Join(cfg.Dir, logName)))
	}
	if err != nil {
		return nil, fmt.Errorf("tap %v: %w", cfg.Primaries, err)
	}
	return Find(cfg.Dir)
}

// Find returns the tap of a directory, which may have ended: ErrNotFound if none ever ran there.
func Find(dir string) (*Tap, error) {
	data, err := vfs.ReadFile(vfs.OS, filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotFound)
	}
	t := new(Tap)
	if err == nil {
		err = json.Unmarshal(data, &t.rec)
	}
	if err != nil {
		return nil, fmt.Errorf("the record of a tap, %s: %w", filepath.Join(dir, recordName), err)
	}
	return t, nil
}

// Config returns what the tap was started with.
func (t *Tap) Config() Config { return t.rec.Config }

// PID returns the id of its process.
func (t *Tap) PID() int { return t.rec.PID }

// LastWords is the last line of its log.
func (t *Tap) LastWords() string { return process.LastLine(filepath.Join(t.rec.Dir, logName)) }

// Alive reports whether its process runs.
func (t *Tap) Alive() bool { return t.rec.Alive() }

// Socket returns the path of the socket on which its disks are served.
func (t *Tap) Socket() string { return filepath.Join(t.rec.Dir, diskName) }

// Export returns the name under which the i-th disk is served.
func Export(i int) string { return strconv.Itoa(i) }

// Await waits for the end of the tap's process, or of ctx, whose error it returns.
func (t *Tap) Await(ctx context.Context) error {
	fd, err := t.rec.ID.Open()
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	return process.Await(ctx, fd)
}

// Status asks the tap how it is.
func (t *Tap) Status(ctx context.Context) (Status, error) {
	r, err := t.ask(ctx, request{Verb: verbStatus})
	if err != nil || r.Status == nil {
		return Status{}, err
	}
	return *r.Status, nil
}

// Bookmark puts a mark into the stream of the tap: see [tap.Tap.Bookmark]. In a gap it returns an error that wraps
// [tap.ErrGap].
func (t *Tap) Bookmark(ctx context.Context, m capture.Mark) error {
	_, err := t.ask(ctx, request{Verb: verbBookmark, Mark: &m})
	return err
}

// Hold lets no write to the tap's disks begin until Release, or for two seconds: see [tap.Tap.Hold].
func (t *Tap) Hold(ctx context.Context) error {
	_, err := t.ask(ctx, request{Verb: verbHold})
	return err
}

// Release ends a hold. It fails if that had ended before.
func (t *Tap) Release(ctx context.Context) error {
	_, err := t.ask(ctx, request{Verb: verbRelease})
	return err
}

// Resync has everything sent again: see [tap.Tap.Resync].
func (t *Tap) Resync(ctx context.Context) error {
	_, err := t.ask(ctx, request{Verb: verbResync})
	return err
}

// Stop ends the tap when the server has all that is in the queue, or after some seconds, and returns when its process
// has ended; the next tap of the directory goes on from there. While its disks are attached it is ErrAttached, and
// nothing is changed.
func (t *Tap) Stop(ctx context.Context) error {
	fd, err := t.rec.ID.Open()
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if _, err := t.ask(ctx, request{Verb: verbStop}); err != nil && !errors.Is(err, ErrEnded) {
		return err
	}
	return process.Await(ctx, fd)
}

func (t *Tap) ask(ctx context.Context, req request) (r reply, err error) {
	if !t.Alive() {
		return r, ErrEnded
	}
	err = process.Ask(ctx, filepath.Join(t.rec.Dir, controlName), req, &r)
	switch {
	case errors.Is(err, process.ErrEnded):
		return r, fmt.Errorf("%w: %w", ErrEnded, err)
	case err != nil:
		return r, fmt.Errorf("%s: %w", req.Verb, err)
	case r.Gap:
		return r, tap.ErrGap
	case r.Attached:
		return r, ErrAttached
	case r.Error != "":
		return r, fmt.Errorf("%s: %s", req.Verb, r.Error)
	}
	return r, nil
}
