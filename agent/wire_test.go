package agent

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// What an agent of another host says is as long as it has to be, time after time; one that says more at once is cut off before it is
// read.
func TestLongMessages(t *testing.T) {
	a := NewRemote("far")
	ours, theirs := net.Pipe()
	defer theirs.Close()
	taken := make(chan error, 1)
	go func() { taken <- a.Take(ours) }()
	for !a.Connected() {
		time.Sleep(time.Millisecond)
	}
	long := strings.Repeat("x", maxMessage-1000)
	const times = 3
	go func() {
		w := newWire(theirs)
		for range times {
			m, err := w.receive()
			for err == nil && m.Verb == alive {
				m, err = w.receive()
			}
			if err == nil {
				err = w.send(message{Call: m.Call, Done: true, Body: mustJSON(long)})
			}
			if err != nil {
				t.Error(err)
			}
		}
	}()
	for range times {
		if got, err := do[string](t.Context(), a, "long", none{}, nil); got != long || err != nil {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	piece, said := bytes.Repeat([]byte("x"), 64<<10), 0
	_, err := theirs.Write([]byte(`{"call":7,"body":"`))
	for err == nil && said < 8*maxMessage {
		var n int
		n, err = theirs.Write(piece)
		said += n
	}
	if err == nil {
		t.Fatal("it is read for ever")
	}
	if said > maxMessage+readAhead {
		t.Errorf("%d bytes were read", said)
	}
	if err := <-taken; tidemark.KindOf(err) != tidemark.Invalid || !strings.Contains(err.Error(), "more than 4 MiB") {
		t.Errorf("it is told: %v", err)
	}
	if a.Connected() {
		t.Error("it is connected")
	}
}
