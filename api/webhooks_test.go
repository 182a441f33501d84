package api

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/client"
)

// webhooks asks for everything that is about webhooks.
func webhooks(t *testing.T, x *client.Client, works func(error), refuses func(tidemark.Kind, error)) {
	ctx := context.Background()
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "a\n\x1b[31mb") }))
	defer hook.Close()
	w, err := x.AddWebhook(ctx, tidemark.WebhookSpec{Name: "ops", URL: hook.URL + "/token", Applications: []string{"v*"}})
	works(err)
	if w.Level != "info" || w.State != tidemark.WebhookOK || w.URL != hook.URL+"/token" {
		t.Errorf("%+v", w)
	}
	_, err = x.AddWebhook(ctx, tidemark.WebhookSpec{Name: "ops", URL: hook.URL})
	refuses(tidemark.Conflict, err)
	w, err = x.ChangeWebhook(ctx, "ops", tidemark.WebhookChange{Level: new("error"), Applications: []string{}})
	works(err)
	if w.Level != "error" || len(w.Applications) != 0 || w.State != tidemark.WebhookOK {
		t.Errorf("%+v", w)
	}
	w, err = x.ChangeWebhook(ctx, "ops", tidemark.WebhookChange{Off: new(true)})
	works(err)
	if w.Level != "error" || w.State != tidemark.WebhookOff {
		t.Errorf("%+v", w)
	}
	tried, err := x.TestWebhook(ctx, "ops")
	works(err)
	if !tried.Taken || tried.Status != http.StatusOK || tried.Answer != "a [31mb" {
		t.Errorf("%+v", tried)
	}
	again, err := x.Webhook(ctx, "ops")
	works(err)
	all, err := client.Collect(x.Webhooks(ctx))
	works(err)
	if len(all) != 1 || all[0].Name != "ops" || again.URL != hook.URL+"/token" {
		t.Errorf("%+v and %+v", all, again)
	}
	works(x.RemoveWebhook(ctx, "ops"))
	refuses(tidemark.NotFound, x.RemoveWebhook(ctx, "ops"))
}

// TestWebhookRights: who may only look is told of webhooks, and not the paths of their URLs; who may not even that, is told nothing.
func TestWebhookRights(t *testing.T) {
	x := newRig(t)
	h := outside(x)
	if _, err := x.AddWebhook(context.Background(), tidemark.WebhookSpec{Name: "ops", URL: "https://chat.example.com/hidden/path?key=query", Off: true}); err != nil {
		t.Fatal(err)
	}
	everything := access.Scope{Kind: access.Everything}
	requests := []struct{ method, path, body string }{{"GET", "/v1/webhooks", ""}, {"GET", "/v1/webhooks/ops", ""}, {"PATCH", "/v1/webhooks/ops", `{"level":"error"}`}}
	for _, role := range access.Roles() {
		g := access.Grant{Role: role, Scope: everything}
		secret := x.person(string(role), g)
		for _, q := range requests {
			r := httptest.NewRequest(q.method, q.path, strings.NewReader(q.body))
			r.RemoteAddr = "192.0.2.7:4711"
			if q.body != "" {
				r.Header.Set("Content-Type", "application/json")
			}
			w := ask(h, r, secret)
			text := w.Body.String()
			sees, whole := strings.Contains(text, "https://chat.example.com"), strings.Contains(text, "path?key=query")
			switch {
			case role == access.Admin:
				if w.Code != http.StatusOK || !whole {
					t.Errorf("%s of %s: %d %s", q.method, role, w.Code, text)
				}
			case role == access.Auditor && q.method == "GET":
				if w.Code != http.StatusOK || !sees || whole || strings.Contains(text, "hidden") {
					t.Errorf("%s of %s: %d %s", q.method, role, w.Code, text)
				}
			case sees || w.Code != http.StatusForbidden && text != "" && !strings.Contains(text, `"items":[]`):
				t.Errorf("%s of %s: %d %s", q.method, role, w.Code, text)
			}
		}
	}
	list, err := client.Collect(x.Audit(context.Background(), "admin", ""))
	if err != nil || len(list) == 0 || list[0].Action != access.WebhookManage || list[0].Object != "ops" || list[0].Outcome != access.Done {
		t.Errorf("the audit has %+v, %v", list, err)
	}
	for _, r := range list {
		if strings.Contains(fmt.Sprint(r), "query") {
			t.Errorf("the audit has the URL: %+v", r)
		}
	}
}

// TestWebhookAddedOnce: who asks again with the same key is answered the same, and there is one webhook.
func TestWebhookAddedOnce(t *testing.T) {
	x := newRig(t)
	var first []byte
	for i := range 2 {
		resp, text := x.ask("POST", "/v1/webhooks", `{"name":"ops","url":"https://example.com/x","off":true}`, "Idempotency-Key", `"k"`)
		if resp.StatusCode != http.StatusCreated || resp.Header.Get("Location") != "/v1/webhooks/ops" || i > 0 && string(text) != string(first) {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		first = text
	}
	if n, err := counted(x.Webhooks(context.Background()))(); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

// TestWebhookMetrics: what waits and what fails is told to Prometheus.
func TestWebhookMetrics(t *testing.T) {
	x := newRig(t)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer hook.Close()
	if _, err := x.AddWebhook(context.Background(), tidemark.WebhookSpec{Name: "ops", URL: hook.URL}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.ApplyWorkflow(context.Background(), tidemark.WorkflowSpec{Document: "kind: Workflow\nname: w\nsteps:\n  - notify: {message: hello}\n"}); err != nil {
		t.Fatal(err)
	}
	j, err := x.RunWorkflow(context.Background(), "w", tidemark.RunSpec{})
	if err == nil {
		err = x.Wait(context.Background(), j.ID, nil, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for range 400 {
		if text, err = x.Metrics(context.Background()); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(text, "tidemark_webhook_failing_since") {
			break
		}
		time.Sleep(25 * time.Millisecond)
	}
	for _, want := range []string{`tidemark_webhook_pending_events{webhook="ops"} 1`, `tidemark_webhook_delivered_total{webhook="ops"} 0`, `tidemark_webhook_failing_since_timestamp_seconds{webhook="ops"} `,
		`tidemark_webhook_oldest_pending_timestamp_seconds{webhook="ops"} `, `tidemark_webhook_failed_attempts_total{webhook="ops"} `} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
}
