package survive

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/client"
)

// livePreparation are the files of a preparation that takes its time, and of the values that must not be left.
var livePreparation = map[string]string{
	"preparations/mask.sql": "update pay set card = '0000000000000000'",
	"preparations/slow":     "#!/bin/sh\nsleep 1 & wait\n",
	"secrets/cards.sql":     "select card from pay",
}

// TestLiveCloneKilled kills the server in each step of a preparation and of a publish, the agent in one of each, and loses the catalog in one. What is cut is
// undone or done again; nothing is published that was not searched to its end, what is published stays, and nothing is left on the host.
func TestLiveCloneKilled(t *testing.T) {
	beside(t)
	need(t, program("postgres"), program("psql"))
	s := newStage(t)
	s.someCatalog(seeded(t))
	s.start()
	for name, text := range livePreparation {
		path := filepath.Join(s.data, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	p := newProduction(t, s.dir)
	must(t, program("psql"), "-d", p.conn(), "-qc", "create table pay as select i id, '4929' || (123400000000 + i) card from generate_series(1, 2000) i")
	s.run("protect", p.url(), "--name", "orders")
	s.run("capture", "orders", "--bookmark", "one")
	s.run("liveclone", "make", "orders@one", "masked", "--step", "mask.sql", "--step", "slow", "--secrets", "cards.sql")
	s.run("liveclone", "prepare", "masked", "--bookmark", "first")
	s.run("liveclone", "publish", "masked@first")
	want := s.held()
	kill := func() {
		s.end(syscall.SIGKILL)
		time.Sleep(50 * time.Millisecond)
		s.start()
	}
	for _, step := range []string{"stop", "refresh", "start", "step slow", "rewrite the tables", "remove WAL", "clear the free space", "bookmark", "start again"} {
		t.Run("server in "+step, func(t *testing.T) {
			s.askLive(t, "create table mine as select 1")
			s.cutLive(t, step, kill, "liveclone", "prepare", "masked", "--refresh")
			s.wholeLive(t, want, "first")
			if j := ask[[]tidemark.Job](s, "jobs")[0]; j.Kind != "prepare" || j.State != tidemark.JobDone {
				t.Errorf("a preparation that was cut was not done in the end: %+v", j)
			}
			if n := s.askLive(t, "select count(*) from pg_class where relname = 'mine'"); n != "0" {
				t.Error("the clone is not what was prepared")
			}
			if n := s.askLive(t, "select count(*) from pay where card <> '0000000000000000'"); n != "0" {
				t.Errorf("%s rows are not masked", n)
			}
		})
	}
	t.Run("agent in step slow", func(t *testing.T) {
		s.askLive(t, "create table mine as select 1")
		if s.cutLive(t, "step slow", s.killAgent, "liveclone", "prepare", "masked", "--refresh") {
			t.Error("a preparation whose agent was killed succeeded")
		}
		s.wholeLive(t, want, "first")
		if n := s.askLive(t, "select count(*) from mine"); n != "1" {
			t.Error("the clone is not what it was before")
		}
		if l := ask[tidemark.LiveClone](s, "liveclone", "show", "masked"); len(l.Sources) == 0 {
			t.Error("it is not known what it is made of")
		}
	})
	s.run("liveclone", "prepare", "masked", "--refresh", "--bookmark", "second")
	want = s.held()
	for _, step := range []string{"gather values", "search the disks", "search the files"} {
		t.Run("server in "+step, func(t *testing.T) {
			if s.cutLive(t, step, kill, "liveclone", "publish", "masked@second") {
				s.run("liveclone", "unpublish", "masked@second") // it was quicker
			}
			s.wholeLive(t, want, "first")
		})
	}
	t.Run("server in gather values, and its catalog", func(t *testing.T) {
		done := s.cutLive(t, "gather values", func() {
			s.end(syscall.SIGKILL)
			s.loseCatalog()
			s.start()
		}, "liveclone", "publish", "masked@second")
		if done {
			t.Error("a publish whose catalog is lost said that it is done")
		}
		s.wholeLive(t, want, "first")
	})
	s.run("liveclone", "publish", "masked@second")
	s.wholeLive(t, want, "first", "second")
	for _, name := range []string{"first", "second"} {
		s.run("liveclone", "unpublish", "masked@"+name)
	}
	s.run("clone", "rm", "masked")
	s.run("unprotect", "orders", "--yes")
	s.settled("0 attachers, 0 loop devices")
}

// askLive asks the database of the LiveClone.
func (s *stage) askLive(t *testing.T, sql string) string {
	t.Helper()
	l := ask[tidemark.LiveClone](s, "liveclone", "show", "masked")
	out, err := exec.Command(program("psql"), "-AtqX", "-d", l.Connection, "-c", sql).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", sql, err, out)
	}
	return strings.TrimSpace(string(out))
}

// cutLive begins a job by a command, and calls cut when it is in a step, or behind. It reports whether the command succeeded nevertheless.
func (s *stage) cutLive(t *testing.T, step string, cut func(), args ...string) (done bool) {
	t.Helper()
	server := client.New(filepath.Join(s.data, "tidemark.sock")) // a command would be too slow for short steps
	newest := func() (j tidemark.Job) {
		jobs, err := client.Collect(client.First(1, server.Jobs(t.Context(), tidemark.JobFilter{})))
		if err != nil {
			t.Fatal(err)
		}
		if len(jobs) > 0 {
			j = jobs[0]
		}
		return j
	}
	before := newest().ID
	cmd := s.command(args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	at := ""
	for end := time.Now().Add(time.Minute); ; {
		j := newest()
		at = j.Step
		if j.ID > before && (at == step || j.State != tidemark.JobRunning) {
			break // a short step may have been missed
		}
		if time.Now().After(end) {
			t.Fatalf("the job never was in %q: %+v; %s", step, j, said.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
	cut()
	done = cmd.Wait() == nil
	t.Logf("cut in %q: %s", at, strings.TrimSpace(said.String()))
	return done
}

// wholeLive checks, when all jobs have ended, that the LiveClone is up and what of it is published, and that nothing else is left.
func (s *stage) wholeLive(t *testing.T, want string, published ...string) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		busy := false
		for _, j := range ask[[]tidemark.Job](s, "jobs") {
			busy = busy || j.State == tidemark.JobRunning || j.State == tidemark.JobQueued
		}
		if !busy {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a job runs for ever")
		}
	}
	s.settled(want)
	l := ask[tidemark.LiveClone](s, "liveclone", "show", "masked")
	if l.State != "running" || strings.Join(l.Bookmarks, " ") != strings.Join(published, " ") {
		t.Errorf("the LiveClone is %s, and of it is published %v, not %v", l.State, l.Bookmarks, published)
	}
	for _, p := range ask[[]tidemark.RecoveryPoint](s, "points", "masked") {
		if strings.HasPrefix(p.Bookmark, "before-prepare-") {
			t.Errorf("the bookmark %s is left", p.Bookmark)
		}
	}
	for _, k := range ask[[]tidemark.Clone](s, "clones") {
		if k.Name != "masked" {
			t.Errorf("the clone %s is left", k.Name)
		}
	}
	if _, err := s.try("points", "masked-check"); err == nil {
		t.Error("the timeline of a check is left")
	}
}
