package catalog

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"io/fs"
	"math"
	"time"

	"github.com/uptrace/bun"

	"tidemark"
	"tidemark/access"
	"tidemark/internal/vfs"
)

type auditRow struct {
	Seq, At                                                                 int64
	UserName, Method                                                        string
	TokenID                                                                 int64
	Address, Request, Action, Kind, Object, Outcome, Detail, Previous, Hash string
}

const selectAudit = "SELECT seq, at, user_name, method, token_id, address, request, action, kind, object, outcome, detail, previous, hash FROM audit"

func (r auditRow) record() (rec access.AuditRecord, err error) {
	rec = access.AuditRecord{Seq: r.Seq, Time: time.Unix(0, r.At).UTC(), User: r.UserName, Method: access.Method(r.Method), TokenID: r.TokenID,
		Address: r.Address, Request: r.Request, Action: access.Action(r.Action), Kind: access.Kind(r.Kind), Object: r.Object,
		Outcome: access.Outcome(r.Outcome), Detail: r.Detail}
	if rec.Previous, err = access.ParseHash(r.Previous); err != nil {
		return rec, unreadable("audit record", r.Seq)
	}
	if rec.Hash, err = access.ParseHash(r.Hash); err != nil {
		return rec, unreadable("audit record", r.Seq)
	}
	return rec, nil
}

// head is the end of the audit.
type head struct {
	Seq  int64
	Hash string
}

// AppendAudit appends records to the audit, all or none, and sets their
// numbers and hashes. They are durable when it returns. Callers at the same
// time, also of several servers, are put in order.
func (c *Catalog) AppendAudit(ctx context.Context, records ...*access.AuditRecord) error {
	return c.tx(ctx, "append to the audit", func(ctx context.Context, tx bun.Tx) error {
		// The update locks the head until the transaction ends, on both engines.
		var h head
		if err := tx.NewRaw("UPDATE audit_head SET seq = seq + ? WHERE id = 1 RETURNING seq, hash", len(records)).Scan(ctx, &h); err != nil {
			return err
		}
		previous, err := access.ParseHash(h.Hash)
		if err != nil {
			return err
		}
		first := h.Seq - int64(len(records)) + 1
		for i, r := range records {
			r.Seal(first+int64(i), previous)
			previous = r.Hash
			if err := insertAudit(ctx, tx, r); err != nil {
				return err
			}
		}
		_, err = tx.NewRaw("UPDATE audit_head SET hash = ? WHERE id = 1", previous.String()).Exec(ctx)
		return err
	})
}

func insertAudit(ctx context.Context, tx bun.Tx, r *access.AuditRecord) error {
	_, err := tx.NewRaw("INSERT INTO audit (seq, at, user_name, method, token_id, address, request, action, kind, object, outcome, detail, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		r.Seq, r.Time.UnixNano(), r.User, string(r.Method), r.TokenID, r.Address, r.Request, string(r.Action), string(r.Kind), r.Object,
		string(r.Outcome), r.Detail, r.Previous.String(), r.Hash.String()).Exec(ctx)
	return err
}

// AuditQuery says which records are wanted; what is empty does not narrow.
type AuditQuery struct {
	User   string
	Object string
	Before int64 // records with lower numbers only; 0: the newest
	Limit  int
}

// Audit returns records, the newest first. It does not verify them.
func (c *Catalog) Audit(ctx context.Context, q AuditQuery) ([]access.AuditRecord, error) {
	if q.Before == 0 {
		q.Before = math.MaxInt64
	}
	return c.auditRows(ctx, selectAudit+" WHERE seq < ? AND (? = '' OR user_name = ?) AND (? = '' OR object = ?) ORDER BY seq DESC LIMIT ?",
		q.Before, q.User, q.User, q.Object, q.Object, q.Limit)
}

func (c *Catalog) auditRows(ctx context.Context, query string, args ...any) ([]access.AuditRecord, error) {
	var rows []auditRow
	if err := c.read.NewRaw(query, args...).Scan(ctx, &rows); err != nil {
		return nil, wrap(err, "read the audit")
	}
	list := make([]access.AuditRecord, len(rows))
	for i, r := range rows {
		var err error
		if list[i], err = r.record(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// VerifyAudit reads the whole audit and returns how many records it has. A
// record that was changed, removed, inserted or moved is an error of kind
// Corrupt that names it; so is an end that was cut off or written anew, as far as
// the checkpoints reach.
func (c *Catalog) VerifyAudit(ctx context.Context, checkpoints []access.Checkpoint) (int64, error) {
	// One statement, so that both are of one moment. What is appended later is not looked at.
	var end struct {
		Seq, Last int64
		Hash      string
	}
	err := c.read.NewRaw("SELECT seq, hash, (SELECT COALESCE(MAX(seq), 0) FROM audit) AS last FROM audit_head WHERE id = 1").Scan(ctx, &end)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, tidemark.Errorf(tidemark.Corrupt, "the audit does not say where it ends")
	}
	if err != nil {
		return 0, wrap(err, "read the end of the audit")
	}
	want := map[int64]access.Hash{}
	for _, p := range checkpoints {
		if h, twice := want[p.Seq]; twice && !h.Equal(p.Hash) {
			return 0, tidemark.Errorf(tidemark.Corrupt, "two checkpoints of the audit differ about record %d", p.Seq)
		}
		want[p.Seq] = p.Hash
		if p.Seq > end.Last {
			return 0, tidemark.Errorf(tidemark.Corrupt, "the end of the audit is cut off: a checkpoint of %s knows of record %d, and the last one is %d",
				p.Time.UTC().Format(time.RFC3339), p.Seq, end.Last)
		}
	}
	chain, err := c.walkAudit(ctx, end.Last, want)
	if err != nil {
		return chain.Seq, err
	}
	if end.Seq != chain.Seq || end.Hash != chain.Hash.String() {
		return chain.Seq, tidemark.Errorf(tidemark.Corrupt, "the end of the audit is cut off or was replaced: record %d is to be the last one, and it is %d", end.Seq, chain.Seq)
	}
	return chain.Seq, nil
}

// walkAudit verifies the records up to last, and the hashes that are wanted of some.
func (c *Catalog) walkAudit(ctx context.Context, last int64, want map[int64]access.Hash) (chain access.AuditChain, err error) {
	const page = 1000
	for after := int64(math.MinInt64); ; after = chain.Seq {
		list, err := c.auditRows(ctx, selectAudit+" WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", after, last, page)
		if err != nil {
			return chain, err
		}
		for _, r := range list {
			if err := chain.Next(r); err != nil {
				return chain, err
			}
			if h, ok := want[r.Seq]; ok && !h.Equal(r.Hash) {
				return chain, tidemark.Errorf(tidemark.Corrupt, "the audit was written anew: record %d is not the one that a checkpoint knows", r.Seq)
			}
		}
		if len(list) < page {
			return chain, nil
		}
	}
}

// keptCheckpoints is how many lines the file of checkpoints has at most. Only
// the last one guards the end; those before tell from when on something is wrong.
const keptCheckpoints = 1000

// CheckpointAudit writes to a file how far the audit is, signed. The file
// belongs where whoever can write to the database cannot. It is replaced as a
// whole: a crash leaves the old one or the new one. Nothing is written if nothing
// was appended since. If the audit is not what the last line says it was, the
// error is of kind Corrupt, and the file stays as the witness that it is.
func (c *Catalog) CheckpointAudit(ctx context.Context, files vfs.FS, path string, key ed25519.PrivateKey) error {
	list, err := ReadCheckpoints(files, path, key.Public().(ed25519.PublicKey))
	if err != nil {
		return err
	}
	var h head
	if err := c.read.NewRaw("SELECT seq, hash FROM audit_head WHERE id = 1").Scan(ctx, &h); err != nil {
		return wrap(err, "read the end of the audit")
	}
	hash, err := access.ParseHash(h.Hash)
	if err != nil {
		return err
	}
	if n := len(list); n > 0 {
		last := list[n-1]
		if err := c.continues(ctx, last, h); err != nil {
			return err
		}
		if last.Seq == h.Seq {
			return nil
		}
	}
	list = append(list, access.Checkpoint{Seq: h.Seq, Time: time.Now().UTC(), Hash: hash})
	var text []byte
	for _, p := range list[max(0, len(list)-keptCheckpoints):] {
		text = append(append(text, p.Sign(key)...), '\n')
	}
	return wrap(vfs.WriteFile(files, path, text), "write the checkpoints of the audit")
}

// continues returns an error unless the audit up to h has what a checkpoint knows.
func (c *Catalog) continues(ctx context.Context, p access.Checkpoint, h head) error {
	hash := h.Hash
	if p.Seq < h.Seq && p.Seq > 0 {
		list, err := c.auditRows(ctx, selectAudit+" WHERE seq = ?", p.Seq)
		if err != nil {
			return err
		}
		hash = ""
		if len(list) == 1 {
			hash = list[0].Hash.String()
		}
	}
	if p.Seq > h.Seq || p.Seq > 0 && hash != p.Hash.String() {
		return tidemark.Errorf(tidemark.Corrupt, "the audit is not what its checkpoint of %s says: record %d was cut off or replaced", p.Time.UTC().Format(time.RFC3339), p.Seq).
			WithHint("keep the file of checkpoints and the database as they are, and find out who wrote to the database")
	}
	return nil
}

// ReadCheckpoints reads and verifies a file that [Catalog.CheckpointAudit]
// wrote, for [Catalog.VerifyAudit]. Of a file that is not there, there are none:
// who verifies has to know that there should be one.
func ReadCheckpoints(files vfs.FS, path string, key ed25519.PublicKey) ([]access.Checkpoint, error) {
	text, err := vfs.ReadFile(files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(err, "read the checkpoints of the audit")
	}
	return access.ParseCheckpoints(text, key)
}
