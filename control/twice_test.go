package control

import (
	"encoding/json"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidemark"
	"tidemark/agent/remote"
)

// answersCalls answers what an agent is called for, as long as it is to; then it is silent, and its kernel is there.
func answersCalls(conn net.Conn, silent *atomic.Bool) {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var m struct {
			Call uint64 `json:"call"`
		}
		if in.Decode(&m) != nil {
			return
		}
		if !silent.Load() {
			out.Encode(map[string]any{"call": m.Call, "done": true, "failure": map[string]any{"text": "no", "told": tidemark.Errorf(tidemark.Invalid, "no")}})
		}
	}
}

// Of two agents with one identity the first stays while it answers, and that there are two is told, once; one that comes back from elsewhere while its old connection is
// silent is let in soon.
func TestTwice(t *testing.T) {
	c, _ := listens(t)
	two := host(t, c, "two")
	copied := stolen(t, two)
	first := dials(t, two, remote.Calls)
	var silent atomic.Bool
	go answersCalls(first, &silent)
	for end := time.Now().Add(20 * time.Second); !c.hosts.link("two").agent.Connected(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it is not connected")
		}
	}
	for range 3 {
		if _, err := remote.DialFrom(t.Context(), copied, remote.Request{For: remote.Calls}); tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "connected from 127.0.0.1 already") {
			t.Errorf("the copy: %v", err)
		}
	}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range s.Events {
		if strings.Contains(e.Message, "connects from two places") {
			told = append(told, e.Level)
		}
	}
	if len(told) != 1 || told[0] != "warning" {
		t.Errorf("it is told %q", told)
	}
	list, err := c.Hosts(t.Context())
	if err != nil || len(list) != 1 || list[0].State != tidemark.HostConnected || !strings.Contains(list[0].Problem, "a copy of its identity") {
		t.Errorf("%+v, %v", list, err)
	}
	if len(s.Warnings) == 0 || !strings.Contains(strings.Join(s.Warnings, "\n"), "host two: "+list[0].Problem) {
		t.Errorf("status warns of %q", s.Warnings)
	}
	silent.Store(true)
	begun := time.Now()
	dials(t, two, remote.Calls)
	if d := time.Since(begun); d < firstAnswers/2 {
		t.Errorf("the first one had %v to answer", d)
	}
	ends(t, "the silent one", first)
}
