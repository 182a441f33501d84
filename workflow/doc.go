// Package workflow says what a workflow does: in which order its steps are, what they are with the values of its parameters, and when it
// is due.
//
// A [Workflow] is written as YAML, which [Parse] reads. It has parameters, a schedule, and steps: verbs of the server (capture, clone,
// refresh, …), a program of the administrator, or a message to somebody; one after another, at the same time, or once for each item of a
// list. [Workflow.Plan] makes of it, and of values for its parameters, the list of what is to be done: each [Step] with those that have
// to be done before it. That list is the dry run, too. What cannot be done at all is found there, before anything is.
//
// Values of parameters fill in texts that were read before, and so can never become structure: whatever a value is, the workflow has the
// same steps. Nothing is given to a shell.
//
// The package does nothing: it has no clock, no state and no I/O. The same question has the same answer, so that a run that was cut is
// planned again and goes on where it was. Who does what the steps say is control.
//
// Start with workflow.go, then verb.go and plan.go. DESIGN.md has the invariants, docs/workflows.md tells users of the format.
package workflow
