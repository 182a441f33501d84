package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
	"tidemark/policy"
)

// TestRan: of many runs the newest are remembered, and the newest good one however old it is: intervals count from that.
func TestRan(t *testing.T) {
	var k record
	at := time.Unix(1000, 0)
	add := func(p policy.Policy, s policy.RunState) {
		at = at.Add(time.Minute)
		k.ran(policy.Run{Policy: p, State: s, Started: at, Finished: at})
	}
	add(policy.PolicyCapture, policy.RunDone)
	good := at
	add(policy.PolicyVerify, policy.RunDone)
	for range 3 * keptRuns {
		add(policy.PolicyCapture, policy.RunFailed)
	}
	captures, verifies, found := 0, 0, false
	for i, r := range k.Runs {
		if i > 0 && r.Started.Before(k.Runs[i-1].Started) {
			t.Errorf("run %d is out of order", i)
		}
		if r.Policy == policy.PolicyVerify {
			verifies++
			continue
		}
		captures++
		found = found || r.State == policy.RunDone && r.Started.Equal(good)
	}
	if captures != keptRuns+1 || verifies != 1 || !found {
		t.Errorf("%d captures and %d verifies are remembered, the good one: %v", captures, verifies, found)
	}
}

// TestMadeName: what a person named is told from what was named for him.
func TestMadeName(t *testing.T) {
	for name, made := range map[string]bool{
		"sla-20261128-040953.808": true, "auto-20261128-040953.808": true, "c20261128-040953.808": true, "c20261128-040953.808-2": true,
		"nightly": false, "sla-": false, "sla-gold": false, "auto-save": false, "c3": false, "before-rewind-20261128-040953.808": false, "xsla-20261128-040953.808": false,
	} {
		if got := madeName.MatchString(name); got != made {
			t.Errorf("%s: made by us: %v", name, got)
		}
	}
}

// BenchmarkTick is what the scheduler does each time, for a thousand applications with an hourly template and ten points each: when nothing
// is due, and when all have to be looked at.
func BenchmarkTick(b *testing.B) {
	const applications, points = 1000, 10
	ctx := context.Background()
	c, err := Open(ctx, Options{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler), CacheBytes: 16 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	const template = "kind: Template\nname: hourly\ncapture:\n  every: 1h\nkeep:\n  count: 100\n"
	if _, err := c.Apply(ctx, []byte(template), false); err != nil {
		b.Fatal(err)
	}
	var all errgroup.Group
	all.SetLimit(8)
	for i := range applications {
		all.Go(func() error {
			name := fmt.Sprint("app", i)
			_, err := c.CreateVolume(ctx, tidemark.VolumeSpec{Name: name, Size: 1 << 20})
			for p := range points {
				if err == nil {
					_, err = c.Bookmark(ctx, tidemark.BookmarkSpec{Application: name, Name: fmt.Sprint("point", p)})
				}
			}
			if err == nil {
				err = c.SetSLA(ctx, name, "hourly")
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		b.Fatal(err)
	}
	c.keepAll(ctx, time.Now()) // what is due at once
	b.Run("nothing due", func(b *testing.B) {
		for b.Loop() {
			c.keepAll(ctx, time.Now())
		}
	})
	b.Run("all anew", func(b *testing.B) {
		for b.Loop() {
			c.promises.anew()
			c.keepAll(ctx, time.Now())
		}
	})
}

// A recovery proof that a schedule has asked for is known as such when the server comes back: it is not asked for again.
func TestProofIsRecalled(t *testing.T) {
	o := Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20}
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close() }()
	_, err = c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20})
	if err == nil {
		_, err = c.Bookmark(t.Context(), tidemark.BookmarkSpec{Application: "v", Name: "one"})
	}
	a, e := c.app("v")
	if err = errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	pos, err := a.t.Resolve(tidemark.Point{Bookmark: "one"})
	if err != nil {
		t.Fatal(err)
	}
	how := Ask{Queue: true, NotBefore: time.Now().Add(time.Hour), Origin: tidemark.FromSchedule}
	for i, ask := range []func() (tidemark.Job, error){
		func() (tidemark.Job, error) {
			return c.Prove(WithAsk(t.Context(), how), tidemark.ProveSpec{Ref: "v@" + pos.String()})
		},
		func() (tidemark.Job, error) { return c.Verify(WithAsk(t.Context(), how), "v@one") },
	} {
		j, err := ask()
		for n := 0; n < recalledJobs && i == 0 && err == nil; n++ { // that wait behind it, and are read first
			_, err = c.catalog.Enqueue(t.Context(), catalog.NewJob{Kind: "verify", Application: "w", Args: "w@one", NotBefore: how.NotBefore, MaxAttempts: 1}, c.limits())
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if c, err = Open(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if id, r := c.promises.ofJob(j.ID, policy.PolicyVerify); id != a.t.ID() || r.point != pos {
			t.Errorf("%d: it is of %q, and takes %v", i, id, r.point)
		}
		if err := c.CancelJob(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// What a schedule, or a workflow, would keep of a clone is bounded by what its owner may take: the run fails and says why, and when there is room again the
// next one goes on.
func TestNoRoomForPoints(t *testing.T) {
	c, ctx := serving(t), t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.catalog.AddUser(ctx, tidemark.User{Name: "bob"}))
	g := access.Grant{Subject: access.Subject{Kind: access.User, Name: "bob"}, Role: access.Developer, Scope: access.Scope{Kind: access.Applications, Names: []access.Pattern{"v"}},
		Limits: access.Limits{Clones: 1, Lifetime: access.Unlimited, Hosts: []access.Pattern{"*"}, Points: access.PointRule{Any: true}}}
	id, err := c.catalog.AddGrant(ctx, g)
	must(err)
	j, err := c.Clone(WithAsk(ctx, by(t, c, "bob")), tidemark.CloneSpec{Ref: "v", Name: "bq"})
	if err == nil {
		_, err = c.Job(ctx, j.ID, time.Minute)
	}
	must(err)
	a, err := c.app("bq")
	must(err)
	before := len(a.t.Points())
	_, err = c.Apply(ctx, []byte("kind: Template\nname: dev\nspread: 0s\ncapture:\n  every: 1h\n"), false)
	must(err)
	must(c.SetSLA(ctx, "bq", "dev"))
	const why = "of 0 bytes are taken"
	runs := func() []policy.Run {
		c.promises.mu.Lock()
		defer c.promises.mu.Unlock()
		if k := c.promises.records[a.t.ID()]; k != nil {
			return k.Runs
		}
		return nil
	}
	holds(t, "its capture fails", func() bool { return len(runs()) > 0 })
	if r := runs()[0]; r.State != policy.RunFailed || !strings.Contains(r.Error, why) {
		t.Errorf("%+v", r)
	}
	if a, err = c.app("bq"); err == nil {
		p, _ := a.promised()
		templates, terr := c.templates(ctx)
		must(terr)
		if x := c.comply(ctx, a, p, templates, time.Now().Add(3*time.Hour)); x.State == policy.OK || !strings.Contains(fmt.Sprint(x), why) {
			t.Errorf("%+v", x)
		}
	}
	must(err)
	applied(t, c, "", "  - bookmark: {app: bq, name: mine}\n")
	if j := ran(t, c, "bob"); j.Error == nil || !strings.Contains(j.Error.Message, why) {
		t.Errorf("by a workflow: %s, %v", j.State, j.Error)
	}
	if n := len(a.t.Points()); n != before {
		t.Errorf("there are %d points, and not %d", n, before)
	}
	must(c.catalog.RemoveGrant(ctx, id))
	g.Limits.Bytes = access.Unlimited
	_, err = c.catalog.AddGrant(ctx, g)
	must(err)
	holds(t, "it is captured when there is room", func() bool {
		c.promises.anew()
		c.keepAll(ctx, time.Now().Add(2*time.Minute)) // it is tried again, once the failure is noted
		return len(a.t.Points()) > before
	})
}
