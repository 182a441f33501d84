// Package control runs a server: it protects applications, captures them, and
// gives their points out as exports, mounts and clones, by joining the
// timelines of a data directory with the disks, databases and processes of the
// host. What it does that takes long is a job, recorded in the catalog before
// it begins, so that a job cut by a crash is found and undone at the next start,
// and begun again where its kind says that this does no harm (kinds.go). Jobs
// that cannot begin wait in a queue (queue.go).
//
// Everything lies below one directory:
//
//	pool/       the bucket: packs, descriptors and points
//	store/open/   packs that still grow; with pool/ all that a new server needs
//	store/index/  where chunks lie; a cache
//	timelines/  journals and states
//	catalog.db  the ledger
//	identity    of this data directory: whose things are whose in a catalog
//	run/        sockets, and the state of attached disks
//	staging/    where staging disks are mounted
//	fingerprints/  of what is staged; a cache
//	clones/     where clones are mounted
//	taps/       notes and queues of taps, which outlive the server
//	devices/    links to tapped disks
//	machines/   sockets to machines of QEMU that are followed
//	probes/     the administrator's, for recovery proofs; only read
//	scripts/    his programs that workflows run; only read
//	secrets/    his keys that messages of workflows and webhooks are signed with; only read
//	proofs/     what these said
//	preparations/, secrets/  the administrator's, for LiveClones; only read
//	prepared/   what preparations said
//	authority/  the key that certificates of hosts are signed with
//	audit/      the key of checkpoints of the audit, these, and records that wait for the catalog
//
// Begin with [Open]. All methods may be called concurrently.
package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent"
	"tidemark/catalog"
	"tidemark/export/nbd"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/mount"
	"tidemark/object"
	"tidemark/timeline"
)

// Options of a server.
type Options struct {
	Dir        string // data directory
	CacheBytes int64  // memory for decoded chunks; 0: a quarter of the machine's
	Logger     *slog.Logger
	// Reserve is how many bytes are kept free: with fewer, the oldest any-point history is given up. 0: a fiftieth of the file
	// system, but a GiB at least and 16 at most, and never more than a tenth; less than 0: none.
	Reserve int64
	// HotBytes and HotFor say how much of each journal's history, and of what age, is kept beside the pool; what is more, or
	// older, is moved into it. If both are 0, all is kept if the pool is on the same file system, and else a GiB.
	HotBytes int64
	HotFor   time.Duration
	// Listen is where the agents of other hosts are let in, as HOST:PORT; empty: nowhere.
	Listen string
	// Catalog is the URL of a PostgreSQL that has the catalog, which other servers may share; empty: a file in Dir.
	Catalog string
	// StandBy, if not nil, is called if another server runs on Dir; then Open waits for its end, and takes over.
	StandBy func()
	// Lost is called when another server has got the directory, as storage that machines share may decide: nothing that this one still holds is good, and the process must
	// end at once. nil means os.Exit(1).
	Lost func(error)
	// HostJobs is how many jobs work on one host at a time, and Jobs how many run in all. 0: 4, and by the number of processors.
	HostJobs, Jobs int
	// Changes is how many changes are kept for those who follow them; 0: 4,096, each of some hundred bytes.
	Changes int
	// Agent is the command that works on mounted disks; empty: this program with "agent".
	Agent []string
}

// Control is a running server.
type Control struct {
	o       Options
	log     *slog.Logger
	started time.Time
	lock    io.Closer
	owner   *owner
	fs      vfs.FS // of the data directory, while it is ours
	// disowned is closed when the directory is given up.
	disowned chan struct{}

	identity string // of the data directory

	bucket  *object.Dir
	store   *image.Store
	set     *timeline.Set
	catalog *catalog.Catalog

	exports *nbd.Table // on the server's own socket
	nbd     *nbd.Server
	sockets map[string]*socket // of exports that asked for their own, by address; guarded by mu

	// mistaken are the timelines, by ID, whose disks are not served on our own host, and why: see takeOver. Filled before anything is served.
	mistaken map[string]error

	launcher  *mount.Launcher // attaches disks
	agent     *agent.Agent    // touches what is mounted; we never do
	jobs      runner
	promises  promises
	clock     clock
	receivers receivers
	taps      tappings
	groups    groupings
	hosts     hosts
	mirrors   mirrors
	bell      bell
	changes   changes
	webhooks  webhooks
	lateKeys  lateKeys
	captured  captures
	takeBacks []*cutTakeBack // restores in place to be finished at the end of Open

	undone chan struct{} // closed when what the last server left half done was undone
	back   chan struct{} // closed when all that it left is as it was

	gate  sync.RWMutex // held by requests, and alone by what replaces the stores
	mu    sync.Mutex   // guards the names of applications while one is made, and sockets
	names map[string]bool
	// importing: a pool is brought in, and nothing else may be made; guarded by mu.
	importing bool
	// noting is held while what is noted about an application is changed, and while a point is expired.
	noting sync.Mutex
	// working are the clones and mounts that somebody works on; guarded by mu.
	working map[string]bool
	// removed are those of them, and the applications, that somebody removes now; guarded by mu.
	removed map[string]bool
	// returning are the applications whose disks are taken back in place now; guarded by mu.
	returning map[string]bool

	// exporting is held while an export is begun or ended: from when its name is chosen until it is kept, so that no two have one.
	exporting sync.Mutex

	profiles profiles

	// declaring is held while it is looked whether what documents declare is being protected already, until the job that does so is asked for.
	declaring sync.Mutex

	copies locks // by user; see HoldCopies
	trail  trail
}

func (c *Control) path(parts ...string) string {
	return filepath.Join(append([]string{c.o.Dir}, parts...)...)
}

// Open starts a server on a data directory, which is made if it is missing. It
// finds the mounts, clones and jobs of the server that ran there before.
func Open(ctx context.Context, o Options) (_ *Control, err error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	c := &Control{o: o, log: o.Logger, started: time.Now(), exports: nbd.NewTable(), sockets: map[string]*socket{}, names: map[string]bool{}, working: map[string]bool{}, removed: map[string]bool{},
		undone: make(chan struct{}), back: make(chan struct{})}
	c.changes.keep = cmp.Or(o.Changes, keptChanges)
	c.clock.begin(time.Time{})
	c.jobs.init()
	if err := c.takeDir(ctx); err != nil {
		return nil, err
	}
	if c.identity, err = identityOf(o.Dir); err != nil {
		return nil, errors.Join(err, c.letDirGo())
	}
	c.launcher = mount.NewLauncher()
	c.agent = agent.New(agent.Config{Command: o.Agent, Lock: c.path("run", "agent.lock"), Places: agent.PlacesIn(o.Dir), Logger: c.log})
	revived := c.reviveTaps(ctx)
	if err := c.openStores(ctx); err != nil {
		<-revived
		return nil, errors.Join(err, c.Close())
	}
	<-revived
	if err := c.openTrail(ctx); err != nil { // before anybody is let in
		return nil, errors.Join(err, c.Close())
	}
	if err := errors.Join(c.serveDisks(), c.serveTaps(), c.serveHosts(ctx)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.comeBack(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// takeDir makes the directory and keeps other servers out of it. One that stands by waits until no other is there.
func (c *Control) takeDir(ctx context.Context) error {
	// The data directory itself comes first: a parent that MkdirAll makes has the mode of
	// its child, and databases of clones, which run as other users, must get through to it.
	for _, d := range []string{"", "staging", "clones", "machines", "run"} {
		mode := os.FileMode(0o711)
		if d == "run" {
			mode = 0o700
		}
		if err := os.MkdirAll(c.path(d), mode); err != nil {
			return tidemark.Errorf(tidemark.Unavailable, "the data directory cannot be made: %w", err).WithHint("choose another with --data, or run as root")
		}
	}
	f, err := os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return tidemark.Errorf(tidemark.Denied, "the data directory cannot be used: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) && c.o.StandBy != nil {
		c.o.StandBy()
		err = waitLock(ctx, f)
	} else if errors.Is(err, unix.EWOULDBLOCK) {
		bounded, cancel := context.WithTimeout(ctx, forkLimit)
		defer cancel()
		if e := waitLock(bounded, f); !errors.Is(e, context.DeadlineExceeded) {
			err = e
		}
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = tidemark.Errorf(tidemark.Conflict, "another server runs on %s", c.o.Dir).WithHint("stop it first, choose another --data, or stand by with --standby")
	case err != nil && ctx.Err() == nil:
		err = tidemark.Errorf(tidemark.Unavailable, "the data directory %s cannot be locked: %w", c.o.Dir, err)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	c.lock = f
	return c.ownDir()
}

// ownDir makes the directory ours, and ends the process when it is not that any more.
func (c *Control) ownDir() (err error) {
	lost := c.o.Lost
	if lost == nil {
		lost = func(err error) {
			c.log.Error("this server ends at once", "error", err)
			os.Exit(1)
		}
	}
	if c.owner, err = takeOwnership(c.path("owner"), lost); err != nil {
		return errors.Join(err, c.lock.Close())
	}
	c.fs, c.disowned = ownedFS{vfs.OS, c.owner}, make(chan struct{})
	go c.owner.watch(c.disowned)
	return nil
}

// letDirGo gives the directory to the next server.
func (c *Control) letDirGo() error {
	if c.lock == nil {
		return nil
	}
	close(c.disowned)
	err := c.lock.Close()
	c.lock = nil
	return err
}

// standbyPause is how often a server that stands by tries to get the lock.
const standbyPause = 200 * time.Millisecond

// forkLimit is how long a server waits for a lock that may be that of a dead one: a process that the dead one was just starting has its files,
// and so the lock, until it is a program of its own.
const forkLimit = 3 * time.Second

// waitLock waits for the lock of a data directory: until the kernel, or the storage, takes it from the server that had it.
func waitLock(ctx context.Context, f *os.File) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(standbyPause):
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
	}
}

func (c *Control) openStores(ctx context.Context) (err error) {
	if c.bucket, err = object.OpenDir(c.fs, c.path("pool")); err != nil {
		return err
	}
	if err = c.openCatalog(ctx); err != nil {
		return err
	}
	return c.openPoolAlone(ctx)
}

// openPool opens the image store and the timelines.
func (c *Control) openPool(ctx context.Context) error {
	cache := c.o.CacheBytes
	if cache == 0 {
		cache = memory() / 4
	}
	o := image.Options{FS: c.fs, Dir: c.path("store"), Bucket: c.bucket, CacheBytes: cache, Logger: c.log}
	store, err := image.Open(ctx, o)
	if err != nil {
		// An index that turns out to be damaged while it is opened is rebuilt by the next Open.
		c.log.Error("the pool is opened once more", "error", err)
		store, err = image.Open(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("open the pool: %w", err)
	}
	t := timeline.Options{FS: c.fs, Dir: c.path("timelines"), Bucket: c.bucket, Logger: c.log,
		Reserve: c.o.Reserve, HotBytes: c.o.HotBytes, HotFor: c.o.HotFor, Notify: c.notify,
		Changed: func(id string, change tidemark.TimelineChange) { c.changes.tell(id, change, nil) }}
	apart, err := c.poolApart()
	if err != nil {
		return errors.Join(err, store.Close())
	}
	if apart {
		t.PoolDir = c.path("pool")
	}
	if apart && t.HotBytes == 0 && t.HotFor == 0 {
		t.HotBytes = hotBytes
	}
	set, err := timeline.Open(ctx, store, t)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	c.store, c.set = store, set
	return nil
}

// memory is the machine's memory in bytes.
func memory() int64 {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 1 << 30
	}
	return int64(si.Totalram) * int64(si.Unit)
}

// DiskSocket is the socket on which the server's own disks are served.
func (c *Control) DiskSocket() string { return c.path("run", "nbd.sock") }

// maxDiskConnections is for disks that are attached to this host, of which each has two connections, and for whoever root lets use the socket: so it is no limit
// that anybody should meet.
const maxDiskConnections = 1 << 14

func (c *Control) serveDisks() error {
	l, err := nbd.Listen("unix:" + c.DiskSocket())
	if err != nil {
		return err
	}
	c.nbd = nbd.NewServer(c.exports, nbd.Options{Logger: c.log, MaxConnections: maxDiskConnections})
	c.serve(c.nbd, l)
	return nil
}

func (c *Control) serve(s *nbd.Server, l net.Listener) {
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, nbd.ErrServerClosed) {
			c.log.Error("a disk socket failed", "socket", l.Addr(), "error", err)
		}
	}()
}

// Close stops the server: running jobs are cut, and found at the next start.
// Attached disks wait for the next server; databases on them stand still meanwhile.
func (c *Control) Close() error {
	var errs []error
	c.taps.stopAll()
	c.hosts.stop()
	errs = append(errs, c.mirrors.stopAll())
	if c.catalog != nil {
		c.catalog.GiveUp() // what waits for it is cut, too
	}
	c.jobs.stop()
	c.receivers.stopAll()
	for _, b := range c.takeBacks { // they were not begun
		b.end()
	}
	if c.agent != nil {
		errs = append(errs, c.agent.Close()) // while its disks are served
	}
	if c.launcher != nil {
		c.launcher.Close()
	}
	if c.nbd != nil {
		errs = append(errs, c.closeSockets())
	}
	if c.set != nil {
		errs = append(errs, c.set.Close())
	}
	errs = append(errs, c.closeTrail())
	c.changes.turnOff()
	if c.catalog != nil {
		errs = append(errs, c.catalog.Close())
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	if c.bucket != nil {
		errs = append(errs, c.bucket.Close())
	}
	return errors.Join(append(errs, c.letDirGo())...)
}

func ignoreTimeout(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// event records that something happened, in the catalog and in the log.
func (c *Control) event(level, application, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	c.log.Info(message, "application", application, "level", level)
	if err := c.addEvent(level, application, c.firstIDOf(application), message); err != nil {
		c.log.Error("an event was not recorded", "error", err)
	}
}

// addEvent records an event in the catalog, if need be with the reserve. firstID is that of the application; empty: who has the name.
func (c *Control) addEvent(level, application, firstID, message string) error {
	e := tidemark.Event{Time: time.Now(), Level: level, Application: application, FirstID: firstID, Message: message}
	err := c.catalog.AddEvent(context.Background(), e)
	if err != nil && c.giveReserve(err) {
		err = c.catalog.AddEvent(context.Background(), e)
	}
	c.bell.ring()
	return err
}
