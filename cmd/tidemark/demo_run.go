package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"tidemark"
	"tidemark/client"
)

// demo is one run of the main job.
type demo struct {
	ctx    context.Context
	dir    string // everything of the demo lies below it
	bin    string // of PostgreSQL
	socket string // directory of production's socket
	port   int
	cred   *syscall.Credential
	server *exec.Cmd
	c      *client.Client
	undo   []func()
	// endLoad ends pgbench, once.
	endLoad func()
	step    int
}

// runDemo runs the main job, and takes everything away again unless keep is set.
func runDemo(ctx context.Context, keep bool) (err error) {
	d := &demo{ctx: ctx}
	defer func() {
		if err == nil && keep {
			d.howToLook()
			return
		}
		err = errors.Join(err, d.clean())
	}()
	for _, part := range []func() error{d.prepare, d.startProduction, d.startServer, d.protect, d.captureUnderLoad, d.accident, d.cloneOfClone, d.manyClones, d.runLive} {
		if err := part(); err != nil {
			return err
		}
	}
	d.say("done: every number above was measured just now, on this machine")
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// do runs one step and prints what it is and how long it took.
func (d *demo) do(what string, fn func() (string, error)) error {
	d.step++
	begun := time.Now()
	fmt.Printf("%2d. %s\n", d.step, what)
	result, err := fn()
	if err != nil {
		return fmt.Errorf("step %d, %s: %w", d.step, what, err)
	}
	fmt.Printf("    %8s  %s\n", seconds(time.Since(begun).Seconds()), result)
	return nil
}

func (d *demo) prepare() error {
	if os.Getuid() != 0 {
		return tidemark.Errorf(tidemark.Denied, "the demo mounts disks").WithHint("run it as root")
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return tidemark.Errorf(tidemark.Unavailable, "PostgreSQL is not installed").WithHint("apt-get install postgresql")
	}
	d.bin = filepath.Dir(found[len(found)-1])
	u, err := user.Lookup("postgres")
	if err != nil {
		return tidemark.Errorf(tidemark.Unavailable, "there is no user postgres").WithHint("apt-get install postgresql")
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	d.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if d.dir, err = os.MkdirTemp("/var/tmp", "tidemark-demo-"); err != nil {
		return err
	}
	d.undo = append(d.undo, func() { os.RemoveAll(d.dir) })
	if err := os.Chmod(d.dir, 0o711); err != nil {
		return err
	}
	d.socket = filepath.Join(d.dir, "production")
	if err := os.Mkdir(d.socket, 0o700); err != nil {
		return err
	}
	return os.Chown(d.socket, uid, gid)
}

// pg runs one of PostgreSQL's programs as its user.
func (d *demo) pg(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, filepath.Join(d.bin, program), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.cred}
	cmd.Dir = d.socket
	return cmd
}

func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text)
	}
	return text, nil
}

// sql asks a database one thing.
func (d *demo) sql(connection, query string) (string, error) {
	return output(d.pg("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, connection))
}

func (d *demo) production() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", d.socket, d.port)
}

func (d *demo) startProduction() error {
	d.port = 5400 + os.Getpid()%400
	return d.do("start a PostgreSQL of our own and load it with pgbench (scale 20)", func() (string, error) {
		data := filepath.Join(d.socket, "data")
		if _, err := output(d.pg("initdb", "-D", data, "-A", "trust", "-U", "postgres")); err != nil {
			return "", err
		}
		server := d.pg("postgres", "-D", data, "-k", d.socket, "-p", strconv.Itoa(d.port), "-c", "listen_addresses=", "-c", "max_wal_size=4GB", "-c", "max_slot_wal_keep_size=4GB")
		server.Cancel = func() error { return server.Process.Signal(syscall.SIGINT) }
		log, err := os.Create(filepath.Join(d.dir, "production.log"))
		if err != nil {
			return "", err
		}
		server.Stdout, server.Stderr = log, log
		if err := server.Start(); err != nil {
			return "", err
		}
		d.undo = append(d.undo, func() { server.Process.Signal(syscall.SIGINT); server.Wait(); log.Close() })
		if err := d.await(); err != nil {
			return "", err
		}
		if _, err := output(d.pg("pgbench", "-i", "-q", "-s", "20", d.production())); err != nil {
			return "", err
		}
		return d.sql(d.production(), "SELECT pg_size_pretty(pg_database_size('postgres')) || ' in ' || count(*) || ' accounts' FROM pgbench_accounts")
	})
}

func (d *demo) await() (err error) {
	for range 200 {
		if _, err = d.sql(d.production(), "SELECT 1"); err == nil || d.ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func (d *demo) startServer() error {
	return d.do("start a Tidemark server", func() (string, error) {
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		data := filepath.Join(d.dir, "tidemark")
		log, err := os.Create(filepath.Join(d.dir, "server.log"))
		if err != nil {
			return "", err
		}
		d.server = exec.Command(exe, "server", "--data", data, "--verbose")
		d.server.Stderr = log
		out, err := d.server.StdoutPipe()
		if err != nil {
			return "", err
		}
		if err := d.server.Start(); err != nil {
			return "", err
		}
		d.undo = append(d.undo, func() { d.server.Process.Signal(syscall.SIGTERM); d.server.Wait(); log.Close() })
		ready := make([]byte, 512)
		n, err := out.Read(ready)
		if err != nil || !strings.HasPrefix(string(ready[:n]), "ready") {
			return "", fmt.Errorf("the server did not start: see %s", log.Name())
		}
		d.c = client.New(filepath.Join(data, socketName))
		return strings.TrimSpace(string(ready[:n])), nil
	})
}

func (d *demo) protect() error {
	return d.do("protect it as \"orders\": its log is streamed from now on", func() (string, error) {
		src := fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d", d.socket, d.port)
		j, err := d.c.Protect(d.ctx, tidemark.ProtectSpec{Name: "orders", Source: src})
		_, err = client.Result[tidemark.Application](d.ctx, d.c, j, err, nil)
		d.undo = append(d.undo, func() { d.tearDown() })
		return "staging disks made, formatted and attached", err
	})
}

// capture captures orders and tells what that took.
func (d *demo) capture(bookmark string) (string, error) {
	j, err := d.c.Capture(d.ctx, tidemark.CaptureSpec{Application: "orders", Bookmark: bookmark})
	r, err := client.Result[tidemark.CaptureResult](d.ctx, d.c, j, err, nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("read %s, changed %s, stored %s", size(r.ReadBytes), size(r.ChangedBytes), size(r.StoredBytes)), nil
}

func (d *demo) captureUnderLoad() error {
	if err := d.do("capture it: the first is full", func() (string, error) { return d.capture("first") }); err != nil {
		return err
	}
	load := d.pg("pgbench", "-c", "2", "-T", "600", d.production())
	if err := load.Start(); err != nil {
		return err
	}
	d.endLoad = sync.OnceFunc(func() { load.Process.Signal(syscall.SIGTERM); load.Wait() })
	d.undo = append(d.undo, d.endLoad)
	for _, name := range []string{"second", "third"} {
		d.pause(3 * time.Second)
		if err := d.do("capture again under load: only what changed", func() (string, error) { return d.capture(name) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) pause(t time.Duration) {
	select {
	case <-d.ctx.Done():
	case <-time.After(t):
	}
}

func (d *demo) accident() error {
	var at time.Time
	if err := d.do("drop a table by accident", func() (string, error) {
		if _, err := d.sql(d.production(), "CREATE TABLE precious AS SELECT generate_series(1, 100000) AS row"); err != nil {
			return "", err
		}
		d.pause(2 * time.Second)
		at = time.Now()
		_, err := d.sql(d.production(), "DROP TABLE precious")
		return "production has lost 100000 rows at " + at.Format("15:04:05.000"), err
	}); err != nil {
		return err
	}
	before := at.Add(-time.Second)
	return d.do("clone orders at one second before: "+before.Format("15:04:05.000"), func() (string, error) {
		k, err := d.clone("orders@"+before.UTC().Format(time.RFC3339Nano), "rescue")
		if err != nil {
			return "", err
		}
		rows, err := d.sql(k.Connection, "SELECT count(*) FROM precious")
		return fmt.Sprintf("port %d answers: %s rows are there", k.Port, rows), err
	})
}

func (d *demo) clone(ref, name string) (tidemark.Clone, error) {
	j, err := d.c.Clone(d.ctx, tidemark.CloneSpec{Ref: ref, Name: name})
	return client.Result[tidemark.Clone](d.ctx, d.c, j, err, nil)
}

func (d *demo) connection(name string) (string, error) {
	k, err := d.c.FindClone(d.ctx, name)
	return k.Connection, err
}

func (d *demo) cloneOfClone() error {
	if err := d.do("clone that clone", func() (string, error) {
		k, err := d.clone("rescue", "rescue-2")
		return fmt.Sprintf("port %d", k.Port), err
	}); err != nil {
		return err
	}
	return d.do("change data in both clones; look at all three", func() (string, error) {
		rescue, err := d.connection("rescue")
		if err != nil {
			return "", err
		}
		second, err := d.connection("rescue-2")
		if err != nil {
			return "", err
		}
		if _, err := d.sql(second, "DELETE FROM precious WHERE row > 10"); err != nil {
			return "", err
		}
		if _, err := d.sql(rescue, "INSERT INTO precious VALUES (0)"); err != nil {
			return "", err
		}
		one, err := d.sql(rescue, "SELECT count(*) FROM precious")
		if err != nil {
			return "", err
		}
		two, err := d.sql(second, "SELECT count(*) FROM precious")
		if err != nil {
			return "", err
		}
		prod, err := d.sql(d.production(), "SELECT coalesce(to_regclass('precious')::text, 'no such table')")
		return fmt.Sprintf("rescue has %s rows, rescue-2 has %s, production: %s", one, two, prod), err
	})
}

func (d *demo) manyClones() error {
	const clones = 15
	return d.do(fmt.Sprintf("make %d clones of the newest capture, each a running database", clones), func() (string, error) {
		for i := range clones {
			if _, err := d.clone("orders", fmt.Sprintf("dev-%d", i+1)); err != nil {
				return "", err
			}
		}
		s, err := d.c.Status(d.ctx)
		if err != nil {
			return "", err
		}
		own := int64(0)
		for _, k := range s.Clones {
			if strings.HasPrefix(k.Name, "dev-") {
				own += k.OwnBytes
			}
		}
		full, err := d.sql(d.production(), "SELECT pg_database_size('postgres')")
		if err != nil {
			return "", err
		}
		bytes, err := strconv.ParseInt(full, 10, 64)
		return fmt.Sprintf("they cost %s on disk together; full copies would take %s; the pool holds %s", size(own), size(clones*bytes), size(s.Pool.PhysicalBytes)), err
	})
}

// tearDown removes all clones and the protection.
func (d *demo) tearDown() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	list, err := client.Collect(d.c.Clones(ctx))
	if err != nil {
		d.say("the clones could not be listed: %v", err)
	}
	for _, k := range list {
		if err := d.c.RemoveClone(ctx, k.Name); err != nil {
			d.say("clone %s is left: %v", k.Name, err)
		}
	}
	if err := d.c.Unprotect(ctx, "orders"); err != nil {
		d.say("orders is left protected: %v", err)
	}
}

// clean undoes everything, the last first.
func (d *demo) clean() error {
	begun := time.Now()
	for i := len(d.undo) - 1; i >= 0; i-- {
		d.undo[i]()
	}
	d.undo = nil
	if d.dir == "" {
		return nil
	}
	if _, err := os.Stat(d.dir); err == nil {
		return fmt.Errorf("%s could not be removed: see `mount` and its logs", d.dir)
	}
	d.say("everything is taken away again, in %s", seconds(time.Since(begun).Seconds()))
	return nil
}

func (d *demo) howToLook() {
	d.say("\nIt is left running. To look around:\n")
	d.say("  export TIDEMARK_SOCKET=%s", filepath.Join(d.dir, "tidemark", socketName))
	d.say("  tidemark status; tidemark points orders; tidemark clone ls")
	d.say("  su postgres -c \"psql '%s'\"      # production", d.production())
	if conn, err := d.connection("rescue"); err == nil {
		d.say("  psql '%s'      # the clone, as root", conn)
	}
	d.say("\nTo take it away: tidemark clone rm each, tidemark unprotect orders, then\n  kill %d; pkill -INT -f %s; rm -r %s", d.server.Process.Pid, filepath.Join(d.socket, "data"), d.dir)
}
