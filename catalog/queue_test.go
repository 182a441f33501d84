package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"tidemark"
)

var plenty = Limits{Host: 1000, All: 1000}

// enqueue queues a job that somebody waits for.
func enqueue(t *testing.T, c *Catalog, n NewJob) int64 {
	t.Helper()
	if n.Kind == "" {
		n.Kind = "capture"
	}
	j, err := c.Enqueue(context.Background(), n, plenty)
	if err != nil {
		t.Fatal(err)
	}
	return j.ID
}

// claim begins the next job, and returns its number, or 0.
func claim(t *testing.T, c *Catalog, l Limits) int64 {
	t.Helper()
	j, err := c.Claim(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	if j == nil {
		return 0
	}
	if j.State != tidemark.JobRunning {
		t.Fatalf("claimed, and %s", j.State)
	}
	return j.ID
}

func done(t *testing.T, c *Catalog, id int64) {
	t.Helper()
	if err := c.Finish(context.Background(), id, tidemark.JobDone, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// Nobody sees or changes what belongs to another data directory.
func owners(t *testing.T, at string) {
	ctx := context.Background()
	us := openFor(t, at, "us")
	if !us.outage.remote {
		t.Skip("a file has one owner")
	}
	them := openFor(t, at, "them")
	for _, c := range []*Catalog{us, them} {
		if err := errors.Join(c.Put(ctx, Mounts, "m", c.owner), c.AddEvent(ctx, tidemark.Event{Time: time.Now(), Message: c.owner})); err != nil {
			t.Fatal(err)
		}
		enqueue(t, c, NewJob{Application: "a"})
	}
	if err := them.Delete(ctx, Mounts, "m"); err != nil {
		t.Fatal(err)
	}
	if l, err := List[string](ctx, us, Mounts); err != nil || !slices.Equal(l, []string{"us"}) {
		t.Fatalf("%v, %v", l, err)
	}
	if e, err := us.Events(ctx, 9); err != nil || len(e) != 1 || e[0].Message != "us" {
		t.Fatalf("%v, %v", e, err)
	}
	if l, err := us.Jobs(ctx, tidemark.JobFilter{Limit: 9}); err != nil || len(l) != 1 || l[0].ID != 1 {
		t.Fatalf("%v, %v", l, err)
	}
	if _, err := us.Job(ctx, 2); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatal(err)
	}
	if _, err := us.Cancel(ctx, 2); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatal(err)
	}
	if a, b, none := claim(t, us, plenty), claim(t, them, plenty), claim(t, us, plenty); a != 1 || b != 2 || none != 0 {
		t.Fatalf("claimed %d, %d, %d", a, b, none)
	}
	if l, err := us.TakeOver(ctx); err != nil || len(l) != 1 {
		t.Fatalf("%v, %v", l, err)
	}
	if err := us.Finish(ctx, 2, tidemark.JobDone, nil, nil); !errors.Is(err, ErrLost) {
		t.Fatalf("finished another's job: %v", err)
	}
}

// The highest priority comes first, then the oldest; who waits for a time or an application keeps nobody waiting.
func order(t *testing.T, c *Catalog) {
	at := time.Now()
	c.now = func() time.Time { return at }
	enqueue(t, c, NewJob{Application: "a"})                                              // 1
	enqueue(t, c, NewJob{Application: "a", Priority: 5})                                 // 2
	enqueue(t, c, NewJob{Application: "b", Priority: 9, NotBefore: at.Add(time.Minute)}) // 3
	enqueue(t, c, NewJob{Application: "c"})                                              // 4
	enqueue(t, c, NewJob{Kind: "verify", Priority: -1})                                  // 5
	for _, want := range []int64{2, 4, 5, 0} {
		if got := claim(t, c, plenty); got != want {
			t.Fatalf("claimed %d, not %d", got, want)
		}
	}
	done(t, c, 2)
	at = at.Add(time.Hour)
	for _, want := range []int64{3, 1, 0} {
		if got := claim(t, c, plenty); got != want {
			t.Fatalf("claimed %d, not %d", got, want)
		}
	}
	// A clock that is set back keeps no job waiting until it comes there again.
	enqueue(t, c, NewJob{Application: "d", NotBefore: at.Add(time.Minute)})
	at = at.Add(-1000 * time.Hour)
	if got := claim(t, c, plenty); got != 6 {
		t.Fatalf("claimed %d", got)
	}
}

func limits(t *testing.T, at string) {
	ctx := context.Background()
	c := openFor(t, at, "us")
	l := Limits{Host: 2, All: 3}
	for i := range 6 {
		enqueue(t, c, NewJob{Application: fmt.Sprint(i), Host: "h"})
	}
	enqueue(t, c, NewJob{Kind: "verify"})
	enqueue(t, c, NewJob{Kind: "verify"})
	for _, want := range []int64{1, 2, 7, 0} { // two of the host, three in all
		if got := claim(t, c, l); got != want {
			t.Fatalf("claimed %d, not %d", got, want)
		}
	}
	j, err := c.Enqueue(ctx, NewJob{Kind: "capture", Application: "z", Now: true}, l)
	if err != nil || j.State != tidemark.JobQueued {
		t.Fatalf("beyond the limit: %+v, %v", j, err)
	}
	load, err := c.Load(ctx)
	if err != nil || load.All != 3 || load.Hosts["h"] != 2 || load.Busy["0"].ID != 1 {
		t.Fatalf("%+v, %v", load, err)
	}
	done(t, c, 1)
	if got := claim(t, c, l); got != 3 {
		t.Fatalf("claimed %d", got)
	}
	if !c.outage.remote {
		return
	}
	// Another server's jobs count on their host, as long as it lives.
	them := openFor(t, at, "them")
	enqueue(t, them, NewJob{Application: "0", Host: "h"})
	if got := claim(t, them, l); got != 0 {
		t.Fatalf("claimed %d", got)
	}
	them.now = func() time.Time { return time.Now().Add(2 * LeaseFor) }
	if got := claim(t, them, l); got != 10 {
		t.Fatalf("claimed %d", got)
	}
}

// What policies ask for waits while as many jobs of its profile run as may; what people ask for does not, and counts.
func profiles(t *testing.T, at string) {
	c := openFor(t, at, "us")
	scheduled := func(app, profile string) int64 {
		return enqueue(t, c, NewJob{Application: app, Profile: profile, Origin: tidemark.FromSchedule, Priority: 1})
	}
	l := plenty
	l.Profiles = map[string]int{"one": 1, "two": 2}
	a, b := scheduled("a", "one"), scheduled("b", "one")
	free, two, three, four := scheduled("c", "none"), scheduled("d", "two"), scheduled("e", "two"), scheduled("f", "two")
	hand := enqueue(t, c, NewJob{Application: "g", Profile: "one", Origin: tidemark.FromQueue})
	for _, want := range []int64{a, free, two, three, hand, 0} {
		if got := claim(t, c, l); got != want {
			t.Fatalf("claimed %d, not %d", got, want)
		}
	}
	if load, err := c.Load(context.Background()); err != nil || load.Profiles["one"] != 2 || load.Profiles["two"] != 2 || load.Profiles["none"] != 1 {
		t.Fatalf("%+v, %v", load, err)
	}
	if j, err := c.Job(context.Background(), a); err != nil || j.Profile != "one" {
		t.Fatalf("%+v, %v", j, err)
	}
	done(t, c, a)
	if got := claim(t, c, l); got != 0 { // one that somebody asked for runs
		t.Fatalf("claimed %d", got)
	}
	done(t, c, hand)
	if got := claim(t, c, l); got != b {
		t.Fatalf("claimed %d, not %d", got, b)
	}
	if got := claim(t, c, plenty); got != four { // the bound is no more
		t.Fatalf("claimed %d, not %d", got, four)
	}
	if !c.outage.remote {
		return
	}
	them := openFor(t, at, "them") // has profiles of its own
	if id := enqueue(t, them, NewJob{Application: "a", Profile: "one", Origin: tidemark.FromSchedule}); claim(t, them, l) != id {
		t.Fatal("another's jobs count")
	}
}

func again(t *testing.T, c *Catalog) {
	ctx := context.Background()
	at := time.Now()
	c.now = func() time.Time { return at }
	enqueue(t, c, NewJob{Application: "a", Args: "old", MaxAttempts: 3})
	claim(t, c, plenty)
	if err := c.Step(ctx, 1, "copy", "undo"); err != nil {
		t.Fatal(err)
	}
	why := tidemark.Errorf(tidemark.Unavailable, "no answer")
	for range 2 {
		if err := c.Requeue(ctx, 1, Again{Attempt: 1, After: time.Minute, Args: []byte(`"new"`), Failure: why}); err != nil {
			t.Fatal(err)
		}
	}
	j, err := c.Job(ctx, 1)
	if err != nil || j.State != tidemark.JobQueued || j.Error.Message != "no answer" || string(j.Args) != `"new"` || len(j.Undo) > 0 || j.NotBefore == nil {
		t.Fatalf("%+v, %v", j, err)
	}
	if got := claim(t, c, plenty); got != 0 {
		t.Fatal("it does not wait")
	}
	at = at.Add(time.Minute)
	if got := claim(t, c, plenty); got != 1 {
		t.Fatal("it waits too long")
	}
	// A request to begin attempt 1 again, which arrives late, does nothing to attempt 2.
	if err := c.Requeue(ctx, 1, Again{Attempt: 1}); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	if j, err := c.Job(ctx, 1); err != nil || j.State != tidemark.JobRunning || j.Attempt != 2 {
		t.Fatalf("%+v, %v", j, err)
	}
	if _, err := c.Cancel(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := c.Requeue(ctx, 1, Again{Attempt: 2, Failure: why}); err != nil {
		t.Fatal(err)
	}
	if j, err := c.Job(ctx, 1); err != nil || j.State != tidemark.JobCancelled || j.Finished == nil || j.Error.Kind != tidemark.Cancelled {
		t.Fatalf("%+v, %v", j, err)
	}
}

func cancel(t *testing.T, at string) {
	ctx := context.Background()
	c, other := openFor(t, at, "us"), openFor(t, at, "us")
	enqueue(t, c, NewJob{Application: "a"})
	enqueue(t, c, NewJob{Application: "b"})
	claim(t, c, plenty)
	if running, err := other.Cancel(ctx, 2); err != nil || running {
		t.Fatal(running, err)
	}
	if j, err := c.Job(ctx, 2); err != nil || j.State != tidemark.JobCancelled || j.Error.Kind != tidemark.Cancelled {
		t.Fatalf("%+v, %v", j, err)
	}
	if running, err := other.Cancel(ctx, 1); err != nil || !running {
		t.Fatal(running, err)
	}
	if h, err := c.Renew(ctx); err != nil || len(h) != 1 || !h[0].Cancelling {
		t.Fatal(h, err)
	}
	done(t, c, 1)
	if h, err := c.Renew(ctx); err != nil || len(h) != 0 {
		t.Fatal(h, err)
	}
	if _, err := c.Cancel(ctx, 1); tidemark.KindOf(err) != tidemark.Conflict {
		t.Fatal(err)
	}
	if _, err := c.Cancel(ctx, 99); tidemark.KindOf(err) != tidemark.NotFound {
		t.Fatal(err)
	}
}

// What a process held that died is its successor's; should it live after all, nothing that it says counts.
func takeOver(t *testing.T, at string) {
	ctx := context.Background()
	dead, next := openFor(t, at, "us"), openFor(t, at, "us")
	enqueue(t, dead, NewJob{Application: "a"})
	enqueue(t, dead, NewJob{Application: "b"})
	claim(t, dead, plenty)
	if err := dead.Step(ctx, 1, "make", "this"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if l, err := next.TakeOver(ctx); err != nil || len(l) != 1 || l[0].ID != 1 || string(l[0].Undo) != `"this"` {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	for _, err := range []error{dead.Step(ctx, 1, "x", nil), dead.Progress(ctx, 1, tidemark.Progress{}), dead.Finish(ctx, 1, tidemark.JobDone, nil, nil), dead.Requeue(ctx, 1, Again{Attempt: 1})} {
		if !errors.Is(err, ErrLost) || tidemark.KindOf(err) != tidemark.Conflict {
			t.Fatal(err)
		}
	}
	if h, err := dead.Renew(ctx); err != nil || len(h) != 0 {
		t.Fatal(h, err)
	}
	done(t, next, 1)
}

func pages(t *testing.T, c *Catalog) {
	ctx := context.Background()
	for i := range 25 {
		enqueue(t, c, NewJob{Kind: []string{"capture", "verify"}[i%2], Application: fmt.Sprint(i % 3)})
	}
	claim(t, c, plenty)
	var ids []int64
	f := tidemark.JobFilter{Kind: "capture", States: []tidemark.JobState{tidemark.JobQueued}, Application: "1", Limit: 2}
	for {
		l, err := c.Jobs(ctx, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range l {
			ids = append(ids, j.ID)
		}
		if len(l) < f.Limit {
			break
		}
		f.Before = l[len(l)-1].ID
	}
	if want := []int64{23, 17, 11, 5}; !slices.Equal(ids, want) {
		t.Fatalf("%v, not %v", ids, want)
	}
	if l, err := c.Jobs(ctx, tidemark.JobFilter{States: []tidemark.JobState{tidemark.JobRunning, tidemark.JobDone}, Limit: 10}); err != nil || len(l) != 1 || l[0].ID != 1 {
		t.Fatalf("%v, %v", l, err)
	}
}

// What an older release kept belongs to who opens it.
func upgrade(t *testing.T, at string) {
	ctx := context.Background()
	c, dialect, err := connect(at)
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(dialect, c.write.DB, migrationsOf(dialect))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(ctx, 1); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"INSERT INTO things (kind, name, body, changed) VALUES ('mount', 'm', '\"kept\"', 7)",
		"INSERT INTO events (at, level, application, message) VALUES (1, 'info', '', 'old')",
		`INSERT INTO jobs (kind, application, state, step, done, total, unit, args, undo, result, error, created, started, finished)
			VALUES ('capture', 'a', 'running', 'copy', 1, 2, 'bytes', '{}', '{"remove":"x"}', '', '', 5, 6, 0)`,
		`INSERT INTO jobs (kind, application, state, step, done, total, unit, args, undo, result, error, created, started, finished)
			VALUES ('capture', 'a', 'done', '', 2, 2, 'bytes', '{}', '', '{"x":1}', 'null', 5, 6, 7)`,
	} {
		if _, err := c.write.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(c.write.Close(), c.read.Close()); err != nil {
		t.Fatal(err)
	}
	us := openFor(t, at, "us")
	if l, err := List[string](ctx, us, Mounts); err != nil || !slices.Equal(l, []string{"kept"}) {
		t.Fatalf("%v, %v", l, err)
	}
	if e, err := us.Events(ctx, 2); err != nil || len(e) != 1 || e[0].Message != "old" {
		t.Fatalf("%v, %v", e, err)
	}
	if l, err := us.TakeOver(ctx); err != nil || len(l) != 1 || l[0].Attempt != 1 || string(l[0].Undo) != `{"remove":"x"}` {
		t.Fatalf("%+v, %v", l, err)
	}
	if j, err := us.Job(ctx, 2); err != nil || j.State != tidemark.JobDone || j.Result == nil || j.Error != nil {
		t.Fatalf("%+v, %v", j, err)
	}
	// With a file, a lost identity loses nothing else.
	us.Close()
	next := openFor(t, at, "renamed")
	l, err := List[string](ctx, next, Mounts)
	if want := !next.outage.remote; err != nil || (len(l) == 1) != want {
		t.Fatalf("%v, %v", l, err)
	}
}

// Many claim at once, and each job is claimed once; no limit is broken at any moment.
func race(t *testing.T, at string) {
	const claimers, each = 6, 12
	l := Limits{Host: 3, All: 4}
	first := openFor(t, at, "us")
	for i := range claimers * each {
		enqueue(t, first, NewJob{Application: fmt.Sprint(i % 9), Host: fmt.Sprint("h", i%2), Priority: i % 3})
	}
	var mu sync.Mutex
	got, on, apps := map[int64]int{}, map[string]int{}, map[string]int{}
	var wg sync.WaitGroup
	for range claimers {
		c := openFor(t, at, "us")
		wg.Go(func() {
			for {
				j, err := c.Claim(context.Background(), l)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if j == nil {
					all := len(got)
					mu.Unlock()
					if all == claimers*each {
						return
					}
					time.Sleep(time.Millisecond)
					continue
				}
				got[j.ID]++
				on[j.Host]++
				apps[j.Application]++
				if on[j.Host] > l.Host || on["h0"]+on["h1"] > l.All || apps[j.Application] > 1 {
					t.Errorf("too many run: %v, %v", on, apps)
				}
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				on[j.Host]--
				apps[j.Application]--
				mu.Unlock()
				if err := c.Finish(context.Background(), j.ID, tidemark.JobDone, nil, nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for id, n := range got {
		if n != 1 {
			t.Errorf("job %d was claimed %d times", id, n)
		}
	}
}

// modelled is a job as it must be.
type modelled struct {
	id                int64
	owner, app, host  string
	state             tidemark.JobState
	priority, attempt int
	queued, notBefore time.Time
	holder            string
	lease             time.Time
	cancelling        bool
}

// queueModel is a queue that is nothing but a list.
type queueModel struct {
	t      *testing.T
	rng    *rand.Rand
	at     string
	now    time.Time
	jobs   []*modelled
	live   map[string][]*Catalog // the processes of each owner
	dead   []*Catalog            // that say something all the same
	limits Limits
}

// model does things at random to a queue and to a list, with processes that die, and a clock that jumps.
func model(t *testing.T, at string) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("TIDEMARK_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("TIDEMARK_SEED=%d", seed)
	m := &queueModel{t: t, rng: rand.New(rand.NewPCG(seed, 2)), at: at, now: time.Now(), live: map[string][]*Catalog{}, limits: Limits{Host: 3, All: 5}}
	owners := []string{"us"}
	if Remote(at) {
		owners = append(owners, "them")
	}
	for _, o := range owners {
		m.live[o] = []*Catalog{m.open(o), m.open(o)}
	}
	steps := []func(){m.enqueue, m.enqueue, m.claim, m.claim, m.claim, m.finish, m.finish, m.requeue, m.cancel, m.renew, m.crash, m.zombie, m.jump}
	n := 800
	if os.Getenv("TIDEMARK_LONG") != "" {
		n = 10000
	}
	for i := range n {
		step := steps[m.rng.IntN(len(steps))]
		step()
		if i%25 == 0 || i == n-1 {
			m.compare()
		}
		if t.Failed() {
			t.Fatalf("in step %d", i)
		}
	}
}

func (m *queueModel) open(owner string) *Catalog {
	c := openFor(m.t, m.at, owner)
	c.now = func() time.Time { return m.now }
	return c
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// any returns a process that lives.
func (m *queueModel) any() *Catalog {
	return pick(m.rng, m.live[pick(m.rng, slices.Sorted(maps.Keys(m.live)))])
}

// running returns the jobs for which ok, or all.
func (m *queueModel) of(ok func(*modelled) bool) (list []*modelled) {
	for _, j := range m.jobs {
		if ok(j) {
			list = append(list, j)
		}
	}
	return list
}

func (m *queueModel) runs(j *modelled) bool { return j.state == tidemark.JobRunning }

func (m *queueModel) busy(owner, app string) bool {
	return app != "" && len(m.of(func(r *modelled) bool { return m.runs(r) && r.owner == owner && r.app == app })) > 0
}

// mayBegin reports whether nothing but its turn keeps a job from beginning.
func (m *queueModel) mayBegin(j *modelled) bool {
	return !m.busy(j.owner, j.app) &&
		(j.host == "" || len(m.of(func(r *modelled) bool {
			return m.runs(r) && r.host == j.host && (r.owner == j.owner || r.lease.After(m.now))
		})) < m.limits.Host) &&
		len(m.of(func(r *modelled) bool { return m.runs(r) && r.owner == j.owner })) < m.limits.All
}

func (m *queueModel) begin(j *modelled, c *Catalog) {
	j.state, j.holder, j.lease, j.notBefore = tidemark.JobRunning, c.holder, m.now.Add(LeaseFor), time.Time{}
	j.attempt++
}

func (m *queueModel) enqueue() {
	c := m.any()
	if len(m.of(func(j *modelled) bool { return j.state == tidemark.JobQueued })) > 30 {
		return
	}
	n := NewJob{Kind: "k", Application: pick(m.rng, []string{"", "a", "b", "c"}), Host: pick(m.rng, []string{"", "h", "i"}),
		Priority: m.rng.IntN(3), Now: m.rng.IntN(3) == 0, MaxAttempts: 3}
	if m.rng.IntN(3) == 0 {
		n.NotBefore = m.now.Add(time.Duration(m.rng.IntN(100)) * time.Second)
	}
	j := &modelled{id: int64(len(m.jobs) + 1), owner: c.owner, app: n.Application, host: n.Host, state: tidemark.JobQueued, priority: n.Priority, queued: m.now, notBefore: n.NotBefore}
	got, err := c.Enqueue(context.Background(), n, m.limits)
	if n.Now && m.busy(c.owner, n.Application) {
		if tidemark.KindOf(err) != tidemark.Conflict {
			m.t.Errorf("a job of a busy application: %v", err)
		}
		return
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if n.Now && m.mayBegin(j) {
		m.begin(j, c)
	}
	j.id = got.ID // numbers of refused jobs may be left out
	m.jobs = append(m.jobs, j)
	if got.State != j.state {
		m.t.Errorf("job %d is %s, not %s", got.ID, got.State, j.state)
	}
}

func (m *queueModel) claim() {
	c := m.any()
	var want *modelled
	for _, j := range m.jobs {
		if j.owner == c.owner && j.state == tidemark.JobQueued && (!j.notBefore.After(m.now) || j.queued.After(m.now)) && m.mayBegin(j) &&
			(want == nil || j.priority > want.priority) {
			want = j
		}
	}
	got := claim(m.t, c, m.limits)
	switch {
	case want == nil && got != 0:
		m.t.Errorf("claimed job %d, and not none", got)
	case want != nil && got != want.id:
		m.t.Errorf("claimed job %d, and not %d", got, want.id)
	case want != nil:
		m.begin(want, c)
	}
}

// held picks a process and a job that it runs.
func (m *queueModel) held() (*Catalog, *modelled) {
	c := m.any()
	list := m.of(func(j *modelled) bool { return m.runs(j) && j.holder == c.holder })
	if len(list) == 0 {
		return c, nil
	}
	return c, pick(m.rng, list)
}

func (m *queueModel) finish() {
	if c, j := m.held(); j != nil {
		j.state = pick(m.rng, []tidemark.JobState{tidemark.JobDone, tidemark.JobFailed})
		if err := c.Finish(context.Background(), j.id, j.state, nil, nil); err != nil {
			m.t.Error(err)
		}
	}
}

func (m *queueModel) requeue() {
	c, j := m.held()
	if j == nil {
		return
	}
	after := time.Duration(m.rng.IntN(60)) * time.Second
	if err := c.Requeue(context.Background(), j.id, Again{Attempt: j.attempt, After: after}); err != nil {
		m.t.Error(err)
	}
	j.queued, j.notBefore, j.state = m.now, m.now.Add(after), tidemark.JobQueued
	if j.cancelling {
		j.state = tidemark.JobCancelled
	}
}

func (m *queueModel) cancel() {
	c := m.any()
	list := m.of(func(j *modelled) bool { return j.owner == c.owner })
	if len(list) == 0 {
		return
	}
	j := pick(m.rng, list)
	running, err := c.Cancel(context.Background(), j.id)
	switch j.state {
	case tidemark.JobQueued:
		j.state = tidemark.JobCancelled
	case tidemark.JobRunning:
		j.cancelling = true
	default:
		if tidemark.KindOf(err) != tidemark.Conflict {
			m.t.Errorf("cancelled job %d, which is %s: %v", j.id, j.state, err)
		}
		return
	}
	if err != nil || running != m.runs(j) {
		m.t.Errorf("cancel job %d: %v, %v", j.id, running, err)
	}
}

func (m *queueModel) renew() {
	c := m.any()
	held, err := c.Renew(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	got := map[int64]bool{}
	for _, h := range held {
		got[h.ID] = h.Cancelling
	}
	want := map[int64]bool{}
	for _, j := range m.of(func(j *modelled) bool { return m.runs(j) && j.holder == c.holder }) {
		j.lease, want[j.id] = m.now.Add(LeaseFor), j.cancelling
	}
	if !maps.Equal(got, want) {
		m.t.Errorf("%v are held, not %v", got, want)
	}
}

// crash ends all processes of an owner, whose next one takes over what they ran.
func (m *queueModel) crash() {
	if m.rng.IntN(4) > 0 {
		return
	}
	owner := m.any().owner
	for _, c := range m.dead {
		c.Close()
	}
	m.dead = m.live[owner]
	next := m.open(owner)
	m.live[owner] = []*Catalog{next, m.open(owner)}
	cut, err := next.TakeOver(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	var got, want []int64
	for _, j := range cut {
		got = append(got, j.ID)
	}
	for _, j := range m.of(func(j *modelled) bool { return m.runs(j) && j.owner == owner }) {
		j.holder, j.lease = next.holder, m.now.Add(LeaseFor)
		want = append(want, j.id)
	}
	if !slices.Equal(got, want) {
		m.t.Errorf("took over %v, not %v", got, want)
	}
}

// zombie lets a process speak that was taken for dead.
func (m *queueModel) zombie() {
	if len(m.dead) == 0 {
		return
	}
	c := pick(m.rng, m.dead)
	for _, j := range m.of(func(j *modelled) bool { return m.runs(j) && j.owner == c.owner }) {
		if err := c.Finish(context.Background(), j.id, tidemark.JobDone, nil, nil); !errors.Is(err, ErrLost) {
			m.t.Errorf("job %d was finished by a process that had lost it: %v", j.id, err)
		}
	}
}

func (m *queueModel) jump() {
	d := time.Duration(m.rng.IntN(60)) * time.Second
	switch m.rng.IntN(10) {
	case 0:
		d = -10 * d
	case 1:
		d = 100 * d
	}
	m.now = m.now.Add(d)
}

// compare finds the queue as the list is.
func (m *queueModel) compare() {
	for owner, live := range m.live {
		list, err := live[0].Jobs(context.Background(), tidemark.JobFilter{Limit: 1 << 20})
		if err != nil {
			m.t.Fatal(err)
		}
		slices.Reverse(list)
		want := m.of(func(j *modelled) bool { return j.owner == owner })
		if len(list) != len(want) {
			m.t.Fatalf("%d jobs of %s, not %d", len(list), owner, len(want))
		}
		var all, over []int64
		for i, j := range want {
			if list[i].ID != j.id || list[i].State != j.state || list[i].Attempt != j.attempt {
				m.t.Errorf("%+v, and not %+v", list[i], *j)
			}
			if all = append(all, j.id); j.state != tidemark.JobQueued && j.state != tidemark.JobRunning {
				over = append(over, j.id)
			}
		}
		m.compareOver(live[0], all, over)
	}
}

// compareOver finds those jobs over that are.
func (m *queueModel) compareOver(c *Catalog, all, want []int64) {
	list, err := c.Over(context.Background(), append(all, 1<<40)) // one that there is not
	if err != nil {
		m.t.Fatal(err)
	}
	var got []int64
	for _, j := range list {
		got = append(got, j.ID)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		m.t.Errorf("%v are over, and not %v", got, want)
	}
}
