package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/filesystem"
	"tidemark/app/postgres"
	"tidemark/mount"
)

// verb does one thing on this host. It may note something before it returns.
type verb func(ctx context.Context, s *session, body json.RawMessage, note func(any)) (any, error)

// on makes a verb of a function with typed arguments.
func on[A, R any](fn func(ctx context.Context, s *session, args A, note func(any)) (R, error)) verb {
	return func(ctx context.Context, s *session, body json.RawMessage, note func(any)) (any, error) {
		var args A
		if err := json.Unmarshal(body, &args); err != nil {
			return nil, tidemark.Errorf(tidemark.Invalid, "a call cannot be read: %w", err)
		}
		return fn(ctx, s, args, note)
	}
}

// verbs are what the agent of the server's own host can do, beside tapVerbs; each is called by the method of [Agent] that names it.
var verbs = map[string]verb{
	"mount":         on(doMount),
	"format":        on(doFormat),
	"unmount":       on(doUnmount),
	"freeze":        on(doFreeze),
	"thaw":          on(doThaw),
	"sync":          on(doSync),
	"restore":       on(doRestore),
	"discover":      on(doDiscover),
	"capture":       on(doCapture),
	"recover":       on(doRecover),
	"find":          on(doFind),
	"locate":        on(doLocate),
	"stop":          on(doStop),
	"receive":       on(doReceive),
	"received":      on(doReceived),
	"force":         on(doForce),
	"prune":         on(doPrune),
	"quiesce":       on(doQuiesce),
	"check-scripts": on(doCheckScripts),
	"prove":         on(doProve),
}

// tapVerbs are those that an agent of another host knows, too.
var tapVerbs = map[string]verb{
	"tap-inspect":  on(doInspectTap),
	"tap-run":      on(doRunTap),
	"tap-status":   on(doTapStatus),
	"tap-await":    on(doAwaitTap),
	"tap-stop":     on(doStopTap),
	"tap-resync":   on(doResyncTap),
	"tap-thaw":     on(doThawTapped),
	"tap-write":    on(doWriteTapped),
	"tap-withhold": on(doWithholdTap),
	"shoot":        on(doShot),
	"proceed":      on(doProceed),
}

// none is the answer of what has nothing to say.
type none struct{}

// Filesystem says what is mounted where: see [mount.MountFS].
type Filesystem struct {
	Device  string   `json:"device"`
	Dir     string   `json:"dir"` // exists
	Type    string   `json:"type,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Mount mounts a file system.
func (a *Agent) Mount(ctx context.Context, fs Filesystem) error {
	_, err := do[none](ctx, a, "mount", fs, nil)
	return err
}

func doMount(_ context.Context, _ *session, fs Filesystem, _ func(any)) (none, error) {
	return none{}, mount.MountFS(fs.Device, fs.Dir, fs.Type, fs.Options)
}

type formatArgs struct{ Device, Type, Label string }

// Format makes an empty file system on a device: see [mount.Format].
func (a *Agent) Format(ctx context.Context, device, fstype, label string) error {
	_, err := do[none](ctx, a, "format", formatArgs{device, fstype, label}, nil)
	return err
}

func doFormat(_ context.Context, _ *session, args formatArgs, _ func(any)) (none, error) {
	return none{}, mount.Format(args.Device, args.Type, args.Label)
}

type unmountArgs struct {
	Dir      string
	Patience time.Duration
}

// Unmount unmounts a directory. Where it is used, it waits up to patience for a user that is
// just leaving: a program that has ended, or an index service that looked at what is new.
func (a *Agent) Unmount(ctx context.Context, dir string, patience time.Duration) error {
	_, err := do[none](ctx, a, "unmount", unmountArgs{dir, patience}, nil)
	return err
}

func doUnmount(ctx context.Context, _ *session, args unmountArgs, _ func(any)) (none, error) {
	for until := time.Now().Add(args.Patience); ; {
		err := mount.Unmount(args.Dir)
		if errors.Is(err, mount.ErrBusy) && time.Now().Before(until) && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if errors.Is(err, mount.ErrBusy) {
			err = tidemark.Errorf(tidemark.Conflict, "%s is in use", args.Dir).WithHint("end the programs that use it: `fuser -vm " + args.Dir + "`")
		}
		return none{}, err
	}
}

// Freeze writes back file systems and stops their writes until Thaw, all or none. They are
// thawed, too, when the server ends.
func (a *Agent) Freeze(ctx context.Context, dirs []string) error {
	_, err := do[none](ctx, a, "freeze", dirs, nil)
	return err
}

func doFreeze(_ context.Context, s *session, dirs []string, _ func(any)) (none, error) {
	for i, dir := range dirs {
		if err := mount.Freeze(dir); err != nil {
			return none{}, errors.Join(err, s.thaw(dirs[:i]))
		}
		s.noteFrozen(dir)
	}
	return none{}, nil
}

// noteFrozen notes that a file system has to be thawed when the server is gone.
func (s *session) noteFrozen(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frozen[dir] = true
}

func (s *session) forgetFrozen(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.frozen, dir)
}

// Thaw lets file systems go on; one that is not frozen is fine.
func (a *Agent) Thaw(ctx context.Context, dirs []string) error {
	_, err := do[none](ctx, a, "thaw", dirs, nil)
	return err
}

func doThaw(_ context.Context, s *session, dirs []string, _ func(any)) (none, error) {
	return none{}, s.thaw(dirs)
}

func (s *session) thaw(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		if err := mount.Thaw(dir); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is not frozen
			errs = append(errs, err)
			continue
		}
		s.forgetFrozen(dir)
	}
	return errors.Join(errs...)
}

type treeArgs struct{ From, To string }

// progressOf hands what a call notes to a progress function.
func progressOf(progress func(tidemark.Progress)) func(json.RawMessage) {
	return func(note json.RawMessage) {
		var p tidemark.Progress
		if json.Unmarshal(note, &p) == nil && progress != nil {
			progress(p)
		}
	}
}

// noteEvery is how often progress is told.
const noteEvery = 100 * time.Millisecond

// rarely tells progress no more often than every noteEvery, and always the end.
func rarely(note func(any)) func(tidemark.Progress) {
	var mu sync.Mutex
	var last time.Time
	return func(p tidemark.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Done < p.Total && time.Since(last) < noteEvery {
			return
		}
		last = time.Now()
		note(p)
	}
}

// SyncFiles brings a staging directory up to date with a tree: see [filesystem.Sync].
func (a *Agent) SyncFiles(ctx context.Context, from, staging string, progress func(tidemark.Progress)) (filesystem.Stats, error) {
	return do[filesystem.Stats](ctx, a, "sync", treeArgs{from, staging}, progressOf(progress))
}

func doSync(ctx context.Context, _ *session, args treeArgs, note func(any)) (filesystem.Stats, error) {
	return filesystem.Sync(ctx, args.From, args.To, filesystem.Options{Progress: rarely(note)})
}

// RestoreFiles makes a directory hold a tree: see [filesystem.Restore].
func (a *Agent) RestoreFiles(ctx context.Context, from, to string, progress func(tidemark.Progress)) (filesystem.Stats, error) {
	return do[filesystem.Stats](ctx, a, "restore", treeArgs{from, to}, progressOf(progress))
}

func doRestore(ctx context.Context, _ *session, args treeArgs, note func(any)) (filesystem.Stats, error) {
	return filesystem.Restore(ctx, args.From, args.To, filesystem.RestoreOptions{Progress: rarely(note)})
}

// DiscoverPostgres lists the host's clusters: see [postgres.Discover].
func (a *Agent) DiscoverPostgres(ctx context.Context) ([]postgres.Cluster, error) {
	return do[[]postgres.Cluster](ctx, a, "discover", none{}, nil)
}

func doDiscover(ctx context.Context, _ *session, _ none, _ func(any)) ([]postgres.Cluster, error) {
	return postgres.Discover(ctx)
}

type captureArgs struct {
	Source          postgres.Source
	Staging, Prints string
}

// CapturePostgres brings a staging directory up to date with a cluster: see [postgres.Capture].
// prints is a directory for fingerprints.
func (a *Agent) CapturePostgres(ctx context.Context, src postgres.Source, staging, prints string, progress func(tidemark.Progress)) (*postgres.CaptureResult, error) {
	return do[*postgres.CaptureResult](ctx, a, "capture", captureArgs{src, staging, prints}, progressOf(progress))
}

func doCapture(ctx context.Context, _ *session, args captureArgs, note func(any)) (*postgres.CaptureResult, error) {
	return postgres.Capture(ctx, args.Source, args.Staging, postgres.CaptureOptions{Prints: args.Prints, Progress: rarely(note)})
}

// RecoverPostgres brings a database up on a writable copy: see [postgres.Recover].
// It goes on when the agent ends.
func (a *Agent) RecoverPostgres(ctx context.Context, t postgres.Target) (*postgres.Instance, error) {
	return do[*postgres.Instance](ctx, a, "recover", t, nil)
}

func doRecover(ctx context.Context, _ *session, t postgres.Target, _ func(any)) (*postgres.Instance, error) {
	return postgres.Recover(ctx, t)
}

// LocatePostgres finds the data directory in a file system: see [postgres.FindDataDir].
func (a *Agent) LocatePostgres(ctx context.Context, root string) (string, error) {
	return do[string](ctx, a, "locate", root, nil)
}

func doLocate(_ context.Context, _ *session, root string, _ func(any)) (string, error) {
	return postgres.FindDataDir(root)
}

// Database is a database that runs on this host, and how it is.
type Database struct {
	*postgres.Instance
	Status postgres.Status `json:"status"`
}

// FindPostgres returns the database that runs on a data directory, or an error of kind NotFound;
// where the disk does not answer, of kind Unavailable.
func (a *Agent) FindPostgres(ctx context.Context, dataDir string) (Database, error) {
	return soon[Database](ctx, a, "find", dataDir)
}

func doFind(_ context.Context, _ *session, dataDir string, _ func(any)) (Database, error) {
	in, err := postgres.Find(dataDir)
	if err != nil {
		return Database{}, err
	}
	return Database{in, in.Status()}, nil
}

// StopPostgres stops the database that runs on a data directory, if one does: see [postgres.Instance.Stop].
func (a *Agent) StopPostgres(ctx context.Context, dataDir string) error {
	_, err := do[none](ctx, a, "stop", dataDir, nil)
	return err
}

func doStop(ctx context.Context, _ *session, dataDir string, _ func(any)) (none, error) {
	in, err := postgres.Find(dataDir)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return none{}, nil
	}
	if err != nil {
		return none{}, fmt.Errorf("find the database of %s: %w", dataDir, err)
	}
	return none{}, in.Stop(ctx)
}
