package control

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/app/postgres"
	"tidemark/policy"
	"tidemark/timeline"
)

// sentCluster makes an application that passes for a cluster of the host far, with the disks that are named.
func sentCluster(t *testing.T, c *Control, name string, disks ...string) app {
	t.Helper()
	var specs []timeline.DiskSpec
	for _, d := range disks {
		specs = append(specs, timeline.DiskSpec{Name: d, Size: 1 << 20})
	}
	note := about{Type: tidemark.TypePostgres, Source: "postgres:///", Host: "far", Agent: "far"}
	line, err := c.set.Create(t.Context(), name, specs, mustJSON(note))
	if err != nil {
		t.Fatal(err)
	}
	a, err := appOf(line)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// A cluster of another host that was protected without a disk for its log goes on as it was; where a log is asked for, it is said what to do.
func TestSentWithoutLog(t *testing.T) {
	c, _ := listens(t)
	a := sentCluster(t, c, "old", dataDisk)
	if a.hasLog() {
		t.Fatal("it has a log")
	}
	logged := policy.Template{Name: "gold", Log: &policy.Log{}}
	_, late := c.planClone(t.Context(), tidemark.CloneSpec{Ref: "old", Name: "k", To: "latest"}, "")
	for what, err := range map[string]error{"a clone": late, "a promise": c.canPromise(a, logged)} {
		if tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "protect the cluster anew") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.receiveSent(t.Context(), a)
	if c.receivers.has("old") {
		t.Error("its log is received")
	}
	if d := c.describe(t.Context(), a); d.State != "ok" {
		t.Errorf("it is %s: %s", d.State, d.Detail)
	}
	if err := c.tryPruneLog(t.Context(), a); err != nil {
		t.Error(err)
	}
	if err := c.canPromise(sentCluster(t, c, "new", dataDisk, logDisk), logged); err != nil {
		t.Errorf("a promise to one with a log: %v", err)
	}
	if err := c.Unprotect(t.Context(), "old"); err != nil {
		t.Error(err)
	}
}

// older is the agent of a host that does not know what it is asked.
func older(t *testing.T, a *agent.Agent) {
	t.Helper()
	replying(t, a, func() error { return tidemark.Errorf(tidemark.Invalid, "the agent does not know it") })
}

// replying is the agent of a host that answers each call with an error, or with nothing to be told.
func replying(t *testing.T, a *agent.Agent, with func() error) {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		in, out := json.NewDecoder(theirs), json.NewEncoder(theirs)
		for {
			var m struct {
				Call uint64 `json:"call"`
			}
			if in.Decode(&m) != nil {
				return
			}
			answer := map[string]any{"call": m.Call, "done": true, "body": map[string]any{}}
			if err := with(); err != nil {
				answer["failure"] = map[string]any{"text": err.Error(), "told": err}
			}
			out.Encode(answer)
		}
	}()
	taken := make(chan error, 1)
	go func() { taken <- a.Take(ours) }()
	t.Cleanup(func() {
		theirs.Close()
		<-taken
	})
	for end := time.Now().Add(10 * time.Second); !a.Connected(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the agent is not connected")
		}
	}
}

// At the socket of a cluster is superuser of production: it is closed to all but us and a user that nobody is. Who connects is told why there is no cluster behind it.
func TestForwardSocket(t *testing.T) {
	c, _ := listens(t)
	id := strings.Repeat("0123", 30) // the path of a socket could not be so long
	f, err := c.forward("far", "postgres:///", id, &agent.Carried{})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	t.Cleanup(func() {
		if !closed {
			f.close()
		}
	})
	run, err := os.Stat(c.path("run"))
	if err != nil || run.Mode().Perm() != 0o700 {
		t.Fatalf("the way there is open: %v, %v", run.Mode(), err)
	}
	st, err := os.Stat(filepath.Join(f.src.Forwarded, postgres.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	if owner := st.Sys().(*syscall.Stat_t); st.Mode().Perm() != 0o600 || os.Geteuid() == 0 && int(owner.Uid) != receiverUser(id) {
		t.Errorf("the socket is %v, of %d", st.Mode(), owner.Uid)
	}
	if a, b := receiverUser("0123"), receiverUser("0124"); a == b || a < firstReceiver || a >= firstReceiver+receiverRange {
		t.Errorf("two users are %d and %d", a, b)
	}
	fails := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := f.src.Connect(ctx); err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "\n") {
			t.Errorf("it is not told that %q: %v", what, err)
		}
	}
	fails(`there is no host "far"`)
	if _, err := c.AddHost(t.Context(), tidemark.HostSpec{Name: "far"}); err != nil {
		t.Fatal(err)
	}
	fails("host far is not connected")
	x, err := c.agentOn("far")
	if err != nil {
		t.Fatal(err)
	}
	older(t, x)
	fails("the agent of host far cannot have the log of a cluster received: it is of another version than the server: captures go on")
	f.close()
	closed = true
	if left, err := filepath.Glob(c.path("run", "log-*")); err != nil || len(left) > 0 {
		t.Errorf("%q is left: %v", left, err)
	}
}

// What is covered by a log begins where that leads on from a point, and a clone to a moment that it does not lead to is refused.
func TestLogLeadsOn(t *testing.T) {
	c, _ := listens(t)
	a := sentCluster(t, c, "orders", dataDisk, logDisk)
	var points []tidemark.RecoveryPoint
	for i, stop := range []string{"0/2000000", "0/5000000", "0/9000000"} {
		pos, err := a.t.Bookmark(timeline.Mark{Name: fmt.Sprint(i), Labels: map[string]string{labelStop: stop}})
		if err == nil {
			err = a.t.Fold(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := pointAt(a.t, pos)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	at := func(i int, after time.Duration) time.Time { return points[i].Time.Add(after) }
	now := at(2, time.Hour)
	gap := postgres.Gap{From: 0x6000000, To: 0x8000000, FromTime: at(1, time.Millisecond), ToTime: at(2, -1)}
	for name, x := range map[string]struct {
		st      postgres.ReceiverStatus
		covered []tidemark.Interval
		refused []plan // by base and stop
		had     []plan
	}{
		"from the first": {postgres.ReceiverStatus{Oldest: 0x1000000, Covered: now}, []tidemark.Interval{{From: at(0, 0), To: now}}, nil,
			[]plan{{pos: points[0].Position, stop: postgres.Stop{Latest: true}}, {pos: points[0].Position, stop: postgres.Stop{LSN: 0x4000000}}}},
		"from the second": {postgres.ReceiverStatus{Oldest: 0x5000000, Covered: now}, []tidemark.Interval{{From: at(1, 0), To: now}},
			[]plan{{pos: points[0].Position, stop: postgres.Stop{Latest: true}}}, []plan{{pos: points[1].Position, stop: postgres.Stop{Time: now}}}},
		"nothing yet":      {postgres.ReceiverStatus{Covered: now}, nil, []plan{{pos: points[2].Position, stop: postgres.Stop{Latest: true}}}, nil},
		"no capture since": {postgres.ReceiverStatus{Oldest: 0xA000000, Covered: now}, nil, []plan{{pos: points[2].Position, stop: postgres.Stop{Latest: true}}}, nil},
		"with a gap": {postgres.ReceiverStatus{Oldest: 0x1000000, Covered: now, Gaps: []postgres.Gap{gap}},
			[]tidemark.Interval{{From: at(0, 0), To: gap.FromTime}, {From: at(2, 0), To: now}},
			[]plan{{pos: points[1].Position, stop: postgres.Stop{Latest: true}}, {pos: points[1].Position, stop: postgres.Stop{Time: now}}, {pos: points[0].Position, stop: postgres.Stop{LSN: 0x6000001}}},
			[]plan{{pos: points[1].Position, stop: postgres.Stop{Time: gap.FromTime}}, {pos: points[0].Position, stop: postgres.Stop{LSN: gap.From}}, {pos: points[2].Position, stop: postgres.Stop{Latest: true}}}},
	} {
		p := tidemark.Points{Points: points}
		if coverByLog(&p, x.st); !slices.Equal(p.Covered, x.covered) || len(p.Gaps) != len(x.st.Gaps) {
			t.Errorf("%s: covered is %v, with gaps %v", name, p.Covered, p.Gaps)
		}
		for _, q := range x.refused {
			q.src = a
			if err := q.unbroken(x.st); tidemark.KindOf(err) != tidemark.Unavailable {
				t.Errorf("%s: %+v from %v: %v", name, q.stop, q.pos, err)
			}
		}
		for _, q := range x.had {
			q.src = a
			if err := q.unbroken(x.st); err != nil {
				t.Errorf("%s: %+v from %v: %v", name, q.stop, q.pos, err)
			}
		}
	}
	// By the clock of the cluster's host, where that is known.
	before := tidemark.RecoveryPoint{Time: now, Labels: map[string]string{labelStopped: at(0, -time.Hour).UTC().Format(time.RFC3339Nano)}}
	if got := capturedAt(before); !got.Equal(at(0, -time.Hour)) || !capturedAt(points[0]).Equal(points[0].Time) {
		t.Errorf("captured at %v, and %v", got, capturedAt(points[0]))
	}
}
