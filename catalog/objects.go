package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
)

// PutObject stores whose a clone, mount or export is, what it was made of, and with whom it is shared, in place of what was there. Its
// owner has to be a user, or nobody. Where it is, and what is asked of it, is not stored.
func (c *Catalog) PutObject(ctx context.Context, o access.Object) error {
	return c.tx(ctx, fmt.Sprintf("store whose %s %s is", o.Kind, o.Name), func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.NewRaw("DELETE FROM objects WHERE directory = ? AND kind = ? AND name = ?", c.owner, string(o.Kind), o.Name).Exec(ctx); err != nil {
			return err
		}
		var owner any
		if o.Owner != "" {
			owner = o.Owner
		}
		_, err := tx.NewRaw("INSERT INTO objects (directory, kind, name, owner, source) VALUES (?, ?, ?, ?, ?)", c.owner, string(o.Kind), o.Name, owner, o.Source).Exec(ctx)
		if dangling(err) {
			return noUser(o.Owner)
		}
		for i, via := range o.Via {
			if err == nil {
				_, err = tx.NewRaw("INSERT INTO object_via (directory, kind, name, seq, via) VALUES (?, ?, ?, ?, ?)", c.owner, string(o.Kind), o.Name, i, via).Exec(ctx)
			}
		}
		if err != nil {
			return err
		}
		return c.insertShares(ctx, tx, o)
	})
}

func (c *Catalog) insertShares(ctx context.Context, tx bun.Tx, o access.Object) error {
	for _, s := range o.Shared {
		if err := s.Check(); err != nil {
			return err
		}
		user, group := columns(s)
		_, err := tx.NewRaw("INSERT INTO shares (directory, kind, name, user_name, group_name) VALUES (?, ?, ?, ?, ?)", c.owner, string(o.Kind), o.Name, user, group).Exec(ctx)
		if dangling(err) {
			return tidemark.Errorf(tidemark.NotFound, "there is no %s %q", s.Kind, s.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Share changes with whom an object is shared, which has to be known. The error is of kind NotFound if somebody is not.
func (c *Catalog) Share(ctx context.Context, o access.Object) error {
	return c.tx(ctx, fmt.Sprintf("share %s %s", o.Kind, o.Name), func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.NewRaw("DELETE FROM shares WHERE directory = ? AND kind = ? AND name = ?", c.owner, string(o.Kind), o.Name).Exec(ctx); err != nil {
			return err
		}
		return c.insertShares(ctx, tx, o)
	})
}

// Object returns what was stored of an object. The error is of kind NotFound if nothing was.
func (c *Catalog) Object(ctx context.Context, k access.Kind, name string) (access.Object, error) {
	o := access.Object{Kind: k, Name: name}
	var row struct{ Owner, Source string }
	err := c.query(ctx, &row, "SELECT COALESCE(owner, '') AS owner, source FROM objects WHERE directory = ? AND kind = ? AND name = ?", c.owner, string(k), name)
	if errors.Is(err, sql.ErrNoRows) {
		return o, tidemark.Errorf(tidemark.NotFound, "there is no %s %q", k, name)
	}
	if err != nil {
		return o, wrap(err, "look up whose %s %s is", k, name)
	}
	o.Owner, o.Source = row.Owner, row.Source
	if err := c.query(ctx, &o.Via, "SELECT via FROM object_via WHERE directory = ? AND kind = ? AND name = ? ORDER BY seq", c.owner, string(k), name); err != nil {
		return o, wrap(err, "look up what %s %s was made of", k, name)
	}
	var shares []struct{ UserName, GroupName string }
	err = c.query(ctx, &shares, `SELECT DISTINCT COALESCE(user_name, '') AS user_name, COALESCE(group_name, '') AS group_name FROM shares
		WHERE directory = ? AND kind = ? AND name = ? ORDER BY 1, 2`, c.owner, string(k), name)
	for _, s := range shares {
		subject := access.Subject{Kind: access.User, Name: s.UserName}
		if s.GroupName != "" {
			subject = access.Subject{Kind: access.Group, Name: s.GroupName}
		}
		o.Shared = append(o.Shared, subject)
	}
	return o, wrap(err, "look up with whom %s %s is shared", k, name)
}

// DeleteObject forgets whose an object was; that it is not known is no error.
func (c *Catalog) DeleteObject(ctx context.Context, k access.Kind, name string) error {
	return wrap(c.exec(ctx, "DELETE FROM objects WHERE directory = ? AND kind = ? AND name = ?", c.owner, string(k), name), "forget whose %s %s was", k, name)
}

// Copies returns the names of the clones and mounts that belong to a user.
func (c *Catalog) Copies(ctx context.Context, user string) (names []string, err error) {
	err = c.query(ctx, &names, "SELECT name FROM objects WHERE directory = ? AND owner = ? AND kind IN (?, ?) ORDER BY name", c.owner, user, string(access.KindClone), string(access.KindMount))
	return names, wrap(err, "list what belongs to user %s", user)
}
