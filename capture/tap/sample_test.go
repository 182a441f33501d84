package tap

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"tidemark/block"
)

// TestWrittenPastTheTap is row C3, and C2, of what other systems lost: somebody writes to the primary itself, and the timeline does not hear
// of it. A sample shows it, and everything is sent again.
func TestWrittenPastTheTap(t *testing.T) {
	for seed := range uint64(3) {
		h := newMachine(t, seed)
		h.open()
		for range 20 {
			h.write()
		}
		h.settled()
		h.forget()
		h.line.mu.Lock()
		gaps := h.line.gaps
		h.line.bypassed = true
		h.line.mu.Unlock()
		off := h.rng.Int64N(16<<20/block.BlockSize) * block.BlockSize // all of it would take its time
		if seed == 0 {
			off += extentSize
		}
		h.disk.WriteAt(bytes.Repeat([]byte{0xee}, block.BlockSize), off)
		h.disk.Flush()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			h.line.mu.Lock()
			found, samples := h.line.gaps > gaps, h.line.samples
			h.line.mu.Unlock()
			if found {
				break
			}
			if time.Now().After(end) {
				h.fail("a block that was written past the tap was not found by %d samples", samples)
			}
			if seed > 0 && h.rng.IntN(50) == 0 {
				h.write() // elsewhere, mostly
			}
		}
		if seed == 0 { // what is to be sent again outlives a power cut, though nothing else was being written
			h.powerCut()
			h.line.bypassed = false
			h.open()
		}
		h.settled()
		h.close()
	}
}

// A sample is of what was written before it, however fast others write: with writers at each place there is no false alarm, which
// the timeline of these tests would complain of.
func TestSamplesUnderLoad(t *testing.T) {
	h := newMachine(t, 1)
	h.open()
	rng := rand.New(rand.NewPCG(1, 4))
	var sampling sync.WaitGroup
	end := make(chan struct{})
	sampling.Go(func() {
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
			if err := h.tap.sample(place{region: rng.Int64N(4 << 20 / regionSize)}); err != nil { // where it is hot
				t.Error(err)
			}
		}
	})
	for range 2000 {
		if !h.write() {
			t.Fatal("the tap died")
		}
		time.Sleep(100 * time.Microsecond)
	}
	close(end)
	sampling.Wait()
	h.settled()
	h.line.mu.Lock()
	samples := h.line.samples
	h.line.mu.Unlock()
	if samples < 10 {
		t.Error(fmt.Sprint("only so many samples came: ", samples))
	}
	h.close()
}
