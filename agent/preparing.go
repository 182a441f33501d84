package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/postgres"
	"tidemark/app/residue"
	"tidemark/app/script"
	"tidemark/internal/vfs"
	"tidemark/mount"
)

// PreparationsDir is the directory of an agent's data directory with the steps of preparations. Only root may be able to write to it.
const PreparationsDir = "preparations"

// Step is a step of the preparation of a LiveClone: a program of [PreparationsDir] or, if its name ends in .sql, SQL.
type Step struct {
	Timeline string        `json:"timeline"` // id of the clone's
	File     string        `json:"file"`
	DataDir  string        `json:"data_dir"` // of its database; or where its files are
	Postgres bool          `json:"postgres"`
	Database string        `json:"database"` // that SQL runs in, and a program is told of
	Limit    time.Duration `json:"limit"`
	Env      []string      `json:"env"` // words for a program, beside those that say how to reach what it prepares
}

// StepEnd is what became of a step.
type StepEnd struct {
	Output  string `json:"output"`            // the last [mostOutput] bytes of what it said
	Failure string `json:"failure,omitempty"` // why it failed, without anything that it said; empty: it did not
}

// mostOutput is how much is kept of what a step says, in bytes.
const mostOutput = 64 << 10

// sqlSuffix is how names of files of SQL end.
const sqlSuffix = ".sql"

// CheckStep refuses a step that could not be run, and a file that others than root could have changed.
func (a *Agent) CheckStep(ctx context.Context, file string) error {
	_, err := do[none](ctx, a, "check-step", file, nil)
	return err
}

func doCheckStep(_ context.Context, s *session, file string, _ func(any)) (none, error) {
	dir := filepath.Join(s.places.Dir, PreparationsDir)
	_, executable, err := script.Read(dir, file)
	if err == nil && !executable && !strings.HasSuffix(file, sqlSuffix) {
		path := filepath.Join(dir, file)
		err = tidemark.Errorf(tidemark.Invalid, "%s is no executable file", path).WithHint("chmod 700 " + path + ", or name it .sql if it is SQL")
	}
	return none{}, err
}

// RunStep runs a step. It fails if that could not be begun; what became of it is in its end.
func (a *Agent) RunStep(ctx context.Context, step Step) (StepEnd, error) {
	return do[StepEnd](ctx, a, "run-step", step, nil)
}

func doRunStep(ctx context.Context, s *session, step Step, _ func(any)) (end StepEnd, err error) {
	if err := tidemark.CheckName(step.Timeline); err != nil {
		return end, err
	}
	if step.DataDir, err = s.ofClone(step.DataDir); err != nil {
		return end, err
	}
	dir := filepath.Join(s.places.Dir, PreparationsDir)
	var in *postgres.Instance
	if step.Postgres {
		if in, err = postgres.Find(step.DataDir); err != nil {
			return end, err
		}
		step.Env = append(step.Env, "TIDEMARK_CONNECTION="+in.ConnTo(step.Database), "PGHOST="+in.SocketDir, "PGPORT="+strconv.Itoa(in.Port), "PGUSER="+in.Superuser, "PGDATABASE="+step.Database)
	} else {
		step.Env = append(step.Env, "TIDEMARK_MOUNT="+step.DataDir)
	}
	var said tail
	if strings.HasSuffix(step.File, sqlSuffix) {
		err = runSQLStep(ctx, dir, step, in, &said)
	} else {
		err = s.runProgramStep(ctx, dir, step, &said)
	}
	end.Output = said.String()
	if ctx.Err() != nil {
		return end, ctx.Err()
	}
	if err != nil {
		end.Failure = err.Error()
	}
	return end, nil
}

// runSQLStep runs SQL. What the database says of a statement that fails goes to said alone: it may have values of rows in it.
func runSQLStep(ctx context.Context, dir string, step Step, in *postgres.Instance, said *tail) error {
	text, _, err := script.Read(dir, step.File)
	if err != nil {
		return err
	}
	if in == nil {
		return tidemark.Errorf(tidemark.Invalid, "%s is SQL, and there is no database", step.File)
	}
	bounded, cancel := context.WithTimeout(ctx, step.Limit)
	defer cancel()
	err = in.RunSQL(bounded, step.Database, string(text), said)
	if err == nil {
		return nil
	}
	fmt.Fprintln(said, err)
	if bounded.Err() != nil {
		return fmt.Errorf("%s took longer than %v", step.File, step.Limit)
	}
	return fmt.Errorf("a statement of %s failed, or its last one did not return true", step.File)
}

// stepFile is there while a program of a preparation runs, as [Places.runningFile] is.
func (p Places) stepFile(timeline string) string { return filepath.Join(p.Held, timeline+".step") }

func (s *session) runProgramStep(ctx context.Context, dir string, step Step, said *tail) error {
	if err := vfs.MkdirAll(vfs.OS, s.places.Held); err != nil {
		return err
	}
	word, running := runName+"="+rand.Text(), s.places.stepFile(step.Timeline)
	if err := os.WriteFile(running, []byte(word), 0o600); err != nil {
		return err
	}
	defer os.Remove(running)
	return script.RunFile(ctx, dir, step.File, step.Limit, said, append(step.Env, word)...)
}

// endStepsLeft kills what programs of preparations have started that ran when an agent was killed: they would go on writing to a clone
// that is being made what it was.
func endStepsLeft(p Places) {
	files, err := filepath.Glob(p.stepFile("*"))
	for _, file := range files {
		err = errors.Join(err, killLeft(file))
	}
	if err != nil {
		slog.Error("a program of a preparation may go on", "error", err)
	}
}

// tail keeps the end of what is written to it.
type tail struct{ buf []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - mostOutput; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }

// Rewriting asks for [residue.Prepare] on the database of a clone.
type Rewriting struct {
	Target postgres.Target `json:"target"` // how it is started
	Device string          `json:"device"` // that its file system is on
}

// RewritePostgres removes what a masked database still holds of values that were masked: see [residue.Prepare]. The database runs when it returns
// without an error. step is told what begins.
func (a *Agent) RewritePostgres(ctx context.Context, r Rewriting, step func(what string)) error {
	_, err := do[none](ctx, a, "rewrite-postgres", r, func(note json.RawMessage) {
		var what string
		if json.Unmarshal(note, &what) == nil {
			step(what)
		}
	})
	return err
}

func doRewritePostgres(ctx context.Context, s *session, r Rewriting, note func(any)) (none, error) {
	if err := s.checkDevice(r.Device); err != nil {
		return none{}, err
	}
	for _, path := range []*string{&r.Target.DataDir, &r.Target.Root, &r.Target.WALDir, &r.Target.ConfigDir} {
		var err error
		if *path, err = s.ofClone(*path); err != nil {
			return none{}, err
		}
	}
	r.Target.Room = s.room()
	in, err := postgres.Find(r.Target.DataDir)
	if err != nil {
		return none{}, err
	}
	return none{}, residue.Prepare(ctx, masked{r, remounted{r.Device, r.Target.Root}}, residue.PrepareOptions{Remove: []string{in.Log}, Step: func(what string) { note(what) }})
}

// Clearing asks for [residue.ClearFiles] on the files of a clone.
type Clearing struct {
	Device string `json:"device"` // that the file system is on
	Dir    string `json:"dir"`    // where it is mounted
}

// ClearFiles removes what is left of files that were changed or removed: see [residue.ClearFiles].
func (a *Agent) ClearFiles(ctx context.Context, r Clearing) error {
	_, err := do[none](ctx, a, "clear-files", r, nil)
	return err
}

func doClearFiles(ctx context.Context, s *session, r Clearing, _ func(any)) (none, error) {
	err := s.checkDevice(r.Device)
	if err == nil {
		r.Dir, err = s.ofClone(r.Dir)
	}
	if err != nil {
		return none{}, err
	}
	return none{}, residue.ClearFiles(ctx, remounted{r.Device, r.Dir}, r.Dir)
}

// masked is a clone for [residue.Prepare].
type masked struct {
	r Rewriting
	remounted
}

var _ residue.Remounter = masked{}

func (m masked) DataDir() string { return m.r.Target.DataDir }

func (m masked) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	in, err := postgres.Find(m.DataDir())
	if err != nil {
		return nil, err
	}
	return postgres.Source{Conn: in.ConnTo(database)}.Connect(ctx)
}

func (m masked) Stop(ctx context.Context) error {
	in, err := postgres.Find(m.DataDir())
	if tidemark.KindOf(err) == tidemark.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return in.Stop(ctx)
}

func (m masked) Start(ctx context.Context) error {
	_, err := postgres.Recover(ctx, m.r.Target)
	return err
}

// remounted is the file system of a clone, which is taken off for a moment.
type remounted struct{ device, dir string }

// unmountPatience is how long the file system of a clone may be in use by who is just leaving.
const unmountPatience = 5 * time.Second

func (m remounted) Unmount(ctx context.Context) (device string, err error) {
	err = mount.WhileBusy(ctx, unmountPatience, func() error { return mount.Unmount(m.dir) })
	if err == nil {
		err = mount.WhileBusy(ctx, lettingGo, m.isFree)
	}
	if errors.Is(err, mount.ErrBusy) {
		err = fmt.Errorf("%w%s", err, by(m.device))
	}
	return m.device, err
}

// isFree returns [mount.ErrBusy] while something has the device, as the room of the database that was just stopped may for a moment: nobody may
// write to it then.
func (m remounted) isFree() error {
	f, err := os.OpenFile(m.device, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w", m.device, mount.ErrBusy)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func (m remounted) Mount(context.Context) error {
	return mount.MountFS(m.device, m.dir, "", []string{"noatime", "nosuid", "nodev"})
}

// Gathering asks for fingerprints of what a query returns.
type Gathering struct {
	DataDir  string      `json:"data_dir"`
	Database string      `json:"database"`
	SQL      string      `json:"sql"`
	Ways     residue.Way `json:"ways"`
	Key      []byte      `json:"key"`
}

// Gathered are fingerprints, as [residue.Fingerprints.WriteTo] writes them.
type Gathered struct {
	Prints []byte `json:"prints"`
}

// Gather makes fingerprints of every value of every row that a query returns in a database of this host. The values stay in the agent's memory. One that cannot be
// searched is an error, with its number.
func (a *Agent) Gather(ctx context.Context, g Gathering) (Gathered, error) {
	return do[Gathered](ctx, a, "gather", g, nil)
}

func doGather(ctx context.Context, _ *session, g Gathering, _ func(any)) (res Gathered, err error) {
	in, err := postgres.Find(g.DataDir)
	if err != nil {
		return res, err
	}
	key, err := keyOf(g.Key)
	if err != nil {
		return res, err
	}
	b, err := residue.NewBuilder(key, g.Ways)
	if err != nil {
		return res, err
	}
	conn, err := postgres.Source{Conn: in.ConnTo(g.Database)}.Connect(ctx)
	if err != nil {
		return res, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := addResults(ctx, conn, g.SQL, b); err != nil {
		return res, err
	}
	var prints bytes.Buffer
	_, err = b.Fingerprints().WriteTo(&prints)
	res.Prints = prints.Bytes()
	return res, err
}

// addResults adds what a query returns, as text. What the database says of a query that fails may have values in it, so only its code is told.
func addResults(ctx context.Context, conn *pgx.Conn, sql string, b *residue.Builder) error {
	results := conn.PgConn().Exec(ctx, sql)
	var refused error
	for results.NextResult() {
		r := results.ResultReader()
		for r.NextRow() {
			for _, v := range r.Values() {
				if _, err := b.Add(v); err != nil && refused == nil {
					refused = err
				}
			}
		}
		if _, err := r.Close(); err != nil {
			break // Close of all of them says it again
		}
	}
	if err := results.Close(); err != nil {
		var said interface{ SQLState() string }
		if errors.As(err, &said) {
			return tidemark.Errorf(tidemark.Invalid, "the query for the sensitive values failed, with the code %s", said.SQLState()).WithHint("try it in a clone of the source")
		}
		return err
	}
	return refused
}

// keyOf is a key as a call has it.
func keyOf(b []byte) (key residue.Key, err error) {
	if copy(key[:], b) != len(b) || len(b) != len(key) {
		err = tidemark.Errorf(tidemark.Invalid, "a key of fingerprints has %d bytes, not %d", len(key), len(b))
	}
	return key, err
}

// FileSearch asks for a search of all files below a directory, and for what lies at offsets of the disk that they are on.
type FileSearch struct {
	Dir     string  `json:"dir"`
	Prints  []byte  `json:"prints"`
	Key     []byte  `json:"key"`
	Offsets []int64 `json:"offsets"`
	Most    int     `json:"most"` // findings
}

// FilesSearched is what was found in files.
type FilesSearched struct {
	Result   residue.Result    `json:"result"`
	Findings []residue.Finding `json:"findings"`
	Places   []string          `json:"places"` // what lies at each of the offsets
}

// SearchFiles searches the files of a mounted file system for residue: see [residue.OpenFiles].
func (a *Agent) SearchFiles(ctx context.Context, f FileSearch, progress func(tidemark.Progress)) (FilesSearched, error) {
	return do[FilesSearched](ctx, a, "search-files", f, progressOf(progress))
}

func doSearchFiles(ctx context.Context, _ *session, f FileSearch, note func(any)) (res FilesSearched, err error) {
	key, err := keyOf(f.Key)
	if err != nil {
		return res, err
	}
	prints, err := residue.Read(bytes.NewReader(f.Prints), key)
	if err != nil {
		return res, err
	}
	places, err := residue.NewFileMap(f.Dir, nil)
	if err != nil {
		return res, err
	}
	for _, off := range f.Offsets {
		res.Places = append(res.Places, places.Describe(off))
	}
	files, err := residue.OpenFiles(f.Dir, nil)
	if err != nil {
		return res, err
	}
	tell := rarely(note)
	opts := residue.Options{Disk: "files", Places: files, Progress: func(done, total int64) {
		tell(tidemark.Progress{Done: done, Total: total, Unit: "bytes"})
	}}
	r, err := residue.Scan(ctx, files, prints, opts, func(x residue.Finding) bool {
		res.Findings = append(res.Findings, x)
		return len(res.Findings) < f.Most
	})
	if err != nil {
		return res, err
	}
	res.Result = *r
	return res, nil
}
