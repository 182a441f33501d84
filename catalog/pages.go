package catalog

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
)

// Events returns the newest n events, newest first.
func (c *Catalog) Events(ctx context.Context, n int) ([]tidemark.Event, error) {
	return c.EventsBefore(ctx, 0, n)
}

// EventsBefore returns the newest n events whose numbers are below before, newest first; 0 stands for no bound.
func (c *Catalog) EventsBefore(ctx context.Context, before int64, n int) ([]tidemark.Event, error) {
	if before == 0 {
		return c.events(ctx, "ORDER BY id DESC LIMIT ?", n)
	}
	return c.events(ctx, "AND id < ? ORDER BY id DESC LIMIT ?", before, n)
}

// EventsAfter returns the oldest n events whose numbers are above after, oldest first.
func (c *Catalog) EventsAfter(ctx context.Context, after int64, n int) ([]tidemark.Event, error) {
	return c.events(ctx, "AND id > ? ORDER BY id LIMIT ?", after, n)
}

func (c *Catalog) events(ctx context.Context, which string, args ...any) ([]tidemark.Event, error) {
	var rows []struct {
		ID          int64
		At          int64
		Level       string
		Application string
		FirstID     string
		Message     string
	}
	err := c.query(ctx, &rows, "SELECT id, at, level, application, first_id, message FROM events WHERE owner = ? "+which, append([]any{c.owner}, args...)...)
	list := make([]tidemark.Event, 0, len(rows))
	for _, r := range rows {
		list = append(list, tidemark.Event{ID: r.ID, Time: time.Unix(0, r.At), Level: r.Level, Application: r.Application, FirstID: r.FirstID, Message: r.Message})
	}
	return list, wrap(err, "list events")
}

// Named returns what is stored of a sort under some of these names, by name.
func Named[T any](ctx context.Context, c *Catalog, k Kept, names []string) (map[string]T, error) {
	found := map[string]T{}
	for part := range slices.Chunk(names, 500) { // a query takes some thousand values at most
		var rows []struct{ Name, Body string }
		err := c.query(ctx, &rows, "SELECT name, body FROM things WHERE owner = ? AND kind = ? AND name IN (?)", c.owner, k, bun.In(part))
		if err != nil {
			return nil, wrap(err, "look up %ss", k)
		}
		for _, r := range rows {
			var v T
			if err := json.Unmarshal([]byte(r.Body), &v); err != nil {
				return nil, tidemark.Errorf(tidemark.Corrupt, "an entry of the catalog cannot be read: %w", err)
			}
			found[r.Name] = v
		}
	}
	return found, nil
}
