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

// Shot asks for one point of tapped disks at which their applications are still: an AppShot. What of that
// cannot be had makes a point worth less, and is said; it is marked all the same.
type Shot struct {
	// Members are the applications. Where there are several, the writes of all their taps are held for the moment of the marks, so
	// that the marks are one point of them all.
	Members []ShotMember `json:"members"`
	// Barrier is the name of a shot that has members on other hosts, too: see [ShootTogether].
	Barrier string `json:"barrier,omitempty"`
}

// ShotMember is an application of a shot.
type ShotMember struct {
	Tapping  Tapping          `json:"tapping"`            // its disks
	Mark     capture.Mark     `json:"mark"`               // its consistency is found here
	Postgres *postgres.Source `json:"postgres,omitempty"` // a cluster that lies on the disks
	Scripts  string           `json:"scripts,omitempty"`  // a directory of programs: see package script
}

// ShotResult is what a shot came to.
type ShotResult struct {
	Marks []capture.Mark `json:"marks"` // as they were put into the streams, in the order of the members
	// Hold is for how long writes were held.
	Hold time.Duration `json:"hold"`
	// Problems is what went wrong when the applications were let go on.
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
	s        *session
	barrier  *barrier // with other hosts; nil: alone
	members  []*quieting
	problems []string  // of letting go
	release  []func()  // in reverse, let the applications go on
	held     time.Time // since when they do not; zero: they do
}

// quieting is a member that is being made still.
type quieting struct {
	ShotMember
	x        *shooting
	dirs     []string // file systems on the disks that are mounted here
	problems []string
	still    tidemark.Consistency
}

func doShot(ctx context.Context, s *session, shot Shot, note func(any)) (res ShotResult, err error) {
	x := &shooting{s: s}
	if shot.Barrier != "" {
		x.barrier = s.openBarrier(shot.Barrier, note)
		defer s.closeBarrier(shot.Barrier)
	}
	for _, m := range shot.Members {
		if m.Mark.Labels == nil {
			m.Mark.Labels = map[string]string{}
		}
		x.members = append(x.members, &quieting{ShotMember: m, x: x, still: tidemark.CrashConsistent})
	}
	err = x.shoot(ctx)
	x.letGo()
	if !x.held.IsZero() {
		res.Hold = time.Since(x.held)
	}
	for _, m := range x.members {
		res.Marks = append(res.Marks, m.Mark)
	}
	res.Problems = x.problems
	return res, err
}

// shoot makes the applications still and puts the marks into the streams.
func (x *shooting) shoot(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil { // whatever happens, the applications go on
			err = fmt.Errorf("a fault of Tidemark: %v", p)
		}
	}()
	for _, m := range x.members {
		m.quiesce(ctx)
	}
	if err := x.barrier.pass(ctx); err != nil { // no host holds its writes while another one runs its scripts
		return err
	}
	return x.mark(ctx)
}

// hold notes that writes are held from now on, and how they go on.
func (x *shooting) hold(release func()) {
	if x.held.IsZero() {
		x.held = time.Now()
	}
	x.release = append(x.release, release)
}

// letGo lets the applications go on.
func (x *shooting) letGo() {
	for i := len(x.release) - 1; i >= 0; i-- {
		x.release[i]()
	}
	x.release = nil
}

// mark puts the marks into the streams, with all taps held if there are several.
func (x *shooting) mark(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	var list []*taps.Tap
	for _, m := range x.members {
		t, err := x.s.findTap(m.Tapping.Timeline)
		if err != nil {
			return err
		}
		list = append(list, t)
	}
	put := func() error {
		for i, m := range x.members {
			m.describe()
			if err := list[i].Bookmark(ctx, m.Mark); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 1 && x.barrier == nil {
		return put()
	}
	return x.holding(ctx, list, func() error {
		if err := x.barrier.pass(ctx); err != nil { // all hosts hold from here on
			return err
		}
		if err := put(); err != nil {
			return err
		}
		return x.barrier.pass(ctx) // and until all have marked
	})
}

// holding calls fn with the writes of all taps held. It fails if they were not held all the time.
func (x *shooting) holding(ctx context.Context, list []*taps.Tap, fn func() error) (err error) {
	for _, t := range list {
		if err := t.Hold(ctx); err != nil {
			return err
		}
		x.hold(func() {})
		defer func() { err = errors.Join(err, t.Release(ctx)) }()
	}
	return fn()
}

// problem notes what could not be done.
func (q *quieting) problem(err error) { q.problems = append(q.problems, err.Error()) }

// describe completes the mark by what was reached.
func (q *quieting) describe() {
	q.Mark.Consistency = q.still
	if len(q.problems) > 0 {
		q.Mark.Consistency = tidemark.CrashConsistent
		q.Mark.Labels[LabelProblems] = strings.Join(q.problems, "; ")
	}
}

func (q *quieting) quiesce(ctx context.Context) {
	dirs, err := q.x.s.tappedMounts(q.Tapping)
	if err != nil {
		q.problem(err)
		return
	}
	q.dirs = dirs
	if q.Scripts != "" {
		q.runScripts(ctx)
	}
	if q.Postgres != nil {
		q.markLog(ctx)
	}
	// A cluster recovers from what its disks hold at any moment: its file systems need not be held.
	if q.still != tidemark.ApplicationConsistent || q.Postgres == nil {
		q.freeze()
	}
}

// runScripts has the administrator's programs make the application still.
func (q *quieting) runScripts(ctx context.Context) {
	p, err := script.Load(q.Scripts)
	if err != nil {
		q.problem(err)
		return
	}
	env := []string{"TIDEMARK_BOOKMARK=" + q.Mark.Name}
	q.x.hold(func() {
		if err := p.Run(context.WithoutCancel(ctx), script.Post, scriptLimit, env...); err != nil {
			q.x.problems = append(q.x.problems, err.Error())
		}
	})
	if err := p.Run(ctx, script.Pre, scriptLimit, env...); err != nil {
		q.problem(err)
		return
	}
	q.still = tidemark.ApplicationConsistent
}

// markLog puts a restore point into a cluster's log.
func (q *quieting) markLog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, markLimit)
	defer cancel()
	conn, err := q.Postgres.Connect(ctx)
	if err != nil {
		q.problem(err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	places, err := postgres.Places(ctx, conn)
	if err != nil {
		q.problem(err)
		return
	}
	for _, place := range places {
		if !q.covers(place) {
			q.problem(fmt.Errorf("%s of the cluster does not lie on the tapped disks", place))
			return
		}
	}
	lsn, err := postgres.Mark(ctx, conn, q.Mark.Name)
	if err != nil {
		q.problem(err)
		return
	}
	q.Mark.Labels[LabelLSN] = lsn.String()
	q.still = tidemark.ApplicationConsistent
}

// covers reports whether a directory lies on one of the file systems.
func (q *quieting) covers(place string) bool {
	var at unix.Stat_t
	if unix.Stat(place, &at) != nil {
		return false
	}
	for _, dir := range q.dirs {
		var fs unix.Stat_t
		if unix.Stat(dir, &fs) == nil && fs.Dev == at.Dev {
			return true
		}
	}
	return false
}

// freeze stops the writes of all file systems. What is to be written back is written back before.
func (q *quieting) freeze() {
	if len(q.dirs) == 0 {
		return
	}
	for _, dir := range q.dirs {
		if err := syncFS(dir); err != nil {
			q.problem(err)
			return
		}
	}
	for _, dir := range q.dirs {
		if err := q.freezeOne(dir); err != nil {
			q.problem(err)
			return
		}
	}
	if q.still == tidemark.CrashConsistent {
		q.still = tidemark.FilesystemConsistent
	}
}

// freezeOne stops the writes of a file system. One that hangs is thawed when it comes back.
func (q *quieting) freezeOne(dir string) error {
	q.x.s.noteFrozen(dir)
	q.x.hold(func() {
		if err := q.x.s.thaw([]string{dir}); err != nil {
			q.x.problems = append(q.x.problems, err.Error())
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
				q.x.s.thaw([]string{dir})
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
