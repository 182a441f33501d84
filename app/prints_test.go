package app

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/block"
)

// TestPrintsModel copies a file that changes at random again and again, with seals that hold and
// seals that do not, and staged copies that vanish; the copy is always equal, and what is known
// to be there is not written.
func TestPrintsModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	cache, src, dst := filepath.Join(dir, "cache"), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	content, word := make([]byte, 3<<20), ""
	for round := range 60 {
		changeAtRandom(rng, &content)
		if err := os.WriteFile(src, content, 0o600); err != nil {
			t.Fatal(err)
		}
		switch rng.IntN(6) {
		case 0:
			os.Remove(dst)
		case 1:
			word = "another" // the cache must forget what it knew
		}
		was, _ := os.ReadFile(dst)
		p, err := OpenPrints(cache, word)
		if err != nil {
			t.Fatal(err)
		}
		var c Copier
		copyWith(t, p, &c, dst, src)
		if now, err := os.ReadFile(dst); err != nil || !bytes.Equal(now, content) {
			t.Fatalf("round %d: the copy differs: %v", round, err)
		}
		if want := differing(was, content); c.ChangedBytes > want+3*block.BlockSize { // a new length counts, and moves the last block
			t.Errorf("round %d: %d bytes written, %d differ", round, c.ChangedBytes, want)
		}
		if c.ReadBytes != int64(len(content)) {
			t.Errorf("round %d: %d bytes read of %d", round, c.ReadBytes, len(content))
		}
		word = fmt.Sprint(round)
		if rng.IntN(5) == 0 {
			continue // a capture that failed: no seal
		}
		if err := p.Seal(word, []string{"x"}); err != nil {
			t.Fatal(err)
		}
	}
}

func copyWith(t *testing.T, p *Prints, c *Copier, dst, src string) {
	t.Helper()
	in, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if n, err := p.Copy(c, out, in, "x"); err != nil || n != mustSize(t, src) {
		t.Fatalf("copied %d bytes: %v", n, err)
	}
}

func mustSize(t *testing.T, path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// changeAtRandom overwrites, zeroes, grows or cuts.
func changeAtRandom(rng *rand.Rand, content *[]byte) {
	for range rng.IntN(8) {
		if len(*content) < 2 {
			break
		}
		off := rng.IntN(len(*content) - 1)
		end := min(off+1+rng.IntN(20000), len(*content))
		fill := byte(rng.IntN(3)) // often what it was in an earlier round
		for i := off; i < end; i++ {
			(*content)[i] = fill
		}
	}
	switch rng.IntN(5) {
	case 0:
		*content = append(*content, make([]byte, rng.IntN(700000))...)
	case 1:
		*content = (*content)[:rng.IntN(len(*content)+1)]
	}
}

// differing counts the bytes in blocks that differ, holes not counted.
func differing(a, b []byte) (n int64) {
	for i := 0; i < len(b); i += block.BlockSize {
		e := min(i+block.BlockSize, len(b))
		if i >= len(a) && len(bytes.Trim(b[i:e], "\x00")) == 0 {
			continue
		}
		if e > len(a) || !bytes.Equal(a[i:e], b[i:e]) {
			n += int64(e - i)
		}
	}
	return n
}

// What is known is not read: a staged copy that was changed behind the cache's back stays as it is
// while the seal holds, and is put right when it does not. That is why captures mark what they began.
func TestPrintsAreTrustedBySeal(t *testing.T) {
	dir := t.TempDir()
	cache, src, dst := filepath.Join(dir, "cache"), filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	content := bytes.Repeat([]byte("tidemark"), 1<<17)
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	pass := func(sealed, next string) {
		t.Helper()
		p, err := OpenPrints(cache, sealed)
		if err != nil {
			t.Fatal(err)
		}
		copyWith(t, p, &Copier{}, dst, src)
		if err := p.Seal(next, []string{"x"}); err != nil {
			t.Fatal(err)
		}
	}
	pass("", "one")
	spoilt := append([]byte("SPOILT"), content[6:]...)
	if err := os.WriteFile(dst, spoilt, 0o600); err != nil {
		t.Fatal(err)
	}
	pass("one", "two")
	if now, _ := os.ReadFile(dst); !bytes.Equal(now, spoilt) {
		t.Error("a copy that was known was read")
	}
	pass("one", "three") // not what it was sealed with
	if now, _ := os.ReadFile(dst); !bytes.Equal(now, content) {
		t.Error("a copy that was not known was trusted")
	}
	p, err := OpenPrints(cache, "three")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Seal("four", nil); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(cache); len(list) != 1 {
		t.Errorf("prints of files that are gone are kept: %v", list)
	}
}
