package client

import (
	"context"
	"math/bits"
	"slices"
	"time"

	"tidemark"
)

// Verdict is what is known of a point.
type Verdict string

// The verdicts.
const (
	Good    Verdict = "good"
	Bad     Verdict = "bad"
	Unknown Verdict = "cannot tell"
)

// History is what [Bisect] searches. Its points are good up to some step, and bad from there on.
type History interface {
	// Halve returns what lies between a good and a bad point, and the step there at a fraction of the way (0: halfway), as
	// if those of skip were not there.
	Halve(ctx context.Context, good, bad tidemark.Point, skip []tidemark.Position, at float64) (tidemark.Halves, error)
	// Probe tells whether a point is good.
	Probe(ctx context.Context, s tidemark.Step) (Verdict, error)
}

// Search says what [Bisect] looks for.
type Search struct {
	Good, Bad tidemark.Point // where to look between; they are looked at first
	// Resolution: the search ends when the last good and the first bad point are no further apart in time. 0: when they are adjacent.
	Resolution time.Duration
	// Tell, if not nil, is told each verdict, and how many more probes are likely.
	Tell func(s tidemark.Step, v Verdict, left int)
}

// Bisect finds the first bad point of a history, of a number n of steps, with about log2(n) probes. It fills
// in Good, Bad, Write, Skipped, Left and Probes of its result. On an error the result is what was known by then.
func Bisect(ctx context.Context, h History, s Search) (tidemark.Bisected, error) {
	b := bisection{h: h, s: s}
	x, err := h.Halve(ctx, s.Good, s.Bad, nil, 0)
	if err != nil {
		return b.res, err
	}
	if err := b.checkEnds(ctx, x); err != nil {
		return b.res, err
	}
	for x.Next != nil && !b.near() {
		if x, err = b.step(ctx, *x.Next); err != nil {
			return b.res, err
		}
	}
	b.res.Write, b.res.Left = x.Write, x.Between
	return b.res, nil
}

type bisection struct {
	h   History
	s   Search
	res tidemark.Bisected
}

// checkEnds makes sure that what is looked for is there.
func (b *bisection) checkEnds(ctx context.Context, x tidemark.Halves) error {
	for _, end := range []struct {
		name string
		step tidemark.Step
		want Verdict
	}{{"good", x.Good, Good}, {"bad", x.Bad, Bad}} {
		v, err := b.h.Probe(ctx, end.step)
		if err != nil {
			return err
		}
		b.res.Probes++
		b.tell(end.step, v, x.Between)
		if v == Unknown {
			return tidemark.Errorf(tidemark.Invalid, "the %s end, %s, cannot be told", end.name, end.step.Position).WithHint("choose another point as the " + end.name + " end")
		}
		if v != end.want {
			return tidemark.Errorf(tidemark.Invalid, "the %s end, %s, is %s", end.name, end.step.Position, v).
				WithHint("choose another point as the " + end.name + " end, or look at what the command finds there")
		}
	}
	b.res.Good, b.res.Bad = x.Good, x.Bad
	return nil
}

func (b *bisection) tell(s tidemark.Step, v Verdict, between int) {
	if b.s.Tell != nil {
		b.s.Tell(s, v, bits.Len(uint(between)))
	}
}

// near reports whether the ends are as near to each other as is asked for.
func (b *bisection) near() bool {
	return b.s.Resolution > 0 && b.res.Bad.Time.Sub(b.res.Good.Time) <= b.s.Resolution
}

// halve asks for the next step. After steps that could not be told it is looked for elsewhere: such steps are often neighbours.
func (b *bisection) halve(ctx context.Context) (tidemark.Halves, error) {
	var skip []tidemark.Position
	for _, s := range b.res.Skipped {
		skip = append(skip, s.Position)
	}
	return b.h.Halve(ctx, tidemark.AtPosition(b.res.Good.Position), tidemark.AtPosition(b.res.Bad.Position), skip, spread(len(skip)))
}

// spread returns 1/2, 1/4, 3/4, 1/8, 5/8 …: the n-th of numbers that fill the space between 0 and 1 evenly.
func spread(n int) float64 {
	n++
	at, weight := 0.0, 0.5
	for ; n > 0; n /= 2 {
		at += float64(n%2) * weight
		weight /= 2
	}
	return at
}

// step looks at one point, and returns what is left then.
func (b *bisection) step(ctx context.Context, s tidemark.Step) (x tidemark.Halves, err error) {
	v, err := b.h.Probe(ctx, s)
	if err != nil {
		return x, err
	}
	b.res.Probes++
	switch v {
	case Good:
		b.res.Good = s
	case Bad:
		b.res.Bad = s
	default:
		b.res.Skipped = append(b.res.Skipped, s)
	}
	b.res.Skipped = slices.DeleteFunc(b.res.Skipped, func(s tidemark.Step) bool {
		return s.Position <= b.res.Good.Position || s.Position >= b.res.Bad.Position
	})
	if x, err = b.halve(ctx); err == nil {
		b.tell(s, v, x.Between)
	}
	return x, err
}
