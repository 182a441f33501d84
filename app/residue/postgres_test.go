package residue

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"tidemark/app"
	"tidemark/block"
)

const testBin = "/usr/lib/postgresql/15/bin"

// need skips a test on a workstation that lacks something, and fails it in CI.
func need(t testing.TB, ok bool, what string) {
	t.Helper()
	if !ok && os.Getenv("CI") != "" {
		t.Fatalf("CI must have: %s", what)
	}
	if !ok {
		t.Skipf("needs %s", what)
	}
}

// fileDisk is an image file as a disk. Its holes are those of the file.
type fileDisk struct {
	*os.File
	size int64
}

func openDisk(t testing.TB, name string) *fileDisk {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &fileDisk{f, st.Size()}
}

func (d *fileDisk) Size() int64 { return d.size }

func (d *fileDisk) Extents(off, n int64, fn func(block.Extent) bool) error {
	for end := off + n; off < end; {
		data, err := unix.Seek(int(d.Fd()), off, unix.SEEK_DATA)
		if err != nil {
			data = end
		}
		if data = min(data, end); data > off && !fn(block.Extent{Off: off, Len: data - off, Hole: true}) {
			return nil
		}
		if off = data; off == end {
			return nil
		}
		hole, err := unix.Seek(int(d.Fd()), off, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if hole = min(hole, end); !fn(block.Extent{Off: off, Len: hole - off}) {
			return nil
		}
		off = hole
	}
	return nil
}

// image is a file system in an image file, mounted through a loop device.
type image struct {
	t            testing.TB
	file, dir    string
	mountOptions string
	mounted      bool
}

func newImage(t testing.TB, kind, options string) *image {
	t.Helper()
	need(t, os.Geteuid() == 0, "root")
	base, err := os.MkdirTemp("/tmp", "tmres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	os.Chmod(base, 0o755)
	im := &image{t: t, file: filepath.Join(base, "disk"), dir: filepath.Join(base, "mnt"), mountOptions: options}
	os.Mkdir(im.dir, 0o755)
	if err := os.WriteFile(im.file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Truncate(im.file, 1<<30)
	im.run("mkfs."+kind, "-q", im.file)
	im.mount()
	t.Cleanup(func() {
		if im.mounted {
			exec.Command("umount", "-l", im.dir).Run()
		}
	})
	return im
}

func (im *image) run(name string, args ...string) {
	im.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		im.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (im *image) mount() {
	im.t.Helper()
	im.run("mount", "-o", strings.Trim("loop,"+im.mountOptions, ","), im.file, im.dir)
	im.mounted = true
}

func (im *image) unmount() {
	im.t.Helper()
	im.run("umount", im.dir)
	im.mounted = false
}

// server is a real PostgreSQL on an image. It is a [Clone] and a [Remounter].
type server struct {
	*image
	sock string
	os   *user.User
}

func newServer(t testing.TB, im *image, conf ...string) *server {
	t.Helper()
	_, err := os.Stat(testBin + "/postgres")
	need(t, err == nil, "PostgreSQL 15")
	u, err := user.Lookup("postgres")
	need(t, err == nil, "a user postgres")
	s := &server{image: im, sock: filepath.Join(filepath.Dir(im.dir), "s"), os: u}
	uid, _ := strconv.Atoi(u.Uid)
	os.Mkdir(s.sock, 0o700)
	for _, d := range []string{im.dir, s.sock} {
		if err := os.Chown(d, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	s.pg("initdb", "-D", s.DataDir(), "-A", "trust", "-U", "postgres", "--no-sync", "-k", "--no-instructions")
	conf = append([]string{"listen_addresses = ''", "unix_socket_directories = '" + s.sock + "'", "max_wal_size = 64MB", "min_wal_size = 32MB",
		"autovacuum = off", "log_statement = 'all'", "logging_collector = on", "log_rotation_age = 0"}, conf...)
	f, err := os.OpenFile(filepath.Join(s.DataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, strings.Join(conf, "\n"))
	f.Close()
	if err := s.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.command("pg_ctl", "-D", s.DataDir(), "-m", "immediate", "stop").Run() })
	return s
}

func (s *server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(testBin, name), args...)
	uid, _ := strconv.Atoi(s.os.Uid)
	gid, _ := strconv.Atoi(s.os.Gid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.Env, cmd.Dir = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8"}, "/"
	return cmd
}

func (s *server) pg(name string, args ...string) {
	s.t.Helper()
	if out, err := s.command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (s *server) DataDir() string { return filepath.Join(s.dir, "data") }

func (s *server) ctl(args ...string) error {
	log := filepath.Join(filepath.Dir(s.dir), "ctl.log")
	cmd := s.command("pg_ctl", append([]string{"-D", s.DataDir(), "-w", "-t", "120"}, args...)...)
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log)
		return fmt.Errorf("pg_ctl %v: %w\n%s", args, err, text)
	}
	return nil
}

func (s *server) Start(context.Context) error { return s.ctl("start") }

func (s *server) Stop(context.Context) error { return s.ctl("stop", "-m", "fast") }

func (s *server) Connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s user=postgres database=%s", s.sock, database))
}

func (s *server) Unmount(context.Context) (string, error) { s.unmount(); return s.file, nil }

func (s *server) Mount(context.Context) error { s.mount(); return nil }

func (s *server) exec(sql ...string) {
	s.t.Helper()
	conn, err := s.Connect(context.Background(), "postgres")
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, q := range sql {
		if _, err := conn.Exec(context.Background(), q, pgx.QueryExecModeSimpleProtocol); err != nil {
			s.t.Fatalf("%.200s: %v", q, err)
		}
	}
}

func (s *server) stop() {
	s.t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		s.t.Fatal(err)
	}
}

// bury is a text of at least n bytes that compresses, in which a value of two parts lies at the end: both parts occur often before, so that
// what is stored of the value itself is references. Noise keeps it long when compressed.
func bury(value string, n int, noisy bool) string {
	half := len(value) / 2
	var s strings.Builder
	for i := 0; s.Len() < n; i++ {
		fmt.Fprintf(&s, "<%s|%s>", value[:half], value[half:])
		if noisy {
			fmt.Fprintf(&s, "%x", uint64(i)*0x9e3779b97f4a7c15*uint64(i+7))
		}
	}
	return s.String() + value + "."
}

// kinds are the types and ways of storage, each with a value of its own.
var kinds = []struct {
	name, column, value, stored string // stored: how SQL writes it, where that is not the value
	encoding, within            string // how it is to be found, "" is as it is
}{
	{name: "text", column: "text", value: "Adalbert Zwiebelmann", encoding: "UTF-8"},
	{name: "case", column: "text", value: "Größe Übermüller", stored: "GRÖßE ÜBERMÜLLER", encoding: "UTF-8"},
	{name: "pglz", column: "text COMPRESSION pglz", value: "Berengar Quastenflosser", stored: bury("Berengar Quastenflosser", 6000, false), within: "compressed value (pglz)"},
	{name: "lz4", column: "text COMPRESSION lz4", value: "Cunigunde Fuchsschwanz", stored: bury("Cunigunde Fuchsschwanz", 6000, false), within: "compressed value (lz4)"},
	{name: "toast_pglz", column: "text COMPRESSION pglz", value: "Dietlinde Rosenkranzer", stored: bury("Dietlinde Rosenkranzer", 100_000, true), within: "TOAST value (pglz)"},
	{name: "toast_lz4", column: "text COMPRESSION lz4", value: "Ekkehardt Wolkenstein", stored: bury("Ekkehardt Wolkenstein", 100_000, true), within: "TOAST value (lz4)"},
	{name: "external", column: "text STORAGE EXTERNAL", value: "Friedebert Ueberzwerch", stored: strings.Repeat("x", 1996*3-9) + "Friedebert Ueberzwerch" + strings.Repeat("y", 3000), within: "TOAST value, pieces 2 and 3"},
	{name: "numeric", column: "numeric(24,2)", value: "4929123412349876", encoding: "numeric"},
	{name: "int8", column: "int8", value: "4539876543211234", encoding: "int8"},
	{name: "spaced", column: "text", value: "5454111122223333", stored: "5454 1111-2222.3333", encoding: "digits"},
	{name: "uuid", column: "uuid", value: "7d444840-9dc0-11d1-b245-5ffdce74fad2", encoding: "uuid"},
	{name: "bytea", column: "bytea", value: `\x0badc0de5eed77a1`, encoding: "bytes"},
	{name: "jsonb", column: "jsonb", value: "Gerlinde Hinterhuber", stored: `{"a": [1, {"name": "Gerlinde Hinterhuber"}]}`, encoding: "UTF-8"},
	{name: "jsonb_number", column: "jsonb", value: "4929000011112222", stored: `{"card": 4929000011112222}`, encoding: "numeric"},
	{name: "jsonb_long", column: "jsonb", value: "Hildebrand Immergruen", stored: `{"note": "` + bury("Hildebrand Immergruen", 6000, false) + `"}`, within: "compressed value (pglz)"},
	{name: "list", column: "text[]", value: "Irmingard Jaegermeister", stored: `{"Irmingard Jaegermeister", b}`, encoding: "UTF-8"},
}

func kindsSet(t testing.TB) *Fingerprints {
	var values []string
	for _, k := range kinds {
		values = append(values, k.value)
	}
	return prints(t, Folded|Digits|Binary, values...)
}

// wantKinds checks that the value of each kind is among the findings, in the way that it must be found.
func wantKinds(t *testing.T, state string, got []Finding, skip ...string) {
	t.Helper()
	for i, k := range kinds {
		if slices.Contains(skip, k.name) {
			continue
		}
		if !slices.ContainsFunc(got, func(f Finding) bool {
			return f.Value == i+1 && (k.encoding == "" || f.Encoding == k.encoding) && f.Within == k.within
		}) {
			t.Errorf("%s: %s was not found", state, k.name)
		}
	}
}

func scanFiles(t *testing.T, dir string, set *Fingerprints) []Finding {
	t.Helper()
	files, err := OpenFiles(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, res := scan(t, files, set, Options{Places: files})
	t.Logf("%d findings in files, %+v", len(got), *res)
	return got
}

// onlyRelations leaves out findings in WAL and logs.
func onlyRelations(list []Finding) []Finding {
	return slices.DeleteFunc(list, func(f Finding) bool { return !strings.HasPrefix(f.Place, "relation ") })
}

// TestPostgresTypes finds values of all types and ways of storage in a real cluster: live, updated and deleted, and in free space after rm.
func TestPostgresTypes(t *testing.T) {
	s := newServer(t, newImage(t, "ext4", ""))
	set := kindsSet(t)
	var sql []string
	for _, k := range kinds {
		stored := k.stored
		if stored == "" {
			stored = k.value
		}
		column, storage, _ := strings.Cut(k.column, " STORAGE ")
		sql = append(sql, fmt.Sprintf("CREATE TABLE t_%s (id int, v %s)", k.name, column))
		if storage != "" {
			sql = append(sql, fmt.Sprintf("ALTER TABLE t_%s ALTER v SET STORAGE %s", k.name, storage))
		}
		sql = append(sql, fmt.Sprintf("INSERT INTO t_%s VALUES (1, '%s')", k.name, strings.ReplaceAll(stored, "'", "''")))
	}
	s.exec(append(sql, "CHECKPOINT")...)
	wantKinds(t, "live", onlyRelations(scanFiles(t, s.DataDir(), set)))
	for i, k := range kinds {
		if i%2 == 0 {
			s.exec("UPDATE t_" + k.name + " SET v = NULL")
		} else {
			s.exec("DELETE FROM t_" + k.name)
		}
	}
	s.exec("CHECKPOINT")
	wantKinds(t, "dead", onlyRelations(scanFiles(t, s.DataDir(), set)))
	s.stop()
	app.SyncTree(s.dir)
	places, err := NewFileMap(s.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := scan(t, openDisk(t, s.file), set, Options{Places: places})
	for _, f := range got {
		if f.Place == "" || strings.HasPrefix(f.Place, "free space") {
			t.Errorf("%+v is said to lie in free space", f)
			break
		}
	}
	wantKinds(t, "on the disk", onlyRelations(got))
	s.run("rm", "-r", s.DataDir())
	s.unmount()
	s.mount()
	if places, err = NewFileMap(s.dir, nil); err != nil {
		t.Fatal(err)
	}
	got, res := scan(t, openDisk(t, s.file), set, Options{Places: places})
	t.Logf("%d findings after rm, %+v", len(got), *res)
	wantKinds(t, "after rm", got)
	for _, f := range got {
		if !strings.HasPrefix(f.Place, "free space") {
			t.Errorf("%+v does not lie in free space", f)
		}
	}
}

// TestPostgresWAL finds values of which nothing is left but compressed page images in WAL, and values in records that go on over pages.
func TestPostgresWAL(t *testing.T) {
	for _, method := range []string{"pglz", "lz4", "zstd"} {
		t.Run(method, func(t *testing.T) {
			im := newImage(t, "ext4", "")
			s := newServer(t, im, "wal_compression = "+method, "wal_recycle = off", "log_statement = none", "log_min_duration_statement = -1", "log_min_error_statement = panic")
			const inRow, inToast = "Kunibert Lindwurmbein", "Ludmilla Morgensternin"
			set := prints(t, Folded, inRow, inToast)
			// The value is spread over rows that have its halves, so that in the page image it is references.
			s.exec("CREATE TABLE r (id int, v text)", "CREATE TABLE x (id int, v text)", "ALTER TABLE x ALTER v SET STORAGE EXTERNAL",
				"INSERT INTO r SELECT i, 'Kunibert Lindwurmbein'||repeat('Kunibert Li ndwurmbein ', 5) FROM generate_series(1, 10) i",
				"INSERT INTO x VALUES (1, repeat('x', 1996-5) || 'Ludmilla Morgensternin' || repeat('y', 400))")
			// Everything that says so as it is leaves WAL. What the next changes of these pages write is page images.
			s.exec("CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT", "SELECT pg_switch_wal()", "CHECKPOINT",
				"UPDATE r SET id = id + 100 WHERE id = 5", "DELETE FROM x", "SELECT txid_current()", "CHECKPOINT", "DROP TABLE r", "DROP TABLE x", "CHECKPOINT")
			s.stop()
			if err := trim(s.dir); err != nil {
				t.Fatal(err)
			}
			within := map[int]string{}
			for _, disk := range []block.Reader{mustFiles(t, s.DataDir()), openDisk(t, s.file)} {
				got, res := scan(t, disk, set, Options{})
				t.Logf("%d findings, %+v", len(got), *res)
				for _, f := range got {
					within[f.Value] += f.Within + ";"
				}
			}
			if strings.Count(within[1], "page image in WAL ("+method+")") < 18 { // of ten rows one may be a literal in the compressed bytes
				t.Errorf("the value of a row was found in %q", within[1])
			}
			if !strings.Contains(within[2], "TOAST value, pieces 0 and 1") {
				t.Errorf("the value across pieces was found in %q", within[2])
			}
		})
	}
}

func mustFiles(t *testing.T, dir string) *Files {
	t.Helper()
	f, err := OpenFiles(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestPrepare masks names and cards in a real cluster. Before the preparation the scan finds them on the disk, and afterwards none.
func TestPrepare(t *testing.T) {
	for _, fs := range []struct{ kind, options string }{{"ext4", "data=journal"}, {"xfs", ""}} {
		t.Run(fs.kind, func(t *testing.T) {
			_, err := exec.LookPath("mkfs." + fs.kind)
			need(t, err == nil, "mkfs."+fs.kind)
			testPrepare(t, newServer(t, newImage(t, fs.kind, fs.options), "wal_compression = lz4", "work_mem = 64kB", "log_temp_files = 0",
				"shared_preload_libraries = 'pg_stat_statements'"))
		})
	}
}

const people = 400

func testPrepare(t *testing.T, s *server) {
	ctx := context.Background()
	name := `'Vorname'||i||' Nachname'||(i*7919 % 100003)`
	card := `(4000000000000000 + i::int8 * 104729 * 7907)`
	s.exec("CREATE EXTENSION pg_stat_statements",
		"CREATE TABLE people (id int PRIMARY KEY, name text, card int8, cents numeric, note text, photo text)", "CREATE INDEX ON people (name)", "CREATE INDEX ON people (card)",
		fmt.Sprintf(`INSERT INTO people SELECT i, n, c, c, repeat(n||' paid with '||c||'. ', 60), CASE WHEN i %% 50 = 0 THEN (SELECT string_agg(md5(j::text||n), n) FROM generate_series(1, 400) j) END
			FROM (SELECT i, %s AS n, %s AS c FROM generate_series(1, %d) i) x`, name, card, people),
		"CREATE STATISTICS pairs ON name, card FROM people", "ANALYZE", "SELECT count(*) FROM (SELECT * FROM people ORDER BY note, name) x",
		"UPDATE people SET name = 'Vorname17 Nachname34620' WHERE id % 3 = 0", "ANALYZE people")
	b, _ := NewBuilder(NewKey(), Folded|Digits|Binary)
	conn, err := s.Connect(ctx, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	for _, column := range []string{name, card} {
		rows, _ := conn.Query(ctx, fmt.Sprintf("SELECT (%s)::text FROM generate_series(1, %d) i", column, people))
		values, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			if _, err := b.Add([]byte(v)); err != nil {
				t.Fatal(err)
			}
		}
	}
	conn.Close(ctx)
	set := b.Fingerprints()
	s.exec("UPDATE people SET name = 'Person '||id, card = id, cents = id, note = repeat('masked ', 800), photo = md5(id::text)", "CREATE DATABASE other TEMPLATE template0", "CHECKPOINT")
	if n := countFindings(t, s, set); n == 0 {
		t.Fatal("no residue was found before the preparation")
	} else {
		t.Logf("%d findings before the preparation", n)
	}
	began := time.Now()
	if err := Prepare(ctx, s, PrepareOptions{Step: func(what string) { t.Logf("%5d ms: %s", time.Since(began).Milliseconds(), what) }}); err != nil {
		t.Fatal(err)
	}
	s.exec("SELECT 1/count(*) FROM people WHERE name LIKE 'Person %'", "INSERT INTO people VALUES (0)")
	if n := countFindings(t, s, set); n != 0 {
		t.Errorf("%d findings are left", n)
	}
	s.stop()
	s.pg("pg_checksums", "--check", "-D", s.DataDir())
	s.unmount()
	if fs := s.mountOptions; fs != "" {
		s.run("e2fsck", "-fn", s.file)
	}
}

// countFindings scans the disk and the files, and prints a few of what it finds.
func countFindings(t *testing.T, s *server, set *Fingerprints) int {
	t.Helper()
	if err := app.SyncTree(s.dir); err != nil {
		t.Fatal(err)
	}
	conn, err := s.Connect(context.Background(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	names, err := RelationNames(context.Background(), conn)
	conn.Close(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	places, err := NewFileMap(s.dir, names)
	if err != nil {
		t.Fatal(err)
	}
	files := mustFiles(t, s.dir)
	files.names = names
	got, _ := scan(t, openDisk(t, s.file), set, Options{Disk: "disk", Places: places})
	more, _ := scan(t, files, set, Options{Disk: "files", Places: files})
	got = append(got, more...)
	where := map[string]int{}
	for _, f := range got {
		place, _, _ := strings.Cut(f.Place, ",")
		where[f.Disk+": "+place]++
	}
	for place, n := range where {
		t.Logf("%6d in %s", n, place)
	}
	return len(got)
}

// TestFill clears the free space of a file system without discard.
func TestFill(t *testing.T) {
	im := newImage(t, "ext4", "")
	set := prints(t, AsIs, "Notburga Oberhauser")
	name := filepath.Join(im.dir, "file")
	if err := os.WriteFile(name, []byte(strings.Repeat("Notburga Oberhauser, ", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	app.SyncTree(im.dir)
	os.Remove(name)
	im.unmount()
	im.mount()
	if got, _ := scan(t, openDisk(t, im.file), set, Options{}); len(got) == 0 {
		t.Fatal("the removed file was not found")
	}
	if err := fillFree(context.Background(), im.dir); err != nil {
		t.Fatal(err)
	}
	im.unmount()
	if got, _ := scan(t, openDisk(t, im.file), set, Options{}); len(got) != 0 {
		t.Fatalf("%d findings are left, first %+v", len(got), got[0])
	}
}

// TestJournal finds a removed file in the journal of an ext4, where discarding free space does not reach, and makes the journal anew.
func TestJournal(t *testing.T) {
	im := newImage(t, "ext4", "data=journal")
	set := prints(t, AsIs, "Ottokar Pfefferkorn")
	name := filepath.Join(im.dir, "file")
	if err := os.WriteFile(name, []byte(strings.Repeat("Ottokar Pfefferkorn, ", 10_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	app.SyncTree(im.dir)
	os.Remove(name)
	left := func() int {
		if err := trim(im.dir); err != nil {
			t.Fatal(err)
		}
		got, _ := scan(t, openDisk(t, im.file), set, Options{})
		return len(got)
	}
	if left() == 0 {
		t.Fatal("nothing was found in the journal")
	}
	p := &preparation{clone: &server{image: im}, dir: im.dir}
	if err := p.renewJournal(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := left(); n != 0 {
		t.Errorf("%d findings are left", n)
	}
	im.unmount()
	im.run("e2fsck", "-fn", im.file)
}

// XFS sets blocks aside beyond the end of a file that is appended to. They hold what was there before, and are no free space.
func TestTrimBeyondEnds(t *testing.T) {
	_, err := exec.LookPath("mkfs.xfs")
	need(t, err == nil, "mkfs.xfs")
	im := newImage(t, "xfs", "")
	name, size := filepath.Join(im.dir, "log"), int64(0)
	for range 20 {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.Write(make([]byte, 100<<10))
		size += int64(n)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	held := func() int64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	if err := exec.Command("sync", "-f", name).Run(); err != nil {
		t.Fatal(err)
	}
	if held() <= size {
		t.Fatalf("this tests nothing: %d bytes are held for %d", held(), size)
	}
	if err := trim(im.dir); err != nil {
		t.Fatal(err)
	}
	if held() != size {
		t.Errorf("%d bytes are held for %d", held(), size)
	}
	im.unmount()
}
