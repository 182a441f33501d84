package access

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"

	"tidemark"
)

// CheckpointCopy is a checkpoint as a site keeps it elsewhere, where nobody who can write to the server's files can: with the key
// by which it is verified. That key shows that the copy is whole. That it is a copy at all, its keeper has to know.
type CheckpointCopy struct {
	Key        string `json:"key" maxLength:"64" doc:"The public key of the server that signed it: Ed25519, in base64."`
	Checkpoint string `json:"checkpoint" maxLength:"512" doc:"The signed line, as docs/format/audit.md has it."`
}

// MaxCopies is how many copies an audit is held against at once. The newest guards all before it; the others tell from when on
// something is wrong.
const MaxCopies = 1000

// CopiesSpec says against which copies of checkpoints the audit is held, beside those that the server has.
type CopiesSpec struct {
	Copies []CheckpointCopy `json:"copies" maxItems:"1000" doc:"Copies of checkpoints that were kept elsewhere."`
}

// copyWord begins the line of a copy that has the key.
const copyWord = "tidemark-audit-key-1"

// CopyOf returns a copy of a checkpoint.
func CopyOf(c Checkpoint, key ed25519.PrivateKey) CheckpointCopy {
	public := key.Public().(ed25519.PublicKey)
	return CheckpointCopy{Key: base64.StdEncoding.EncodeToString(public), Checkpoint: c.Sign(key)}
}

// String returns the copy as two lines of text, without the last newline. One copy can be appended to another.
func (c CheckpointCopy) String() string { return copyWord + " " + c.Key + "\n" + c.Checkpoint }

// Open verifies the copy and returns the checkpoint. Its error is of kind [tidemark.Invalid].
func (c CheckpointCopy) Open() (Checkpoint, error) {
	key, err := decode64(c.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return Checkpoint{}, tidemark.Errorf(tidemark.Invalid, "the key of a copy of a checkpoint cannot be read")
	}
	p, err := ParseCheckpoint(c.Checkpoint, key)
	if err != nil {
		return p, tidemark.Errorf(tidemark.Invalid, "the copy cannot be used: %w", err)
	}
	return p, nil
}

// ParseCopies reads a file of copies, oldest first: lines of text as [CheckpointCopy.String] writes them, in which a key is that of
// all checkpoints up to the next key; or JSON, one object after the other. Each is verified. Its error is of kind [tidemark.Invalid].
func ParseCopies(text []byte) (list []CheckpointCopy, err error) {
	if text = bytes.TrimSpace(text); bytes.HasPrefix(text, []byte("{")) {
		list, err = copiesOfJSON(text)
	} else {
		list, err = copiesOfLines(string(text))
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, notCopies("it has no checkpoint")
	}
	for _, c := range list {
		if _, err := c.Open(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func notCopies(why string) error {
	return tidemark.Errorf(tidemark.Invalid, "this is no copy of checkpoints of an audit: %s", why).WithHint("`tidemark audit --checkpoint` makes one")
}

func copiesOfJSON(text []byte) (list []CheckpointCopy, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	for {
		var c CheckpointCopy
		switch err := d.Decode(&c); {
		case errors.Is(err, io.EOF):
			return list, nil
		case err != nil:
			return nil, notCopies("its JSON cannot be read")
		}
		list = append(list, c)
	}
}

func copiesOfLines(text string) (list []CheckpointCopy, err error) {
	key := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch {
		case word == copyWord:
			key = rest
		case word != checkpointWord:
			return nil, notCopies("one of its lines is neither a key nor a checkpoint")
		case key == "":
			return nil, notCopies("no key stands before its first checkpoint")
		default:
			list = append(list, CheckpointCopy{Key: key, Checkpoint: line})
		}
	}
	return list, nil
}

// Farthest returns those copies that reach the farthest, [MaxCopies] at most.
func Farthest(list []CheckpointCopy) ([]CheckpointCopy, error) {
	seqs := make(map[CheckpointCopy]int64, len(list))
	for _, c := range list {
		p, err := c.Open()
		if err != nil {
			return nil, err
		}
		seqs[c] = p.Seq
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b CheckpointCopy) int { return cmp.Compare(seqs[a], seqs[b]) })
	return list[max(0, len(list)-MaxCopies):], nil
}
