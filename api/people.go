package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/control"
)

// How long a session lasts, and unused.
const (
	sessionLife = 12 * time.Hour
	sessionIdle = 2 * time.Hour
)

// userName is the name of a user, in a path.
type userName string

// Schema says what names of users are. The rule itself is that of [access.CheckUser] alone.
func (userName) Schema(huma.Registry) *huma.Schema {
	least, most := 1, access.MaxSubject
	return &huma.Schema{Type: huma.TypeString, MinLength: &least, MaxLength: &most}
}

// Resolve refuses what is no name.
func (n userName) Resolve(huma.Context) []error { return oneError(access.CheckUser(string(n))) }

// groupName is the name of a group of users, in a path.
type groupName string

// Schema says what names of groups are. The rule itself is that of [access.CheckGroup] alone.
func (groupName) Schema(r huma.Registry) *huma.Schema { return userName("").Schema(r) }

// Resolve refuses what is no name.
func (n groupName) Resolve(huma.Context) []error { return oneError(access.CheckGroup(string(n))) }

func oneError(err error) []error {
	if err != nil {
		return []error{err}
	}
	return nil
}

// What is read of requests about users.
type (
	ofUser struct {
		User userName `path:"user" doc:"The user."`
	}

	ofUserAndBody[T any] struct {
		User userName `path:"user" doc:"The user."`
		Body T
	}

	ofGroup struct {
		Group groupName `path:"group" doc:"The group of users."`
	}

	ofMember struct {
		Group groupName `path:"group" doc:"The group of users."`
		User  userName  `path:"user" doc:"The user."`
	}
)

// manage is the rule of what changes who may do what.
var manage = may(access.AccessManage, access.KindAccess)

// accessTable is who may do what.
func accessTable() []operation {
	return append(append(selfTable(), userTable()...), grantTable()...)
}

func selfTable() []operation {
	return []operation{
		by(operation{id: "login", method: http.MethodPost, path: "/v1/login", tag: "Access", summary: "Begin a session with a password",
			description: "The answer has a secret, which lasts for 12 hours, and for 2 hours unused.", status: http.StatusOK, errors: []tidemark.Kind{tidemark.Invalid, tidemark.Denied, tidemark.Unavailable}, rule: open}, (*server).login),
		by(operation{id: "begin-device-login", method: http.MethodPost, path: "/v1/login/device", tag: "Access", summary: "Begin a session at the OpenID provider",
			description: "The user types a code in at the provider, in a browser on any device.", status: http.StatusOK, errors: []tidemark.Kind{tidemark.NotFound, tidemark.Unavailable}, rule: open}, (*server).beginDevice),
		by(operation{id: "finish-device-login", method: http.MethodPost, path: "/v1/login/device/finish", tag: "Access", summary: "Wait for a login at the OpenID provider",
			description: "For at most 30 seconds: an answer without a secret says to ask again.", status: http.StatusOK, errors: []tidemark.Kind{tidemark.Invalid, tidemark.NotFound, tidemark.Denied, tidemark.Conflict, tidemark.Unavailable}, rule: open}, (*server).finishDevice),
		by(operation{id: "logout", method: http.MethodPost, path: "/v1/logout", tag: "Access", summary: "End the session",
			description: "Its secret is good for nothing any more.", status: http.StatusNoContent, errors: []tidemark.Kind{tidemark.Invalid, tidemark.Denied}, rule: self}, (*server).logout),
		get(operation{id: "get-self", method: http.MethodGet, path: "/v1/self", tag: "Access", summary: "Who asks, and what was granted to him",
			description: "As the server knows it.", errors: []tidemark.Kind{tidemark.Denied}, rule: self},
			func(ctx context.Context, _ *control.Control, _ *none) (access.Self, error) {
				who := callerOf(ctx)
				me := access.Self{User: who.principal.User, Groups: who.principal.Groups, Method: who.principal.Method, Token: who.principal.Token, Grants: who.grants}
				if me.Grants == nil {
					me.Grants = []access.Grant{}
				}
				return me, nil
			}),
		raw(operation{id: "get-authority", method: http.MethodGet, path: "/v1/authority", tag: "Access", summary: "The certificate by which clients know the server",
			description: "As PEM. Who fetches it over the network has to compare it with what the server's administrator has.", errors: []tidemark.Kind{tidemark.NotFound}, rule: open},
			"application/x-pem-file", (*server).sendAuthority),
		with(operation{id: "list-tokens", method: http.MethodGet, path: "/v1/tokens", tag: "Access", summary: "API tokens",
			description: "By number, without their secrets.", status: http.StatusOK, errors: missing, rule: may(access.TokenView, access.KindToken, "query.user")}, tokens),
		create(operation{id: "make-token", method: http.MethodPost, path: "/v1/tokens", tag: "Access", summary: "Make an API token",
			description: "The answer has its secret, which is shown once.", errors: refused, secret: true, rule: may(access.TokenManage, access.KindToken, "body.user")},
			func(_ *ofBody[access.TokenSpec], i tidemark.Issued) string { return "/v1/tokens/" + formatInt(i.ID) }, makeToken),
		do(operation{id: "revoke-token", method: http.MethodDelete, path: "/v1/tokens/{id}", tag: "Access", summary: "End an API token",
			description: "It is good for nothing any more.", errors: missing, rule: may(access.TokenManage, access.KindToken, "query.user")},
			func(ctx context.Context, c *control.Control, in *struct {
				ByID
				User string `query:"user" doc:"Whose it is; missing: one's own, and at the socket anybody's."`
			}) error {
				return c.Access().RevokeToken(ctx, orSelf(ctx, in.User), in.ID)
			}),
	}
}

// orSelf is a user, or who asks.
func orSelf(ctx context.Context, user string) string {
	if user == "" {
		return callerOf(ctx).principal.User
	}
	return user
}

func userTable() []operation {
	return []operation{
		with(operation{id: "list-users", method: http.MethodGet, path: "/v1/users", tag: "Access", summary: "Users",
			description: "By name.", status: http.StatusOK, errors: wrong, rule: may(access.AccessView, access.KindAccess)}, users),
		createBy(operation{id: "add-user", method: http.MethodPost, path: "/v1/users", tag: "Access", summary: "Add a user",
			description: "He can do nothing before he, or a group that he is in, has a grant.", errors: refused, rule: manage},
			func(_ *ofBody[tidemark.UserSpec], u tidemark.User) string { return "/v1/users/" + u.Name }, (*server).addUser),
		do(operation{id: "remove-user", method: http.MethodDelete, path: "/v1/users/{user}", tag: "Access", summary: "Remove a user",
			description: "With his grants, tokens and sessions. While clones, mounts or exports belong to him he cannot be removed.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofUser) error {
				return c.Access().RemoveUser(ctx, string(in.User))
			}),
		do(operation{id: "change-user", method: http.MethodPatch, path: "/v1/users/{user}", tag: "Access", summary: "Shut a user out, or let him in again",
			description: "At once, whatever secrets he has.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofUserAndBody[tidemark.UserChange]) error {
				return c.Access().SetDisabled(ctx, string(in.User), in.Body.Disabled)
			}),
		by(operation{id: "set-password", method: http.MethodPut, path: "/v1/users/{user}/password", tag: "Access", summary: "Set a password",
			description: "One's own takes the old one, but at the socket.", status: http.StatusNoContent, errors: append([]tidemark.Kind{tidemark.Denied}, refused...), rule: may(access.TokenManage, access.KindToken, "path.user")}, (*server).setPassword),
		with(operation{id: "list-user-groups", method: http.MethodGet, path: "/v1/user-groups", tag: "Access", summary: "Groups of users",
			description: "By name, with their members.", status: http.StatusOK, errors: wrong, rule: may(access.AccessView, access.KindAccess)}, userGroups),
		do(operation{id: "add-user-group", method: http.MethodPut, path: "/v1/user-groups/{group}", tag: "Access", summary: "Add a group of users",
			description: "A group of an OpenID provider counts if it was added here.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofGroup) error {
				return c.Access().AddGroup(ctx, string(in.Group))
			}),
		do(operation{id: "remove-user-group", method: http.MethodDelete, path: "/v1/user-groups/{group}", tag: "Access", summary: "Remove a group of users",
			description: "With its grants. The users stay.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofGroup) error {
				return c.Access().RemoveGroup(ctx, string(in.Group))
			}),
		do(operation{id: "join-user-group", method: http.MethodPut, path: "/v1/user-groups/{group}/members/{user}", tag: "Access", summary: "Put a user into a group",
			description: "That he is in it is fine.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofMember) error {
				return c.Access().Join(ctx, string(in.Group), string(in.User))
			}),
		do(operation{id: "leave-user-group", method: http.MethodDelete, path: "/v1/user-groups/{group}/members/{user}", tag: "Access", summary: "Take a user out of a group",
			description: "That he is not in it is fine. Where the OpenID provider put him there, it does so again at his next login if it still names the group.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ofMember) error {
				return c.Access().Leave(ctx, string(in.Group), string(in.User))
			}),
	}
}

func grantTable() []operation {
	return []operation{
		with(operation{id: "list-grants", method: http.MethodGet, path: "/v1/grants", tag: "Access", summary: "Grants",
			description: "By number.", status: http.StatusOK, errors: wrong, rule: may(access.AccessView, access.KindAccess)}, grants),
		create(operation{id: "add-grant", method: http.MethodPost, path: "/v1/grants", tag: "Access", summary: "Give a user or group a role",
			description: "Over everything, or over applications or hosts by names and patterns.", errors: refused, rule: manage},
			func(_ *ofBody[access.Grant], g access.Grant) string { return "/v1/grants/" + formatInt(g.ID) },
			func(ctx context.Context, c *control.Control, in *ofBody[access.Grant]) (g access.Grant, err error) {
				g = in.Body
				g.ID, err = c.Access().AddGrant(ctx, g)
				return g, err
			}),
		do(operation{id: "remove-grant", method: http.MethodDelete, path: "/v1/grants/{id}", tag: "Access", summary: "Take a grant back",
			description: "It counts no more from the next request on.", errors: refused, rule: manage},
			func(ctx context.Context, c *control.Control, in *ByID) error {
				return c.Access().RemoveGrant(ctx, in.ID)
			}),
		with(operation{id: "list-audit", method: http.MethodGet, path: "/v1/audit", tag: "Access", summary: "Who did what, newest first",
			description: "What changed something, and what was refused.", status: http.StatusOK, errors: wrong, rule: may(access.AuditView, access.KindAudit)}, audited),
		get(operation{id: "verify-audit", method: http.MethodPost, path: "/v1/audit/verify", tag: "Access", summary: "Check that the audit holds together",
			description: "All of it is read: each record has the hash of the one before, and those that signed checkpoints of this server, or copies of them that are given, know of are there.",
			errors:      wrong, rule: may(access.AuditView, access.KindAudit)},
			func(ctx context.Context, c *control.Control, in *ofCopies) (access.AuditResult, error) {
				if in.Body == nil {
					return c.VerifyAudit(ctx, nil)
				}
				return c.VerifyAudit(ctx, in.Body.Copies)
			}),
		get(operation{id: "get-audit-checkpoint", method: http.MethodGet, path: "/v1/audit/checkpoint", tag: "Access", summary: "A signed checkpoint of the audit, to be kept elsewhere",
			description: "How far the audit is now, or was when the last checkpoint was made, if the catalog is away.", errors: []tidemark.Kind{tidemark.Unavailable}, rule: may(access.AuditView, access.KindAudit)},
			func(ctx context.Context, c *control.Control, _ *none) (access.CheckpointCopy, error) {
				return c.AuditCheckpoint(ctx)
			}),
	}
}

// ofCopies is a request that may have copies of checkpoints.
type ofCopies struct {
	Body *access.CopiesSpec
}

// ofAudit is a request for a part of the audit.
type ofAudit struct {
	Listing
	User   string `query:"user" doc:"Only what this user did."`
	Object string `query:"object" doc:"Only what was done to something of this name."`
}

// audited answers with a part of the audit, newest first.
func audited(ctx context.Context, c *control.Control, in *ofAudit) (*paged[access.AuditRecord], error) {
	const at = "/v1/audit"
	before, err := in.number(at)
	if err != nil {
		return nil, err
	}
	list, err := c.Access().Audit(ctx, catalog.AuditQuery{User: in.User, Object: in.Object, Before: int64(before), Limit: in.Limit + 1})
	if err != nil {
		return nil, err
	}
	return cut(in.Listing, at, also("user", in.User, "object", in.Object), list, func(r access.AuditRecord) string { return formatInt(r.Seq) }), nil
}

// tokens answers with a part of the API tokens of a user, or at the socket of all, by number.
func tokens(ctx context.Context, c *control.Control, in *struct {
	Listing
	User string `query:"user" doc:"Whose; missing: one's own, and at the socket those of all."`
}) (*paged[access.Token], error) {
	const at = "/v1/tokens"
	after, err := in.number(at)
	if err != nil {
		return nil, err
	}
	list, err := c.Access().Tokens(ctx, orSelf(ctx, in.User), int64(after), in.Limit+1)
	if err != nil {
		return nil, err
	}
	return cut(in.Listing, at, also("user", in.User), list, func(t access.Token) string { return formatInt(t.ID) }), nil
}

// users answers with a part of the users, by name.
func users(ctx context.Context, c *control.Control, in *Listing) (*paged[tidemark.User], error) {
	const at = "/v1/users"
	after, err := decodeCursor(at, in.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := c.Access().Users(ctx, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	return cut(*in, at, nil, list, func(u tidemark.User) string { return u.Name }), nil
}

// grants answers with a part of the grants, by number.
func grants(ctx context.Context, c *control.Control, in *Listing) (*paged[access.Grant], error) {
	const at = "/v1/grants"
	after, err := in.number(at)
	if err != nil {
		return nil, err
	}
	list, err := c.Access().Grants(ctx, int64(after), in.Limit+1)
	if err != nil {
		return nil, err
	}
	return cut(*in, at, nil, list, func(g access.Grant) string { return formatInt(g.ID) }), nil
}

// userGroups answers with a part of the groups of users, by name.
func userGroups(ctx context.Context, c *control.Control, in *Listing) (*paged[tidemark.UserGroup], error) {
	const at = "/v1/user-groups"
	after, err := decodeCursor(at, in.Cursor)
	if err != nil {
		return nil, err
	}
	names, err := c.Access().Groups(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // a database may have another order
	list := []tidemark.UserGroup{}
	for _, name := range behind(*in, names, after, strings.Compare) {
		members, err := c.Access().Members(ctx, name)
		if err != nil {
			return nil, err
		}
		list = append(list, tidemark.UserGroup{Name: name, Members: append([]string{}, members...)})
	}
	return cut(*in, at, nil, list, func(g tidemark.UserGroup) string { return g.Name }), nil
}

func makeToken(ctx context.Context, c *control.Control, in *ofBody[access.TokenSpec]) (tidemark.Issued, error) {
	user := orSelf(ctx, in.Body.User)
	if user == "" {
		return tidemark.Issued{}, tidemark.Errorf(tidemark.Invalid, "for whom is the API token?").WithHint("name a user: the administrator at the socket has no need of one")
	}
	now, secret := time.Now(), access.NewSecret(access.TokenPrefix)
	if most := int64(access.MaxTokenLife / time.Second); in.Body.Lifetime > most {
		return tidemark.Issued{}, tidemark.Errorf(tidemark.Invalid, "an API token is good for a year at most").WithHint("ask for less, and for another one in time")
	}
	t := access.Token{User: user, Name: in.Body.Name, Roles: in.Body.Roles, Applications: in.Body.Applications, Created: now, Expires: now.Add(time.Duration(in.Body.Lifetime) * time.Second)}
	var session access.Hash // by which it is asked for; zero: at the socket
	if who := callerOf(ctx); who.principal.Method == access.ByPassword || who.principal.Method == access.ByOIDC {
		session = who.secret.Hash()
	}
	id, err := c.Access().AddToken(ctx, t, secret.Hash(), session)
	return tidemark.Issued{ID: id, Secret: secret.Reveal(), Expires: t.Expires}, err
}

// login begins a session. Whether there is the user is not told, nor by how long it takes.
func (s *server) login(ctx context.Context, in *ofBody[tidemark.Login]) (*answer[tidemark.Issued], error) {
	who, user := callerOf(ctx), in.Body.User
	who.asked = append(who.asked, asked{access.TokenManage, access.Object{Kind: access.KindToken, Name: user}})
	for range 3 {
		hash, err := s.check(ctx, user, in.Body.Password)
		if err != nil {
			return nil, err
		}
		i, err := s.beginSession(ctx, user, access.ByPassword, hash)
		if err == nil || tidemark.KindOf(err) != tidemark.Conflict {
			return &answer[tidemark.Issued]{Body: i}, err
		} // else it was changed while it was compared: is it right still?
	}
	return nil, tidemark.Errorf(tidemark.Unavailable, "the password is just being changed").WithHint("try again")
}

// beginSession begins a session of a user who has proved who he is: if by a password, it is the one with this hash, and he has it still.
func (s *server) beginSession(ctx context.Context, user string, by access.Method, hash string) (tidemark.Issued, error) {
	now, secret := time.Now(), access.NewSecret(access.SessionPrefix)
	session := access.Session{User: user, Method: by, Created: now, Expires: now.Add(sessionLife), Used: now, Idle: sessionIdle}
	if who := callerOf(ctx); who.address.IsValid() {
		session.Address = who.address.String()
	}
	id, err := s.c.Access().AddSession(ctx, session, hash, secret.Hash())
	callerOf(ctx).did = "a session began"
	return tidemark.Issued{ID: id, Secret: secret.Reveal(), Expires: session.Expires}, err
}

// check makes sure that a password is that of a user, and that nobody guesses. It returns the hash that the user has of it. By the time
// that it is used he may have another one.
func (s *server) check(ctx context.Context, user, password string) (hash string, err error) {
	address := callerOf(ctx).address
	if wait := s.limiter.Try(time.Now(), user, address); wait > 0 {
		return "", tidemark.Errorf(tidemark.Denied, "too many logins failed").WithHint(fmt.Sprintf("try again in %d seconds", int(wait.Seconds())+1))
	}
	if strings.Contains(user, "\x00") { // which no catalog can search for
		return "", tidemark.Errorf(tidemark.Denied, "the user or the password is wrong")
	}
	passwords, err := s.passwords()
	if err != nil {
		return "", err
	}
	if hash, err = s.c.Access().Password(ctx, user); err != nil {
		return "", err
	}
	ok, renew, err := passwords.Verify(ctx, hash, password)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", tidemark.Errorf(tidemark.Denied, "the user or the password is wrong")
	}
	s.limiter.Succeeded(time.Now(), user, address)
	if !renew {
		return hash, nil
	}
	anew, err := passwords.Hash(ctx, user, password)
	if err != nil {
		return hash, nil // it was good enough once
	}
	return anew, s.c.Access().RenewPassword(ctx, user, hash, anew)
}

func (s *server) logout(ctx context.Context, _ *none) (*struct{}, error) {
	who := callerOf(ctx)
	who.asked = append(who.asked, asked{access.TokenManage, access.Object{Kind: access.KindToken, Name: who.principal.User}})
	if who.principal.Method == access.BySocket || who.principal.Method == access.ByToken {
		return nil, tidemark.Errorf(tidemark.Invalid, "this is no session").WithHint("an API token is revoked, and the socket is always open")
	}
	err := s.c.Access().EndSessionOf(ctx, who.secret.Hash())
	who.did = "a session ended"
	return nil, err
}

func (s *server) addUser(ctx context.Context, in *ofBody[tidemark.UserSpec]) (u tidemark.User, err error) {
	hash := ""
	if in.Body.Password != "" {
		if hash, err = s.hash(ctx, in.Body.Name, in.Body.Password); err != nil {
			return u, err
		}
	}
	u = tidemark.User{Name: in.Body.Name, Display: in.Body.Display, Created: time.Now()}
	if err := s.c.Access().AddUser(ctx, u); err != nil || hash == "" {
		return u, err
	}
	return u, s.c.Access().SetPassword(ctx, u.Name, hash)
}

func (s *server) hash(ctx context.Context, user, password string) (string, error) {
	passwords, err := s.passwords()
	if err != nil {
		return "", err
	}
	return passwords.Hash(ctx, user, password)
}

// setPassword ends all sessions of the user: somebody else may have had the old one.
func (s *server) setPassword(ctx context.Context, in *ofUserAndBody[tidemark.PasswordChange]) (*struct{}, error) {
	user, old := string(in.User), ""
	own := callerOf(ctx).principal.User == user
	if own {
		var err error
		if old, err = s.check(ctx, user, in.Body.Old); err != nil {
			return nil, err
		}
	}
	hash, err := s.hash(ctx, user, in.Body.New)
	if err != nil {
		return nil, err
	}
	if own { // who knew the one of before does not undo a change that came first
		return nil, s.c.Access().ChangePassword(ctx, user, old, hash)
	}
	return nil, s.c.Access().SetPassword(ctx, user, hash)
}

func (s *server) sendAuthority(w http.ResponseWriter, _ *http.Request) {
	pem, err := s.c.Authority()
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	if _, err := w.Write(pem); err != nil {
		s.log.Debug("a client went away", "error", err)
	}
}
