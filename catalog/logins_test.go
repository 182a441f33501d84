package catalog

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
)

// loginOf asks for a session of a user, and returns the hash of its secret.
func loginOf(c *Catalog, user string, by access.Method, password string) (access.Hash, error) {
	now, h := time.Now(), access.NewSecret(access.SessionPrefix).Hash()
	_, err := c.AddSession(context.Background(), access.Session{User: user, Method: by, Created: now, Used: now, Expires: now.Add(time.Hour), Idle: time.Hour}, password, h)
	return h, err
}

// tokenOf asks for an API token of a user in a session.
func tokenOf(c *Catalog, user string, session access.Hash) error {
	now := time.Now()
	t := access.Token{User: user, Name: "ci", Created: now, Expires: now.Add(time.Hour)}
	_, err := c.AddToken(context.Background(), t, access.NewSecret(access.TokenPrefix).Hash(), session)
	return err
}

// logins holds that nothing comes of a password or a session that was good when it was looked at, and is not any more when the secret
// that was asked for is stored.
func logins(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}), c.SetPassword(ctx, "alice", "first"))
	_, err := loginOf(c, "alice", access.ByPassword, "other")
	refused(t, tidemark.Conflict, err)
	_, err = loginOf(c, "nobody", access.ByPassword, "first")
	refused(t, tidemark.Conflict, err)
	_, err = loginOf(c, "nobody", access.ByOIDC, "")
	refused(t, tidemark.Denied, err)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "bob"}))
	_, err = loginOf(c, "bob", access.ByPassword, "") // he has none
	refused(t, tidemark.Conflict, err)

	// during asks in the middle of a change, which is about to be there.
	during := func(change string, ask func() error) error {
		t.Helper()
		done := make(chan error, 1)
		ok(t, c.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			for _, statement := range []string{"UPDATE users SET " + change + " WHERE name = 'alice'", "DELETE FROM sessions WHERE user_name = 'alice'"} {
				if _, err := tx.NewRaw(statement).Exec(ctx); err != nil {
					return err
				}
			}
			go func() { done <- ask() }()
			select {
			case err := <-done:
				t.Errorf("%s: it did not wait for the change: %v", change, err)
				done <- err
			case <-time.After(300 * time.Millisecond):
			}
			return nil
		}))
		return <-done
	}
	session, err := loginOf(c, "alice", access.ByPassword, "first")
	ok(t, err, tokenOf(c, "bob", session))
	refused(t, tidemark.Denied, during("password = 'second'", func() error { return tokenOf(c, "alice", session) }))
	refused(t, tidemark.Denied, tokenOf(c, "alice", session))
	refused(t, tidemark.Conflict, during("password = 'third'", func() error {
		_, err := loginOf(c, "alice", access.ByPassword, "second")
		return err
	}))
	refused(t, tidemark.Conflict, during("disabled = TRUE", func() error {
		_, err := loginOf(c, "alice", access.ByPassword, "third")
		return err
	}))
	ok(t, c.SetDisabled(ctx, "alice", false))
	refused(t, tidemark.Denied, during("disabled = TRUE", func() error {
		_, err := loginOf(c, "alice", access.ByOIDC, "")
		return err
	}))
	refused(t, tidemark.Conflict, c.ChangePassword(ctx, "alice", "third", "fourth"))
	ok(t, c.SetDisabled(ctx, "alice", false))
	refused(t, tidemark.Conflict, during("password = 'fourth'", func() error { return c.ChangePassword(ctx, "alice", "third", "fifth") }))
	if h := must(c.Password(ctx, "alice"))(t); h != "fourth" {
		t.Errorf("the password is the %s", h)
	}
	if _, err := loginOf(c, "alice", access.ByPassword, "fourth"); err != nil {
		t.Error(err)
	}
	ok(t, c.ChangePassword(ctx, "alice", "fourth", "fifth"))
	if n, m := len(must(c.Sessions(ctx, "alice"))(t)), len(must(c.Tokens(ctx, "alice", 0, 9))(t)); n != 0 || m != 0 {
		t.Errorf("there are %d sessions and %d API tokens", n, m)
	}
}

// loginsTogether has logins, the making of API tokens and changes of users compete. Whatever comes first, no session is left of a
// password that is not any more, and nobody fails because two of them waited for each other.
func loginsTogether(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	changes := []func(user string) error{
		func(user string) error { return c.SetPassword(ctx, user, "new") },
		func(user string) error { return c.SetDisabled(ctx, user, true) },
		func(user string) error { return c.RemoveUser(ctx, user) },
		func(user string) error { return c.ChangePassword(ctx, user, "old", "new") },
	}
	for round := range 24 {
		user := fmt.Sprintf("u%d", round)
		ok(t, c.AddUser(ctx, tidemark.User{Name: user}), c.SetPassword(ctx, user, "old"))
		session, err := loginOf(c, user, access.ByPassword, "old")
		ok(t, err)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if _, err := loginOf(c, user, access.ByPassword, "old"); err != nil && tidemark.KindOf(err) != tidemark.Conflict {
					t.Errorf("a login: %v", err)
				}
			})
			all.Go(func() {
				err := tokenOf(c, user, session)
				if k := tidemark.KindOf(err); err != nil && k != tidemark.Denied && k != tidemark.Conflict { // there is one of the name
					t.Errorf("an API token: %v", err)
				}
			})
		}
		all.Go(func() {
			if err := changes[round%len(changes)](user); err != nil {
				t.Errorf("a change: %v", err)
			}
		})
		all.Wait()
		if l := must(c.Sessions(ctx, user))(t); len(l) != 0 {
			t.Fatalf("round %d: sessions are left: %+v", round, l)
		}
	}
}
