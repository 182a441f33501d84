package access

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tidemark"
)

func chainOf(n int) (list []AuditRecord) {
	var previous Hash
	for i := range n {
		r := AuditRecord{Time: begin.Add(time.Duration(i) * time.Second), User: "alice", Method: ByToken, TokenID: 3, Address: "192.0.2.1", Request: fmt.Sprint(i),
			Action: ApplicationClone, Kind: KindApplication, Object: "orders", Outcome: Done, Detail: "to dev"}
		r.Seal(int64(i+1), previous)
		previous = r.Hash
		list = append(list, r)
	}
	return list
}

func verify(list []AuditRecord) error {
	var c AuditChain
	for _, r := range list {
		if err := c.Next(r); err != nil {
			return err
		}
	}
	return nil
}

// TestAuditFormat holds the vector of docs/format/audit.md.
func TestAuditFormat(t *testing.T) {
	got := chainOf(2)
	for i, want := range []string{"5ecc7e46fbbd9a63bc304b96ba4386e9ff9f6df57c26f0d197148e501e9bbf80", "d0b541b4dea172c8a5f9000f20db59508a21ac28881bfd689541d60bfddc2df7"} {
		if got[i].Hash.String() != want {
			t.Errorf("record %d: %s, want %s", i+1, got[i].Hash, want)
		}
	}
}

func TestAuditChain(t *testing.T) {
	list := chainOf(50)
	if err := verify(list); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	clone := func() []AuditRecord { return append([]AuditRecord(nil), list...) }
	for range 500 {
		bad := clone()
		i := rng.IntN(len(bad) - 1)
		j := i + 1 + rng.IntN(len(bad)-1-i)
		what := rng.IntN(6)
		switch what {
		case 0: // removed
			bad = append(bad[:i], bad[i+1:]...)
		case 1: // exchanged
			bad[i], bad[j] = bad[j], bad[i]
		case 2: // twice
			bad = append(bad[:i+1], bad[i:]...)
		case 3: // changed, anywhere
			change(rng, &bad[i])
		case 4: // changed and sealed anew, so that what follows does not follow
			bad[i].User = "bob"
			bad[i].Seal(bad[i].Seq, bad[i].Previous)
		case 5: // removed, and numbered anew
			bad = append(bad[:i], bad[i+1:]...)
			for k := range bad {
				bad[k].Seq = int64(k + 1)
			}
		}
		if err := verify(bad); tidemark.KindOf(err) != tidemark.Corrupt || err == nil {
			t.Fatalf("change %d at %d, %d is not found: %v", what, i, j, err)
		}
	}
}

// change changes one field.
func change(rng *rand.Rand, r *AuditRecord) {
	v := reflect.ValueOf(r).Elem()
	f := v.Field(rng.IntN(v.NumField()))
	switch x := f.Addr().Interface().(type) {
	case *time.Time:
		*x = x.Add(1)
	case *Hash:
		x[rng.IntN(len(x))] ^= 1 << rng.IntN(8)
	default:
		if f.CanInt() {
			f.SetInt(f.Int() + 1)
		} else {
			f.SetString(f.String() + "x")
		}
	}
}

// TestAuditFieldsDoNotRunTogether: the same letters in other fields are another record.
func TestAuditFieldsDoNotRunTogether(t *testing.T) {
	a := AuditRecord{User: "ab", Method: "c", Address: "", Request: "d"}
	b := AuditRecord{User: "a", Method: "bc", Address: "d", Request: ""}
	a.Seal(1, Hash{})
	b.Seal(1, Hash{})
	if a.Hash == b.Hash {
		t.Error("two records have one hash")
	}
}

func FuzzAuditSeal(f *testing.F) {
	f.Add("a\x00b", "\xff\xfe", strings.Repeat("ä", 3000), int64(7))
	f.Fuzz(func(t *testing.T, object, user, detail string, at int64) {
		r := AuditRecord{Time: time.Unix(0, at), User: user, Object: object, Detail: detail}
		r.Seal(1, Hash{})
		for _, s := range []string{r.User, r.Object, r.Detail} {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") || len(s) > maxAuditDetail {
				t.Fatalf("%q cannot be stored", s)
			}
		}
		if len(r.Object) > maxAuditField {
			t.Fatalf("%d bytes", len(r.Object))
		}
		again := r
		if again.Seal(1, Hash{}); again != r {
			t.Fatalf("sealed twice it is another: %+v, %+v", r, again)
		}
		if err := (&AuditChain{}).Next(r); err != nil {
			t.Fatal(err)
		}
	})
}

func TestCheckpoints(t *testing.T) {
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _, _ := ed25519.GenerateKey(nil)
	c := Checkpoint{Seq: 7, Time: begin.Add(123456789), Hash: NewSecret(TokenPrefix).Hash()}
	line := c.Sign(key)
	if got, err := ParseCheckpoint(line, public); err != nil || got != c {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := ParseCheckpoint(line, other); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("another key: %v", err)
	}
	for i := range line {
		bad := line[:i] + string(line[i]^1) + line[i+1:]
		if got, err := ParseCheckpoint(bad, public); err == nil {
			t.Fatalf("byte %d changed: %+v", i, got)
		}
	}
	later := c
	later.Seq = 9
	text := []byte(line + "\n" + later.Sign(key) + "\n")
	if list, err := ParseCheckpoints(text, public); err != nil || len(list) != 2 || list[1].Seq != 9 {
		t.Fatalf("%+v, %v", list, err)
	}
	for n := range text {
		list, err := ParseCheckpoints(text[:n], public)
		if err != nil || len(list) != bytes.Count(text[:n], []byte("\n")) {
			t.Fatalf("cut at %d: %d, %v", n, len(list), err)
		}
	}
	if _, err := ParseCheckpoints([]byte(later.Sign(key)+"\n"+line+"\n"), public); tidemark.KindOf(err) != tidemark.Corrupt {
		t.Errorf("backwards: %v", err)
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	f.Add(Checkpoint{Seq: 1, Time: begin}.Sign(key))
	f.Add(Checkpoint{Seq: 1, Time: begin}.Sign(key) + "\r")
	f.Add(checkpointWord + " 1 x y z")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseCheckpoint(line, key.Public().(ed25519.PublicKey))
		if err == nil && c.Sign(key) != line {
			t.Fatalf("%q is not what is signed: %q", line, c.Sign(key))
		}
	})
}
