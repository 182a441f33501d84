package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/app/postgres"
	"tidemark/app/script"
	"tidemark/capture"
	"tidemark/mount"
)

// Shot asks for one point of tapped disks at which their application is still: an AppShot. What of it
// cannot be had makes the point worth less, and is said; it is marked all the same.
type Shot struct {
	Taps     []string         `json:"taps"`               // directories of the taps
	Mark     capture.Mark     `json:"mark"`               // its consistency is found here
	Dirs     []string         `json:"dirs,omitempty"`     // file systems on the disks that are mounted here
	Postgres *postgres.Source `json:"postgres,omitempty"` // a cluster that lies on the disks
	Scripts  string           `json:"scripts,omitempty"`  // a directory of programs: see package script
}

// ShotResult is what a shot came to.
type ShotResult struct {
	Mark capture.Mark `json:"mark"` // as it was put into the stream
	// Hold is for how long the application's writes were held.
	Hold time.Duration `json:"hold"`
	// Problems is what went wrong when the application was let go on.
	Problems []string `json:"problems,omitempty"`
}

// Labels of a shot's mark.
const (
	LabelLSN      = "lsn"      // of the restore point in a cluster's log
	LabelProblems = "problems" // why the point is worth less than it could be
)

// Limits of what may hold an application.
const (
	scriptLimit = 30 * time.Second
	freezeLimit = 10 * time.Second
	markLimit   = 10 * time.Second
)

// Shoot makes an application still, puts a mark into the streams of its taps, and lets it go on. Whatever
// fails or hangs, what was stopped goes on. It fails if the taps take no mark.
func (a *Agent) Shoot(ctx context.Context, shot Shot) (ShotResult, error) {
	return do[ShotResult](ctx, a, "shoot", shot, nil)
}

// shooting is a shot that is being made.
type shooting struct {
	Shot
	s        *session
	problems []string
	still    tidemark.Consistency
	release  []func()  // in reverse, let the application go on
	held     time.Time // since when it does not; zero: it does
}

func doShot(ctx context.Context, s *session, shot Shot, _ func(any)) (ShotResult, error) {
	x := &shooting{Shot: shot, s: s, still: tidemark.CrashConsistent}
	if x.Mark.Labels == nil {
		x.Mark.Labels = map[string]string{}
	}
	err := x.shoot(ctx)
	known := len(x.problems)
	x.letGo()
	res := ShotResult{Mark: x.Mark, Problems: x.problems[known:]}
	if !x.held.IsZero() {
		res.Hold = time.Since(x.held)
	}
	return res, err
}

// shoot makes the application still and puts the mark into the streams.
func (x *shooting) shoot(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil { // whatever happens, the application goes on
			err = fmt.Errorf("a fault of Tidemark: %v", p)
		}
	}()
	x.quiesce(ctx)
	return x.mark(ctx)
}

// problem notes what could not be done.
func (x *shooting) problem(err error) { x.problems = append(x.problems, err.Error()) }

func (x *shooting) quiesce(ctx context.Context) {
	if x.Scripts != "" {
		x.runScripts(ctx)
	}
	if x.Postgres != nil {
		x.markLog(ctx)
	}
	// A cluster recovers from what its disks hold at any moment: its file systems need not be held.
	if x.still != tidemark.ApplicationConsistent || x.Postgres == nil {
		x.freeze()
	}
}

// runScripts has the administrator's programs make the application still.
func (x *shooting) runScripts(ctx context.Context) {
	p, err := script.Load(x.Scripts)
	if err != nil {
		x.problem(err)
		return
	}
	env := []string{"TIDEMARK_BOOKMARK=" + x.Mark.Name}
	x.hold(func() {
		if err := p.Run(context.WithoutCancel(ctx), script.Post, scriptLimit, env...); err != nil {
			x.problem(err)
		}
	})
	if err := p.Run(ctx, script.Pre, scriptLimit, env...); err != nil {
		x.problem(err)
		return
	}
	x.still = tidemark.ApplicationConsistent
}

// hold notes that writes are held from now on, and how they go on.
func (x *shooting) hold(release func()) {
	if x.held.IsZero() {
		x.held = time.Now()
	}
	x.release = append(x.release, release)
}

// markLog puts a restore point into a cluster's log.
func (x *shooting) markLog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	conn, err := x.Postgres.Connect(ctx)
	if err != nil {
		x.problem(err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	places, err := postgres.Places(ctx, conn)
	if err != nil {
		x.problem(err)
		return
	}
	for _, place := range places {
		if !x.covers(place) {
			x.problem(fmt.Errorf("%s of the cluster does not lie on the tapped disks", place))
			return
		}
	}
	lsn, err := postgres.Mark(ctx, conn, x.Mark.Name)
	if err != nil {
		x.problem(err)
		return
	}
	x.Mark.Labels[LabelLSN] = lsn.String()
	x.still = tidemark.ApplicationConsistent
}

// covers reports whether a directory lies on one of the file systems.
func (x *shooting) covers(place string) bool {
	var at unix.Stat_t
	if unix.Stat(place, &at) != nil {
		return false
	}
	for _, dir := range x.Dirs {
		var fs unix.Stat_t
		if unix.Stat(dir, &fs) == nil && fs.Dev == at.Dev {
			return true
		}
	}
	return false
}

// freeze stops the writes of all file systems. What is to be written back is written back before.
func (x *shooting) freeze() {
	if len(x.Dirs) == 0 {
		return
	}
	for _, dir := range x.Dirs {
		if err := syncFS(dir); err != nil {
			x.problem(err)
			return
		}
	}
	for _, dir := range x.Dirs {
		if err := x.freezeOne(dir); err != nil {
			x.problem(err)
			return
		}
	}
	if x.still == tidemark.CrashConsistent {
		x.still = tidemark.FilesystemConsistent
	}
}

// freezeOne stops the writes of a file system. One that hangs is thawed when it comes back.
func (x *shooting) freezeOne(dir string) error {
	x.s.noteFrozen(dir)
	x.hold(func() {
		if err := x.s.thaw([]string{dir}); err != nil {
			x.problem(err)
		}
	})
	frozen := make(chan error, 1)
	go func() { frozen <- mount.Freeze(dir) }()
	select {
	case err := <-frozen:
		return err
	case <-time.After(freezeLimit):
		go func() {
			if <-frozen == nil {
				x.s.thaw([]string{dir})
			}
		}()
		return fmt.Errorf("%s could not be frozen within %v", dir, freezeLimit)
	}
}

// syncFS writes a file system back.
func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.Syncfs(fd), unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("write %s back: %w", filepath.Clean(dir), err)
	}
	return nil
}

// mark puts the mark into the streams.
func (x *shooting) mark(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	x.Mark.Consistency = x.still
	if len(x.problems) > 0 {
		x.Mark.Consistency = tidemark.CrashConsistent
		x.Mark.Labels[LabelProblems] = strings.Join(x.problems, "; ")
	}
	for _, dir := range x.Taps {
		t, err := taps.Find(dir)
		if err == nil {
			err = t.Bookmark(ctx, x.Mark)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// letGo lets the application go on.
func (x *shooting) letGo() {
	for i := len(x.release) - 1; i >= 0; i-- {
		x.release[i]()
	}
}
