package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
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
