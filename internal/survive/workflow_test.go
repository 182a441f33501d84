package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
)

// chores is a workflow with steps of all sorts, some of which are done at the same time.
const chores = `
kind: Workflow
name: chores
steps:
  - capture: {app: files, bookmark: "base-{{ run }}"}
  - name: copies
    for_each: [a, b, c]
    at_once: 2
    steps:
      - clone: {source: "files@base-{{ run }}", name: "copy-{{ item }}", replace: true}
      - bookmark: {app: "copy-{{ item }}", name: "made-{{ run }}"}
      - wait: {clone: "copy-{{ item }}"}
      - {name: second, clone: {source: "copy-{{ item }}@made-{{ run }}", name: "copy-{{ item }}-{{ run }}"}}
      - script: {name: note, again: true}
  - parallel:
      - capture: {app: copy-a, bookmark: "end-{{ run }}"}
      - refresh: {clone: copy-b, point: "base-{{ run }}"}
      - expire: {clones: "copy-c-*", keep: 1}
  - remove: {clone: "copy-a-{{ run }}"}
  - notify: {message: "the chores are done"}
on_failure:
  - notify: {message: "the chores failed", level: error}
`

// TestWorkflowKills kills the server in the middle of runs of a workflow, again and again. Each run comes to its end, each of its steps is
// done, and what a step asks for is asked for once.
func TestWorkflowKills(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4", program("postgres"))
	for _, at := range catalogs {
		t.Run(at.name, func(t *testing.T) {
			beside(t)
			q := &queueing{stage: newStage(t), rng: seeded(t)}
			at.place(q.stage)
			q.prepare()
			q.chores()
			want := q.held()
			n := 3
			if os.Getenv("TIDEMARK_LONG") != "" {
				n = 50
			}
			for i := range n {
				begun := time.Now()
				q.change()
				q.runKilled()
				q.settled(want)
				t.Logf("round %d: %.1f s", i, time.Since(begun).Seconds())
			}
		})
	}
}

// chores makes the workflow, and its script, which only notes that it ran.
func (q *queueing) chores() {
	scripts := filepath.Join(q.data, "scripts")
	if err := os.Mkdir(scripts, 0o755); err != nil {
		q.t.Fatal(err)
	}
	note := fmt.Sprintf("#!/bin/sh\necho \"$TIDEMARK_RUN $TIDEMARK_PARAM_ITEM\" >>%s\n", filepath.Join(q.dir, "notes"))
	document := filepath.Join(q.dir, "chores.yaml")
	for path, text := range map[string]string{filepath.Join(scripts, "note"): note, document: chores} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			q.t.Fatal(err)
		}
	}
	q.run("workflow", "apply", "-f", document)
}

// runKilled begins a run, kills the server some times in it, and looks at what it did.
func (q *queueing) runKilled() {
	t := q.t
	j := ask[tidemark.Job](q.stage, "workflow", "run", "chores", "--detach")
	kills := 2 + q.rng.IntN(3)
	for range kills {
		time.Sleep(time.Duration(q.rng.IntN(1200)) * time.Millisecond)
		q.end(syscall.SIGKILL)
		q.start()
	}
	if j = q.over(j.ID); j.State != tidemark.JobDone {
		t.Fatalf("after %d kills the run is %s: %v\n%s", kills, j.State, j.Error, q.run("workflow", "runs", "--run", fmt.Sprint(j.ID)))
	}
	q.checkRun(j.ID)
	for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
		if c.Name != "dev" {
			q.run("clone", "rm", c.Name)
		}
	}
	for _, j := range ask[[]tidemark.Job](q.stage, "jobs", "--state", "queued,running") {
		t.Errorf("a job goes on that nobody knows of: %+v", j)
	}
}

// checkRun looks at what a run did.
func (q *queueing) checkRun(id int64) {
	t := q.t
	t.Helper()
	r := ask[tidemark.WorkflowRun](q.stage, "workflow", "runs", "--run", fmt.Sprint(id))
	jobs := map[int64]bool{}
	for _, s := range r.Steps {
		if done := s.State == "done"; done == s.OnFailure {
			t.Errorf("step %s is %s: %v", s.ID, s.State, s.Error)
		}
		if s.Job != 0 {
			jobs[s.Job] = true
		}
	}
	asked := 0
	for _, j := range ask[[]tidemark.Job](q.stage, "jobs", "--limit", "1000") {
		if j.Parent == id {
			asked++
			if !jobs[j.ID] {
				t.Errorf("job %d (%s) of the run is of no step", j.ID, j.Kind)
			}
		}
	}
	if want := 1 + 3*2 + 2; asked != want || len(jobs) != want {
		t.Errorf("the run asked for %d jobs, %d of which are known to its steps, and not for %d", asked, len(jobs), want)
	}
	for ref, want := range map[string]int{fmt.Sprintf("files@base-%d", id): 1, fmt.Sprintf("copy-a@made-%d", id): 1, fmt.Sprintf("copy-a@end-%d", id): 1} {
		app, mark, _ := strings.Cut(ref, "@")
		got := 0
		for _, p := range ask[[]tidemark.RecoveryPoint](q.stage, "points", app) {
			if p.Bookmark == mark {
				got++
			}
		}
		if got != want {
			t.Errorf("there are %d points %s, and not %d", got, ref, want)
		}
	}
	names := map[string]bool{}
	for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
		names[c.Name] = true
	}
	for name, want := range map[string]bool{"copy-a": true, "copy-b": true, "copy-c": true, fmt.Sprintf("copy-a-%d", id): false, fmt.Sprintf("copy-b-%d", id): true, fmt.Sprintf("copy-c-%d", id): true} {
		if names[name] != want {
			t.Errorf("that there is a clone %s is %v", name, names[name])
		}
	}
	notes, err := os.ReadFile(filepath.Join(q.dir, "notes"))
	for _, item := range []string{"a", "b", "c"} {
		if line := fmt.Sprintf("%d %s\n", id, item); err != nil || !strings.Contains(string(notes), line) {
			t.Errorf("the script of %s did not run: %v", line, err)
		}
	}
}
