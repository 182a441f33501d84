package access

import (
	"crypto/ed25519"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"tidemark"
)

func copiesOf(t testing.TB) (a, b CheckpointCopy) {
	t.Helper()
	one, two := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), ed25519.NewKeyFromSeed([]byte(strings.Repeat("x", ed25519.SeedSize)))
	return CopyOf(Checkpoint{Seq: 7, Time: begin, Hash: Hash{1}}, one), CopyOf(Checkpoint{Seq: 9, Time: begin.Add(1), Hash: Hash{2}}, two)
}

func TestCopies(t *testing.T) {
	a, b := copiesOf(t)
	if p, err := a.Open(); err != nil || p.Seq != 7 || p.Hash != (Hash{1}) || !p.Time.Equal(begin) {
		t.Fatalf("%+v, %v", p, err)
	}
	asJSON := func(list ...CheckpointCopy) (text string) {
		for _, c := range list {
			one, _ := json.MarshalIndent(c, "", "  ")
			text += string(one) + "\n"
		}
		return text
	}
	for name, text := range map[string]string{
		"lines": a.String() + "\n" + b.String() + "\n", "no newline": a.String() + "\n" + b.String(), "JSON": asJSON(a, b),
	} {
		if list, err := ParseCopies([]byte(text)); err != nil || !slices.Equal(list, []CheckpointCopy{a, b}) {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
	// One key may be that of many.
	if list, err := ParseCopies([]byte(a.String() + "\n" + a.Checkpoint)); err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	forged := a
	forged.Key = b.Key
	for name, text := range map[string]string{
		"nothing": "", "blank": " \n\n", "only a key": strings.Split(a.String(), "\n")[0], "no key": a.Checkpoint, "another key": forged.String(),
		"something else": "root:x:0:0\n", "cut": a.String()[:len(a.String())-3], "JSON of something else": `{"key":"x","line":"y"}`,
		"JSON that is cut": asJSON(a)[:40], "JSON of another key": asJSON(forged), "JSON with more": asJSON(a) + "x", "a blank line between": a.String() + "\n\n" + b.String(),
	} {
		if list, err := ParseCopies([]byte(text)); err == nil || tidemark.KindOf(err) != tidemark.Invalid || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
}

func FuzzParseCopies(f *testing.F) {
	a, b := copiesOf(f)
	one, _ := json.Marshal(a)
	f.Add([]byte(a.String() + "\n" + b.String()))
	f.Add(one)
	f.Add([]byte(copyWord + " x\n" + checkpointWord + " 1 x y z"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseCopies(text)
		if err != nil {
			if tidemark.KindOf(err) != tidemark.Invalid || strings.Contains(err.Error(), "\n") {
				t.Fatal(err)
			}
			return
		}
		again := ""
		for _, c := range list {
			again += c.String() + "\n"
		}
		if same, err := ParseCopies([]byte(again)); err != nil || !slices.Equal(same, list) {
			t.Fatalf("%+v are not read again: %+v, %v", list, same, err)
		}
	})
}
