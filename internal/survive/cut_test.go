package survive

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
)

// TestCutLate kills the server when jobs have done their work, or most of it, which kills at random seldom meet.
func TestCutLate(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", program("postgres"))
	s := newStage(t)
	catalogs[1].place(s)
	s.start()
	p := newProduction(t, s.dir)
	p.load()
	s.run("protect", p.url(), "--name", "db")
	s.run("capture", "db", "--bookmark", "first")
	kill := func() {
		s.end(syscall.SIGKILL)
		s.start()
	}
	t.Run("before the end is recorded", func(t *testing.T) { s.cutUnrecorded(t, p) })
	t.Run("a rewind that is written", func(t *testing.T) {
		s.run("clone", "db@first", "kept")
		s.run("capture", "kept", "--bookmark", "base")
		s.cutLive(t, "start", kill, "rewind", "kept@base")
		j := s.over(ask[[]tidemark.Job](s, "jobs")[0].ID)
		if j.State != tidemark.JobDone {
			t.Fatalf("it is not done: %+v: %v", j, j.Error)
		}
		before := ""
		for _, p := range ask[[]tidemark.RecoveryPoint](s, "points", "kept") {
			if strings.HasPrefix(p.Bookmark, "before-rewind-") {
				before = p.Bookmark
			}
		}
		if before == "" {
			t.Error("nobody is told of what it held until then")
		}
		s.run("rewind", "kept", "--undo")
		s.run("clone", "rm", "kept")
	})
	t.Run("a restore in the middle", func(t *testing.T) {
		files := filepath.Join(s.dir, "files")
		b := make([]byte, 96<<20)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		if err := os.Mkdir(files, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(files, "large"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s.run("protect", files, "--name", "files")
		s.run("capture", "files", "--bookmark", "one")
		want := s.held()
		out := filepath.Join(s.dir, "out")
		cmd := s.command("restore", "files@one", "--to", out)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(out); err == nil {
				break // it is mounted, and is copied
			}
			if time.Now().After(end) {
				t.Fatal("it copies nothing")
			}
		}
		kill()
		if err := cmd.Wait(); err == nil {
			t.Log("it was quicker")
		}
		s.settled(want)
		if m := ask[[]tidemark.Mount](s, "mounts"); len(m) > 0 {
			t.Errorf("mounts that nobody asked for: %+v", m)
		}
		if left, _ := filepath.Glob(filepath.Join(s.data, "run", "restore-*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// cutUnrecorded makes jobs that are done those of a server that was killed just before it recorded that. They are begun again, once, and nothing is there
// twice; but for one that somebody has cancelled.
func (s *stage) cutUnrecorded(t *testing.T, p *production) {
	image := filepath.Join(s.dir, "image")
	if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run("volume", "import", "vol", image, "--bookmark", "one")
	from := ask[[]tidemark.Job](s, "jobs")[0].ID
	s.run("protect", p.url(), "--name", "again")
	s.run("clone", "db@first", "dev")
	s.run("clone", "db@first", "unwanted")
	s.run("volume", "import", "vol", image, "--bookmark", "two")
	s.run("volume", "import", "new", image, "--bookmark", "one")
	s.end(syscall.SIGKILL)
	sql(t, s.catalog.conn(), fmt.Sprintf(`UPDATE jobs SET state = 'running', result = '', finished = 0,
		cancelling = CASE application WHEN 'unwanted' THEN 1 ELSE 0 END,
		undo = CASE application WHEN 'vol' THEN '' ELSE '{"remove": "' || application || '"}' END WHERE id > %d`, from))
	s.start()
	for _, j := range ask[[]tidemark.Job](s, "jobs") {
		if j.ID <= from {
			break
		}
		wants := tidemark.JobDone
		if j.Application == "unwanted" {
			wants = tidemark.JobCancelled
		}
		if j = s.over(j.ID); j.State != wants || wants == tidemark.JobDone && j.Attempt != 2 {
			t.Errorf("it is not %s: %+v: %v", wants, j, j.Error)
		}
	}
	clones := ask[[]tidemark.Clone](s, "clones")
	if len(clones) != 1 || clones[0].Name != "dev" {
		t.Fatalf("clones: %+v", clones)
	}
	consistent(t, clones[0].Connection)
	for ref, want := range map[string]int{"vol": 2, "new": 1, "again": 0} {
		if points := ask[[]tidemark.RecoveryPoint](s, "points", ref); len(points) != want {
			t.Errorf("%s has points %+v", ref, points)
		}
	}
	if n := sql(t, p.conn(), "SELECT count(*) FROM pg_replication_slots"); n != "2" {
		t.Errorf("production keeps log for %s that receive it, and two do", n)
	}
	if held := s.held(); strings.Contains(held, "unwanted") {
		t.Errorf("of what was cancelled is left: %s", held)
	}
	s.run("clone", "rm", "dev")
	s.run("unprotect", "again", "--yes")
}
