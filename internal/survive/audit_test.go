package survive

import (
	stdsql "database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"tidemark"
	"tidemark/access"
)

// TestAuditTampering has somebody with all rights on the catalog's database cut the end of the audit off and write it anew. The checkpoints
// that the server has in its data directory know, and if these were made anew as well, a copy does.
func TestAuditTampering(t *testing.T) {
	t.Parallel()
	for i, at := range catalogs {
		t.Run(at.name, func(t *testing.T) {
			beside(t)
			if i > 0 {
				need(t, program("postgres"))
			}
			s := newStage(t)
			db := at.place(s)
			s.start()
			for k := range 6 {
				s.run("volume", "create", fmt.Sprint("v", k), "--size", "1MiB")
			}
			copied := filepath.Join(s.dir, "copy")
			if err := os.WriteFile(copied, []byte(s.run("audit", "--checkpoint")), 0o600); err != nil {
				t.Fatal(err)
			}
			if r := ask[access.AuditResult](s, "audit", "--verify", "--against", copied); r.Records != 6 || r.Through != 6 || r.CopiesThrough != 6 || r.OtherKeys != 0 {
				t.Fatalf("%+v", r)
			}
			s.end(syscall.SIGKILL)
			attackAudit(t, s, db, "DELETE FROM audit WHERE seq > 4", "UPDATE audit_head SET seq = 4, hash = (SELECT hash FROM audit WHERE seq = 4)")
			s.start()
			s.refused([]string{"cut off", "knows of record 6"}, "audit", "--verify")
			for k := range 6 { // with good hashes
				s.run("volume", "rm", fmt.Sprint("v", k))
			}
			s.refused([]string{"written anew", "record 6 is not the one"}, "audit", "--verify")
			s.refused([]string{"record 6 was cut off or replaced", "keep the file of checkpoints"}, "audit", "--checkpoint")
			st := ask[tidemark.Status](s, "status")
			if !slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.Contains(w, "the audit is not what it should be") }) {
				t.Errorf("the status does not warn: %q", st.Warnings)
			}
			if !strings.Contains(s.log(), "the audit is not what it should be") {
				t.Errorf("the log does not say it: %s", s.log())
			}
			s.end(syscall.SIGTERM)
			if err := os.RemoveAll(filepath.Join(s.data, "audit")); err != nil {
				t.Fatal(err)
			}
			s.start()
			s.run("audit", "--verify")
			s.refused([]string{"written anew", "record 6 is not the one"}, "audit", "--verify", "--against", copied)
		})
	}
}

// attackAudit is somebody with all rights on the catalog's database.
func attackAudit(t *testing.T, s *stage, db *production, statements ...string) {
	t.Helper()
	if db != nil {
		all := "DROP TRIGGER audit_is_append_only ON audit; " + strings.Join(statements, "; ")
		if out, err := exec.Command(program("psql"), "-d", db.conn(), "-v", "ON_ERROR_STOP=1", "-qc", all).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	c, err := stdsql.Open("sqlite", filepath.Join(s.data, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, one := range append([]string{"DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_deleted"}, statements...) {
		if _, err := c.Exec(one); err != nil {
			t.Fatalf("%s: %v", one, err)
		}
	}
}

// answered is a request that the server has answered.
type answered struct {
	object     string
	done       bool
	begun, end time.Time
}

// TestAuditAway takes the catalog's database away from a server, which is also killed: whatever was answered is in the audit in the end,
// once, in order, with its time, and with what became of it.
func TestAuditAway(t *testing.T) {
	beside(t)
	need(t, program("postgres"))
	q := &queueing{stage: newStage(t), rng: seeded(t)}
	db := catalogs[1].place(q.stage)
	q.start()
	var all []answered
	say := func(object string, args ...string) {
		a := answered{object: object, begun: time.Now()}
		_, err := q.try(args...)
		a.done, a.end = err == nil, time.Now()
		all = append(all, a)
	}
	for round := range 6 {
		for k := range 4 {
			name := fmt.Sprintf("v%d-%d", round, k)
			if say(name, "volume", "create", name, "--size", "1MiB"); !all[len(all)-1].done {
				t.Fatalf("%s was not made: %s", name, q.log())
			}
		}
		db.stop([]syscall.Signal{syscall.SIGQUIT, syscall.SIGINT}[round%2])
		for k := range 3 {
			name := fmt.Sprintf("v%d-%d", round, k)
			say(name, "volume", "rm", name)
			say(fmt.Sprint("none", k), "volume", "rm", fmt.Sprint("none", k))
			say("", "clone", name, "dev") // it has a key, which cannot be looked up: nobody reads what it is about
			if all[len(all)-1].done {
				t.Fatal("a clone was made while the catalog was away")
			}
		}
		if _, err := os.Stat(filepath.Join(q.data, "audit", "waiting")); err != nil {
			t.Errorf("nothing waits: %v", err)
		}
		switch round % 3 {
		case 0:
			q.end(syscall.SIGKILL)
			db.start()
			q.start()
		case 1: // in the middle of what is done when it is back
			db.start()
			time.Sleep(time.Duration(q.rng.IntN(1500)) * time.Millisecond)
			q.end(syscall.SIGKILL)
			q.start()
		default:
			db.start()
			name := fmt.Sprintf("v%d-3", round)
			say(name, "volume", "rm", name)
		}
		q.runs("jobs")
	}
	var list []access.AuditRecord
	for end := time.Now().Add(time.Minute); len(list) < len(all) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		list = ask[[]access.AuditRecord](q.stage, "audit", "--limit", "10000")
	}
	slices.Reverse(list)
	for i := range max(len(list), len(all)) {
		if i >= len(list) || i >= len(all) {
			t.Fatalf("%d records of %d requests", len(list), len(all))
		}
		r, a := list[i], all[i]
		if r.Object != a.object || (r.Outcome == access.Done) != a.done || r.Time.Before(a.begun) || r.Time.After(a.end) || r.Outcome != access.Done && r.Outcome != access.Failed {
			t.Fatalf("record %d is %+v, and the request was %+v", i+1, r, a)
		}
	}
	if r := ask[access.AuditResult](q.stage, "audit", "--verify"); r.Waiting != 0 || r.Records != int64(len(all)) {
		t.Errorf("%+v of %d", r, len(all))
	}
}
