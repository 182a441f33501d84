package catalog

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog/catalogtest"
)

// While the database is away calls fail at once, with one clear line, and patient ones wait; both work again by themselves.
func TestAway(t *testing.T) {
	ctx := context.Background()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	c := openFor(t, g.URL(), "us")
	enqueue(t, c, NewJob{Application: "a"})
	claim(t, c, plenty)
	for _, mute := range []bool{false, true} {
		g.Set(!mute, mute)
		err := c.Put(ctx, Mounts, "m", "x") // this one may wait for an answer
		if !errors.Is(err, ErrAway) || tidemark.KindOf(err) != tidemark.Unavailable {
			t.Fatalf("mute %v: %v", mute, err)
		}
		begun := time.Now()
		for range 100 {
			if err := c.Put(ctx, Mounts, "m", "x"); !errors.Is(err, ErrAway) {
				t.Fatal(err)
			}
		}
		if d := time.Since(begun); d > time.Second {
			t.Fatalf("calls that fail at once took %v", d)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Step(Patient(ctx), 1, fmt.Sprint("step", mute), nil) }()
		hurried, cancel := context.WithTimeout(Patient(ctx), 50*time.Millisecond)
		if err := c.Step(hurried, 1, "never", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
		select {
		case err := <-ended:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		g.Set(false, false)
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("it waits although the database is back")
		}
		if j, err := c.Job(ctx, 1); err != nil || j.Step != fmt.Sprint("step", mute) {
			t.Fatalf("%+v, %v", j, err)
		}
	}
	g.Set(true, false)
	ended := make(chan error, 1)
	go func() { ended <- c.Step(Patient(ctx), 1, "x", nil) }()
	time.Sleep(100 * time.Millisecond)
	c.GiveUp()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrAway) {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits although it shall give up")
	}
}

// Every call finds that the database is away, also the first, and says no more than that: neither where it is nor as whom it is asked.
func TestAllAway(t *testing.T) {
	ctx := context.Background()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	c := openFor(t, g.URL(), "us")
	u := access.Subject{Kind: access.User, Name: "u"}
	for name, call := range map[string]func() error{
		"AddUser":           func() error { return c.AddUser(ctx, tidemark.User{Name: "u"}) },
		"User":              func() error { _, err := c.User(ctx, "u"); return err },
		"Users":             func() error { _, err := c.Users(ctx, "", 9); return err },
		"SetDisabled":       func() error { return c.SetDisabled(ctx, "u", true) },
		"Password":          func() error { _, err := c.Password(ctx, "u"); return err },
		"RenewPassword":     func() error { return c.RenewPassword(ctx, "u", "a", "b") },
		"RemoveUser":        func() error { return c.RemoveUser(ctx, "u") },
		"HandOver":          func() error { return c.HandOver(ctx, "u", "v") },
		"AddGroup":          func() error { return c.AddGroup(ctx, "g") },
		"RemoveGroup":       func() error { return c.RemoveGroup(ctx, "g") },
		"Groups":            func() error { _, err := c.Groups(ctx); return err },
		"Members":           func() error { _, err := c.Members(ctx, "g"); return err },
		"Join":              func() error { return c.Join(ctx, "g", "u") },
		"Leave":             func() error { return c.Leave(ctx, "g", "u") },
		"SetProvidedGroups": func() error { return c.SetProvidedGroups(ctx, "u", []string{"g"}) },
		"AddGrant": func() error {
			_, err := c.AddGrant(Patient(ctx), access.Grant{Subject: u, Role: access.Admin, Scope: access.Scope{Kind: access.Everything}})
			return err
		},
		"RemoveGrant":  func() error { return c.RemoveGrant(ctx, 1) },
		"Grants":       func() error { _, err := c.Grants(ctx, 0, 9); return err },
		"Principal":    func() error { _, _, err := c.Principal(ctx, "u", access.ByToken); return err },
		"ByToken":      func() error { _, _, err := c.ByToken(ctx, access.Hash{}, time.Now()); return err },
		"BySession":    func() error { _, _, err := c.BySession(ctx, access.Hash{}, time.Now()); return err },
		"Tokens":       func() error { _, err := c.Tokens(ctx, "", 0, 9); return err },
		"RevokeToken":  func() error { return c.RevokeToken(ctx, "", 1) },
		"Sessions":     func() error { _, err := c.Sessions(ctx, "u"); return err },
		"SweepSecrets": func() error { return c.SweepSecrets(ctx, time.Now()) },
		"PutObject":    func() error { return c.PutObject(ctx, access.Object{Kind: access.KindClone, Name: "k"}) },
	} {
		back(t, c)
		g.Set(true, false)
		err := call()
		if !errors.Is(err, ErrAway) || tidemark.KindOf(err) != tidemark.Unavailable || err.Error() != away(nil, false).Error() {
			t.Errorf("%s: %v", name, err)
		}
		g.Set(false, false)
	}
}

// A database that lets a catalog in no more is away, until it does again.
func TestLetIn(t *testing.T) {
	ctx := context.Background()
	server := catalogtest.StartPostgres(t)
	admin := func(statement string) {
		t.Helper()
		if out, err := exec.Command("psql", "-h", server, "-U", "postgres", "-c", statement).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	admin("CREATE ROLE cat LOGIN SUPERUSER")
	c := openFor(t, "postgres://cat@/postgres?host="+server, "us")
	back(t, c)
	admin("ALTER ROLE cat NOLOGIN")
	admin("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'cat'")
	for range 3 {
		if _, err := c.Users(ctx, "", 9); !errors.Is(err, ErrAway) || err.Error() != away(nil, false).Error() {
			t.Fatal(err)
		}
	}
	admin("ALTER ROLE cat LOGIN")
	back(t, c)
}

// within waits for a channel to be closed.
func within(t *testing.T, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the answer was not lost")
	}
}

// back waits until a catalog works again.
func back(t *testing.T, c *Catalog) {
	t.Helper()
	ctx, cancel := context.WithTimeout(Patient(context.Background()), 30*time.Second)
	defer cancel()
	if err := c.Put(ctx, Mounts, "m", "x"); err != nil {
		t.Fatal(err)
	}
}

// A job whose COMMIT is not answered is recorded once, if the database is back soon, or if it is a part that is waited for with patience. Else who
// asked for it is told that it failed, and it is not done, whatever was recorded.
func TestUnansweredEnqueue(t *testing.T) {
	ctx := context.Background()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	c := openFor(t, g.URL(), "us")
	count := func(want int) {
		t.Helper()
		if l, err := c.Jobs(ctx, tidemark.JobFilter{Limit: 99}); err != nil || len(l) != want {
			t.Fatalf("%d jobs, not %d: %+v, %v", len(l), want, l, err)
		}
	}

	lost := g.LoseCommit(`INSERT INTO "jobs"`, false)
	j, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "a", Now: true}, plenty)
	within(t, lost)
	if err != nil || j.State != tidemark.JobRunning || j.Attempt != 1 {
		t.Fatalf("it is running, and who asked is told %+v, %v", j, err)
	}
	count(1)

	lost = g.LoseCommit(`INSERT INTO "jobs"`, true)
	ended := make(chan error, 1)
	var part *Job
	go func() {
		var err error
		part, err = c.Enqueue(Patient(ctx), NewJob{Kind: "capture", Application: "b", Parent: j.ID, Part: "p"}, plenty)
		ended <- err
	}()
	within(t, lost)
	time.Sleep(2 * settleFor)
	g.Set(false, false)
	if err := <-ended; err != nil {
		t.Fatalf("the part is there, and who asked is told that it failed: %v", err)
	}
	if p, err := c.PartAtLast(ctx, j.ID, "p"); err != nil || p == nil || p.ID != part.ID {
		t.Fatalf("%+v, %v", p, err)
	}
	count(2)
	if got := claim(t, c, plenty); got != part.ID {
		t.Fatalf("claimed %d", got)
	}

	key := NewKey("key", "server")
	if known, err := c.TakeKey(ctx, key, "print"); err != nil || known != nil {
		t.Fatal(known, err)
	}
	for i, now := range []bool{false, true} {
		lost = g.LoseCommit(`INSERT INTO "jobs"`, true)
		_, err = c.Enqueue(ctx, NewJob{Kind: "capture", Application: "c", Now: now}, plenty)
		within(t, lost)
		if !errors.Is(err, ErrAway) || !MayBeDone(ctx, err) {
			t.Fatal(err)
		}
		g.Set(false, false)
		back(t, c)
		count(3 + i)
		switch id := int64(3 + i); now {
		case false: // it waits, and is there for who has the key next
			if j, err := c.Job(ctx, id); err != nil || j.State != tidemark.JobQueued {
				t.Fatalf("this tests nothing: %+v, %v", j, err)
			}
			if err := c.ReleaseKey(ctx, key); err != nil {
				t.Fatal(err)
			}
			if j, err := c.Job(ctx, id); err != nil || j.State != tidemark.JobFailed || tidemark.KindOf(j.Error) != tidemark.Unavailable {
				t.Fatalf("the key is free, and the job is %+v, %v", j, err)
			}
		case true:
			if j, err := c.Job(ctx, id); err != nil || j.State != tidemark.JobRunning {
				t.Fatalf("this tests nothing: %+v, %v", j, err)
			}
			if j, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "c", Now: true}, plenty); err != nil || j.State != tidemark.JobRunning || j.ID == id {
				t.Fatalf("what nobody was told of is in the way: %+v, %v", j, err)
			}
			if j, err := c.Job(ctx, id); err != nil || j.State != tidemark.JobFailed {
				t.Fatalf("%+v, %v", j, err)
			}
		}
	}
	if got := claim(t, c, plenty); got != 0 || len(c.doubts.all()) > 0 {
		t.Fatalf("claimed %d; in doubt are %q", got, c.doubts.all())
	}
}

// Of what failed while the database was away it is known whether it may have been done.
func TestMayBeDone(t *testing.T) {
	ctx := context.Background()
	g := catalogtest.NewGate(t, catalogtest.StartPostgres(t))
	c := openFor(t, g.URL(), "us")
	key := NewKey("key", "server")
	lost := g.LoseAnswer("INSERT INTO answers", true)
	_, err := c.TakeKey(ctx, key, "print")
	within(t, lost)
	if !errors.Is(err, ErrAway) || !MayBeDone(ctx, err) {
		t.Fatal(err, errors.Unwrap(err))
	}
	if _, err := c.TakeKey(ctx, key, "print"); !errors.Is(err, ErrAway) || MayBeDone(ctx, err) {
		t.Fatalf("the database was not even asked: %v", err)
	}
	g.Set(false, false)
	back(t, c)
	if known, err := c.TakeKey(ctx, NewKey("key", "server"), "print"); err != nil || known == nil {
		t.Fatalf("this tests nothing: %v, %v", known, err)
	}
	if known, err := c.TakeKey(ctx, key, "print"); err != nil || known != nil {
		t.Fatalf("%+v, %v", known, err)
	}
	cut, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.TakeKey(cut, key, "print"); err == nil || !MayBeDone(cut, err) {
		t.Fatal(err)
	}
	if _, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "a", Now: true}, plenty); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "a", Now: true}, plenty); tidemark.KindOf(err) != tidemark.Conflict || MayBeDone(ctx, err) {
		t.Fatal(err)
	}
}

// A URL that cannot be used is told without its password.
func TestBadURL(t *testing.T) {
	for _, at := range []string{"postgres://u:hush@host:port/db", "postgres://u:hush@/db?host=/nowhere&connect_timeout=1", "postgresql://u:hush@127.0.0.1:1/db"} {
		_, err := Open(context.Background(), at, "us")
		if err == nil {
			t.Fatalf("%s: opened", at)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if s := e.Error(); len(s) == 0 || strings.Contains(s, "hush") {
				t.Fatalf("it tells the password: %v", e)
			}
		}
	}
}
