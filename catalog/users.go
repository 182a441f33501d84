package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/uptrace/bun"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"tidemark"
	"tidemark/access"
)

type userRow struct {
	Name, Display, Issuer, Subject string
	Disabled                       bool
	Created                        int64
}

func (r userRow) user() tidemark.User {
	return tidemark.User{Name: r.Name, Display: r.Display, Issuer: r.Issuer, Subject: r.Subject, Disabled: r.Disabled, Created: time.Unix(0, r.Created)}
}

const selectUser = "SELECT name, display, issuer, subject, disabled, created FROM users"

// AddUser adds a user, who can do nothing before he has a grant. A name, or an
// identity of a provider, that is taken is an error of kind Conflict: nobody
// becomes another by having his name elsewhere.
func (c *Catalog) AddUser(ctx context.Context, u tidemark.User) error {
	if err := access.CheckUser(u.Name); err != nil {
		return err
	}
	if (u.Issuer == "") != (u.Subject == "") {
		return tidemark.Errorf(tidemark.Invalid, "a user of a provider has an issuer and a subject")
	}
	err := c.exec(ctx, "INSERT INTO users (name, id, display, password, issuer, subject, disabled, created) VALUES (?, ?, ?, '', ?, ?, ?, ?)",
		u.Name, rand.Text(), u.Display, u.Issuer, u.Subject, u.Disabled, time.Now().UnixNano())
	if unique(err) {
		return tidemark.Errorf(tidemark.Conflict, "there is a user %s already, or one with this identity of the provider", u.Name)
	}
	return wrap(err, "add user %s", u.Name)
}

// User returns a user.
func (c *Catalog) User(ctx context.Context, name string) (tidemark.User, error) {
	return c.oneUser(ctx, name, selectUser+" WHERE name = ?", name)
}

// UserOfProvider returns the user whom an OpenID provider knows as subject.
func (c *Catalog) UserOfProvider(ctx context.Context, issuer, subject string) (tidemark.User, error) {
	return c.oneUser(ctx, subject, selectUser+" WHERE issuer = ? AND subject = ? AND issuer <> ''", issuer, subject)
}

func (c *Catalog) oneUser(ctx context.Context, name, query string, args ...any) (tidemark.User, error) {
	var row userRow
	err := c.query(ctx, &row, query, args...)
	if errors.Is(err, sql.ErrNoRows) {
		return tidemark.User{}, noUser(name)
	}
	return row.user(), wrap(err, "look up user %s", name)
}

// IsUser reports whether the user who has a name is the one with that ID, whether he is disabled or not. What a user asked for that is done
// later keeps both: names are given again, and IDs never. An empty ID is that of who had the name when there were none.
func (c *Catalog) IsUser(ctx context.Context, name, id string) (bool, error) {
	var n int
	err := c.query(ctx, &n, "SELECT COUNT(*) FROM users WHERE name = ? AND id = ?", name, id)
	return n > 0, wrap(err, "look up user %s", name)
}

func noUser(name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no user %.140q", name).WithHint("`tidemark user ls` lists them")
}

// Users returns at most n users by name, from behind a name on.
func (c *Catalog) Users(ctx context.Context, after string, n int) ([]tidemark.User, error) {
	var rows []userRow
	if err := c.query(ctx, &rows, selectUser+" WHERE name > ? ORDER BY name LIMIT ?", after, n); err != nil {
		return nil, wrap(err, "list users")
	}
	list := make([]tidemark.User, len(rows))
	for i, r := range rows {
		list[i] = r.user()
	}
	return list, nil
}

// SetDisabled shuts a user out, or lets him in again. His sessions end; his
// tokens do not work while he is disabled.
func (c *Catalog) SetDisabled(ctx context.Context, name string, disabled bool) error {
	return c.changeUser(ctx, name, noUser(name), "UPDATE users SET disabled = ? WHERE name = ?", disabled, name)
}

// SetPassword stores the hash of a new password, or takes the password away if
// it is empty. His sessions end.
func (c *Catalog) SetPassword(ctx context.Context, name, hash string) error {
	return c.changeUser(ctx, name, noUser(name), "UPDATE users SET password = ? WHERE name = ?", hash, name)
}

// ChangePassword is [Catalog.SetPassword] for somebody who has shown that he
// knows the password with the hash old. If that is not the user's any more, or he
// is disabled, the error is of kind Conflict.
func (c *Catalog) ChangePassword(ctx context.Context, name, old, hash string) error {
	return c.changeUser(ctx, name, passwordChanged(name), "UPDATE users SET password = ? WHERE name = ? AND password = ? AND NOT disabled", hash, name, old)
}

// RenewPassword stores another hash of the same password, unless it was changed meanwhile.
func (c *Catalog) RenewPassword(ctx context.Context, name, old, hash string) error {
	err := c.exec(ctx, "UPDATE users SET password = ? WHERE name = ? AND password = ?", hash, name, old)
	return wrap(err, "renew the password of user %s", name)
}

// changeUser changes one row, or else returns none, and ends the user's sessions.
func (c *Catalog) changeUser(ctx context.Context, name string, none error, statement string, args ...any) error {
	return c.tx(ctx, "change user "+name, func(ctx context.Context, tx bun.Tx) error {
		if err := exactlyOne(tx.NewRaw(statement, args...).Exec(ctx))(none); err != nil {
			return err
		}
		_, err := tx.NewRaw("DELETE FROM sessions WHERE user_name = ?", name).Exec(ctx)
		return err
	})
}

// Password returns the hash of a user's password: empty if there is no such
// user, or he has none, or is disabled. Whoever compares cannot tell which.
func (c *Catalog) Password(ctx context.Context, name string) (string, error) {
	var hash string
	err := c.query(ctx, &hash, "SELECT password FROM users WHERE name = ? AND NOT disabled", name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return hash, wrap(err, "look up a password")
}

// RemoveUser removes a user with his grants, tokens, sessions, memberships and
// what was shared with him, so that a later one of that name inherits nothing.
// Of jobs and workflows, his ID tells the two apart.
// While something belongs to him, the error is of kind Conflict.
func (c *Catalog) RemoveUser(ctx context.Context, name string) error {
	res, err := c.counted(ctx, "DELETE FROM users WHERE name = ?", name)
	if dangling(err) {
		return tidemark.Errorf(tidemark.Conflict, "clones, mounts or exports belong to user %s", name).WithHint("remove them, or hand them over to somebody; to shut him out at once, disable him")
	}
	return wrap(exactlyOne(res, err)(noUser(name)), "remove user %s", name)
}

// HandOver makes everything that belongs to a user belong to another.
func (c *Catalog) HandOver(ctx context.Context, from, to string) error {
	err := c.exec(ctx, "UPDATE objects SET owner = ? WHERE owner = ?", to, from)
	if dangling(err) {
		return noUser(to)
	}
	return wrap(err, "hand over what belongs to user %s", from)
}

// AddGroup adds a group of users. A group of a provider that was not added here counts for nothing.
func (c *Catalog) AddGroup(ctx context.Context, name string) error {
	if err := access.CheckGroup(name); err != nil {
		return err
	}
	err := c.exec(ctx, "INSERT INTO user_groups (name, created) VALUES (?, ?)", name, time.Now().UnixNano())
	if unique(err) {
		return tidemark.Errorf(tidemark.Conflict, "there is a group %s already", name)
	}
	return wrap(err, "add group %s", name)
}

// RemoveGroup removes a group with its grants and what was shared with it.
func (c *Catalog) RemoveGroup(ctx context.Context, name string) error {
	res, err := c.counted(ctx, "DELETE FROM user_groups WHERE name = ?", name)
	return wrap(exactlyOne(res, err)(noGroup(name)), "remove group %s", name)
}

func noGroup(name string) error {
	return tidemark.Errorf(tidemark.NotFound, "there is no group %.140q of users", name).WithHint("`tidemark usergroup ls` lists them")
}

// Groups returns the names of all groups of users.
func (c *Catalog) Groups(ctx context.Context) ([]string, error) {
	var names []string
	err := c.query(ctx, &names, "SELECT name FROM user_groups ORDER BY name")
	return names, wrap(err, "list groups of users")
}

// Members returns the users of a group.
func (c *Catalog) Members(ctx context.Context, group string) ([]string, error) {
	var names []string
	err := c.query(ctx, &names, "SELECT DISTINCT user_name FROM memberships WHERE group_name = ? ORDER BY user_name", group)
	return names, wrap(err, "list the members of group %s", group)
}

// Join makes a user a member of a group; that he is one already is no error.
func (c *Catalog) Join(ctx context.Context, group, user string) error {
	err := c.exec(ctx, "INSERT INTO memberships (group_name, user_name, provided) VALUES (?, ?, FALSE) ON CONFLICT DO NOTHING", group, user)
	if dangling(err) {
		return tidemark.Errorf(tidemark.NotFound, "there is no group %.140q, or no user %.140q", group, user).WithHint("`tidemark usergroup ls` and `tidemark user ls` list them")
	}
	return wrap(err, "make user %s a member of group %s", user, group)
}

// Leave takes a user out of a group, whoever put him there. Where his provider did, it may do so again at his next login.
func (c *Catalog) Leave(ctx context.Context, group, user string) error {
	err := c.exec(ctx, "DELETE FROM memberships WHERE group_name = ? AND user_name = ?", group, user)
	return wrap(err, "take user %s out of group %s", user, group)
}

// SetProvidedGroups puts a user into those groups that his provider names and
// that exist, and out of those that it named before and does not name any more.
func (c *Catalog) SetProvidedGroups(ctx context.Context, user string, groups []string) error {
	return c.tx(ctx, "store the groups of user "+user, func(ctx context.Context, tx bun.Tx) error {
		if _, err := tx.NewRaw("DELETE FROM memberships WHERE user_name = ? AND provided", user).Exec(ctx); err != nil {
			return err
		}
		for _, g := range slices.Compact(slices.Sorted(slices.Values(groups))) {
			_, err := tx.NewRaw("INSERT INTO memberships (group_name, user_name, provided) SELECT name, ?, TRUE FROM user_groups WHERE name = ? ON CONFLICT DO NOTHING", user, g).Exec(ctx)
			if dangling(err) {
				return noUser(user)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// exactlyOne takes what Exec returns, and then the error to return if no row was changed.
func exactlyOne(res sql.Result, err error) func(none error) error {
	return func(none error) error {
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n > 0 {
			return err
		}
		return none
	}
}

// dangling reports whether err says that a row refers to one that is not there, or is referred to.
func dangling(err error) bool {
	var s *sqlite.Error
	var p *pgconn.PgError
	return errors.As(err, &s) && s.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY || errors.As(err, &p) && p.Code == "23503"
}
