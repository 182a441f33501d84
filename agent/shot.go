package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/app/postgres"
	"tidemark/capture"
	"tidemark/capture/tap"
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
	// ScriptLimit is how long each of them may take; 0: ScriptLimit.
	ScriptLimit time.Duration `json:"script_limit,omitempty"`
}

// ShotResult is what a shot came to.
type ShotResult struct {
	Members []MemberResult `json:"members"` // in the order of those of the shot
	// Hold is for how long writes were held: of all file systems and taps the longest time.
	Hold time.Duration `json:"hold"`
}

// MemberResult is what a shot came to for one of its members.
type MemberResult struct {
	Mark capture.Mark `json:"mark"` // as it was put into the stream
	// Scripts is the time from the begin of its program pre to the end of post.
	Scripts time.Duration `json:"scripts,omitempty"`
	// Problems is what went wrong when the application was let go on.
	Problems []string `json:"problems,omitempty"`
}

// Labels of a shot's mark.
const (
	LabelLSN      = "lsn"      // of the restore point in a cluster's log
	LabelProblems = "problems" // why the point is worth less than it could be
)

// ScriptLimit is how long a program may take that makes an application still, or lets it go on, unless its application says otherwise.
const ScriptLimit = 30 * time.Second

// limits bound what a shot does. While something is held, all that is waited for is in hold's part.
type limits struct {
	write time.Duration // the first writing back of a file system, before anything is held
	again time.Duration // the second one, of what was written since
	mark  time.Duration // a cluster's answers; the marks

	freeze time.Duration // until all file systems are frozen
	frozen time.Duration // from the begin of a freeze until the thaw, whatever happens in between
}

// shotLimits are the limits but for tests. A freeze has to last while all file systems are frozen, and then
// as long as a tap holds at most.
var shotLimits = limits{write: 30 * time.Second, again: 10 * time.Second, mark: 10 * time.Second, freeze: 2 * time.Second, frozen: 5 * time.Second}

// Shoot makes an application still, puts a mark into the streams of its taps, and lets it go on. Whatever
// fails or hangs, what was stopped goes on. It fails if the taps take no mark.
func (a *Agent) Shoot(ctx context.Context, shot Shot) (ShotResult, error) {
	ctx, cancel := context.WithTimeout(ctx, shotLimit(Part{a, shot}))
	defer cancel()
	return do[ShotResult](ctx, a, "shoot", shot, nil)
}

// shooting is a shot that is being made.
type shooting struct {
	s       *session
	barrier *barrier // with other hosts; nil: alone
	members []*quieting
	hold    time.Duration // the longest of a tap
}

func doShot(ctx context.Context, s *session, shot Shot, note func(any)) (ShotResult, error) {
	var timelines []string
	for _, m := range shot.Members {
		timelines = append(timelines, m.Tapping.Timeline)
	}
	leave, err := s.enterShot(ctx, timelines...)
	if err != nil {
		return ShotResult{}, err
	}
	defer leave()
	x := &shooting{s: s}
	if shot.Barrier != "" {
		x.barrier = s.openBarrier(shot.Barrier, note)
		defer s.closeBarrier(shot.Barrier)
	}
	for _, m := range shot.Members {
		t, err := s.findTap(m.Tapping.Timeline)
		if err != nil {
			return ShotResult{}, err
		}
		x.members = append(x.members, newQuieting(s, m, t))
	}
	if err := x.followed(ctx); err != nil {
		return ShotResult{}, err
	}
	err = x.shoot(ctx)
	x.letGo(ctx)
	return x.result(err)
}

// followed is [tap.ErrGap] if there can be no mark now: then nobody is held for one.
func (x *shooting) followed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, x.s.limits.mark)
	defer cancel()
	for _, m := range x.members {
		st, err := m.tap.Status(ctx)
		if err == nil && st.Gap {
			err = tap.ErrGap
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// shoot makes the applications still and puts the marks into the streams. It does so in phases, each of all members at once, and no host begins one
// before all hosts have ended the one before: while a file system is frozen or a tap holds, nobody runs programs, or waits for anything that may take long.
func (x *shooting) shoot(ctx context.Context) error {
	if err := x.quiet(ctx); err != nil {
		return err
	}
	return x.mark(ctx)
}

// quiet does the phases before the marks.
func (x *shooting) quiet(ctx context.Context) error {
	for _, phase := range []func(*quieting, context.Context){(*quieting).prepare, (*quieting).makeStill, (*quieting).freeze} {
		x.each(func(q *quieting) { phase(q, ctx) })
		if err := errors.Join(ctx.Err(), x.barrier.pass(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// each calls fn for all members at once. A fault is a problem of the member that has it: whatever happens, the applications go on.
func (x *shooting) each(fn func(*quieting)) {
	var all sync.WaitGroup
	for _, q := range x.members {
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					slog.Error("an AppShot panicked", "panic", p, "stack", string(debug.Stack()))
					q.problem(fmt.Errorf("a fault of Tidemark: %v", p))
				}
			}()
			fn(q)
		})
	}
	all.Wait()
}

// letGo lets the applications go on: first what is frozen, for programs may take their time.
func (x *shooting) letGo(ctx context.Context) {
	x.each((*quieting).thaw)
	x.each(func(q *quieting) { q.post(context.WithoutCancel(ctx)) })
}

// mark puts the marks into the streams, with all taps held if there are several.
func (x *shooting) mark(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, x.s.limits.mark)
	defer cancel()
	if len(x.members) == 1 && x.barrier == nil {
		return x.put(ctx)
	}
	return x.holding(ctx, func() error {
		if err := x.barrier.pass(ctx); err != nil { // all hosts hold from here on
			return err
		}
		if err := x.put(ctx); err != nil {
			return err
		}
		return x.barrier.pass(ctx) // and until all have marked
	})
}

// holding calls fn with the writes of all taps held. It fails if they were not held all the time.
func (x *shooting) holding(ctx context.Context, fn func() error) (err error) {
	for _, m := range x.members {
		begun := time.Now()
		if err := m.tap.Hold(ctx); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, x.release(ctx, m.tap))
			x.hold = max(x.hold, time.Since(begun))
		}()
	}
	return fn()
}

// release lets a tap go on, also when the shot was cut.
func (x *shooting) release(ctx context.Context, t *taps.Tap) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.s.limits.frozen)
	defer cancel()
	return t.Release(ctx)
}

// put puts the marks into the streams.
func (x *shooting) put(ctx context.Context) error {
	for _, m := range x.members {
		if err := m.putMark(ctx); err != nil {
			return err
		}
	}
	return nil
}

// result is what the shot came to.
func (x *shooting) result(err error) (ShotResult, error) {
	r := ShotResult{Hold: x.hold}
	var after []string
	for _, m := range x.members {
		for _, f := range m.frozen {
			r.Hold = max(r.Hold, f.held())
		}
		r.Members = append(r.Members, MemberResult{Mark: m.Mark, Scripts: m.scripted, Problems: m.after})
		after = append(after, m.after...)
	}
	if err != nil && len(after) > 0 {
		err = fmt.Errorf("%w; besides, %s", err, strings.Join(after, "; "))
	}
	return r, err
}

// enterShot has the end of the session wait for a shot until leave is called. A shot begins when what one left behind that was killed has been let go on,
// and so have the applications that the last one held: a server gives up a call of another host while a program post may run there yet.
func (s *session) enterShot(ctx context.Context, timelines ...string) (leave func(), err error) {
	select {
	case <-s.tidied:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release, err := s.takeTurns(ctx, timelines)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		release()
		return nil, tidemark.Errorf(tidemark.Unavailable, "the server is gone")
	}
	s.shots.Add(1)
	return func() {
		release()
		s.shots.Done()
	}, nil
}

// takeTurns waits until no other shot holds these applications: for each in the order of their timelines, so that no two wait for each other.
func (s *session) takeTurns(ctx context.Context, timelines []string) (release func(), err error) {
	var taken []chan none
	release = func() {
		for _, turn := range taken {
			<-turn
		}
	}
	for _, timeline := range slices.Compact(slices.Sorted(slices.Values(timelines))) {
		select {
		case s.turnOf(timeline) <- none{}:
			taken = append(taken, s.turnOf(timeline))
		case <-ctx.Done():
			release()
			return nil, ctx.Err()
		}
	}
	return release, nil
}

// turnOf is full while a shot holds an application.
func (s *session) turnOf(timeline string) chan none {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turns[timeline] == nil {
		s.turns[timeline] = make(chan none, 1)
	}
	return s.turns[timeline]
}

// endShots waits until the shots that were cut have let their applications go on, and until guests that may be frozen were asked once more.
func (s *session) endShots() {
	s.mu.Lock()
	s.ended = true
	close(s.over)
	s.mu.Unlock()
	gone := make(chan none)
	go func() {
		s.shots.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(time.Second): // they thaw at once, unless they hang
	}
	s.thawAll()
	<-gone // each of their programs is killed when its time is over
}
