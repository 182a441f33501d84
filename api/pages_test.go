package api

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
	"tidemark/policy"
)

// TestListsHaveParts: every list comes in parts, but those that docs/api.md names, and its parts are together what it has as a whole.
func TestListsHaveParts(t *testing.T) {
	x := newRig(t)
	works := worksIn(t)
	ctx := t.Context()
	apply := "kind: Workflow\nname: w\nsteps:\n  - bookmark: {app: v0, name: \"run-{{ run }}\"}\n"
	for i := range 3 {
		x.volume(fmt.Sprint("v", i))
		user := fmt.Sprint("user", i)
		_, err := x.AddUser(ctx, tidemark.UserSpec{Name: user})
		works(err)
		works(x.AddUserGroup(ctx, fmt.Sprint("group", 2-i)))
		works(x.JoinUserGroup(ctx, fmt.Sprint("group", 2-i), user))
		_, err = x.AddGrant(ctx, access.Grant{Subject: access.Subject{Kind: access.User, Name: user}, Role: access.Auditor, Scope: access.Scope{Kind: access.Everything}})
		works(err)
		_, err = x.MakeToken(ctx, access.TokenSpec{User: "user0", Name: fmt.Sprint("t", i), Lifetime: 60})
		works(err)
		_, err = x.ApplyWorkflow(ctx, tidemark.WorkflowSpec{Document: apply})
		works(err)
		j, err := x.RunWorkflow(ctx, "w", tidemark.RunSpec{})
		_, err = client.Result[tidemark.RunResult](ctx, x.Client, j, err, nil)
		works(err)
	}
	grown := map[string]bool{"list-users": true, "list-user-groups": true, "list-grants": true, "list-tokens": true, "list-runs": true, "list-compliance": true, "list-volumes": true}
	whole := []string{"list-sources"}
	lists := 0
	for _, o := range table() {
		if o.method != http.MethodGet || o.stream || !strings.HasPrefix(o.id, "list-") || slices.Contains(whole, o.id) {
			continue
		}
		lists++
		at := strings.ReplaceAll(o.path, "{name}", "v0")
		resp, text := x.ask(http.MethodGet, at, "")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s: %s", o.id, resp.Status, text)
		}
		all := decode[tidemark.Page[map[string]any]](t, text)
		if all.Items == nil || all.Next != "" || grown[o.id] && len(all.Items) != 3 {
			t.Errorf("%s: %s", o.id, text)
		}
		got := x.parts(at)
		for i := range max(len(all.Items), len(got)) {
			if len(got) != len(all.Items) || identity(t, got[i]) != identity(t, all.Items[i]) {
				t.Errorf("%s is in parts %v, and as a whole %v", o.id, got, all.Items)
				break
			}
		}
		if resp, text := x.ask(http.MethodGet, at+"?cursor=other", ""); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s takes any cursor: %s: %s", o.id, resp.Status, text)
		}
	}
	if lists < 18 {
		t.Errorf("there are only %d lists", lists)
	}
	if got := x.parts("/v1/tokens?user=user0"); len(got) != 3 {
		t.Errorf("%v", got)
	}
	if got := x.parts("/v1/workflow-runs?workflow=none"); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// parts reads a list in parts of one entry.
func (x *rig) parts(path string) (all []map[string]any) {
	x.t.Helper()
	sign := "?"
	if strings.Contains(path, "?") {
		sign = "&"
	}
	for cursor := ""; len(all) < 1000; {
		resp, text := x.ask(http.MethodGet, path+sign+"limit=1"+cursor, "")
		p := decode[tidemark.Page[map[string]any]](x.t, text)
		if resp.StatusCode != http.StatusOK || len(p.Items) > 1 || (p.Next != "") != (resp.Header.Get("Link") != "") {
			x.t.Fatalf("%s: %s: %s", path, resp.Status, text)
		}
		all = append(all, p.Items...)
		if p.Next == "" {
			break
		}
		cursor = "&cursor=" + p.Next
	}
	return all
}

// identity is by what an entry of a list is known.
func identity(t *testing.T, v map[string]any) string {
	text, err := json.Marshal([]any{v["id"], v["name"], v["application"], v["position"], v["job"] != nil})
	worksIn(t)(err)
	if j, ok := v["job"].(map[string]any); ok {
		return fmt.Sprint(j["id"])
	}
	return string(text)
}

// TestProofParts: proofs are read in parts, newest first, also those of one moment, and those that come meanwhile change nothing for the others.
func TestProofParts(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	base := time.Date(2026, 11, 28, 10, 0, 0, 0, time.FixedZone("x", 3600))
	var list []tidemark.Proof
	for i := range 60 {
		list = append(list, tidemark.Proof{Position: tidemark.Position(r.IntN(1000)*1000 + i), Stamp: tidemark.Stamp{At: base.Add(time.Duration(r.IntN(20)) * 50 * time.Millisecond)}})
	}
	order := func(a, b tidemark.Proof) int {
		return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.Position, a.Position))
	}
	want := slices.SortedFunc(slices.Values(list), order)
	var got []tidemark.Proof
	for l, key := (Listing{Limit: 7}), ""; ; {
		p := proofPart(l, "/list", slices.Clone(list), key)
		got = append(got, p.Body.Items...)
		if p.Body.Next == "" {
			break
		}
		var err error
		key, err = decodeCursor("/list", p.Body.Next)
		worksIn(t)(err)
		list = append(list, tidemark.Proof{Position: 5, Stamp: tidemark.Stamp{At: base.Add(time.Hour)}})
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	if !slices.EqualFunc(got, want, func(a, b tidemark.Proof) bool { return order(a, b) == 0 }) {
		t.Errorf("seed %d: %v\nand not %v", seed, got, want)
	}
}

// TestDeclarationsOnce: who applies documents again with the same key is answered as the first time.
func TestDeclarationsOnce(t *testing.T) {
	for _, o := range table() {
		if o.queues && o.method == http.MethodPost && !o.once {
			t.Errorf("%s begins jobs, and has no key", o.id)
		}
	}
	x := newRig(t)
	body := `{"documents":"kind: Template\nname: bronze\ncapture:\n  every: 1h\n"}`
	ask := func(key string) (http.Header, policy.Applied) {
		resp, text := x.ask(http.MethodPost, "/v1/declarations", body, "Idempotency-Key", key)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		return resp.Header, decode[policy.Applied](t, text)
	}
	_, first := ask(`"k"`)
	head, again := ask(`"k"`)
	_, other := ask(`"l"`)
	if len(first.Changes) != 1 || fmt.Sprint(first) != fmt.Sprint(again) || head.Get("Idempotency-Replayed") != "true" || fmt.Sprint(other) == fmt.Sprint(first) {
		t.Errorf("%v, then %v (%v), and with another key %v", first, again, head, other)
	}
	if resp, text := x.ask(http.MethodPost, "/v1/declarations", strings.Replace(body, "bronze", "gold", 1), "Idempotency-Key", `"k"`); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("%s: %s", resp.Status, text)
	}
}
