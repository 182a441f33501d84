package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Verdict is what is to become of a point.
type Verdict struct {
	Point
	// Expire says that the point may be forgotten.
	Expire bool `json:"expire"`
	// Reasons are why it is kept, one line each: newest, held, count 2 of 7, daily 2026-11-27 …
	Reasons []string `json:"reasons,omitempty"`
}

// Keep says of each point whether t lets it be forgotten, and if not, all reasons why; the newest first.
//
// Whatever t says, the newest point and the newest that is no AppShot are kept, and those that are held. An AppShot that is held has
// a time of its own by who holds it: it counts for nothing that t keeps, since it may go before that would.
// Without a keep policy everything is. The hours, days, weeks, months and years of keep are those of the template's zone, and
// only those that have points count, so that no point is forgotten because there were no newer ones.
// Age, too, counts back from the newest point if that is older than now.
//
// If the points to expire are taken away, Keep lets none of the others go; and as time passes and
// points are added, it never wants one back that it let go.
func Keep(t Template, points []Point, now time.Time) []Verdict {
	s := sifter{t: t, loc: t.location(), list: make([]Verdict, len(points))}
	for i, p := range points {
		s.list[i].Point = p
	}
	slices.SortStableFunc(s.list, func(a, b Verdict) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.Position, a.Position))
	})
	if len(points) == 0 {
		return s.list
	}
	s.reference = earlier(now, s.list[0].Time)
	s.always()
	s.shots()
	s.rules()
	for i := range s.list {
		s.list[i].Expire = len(s.list[i].Reasons) == 0
	}
	return s.list
}

// sifter is one call of Keep.
type sifter struct {
	t         Template
	loc       *time.Location
	list      []Verdict // newest first
	reference time.Time // ages count back from here
}

func (s *sifter) because(i int, format string, args ...any) {
	s.list[i].Reasons = append(s.list[i].Reasons, fmt.Sprintf(format, args...))
}

// always keeps what no template lets go.
func (s *sifter) always() {
	s.because(0, "newest")
	if i := slices.IndexFunc(s.list, func(v Verdict) bool { return !v.AppShot }); i > 0 {
		s.because(i, "newest capture")
	}
	for i, v := range s.list {
		if v.Held {
			s.because(i, "held")
		}
	}
	if s.t.Keep != nil && s.t.Keep.LastVerified {
		if i := slices.IndexFunc(s.list, func(v Verdict) bool { return !v.Verified.IsZero() }); i >= 0 {
			s.because(i, "last verified")
		}
	}
}

// shotAge is how long AppShots are kept; 0: by keep.
func (s *sifter) shotAge() Duration {
	switch {
	case s.t.AppShot == nil:
		return 0
	case s.t.AppShot.Keep != 0:
		return s.t.AppShot.Keep
	case s.t.CDP != nil:
		return s.t.CDP.Window
	}
	return 0
}

// shots keeps AppShots by their own age, where there is one.
func (s *sifter) shots() {
	age := s.shotAge()
	for i, v := range s.list {
		if age != 0 && v.AppShot && s.younger(v, age) {
			s.because(i, "appshot of the last %v", age)
		}
	}
}

func (s *sifter) younger(v Verdict, age Duration) bool {
	return s.reference.Sub(v.Time) < time.Duration(age)
}

// rules applies keep and log to all points that have no age of their own.
func (s *sifter) rules() {
	var subject []int // newest first
	for i, v := range s.list {
		if !v.AppShot || !v.Held && s.shotAge() == 0 {
			subject = append(subject, i)
		}
	}
	s.logCaptures(subject)
	k := s.t.Keep
	if k == nil {
		for _, i := range subject {
			s.because(i, "everything: the template has no keep")
		}
		return
	}
	for n, i := range subject {
		if n < k.Count {
			s.because(i, "count %d of %d", n+1, k.Count)
		}
		if k.Age != 0 && s.younger(s.list[i], k.Age) {
			s.because(i, "age below %v", k.Age)
		}
	}
	for _, tier := range tiers {
		s.tier(subject, tier, *k)
	}
}

// logCaptures keeps what the log begins from: the captures within its window, and the newest
// from before. Were only one of them kept, the window would wait for it to grow old, and the log behind it would grow without end.
func (s *sifter) logCaptures(subject []int) {
	if s.t.Log == nil {
		return
	}
	for _, i := range subject {
		switch {
		case s.list[i].AppShot:
		case s.younger(s.list[i], s.t.Log.Keep):
			s.because(i, "log of the last %v", s.t.Log.Keep)
		default:
			s.because(i, "base of the log of %v", s.t.Log.Keep)
			return
		}
	}
}

// tier is one of hourly to yearly.
type tier struct {
	name string
	n    func(Retention) int
	// period names the hour, day … of what the clock shows.
	period func(d date, second, offset int) string
}

var tiers = []tier{
	// The hour that a clock shows twice is two hours: the offset tells them apart.
	{"hourly", func(k Retention) int { return k.Hourly }, func(d date, second, offset int) string {
		return fmt.Sprintf("%s %02d:00 %+03d:%02d", dayName(d), second/3600, offset/3600, abs(offset)/60%60)
	}},
	{"daily", func(k Retention) int { return k.Daily }, func(d date, _, _ int) string { return dayName(d) }},
	{"weekly", func(k Retention) int { return k.Weekly }, func(d date, _, _ int) string {
		y, w := time.Unix(int64(d)*86400, 0).UTC().ISOWeek()
		return fmt.Sprintf("%04d-W%02d", y, w)
	}},
	{"monthly", func(k Retention) int { return k.Monthly }, func(d date, _, _ int) string { return dayName(d)[:7] }},
	{"yearly", func(k Retention) int { return k.Yearly }, func(d date, _, _ int) string { return dayName(d)[:4] }},
}

func dayName(d date) string {
	y, m, n := d.civil()
	return fmt.Sprintf("%04d-%02d-%02d", y, m, n)
}

func abs(n int) int { return max(n, -n) }

// tier keeps one point of each of the newest periods that have any.
func (s *sifter) tier(subject []int, tr tier, k Retention) {
	n := tr.n(k)
	if n == 0 {
		return
	}
	var order []string // newest first
	chosen := map[string]int{}
	for _, i := range subject {
		t := s.list[i].Time
		d, second := wall(t, s.loc)
		_, offset := t.In(s.loc).Zone()
		name := tr.period(d, second, offset)
		_, seen := chosen[name]
		if !seen && len(order) == n {
			continue // an older one may still be in a period that is among the newest
		}
		if !seen {
			order = append(order, name)
		}
		if !seen || k.Of == OfFirst {
			chosen[name] = i
		}
	}
	for _, name := range order {
		s.because(chosen[name], "%s %s", tr.name, name)
	}
}
