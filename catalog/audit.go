package catalog

import (
	"bytes"
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

var errNoHead = tidemark.Errorf(tidemark.Corrupt, "the audit does not say where it ends")

// head is the end of the audit.
type head struct {
	Seq  int64
	Hash string
}

// AppendAudit appends records to the audit, all or none, and sets their
// numbers and hashes. They are durable when it returns. Callers at the same
// time, also of several servers, are put in order. If it fails while the
// database is away, it may have appended them: [Catalog.AppendAuditOnce] finds
// out. So its context must not be [Patient].
func (c *Catalog) AppendAudit(ctx context.Context, records ...*access.AuditRecord) error {
	return c.appendAudit(ctx, func(ctx context.Context, tx bun.Tx, end *access.AuditChain) error {
		return appendTo(ctx, tx, end, records)
	})
}

// AppendAuditOnce appends the records of requests, those of one request all or
// none, but for requests whose records the audit has: it may be called again,
// and after [Catalog.AppendAudit] has failed. All records of a request have its
// number and its time.
func (c *Catalog) AppendAuditOnce(ctx context.Context, requests ...[]*access.AuditRecord) error {
	return c.appendAudit(ctx, func(ctx context.Context, tx bun.Tx, end *access.AuditChain) error {
		for _, records := range requests {
			var there bool
			first := records[0]
			if err := tx.NewRaw("SELECT EXISTS (SELECT 1 FROM audit WHERE request = ? AND at = ?)", first.Request, first.Time.UnixNano()).Scan(ctx, &there); err != nil {
				return err
			}
			if there {
				continue
			}
			if err := appendTo(ctx, tx, end, records); err != nil {
				return err
			}
		}
		return nil
	})
}

// appendAudit lets fn append to the audit behind its end, and moves the end.
func (c *Catalog) appendAudit(ctx context.Context, fn func(context.Context, bun.Tx, *access.AuditChain) error) error {
	return c.do(ctx, func(ctx context.Context) error {
		return c.tx(ctx, "append to the audit", func(ctx context.Context, tx bun.Tx) error {
			// The update locks the head until the transaction ends, on both engines.
			var h head
			if err := tx.NewRaw("UPDATE audit_head SET seq = seq WHERE id = 1 RETURNING seq, hash").Scan(ctx, &h); err != nil {
				return err
			}
			hash, err := access.ParseHash(h.Hash)
			if err != nil {
				return err
			}
			end := access.AuditChain{Seq: h.Seq, Hash: hash}
			if err := fn(ctx, tx, &end); err != nil {
				return err
			}
			_, err = tx.NewRaw("UPDATE audit_head SET seq = ?, hash = ? WHERE id = 1", end.Seq, end.Hash.String()).Exec(ctx)
			return err
		})
	})
}

// appendTo seals records behind an end, which it moves.
func appendTo(ctx context.Context, tx bun.Tx, end *access.AuditChain, records []*access.AuditRecord) error {
	for _, r := range records {
		r.Seal(end.Seq+1, end.Hash)
		if err := insertAudit(ctx, tx, r); err != nil {
			return err
		}
		end.Seq, end.Hash = r.Seq, r.Hash
	}
	return nil
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
	if err := c.query(ctx, &rows, query, args...); err != nil {
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
	err := c.query(ctx, &end, "SELECT seq, hash, (SELECT COALESCE(MAX(seq), 0) FROM audit) AS last FROM audit_head WHERE id = 1")
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errNoHead
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

// CheckpointAudit writes to a file how far the audit is, signed, and returns
// it: it is durable then. The file belongs where whoever can write to the
// database cannot. It is replaced as a whole: a crash leaves the old one or the
// new one. Nothing is written if nothing was appended since. If the audit is not
// what the last line says it was, the error is of kind Corrupt, and the file
// stays as the witness that it is.
func (c *Catalog) CheckpointAudit(ctx context.Context, files vfs.FS, path string, key ed25519.PrivateKey) (newest access.Checkpoint, err error) {
	public := key.Public().(ed25519.PublicKey)
	text, err := readCheckpoints(files, path)
	if err != nil {
		return newest, err
	}
	var h head
	err = c.query(ctx, &h, "SELECT seq, hash FROM audit_head WHERE id = 1")
	if errors.Is(err, sql.ErrNoRows) {
		return newest, errNoHead
	}
	if err != nil {
		return newest, wrap(err, "read the end of the audit")
	}
	hash, err := access.ParseHash(h.Hash)
	if err != nil {
		return newest, unreadable("end of the audit, behind record", h.Seq)
	}
	last, err := access.ParseCheckpoints(lastLine(text), public) // mostly that is enough, and it costs little
	if err != nil {
		return newest, err
	}
	if len(last) > 0 {
		if err := c.continues(ctx, last[0], h); err != nil {
			return newest, err
		}
		if last[0].Seq == h.Seq {
			return last[0], nil
		}
	}
	list, err := access.ParseCheckpoints(text, public)
	if err != nil {
		return newest, err
	}
	newest = access.Checkpoint{Seq: h.Seq, Time: time.Now().UTC(), Hash: hash}
	list = append(list, newest)
	text = nil
	for _, p := range list[max(0, len(list)-keptCheckpoints):] {
		text = append(append(text, p.Sign(key)...), '\n')
	}
	return newest, wrap(vfs.WriteFile(files, path, text), "write the checkpoints of the audit")
}

// lastLine is the last line of a text that has its newline.
func lastLine(text []byte) []byte {
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	return text[bytes.LastIndexByte(text[:max(0, len(text)-1)], '\n')+1:]
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
	text, err := readCheckpoints(files, path)
	if err != nil {
		return nil, err
	}
	return access.ParseCheckpoints(text, key)
}

func readCheckpoints(files vfs.FS, path string) ([]byte, error) {
	text, err := vfs.ReadFile(files, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, wrap(err, "read the checkpoints of the audit")
}
