package survive

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/app/postgres"
)

// program is the path of one of PostgreSQL's programs.
func program(name string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(found) == 0 {
		return name
	}
	return found[len(found)-1]
}

// production is a PostgreSQL that is protected.
type production struct {
	t    *testing.T
	home string
	port int
	cmd  *exec.Cmd
	args []string // further arguments of the server
}

// elsewhere is where programs are started that work on a disk which this process serves itself. A new process that enters a directory of that
// disk before it is a program of its own waits for us, while the runtime, if it is just stopping all goroutines, waits for it.
const elsewhere = "/"

// asPostgres is the user that PostgreSQL runs as.
func asPostgres(t *testing.T) (*syscall.SysProcAttr, int, int) {
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, uid, gid
}

// newProduction makes a cluster below an existing directory and starts it.
func newProduction(t *testing.T, parent string, args ...string) *production {
	t.Helper()
	p := &production{t: t, home: filepath.Join(parent, "prod"), port: freePort(t), args: args}
	as, uid, gid := asPostgres(t)
	if err := os.Mkdir(p.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(p.home, uid, gid); err != nil {
		t.Fatal(err)
	}
	initdb := exec.Command(program("initdb"), "-N", "-D", filepath.Join(p.home, "data"), "-A", "trust", "-U", "postgres", "--wal-segsize=1")
	initdb.SysProcAttr, initdb.Dir = as, elsewhere
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	t.Cleanup(func() { p.stop(syscall.SIGQUIT) })
	p.start()
	return p
}

func (p *production) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.home+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"-D", filepath.Join(p.home, "data"), "-k", p.home, "-p", strconv.Itoa(p.port),
		"-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "max_wal_size=32MB"}, p.args...)
	p.cmd = exec.Command(program("postgres"), args...)
	p.cmd.SysProcAttr, _, _ = asPostgres(p.t)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = elsewhere, log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	for range 600 {
		if exec.Command(program("pg_isready"), "-q", "-h", p.home, "-p", strconv.Itoa(p.port)).Run() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	text, _ := os.ReadFile(p.home + ".log")
	p.t.Fatalf("production does not answer: %s", text)
}

func (p *production) stop(sig syscall.Signal) {
	if p.cmd != nil {
		p.cmd.Process.Signal(sig)
		p.cmd.Wait()
		p.cmd = nil
	}
}

// url is what protect takes; conn what psql takes.
func (p *production) url() string {
	return fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d", p.home, p.port)
}

func (p *production) conn() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", p.home, p.port)
}

// load fills the cluster with pgbench's tables.
func (p *production) load() {
	p.t.Helper()
	must(p.t, program("pgbench"), "-i", "-q", "-s", "1", p.conn())
	must(p.t, program("psql"), "-d", p.conn(), "-qc", "CREATE EXTENSION amcheck")
}

// bench keeps pgbench running, as fast as a limit of transactions a second, until the returned function is called.
func (p *production) bench(rate int) (stop func()) {
	cmd := exec.Command(program("pgbench"), "-n", "-c", "2", "-T", "3600", "-R", strconv.Itoa(rate), p.conn())
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := false
	stop = func() {
		if !done {
			done = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	p.t.Cleanup(stop)
	return stop
}

// consistent checks a database: pgbench's sums agree, and pg_amcheck finds nothing.
func consistent(t *testing.T, conn string) {
	t.Helper()
	if err := inconsistency(conn); err != nil {
		t.Fatal(err)
	}
}

// inconsistency returns what consistent finds.
func inconsistency(conn string) error {
	sums, err := query(conn, `SELECT count(DISTINCT s) FROM (SELECT sum(abalance) AS s FROM pgbench_accounts
		UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(bbalance) FROM pgbench_branches
		UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) x`)
	if err != nil {
		return err
	}
	if sums != "1" {
		return fmt.Errorf("pgbench's sums differ at %s", conn)
	}
	args := []string{program("pg_amcheck"), "--heapallindexed"}
	for field := range strings.FieldsSeq(conn) {
		key, value, _ := strings.Cut(field, "=")
		args = append(args, map[string]string{"host": "--host=", "port": "--port=", "user": "--username=", "dbname": "--maintenance-db="}[key]+value)
	}
	return tryTool(append(args, "postgres")...)
}

// sql returns what a query yields.
func sql(t *testing.T, conn, text string) string {
	t.Helper()
	out, err := query(conn, text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// query is sql for those who may not end the test.
func query(conn, text string) (string, error) {
	cmd := exec.Command(program("psql"), "-d", conn, "-XAtc", text)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s, at %s: %w: %s", text, conn, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// must runs a program that has to succeed, and returns what it printed.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// freePort is a TCP port that nobody has now.
func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// killDatabases ends the databases of clones.
func (s *stage) killDatabases() {
	files, _ := filepath.Glob(filepath.Join(s.data, "clones", "*", "*", "data", "postmaster.pid"))
	for _, f := range files {
		in, err := postgres.Find(filepath.Dir(f))
		if err != nil {
			continue
		}
		syscall.Kill(in.PID, syscall.SIGQUIT)
		for range 100 {
			if syscall.Kill(in.PID, 0) != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}
