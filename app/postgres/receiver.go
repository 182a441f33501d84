package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark"
)

const (
	// DefaultSlotLimit is how much log, in bytes, production keeps for a Receiver
	// that does not keep up, unless another limit is given.
	DefaultSlotLimit = 4 << 30
	// watchEvery is how often the slot is looked at; at 1 GB of log a second,
	// the limit is overrun by half a GB at most.
	watchEvery = 500 * time.Millisecond
	backoffMin = 500 * time.Millisecond
	backoffMax = 30 * time.Second
	// backoffForwarded is backoffMax for a cluster that is forwarded.
	backoffForwarded = 3 * time.Second
	stopPatient      = 5 * time.Second
)

// ReceiverConfig says which log goes where.
type ReceiverConfig struct {
	Source Source
	// ID names the slot, tidemark_ID: lower-case letters, digits and underscores.
	ID string
	// WALDir is the Receiver's own directory. It is given to the user that
	// pg_receivewal runs as.
	WALDir string
	// LimitBytes is how much log the slot may make production keep before it is dropped
	// and the loss recorded as a gap. Zero means DefaultSlotLimit.
	LimitBytes int64
	// OnGap is told of every new gap, at once. A capture made afterwards makes
	// points recoverable again. It may be nil.
	OnGap func(Gap)
}

// ReceiverStatus is a Receiver's state at one look.
type ReceiverStatus struct {
	Running bool   `json:"running"` // pg_receivewal is streaming
	Slot    string `json:"slot"`
	Current LSN    `json:"current"` // the end of the server's log
	Flushed LSN    `json:"flushed"` // what is durable here
	Oldest  LSN    `json:"oldest"`  // where the log that is here begins, but for Gaps; 0: nothing is here
	// Covered: every transaction committed up to this time, by the clock of the cluster's host, is durable here,
	// save for those in Gaps. Zero if not known yet.
	Covered  time.Time `json:"covered"`
	Retained int64     `json:"retained"`            // bytes of log the server keeps for us alone
	Limited  bool      `json:"limited"`             // the server itself bounds Retained
	Error    string    `json:"error,omitempty"`     // why it is not running
	Restarts int       `json:"restarts"`            // of pg_receivewal, since Run
	Gaps     []Gap     `json:"gaps,omitempty"`      // all that are recorded in WALDir
	WALState string    `json:"walStatus,omitempty"` // of the slot, as the server says
}

// Receiver streams a cluster's log into a directory, for ever. Its methods may be
// called concurrently, Run once.
type Receiver struct {
	cfg  ReceiverConfig
	slot string

	mu     sync.Mutex     // guards status and sample
	status ReceiverStatus // Gaps are read when asked for
	sample sample         // the newest end of log that is not yet covered
}

// sample is the end of the server's log at a time.
type sample struct {
	at  time.Time
	lsn LSN
}

var slotID = regexp.MustCompile(`^[a-z0-9_]{1,50}$`)

// NewReceiver checks the configuration; it connects to nothing.
func NewReceiver(cfg ReceiverConfig) (*Receiver, error) {
	if !slotID.MatchString(cfg.ID) {
		return nil, tidemark.Errorf(tidemark.Invalid, "%q cannot name a replication slot", cfg.ID).WithHint("use up to 50 lower-case letters, digits and underscores")
	}
	if cfg.LimitBytes < 0 || cfg.WALDir == "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "a receiver needs a directory and a limit that is not negative")
	}
	if cfg.LimitBytes == 0 {
		cfg.LimitBytes = DefaultSlotLimit
	}
	dir, err := filepath.Abs(cfg.WALDir)
	if err != nil {
		return nil, err
	}
	cfg.WALDir = dir
	slot := "tidemark_" + cfg.ID
	return &Receiver{cfg: cfg, slot: slot, status: ReceiverStatus{Slot: slot}}, nil
}

// Run receives until ctx is done, and then returns nil. Whatever goes wrong
// meanwhile is in Status and tried again, with growing pauses. The slot stays:
// the next Run goes on where this one ended. Use [DropSlot] when protection ends.
func (r *Receiver) Run(ctx context.Context) error {
	r.recall()
	var remembering sync.WaitGroup
	remembering.Go(func() { r.remember(ctx) })
	defer remembering.Wait()
	pause := backoffMin
	for ctx.Err() == nil {
		begun := time.Now()
		err := r.session(ctx)
		if ctx.Err() != nil {
			break
		}
		r.note(func(s *ReceiverStatus) { s.Running, s.Error = false, oneLine(err); s.Restarts++ })
		var over *overLimit
		if errors.As(err, &over) || time.Since(begun) > backoffMax {
			pause = backoffMin // it worked, or it begins anew: what failed before says nothing
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, r.mostPause())
	}
	r.note(func(s *ReceiverStatus) { s.Running = false })
	return nil
}

// mostPause is the longest pause. That a host is not connected costs nothing to find out.
func (r *Receiver) mostPause() time.Duration {
	if r.cfg.Source.forwarded() {
		return backoffForwarded
	}
	return backoffMax
}

func (r *Receiver) note(change func(*ReceiverStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.status)
}

// Status returns the last look at the slot, and the recorded gaps.
func (r *Receiver) Status() (ReceiverStatus, error) {
	r.mu.Lock()
	s := r.status
	r.mu.Unlock()
	var err error
	if s.Gaps, err = ReadGaps(r.cfg.WALDir); err == nil {
		s.Oldest, err = oldestLog(r.cfg.WALDir)
	}
	return s, err
}

// oldestLog is where the log in a directory begins, what was set aside included; 0: there is none.
func oldestLog(walDir string) (oldest LSN, err error) {
	dirs, err := filepath.Glob(filepath.Join(escapeGlob(walDir), gapDirs))
	if err != nil {
		return 0, err
	}
	for _, dir := range append(dirs, walDir) {
		list, err := os.ReadDir(dir) // in the order of names: the first of each timeline is its oldest
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		for _, e := range list {
			fi, err := e.Info()
			if err != nil || !fi.Mode().IsRegular() {
				continue // it was set aside meanwhile
			}
			_, seg, ok := parseSegment(e.Name(), fi.Size())
			if !ok {
				continue
			}
			if first := LSN(seg * uint64(fi.Size())); oldest == 0 || first < oldest {
				oldest = first
			}
			break
		}
	}
	return oldest, nil
}

// session makes sure of the slot, runs pg_receivewal, and watches both until
// either fails.
func (r *Receiver) session(ctx context.Context) error {
	conn, err := r.cfg.Source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	facts, err := inspect(ctx, conn, !r.cfg.Source.forwarded())
	if err == nil {
		err = facts.err()
	}
	if err != nil {
		return err
	}
	bin, err := r.cfg.Source.receiverDir(facts.Version / 10000)
	if err != nil {
		return err
	}
	if err := r.ensureSlot(ctx, conn, facts); err != nil {
		return err
	}
	r.note(func(s *ReceiverStatus) { s.Limited = facts.keepSize != nil && *facts.keepSize >= 0 })
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	var childErr error // written before ended is closed
	go func() {
		defer close(ended)
		childErr = r.receive(ctx, bin)
	}()
	err = r.watch(ctx, conn, ended)
	cancel()
	<-ended
	var over *overLimit
	if errors.As(err, &over) {
		return r.giveUp(context.WithoutCancel(ctx), conn, facts, over)
	}
	if err == nil {
		err = childErr
	}
	return err
}

// overLimit is a slot that makes production keep more than it may.
type overLimit struct{ retained int64 }

func (e *overLimit) Error() string {
	return fmt.Sprintf("the server kept %s of log for Tidemark, more than its limit", tidemark.FormatSize(e.retained))
}

// receive runs pg_receivewal until it ends. The kernel ends it when we die: the
// signal belongs to the thread that started it, which therefore stays ours.
func (r *Receiver) receive(ctx context.Context, bin string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir, err := os.Open(r.cfg.WALDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Handed over open, as its descriptor 3: the child's user need not be able
	// to reach it by its path, through directories that are ours alone.
	cmd, err := r.cfg.Source.tool(ctx, bin, "pg_receivewal", "-D", "/proc/self/fd/3", "-S", r.slot, "--synchronous", "--no-loop", "-s", "1")
	if err != nil {
		return err
	}
	cmd.ExtraFiles = []*os.File{dir}
	if r.cfg.Source.forwarded() {
		socket, err := os.Open(r.cfg.Source.Forwarded)
		if err != nil {
			return err
		}
		defer socket.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, socket) // as toolSocketFD
	}
	var stderr complaints
	cmd.Stderr = &stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = stopPatient
	if err := r.giveDir(cmd); err != nil {
		return err
	}
	if err = cmd.Start(); err == nil {
		r.cfg.Source.bound(cmd.Process)
		err = cmd.Wait()
	}
	if err != nil || len(stderr) > 0 {
		return tidemark.Errorf(tidemark.Unavailable, "pg_receivewal: %s", lastLine(string(stderr), err))
	}
	return tidemark.Errorf(tidemark.Unavailable, "pg_receivewal ended")
}

// complaints keeps the end of what a program complains of, which may be what a server says again and again.
type complaints []byte

// keptComplaints is how much of it, in bytes.
const keptComplaints = 4 << 10

// Write implements io.Writer.
func (c *complaints) Write(p []byte) (int, error) {
	*c = append(*c, p...)
	if over := len(*c) - keptComplaints; over > 0 {
		*c = append((*c)[:0], (*c)[over:]...)
	}
	return len(p), nil
}

// giveDir makes the directory the user's that pg_receivewal runs as.
func (r *Receiver) giveDir(cmd *exec.Cmd) error {
	c := cmd.SysProcAttr.Credential
	if c == nil {
		return nil
	}
	return os.Chown(r.cfg.WALDir, int(c.Uid), int(c.Gid))
}

// lastLine is the last complaint of pg_receivewal, without its own name.
func lastLine(text string, err error) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	line := lines[len(lines)-1]
	for _, prefix := range []string{"pg_receivewal: ", "error: "} {
		line = strings.TrimPrefix(line, prefix)
	}
	if line == "" {
		return oneLine(err)
	}
	return line
}

// watch looks at the slot until the child ends (nil), the connection fails, the
// context is done, or the limit is passed.
func (r *Receiver) watch(ctx context.Context, conn *pgx.Conn, ended <-chan struct{}) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if err := r.look(ctx, conn); err != nil {
			return err
		}
		select {
		case <-ended:
			return r.look(ctx, conn) // the limit holds while the child fails, too
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// look reads the slot once and updates the status.
func (r *Receiver) look(ctx context.Context, conn *pgx.Conn) error {
	var now time.Time // by the clock that transactions are dated by, and before the log is looked at
	var cur, own string
	var restart, state *string
	var active bool
	err := conn.QueryRow(ctx, fmt.Sprintf(`SELECT clock_timestamp(), pg_current_wal_flush_lsn()::text, (SELECT redo_lsn FROM pg_control_checkpoint())::text,
		restart_lsn::text, active, %s FROM pg_replication_slots WHERE slot_name = $1`,
		walStatusColumn(conn)), r.slot).Scan(&now, &cur, &own, &restart, &active, &state)
	if errors.Is(err, pgx.ErrNoRows) {
		return tidemark.Errorf(tidemark.Unavailable, "somebody dropped replication slot %s", r.slot)
	}
	if err != nil {
		return fmt.Errorf("look at slot %s: %w", r.slot, err)
	}
	current, err1 := ParseLSN(cur)
	redo, err2 := ParseLSN(own)
	if err := errors.Join(err1, err2, checkClock(now)); err != nil {
		return err
	}
	if restart == nil || state != nil && *state == "lost" {
		return tidemark.Errorf(tidemark.Unavailable, "the server gave up slot %s: its max_slot_wal_keep_size was passed", r.slot)
	}
	flushed, err := ParseLSN(*restart)
	if err != nil {
		return err
	}
	// What lies behind the last checkpoint the server keeps for itself. A new slot begins there, so
	// if that counted, a slot that was given up for its limit would be beyond it again at once.
	retained := max(int64(redo)-int64(flushed), 0)
	r.mu.Lock()
	s := &r.status
	s.Running, s.Current, s.Flushed, s.Retained = active, current, flushed, retained
	if s.WALState = ""; state != nil {
		s.WALState = *state
	}
	if active {
		s.Error = ""
	}
	if r.sample.lsn == 0 || flushed >= r.sample.lsn {
		if r.sample.lsn != 0 {
			s.Covered = r.sample.at
		}
		r.sample = sample{now, current}
	}
	if flushed >= current {
		s.Covered = now
	}
	r.mu.Unlock()
	if retained > r.cfg.LimitBytes {
		return &overLimit{retained}
	}
	return nil
}

// checkClock refuses a time that no clock has, and that cannot be written as others are. It comes from another host, maybe.
func checkClock(t time.Time) error {
	if y := t.Year(); y < 1970 || y > 9998 {
		return tidemark.Errorf(tidemark.Unavailable, "the clock of the cluster's host says that it is the year %d", y)
	}
	return nil
}

func walStatusColumn(conn *pgx.Conn) string {
	if v := conn.PgConn().ParameterStatus("server_version"); strings.HasPrefix(v, "12") {
		return "NULL::text"
	}
	return "wal_status"
}

// ForceReceive returns when the log up to lsn is durable in the Receiver's
// directory; zero means the server's end of log now, so that everything
// committed before the call is. It returns the position that was reached. It
// fails when ctx is done or the slot is gone.
func (r *Receiver) ForceReceive(ctx context.Context, lsn LSN) (LSN, error) {
	conn, err := r.cfg.Source.Connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if lsn == 0 {
		var s string
		if err := conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&s); err != nil {
			return 0, fmt.Errorf("ask the end of the log: %w", err)
		}
		if lsn, err = ParseLSN(s); err != nil {
			return 0, err
		}
	}
	for {
		err := r.look(ctx, conn)
		var over *overLimit
		if err != nil && !errors.As(err, &over) {
			return 0, err
		}
		r.mu.Lock()
		flushed := r.status.Flushed
		r.mu.Unlock()
		if flushed >= lsn {
			return flushed, nil
		}
		select {
		case <-ctx.Done():
			return flushed, tidemark.Errorf(tidemark.Unavailable, "the log is received up to %s and not to %s: %w", flushed, lsn, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
