package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
	"tidemark/client"
)

func workflowCommand() *cobra.Command {
	return group(&cobra.Command{Use: "workflow", Short: "What is done in several steps: by hand, or by a schedule",
		Long: `Workflows are steps that belong together: capture, refresh, clone to many hosts,
run a script, tell somebody. They are written as YAML, kept by the server in
versions, and run by hand or by a schedule. A run that is cut by a stop of the
server goes on where it was.`},
		workflowApply(), workflowList(), workflowShow(), workflowRun(), workflowRuns(), workflowRemove())
}

var workflowNames = named((*client.Client).Workflows, func(w tidemark.Workflow) string { return w.Name })

func workflowApply() *cobra.Command {
	var files []string
	c := &cobra.Command{Use: "apply -f FILE", Short: "Make a file the newest version of the workflow that it names", Args: takes(0),
		Example: "  tidemark workflow apply -f weekly.yaml\n  cat weekly.yaml | tidemark workflow apply -f -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) != 1 {
				return usage(errors.New("name one file: -f weekly.yaml"))
			}
			data, err := readDocument(files[0])
			if err != nil {
				return usage(err)
			}
			return tell(printApplication)(server().ApplyWorkflow(cmd.Context(), tidemark.WorkflowSpec{Document: string(data)}))
		}}
	c.Flags().StringArrayVarP(&files, "file", "f", nil, "`FILE` with a workflow; - for standard input")
	return c
}

func printApplication(w tidemark.Workflow) {
	fmt.Printf("%s is at version %d\n", w.Name, w.Version)
	if w.Next != nil {
		fmt.Println("it runs next", when(*w.Next))
	}
}

func workflowList() *cobra.Command {
	return &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List workflows", Args: takes(0), Example: "  tidemark workflow list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printList(server().Workflows(cmd.Context()), printWorkflows)
		}}
}

func printWorkflows(list []tidemark.Workflow) {
	var rows [][]string
	for _, w := range list {
		next := "by hand"
		switch {
		case w.Next != nil:
			next = when(*w.Next)
		case w.Scheduled:
			next = "runs now"
		}
		rows = append(rows, []string{w.Name, strconv.FormatInt(w.Version, 10), next, dash(w.Author), dash(w.Description)})
	}
	table("WORKFLOW VERSION NEXT AUTHOR DESCRIPTION", rows)
}

func workflowShow() *cobra.Command {
	var version int64
	c := &cobra.Command{Use: "show NAME", Short: "Print a workflow as it was applied", Args: takes(0, aName), ValidArgsFunction: workflowNames,
		Long: `Print the document of a workflow, which apply takes again. With --json, also its
parameters and versions, and when it runs next. Old versions are kept.`,
		Example: "  tidemark workflow show weekly\n  tidemark workflow show weekly --version 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			w, err := server().Workflow(cmd.Context(), args[0], version)
			if err != nil {
				return err
			}
			return show(w, func() { fmt.Fprint(os.Stdout, w.Document) })
		}}
	c.Flags().Int64Var(&version, "version", 0, "the `VERSION` (default the newest)")
	return c
}

func workflowRun() *cobra.Command {
	var set []string
	var dry, detach bool
	var version int64
	c := &cobra.Command{Use: "run NAME", Short: "Run a workflow, or say what it would do", Args: takes(0, aName), ValidArgsFunction: workflowNames,
		Long: `Run a workflow and wait until it has ended. The run goes on when the command is
interrupted; it is a job. With --dry-run, print all steps in order, with the
values of their parameters, and change nothing.`,
		Example: "  tidemark workflow run weekly --dry-run\n  tidemark workflow run weekly --set golden=orders-masked --set hosts=qa1,qa2\n  tidemark workflow run weekly --detach",
		RunE: func(cmd *cobra.Command, args []string) error {
			values, err := settings(set)
			if err != nil {
				return usage(err)
			}
			spec := tidemark.RunSpec{Parameters: values, Version: version}
			if dry {
				return tell(printRun)(server().PlanWorkflow(cmd.Context(), args[0], spec))
			}
			j, err := server().RunWorkflow(cmd.Context(), args[0], spec)
			if detach {
				return tell(func(j tidemark.Job) { fmt.Printf("run %d: `tidemark workflow runs --run %d`\n", j.ID, j.ID) })(j, err)
			}
			return work(cmd, func(r tidemark.RunResult) {
				fmt.Printf("run %d of %s, version %d: %d steps are done\n", j.ID, r.Workflow, r.Version, r.Steps)
			})(j, err)
		}}
	c.Flags().StringArrayVar(&set, "set", nil, "`NAME=VALUE` of a parameter; a list is a,b,c")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would be done")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the run to end")
	c.Flags().Int64Var(&version, "version", 0, "the `VERSION` (default the newest)")
	return c
}

// settings reads NAME=VALUE words.
func settings(words []string) (map[string]string, error) {
	values := map[string]string{}
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		if _, again := values[name]; !ok || name == "" || again {
			return nil, fmt.Errorf("--set %s: write NAME=VALUE, each name once", word)
		}
		values[name] = value
	}
	return values, nil
}

func workflowRuns() *cobra.Command {
	var run int64
	c := &cobra.Command{Use: "runs [NAME]", Short: "List runs of workflows, or the steps of one", Args: takes(1, aName), ValidArgsFunction: workflowNames,
		Example: "  tidemark workflow runs\n  tidemark workflow runs weekly\n  tidemark workflow runs --run 12",
		RunE: func(cmd *cobra.Command, args []string) error {
			if run != 0 {
				return tell(printRun)(server().Run(cmd.Context(), run))
			}
			return printList(client.First(mostRuns, server().Runs(cmd.Context(), strings.Join(args, ""))), printRuns)
		}}
	c.Flags().Int64Var(&run, "run", 0, "show the steps of the run with this `NUMBER`")
	return c
}

// mostRuns is how many runs are listed, the newest.
const mostRuns = 100

func printRuns(list []tidemark.WorkflowRun) {
	var rows [][]string
	for _, r := range list {
		detail := ""
		if r.Job.Error != nil {
			detail = r.Job.Error.Message
		}
		rows = append(rows, []string{strconv.FormatInt(r.Job.ID, 10), r.Workflow, strconv.FormatInt(r.Version, 10), string(r.Job.State), when(r.Job.Created), detail})
	}
	table("RUN WORKFLOW VERSION STATE CREATED DETAIL", rows)
}

// printRun prints the steps of a run, or of a dry run.
func printRun(r tidemark.WorkflowRun) {
	if r.Job != nil {
		fmt.Printf("run %d of %s, version %d: %s\n", r.Job.ID, r.Workflow, r.Version, r.Job.State)
	}
	var rows [][]string
	for _, s := range r.Steps {
		does := s.Does
		if s.Error != nil {
			does += ": " + s.Error.Message
		}
		job := "-"
		if s.Job != 0 {
			job = strconv.FormatInt(s.Job, 10)
		}
		rows = append(rows, []string{s.ID, s.State, job, does})
	}
	table("STEP STATE JOB DOES", rows)
	if r.Job == nil {
		fmt.Println("nothing was changed: this was a dry run")
	}
}

func workflowRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME", Short: "Remove a workflow and its schedule", Args: takes(0, aName), ValidArgsFunction: workflowNames, Example: "  tidemark workflow rm weekly",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := server().RemoveWorkflow(cmd.Context(), args[0]); err != nil {
				return err
			}
			return done("name", args[0], "is removed")
		}}
}
