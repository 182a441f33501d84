package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidemark"
	"tidemark/client"
)

// live is the second part of the demo: a database on a tapped disk.
type live struct {
	*demo
	disk   string // a loop device: production's disk
	tapped string // what is used instead of it
	at     string // where it is mounted
	run    string // directory of the database's socket
	server *exec.Cmd
	load   *exec.Cmd
	good   string // position of the last good write
}

// runLive taps the disk of a database, damages it, finds the write that did it, and takes it back.
func (d *demo) runLive() error {
	d.endLoad()
	d.say("\npart two: a disk whose every write is journaled")
	l := &live{demo: d, at: filepath.Join(d.dir, "live"), run: filepath.Join(d.dir, "live-run")}
	for _, part := range []func() error{l.makeDisk, l.tap, l.use, l.damage, l.find, l.bringUp, l.takeBack} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// host runs a program of the host as root.
func (l *live) host(name string, args ...string) (string, error) {
	return output(exec.CommandContext(l.ctx, name, args...))
}

func (l *live) connection() string {
	return fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres", l.run, l.port+1)
}

func (l *live) makeDisk() error {
	return l.do("make a disk for production: a loop device with an XFS, and a PostgreSQL on it", func() (string, error) {
		image := filepath.Join(l.dir, "live.img")
		for _, dir := range []string{l.at, l.run} {
			if err := os.Mkdir(dir, 0o711); err != nil {
				return "", err
			}
		}
		if err := os.Chown(l.run, int(l.cred.Uid), int(l.cred.Gid)); err != nil {
			return "", err
		}
		if _, err := l.host("truncate", "-s", "1G", image); err != nil {
			return "", err
		}
		if _, err := l.host("mkfs.xfs", "-q", image); err != nil {
			return "", err
		}
		disk, err := l.host("losetup", "-f", "--show", image)
		if err != nil {
			return "", err
		}
		l.disk = disk
		l.undo = append(l.undo, func() { exec.Command("losetup", "-d", disk).Run() })
		if _, err := l.host("mount", disk, l.at); err != nil {
			return "", err
		}
		l.undo = append(l.undo, l.unmount)
		if err := l.makeDatabase(); err != nil {
			return "", err
		}
		_, err = l.host("umount", l.at)
		return disk + " of 1 GiB, with 500000 accounts", err
	})
}

func (l *live) makeDatabase() error {
	data := filepath.Join(l.at, "pg")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Chown(data, int(l.cred.Uid), int(l.cred.Gid))); err != nil {
		return err
	}
	if _, err := output(l.pg("initdb", "-k", "-D", data, "-A", "trust", "-U", "postgres")); err != nil {
		return err
	}
	if err := l.startDatabase(); err != nil {
		return err
	}
	if _, err := output(l.pg("pgbench", "-i", "-q", "-s", "5", l.connection())); err != nil {
		return err
	}
	return l.stopDatabase(syscall.SIGINT)
}

func (l *live) startDatabase() error {
	l.server = l.pg("postgres", "-D", filepath.Join(l.at, "pg"), "-k", l.run, "-p", strconv.Itoa(l.port+1), "-c", "listen_addresses=")
	if err := l.server.Start(); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		_, err := l.sql(l.connection(), "SELECT 1")
		if err == nil || time.Now().After(end) || l.ctx.Err() != nil {
			return err
		}
	}
}

func (l *live) stopDatabase(sig syscall.Signal) error {
	if l.server == nil {
		return nil
	}
	server := l.server
	l.server = nil
	if err := server.Process.Signal(sig); err != nil {
		return err
	}
	server.Wait() // how it ended is in its log
	return nil
}

// unmount stops what uses the disk, and unmounts it if it is mounted.
func (l *live) unmount() {
	l.stopLoad()
	l.stopDatabase(syscall.SIGQUIT)
	exec.Command("umount", l.at).Run()
}

func (l *live) stopLoad() {
	if l.load != nil {
		l.load.Process.Signal(syscall.SIGTERM)
		l.load.Wait()
		l.load = nil
	}
}

func (l *live) tap() error {
	return l.do("tap it as \"live\": every write is journaled from now on, with an AppShot every 2 seconds", func() (string, error) {
		spec := tidemark.ProtectSpec{Name: "live", Source: l.disk, CDP: true, Options: map[string]string{
			"postgres": fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d", l.run, l.port+1), "appshot": "2s"}}
		j, err := l.c.Protect(l.ctx, spec)
		a, err := client.Result[tidemark.Application](l.ctx, l.c, j, err, nil)
		if err != nil {
			return "", err
		}
		l.undo = append(l.undo, func() {
			l.unmount()
			if err := l.c.Unprotect(l.ctx, "live"); err != nil {
				l.say("live is left protected: %v", err)
			}
		})
		l.tapped = a.Tap.Disks[0].Device
		if err := l.awaitFollowing(); err != nil {
			return "", err
		}
		return "the device is " + l.tapped + "; all of the disk has arrived", nil
	})
}

// awaitFollowing waits until the timeline has all of the disk.
func (l *live) awaitFollowing() error {
	for {
		a, err := l.application()
		if err != nil || a.Tap.State == tidemark.TapFollowing && a.Tap.QueuedBytes == 0 {
			return err
		}
		l.pause(50 * time.Millisecond)
		if l.ctx.Err() != nil {
			return l.ctx.Err()
		}
	}
}

func (l *live) application() (a tidemark.Application, err error) {
	s, err := l.c.Status(l.ctx)
	if err != nil {
		return a, err
	}
	for _, a := range s.Applications {
		if a.Name == "live" && a.Tap != nil {
			return a, nil
		}
	}
	return a, errors.New("live is not tapped")
}

func (l *live) points() (tidemark.Points, error) {
	return pointsOf(l.ctx, l.c, "live")
}

func (l *live) use() error {
	return l.do("mount that device, start the database there, and let pgbench run", func() (string, error) {
		if _, err := l.host("mount", l.tapped, l.at); err != nil {
			return "", err
		}
		if err := l.startDatabase(); err != nil {
			return "", err
		}
		l.load = l.pg("pgbench", "-n", "-c", "2", "-R", "200", "-T", "600", l.connection())
		if err := l.load.Start(); err != nil {
			return "", err
		}
		l.pause(7 * time.Second)
		all, still, err := l.appShots()
		if err != nil {
			return "", err
		}
		a, err := l.application()
		return fmt.Sprintf("%d AppShots, %d of them application-consistent; nobody was held for them; the timeline is %.0f ms behind", all, still, a.Tap.Lag*1000), err
	})
}

// appShots counts all of them and those that are application-consistent, of which it awaits one: a busy machine takes its time.
func (l *live) appShots() (all, still int, err error) {
	for until := time.Now().Add(time.Minute); ; l.pause(time.Second) {
		p, err := l.points()
		if err != nil {
			return 0, 0, err
		}
		for _, x := range p.Points {
			if x.Consistency == tidemark.ApplicationConsistent {
				still++
			}
		}
		if still > 0 {
			return len(p.Points), still, nil
		}
		if time.Now().After(until) {
			return 0, 0, fmt.Errorf("no AppShot is application-consistent: %+v", p.Points)
		}
	}
}

// middleOf returns where on the disk the middle of a table lies, in bytes.
func (l *live) middleOf(table string) (int64, error) {
	if _, err := l.sql(l.connection(), "CHECKPOINT"); err != nil {
		return 0, err
	}
	path, err := l.sql(l.connection(), "SELECT pg_relation_filepath('"+table+"')")
	if err != nil {
		return 0, err
	}
	out, err := l.host("filefrag", "-e", "-b4096", filepath.Join(l.at, "pg", path))
	if err != nil {
		return 0, err
	}
	const middle = 75 << 20 / 2 / 4096 // of 15 MB for each of 5 scales
	for scan := bufio.NewScanner(strings.NewReader(out)); scan.Scan(); {
		f := strings.FieldsFunc(scan.Text(), func(r rune) bool { return r == ' ' || r == ':' || r == '.' })
		if len(f) < 5 {
			continue
		}
		first, err1 := strconv.ParseInt(f[1], 10, 64)
		last, err2 := strconv.ParseInt(f[2], 10, 64)
		at, err3 := strconv.ParseInt(f[3], 10, 64)
		if errors.Join(err1, err2, err3) == nil && first <= middle && middle <= last {
			return (at + middle - first) * 4096, nil
		}
	}
	return 0, fmt.Errorf("the middle of %s was not found: %s", table, out)
}

func (l *live) damage() error {
	return l.do("something writes 64 KiB of garbage over the middle of the device: dd", func() (string, error) {
		off, err := l.middleOf("pgbench_accounts")
		if err != nil {
			return "", err
		}
		if _, err := l.host("dd", "if=/dev/urandom", "of="+l.tapped, "bs=4096", "count=16", "seek="+strconv.FormatInt(off/4096, 10), "oflag=direct", "conv=notrunc"); err != nil {
			return "", err
		}
		at := time.Now()
		l.pause(3 * time.Second)
		return fmt.Sprintf("at %s, at %s; production has its caches, goes on, and has not noticed", at.Format("15:04:05.000"), size(off)), nil
	})
}

// check fails if any page of the table is damaged.
const check = "SELECT sum(abalance) FROM pgbench_accounts"

func (l *live) find() error {
	return l.do("find the write that did it: bisect, with a database brought up at each step", func() (string, error) {
		p, err := l.points()
		if err != nil {
			return "", err
		}
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(l.ctx, exe, "bisect", "live", "--good", p.Points[0].Bookmark, "--bad", "latest", "--clone", "--json", "--",
			"sh", "-c", `su postgres -c "'$PSQL' -XAtq -v ON_ERROR_STOP=1 -c '$CHECK' '$TIDEMARK_CONNECTION'" 2>/dev/null`)
		cmd.Env = append(os.Environ(), "TIDEMARK_SOCKET="+filepath.Join(l.dir, "tidemark", socketName), "PSQL="+filepath.Join(l.bin, "psql"), "CHECK="+check)
		out, err := cmd.Output()
		if err != nil {
			return "", err
		}
		var b tidemark.Bisected
		if err := json.Unmarshal(out, &b); err != nil {
			return "", err
		}
		l.good = b.Good.Position.String()
		return fmt.Sprintf("%d databases later: %v was the last good write, and %v at %s the first bad one, of %s", b.Probes, b.Good.Position, b.Bad.Position,
			b.Bad.Time.Local().Format("15:04:05.000"), size(b.ChangedBytes)), nil
	})
}

func (l *live) bringUp() error {
	return l.do("bring the database up as it was at the last good write, beside production", func() (string, error) {
		k, err := l.clone("live@"+l.good, "live-good")
		if err != nil {
			return "", err
		}
		rows, err := l.sql(k.Connection, "SELECT count(*) FROM pgbench_accounts")
		return fmt.Sprintf("port %d answers: %s accounts, all of them sound", k.Port, rows), err
	})
}

func (l *live) takeBack() error {
	l.stopLoad()
	if err := l.stopDatabase(syscall.SIGQUIT); err != nil {
		return err
	}
	if _, err := l.host("umount", l.at); err != nil {
		return err
	}
	if err := l.do("take production's disk back to that write, in place", func() (string, error) {
		j, err := l.c.Restore(l.ctx, tidemark.RestoreSpec{Ref: "live@" + l.good, InPlace: true})
		r, err := client.Result[tidemark.RestoredInPlace](l.ctx, l.c, j, err, nil)
		return fmt.Sprintf("%s differed and were written; what the disk held is the clone %s", size(r.Changed), r.Before), err
	}); err != nil {
		return err
	}
	return l.do("mount it, and start production again", func() (string, error) {
		if _, err := l.host("mount", l.tapped, l.at); err != nil {
			return "", err
		}
		if err := l.startDatabase(); err != nil {
			return "", err
		}
		_, err := l.sql(l.connection(), check)
		return "every account can be read", err
	})
}
