package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tidemark"
)

// in connects to one of the clone's databases.
func (in *Instance) in(database string) Source {
	return Source{Conn: in.ConnTo(database)}
}

// ConnTo is Conn for one of the clone's databases.
func (in *Instance) ConnTo(database string) string {
	return strings.Replace(in.Conn, "dbname=postgres", "dbname="+quoteWord(database), 1)
}

// Databases connects to every database that takes connections, has each answer, and returns their names.
func (in *Instance) Databases(ctx context.Context) ([]string, error) {
	conn, err := in.Source().Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
	if err != nil {
		return nil, fmt.Errorf("list databases: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list databases: %w", err)
	}
	for _, name := range names {
		if err := in.answers(ctx, name); err != nil {
			return nil, fmt.Errorf("database %s: %w", name, err)
		}
	}
	return names, nil
}

// answers asks one database how many relations it has, which reads its catalog.
func (in *Instance) answers(ctx context.Context, database string) error {
	conn, err := in.in(database).Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var n int
	return conn.QueryRow(ctx, "SELECT count(*) FROM pg_class").Scan(&n)
}

// ErrNoAmcheck is returned where tables and indexes cannot be checked: PostgreSQL 14 is the first with pg_amcheck, and
// its extension amcheck may not be installed.
var ErrNoAmcheck = errors.New("pg_amcheck or its extension is not installed")

// Amcheck has pg_amcheck read all tables and B-tree indexes of all databases; with deep, also whether every row is in every index. What it says goes to
// out. Damage is an error of kind Corrupt.
func (in *Instance) Amcheck(ctx context.Context, deep bool, out io.Writer) error {
	bin, err := Programs(in.DataDir)
	if err != nil {
		return err
	}
	ok, err := in.hasAmcheck(ctx, bin)
	if err != nil {
		return err
	}
	if !ok {
		return ErrNoAmcheck
	}
	args := []string{"--all", "--install-missing"}
	if deep {
		args = append(args, "--heapallindexed")
	}
	cmd, err := in.Source().tool(ctx, bin, "pg_amcheck", args...)
	if err != nil {
		return err
	}
	return runChecker(cmd, "pg_amcheck", out)
}

func (in *Instance) hasAmcheck(ctx context.Context, bin string) (bool, error) {
	if _, err := os.Stat(filepath.Join(bin, "pg_amcheck")); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	conn, err := in.Source().Connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var ok bool
	err = conn.QueryRow(ctx, "SELECT exists (SELECT FROM pg_available_extensions WHERE name = 'amcheck')").Scan(&ok)
	return ok, err
}

// DumpSchema has pg_dump read all definitions of a database, which it has to be able to. The dump itself is thrown away.
func (in *Instance) DumpSchema(ctx context.Context, database string, out io.Writer) error {
	bin, err := Programs(in.DataDir)
	if err != nil {
		return err
	}
	cmd, err := in.Source().tool(ctx, bin, "pg_dump", "--schema-only", "--file=/dev/null", "--dbname="+in.dumpName(database))
	if err != nil {
		return err
	}
	return runChecker(cmd, "pg_dump of "+database, out)
}

// dumpName is a connection string that names the database alone: a name could be taken for one.
func (in *Instance) dumpName(database string) string { return "dbname=" + quoteWord(database) }

// HasChecksums reports whether the pages of a data directory carry checksums.
func HasChecksums(ctx context.Context, dataDir string) (bool, error) {
	bin, err := Programs(dataDir)
	if err != nil {
		return false, err
	}
	c, err := readControl(ctx, bin, dataDir)
	return c.checksums, err
}

// VerifyChecksums reads all pages of a data directory whose server has been stopped, and compares them with their checksums. What the reader
// says goes to out. A page that differs is an error of kind Corrupt.
func VerifyChecksums(ctx context.Context, dataDir string, out io.Writer) error {
	bin, err := Programs(dataDir)
	if err != nil {
		return err
	}
	r := recovery{t: Target{DataDir: dataDir}}
	if err := r.findOwner(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_checksums"), "--check", "-D", dataDir)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	if err := runAs(cmd, r.owner); err != nil {
		return err
	}
	return runChecker(cmd, "pg_checksums", out)
}

// Programs returns the directory of the programs that serve a data directory, or an error of kind Unavailable if the host has none of
// its version.
func Programs(dataDir string) (string, error) {
	major, err := dataVersion(dataDir)
	if err != nil {
		return "", err
	}
	return binDirFor("", major)
}

// runChecker runs a program whose failure means damage, and tells its first line then.
func runChecker(cmd *exec.Cmd, what string, out io.Writer) error {
	first := &firstBytes{}
	w := io.MultiWriter(first, out)
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		return tidemark.Errorf(tidemark.Corrupt, "%s: %s", what, firstLine(string(first.text), err))
	}
	return nil
}

// firstBytes keeps the begin of what is written to it.
type firstBytes struct{ text []byte }

func (f *firstBytes) Write(p []byte) (int, error) {
	f.text = append(f.text, p[:min(len(p), 1024-len(f.text))]...)
	return len(p), nil
}

// RunSQL runs the statements of a script in one of the clone's databases, as the superuser and in one transaction. It is an error of kind
// Invalid if one fails, or if the last one returns a boolean in its first column and not a row of it, and nothing but true.
func (in *Instance) RunSQL(ctx context.Context, database, text string, out io.Writer) error {
	conn, err := in.in(database).Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	results := conn.PgConn().Exec(ctx, text)
	boolean, rows, wrong := false, 0, 0
	for n := 1; results.NextResult(); n++ {
		r := results.ResultReader()
		fields := r.FieldDescriptions()
		boolean, rows, wrong = len(fields) > 0 && fields[0].DataTypeOID == pgtype.BoolOID, 0, 0
		for r.NextRow() {
			rows++
			if boolean && string(r.Values()[0]) != "t" {
				wrong++
			}
		}
		tag, err := r.Close()
		if err != nil {
			break // Close of all of them says it again
		}
		fmt.Fprintf(out, "statement %d: %s\n", n, tag)
	}
	if err := results.Close(); err != nil {
		return tidemark.Errorf(tidemark.Invalid, "a statement failed: %s", oneLine(err))
	}
	if boolean && (rows == 0 || wrong > 0) {
		return tidemark.Errorf(tidemark.Invalid, "the last statement did not return true: of %d rows, %d are not", rows, wrong)
	}
	return nil
}
