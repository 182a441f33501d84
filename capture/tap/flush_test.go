package tap

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// openHost opens a new file as a primary.
func openHost(t *testing.T) *host {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPrimary(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p.(*host)
}

// Of a failed sync the kernel tells only one of those who wait for it: the others are told by us.
func TestFlushesTellOfAFailure(t *testing.T) {
	h := openHost(t)
	var mu sync.Mutex
	told, entered := false, make(chan struct{}, 8)
	h.sync = func(int) error {
		entered <- struct{}{}
		mu.Lock()
		defer mu.Unlock()
		if told {
			return nil
		}
		told = true
		return syscall.EIO
	}
	mu.Lock() // so that all have come before the first is answered
	var all sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		all.Go(func() { errs[i] = h.Flush() })
	}
	<-entered
	mu.Unlock()
	all.Wait()
	for i, err := range errs {
		if err == nil {
			t.Errorf("flush %d is said to have succeeded", i)
		}
	}
}

// One sync serves all who waited for it to begin.
func TestFlushesShareASync(t *testing.T) {
	h := openHost(t)
	syncs, first, on := 0, make(chan struct{}), make(chan struct{})
	h.sync = func(int) error {
		if syncs++; syncs == 1 {
			close(first)
			<-on
		}
		return nil
	}
	var all sync.WaitGroup
	all.Go(func() { h.Flush() })
	<-first
	var waiting sync.WaitGroup
	for range 8 {
		waiting.Add(1)
		all.Go(func() {
			waiting.Done()
			if err := h.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
	waiting.Wait()
	close(on)
	all.Wait()
	if syncs < 2 || syncs > 9 {
		t.Errorf("%d syncs", syncs)
	}
	if before := syncs; h.Flush() != nil || syncs != before+1 {
		t.Error("a flush that comes later has no sync of its own")
	}
}
