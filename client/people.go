package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"tidemark"
	"tidemark/access"
)

// Login begins a session. What it returns has a secret.
func (c *Client) Login(ctx context.Context, l tidemark.Login) (i tidemark.Issued, err error) {
	return post[tidemark.Issued](ctx, c, "/v1/login", l)
}

// BeginDeviceLogin begins a login at the server's OpenID provider, which the user finishes in a browser.
func (c *Client) BeginDeviceLogin(ctx context.Context) (tidemark.DeviceLogin, error) {
	return post[tidemark.DeviceLogin](ctx, c, "/v1/login/device", nil)
}

// FinishDeviceLogin waits until the user has finished a login. What it returns has a secret.
func (c *Client) FinishDeviceLogin(ctx context.Context, l tidemark.DeviceLogin) (tidemark.Issued, error) {
	for {
		i, err := post[tidemark.Issued](ctx, c, "/v1/login/device/finish", tidemark.DeviceWait{Login: l.Login})
		if err != nil || i.Secret != "" {
			return i, err
		}
	}
}

// Logout ends the session whose secret the client has.
func (c *Client) Logout(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/logout", nil, nil)
}

// Self says who asks, and what was granted to him.
func (c *Client) Self(ctx context.Context) (access.Self, error) {
	return get[access.Self](ctx, c, "/v1/self")
}

// Authority returns the certificate by which clients know the server, as PEM.
func (c *Client) Authority(ctx context.Context) (string, error) { return c.text(ctx, "/v1/authority") }

// Tokens lists the API tokens of a user, by number; "" is oneself, and at the socket everybody.
func (c *Client) Tokens(ctx context.Context, user string) iter.Seq2[access.Token, error] {
	return list[access.Token](ctx, c, "/v1/tokens", only("user", user))
}

// MakeToken makes an API token. What it returns has its secret.
func (c *Client) MakeToken(ctx context.Context, spec access.TokenSpec) (tidemark.Issued, error) {
	return post[tidemark.Issued](ctx, c, "/v1/tokens", spec)
}

// RevokeToken ends an API token of a user; "" is oneself.
func (c *Client) RevokeToken(ctx context.Context, user string, id int64) error {
	return c.do(ctx, http.MethodDelete, path("/v1/tokens/%s", strconv.FormatInt(id, 10))+"?"+url.Values{"user": {user}}.Encode(), nil, nil)
}

// Users lists users, by name.
func (c *Client) Users(ctx context.Context) iter.Seq2[tidemark.User, error] {
	return list[tidemark.User](ctx, c, "/v1/users", nil)
}

// AddUser adds a user.
func (c *Client) AddUser(ctx context.Context, spec tidemark.UserSpec) (tidemark.User, error) {
	return post[tidemark.User](ctx, c, "/v1/users", spec)
}

// RemoveUser removes a user.
func (c *Client) RemoveUser(ctx context.Context, user string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/users/%s", user), nil, nil)
}

// ChangeUser shuts a user out, or lets him in again.
func (c *Client) ChangeUser(ctx context.Context, user string, change tidemark.UserChange) error {
	return c.do(ctx, http.MethodPatch, path("/v1/users/%s", user), change, nil)
}

// SetPassword sets a password.
func (c *Client) SetPassword(ctx context.Context, user string, change tidemark.PasswordChange) error {
	return c.do(ctx, http.MethodPut, path("/v1/users/%s/password", user), change, nil)
}

// UserGroups lists groups of users, by name.
func (c *Client) UserGroups(ctx context.Context) iter.Seq2[tidemark.UserGroup, error] {
	return list[tidemark.UserGroup](ctx, c, "/v1/user-groups", nil)
}

// AddUserGroup adds a group of users.
func (c *Client) AddUserGroup(ctx context.Context, group string) error {
	return c.do(ctx, http.MethodPut, path("/v1/user-groups/%s", group), nil, nil)
}

// RemoveUserGroup removes a group of users.
func (c *Client) RemoveUserGroup(ctx context.Context, group string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/user-groups/%s", group), nil, nil)
}

// JoinUserGroup puts a user into a group.
func (c *Client) JoinUserGroup(ctx context.Context, group, user string) error {
	return c.do(ctx, http.MethodPut, path("/v1/user-groups/%s/members/%s", group, user), nil, nil)
}

// LeaveUserGroup takes a user out of a group.
func (c *Client) LeaveUserGroup(ctx context.Context, group, user string) error {
	return c.do(ctx, http.MethodDelete, path("/v1/user-groups/%s/members/%s", group, user), nil, nil)
}

// Grants lists grants, by number.
func (c *Client) Grants(ctx context.Context) iter.Seq2[access.Grant, error] {
	return list[access.Grant](ctx, c, "/v1/grants", nil)
}

// AddGrant gives a user or group a role. The grant that is returned has a number.
func (c *Client) AddGrant(ctx context.Context, g access.Grant) (access.Grant, error) {
	return post[access.Grant](ctx, c, "/v1/grants", g)
}

// RemoveGrant takes a grant back.
func (c *Client) RemoveGrant(ctx context.Context, id int64) error {
	return c.do(ctx, http.MethodDelete, path("/v1/grants/%s", strconv.FormatInt(id, 10)), nil, nil)
}

// Audit lists who did what, newest first; what is empty does not narrow.
func (c *Client) Audit(ctx context.Context, user, object string) iter.Seq2[access.AuditRecord, error] {
	also := url.Values{}
	for k, v := range map[string]string{"user": user, "object": object} {
		if v != "" {
			also.Set(k, v)
		}
	}
	return list[access.AuditRecord](ctx, c, "/v1/audit", also)
}

// VerifyAudit checks that the audit holds together, and has what checkpoints of the server and copies of them that are given know of.
// There may be at most [access.MaxCopies] of those.
func (c *Client) VerifyAudit(ctx context.Context, copies ...access.CheckpointCopy) (access.AuditResult, error) {
	if len(copies) == 0 {
		return post[access.AuditResult](ctx, c, "/v1/audit/verify", nil)
	}
	return post[access.AuditResult](ctx, c, "/v1/audit/verify", access.CopiesSpec{Copies: copies})
}

// AuditCheckpoint returns a signed checkpoint of the audit, to be kept elsewhere.
func (c *Client) AuditCheckpoint(ctx context.Context) (access.CheckpointCopy, error) {
	return get[access.CheckpointCopy](ctx, c, "/v1/audit/checkpoint")
}

// ExtendClone says how long a clone lives from now on.
func (c *Client) ExtendClone(ctx context.Context, name string, e tidemark.Extension) (k tidemark.Clone, err error) {
	err = c.do(ctx, http.MethodPut, path("/v1/clones/%s/expiry", name), e, &k)
	return k, err
}

// ShareClone says with whom a clone is shared, and returns that, with what there is to say of it.
func (c *Client) ShareClone(ctx context.Context, name string, s access.ShareSpec) (now access.Shared, err error) {
	err = c.do(ctx, http.MethodPut, path("/v1/clones/%s/shares", name), s, &now)
	return now, err
}
