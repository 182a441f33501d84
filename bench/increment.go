package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	restic = "restic"
	pgbr   = "pgBackRest block-incremental"
	send   = "btrfs send | zstd"
	files  = "files" // no side: what the cluster's files are
)

// benchIncrement captures a PostgreSQL whole; then, round by round, lets some
// transactions change it and captures it again. The peers do the same with the
// same files.
func benchIncrement(ctx context.Context, e *env, r *Result) error {
	scale, transactions, rounds := 100, 1600, min(e.rounds, 3)
	if e.quick {
		scale, transactions, rounds = 6, 100, 1
	}
	c, err := newCluster(ctx, e.disk, scale)
	if err != nil {
		return err
	}
	defer func() { c.stop(stopAtOnce) }()
	pool, err := newBtrfs(ctx, e.disk+"/btrfs", e.size(6<<30, 1<<30))
	if err != nil {
		return err
	}
	defer pool.remove()
	sides := e.backupSides(c.dir, pool)
	for i := range sides {
		if err := sides[i].prepare(ctx); err != nil {
			return err
		}
	}
	if err := e.capturePass(ctx, r, "full", 0, c, pool, sides); err != nil {
		return err
	}
	for round := range rounds {
		if c, err = startPG(c.dir, c.sockets); err != nil {
			return err
		}
		if err := c.change(ctx, transactions); err != nil {
			return err
		}
		if err := e.capturePass(ctx, r, "increment", round, c, pool, sides); err != nil {
			return err
		}
		slices.Reverse(sides)
	}
	rowsIncrement(r, rounds)
	return nil
}

// capturePass has every side capture the cluster once: ours as it runs, the
// peers its files when it has stopped. What differs from the pass before is
// counted on the way, as the copy on btrfs is brought up to date.
func (e *env) capturePass(ctx context.Context, r *Result, pass string, round int, c *cluster, pool *btrfsPool, sides []backupSide) error {
	if err := e.captureOurs(ctx, r, pass, round, c); err != nil {
		return err
	}
	if err := c.stop(stopFast); err != nil {
		return err
	}
	changed, total, err := patchTree(c.dir, pool.src)
	if err != nil {
		return err
	}
	r.add(Sample{files, pass, round, map[string]float64{"stored": float64(changed), "read": float64(total)}})
	if _, err := run(ctx, "sync", "-f", pool.at); err != nil {
		return err
	}
	for i := range sides {
		if err := sides[i].take(ctx, r, pass, round); err != nil {
			return err
		}
	}
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
func (e *env) captureOurs(ctx context.Context, r *Result, pass string, round int, c *cluster) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	argv := []string{"capture", "-data", e.disk + "/data", "-conn", c.conn()}
	if e.profile {
		argv = append(argv, "-profile", filepath.Join(e.out, fmt.Sprintf("increment-%s-%d.pprof", pass, round)))
	}
	cmd := exec.CommandContext(ctx, self, argv...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	var got captured
	if err := json.Unmarshal(out, &got); err != nil {
		return err
	}
	r.add(Sample{tide, pass, round, map[string]float64{"s": got.Seconds, "stored": float64(got.StoredBytes), "rss": float64(got.PeakRSS), "cpu_s": got.CPUSeconds,
		"copy_s": got.CopySeconds, "fold_s": got.FoldSeconds, "read": float64(got.ReadBytes), "changed": float64(got.ChangedBytes)}})
	return nil
}

// backupSide is a peer that saves a data directory into a repository.
type backupSide struct {
	side     string
	repo     string
	postgres bool // runs as the databases' user
	init     []string
	save     func(pass string, round int) []string
	env      []string
}

func (e *env) backupSides(data string, pool *btrfsPool) []backupSide {
	resticArgs := []string{"restic", "-q", "-r", e.disk + "/restic", "--cache-dir", e.disk + "/restic-cache"}
	pg := []string{"pgbackrest", "--stanza=x", "--pg1-path=" + data, "--repo1-path=" + e.disk + "/pgbackrest", "--log-path=" + e.disk + "/run", "--lock-path=" + e.disk + "/run",
		"--log-level-console=warn", "--log-level-file=off", "--no-online"}
	return []backupSide{
		{side: restic, repo: e.disk + "/restic", env: []string{"RESTIC_PASSWORD=x"}, init: append(resticArgs[:len(resticArgs):len(resticArgs)], "init"),
			save: func(string, int) []string {
				return append(resticArgs[:len(resticArgs):len(resticArgs)], "backup", "--ignore-ctime", "--ignore-inode", "--exclude", data+"/pg_wal/*", data)
			}},
		{side: pgbr, repo: e.disk + "/pgbackrest", postgres: true, init: append(pg[:len(pg):len(pg)], "stanza-create"),
			save: func(pass string, _ int) []string {
				kind := map[string]string{"full": "full", "increment": "incr"}[pass]
				return append(pg[:len(pg):len(pg)], "--beta", "--repo1-block", "--repo1-bundle", "--compress-type=zst", "--compress-level=1", "--process-max=2",
					"--repo1-retention-full=9", "--exclude=pg_wal/", "--type="+kind, "backup")
			}},
		{side: send, repo: e.disk + "/sent", save: func(pass string, round int) []string {
			return []string{"sh", "-c", pool.sendScript(pass, round, e.disk+"/sent")}
		}},
	}
}

// prepare makes the repository.
func (s *backupSide) prepare(ctx context.Context) error {
	if err := ownedDir(s.repo); err != nil {
		return err
	}
	if s.init == nil {
		return nil
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
func (s *backupSide) take(ctx context.Context, r *Result, pass string, round int) error {
	before, err := apparent(s.repo)
	if err != nil {
		return err
	}
	argv := s.save(pass, round)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if s.postgres {
		if err := asPostgres(cmd); err != nil {
			return err
		}
	}
	cmd.Env = append(os.Environ(), s.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	peak := watchPeak(cmd.Process.Pid)
	err = cmd.Wait()
	took := time.Since(begin).Seconds()
	rss := peak()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out.Bytes())
	}
	after, err := apparent(s.repo)
	if err != nil {
		return err
	}
	r.add(Sample{s.side, pass, round, map[string]float64{"s": took, "stored": float64(after - before), "rss": float64(rss),
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

func rowsIncrement(r *Result, rounds int) {
	const mb = 1e6
	get := func(side, pass, unit string) string { return number(r.median(side, pass, unit)) }
	megabytes := func(side, pass, unit string) string { return number(r.median(side, pass, unit) / mb) }
	grain := func(side string) float64 { return r.ratio(side, files, "increment", "stored") }
	r.row("increment: bytes stored ÷ bytes changed (4 KiB grain)", grain(tide), "x", atMost(0.25), atMost(0.12),
		"%s MB stored of %s MB changed of %s MB; btrfs send with zstd %s, pgBackRest %s, restic %s", megabytes(tide, "increment", "stored"), megabytes(files, "increment", "stored"),
		megabytes(files, "increment", "read"), number(grain(send)), number(grain(pgbr)), number(grain(restic)))
	for _, peer := range []struct {
		side      string
		must, aim Bound
	}{{pgbr, atMost(1), Bound{}}, {send, Bound{}, atMost(1.5)}, {restic, Bound{}, Bound{}}} {
		r.row("increment: wall time ÷ "+peer.side, r.ratio(tide, peer.side, "increment", "s"), "x", peer.must, peer.aim,
			"%s s (copy %s, fold %s; CPU %s) against %s s (CPU %s)", get(tide, "increment", "s"), get(tide, "increment", "copy_s"), get(tide, "increment", "fold_s"), get(tide, "increment", "cpu_s"),
			get(peer.side, "increment", "s"), get(peer.side, "increment", "cpu_s"))
	}
	r.row("first full: bytes stored ÷ restic", r.ratio(tide, restic, "full", "stored"), "x", atMost(1.1), atMost(1),
		"%s against %s MB; pgBackRest %s, btrfs send with zstd %s MB", megabytes(tide, "full", "stored"), megabytes(restic, "full", "stored"), megabytes(pgbr, "full", "stored"), megabytes(send, "full", "stored"))
	r.row("first full: speed ÷ restic", r.ratio(restic, tide, "full", "s"), "x", atLeast(1.5), atLeast(4),
		"%s s (copy %s, fold %s; CPU %s) against %s s (CPU %s); pgBackRest %s s (CPU %s)", get(tide, "full", "s"), get(tide, "full", "copy_s"), get(tide, "full", "fold_s"), get(tide, "full", "cpu_s"),
		get(restic, "full", "s"), get(restic, "full", "cpu_s"), get(pgbr, "full", "s"), get(pgbr, "full", "cpu_s"))
	r.row("first full: peak memory", r.median(tide, "full", "rss")/(1<<20), "MiB", atMost(300), Bound{}, "server and capture in one process; restic %s MiB", number(r.median(restic, "full", "rss")/(1<<20)))
	r.note("One full and %d increments. Ours captures the running server, with its log, through a staging disk (NBD, FUSE, loop, ext4); the peers read the files of the stopped one without its log. "+
		"Bytes changed are those of 4 KiB blocks of its files, log not included, between the two. The time of btrfs send is that of the snapshot and the stream; it knows what changed, and looks at nothing else.", rounds)
}
