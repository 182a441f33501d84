package workflow

import (
	"encoding/json"
	"strings"
	"testing"
)

// However a URL is written down, nothing of it is shown but scheme and host, and all else of the document is.
func TestRedacted(t *testing.T) {
	const steps = "kind: Workflow\nname: w\nparameters: [{name: key, default: hidden}, {name: app, default: shop}]\nsteps:\n  - capture: {app: \"{{ app }}\"}\n"
	for _, written := range []string{
		"  - notify: {message: hi, url: https://hooks.example.com/hidden}\n",
		"  - notify:\n      message: hi\n      url: >-\n        https://hooks.example.com/\n        hidden\n",
		"  - notify:\n      message: hi\n      url: \"ht\\x74ps://hooks.example.com/\\\n        hidden\"\n",
		"  - \"notify\": {message: hi, \"u\\x72l\": 'https://hooks.example.com?hidden'}\n",
		"  - for_each: [a]\n    steps:\n      - parallel:\n          - notify: {message: hi, url: \"https://hooks.example.com/{{ key }}\"}\n",
		"  - notify: {message: hi, url: https://hooks.example.com/a} # as https://hooks.example.com/hidden was\n# https://hooks.example.com/hidden\n",
	} {
		text := steps
		if !strings.Contains(written, "key") {
			text = strings.Replace(text, "default: hidden", "default: open", 1)
		}
		if _, err := Parse([]byte(text + written)); err != nil {
			t.Fatal(err)
		}
		for _, document := range []string{text + written, text + "on_failure:\n" + written, strings.Replace(text, "kind: Workflow\n", "kind: Workflow\nunknown: field\n", 1) + written} {
			got := Redacted(document)
			if strings.Contains(got, "hidden") || !strings.Contains(got, "https://hooks.example.com/…") || !strings.Contains(got, "default: shop") || !strings.Contains(got, "capture: {app: \"{{ app }}\"}") {
				t.Errorf("%s\nis shown as\n%s", document, got)
			}
			if Redacted(got) != got {
				t.Errorf("shown again it is\n%s", Redacted(got))
			}
		}
	}
	for _, same := range []string{steps, steps + "  - notify: {message: see https://wiki.example.com/page, url: \"http://hooks:80\"} # why\n"} {
		if got := Redacted(same); got != same {
			t.Errorf("%s\nis shown as\n%s", same, got)
		}
	}
	if got := Redacted("notify: [url: https://x/hidden"); got != "" {
		t.Errorf("what is no YAML is shown as %q", got)
	}
}

// A comment is one wherever it stands.
func TestRedactedComments(t *testing.T) {
	const body, comment = "kind: Workflow\nname: w\nsteps:\n  - capture: {app: a}\n", "# https://hooks.example.com/hidden\n"
	for _, document := range []string{
		comment + body, comment + "\n" + body, comment + "\n# more\n\n" + body, comment + "---\n" + body, "--- " + comment + body, "%YAML 1.1\n" + comment + "---\n" + body, comment + "...\n" + body,
		body + comment, body + "\n" + comment, body + "\n\n# more\n\n" + comment, body + "...\n" + comment, body + "... " + comment, body + "---\n" + comment,
		"kind: Workflow " + comment + "name: w\nsteps: " + comment + "  - capture: {app: a}\n", "kind: # more\n  " + comment + "  Workflow\nname: w\nsteps:\n  - capture: {app: a}\n",
		"kind: Workflow\nname: w\nsteps:\n  - # more\n    " + comment + "    capture: {app: a}\n  " + comment, "kind: Workflow\nname: w\nsteps:\n  - capture: {app: a,\n  " + comment + "    }\n",
		"kind: Workflow\nname: w\ndescription: >- " + comment + "  x\nsteps:\n  - capture: {app: a}\n",
	} {
		if _, err := Parse([]byte(document)); err != nil {
			t.Fatalf("%s: %v", document, err)
		}
		if got := Redacted(document); strings.Contains(got, "hidden") || !strings.Contains(got, "capture: {app: a") {
			t.Errorf("%q is shown as %q", document, got)
		}
	}
}

// Comments are put behind and between all lines of a workflow, at each depth.
func TestRedactedEveryComment(t *testing.T) {
	const flow = "{\n  kind: Workflow,\n  name: w,\n  parameters: [\n    {name: a,\n     default: b},\n    {\n      name: c,\n      one_of: [\n        d,\n        e\n      ], default: d\n    }\n  ],\n  steps: [\n    {capture: {app: \"{{ a }}\"}},\n    {notify: {message:\n      >-x, level: info}\n    }\n  ]\n}\n"
	const block = "kind:\n  Workflow\nname: w\nschedule:\n  at:\n  - \"03:00\"\n  -\n    04:00\n  weekdays: [\n    sun ]\nsteps:\n- for_each:\n    - a\n  steps:\n    -\n      wait:\n        clone:\n          x\n    - capture:\n        app: y\n\n- notify:\n    message: >-\n      on\n      two\n    level: info\non_failure: []\n"
	tried := 0
	for _, text := range []string{weekly, flow, strings.ReplaceAll(flow, ">-x", "x"), block} {
		lines := strings.SplitAfter(text, "\n")
		for i := range lines {
			before, behind := strings.Join(lines[:i], ""), strings.Join(lines[i:], "")
			for _, comment := range []string{" # https://h.example.com/hidden\n", "\n# https://h.example.com/hidden\n\n", "\n  # https://h.example.com/hidden\n", "\n      # https://h.example.com/hidden\n", "\n\n\t# https://h.example.com/hidden\n\n\n"} {
				document := strings.TrimSuffix(before, "\n") + comment + behind
				w, err := Parse([]byte(document))
				if err != nil || strings.Contains(mustJSON(t, w), "hidden") { // it is no comment there
					continue
				}
				tried++
				if got := Redacted(document); strings.Contains(got, "hidden") || got == "" {
					t.Errorf("%q is shown as %q", document, got)
				}
			}
		}
	}
	if tried < 200 {
		t.Errorf("only %d were tried", tried)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// FuzzRedacted: what a workflow posts to is never in what is shown of it.
func FuzzRedacted(f *testing.F) {
	f.Add("kind: Workflow\nname: w\nsteps:\n  - notify: {message: hi, url: \"https://a/b\"}\n")
	f.Add("kind: Workflow\nname: w\nparameters: [{name: k, default: c}]\nsteps:\n  - parallel:\n    - notify: {message: hi, url: >-\n https://a/{{ k }}}\n# http://a/c")
	f.Fuzz(func(t *testing.T, document string) {
		shown := Redacted(document)
		if _, err := Parse([]byte(document)); err != nil {
			return
		}
		doc, err := Single([]byte(shown))
		if err != nil {
			t.Fatalf("%q is shown as %q: %v", document, shown, err)
		}
		r := redaction{}
		r.steps(doc.Root, "")
		r.comments(doc.Node)
		if r.changed {
			t.Errorf("%q is shown as %q", document, shown)
		}
	})
}
