package control

import (
	"context"

	"tidemark/catalog"
)

// Who asks on a full disk is answered all the same: to make room is a request as well. So these use the reserve, as jobs do.

// TakeKey records that a request with a key begins: see [catalog.Catalog.TakeKey].
func (c *Control) TakeKey(ctx context.Context, key, fingerprint, server string) (*catalog.Asked, error) {
	a, err := c.catalog.TakeKey(ctx, key, fingerprint, server)
	if err != nil && c.giveReserve(err) {
		a, err = c.catalog.TakeKey(ctx, key, fingerprint, server)
	}
	return a, err
}

// Answered records what the request with a key was answered.
func (c *Control) Answered(ctx context.Context, key string, a catalog.Answer) error {
	err := c.catalog.Answered(ctx, key, a)
	if err != nil && c.giveReserve(err) {
		err = c.catalog.Answered(ctx, key, a)
	}
	return err
}

// ReleaseKey forgets the key of a request.
func (c *Control) ReleaseKey(ctx context.Context, key string) error {
	return c.catalog.ReleaseKey(ctx, key)
}
