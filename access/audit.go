package access

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"tidemark"
)

// Outcome is what became of what somebody asked for.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Refused Outcome = "refused" // it was denied
	Failed  Outcome = "failed"
)

// AuditRecord says who did what. Seq, Previous and Hash are set when it is appended.
type AuditRecord struct {
	Seq     int64     `json:"seq"` // 1, 2, 3 …
	Time    time.Time `json:"time"`
	User    string    `json:"user,omitempty"`
	Method  Method    `json:"method"`             // how he proved who he is
	TokenID int64     `json:"token_id,omitempty"` // of the API token he came with
	Address string    `json:"address,omitempty"`  // from where
	Request string    `json:"request,omitempty"`  // the id of the request, as logs have it
	Action  Action    `json:"action"`
	Kind    Kind      `json:"kind"`
	Object  string    `json:"object,omitempty"`
	Outcome Outcome   `json:"outcome"`
	Detail  string    `json:"detail,omitempty"` // the reason of a refusal, the error, what was changed; never a secret

	Previous Hash `json:"-"` // the hash of the record before; of the first one, zeros
	Hash     Hash `json:"-"` // over all of the above
}

// auditDomain begins what is hashed, so that no other hash of ours is one of these.
const auditDomain = "tidemark audit record 1\n"

// The longest texts in a record, in bytes.
const (
	maxAuditField  = 256
	maxAuditDetail = 2048
)

// Seal puts r behind the record with the number seq-1 and the hash previous. It
// shortens what is too long and takes out what a database would refuse: what
// somebody put into a request must not keep it from being recorded.
func (r *AuditRecord) Seal(seq int64, previous Hash) {
	r.Seq, r.Previous = seq, previous
	r.Time = time.Unix(0, r.Time.UnixNano()).UTC()
	for _, s := range []*string{&r.User, (*string)(&r.Method), &r.Address, &r.Request, (*string)(&r.Action), (*string)(&r.Kind), &r.Object, (*string)(&r.Outcome)} {
		*s = storable(*s, maxAuditField)
	}
	r.Detail = storable(r.Detail, maxAuditDetail)
	r.Hash = r.digest()
}

func storable(s string, most int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= most {
		return s
	}
	const cut = "…"
	end := most - len(cut)
	for !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + cut
}

// digest hashes the canonical form of r, docs/format/audit.md: every field has
// its length before it, so no two records have the same form.
func (r *AuditRecord) digest() Hash {
	b := append([]byte(auditDomain), r.Previous[:]...)
	for _, n := range []int64{r.Seq, r.Time.UnixNano(), r.TokenID} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	for _, s := range []string{r.User, string(r.Method), r.Address, r.Request, string(r.Action), string(r.Kind), r.Object, string(r.Outcome), r.Detail} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(b)
}

// AuditChain verifies records, which [AuditChain.Next] is given in the order in
// which they were stored. The zero value stands before the first one.
type AuditChain struct {
	Seq  int64
	Hash Hash
}

// Next returns an error of kind [tidemark.Corrupt] unless r follows the record
// before it and is what was appended. Then r is where the chain stands.
func (c *AuditChain) Next(r AuditRecord) error {
	switch {
	case r.Seq > c.Seq+1:
		return tidemark.Errorf(tidemark.Corrupt, "the audit lacks record %d: %d comes after %d", c.Seq+1, r.Seq, c.Seq)
	case r.Seq != c.Seq+1:
		return tidemark.Errorf(tidemark.Corrupt, "record %d of the audit stands after %d", r.Seq, c.Seq)
	case !r.Previous.Equal(c.Hash):
		return tidemark.Errorf(tidemark.Corrupt, "record %d of the audit does not follow the one before it: that one was changed or replaced", r.Seq)
	case !r.Hash.Equal(r.digest()):
		return tidemark.Errorf(tidemark.Corrupt, "record %d of the audit was changed", r.Seq)
	}
	c.Seq, c.Hash = r.Seq, r.Hash
	return nil
}

// Checkpoint vouches for the audit up to a record. It is kept where whoever can
// write to the database cannot, and signed with a key that he does not have:
// without one, he could make the whole chain anew, or cut its end off.
type Checkpoint struct {
	Seq  int64
	Time time.Time // when it was made
	Hash Hash      // of record Seq
}

const checkpointWord = "tidemark-audit-checkpoint-1"

func (c Checkpoint) unsigned() string {
	return fmt.Sprintf("%s %d %s %s", checkpointWord, c.Seq, c.Time.UTC().Format(time.RFC3339Nano), c.Hash)
}

// Sign returns c as a line of text, without the newline, that ends in an
// Ed25519 signature over what stands before it.
func (c Checkpoint) Sign(key ed25519.PrivateKey) string {
	text := c.unsigned()
	return text + " " + base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(text)))
}

// ParseCheckpoint reads a line that [Checkpoint.Sign] made, and verifies its
// signature. Its error is of kind [tidemark.Corrupt].
func ParseCheckpoint(line string, key ed25519.PublicKey) (Checkpoint, error) {
	bad := func(why string) (Checkpoint, error) {
		return Checkpoint{}, tidemark.Errorf(tidemark.Corrupt, "a checkpoint of the audit %s", why)
	}
	parts := strings.Split(line, " ")
	if len(parts) != 5 || parts[0] != checkpointWord {
		return bad("cannot be read")
	}
	seq, err1 := strconv.ParseInt(parts[1], 10, 64)
	at, err2 := time.Parse(time.RFC3339Nano, parts[2])
	hash, err3 := ParseHash(parts[3])
	signature, err4 := decode64(parts[4])
	c := Checkpoint{Seq: seq, Time: at, Hash: hash}
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || seq < 0 || !strings.HasPrefix(line, c.unsigned()+" ") {
		return bad("cannot be read")
	}
	if !ed25519.Verify(key, []byte(c.unsigned()), signature) {
		return bad("has a wrong signature")
	}
	return c, nil
}

// decode64 reads base64 of which each value has one form: the library passes over line breaks.
func decode64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(b) != s {
		err = base64.CorruptInputError(0)
	}
	return b, err
}

// ParseCheckpoints reads a file of lines. A last line without its newline was
// cut by a crash, and is left out.
func ParseCheckpoints(text []byte, key ed25519.PublicKey) (list []Checkpoint, err error) {
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	for line := range strings.Lines(string(text)) {
		c, err := ParseCheckpoint(strings.TrimSuffix(line, "\n"), key)
		if err != nil {
			return nil, err
		}
		if n := len(list); n > 0 && c.Seq < list[n-1].Seq {
			return nil, tidemark.Errorf(tidemark.Corrupt, "the checkpoints of the audit go back from record %d to %d", list[n-1].Seq, c.Seq)
		}
		list = append(list, c)
	}
	return list, nil
}
