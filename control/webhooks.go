package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// Webhooks are URLs that events are posted to. Each has a goroutine, which posts one event after another and goes on when it was taken: so they come in order, and one
// receiver that is away keeps nobody else waiting. How far each is, is in the catalog, and is recorded behind the answer of the receiver: what was not recorded comes again.

const (
	mostWebhooks = 100
	// keptEvents is how many events are kept. An event is some 200 bytes.
	keptEvents = 100_000
	// webhookBatch is how many events are read at once.
	webhookBatch = 100
	// firstPause is how long is waited after a first failure, and longestPause at most; each pause is twice the last.
	firstPause, longestPause = time.Second, 5 * time.Minute
	// lookEvents is how often events are looked for that nobody rang for: those that were recorded as the catalog went away.
	lookEvents = time.Minute
	// failingLong is for how long a receiver takes nothing before the status warns of it.
	failingLong = 15 * time.Minute
)

// webhooks are the deliveries that go on.
type webhooks struct {
	change sync.Mutex // held while a webhook is changed

	mu   sync.Mutex
	live map[string]*delivering // guarded by mu
}

// delivering is how one webhook is delivered to.
type delivering struct {
	stop  context.CancelFunc
	ended chan struct{}
	hurry chan struct{} // takes one value; who waits for the next attempt waits no longer
}

// beginWebhooks begins to deliver to all webhooks, until the server stops.
func (c *Control) beginWebhooks(ctx context.Context) error {
	list, err := c.catalog.Webhooks(ctx)
	for _, w := range list {
		if w.State != tidemark.WebhookOff {
			c.webhooks.begin(c, w.Name)
		}
	}
	return err
}

func (h *webhooks) begin(c *Control, name string) {
	ctx, stop := context.WithCancel(c.jobs.ctx)
	d := &delivering{stop, make(chan struct{}), make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.live == nil {
		h.live = map[string]*delivering{}
	}
	h.live[name] = d
	c.jobs.wg.Go(func() {
		defer close(d.ended)
		defer stop()
		c.deliver(ctx, name, d.hurry)
	})
}

// end ends the delivery to a webhook. Nothing is posted to it when it returns.
func (h *webhooks) end(name string) {
	h.mu.Lock()
	d := h.live[name]
	delete(h.live, name)
	h.mu.Unlock()
	if d != nil {
		d.stop()
		<-d.ended
	}
}

// hurry has the next attempt made now.
func (h *webhooks) hurry(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.live[name]; d != nil {
		select {
		case d.hurry <- struct{}{}:
		default:
		}
	}
}

// deliver posts what happens to a webhook until ctx is done, or it is gone.
func (c *Control) deliver(ctx context.Context, name string, hurry <-chan struct{}) {
	for failures := 0; ctx.Err() == nil; {
		recorded, pause := c.EventRecorded(), lookEvents
		more, err := c.deliverSome(catalog.Patient(ctx), name)
		if more || err == nil {
			failures = 0
		}
		switch {
		case tidemark.KindOf(err) == tidemark.NotFound && !errors.Is(err, errNotTaken):
			return // it is gone
		case err != nil:
			failures++
			recorded, pause = nil, pauseAfter(failures)
		case more:
			continue
		}
		select {
		case <-ctx.Done():
		case <-recorded:
		case <-hurry:
		case <-time.After(pause):
		}
	}
}

// pauseAfter is how long is waited after so many failures in a row: about, so that the webhooks of many servers do not all come at once to a receiver that is back.
func pauseAfter(failures int) time.Duration {
	pause := longestPause
	if n := failures - 1; n < 16 {
		pause = min(firstPause<<n, longestPause)
	}
	return time.Duration(float64(pause) * (0.8 + 0.2*mathrand.Float64()))
}

// errNotTaken is in the chain of the error about what a receiver did not take. It is recorded.
var errNotTaken = errors.New("it was not taken")

// deliverSome posts the next events of a webhook, up to the first that is not taken, and reports whether it has come further.
func (c *Control) deliverSome(ctx context.Context, name string) (more bool, err error) {
	w, err := c.catalog.Webhook(ctx, name)
	if err != nil {
		return false, err
	}
	if w.Missed > 0 {
		m := c.messageTo(w, "missed", fmt.Sprintf("missed/%d", w.Seen))
		m.Missed = w.Missed
		if err := c.postTo(ctx, w, m); err != nil {
			return false, err
		}
		return true, c.noteTaken(ctx, func(ctx context.Context) error { return c.catalog.ToldMissed(ctx, w) })
	}
	list, err := c.catalog.EventsAfter(ctx, w.Seen, webhookBatch)
	if err != nil || len(list) == 0 {
		return false, err
	}
	last := w.Seen
	for _, e := range list {
		if !w.Wants(e) {
			last = e.ID
			continue
		}
		m := c.messageTo(w, "event", fmt.Sprint(e.ID))
		m.Event = &e
		if err := c.postTo(ctx, w, m); err != nil {
			return more, errors.Join(err, c.pass(ctx, w, last))
		}
		if err := c.noteTaken(ctx, func(ctx context.Context) error { return c.catalog.Taken(ctx, w, e.ID) }); err != nil {
			return more, err
		}
		more, w.Seen, last = true, e.ID, e.ID
		w.Delivered++
	}
	return true, c.pass(ctx, w, last)
}

// pass records that no event up to the last is wanted any more.
func (c *Control) pass(ctx context.Context, w catalog.Webhook, last int64) error {
	if last == w.Seen {
		return nil
	}
	return c.catalog.Unwanted(ctx, w.Name, last)
}

// noteTaken records what a receiver has taken. A server that stops still does so, unless the catalog is away: then it comes again.
func (c *Control) noteTaken(ctx context.Context, record func(context.Context) error) error {
	err := record(context.Background())
	if errors.Is(err, catalog.ErrAway) {
		err = record(ctx)
	}
	return err
}

// webhookFormat is the version of the messages that are posted to webhooks. Members may be added to a version, and none changes its meaning.
const webhookFormat = 1

// webhookMessage is what is posted to a webhook: docs/webhooks.md is its manual.
type webhookMessage struct {
	Version  int             `json:"version"`
	Type     string          `json:"type"`     // event, missed or ping
	Delivery string          `json:"delivery"` // the same if it comes again
	Webhook  string          `json:"webhook"`
	Server   webhookServer   `json:"server"`
	Event    *tidemark.Event `json:"event,omitempty"`
	Missed   int64           `json:"missed,omitempty"` // how many events were forgotten before they were taken
}

// webhookServer says whose events they are.
type webhookServer struct {
	ID      string `json:"id"` // of the data directory
	Host    string `json:"host"`
	Release string `json:"release"`
}

// messageTo makes a message for a webhook. number is its own among those of a type.
func (c *Control) messageTo(w catalog.Webhook, kind, number string) webhookMessage {
	return webhookMessage{Version: webhookFormat, Type: kind, Delivery: fmt.Sprintf("%s/webhook/%s/%s", c.identity, w.Name, number), Webhook: w.Name,
		Server: webhookServer{c.identity, hostname(), tidemark.Version}}
}

// postTo makes one attempt, and records it if it failed.
func (c *Control) postTo(ctx context.Context, w catalog.Webhook, m webhookMessage) error {
	_, err := c.tryPost(ctx, w, m)
	if err == nil || ctx.Err() != nil {
		return err
	}
	c.log.Warn("a webhook was not taken", "webhook", w.Name, "delivery", m.Delivery, "error", err)
	return errors.Join(errNotTaken, err, c.catalog.NotTaken(ctx, w.Name, Explain(err).Message))
}

func (c *Control) tryPost(ctx context.Context, w catalog.Webhook, m webhookMessage) (r reply, err error) {
	o := outgoing{to: w.URL, delivery: m.Delivery, body: mustJSON(m)}
	if w.Secret != "" {
		if o.key, err = c.readSecret(w.Secret); err != nil {
			return r, err
		}
	}
	return o.once(ctx)
}

// checkWebhook refuses what cannot be delivered to.
func (c *Control) checkWebhook(s tidemark.WebhookSpec) error {
	if err := tidemark.CheckName(s.Name); err != nil {
		return err
	}
	if err := tidemark.CheckPostURL(s.URL); err != nil {
		return err
	}
	if err := tidemark.CheckEventLevel(s.Level); err != nil {
		return err
	}
	if len(s.Applications) > access.MaxPatterns {
		return tidemark.Errorf(tidemark.Invalid, "these are %d patterns of applications, and at most %d are allowed", len(s.Applications), access.MaxPatterns).WithHint("a * stands for many names")
	}
	for _, p := range s.Applications {
		if _, err := access.ParsePattern(p); err != nil {
			return err
		}
	}
	if s.Secret == "" {
		return nil
	}
	if err := tidemark.CheckName(s.Secret); err != nil {
		return err
	}
	_, err := c.readSecret(s.Secret)
	return err
}

// AddWebhook begins to post events to a URL: those that happen from now on.
func (c *Control) AddWebhook(ctx context.Context, s tidemark.WebhookSpec) (tidemark.Webhook, error) {
	if s.Level == "" {
		s.Level = tidemark.EventLevels()[0]
	}
	if err := c.checkWebhook(s); err != nil {
		return tidemark.Webhook{}, err
	}
	c.webhooks.change.Lock()
	defer c.webhooks.change.Unlock()
	if err := c.catalog.AddWebhook(ctx, s, askOf(ctx).By, mostWebhooks); err != nil {
		return tidemark.Webhook{}, err
	}
	if !s.Off {
		c.webhooks.begin(c, s.Name)
	}
	return c.Webhook(ctx, s.Name)
}

// ChangeWebhook makes a webhook other than it is.
func (c *Control) ChangeWebhook(ctx context.Context, name string, change tidemark.WebhookChange) (tidemark.Webhook, error) {
	c.webhooks.change.Lock()
	defer c.webhooks.change.Unlock()
	w, err := c.catalog.Webhook(ctx, name)
	if err != nil {
		return tidemark.Webhook{}, err
	}
	c.webhooks.end(name) // nothing is posted by what it was when this returns
	off := w.State == tidemark.WebhookOff
	err = c.catalog.ChangeWebhook(ctx, name, func(s *tidemark.WebhookSpec) error {
		changed := changedWebhook(*s, change)
		if err := c.checkWebhook(changed); err != nil {
			return err
		}
		*s = changed
		return nil
	})
	if err == nil && change.Off != nil {
		off = *change.Off
	}
	if !off {
		c.webhooks.begin(c, name)
	}
	if err != nil {
		return tidemark.Webhook{}, err
	}
	return c.Webhook(ctx, name)
}

// changedWebhook is a webhook with changes made.
func changedWebhook(s tidemark.WebhookSpec, change tidemark.WebhookChange) tidemark.WebhookSpec {
	for old, value := range map[*string]*string{&s.URL: change.URL, &s.Level: change.Level, &s.Secret: change.Secret} {
		if value != nil {
			*old = *value
		}
	}
	if change.Applications != nil {
		s.Applications = change.Applications
	}
	if change.Off != nil {
		s.Off = *change.Off
	}
	return s
}

// RemoveWebhook forgets a webhook. What waits for it is not posted.
func (c *Control) RemoveWebhook(ctx context.Context, name string) error {
	c.webhooks.change.Lock()
	defer c.webhooks.change.Unlock()
	if err := c.catalog.RemoveWebhook(ctx, name); err != nil {
		return err
	}
	c.webhooks.end(name)
	return nil
}

// Webhook describes a webhook.
func (c *Control) Webhook(ctx context.Context, name string) (tidemark.Webhook, error) {
	w, err := c.catalog.Webhook(ctx, name)
	if err == nil {
		err = c.catalog.CountPending(ctx, &w)
	}
	return w.Webhook, err
}

// Webhooks describes all webhooks, by name.
func (c *Control) Webhooks(ctx context.Context) ([]tidemark.Webhook, error) {
	all, err := c.catalog.Webhooks(ctx)
	list := make([]tidemark.Webhook, 0, len(all))
	for _, w := range all {
		if err := c.catalog.CountPending(ctx, &w); err != nil {
			return nil, err
		}
		list = append(list, w.Webhook)
	}
	return list, err
}

// TestWebhook posts a message to a webhook now, whatever waits for it, and says what became of it. If it is taken, what waits is posted as well.
func (c *Control) TestWebhook(ctx context.Context, name string) (tidemark.WebhookTest, error) {
	w, err := c.catalog.Webhook(ctx, name)
	if err != nil {
		return tidemark.WebhookTest{}, err
	}
	m := c.messageTo(w, "ping", "ping/"+rand.Text()[:12])
	begun := time.Now()
	r, err := c.tryPost(ctx, w, m)
	t := tidemark.WebhookTest{Delivery: m.Delivery, Taken: err == nil, Status: r.status, Answer: r.begins, Seconds: time.Since(begun).Seconds()}
	if err != nil {
		t.Error = Explain(err).Message
		return t, ctx.Err()
	}
	c.webhooks.hurry(name)
	return t, nil
}

// webhookStatus warns of receivers that have taken nothing for long.
func (c *Control) webhookStatus(ctx context.Context, s *tidemark.Status) error {
	list, err := c.Webhooks(ctx)
	for _, w := range list {
		if w.FailingSince != nil && time.Since(*w.FailingSince) > failingLong {
			s.Warnings = append(s.Warnings, fmt.Sprintf("the webhook %s has failed since %s, and %d events wait: %s", w.Name, w.FailingSince.Local().Format(time.RFC3339), w.Pending, w.Error))
		}
	}
	return err
}
