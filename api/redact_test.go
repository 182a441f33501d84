package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// TestWorkflowURLs: a URL that a workflow posts to may be a secret from its path on, whether it is written out or put together of
// parameters. Who manages workflows is shown it as it was written. Others are not, wherever it could be: in a workflow and its
// versions, in runs, in what a run would do, in jobs, events and the audit, and in what they are answered when they do something wrong.
func TestWorkflowURLs(t *testing.T) {
	x := newRig(t)
	h := outside(x)
	ctx := context.Background()
	works := worksIn(t)
	x.volume("v")
	text := `kind: Workflow
name: w
parameters:
  - {name: key, default: hidden-default, one_of: [hidden-default, hidden-other]}
  - {name: mark, type: name, default: one}
steps:
  # was: https://hooks.example.com/hidden-comment
  - bookmark: {app: v, name: "{{ mark }}"}
on_failure:
  - parallel:
      - notify: {message: hello, url: "https://hooks.example.com/hidden-path?a={{ key }}"}
      - notify: {message: again, url: "http://127.0.0.1:1"}
`
	for _, version := range []string{text, text + "# the second\n"} {
		_, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: version})
		works(err)
	}
	j, err := x.RunWorkflow(ctx, "w", tidemark.RunSpec{Parameters: map[string]string{"key": "hidden-other", "mark": "two"}})
	works(err)
	_, err = client.Result[tidemark.RunResult](ctx, x.Client, j, nil, nil)
	works(err)
	admin := x.person("admin", access.Grant{Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
	for _, document := range []string{ // what is wrong with it is told, and that in the audit
		strings.ReplaceAll(text, "hidden-path", "{{ hidden"), strings.ReplaceAll(text, "https://", "https://hidden:hidden@"),
		strings.ReplaceAll(text, "default: hidden-default", "default: hidden-none"), strings.ReplaceAll(text, "hidden-path", `hidden\x01`),
	} {
		w := as(h, admin, http.MethodPost, "/v1/workflows", `{"document":`+strconv.Quote(document)+`}`)
		if w.Code != http.StatusBadRequest || strings.Contains(decode[tidemark.Problem](t, w.Body.Bytes()).Detail, "hidden") {
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	}
	run := formatInt(j.ID)
	requests := []struct{ method, path, body string }{
		{"GET", "/v1/workflows", ""}, {"GET", "/v1/workflows/w", ""}, {"GET", "/v1/workflows/w?version=1", ""},
		{"POST", "/v1/workflows/w/plans", "{}"}, {"POST", "/v1/workflows/w/plans", `{"parameters":{"key":"x"}}`},
		{"POST", "/v1/workflows/w/runs", `{"parameters":{"key":"x"}}`},
		{"GET", "/v1/workflow-runs", ""}, {"GET", "/v1/workflow-runs/" + run, ""},
		{"GET", "/v1/jobs", ""}, {"GET", "/v1/jobs/" + run, ""}, {"GET", "/v1/events", ""}, {"GET", "/v1/audit", ""}, {"GET", "/v1/status", ""},
	}
	whole := map[access.Role]int{}
	for _, role := range access.Roles() {
		g := access.Grant{Role: role, Scope: access.Scope{Kind: access.Everything}}
		if role.Limited() {
			g.Limits = access.Limits{Clones: 1, Bytes: access.Unlimited, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}
		}
		secret := x.person("the-"+string(role), g)
		manages := role.Level(access.WorkflowManage) != access.None
		for _, q := range requests {
			w := as(h, secret, q.method, q.path, q.body)
			if strings.Contains(w.Body.String(), "hidden") {
				whole[role]++
				if !manages {
					t.Errorf("%s %s %s by %s: %d: %s", q.method, q.path, q.body, role, w.Code, w.Body)
				}
			}
			if q.path == "/v1/workflows/w" && (w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "https://hooks.example.com/") || !strings.Contains(w.Body.String(), "http://127.0.0.1:1")) {
				t.Errorf("by %s: %d: %s", role, w.Code, w.Body)
			}
			if manages && q.path == "/v1/workflows/w?version=1" && decode[tidemark.Workflow](t, w.Body.Bytes()).Document != text {
				t.Errorf("by %s it is not as it was written: %s", role, w.Body)
			}
		}
		if manages && whole[role] < 5 {
			t.Errorf("%s is shown it %d times", role, whole[role])
		}
	}
	// A document that is shown with less than was written is not taken for one.
	seen := decode[tidemark.Workflow](t, as(h, x.person("eve", access.Grant{Role: access.Auditor, Scope: access.Scope{Kind: access.Everything}}), http.MethodGet, "/v1/workflows/w", "").Body.Bytes())
	if _, err := x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: seen.Document}); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("%v\n%s", err, seen.Document)
	}
}
