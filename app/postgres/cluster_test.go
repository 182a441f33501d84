package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
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

// cluster is a real PostgreSQL, as stock Debian would have it: run by the user
// postgres, with peer authentication on its socket.
type cluster struct {
	t    testing.TB
	dir  string // data directory
	sock string
	port int
	src  Source
	cmd  *exec.Cmd
	os   *user.User
}

func newCluster(t testing.TB, conf ...string) *cluster {
	t.Helper()
	_, err := os.Stat(testBin + "/postgres")
	need(t, err == nil, "PostgreSQL 15")
	need(t, os.Geteuid() == 0, "root")
	u, err := user.Lookup("postgres")
	need(t, err == nil, "a user postgres")
	port, err := freePort(0, "")
	if err != nil {
		t.Fatal(err)
	}
	base := tempDir(t)
	c := &cluster{t: t, dir: filepath.Join(base, "prod"), sock: filepath.Join(base, "s"), port: port, os: u}
	c.src = Source{Conn: fmt.Sprintf("host=%s port=%d", c.sock, port)}
	for _, d := range []string{c.dir, c.sock} {
		c.mkdir(d)
	}
	c.run("initdb", "-D", c.dir, "-A", "peer", "--no-sync", "-k", "--no-instructions")
	conf = append([]string{"listen_addresses = ''", "unix_socket_directories = '" + c.sock + "'", fmt.Sprintf("port = %d", port),
		"fsync = off", "max_wal_size = 64MB"}, conf...)
	c.append("postgresql.conf", strings.Join(conf, "\n")+"\n")
	c.start()
	t.Cleanup(c.stop)
	return c
}

// tempDir is a short-named directory that other users can pass through.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "tmpg")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (c *cluster) mkdir(dir string) {
	c.t.Helper()
	uid, _ := strconv.Atoi(c.os.Uid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Chown(dir, uid, -1); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) append(name, text string) {
	c.t.Helper()
	f, err := os.OpenFile(filepath.Join(c.dir, name), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(testBin, name), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "PGHOST=" + c.sock, "PGPORT=" + strconv.Itoa(c.port), "PGDATABASE=postgres"}
	if err := runAs(cmd, c.os); err != nil {
		c.t.Fatal(err)
	}
	return cmd
}

func (c *cluster) run(name string, args ...string) {
	c.t.Helper()
	if out, err := c.command(name, args...).CombinedOutput(); err != nil {
		c.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func (c *cluster) start() {
	c.t.Helper()
	c.cmd = c.command("postgres", "-D", c.dir)
	log, err := os.Create(filepath.Join(filepath.Dir(c.dir), "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	for range 2000 {
		if _, lines := livePostmaster(c.dir); lines != nil && lines[7] == "ready" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	text, _ := os.ReadFile(log.Name())
	c.t.Fatalf("PostgreSQL does not start:\n%s", text)
}

func (c *cluster) stop() {
	if c.cmd == nil {
		return
	}
	c.cmd.Process.Signal(syscall.SIGQUIT)
	c.cmd.Wait()
	c.cmd = nil
}

func (c *cluster) exec(sql string) {
	c.t.Helper()
	execOn(c.t, c.src, sql)
}

func (c *cluster) query(sql string) string {
	c.t.Helper()
	return queryOn(c.t, c.src, sql)
}

func execOn(t testing.TB, src Source, sql string) {
	t.Helper()
	conn, err := src.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for s := range strings.SplitSeq(sql, ";") {
		if _, err := conn.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func queryOn(t testing.TB, src Source, sql string) string {
	t.Helper()
	conn, err := src.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var s string
	if err := conn.QueryRow(context.Background(), sql).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// copyTo makes a writable copy of staging, as a clone's disk would be.
func copyTo(t testing.TB, staging string) string {
	t.Helper()
	dir := filepath.Join(tempDir(t), "clone")
	if out, err := exec.Command("cp", "-a", "--sparse=always", staging, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy staging: %v\n%s", err, out)
	}
	return dir
}

// bringUp recovers a copy and stops it when the test ends.
func bringUp(t testing.TB, target Target) *Instance {
	t.Helper()
	in, err := Recover(context.Background(), target)
	if err != nil {
		text, _ := os.ReadFile(filepath.Join(target.DataDir, logName))
		t.Fatalf("recover: %v\n%s", err, text)
	}
	t.Cleanup(func() {
		if err := in.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return in
}

func mustCapture(t testing.TB, src Source, staging string, opts CaptureOptions) *CaptureResult {
	t.Helper()
	res, err := Capture(context.Background(), src, staging, opts)
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	t.Logf("capture: %d files, %d skipped, %d removed, read %d KiB, changed %d KiB, %s", res.Files, res.Skipped, res.Removed,
		res.ReadBytes>>10, res.ChangedBytes>>10, res.Stopped.Sub(res.Started).Round(time.Millisecond))
	return res
}

// signal kills a clone's server and waits until it is gone.
func (in *Instance) signal(t testing.TB, name string) {
	t.Helper()
	if out, err := exec.Command("kill", "-"+name, strconv.Itoa(in.PID)).CombinedOutput(); err != nil {
		t.Fatalf("kill: %v %s", err, out)
	}
	eventually(t, "the server is gone", func() bool { return in.Status() == Stopped })
	time.Sleep(100 * time.Millisecond) // its children notice
}
