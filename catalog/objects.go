package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect"

	"tidemark"
	"tidemark/access"
)

type objectRow struct {
	Kind, Name, Owner, Source, Host string
	Published                       bool
}

const selectObject = "SELECT o.kind, o.name, COALESCE(o.owner, '') AS owner, o.source, o.host, o.published FROM objects AS o"

// PutObject stores what a decision has to know of an object, in place of what
// was there, with whom it is shared included. Its owner has to be a user. The
// point that is asked for is no part of it.
func (c *Catalog) PutObject(ctx context.Context, o access.Object) error {
	return c.tx(ctx, fmt.Sprintf("store whose %s %s is", o.Kind, o.Name), func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.NewRaw("DELETE FROM objects WHERE kind = ? AND name = ?", string(o.Kind), o.Name).Exec(ctx); err != nil {
			return err
		}
		var owner any
		if o.Owner != "" {
			owner = o.Owner
		}
		_, err := tx.NewRaw("INSERT INTO objects (kind, name, owner, source, host, published) VALUES (?, ?, ?, ?, ?, ?)",
			string(o.Kind), o.Name, owner, o.Source, o.Host, o.Published).Exec(ctx)
		if dangling(err) {
			return noUser(o.Owner)
		}
		if err != nil {
			return err
		}
		return insertParts(ctx, tx, o)
	})
}

// insertParts stores the lists of an object.
func insertParts(ctx context.Context, tx bun.Tx, o access.Object) error {
	for i, via := range o.Via {
		if _, err := tx.NewRaw("INSERT INTO object_via (kind, name, seq, via) VALUES (?, ?, ?, ?)", string(o.Kind), o.Name, i, via).Exec(ctx); err != nil {
			return err
		}
	}
	for _, m := range o.Members {
		if _, err := tx.NewRaw("INSERT INTO object_members (kind, name, member) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", string(o.Kind), o.Name, m).Exec(ctx); err != nil {
			return err
		}
	}
	for _, s := range o.Shared {
		if err := s.Check(); err != nil {
			return err
		}
		user, group := columns(s)
		_, err := tx.NewRaw("INSERT INTO shares (kind, name, user_name, group_name) VALUES (?, ?, ?, ?)", string(o.Kind), o.Name, user, group).Exec(ctx)
		if dangling(err) {
			return tidemark.Errorf(tidemark.NotFound, "there is no %s %q", s.Kind, s.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Object returns what a decision has to know of an object. The error is of
// kind NotFound if that was never stored.
func (c *Catalog) Object(ctx context.Context, k access.Kind, name string) (access.Object, error) {
	var r objectRow
	err := c.read.NewRaw(selectObject+" WHERE o.kind = ? AND o.name = ?", string(k), name).Scan(ctx, &r)
	if errors.Is(err, sql.ErrNoRows) {
		return access.Object{}, tidemark.Errorf(tidemark.NotFound, "there is no %s %q", k, name)
	}
	if err != nil {
		return access.Object{}, wrap(err, "look up whose %s %s is", k, name)
	}
	o := access.Object{Kind: k, Name: name, Owner: r.Owner, Source: r.Source, Host: r.Host, Published: r.Published}
	if err := c.read.NewRaw("SELECT via FROM object_via WHERE kind = ? AND name = ? ORDER BY seq", string(k), name).Scan(ctx, &o.Via); err != nil {
		return o, wrap(err, "look up what %s %s was made of", k, name)
	}
	if err := c.read.NewRaw("SELECT member FROM object_members WHERE kind = ? AND name = ? ORDER BY member", string(k), name).Scan(ctx, &o.Members); err != nil {
		return o, wrap(err, "look up the members of %s %s", k, name)
	}
	var shares []struct{ UserName, GroupName string }
	err = c.read.NewRaw("SELECT DISTINCT COALESCE(user_name, '') AS user_name, COALESCE(group_name, '') AS group_name FROM shares WHERE kind = ? AND name = ? ORDER BY 1, 2", string(k), name).Scan(ctx, &shares)
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
	_, err := c.write.NewRaw("DELETE FROM objects WHERE kind = ? AND name = ?", string(k), name).Exec(ctx)
	return wrap(err, "forget whose %s %s was", k, name)
}

// Copies returns how many clones and mounts belong to a user, for [access.Usage].
func (c *Catalog) Copies(ctx context.Context, user string) (n int, err error) {
	err = c.read.NewRaw("SELECT COUNT(*) FROM objects WHERE owner = ? AND kind IN (?, ?)", user, string(access.KindClone), string(access.KindMount)).Scan(ctx, &n)
	return n, wrap(err, "count what belongs to user %s", user)
}

// VisibleNames returns the names of at most n objects of a kind that a filter
// shows, by name, from behind a name on. It is one query, however many there are.
func (c *Catalog) VisibleNames(ctx context.Context, k access.Kind, f access.Filter, after string, n int) ([]string, error) {
	q := condition{sqlite: c.read.Dialect().Name() == dialect.SQLite, kind: k, filter: f}
	q.add("SELECT o.name FROM objects AS o WHERE o.kind = ? AND o.name > ? AND (", string(k), after)
	if f.All {
		q.add("TRUE")
	} else {
		q.any(len(f.Any), func(i int) { q.clause(f.Any[i]) })
	}
	q.add(") ORDER BY o.name LIMIT ?", n)
	var names []string
	err := c.read.NewRaw(q.text.String(), q.args...).Scan(ctx, &names)
	return names, wrap(err, "list what may be seen of kind %s", k)
}

// condition builds the SQL of a filter. It says what access.Clause does, and a test compares the two.
type condition struct {
	sqlite bool
	kind   access.Kind
	filter access.Filter
	text   strings.Builder
	args   []any
}

func (q *condition) add(text string, args ...any) {
	q.text.WriteString(text)
	q.args = append(q.args, args...)
}

// any is one of n conditions; of none, it is false. It halves them again and
// again, because SQLite takes expressions to a depth of 1000 only.
func (q *condition) any(n int, each func(i int)) { q.half(0, n, each) }

func (q *condition) half(from, to int, each func(i int)) {
	switch to - from {
	case 0:
		q.add("FALSE")
	case 1:
		each(from)
	default:
		middle := (from + to) / 2
		q.add("(")
		q.half(from, middle, each)
		q.add(" OR ")
		q.half(middle, to, each)
		q.add(")")
	}
}

func (q *condition) clause(c access.Clause) {
	q.add("(")
	q.scope(c.Scope)
	if len(c.Token) > 0 {
		q.add(" AND ")
		q.data(c.Token)
	}
	q.add(" AND ")
	q.level(c.Level)
	q.add(")")
}

func (q *condition) scope(s access.Scope) {
	switch s.Kind {
	case access.Everything:
		q.add("TRUE")
	case access.Applications:
		q.data(s.Names)
	case access.Hosts:
		q.host(s.Names)
	default:
		q.add("FALSE")
	}
}

// host is what a scope of hosts covers.
func (q *condition) host(names []access.Pattern) {
	switch q.kind {
	case access.KindHost:
		q.match("o.name", names)
	case access.KindApplication, access.KindClone, access.KindMount, access.KindExport, access.KindJob:
		q.add("(o.host <> '' AND ")
		q.match("o.host", names)
		q.add(")")
	default:
		q.add("FALSE")
	}
}

// data is what a scope of applications covers.
func (q *condition) data(names []access.Pattern) {
	const of = " WHERE p.kind = o.kind AND p.name = o.name"
	switch q.kind {
	case access.KindApplication:
		q.match("o.name", names)
	case access.KindGroup:
		q.add("(EXISTS (SELECT 1 FROM object_members AS p" + of + ") AND NOT EXISTS (SELECT 1 FROM object_members AS p" + of + " AND NOT ")
		q.match("p.member", names)
		q.add("))")
	case access.KindClone, access.KindMount, access.KindExport, access.KindJob:
		var exact []access.Pattern
		for _, n := range names {
			if n.Exact() {
				exact = append(exact, n)
			}
		}
		q.add("(o.source <> '' AND ")
		q.match("o.source", names)
		if q.kind == access.KindClone {
			q.add(" OR ")
			q.match("o.name", exact)
		}
		q.add(" OR EXISTS (SELECT 1 FROM object_via AS p" + of + " AND ")
		q.match("p.via", exact)
		q.add("))")
	default:
		q.add("FALSE")
	}
}

func (q *condition) level(l access.Level) {
	switch l {
	case access.All:
		q.add("TRUE")
	case access.Open:
		q.add("(o.owner IS NULL OR o.owner = ? OR o.published OR EXISTS (SELECT 1 FROM shares AS s WHERE s.kind = o.kind AND s.name = o.name AND (s.user_name = ? OR ", q.filter.User, q.filter.User)
		q.any(len(q.filter.Groups), func(i int) { q.add("s.group_name = ?", q.filter.Groups[i]) })
		q.add(")))")
	case access.Own:
		q.add("(o.owner = ?)", q.filter.User)
	default:
		q.add("FALSE")
	}
}

// match is access.Pattern.Match for one of several patterns.
func (q *condition) match(column string, patterns []access.Pattern) {
	q.any(len(patterns), func(i int) {
		p := string(patterns[i])
		switch {
		case patterns[i].Exact():
			q.add(column+" = ?", p)
		case q.sqlite:
			q.add(column+" GLOB ?", strings.ReplaceAll(p, "[", "[[]"))
		default:
			q.add(column+" LIKE ? ESCAPE '!'", strings.NewReplacer("!", "!!", "%", "!%", "_", "!_", "*", "%", "?", "_").Replace(p))
		}
	})
}
