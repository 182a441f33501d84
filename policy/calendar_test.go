package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// chance is a source of chance whose seed is printed.
func chance(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func at(t testing.TB, s string) time.Time {
	t.Helper()
	v, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func hours(list ...string) (out []TimeOfDay) {
	for _, s := range list {
		out = append(out, must(ParseTimeOfDay(s)))
	}
	return out
}

func windows(list ...string) (out []Window) {
	for _, s := range list {
		out = append(out, must(ParseWindow(s)))
	}
	return out
}

func TestCalendarTimesInRealZones(t *testing.T) {
	for _, c := range []struct {
		why, zone, from string
		capture         Capture
		want            []string
	}{
		{"02:30 does not exist on the 29th: the moment at which the clock is put forward", "Europe/Berlin", "2026-03-28T00:00:00Z", Capture{At: hours("02:30")},
			[]string{"2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"}},
		{"02:30 exists twice on the 25th: the first of them", "Europe/Berlin", "2026-10-24T00:00:00Z", Capture{At: hours("02:30")},
			[]string{"2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"}},
		{"two times within what is skipped are one moment", "Europe/Berlin", "2026-03-28T12:00:00Z", Capture{At: hours("02:10", "02:50", "03:00", "03:10")},
			[]string{"2026-03-29T01:00:00Z", "2026-03-29T01:10:00Z", "2026-03-30T00:10:00Z"}},
		{"midnight does not exist", "America/Sao_Paulo", "2018-11-03T00:00:00Z", Capture{At: hours("00:00")},
			[]string{"2018-11-03T03:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"}},
		{"23:30 exists twice on the 16th", "America/Sao_Paulo", "2019-02-16T00:00:00Z", Capture{At: hours("23:30")},
			[]string{"2019-02-16T01:30:00Z", "2019-02-17T01:30:00Z", "2019-02-18T02:30:00Z"}},
		{"no more summer time since 2019", "America/Sao_Paulo", "2019-11-02T12:00:00Z", Capture{At: hours("00:00")},
			[]string{"2019-11-03T03:00:00Z", "2019-11-04T03:00:00Z"}},
		{"half an hour forward", "Australia/Lord_Howe", "2026-10-02T20:00:00Z", Capture{At: hours("02:15")},
			[]string{"2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"}},
		{"half an hour back", "Australia/Lord_Howe", "2026-04-03T20:00:00Z", Capture{At: hours("01:45")},
			[]string{"2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"}},
		{"the 30th of December 2011 did not exist", "Pacific/Apia", "2011-12-28T20:00:00Z", Capture{At: hours("02:30")},
			[]string{"2011-12-29T12:30:00Z", "2011-12-30T12:30:00Z", "2011-12-31T12:30:00Z"}},
		{"day 31 is the last of every month", "UTC", "2027-12-01T00:00:00Z", Capture{At: hours("12:00"), DaysOfMonth: []int{31}},
			[]string{"2027-12-31T12:00:00Z", "2028-01-31T12:00:00Z", "2028-02-29T12:00:00Z", "2028-03-31T12:00:00Z", "2028-04-30T12:00:00Z"}},
		{"a leap day, and what stands for it", "UTC", "2028-02-01T00:00:00Z", Capture{At: hours("00:00"), DaysOfMonth: []int{29, 30}},
			[]string{"2028-02-29T00:00:00Z", "2028-03-29T00:00:00Z", "2028-03-30T00:00:00Z"}},
		{"the first Saturday of a month", "Europe/Berlin", "2026-11-02T00:00:00Z", Capture{At: hours("22:00"), Weekdays: []Weekday{6}, DaysOfMonth: []int{1, 2, 3, 4, 5, 6, 7}},
			[]string{"2026-11-07T21:00:00Z", "2026-12-05T21:00:00Z", "2027-01-02T21:00:00Z"}},
		{"blackouts of some days", "UTC", "2026-11-27T00:00:00Z", Capture{At: hours("12:00"), Blackouts: windows("sat,sun 00:00-24:00")},
			[]string{"2026-11-27T12:00:00Z", "2026-11-30T12:00:00Z"}},
	} {
		loc, err := zone(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		cal := newCalendar(&c.capture, loc)
		now := at(t, c.from)
		for _, want := range c.want {
			next, ok := cal.next(now)
			if !ok || !next.Equal(at(t, want)) {
				t.Fatalf("%s: after %v comes %v, want %s", c.why, now.UTC(), next.UTC(), want)
			}
			if last, ok := cal.last(next.Add(time.Second)); !ok || !last.Equal(next) {
				t.Fatalf("%s: the last one at %v is %v", c.why, next.UTC(), last.UTC())
			}
			now = next
		}
	}
}

// slow is a calendar as one would explain it: somebody looks at the clock on the wall every minute.
type slow struct {
	capture Capture
	loc     *time.Location
	rang    map[string]bool // date and time of day of what is done
}

func (s *slow) day(t time.Time) bool {
	t = t.In(s.loc)
	if len(s.capture.Weekdays) > 0 && !slices.Contains(s.capture.Weekdays, Weekday(t.Weekday())) {
		return false
	}
	if len(s.capture.DaysOfMonth) == 0 || slices.Contains(s.capture.DaysOfMonth, t.Day()) {
		return true
	}
	last := time.Date(t.Year(), t.Month()+1, 0, 12, 0, 0, 0, time.UTC).Day()
	return t.Day() == last && slices.Max(s.capture.DaysOfMonth) > last
}

func (s *slow) windowed(w Window, d time.Weekday, hhmm string) bool {
	days, span := "sun,mon,tue,wed,thu,fri,sat", w.String()
	if len(span) > 11 {
		days, span = span[:len(span)-12], span[len(span)-11:]
	}
	on := func(d time.Weekday) bool { return slices.Contains(split(days), Weekday(d).String()) }
	from, to := span[:5], span[6:]
	if from < to {
		return on(d) && hhmm >= from && hhmm < to
	}
	return on(d) && hhmm >= from || on((d+6)%7) && hhmm < to
}

func split(s string) (list []string) {
	for i := 0; i < len(s); i += 4 {
		list = append(list, s[i:i+3])
	}
	return list
}

func (s *slow) open(d time.Weekday, hhmm string) bool {
	open := len(s.capture.Windows) == 0
	for _, w := range s.capture.Windows {
		open = open || s.windowed(w, d, hhmm)
	}
	for _, w := range s.capture.Blackouts {
		open = open && !s.windowed(w, d, hhmm)
	}
	return open
}

func (s *slow) allows(t time.Time, days bool) bool {
	l := t.In(s.loc)
	return (!days || s.day(t)) && s.open(l.Weekday(), l.Format("15:04"))
}

// rings reports whether, at a minute, a time of day is reached or was just passed over.
func (s *slow) rings(t time.Time) bool {
	l, before := t.In(s.loc), t.Add(-time.Minute).In(s.loc)
	ring := false
	for _, at := range s.capture.At {
		// Today, and yesterday: a clock put forward over midnight passes over the end of a day.
		for _, back := range []int{0, 1} {
			d := time.Date(l.Year(), l.Month(), l.Day()-back, 12, 0, 0, 0, time.UTC)
			if back == 1 && before.Day() != d.Day() {
				continue // that day ended long ago, or never was
			}
			key := d.Format("2006-01-02") + " " + at.String()
			if l.Format("2006-01-02 15:04") < key || s.rang[key] {
				continue
			}
			s.rang[key] = true
			noon := time.Date(d.Year(), d.Month(), d.Day(), 12, 0, 0, 0, time.UTC)
			on := slow{capture: s.capture, loc: time.UTC}
			ring = ring || on.day(noon) && s.open(d.Weekday(), at.String())
		}
	}
	return ring
}

// shifts are zones and days at which their clocks do something, each some days before.
var shifts = []struct{ zone, from string }{
	{"Europe/Berlin", "2026-03-26T00:00:00Z"}, {"Europe/Berlin", "2026-10-22T00:00:00Z"}, {"Europe/Berlin", "2028-02-26T00:00:00Z"},
	{"America/Sao_Paulo", "2018-11-01T00:00:00Z"}, {"America/Sao_Paulo", "2019-02-14T00:00:00Z"}, {"America/Sao_Paulo", "2026-12-28T00:00:00Z"},
	{"Australia/Lord_Howe", "2026-10-01T00:00:00Z"}, {"Australia/Lord_Howe", "2026-04-02T00:00:00Z"},
	{"Pacific/Apia", "2011-12-27T00:00:00Z"}, {"Pacific/Apia", "2021-04-01T00:00:00Z"}, {"Pacific/Kwajalein", "1993-08-18T00:00:00Z"},
	{"Africa/Casablanca", "2026-02-12T00:00:00Z"}, {"America/St_Johns", "2006-10-26T00:00:00Z"}, {"Asia/Kathmandu", "2026-05-01T00:00:00Z"},
	{"UTC", "2027-02-26T00:00:00Z"}, {"UTC", "2028-02-26T00:00:00Z"},
}

func somewhere(r *rand.Rand) (*time.Location, string, time.Time) {
	s := shifts[r.IntN(len(shifts))]
	from := must(time.Parse(time.RFC3339, s.from))
	return must(zone(s.zone)), s.zone, from.Add(time.Duration(r.IntN(24*60)) * time.Minute)
}

func someWindow(r *rand.Rand) Window {
	clock := func(n int) TimeOfDay { return TimeOfDay(r.IntN(n/15+1) * 15) }
	w := Window{from: clock(23*60 + 45), to: clock(24 * 60)}
	if w.from == w.to {
		w.to = w.from + 30
		w.to = min(w.to, endOfDay)
	}
	if r.IntN(3) == 0 {
		w.days = weekdays(1 + r.IntN(127))
	}
	return w
}

// someCapture is one that Validate lets pass.
func someCapture(r *rand.Rand, every bool) Capture {
	for {
		var c Capture
		if every {
			c.Every = Duration(time.Duration([]int{1, 7, 15, 60, 61, 240, 1440, 3000}[r.IntN(8)]) * time.Minute)
		} else {
			for range 1 + r.IntN(3) {
				c.At = append(c.At, TimeOfDay(r.IntN(16)*15+r.IntN(2)*1200))
			}
		}
		for range r.IntN(3) * r.IntN(2) {
			c.Windows = append(c.Windows, someWindow(r))
		}
		for range r.IntN(3) * r.IntN(2) {
			c.Blackouts = append(c.Blackouts, someWindow(r))
		}
		for range r.IntN(5) * r.IntN(2) {
			c.Weekdays = append(c.Weekdays, Weekday(r.IntN(7)))
		}
		for range r.IntN(20) * (r.IntN(3) / 2) {
			c.DaysOfMonth = append(c.DaysOfMonth, 1+r.IntN(31))
		}
		if (Template{Name: "x", Capture: &c}).Validate() == nil {
			return c
		}
	}
}

func TestCalendarIsTheClockOnTheWall(t *testing.T) {
	r := chance(t)
	for range 20 {
		loc, name, begin := somewhere(r)
		c := someCapture(r, false)
		cal := newCalendar(&c, loc)
		model := slow{c, loc, map[string]bool{}}
		what := fmt.Sprintf("%s from %v: %+v", name, begin, c)
		for m := range 3 * 24 * 60 { // so that it knows which times have been
			model.rings(begin.Add(time.Duration(m-3*24*60) * time.Minute))
		}
		var want []time.Time
		for m := range 8 * 24 * 60 {
			if now := begin.Add(time.Duration(m) * time.Minute); model.rings(now) {
				want = append(want, now)
			}
		}
		now := begin.Add(-time.Second)
		for _, w := range want {
			next, ok := cal.next(now)
			if !ok || !next.Equal(w) {
				t.Fatalf("%s: after %v comes %v, want %v", what, now, next, w)
			}
			if last, ok := cal.last(w); !ok || !last.Equal(w) {
				t.Fatalf("%s: at %v the last one is %v", what, w, last)
			}
			now = next
		}
		if next, ok := cal.next(now); ok && next.Before(begin.Add(8*day)) {
			t.Fatalf("%s: %v is one too many", what, next)
		}
	}
}

func TestOpeningTimesAreThoseOfTheClockOnTheWall(t *testing.T) {
	r := chance(t)
	for range 20 {
		loc, name, begin := somewhere(r)
		c := someCapture(r, true)
		cal := newCalendar(&c, loc)
		model := slow{capture: c, loc: loc}
		days := r.IntN(2) == 0
		next := map[bool]time.Time{}
		for m := 6 * 24 * 60; m >= 0; m-- { // from behind, so that what comes next is known
			now := begin.Add(time.Duration(m) * time.Minute)
			is := model.allows(now, days)
			if got := cal.allows(now.Add(time.Duration(r.IntN(60))*time.Second), days); got != is {
				t.Fatalf("%s, %+v: at %v it is open: %v", name, c, now, got)
			}
			next[is] = now
			if want, known := next[!is]; known && m%7 == 0 {
				if got, ok := cal.change(now, days, !is); !ok || !got.Equal(want) {
					t.Fatalf("%s, %+v: from %v it changes at %v, want %v", name, c, now, got, want)
				}
			}
		}
	}
}
