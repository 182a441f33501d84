package control

import (
	"context"
	"testing"
	"time"
)

// Clones of a host that somebody works on, however long that takes, do not keep the others of it from being brought back.
func TestBusyKeepsNoTurn(t *testing.T) {
	c := serving(t)
	turns := make(chan struct{}, welcomeAtOnce)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{}, welcomeAtOnce)
	for i := range welcomeAtOnce {
		name := numbered("busy", i+1)
		leave, err := c.work(name)
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
		go func() {
			c.keepBringing(ctx, name, turns)
			ended <- struct{}{}
		}()
	}
	time.Sleep(2 * welcomeTurn)
	back := make(chan struct{})
	go func() {
		c.keepBringing(ctx, "free", turns)
		close(back)
	}()
	select {
	case <-back:
	case <-time.After(10 * time.Second):
		t.Error("it is not brought back")
	}
	cancel()
	for range welcomeAtOnce {
		<-ended
	}
	for range welcomeAtOnce { // nor does who has no turn wait for one when the host is gone
		turns <- struct{}{}
	}
	if err := c.bringBack(ctx, "free", turns); err != context.Canceled {
		t.Errorf("without a turn: %v", err)
	}
}
