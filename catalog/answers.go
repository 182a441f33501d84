package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"time"

	"github.com/uptrace/bun"
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

// Key is a key that a request has, or wants to have, for its own. What is recorded by it of a key that is another request's by now changes nothing.
type Key struct {
	Name   string // whose it is, and as the client chose it
	Server string // the process that answers the request
	holder string // the request, as nobody else is called
}

// NewKey returns the key of a request that begins.
func NewKey(name, server string) Key { return Key{Name: name, Server: server, holder: rand.Text()} }

// AnswersLast is for how long keys and answers are kept.
const AnswersLast = 24 * time.Hour

// TakeKey records that a request with a key begins, and returns nil; it is the only one that is told so until [Catalog.ReleaseKey]. If
// there was such a request, it returns that. To take a key once more that one has does no harm. If it fails, the key may be taken all the same: see [MayBeDone].
func (c *Catalog) TakeKey(ctx context.Context, k Key, fingerprint string) (*Asked, error) {
	now := c.now()
	if err := c.exec(ctx, "DELETE FROM answers WHERE owner = ? AND asked < ?", c.owner, now.Add(-AnswersLast).UnixNano()); err != nil {
		return nil, wrap(err, "forget old answers")
	}
	var made int64
	err := c.do(ctx, func(ctx context.Context) error {
		done, err := c.write.NewRaw(`INSERT INTO answers (owner, key, holder, fingerprint, server, status, media, location, body, asked)
			VALUES (?, ?, ?, ?, ?, 0, '', '', '', ?) ON CONFLICT (owner, key) DO NOTHING`, c.owner, k.Name, k.holder, fingerprint, k.Server, now.UnixNano()).Exec(ctx)
		if err == nil {
			made, err = done.RowsAffected()
		}
		return err
	})
	if err != nil || made == 1 {
		return nil, wrap(err, "record a request")
	}
	var known struct {
		Holder, Fingerprint, Server string
		Status                      int // 0: not answered
		Media, Location, Body       string
	}
	err = c.query(ctx, &known, "SELECT holder, fingerprint, server, status, media, location, body FROM answers WHERE owner = ? AND key = ?", c.owner, k.Name)
	if errors.Is(err, sql.ErrNoRows) {
		return c.TakeKey(ctx, k, fingerprint) // it was released just now
	}
	if err != nil {
		return nil, wrap(err, "look up a request")
	}
	a := &Asked{Fingerprint: known.Fingerprint, Server: known.Server}
	switch {
	case known.Status != 0:
		a.Answer = &Answer{Status: known.Status, Media: known.Media, Location: known.Location, Body: known.Body}
	case known.Holder == k.holder:
		return nil, nil // it was told so before, and did not hear it
	}
	return a, nil
}

// Answered records what the request that has a key was answered. To record it once more does no harm.
func (c *Catalog) Answered(ctx context.Context, k Key, a Answer) error {
	return wrap(c.exec(ctx, "UPDATE answers SET status = ?, media = ?, location = ?, body = ? WHERE owner = ? AND key = ? AND holder = ?",
		a.Status, a.Media, a.Location, a.Body, c.owner, k.Name, k.holder), "record an answer")
}

// ReleaseKey forgets a key, if the request has it. A job of which nobody knows whether the request has made it is withdrawn before: who asks
// again with the key does not have it done twice.
func (c *Catalog) ReleaseKey(ctx context.Context, k Key) error {
	if len(c.doubts.all()) > 0 {
		if err := c.changeQueue(ctx, func(context.Context, bun.Tx) error { return nil }); err != nil {
			return wrap(err, "withdraw jobs")
		}
	}
	return wrap(c.exec(ctx, "DELETE FROM answers WHERE owner = ? AND key = ? AND holder = ?", c.owner, k.Name, k.holder), "forget a request")
}
