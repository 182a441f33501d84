package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
)

type grantRow struct {
	ID                                  int64
	UserName, GroupName                 string
	Role, ScopeKind, ScopeNames, Limits string
}

const selectGrant = "SELECT id, COALESCE(user_name, '') AS user_name, COALESCE(group_name, '') AS group_name, role, scope_kind, scope_names, limits FROM grants"

func (r grantRow) grant() (g access.Grant, err error) {
	g = access.Grant{ID: r.ID, Role: access.Role(r.Role), Subject: access.Subject{Kind: access.User, Name: r.UserName}, Scope: access.Scope{Kind: access.ScopeKind(r.ScopeKind)}}
	if r.GroupName != "" {
		g.Subject = access.Subject{Kind: access.Group, Name: r.GroupName}
	}
	if err := json.Unmarshal([]byte(r.ScopeNames), &g.Scope.Names); err != nil {
		return g, unreadable("grant", r.ID)
	}
	if err := json.Unmarshal([]byte(r.Limits), &g.Limits); err != nil {
		return g, unreadable("grant", r.ID)
	}
	return g, nil
}

func unreadable(what string, id int64) error {
	return tidemark.Errorf(tidemark.Corrupt, "%s %d of the catalog cannot be read", what, id)
}

// AddGrant stores a grant, and returns its number. The user or group has to exist.
func (c *Catalog) AddGrant(ctx context.Context, g access.Grant) (int64, error) {
	if err := g.Check(); err != nil {
		return 0, err
	}
	names, err := json.Marshal(g.Scope.Names)
	if err != nil {
		return 0, err
	}
	limits, err := json.Marshal(g.Limits)
	if err != nil {
		return 0, err
	}
	user, group := columns(g.Subject)
	var id int64
	err = c.do(impatient(ctx), func(ctx context.Context) error {
		return c.write.NewRaw("INSERT INTO grants (user_name, group_name, role, scope_kind, scope_names, limits, created) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id",
			user, group, string(g.Role), string(g.Scope.Kind), string(names), string(limits), time.Now().UnixNano()).Scan(ctx, &id)
	})
	if dangling(err) {
		return 0, tidemark.Errorf(tidemark.NotFound, "there is no %s %q", g.Subject.Kind, g.Subject.Name).WithHint("`tidemark user ls` and `tidemark usergroup ls` list them")
	}
	return id, wrap(err, "store a grant")
}

// columns are the two columns that a subject is stored in. One is NULL.
func columns(s access.Subject) (user, group any) {
	if s.Kind == access.Group {
		return nil, s.Name
	}
	return s.Name, nil
}

// RemoveGrant takes a grant back. It no longer counts for whatever is decided after this.
func (c *Catalog) RemoveGrant(ctx context.Context, id int64) error {
	res, err := c.counted(ctx, "DELETE FROM grants WHERE id = ?", id)
	return wrap(exactlyOne(res, err)(tidemark.Errorf(tidemark.NotFound, "there is no grant %d", id).WithHint("`tidemark grant ls` lists them")), "remove grant %d", id)
}

// Grants returns at most n grants, from behind a number on.
func (c *Catalog) Grants(ctx context.Context, after int64, n int) ([]access.Grant, error) {
	return c.grants(ctx, selectGrant+" WHERE id > ? ORDER BY id LIMIT ?", after, n)
}

func (c *Catalog) grants(ctx context.Context, query string, args ...any) ([]access.Grant, error) {
	var rows []grantRow
	if err := c.query(ctx, &rows, query, args...); err != nil {
		return nil, wrap(err, "look up grants")
	}
	list := make([]access.Grant, len(rows))
	for i, r := range rows {
		var err error
		if list[i], err = r.grant(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Principal returns a user who has proved by a method that he is one, with his
// groups and all grants that are for him. One who is disabled is refused as if he were not there.
func (c *Catalog) Principal(ctx context.Context, user string, by access.Method) (access.Principal, []access.Grant, error) {
	p := access.Principal{User: user, Method: by}
	err := c.query(ctx, &p.UserID, "SELECT id FROM users WHERE name = ? AND NOT disabled", user)
	if errors.Is(err, sql.ErrNoRows) {
		return access.Principal{}, nil, notLoggedIn()
	}
	if err != nil {
		return access.Principal{}, nil, wrap(err, "look up a user")
	}
	if err := c.query(ctx, &p.Groups, "SELECT DISTINCT group_name FROM memberships WHERE user_name = ? ORDER BY group_name", user); err != nil {
		return access.Principal{}, nil, wrap(err, "look up the groups of user %s", user)
	}
	grants, err := c.grants(ctx, selectGrant+" WHERE user_name = ? OR group_name IN (SELECT group_name FROM memberships WHERE user_name = ?) ORDER BY id", user, user)
	if err != nil {
		return access.Principal{}, nil, err
	}
	return p, grants, nil
}

// notLoggedIn is the one answer to every secret that is none, whatever the reason.
func notLoggedIn() error {
	return tidemark.Errorf(tidemark.Denied, "this token or session is not known, or is over").WithHint("log in again, or make a new token")
}

type tokenRow struct {
	ID                                  int64
	UserName, Name, Roles, Applications string
	Created, Expires, Used              int64
}

const selectToken = "SELECT id, user_name, name, roles, applications, created, expires, used FROM tokens"

func (r tokenRow) token() (access.Token, error) {
	t := access.Token{ID: r.ID, User: r.UserName, Name: r.Name, Created: time.Unix(0, r.Created), Expires: time.Unix(0, r.Expires)}
	if r.Used != 0 {
		t.Used = time.Unix(0, r.Used)
	}
	if err := json.Unmarshal([]byte(r.Roles), &t.Roles); err != nil {
		return t, unreadable("token", r.ID)
	}
	if err := json.Unmarshal([]byte(r.Applications), &t.Applications); err != nil {
		return t, unreadable("token", r.ID)
	}
	return t, nil
}

// AddToken stores an API token by the hash of its secret, and returns its
// number. A user has no two tokens of one name. session is that of who asks for
// it, by the hash of its secret; zero: he has none, as at the socket. If it has
// ended, as by a new password, the error is of kind Denied.
func (c *Catalog) AddToken(ctx context.Context, t access.Token, h, session access.Hash) (int64, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	roles, err := json.Marshal(t.Roles)
	if err != nil {
		return 0, err
	}
	applications, err := json.Marshal(t.Applications)
	if err != nil {
		return 0, err
	}
	var id int64
	err = c.tx(ctx, "store a token", func(ctx context.Context, tx bun.Tx) error {
		if err := holdSession(ctx, tx, session); err != nil {
			return err
		}
		return tx.NewRaw("INSERT INTO tokens (user_name, name, hash, roles, applications, created, expires, used) VALUES (?, ?, ?, ?, ?, ?, ?, 0) RETURNING id",
			t.User, t.Name, h.String(), string(roles), string(applications), t.Created.UnixNano(), t.Expires.UnixNano()).Scan(ctx, &id)
	})
	switch {
	case unique(err):
		return 0, tidemark.Errorf(tidemark.Conflict, "user %s has a token %s already", t.User, t.Name)
	case dangling(err):
		return 0, noUser(t.User)
	}
	return id, err
}

// hold keeps a user as he is until the transaction ends, if he is not disabled and the condition holds of him; else it returns none.
// Who changes him, and then ends his sessions, waits meanwhile, or was waited for.
func hold(ctx context.Context, tx bun.Tx, none error, condition string, args ...any) error {
	return exactlyOne(tx.NewRaw("UPDATE users SET disabled = disabled WHERE NOT disabled AND "+condition, args...).Exec(ctx))(none)
}

// holdSession returns an error unless a session is there, which no change of its user ends before the transaction does. Of the zero hash
// there is nothing to hold.
func holdSession(ctx context.Context, tx bun.Tx, session access.Hash) error {
	if session == (access.Hash{}) {
		return nil
	}
	if err := hold(ctx, tx, notLoggedIn(), "name = (SELECT user_name FROM sessions WHERE hash = ?)", session.String()); err != nil {
		return err
	}
	var there bool // still, now that who was about to end it has done so
	err := tx.NewRaw("SELECT EXISTS (SELECT 1 FROM sessions WHERE hash = ?)", session.String()).Scan(ctx, &there)
	if err == nil && !there {
		err = notLoggedIn()
	}
	return err
}

// ByToken returns the principal whom the secret with this hash belongs to, and
// his grants. The error is of kind Denied, and the same, whether the token is not
// known, has expired, or its user is disabled.
func (c *Catalog) ByToken(ctx context.Context, h access.Hash, now time.Time) (access.Principal, []access.Grant, error) {
	var row tokenRow
	err := c.query(ctx, &row, selectToken+" WHERE hash = ?", h.String())
	if errors.Is(err, sql.ErrNoRows) || err == nil && now.UnixNano() >= row.Expires {
		return access.Principal{}, nil, notLoggedIn()
	}
	if err != nil {
		return access.Principal{}, nil, wrap(err, "look up a token")
	}
	t, err := row.token()
	if err != nil {
		return access.Principal{}, nil, err
	}
	p, grants, err := c.Principal(ctx, t.User, access.ByToken)
	if err != nil {
		return access.Principal{}, nil, err
	}
	p.Token = &t
	return p, grants, c.used(ctx, "tokens", t.ID, row.Used, now)
}

// used notes when a secret was used, at most once a minute: reading is not to become writing.
func (c *Catalog) used(ctx context.Context, table string, id, before int64, now time.Time) error {
	if now.UnixNano()-before < int64(time.Minute) {
		return nil
	}
	err := c.exec(ctx, fmt.Sprintf("UPDATE %s SET used = ? WHERE id = ? AND used < ?", table), now.UnixNano(), id, now.UnixNano())
	return wrap(err, "note the use of a secret")
}

// Tokens returns at most n tokens of a user, or of all if that is empty, from behind a number on.
func (c *Catalog) Tokens(ctx context.Context, user string, after int64, n int) ([]access.Token, error) {
	var rows []tokenRow
	if err := c.query(ctx, &rows, selectToken+" WHERE (user_name = ? OR ? = '') AND id > ? ORDER BY id LIMIT ?", user, user, after, n); err != nil {
		return nil, wrap(err, "list tokens")
	}
	list := make([]access.Token, len(rows))
	for i, r := range rows {
		var err error
		if list[i], err = r.token(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// RevokeToken ends a token of a user, or of anybody if that is empty.
func (c *Catalog) RevokeToken(ctx context.Context, user string, id int64) error {
	res, err := c.counted(ctx, "DELETE FROM tokens WHERE id = ? AND (user_name = ? OR ? = '')", id, user, user)
	return wrap(exactlyOne(res, err)(tidemark.Errorf(tidemark.NotFound, "there is no such token: %d", id).WithHint("`tidemark token ls` lists yours, and with --user NAME those of somebody else")), "revoke token %d", id)
}

type sessionRow struct {
	ID                           int64
	UserName, Method, Address    string
	Created, Expires, Used, Idle int64
}

const selectSession = "SELECT id, user_name, method, address, created, expires, used, idle FROM sessions"

func (r sessionRow) session() access.Session {
	return access.Session{ID: r.ID, User: r.UserName, Method: access.Method(r.Method), Address: r.Address, Created: time.Unix(0, r.Created),
		Expires: time.Unix(0, r.Expires), Used: time.Unix(0, r.Used), Idle: time.Duration(r.Idle)}
}

// AddSession stores a session by the hash of its secret, and returns its number.
// password is what [Catalog.Password] returned, and the password that somebody
// knows was compared with, for a session that begins so: if the user has
// another one by now, or is disabled, the error is of kind Conflict. A user of a
// provider who is disabled, or not there, is an error of kind Denied.
func (c *Catalog) AddSession(ctx context.Context, s access.Session, password string, h access.Hash) (id int64, err error) {
	none, condition, args := tidemark.Errorf(tidemark.Denied, "the user %.140q is shut out", s.User), "name = ?", []any{s.User}
	switch s.Method {
	case access.ByPassword:
		none, condition, args = passwordChanged(s.User), "name = ? AND password = ? AND password <> ''", []any{s.User, password}
	case access.ByOIDC:
	default:
		return 0, tidemark.Errorf(tidemark.Invalid, "a session begins with a password or at a provider")
	}
	err = c.tx(ctx, "store a session", func(ctx context.Context, tx bun.Tx) error {
		if err := hold(ctx, tx, none, condition, args...); err != nil {
			return err
		}
		return tx.NewRaw("INSERT INTO sessions (user_name, hash, method, address, created, expires, used, idle) VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
			s.User, h.String(), string(s.Method), s.Address, s.Created.UnixNano(), s.Expires.UnixNano(), s.Used.UnixNano(), int64(s.Idle)).Scan(ctx, &id)
	})
	return id, err
}

// passwordChanged says that a password was changed while one was compared with it, or that its user was shut out.
func passwordChanged(user string) *tidemark.Error {
	return tidemark.Errorf(tidemark.Conflict, "the password of user %.140q was changed meanwhile", user).WithHint("try again")
}

// BySession returns the principal whose session has the secret with this hash, and his grants. Errors are those of [Catalog.ByToken].
func (c *Catalog) BySession(ctx context.Context, h access.Hash, now time.Time) (access.Principal, []access.Grant, error) {
	var row sessionRow
	err := c.query(ctx, &row, selectSession+" WHERE hash = ?", h.String())
	if errors.Is(err, sql.ErrNoRows) || err == nil && !row.session().Valid(now) {
		return access.Principal{}, nil, notLoggedIn()
	}
	if err != nil {
		return access.Principal{}, nil, wrap(err, "look up a session")
	}
	p, grants, err := c.Principal(ctx, row.UserName, access.Method(row.Method))
	if err != nil {
		return access.Principal{}, nil, err
	}
	return p, grants, c.used(ctx, "sessions", row.ID, row.Used, now)
}

// Sessions returns the sessions of a user, the newest first.
func (c *Catalog) Sessions(ctx context.Context, user string) ([]access.Session, error) {
	var rows []sessionRow
	if err := c.query(ctx, &rows, selectSession+" WHERE user_name = ? ORDER BY id DESC", user); err != nil {
		return nil, wrap(err, "list sessions")
	}
	list := make([]access.Session, len(rows))
	for i, r := range rows {
		list[i] = r.session()
	}
	return list, nil
}

// EndSessionOf ends the session of a secret; that there is none is no error.
func (c *Catalog) EndSessionOf(ctx context.Context, h access.Hash) error {
	return wrap(c.exec(ctx, "DELETE FROM sessions WHERE hash = ?", h.String()), "end a session")
}

// SweepSecrets forgets sessions and tokens that are over.
func (c *Catalog) SweepSecrets(ctx context.Context, now time.Time) error {
	err := c.exec(ctx, "DELETE FROM sessions WHERE expires <= ? OR used + idle < ?", now.UnixNano(), now.UnixNano())
	if err != nil {
		return wrap(err, "forget old sessions")
	}
	err = c.exec(ctx, "DELETE FROM tokens WHERE expires <= ?", now.UnixNano())
	return wrap(err, "forget old tokens")
}
