package control

import (
	"testing"
	"time"

	"tidemark/policy"
)

// TestRan: of many runs the newest are remembered, and the newest good one however old it is: intervals count from that.
func TestRan(t *testing.T) {
	var k record
	at := time.Unix(1000, 0)
	add := func(p policy.Policy, s policy.RunState) {
		at = at.Add(time.Minute)
		k.ran(policy.Run{Policy: p, State: s, Started: at, Finished: at})
	}
	add(policy.PolicyCapture, policy.RunDone)
	good := at
	add(policy.PolicyVerify, policy.RunDone)
	for range 3 * keptRuns {
		add(policy.PolicyCapture, policy.RunFailed)
	}
	captures, verifies, found := 0, 0, false
	for i, r := range k.Runs {
		if i > 0 && r.Started.Before(k.Runs[i-1].Started) {
			t.Errorf("run %d is out of order", i)
		}
		if r.Policy == policy.PolicyVerify {
			verifies++
			continue
		}
		captures++
		found = found || r.State == policy.RunDone && r.Started.Equal(good)
	}
	if captures != keptRuns+1 || verifies != 1 || !found {
		t.Errorf("%d captures and %d verifies are remembered, the good one: %v", captures, verifies, found)
	}
}

// TestMadeName: what a person named is told from what was named for him.
func TestMadeName(t *testing.T) {
	for name, made := range map[string]bool{
		"sla-20261128-040953.808": true, "auto-20261128-040953.808": true, "c20261128-040953.808": true, "c20261128-040953.808-2": true,
		"nightly": false, "sla-": false, "sla-gold": false, "auto-save": false, "c3": false, "before-rewind-20261128-040953.808": false, "xsla-20261128-040953.808": false,
	} {
		if got := madeName.MatchString(name); got != made {
			t.Errorf("%s: made by us: %v", name, got)
		}
	}
}
