package survive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark"
	"tidemark/client"
)

// catalogs are where a server can have its catalog.
var catalogs = []struct {
	name  string
	place func(s *stage) *production // the PostgreSQL that has it, if one does
}{
	{"SQLite", func(*stage) *production { return nil }},
	{"PostgreSQL", func(s *stage) *production {
		dir := filepath.Join(s.dir, "catalog")
		if err := os.Mkdir(dir, 0o711); err != nil {
			s.t.Fatal(err)
		}
		s.catalog = newProduction(s.t, dir)
		s.env = []string{"TIDEMARK_CATALOG=" + s.catalog.url()}
		return s.catalog
	}},
}

// someCatalog has the server keep its catalog in one of the places, by the seed.
func (s *stage) someCatalog(rng *rand.Rand) {
	at := catalogs[rng.IntN(len(catalogs))]
	s.t.Logf("the catalog is in %s", at.name)
	at.place(s)
}

// loseCatalog takes from a server that is down all that is in its catalog.
func (s *stage) loseCatalog() {
	s.t.Helper()
	if s.catalog != nil {
		sql(s.t, s.catalog.conn(), "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
		return
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(filepath.Join(s.data, "catalog.db"+suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.t.Fatal(err)
		}
	}
}

// queueing is a server with a queue, that is killed.
type queueing struct {
	*stage
	rng   *rand.Rand
	files string // a protected directory
	image string // what is imported
	asked []asked
	deck  []int      // the sorts of jobs that come next
	more  *moreSorts // what the other sorts of jobs use; nil: they are not asked for
}

// asked is a job that was acknowledged.
type asked struct {
	tidemark.Job
	makes string // the clone that it makes
	marks string // the bookmark that it makes, as APP@BOOKMARK
}

// TestQueueKills kills the server in the middle of a queue of all sorts of jobs, again and again. All that was acknowledged ends, nothing
// is done twice where that does harm, and nothing is left over on the host.
func TestQueueKills(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4", program("postgres"))
	for _, at := range catalogs {
		t.Run(at.name, func(t *testing.T) {
			beside(t)
			q := &queueing{stage: newStage(t), rng: seeded(t)}
			at.place(q.stage)
			q.prepare()
			q.prepareMore()
			want, processes := q.held(), q.processes()
			n := 6
			if os.Getenv("TIDEMARK_LONG") != "" {
				n = 100
			}
			for i := range n {
				begun := time.Now()
				q.round(i)
				q.settled(want)
				if now := q.processes(); now != processes {
					t.Fatalf("%d processes of the program run, not %d", now, processes)
				}
				t.Logf("round %d: %s, %.1f s", i, q.summary(), time.Since(begun).Seconds())
			}
			q.removeMore()
			q.run("clone", "rm", "dev")
			q.run("unprotect", "files")
			q.settled("0 attachers, 0 loop devices")
		})
	}
}

// prepare makes what the rounds use: a directory, a clone of it, and a volume.
func (q *queueing) prepare() {
	q.files, q.image = filepath.Join(q.dir, "files"), filepath.Join(q.dir, "image")
	if err := os.Mkdir(q.files, 0o755); err != nil {
		q.t.Fatal(err)
	}
	q.change()
	q.start()
	q.run("protect", q.files, "--name", "files")
	q.run("capture", "files", "--bookmark", "first")
	q.run("clone", "files@first", "dev")
	q.run("volume", "import", "vol", q.image, "--bookmark", "first")
}

// change gives captures and imports something to do.
func (q *queueing) change() {
	for _, name := range []string{filepath.Join(q.files, fmt.Sprint("f", q.rng.IntN(5))), q.image} {
		b := make([]byte, 4<<20)
		for i := range b {
			b[i] = byte(q.rng.Uint32())
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			q.t.Fatal(err)
		}
	}
}

// client asks the server for jobs that wait.
func (s *stage) client() *client.Client {
	c := client.New(filepath.Join(s.data, "tidemark.sock"))
	c.Queue = true
	return c
}

// enqueue asks for a job at random. What is not acknowledged, because the server is killed, is no promise.
func (q *queueing) enqueue(name string) error {
	a := asked{}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := q.client()
	var err error
	switch sort := q.next(); sort {
	case 0:
		a.marks = "files@" + name
		a.Job, err = c.Capture(ctx, tidemark.CaptureSpec{Application: "files", Bookmark: name})
	case 1:
		a.Job, err = c.Capture(ctx, tidemark.CaptureSpec{Application: "dev", Bookmark: name})
	case 2:
		a.Job, err = c.Refresh(ctx, tidemark.RefreshSpec{Name: "dev"})
	case 3:
		a.marks = "vol@" + name
		a.Job, err = c.ImportVolume(ctx, tidemark.ImportSpec{Name: "vol", Path: q.image, Bookmark: name})
	case 4:
		a.makes = name
		a.Job, err = c.Clone(ctx, tidemark.CloneSpec{Ref: "files@first", Name: name})
	case 5:
		a.Job, err = c.Reclaim(ctx)
	case 6:
		a.Job, err = c.Verify(ctx, tidemark.VerifySpec{})
	default:
		a, err = q.enqueueMore(ctx, c, sort-fewSorts, name)
	}
	if err == nil {
		q.asked = append(q.asked, a)
	}
	return err
}

// fewSorts is how many sorts of jobs need nothing but what prepare makes.
const fewSorts = 7

// next is the sort of the next job: at random, and each as often as any other.
func (q *queueing) next() (sort int) {
	if len(q.deck) == 0 {
		n := fewSorts
		if q.more != nil {
			n += len(moreKinds)
		}
		q.deck = q.rng.Perm(n)
	}
	sort, q.deck = q.deck[0], q.deck[1:]
	return sort
}

// round asks for jobs, kills the server once or twice meanwhile, and looks at what became of them.
func (q *queueing) round(n int) {
	q.change()
	q.changeMore()
	q.asked = nil
	for i := range 6 + q.rng.IntN(4) {
		// A refresh takes dev away for a moment, in which it is not known.
		if err := q.enqueue(fmt.Sprintf("r%d-%d", n, i)); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
			q.t.Fatal(err)
		}
	}
	for range 1 + q.rng.IntN(2) {
		time.Sleep(time.Duration(q.rng.IntN(600)) * time.Millisecond)
		q.end(syscall.SIGKILL)
		q.start()
	}
	var ended []tidemark.Job
	for _, a := range q.asked {
		j := q.over(a.ID)
		q.check(a, j)
		ended = append(ended, j)
	}
	for _, j := range ask[[]tidemark.Job](q.stage, "jobs", "--state", "queued,running") {
		q.t.Errorf("a job goes on that nobody knows of: %+v", j)
	}
	q.checkMore(ended)
	for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
		if !slices.Contains(keptClones, c.Name) {
			q.run("clone", "rm", c.Name)
		}
	}
	if v := ask[tidemark.VerifyResult](q.stage, "verify"); len(v.Damaged) > 0 {
		q.t.Fatalf("verify: %v", v.Damaged)
	}
}

// over waits until a job has ended.
func (s *stage) over(id int64) tidemark.Job {
	s.t.Helper()
	for range 2400 {
		j := ask[tidemark.Job](s, "job", "show", fmt.Sprint(id))
		if j.State != tidemark.JobQueued && j.State != tidemark.JobRunning {
			return j
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("a job does not end: %s", s.run("jobs"))
	return tidemark.Job{}
}

// begunAgain are the kinds that are begun again after a cut.
var begunAgain = []string{"capture", "refresh", "verify", "reclaim", "clone", "import", "protect", "prepare"}

// check looks at what a job did. It is done, and what it makes is there; or it was cut, says so, and nothing is left of what it made.
func (q *queueing) check(a asked, j tidemark.Job) {
	t := q.t
	t.Helper()
	cut := j.State == tidemark.JobFailed && j.Error != nil && strings.Contains(j.Error.Message, "the server stopped during the "+j.Kind)
	switch {
	case j.Attempt < 1 || j.Attempt > j.MaxAttempts:
		t.Errorf("begun %d times: %+v", j.Attempt, j)
	case j.State == tidemark.JobDone:
	case j.Kind == "publish" && j.Error != nil && tidemark.KindOf(j.Error) == tidemark.Conflict && strings.Contains(j.Error.Message, "published already"): // by the one before
	case cut && !slices.Contains(begunAgain, j.Kind):
	default:
		t.Errorf("a job is lost: %+v: %v", j, j.Error)
	}
	if a.makes != "" {
		made := 0
		for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
			if c.Name == a.makes {
				made++
			}
		}
		if want := map[bool]int{true: 1}[j.State == tidemark.JobDone]; made != want {
			t.Errorf("%d clones %s, and not %d, of job %+v", made, a.makes, want, j)
		}
	}
	if a.marks != "" && j.State == tidemark.JobDone {
		app, mark, _ := strings.Cut(a.marks, "@")
		marked := 0
		for _, p := range ask[[]tidemark.RecoveryPoint](q.stage, "points", app) {
			if p.Bookmark == mark {
				marked++
			}
		}
		if marked != 1 {
			t.Errorf("%d bookmarks %s of job %+v", marked, a.marks, j)
		}
	}
}

// processes counts the processes of this stage's program: server, agent, and those for disks.
func (s *stage) processes() (n int) {
	s.t.Helper()
	last := -1
	for range 100 { // some that were started for a moment may end just now
		n = 0
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			if text, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(text), s.program+"\x00") {
				n++
			}
		}
		if n == last {
			return n
		}
		last = n
		time.Sleep(100 * time.Millisecond)
	}
	return n
}

// standBy starts a server that stands by, and returns it with what is sent when it is ready.
func (s *stage) standBy() (*exec.Cmd, <-chan error) {
	s.t.Helper()
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(s.program, "server", "--data", s.data, "--cache", "64MiB", "--standby")
	cmd.Stderr, cmd.Env = log, append(os.Environ(), s.env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if cmd.ProcessState == nil && cmd != s.cmd { // else its disks need it to be taken down
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); line != "standing by\n" {
		s.t.Fatalf("it does not stand by: %q, %v", line, err)
	}
	ready := make(chan error, 1)
	go func() {
		line, err := r.ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "ready ") {
			err = fmt.Errorf("it says %q", line)
		}
		ready <- err
	}()
	return cmd, ready
}

// mostTakeOver is how long a server that stands by may take, on a machine that has other things to do, too.
const mostTakeOver = 10 * time.Second

// TestStandby kills servers one after the other, each with another that stands by: I/O on a mounted disk goes on, and so does the queue.
func TestStandby(t *testing.T) {
	t.Parallel()
	need(t, "mkfs.ext4", program("postgres"))
	for _, at := range catalogs {
		t.Run(at.name, func(t *testing.T) {
			beside(t)
			q := &queueing{stage: newStage(t), rng: seeded(t)}
			at.place(q.stage)
			q.prepare()
			dir := filepath.Join(ask[[]tidemark.Clone](q.stage, "clones")[0].Path)
			for i := range 3 {
				idle, _ := q.standBy()
				if err := idle.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				if err := idle.Wait(); err != nil {
					t.Fatalf("one that stands by is stopped, and says %v", err)
				}
				next, ready := q.standBy()
				q.asked = nil
				for k := range 5 {
					if err := q.enqueue(fmt.Sprintf("s%d-%d", i, k)); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
						t.Fatal(err)
					}
				}
				q.end(syscall.SIGKILL)
				begun := time.Now()
				select {
				case err := <-ready:
					if err != nil {
						t.Fatalf("%v: %s", err, q.log())
					}
				case <-time.After(time.Minute):
					t.Fatalf("it does not take over: %s", q.log())
				}
				took := time.Since(begun)
				t.Logf("taken over after %v", took)
				if took > mostTakeOver {
					t.Errorf("it takes over after %v, and not within seconds: %s", took, q.log())
				}
				q.cmd = next
				for _, a := range q.asked {
					q.check(a, q.over(a.ID))
				}
				if err := os.WriteFile(filepath.Join(dir, "written"), []byte(fmt.Sprint(i)), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
					if c.Name != "dev" {
						q.run("clone", "rm", c.Name)
					}
				}
			}
			q.refused([]string{"another server runs"}, "server", "--data", q.data)
		})
	}
}

// TestCatalogAway takes the catalog's database away from a server. What serves disks does not notice, verbs say so in one line,
// a job that runs goes on, and all else by itself when it is back.
func TestCatalogAway(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", program("postgres"))
	q := &queueing{stage: newStage(t), rng: seeded(t)}
	db := catalogs[1].place(q.stage)
	q.prepare()
	q.run("clone", "files@first", "still") // of dev, a refresh may be what is cut off
	clones := ask[[]tidemark.Clone](q.stage, "clones")
	dir := clones[slices.IndexFunc(clones, func(c tidemark.Clone) bool { return c.Name == "still" })].Path
	for i, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGINT} {
		if err := q.enqueue(fmt.Sprintf("o%d", i)); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
			t.Fatal(err)
		}
		q.change()
		running, err := q.client().ImportVolume(context.Background(), tidemark.ImportSpec{Name: "vol", Path: q.image, Bookmark: fmt.Sprint("away", i)})
		if err != nil {
			t.Fatal(err)
		}
		db.stop(sig)
		time.Sleep(time.Second) // the import would be done by now
		for _, verb := range [][]string{{"clones"}, {"capture", "files"}, {"jobs"}, {"clone", "files", "x"}} {
			begun := time.Now()
			q.refused([]string{"the catalog's database does not answer", "ask again when it is back"}, verb...)
			if d := time.Since(begun); d > 20*time.Second {
				t.Errorf("%v took %v to say so", verb, d)
			}
		}
		name := filepath.Join(dir, fmt.Sprint("away", i))
		if err := os.WriteFile(name, []byte("written while the catalog was away"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command("sync", "-f", name).Run(); err != nil {
			t.Fatal(err)
		}
		if f, err := os.Open(name); err != nil {
			t.Fatal(err)
		} else if b, err := io.ReadAll(f); err != nil || !strings.Contains(string(b), "while the catalog") {
			t.Fatal(err)
		}
		db.start()
		q.runs("jobs")
		if j := q.over(running.ID); j.State != tidemark.JobDone {
			t.Errorf("the job that ran: %+v: %v", j, j.Error)
		}
		next, err := q.client().ImportVolume(context.Background(), tidemark.ImportSpec{Name: "vol", Path: q.image, Bookmark: fmt.Sprint("back", i)})
		if err != nil {
			t.Fatalf("it is over, and yet: %v", err)
		}
		if j := q.over(next.ID); j.State != tidemark.JobDone {
			t.Errorf("the next job: %+v: %v", j, j.Error)
		}
		for _, a := range q.asked {
			if j := q.over(a.ID); j.State != tidemark.JobDone {
				t.Errorf("a job that was queued: %+v: %v", j, j.Error)
			}
		}
		q.run("capture", "files")
	}
}

// TestSharedCatalog has two servers share a catalog: neither takes what is the other's for its own, not even when it is killed.
func TestSharedCatalog(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", program("postgres"))
	a, b := &queueing{stage: newStage(t), rng: seeded(t)}, &queueing{stage: newStage(t), rng: seeded(t)}
	catalogs[1].place(a.stage)
	b.env = a.env
	a.prepare()
	b.prepare() // with the same names
	b.run("clone", "files@first", "only")
	for i, q := range []*queueing{a, b, a, b} {
		q.asked = nil
		for k := range 4 {
			if err := q.enqueue(fmt.Sprintf("t%d-%d", i, k)); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
				t.Fatal(err)
			}
		}
		q.end(syscall.SIGKILL)
		other := map[*queueing]*queueing{a: b, b: a}[q]
		for _, x := range q.asked {
			other.refused([]string{"no job"}, "job", "show", fmt.Sprint(x.ID))
		}
		q.start()
		for _, x := range q.asked {
			q.check(x, q.over(x.ID))
		}
	}
	has := func(q *queueing) bool {
		return slices.ContainsFunc(ask[[]tidemark.Clone](q.stage, "clones"), func(c tidemark.Clone) bool { return c.Name == "only" })
	}
	if has(a) || !has(b) {
		t.Errorf("whose clone is it: %v, %v", has(a), has(b))
	}
	a.refused([]string{"only"}, "clone", "rm", "only")
}
