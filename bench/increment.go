package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	restic = "restic"
	pgbr   = "pgBackRest block-incremental"
)

// benchIncrement captures a PostgreSQL whole, lets some transactions change it,
// and captures it again; restic and pgBackRest do the same with the same files.
// One round: a cluster's history cannot be repeated for each side in turn.
func benchIncrement(ctx context.Context, e *env, r *Result) error {
	scale, transactions := 40, 640
	if e.quick {
		scale, transactions = 6, 100
	}
	c, err := newCluster(ctx, e.disk, scale)
	if err != nil {
		return err
	}
	defer func() { c.stop(stopAtOnce) }()
	data := c.dir
	sides := e.backupSides(data)
	for _, s := range sides {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	for _, pass := range []string{"full", "increment"} {
		if pass == "increment" {
			if _, err := run(ctx, "cp", "-a", data, e.disk+"/before"); err != nil {
				return err
			}
			if c, err = startPG(data, c.sockets); err != nil {
				return err
			}
			if err := c.change(ctx, transactions); err != nil {
				return err
			}
		}
		if err := e.captureOurs(ctx, r, pass, c); err != nil {
			return err
		}
		if err := c.stop(stopFast); err != nil {
			return err
		}
		for _, s := range sides {
			if err := s.take(ctx, r, pass); err != nil {
				return err
			}
		}
	}
	changed, total, err := changedBlocks(e.disk+"/before", data)
	if err != nil {
		return err
	}
	rowsIncrement(r, float64(changed), float64(total))
	return nil
}

// change lets a cluster work a little.
func (c *cluster) change(ctx context.Context, transactions int) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	if _, err := c.pgbench(ctx, "-N", "-c", "1", "-t", fmt.Sprint(transactions)); err != nil {
		return err
	}
	return c.exec(ctx, "checkpoint")
}

// captureOurs has a process of its own capture the running cluster.
func (e *env) captureOurs(ctx context.Context, r *Result, pass string, c *cluster) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "capture", "-data", e.disk+"/data", "-conn", c.conn())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	var got captured
	if err := json.Unmarshal(out, &got); err != nil {
		return err
	}
	r.add(Sample{tide, pass, 0, map[string]float64{"s": got.Seconds, "stored": float64(got.StoredBytes), "rss": float64(got.PeakRSS), "cpu_s": got.CPUSeconds,
		"copy_s": got.CopySeconds, "fold_s": got.FoldSeconds, "read": float64(got.ReadBytes), "changed": float64(got.ChangedBytes)}})
	return nil
}

// backupSide is a peer that saves a data directory into a repository.
type backupSide struct {
	side     string
	repo     string
	postgres bool // runs as the databases' user
	init     []string
	save     func(pass string) []string
	env      []string
}

func (e *env) backupSides(data string) []backupSide {
	resticArgs := []string{"restic", "-q", "-r", e.disk + "/restic", "--cache-dir", e.disk + "/restic-cache"}
	pg := []string{"pgbackrest", "--stanza=x", "--pg1-path=" + data, "--repo1-path=" + e.disk + "/pgbackrest", "--log-path=" + e.disk + "/run", "--lock-path=" + e.disk + "/run",
		"--log-level-console=warn", "--log-level-file=off", "--no-online"}
	return []backupSide{
		{side: restic, repo: e.disk + "/restic", env: []string{"RESTIC_PASSWORD=x"}, init: append(resticArgs[:len(resticArgs):len(resticArgs)], "init"),
			save: func(string) []string {
				return append(resticArgs[:len(resticArgs):len(resticArgs)], "backup", "--ignore-ctime", "--ignore-inode", "--exclude", data+"/pg_wal/*", data)
			}},
		{side: pgbr, repo: e.disk + "/pgbackrest", postgres: true, init: append(pg[:len(pg):len(pg)], "stanza-create"),
			save: func(pass string) []string {
				kind := map[string]string{"full": "full", "increment": "incr"}[pass]
				return append(pg[:len(pg):len(pg)], "--beta", "--repo1-block", "--repo1-bundle", "--compress-type=zst", "--compress-level=1", "--process-max=2",
					"--repo1-retention-full=9", "--exclude=pg_wal/", "--type="+kind, "backup")
			}},
	}
}

// prepare makes the repository.
func (s *backupSide) prepare(ctx context.Context) error {
	if err := ownedDir(s.repo); err != nil {
		return err
	}
	if s.postgres { // needs the cluster's control file only
		_, err := runAsPostgres(ctx, s.init...)
		return err
	}
	cmd := exec.CommandContext(ctx, s.init[0], s.init[1:]...)
	cmd.Env = append(os.Environ(), s.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(s.init, " "), err, out)
	}
	return nil
}

// take saves the data directory once.
func (s *backupSide) take(ctx context.Context, r *Result, pass string) error {
	before, err := apparent(s.repo)
	if err != nil {
		return err
	}
	argv := s.save(pass)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if s.postgres {
		if err := asPostgres(cmd); err != nil {
			return err
		}
	}
	cmd.Env = append(os.Environ(), s.env...)
	begin := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	took := time.Since(begin).Seconds()
	after, err := apparent(s.repo)
	if err != nil {
		return err
	}
	use := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	r.add(Sample{s.side, pass, 0, map[string]float64{"s": took, "stored": float64(after - before), "rss": float64(use.Maxrss << 10),
		"cpu_s": (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}})
	return nil
}

// apparent is the sum of the lengths of the files below a directory.
func apparent(dir string) (int64, error) {
	var sum int64
	err := filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

func rowsIncrement(r *Result, changed, total float64) {
	const mb = 1e6
	get := func(side, pass, unit string) float64 { return r.median(side, pass, unit) }
	r.row("increment: bytes stored ÷ bytes changed (4 KiB grain)", get(tide, "increment", "stored")/changed, "x", atMost(0.25), atMost(0.12),
		"%s MB stored of %s MB changed of %s MB; restic %s, pgBackRest %s", number(get(tide, "increment", "stored")/mb), number(changed/mb), number(total/mb),
		number(get(restic, "increment", "stored")/changed), number(get(pgbr, "increment", "stored")/changed))
	r.row("increment: wall time ÷ "+pgbr, get(tide, "increment", "s")/get(pgbr, "increment", "s"), "x", atMost(1), Bound{},
		"%s s (copy %s, fold %s) against %s s, restic %s s", number(get(tide, "increment", "s")), number(get(tide, "increment", "copy_s")), number(get(tide, "increment", "fold_s")),
		number(get(pgbr, "increment", "s")), number(get(restic, "increment", "s")))
	r.row("first full: bytes stored ÷ restic", get(tide, "full", "stored")/get(restic, "full", "stored"), "x", atMost(1.1), atMost(1),
		"%s against %s MB; pgBackRest %s MB", number(get(tide, "full", "stored")/mb), number(get(restic, "full", "stored")/mb), number(get(pgbr, "full", "stored")/mb))
	r.row("first full: speed ÷ restic", get(restic, "full", "s")/get(tide, "full", "s"), "x", atLeast(1.5), atLeast(4),
		"%s s (copy %s, fold %s; CPU %s) against %s s (CPU %s); pgBackRest %s s (CPU %s)", number(get(tide, "full", "s")), number(get(tide, "full", "copy_s")), number(get(tide, "full", "fold_s")),
		number(get(tide, "full", "cpu_s")), number(get(restic, "full", "s")), number(get(restic, "full", "cpu_s")), number(get(pgbr, "full", "s")), number(get(pgbr, "full", "cpu_s")))
	r.row("first full: peak memory", get(tide, "full", "rss")/(1<<20), "MiB", atMost(300), Bound{}, "server and capture in one process; restic %s MiB", number(get(restic, "full", "rss")/(1<<20)))
	r.note("One round. Ours captures the running server, with its log, through a staging disk (NBD, FUSE, loop, ext4); the peers read the files of the stopped one without its log. " +
		"Bytes changed are those of 4 KiB blocks of its files, log not included, between the two.")
}
