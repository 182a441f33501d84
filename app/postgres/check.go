package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark"
)

// minVersion is the oldest server served: 12 is the first whose recovery is
// configured in postgresql.conf.
const minVersion = 120000

// Report is what [Check] found.
type Report struct {
	Version    int      `json:"version"`    // server_version_num, such as 150018
	SystemID   string   `json:"systemId"`   // the cluster's identity, decimal
	DataDir    string   `json:"dataDir"`    // absolute
	ConfigFile string   `json:"configFile"` // absolute
	Checksums  bool     `json:"checksums"`  // pages carry checksums
	Superuser  string   `json:"superuser"`  // the role that initdb made
	SegSize    int64    `json:"segSize"`    // bytes of one log file
	Bytes      int64    `json:"bytes"`      // of all databases, as the server counts
	Problems   []string `json:"problems"`   // each makes protection impossible; one line, with what to do
	Warnings   []string `json:"warnings"`   // each should be known and mended; one line
	logDir     string
	hba, ident string
	slots      int  // free replication slots
	senders    int  // free walsenders
	keepSize   *int // max_slot_wal_keep_size in MB; nil before 13
}

// CheckOptions are what [Check] may change.
type CheckOptions struct {
	// SetSlotLimit, in bytes, is set as max_slot_wal_keep_size by ALTER SYSTEM if the
	// server has no limit. Zero changes nothing.
	SetSlotLimit int64
}

// CanReceive reports whether this host has what it takes to receive the log of a server, by its server_version_num.
func CanReceive(version int) error {
	_, err := Source{}.receiverDir(version / 10000)
	return err
}

// Check finds out whether the cluster can be captured and its log received; of one that is forwarded, [CanReceive] says whether we can. It
// returns an error only if it could not find out; what it found wrong is in the
// report.
func Check(ctx context.Context, src Source, opts CheckOptions) (*Report, error) {
	conn, err := src.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r, err := inspect(ctx, conn, !src.forwarded())
	if err != nil {
		return nil, err
	}
	if len(r.Problems) > 0 {
		return r, nil
	}
	r.judgeReceiver()
	if _, err := src.receiverDir(r.Version / 10000); err != nil && !src.forwarded() {
		r.Problems = append(r.Problems, err.Error())
	}
	return r, r.slotLimit(ctx, conn, opts.SetSlotLimit)
}

// CheckCapture finds out whether the cluster can be captured, where its log is not received. What stands against it is an error.
func CheckCapture(ctx context.Context, src Source) (*Report, error) {
	conn, err := src.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r, err := inspect(ctx, conn, true)
	if err == nil {
		err = r.err()
	}
	return r, err
}

// inspect reads the server's facts, and judges what a capture needs, and whether its files are here, if they are to be.
func inspect(ctx context.Context, conn *pgx.Conn, here bool) (*Report, error) {
	r := &Report{}
	var num string
	var standby bool
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num'), pg_is_in_recovery()").Scan(&num, &standby); err != nil {
		return nil, fmt.Errorf("ask the server's version: %w", err)
	}
	r.Version, _ = strconv.Atoi(num) // always a number
	if r.Version < minVersion {
		r.problem("PostgreSQL %s is too old: Tidemark needs version 12 or newer", num)
		return r, nil
	}
	if standby {
		r.problem("this server is a standby: protect the primary, because only there a backup ends with a complete log")
		return r, nil
	}
	err := conn.QueryRow(ctx, `SELECT coalesce(current_setting('data_directory', true), ''), current_setting('config_file'), current_setting('hba_file'),
		current_setting('ident_file'), current_setting('log_directory'), current_setting('data_checksums') = 'on',
		(SELECT setting::bigint * CASE unit WHEN '8kB' THEN 8192 ELSE 1 END FROM pg_settings WHERE name = 'wal_segment_size'),
		(SELECT system_identifier::text FROM pg_control_system()), (SELECT rolname FROM pg_roles WHERE oid = 10),
		coalesce((SELECT sum(pg_database_size(oid)) FROM pg_database WHERE has_database_privilege(oid, 'CONNECT')), 0)::bigint,
		current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int,
		current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')::int,
		(SELECT setting::int FROM pg_settings WHERE name = 'max_slot_wal_keep_size')`).
		Scan(&r.DataDir, &r.ConfigFile, &r.hba, &r.ident, &r.logDir, &r.Checksums, &r.SegSize, &r.SystemID, &r.Superuser, &r.Bytes, &r.slots, &r.senders, &r.keepSize)
	if err != nil {
		r.problem("the role cannot read the server's settings (%s): use a superuser, or grant pg_read_all_settings", oneLine(rootCause(err)))
		return r, nil
	}
	if err := r.judgeRights(ctx, conn); err != nil {
		return nil, err
	}
	if here {
		r.judgeDataDir()
	}
	return r, nil
}

func (r *Report) problem(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// err is the report's first problem as an error, or nil.
func (r *Report) err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	return tidemark.Errorf(tidemark.Unavailable, "%s", strings.Join(r.Problems, "; "))
}

func (r *Report) judgeRights(ctx context.Context, conn *pgx.Conn) error {
	start := "pg_backup_start(text,boolean)"
	if r.Version < 150000 {
		start = "pg_start_backup(text,boolean,boolean)"
	}
	var role, level string
	var mayStart, repl, full bool
	err := conn.QueryRow(ctx, `SELECT current_user, current_setting('wal_level'), has_function_privilege($1, 'EXECUTE'),
		rolsuper OR rolreplication, current_setting('full_page_writes') = 'on' FROM pg_roles WHERE rolname = current_user`, start).
		Scan(&role, &level, &mayStart, &repl, &full)
	if err != nil {
		return fmt.Errorf("ask the role's rights: %w", err)
	}
	if !mayStart {
		r.problem("role %q may not call %s: use a superuser, or GRANT EXECUTE on it and on the function that stops the backup", role, start)
	}
	if !repl {
		r.problem("role %q may not replicate: ALTER ROLE %s REPLICATION", role, pgx.Identifier{role}.Sanitize())
	}
	if level == "minimal" {
		r.problem("wal_level is minimal: set it to replica and restart the server")
	}
	if r.slots < 1 {
		r.problem("no replication slot is free: raise max_replication_slots, or drop an unused slot")
	}
	if !r.Checksums {
		r.Warnings = append(r.Warnings, "data checksums are off: PostgreSQL cannot notice pages damaged by its disk; pg_checksums --enable switches them on")
	}
	if !full {
		r.Warnings = append(r.Warnings, "full_page_writes is off: crash-consistent points may hold torn pages; captures are safe")
	}
	return nil
}

// judgeReceiver adds what only the log stream needs.
func (r *Report) judgeReceiver() {
	if r.senders < 1 {
		r.problem("no walsender is free: raise max_wal_senders")
	}
}

// judgeDataDir makes sure that the directory the server names is here and is that server's.
func (r *Report) judgeDataDir() {
	f, err := os.Open(filepath.Join(r.DataDir, "global", "pg_control"))
	switch {
	case errors.Is(err, os.ErrPermission):
		r.problem("the data directory %s cannot be read: run Tidemark as root or as the server's user", r.DataDir)
		return
	case err != nil:
		r.problem("the data directory %s is not on this host: run Tidemark's agent where the server runs", r.DataDir)
		return
	}
	defer f.Close()
	var id [8]byte
	if _, err := f.ReadAt(id[:], 0); err != nil || strconv.FormatUint(binary.NativeEndian.Uint64(id[:]), 10) != r.SystemID {
		r.problem("the data directory %s on this host belongs to another cluster: run Tidemark's agent where the server runs", r.DataDir)
	}
}

// slotLimit sees to it that a slot nobody reads cannot fill production's disk.
func (r *Report) slotLimit(ctx context.Context, conn *pgx.Conn, set int64) error {
	if r.keepSize == nil {
		r.Warnings = append(r.Warnings, "this server cannot limit what a replication slot retains (PostgreSQL 13 can): if Tidemark is away for long, its slot can fill the server's disk")
		return nil
	}
	if *r.keepSize >= 0 {
		return nil
	}
	if set <= 0 {
		r.Warnings = append(r.Warnings, "max_slot_wal_keep_size is unlimited: if Tidemark is away for long, its slot can fill the server's disk; "+
			"ALTER SYSTEM SET max_slot_wal_keep_size = '4GB' and reload")
		return nil
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'", max(set>>20, 1))); err != nil {
		return fmt.Errorf("set max_slot_wal_keep_size: %w", err)
	}
	if _, err := conn.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("reload the server's configuration: %w", err)
	}
	return nil
}
