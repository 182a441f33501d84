package control

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"tidemark"
)

// tree writes random steps, some of which fail.
type tree struct {
	r     *rand.Rand
	text  strings.Builder
	leafs int
	fails int
}

// item writes one step, or a group of them, so many groups deep at most.
func (x *tree) item(indent, depth int, failing float64) {
	pad := strings.Repeat(" ", indent)
	switch kind := x.r.IntN(4); {
	case kind == 0 && depth > 0:
		fmt.Fprintf(&x.text, "%s- parallel:\n", pad)
		for range 1 + x.r.IntN(3) {
			x.item(indent+4, depth-1, failing)
		}
	case kind == 1 && depth > 0:
		fmt.Fprintf(&x.text, "%s- for_each: [a, b]\n%s  as: v%d\n%s  at_once: %d\n%s  steps:\n", pad, pad, depth, pad, 1+x.r.IntN(2), pad)
		for range 1 + x.r.IntN(2) {
			x.item(indent+4, depth-1, failing)
		}
	case x.r.Float64() < failing:
		x.fails++
		fmt.Fprintf(&x.text, "%s- bookmark: {app: v, name: secret}\n", pad) // which is there
	default:
		x.leafs++
		fmt.Fprintf(&x.text, "%s- notify: {message: \"%d\"}\n", pad, x.leafs)
	}
}

// A run is done only if every one of its steps is, wherever in the groups it stands (U3). Steps for failures are done only then, and
// make nothing good.
func TestAnyStepFailsTheRun(t *testing.T) {
	c, seed := serving(t), rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 60 {
		main, after := &tree{r: r}, &tree{r: r}
		for range 1 + r.IntN(3) {
			main.item(2, 3, 0.1)
		}
		after.item(2, 0, 0.5)
		document := main.text.String() + "on_failure:\n" + after.text.String()
		applied(t, c, "", document)
		j := ran(t, c, "")
		want := tidemark.JobDone
		if main.fails > 0 {
			want = tidemark.JobFailed
		}
		run, err := c.RunOf(t.Context(), j.ID)
		if err != nil || j.State != want || (j.Error == nil) != (want == tidemark.JobDone) {
			t.Fatalf("%s\nis %s: %v, %v, and not %s", document, j.State, j.Error, err, want)
		}
		failed := 0
		for _, s := range run.Steps {
			if s.State == "failed" && !s.OnFailure {
				failed++
			}
			if s.State == "waiting" && want == tidemark.JobDone && !s.OnFailure || s.OnFailure && (s.State == "waiting") != (want == tidemark.JobDone) || s.State == "running" {
				t.Errorf("%s\nis %s, and step %s is %s", document, j.State, s.ID, s.State)
			}
		}
		if (failed > 0) != (want == tidemark.JobFailed) {
			t.Errorf("%s\nis %s, and %d steps have failed", document, j.State, failed)
		}
	}
}
