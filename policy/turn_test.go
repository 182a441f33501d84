package policy

import (
	"testing"
	"time"
)

// TestTurn: until the turn, whoever asks again and again is answered the same.
func TestTurn(t *testing.T) {
	r := chance(t)
	turned := 0
	for range 300 {
		now := at(t, "2026-11-01T00:00:00Z")
		ago := func() time.Time { return now.Add(-time.Duration(r.IntN(7200)) * time.Second) }
		tmpl := Template{RPO: Duration(time.Duration(r.IntN(7200)) * time.Second), Spread: &none, Capture: &Capture{Every: Duration(time.Duration(60+r.IntN(3600)) * time.Second)}}
		if r.IntN(3) == 0 {
			tmpl.Capture = &Capture{At: []TimeOfDay{TimeOfDay(r.IntN(60))}}
		}
		h := History{Application: "shop", Since: now.Add(-time.Duration(r.IntN(4)) * time.Hour)}
		for range r.IntN(3) {
			h.Points = append(h.Points, Point{Time: ago()})
		}
		for range r.IntN(3) {
			from := ago()
			h.Runs = append(h.Runs, Run{Policy: PolicyCapture, State: []RunState{RunDone, RunFailed, RunRunning}[r.IntN(3)], Started: from, Finished: from.Add(time.Second)})
		}
		first := Assess(tmpl, h, now)
		turn := Turn(tmpl, h, first, now)
		if !turn.After(now) {
			t.Fatalf("it turned at %v, which is not after %v", turn, now)
		}
		for i := range 3 * 360 {
			then := now.Add(time.Duration(i) * 10 * time.Second)
			if got := Assess(tmpl, h, then).State; got != first.State {
				turned++
				if then.Before(turn) {
					t.Fatalf("it is %s at %v, and %s at %v, before %v: %+v, %+v", first.State, now, got, then, turn, tmpl, h)
				}
				break
			}
		}
	}
	if turned < 50 {
		t.Errorf("only %d of 300 have turned", turned)
	}
}
