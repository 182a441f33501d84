package residue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"tidemark"
)

// Clone is a running copy of a PostgreSQL cluster (13 to 17) on a file system of its own. The caller implements it.
type Clone interface {
	// DataDir is the data directory, as this process sees it.
	DataDir() string
	// Connect connects to a database as superuser.
	Connect(ctx context.Context, database string) (*pgx.Conn, error)
	// Stop shuts the server down cleanly (pg_ctl stop -m fast), and returns when it is gone.
	Stop(ctx context.Context) error
	// Start starts it again, and returns when it answers.
	Start(ctx context.Context) error
}

// Remounter is a file system that can be taken off for a moment, as a [Clone] may be one, too. [Prepare] makes the journal of an ext4 anew then; without it, what
// went through the journal stays there: file names always, and the contents of files if it was ever mounted with data=journal.
type Remounter interface {
	// Unmount unmounts the file system while nothing uses it, and returns the path of its block device or image file.
	Unmount(ctx context.Context) (device string, err error)
	// Mount mounts it again.
	Mount(ctx context.Context) error
}

// PrepareOptions of [Prepare].
type PrepareOptions struct {
	// Remove is what else to delete while the server is stopped: files, or directories with all that is in them, such as logs outside the data directory.
	Remove []string
	// Fill writes zeros to all free space where the disk cannot discard. It takes as long as writing all of that.
	Fill bool
	// Step, if not nil, is told what begins, in a few words.
	Step func(what string)
}

// Prepare removes what a masked clone still holds of values that were masked: dead rows, old indexes, statistics, WAL, logs, free space. It takes as
// much free space as the largest table with its indexes, and the clone is stopped meanwhile, twice. When it returns nil the clone runs. With an
// error the clone may be stopped or unmounted, but is whole: nothing is removed that a start needs, and Prepare can be called again.
//
// Masking comes before: what is visible in a row, a materialized view, a large object, a comment or a function is not touched. Nor is
// anything proven: [Scan] afterwards says whether all is gone.
func Prepare(ctx context.Context, clone Clone, opts PrepareOptions) error {
	p := &preparation{clone: clone, dir: clone.DataDir(), opts: opts}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"look for what keeps old rows", p.check},
		{"rewrite the tables", p.rewrite},
		{"stop the server", clone.Stop},
		{"remove WAL", p.removeWAL},
		{"start the server", clone.Start},
		{"begin a new segment of WAL", p.switchWAL},
		{"stop the server", clone.Stop},
		{"remove WAL", p.removeWAL},
		{"remove logs and temporary files", p.removeFiles},
		{"make the journal of the file system anew", p.renewJournal},
		{"clear the free space", p.clearFree},
		{"start the server", clone.Start},
	} {
		if err := ctx.Err(); err != nil {
			return tidemark.Errorf(tidemark.Cancelled, "the preparation was cancelled: %w", err)
		}
		if opts.Step != nil {
			opts.Step(step.what)
		}
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

type preparation struct {
	clone Clone
	dir   string
	opts  PrepareOptions
	logs  string // log_directory
}

// connected calls fn with a connection to a database.
func (p *preparation) connected(ctx context.Context, database string, fn func(*pgx.Conn) error) error {
	conn, err := p.clone.Connect(ctx, database)
	if err != nil {
		return fmt.Errorf("connect to database %q: %w", database, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return fn(conn)
}

// anyDatabase is one that every cluster has, and that can be connected to.
const anyDatabase = "template1"

// blockers are what makes VACUUM FULL keep rows that nobody sees any more.
const blockers = `SELECT 'the prepared transaction ' || quote_literal(gid) FROM pg_prepared_xacts
UNION ALL SELECT 'the replication slot ' || quote_literal(slot_name) FROM pg_replication_slots
UNION ALL SELECT 'a session of ' || quote_ident(usename) || ' on ' || quote_ident(datname) || ', process ' || pid FROM pg_stat_activity
	WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
UNION ALL SELECT 'recovery' WHERE pg_is_in_recovery()
LIMIT 1`

func (p *preparation) check(ctx context.Context) error {
	return p.connected(ctx, anyDatabase, func(conn *pgx.Conn) error {
		var what string
		err := conn.QueryRow(ctx, blockers).Scan(&what)
		if err == nil {
			return tidemark.Errorf(tidemark.Conflict, "%s keeps old rows and log of the clone", what).WithHint("end or drop it first")
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		return conn.QueryRow(ctx, `SHOW log_directory`).Scan(&p.logs)
	})
}

// rewrite writes all tables of all databases anew. Statistics come first: they have values of rows, ANALYZE keeps those of tables that are
// empty, and the rows of pg_statistic that it replaces are dead rows in turn.
func (p *preparation) rewrite(ctx context.Context) error {
	var names []string
	err := p.connected(ctx, anyDatabase, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT datname FROM pg_database WHERE datallowconn ORDER BY oid`)
		if err != nil {
			return err
		}
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := p.connected(ctx, name, func(conn *pgx.Conn) error { return rewriteDatabase(ctx, conn) }); err != nil {
			return fmt.Errorf("database %q: %w", name, err)
		}
	}
	return p.connected(ctx, anyDatabase, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `CHECKPOINT`)
		return err
	})
}

func rewriteDatabase(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{
		`SET statement_timeout = 0`, `SET lock_timeout = 0`, `SET default_transaction_read_only = off`,
		`DELETE FROM pg_catalog.pg_statistic`, `DELETE FROM pg_catalog.pg_statistic_ext_data`, `ANALYZE`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	var schema string
	err := conn.QueryRow(ctx, `SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
		WHERE extname = 'pg_stat_statements' AND current_setting('shared_preload_libraries') LIKE '%pg_stat_statements%'`).Scan(&schema)
	if err == nil {
		_, err = conn.Exec(ctx, `SELECT `+schema+`.pg_stat_statements_reset()`)
	}
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("reset pg_stat_statements: %w", err)
	}
	if _, err := conn.Exec(ctx, `VACUUM (FULL)`); err != nil {
		return fmt.Errorf("VACUUM FULL: %w", err)
	}
	return nil
}

// switchWAL begins a segment that no file was recycled for: there are none left to recycle. The checkpoint is the first record in it.
func (p *preparation) switchWAL(ctx context.Context) error {
	return p.connected(ctx, anyDatabase, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, `SELECT pg_switch_wal()`); err != nil {
			return err
		}
		_, err := conn.Exec(ctx, `CHECKPOINT`)
		return err
	})
}

// removeWAL removes all segments but those that the next start reads: where the checkpoint of the shutdown is.
func (p *preparation) removeWAL(context.Context) error {
	control, err := os.ReadFile(filepath.Join(p.dir, "global", "pg_control"))
	if err != nil {
		return err
	}
	c, err := parseControl(control)
	if err != nil {
		return err
	}
	wal := filepath.Join(p.dir, "pg_wal")
	list, err := os.ReadDir(wal)
	if err != nil {
		return err
	}
	keep := map[string]bool{c.segment(c.checkpoint): true, c.segment(c.checkpoint + walPageSize): true}
	if _, err := os.Stat(filepath.Join(wal, c.segment(c.checkpoint))); err != nil {
		return fmt.Errorf("the segment of WAL with the checkpoint of the shutdown: %w", err)
	}
	for _, d := range list {
		if d.Type().IsRegular() && !keep[d.Name()] && !strings.HasSuffix(d.Name(), ".history") {
			err = errors.Join(err, os.Remove(filepath.Join(wal, d.Name())))
		}
	}
	return errors.Join(err, empty(filepath.Join(wal, "archive_status")), empty(filepath.Join(wal, "summaries")))
}

// removeFiles removes what the server writes beside its tables. It makes all of it anew when it is needed.
func (p *preparation) removeFiles(context.Context) error {
	logs := p.logs
	if !filepath.IsAbs(logs) {
		logs = filepath.Join(p.dir, logs)
	}
	var errs []error
	for _, name := range []string{"pg_stat", "pg_stat_tmp", "pg_notify", "pg_logical/snapshots", "pg_logical/mappings", "pg_snapshots", "base/pgsql_tmp"} {
		errs = append(errs, empty(filepath.Join(p.dir, name)))
	}
	if in, err := filepath.Rel(p.dir, logs); err == nil && in != "." && filepath.IsLocal(in) {
		errs = append(errs, empty(logs))
	}
	for _, name := range []string{"backup_label.old", "tablespace_map.old", "current_logfiles"} {
		errs = append(errs, ignoreGone(os.Remove(filepath.Join(p.dir, name))))
	}
	for _, name := range p.opts.Remove {
		errs = append(errs, os.RemoveAll(name))
	}
	temporary, err := filepath.Glob(filepath.Join(p.dir, "pg_tblspc/*/PG_*/pgsql_tmp"))
	for _, dir := range temporary {
		errs = append(errs, empty(dir))
	}
	return errors.Join(append(errs, err)...)
}

// empty removes all that is in a directory, if there is one.
func empty(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	for _, d := range list {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, d.Name())))
	}
	return err
}
