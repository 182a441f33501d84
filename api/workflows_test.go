package api

import (
	"context"
	"testing"

	"tidemark"
	"tidemark/client"
)

// workflows asks for all that is done with workflows, of a server with a volume v.
func workflows(t *testing.T, x *client.Client, works func(error), refuses func(tidemark.Kind, error)) {
	ctx := context.Background()
	text := "kind: Workflow\nname: w\nparameters: [{name: mark, type: name}]\nsteps:\n  - bookmark: {app: v, name: \"{{ mark }}\"}\n  - expire: {app: v, points: \"{{ mark }}\", keep: 1}\n"
	w, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text})
	works(err)
	if w.Version != 1 || len(w.Parameters) != 1 || w.Parameters[0].Default != nil {
		t.Errorf("%+v", w)
	}
	_, err = x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: text + "  - capture: {}\n"})
	refuses(tidemark.Invalid, err)
	again, err := x.Workflow(ctx, "w", 1)
	works(err)
	if again.Document != text {
		t.Errorf("%q", again.Document)
	}
	spec := tidemark.RunSpec{Parameters: map[string]string{"mark": "two"}}
	plan, err := x.PlanWorkflow(ctx, "w", spec)
	works(err)
	if len(plan.Steps) != 2 || plan.Job != nil || plan.Steps[0].Does != "bookmark v as two" {
		t.Errorf("%+v", plan)
	}
	_, err = x.RunWorkflow(ctx, "w", tidemark.RunSpec{})
	refuses(tidemark.Invalid, err)
	j, err := x.RunWorkflow(ctx, "w", spec)
	done, err := client.Result[tidemark.RunResult](ctx, x, j, err, nil)
	works(err)
	if done.Steps != 2 || done.Version != 1 {
		t.Errorf("%+v", done)
	}
	runs, err := x.Runs(ctx, "w")
	works(err)
	if len(runs) != 1 || runs[0].Job.ID != j.ID {
		t.Errorf("%+v", runs)
	}
	r, err := x.Run(ctx, j.ID)
	works(err)
	if len(r.Steps) != 2 || r.Steps[1].State != "done" || r.Steps[0].Result == nil {
		t.Errorf("%+v", r)
	}
	_, err = x.Run(ctx, 1<<40)
	refuses(tidemark.NotFound, err)
	works(x.RemoveWorkflow(ctx, "w"))
	refuses(tidemark.NotFound, x.RemoveWorkflow(ctx, "w"))
}
