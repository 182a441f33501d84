package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
)

// nightlies are points at 02:30 UTC, one a day, the newest one today.
func nightlies(n int, newest time.Time) (list []Point) {
	for i := range n {
		list = append(list, Point{Position: tidemark.Position(10_000 - i), Time: newest.Add(time.Duration(-i) * day)})
	}
	return list
}

func kept(list []Verdict) (out []string) {
	for _, v := range list {
		if !v.Expire {
			out = append(out, v.Time.UTC().Format("01-02")+": "+strings.Join(v.Reasons, ", "))
		}
	}
	return out
}

func TestKeep(t *testing.T) {
	newest := at(t, "2026-11-28T02:30:00Z")
	now := newest.Add(8 * time.Hour)
	for _, c := range []struct {
		why   string
		tmpl  Template
		touch func([]Point)
		want  []string
	}{
		{"no keep: everything", Template{}, nil, []string{"11-28: newest, everything: the template has no keep", "11-27: everything: the template has no keep", "11-26: everything: the template has no keep"}},
		{"count", Template{Keep: &Retention{Count: 2}}, nil, []string{"11-28: newest, count 1 of 2", "11-27: count 2 of 2"}},
		{"age, from the newest point", Template{Keep: &Retention{Age: Duration(2 * day)}}, nil, []string{"11-28: newest, age below 2d", "11-27: age below 2d"}},
		{"held, and the last verified", Template{Keep: &Retention{Count: 1, LastVerified: true}}, func(p []Point) { p[1].Verified = now; p[2].Verified, p[2].Held = now, true },
			[]string{"11-28: newest, count 1 of 1", "11-27: last verified", "11-26: held"}},
		{"the newest capture beside newer AppShots", Template{AppShot: &AppShot{Every: 60, Keep: Duration(time.Hour)}, Keep: &Retention{Count: 1}}, func(p []Point) { p[0].AppShot, p[1].AppShot = true, true },
			[]string{"11-28: newest, appshot of the last 1h", "11-26: newest capture, count 1 of 1"}},
		{"AppShots by the window of cdp", Template{AppShot: &AppShot{Every: 60}, CDP: &CDP{Window: Duration(36 * time.Hour)}, Keep: &Retention{Count: 1}}, func(p []Point) { p[0].AppShot, p[1].AppShot = true, true },
			[]string{"11-28: newest, appshot of the last 36h", "11-27: appshot of the last 36h", "11-26: newest capture, count 1 of 1"}},
		{"an AppShot that is held stands for no capture", Template{Keep: &Retention{Count: 1, Daily: 2}}, func(p []Point) {
			p[0].Time = p[1].Time.Add(time.Hour)
			p[0].AppShot, p[0].Held = true, true
		}, []string{"11-27: newest, held", "11-27: newest capture, count 1 of 1, daily 2026-11-27", "11-26: daily 2026-11-26"}},
		{"the log needs the captures of its time, and one from before it", Template{Log: &Log{Keep: Duration(6 * time.Hour)}, Keep: &Retention{Count: 1}}, nil,
			[]string{"11-28: newest, log of the last 6h, count 1 of 1", "11-27: base of the log of 6h"}},
	} {
		points := nightlies(3, newest)
		if c.touch != nil {
			c.touch(points)
		}
		if got := kept(Keep(c.tmpl, points, now)); !slices.Equal(got, c.want) {
			t.Errorf("%s:\n got %q\nwant %q", c.why, got, c.want)
		}
	}
}

func TestKeepGrandfathers(t *testing.T) {
	newest := at(t, "2026-11-28T02:30:00Z") // a Saturday
	k := Retention{Daily: 3, Weekly: 2, Monthly: 2, Yearly: 2}
	points := nightlies(500, newest)
	got := kept(Keep(Template{Keep: &k}, points, newest))
	want := []string{"11-28: newest, daily 2026-11-28, weekly 2026-W48, monthly 2026-11, yearly 2026", "11-27: daily 2026-11-27", "11-26: daily 2026-11-26", "11-22: weekly 2026-W47", "10-31: monthly 2026-10", "12-31: yearly 2025"}
	if !slices.Equal(got, want) {
		t.Errorf("last:\n got %q\nwant %q", got, want)
	}
	k.Of = OfFirst
	got = kept(Keep(Template{Keep: &k}, points, newest))
	want = []string{"11-28: newest, daily 2026-11-28", "11-27: daily 2026-11-27", "11-26: daily 2026-11-26", "11-23: weekly 2026-W48", "11-16: weekly 2026-W47", "11-01: monthly 2026-11", "10-01: monthly 2026-10", "01-01: yearly 2026", "07-17: yearly 2025"}
	if !slices.Equal(got, want) {
		t.Errorf("first:\n got %q\nwant %q", got, want)
	}
}

// TestAnHourShownTwiceIsTwoHours holds that nothing is lost in the night in which the clock is put back.
func TestAnHourShownTwiceIsTwoHours(t *testing.T) {
	begin := at(t, "2026-10-24T22:00:00Z")
	var points []Point
	for i := range 5 {
		points = append(points, Point{Time: begin.Add(time.Duration(i) * time.Hour)})
	}
	list := Keep(Template{TimeZone: "Europe/Berlin", Keep: &Retention{Hourly: 5}}, points, begin.Add(day))
	if n := len(kept(list)); n != 5 {
		t.Errorf("%d of 5 hours are kept: %v", n, kept(list))
	}
}

func TestADayIsThatOfTheZone(t *testing.T) {
	// 23:30 in UTC is tomorrow in Apia, which had no 30th of December in 2011.
	var points []Point
	for _, s := range []string{"2011-12-29T09:00:00Z", "2011-12-30T09:00:00Z", "2011-12-30T11:00:00Z"} {
		points = append(points, Point{Time: at(t, s)})
	}
	got := kept(Keep(Template{TimeZone: "Pacific/Apia", Keep: &Retention{Daily: 9}}, points, at(t, "2012-01-01T00:00:00Z")))
	want := []string{"12-30: newest, daily 2011-12-31", "12-30: daily 2011-12-29", "12-29: daily 2011-12-28"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// someRetention is any template as far as Keep is concerned.
func someRetention(r *rand.Rand, log bool) Template {
	n := func(most int) int { return r.IntN(most+1) * r.IntN(2) }
	t := Template{TimeZone: shifts[r.IntN(len(shifts))].zone}
	if r.IntN(10) > 0 {
		t.Keep = &Retention{Count: n(5), Age: Duration(time.Duration(n(200)) * time.Hour), Hourly: n(30), Daily: n(10), Weekly: n(6), Monthly: n(6), Yearly: n(3), LastVerified: r.IntN(2) == 0}
		t.Keep.Of = []Of{"", OfFirst, OfLast}[r.IntN(3)]
	}
	if r.IntN(2) == 0 {
		t.AppShot = &AppShot{Every: 1, Keep: Duration(time.Duration(n(100)) * time.Hour)}
	}
	if r.IntN(2) == 0 {
		t.CDP = &CDP{Window: Duration(time.Duration(1+n(100)) * time.Hour)}
	}
	if log {
		t.Log = &Log{Keep: Duration(time.Duration(1+n(300)) * time.Hour)}
	}
	return t
}

func somePoints(r *rand.Rand, n int, from time.Time) (list []Point) {
	grain := []time.Duration{10 * time.Minute, time.Hour, 9 * time.Hour, 3 * day}[r.IntN(4)]
	for i := range n {
		from = from.Add(time.Duration(r.Int64N(int64(2 * grain))))
		p := Point{Position: tidemark.Position(i + 1), Time: from, AppShot: r.IntN(3) == 0, Held: r.IntN(30) == 0}
		if r.IntN(20) == 0 {
			p.Verified = from.Add(time.Minute)
		}
		list = append(list, p)
	}
	return list
}

func expired(list []Verdict) map[tidemark.Position]bool {
	m := map[tidemark.Position]bool{}
	for _, v := range list {
		m[v.Position] = v.Expire
	}
	return m
}

// TestKeepsPromises holds what the doc of Keep says of all templates.
func TestKeepsPromises(t *testing.T) {
	r := chance(t)
	for range 100 {
		tmpl := someRetention(r, r.IntN(3) == 0)
		points := somePoints(r, 1+r.IntN(120), at(t, shifts[r.IntN(len(shifts))].from))
		newest := points[len(points)-1].Time
		now := newest.Add(time.Duration(r.NormFloat64() * float64(10*day)))
		shuffled := slices.Clone(points)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		verdicts := Keep(tmpl, shuffled, now)
		gone := expired(verdicts)
		what := fmt.Sprintf("%+v keep %+v at %v", tmpl, tmpl.Keep, now)

		var left []Point
		for i, p := range points {
			lastOf := func(is func(Point) bool) bool { return is(p) && !slices.ContainsFunc(points[i+1:], is) }
			safe := p.Held || i == len(points)-1 || lastOf(func(p Point) bool { return !p.AppShot }) ||
				tmpl.Keep != nil && tmpl.Keep.LastVerified && lastOf(func(p Point) bool { return !p.Verified.IsZero() })
			if safe && gone[p.Position] {
				t.Fatalf("%s: %v goes", what, p)
			}
			if want := !safe && !slowKeep(tmpl, points, i, now); want != gone[p.Position] {
				t.Fatalf("%s: %v goes: %v", what, p, gone[p.Position])
			}
			if !gone[p.Position] {
				left = append(left, p)
			}
		}
		for _, v := range Keep(tmpl, left, now) {
			if v.Expire {
				t.Fatalf("%s: %v goes when the others have gone", what, v.Point)
			}
		}
		more := append(slices.Clone(points), somePoints(r, r.IntN(30), newest)...)
		for i := range more {
			more[i].Position = tidemark.Position(i + 1)
			if i >= len(points) {
				more[i].Verified = time.Time{}
			}
		}
		after := expired(Keep(tmpl, more, now.Add(time.Duration(r.Int64N(int64(400*day))))))
		for position, g := range gone {
			if g && !after[position] {
				t.Fatalf("%s: #%d was let go, and is wanted back", what, position)
			}
		}
	}
}

// slowKeep says of one point whether a rule of the template keeps it, as one would explain it.
func slowKeep(t Template, points []Point, i int, now time.Time) bool {
	reference := points[len(points)-1].Time
	if now.Before(reference) {
		reference = now
	}
	var shots Duration
	if t.AppShot != nil {
		shots = t.AppShot.Keep
		if shots == 0 && t.CDP != nil {
			shots = t.CDP.Window
		}
	}
	p := points[i]
	age := reference.Sub(p.Time)
	if p.AppShot && shots != 0 {
		return age < time.Duration(shots)
	}
	ruled := func(p Point) bool { return !p.AppShot || shots == 0 && !p.Held }
	if t.Log != nil && !p.AppShot && age < time.Duration(t.Log.Keep) {
		return true
	}
	if t.Log != nil && !p.AppShot {
		better := func(q Point) bool { return !q.AppShot && reference.Sub(q.Time) >= time.Duration(t.Log.Keep) }
		if !slices.ContainsFunc(points[i+1:], better) {
			return true
		}
	}
	k := t.Keep
	if k == nil {
		return true
	}
	newer := 0
	for _, q := range points[i+1:] {
		if ruled(q) {
			newer++
		}
	}
	if newer < k.Count || k.Age != 0 && age < time.Duration(k.Age) {
		return true
	}
	loc := must(zone(t.TimeZone))
	week := func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprint(y, w) }
	form := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	for _, rule := range []struct {
		n    int
		name func(time.Time) string
	}{{k.Hourly, form("2006-01-02 15 -0700")}, {k.Daily, form("2006-01-02")}, {k.Weekly, week}, {k.Monthly, form("2006-01")}, {k.Yearly, form("2006")}} {
		mine := rule.name(p.Time.In(loc))
		periods, stands := map[string]bool{}, true
		for j, q := range points {
			name := rule.name(q.Time.In(loc))
			if !ruled(q) {
				continue
			}
			if name == mine && (k.Of == OfFirst && j < i || k.Of != OfFirst && j > i) {
				stands = false
			}
			if j > i && name != mine {
				periods[name] = true
			}
		}
		if stands && len(periods) < rule.n {
			return true
		}
	}
	return false
}

// TestTheLogKeepsItsBase holds that, however often points are forgotten, any moment of the log's window has a capture to begin from.
func TestTheLogKeepsItsBase(t *testing.T) {
	r := chance(t)
	for range 12 {
		tmpl := someRetention(r, true)
		all := somePoints(r, 200, at(t, "2026-01-01T00:00:00Z"))
		for i := range all {
			all[i].AppShot = false
		}
		var have []Point
		for _, p := range all {
			have = append(have, p)
			begin := p.Time.Add(-time.Duration(tmpl.Log.Keep))
			var left []Point
			for _, v := range slices.Backward(Keep(tmpl, have, p.Time)) {
				if !v.Expire {
					left = append(left, v.Point)
				}
			}
			have = left
			if all[0].Time.Before(begin) && have[0].Time.After(begin) {
				t.Fatalf("%+v: at %v the oldest capture is %v", tmpl, p.Time, have[0].Time)
			}
		}
	}
}
