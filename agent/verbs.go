package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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

// verbs are what the agent of the server's own host can do, beside tapVerbs and diskVerbs; each is called by the method of [Agent] that names it.
var verbs = map[string]verb{
	"format":        on(doFormat),
	"sync":          on(doSync),
	"restore":       on(doRestore),
	"capture":       on(doCapture),
	"stage":         on(doStage),
	"receive":       on(doReceive),
	"received":      on(doReceived),
	"force":         on(doForce),
	"prune":         on(doPrune),
	"quiesce":       on(doQuiesce),
	"check-scripts": on(doCheckScripts),
	"prove":         on(doProve),
	"gather":        on(doGather),
	"search-files":  on(doSearchFiles),
	"find-program":  on(doFindProgram),
	"run-program":   on(doRunProgram),
}

// tapVerbs are those that an agent of another host knows, too.
var tapVerbs = map[string]verb{
	alive: on(doAlive),

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

// diskVerbs are those by which disks of the server are shown on a host, and used there. An agent of another host knows them, too.
var diskVerbs = map[string]verb{
	"disk-attach":  on(doAttachDisk),
	"disk-look":    on(doLookDisk),
	"disk-detach":  on(doDetachDisk),
	"disk-strays":  on(doDetachStrays),
	"check-dir":    on(doCheckMountPoint),
	"remove-empty": on(doRemoveEmpty),
	"mount":        on(doMount),
	"unmount":      on(doUnmount),
	"freeze":       on(doFreeze),
	"thaw":         on(doThaw),
	"discover":     on(doDiscover),
	"recover":      on(doRecover),
	"locate":       on(doLocate),
	"find":         on(doFind),
	"stop":         on(doStop),

	"check-step":       on(doCheckStep),
	"run-step":         on(doRunStep),
	"rewrite-postgres": on(doRewritePostgres),
	"clear-files":      on(doClearFiles),
}

// none is the answer of what has nothing to say.
type none struct{}

// Filesystem says what is mounted where: see [mount.MountFS].
type Filesystem struct {
	Device string `json:"device"`
	Dir    string `json:"dir"`            // exists, unless Make is set; relative: below the agent's data directory
	Make   bool   `json:"make,omitempty"` // make the directory
	// Private: with Make, nobody but root gets to the directory, whatever the modes of the files are.
	Private bool     `json:"private,omitempty"`
	Type    string   `json:"type,omitempty"`
	Options []string `json:"options,omitempty"`
}

// Mount mounts a file system, and returns the absolute path of where it is.
func (a *Agent) Mount(ctx context.Context, fs Filesystem) (dir string, err error) {
	return do[string](ctx, a, "mount", fs, nil)
}

func doMount(_ context.Context, s *session, fs Filesystem, _ func(any)) (string, error) {
	if err := s.checkDevice(fs.Device); err != nil {
		return "", err
	}
	dir := s.places.abs(fs.Dir)
	if fs.Make {
		if err := os.MkdirAll(dir, 0o711); err != nil { // databases run as other users, and must get through
			return "", err
		}
	}
	if fs.Make && fs.Private {
		if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil { // before there is something to be seen
			return "", err
		}
	}
	return dir, mount.MountFS(fs.Device, dir, fs.Type, fs.Options)
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

func doUnmount(ctx context.Context, s *session, args unmountArgs, _ func(any)) (none, error) {
	args.Dir = s.places.abs(args.Dir)
	err := mount.WhileBusy(ctx, args.Patience, func() error { return mount.Unmount(args.Dir) })
	if errors.Is(err, mount.ErrBusy) {
		err = tidemark.Errorf(tidemark.Conflict, "%s is in use", args.Dir).WithHint("end the programs that use it: `fuser -vm " + args.Dir + "`")
	}
	return none{}, err
}

// Freeze writes back file systems and stops their writes until Thaw, all or none. They are
// thawed, too, when the server ends, and on another host after a while.
func (a *Agent) Freeze(ctx context.Context, dirs []string) error {
	_, err := do[none](ctx, a, "freeze", dirs, nil)
	return err
}

// freezeLimit is how long a file system of another host stays frozen that the server does not thaw: the way to it may be cut.
const freezeLimit = 5 * time.Second

func doFreeze(ctx context.Context, s *session, dirs []string, _ func(any)) (none, error) {
	dirs = s.absAll(dirs)
	ours := map[string]uint64{}
	for i, dir := range dirs {
		if err := mount.Freeze(dir); err != nil {
			return none{}, errors.Join(err, s.thaw(dirs[:i]))
		}
		ours[dir] = s.noteFrozen(dir)
	}
	if ctx.Err() != nil { // nobody waits for it any more, and nobody would thaw it
		return none{}, errors.Join(ctx.Err(), s.thaw(dirs))
	}
	if !s.own {
		time.AfterFunc(freezeLimit, func() {
			if err := s.thaw(s.stillFrozen(ours)); err != nil {
				slog.Error("a file system stays frozen", "error", err)
			}
		})
	}
	return none{}, nil
}

func (s *session) absAll(dirs []string) []string {
	list := make([]string, len(dirs))
	for i, dir := range dirs {
		list[i] = s.places.abs(dir)
	}
	return list
}

// noteFrozen notes that a file system has to be thawed when the server is gone, and returns the number of this freeze.
func (s *session) noteFrozen(dir string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freezes++
	s.frozen[dir] = s.freezes
	return s.freezes
}

// stillFrozen lists those of file systems that are frozen since the freezes of these numbers.
func (s *session) stillFrozen(numbers map[string]uint64) (dirs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir, n := range numbers {
		if s.frozen[dir] == n {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (s *session) forgetFrozen(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.frozen, dir)
}

// Thaw lets file systems go on; one that is not frozen is fine. lasted: until now all of them were frozen by Freeze.
func (a *Agent) Thaw(ctx context.Context, dirs []string) (lasted bool, err error) {
	return do[bool](ctx, a, "thaw", dirs, nil)
}

func doThaw(_ context.Context, s *session, dirs []string, _ func(any)) (lasted bool, err error) {
	dirs, lasted = s.absAll(dirs), true
	s.mu.Lock()
	for _, dir := range dirs {
		lasted = lasted && s.frozen[dir] != 0
	}
	s.mu.Unlock()
	return lasted, s.thaw(dirs)
}

func (s *session) thaw(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		s.mu.Lock()
		_, was := s.frozen[dir]
		delete(s.frozen, dir) // before it is: who asks whether it lasted must not be told so wrongly
		s.mu.Unlock()
		if err := mount.Thaw(dir); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it is not frozen
			errs = append(errs, err)
			if was {
				s.noteFrozen(dir)
			}
		}
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

func doRecover(ctx context.Context, s *session, t postgres.Target, _ func(any)) (_ *postgres.Instance, err error) {
	for _, path := range []*string{&t.DataDir, &t.Root, &t.WALDir, &t.ConfigDir} {
		if *path, err = s.ofClone(*path); err != nil {
			return nil, err
		}
	}
	t.Room = s.room()
	return postgres.Recover(ctx, t)
}

// room is where databases of clones run: whoever may be their superuser must not be the user of all that is below our directory.
func (s *session) room() *postgres.Room { return &postgres.Room{Hide: []string{s.places.Dir}} }

// LocatePostgres finds the data directory in a file system: see [postgres.FindDataDir].
func (a *Agent) LocatePostgres(ctx context.Context, root string) (string, error) {
	return do[string](ctx, a, "locate", root, nil)
}

func doLocate(_ context.Context, s *session, root string, _ func(any)) (string, error) {
	root, err := s.ofClone(root)
	if err != nil {
		return "", err
	}
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

func doFind(_ context.Context, s *session, dataDir string, _ func(any)) (Database, error) {
	dataDir, err := s.ofClone(dataDir)
	if err != nil {
		return Database{}, err
	}
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

func doStop(ctx context.Context, s *session, dataDir string, _ func(any)) (none, error) {
	dataDir, err := s.ofClone(dataDir)
	if err != nil {
		return none{}, err
	}
	in, err := postgres.Find(dataDir)
	if tidemark.KindOf(err) == tidemark.NotFound {
		return none{}, nil
	}
	if err != nil {
		return none{}, fmt.Errorf("find the database of %s: %w", dataDir, err)
	}
	return none{}, in.Stop(ctx)
}
