package control

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
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
	if err := c.pruneLog(t.Context(), a); err != nil {
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
			out.Encode(map[string]any{"call": m.Call, "done": true, "failure": map[string]any{"text": "the agent does not know it", "told": tidemark.Errorf(tidemark.Invalid, "the agent does not know it")}})
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
