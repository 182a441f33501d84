package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// pgBin is where Debian has PostgreSQL's programs.
const pgBin = "/usr/lib/postgresql/15/bin/"

// asPostgres lets a command run as the user that owns the databases: the server
// refuses to be root.
func asPostgres(cmd *exec.Cmd) error {
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.Dir = "/"
	return nil
}

func runAsPostgres(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if err := asPostgres(cmd); err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), nil
}

// cluster is a PostgreSQL that runs on a data directory.
type cluster struct {
	dir, sockets string
	cmd          *exec.Cmd
	exited       chan error
}

// startPG starts the server itself, not through pg_ctl, which looks only ten
// times a second.
func startPG(dir, sockets string) (*cluster, error) {
	c := &cluster{dir: dir, sockets: sockets}
	log, err := os.OpenFile(sockets+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd = exec.Command(pgBin+"postgres", "-D", dir, "-c", "unix_socket_directories="+sockets, "-c", "listen_addresses=", "-c", "port=5499")
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := asPostgres(c.cmd); err != nil {
		return nil, err
	}
	c.exited, err = startTied(c.cmd)
	return c, err
}

func (c *cluster) conn() string {
	return "host=" + c.sockets + " port=5499 user=postgres dbname=postgres"
}

// ready waits until SELECT 1 is answered.
func (c *cluster) ready(ctx context.Context) error {
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		err := c.exec(ctx, "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-c.exited:
			said, _ := os.ReadFile(c.sockets + "/log")
			return fmt.Errorf("postgres ended: %s", said)
		default:
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

func (c *cluster) exec(ctx context.Context, sql string) error { return query(ctx, c.conn(), sql) }

// query runs one statement in a database.
func query(ctx context.Context, conn, sql string) error {
	c, err := pgx.Connect(ctx, conn)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

// stop ends the server: fast (with a checkpoint) or at once.
func (c *cluster) stop(sig syscall.Signal) error {
	c.cmd.Process.Signal(sig)
	select {
	case <-c.exited:
		return nil
	case <-time.After(time.Minute):
		return errors.New("postgres did not stop")
	}
}

const (
	stopFast   = syscall.SIGINT
	stopAtOnce = syscall.SIGQUIT
)

// pgbench runs pgbench and returns its transactions per second.
func (c *cluster) pgbench(ctx context.Context, args ...string) (float64, error) {
	out, err := runAsPostgres(ctx, append([]string{pgBin + "pgbench", "-n", "-h", c.sockets, "-p", "5499", "-U", "postgres"}, append(args, "postgres")...)...)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`tps = ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench said: %s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// configure adds settings to the configuration, which the next start reads.
func (c *cluster) configure(settings ...string) error {
	f, err := os.OpenFile(c.dir+"/postgresql.conf", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(settings, "\n") + "\n")
	return errors.Join(err, f.Close())
}

// ownedDir makes a directory for the databases' user.
func ownedDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return os.Chown(dir, uid, gid)
}

// newCluster makes a cluster with pgbench's tables at a scale (15 MB each), in
// which the rows' filler is hexadecimal digits instead of blanks, so that the
// data compresses as real tables do; and leaves it running.
func newCluster(ctx context.Context, root string, scale int) (*cluster, error) {
	if err := os.Chmod(root, 0o755); err != nil {
		return nil, err
	}
	dir, sockets := root+"/pg", root+"/run"
	for _, d := range []string{dir, sockets} {
		if err := ownedDir(d); err != nil {
			return nil, err
		}
	}
	if _, err := runAsPostgres(ctx, pgBin+"initdb", "-k", "-D", dir, "-A", "trust"); err != nil {
		return nil, err
	}
	c := &cluster{dir: dir}
	if err := c.configure("shared_buffers=128MB", "max_wal_size=256MB", "min_wal_size=64MB", "checkpoint_timeout=30min", "autovacuum=off"); err != nil {
		return nil, err
	}
	c, err := startPG(dir, sockets)
	if err != nil {
		return nil, err
	}
	if err := c.load(ctx, scale); err != nil {
		c.stop(stopAtOnce)
		return nil, err
	}
	return c, nil
}

func (c *cluster) load(ctx context.Context, scale int) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	init := func(steps string) error {
		_, err := runAsPostgres(ctx, pgBin+"pgbench", "-q", "-i", "-I", steps, "-s", strconv.Itoa(scale), "-h", c.sockets, "-p", "5499", "-U", "postgres", "postgres")
		return err
	}
	if err := init("dt"); err != nil {
		return err
	}
	rows := fmt.Sprintf(`insert into pgbench_branches(bid,bbalance) select i,0 from generate_series(1,%[1]d) i;
insert into pgbench_tellers(tid,bid,tbalance) select i,(i-1)/10+1,0 from generate_series(1,%[1]d*10) i;
insert into pgbench_accounts(aid,bid,abalance,filler) select i,(i-1)/100000+1,0,md5(i::text)||md5((i*7)::text) from generate_series(1,%[1]d*100000) i`, scale)
	if err := c.exec(ctx, rows); err != nil {
		return err
	}
	if err := init("vp"); err != nil {
		return err
	}
	return c.exec(ctx, "checkpoint")
}
