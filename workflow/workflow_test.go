package workflow

import (
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/strictyaml"
)

const weekly = `
kind: Workflow
name: weekly
time_zone: Europe/Berlin
schedule: {at: ["03:00"], weekdays: [sun]}
parameters:
  - {name: golden, type: name, default: orders-masked}
  - {name: hosts, type: list, default: [qa1, qa2, qa3, qa4, qa5]}
steps:
  - refresh: {clone: "{{ golden }}"}
  - bookmark: {app: "{{ golden }}", name: "weekly-{{ date }}-{{ run }}"}
  - name: hand-out
    for_each: "{{ hosts }}"
    as: host
    at_once: 2
    steps:
      - clone: {source: "{{ golden }}@weekly-{{ date }}-{{ run }}", name: "orders-{{ host }}", host: "{{ host }}", replace: true}
      - wait: {clone: "orders-{{ host }}"}
  - notify: {message: "five new clones of {{ golden }}"}
on_failure:
  - notify: {message: "the weekly clones failed", level: error}
`

func parse(t *testing.T, text string) Workflow {
	t.Helper()
	w, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// The plan has each host's clone, at most two at a time, after the bookmark, with all texts filled in.
func TestPlan(t *testing.T) {
	w := parse(t, weekly)
	steps, err := w.Plan(nil, Run{ID: 7, Begun: time.Date(2026, 11, 29, 2, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range steps {
		got = append(got, fmt.Sprintf("%s: %s <- %s", s.ID, s.Does, strings.Join(s.After, ",")))
	}
	want := []string{
		"refresh: refresh orders-masked from latest <- ",
		"bookmark: bookmark orders-masked as weekly-20261129-7 <- refresh",
		"hand-out[qa1].clone: clone orders-masked@weekly-20261129-7 to orders-qa1, or make that anew on qa1 <- bookmark",
		"hand-out[qa1].wait: wait until orders-qa1 answers <- hand-out[qa1].clone",
		"hand-out[qa2].clone: clone orders-masked@weekly-20261129-7 to orders-qa2, or make that anew on qa2 <- bookmark",
		"hand-out[qa2].wait: wait until orders-qa2 answers <- hand-out[qa2].clone",
		"hand-out[qa3].clone: clone orders-masked@weekly-20261129-7 to orders-qa3, or make that anew on qa3 <- hand-out[qa1].wait",
		"hand-out[qa3].wait: wait until orders-qa3 answers <- hand-out[qa3].clone",
		"hand-out[qa4].clone: clone orders-masked@weekly-20261129-7 to orders-qa4, or make that anew on qa4 <- hand-out[qa2].wait",
		"hand-out[qa4].wait: wait until orders-qa4 answers <- hand-out[qa4].clone",
		"hand-out[qa5].clone: clone orders-masked@weekly-20261129-7 to orders-qa5, or make that anew on qa5 <- hand-out[qa3].wait",
		"hand-out[qa5].wait: wait until orders-qa5 answers <- hand-out[qa5].clone",
		`notify: tell "five new clones of orders-masked" <- hand-out[qa4].wait,hand-out[qa5].wait`,
		`on_failure.notify: tell "the weekly clones failed" <- `,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	again, err := w.Plan(map[string]string{}, Run{ID: 7, Begun: time.Date(2026, 11, 29, 2, 0, 0, 0, time.UTC)})
	if err != nil || !reflect.DeepEqual(steps, again) {
		t.Errorf("planned again, it differs: %v", err)
	}
	fewer, err := w.Plan(map[string]string{"hosts": "a, b", "golden": "x"}, Run{})
	if err != nil || len(fewer) != 8 || fewer[0].Does != "refresh x from latest" {
		t.Errorf("%v, %v", fewer, err)
	}
	if none, err := w.Plan(map[string]string{"hosts": ""}, Run{}); err != nil || len(none) != 4 || !slices.Equal(none[2].After, []string{"bookmark"}) {
		t.Errorf("%v, %v", none, err)
	}
}

// What is wrong is refused with its line, and a hint.
func TestRefused(t *testing.T) {
	head := "kind: Workflow\nname: w\n"
	for _, x := range []struct{ text, want string }{
		{"", "empty"},
		{"kind: Template\nname: x", "line 1, column 1: this is no workflow"},
		{"[1]", "line 1, column 1: this is not a document of fields"},
		{head, "steps: it does nothing"},
		{head + "steps: []", "steps: it does nothing"},
		{head + "steps:\n  - {}", "line 4, column 5: steps[0]: it says 0 things to do"},
		{head + "steps:\n  - capture: {app: a}\n    wait: {clone: b}", "line 4, column 5: steps[0]: it says 2 things"},
		{head + "steps:\n  - capture: {ap: a}", "line 4, column 15: there is no field \"ap\""},
		{head + "steps:\n  - capture: {app: a b}", "line 4, column 20: steps[0].capture.app"},
		{head + "steps:\n  - capture: {app: \"{{ x }}\"}", "steps[0].capture.app: there is no parameter \"x\" here"},
		{head + "steps:\n  - capture: {app: \"{{ x\"}", "{{ without }}"},
		{head + "parameters: [{name: l, type: list, default: [a]}]\nsteps:\n  - capture: {app: \"{{ l }}\"}", "l is a list"},
		{head + "parameters: [{name: l, type: list, default: a}]\nsteps:\n  - capture: {app: a}", "l is a list"},
		{head + "parameters: [{name: l, default: [a]}]\nsteps:\n  - capture: {app: a}", "l is a single value"},
		{head + "parameters: [{name: l, type: list, default: [a, a]}]\nsteps:\n  - capture: {app: a}", "has a twice"},
		{head + "parameters: [{name: run}]\nsteps:\n  - capture: {app: a}", "run is built in"},
		{head + "parameters: [{name: A}]\nsteps:\n  - capture: {app: a}", "no name of a parameter"},
		{head + "parameters: [{name: a}, {name: a}]\nsteps:\n  - capture: {app: a}", "a stands here twice"},
		{head + "parameters: [{name: a, type: file}]\nsteps:\n  - capture: {app: a}", "is no type"},
		{head + "parameters: [{name: a, default: x, one_of: [y]}]\nsteps:\n  - capture: {app: a}", "none of its values"},
		{head + "schedule: {every: 1h}\nparameters: [{name: a}]\nsteps:\n  - capture: {app: a}", "nobody gives it a value"},
		{head + "schedule: {every: 1s}\nsteps:\n  - capture: {app: a}", "line 3, column 19: schedule.every"},
		{head + "schedule: {}\nsteps:\n  - capture: {app: a}", "schedule: it does not say when"},
		{head + "time_zone: Mars/North\nsteps:\n  - capture: {app: a}", "line 3, column 12: time_zone"},
		{head + "steps:\n  - {name: a, capture: {app: a}}\n  - {name: a, capture: {app: a}}", "two steps a"},
		{head + "steps:\n  - {for_each: [a]}", "for_each goes with steps"},
		{head + "steps:\n  - {steps: [{capture: {app: a}}]}", "for_each goes with steps"},
		{head + "steps:\n  - {for_each: a, steps: [{capture: {app: a}}]}", "is no list"},
		{head + "steps:\n  - {for_each: [a], as: run, steps: [{capture: {app: a}}]}", "run is built in"},
		{head + "steps:\n  - {for_each: [a], steps: [{for_each: [b], steps: [{capture: {app: a}}]}]}", "item is the name of something else"},
		{head + "steps:\n  - {parallel: []}", "nothing in it"},
		{head + "steps:\n  - {parallel: [{capture: {app: a}}], timeout: 1h}", "a group has none"},
		{head + "steps:\n  - {capture: {app: a}, at_once: 2}", "parallel and for_each only"},
		{head + "steps:\n  - {parallel: [{capture: {app: a}}], at_once: 65}", "65 is not possible"},
		{head + "steps:\n  - &a {capture: {app: a}}\n  - *a", "aliases"},
		{head + "steps:\n  - notify: {message: hi, url: \"ftp://x/\"}", "no URL that can be posted to"},
		{head + "steps:\n  - notify: {message: hi, url: \"https://u:p@x/\"}", "no URL that can be posted to"},
		{head + "steps:\n  - notify: {message: hi, secret: k}", "it signs what is posted"},
		{head + "steps:\n  - script: {name: ../x}", "script.name"},
		{head + "steps:\n  - script: {name: x, args: {LD_PRELOAD: y}}", "no name of a parameter"},
		{head + "steps:\n  - expire: {clones: \"qa-*\"}", "does not say which stay"},
		{head + "steps:\n  - expire: {clones: \"qa-[\", keep: 1}", "is no pattern"},
		{head + "steps:\n  - expire: {app: a, keep: 1}", "app goes with points"},
		{head + "steps:\n  - clone: {source: a, name: b, replace: true, to: latest}", "name a point in source"},
		{head + "steps:\n  - capture: {app: a}\n---\nkind: Workflow", "two documents"},
	} {
		w, err := Parse([]byte(x.text))
		if err == nil || !strings.Contains(err.Error(), x.want) || tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("%s\n  gave %+v, %v\n  and not %s", x.text, w, err, x.want)
		}
	}
}

// A value is put where its name stands, and is never more than a value: it neither names other parameters nor is it one step more.
func TestValuesStayValues(t *testing.T) {
	w := parse(t, `
kind: Workflow
name: w
parameters:
  - {name: who}
  - {name: app, type: name, default: a}
  - {name: n, type: number, default: 3}
steps:
  - notify: {message: "hello {{ who }}, {{app}}{{ n }}"}
  - script: {name: s, args: {who: "{{ who }}"}}
`)
	for _, who := range []string{"{{ app }}", `", url: "http://x/`, "a\\nb", "$(reboot)", "'; reboot; '", "{{", "- capture: {app: x}"} {
		steps, err := w.Plan(map[string]string{"who": who}, Run{})
		if err != nil || len(steps) != 2 {
			t.Fatal(steps, err)
		}
		if got := steps[0].Body.(*Notify); got.Message != "hello "+who+", a3" || got.URL != "" {
			t.Errorf("%q became %+v", who, got)
		}
		if !slices.Contains(steps[1].Env, "TIDEMARK_ARG_WHO="+who) || !slices.Contains(steps[1].Env, "TIDEMARK_PARAM_WHO="+who) {
			t.Errorf("%q became %q", who, steps[1].Env)
		}
	}
	for _, given := range []map[string]string{{}, {"who": "a\nb"}, {"who": "a\x00b"}, {"who": strings.Repeat("x", maxText+1)}, {"who": "x", "app": "a@b"}, {"who": "x", "n": "-1"}, {"who": "x", "n": "01"}, {"who": "x", "other": "y"}} {
		if steps, err := w.Plan(given, Run{}); err == nil || tidemark.KindOf(err) != tidemark.Invalid {
			t.Errorf("%q: %v, %v", given, steps, err)
		}
	}
	if w.Steps[0].Notify.Message != "hello {{ who }}, {{app}}{{ n }}" || w.Steps[1].Script.Args["who"] != "{{ who }}" {
		t.Error("a plan changed the workflow")
	}
}

// Lists within lists that come to nothing take no longer than those that do not.
func TestEmptyTurns(t *testing.T) {
	items := make([]string, maxItems)
	for i := range items {
		items[i] = fmt.Sprintf("i%d", i)
	}
	x := Item{ForEach: &Value{Text: "{{ none }}"}, As: "z", Steps: []Item{{Remove: &Remove{Clone: "a"}}}}
	for i := range 6 {
		x = Item{ForEach: &Value{List: items}, As: fmt.Sprintf("v%d", i), Steps: []Item{x}}
	}
	w := Workflow{Name: "w", Parameters: []Parameter{{Name: "none", Type: TypeList, Default: &Value{List: []string{}}}}, Steps: []Item{x}}
	if err := w.Validate(); err == nil || !strings.Contains(err.Error(), "lists within lists") {
		t.Errorf("%v", err)
	}
}

// Of any workflow, which step waits for which is what its structure says.
func TestOrderAgainstModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		m := model{r: r}
		w := Workflow{Name: "w", Steps: m.items(3)}
		if err := w.Validate(); err != nil {
			t.Fatal(err)
		}
		steps, err := w.Plan(nil, Run{})
		if err != nil {
			t.Fatal(err)
		}
		m.sequence(w.Steps, nil)
		if len(steps) != len(m.paths) {
			t.Fatalf("%d steps, and not %d", len(steps), len(m.paths))
		}
		waits := closure(t, steps)
		for i, a := range m.paths {
			for j, b := range m.paths {
				if got, want := waits[steps[j].ID][steps[i].ID], before(a, b); got != want {
					t.Fatalf("that %s waits for %s is %v, and not %v", steps[j].ID, steps[i].ID, got, want)
				}
			}
		}
	}
}

// model makes workflows, and knows where in them each step stands.
type model struct {
	r     *rand.Rand
	paths [][]branch
}

// branch is which part of a group a step is in; of a sequence atOnce is 1.
type branch struct{ index, atOnce int }

func (m *model) items(depth int) (list []Item) {
	for range 1 + m.r.IntN(3) {
		list = append(list, m.item(depth))
	}
	return list
}

func (m *model) item(depth int) Item {
	switch n := m.r.IntN(4); {
	case depth == 0 || n < 2:
		return Item{Remove: &Remove{Clone: "a"}}
	case n == 2:
		return Item{Parallel: m.items(depth - 1), AtOnce: m.r.IntN(3)}
	}
	return Item{ForEach: &Value{List: []string{"a", "b", "c"}[:1+m.r.IntN(3)]}, As: fmt.Sprintf("v%d", depth), Steps: m.items(depth - 1), AtOnce: m.r.IntN(3)}
}

func (m *model) sequence(list []Item, path []branch) {
	for i, x := range list {
		m.at(x, append(slices.Clone(path), branch{i, 1}))
	}
}

func (m *model) at(x Item, path []branch) {
	switch {
	case x.Parallel != nil:
		for i, y := range x.Parallel {
			n := x.AtOnce
			if n == 0 {
				n = len(x.Parallel)
			}
			m.at(y, append(slices.Clone(path), branch{i, n}))
		}
	case x.ForEach != nil:
		for i := range x.ForEach.List {
			m.sequence(x.Steps, append(slices.Clone(path), branch{i, max(1, x.AtOnce)}))
		}
	default:
		m.paths = append(m.paths, path)
	}
}

// before reports whether a has to be done before b: where their ways part, a's part is an earlier one of the same lane.
func before(a, b []branch) bool {
	for i := range min(len(a), len(b)) {
		if a[i].index != b[i].index {
			return a[i].index < b[i].index && (b[i].index-a[i].index)%a[i].atOnce == 0
		}
	}
	return false
}

// closure is for each step all that it waits for. Each waits for steps before it only.
func closure(t *testing.T, steps []Step) map[string]map[string]bool {
	all := map[string]map[string]bool{}
	for _, s := range steps {
		mine := map[string]bool{}
		for _, a := range s.After {
			if all[a] == nil {
				t.Fatalf("%s waits for %s, which is not before it", s.ID, a)
			}
			mine[a] = true
			for x := range all[a] {
				mine[x] = true
			}
		}
		all[s.ID] = mine
	}
	return all
}

// A schedule is due at its time, once after a downtime, and not while a run is under way.
func TestDue(t *testing.T) {
	w := parse(t, weekly)
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	sunday := time.Date(2026, 11, 29, 3, 0, 0, 0, zone)
	friday := sunday.Add(-48 * time.Hour)
	if at, ok := w.Due(Past{Since: friday, Resumed: friday}, friday); !ok || !at.Equal(sunday) {
		t.Errorf("%v, %v", at, ok)
	}
	monday := sunday.Add(30 * time.Hour)
	if at, ok := w.Due(Past{Since: friday, Resumed: monday}, monday); !ok || at.After(monday) {
		t.Errorf("what was missed is due at %v, %v", at, ok)
	}
	if at, ok := w.Due(Past{Since: friday, Resumed: monday, Last: monday}, monday.Add(time.Second)); !ok || !at.Equal(sunday.AddDate(0, 0, 7)) {
		t.Errorf("after it was caught up, it is due at %v, %v", at, ok)
	}
	if at, ok := w.Due(Past{Since: friday, Last: sunday, Running: true}, monday); ok {
		t.Errorf("while it runs, it is due at %v", at)
	}
	w.Schedule = nil
	if at, ok := w.Due(Past{Since: friday}, monday); ok {
		t.Errorf("without a schedule, it is due at %v", at)
	}
}

// Every verb is told in the list of verbs, and each of its fields has a name.
func TestVerbs(t *testing.T) {
	want := []string{"capture", "bookmark", "clone", "refresh", "prepare", "publish", "unpublish", "prove", "wait", "remove", "expire", "script", "notify"}
	if got := Verbs(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	for _, f := range strictyaml.Fields(reflect.TypeFor[Item]()) {
		if f.Name == "" {
			t.Errorf("field %d has no name", f.Index)
		}
	}
}

// Whatever is read, it is a workflow that can be planned, or an error of the right kind; and planned twice, it is the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(weekly))
	f.Add([]byte("kind: Workflow\nname: w\nsteps: [{parallel: [{for_each: [a], steps: [{expire: {clones: \"{{ item }}*\", keep: 1}}]}]}]"))
	f.Add([]byte("kind: Workflow\nname: w\nsteps: [{script: {name: a, args: {x: \"{{ run }}\"}}}, {notify: {message: x, url: \"https://h/\", secret: s}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := Parse(data)
		if err != nil {
			if k := tidemark.KindOf(err); k != tidemark.Invalid {
				t.Fatalf("%s: %v", k, err)
			}
			return
		}
		given := map[string]string{}
		for _, p := range w.Parameters {
			if p.Default == nil {
				given[p.Name] = "1"
			}
		}
		a, err := w.Plan(given, Run{ID: 1, Begun: time.Unix(0, 0)})
		if err != nil {
			if k := tidemark.KindOf(err); k != tidemark.Invalid {
				t.Fatalf("%s: %v", k, err)
			}
			return
		}
		b, err := w.Plan(given, Run{ID: 1, Begun: time.Unix(0, 0)})
		if err != nil || !reflect.DeepEqual(a, b) || len(a) > MaxSteps {
			t.Fatalf("planned again, it differs: %v", err)
		}
		closure(t, a)
	})
}

// The documents of the manual are such documents.
func TestManual(t *testing.T) {
	text, err := os.ReadFile("../docs/workflows.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 3 {
		t.Fatalf("there are %d blocks of YAML", len(blocks))
	}
	for _, b := range blocks {
		doc := b[1]
		if !strings.HasPrefix(doc, "kind:") {
			doc = "kind: Workflow\nname: w\n" + doc
		}
		if !strings.Contains(doc, "steps:") {
			doc += "steps: [{capture: {app: \"{{ app }}\"}}]\n"
		}
		parse(t, doc)
	}
	for _, v := range Verbs() {
		if !strings.Contains(string(text), "| `"+v+"` |") {
			t.Errorf("the manual does not tell of %s", v)
		}
	}
}
