package api

import (
	"strings"
	"testing"

	"tidemark"
	"tidemark/access"
)

// TestQueuedKeepsItsNeeds: a job has with it what was decided about when it was asked for, and by which token, so that it can be decided about again.
func TestQueuedKeepsItsNeeds(t *testing.T) {
	x := newRig(t)
	x.applications("testapp")
	h := outside(x)
	alice := x.person("alice", developer("testapp"))
	operator := x.person("oscar", access.Grant{Role: access.Operator, Scope: scopes["everything"]})
	const one = `{"action":"application.clone","kind":"application","ref":"testapp","from":"testapp@one"`
	const here = `{"action":"host.use","kind":"host","ref":"@server"}`
	for _, q := range []struct{ secret, path, body, want string }{
		{alice, "/v1/clones", `{"ref":"testapp@latest","name":"k","lifetime_seconds":60}`, `[{"action":"application.clone","kind":"application","ref":"testapp","from":"testapp@latest","copy":{"lifetime":60000000000,"host":"@server"}},` + here + `]`},
		{alice, "/v1/clones", `{"ref":"testapp@one","name":"k2"}`, `[` + one + `,"copy":{"host":"@server"}},` + here + `]`},
		{alice, "/v1/clones/k2/refreshes", ``, `[{"action":"clone.refresh","kind":"clone","ref":"k2","from":"testapp"},{"action":"application.clone","kind":"application","ref":"testapp","from":"testapp"}]`},
		{operator, "/v1/rewinds", `{"ref":"testapp@one"}`, `[{"action":"application.restore","kind":"clone","ref":"testapp","beyond":true,"copy":{"point":true}}]`},
		{operator, "/v1/pool/verify", ``, `[{"action":"pool.verify","kind":"pool"}]`},
	} {
		w := post(h, q.path+"?queue=true", q.body, q.secret)
		x.begun(w)
		full, err := x.c.Access().Job(t.Context(), decode[tidemark.Job](t, w.Body.Bytes()).ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(full.Terms); !strings.Contains(got, `"needs":`+q.want) || !strings.Contains(got, `"token":{"id":`) {
			t.Errorf("%s: %s", q.path, got)
		}
	}
}
