package policy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"tidemark"
)

// MaxDuration is the longest duration of a template: a hundred years, far below where times overflow.
const MaxDuration = Duration(36500 * day)

const day = 24 * time.Hour

// Duration is a length of time as people promise it: 90m, 36h, 7d, 2w. Its grain is a
// second. A day is 24 hours and a week 7 days, whatever the clocks do meanwhile.
// Months and years are not durations, because they differ in length.
type Duration time.Duration

var durationUnits = []struct {
	name byte
	size time.Duration
}{{'w', 7 * day}, {'d', day}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// ParseDuration reads numbers with units, the larger units first: 90m, 1h30m, 7d, 2w.
// Errors are of kind [tidemark.Invalid].
func ParseDuration(s string) (Duration, error) {
	bad := func() error {
		return tidemark.Errorf(tidemark.Invalid, "%.40q is not a length of time", s).
			WithHint("write whole numbers with s, m, h, d or w, such as 90m, 36h, 7d or 2w; a month or year is written in days")
	}
	rest, sum, unit := s, time.Duration(0), 0
	if s == "" {
		return 0, bad()
	}
	for rest != "" {
		i := 0
		for i < len(rest) && rest[i] >= '0' && rest[i] <= '9' {
			i++
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		if i == 0 || i == len(rest) {
			return 0, bad()
		}
		for unit < len(durationUnits) && durationUnits[unit].name != rest[i] {
			unit++
		}
		if unit == len(durationUnits) {
			return 0, bad()
		}
		size := durationUnits[unit].size
		if err != nil || n > int64(MaxDuration)/int64(size) || sum+time.Duration(n)*size > time.Duration(MaxDuration) {
			return 0, tidemark.Errorf(tidemark.Invalid, "the length of time %.40s is too long", s).WithHint("at most 36500d")
		}
		sum, rest, unit = sum+time.Duration(n)*size, rest[i+1:], unit+1
	}
	return Duration(sum), nil
}

// String prints d as [ParseDuration] reads it, in the largest unit that needs no second one.
func (d Duration) String() string {
	if d < 0 {
		return "-" + (-d).String()
	}
	for _, u := range durationUnits {
		if d > 0 && time.Duration(d)%u.size == 0 {
			return strconv.FormatInt(int64(time.Duration(d)/u.size), 10) + string(u.name)
		}
	}
	return strconv.FormatInt(int64(math.Ceil(time.Duration(d).Seconds())), 10) + "s"
}

// MarshalText is String: durations are text in YAML and JSON.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is [ParseDuration].
func (d *Duration) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDuration(string(text))
	return err
}

// Size is a number of bytes, written with a binary unit: 10GiB.
type Size int64

// String prints n as [tidemark.ParseSize] reads it, exactly.
func (n Size) String() string {
	for i, unit := range []string{"PiB", "TiB", "GiB", "MiB", "KiB"} {
		if one := Size(1) << (50 - 10*i); n > 0 && n%one == 0 {
			return strconv.FormatInt(int64(n/one), 10) + unit
		}
	}
	return strconv.FormatInt(int64(n), 10)
}

// MarshalText is String: sizes are text in YAML and JSON.
func (n Size) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText is [tidemark.ParseSize].
func (n *Size) UnmarshalText(text []byte) error {
	v, err := tidemark.ParseSize(string(text))
	*n = Size(v)
	return err
}

// TimeOfDay is a time that a clock on the wall shows, in minutes after midnight.
type TimeOfDay int

const endOfDay TimeOfDay = 24 * 60

// ParseTimeOfDay reads 00:00 to 23:59. Errors are of kind [tidemark.Invalid].
func ParseTimeOfDay(s string) (TimeOfDay, error) {
	t, ok := clock(s)
	if !ok || t == endOfDay {
		return 0, tidemark.Errorf(tidemark.Invalid, "%.40q is not a time of day", s).WithHint("write hours and minutes, such as 02:30 or 17:00")
	}
	return t, nil
}

// clock reads HH:MM, up to 24:00.
func clock(s string) (TimeOfDay, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	for _, i := range []int{0, 1, 3, 4} {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	h, m := int(s[0]-'0')*10+int(s[1]-'0'), int(s[3]-'0')*10+int(s[4]-'0')
	t := TimeOfDay(h*60 + m)
	return t, m < 60 && t <= endOfDay
}

// String prints t as [ParseTimeOfDay] reads it.
func (t TimeOfDay) String() string { return fmt.Sprintf("%02d:%02d", int(t)/60, int(t)%60) }

// MarshalText is String.
func (t TimeOfDay) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is [ParseTimeOfDay].
func (t *TimeOfDay) UnmarshalText(text []byte) (err error) {
	*t, err = ParseTimeOfDay(string(text))
	return err
}

// Weekday is a day of the week: sun, mon, tue, wed, thu, fri or sat.
type Weekday time.Weekday

var weekdayNames = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseWeekday reads the first three letters of a day's English name, in small letters. Errors are of kind [tidemark.Invalid].
func ParseWeekday(s string) (Weekday, error) {
	for i, name := range weekdayNames {
		if s == name {
			return Weekday(i), nil
		}
	}
	return 0, tidemark.Errorf(tidemark.Invalid, "%.40q is not a day of the week", s).WithHint("there are mon, tue, wed, thu, fri, sat and sun")
}

// String prints d as [ParseWeekday] reads it.
func (d Weekday) String() string { return weekdayNames[(d%7+7)%7] }

// MarshalText is String.
func (d Weekday) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is [ParseWeekday].
func (d *Weekday) UnmarshalText(text []byte) (err error) {
	*d, err = ParseWeekday(string(text))
	return err
}

// weekdays is a set of days, a bit for each; none means all.
type weekdays uint8

func (w weekdays) has(d time.Weekday) bool { return w == 0 || w&(1<<d) != 0 }

// Window is a stretch of each day, or of some days of the week, by the clock on the
// wall: "22:00-06:00", "mon-fri 22:00-06:00", "sat,sun 00:00-24:00". It has its first
// minute and not its last. One that goes past midnight belongs to the day on which it begins.
type Window struct {
	days     weekdays
	from, to TimeOfDay
}

// ParseWindow reads a window. Errors are of kind [tidemark.Invalid].
func ParseWindow(s string) (Window, error) {
	bad := func(why string) error {
		return tidemark.Errorf(tidemark.Invalid, "%.60q is not a window: %s", s, why).
			WithHint("write 22:00-06:00, or with days: mon-fri 22:00-06:00, sat,sun 00:00-24:00")
	}
	var w Window
	span := s
	if days, rest, ok := strings.Cut(s, " "); ok {
		set, err := parseDays(days)
		if err != nil {
			return Window{}, bad(err.Error())
		}
		w.days, span = set, rest
	}
	from, to, ok := strings.Cut(span, "-")
	var okFrom, okTo bool
	w.from, okFrom = clock(from)
	w.to, okTo = clock(to)
	switch {
	case !ok || !okFrom || !okTo || w.from == endOfDay:
		return Window{}, bad("it needs two times of day with '-' between")
	case w.from == w.to:
		return Window{}, bad("it ends when it begins (a whole day is 00:00-24:00)")
	}
	return w, nil
}

// parseDays reads mon-fri, sat,sun or a mixture.
func parseDays(s string) (set weekdays, err error) {
	for _, part := range strings.Split(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := ParseWeekday(first)
		if err != nil {
			return 0, err
		}
		b := a
		if ranged {
			if b, err = ParseWeekday(last); err != nil {
				return 0, err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			set |= 1 << d
			if d == b {
				break
			}
		}
	}
	return set, nil
}

// String prints w as [ParseWindow] reads it.
func (w Window) String() string {
	s := w.from.String() + "-" + w.to.String()
	if w.days == 0 {
		return s
	}
	var days []string
	for i := range 7 {
		if d := Weekday((i + 1) % 7); w.days&(1<<d) != 0 {
			days = append(days, d.String())
		}
	}
	return strings.Join(days, ",") + " " + s
}

// MarshalText is String.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText is [ParseWindow].
func (w *Window) UnmarshalText(text []byte) (err error) {
	*w, err = ParseWindow(string(text))
	return err
}

// has reports whether the clock is in the window when it shows t on a day d.
func (w Window) has(d time.Weekday, t TimeOfDay) bool {
	if w.from < w.to {
		return w.days.has(d) && t >= w.from && t < w.to
	}
	return w.days.has(d) && t >= w.from || w.days.has((d+6)%7) && t < w.to
}
