package control

import (
	"context"
	"fmt"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/workflow"
)

// What a run does is in the audit like what somebody asks for himself, in the name of who asked for the run: nobody else is told of a run
// that a schedule begins, and a request for a run cannot decide about what a step is going to make.

// recorded does a part of a step, which returns what was decided about, and puts that into the audit with what became of it. It is there
// when recorded returns, whether the server stops meanwhile or not: what was done is not done once more, to be recorded then.
func (x *execution) recorded(s workflow.Step, part func() ([]Decided, error)) (err error) {
	var decided []Decided
	err = tidemark.Errorf(tidemark.Internal, "a fault of Tidemark") // unless part returns
	defer func() { x.record(s, decided, err) }()
	decided, err = part()
	return err
}

// record puts what was decided about for a step into the audit.
func (x *execution) record(s workflow.Step, decided []Decided, err error) {
	if !stepKinds()[s.Kind].looks || tidemark.KindOf(err) == tidemark.Denied {
		x.audit(fmt.Sprintf("run %d, step %s", x.id, s.ID), s.Does, decided, err)
	}
}

// audit puts what was decided about into the audit, and what became of it. Where nothing was, as of a step that needs no more than that the
// workflow is run, or of one that did not come so far, the record is about the workflow.
func (x *execution) audit(request, does string, decided []Decided, err error) {
	one := access.AuditRecord{User: x.t.job.AskedBy, Method: access.ByRun, Request: request, Outcome: access.Done, Detail: does}
	if err != nil {
		one.Outcome, one.Detail = access.Failed, Explain(err).Message
		if tidemark.KindOf(err) == tidemark.Denied {
			one.Outcome = access.Refused
		}
	}
	if len(decided) == 0 {
		decided = []Decided{{Action: access.WorkflowRun, Object: access.Object{Kind: access.KindWorkflow, Name: x.Name}}}
	}
	x.c.recordDecided(one, x.Token, decided)
}

// recordDecided puts a record for each of what was decided about into the audit. token is that which narrowed what was allowed; nil: none did.
func (c *Control) recordDecided(one access.AuditRecord, token *access.Token, decided []Decided) {
	one.Time = time.Now()
	if token != nil {
		one.TokenID = token.ID
	}
	var records []*access.AuditRecord
	for _, d := range decided {
		r := one
		r.Action, r.Kind, r.Object = d.Action, d.Object.Kind, d.Object.Name
		records = append(records, &r)
	}
	c.RecordAudit(context.WithoutCancel(c.jobs.ctx), records...)
}
