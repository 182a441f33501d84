package workflow

import (
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

// FuzzRedacted: what a workflow posts to is never in what is shown of it.
func FuzzRedacted(f *testing.F) {
	f.Add("kind: Workflow\nname: w\nsteps:\n  - notify: {message: hi, url: \"https://a/b\"}\n")
	f.Add("kind: Workflow\nname: w\nparameters: [{name: k, default: c}]\nsteps:\n  - parallel:\n    - notify: {message: hi, url: >-\n https://a/{{ k }}}\n# http://a/c")
	f.Fuzz(func(t *testing.T, document string) {
		shown := Redacted(document)
		if _, err := Parse([]byte(document)); err != nil {
			return
		}
		root, err := load([]byte(shown))
		if err != nil {
			t.Fatalf("%q is shown as %q: %v", document, shown, err)
		}
		r := redaction{}
		r.steps(root, "")
		if r.changed {
			t.Errorf("%q is shown as %q", document, shown)
		}
	})
}
