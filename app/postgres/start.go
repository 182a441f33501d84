package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark"
)

// readyPoll is how often a starting server is looked at: far below the
// 0.15 s that PostgreSQL itself needs.
const readyPoll = 2 * time.Millisecond

// endedEarly is the failure of a recovery whose log ended before its target.
type endedEarly struct{ err error }

func (e *endedEarly) Error() string { return e.err.Error() }
func (e *endedEarly) Unwrap() error { return e.err }

// start runs the server and returns when it answers. On an error it runs no more.
func (r *recovery) start(ctx context.Context) (*Instance, error) {
	logPath := filepath.Join(r.t.DataDir, logName)
	logFile, err := os.OpenFile(logPath, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	if err := r.chown(logPath); err != nil {
		return nil, err
	}
	// Its own session: the clone goes on when this process ends, however it ends.
	cmd, err := r.command()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	seen.Store(r.t.DataDir, cmd.Process.Pid)
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // its log says more than its exit code
		close(ended)
	}()
	in := (&Instance{Name: r.t.Name, DataDir: r.t.DataDir, SocketDir: r.t.SocketDir, Port: r.t.Port, Listen: r.t.Listen,
		PID: cmd.Process.Pid, Superuser: r.super}).complete()
	if err := waitReady(ctx, in, ended); err != nil {
		r.end(cmd.Process, ended)
		return nil, r.startError(ctx, logPath, err)
	}
	return in, nil
}

// command is the server, with a session of its own and, where that is asked for, a room.
func (r *recovery) command() (*exec.Cmd, error) {
	cmd := exec.Command(filepath.Join(r.bin, "postgres"), "-D", r.t.DataDir)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "PGUSER="}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := runAs(cmd, r.owner); err != nil || !r.inRoom() {
		return cmd, err
	}
	return r.roomFor(cmd)
}

var errServerEnded = errors.New("the server ended")

// waitReady waits until the server's pid file says that it accepts connections.
func waitReady(ctx context.Context, in *Instance, ended <-chan struct{}) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for in.Status() != Running {
		select {
		case <-ended:
			return errServerEnded
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// end makes sure that a server that did not come up is gone, children too.
func (r *recovery) end(p *os.Process, ended <-chan struct{}) {
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		select {
		case <-ended:
			return
		default:
		}
		p.Signal(sig) // it may have ended meanwhile, which is what we want
		select {
		case <-ended:
			return
		case <-time.After(5 * time.Second):
		}
	}
}

// startError finds the line of the server's log that says why.
func (r *recovery) startError(ctx context.Context, logPath string, err error) error {
	text, readErr := os.ReadFile(logPath)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	line := decisiveLine(string(text))
	switch {
	case strings.Contains(line, "recovery ended before configured recovery target was reached"):
		return &endedEarly{tidemark.Errorf(tidemark.Unavailable, "the log ends before the point asked for").
			WithHint("choose an earlier point, or the latest")}
	case strings.Contains(line, "before consistent recovery point"):
		return tidemark.Errorf(tidemark.Invalid, "the point asked for lies before the end of this capture").
			WithHint("choose a later point, or start from an earlier capture")
	case ctx.Err() != nil:
		return tidemark.Errorf(tidemark.Cancelled, "the clone was not up in time: %s", line)
	case line == "":
		return tidemark.Errorf(tidemark.Unavailable, "the clone's server did not start: %w", err)
	}
	return tidemark.Errorf(tidemark.Unavailable, "the clone's server did not start: %s", line)
}

// decisiveLine is the first fatal message of a server's log, with its hint, or
// else its last line.
func decisiveLine(log string) string {
	var last string
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for i, line := range lines {
		_, msg, ok := strings.Cut(line, "FATAL:  ")
		if !ok {
			_, msg, ok = strings.Cut(line, "PANIC:  ")
		}
		if !ok {
			last = line
			continue
		}
		if strings.HasPrefix(msg, "the database system is") {
			continue // an answer to a client that came early
		}
		for _, next := range lines[i+1 : min(i+3, len(lines))] {
			for _, more := range []string{"DETAIL:  ", "HINT:  "} {
				if _, text, ok := strings.Cut(next, more); ok {
					msg += ": " + text
				}
			}
		}
		return msg
	}
	return strings.TrimSpace(last)
}

// disableSubscriptions makes sure that no subscription of the clone ever
// connects, and that dropping one does not reach for its slot in production.
// Until then none runs: the clone has no workers for them.
func (r *recovery) disableSubscriptions(ctx context.Context, in *Instance) error {
	conn, err := in.Source().Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT datname, subname, subenabled FROM pg_subscription JOIN pg_database d ON d.oid = subdbid
		WHERE subenabled OR subslotname IS NOT NULL ORDER BY datname`)
	if err != nil {
		return fmt.Errorf("list subscriptions: %w", err)
	}
	type sub struct {
		Datname, Subname string
		Subenabled       bool
	}
	subs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sub])
	if err != nil {
		return fmt.Errorf("list subscriptions: %w", err)
	}
	for _, s := range subs {
		if err := disableOne(ctx, in, s.Datname, s.Subname, s.Subenabled); err != nil {
			return fmt.Errorf("disable subscription %s of database %s: %w", s.Subname, s.Datname, err)
		}
	}
	return nil
}

func disableOne(ctx context.Context, in *Instance, db, name string, enabled bool) error {
	conn, err := in.in(db).Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	id := pgx.Identifier{name}.Sanitize()
	if enabled {
		if _, err := conn.Exec(ctx, "ALTER SUBSCRIPTION "+id+" DISABLE"); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, "ALTER SUBSCRIPTION "+id+" SET (slot_name = NONE)")
	return err
}
