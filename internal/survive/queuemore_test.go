package survive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidemark"
	"tidemark/client"
)

// moreSorts is what jobs are done to that take longer, or have more to lose, than those on a directory and a volume.
type moreSorts struct {
	prod    *production // is protected as db; its clone dbdev is refreshed, and its LiveClone masked is prepared and published
	back    string      // the directory of the clone back, which is rewound
	disk    string      // is tapped, as tapped, and restored in place
	device  string      // where it is written
	base    string      // the checksum of the disk at its bookmark base
	now     string      // and before the jobs of this round
	rewinds int         // how often back was rewound
}

// moreKinds are the kinds of those jobs. A restore goes to a directory if it is not one in place.
var moreKinds = []string{"capture", "clone", "refresh", "prove", "rewind", "restore in place", "restore", "prepare", "publish", "protect"}

// keptClones are the clones that stay from round to round.
var keptClones = []string{"dev", "dbdev", "masked", "back"}

// paid is how many rows the table pay of the database has.
const paid = "500"

// prepareMore makes what the rounds of more sorts of jobs use.
func (q *queueing) prepareMore() {
	t, m := q.t, &moreSorts{disk: filepath.Join(q.dir, "disk")}
	dir := filepath.Join(q.dir, "source")
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	m.prod = newProduction(t, dir)
	sql(t, m.prod.conn(), "create table pay as select i id, '4929' || (123400000000 + i) card from generate_series(1, "+paid+") i")
	for name, text := range map[string]string{"preparations/mask.sql": livePreparation["preparations/mask.sql"], "secrets/cards.sql": livePreparation["secrets/cards.sql"]} {
		path := filepath.Join(q.data, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	q.run("protect", m.prod.url(), "--name", "db")
	q.run("capture", "db", "--bookmark", "first")
	q.run("clone", "db@first", "dbdev")
	q.run("liveclone", "make", "db@first", "masked", "--step", "mask.sql", "--secrets", "cards.sql")
	q.run("liveclone", "prepare", "masked")
	m.back = ask[tidemark.Clone](q.stage, "clone", "files@first", "back").Path
	q.run("capture", "back", "--bookmark", "base")
	if err := os.WriteFile(m.disk, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m.device = ask[tidemark.Application](q.stage, "protect", m.disk, "--cdp", "--name", "tapped").Tap.Disks[0].Device
	q.more = m
	q.writeTapped()
	q.run("bookmark", "tapped", "base")
	m.base = checksum(t, m.disk)
}

// writeTapped writes something to the tapped disk.
func (q *queueing) writeTapped() {
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(q.rng.Uint32())
	}
	f, err := os.OpenFile(q.more.device, os.O_WRONLY|os.O_SYNC, 0)
	if err == nil {
		_, err = f.WriteAt(b, q.rng.Int64N(8<<20-int64(len(b)))&^4095)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		q.t.Fatalf("write to a tapped disk: %v", err)
	}
	q.more.now = checksum(q.t, q.more.disk)
}

// later is a file that the clone back has only since its bookmark base.
func (m *moreSorts) later() string { return filepath.Join(m.back, "later") }

// changeMore gives rewinds and restores something to take back.
func (q *queueing) changeMore() {
	q.writeTapped()
	if err := os.WriteFile(q.more.later(), []byte("written since"), 0o600); err != nil {
		q.t.Fatal(err)
	}
	sql(q.t, q.more.prod.conn(), "update pay set id = id where id % 7 = 0")
}

// enqueueMore asks for a job of one of moreKinds.
func (q *queueing) enqueueMore(ctx context.Context, c *client.Client, sort int, name string) (a asked, err error) {
	switch moreKinds[sort] {
	case "capture":
		a.marks = "db@" + name
		a.Job, err = c.Capture(ctx, tidemark.CaptureSpec{Application: "db", Bookmark: name})
	case "clone":
		a.makes = name
		a.Job, err = c.Clone(ctx, tidemark.CloneSpec{Ref: "db@first", Name: name})
	case "refresh":
		a.Job, err = c.Refresh(ctx, tidemark.RefreshSpec{Name: "dbdev"})
	case "prove":
		a.Job, err = c.Prove(ctx, tidemark.ProveSpec{Ref: "db@first"})
	case "rewind":
		a.Job, err = c.Rewind(ctx, tidemark.RewindSpec{Ref: "back@base"})
	case "restore":
		a.Job, err = c.Restore(ctx, tidemark.RestoreSpec{Ref: "files@first", To: filepath.Join(q.dir, name)})
	case "restore in place":
		a.Job, err = c.Restore(ctx, tidemark.RestoreSpec{Ref: "tapped@base", InPlace: true})
	case "publish":
		if a.Job, err = c.Publish(ctx, tidemark.PublishSpec{Name: "masked"}); tidemark.KindOf(err) != tidemark.Conflict {
			break
		}
		fallthrough // the newest is published: there has to be another one first
	case "prepare":
		a.Job, err = c.Prepare(ctx, tidemark.PrepareSpec{Name: "masked"})
	case "protect":
		a.Job, err = c.Protect(ctx, tidemark.ProtectSpec{Source: q.files, Name: name})
	}
	return a, err
}

// checkMore looks at what the jobs of a round, which have ended, left of what they were done to.
func (q *queueing) checkMore(ended []tidemark.Job) {
	t, m := q.t, q.more
	t.Helper()
	did := map[string]int{}
	for _, j := range ended {
		if j.State != tidemark.JobDone {
			continue
		}
		did[j.Kind+map[bool]string{true: " in place"}[j.Kind == "restore" && j.Application == "tapped"]]++
	}
	q.checkRewound(did["rewind"])
	want, is := m.now, "what it was"
	if did["restore in place"] > 0 {
		want, is = m.base, "what it was at the bookmark"
	}
	if checksum(t, m.disk) != want {
		t.Errorf("after %d restores the tapped disk is not %s", did["restore in place"], is)
	}
	q.checkDatabases()
	for _, a := range ask[tidemark.Status](q.stage, "status").Applications {
		if slices.ContainsFunc(ended, func(j tidemark.Job) bool {
			return j.Kind == "protect" && j.State == tidemark.JobDone && j.Application == a.Name
		}) {
			did["protect"]--
			q.run("unprotect", a.Name, "--yes")
		}
	}
	if did["protect"] != 0 {
		t.Errorf("%d applications are gone whose protection was done", did["protect"])
	}
}

// checkRewound checks that the clone back was rewound as often as jobs say so, and is as such a one is.
func (q *queueing) checkRewound(times int) {
	t, m := q.t, q.more
	t.Helper()
	if _, err := os.Stat(m.later()); (err == nil) != (times == 0) {
		t.Errorf("after %d rewinds, what was written since: %v", times, err)
	}
	rewinds := 0
	for _, p := range ask[[]tidemark.RecoveryPoint](q.stage, "points", "back") {
		if strings.HasPrefix(p.Bookmark, "before-rewind-") {
			rewinds++
		}
	}
	if m.rewinds += times; rewinds != m.rewinds {
		t.Errorf("it was rewound %d times, and jobs say %d", rewinds, m.rewinds)
	}
}

// checkDatabases checks that each database answers, that what is masked stays so, and that nothing is left of proofs and publishes.
func (q *queueing) checkDatabases() {
	t := q.t
	t.Helper()
	for _, c := range ask[[]tidemark.Clone](q.stage, "clones") {
		if c.Type != tidemark.TypePostgres {
			continue
		}
		if n, err := query(c.Connection, "select count(*) from pay"); n != paid || err != nil {
			t.Errorf("the database of %s (%s) has %q rows: %v", c.Name, c.State, n, err)
		}
	}
	if n := q.askLive(t, "select count(*) from pay where card <> '0000000000000000'"); n != "0" {
		t.Errorf("%s rows are not masked", n)
	}
	for _, p := range ask[[]tidemark.RecoveryPoint](q.stage, "points", "masked") {
		if strings.HasPrefix(p.Bookmark, "before-prepare-") {
			t.Errorf("the bookmark %s is left", p.Bookmark)
		}
	}
	for _, p := range ask[[]tidemark.RecoveryPoint](q.stage, "points", "db") {
		if p.Proven != nil && p.Proven.Result != tidemark.Proven {
			t.Errorf("a proof that was cut says something of its point: %+v", p)
		}
	}
	for _, name := range []string{"db-proof", "masked-check"} {
		if _, err := q.try("points", name); err == nil {
			t.Errorf("the timeline %s is left", name)
		}
	}
	if n := sql(t, q.more.prod.conn(), "SELECT count(*) FROM pg_replication_slots"); n != "1" {
		t.Errorf("the database keeps log for %s that receive it", n)
	}
}

// removeMore takes away what prepareMore made.
func (q *queueing) removeMore() {
	for _, b := range ask[tidemark.LiveClone](q.stage, "liveclone", "show", "masked").Bookmarks {
		q.run("liveclone", "unpublish", "masked@"+b)
	}
	for _, name := range []string{"dbdev", "masked", "back"} {
		q.run("clone", "rm", name)
	}
	q.run("unprotect", "tapped", "--yes")
	q.run("unprotect", "db", "--yes")
	q.more = nil
}

// summary says what was asked for in a round.
func (q *queueing) summary() string {
	kinds := map[string]int{}
	for _, a := range q.asked {
		kinds[a.Kind]++
	}
	return fmt.Sprint(kinds)
}
