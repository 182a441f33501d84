package image

import (
	"math"
	"math/rand/v2"
	"testing"
)

// The quick look may only spare the thorough one where that would say the same.
func TestQuickLookAgrees(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	skipped := 0
	for round := range 2000 {
		p := make([]byte, MinChunk<<rng.IntN(3))
		skew := math.Pow(2, 4*rng.Float64()) // 1: uniform
		for i := range p {
			p[i] = byte(256 * math.Pow(rng.Float64(), skew))
		}
		if collides(p) {
			skipped++
			if nearRandom(p) {
				t.Fatalf("round %d, skew %.2f: taken for random by the thorough look alone", round, skew)
			}
		}
	}
	if skipped < 500 {
		t.Errorf("only %d of 2000 were seen at a glance", skipped)
	}
}

func TestLooksRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		p := make([]byte, 16<<10)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		if !looksRandom(p) {
			t.Fatal("random bytes do not look random")
		}
		for i := range p {
			p[i] &= 0x7f
		}
		if looksRandom(p) {
			t.Fatal("7 bits in 8 look random")
		}
	}
}
