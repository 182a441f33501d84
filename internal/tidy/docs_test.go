package tidy

import (
	"encoding/json"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var required = regexp.MustCompile(`(?m)^\s+(\S+\.\S+/\S+) (v\S+)( // indirect)?$`)

// TestDependenciesHaveReasons holds that docs/dependencies.md speaks of every
// direct dependency of go.mod, in its version, and of nothing else.
func TestDependenciesHaveReasons(t *testing.T) {
	direct := map[string]string{}
	for _, m := range required.FindAllStringSubmatch(read(t, "go.mod"), -1) {
		if m[3] == "" {
			direct[m[1]] = m[2]
		}
	}
	if len(direct) == 0 {
		t.Fatal("no dependency was found in go.mod")
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (v\\S+) \\| [^|]+ \\| (?:.+ \\| )?[^|]{10,} \\|$")
	said := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		said[m[1]] = m[2]
	}
	for module, version := range direct {
		if said[module] != version {
			t.Errorf("docs/dependencies.md says %q of %s %s: it needs a row `| module | version | licence | used by | why |`", said[module], module, version)
		}
	}
	for module := range said {
		if direct[module] == "" {
			t.Errorf("docs/dependencies.md gives a reason for %s, which is no direct dependency", module)
		}
	}
}

// pages are the Markdown files of the repository.
func pages(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".md") {
			list = append(list, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestLinksLead(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
		}
	}
}

// TestManualSpeaksJSON holds that every json block of docs/cli.md is JSON, and
// that its members are those of our types: what scripts read is what we print.
func TestManualSpeaksJSON(t *testing.T) {
	known := map[string]bool{}
	tag := regexp.MustCompile("`json:\"([a-z_]+)")
	files(t, 0, func(path, _ string, f *ast.File, _ *token.FileSet) {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.Field); ok && s.Tag != nil {
				if m := tag.FindStringSubmatch(s.Tag.Value); m != nil {
					known[m[1]] = true
				}
			}
			return true
		})
	})
	known["version"] = true
	blocks := regexp.MustCompile("(?s)```json\n(.*?)\n```").FindAllStringSubmatch(read(t, "docs/cli.md"), -1)
	if len(blocks) < 15 {
		t.Errorf("only %d blocks of JSON were found", len(blocks))
	}
	for _, b := range blocks {
		var v any
		if err := json.Unmarshal([]byte(b[1]), &v); err != nil {
			t.Errorf("%v in %s", err, b[1])
		}
		for _, name := range members(v) {
			if !known[name] {
				t.Errorf("docs/cli.md shows a member %q, which nothing prints", name)
			}
		}
	}
}

// members are the names in a JSON value; labels are the application's own.
func members(v any) (list []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, x := range v {
			list = append(list, name)
			if name != "labels" {
				list = append(list, members(x)...)
			}
		}
	case []any:
		for _, x := range v {
			list = append(list, members(x)...)
		}
	}
	return list
}

// TestArchitectureNamesWhatExists holds that every `package.Name` and
// `package.Type.Method` of ARCHITECTURE.md is declared.
func TestArchitectureNamesWhatExists(t *testing.T) {
	declared, packages := names(t)
	span := regexp.MustCompile("`([a-z]+)((?:\\.[A-Za-z]\\w*){1,2})`")
	found := 0
	for _, m := range span.FindAllStringSubmatch(read(t, "ARCHITECTURE.md"), -1) {
		if !packages[m[1]] || strings.HasSuffix(m[2], ".go") || strings.HasSuffix(m[2], ".db") {
			continue
		}
		found++
		if !declared[m[1]+m[2]] {
			t.Errorf("ARCHITECTURE.md speaks of %s%s, which is not there", m[1], m[2])
		}
	}
	if found < 30 {
		t.Errorf("only %d names were found: does this test still read the page?", found)
	}
}

// names returns all functions, types and methods outside of tests as
// package.Name and package.Type.Method, and all packages.
func names(t *testing.T) (declared, packages map[string]bool) {
	declared, packages = map[string]bool{}, map[string]bool{}
	files(t, 0, func(path, _ string, f *ast.File, _ *token.FileSet) {
		if strings.HasSuffix(path, "_test.go") {
			return
		}
		pkg := f.Name.Name
		packages[pkg] = true
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				declared[pkg+"."+strings.Join(slices.Concat(receiver(d), []string{d.Name.Name}), ".")] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if s, ok := s.(*ast.TypeSpec); ok {
						declared[pkg+"."+s.Name.Name] = true
					}
				}
			}
		}
	})
	return declared, packages
}

// receiver is the name of a method's type, or nothing.
func receiver(d *ast.FuncDecl) []string {
	if d.Recv == nil {
		return nil
	}
	typ := d.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	if i, ok := typ.(*ast.IndexExpr); ok {
		typ = i.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return []string{id.Name}
	}
	return nil
}
