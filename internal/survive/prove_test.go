package survive

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/client"
)

// TestProveKilled kills the server, and then the agent, in each step of a recovery proof. Nothing of the sandbox is left, the point is as it was, and the
// next proof succeeds.
func TestProveKilled(t *testing.T) {
	need(t, program("postgres"), program("pg_amcheck"))
	s := newStage(t)
	s.someCatalog(seeded(t))
	s.start()
	probes := filepath.Join(s.data, "probes")
	if err := os.Mkdir(probes, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(probes, "slow"), []byte("#!/bin/sh\nsleep 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newProduction(t, s.dir)
	p.load()
	s.run("protect", p.url(), "--name", "orders")
	s.run("capture", "orders", "--bookmark", "one")
	want := s.held()
	for _, step := range []string{"open", "attach", "start", "recover", "check", "probe"} {
		t.Run("server in "+step, func(t *testing.T) {
			done := s.cutProof(t, step, func() {
				s.end(syscall.SIGKILL)
				time.Sleep(50 * time.Millisecond)
				s.start()
			})
			s.unharmed(t, want, done)
		})
	}
	t.Run("server in probe, and its catalog", func(t *testing.T) {
		s.cutProof(t, "probe", func() {
			s.end(syscall.SIGKILL)
			s.loseCatalog()
			if err := os.RemoveAll(filepath.Join(s.data, "audit")); err != nil { // else that the audit is gone is told, as it must be
				t.Fatal(err)
			}
			s.start()
		})
		s.unharmed(t, want, false)
		s.run("prove", "orders@one") // which is now the newest job
	})
	t.Run("agent in probe", func(t *testing.T) {
		done := s.cutProof(t, "probe", s.killAgent)
		if done {
			t.Error("a proof whose agent was killed succeeded")
		}
		s.settled(want)
		if p := ask[[]tidemark.RecoveryPoint](s, "points", "orders"); p[0].Proven == nil || p[0].Proven.Result != tidemark.Proven {
			t.Errorf("a proof that was cut took the stamp of one that was not: %+v", p)
		}
	})
	if r := ask[tidemark.Proof](s, "prove", "orders@one"); r.Result != tidemark.Proven {
		t.Errorf("after all of that: %+v", r)
	}
	s.settled(want)
	s.run("unprotect", "orders", "--yes")
	s.settled("0 attachers, 0 loop devices")
}

// cutProof begins a proof and calls cut when it is in a step, or just behind. It reports whether the proof succeeded nevertheless.
func (s *stage) cutProof(t *testing.T, step string, cut func()) (done bool) {
	t.Helper()
	before := ask[[]tidemark.Job](s, "jobs")[0].ID
	cmd := s.command("prove", "orders@one", "--probe", "slow")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	order := []string{"", "open", "attach", "start", "recover", "check", "probe"}
	at := ""
	server := client.New(filepath.Join(s.data, "tidemark.sock")) // a command would be too slow for short steps
	for end := time.Now().Add(time.Minute); ; {
		jobs, err := client.Collect(client.First(1, server.Jobs(t.Context(), tidemark.JobFilter{})))
		if err != nil {
			t.Fatal(err)
		}
		j := jobs[0]
		if at = j.Step; j.ID > before && indexOf(order, at) >= indexOf(order, step) {
			break
		}
		if j.ID > before && j.State != tidemark.JobRunning || time.Now().After(end) {
			t.Fatalf("the proof never was in %q: %+v; %s", step, j, said.String())
		}
	}
	cut()
	done = cmd.Wait() == nil
	t.Logf("cut in %q: %s", at, strings.TrimSpace(said.String()))
	return done
}

func indexOf(list []string, s string) int {
	for i, x := range list {
		if x == s {
			return i
		}
	}
	return -1
}

// unharmed checks what a proof that was cut may leave: nothing.
func (s *stage) unharmed(t *testing.T, want string, done bool) {
	t.Helper()
	s.settled(want)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := s.sandboxes()
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("processes of a sandbox are left: %v", left)
		}
	}
	for _, j := range ask[[]tidemark.Job](s, "jobs") {
		if j.State == tidemark.JobRunning {
			t.Errorf("job %d runs for ever", j.ID)
		}
	}
	if _, err := s.try("points", "orders-proof"); err == nil {
		t.Error("the timeline of the sandbox is left")
	}
	points := ask[[]tidemark.RecoveryPoint](s, "points", "orders")
	if len(points) != 1 || !done && points[0].Proven != nil {
		t.Errorf("a proof that was cut says something of its point: %+v", points)
	}
	if st := ask[tidemark.Status](s, "status"); len(st.Warnings) > 0 {
		t.Errorf("a proof that was cut warns: %v", st.Warnings)
	}
}

// sandboxes are the processes that have a network of their own which is not ours, and run what a proof runs. Of these no path tells whose they are, so
// no other test may prove something meanwhile.
func (s *stage) sandboxes() (list []string) {
	ours, _ := os.Readlink("/proc/self/ns/net")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		theirs, err := os.Readlink(dir + "/ns/net")
		name, _ := os.ReadFile(dir + "/cmdline")
		if err != nil || theirs == ours || len(name) == 0 {
			continue
		}
		text := strings.ReplaceAll(string(name), "\x00", " ")
		if strings.HasPrefix(text, s.program) || strings.Contains(text, "/disks/") || strings.Contains(text, "/run/probe") {
			list = append(list, fmt.Sprint(filepath.Base(dir), " ", text))
		}
	}
	return list
}

// killAgent kills the process that works on the disks of the server.
func (s *stage) killAgent() {
	s.t.Helper()
	st, err := os.Stat(filepath.Join(s.data, "run", "agent.lock"))
	if err != nil {
		s.t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d", st.Sys().(*syscall.Stat_t).Ino)
	locks, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(locks)) {
		if f := strings.Fields(line); len(f) > 5 && strings.HasSuffix(f[5], inode) {
			pid, err := strconv.Atoi(f[4])
			if err != nil {
				s.t.Fatal(err)
			}
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); !strings.HasPrefix(string(name), s.program+"\x00") {
				continue // of another file system, which has the number too
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				s.t.Fatal(err)
			}
			return
		}
	}
	s.t.Fatal("no agent has the lock")
}
