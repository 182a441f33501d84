package api

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestManual runs each command of docs/api.md, word for word, and holds that what it prints has what the manual says it prints.
func TestManual(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	text, err := os.ReadFile(filepath.Join("..", "docs", "api.md"))
	if err != nil {
		t.Fatal(err)
	}
	x := newRig(t)
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```\n```(json|text)\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if n := strings.Count(string(text), "```sh"); len(blocks) != n || n < 12 {
		t.Fatalf("of %d blocks of commands %d say what they print", n, len(blocks))
	}
	for _, b := range blocks {
		cmd := exec.Command("sh", "-ec", b[1])
		cmd.Env = append(os.Environ(), "TIDEMARK_SOCKET="+x.socket)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", b[1], err, out)
		}
		if b[2] == "json" {
			if got, want := shape(t, out), shape(t, []byte(b[3])); got != want {
				t.Errorf("%sprints %s\nwhich is %s\nand not  %s", b[1], out, got, want)
			}
			continue
		}
		lines := strings.Split(strings.ReplaceAll(string(out), "\r", ""), "\n")
		for _, want := range strings.Split(strings.TrimSpace(b[3]), "\n") {
			if !slices.Contains(lines, want) {
				t.Errorf("%sprints %s\nand not %s", b[1], out, want)
			}
		}
	}
}

// shape is what members a text of JSON has.
func shape(t *testing.T, text []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return shapeOf(v)
}

func shapeOf(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var members []string
		for _, name := range slices.Sorted(maps.Keys(v)) {
			members = append(members, name+shapeOf(v[name]))
		}
		return "{" + strings.Join(members, " ") + "}"
	case []any:
		if len(v) == 0 {
			return "[]"
		}
		return "[" + shapeOf(v[0]) + "]"
	}
	return ""
}

// TestNoSecretInArguments: what the manuals and the scenarios of the command show gives no program a secret among its arguments, where everybody on the host can read it.
func TestNoSecretInArguments(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "docs", "*.md"))
	if err != nil || len(pages) < 10 {
		t.Fatal(pages, err)
	}
	scenarios, err := filepath.Glob(filepath.Join("..", "cmd", "tidemark", "testdata", "*.txtar"))
	if err != nil || len(scenarios) < 10 {
		t.Fatal(scenarios, err)
	}
	pages = append(pages, scenarios...)
	header := regexp.MustCompile(`(-H|--header)[ =]?["']?Authorization|(-u|--user|--oauth2-bearer)[ =][^-]*\$\(`)
	with := 0
	for _, page := range append(pages, filepath.Join("..", "README.md")) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, "curl ") {
				continue
			}
			if strings.Contains(line, ".token") {
				with++
			}
			if header.MatchString(line) {
				t.Errorf("%s: %s", page, line)
			}
		}
	}
	if with < 3 {
		t.Errorf("%d commands have a token", with)
	}
}
