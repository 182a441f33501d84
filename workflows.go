package tidemark

import "time"

// Workflow is a version of a workflow.
type Workflow struct {
	Name        string              `json:"name" doc:"Its name."`
	Version     int64               `json:"version" doc:"Each change is a new version, counted from 1."`
	Description string              `json:"description,omitempty" doc:"What it is for."`
	Parameters  []WorkflowParameter `json:"parameters,omitempty" doc:"The values that a run is given."`
	Document    string              `json:"document,omitempty" doc:"The YAML that was applied, without what separated it from other documents; missing in lists. For who may not change the workflow, with scheme and host alone of the URLs that messages are posted to."`
	Author      string              `json:"author,omitempty" doc:"Who applied it, and by whose rights its schedule runs it; missing: the administrator at the socket."`
	Token       string              `json:"token,omitempty" doc:"The API token that it was applied by, which narrows these rights; missing: none."`
	Created     time.Time           `json:"created" doc:"When this version was applied."`
	Removed     *time.Time          `json:"removed,omitempty" doc:"When the workflow was removed; missing: it is not."`
	Scheduled   bool                `json:"scheduled,omitempty" doc:"It has a schedule."`
	Next        *time.Time          `json:"next,omitempty" doc:"When its schedule runs it next; missing: it has none, is not the newest version, or a run is under way."`
	Versions    []int64             `json:"versions,omitempty" doc:"All versions that there are, newest first; missing in lists."`
}

// WorkflowParameter is a value that a run of a workflow is given.
type WorkflowParameter struct {
	Name        string  `json:"name" doc:"Its name."`
	Type        string  `json:"type" doc:"One of text, name, ref, number and list."`
	Description string  `json:"description,omitempty" doc:"What it is for."`
	Default     *string `json:"default,omitempty" doc:"Its value where none is given; the items of a list with commas between. Missing: one has to be given."`
	Posted      bool    `json:"posted,omitempty" doc:"It stands in a URL that a message is posted to: its values are … for who may not change the workflow."`
}

// WorkflowSpec asks that a workflow be as a document says.
type WorkflowSpec struct {
	Document string `json:"document" doc:"YAML, with kind: Workflow."`
}

// RunSpec asks for a run of a workflow, or for what it would do.
type RunSpec struct {
	Parameters map[string]string `json:"parameters,omitempty" doc:"Values by name; the items of a list with commas between."`
	Version    int64             `json:"version,omitempty" doc:"The version that is run; missing: the newest."`
}

// WorkflowRun is a run of a workflow: a job, and how far its steps are. Of a dry run there is no job.
type WorkflowRun struct {
	Workflow   string            `json:"workflow" doc:"The name of the workflow."`
	Version    int64             `json:"version" doc:"The version that is run."`
	Parameters map[string]string `json:"parameters,omitempty" doc:"The values that were given. Those that stand in a URL that a message is posted to are … for who may not change the workflow."`
	Job        *Job              `json:"job,omitempty" doc:"The job that it is; missing: this is a dry run."`
	Steps      []WorkflowStep    `json:"steps,omitempty" doc:"In an order in which they can be done, those for failures last; missing in lists."`
}

// WorkflowStep is a step of a run.
type WorkflowStep struct {
	ID        string     `json:"id" doc:"Its own within the run."`
	Kind      string     `json:"kind" doc:"The verb: capture, clone and others."`
	Does      string     `json:"does" doc:"What it does, in a few words."`
	After     []string   `json:"after,omitempty" doc:"The steps that have to be done before."`
	OnFailure bool       `json:"on_failure,omitempty" doc:"It is done only when another has failed."`
	State     string     `json:"state" enum:"waiting,running,done,failed" doc:"How far it is. When the run has ended, what still waits is not done."`
	Job       int64      `json:"job,omitempty" doc:"The job that it asked for."`
	Started   *time.Time `json:"started,omitempty" doc:"When it began."`
	Finished  *time.Time `json:"finished,omitempty" doc:"When it ended."`
	Error     *Error     `json:"error,omitempty" doc:"Why it failed."`
	Result    any        `json:"result,omitempty" doc:"What came of it, if anything is to be told: of a job its result."`
}

// RunResult is what a run of a workflow did.
type RunResult struct {
	Workflow string `json:"workflow" doc:"The name of the workflow."`
	Version  int64  `json:"version" doc:"The version that was run."`
	Steps    int    `json:"steps" doc:"How many steps were done."`
}
