package api

import (
	"context"
	"net/http"

	"tidemark"
	"tidemark/access"
	"tidemark/control"
)

// webhookTable is where events are posted to.
func webhookTable() []operation {
	return []operation{
		list(operation{id: "list-webhooks", method: http.MethodGet, path: "/v1/webhooks", tag: "Webhooks", summary: "Where events are posted to",
			description: "By name, each with what waits and why it fails. Of their URLs, scheme and host are shown to who may not change them.", errors: wrong, rule: may(access.WebhookView, access.KindWebhook)},
			func(w tidemark.Webhook) string { return w.Name },
			func(ctx context.Context, c *control.Control) ([]tidemark.Webhook, error) {
				all, err := c.Webhooks(ctx)
				for i := range all {
					all[i] = withoutPath(ctx, all[i])
				}
				return all, err
			}),
		create(operation{id: "add-webhook", method: http.MethodPost, path: "/v1/webhooks", tag: "Webhooks", summary: "Post events to a URL",
			description: "Those that happen from now on, in order, each until it is taken.", errors: webhookErrors, rule: may(access.WebhookManage, access.KindWebhook, "body.name")},
			func(_ *ofBody[tidemark.WebhookSpec], w tidemark.Webhook) string { return "/v1/webhooks/" + w.Name },
			func(ctx context.Context, c *control.Control, in *ofBody[tidemark.WebhookSpec]) (tidemark.Webhook, error) {
				return c.AddWebhook(ctx, in.Body)
			}),
		get(operation{id: "get-webhook", method: http.MethodGet, path: "/v1/webhooks/{name}", tag: "Webhooks", summary: "One webhook",
			description: "With what waits, and why it fails.", errors: missing, rule: may(access.WebhookView, access.KindWebhook, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.Webhook, error) {
				w, err := c.Webhook(ctx, string(in.Name))
				return withoutPath(ctx, w), err
			}),
		get(operation{id: "change-webhook", method: http.MethodPatch, path: "/v1/webhooks/{name}", tag: "Webhooks", summary: "Change a webhook, or switch it off and on",
			description: "What is missing stays. What waits is posted to a new URL. One that is switched on begins with what happens then.", errors: webhookErrors, rule: may(access.WebhookManage, access.KindWebhook, "path.name")},
			func(ctx context.Context, c *control.Control, in *ofNameAndBody[tidemark.WebhookChange]) (tidemark.Webhook, error) {
				return c.ChangeWebhook(ctx, string(in.Name), in.Body)
			}),
		do(operation{id: "remove-webhook", method: http.MethodDelete, path: "/v1/webhooks/{name}", tag: "Webhooks", summary: "Post nothing more to a URL",
			description: "What waits is not posted.", errors: refused, rule: may(access.WebhookManage, access.KindWebhook, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) error {
				return c.RemoveWebhook(ctx, string(in.Name))
			}),
		get(operation{id: "test-webhook", method: http.MethodPost, path: "/v1/webhooks/{name}/tests", tag: "Webhooks", summary: "Post a message to try a webhook",
			description: "At once, and once, also if the webhook is off. The answer says what became of it. If it was taken, what waits is posted as well.", errors: refused, rule: may(access.WebhookManage, access.KindWebhook, "path.name")},
			func(ctx context.Context, c *control.Control, in *ByName) (tidemark.WebhookTest, error) {
				return c.TestWebhook(ctx, string(in.Name))
			}),
	}
}

// webhookErrors are those of what names a secret, which others may be able to read.
var webhookErrors = append([]tidemark.Kind{tidemark.Denied}, refused...)

// withoutPath takes the path from the URL of a webhook, which may be a secret, unless who asks may change it.
func withoutPath(ctx context.Context, w tidemark.Webhook) tidemark.Webhook {
	who := callerOf(ctx)
	if !access.Decide(who.principal, who.grants, access.WebhookManage, access.Object{Kind: access.KindWebhook, Name: w.Name}).Allowed {
		w.URL = tidemark.OnlyHost(w.URL)
	}
	return w
}
