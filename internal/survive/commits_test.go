package survive

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestEveryCommitIsThere has clients commit to a database on a tapped disk, each of which notes when it sent a transaction and when it was told that
// it is committed. Then the database is brought up as it was at flushes and at writes between, by its own recovery: what
// was acknowledged before is there, nothing that was sent later, and pg_amcheck finds nothing. (Lessons J3, J4, J7.)
func TestEveryCommitIsThere(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", "e2fsck", "psql")
	rng, s := seeded(t), newStage(t)
	at := filepath.Join(s.dir, "at")
	if err := os.Mkdir(at, 0o711); err != nil {
		t.Fatal(err)
	}
	base := sparseFile(t, s.dir+"/base", 256<<20)
	p := makeCluster(t, base, at)
	x := newRig(t, s, rng, tricks{}, base)
	x.attach()
	must(t, "mount", x.devices[0], at)
	stop := x.meanwhile()
	p.start()
	unload := p.bench(100)
	c := p.commit(3)
	unload()
	p.stop(syscall.SIGINT)
	if err := unmount(at); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := x.finish(); err != nil {
		t.Fatal(err)
	}
	flushes := x.flushes()
	if len(flushes) < 100 || c.count() < 100 {
		t.Fatalf("%d flushes and %d commits are too few", len(flushes), c.count())
	}
	if err := x.showAll(slices.Concat(x.bookmarks(), flushes, x.positions(200)), func(*shown) error { return nil }); err != nil {
		t.Fatal(err)
	}
	x.bringUp(c, flushes)
}

// makeCluster makes a file system with a cluster on a file, which is mounted at a directory meanwhile.
func makeCluster(t *testing.T, disk, at string) *production {
	t.Helper()
	must(t, "mkfs.ext4", "-q", "-J", "size=8", disk)
	must(t, "mount", "-o", "loop", disk, at)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			must(t, "umount", at)
		}
	})
	if err := os.Chmod(at, 0o711); err != nil {
		t.Fatal(err)
	}
	p := newProduction(t, at)
	p.load()
	sql(t, p.conn(), "CREATE TABLE noted (client int, n int, PRIMARY KEY (client, n))")
	p.stop(syscall.SIGINT)
	must(t, "sync", "-f", at) // initdb was told not to
	if err := unmount(at); err != nil {
		t.Fatal(err)
	}
	mounted = false
	return p
}

// commits are the transactions of clients, each of which inserts its next number.
type commits struct{ of [][]note }

func (c *commits) count() (n int) {
	for _, list := range c.of {
		n += len(list)
	}
	return n
}

// commit has so many clients commit at a time.
func (p *production) commit(clients int) *commits {
	p.t.Helper()
	c, each := &commits{make([][]note, clients)}, 80
	if long() {
		each = 800
	}
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			var err error
			if c.of[i], err = commitEach(p.t.Context(), p.conn(), i, each); err != nil {
				p.t.Errorf("client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	return c
}

func commitEach(ctx context.Context, where string, client, count int) (list []note, err error) {
	conn, err := pgx.Connect(ctx, where)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	for n := range count {
		x := note{begun: time.Now().UnixNano()}
		if _, err := conn.Exec(ctx, "INSERT INTO noted VALUES ($1, $2)", client, n); err != nil {
			return list, err
		}
		x.done = time.Now().UnixNano()
		list = append(list, x)
	}
	return list, nil
}

// check holds what a database has to what its clients know of a time.
func (c *commits) check(conn string, when int64) error {
	out, err := query(conn, "SELECT client || ' ' || n FROM noted")
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for line := range strings.Lines(out) {
		have[strings.TrimSpace(line)] = true
	}
	for i, list := range c.of {
		for n, x := range list {
			switch there := have[fmt.Sprint(i, " ", n)]; {
			case x.done < when && !there:
				return fmt.Errorf("transaction %d of client %d was committed %v before, and is not there", n, i, time.Duration(when-x.done))
			case x.begun > when && there:
				return fmt.Errorf("transaction %d of client %d is there, and was sent %v later", n, i, time.Duration(x.begun-when))
			}
		}
	}
	return nil
}

// bringUp brings up the database of some flushes, and of some positions.
func (x *rig) bringUp(c *commits, flushes []target) {
	x.t.Helper()
	some := 8
	if long() {
		some = 120
	}
	list := x.positions(some)
	for range some {
		list = append(list, flushes[x.rng.IntN(len(flushes))])
	}
	begin, copies := time.Now(), newCopies(x)
	var up atomic.Int64
	ports := [watchers]int{freePort(x.t), freePort(x.t)}
	as, _, _ := asPostgres(x.t)
	err := x.showAll(list, func(s *shown) error {
		up.Add(1)
		return copies.mounted(s, "defaults", func(at string) error {
			return withDatabase(filepath.Join(at, "prod"), ports[s.worker], as, func(conn string) error {
				if err := c.check(conn, s.when); err != nil {
					return err
				}
				return inconsistency(conn)
			})
		}, fileSystems[0].sound)
	})
	if err != nil {
		x.t.Error(err)
	}
	x.t.Logf("%d changes, %d flushes, %d commits; %d databases were brought up in %v", len(x.ledger.entries), len(flushes), c.count(), up.Load(), time.Since(begin))
}

// withDatabase brings up a cluster below a directory, by its recovery, for as long as it is used.
func withDatabase(home string, port int, as *syscall.SysProcAttr, use func(conn string) error) (err error) {
	data := filepath.Join(home, "data")
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil && !os.IsNotExist(err) { // of a process that may be another by now
		return err
	}
	control := func(args ...string) error {
		cmd := exec.Command(program("pg_ctl"), append([]string{"-D", data, "-w", "-t", "60"}, args...)...)
		cmd.SysProcAttr, cmd.Dir = as, elsewhere
		if err := cmd.Run(); err != nil {
			log, _ := os.ReadFile(filepath.Join(home, "recovery.log"))
			return fmt.Errorf("pg_ctl %s: %w: %s", args, err, log)
		}
		return nil
	}
	options := "-k " + home + " -p " + strconv.Itoa(port) + " -c listen_addresses= -c fsync=off -c shared_buffers=16MB"
	if err := control("-l", filepath.Join(home, "recovery.log"), "-o", options, "start"); err != nil {
		return err
	}
	defer func() {
		if stopped := control("-m", "immediate", "stop"); err == nil {
			err = stopped
		}
	}()
	return use(fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", home, port))
}
