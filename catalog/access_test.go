package catalog

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog/catalogtest"
)

func TestAccessSQLite(t *testing.T) {
	accessConformance(t, func(t *testing.T) string { return filepath.Join(t.TempDir(), "catalog.db") })
}

func TestAccessPostgres(t *testing.T) {
	server := catalogtest.StartPostgres(t)
	n := 0
	accessConformance(t, func(t *testing.T) string {
		n++
		name := fmt.Sprintf("a%d", n)
		if out, err := exec.Command("psql", "-h", server, "-U", "postgres", "-c", "CREATE DATABASE "+name).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return fmt.Sprintf("postgres://postgres@/%s?host=%s", name, server)
	})
}

// accessConformance is what both engines have to do.
func accessConformance(t *testing.T, where func(t *testing.T) string) {
	for name, test := range map[string]func(t *testing.T, at string){
		"Users": users, "Groups": groups, "Grants": grants, "Tokens": tokens, "Sessions": sessions,
		"Objects": objects, "FromBefore": fromBefore, "Namesakes": namesakes, "WithoutIDs": withoutIDs,
		"Audit": audit, "AuditTogether": auditTogether, "AuditTampering": auditTampering, "AuditOnlyGrows": auditOnlyGrows, "Checkpoints": checkpoints,
		"Spool": spool, "SpoolTogether": spoolTogether, "Logins": logins, "LoginsTogether": loginsTogether,
	} {
		t.Run(name, func(t *testing.T) { test(t, where(t)) })
	}
}

func openAt(t *testing.T, at string) *Catalog {
	t.Helper()
	c, err := Open(context.Background(), at, "us")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// must takes what cannot fail here.
func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// errOf is the error of what is not of interest otherwise.
func errOf[T any](_ T, err error) error { return err }

func refused(t *testing.T, want tidemark.Kind, err error) {
	t.Helper()
	if err == nil || tidemark.KindOf(err) != want {
		t.Fatalf("%v, want an error of kind %s", err, want)
	}
}

// downTo makes a catalog one of an older release, and closes it.
func downTo(t *testing.T, c *Catalog, at string, version int64) {
	t.Helper()
	dialect, dir := goose.DialectSQLite3, "sqlite"
	if Remote(at) {
		dialect, dir = goose.DialectPostgres, "postgres"
	}
	p := must(goose.NewProvider(dialect, c.write.DB, must(fs.Sub(migrations, "migrations/"+dir))(t)))(t)
	must(p.DownTo(context.Background(), version))(t)
	c.Close()
}

// fromBefore opens a catalog that was written before there were users.
func fromBefore(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.Put(ctx, Mounts, "m", tidemark.Mount{Name: "m"}), c.AddUser(ctx, tidemark.User{Name: "alice"}), c.PutObject(ctx, access.Object{Kind: access.KindMount, Name: "m", Owner: "alice"}))
	appendRecords(t, c, 2)
	downTo(t, c, at, 9)
	c = openAt(t, at)
	if l := must(c.Users(ctx, "", 10))(t); len(l) != 0 {
		t.Errorf("users: %+v", l)
	}
	var m tidemark.Mount
	ok(t, c.Get(ctx, Mounts, "m", &m), c.AddUser(ctx, tidemark.User{Name: "alice"}))
	appendRecords(t, c, 1)
	if n := must(c.VerifyAudit(ctx, nil))(t); n != 1 {
		t.Errorf("%d records", n)
	}
}

func users(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice", Display: "Alice'; DROP TABLE users; --"}), c.AddUser(ctx, tidemark.User{Name: "bob", Issuer: "https://id", Subject: "42"}))
	refused(t, tidemark.Conflict, c.AddUser(ctx, tidemark.User{Name: "alice"}))
	refused(t, tidemark.Conflict, c.AddUser(ctx, tidemark.User{Name: "bob2", Issuer: "https://id", Subject: "42"}))
	refused(t, tidemark.Invalid, c.AddUser(ctx, tidemark.User{Name: "a b"}))
	refused(t, tidemark.Invalid, c.AddUser(ctx, tidemark.User{Name: "carol", Issuer: "https://id"}))
	if u := must(c.UserOfProvider(ctx, "https://id", "42"))(t); u.Name != "bob" {
		t.Errorf("of the provider: %+v", u)
	}
	_, err := c.UserOfProvider(ctx, "", "")
	refused(t, tidemark.NotFound, err)
	if l := must(c.Users(ctx, "alice", 10))(t); len(l) != 1 || l[0].Name != "bob" {
		t.Errorf("behind alice: %+v", l)
	}

	ok(t, c.SetPassword(ctx, "alice", "hash1"), c.RenewPassword(ctx, "alice", "hash1", "hash2"), c.RenewPassword(ctx, "alice", "hash1", "hash3"))
	if h := must(c.Password(ctx, "alice"))(t); h != "hash2" {
		t.Errorf("password: %q", h)
	}
	refused(t, tidemark.NotFound, c.SetPassword(ctx, "nobody", "x"))
	ok(t, c.SetDisabled(ctx, "alice", true))
	for _, name := range []string{"alice", "bob", "nobody"} {
		if h := must(c.Password(ctx, name))(t); h != "" {
			t.Errorf("%s has a password: %q", name, h)
		}
	}

	ok(t, c.PutObject(ctx, access.Object{Kind: access.KindClone, Name: "dev", Owner: "alice", Source: "orders"}))
	refused(t, tidemark.Conflict, c.RemoveUser(ctx, "alice"))
	refused(t, tidemark.NotFound, c.HandOver(ctx, "alice", "nobody"))
	ok(t, c.HandOver(ctx, "alice", "bob"), c.RemoveUser(ctx, "alice"))
	refused(t, tidemark.NotFound, c.RemoveUser(ctx, "alice"))
	if o := must(c.Object(ctx, access.KindClone, "dev"))(t); o.Owner != "bob" {
		t.Errorf("handed over: %+v", o)
	}
	if l := must(c.Copies(ctx, "bob"))(t); !slices.Equal(l, []string{"dev"}) {
		t.Errorf("copies: %q", l)
	}
}

// idOf is the ID of a user.
func idOf(t *testing.T, c *Catalog, user string) string {
	t.Helper()
	p, _, err := c.Principal(context.Background(), user, access.ByPassword)
	ok(t, err)
	return p.UserID
}

// namesakes holds that what somebody has asked for tells him from a later user of his name.
func namesakes(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "ann"}))
	id := idOf(t, c, "ann")
	j := must(c.Enqueue(ctx, NewJob{Kind: "capture", AskedBy: "ann", AskerID: id}, plenty))(t)
	w := must(c.PutWorkflow(ctx, Workflow{Name: "w", Document: "x", Author: "ann", AuthorID: id}))(t)
	if j = must(c.Job(ctx, j.ID))(t); id == "" || j.AskerID != id || w.AuthorID != id || !must(c.IsUser(ctx, "ann", id))(t) || must(c.IsUser(ctx, "bob", id))(t) {
		t.Errorf("%q has asked for %+v and %+v", id, j, w)
	}
	ok(t, c.SetDisabled(ctx, "ann", true))
	if !must(c.IsUser(ctx, "ann", id))(t) {
		t.Error("who is disabled is another")
	}
	ok(t, c.RemoveUser(ctx, "ann"), c.AddUser(ctx, tidemark.User{Name: "ann"}))
	now := idOf(t, c, "ann")
	if now == id || must(c.IsUser(ctx, "ann", id))(t) {
		t.Errorf("%q and %q are the same", now, id)
	}
	if v := must(c.PutWorkflow(ctx, Workflow{Name: "w", Document: "x", Author: "ann", AuthorID: now}))(t); v.Version != w.Version+1 {
		t.Errorf("applied by another, it is version %d", v.Version)
	}
}

// withoutIDs opens a catalog that was written before users had IDs: what was asked for is of who has the name then, and of no later one.
func withoutIDs(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "ann"}))
	id := idOf(t, c, "ann")
	j := must(c.Enqueue(ctx, NewJob{Kind: "capture", AskedBy: "ann", AskerID: id}, plenty))(t)
	_, err := c.PutWorkflow(ctx, Workflow{Name: "w", Document: "x", Author: "ann", AuthorID: id})
	ok(t, err)
	downTo(t, c, at, 35)
	c = openAt(t, at)
	j, w := must(c.Job(ctx, j.ID))(t), must(c.Workflow(ctx, "w", 0))(t)
	if now := idOf(t, c, "ann"); now != j.AskerID || now != w.AuthorID {
		t.Errorf("%q has asked for %+v and %+v", now, j, w)
	}
	ok(t, c.RemoveUser(ctx, "ann"), c.AddUser(ctx, tidemark.User{Name: "ann"}))
	if must(c.IsUser(ctx, "ann", j.AskerID))(t) {
		t.Error("a later ann is the former one")
	}
}

func groups(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}), c.AddGroup(ctx, "dev"), c.AddGroup(ctx, "/corp/ops team"), c.Join(ctx, "dev", "alice"), c.Join(ctx, "dev", "alice"))
	refused(t, tidemark.Conflict, c.AddGroup(ctx, "dev"))
	refused(t, tidemark.NotFound, c.Join(ctx, "dev", "nobody"))
	refused(t, tidemark.NotFound, c.Join(ctx, "none", "alice"))
	of := func() []string {
		p, _, err := c.Principal(ctx, "alice", access.ByOIDC)
		ok(t, err)
		return p.Groups
	}
	ok(t, c.SetProvidedGroups(ctx, "alice", []string{"dev", "/corp/ops team", "admins-of-something", "dev"}))
	if g := of(); !slices.Equal(slices.Sorted(slices.Values(g)), []string{"/corp/ops team", "dev"}) {
		t.Fatalf("groups: %q", g)
	}
	// What the provider no longer names is over; what was given here stays.
	ok(t, c.SetProvidedGroups(ctx, "alice", nil))
	if g := of(); !slices.Equal(g, []string{"dev"}) {
		t.Fatalf("groups: %q", g)
	}
	refused(t, tidemark.NotFound, c.SetProvidedGroups(ctx, "nobody", []string{"dev"}))
	if m := must(c.Members(ctx, "dev"))(t); !slices.Equal(m, []string{"alice"}) {
		t.Errorf("members: %q", m)
	}
	// Out of a group is out of it, also where the provider put her there, until it does so again.
	ok(t, c.SetProvidedGroups(ctx, "alice", []string{"dev"}), c.Leave(ctx, "dev", "alice"))
	if g := of(); len(g) != 0 {
		t.Errorf("groups: %q", g)
	}
	ok(t, c.SetProvidedGroups(ctx, "alice", []string{"dev"}))
	if g := of(); !slices.Equal(g, []string{"dev"}) {
		t.Errorf("groups: %q", g)
	}
	ok(t, c.Leave(ctx, "dev", "alice"))
	ok(t, c.RemoveGroup(ctx, "dev"))
	refused(t, tidemark.NotFound, c.RemoveGroup(ctx, "dev"))
	if g := must(c.Groups(ctx))(t); !slices.Equal(g, []string{"/corp/ops team"}) {
		t.Errorf("groups: %q", g)
	}
}

func grants(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}), c.AddUser(ctx, tidemark.User{Name: "bob"}), c.AddGroup(ctx, "dev"), c.Join(ctx, "dev", "alice"))
	mine := access.Grant{Subject: access.Subject{Kind: access.User, Name: "alice"}, Role: access.Operator, Scope: access.Scope{Kind: access.Hosts, Names: []access.Pattern{"h*"}}}
	ours := access.Grant{Subject: access.Subject{Kind: access.Group, Name: "dev"}, Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"orders"}},
		Limits: access.Limits{Clones: 2, Bytes: access.Unlimited, Lifetime: 3600, Hosts: []access.Pattern{access.ServerHost}, Points: access.PointRule{Bookmarks: []access.Pattern{"masked-*"}}}}
	other := access.Grant{Subject: access.Subject{Kind: access.User, Name: "bob"}, Role: access.Admin, Scope: access.Scope{Kind: access.Everything}}
	for _, g := range []*access.Grant{&mine, &ours, &other} {
		g.ID = must(c.AddGrant(ctx, *g))(t)
	}
	p, list, err := c.Principal(ctx, "alice", access.ByPassword)
	ok(t, err)
	if !reflect.DeepEqual(list, []access.Grant{mine, ours}) || p.User != "alice" || p.Method != access.ByPassword || !slices.Equal(p.Groups, []string{"dev"}) {
		t.Fatalf("%+v has %+v", p, list)
	}
	for _, bad := range []access.Grant{
		{}, {Subject: mine.Subject, Role: "root", Scope: mine.Scope}, {Subject: mine.Subject, Role: access.Admin},
		{Subject: mine.Subject, Role: access.Admin, Scope: other.Scope, Limits: access.Limits{Clones: 1}},
	} {
		_, err := c.AddGrant(ctx, bad)
		refused(t, tidemark.Invalid, err)
	}
	_, err = c.AddGrant(ctx, access.Grant{Subject: access.Subject{Kind: access.Group, Name: "none"}, Role: access.Admin, Scope: other.Scope})
	refused(t, tidemark.NotFound, err)
	ok(t, c.RemoveGrant(ctx, mine.ID))
	refused(t, tidemark.NotFound, c.RemoveGrant(ctx, mine.ID))

	// A user of the same name has nothing of the one before.
	ok(t, c.RemoveUser(ctx, "bob"), c.AddUser(ctx, tidemark.User{Name: "bob"}), c.RemoveGroup(ctx, "dev"), c.AddGroup(ctx, "dev"), c.Join(ctx, "dev", "bob"))
	if _, list, err := c.Principal(ctx, "bob", access.ByPassword); err != nil || len(list) != 0 {
		t.Errorf("inherited: %+v, %v", list, err)
	}
	if list := must(c.Grants(ctx, 0, 10))(t); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}

func tokens(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}))
	_, err := c.AddGrant(ctx, access.Grant{Subject: access.Subject{Kind: access.User, Name: "alice"}, Role: access.Owner, Scope: access.Scope{Kind: access.Everything}})
	ok(t, err)
	now := time.Now().Truncate(time.Microsecond)
	secret := access.NewSecret(access.TokenPrefix)
	tok := access.Token{User: "alice", Name: "ci", Roles: []access.Role{access.Developer}, Applications: []access.Pattern{"orders-*"}, Created: now, Expires: now.Add(time.Hour)}
	tok.ID = must(c.AddToken(ctx, tok, secret.Hash(), access.Hash{}))(t)
	_, err = c.AddToken(ctx, tok, access.NewSecret(access.TokenPrefix).Hash(), access.Hash{})
	refused(t, tidemark.Conflict, err)
	p, list, err := c.ByToken(ctx, secret.Hash(), now.Add(time.Minute))
	ok(t, err)
	if p.User != "alice" || p.Method != access.ByToken || p.Token.ID != tok.ID || !slices.Equal(p.Token.Applications, tok.Applications) || len(list) != 1 {
		t.Fatalf("%+v, %+v", p, list)
	}
	if l := must(c.Tokens(ctx, "alice", 0, 9))(t); len(l) != 1 || !l[0].Used.Equal(now.Add(time.Minute)) {
		t.Errorf("used: %+v", l)
	}
	denied := func(h access.Hash, at time.Time) string {
		t.Helper()
		_, _, err := c.ByToken(ctx, h, at)
		refused(t, tidemark.Denied, err)
		return err.Error()
	}
	// One answer for all reasons.
	said := []string{denied(access.NewSecret(access.TokenPrefix).Hash(), now), denied(secret.Hash(), tok.Expires)}
	ok(t, c.SetDisabled(ctx, "alice", true))
	said = append(said, denied(secret.Hash(), now))
	ok(t, c.SetDisabled(ctx, "alice", false))
	if len(slices.Compact(said)) != 1 {
		t.Errorf("tells why: %q", said)
	}
	refused(t, tidemark.NotFound, c.RevokeToken(ctx, "bob", tok.ID))
	ok(t, c.RevokeToken(ctx, "alice", tok.ID))
	denied(secret.Hash(), now)
	notStored(t, at, secret)
}

// notStored holds that the file has neither the secret nor a part of it.
func notStored(t *testing.T, at string, s access.Secret) {
	t.Helper()
	for _, f := range must(filepath.Glob(at + "*"))(t) {
		data, err := os.ReadFile(f)
		ok(t, err)
		if strings.Contains(string(data), s.Reveal()[4:20]) {
			t.Errorf("%s has the secret", f)
		}
	}
}

func sessions(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}), c.SetPassword(ctx, "alice", "hash"))
	now := time.Now()
	begin := func() access.Secret {
		s := access.NewSecret(access.SessionPrefix)
		must(c.AddSession(ctx, access.Session{User: "alice", Method: access.ByPassword, Created: now, Used: now, Expires: now.Add(12 * time.Hour), Idle: time.Hour},
			must(c.Password(ctx, "alice"))(t), s.Hash()))(t)
		return s
	}
	valid := func(s access.Secret, at time.Time) bool {
		p, _, err := c.BySession(ctx, s.Hash(), at)
		if err != nil {
			refused(t, tidemark.Denied, err)
		}
		return err == nil && p.User == "alice" && p.Method == access.ByPassword && p.Token == nil
	}
	s := begin()
	if valid(s, now.Add(61*time.Minute)) {
		t.Error("an idle session is good")
	}
	for at := now; at.Before(now.Add(12 * time.Hour)); at = at.Add(30 * time.Minute) {
		if !valid(s, at) {
			t.Fatalf("over after %s", at.Sub(now))
		}
	}
	if valid(s, now.Add(12*time.Hour)) {
		t.Error("an expired session is good")
	}
	for what, end := range map[string]func() error{
		"ended":        func() error { return c.EndSessionOf(ctx, s.Hash()) },
		"new password": func() error { return c.SetPassword(ctx, "alice", "x") },
		"disabled":     func() error { return c.SetDisabled(ctx, "alice", true) },
	} {
		ok(t, c.SetDisabled(ctx, "alice", false))
		s = begin()
		if !valid(s, now) {
			t.Fatalf("%s: not good before", what)
		}
		ok(t, end())
		if valid(s, now) {
			t.Errorf("%s: still good", what)
		}
		notStored(t, at, s)
	}
	ok(t, c.SetDisabled(ctx, "alice", false))
	begin()
	ok(t, c.SweepSecrets(ctx, now.Add(2*time.Hour)))
	if l := must(c.Sessions(ctx, "alice"))(t); len(l) != 0 {
		t.Errorf("not swept: %+v", l)
	}
	_, err := c.AddSession(ctx, access.Session{User: "alice", Method: access.BySocket}, "x", s.Hash())
	refused(t, tidemark.Invalid, err)
}

func objects(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	ok(t, c.AddUser(ctx, tidemark.User{Name: "alice"}), c.AddUser(ctx, tidemark.User{Name: "bob"}), c.AddGroup(ctx, "dev"))
	o := access.Object{Kind: access.KindClone, Name: "x", Owner: "alice", Source: "orders", Via: []string{"live", "early"},
		Shared: []access.Subject{{Kind: access.Group, Name: "dev"}, {Kind: access.User, Name: "bob"}}}
	ok(t, c.PutObject(ctx, o))
	if got := must(c.Object(ctx, o.Kind, o.Name))(t); !reflect.DeepEqual(got, o) {
		t.Fatalf("%+v, want %+v", got, o)
	}
	ok(t, c.RemoveUser(ctx, "bob"), c.RemoveGroup(ctx, "dev"))
	if got := must(c.Object(ctx, o.Kind, o.Name))(t); len(got.Shared) != 0 {
		t.Errorf("shared with those who are gone: %+v", got.Shared)
	}
	o.Shared = []access.Subject{{Kind: access.User, Name: "bob"}}
	refused(t, tidemark.NotFound, c.PutObject(ctx, o))
	o.Shared, o.Owner = nil, "nobody"
	refused(t, tidemark.NotFound, c.PutObject(ctx, o))
	if got := must(c.Object(ctx, o.Kind, o.Name))(t); got.Owner != "alice" || len(got.Via) != 2 {
		t.Errorf("a refusal changed it: %+v", got)
	}
	o.Owner, o.Shared = "alice", []access.Subject{{Kind: access.User, Name: "alice"}}
	ok(t, c.Share(ctx, o))
	if got := must(c.Object(ctx, o.Kind, o.Name))(t); !reflect.DeepEqual(got, o) {
		t.Fatalf("%+v, want %+v", got, o)
	}
	other := must(Open(ctx, at, "another"))(t)
	defer other.Close()
	if Remote(at) { // a file has one owner, who opened it last
		_, err := other.Object(ctx, o.Kind, o.Name)
		refused(t, tidemark.NotFound, err)
		ok(t, other.PutObject(ctx, access.Object{Kind: o.Kind, Name: o.Name, Owner: "alice"}))
		if l := must(c.Copies(ctx, "alice"))(t); len(l) != 1 {
			t.Errorf("copies: %q", l)
		}
	} else if got := must(other.Object(ctx, o.Kind, o.Name))(t); !reflect.DeepEqual(got, o) {
		t.Errorf("adopted: %+v, want %+v", got, o)
	}
	c = must(Open(ctx, at, "us"))(t)
	defer c.Close()
	ok(t, c.DeleteObject(ctx, o.Kind, o.Name), c.DeleteObject(ctx, o.Kind, o.Name))
	_, err := c.Object(ctx, o.Kind, o.Name)
	refused(t, tidemark.NotFound, err)
}
