package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"tidemark/block"
)

// Target is the timeline that follows a machine's disks.
type Target interface {
	// Disks are the timeline's disks, in the order of the mirror's. Nobody else writes them.
	Disks() []block.Device
	// Show serves inlets on the unix socket path, which exists when it returns.
	Show(path string, inlets []Inlet) error
	// HangUp cuts the machine's connections, whatever they wait for.
	HangUp()
	// Hide ends what Show began; that nothing is shown is fine.
	Hide() error
	// Lose notes, durably, that the disks do not follow the machine's since a time in Unix nanoseconds, or,
	// if that is 0, since the last change.
	Lose(since int64, why string) error
	// Whole notes, durably with all that was written before, that they do again, and the anchor.
	Whole(anchor string) error
	// SetAnchor replaces the anchor, durably with all that was written before.
	SetAnchor(anchor string) error
	// Anchor returns what was given to Whole or SetAnchor last, or nothing if that was lost.
	Anchor() string
}

// Inlet is where the writes to one disk of a machine come in.
type Inlet struct {
	Name string       // of the NBD export
	Disk block.Device // what is exported
	Gone func()       // is called when the machine has hung up
}

// Phase is how far a mirror is.
type Phase string

// The phases of a mirror.
const (
	Starting Phase = "starting" // it was just begun
	Syncing  Phase = "syncing"  // every write of the guest is kept, but not yet all that was before
	Ready    Phase = "ready"    // the timeline is what the guest's disks are
	Degraded Phase = "degraded" // the guest's writes are not kept: Why says why
)

// State is how a mirror does.
type State struct {
	Phase Phase
	Why   error // of Degraded
	// Done of Total bytes were compared, while it is syncing.
	Done, Total int64
}

// Mirror keeps a timeline's disks equal to a machine's, for as long as it runs, through restarts of both sides.
type Mirror struct {
	Socket string   // the machine's QMP socket
	Disks  []string // names of the disks, as for [Find]
	NBD    string   // unix socket of the machine's NBD server, if it has one of its own; empty: we start one to read the disks
	ID     string   // of the timeline, at least 8 letters and digits: what we make in the machine has it in its name
	Dir    string   // of this mirror's sockets; made and removed with it. Its path must be short enough for them
	Target Target
	Logger *slog.Logger
	// Notify, if set, is called when the phase changes.
	Notify func(State)

	// For tests: how soon things are done; 0: as a server does them.
	stall, turnEvery, turnAfter, retryAfter time.Duration
	// For tests of machines without a guest that could be stopped: has who writes or connects wait until it is released.
	still func() (release func())

	mu    sync.Mutex
	state State // guarded by mu
	owed  *loss // a gap that could not be noted yet; guarded by mu
}

// loss is a gap: since a time in Unix nanoseconds, or since the last change if that is 0.
type loss struct {
	since int64
	why   error
}

// State returns how the mirror does.
func (m *Mirror) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Phase == "" {
		return State{Phase: Starting}
	}
	return m.state
}

func (m *Mirror) become(s State) {
	m.mu.Lock()
	news := s.Phase != m.state.Phase || fmt.Sprint(s.Why) != fmt.Sprint(m.state.Why)
	m.state = s
	m.mu.Unlock()
	if news && m.Notify != nil {
		m.Notify(s)
	}
}

const (
	// StallAfter is how long our side may stand still, the disk of the server or all of it, before the guest goes on without.
	StallAfter = 4 * time.Second
	// turnEvery is how often a new bitmap is begun: what is written meanwhile is what a resync reads.
	turnEvery = time.Minute
	// turnAfter is how long the old bitmap is kept beside the new one, at least: writes
	// that the old one alone has marked must have come in by then.
	turnAfter = 10 * time.Second
	// retryAfter is how long after a failure the mirror is begun again, doubled up to retryMax.
	retryAfter = time.Second
	retryMax   = 15 * time.Second
	// partTime is how long the machine may take to let go of a mirror.
	partTime = 10 * time.Second
)

// Run follows the machine until ctx ends. Then QEMU's job is ended and the guest goes on alone; what it writes
// from then on is known to a bitmap, for the next Run.
func (m *Mirror) Run(ctx context.Context) error {
	m.stall = cmp.Or(m.stall, StallAfter)
	m.turnEvery, m.turnAfter = cmp.Or(m.turnEvery, turnEvery), cmp.Or(m.turnAfter, turnAfter)
	m.retryAfter = cmp.Or(m.retryAfter, retryAfter)
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return err
	}
	m.lose(loss{why: errors.New("the server did not run")})
	for pause := m.retryAfter; ; pause = min(2*pause, retryMax) {
		ready, err := m.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		err = explain(m.Socket, err)
		m.Logger.Warn("a machine is not followed", "socket", m.Socket, "error", err)
		m.become(State{Phase: Degraded, Why: err})
		if ready {
			pause = m.retryAfter
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// lose opens a gap. What cannot be noted is owed: nothing is written before it is.
func (m *Mirror) lose(l loss) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.owed == nil {
		m.owed = &l
	}
	if err := m.pay(); err != nil {
		m.Logger.Error("a gap is not noted yet", "error", err)
	}
}

// pay notes a gap that is owed. The caller holds mu.
func (m *Mirror) pay() error {
	if m.owed == nil {
		return nil
	}
	if err := m.Target.Lose(m.owed.since, m.owed.why.Error()); err != nil {
		return fmt.Errorf("note a gap: %w", err)
	}
	m.owed = nil
	return nil
}

// follow is one run of a mirror, from the first word with the machine to the moment that something breaks.
func (m *Mirror) follow(ctx context.Context) (ready bool, err error) {
	m.mu.Lock()
	err = m.pay()
	m.mu.Unlock()
	if err != nil {
		return false, err
	}
	r, err := m.begin(ctx)
	if err != nil {
		return false, err
	}
	defer func() {
		why := err
		if ctx.Err() != nil {
			why = errors.New("the server has stopped")
		}
		if e := r.part(ctx, why); e != nil {
			m.Logger.Warn("a machine was not left as it was", "socket", m.Socket, "error", e)
		}
	}()
	stop := r.keep()
	defer stop()
	if err := r.mirror(ctx); err != nil {
		return false, err
	}
	if err := r.sync(ctx); err != nil {
		return false, err
	}
	m.become(State{Phase: Ready})
	return true, r.watch(ctx)
}

// Forget takes our bitmaps out of the machine; no Run may be under way.
func (m *Mirror) Forget(ctx context.Context) error {
	qmp, err := Dial(ctx, m.Socket)
	if err != nil {
		return explain(m.Socket, err)
	}
	defer qmp.Close()
	r := &run{m: m, qmp: qmp, prefix: m.prefix()}
	if err := r.clean(ctx); err != nil {
		return explain(m.Socket, err)
	}
	return errors.Join(r.forgetBitmaps(ctx), os.RemoveAll(m.Dir))
}

// prefix begins the names of all that we make in a machine.
func (m *Mirror) prefix() string { return "tidemark-" + m.ID[:8] }
