package survive

import (
	"flag"
	"runtime"
	"testing"
	"time"
)

// turns are how many tests run beside others at a time: one more than there are processors, since they wait for processes and disks more than they
// compute.
var turns = make(chan struct{}, runtime.GOMAXPROCS(0)+1)

// beside has a test run beside others, when it is its turn. Not so those that measure how long something takes, or look at all of the host: they
// run first, one after the other. A test that does nothing but wait needs no turn: it calls t.Parallel, and begins at once.
func beside(t *testing.T) {
	t.Helper()
	t.Parallel()
	takeTurn(t)
}

// takeTurn waits until it is the test's turn.
func takeTurn(t *testing.T) {
	t.Helper()
	begun := time.Now()
	turns <- struct{}{}
	t.Cleanup(func() { <-turns })
	t.Logf("it waited %v for its turn", time.Since(begun).Round(time.Second)) // which counts as its time
}

// letAllBegin leaves it to turns, if no number was given, how many tests run at a time.
func letAllBegin() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		flag.Set("test.parallel", "100")
	}
}
