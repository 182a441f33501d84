package control

import (
	"context"
	"sync"
	"testing"
	"time"

	"tidemark"
)

// An AppShot that waited for its turn asks then whether a restore in place has begun.
func TestShotWaitsForTurn(t *testing.T) {
	a := app{name: "a"}
	c := &Control{}
	leave, err := c.taps.turn(t.Context(), []app{a})
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan error)
	go func() {
		_, err := c.shootSettled(t.Context(), []app{a}, "y", nil)
		came <- err
	}()
	select {
	case err := <-came:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	release, err := c.claimDisks([]*returning{{takenBack: takenBack{Application: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	leave()
	if err := <-came; tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("%v", err)
	}
	leave, err = c.taps.turn(t.Context(), []app{a}) // it has left
	if err != nil {
		t.Fatal(err)
	}
	leave()
}

// What keeps taps running is ended side by side: each ends only when the other was told to.
func TestStopAll(t *testing.T) {
	p := tappings{live: map[string]*tapping{}}
	var told sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		ctx, cancel := context.WithCancel(t.Context())
		x := &tapping{cancel: cancel, ended: make(chan struct{})}
		p.live[name] = x
		told.Add(1)
		go func() {
			<-ctx.Done()
			told.Done()
			told.Wait()
			close(x.ended)
		}()
	}
	stopped := make(chan struct{})
	go func() {
		p.stopAll()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("one is waited for before the next is told")
	}
}

// An interval that has nothing to mark any more ends.
func TestIntervalEnds(t *testing.T) {
	c, n := &Control{}, 0
	c.keepInterval(t.Context(), time.Millisecond, "g", func(string) error {
		if n++; n < 3 {
			return nil
		}
		return errEnds
	})
	if n != 3 {
		t.Errorf("it was tried %d times", n)
	}
}
