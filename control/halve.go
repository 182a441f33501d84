package control

import (
	"context"
	"slices"

	"tidemark"
	"tidemark/timeline"
)

// Halve returns what lies between a good point of an application and a bad one, and the step halfway, for who looks for
// the step that made it bad. Where every write is journaled, each is a step; elsewhere each bookmark.
func (c *Control) Halve(ctx context.Context, spec tidemark.HalveSpec) (h tidemark.Halves, err error) {
	a, err := c.app(spec.Application)
	if err != nil {
		return h, err
	}
	if !(spec.At >= 0 && spec.At < 1) {
		return h, tidemark.Errorf(tidemark.Invalid, "%v does not lie between 0 and 1", spec.At)
	}
	good, err := c.endOf(ctx, a, spec.Good)
	if err != nil {
		return h, err
	}
	bad, err := c.endOf(ctx, a, spec.Bad)
	if err != nil {
		return h, err
	}
	if good >= bad {
		return h, tidemark.Errorf(tidemark.Invalid, "the good point %s does not lie before the bad one, %s", good, bad).
			WithHint("what is looked for is the first bad point behind a good one")
	}
	steps, write, err := c.stepsOf(ctx, a, spec.Disk, good, bad)
	if err != nil {
		return h, err
	}
	n := len(steps)
	if n == 0 {
		return h, tidemark.Errorf(tidemark.Invalid, "nothing was written to %s between %s and %s: both are the same", a.name, good, bad).
			WithHint("`tidemark points " + a.name + "` lists what there is")
	}
	if bad = steps[n-1]; n == 1 {
		h.Write = write
	}
	between := steps[:n-1]
	if len(spec.Skip) > 0 {
		slices.Sort(spec.Skip)
		between = slices.DeleteFunc(between, func(pos tidemark.Position) bool {
			_, skip := slices.BinarySearch(spec.Skip, pos)
			return skip
		})
	}
	return describeHalves(a.t, h, good, bad, between, spec.At)
}

// stepsOf lists the steps behind good, up to and with bad; and the write, if there is one step only and it is a write.
func (c *Control) stepsOf(ctx context.Context, a app, disk string, good, bad tidemark.Position) (list []tidemark.Position, write *tidemark.DiffExtent, err error) {
	if _, err := a.t.Disk(disk); disk != "" && err != nil {
		return nil, nil, err
	}
	if !a.journaled() {
		for _, p := range a.t.Points() {
			if p.Position > good && p.Position <= bad {
				list = append(list, p.Position)
			}
		}
		return list, nil, nil
	}
	// A branch can show its own positions when it no longer stands on its parent's journal.
	if err := a.t.Fold(ctx); err != nil {
		return nil, nil, err
	}
	steps, err := a.t.Steps(disk, good, bad)
	if err == nil && len(steps.List) == 1 {
		write, err = steps.Write(good, steps.List[0])
	}
	if err != nil {
		return nil, nil, err
	}
	return steps.List, write, nil
}

// endOf finds the position of a good or bad end.
func (c *Control) endOf(ctx context.Context, a app, text string) (tidemark.Position, error) {
	p, err := tidemark.ParsePoint(text)
	if err != nil {
		return 0, err
	}
	if p.Latest() && !a.journaled() {
		newest, err := newestPoint(a)
		return newest.Position, err
	}
	return c.resolve(ctx, a, p)
}

func describeHalves(t *timeline.Timeline, h tidemark.Halves, good, bad tidemark.Position, between []tidemark.Position, at float64) (_ tidemark.Halves, err error) {
	h.Between = len(between)
	if h.Good, err = stepAt(t, good); err != nil {
		return h, err
	}
	if h.Bad, err = stepAt(t, bad); err != nil || len(between) == 0 {
		return h, err
	}
	if at == 0 {
		at = 0.5
	}
	next, err := stepAt(t, between[int(at*float64(len(between)))])
	h.Next = &next
	return h, err
}

func stepAt(t *timeline.Timeline, pos tidemark.Position) (s tidemark.Step, err error) {
	s.Position = pos
	if p, ok := t.PointAt(pos); ok {
		s.Bookmark = p.Bookmark
	}
	s.Time, err = t.TimeAt(pos)
	return s, err
}
