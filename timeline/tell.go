package timeline

import "tidemark"

// tellPoint tells that a point was made or removed, if it is a bookmark. The caller holds facts.
func (t *Timeline) tellPoint(kind tidemark.ChangeKind, m manifest) {
	if m.Mark == nil {
		return
	}
	p := &tidemark.ChangedPoint{Position: m.Position, Time: m.Time, Bookmark: m.Mark.Name, Consistency: m.Mark.Consistency}
	t.set.o.Changed(t.id, tidemark.TimelineChange{Kind: kind, Application: t.desc.Name, Point: p})
}

// tellGap tells that a gap has begun or was closed. The caller holds facts.
func (t *Timeline) tellGap(kind tidemark.ChangeKind, g Gap) {
	p := &tidemark.ChangedPoint{Position: g.From, Time: g.Start}
	gap := &tidemark.Interval{From: g.Start, Reason: g.Why}
	if kind == tidemark.GapClosed {
		p.Position, p.Time, gap.To = g.To, g.End, g.End
	}
	t.set.o.Changed(t.id, tidemark.TimelineChange{Kind: kind, Application: t.desc.Name, Point: p, Gap: gap})
}
