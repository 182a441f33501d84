package control

import (
	"slices"
	"strings"
	"testing"

	"tidemark"
	"tidemark/catalog"
	"tidemark/policy"
)

const tidy = "# what tidies up\nkind: Workflow\nname: tidy\nsteps:\n  - remove: {clone: \"nobody\"} # there is none\n"

// versions are the versions of a workflow, newest first, and what is written in the newest.
func versions(t *testing.T, c *Control, name string) (numbers []int64, document string) {
	t.Helper()
	w, err := c.Workflow(t.Context(), name, 0)
	if err != nil {
		t.Fatal(err)
	}
	return w.Versions, w.Document
}

// A workflow is the same whichever way it is applied, and however it is set apart from what stands beside it.
func TestWorkflowsAreDeclared(t *testing.T) {
	c, _ := listens(t)
	const others = "kind: Template\nname: gold\nrpo: 1d\n"
	apply := func(stream string, want ...string) {
		t.Helper()
		dry, err := c.Apply(t.Context(), []byte(stream), true)
		if err != nil {
			t.Fatal(err)
		}
		changes, _ := declared(t, c, stream)
		if !slices.Equal(changes, want) {
			t.Errorf("%s: it does %q, and not %q", stream, changes, want)
		}
		for _, x := range dry.Changes {
			if x.Action != policy.ActionLeave && !slices.Contains(changes, x.String()) {
				t.Errorf("%s: the dry run says %s, and it does %q", stream, x, changes)
			}
		}
	}
	alone := func(document string, version int64) {
		t.Helper()
		w, err := c.ApplyWorkflow(t.Context(), tidemark.WorkflowSpec{Document: document})
		if err != nil || w.Version != version {
			t.Errorf("%s: %+v, %v", document, w, err)
		}
	}
	holds := func(name, want string, numbers ...int64) {
		t.Helper()
		if got, document := versions(t, c, name); document != want || !slices.Equal(got, numbers) {
			t.Errorf("%s has %v, and is\n%q and not\n%q", name, got, document, want)
		}
	}
	apply(tidy+"---\n"+others, "make Template gold: rpo: 1d", "make Workflow tidy: version: 1")
	holds("tidy", tidy, 1)
	for _, same := range []string{tidy, "---\n" + tidy, "\n\n" + tidy + "\n...\n", strings.TrimSuffix(tidy, "\n")} {
		alone(same, 1)
		apply(same)
		apply(others + "---\n" + same)
		apply(same + "\n---\n" + others)
	}
	// A comment is a change, and told as a version.
	apply(others+"---\n"+tidy+"# the end\n---\n", "change Workflow tidy: version: 1 → 2")
	holds("tidy", tidy+"# the end\n", 2, 1)
	alone(tidy, 3)
	apply(tidy)
	apply(strings.ReplaceAll(tidy, "nobody", "somebody"), "change Workflow tidy: version: 3 → 4, steps[0]: remove the clone nobody → remove the clone somebody")

	// What was removed is made anew, and what is not spoken of is left.
	if err := c.RemoveWorkflow(t.Context(), "tidy"); err != nil {
		t.Fatal(err)
	}
	const crlf = "--- # all on\r\nkind: Workflow\r\nname: crlf\r\ndescription: |\r\n  windows\r\nsteps: [wait: {clone: x}]\r\n"
	apply(crlf+"---\r\n{\"kind\": \"Workflow\", \"name\": \"json\",\r\n\"steps\": [{\"wait\": {\"clone\": \"x\"}}]}\r\n\r\n---\r\n"+tidy, "make Workflow crlf: version: 1", "make Workflow json: version: 1", "make Workflow tidy: version: 5")
	holds("crlf", crlf, 1)
	holds("json", "{\"kind\": \"Workflow\", \"name\": \"json\",\r\n\"steps\": [{\"wait\": {\"clone\": \"x\"}}]}\r\n", 1)
	holds("tidy", tidy, 5, 4, 3, 2, 1)
	alone(crlf, 1)
	apply("%YAML 1.1\n---\n"+tidy, "change Workflow tidy: version: 5 → 6")
	holds("tidy", "%YAML 1.1\n---\n"+tidy, 6, 5, 4, 3, 2, 1)
	apply(others)

	// Who applies the same document answers for it from then on.
	by, err := c.Apply(WithAsk(t.Context(), Ask{By: "ann"}), []byte(tidy), false)
	if err != nil || len(by.Changes) != 1 || by.Changes[0].String() != "change Workflow tidy: version: 6 → 7, author: the administrator at the socket → ann" {
		t.Errorf("%+v, %v", by, err)
	}
	if w, err := c.Workflow(t.Context(), "tidy", 0); err != nil || w.Author != "ann" {
		t.Errorf("%+v, %v", w, err)
	}
	// One that an older release took is replaced, whatever it was.
	if _, err := c.catalog.PutWorkflow(t.Context(), catalog.Workflow{Name: "old", Document: "kind: Workflow\nname: old\nsteps: [{was: {}}]\n"}); err != nil {
		t.Fatal(err)
	}
	apply("kind: Workflow\nname: old\nsteps: [{wait: {clone: x}}]\n", "change Workflow old: version: 1 → 2")
}

// Whatever is wrong with one document, nothing of any other is done, and the fault has its place in the stream.
func TestNothingOfWrongDocuments(t *testing.T) {
	c, _ := listens(t)
	const gold = "kind: Template\nname: gold\nrpo: 1d\n---\n"
	for stream, want := range map[string]string{
		gold + tidy + "---\nkind: Workflow\nname: bad\nsteps: []\n":                                        "line 13, column 8: steps: it does nothing",
		gold + "kind: Workflow\nname: bad\nsteps:\n  - clone: {frm: x}\n---\n" + tidy:                      "line 8, column 13: there is no field \"frm\" here",
		gold + tidy + "---\n" + tidy:                                                                       "line 12, column 1: Workflow tidy stands here again; it was described on line 6",
		gold + tidy + "---\nkind: workflow\nname: w\n":                                                     "line 11, column 7: \"workflow\" is not a kind of document",
		gold + tidy + "---\nkind: Group\nname: g\nmembers: [nobody]\n":                                     "Group g names the Application nobody, which is not there",
		gold + tidy + "---\nkind: Host\nname: db9\n":                                                       "host db9 has not been added",
		tidy + "---\nkind: Template\nname: gold\ncapturing: x\n":                                           "line 9, column 1: there is no field \"capturing\"",
		gold + strings.Replace(tidy, "steps:", "description: "+strings.Repeat("x", 300_000)+"\nsteps:", 1): "line 6, column 1: the workflow is 300",
		gold + strings.Replace(tidy, "nobody", "a b", 1):                                                   "line 9, column 21: steps[0].remove.clone",
	} {
		for _, dry := range []bool{true, false} {
			a, err := c.Apply(t.Context(), []byte(stream), dry)
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%.500s\ndry %v: %+v, %v, and not %s", stream, dry, a, err, want)
			}
		}
	}
	list, err := c.Workflows(t.Context())
	templates, err2 := c.Templates(t.Context())
	if err != nil || err2 != nil || len(list)+len(templates) != 0 {
		t.Errorf("there are %+v and %+v, %v, %v", list, templates, err, err2)
	}
	// Nor does a dry run of what is good.
	if a, err := c.Apply(t.Context(), []byte(gold+tidy), true); err != nil || len(a.Changes) != 2 {
		t.Errorf("%+v, %v", a, err)
	}
	if list, err := c.Workflows(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("a dry run made %+v, %v", list, err)
	}
}
