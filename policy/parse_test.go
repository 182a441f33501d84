package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/strictyaml"
)

const everything = `# all that there is
kind: Template
name: gold
description: "orders: never lose more than a quarter of an hour"
time_zone: Europe/Berlin
priority: 90
rpo: 15m
rto: 10m
spread: 0s
capture:
  at: ["02:30", 14:30]
  weekdays: [mon, tue, wed, thu, fri]
  days_of_month: [1, 31]
  windows: ["22:00-06:00", "mon-fri 12:00-16:00"]
  blackouts: ["sat,sun 00:00-24:00"]
keep: {count: 3, age: 7d, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 7, of: first, last_verified: true}
cdp: {window: 36h, bytes: 100GiB}
appshot: {every: 90s, keep: 2w}
log: {every: 5m, keep: 7d}
verify: {every: 1d, point: random, of: 10, probe: orders-count}
replicate: {to: site-b, every: 1h, keep: 30d}
vault: {to: vault-1, keep: 365d}
---
kind: Host
name: db1
labels: {rack: 7, critical: yes}
---
kind: Profile
name: berlin
description: the old array
jobs: 2
replicate: hamburg
vault: tape
---
kind: Application
name: orders
source: postgres://backup@db1/orders
also: [/dev/vg0/logs]
host: db1
sla: gold
profile: berlin
options: {scripts: /etc/orders, port: 5432}
labels: {team: sales}
---
kind: Group
name: bank
members: [orders]
options: {appshot: 5m}
`

func TestParse(t *testing.T) {
	set, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	zero := Duration(0)
	want := Set{
		Hosts: []Host{{Name: "db1", Labels: map[string]string{"rack": "7", "critical": "yes"}}},
		Templates: []Template{{Name: "gold", Description: "orders: never lose more than a quarter of an hour", TimeZone: "Europe/Berlin", Priority: 90,
			RPO: Duration(15 * time.Minute), RTO: Duration(10 * time.Minute), Spread: &zero,
			Capture: &Capture{At: []TimeOfDay{150, 870}, Weekdays: []Weekday{1, 2, 3, 4, 5}, DaysOfMonth: []int{1, 31},
				Windows: windows("22:00-06:00", "mon-fri 12:00-16:00"), Blackouts: windows("sat,sun 00:00-24:00")},
			Keep:      &Retention{Count: 3, Age: Duration(7 * day), Hourly: 24, Daily: 7, Weekly: 4, Monthly: 12, Yearly: 7, Of: OfFirst, LastVerified: true},
			CDP:       &CDP{Window: Duration(36 * time.Hour), Bytes: 100 << 30},
			AppShot:   &AppShot{Every: Duration(90 * time.Second), Keep: Duration(14 * day)},
			Log:       &Log{Every: Duration(5 * time.Minute), Keep: Duration(7 * day)},
			Verify:    &Verify{Every: Duration(day), Point: WhichRandom, Of: 10, Probe: "orders-count"},
			Replicate: &Copy{To: "site-b", Every: Duration(time.Hour), Keep: Duration(30 * day)},
			Vault:     &Copy{To: "vault-1", Keep: Duration(365 * day)}}},
		Profiles: []Profile{{Name: "berlin", Description: "the old array", Jobs: 2, Replicate: "hamburg", Vault: "tape"}},
		Applications: []Application{{Name: "orders", Source: "postgres://backup@db1/orders", Also: []string{"/dev/vg0/logs"}, Host: "db1", SLA: "gold", Profile: "berlin",
			Options: map[string]string{"scripts": "/etc/orders", "port": "5432"}, Labels: map[string]string{"team": "sales"}}},
		Groups: []Group{{Name: "bank", Members: []string{"orders"}, Options: map[string]string{"appshot": "5m"}}},
	}
	if !reflect.DeepEqual(set, want) {
		t.Errorf("got  %+v\nwant %+v", set, want)
	}
	roundTrip(t, set)
}

// roundTrip holds that a set survives YAML and JSON, and that its YAML is always the same.
func roundTrip(t *testing.T, set Set) {
	t.Helper()
	text, err := Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if same, err := Marshal(again); err != nil || string(same) != string(text) {
		t.Fatalf("%v: first\n%s\nthen\n%s", err, text, same)
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	var third Set
	if err := json.Unmarshal(data, &third); err != nil {
		t.Fatal(err)
	}
	if same, err := Marshal(third); err != nil || string(same) != string(text) {
		t.Fatalf("%v: JSON\n%s\nmakes\n%s\nof\n%s", err, data, same, text)
	}
	if changes, err := Difference(set, again); err != nil {
		t.Fatal(err)
	} else {
		for _, c := range changes {
			if c.Action != ActionLeave {
				t.Fatalf("YAML changed something: %v", c)
			}
		}
	}
}

func TestJSONIsRead(t *testing.T) {
	set, err := Parse([]byte(`{"kind": "Template", "name": "t", "capture": {"every": "1h", "windows": ["22:00-06:00"]}, "keep": {"last_verified": true, "daily": 7}}`))
	if err != nil || set.Templates[0].Capture.Every != Duration(time.Hour) || !set.Templates[0].Keep.LastVerified {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestParseRefuses(t *testing.T) {
	tmpl := func(rest string) string { return "kind: Template\nname: t\n" + rest }
	app := func(rest string) string { return "kind: Application\nname: a\n" + rest }
	for _, c := range []struct{ yaml, says, hint string }{
		// what is not a document
		{"a: [1\nb: 2", "line 2, column 2: this is not YAML", "indent with spaces"},
		{"kind: Template\n\tname: x", "line 2, column", "indent with spaces"},
		{"- a", "line 1, column 1: this is not a document of fields", "kind:"},
		{"name: x", "line 1, column 1: the document does not say its kind", "kind: Template, Profile, Application, Host or Group"},
		{"kind: Pod\nname: x", `line 1, column 7: "Pod" is not a kind`, "Template, Profile, Application, Host and Group"},
		{"kind: [Template]", `line 1, column 7: "" is not a kind`, "Template"},
		{"kind: Host\nname: x\n---\n# twice\nkind: Host\nname: x", "line 5, column 1: Host x stands here again; it was described on line 1", "leave one"},
		// fields
		{tmpl("captrue: {every: 1h}"), "line 3, column 1: there is no field \"captrue\" here", "did you mean capture?"},
		{tmpl("capture: {evry: 1h}"), "line 3, column 11: there is no field \"evry\" here", "did you mean every?"},
		{tmpl("capture: {frequency: 1h}"), "there is no field \"frequency\" here", "there are every, at, weekdays"},
		{tmpl("profile: far"), "line 3, column 1: there is no field \"profile\" here", "verify, replicate, vault"}, // an application has it
		{app("source: /srv\nsla: gold\nprofile: not far"), "line 5, column 10: profile: the name", ""},
		{"kind: Profile\nname: far", "line 2, column 7: name: the profile \"far\" says nothing", "write jobs, replicate or vault"},
		{"kind: Profile\nname: far\njobs: -1", "line 3, column 7: jobs: -1 is not possible", "write 1 to 10000"},
		{"kind: Profile\nname: far\nvault: a b", "line 3, column 8: vault: the name", ""},
		{"kind: Profile\nname: far\nkeep: 1d", "line 3, column 1: there is no field \"keep\" here", "there are name, description, jobs, replicate, vault"},
		{tmpl("vault: {to: a b}"), "vault.to: the name", ""},
		{tmpl("rpo: 1h\nrpo: 2h"), "line 4, column 1: \"rpo\" stands here again; it was given on line 3", "leave one"},
		{tmpl("rpo: 1h\n? [a]\n: b"), "line 4, column 3: this is not the name of a field", "write names"},
		{tmpl("capture: 1h"), "line 3, column 10: capture has fields, and no value of its own", "indented"},
		{tmpl("capture:"), "line 3, column 9: capture has fields", ""},
		{tmpl("capture: {at: 02:30}"), "line 3, column 15: capture.at is a list", "[02:30]"},
		{tmpl("rpo: [1h]"), "line 3, column 6: rpo is a single value", ""},
		{tmpl("rpo:"), "rpo is empty", "leave the line away"},
		{"kind: Template\nname: 7", "line 2, column 7: name is text, and 7 is read as something else", `"7"`},
		{tmpl("priority: high"), `line 3, column 11: priority is a whole number, and not "high"`, "such as 7"},
		{tmpl("priority: 07"), "priority is a whole number", ""},
		{tmpl("keep: {last_verified: yes, count: 1}"), `keep.last_verified is true or false, and not "yes"`, "write true or false"},
		{app("source: /srv\noptions: [a]"), "options has pairs", ""},
		{app("source: /srv\noptions: {a: [b]}"), "line 4, column 14: options.a is text", ""},
		{app("source: /srv\noptions: {a: 1, a: 2}"), `"a" stands here again`, ""},
		// scalars
		{tmpl("rpo: 15"), `line 3, column 6: rpo: "15" is not a length of time`, "90m, 36h, 7d or 2w"},
		{tmpl("rpo: 1.5h"), "is not a length of time", ""},
		{tmpl("rpo: -1h"), "is not a length of time", ""},
		{tmpl("rpo: 1y"), "is not a length of time", "a month or year is written in days"},
		{tmpl("rpo: 30m1h"), "is not a length of time", ""},
		{tmpl("rpo: 99999999d"), "is too long", "36500d"},
		{tmpl("cdp: {window: 1h, bytes: 10GB}"), `line 3, column 26: cdp.bytes: "10GB" is not a size`, "10GiB"},
		{tmpl("capture: {at: [2:30]}"), `line 3, column 16: capture.at[0]: "2:30" is not a time of day`, "02:30"},
		{tmpl("capture: {at: [\"24:00\"]}"), "is not a time of day", ""},
		{tmpl("capture: {every: 1h, weekdays: [Montag]}"), "line 3, column 33: capture.weekdays[0]: \"Montag\" is not a day of the week", "mon, tue"},
		{tmpl("capture: {every: 1h, windows: [\"22-6\"]}"), "is not a window: it needs two times of day", "22:00-06:00"},
		{tmpl("capture: {every: 1h, windows: [\"22:00-22:00\"]}"), "ends when it begins", "00:00-24:00"},
		{tmpl("capture: {every: 1h, windows: [\"daily 22:00-06:00\"]}"), `"daily" is not a day of the week`, ""},
		// what YAML can do, and is not wanted
		{"kind: Template\nname: !!python/object x", "line 2, column 7: tags such as", "leave it away"},
		{tmpl("capture: &c {every: 1h}\nverify:\n  <<: *c"), "line 5, column 3: merge keys are not read here", "write the fields out"},
		// what cannot be promised
		{"kind: Template\nname: ../etc", "line 2, column 7: name: the name", "letters, digits"},
		{"kind: Template\n", "line 1, column 1: name: the name is empty", ""},
		{tmpl("time_zone: Berlin"), "line 3, column 12: time_zone: there is no time zone \"Berlin\"", "Europe/Berlin"},
		{tmpl("time_zone: Local"), "there is no time zone \"Local\"", ""},
		{tmpl("time_zone: ../../etc/passwd"), "there is no time zone", ""},
		{tmpl("priority: 101"), "line 3, column 11: priority: 101 is not possible", "1 (last) to 100"},
		{tmpl("capture: {every: 10s}"), "line 3, column 18: capture.every: 10s is not possible", "1m to"},
		{tmpl("capture: {every: 1h, at: [\"02:30\"]}"), "either every so often or at times of day", "leave one"},
		{tmpl("capture: {weekdays: [mon]}"), "line 3, column 10: capture: it does not say when", "every: 1h"},
		{tmpl("capture: {every: 1h, days_of_month: [1, 32]}"), "line 3, column 41: capture.days_of_month[1]: 32 is not a day of a month", "31 is the last day"},
		{tmpl("capture: {at: [\"12:00\"], windows: [\"22:00-06:00\"]}"), "capture.at[0]: 12:00 lies in no window", "move it"},
		{tmpl("capture: {at: [\"12:00\"], weekdays: [sun], blackouts: [\"sat,sun 00:00-24:00\"]}"), "lies in no window, or in a blackout", ""},
		{tmpl("capture: {every: 1h, windows: [\"22:00-06:00\"], blackouts: [\"20:00-08:00\"]}"), "leave no time at all", ""},
		{tmpl("keep: {of: last}"), "line 3, column 7: keep: it keeps nothing", "without keep, everything is kept"},
		{tmpl("keep: {}"), "keep: it keeps nothing", ""},
		{tmpl("keep: {daily: -1}"), "keep.daily: -1 is not possible", ""},
		{tmpl("keep: {daily: 1, of: middle}"), "keep.of: \"middle\" is not possible", "first or last"},
		{tmpl("cdp: {bytes: 1GiB}"), "cdp.window: 0s is not possible", ""},
		{tmpl("appshot: {keep: 1h}"), "line 3, column 10: appshot.every: 0s is not possible", ""},
		{tmpl("log: {every: 1m}"), "log.keep: 0s is not possible", ""},
		{tmpl("verify: {every: 1d, of: 3}"), "verify.of: it goes with point: random only", ""},
		{tmpl("verify: {every: 1d, point: oldest}"), "verify.point", "latest or random"},
		{app(""), "line 1, column 1: source: it is empty", "write a URL, a directory or a device"},
		{app("source: /srv\nsla: not a name"), "line 4, column 6: sla: the name", ""},
		{app("source: /srv\noptions: {admin_password: x}"), "line 4, column 27: options.admin_password: an option is no place for a secret", "a file"},
		{"kind: Group\nname: g\nmembers: []", "members: a group without members does not exist", "at least one"},
		{"kind: Group\nname: g\nmembers: [a, b, a]", "line 3, column 17: members[2]: \"a\" is named twice", ""},
	} {
		set, err := Parse([]byte(c.yaml))
		if err == nil {
			t.Errorf("%q was read: %+v", c.yaml, set)
			continue
		}
		e, ok := err.(*tidemark.Error)
		if !ok || e.Kind != tidemark.Invalid || !strings.HasPrefix(e.Message, "line ") || !strings.Contains(e.Message, c.says) || !strings.Contains(e.Hint, c.hint) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q:\n got %v (%T)\nwant %s: %s", c.yaml, err, err, c.says, c.hint)
		}
		if !reflect.DeepEqual(set, Set{}) {
			t.Errorf("%q: something was read all the same: %+v", c.yaml, set)
		}
	}
}

func TestSecretsAreRefusedAndNotRepeated(t *testing.T) {
	for _, source := range []string{"postgres://me:hunter2@db1/shop", "postgres://db1/shop?password=hunter2", "host=db1 password=hunter2", "postgres://me:hunter2@[db1/shop", "postgres://me:hunter2@db1:port/shop"} {
		for _, doc := range []string{fmt.Sprintf("kind: Application\nname: a\nsource: %q", source), fmt.Sprintf("kind: Application\nname: a\nsource: /dev/sdb\noptions: {postgres: %q}", source)} {
			_, err := Parse([]byte(doc))
			if tidemark.KindOf(err) != tidemark.Invalid || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
	if _, err := Parse([]byte("kind: Application\nname: a\nsource: /srv/a=b c\noptions: {token_file: /etc/x, postgres: postgres://me@db1/shop}")); err != nil {
		t.Error(err)
	}
}

// TestNothingGrows holds that documents made to be costly are refused at once.
func TestNothingGrows(t *testing.T) {
	var bomb strings.Builder
	bomb.WriteString("kind: Application\nname: a\nsource: /srv\nlabels: &a0 {x: y}\n")
	for i := range 40 {
		fmt.Fprintf(&bomb, "l%d: &a%d [*a%d, *a%d, *a%d]\n", i+1, i+1, i, i, i)
	}
	many := "kind: Group\nname: g\noptions: {x: &x y}\nmembers: [" + strings.Repeat("*x, ", MaxAliases+1) + "]"
	for name, text := range map[string]string{
		"a bomb": bomb.String(), "aliases": many, "itself": "kind: Group\nname: g\nmembers: &m [*m]", "deep": "kind: Group\nmembers: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		"long": "kind: Host\nname: h\n#" + strings.Repeat("x", MaxBytes), "many": strings.Repeat("kind: Host\nname: h\n---\n", 2), "documents": strings.Repeat("---\n# nothing\n", MaxDocuments+2),
	} {
		begun := time.Now()
		_, err := Parse([]byte(text))
		if tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
	set, err := Parse([]byte("kind: Group\nname: g\nlabels: {x: &x y}\nmembers: [*x]"))
	if err != nil || set.Groups[0].Members[0] != "y" {
		t.Errorf("an alias: %+v, %v", set, err)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	err := Template{Name: "t", RPO: -1}.Validate()
	if tidemark.KindOf(err) != tidemark.Invalid || !strings.HasPrefix(err.Error(), "rpo: ") {
		t.Errorf("%v", err)
	}
	for _, v := range []interface{ Validate() error }{Template{Name: "t"}, Host{Name: "h"}, Profile{Name: "p", Jobs: 1}, Group{Name: "g", Members: []string{"a"}}, Application{Name: "a", Source: "/srv"}} {
		if err := v.Validate(); err != nil {
			t.Errorf("%+v: %v", v, err)
		}
	}
}

func TestNotes(t *testing.T) {
	set, err := Parse([]byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(set.Templates[0].Notes(), "\n")
	if !strings.Contains(notes, "replicate: read and checked, but this version does not act on it") || !strings.Contains(notes, "vault:") || strings.Contains(notes, "rpo") {
		t.Errorf("%s", notes)
	}
	if notes := set.Profiles[0].Notes(); len(notes) != 2 || !strings.Contains(notes[0], "replicate: read and checked") || !strings.Contains(notes[1], "nothing is copied to tape") {
		t.Errorf("%q", notes)
	}
	for _, c := range []struct {
		tmpl Template
		says string
	}{
		{Template{Vault: &Copy{}}, "nothing is copied to where profiles say"},
		{Template{RPO: Duration(time.Hour), Capture: &Capture{Every: Duration(day)}}, "rpo: 1h cannot be kept: capture leaves 1d between points"},
		{Template{RPO: Duration(time.Hour), Capture: &Capture{At: hours("06:00", "20:00")}}, "capture leaves 14h between points"},
		{Template{RPO: Duration(time.Hour), Capture: &Capture{Every: Duration(day)}, Log: &Log{Keep: Duration(day)}}, ""},
		{Template{RPO: Duration(time.Hour), Capture: &Capture{Every: Duration(time.Hour)}}, "capture leaves 1h between points, and some time to make each"},
		{Template{RPO: Duration(time.Hour), Capture: &Capture{Every: Duration(50 * time.Minute)}}, ""},
		{Template{Log: &Log{Keep: Duration(day)}}, "log: it is of use behind a capture only"},
	} {
		if got := strings.Join(c.tmpl.Notes(), "\n"); !strings.Contains(got, c.says) || (got == "") != (c.says == "") {
			t.Errorf("%+v: %q, want %q", c.tmpl, got, c.says)
		}
	}
}

// TestTheManualIsRead holds that every example of docs/sla.md is read, can be kept, and survives.
func TestTheManualIsRead(t *testing.T) {
	page, err := os.ReadFile("../docs/sla.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 3 {
		t.Fatalf("there are only %d examples", len(blocks))
	}
	for _, b := range blocks {
		set, err := Parse([]byte(b[1]))
		if err != nil {
			t.Errorf("%v in\n%s", err, b[1])
			continue
		}
		roundTrip(t, set)
	}
	for field := range fieldNames(reflect.TypeFor[Template]()) {
		if !strings.Contains(string(page), field) {
			t.Errorf("docs/sla.md does not speak of %s", field)
		}
	}
}

// fieldNames are the names of all fields of a struct and those within.
func fieldNames(t reflect.Type) map[string]bool {
	names := map[string]bool{}
	for _, f := range strictyaml.Fields(t) {
		names[f.Name] = true
		sub := t.Field(f.Index).Type
		if sub.Kind() == reflect.Pointer && sub.Elem().Kind() == reflect.Struct {
			for name := range fieldNames(sub.Elem()) {
				names[name] = true
			}
		}
	}
	return names
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte(""))
	f.Add([]byte("kind: Group\nname: g\nlabels: {x: &x y}\nmembers: [*x]\n---\n{kind: Host, name: h}"))
	f.Add([]byte("kind: Application\nname: a\nsource: 'x: y'\noptions: {\"\": ~}\n"))
	f.Add([]byte("kind: Template\nname: t\ncapture: {at: [0\u003030]}\nkeep:\n- a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := Parse(data)
		if err != nil {
			if tidemark.KindOf(err) != tidemark.Invalid || strings.ContainsAny(err.Error(), "\n\r") {
				t.Fatalf("%q: %v", tidemark.KindOf(err), err)
			}
			return
		}
		roundTrip(t, set)
		now := time.Unix(1_800_000_000, 0)
		for _, tmpl := range set.Templates {
			for _, due := range Next(tmpl, History{Since: now.Add(-day)}, now) {
				if due.At.After(now.Add(time.Duration(MaxDuration) + horizon)) {
					t.Fatalf("%+v is due at %v", tmpl, due.At)
				}
			}
		}
	})
}

// fuzzText holds that what a scalar's parser takes, it prints and takes again as the same.
func fuzzText[T interface {
	comparable
	String() string
}](f *testing.F, parse func(string) (T, error), seeds ...string) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := parse(s)
		if err != nil {
			if tidemark.KindOf(err) != tidemark.Invalid {
				t.Fatal(err)
			}
			return
		}
		if again, err := parse(v.String()); err != nil || again != v {
			t.Fatalf("%q is %v, and then %v, %v", s, v, again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	fuzzText(f, ParseDuration, "90m", "36h", "7d", "2w", "1w2d3h4m5s", "0s", "36500d", "99999999999999999999w", "1h1h", "٣h")
}

func FuzzParseWindow(f *testing.F) {
	fuzzText(f, ParseWindow, "22:00-06:00", "sat,sun 00:00-24:00", "fri-mon,wed 09:15-17:00", "24:00-00:00", "mon 1:00-2:00", "-", " ")
}

func FuzzParseTimeOfDay(f *testing.F) {
	fuzzText(f, ParseTimeOfDay, "02:30", "23:59", "24:00", "0:00", "12:60")
}

func FuzzParseWeekday(f *testing.F) {
	fuzzText(f, ParseWeekday, "mon", "sun", "Mon", "")
}
