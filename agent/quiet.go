package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/app/postgres"
	"tidemark/app/script"
	"tidemark/capture/qemu"
)

// quieting is a member of a shot that is being made still. What fails makes its point crash-consistent; nothing else is
// held for it then.
type quieting struct {
	ShotMember
	s        *session
	tap      *taps.Tap
	dirs     []string // file systems on the disks that are mounted here
	guest    string   // socket of the guest agent of a virtual machine, whose file systems are frozen by it; empty: of none
	programs script.Scripts
	conn     *pgx.Conn // to the cluster; nil: there is none
	frozen   []*frozen
	problems []string
	still    tidemark.Consistency

	noted    bool          // that it is held
	visited  *frozen       // the guest; nil: it was not frozen
	thawed   bool          // thaw was called
	begun    time.Time     // since when pre runs, or has run; zero: it does not
	scripted time.Duration // from then to the end of post
	after    []string      // problems of letting the application go on
}

func newQuieting(s *session, m ShotMember, t *taps.Tap) *quieting {
	if m.Mark.Labels == nil {
		m.Mark.Labels = map[string]string{}
	}
	if m.ScriptLimit == 0 {
		m.ScriptLimit = ScriptLimit
	}
	return &quieting{ShotMember: m, s: s, tap: t, still: tidemark.CrashConsistent}
}

// problem notes what could not be done.
func (q *quieting) problem(err error) { q.problems = append(q.problems, err.Error()) }

func (q *quieting) failed() bool { return len(q.problems) > 0 }

// freezes reports whether the file systems are to be frozen. A cluster recovers from what its disks hold at any moment: its file systems need not be held.
func (q *quieting) freezes() bool { return q.Postgres == nil && (len(q.dirs) > 0 || q.guest != "") }

// prepare does what may take long, and holds nothing.
func (q *quieting) prepare(ctx context.Context) {
	if q.guest != "" && q.s.isThawing(q.Tapping.Timeline) {
		q.problem(errors.New("the guest may be frozen since the last time, and is being thawed"))
		return
	}
	var err error
	q.dirs, err = within(ctx, q.s.limits.mark, "look at what is mounted", func() ([]string, error) { return q.s.tappedMounts(q.Tapping) })
	if err == nil && q.Scripts != "" {
		q.programs, err = within(ctx, q.s.limits.mark, "look at "+q.Scripts, func() (script.Scripts, error) { return script.Load(q.Scripts) })
	}
	if err == nil && q.Postgres != nil {
		err = q.connect(ctx)
	}
	if err == nil && q.freezes() {
		err = q.writeBack(ctx, q.s.limits.write)
	}
	if err != nil {
		q.problem(err)
	}
}

// connect connects with the cluster, and makes sure that it lies on the disks.
func (q *quieting) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, q.s.limits.mark)
	defer cancel()
	conn, err := q.Postgres.Connect(ctx)
	if err != nil {
		return err
	}
	q.conn = conn
	// The cluster's answers are bounded by ctx; a file system of it may hang.
	_, err = within(context.WithoutCancel(ctx), 2*q.s.limits.mark, "look at the files of the cluster", func() (none, error) {
		places, err := postgres.Places(ctx, conn)
		if err != nil {
			return none{}, err
		}
		for _, place := range places {
			if !covers(q.dirs, place) {
				return none{}, fmt.Errorf("%s of the cluster does not lie on the tapped disks", place)
			}
		}
		return none{}, nil
	})
	return err
}

// covers reports whether a directory lies on one of the file systems.
func covers(dirs []string, place string) bool {
	var at unix.Stat_t
	if unix.Stat(place, &at) != nil {
		return false
	}
	for _, dir := range dirs {
		var fs unix.Stat_t
		if unix.Stat(dir, &fs) == nil && fs.Dev == at.Dev {
			return true
		}
	}
	return false
}

// makeStill has the application hold itself: by the administrator's program, and by its log, which holds nothing. Then it
// has written back what that has written, so that little is left to do for the freeze.
func (q *quieting) makeStill(ctx context.Context) {
	if q.failed() {
		return
	}
	err := q.note()
	if err == nil && q.Scripts != "" {
		if err = q.pre(ctx); err == nil {
			q.still = tidemark.ApplicationConsistent
		}
	}
	if err == nil && q.Postgres != nil {
		err = q.markLog(ctx)
	}
	if err == nil && q.freezes() {
		err = q.writeBack(ctx, q.s.limits.again)
	}
	if err != nil {
		q.problem(err)
	}
}

// note notes what is about to be held and is not found by looking what is mounted.
func (q *quieting) note() error {
	if q.Scripts == "" && q.guest == "" {
		return nil
	}
	q.noted = true
	return q.s.noteHeld(q.Tapping.Timeline, q.holding())
}

// pre runs the program that makes the application still.
func (q *quieting) pre(ctx context.Context) error {
	q.begun = time.Now()
	return q.holding().run(ctx, q.s.places.runningFile(q.Tapping.Timeline), q.programs, script.Pre)
}

func (q *quieting) holding() heldApplication {
	return heldApplication{Scripts: q.Scripts, Guest: q.guest, Bookmark: q.Mark.Name, Limit: q.ScriptLimit}
}

// post runs the program that lets the application go on, if pre was run, whatever came of it.
func (q *quieting) post(ctx context.Context) {
	if q.conn != nil {
		bounded, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := q.conn.Close(bounded); err != nil {
			slog.Warn("a connection to a cluster was not ended well", "error", err)
		}
	}
	if !q.begun.IsZero() {
		if err := q.holding().run(ctx, q.s.places.runningFile(q.Tapping.Timeline), q.programs, script.Post); err != nil {
			q.after = append(q.after, err.Error())
		}
		q.scripted = time.Since(q.begun)
	}
	if !q.noted {
		return
	}
	if err := q.forget(); err != nil {
		q.after = append(q.after, err.Error())
	}
}

// forget forgets the note. That a guest may be frozen stays noted until it is known that it is not.
func (q *quieting) forget() error {
	if q.visited == nil || !q.visited.mayBeLeft() {
		return q.s.forgetHeld(q.Tapping.Timeline)
	}
	err := q.s.noteHeld(q.Tapping.Timeline, heldApplication{Guest: q.guest})
	q.s.seeThawed(q.Tapping.Timeline, q.guest, q.visited)
	return err
}

// markLog puts a restore point into a cluster's log.
func (q *quieting) markLog(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, q.s.limits.mark)
	defer cancel()
	lsn, err := postgres.Mark(ctx, q.conn, q.Mark.Name)
	if err != nil {
		return err
	}
	q.Mark.Labels[LabelLSN] = lsn.String()
	q.still = tidemark.ApplicationConsistent
	return nil
}

// writeBack writes the file systems back.
func (q *quieting) writeBack(ctx context.Context, limit time.Duration) error {
	came := make(chan error, len(q.dirs))
	for _, dir := range q.dirs {
		go func() { came <- q.s.writeBack(ctx, dir, limit) }()
	}
	var errs []error
	for range q.dirs {
		errs = append(errs, <-came)
	}
	return firstOf(errs)
}

// freeze stops the writes of all file systems.
func (q *quieting) freeze(ctx context.Context) {
	if q.failed() || !q.freezes() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, q.s.limits.freeze)
	defer cancel()
	for _, dir := range q.dirs {
		q.frozen = append(q.frozen, q.s.freezeDir(dir))
	}
	if q.guest != "" {
		begin := func() error { return qemu.FreezeGuest(context.WithoutCancel(ctx), q.guest) }
		end := func() error { return qemu.ThawGuest(context.WithoutCancel(ctx), q.guest) }
		q.visited = q.s.freeze("the guest", begin, end)
		q.frozen = append(q.frozen, q.visited)
	}
	for _, f := range q.frozen {
		if err := f.await(ctx, q.s.limits.freeze); err != nil {
			q.problem(err)
		}
	}
	if q.failed() {
		q.thaw() // the others are of no use any more
	} else if q.still == tidemark.CrashConsistent {
		q.still = tidemark.FilesystemConsistent
	}
}

// thaw lets the file systems go on, once.
func (q *quieting) thaw() {
	if q.thawed {
		return
	}
	q.thawed = true
	came := make(chan error, len(q.frozen))
	for _, f := range q.frozen {
		go func() { came <- q.s.thawWithin(f) }()
	}
	for range q.frozen {
		if err := <-came; err != nil {
			q.after = append(q.after, err.Error())
		}
	}
}

// complete completes the mark by what was reached, and returns until when that is true; zero: for good.
func (q *quieting) complete() (until time.Time) {
	for _, f := range q.frozen {
		if !f.lasts(q.s.limits.frozen / 10) {
			q.problem(fmt.Errorf("%s went on before the mark: it is not frozen for longer than %v", f.name, q.s.limits.frozen))
		}
		if until.IsZero() || f.until.Before(until) {
			until = f.until
		}
	}
	q.Mark.Consistency = q.still
	if q.failed() {
		q.Mark.Consistency = tidemark.CrashConsistent
		q.Mark.Labels[LabelProblems] = strings.Join(q.problems, "; ")
		return time.Time{}
	}
	return until
}

// lasts reports whether what is frozen is so yet.
func (q *quieting) lasts() bool {
	for _, f := range q.frozen {
		if !f.lasts(0) {
			return false
		}
	}
	return true
}

// putMark puts the mark into the stream, as long as what it says is true.
func (q *quieting) putMark(ctx context.Context) error {
	if until := q.complete(); !until.IsZero() {
		bounded, cancel := context.WithDeadline(ctx, until)
		defer cancel()
		ctx = bounded
	}
	return q.tap.Bookmark(ctx, q.Mark)
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

// firstOf is the first error.
func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
