package survive

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/policy"
)

// TestClockSetUnderSchedule (K1) sets the clock of a host, forward and back, while a schedule makes points there that are kept by their age, and a
// clone has a lifetime, in a machine whose clock is its own: what was missed is caught up once, the schedule goes on, compliance says what is,
// and nothing is taken away for an age that it has by a clock that is wrong, also behind a kill.
func TestClockSetUnderSchedule(t *testing.T) {
	if inGuest {
		clockSetUnderSchedule(t)
		return
	}
	t.Parallel() // without a turn: for minutes it waits for its schedule
	runGuest(t, "TIDEMARK_GUEST_BESIDE=1")
}

// Of this, both applications have a point each minute, and none is kept for longer than an hour.
const minutely = `kind: Template
name: minutely
rpo: 10m
spread: 0s
capture: {every: 1m}
keep: {age: 1h}
`

// scheduled is a server that keeps a schedule under a clock that the test sets.
type scheduled struct {
	*stage
	apps []string
	seen map[string][]string // the points that each has had
}

func clockSetUnderSchedule(t *testing.T) {
	x := &scheduled{stage: newStage(t), apps: []string{"copied", "marked"}, seen: map[string][]string{}}
	disk, file := filepath.Join(x.dir, "disk"), filepath.Join(x.dir, "minutely.yaml")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(minutely), 0o600); err != nil {
		t.Fatal(err)
	}
	x.start()
	x.run("protect", disk, "--name", "copied") // by jobs
	x.run("volume", "create", "marked", "--size", "1MiB")
	x.run("apply", "-f", file)
	for _, name := range x.apps {
		x.run("sla", "set", name, "minutely")
	}
	x.more(1)
	x.run("clone", "marked@latest", "dev", "--for", "1h")
	x.truth(0)

	x.set(72 * time.Hour)
	x.truth(72 * time.Hour)
	x.caughtUp()
	x.more(1)
	x.truth(0)
	x.told("the clock went forward by 72h0m", true)

	x.set(-72 * time.Hour)
	x.caughtUp()
	x.more(1)
	x.truth(0)
	x.told("the clock went back by 72h0m", false)

	x.set(365 * 24 * time.Hour)
	x.caughtUp()
	x.told("the clock went forward by 8760h0m", true)
	x.end(syscall.SIGKILL)
	x.start()
	x.more(1)
	x.truth(0)
	x.told("no server ran for 87", true) // since it was noted what time it is

	x.set(-365 * 24 * time.Hour)
	x.caughtUp()
	x.truth(0)
	x.told("the clock went back by 87", false)
}

// set moves the clock of this machine.
func (x *scheduled) set(by time.Duration) {
	x.t.Helper()
	ts := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		x.t.Fatal(err)
	}
}

// caughtUp waits for the points that are due at once, since by the clock none was made for long: the next would be for a minute later.
func (x *scheduled) caughtUp() {
	x.t.Helper()
	begun := time.Now()
	x.more(1)
	if took := time.Since(begun); took > 50*time.Second {
		x.t.Errorf("it was caught up after %v", took)
	}
}

// more waits until each application has so many points more, and looks whether those that it had are there, and the new ones were not made together.
func (x *scheduled) more(n int) {
	x.t.Helper()
	begun := time.Now()
	for _, name := range x.apps {
		var names, made []string
		for len(made) < n {
			if time.Since(begun) > time.Duration(n+1)*2*time.Minute {
				x.t.Fatalf("%s has %v, after %v, and had %v\nlog: %s", name, names, time.Since(begun), x.seen[name], x.log())
			}
			time.Sleep(time.Second)
			names = nil
			for _, p := range ask[tidemark.Points](x.stage, "points", name, "--intervals").Points {
				names = append(names, p.Bookmark)
			}
			made = slices.DeleteFunc(slices.Clone(names), func(had string) bool { return slices.Contains(x.seen[name], had) })
		}
		for _, was := range x.seen[name] {
			if !slices.Contains(names, was) {
				x.t.Errorf("%s@%s is gone", name, was)
			}
		}
		if passed := time.Since(begun); len(made) > n+int(passed/time.Minute)+1 {
			x.t.Errorf("%s has these points more after %v: %v", name, passed, made)
		}
		x.seen[name] = names
	}
	x.t.Logf("at %v, after %v: %v", time.Now().UTC(), time.Since(begun), x.seen)
}

// truth looks at what is said of the promises: the newest point is so old, or new.
func (x *scheduled) truth(old time.Duration) {
	x.t.Helper()
	for _, c := range ask[[]policy.Compliance](x.stage, "sla") {
		if c.Template == "" {
			continue // the clone
		}
		measured := c.RPO.Measured
		switch {
		case measured == nil:
			x.t.Errorf("nothing is known of %s: %+v", c.Application, c)
		case old == 0 && (c.State != policy.OK || time.Duration(*measured) > 5*time.Minute):
			x.t.Errorf("%s is %s with an RPO of %v: %v", c.Application, c.State, *measured, c.Reasons)
		case old != 0 && time.Duration(*measured) < old: // unless it was caught up already
			x.t.Logf("%s is %s with an RPO of %v: %v", c.Application, c.State, *measured, c.Reasons)
		case old != 0 && c.State != policy.Violated:
			x.t.Errorf("%s is %s with an RPO of %v", c.Application, c.State, *measured)
		}
	}
}

// told looks at the newest events for one with the words, whether the status warns that the clock is not believed, and for the clone.
func (x *scheduled) told(words string, warned bool) {
	x.t.Helper()
	s := ask[tidemark.Status](x.stage, "status")
	if !slices.ContainsFunc(s.Events, func(e tidemark.Event) bool { return strings.Contains(e.Message, words) }) {
		x.t.Errorf("no event says %q: %+v", words, s.Events)
	}
	if slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "things are as old as it says from") }) != warned {
		x.t.Errorf("the warnings are %q", s.Warnings)
	}
	if !slices.ContainsFunc(s.Clones, func(c tidemark.Clone) bool { return c.Name == "dev" }) {
		x.t.Errorf("the clone is gone, in less than its hour: %+v", s.Events)
	}
}
