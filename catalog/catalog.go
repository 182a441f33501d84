// Package catalog is the ledger of a server: which applications it protects,
// which mounts, clones and exports it gave out, which jobs it runs or ran, and
// what happened.
//
// It is embedded SQLite by default, and PostgreSQL where its URL is given; the
// same code and the same tests serve both. Nothing that was captured depends
// on it: applications and points are brought back from the pool, mounts from
// the attachers that still run. What only the catalog knows is the history of
// jobs and events, and who may do what: users, groups, grants, tokens, to whom
// things belong, and the audit, from which [tidemark/access] decides.
//
// All methods may be called concurrently. A method that changes something is
// durable when it returns.
package catalog

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/pressly/goose/v3"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"tidemark"
)

//go:embed migrations/*/*.sql
var migrations embed.FS

// Catalog is an open catalog.
type Catalog struct {
	// write has one connection: SQLite has one writer, and readers beside it
	// would starve it. read serves the queries.
	write, read *bun.DB
}

// Open opens the catalog at a path, or at a postgres:// URL, and brings its
// tables up to date.
func Open(ctx context.Context, where string) (*Catalog, error) {
	c, dialect, err := connect(where)
	if err != nil {
		return nil, err
	}
	if err := migrate(ctx, c.write.DB, dialect); err != nil {
		return nil, errors.Join(damaged(where, err), c.Close())
	}
	return c, nil
}

func connect(where string) (*Catalog, goose.Dialect, error) {
	if strings.HasPrefix(where, "postgres://") || strings.HasPrefix(where, "postgresql://") {
		db, err := sql.Open("pgx", where)
		if err != nil {
			return nil, "", tidemark.Errorf(tidemark.Invalid, "the catalog's URL cannot be used: %w", err)
		}
		b := bun.NewDB(db, pgdialect.New())
		return &Catalog{write: b, read: b}, goose.DialectPostgres, nil
	}
	open := func(connections int) (*bun.DB, error) {
		q := url.Values{"_pragma": {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}, "_txlock": {"immediate"}}
		db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: where}).EscapedPath()+"?"+q.Encode())
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(connections)
		return bun.NewDB(db, sqlitedialect.New()), nil
	}
	w, err := open(1)
	if err != nil {
		return nil, "", damaged(where, err)
	}
	r, err := open(4)
	if err != nil {
		return nil, "", damaged(where, err)
	}
	return &Catalog{write: w, read: r}, goose.DialectSQLite3, nil
}

// damaged says how to go on when the catalog cannot be used.
func damaged(where string, err error) error {
	if strings.HasPrefix(where, "postgres") {
		return tidemark.Errorf(tidemark.Unavailable, "the catalog's database cannot be used: %w", err).WithHint("check that it runs and that its URL is right")
	}
	var s *sqlite.Error
	if !errors.As(err, &s) || s.Code()&0xff != sqlite3.SQLITE_CORRUPT && s.Code()&0xff != sqlite3.SQLITE_NOTADB {
		return tidemark.Errorf(tidemark.Unavailable, "the catalog %s cannot be used: %w", where, err).WithHint("check that its disk has room and can be written")
	}
	return tidemark.Errorf(tidemark.Corrupt, "the catalog %s cannot be used: %w", where, err).
		WithHint("move the file away and start again: applications and points are brought back from the pool, the history of jobs and events is lost")
}

func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect) error {
	dir := map[goose.Dialect]string{goose.DialectPostgres: "postgres", goose.DialectSQLite3: "sqlite"}[dialect]
	files, err := fs.Sub(migrations, "migrations/"+dir)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(dialect, db, files)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the catalog.
func (c *Catalog) Close() error {
	if c.read == c.write {
		return c.write.Close()
	}
	return errors.Join(c.write.Close(), c.read.Close())
}

// Check reads the whole catalog and reports damage.
func (c *Catalog) Check(ctx context.Context) error {
	if c.read == c.write {
		return nil // PostgreSQL looks after itself
	}
	var result string
	if err := c.read.NewRaw("PRAGMA quick_check").Scan(ctx, &result); err != nil {
		return wrap(err, "check the catalog")
	}
	if result != "ok" {
		return tidemark.Errorf(tidemark.Corrupt, "the catalog is damaged: %s", result)
	}
	return nil
}

// Kept is a sort of thing that the catalog keeps by name.
type Kept string

// What is kept by name.
const (
	Applications Kept = "application"
	Mounts       Kept = "mount"
	Clones       Kept = "clone"
	Exports      Kept = "export"
	Hosts        Kept = "host"
	Shots        Kept = "shot"     // of AppShots, what their bookmarks do not say
	Proofs       Kept = "proof"    // the newest recovery proof of each point that has one
	Unproven     Kept = "unproven" // by application, the newest point that could not be proven, until it is or a newer one is
)

// Put stores v under its sort and name, in place of what was there.
func (c *Catalog) Put(ctx context.Context, k Kept, name string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.write.NewRaw("INSERT INTO things (kind, name, body, changed) VALUES (?, ?, ?, ?) ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body, changed = excluded.changed",
		k, name, string(body), time.Now().UnixNano()).Exec(ctx)
	return wrap(err, "store %s %s", k, name)
}

// Get loads what is stored under a sort and name into v, a pointer.
func (c *Catalog) Get(ctx context.Context, k Kept, name string, v any) error {
	var body string
	err := c.read.NewRaw("SELECT body FROM things WHERE kind = ? AND name = ?", k, name).Scan(ctx, &body)
	if errors.Is(err, sql.ErrNoRows) {
		return tidemark.Errorf(tidemark.NotFound, "there is no %s %q", k, name).WithHint(fmt.Sprintf("`tidemark %ss` lists them", k))
	}
	if err != nil {
		return wrap(err, "look up %s %s", k, name)
	}
	return json.Unmarshal([]byte(body), v)
}

// List returns all that is stored of a sort, by name.
func List[T any](ctx context.Context, c *Catalog, k Kept) ([]T, error) {
	var bodies []string
	if err := c.read.NewRaw("SELECT body FROM things WHERE kind = ? ORDER BY name", k).Scan(ctx, &bodies); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, wrap(err, "list %ss", k)
	}
	list := make([]T, len(bodies))
	for i, b := range bodies {
		if err := json.Unmarshal([]byte(b), &list[i]); err != nil {
			return nil, tidemark.Errorf(tidemark.Corrupt, "an entry of the catalog cannot be read: %w", err)
		}
	}
	return list, nil
}

// Delete forgets what is stored under a sort and name; that there was nothing is no error.
func (c *Catalog) Delete(ctx context.Context, k Kept, name string) error {
	_, err := c.write.NewRaw("DELETE FROM things WHERE kind = ? AND name = ?", k, name).Exec(ctx)
	return wrap(err, "forget %s %s", k, name)
}

// AddEvent records that something happened.
func (c *Catalog) AddEvent(ctx context.Context, e tidemark.Event) error {
	_, err := c.write.NewRaw("INSERT INTO events (at, level, application, message) VALUES (?, ?, ?, ?)",
		e.Time.UnixNano(), e.Level, e.Application, e.Message).Exec(ctx)
	return wrap(err, "record an event")
}

// Events returns the newest n events, newest first.
func (c *Catalog) Events(ctx context.Context, n int) ([]tidemark.Event, error) {
	var rows []struct {
		At          int64
		Level       string
		Application string
		Message     string
	}
	err := c.read.NewRaw("SELECT at, level, application, message FROM events ORDER BY id DESC LIMIT ?", n).Scan(ctx, &rows)
	list := make([]tidemark.Event, 0, len(rows))
	for _, r := range rows {
		list = append(list, tidemark.Event{Time: time.Unix(0, r.At), Level: r.Level, Application: r.Application, Message: r.Message})
	}
	return list, wrap(err, "list events")
}

// wrap says what was being done, and tells a full disk and a broken file apart from a fault.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	var s *sqlite.Error
	if errors.As(err, &s) {
		switch s.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return tidemark.Errorf(tidemark.Unavailable, "%s: the disk of the catalog is full", what).WithHint("make room on it")
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return tidemark.Errorf(tidemark.Corrupt, "%s: the catalog is damaged: %w", what, err).WithHint("stop the server and move the catalog away; it is rebuilt from the pool")
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// unique reports whether err is a violation of a unique index.
func unique(err error) bool {
	var s *sqlite.Error
	var p *pgconn.PgError
	return errors.As(err, &s) && (s.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || s.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY) ||
		errors.As(err, &p) && p.Code == "23505"
}
