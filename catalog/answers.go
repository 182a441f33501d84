package catalog

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// Answer is what a request that made something was answered, kept for who asks again with the same key.
type Answer struct {
	Status   int
	Media    string // its media type
	Location string // of what was made
	Body     string
}

// Asked is a request with a key that is known.
type Asked struct {
	Fingerprint string  // of what was asked for
	Server      string  // the process that answers it
	Answer      *Answer // nil: it is not answered yet
}

// AnswersLast is for how long keys and answers are kept.
const AnswersLast = 24 * time.Hour

// TakeKey records that a request with a key begins, and returns nil; it is the only one that is told so until [Catalog.ReleaseKey]. If
// there was such a request, it returns that.
func (c *Catalog) TakeKey(ctx context.Context, key, fingerprint, server string) (*Asked, error) {
	now := c.now()
	if err := c.exec(ctx, "DELETE FROM answers WHERE owner = ? AND asked < ?", c.owner, now.Add(-AnswersLast).UnixNano()); err != nil {
		return nil, wrap(err, "forget old answers")
	}
	var made int64
	err := c.do(ctx, func(ctx context.Context) error {
		done, err := c.write.NewRaw(`INSERT INTO answers (owner, key, fingerprint, server, status, media, location, body, asked)
			VALUES (?, ?, ?, ?, 0, '', '', '', ?) ON CONFLICT (owner, key) DO NOTHING`, c.owner, key, fingerprint, server, now.UnixNano()).Exec(ctx)
		if err == nil {
			made, err = done.RowsAffected()
		}
		return err
	})
	if err != nil || made == 1 {
		return nil, wrap(err, "record a request")
	}
	var known struct {
		Fingerprint, Server   string
		Status                int // 0: not answered
		Media, Location, Body string
	}
	err = c.query(ctx, &known, "SELECT fingerprint, server, status, media, location, body FROM answers WHERE owner = ? AND key = ?", c.owner, key)
	if errors.Is(err, sql.ErrNoRows) {
		return c.TakeKey(ctx, key, fingerprint, server) // it was released just now
	}
	if err != nil {
		return nil, wrap(err, "look up a request")
	}
	a := &Asked{Fingerprint: known.Fingerprint, Server: known.Server}
	if known.Status != 0 {
		a.Answer = &Answer{Status: known.Status, Media: known.Media, Location: known.Location, Body: known.Body}
	}
	return a, nil
}

// Answered records what the request with a key was answered.
func (c *Catalog) Answered(ctx context.Context, key string, a Answer) error {
	return wrap(c.exec(ctx, "UPDATE answers SET status = ?, media = ?, location = ?, body = ? WHERE owner = ? AND key = ?",
		a.Status, a.Media, a.Location, a.Body, c.owner, key), "record an answer")
}

// ReleaseKey forgets a key.
func (c *Catalog) ReleaseKey(ctx context.Context, key string) error {
	return wrap(c.exec(ctx, "DELETE FROM answers WHERE owner = ? AND key = ?", c.owner, key), "forget a request")
}
