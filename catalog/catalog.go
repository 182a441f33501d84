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
// Several servers may share one. What is in it belongs to an owner, which is a
// data directory by its identity: a [Catalog] is opened for one, and sees and
// changes nothing of the others. All that they share is the number of jobs
// that run on a host at a time.
//
// Jobs are a queue: see [Catalog.Enqueue], [Catalog.Claim] and [Catalog.Finish].
//
// All methods may be called concurrently. A method that changes something is
// durable when it returns. Where the database can be away, methods fail with
// [ErrAway] while it is, unless their context is [Patient].
package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
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

	owner  string // the identity of the data directory whose things are seen
	holder string // whose jobs run: this Catalog, until it is closed
	outage outage
	doubts doubts
	now    func() time.Time
}

// Remote reports whether a place of a catalog is a URL of PostgreSQL, and not a path.
func Remote(where string) bool {
	return strings.HasPrefix(where, "postgres://") || strings.HasPrefix(where, "postgresql://")
}

// Open opens the catalog at a path, or at a postgres:// URL, for an owner, and brings its
// tables up to date. A file has one owner: all that is in it becomes that of who opens it.
func Open(ctx context.Context, where, owner string) (*Catalog, error) {
	c, dialect, err := connect(where)
	if err != nil {
		return nil, err
	}
	c.owner, c.holder, c.now, c.outage.gaveUp = owner, rand.Text(), time.Now, make(chan struct{})
	if err = migrate(ctx, c.write.DB, dialect); err == nil {
		err = c.adopt(ctx)
	}
	if err != nil {
		return nil, errors.Join(damaged(where, err), c.Close())
	}
	return c, nil
}

func connect(where string) (*Catalog, goose.Dialect, error) {
	if Remote(where) {
		cfg, err := pgx.ParseConfig(where)
		if err != nil { // it says no password
			return nil, "", tidemark.Errorf(tidemark.Invalid, "the catalog's URL cannot be used: %w", err).WithHint("write postgres://USER@HOST/DATABASE")
		}
		if cfg.ConnectTimeout == 0 {
			cfg.ConnectTimeout = connectLimit
		}
		db := stdlib.OpenDB(*cfg)
		db.SetMaxOpenConns(maxConnections)
		db.SetMaxIdleConns(maxConnections / 4)
		b := bun.NewDB(db, pgdialect.New())
		return &Catalog{write: b, read: b, outage: outage{remote: true}}, goose.DialectPostgres, nil
	}
	if err := private(where); err != nil {
		return nil, "", tidemark.Errorf(tidemark.Unavailable, "the catalog cannot be opened: %w", err)
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

// private makes the files of a catalog nobody else's to read: there are hashes of passwords in it, and the audit. SQLite gives those beside it
// the mode of the first when it makes them. Nor may others lock it, which who can read it could. What is there is not opened: to close it would
// let go of the locks that this process has on it.
func private(where string) error {
	f, err := os.OpenFile(where, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	for _, name := range []string{where, where + "-wal", where + "-shm"} { // those of an older release
		if err := os.Chmod(name, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// maxConnections is how many connections one server has to a PostgreSQL at most: several of them
// must get along with the hundred that it has by default.
const maxConnections = 16

// adopt makes what an older release kept, which had no owners, that of ours. A file is wholly ours: it lies in our data directory.
func (c *Catalog) adopt(ctx context.Context) error {
	others := "owner = ''"
	if !c.outage.remote {
		others = "owner <> ?0"
	}
	return c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		for _, table := range []string{"things", "events", "jobs", "answers", "workflows", "workflow_steps", "webhooks", "forgotten_jobs"} {
			if _, err := tx.NewRaw("UPDATE "+table+" SET owner = ?0 WHERE "+others, c.owner).Exec(ctx); err != nil {
				return fmt.Errorf("adopt %s: %w", table, err)
			}
		}
		if c.outage.remote {
			return nil
		}
		_, err := tx.NewRaw("UPDATE objects SET directory = ?0 WHERE directory <> ?0", c.owner).Exec(ctx)
		return err
	})
}

// damaged says how to go on when the catalog cannot be used.
func damaged(where string, err error) error {
	if Remote(where) {
		return tidemark.Errorf(tidemark.Unavailable, "the catalog's database cannot be used: %w", err).WithHint("check that it runs and that its URL is right")
	}
	var s *sqlite.Error
	if !errors.As(err, &s) || s.Code()&0xff != sqlite3.SQLITE_CORRUPT && s.Code()&0xff != sqlite3.SQLITE_NOTADB {
		return tidemark.Errorf(tidemark.Unavailable, "the catalog %s cannot be used: %w", where, err).WithHint("check that its disk has room and can be written")
	}
	return tidemark.Errorf(tidemark.Corrupt, "the catalog %s cannot be used: %w", where, err).
		WithHint("move the file away and start again: applications and points are brought back from the pool, the history of jobs and events is lost")
}

func migrationsOf(dialect goose.Dialect) fs.FS {
	dir := map[goose.Dialect]string{goose.DialectPostgres: "postgres", goose.DialectSQLite3: "sqlite"}[dialect]
	files, err := fs.Sub(migrations, "migrations/"+dir)
	if err != nil {
		panic(err) // they are a part of the program
	}
	return files
}

func migrate(ctx context.Context, db *sql.DB, dialect goose.Dialect) error {
	var o []goose.ProviderOption
	if dialect == goose.DialectPostgres { // several servers may begin at once
		l, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
		if err != nil {
			return err
		}
		o = append(o, goose.WithSessionLocker(l))
	}
	p, err := goose.NewProvider(dialect, db, migrationsOf(dialect), o...)
	if err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// Close closes the catalog. The jobs that it holds stay recorded as running, until another takes them over.
func (c *Catalog) Close() error {
	c.GiveUp()
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
	Templates    Kept = "template" // of service levels
	Profiles     Kept = "profile"  // which say where copies go
	Promises     Kept = "promise"  // what was done to keep one
	Proofs       Kept = "proof"    // the newest recovery proof of each point that has one
	Unproven     Kept = "unproven" // by application, the newest point that could not be proven, until it is or a newer one is
	Clock        Kept = "clock"    // the time by which things grow old, when it was noted last
)

// listed says how people are shown what there is of a sort, where they are shown it.
var listed = map[Kept]string{
	Applications: "`tidemark status` lists them",
	Mounts:       "`tidemark mounts` lists them",
	Clones:       "`tidemark clones` lists them",
	Exports:      "`tidemark exports` lists them",
	Hosts:        "`tidemark host ls` lists them",
	Templates:    "`tidemark sla templates` lists them",
	Profiles:     "`tidemark profile` lists them",
}

// Put stores v under its sort and name, in place of what was there.
func (c *Catalog) Put(ctx context.Context, k Kept, name string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return wrap(c.exec(ctx, "INSERT INTO things (owner, kind, name, body, changed) VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, kind, name) DO UPDATE SET body = excluded.body, changed = excluded.changed",
		c.owner, k, name, string(body), c.now().UnixNano()), "store %s %s", k, name)
}

// Get loads what is stored under a sort and name into v, a pointer.
func (c *Catalog) Get(ctx context.Context, k Kept, name string, v any) error {
	var body string
	err := sql.ErrNoRows
	if !strings.Contains(name, "\x00") { // no text of a database has it
		err = c.query(ctx, &body, "SELECT body FROM things WHERE owner = ? AND kind = ? AND name = ?", c.owner, k, name)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return tidemark.Errorf(tidemark.NotFound, "there is no %s %q", k, name).WithHint(listed[k])
	}
	if err != nil {
		return wrap(err, "look up %s %s", k, name)
	}
	return json.Unmarshal([]byte(body), v)
}

// List returns all that is stored of a sort, by name.
func List[T any](ctx context.Context, c *Catalog, k Kept) ([]T, error) {
	var bodies []string
	err := c.query(ctx, &bodies, "SELECT body FROM things WHERE owner = ? AND kind = ? ORDER BY name", c.owner, k)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
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
	return wrap(c.exec(ctx, "DELETE FROM things WHERE owner = ? AND kind = ? AND name = ?", c.owner, k, name), "forget %s %s", k, name)
}

// DeleteBelow forgets all that is stored of a sort under names that begin with a prefix.
func (c *Catalog) DeleteBelow(ctx context.Context, k Kept, prefix string) error {
	return wrap(c.exec(ctx, "DELETE FROM things WHERE owner = ? AND kind = ? AND substr(name, 1, ?) = ?", c.owner, k, utf8.RuneCountInString(prefix), prefix), "forget %ss of %s", k, prefix)
}

// AddEvent records that something happened. Who reads the events of an owner in the order of their numbers misses none: one with a higher number is never
// there before one with a lower number is.
func (c *Catalog) AddEvent(ctx context.Context, e tidemark.Event) error {
	err := c.do(ctx, func(ctx context.Context) error {
		return c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			if c.outage.remote { // numbers are given before transactions end, in whatever order
				if _, err := tx.NewRaw("SELECT pg_advisory_xact_lock(hashtextextended(?, ?))", c.owner, eventLock).Exec(ctx); err != nil {
					return err
				}
			}
			_, err := tx.NewRaw("INSERT INTO events (owner, at, level, application, first_id, message) VALUES (?, ?, ?, ?, ?, ?)", c.owner, e.Time.UnixNano(), e.Level, e.Application, e.FirstID, e.Message).Exec(ctx)
			return err
		})
	})
	return wrap(err, "record an event")
}

// eventLock makes the advisory locks of PostgreSQL that AddEvent takes others than those that anybody else makes of a text: "events" in ASCII.
const eventLock int64 = 0x6576656e7473

// exec makes a call that changes something; after an outage a patient one is made again.
func (c *Catalog) exec(ctx context.Context, statement string, args ...any) error {
	return c.do(ctx, func(ctx context.Context) error {
		_, err := c.write.NewRaw(statement, args...).Exec(ctx)
		return err
	})
}

// counted is exec for who has to know how many rows were changed.
func (c *Catalog) counted(ctx context.Context, statement string, args ...any) (res sql.Result, err error) {
	err = c.do(ctx, func(ctx context.Context) (err error) {
		res, err = c.write.NewRaw(statement, args...).Exec(ctx)
		return err
	})
	return res, err
}

// query reads rows into a pointer.
func (c *Catalog) query(ctx context.Context, into any, statement string, args ...any) error {
	return c.do(ctx, func(ctx context.Context) error { return c.read.NewRaw(statement, args...).Scan(ctx, into) })
}

// tx runs fn in a transaction. Errors for users come through as they are.
func (c *Catalog) tx(ctx context.Context, what string, fn func(context.Context, bun.Tx) error) error {
	err := c.do(ctx, func(ctx context.Context) error { return c.write.RunInTx(ctx, nil, fn) })
	return wrap(err, "%s", what)
}

// wrap says what was being done, and tells a full disk and a broken file apart from a fault.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	if told := (*tidemark.Error)(nil); errors.As(err, &told) {
		return err // it says all already
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
