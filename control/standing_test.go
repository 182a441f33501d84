package control

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

// promisesTold are the messages that a receiver has taken of promises, each behind its level. What was posted twice, for the server ended before it knew
// that it was taken, is one.
func (k *taker) promisesTold() (list []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	taken := map[string]bool{}
	for _, m := range k.taken {
		if m.Event != nil && strings.HasPrefix(m.Event.Message, "what ") && !taken[m.Delivery] {
			taken[m.Delivery] = true
			list = append(list, m.Event.Level+": "+m.Event.Message)
		}
	}
	return list
}

// standingOf is how a promise stands; false: it is not known.
func standingOf(c *Control, name string) (policy.Compliance, bool) {
	list := c.Standings()
	i := slices.IndexFunc(list, func(x policy.Compliance) bool { return x.Application == name })
	if i < 0 {
		return policy.Compliance{}, false
	}
	return list[i], true
}

// A promise that is broken is told once, whatever is restarted, and once when it is kept again; and so is one that is late.
func TestBrokenPromiseIsTold(t *testing.T) {
	defer func(was time.Duration) { worseFor = was }(worseFor)
	worseFor = 200 * time.Millisecond
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "file")
	c := serverIn(t, dir)
	defer func() { closes(t, c) }()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	appear := func() { must(os.WriteFile(file, make([]byte, 1<<20), 0o600)) }
	ops := newTaker(t, 200)
	ops.hooked(t, c, tidemark.WebhookSpec{Name: "ops", Applications: []string{"files"}})
	told := func(want ...string) { // at least these, and these first
		t.Helper()
		holds(t, strings.Join(want, ", "), func() bool { return len(ops.promisesTold()) >= len(want) })
		got := ops.promisesTold()
		for i, w := range want {
			if !strings.HasPrefix(got[i], w) {
				t.Fatalf("it was told %q, and not %q", got, want)
			}
		}
	}
	promised := func(x policy.Template) { // shorter than anybody may ask for
		x.Name, x.Spread = "gold", new(policy.Duration)
		must(c.catalog.Put(t.Context(), catalog.Templates, x.Name, x))
		c.promises.anew()
	}
	appear()
	promised(policy.Template{RPO: policy.Duration(6 * time.Second), Capture: &policy.Capture{Every: policy.Duration(time.Hour)}})
	_, err := c.Protect(t.Context(), tidemark.ProtectSpec{Name: "files", Source: file, SLA: "gold"})
	must(err)
	holds(t, "it is kept", func() bool { x, _ := standingOf(c, "files"); return x.State == policy.OK })

	// Its captures fail, and so does what was promised.
	must(os.Remove(file))
	broken := "error: what gold promises to files is not kept: it is violated (rpo: the newest recoverable moment is "
	told(broken)
	x, _ := standingOf(c, "files")
	if x.State != policy.Violated || x.RPO.Promised != policy.Duration(6*time.Second) || x.RPO.Measured == nil || *x.RPO.Measured <= x.RPO.Promised || x.RTO.Measured != nil {
		t.Errorf("%+v", x)
	}
	s, err := c.Status(t.Context())
	must(err)
	if !slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.HasPrefix(w, strings.TrimPrefix(broken, "error: ")[:60]) }) {
		t.Errorf("the warnings are %q", s.Warnings)
	}

	// The next server knows that it was told.
	must(c.Close())
	c = serverIn(t, dir)
	holds(t, "it is looked at again", func() bool { x, _ := standingOf(c, "files"); return x.State == policy.Violated })
	time.Sleep(5 * worseFor)
	c.promises.anew()
	time.Sleep(5 * worseFor)
	if got := ops.promisesTold(); len(got) != 1 {
		t.Fatalf("it was told %q", got)
	}
	appear()
	_, err = c.Capture(t.Context(), tidemark.CaptureSpec{Application: "files"})
	must(err)
	kept := "info: what gold promises to files is kept again"
	told(broken, kept)

	// What is late is told as well, and why.
	promised(policy.Template{RPO: policy.Duration(time.Hour), Capture: &policy.Capture{Every: policy.Duration(2 * time.Second)}})
	holds(t, "it is kept with more time", func() bool { x, _ := standingOf(c, "files"); return x.State == policy.OK })
	before := ops.promisesTold() // it may have been broken once more meanwhile
	must(os.Remove(file))
	told(append(slices.Clone(before), "warning: what gold promises to files is late: capture: since ")...)
	if got := ops.promisesTold()[len(before)]; !strings.Contains(got, "failed") {
		t.Errorf("it was told %q", got)
	}
	appear()
	told(append(before, "warning: ", kept)...)

	// Nothing is told of what is promised no more.
	must(os.Remove(file))
	told(append(before, "warning: ", kept, "warning: ")...)
	must(c.SetSLA(t.Context(), "files", ""))
	holds(t, "nothing is said of it", func() bool { _, ok := standingOf(c, "files"); return !ok })
	appear()
	j, err := c.Capture(t.Context(), tidemark.CaptureSpec{Application: "files"})
	must(err)
	holds(t, "it is captured", func() bool { j, err := c.Job(t.Context(), j.ID, 0); return err == nil && j.State == tidemark.JobDone })
	must(c.SetSLA(t.Context(), "files", "gold"))
	holds(t, "it is kept at last", func() bool { x, _ := standingOf(c, "files"); return x.State == policy.OK })
	time.Sleep(3 * worseFor)
	if got := ops.promisesTold(); len(got) != len(before)+3 {
		t.Errorf("it was told %q", got)
	}
}

// What was promised just now, and could not be kept yet, is not told before its time.
func TestPromiseOfJustNowIsNotTold(t *testing.T) {
	now := time.Now()
	first := policy.History{Since: now.Add(-time.Hour)}
	run := func(s policy.RunState) []policy.Run {
		return []policy.Run{{Policy: policy.PolicyCapture, State: s, Started: now.Add(-time.Minute), Finished: now}}
	}
	none, half := policy.Template{Spread: new(policy.Duration), Capture: &policy.Capture{Every: policy.Duration(2 * time.Hour)}}, policy.Duration(30*time.Minute)
	for _, c := range []struct {
		why     string
		rpo     policy.Duration
		h       policy.History
		awaited bool
	}{
		{"its first capture runs", 2 * half * 2, policy.History{Since: first.Since, Runs: run(policy.RunRunning)}, true},
		{"its first capture runs for longer than may be lost", half, policy.History{Since: first.Since, Runs: run(policy.RunRunning)}, false},
		{"its first capture runs, and it is not said what may be lost", 0, policy.History{Since: first.Since, Runs: run(policy.RunRunning)}, true},
		{"its first captures fail, and it is not said what may be lost", 0, policy.History{Since: first.Since, Runs: run(policy.RunFailed)}, false},
		{"its points are gone", 2 * half * 2, policy.History{Since: first.Since, Runs: run(policy.RunDone)}, false},
	} {
		x := none
		x.RPO = c.rpo
		kept := policy.Assess(x, c.h, now)
		if kept.State != policy.Unprotected {
			t.Fatalf("%s: it is %s", c.why, kept.State)
		}
		if got := awaited(kept, c.h, now); got != c.awaited {
			t.Errorf("%s: it is awaited: %v", c.why, got)
		}
	}
}

// Who was late and has begun, or has a time of day at which nothing is late for some minutes, is not told to be in time again before something was done.
func TestNothingIsMendedByABegin(t *testing.T) {
	at := func(clock string) time.Time {
		x, err := time.Parse(time.RFC3339, "2026-11-28T"+clock+":00Z")
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	noon, err := policy.ParseTimeOfDay("12:30")
	if err != nil {
		t.Fatal(err)
	}
	night, err := policy.ParseTimeOfDay("02:30")
	if err != nil {
		t.Fatal(err)
	}
	daily := policy.Template{Spread: new(policy.Duration), Capture: &policy.Capture{At: []policy.TimeOfDay{night, noon}}}
	hourly := policy.Template{Spread: new(policy.Duration), Capture: &policy.Capture{Every: policy.Duration(time.Hour)}}
	run := func(s policy.RunState, clock string) policy.Run {
		return policy.Run{Policy: policy.PolicyCapture, State: s, Started: at(clock), Finished: at(clock).Add(time.Second)}
	}
	point := []policy.Point{{Time: at("00:10")}}
	for _, c := range []struct {
		why       string
		tmpl      policy.Template
		runs      []policy.Run
		now       string
		state     policy.State
		undecided bool
	}{
		{"it failed at night", daily, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "02:30")}, "12:29", policy.Late, true},
		{"it is to be tried again at noon", daily, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "02:30")}, "12:31", policy.OK, true},
		{"it is tried again", daily, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "02:30"), run(policy.RunRunning, "12:30")}, "12:31", policy.OK, true},
		{"it was done at noon", daily, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "02:30"), run(policy.RunDone, "12:30")}, "12:31", policy.OK, false},
		{"an hourly one is late", hourly, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "01:10")}, "01:30", policy.Late, true},
		{"an hourly one is tried again", hourly, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "01:10"), run(policy.RunRunning, "01:20")}, "01:30", policy.OK, true},
		{"an hourly one was done", hourly, []policy.Run{run(policy.RunDone, "00:10"), run(policy.RunFailed, "01:10"), run(policy.RunDone, "01:20")}, "01:30", policy.OK, false},
	} {
		h, now := policy.History{Since: at("00:00"), Points: point, Runs: c.runs}, at(c.now)
		if got := policy.Assess(c.tmpl, h, now).State; got != c.state {
			t.Errorf("%s: it is %s", c.why, got)
		}
		if got := undecided(policy.Next(c.tmpl, h, now), now); got != c.undecided {
			t.Errorf("%s: it is undecided: %v", c.why, got)
		}
	}
}
