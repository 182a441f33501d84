package api

import (
	"context"
	"net/http"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
	"tidemark/workflow"
)

// workflowTable is what is done in several steps.
func workflowTable() []operation {
	return []operation{
		list(operation{id: "list-workflows", method: http.MethodGet, path: "/v1/workflows", tag: "Workflows", summary: "What is done in several steps",
			description: "The newest version of each workflow, by name, without its document.", errors: wrong, rule: may(access.WorkflowView, access.KindWorkflow)},
			func(w tidemark.Workflow) string { return w.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Workflow, error) {
				all, err := c.Workflows(ctx)
				for i := range all {
					all[i] = withoutURLs(ctx, all[i])
				}
				return all, err
			}),
		get(operation{id: "apply-workflow", method: http.MethodPost, path: "/v1/workflows", tag: "Workflows", summary: "Make a document the newest version of a workflow",
			description: "All of it is looked at before anything is changed. A document that is the newest version already makes none, whatever separates it from others. Its schedule runs it by the rights of who applies it. The answer is the version.",
			errors:      refused, rule: may(access.WorkflowManage, access.KindWorkflow)},
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.WorkflowSpec]) (tidemark.Workflow, error) {
				w, err := c.ApplyWorkflow(ctx, in.Body)
				if err == nil {
					callerOf(ctx).about(w.Name)
				}
				return w, err
			}),
		get(operation{id: "get-workflow", method: http.MethodGet, path: "/v1/workflows/{name}", tag: "Workflows", summary: "One version of a workflow",
			description: "With its document. Versions are kept when the workflow is removed. Of the URLs that its messages are posted to, scheme and host are shown to who may not change workflows.", errors: missing, rule: may(access.WorkflowView, access.KindWorkflow, "path.name")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByName
				Version int64 `query:"version" minimum:"1" doc:"The version; missing: the newest."`
			}) (tidemark.Workflow, error) {
				w, err := c.Workflow(ctx, string(in.Name), in.Version)
				return withoutURLs(ctx, w), err
			}),
		do(operation{id: "remove-workflow", method: http.MethodDelete, path: "/v1/workflows/{name}", tag: "Workflows", summary: "Remove a workflow with its schedule",
			description: "A run that goes on is not cut. The versions are kept to be read, and none of them is run any more.", errors: refused, rule: may(access.WorkflowManage, access.KindWorkflow, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveWorkflow(ctx, string(in.Name))
			}),
		get(operation{id: "plan-workflow", method: http.MethodPost, path: "/v1/workflows/{name}/plans", tag: "Workflows", summary: "What a run of a workflow would do",
			description: "A dry run: all steps with the values of their parameters, in order, and the error that a run would be refused with. Nothing is changed.", errors: refused, rule: may(access.WorkflowView, access.KindWorkflow, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.RunSpec]) (tidemark.WorkflowRun, error) {
				if decided, err := stepsAllowed(ctx, c, string(in.Name), runSpec(in)); err != nil {
					who := callerOf(ctx)
					who.asked = append(who.asked, decided[max(0, len(decided)-1):]...) // of the others, nothing is done
					return tidemark.WorkflowRun{}, err
				}
				r, err := c.PlanRun(ctx, string(in.Name), runSpec(in))
				if err != nil {
					return r, err
				}
				return r, hideURLs(ctx, c, []tidemark.WorkflowRun{r})
			}),
		begin[tidemark.RunResult](operation{id: "run-workflow", method: http.MethodPost, path: "/v1/workflows/{name}/runs", tag: "Workflows", summary: "Run a workflow",
			description: "Of each workflow one run goes on at a time. It is a job; what it asks for are jobs of their own, by who asked for the run, whose rights are looked at again at each step. A run that is cut by a stop of the server goes on where it was.",
			errors:      refused, rule: mayRun()},
			func(ctx context.Context, c *control.Control, in *ofNameAndMore[tidemark.RunSpec]) (tidemark.Job, error) {
				return c.Run(ctx, string(in.Name), runSpec(in))
			}),
		with(operation{id: "list-runs", method: http.MethodGet, path: "/v1/workflow-runs", tag: "Workflows", summary: "Runs of workflows, newest first",
			description: "Without their steps.", status: http.StatusOK, errors: missing, filtered: true, rule: may(access.JobView, access.KindJob)}, runs),
		get(operation{id: "get-run", method: http.MethodGet, path: "/v1/workflow-runs/{id}", tag: "Workflows", summary: "One run of a workflow",
			description: "With its steps: how far each is, its job, and why it failed.", errors: missing, rule: may(access.JobView, access.KindJob, "path.id")},
			func(ctx context.Context, c *control.Control, in *ByID) (tidemark.WorkflowRun, error) {
				r, err := c.RunOf(ctx, in.ID)
				if err != nil {
					return r, err
				}
				if err := hideURLs(ctx, c, []tidemark.WorkflowRun{r}); err != nil {
					return r, err
				}
				return r, hideWays(ctx, c, r.Steps)
			}),
	}
}

func runSpec(in *ofNameAndMore[tidemark.RunSpec]) (spec tidemark.RunSpec) {
	if in.Body != nil {
		spec = *in.Body
	}
	return spec
}

// runs answers with a part of the runs, newest first.
func runs(ctx context.Context, c *control.Control, in *struct {
	Listing
	Workflow string `query:"workflow" doc:"Only runs of this workflow."`
}) (*paged[tidemark.WorkflowRun], error) {
	const at = "/v1/workflow-runs"
	before, err := in.number(at)
	if err != nil {
		return nil, err
	}
	from, number := int64(before), func(r tidemark.WorkflowRun) string { return formatInt(r.Job.ID) }
	entries, err := seenOf(in.Limit+1, func() ([]tidemark.WorkflowRun, bool, error) {
		list, err := c.Runs(ctx, in.Workflow, from, in.Limit+1)
		if len(list) > 0 {
			from = list[len(list)-1].Job.ID
		}
		more := len(list) == in.Limit+1
		if err == nil {
			list, err = visible(ctx, c, access.JobView, access.KindJob, list, number)
		}
		return list, more, err
	})
	if err != nil {
		return nil, err
	}
	if err := hideURLs(ctx, c, entries); err != nil {
		return nil, err
	}
	return cut(in.Listing, at, also("workflow", in.Workflow), entries, number), nil
}

// managesWorkflow reports whether who asks may change a workflow, and so is shown all of it.
func managesWorkflow(ctx context.Context, name string) bool {
	who := callerOf(ctx)
	return access.Decide(who.principal, who.grants, access.WorkflowManage, access.Object{Kind: access.KindWorkflow, Name: name}).Allowed
}

// withoutURLs takes from a workflow what may be a secret of the URLs that its messages are posted to, unless who asks may change it.
func withoutURLs(ctx context.Context, w tidemark.Workflow) tidemark.Workflow {
	if managesWorkflow(ctx, w.Name) {
		return w
	}
	if w.Document != "" {
		w.Document = workflow.Redacted(w.Document)
	}
	for i := range w.Parameters {
		if p := &w.Parameters[i]; p.Posted && p.Default != nil {
			p.Default = new(workflow.Hidden)
		}
	}
	return w
}

// hideURLs takes from runs the values that stand in such URLs.
func hideURLs(ctx context.Context, c *control.Control, runs []tidemark.WorkflowRun) error {
	type version struct {
		name   string
		number int64
	}
	known := map[version][]tidemark.WorkflowParameter{}
	for _, r := range runs {
		if len(r.Parameters) == 0 || managesWorkflow(ctx, r.Workflow) {
			continue
		}
		v := version{r.Workflow, r.Version}
		if _, ok := known[v]; !ok {
			w, err := c.Workflow(ctx, v.name, v.number)
			if err != nil {
				return err
			}
			known[v] = w.Parameters
		}
		for _, p := range known[v] {
			if _, given := r.Parameters[p.Name]; given && p.Posted {
				r.Parameters[p.Name] = workflow.Hidden
			}
		}
	}
	return nil
}

// hideWays takes from the steps of a run how to reach clones, where who asks may not use them.
func hideWays(ctx context.Context, c *control.Control, steps []tidemark.WorkflowStep) error {
	for i := range steps {
		if steps[i].Job == 0 || steps[i].Result == nil {
			continue
		}
		j, err := c.Job(ctx, steps[i].Job, 0)
		if err == nil {
			err = hideWay(ctx, c, &j)
		}
		if err != nil {
			return err
		}
		if j.Result == nil {
			steps[i].Result = nil
		}
	}
	return nil
}
