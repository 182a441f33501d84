package workflow

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"tidemark/policy"
)

// What differs is told by where it stands, and of what is hidden only that it does.
func TestDifference(t *testing.T) {
	const old = `kind: Workflow
name: w
description: for tests
schedule: {every: 1h}
parameters:
  - {name: key, default: hidden}
  - {name: hosts, type: list, default: [qa1, qa2]}
steps:
  - capture: {app: shop}
  - for_each: "{{ hosts }}"
    steps:
      - clone: {source: shop, name: "shop-{{ item }}"}
      - wait: {clone: "shop-{{ item }}"}
  - notify: {message: done, url: "https://hooks.example.com/{{ key }}"}
on_failure:
  - notify: {message: failed}
`
	for _, x := range []struct {
		replace []string
		want    []string
	}{
		{nil, nil},
		{[]string{"kind: Workflow", "# more\nkind: Workflow", "[qa1, qa2]", "[\"qa1\",\n    qa2]"}, nil},
		{[]string{"for tests", "\"for\\ttests\"", "every: 1h", "at: [\"03:00\"]"},
			[]string{"description: for tests → for tests", "schedule.at: [03:00]", "schedule.every: 1h → (none)"}},
		{[]string{"[qa1, qa2]", "[qa1]"}, []string{"parameters.hosts: list qa1,qa2 → list qa1"}},
		{[]string{"default: hidden", "default: other"}, []string{"parameters.key: text → text, with other fields"}},
		{[]string{"name: hosts, ", "name: those, ", "{{ hosts }}", "{{ those }}"},
			[]string{"parameters.hosts: list qa1,qa2 → (none)", "parameters.those: list qa1,qa2", "steps[1]: for each of {{ hosts }} → for each of {{ those }}"}},
		{[]string{"steps:\n  - capture", "steps:\n  - prove: {ref: shop}\n  - capture"}, []string{"steps[0]: prove shop"}},
		{[]string{"      - wait: {clone: \"shop-{{ item }}\"}\n", ""}, []string{"steps[1].steps[1]: wait until shop-{{ item }} answers → (none)"}},
		{[]string{"      - wait", "  - wait", "{clone: \"shop-{{ item }}\"}", "{clone: shop-qa1}"},
			[]string{"steps[1].steps[1]: wait until shop-{{ item }} answers → (none)", "steps[2]: wait until shop-qa1 answers"}},
		{[]string{"source: shop, ", "source: shop, lifetime: 1d, "}, []string{"steps[1].steps[0]: clone shop to shop-{{ item }} → clone shop to shop-{{ item }}, with other fields"}},
		{[]string{"message: done", "message: ready"}, []string{`steps[2]: tell "done" to hooks.example.com → tell "ready" to hooks.example.com`}},
		{[]string{"com/{{ key }}", "com/{{ key }}/hidden"}, []string{`steps[2]: tell "done" to hooks.example.com → tell "done" to hooks.example.com, with other fields`}},
		{[]string{"failed", strings.Repeat("long ", 40)}, []string{`on_failure[0]: tell "failed" → tell "` + strings.Repeat("long ", 40)[:73] + "…"}},
	} {
		list, err := Difference(parse(t, old), parse(t, strings.NewReplacer(x.replace...).Replace(old)))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range list {
			got = append(got, strings.TrimPrefix(policy.Change{Fields: []policy.FieldChange{f}}.String(), "  : "))
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%q:\n%q, and not\n%q", x.replace, got, x.want)
		}
		if strings.Contains(strings.Join(got, ""), "hidden") {
			t.Errorf("%q: it tells %q", x.replace, got)
		}
	}
}

// Two workflows have no difference only if they say the same.
func TestEveryDifference(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var verb func(depth int) Item
	verb = func(depth int) Item {
		x := []Item{{Wait: &Wait{Clone: "a"}}, {Wait: &Wait{Clone: "b"}}, {Name: "n", Capture: &Capture{App: "a"}}, {Parallel: []Item{}}, {ForEach: &Value{List: []string{"a"}}}}[r.IntN(5-depth)]
		for range r.IntN(3) {
			if x.Parallel != nil {
				x.Parallel = append(x.Parallel, verb(depth+1))
			} else if x.ForEach != nil {
				x.Steps = append(x.Steps, verb(depth+1))
			}
		}
		return x
	}
	some := func() Workflow {
		w := Workflow{Name: "w"}
		for range r.IntN(3) {
			w.Steps = append(w.Steps, verb(0))
		}
		return w
	}
	same := 0
	for range 5_000 {
		a, b := some(), some()
		list, err := Difference(a, b)
		if err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		if equal := string(x) == string(y); equal != (len(list) == 0) {
			t.Fatalf("seed %d: between\n%s\nand\n%s there is %v", seed, x, y, list)
		} else if equal {
			same++
		}
	}
	if same == 0 {
		t.Error("no two were the same")
	}
}
