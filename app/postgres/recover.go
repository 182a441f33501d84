package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

// Stop says where recovery ends. Its zero value is the moment of the capture,
// which needs no log but the copy's own.
type Stop struct {
	// Latest replays all of the log there is.
	Latest bool
	// Time replays every transaction committed up to and with it.
	Time time.Time
	// LSN replays up to and with the record at this position.
	LSN LSN
	// Covered: the log is known to reach Time, even if its last commit is earlier.
	// Without it, a log that ends before Time is an error.
	Covered bool
}

func (s Stop) immediate() bool { return !s.Latest && s.Time.IsZero() && s.LSN == 0 }

// Target says what [Recover] brings up, and how.
type Target struct {
	// Name is shown by the server as cluster_name, "tidemark:NAME".
	Name string
	// DataDir is the writable copy of a data directory. Recover owns it from now on.
	DataDir string
	// Root bounds where tablespaces may lie; a link that leads outside is refused.
	// Empty means the parent of DataDir, as Capture lays it out.
	Root string
	// WALDir is a Receiver's directory, for Stops beyond the capture. It is made the server's user's. May be empty.
	WALDir string
	// ConfigDir is the copy's staging/config. Empty means Root/config, if it exists.
	ConfigDir string
	// Stop says how far the log is replayed.
	Stop Stop
	// Port of the server; zero means a free one.
	Port int
	// SocketDir is made, for the server's user only, and holds the socket. Empty means
	// one below /run/tidemark (as root) or in the temporary directory.
	SocketDir string
	// Listen is an IP address of this host on which Port is open, too, with passwords (scram) and without TLS. Empty: none is.
	Listen string
	// OSUser is whom the server runs as; empty means the owner of DataDir.
	OSUser string
	// BinDir holds the server's programs; empty means the usual place of its version.
	BinDir string
	// Superuser is the role to prepare the clone with; empty means what the capture
	// noted, or else "postgres".
	Superuser string
	// SharedBuffers is a PostgreSQL memory size; empty means 128MB.
	SharedBuffers string
	// Settings are further settings of the clone. They cannot override isolation.
	Settings map[string]string
	// Room has the server run in a room of its own, if we are root. Nil: it runs with whatever we see.
	Room *Room `json:"-"`
	// Timeout of the whole, replay included. Zero means none but the context's.
	Timeout time.Duration
}

// recovery is one run of Recover.
type recovery struct {
	t       Target
	owner   *user.User
	bin     string
	major   int
	control controlData
	super   string
	begun   time.Time
}

// Recover turns a writable copy into a running database and returns when it
// accepts connections: recovered, promoted to a timeline of its own, its
// subscriptions disabled. Production cannot be touched by it: see DESIGN.md for the list.
//
// On an error nothing runs any more, and the error's line is the server's
// own decisive one. The copy may have been changed; Recover may be called on
// it again.
func Recover(ctx context.Context, t Target) (in *Instance, err error) {
	if t.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.Timeout)
		defer cancel()
	}
	r := &recovery{t: t, begun: time.Now()}
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.Remove(r.t.SocketDir) // fails if it holds somebody's socket
		}
	}()
	if err := r.isolate(); err != nil {
		return nil, err
	}
	inst, err := r.start(ctx)
	var short *endedEarly
	if errors.As(err, &short) && t.Stop.Covered {
		// The log ends before the time asked for, and the caller knows that nothing
		// was committed in between: its end is the state of that time.
		inst, err = r.retryToEnd(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := r.disableSubscriptions(ctx, inst); err != nil {
		return nil, errors.Join(err, inst.Stop(context.WithoutCancel(ctx)))
	}
	inst.Seconds = time.Since(r.begun).Seconds()
	return inst, nil
}

// retryToEnd starts the recovery again, to the end of the log.
func (r *recovery) retryToEnd(ctx context.Context) (*Instance, error) {
	r.t.Stop = Stop{Latest: true}
	var err error
	if r.control, err = readControl(ctx, r.bin, r.t.DataDir); err != nil {
		return nil, err
	}
	if err := r.writeConfig(); err != nil {
		return nil, err
	}
	return r.start(ctx)
}

// check refuses what cannot work before anything is changed.
func (r *recovery) check(ctx context.Context) error {
	var err error
	if r.t.DataDir, err = filepath.Abs(r.t.DataDir); err != nil {
		return err
	}
	if r.t.Root == "" {
		r.t.Root = filepath.Dir(r.t.DataDir)
	}
	if err := r.resolve(); err != nil {
		return err
	}
	if r.major, err = dataVersion(r.t.DataDir); err != nil {
		return err
	}
	if r.bin, err = binDirFor(r.t.BinDir, r.major); err != nil {
		return err
	}
	if err := r.findOwner(); err != nil {
		return err
	}
	if pid, _ := livePostmaster(r.t.DataDir); pid != 0 {
		return tidemark.Errorf(tidemark.Conflict, "a server (process %d) runs on %s", pid, r.t.DataDir).WithHint("stop it first")
	}
	if r.control, err = readControl(ctx, r.bin, r.t.DataDir); err != nil {
		return err
	}
	if err := r.checkTablespaces(ctx); err != nil {
		return err
	}
	r.super = r.t.Superuser
	if r.super == "" {
		r.super = readState(r.t.Root).Superuser
	}
	if r.super == "" {
		r.super = "postgres"
	}
	if err := r.choosePort(); err != nil {
		return err
	}
	return r.makeSocketDir()
}

// resolve names the directories of a copy without links, as a room has none of them, and refuses a data directory that leads out of the copy: it would be
// somebody else's.
func (r *recovery) resolve() (err error) {
	if r.t.Root, err = filepath.EvalSymlinks(r.t.Root); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(r.t.DataDir)
	if err != nil {
		return tidemark.Errorf(tidemark.Invalid, "%s is no PostgreSQL data directory: %w", r.t.DataDir, err)
	}
	if rel, err := filepath.Rel(r.t.Root, dir); err != nil || !filepath.IsLocal(rel) {
		return tidemark.Errorf(tidemark.Invalid, "%s leads to %s, out of %s", r.t.DataDir, dir, r.t.Root)
	}
	r.t.DataDir = dir
	if r.t.WALDir != "" {
		r.t.WALDir, err = filepath.EvalSymlinks(r.t.WALDir)
	}
	return err
}

// dataVersion reads the major version of a data directory.
func dataVersion(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return 0, tidemark.Errorf(tidemark.Invalid, "%s is no PostgreSQL data directory: %w", dir, err)
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || major < minVersion/10000 {
		return 0, tidemark.Errorf(tidemark.Invalid, "%s is of PostgreSQL %q: Tidemark needs version 12 or newer", dir, strings.TrimSpace(string(b)))
	}
	return major, nil
}

func (r *recovery) findOwner() error {
	var err error
	if r.t.OSUser != "" {
		r.owner, err = user.Lookup(r.t.OSUser)
	} else {
		var st os.FileInfo
		if st, err = os.Stat(r.t.DataDir); err != nil {
			return err
		}
		r.owner, err = user.LookupId(strconv.Itoa(int(st.Sys().(*syscall.Stat_t).Uid)))
	}
	switch {
	case err != nil:
		return tidemark.Errorf(tidemark.Invalid, "no user to run the clone as: %s", err).WithHint("name one that exists on this host")
	case r.owner.Uid == "0":
		return tidemark.Errorf(tidemark.Invalid, "%s belongs to root, and PostgreSQL does not run as root", r.t.DataDir).WithHint("name an OS user for the clone and give him the directory")
	case os.Geteuid() != 0 && r.owner.Uid != strconv.Itoa(os.Geteuid()):
		return tidemark.Errorf(tidemark.Denied, "%s belongs to %s: run Tidemark as root or as that user", r.t.DataDir, r.owner.Username)
	}
	return nil
}

// isolate strips the copy of everything that could reach production, and gives
// it a configuration of ours.
func (r *recovery) isolate() error {
	dir := r.t.DataDir
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "postgresql.auto.conf.tmp"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name := range emptyDirs {
		if name == "pg_wal" {
			continue
		}
		if err := r.emptyDir(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{"pg_wal/archive_status", "pg_logical", "pg_logical/snapshots", "pg_logical/mappings"} {
		if err := r.mkdir(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := r.placeTablespaces(); err != nil {
		return err
	}
	if err := errors.Join(r.giveLog(), r.keepOriginals()); err != nil {
		return err
	}
	return r.writeConfig()
}

// giveLog makes the log readable for the server: that of a cluster of another host was received by a user who is nobody else.
func (r *recovery) giveLog() error {
	if r.t.WALDir == "" || os.Geteuid() != 0 {
		return nil
	}
	return filepath.WalkDir(r.t.WALDir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil || strconv.Itoa(int(fi.Sys().(*syscall.Stat_t).Uid)) == r.owner.Uid {
			return err
		}
		return r.chown(path)
	})
}

func (r *recovery) emptyDir(path string) error {
	list, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r.mkdir(path)
	}
	for _, e := range list {
		err = errors.Join(err, os.RemoveAll(filepath.Join(path, e.Name())))
	}
	return err
}

func (r *recovery) mkdir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	return r.chown(path)
}

func (r *recovery) chown(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, err1 := strconv.Atoi(r.owner.Uid)
	gid, err2 := strconv.Atoi(r.owner.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return os.Lchown(path, uid, gid)
}

// write puts a file of ours into the copy, readable by the server only. The copy's
// own start makes nothing depend on its durability: Recover writes it again.
func (r *recovery) write(name, text string) error {
	path := filepath.Join(r.t.DataDir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("configure the clone: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return r.chown(path)
}

// originals are production's files that ours replace.
var originals = []string{"postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "pg_ident.conf"}

// keepOriginals sets production's configuration aside as NAME.production, once.
func (r *recovery) keepOriginals() error {
	for _, name := range originals {
		path := filepath.Join(r.t.DataDir, name)
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.HasPrefix(string(text), confMark) {
			continue
		}
		if err != nil {
			return err
		}
		if err := vfs.Rename(vfs.OS, path, path+".production"); err != nil {
			return fmt.Errorf("set %s aside: %w", name, err)
		}
	}
	return nil
}

// choosePort finds a free port, or makes sure that the given one is.
func (r *recovery) choosePort() error {
	port, err := freePort(r.t.Port, r.t.Listen)
	if err != nil {
		return err
	}
	r.t.Port = port
	return nil
}

func (r *recovery) makeSocketDir() error {
	dir := r.t.SocketDir
	if dir == "" {
		var err error
		if dir, err = defaultSocketDir(r.t.Name); err != nil {
			return err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if path := filepath.Join(dir, ".s.PGSQL.65535"); len(path) > 107 {
		return tidemark.Errorf(tidemark.Invalid, "the socket directory's path is too long (%d bytes): %s", len(dir), dir).WithHint("choose one of at most 92 bytes")
	}
	if strings.ContainsAny(dir, ",'\n") {
		return tidemark.Errorf(tidemark.Invalid, "the socket directory %q has a comma, quote or line break in its name", dir)
	}
	r.t.SocketDir = dir
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the socket directory: %w", err)
	}
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return tidemark.Errorf(tidemark.Invalid, "the socket directory %s is not a directory", dir)
	}
	return errors.Join(r.chown(dir), os.Chmod(dir, 0o700))
}

func defaultSocketDir(name string) (string, error) {
	if os.Geteuid() != 0 {
		return os.MkdirTemp("", "tidemark-pg-")
	}
	base := "/run/tidemark"
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(base, "pg-")
}
