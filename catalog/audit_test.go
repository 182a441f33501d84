package catalog

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"tidemark"
	"tidemark/access"
	"tidemark/internal/vfs"
)

func record(i int) *access.AuditRecord {
	return &access.AuditRecord{Time: time.Now(), User: "alice", Method: access.ByToken, TokenID: 7, Address: "192.0.2.1", Request: fmt.Sprintf("r%d", i),
		Action: access.ApplicationClone, Kind: access.KindApplication, Object: fmt.Sprintf("app%d", i%3), Outcome: access.Done, Detail: "x"}
}

func appendRecords(t *testing.T, c *Catalog, n int) {
	t.Helper()
	for i := range n {
		ok(t, c.AppendAudit(context.Background(), record(i)))
	}
}

func audit(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	if n := must(c.VerifyAudit(ctx, nil))(t); n != 0 {
		t.Fatalf("%d at first", n)
	}
	appendRecords(t, c, 9)
	ok(t, c.AppendAudit(ctx, record(9), record(10), record(11)))
	// What somebody sends must not keep it from being recorded.
	evil := record(12)
	evil.Object, evil.Detail = "a\x00b\xff'; --", strings.Repeat("ä", 5000)
	ok(t, c.AppendAudit(ctx, evil))
	if n := must(c.VerifyAudit(ctx, nil))(t); n != 13 {
		t.Fatalf("%d records", n)
	}
	list := must(c.Audit(ctx, AuditQuery{Object: "app1", Limit: 2}))(t)
	if len(list) != 2 || list[0].Seq != 11 || list[1].Seq != 8 || list[0].Request != "r10" {
		t.Errorf("of app1: %+v", list)
	}
	if list := must(c.Audit(ctx, AuditQuery{User: "alice", Before: 3, Limit: 9}))(t); len(list) != 2 || list[0].Seq != 2 {
		t.Errorf("before 3: %+v", list)
	}
	c.Close()
	if n := must(openAt(t, at).VerifyAudit(ctx, nil))(t); n != 13 {
		t.Errorf("%d records after a restart", n)
	}
}

// auditTogether: many at a time, on two openings of one catalog, as of two servers.
func auditTogether(t *testing.T, at string) {
	ctx := context.Background()
	both := []*Catalog{openAt(t, at), openAt(t, at)}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 15 {
				if err := both[w%2].AppendAudit(ctx, record(i), record(i)); err != nil {
					t.Error(err)
				}
				if i == 7 {
					if _, err := both[w%2].VerifyAudit(ctx, nil); err != nil {
						t.Errorf("while others append: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := must(both[0].VerifyAudit(ctx, nil))(t); n != 240 {
		t.Errorf("%d of 240", n)
	}
}

// attack is somebody with all rights on the database.
func attack(t *testing.T, c *Catalog, statements ...string) {
	t.Helper()
	guards := []string{"DROP TRIGGER audit_is_append_only ON audit"}
	if c.read != c.write {
		guards = []string{"DROP TRIGGER audit_is_not_changed", "DROP TRIGGER audit_is_not_deleted"}
	}
	for _, s := range append(guards, statements...) {
		if _, err := c.write.ExecContext(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func auditOnlyGrows(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	appendRecords(t, c, 3)
	for _, s := range []string{"UPDATE audit SET user_name = 'bob' WHERE seq = 2", "DELETE FROM audit WHERE seq = 3"} {
		if _, err := c.write.ExecContext(ctx, s); err == nil || !strings.Contains(err.Error(), "only appended to") {
			t.Errorf("%s: %v", s, err)
		}
	}
	if n := must(c.VerifyAudit(ctx, nil))(t); n != 3 {
		t.Errorf("%d records", n)
	}
}

func auditTampering(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	const n = 1200 // more than a page
	for range n / 100 {
		var list []*access.AuditRecord
		for i := range 100 {
			list = append(list, record(i))
		}
		ok(t, c.AppendAudit(ctx, list...))
	}
	_, public, key := keys(t)
	mem := vfs.NewMem()
	ok(t, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
	witness := must(ReadCheckpoints(mem, "witness", public))(t)
	attack(t, c, "CREATE TABLE kept AS SELECT * FROM audit", "CREATE TABLE kept_head AS SELECT * FROM audit_head")
	restore := []string{"DELETE FROM audit", "INSERT INTO audit SELECT * FROM kept", "DELETE FROM audit_head", "INSERT INTO audit_head SELECT * FROM kept_head"}

	tests := map[string][]string{
		"removed":          {"DELETE FROM audit WHERE seq = 500"},
		"first removed":    {"DELETE FROM audit WHERE seq = 1"},
		"removed, closed":  {"DELETE FROM audit WHERE seq = 1100", "UPDATE audit SET seq = seq - 1 WHERE seq = 1101"},
		"inserted before":  {"INSERT INTO audit SELECT 0, at, user_name, method, token_id, address, request, action, kind, object, outcome, detail, previous, hash FROM audit WHERE seq = 1"},
		"inserted behind":  {"INSERT INTO audit SELECT 1201, at, user_name, method, token_id, address, request, action, kind, object, outcome, detail, hash, hash FROM audit WHERE seq = 1200"},
		"swapped":          {"UPDATE audit SET seq = -5 WHERE seq = 10", "UPDATE audit SET seq = 10 WHERE seq = 11", "UPDATE audit SET seq = 11 WHERE seq = -5"},
		"cut":              {"DELETE FROM audit WHERE seq > 1190"},
		"head removed":     {"DELETE FROM audit_head"},
		"head set back":    {"UPDATE audit_head SET seq = 1190, hash = (SELECT hash FROM audit WHERE seq = 1190)"},
		"head set forward": {"UPDATE audit_head SET seq = seq + 1"},
		"hash is no hash":  {"UPDATE audit SET hash = 'x' WHERE seq = 3"},
		"all of it":        {"DELETE FROM audit"},
		"moved in its row": {"UPDATE audit SET user_name = '', method = user_name || method WHERE seq = 7"},
	}
	for _, column := range []string{"user_name", "method", "address", "request", "action", "kind", "object", "outcome", "detail"} {
		tests["changed "+column] = []string{"UPDATE audit SET " + column + " = " + column + " || 'x' WHERE seq = 1001"}
	}
	for _, column := range []string{"at", "token_id"} {
		tests["changed "+column] = []string{"UPDATE audit SET " + column + " = " + column + " + 1 WHERE seq = 42"}
	}
	for name, statements := range tests {
		run(t, c, statements)
		if _, err := c.VerifyAudit(ctx, nil); tidemark.KindOf(err) != tidemark.Corrupt || err == nil {
			t.Errorf("%s: not found: %v", name, err)
		}
		run(t, c, restore)
		if got := must(c.VerifyAudit(ctx, witness))(t); got != n {
			t.Fatalf("%s: %d records after the repair", name, got)
		}
	}

	// Without a witness, the end can be cut off so that it does not show.
	run(t, c, []string{"DELETE FROM audit WHERE seq > 1190", "UPDATE audit_head SET seq = 1190, hash = (SELECT hash FROM audit WHERE seq = 1190)"})
	if got := must(c.VerifyAudit(ctx, nil))(t); got != 1190 {
		t.Fatalf("%d records", got)
	}
	if _, err := c.VerifyAudit(ctx, witness); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("the witness did not see the cut: %v", err)
	}
	refused(t, tidemark.Corrupt, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
	// And then be written anew, with good hashes.
	for range 10 {
		appendRecords(t, c, 1)
	}
	if got := must(c.VerifyAudit(ctx, nil))(t); got != n {
		t.Fatalf("%d records", got)
	}
	if _, err := c.VerifyAudit(ctx, witness); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("the witness did not see the new end: %v", err)
	}
	refused(t, tidemark.Corrupt, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
	appendRecords(t, c, 1)
	refused(t, tidemark.Corrupt, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
}

func run(t *testing.T, c *Catalog, statements []string) {
	t.Helper()
	for _, s := range statements {
		if _, err := c.write.ExecContext(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func keys(t *testing.T) (seed []byte, public ed25519.PublicKey, private ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	ok(t, err)
	return private.Seed(), public, private
}

// checkpoints are whole after a power cut at any step, and not forged.
func checkpoints(t *testing.T, at string) {
	ctx, c := context.Background(), openAt(t, at)
	_, public, key := keys(t)
	_, other, _ := keys(t)
	mem := vfs.NewMem()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ok(t, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
	for i := range 20 {
		appendRecords(t, c, rng.IntN(3))
		ok(t, errOf(c.CheckpointAudit(ctx, mem, "witness", key)))
		after := vfs.Crash(mem, rng.IntN(101), rng)
		list, err := ReadCheckpoints(after, "witness", public)
		end := must(c.VerifyAudit(ctx, list))(t)
		if err != nil || len(list) == 0 || list[len(list)-1].Seq != end {
			t.Fatalf("round %d: %+v, %v", i, list, err)
		}
		mem = after
	}
	_, err := ReadCheckpoints(mem, "witness", other)
	refused(t, tidemark.Corrupt, err)
	text := must(vfs.ReadFile(mem, "witness"))(t)
	for range 200 {
		bad := append([]byte(nil), text...)
		i := rng.IntN(len(bad))
		if bad[i] ^= 1 << rng.IntN(7); bad[i] == '\n' || text[i] == '\n' {
			continue // a line is cut in two, or two are one: other tests
		}
		if _, err := access.ParseCheckpoints(bad, public); err == nil {
			t.Fatalf("byte %d changed, and nobody saw it", i)
		}
	}
}
