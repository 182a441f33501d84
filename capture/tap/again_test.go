package tap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/block"
)

// stopping is a primary that stops at the first read after it was armed, until it is let go: only what is sent again is read here.
type stopping struct {
	*disk
	late  bool // it stops when the read is done, not before
	armed atomic.Bool
	at    chan [2]int64 // where it stopped: offset and length
	letGo chan struct{}
}

func (p *stopping) ReadAt(b []byte, off int64) (int, error) {
	stop := p.armed.Swap(false)
	if stop && !p.late {
		p.stop(b, off)
	}
	n, err := p.disk.ReadAt(b, off)
	if stop && p.late {
		p.stop(b, off)
	}
	return n, err
}

func (p *stopping) stop(b []byte, off int64) {
	p.at <- [2]int64{off, int64(len(b))}
	<-p.letGo
}

// TestWriteToWhatIsSentAgain (C6) writes to regions while they are read to be sent again, before the primary was read and behind it. The write waits for
// that, comes behind it, and is in the timeline in the end; and if the tap is killed just then, what the timeline lacks is marked.
func TestWriteToWhatIsSentAgain(t *testing.T) {
	rounds := uint64(4)
	if os.Getenv("TIDEMARK_LONG") != "" {
		rounds = 200
	}
	base := rand.Uint64()
	for i := range rounds {
		h := newMachine(t, base+i)
		h.compare = time.Hour // samples read, too
		late, dies := i&1 != 0, i&2 != 0
		p := &stopping{disk: h.disk, late: late, at: make(chan [2]int64), letGo: make(chan struct{})}
		h.primary = p
		h.open()
		for range 20 {
			h.write()
		}
		h.settled()
		p.armed.Store(true)
		h.tap.Resync()
		run := <-p.at
		wrote := make(chan error, 1)
		off := run[0] + h.rng.Int64N(run[1]/block.BlockSize)*block.BlockSize
		number, d := h.wrote.Add(1), h.tap.Disks()[0]
		go func() {
			_, err := d.WriteAt(bytes.Repeat([]byte{byte(number), 1, 2, 3}, block.BlockSize/4), off)
			wrote <- err
		}()
		select {
		case err := <-wrote:
			h.fail("a write at %d did not wait for what is read from %d on: %v", off, run[0], err)
		case <-time.After(20 * time.Millisecond):
		}
		if dies {
			time.AfterFunc(5*time.Millisecond, func() { close(p.letGo) })
			h.kill()
		} else {
			close(p.letGo)
		}
		if err := <-wrote; err != nil && !(dies && errors.Is(err, ErrClosed)) {
			h.fail("the write: %v", err)
		}
		if dies {
			h.open()
		}
		h.settled()
		h.kill()
	}
}
