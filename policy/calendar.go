package policy

import (
	"slices"
	"sync"
	"time"
	_ "time/tzdata" // a template must be valid on a host without a zone database, too

	"tidemark"
)

// zones are those that were loaded: loading one reads a file.
var zones sync.Map // string → *time.Location

// zone returns the time zone of an IANA name; empty is UTC. What "Local" is depends on the machine, so there is no such zone.
func zone(name string) (*time.Location, error) {
	if z, ok := zones.Load(name); ok {
		return z.(*time.Location), nil
	}
	if name == "Local" || len(name) > 64 {
		return nil, tidemark.Errorf(tidemark.Invalid, "there is no time zone %.60q", name)
	}
	z, err := time.LoadLocation(name)
	if err != nil {
		return nil, tidemark.Errorf(tidemark.Invalid, "there is no time zone %.60q: %w", name, err)
	}
	zones.Store(name, z)
	return z, nil
}

// location is the template's zone, or UTC if Validate would refuse it.
func (t Template) location() *time.Location {
	z, err := zone(t.TimeZone)
	if err != nil {
		return time.UTC
	}
	return z
}

// date is a day of the calendar, counted from 1970-01-01.
type date int

func (d date) weekday() time.Weekday { return time.Weekday(((int(d)+4)%7 + 7) % 7) }

// civil returns year, month and day.
func (d date) civil() (int, time.Month, int) { return time.Unix(int64(d)*86400, 0).UTC().Date() }

// wall is what the clock shows at t: the date, and the seconds since it shows midnight.
func wall(t time.Time, loc *time.Location) (date, int) {
	_, offset := t.In(loc).Zone()
	shown := t.Unix() + int64(offset)
	d := shown / 86400
	if shown%86400 < 0 {
		d--
	}
	return date(d), int(shown - d*86400)
}

// first returns the first instant at which the clock shows a time or a later one. Where a
// clock is put forward over it, that is the moment at which it is put forward; where one is put
// back, and shows it twice, it is the first of the two.
func first(d date, at TimeOfDay, loc *time.Location) time.Time {
	shown := int64(d)*86400 + int64(at)*60
	// No offset is longer than a day, and no clock was ever put back by more than that.
	t := time.Unix(shown-2*86400, 0).In(loc)
	for {
		_, offset := t.Zone()
		_, end := t.ZoneBounds()
		found := time.Unix(shown-int64(offset), 0).In(loc)
		if found.Before(t) {
			found = t // the clock was put forward over it
		}
		if end.IsZero() || found.Before(end) {
			return found
		}
		t = end
	}
}

// calendar is a capture policy made ready to be asked.
type calendar struct {
	loc        *time.Location
	at         []TimeOfDay // in order, each once
	weekdays   weekdays
	days       uint32 // bit 1 to 31; 0 means all
	windows    []Window
	blackouts  []Window
	boundaries []TimeOfDay // at which open may change, in order
}

// horizon is how far calendars look. What Validate lets pass comes about within 14 months.
const horizon = 800 * day

func newCalendar(p *Capture, loc *time.Location) *calendar {
	c := &calendar{loc: loc, windows: p.Windows, blackouts: p.Blackouts, boundaries: []TimeOfDay{endOfDay}}
	c.at = slices.Compact(slices.Sorted(slices.Values(p.At)))
	for _, d := range p.Weekdays {
		c.weekdays |= 1 << d
	}
	for _, d := range p.DaysOfMonth {
		c.days |= 1 << d
	}
	for _, list := range [][]Window{c.windows, c.blackouts} {
		for _, w := range list {
			c.boundaries = append(c.boundaries, w.from, w.to)
		}
	}
	slices.Sort(c.boundaries)
	c.boundaries = slices.Compact(c.boundaries)
	return c
}

// open reports whether windows and blackouts let something begin when the clock shows that.
func (c *calendar) open(d time.Weekday, at TimeOfDay) bool {
	in := func(w Window) bool { return w.has(d, at) }
	return (len(c.windows) == 0 || slices.ContainsFunc(c.windows, in)) && !slices.ContainsFunc(c.blackouts, in)
}

// onDay reports whether weekdays and days of the month allow a date.
func (c *calendar) onDay(d date) bool {
	if !c.weekdays.has(d.weekday()) {
		return false
	}
	if c.days == 0 {
		return true
	}
	_, _, n := d.civil()
	if _, _, tomorrow := (d + 1).civil(); tomorrow == 1 {
		return c.days>>n != 0 // the last day stands for those that the month lacks
	}
	return c.days&(1<<n) != 0
}

// always reports whether nothing is ever closed.
func (c *calendar) always(days bool) bool {
	return len(c.windows) == 0 && len(c.blackouts) == 0 && (!days || c.weekdays == 0 && c.days == 0)
}

// allows reports whether something may begin at t. With days, the date counts, too.
func (c *calendar) allows(t time.Time, days bool) bool {
	d, s := wall(t, c.loc)
	return (!days || c.onDay(d)) && c.open(d.weekday(), TimeOfDay(s/60))
}

// change returns the first instant from t on at which allows is want.
func (c *calendar) change(t time.Time, days, want bool) (time.Time, bool) {
	for end := t.Add(horizon); t.Before(end); {
		if c.allows(t, days) == want {
			return t, true
		}
		d, s := wall(t, c.loc)
		to := endOfDay
		if !days || c.onDay(d) {
			i, _ := slices.BinarySearch(c.boundaries, TimeOfDay(s/60)+1)
			to = c.boundaries[i] // there is one: the last is the end of the day
		}
		next := time.Unix(t.Unix()+int64(int(to)*60-s), 0)
		if _, shift := t.In(c.loc).ZoneBounds(); !shift.IsZero() && shift.Before(next) {
			next = shift // from there on the clock shows something else
		}
		t = next
	}
	return time.Time{}, false
}

// occurrences returns the instants of a date's times of day, in order. A date that a zone skipped has none.
func (c *calendar) occurrences(d date) (list []time.Time) {
	if !c.onDay(d) {
		return nil
	}
	for _, at := range c.at {
		if !c.open(d.weekday(), at) {
			continue
		}
		t := first(d, at, c.loc)
		if shown, _ := wall(t, c.loc); shown != d && first(d, 0, c.loc).Equal(first(d+1, 0, c.loc)) {
			continue
		}
		list = append(list, t)
	}
	return list
}

const horizonDays = int(horizon / day)

// next returns the first occurrence after t.
func (c *calendar) next(t time.Time) (time.Time, bool) {
	d, _ := wall(t, c.loc)
	for i := range horizonDays {
		for _, o := range c.occurrences(d + date(i)) {
			if o.After(t) {
				return o, true
			}
		}
	}
	return time.Time{}, false
}

// last returns the newest occurrence that is not after t.
func (c *calendar) last(t time.Time) (time.Time, bool) {
	d, _ := wall(t, c.loc)
	for i := range horizonDays {
		for _, o := range slices.Backward(c.occurrences(d + 1 - date(i))) {
			if !o.After(t) {
				return o, true
			}
		}
	}
	return time.Time{}, false
}
