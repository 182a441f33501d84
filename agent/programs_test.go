package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/capture"
	"tidemark/capture/tap"
	"tidemark/mount"
)

// A program that cannot be killed, because it waits for a disk, holds up nobody for much longer than its time.
func TestProgramThatCannotBeKilled(t *testing.T) {
	p := newProduction(t, "one", "two")
	a, _ := p.agent()
	stuck := p.dir("two")
	if err := mount.Freeze(stuck); err != nil {
		t.Fatal(err)
	}
	defer mount.Thaw(stuck)
	dir := p.scripts("one", "echo x >"+filepath.Join(stuck, "x"), "")
	begun := time.Now()
	got, _ := p.shoot(a, p.member("one", "m", dir))
	if problem := got.Mark.Labels[LabelProblems]; got.Mark.Consistency != tidemark.CrashConsistent || !strings.Contains(problem, "was killed, and does not end") {
		t.Errorf("%+v", got)
	}
	if d := time.Since(begun); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
	if log := p.log("one"); log != "pre m, post m" {
		t.Errorf("ran: %s", log)
	}
	if err := a.Close(); err != nil { // the session ends as well
		t.Error(err)
	}
}

// A shot that the server has given up lets its application go on before the next one begins, though that is asked for meanwhile.
func TestShotWaitsForPost(t *testing.T) {
	p := newProduction(t, "one")
	a, _ := p.agent()
	a.grace = 20 * time.Millisecond
	a.mu.Lock()
	a.link.grace = a.grace
	a.mu.Unlock()
	first := p.member("one", "first", p.scripts("one", "", "sleep 2; echo ended $TIDEMARK_BOOKMARK >>"+p.dir("one-scripts")+"/log"))
	first.ScriptLimit = 20 * time.Second
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	given := make(chan error)
	go func() {
		_, err := a.Shoot(ctx, Shot{Members: []ShotMember{first}})
		given <- err
	}()
	for end := time.Now().Add(10 * time.Second); !strings.HasSuffix(p.log("one"), "post first"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("ran: %s", p.log("one"))
		}
	}
	cancel()
	if err := <-given; tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("it is not given up: %v", err)
	}
	second := first
	second.Mark = capture.Mark{Name: "second", ID: "second"}
	got, _ := p.shoot(a, second)
	if want := "pre first, post first, ended first, pre second, post second, ended second"; p.log("one") != want || len(got.Problems) > 0 {
		t.Errorf("ran: %s; %+v", p.log("one"), got)
	}
}

// Of a disk that its timeline does not follow there is no point, and its application is not held for one.
func TestNotHeldInGap(t *testing.T) {
	p := newProduction(t)
	a, s := p.agent()
	p.must("truncate", "-s", fmt.Sprint(productionSize), p.dir("gap")+".img")
	t.Cleanup(func() { p.untap(s, "gap") })
	if _, err := doRunTap(t.Context(), s, p.tapping("gap"), nil); err != nil {
		t.Fatal(err)
	}
	m := p.member("gap", "m", p.scripts("gap", "", ""))
	if _, err := a.Shoot(t.Context(), Shot{Members: []ShotMember{m}}); err == nil || !strings.Contains(err.Error(), tap.ErrGap.Error()) {
		t.Errorf("%v", err)
	}
	if log := p.log("gap"); log != "" {
		t.Errorf("ran: %s", log)
	}
}

// What a program has started does not outlive an agent that is killed, but for the next one's post. What a pre has left behind on purpose does.
func TestKilledInProgram(t *testing.T) {
	p := newProduction(t, "one")
	a := New(Config{Lock: filepath.Join(t.TempDir(), "lock"), Places: p.places})
	defer a.Close()
	first, dir := pid(t, a), p.dir("one-scripts")
	beats := func(name string) string {
		return fmt.Sprintf("(for i in $(seq 400); do echo >>%s/%s; sleep 0.05; done) >/dev/null 2>&1 &\n", dir, name)
	}
	size := func(name string) int64 {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		return st.Size()
	}
	p.scripts("one", "[ $TIDEMARK_BOOKMARK = cut ] || exec "+dir+"/meant\n"+beats("left")+"wait", "")
	if err := os.WriteFile(filepath.Join(dir, "meant"), []byte("#!/bin/sh\n"+beats("kept")), 0o700); err != nil {
		t.Fatal(err)
	}
	m := p.member("one", "meant", dir)
	m.ScriptLimit = 20 * time.Second
	if got, _ := p.shoot(a, m); got.Mark.Consistency != tidemark.ApplicationConsistent {
		t.Errorf("%+v", got)
	}
	m.Mark = capture.Mark{Name: "cut", ID: "cut"}
	cut := make(chan error)
	go func() {
		_, err := a.Shoot(t.Context(), Shot{Members: []ShotMember{m}})
		cut <- err
	}()
	waitFor(t, "pre runs", func() bool { return size("left") > 0 })
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-cut; err == nil {
		t.Error("it was not cut")
	}
	left := size("left")
	waitFor(t, "what pre has started outlives it", func() bool { return size("left") > left })
	pid(t, a)
	waitFor(t, "post runs", func() bool { return strings.HasSuffix(p.log("one"), "pre cut, post cut") })
	left, kept := size("left"), size("kept")
	time.Sleep(500 * time.Millisecond)
	if size("left") != left {
		t.Error("what pre has started goes on behind post")
	}
	if size("kept") == kept {
		t.Error("what pre has left behind on purpose was killed")
	}
	waitFor(t, "it is forgotten", func() bool { files, _ := filepath.Glob(filepath.Join(p.places.Held, "*")); return len(files) == 0 })
}

func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for: %s", what)
		}
	}
}
