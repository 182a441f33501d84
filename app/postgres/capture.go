package postgres

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tidemark"
	"tidemark/app"
	"tidemark/internal/vfs"
)

// CaptureOptions tune a capture; the zero value is right for almost everybody.
type CaptureOptions struct {
	// Label is shown by the server while the backup runs. Empty means "tidemark".
	Label string
	// FullCompare reads every file, whatever its dates say.
	FullCompare bool
	// Samples is how many 4 KiB blocks of skipped files are compared anyway, as a check on
	// the proof by dates. Zero means 64; negative none.
	Samples int
	// Prints is a directory, outside of staging, for fingerprints of what is staged: a capture then
	// reads the cluster and not its copy. It is a cache that may be removed at any time. Empty: none.
	Prints string
	// Progress is told the bytes looked at so far, of all. It may be nil, and is
	// called from several goroutines, one at a time.
	Progress func(tidemark.Progress)
	// hook is called by tests at every step, and aborts the capture by an error.
	hook func(step string) error
	// margin is dateMargin, but for tests that have no time.
	margin time.Duration
}

// CaptureResult says what a capture did. Its state is consistent from StopLSN on.
type CaptureResult struct {
	StartLSN     LSN       `json:"startLsn"`
	StopLSN      LSN       `json:"stopLsn"` // the first position that recovery can stop at
	Timeline     uint32    `json:"timeline"`
	SystemID     string    `json:"systemId"`
	Version      int       `json:"version"` // server_version_num
	SegSize      int64     `json:"segSize"` // bytes of one log file
	Superuser    string    `json:"superuser"`
	Started      time.Time `json:"started"` // by the host's clock
	Stopped      time.Time `json:"stopped"` // when pg_backup_stop had returned: the moment captured
	Files        int       `json:"files"`   // all files of the cluster
	Skipped      int       `json:"skipped"` // of these, not read, by proof
	Removed      int       `json:"removed"` // staged before, gone from the cluster now
	Bytes        int64     `json:"bytes"`   // of all files
	ReadBytes    int64     `json:"readBytes"`
	ChangedBytes int64     `json:"changedBytes"` // written to staging, without file system metadata
	Sampled      int       `json:"sampled"`      // blocks of skipped files that were compared
	// Rescan, if not empty, says why everything was compared although dates were
	// trusted at first: the proof by dates failed on this host.
	Rescan   string   `json:"rescan,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// capture is one run of Capture.
type capture struct {
	src     Source
	staging string
	opts    CaptureOptions
	conn    *pgx.Conn
	facts   *Report
	prev    stageState
	res     CaptureResult
	trust   bool // dates may prove a file unchanged
	prints  *app.Prints
	items   []item
	label   string
	spcmap  string
	spaces  []uint32 // the tablespaces when the backup began
}

// Capture brings the staging directory up to date with the cluster and makes it
// durable. When it returns nil, staging/data with staging/tablespaces is a copy
// that recovers to StopLSN from what lies within it; staging/config holds
// configuration kept outside of the data directory.
//
// On any error, a crash or a cancellation, staging is incomplete and says so
// itself: do not bookmark it; the next Capture makes it whole. The cluster
// leaves backup mode in every case. Staging must be used by one capture at a
// time; a second one gets an error of kind Conflict.
func Capture(ctx context.Context, src Source, staging string, opts CaptureOptions) (*CaptureResult, error) {
	lock, err := app.LockDir(staging)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	conn, err := src.Connect(ctx)
	if err != nil {
		return nil, err
	}
	// The end of the connection ends backup mode and drops the temporary slot.
	defer conn.Close(context.WithoutCancel(ctx))
	if opts.margin == 0 {
		opts.margin = dateMargin
	}
	c := &capture{src: src, staging: staging, opts: opts, conn: conn}
	if err := c.prepare(ctx); err != nil {
		return nil, err
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	return &c.res, nil
}

func (c *capture) step(name string) error {
	if c.opts.hook == nil {
		return nil
	}
	return c.opts.hook(name)
}

// prepare checks the cluster before anything is touched, then marks staging dirty.
func (c *capture) prepare(ctx context.Context) error {
	if err := c.examine(ctx); err != nil {
		return err
	}
	c.prev = readState(c.staging)
	if c.prev.SystemID != "" && c.prev.SystemID != c.facts.SystemID {
		return tidemark.Errorf(tidemark.Conflict, "the staging directory holds cluster %s, and the server is cluster %s", c.prev.SystemID, c.facts.SystemID).
			WithHint("protect the new cluster as an application of its own")
	}
	f := c.facts
	var err error
	dirty := c.prev
	known := c.prev.Seal
	if c.prev.Dirty || c.opts.FullCompare {
		known = ""
	}
	if c.prints, err = app.OpenPrints(c.opts.Prints, known); err != nil {
		return err
	}
	dirty.Dirty, dirty.SystemID, dirty.Superuser, dirty.SegSize = true, f.SystemID, f.Superuser, f.SegSize
	return writeState(c.staging, dirty)
}

// examine finds out what cluster it is, and whether it can be captured.
func (c *capture) examine(ctx context.Context) (err error) {
	if c.facts, err = inspect(ctx, c.conn, true); err != nil {
		return err
	}
	if err := c.facts.err(); err != nil {
		return err
	}
	f := c.facts
	c.res = CaptureResult{SystemID: f.SystemID, Version: f.Version, SegSize: f.SegSize, Superuser: f.Superuser, Started: time.Now()}
	return nil
}

func (c *capture) run(ctx context.Context) error {
	if err := c.step("dirty"); err != nil {
		return err
	}
	if err := c.start(ctx); err != nil {
		return err
	}
	if err := c.step("started"); err != nil {
		return err
	}
	if err := c.copyAll(ctx); err != nil {
		return err
	}
	if err := c.step("copied"); err != nil {
		return err
	}
	if err := c.stop(ctx); err != nil {
		return err
	}
	if err := c.step("stopped"); err != nil {
		return err
	}
	if err := c.finish(); err != nil {
		return err
	}
	if err := app.SyncTree(c.staging); err != nil {
		return err
	}
	if err := c.step("synced"); err != nil {
		return err
	}
	seal := crand.Text()
	if err := writeState(c.staging, stageState{Format: stateFormat, Started: c.res.Started, SystemID: c.res.SystemID,
		Timeline: c.res.Timeline, StopLSN: c.res.StopLSN, SegSize: c.res.SegSize, Superuser: c.res.Superuser, Seal: seal}); err != nil {
		return err
	}
	if err := c.prints.Seal(seal, c.names()); err != nil { // the next capture reads more, that is all
		c.res.Warnings = append(c.res.Warnings, fmt.Sprintf("fingerprints were not kept: %v", err))
	}
	return nil
}

// names are the staged files as the fingerprints know them.
func (c *capture) names() []string {
	names := make([]string, len(c.items))
	for i, it := range c.items {
		names[i] = it.rel
	}
	return names
}

// start reserves the log from here on and enters backup mode.
func (c *capture) start(ctx context.Context) error {
	for _, set := range []string{"SET statement_timeout = 0", "SET lock_timeout = 0", "SET idle_in_transaction_session_timeout = 0"} {
		if _, err := c.conn.Exec(ctx, set); err != nil {
			return fmt.Errorf("prepare the backup's session: %w", err)
		}
	}
	slot := fmt.Sprintf("tidemark_capture_%d", c.conn.PgConn().PID())
	if _, err := c.conn.Exec(ctx, "SELECT pg_create_physical_replication_slot($1, true, true)", slot); err != nil {
		return fmt.Errorf("reserve the log for the capture: %w", err)
	}
	spaces, err := c.tablespaces(ctx)
	if err != nil {
		return err
	}
	c.spaces = spaces
	label := c.opts.Label
	if label == "" {
		label = "tidemark"
	}
	call := "SELECT pg_backup_start($1, true)::text"
	if c.facts.Version < 150000 {
		call = "SELECT pg_start_backup($1, true, false)::text"
	}
	var lsn string
	err = c.conn.QueryRow(ctx, call, label).Scan(&lsn)
	if err == nil {
		c.res.StartLSN, err = ParseLSN(lsn)
	}
	if err == nil {
		err = c.conn.QueryRow(ctx, "SELECT timeline_id FROM pg_control_checkpoint()").Scan(&c.res.Timeline)
	}
	if err != nil {
		return fmt.Errorf("start the backup: %w", err)
	}
	// A cluster that went back in its own history has old dates on new content.
	p := c.prev
	c.trust = !p.Dirty && !c.opts.FullCompare && p.Timeline == c.res.Timeline && p.StopLSN <= c.res.StartLSN
	return nil
}

// stop leaves backup mode. The server has then switched to a new log file, so
// the one with StopLSN is whole.
func (c *capture) stop(ctx context.Context) error {
	call := "SELECT lsn::text, labelfile, spcmapfile FROM pg_backup_stop(false)"
	if c.facts.Version < 150000 {
		call = "SELECT lsn::text, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
	}
	var lsn string
	if err := c.conn.QueryRow(ctx, call).Scan(&lsn, &c.label, &c.spcmap); err != nil {
		return fmt.Errorf("stop the backup: %w", err)
	}
	c.res.Stopped = time.Now()
	var err error
	if c.res.StopLSN, err = ParseLSN(lsn); err != nil {
		return err
	}
	if tli := labelTimeline(c.label); tli != 0 {
		c.res.Timeline = tli
	}
	spaces, err := c.tablespaces(ctx)
	if err == nil && !slices.Equal(spaces, c.spaces) {
		err = tidemark.Errorf(tidemark.Conflict, "a tablespace was made or dropped during the capture").WithHint("capture again")
	}
	return err
}

// tablespaces lists the tablespaces there are. A capture during which one is
// made is given up: replaying its creation would make a clone use production's
// directory.
func (c *capture) tablespaces(ctx context.Context) ([]uint32, error) {
	rows, err := c.conn.Query(ctx, "SELECT oid FROM pg_tablespace ORDER BY oid")
	if err != nil {
		return nil, fmt.Errorf("list tablespaces: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[uint32])
}

// labelTimeline reads "START TIMELINE: 1" of a backup label.
func labelTimeline(label string) uint32 {
	for line := range strings.Lines(label) {
		if s, ok := strings.CutPrefix(line, "START TIMELINE: "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 32)
			if err != nil {
				return 0
			}
			return uint32(n)
		}
	}
	return 0
}

// finish writes what makes the copy recoverable: label, map and log. The log of
// this capture is still reserved by the session's slot.
func (c *capture) finish() error {
	data := filepath.Join(c.staging, "data")
	owner, err := os.Stat(c.facts.DataDir)
	if err != nil {
		return err
	}
	if err := c.copyLog(data); err != nil {
		return err
	}
	files := map[string]string{"backup_label": c.label, "tablespace_map": c.spcmap}
	for name, text := range files {
		path := filepath.Join(data, name)
		if text == "" {
			if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
				return err
			}
			continue
		}
		if err := vfs.WriteFile(vfs.OS, path, []byte(text)); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if err := setOwner(path, attrOf(owner), 0o600); err != nil {
			return err
		}
	}
	return nil
}
