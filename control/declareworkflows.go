package control

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/internal/strictyaml"
	"tidemark/policy"
	"tidemark/workflow"
)

// wanted is what documents want the server to have.
type wanted struct {
	policy.Set
	workflows []writtenWorkflow // by name
}

// readDocuments reads documents of all kinds.
func readDocuments(documents []byte) (all wanted, err error) {
	workflows := policy.Other{Kind: workflow.Kind, Read: func(doc strictyaml.Document) (string, error) {
		w, err := workflow.Read(doc)
		all.workflows = append(all.workflows, writtenWorkflow{w, doc.Text})
		return w.Name, err
	}}
	if all.Set, err = policy.Parse(documents, workflows); err != nil {
		return wanted{}, err
	}
	slices.SortFunc(all.workflows, func(a, b writtenWorkflow) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// WorkflowsIn are the names of the workflows that documents describe. An error is that of [Control.Apply].
func WorkflowsIn(documents string) (names []string, err error) {
	all, err := readDocuments([]byte(documents))
	for _, w := range all.workflows {
		names = append(names, w.Name)
	}
	return names, err
}

// compareWorkflows says what applying workflows does to each. As when one is applied alone, what its steps name need not be there: what a
// run needs is looked at when it begins.
func (c *Control) compareWorkflows(ctx context.Context, list []writtenWorkflow) (changes []policy.Change, err error) {
	for _, w := range list {
		x, err := c.compareWorkflow(ctx, w)
		if err != nil {
			return nil, err
		}
		changes = append(changes, x)
	}
	return changes, nil
}

// versionField is the field of a change that says which version a workflow gets.
const versionField = "version"

func (c *Control) compareWorkflow(ctx context.Context, w writtenWorkflow) (policy.Change, error) {
	x := policy.Change{Action: policy.ActionMake, Kind: workflow.Kind, Name: w.Name, Wanted: true}
	last, _, err := c.catalog.LastVersion(ctx, w.Name)
	if err != nil {
		return x, err
	}
	version := policy.FieldChange{Field: versionField, To: strconv.FormatInt(last.Version+1, 10)}
	switch {
	case last.Version == 0 || last.Removed != nil:
		x.Fields = []policy.FieldChange{version}
		return x, nil
	case last.Same(w.asked(ctx)):
		x.Action = policy.ActionLeave
		return x, nil
	}
	version.From = strconv.FormatInt(last.Version, 10)
	x.Action, x.Fields = policy.ActionChange, []policy.FieldChange{version}
	old, err := workflow.Parse([]byte(last.Document))
	if err != nil {
		return x, nil // of an older release
	}
	fields, err := workflow.Difference(old, w.Workflow)
	x.Fields = append(append(x.Fields, rightsChanged(last, w.asked(ctx))...), fields...)
	return x, err
}

// rightsChanged says by whose rights a schedule runs, and by what token these are narrowed, where that becomes other than it was.
func rightsChanged(was, will catalog.Workflow) (fields []policy.FieldChange) {
	if from := cmp.Or(was.Author, access.Administrator); was.Author != will.Author || was.AuthorID != will.AuthorID {
		if was.Author == will.Author {
			from += ", " + former
		}
		fields = append(fields, policy.FieldChange{Field: "author", From: from, To: cmp.Or(will.Author, access.Administrator)})
	}
	if !was.Token.NarrowsAs(will.Token) {
		fields = append(fields, policy.FieldChange{Field: "token", From: was.Token.String(), To: will.Token.String()})
	}
	return fields
}

// applyWorkflows makes the changes of workflows. They say which versions were made of it: somebody else may have made one meanwhile.
func (c *Control) applyWorkflows(ctx context.Context, list []writtenWorkflow, changes []policy.Change) error {
	for i, x := range changes { // one for each of the list
		if x.Action == policy.ActionLeave {
			continue
		}
		kept, err := c.putWorkflow(ctx, list[i])
		if err != nil {
			return tidemark.Errorf(tidemark.KindOf(err), "%s %s: %w", x.Kind, x.Name, err)
		}
		x.Fields[0].To = strconv.FormatInt(kept.Version, 10)
	}
	return nil
}
