package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
)

// Webhook is where events are posted to, and how far that has come.
type Webhook struct {
	tidemark.Webhook
	// Seen is the number of the last event that was taken, or is not wanted, or was forgotten: those above it wait.
	Seen int64
}

// Wants reports whether an event is to be posted.
func (w Webhook) Wants(e tidemark.Event) bool {
	return slices.Contains(w.levels(), e.Level) && w.about(e.Application)
}

// levels are those of the events that are posted.
func (w Webhook) levels() []string {
	all := tidemark.EventLevels()
	return all[max(0, slices.Index(all, w.Level)):]
}

// about reports whether events of an application are posted; empty: of the server itself.
func (w Webhook) about(application string) bool {
	return len(w.Applications) == 0 || slices.ContainsFunc(w.Applications, func(p string) bool { return access.Pattern(p).Match(application) })
}

type webhookRow struct {
	bun.BaseModel `bun:"table:webhooks"`
	Owner         string
	Name          string
	URL           string `bun:"url"`
	Level         string
	Applications  string // a list as JSON
	Secret        string
	Disabled      bool
	Author        string
	Created       int64
	Seen          int64
	Missed        int64
	Delivered     int64
	Last          int64
	Failed        int64
	Failing       int64 // since when; 0: it is not
	Error         string
}

func (r webhookRow) webhook() (w Webhook, err error) {
	w = Webhook{Seen: r.Seen, Webhook: tidemark.Webhook{Name: r.Name, URL: r.URL, Level: r.Level, Secret: r.Secret, State: tidemark.WebhookOK, Author: r.Author, Created: time.Unix(0, r.Created),
		Missed: r.Missed, Delivered: r.Delivered, Last: timeOf(r.Last), Failed: r.Failed, FailingSince: timeOf(r.Failing), Error: r.Error}}
	switch {
	case r.Disabled:
		w.State = tidemark.WebhookOff
	case r.Failing != 0:
		w.State = tidemark.WebhookFailing
	}
	if err := json.Unmarshal([]byte(r.Applications), &w.Applications); err != nil {
		return w, tidemark.Errorf(tidemark.Corrupt, "the webhook %s cannot be read: %w", r.Name, err)
	}
	return w, nil
}

// set takes up what an administrator says of a webhook.
func (r *webhookRow) set(s tidemark.WebhookSpec) error {
	list, err := json.Marshal(append([]string{}, s.Applications...))
	r.URL, r.Level, r.Applications, r.Secret, r.Disabled = s.URL, s.Level, string(list), s.Secret, s.Off
	return err
}

const newestEvent = "SELECT COALESCE(MAX(id), 0) FROM events WHERE owner = ?"

// holding ends a query whose rows nobody else is to change before the transaction ends. SQLite has one writer.
func (c *Catalog) holding() string {
	if c.outage.remote {
		return " FOR UPDATE"
	}
	return ""
}

// AddWebhook stores a new webhook, unless there are most already. It begins with the next event.
func (c *Catalog) AddWebhook(ctx context.Context, s tidemark.WebhookSpec, author string, most int) error {
	return c.tx(ctx, "store webhook "+s.Name, func(ctx context.Context, tx bun.Tx) error {
		row := webhookRow{Owner: c.owner, Name: s.Name, Author: author, Created: c.now().UnixNano()}
		if err := row.set(s); err != nil {
			return err
		}
		var n int
		if err := tx.NewRaw("SELECT COUNT(*) FROM webhooks WHERE owner = ?", c.owner).Scan(ctx, &n); err != nil {
			return err
		}
		if n >= most {
			return tidemark.Errorf(tidemark.Conflict, "there are %d webhooks, and no more can be added", n).WithHint("remove one that nobody reads: `tidemark webhook ls`")
		}
		if err := tx.NewRaw(newestEvent, c.owner).Scan(ctx, &row.Seen); err != nil {
			return err
		}
		_, err := tx.NewInsert().Model(&row).Exec(ctx)
		if unique(err) {
			return tidemark.Errorf(tidemark.Conflict, "there is a webhook %s already", s.Name).WithHint("`tidemark webhook set` changes it")
		}
		return err
	})
}

// ChangeWebhook makes a webhook what fn makes of it. What waits for it still does, but one that is switched on begins with the next event. With
// another URL nothing has failed yet.
func (c *Catalog) ChangeWebhook(ctx context.Context, name string, fn func(*tidemark.WebhookSpec) error) error {
	return c.tx(ctx, "change webhook "+name, func(ctx context.Context, tx bun.Tx) error {
		var row webhookRow
		err := tx.NewRaw("SELECT * FROM webhooks WHERE owner = ? AND name = ?"+c.holding(), c.owner, name).Scan(ctx, &row)
		if errors.Is(err, sql.ErrNoRows) {
			return noWebhook(name)
		}
		if err != nil {
			return err
		}
		was, err := row.webhook()
		if err != nil {
			return err
		}
		spec := tidemark.WebhookSpec{Name: name, URL: was.URL, Level: was.Level, Applications: was.Applications, Secret: was.Secret, Off: row.Disabled}
		if err := fn(&spec); err != nil {
			return err
		}
		begins := row.Disabled && !spec.Off
		if begins || spec.Off || spec.URL != row.URL {
			row.Failing, row.Error = 0, ""
		}
		if err := row.set(spec); err != nil {
			return err
		}
		if begins {
			row.Missed = 0
			if err := tx.NewRaw(newestEvent, c.owner).Scan(ctx, &row.Seen); err != nil {
				return err
			}
		}
		_, err = tx.NewUpdate().Model(&row).Where("owner = ? AND name = ?", c.owner, name).Exec(ctx)
		return err
	})
}

func noWebhook(name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no webhook %q", name).WithHint("`tidemark webhook ls` lists them")
}

// RemoveWebhook forgets a webhook.
func (c *Catalog) RemoveWebhook(ctx context.Context, name string) error {
	return c.tx(ctx, "remove webhook "+name, func(ctx context.Context, tx bun.Tx) error {
		return exactlyOne(tx.NewRaw("DELETE FROM webhooks WHERE owner = ? AND name = ?", c.owner, name).Exec(ctx))(noWebhook(name))
	})
}

// Webhook returns a webhook, without what waits for it.
func (c *Catalog) Webhook(ctx context.Context, name string) (w Webhook, err error) {
	var row webhookRow
	err = c.query(ctx, &row, "SELECT * FROM webhooks WHERE owner = ? AND name = ?", c.owner, name)
	if errors.Is(err, sql.ErrNoRows) {
		return w, noWebhook(name)
	}
	if err != nil {
		return w, wrap(err, "look up webhook %s", name)
	}
	return row.webhook()
}

// Webhooks returns all webhooks by name, without what waits for them.
func (c *Catalog) Webhooks(ctx context.Context) ([]Webhook, error) {
	var rows []webhookRow
	if err := c.query(ctx, &rows, "SELECT * FROM webhooks WHERE owner = ? ORDER BY name", c.owner); err != nil {
		return nil, wrap(err, "list webhooks")
	}
	list := make([]Webhook, len(rows))
	for i, r := range rows {
		var err error
		if list[i], err = r.webhook(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// CountPending fills in how many events wait for a webhook, and since when. For one that is off, none do.
func (c *Catalog) CountPending(ctx context.Context, w *Webhook) error {
	w.Pending, w.Oldest = 0, nil
	if w.State == tidemark.WebhookOff {
		return nil
	}
	var rows []struct {
		Application string
		Events      int64
		Oldest      int64
	}
	err := c.query(ctx, &rows, "SELECT application, COUNT(*) AS events, MIN(at) AS oldest FROM events WHERE owner = ? AND id > ? AND level IN (?) GROUP BY application",
		c.owner, w.Seen, bun.In(w.levels()))
	for _, r := range rows {
		if !w.about(r.Application) {
			continue
		}
		w.Pending += r.Events
		if at := time.Unix(0, r.Oldest); w.Oldest == nil || at.Before(*w.Oldest) {
			w.Oldest = &at
		}
	}
	return wrap(err, "count what waits for webhook %s", w.Name)
}

// Taken records that an event was taken, and that those before it are not wanted, by who knows the webhook as w: recorded twice, it is once. If
// the event was counted as missed meanwhile, it is not any more.
func (c *Catalog) Taken(ctx context.Context, w Webhook, event int64) error {
	return wrap(c.exec(ctx, `UPDATE webhooks SET missed = CASE WHEN seen >= ?0 AND missed > 0 THEN missed - 1 ELSE missed END, seen = CASE WHEN seen < ?0 THEN ?0 ELSE seen END,
		delivered = delivered + 1, last = ?1, failing = 0, error = '' WHERE owner = ?2 AND name = ?3 AND delivered = ?4`, event, c.now().UnixNano(), c.owner, w.Name, w.Delivered),
		"record a delivery to webhook %s", w.Name)
}

// Unwanted records that no event up to a number is wanted any more that was not taken.
func (c *Catalog) Unwanted(ctx context.Context, name string, event int64) error {
	return wrap(c.exec(ctx, "UPDATE webhooks SET seen = ? WHERE owner = ? AND name = ? AND seen < ?", event, c.owner, name, event), "record how far webhook %s is", name)
}

// ToldMissed records that the receiver was told of the events that it missed, by who knows the webhook as w: recorded twice, it is once.
func (c *Catalog) ToldMissed(ctx context.Context, w Webhook) error {
	return wrap(c.exec(ctx, "UPDATE webhooks SET missed = missed - ?, delivered = delivered + 1, last = ?, failing = 0, error = '' WHERE owner = ? AND name = ? AND delivered = ?",
		w.Missed, c.now().UnixNano(), c.owner, w.Name, w.Delivered), "record a delivery to webhook %s", w.Name)
}

// NotTaken records that an attempt failed, and why.
func (c *Catalog) NotTaken(ctx context.Context, name, why string) error {
	return wrap(c.exec(ctx, "UPDATE webhooks SET failed = failed + 1, failing = CASE WHEN failing = 0 THEN ? ELSE failing END, error = ? WHERE owner = ? AND name = ?",
		c.now().UnixNano(), why, c.owner, name), "record a failure of webhook %s", name)
}

// ForgetEvents forgets all events but the newest, of which it keeps so many, and returns how many it forgot. Webhooks that waited for some of them have them
// counted as missed, in the same transaction.
func (c *Catalog) ForgetEvents(ctx context.Context, keep int) (n int64, err error) {
	err = c.tx(ctx, "forget old events", func(ctx context.Context, tx bun.Tx) error {
		var last int64 // that is forgotten
		err := tx.NewRaw("SELECT id FROM events WHERE owner = ? ORDER BY id DESC LIMIT 1 OFFSET ?", c.owner, keep).Scan(ctx, &last)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		var rows []webhookRow
		if err := tx.NewRaw("SELECT * FROM webhooks WHERE owner = ? AND seen < ? AND NOT disabled"+c.holding(), c.owner, last).Scan(ctx, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			if err := c.miss(ctx, tx, r, last); err != nil {
				return err
			}
		}
		res, err := tx.NewRaw("DELETE FROM events WHERE owner = ? AND id <= ?", c.owner, last).Exec(ctx)
		if err == nil {
			n, err = res.RowsAffected()
		}
		return err
	})
	return n, err
}

// miss counts the events up to the last that is forgotten which a webhook waits for.
func (c *Catalog) miss(ctx context.Context, tx bun.Tx, r webhookRow, last int64) error {
	w, err := r.webhook()
	if err != nil {
		return err
	}
	var rows []struct {
		Application string
		Events      int64
	}
	err = tx.NewRaw("SELECT application, COUNT(*) AS events FROM events WHERE owner = ? AND id > ? AND id <= ? AND level IN (?) GROUP BY application",
		c.owner, r.Seen, last, bun.In(w.levels())).Scan(ctx, &rows)
	if err != nil {
		return err
	}
	missed := int64(0)
	for _, x := range rows {
		if w.about(x.Application) {
			missed += x.Events
		}
	}
	_, err = tx.NewRaw("UPDATE webhooks SET missed = missed + ?, seen = ? WHERE owner = ? AND name = ?", missed, last, c.owner, r.Name).Exec(ctx)
	return err
}
