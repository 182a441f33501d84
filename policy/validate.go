package policy

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"tidemark"
	"tidemark/internal/strictyaml"
)

// checks collects the first fault.
type checks struct{ strictyaml.Checks }

func (c *checks) length(field string, d, least Duration) {
	c.That(d >= least && d <= MaxDuration, field, fmt.Sprintf("give it %v to %v", least, MaxDuration), "%v is not possible", d)
}

// optional is length for what may be left away.
func (c *checks) optional(field string, d, least Duration) {
	if d != 0 {
		c.length(field, d, least)
	}
}

// The shortest intervals: a capture walks the source, an AppShot and a receipt of logs cost a moment.
const (
	leastCapture = Duration(time.Minute)
	leastShot    = Duration(time.Second)
	maxList      = 366     // times, days, windows
	maxKept      = 100_000 // of each kind
)

// Validate returns an error of kind [tidemark.Invalid] that names the field, unless t can
// be promised: names, ranges, a zone that exists, and times that come about at all.
func (t Template) Validate() error {
	var c checks
	c.Name("name", t.Name)
	_, err := zone(t.TimeZone)
	c.That(err == nil, "time_zone", "write a name of the IANA database, such as Europe/Berlin or UTC", "there is no time zone %.60q", t.TimeZone)
	c.That(t.Priority >= 0 && t.Priority <= 100, "priority", "write 1 (last) to 100 (first)", "%d is not possible", t.Priority)
	c.optional("rpo", t.RPO, leastShot)
	c.optional("rto", t.RTO, leastShot)
	if t.Spread != nil {
		c.That(*t.Spread >= 0 && *t.Spread <= Duration(day), "spread", "give it 0s to 1d", "%v is not possible", *t.Spread)
	}
	t.validatePolicies(&c)
	return c.Err()
}

func (t Template) validatePolicies(c *checks) {
	if t.Capture != nil {
		t.Capture.validate(c)
	}
	if t.Keep != nil {
		t.Keep.validate(c)
	}
	if t.CDP != nil {
		c.length("cdp.window", t.CDP.Window, leastShot)
		c.That(t.CDP.Bytes >= 0 && t.CDP.Bytes <= tidemark.MaxSize, "cdp.bytes", "give it a size such as 100GiB", "%v is not possible", t.CDP.Bytes)
	}
	if t.AppShot != nil {
		c.length("appshot.every", t.AppShot.Every, leastShot)
		c.optional("appshot.keep", t.AppShot.Keep, leastShot)
	}
	if t.Log != nil {
		c.optional("log.every", t.Log.Every, leastShot)
		c.length("log.keep", t.Log.Keep, leastShot)
	}
	if t.Verify != nil {
		t.Verify.validate(c)
	}
	t.Replicate.validate(c, PolicyReplicate)
	t.Vault.validate(c, PolicyVault)
}

func (p *Capture) validate(c *checks) {
	c.That(p.Every == 0 || len(p.At) == 0, "capture.at", "leave one of them away", "captures are either every so often or at times of day")
	c.That(p.Every != 0 || len(p.At) > 0, "capture", `write every: 1h, or at: ["02:30"]`, "it does not say when")
	c.optional("capture.every", p.Every, leastCapture)
	lists := []struct {
		field string
		n     int
	}{{"at", len(p.At)}, {"weekdays", len(p.Weekdays)}, {"days_of_month", len(p.DaysOfMonth)}, {"windows", len(p.Windows)}, {"blackouts", len(p.Blackouts)}}
	for _, l := range lists {
		c.That(l.n <= maxList, "capture."+l.field, fmt.Sprintf("at most %d are allowed", maxList), "%d entries are too many", l.n)
	}
	for i, d := range p.DaysOfMonth {
		c.That(d >= 1 && d <= 31, fmt.Sprintf("capture.days_of_month[%d]", i), "write 1 to 31; 31 is the last day of every month", "%d is not a day of a month", d)
	}
	for i, at := range p.At {
		c.That(at >= 0 && at < endOfDay, fmt.Sprintf("capture.at[%d]", i), "write 00:00 to 23:59", "%d is not a time of day", int(at))
	}
	for i, d := range p.Weekdays {
		c.That(d >= 0 && d < 7, fmt.Sprintf("capture.weekdays[%d]", i), "write mon to sun", "%d is not a day of the week", int(d))
	}
	if c.First == nil {
		p.validateTimes(c)
	}
}

// validateTimes refuses what never comes about.
func (p *Capture) validateTimes(c *checks) {
	cal := newCalendar(p, time.UTC)
	for i, at := range p.At {
		open := slices.ContainsFunc(everyWeekday, func(d time.Weekday) bool { return cal.weekdays.has(d) && cal.open(d, at) })
		c.That(open, fmt.Sprintf("capture.at[%d]", i), "move it, or the windows and blackouts", "%v lies in no window, or in a blackout, on all of its days", at)
	}
	if p.Every == 0 {
		return
	}
	for _, d := range everyWeekday {
		for m := range endOfDay {
			if cal.weekdays.has(d) && cal.open(d, m) {
				return
			}
		}
	}
	c.That(false, "capture", "make a window longer, or a blackout shorter", "its windows, blackouts and weekdays leave no time at all")
}

var everyWeekday = []time.Weekday{0, 1, 2, 3, 4, 5, 6}

func (k *Retention) validate(c *checks) {
	fields := []struct {
		name string
		n    int
	}{{"count", k.Count}, {"hourly", k.Hourly}, {"daily", k.Daily}, {"weekly", k.Weekly}, {"monthly", k.Monthly}, {"yearly", k.Yearly}}
	any := k.Age != 0
	for _, f := range fields {
		c.That(f.n >= 0 && f.n <= maxKept, "keep."+f.name, fmt.Sprintf("give it 1 to %d, or leave it away", maxKept), "%d is not possible", f.n)
		any = any || f.n > 0
	}
	c.optional("keep.age", k.Age, leastShot)
	c.That(k.Of == "" || k.Of == OfFirst || k.Of == OfLast, "keep.of", "write first or last", "%.20q is not possible", k.Of)
	c.That(any, "keep", "write count, age, hourly, daily, weekly, monthly or yearly; without keep, everything is kept", "it keeps nothing")
}

func (v *Verify) validate(c *checks) {
	c.length("verify.every", v.Every, leastCapture)
	c.That(v.Point == "" || v.Point == WhichLatest || v.Point == WhichRandom, "verify.point", "write latest or random", "%.20q is not possible", v.Point)
	c.That(v.Of >= 0 && v.Of <= maxKept, "verify.of", fmt.Sprintf("give it 1 to %d", maxKept), "%d is not possible", v.Of)
	c.That(v.Of == 0 || v.Point == WhichRandom, "verify.of", "write point: random, or leave it away", "it goes with point: random only")
	if v.Probe != "" {
		c.Name("verify.probe", v.Probe)
		c.That(v.Proves(), "verify.probe", "leave prove: false away, or the probe", "a probe looks at what is brought up, and nothing is")
	}
}

func (p *Copy) validate(c *checks, policy Policy) {
	if p == nil {
		return
	}
	if p.To != "" {
		c.Name(string(policy)+".to", p.To)
	}
	c.optional(string(policy)+".every", p.Every, leastCapture)
	c.optional(string(policy)+".keep", p.Keep, leastShot)
}

// Notes are what a user of the template should know, one line each: policies that nothing
// acts on yet, and promises that the schedule cannot keep.
func (t Template) Notes() (notes []string) {
	for policy, copies := range map[Policy]*Copy{PolicyReplicate: t.Replicate, PolicyVault: t.Vault} {
		if copies != nil {
			notes = append(notes, notCopied(policy, copies.To))
		}
	}
	slices.Sort(notes)
	if gap, by := t.longestGap(); t.RPO != 0 && gap >= t.RPO {
		notes = append(notes, fmt.Sprintf("rpo: %v cannot be kept: %s leaves %v between points, and some time to make each", t.RPO, by, gap))
	}
	if t.Log != nil && t.Capture == nil {
		notes = append(notes, "log: it is of use behind a capture only, and none is promised")
	}
	return notes
}

// longestGap is the time between recoverable moments if all goes well and no window is in the way.
func (t Template) longestGap() (gap Duration, by string) {
	if t.CDP != nil || t.Log != nil && t.Log.Every == 0 {
		return 0, ""
	}
	gap, by = MaxDuration, "the template"
	shorter := func(d Duration, name string) {
		if d != 0 && d < gap {
			gap, by = d, name
		}
	}
	if t.Capture != nil {
		shorter(t.Capture.Every, "capture")
		shorter(longestBetween(t.Capture.At), "capture")
	}
	if t.AppShot != nil {
		shorter(t.AppShot.Every, "appshot")
	}
	if t.Log != nil {
		shorter(t.Log.Every, "log")
	}
	return gap, by
}

// longestBetween is the longest time between two times of day that follow each other.
func longestBetween(at []TimeOfDay) (gap Duration) {
	sorted := slices.Sorted(slices.Values(at))
	for i, t := range sorted {
		next := sorted[(i+1)%len(sorted)]
		if i == len(sorted)-1 {
			next += endOfDay
		}
		gap = max(gap, Duration(time.Duration(next-t)*time.Minute))
	}
	return gap
}

// checkSource refuses what cannot be a source, and secrets, which are never repeated in the error.
func checkSource(c *checks, field, source string) {
	c.That(source != "" && len(source) <= 4096 && !strings.ContainsAny(source, "\x00\n\r"), field, "write a URL, a directory or a device, such as postgres://db1/shop or /srv/files", "it is empty, too long, or of several lines")
	c.That(!hasSecret(source), field, "leave the password away, and put it into a password file of the server", "it has a password in it")
	if strings.Contains(source, "://") {
		_, err := url.Parse(source)
		c.That(err == nil, field, "write it as postgres://HOST/DATABASE", "it is not a URL")
	}
}

// hasSecret reports whether a password stands in a URL, or behind its name and '='.
func hasSecret(s string) bool {
	for _, word := range strings.Fields(s) {
		if key, _, has := strings.Cut(word, "="); has && isSecret(key) {
			return true
		}
	}
	if !strings.Contains(s, "://") {
		return false
	}
	u, err := url.Parse(s)
	if err != nil {
		return strings.Contains(s, "@") // it may be one that is written badly
	}
	_, has := u.User.Password()
	for key := range u.Query() {
		has = has || isSecret(key)
	}
	return has
}

// isSecret reports whether something is named as a secret, and not as the file that has it.
func isSecret(name string) bool {
	name = strings.ToLower(name)
	return !strings.HasSuffix(name, "file") && slices.ContainsFunc([]string{"password", "passwd", "secret", "token"}, func(word string) bool { return strings.Contains(name, word) })
}
