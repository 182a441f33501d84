package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// layers is the direction of imports: a package may import only packages of a
// lower layer, and itself's parents and children of the same layer never.
// It is the table of ARCHITECTURE.md.
var layers = [][]string{
	{"", "block", "internal/vfs", "internal/socket", "internal/guard", "internal/process", "internal/mountinfo", "internal/room", "internal/shared", "internal/strictyaml", "internal/again"},
	{"journal", "object", "capture", "export", "app", "wire", "policy", "workflow", "access", "catalog"},
	{"image"},
	{"timeline"},
	{"mount", "agent"},
	{"control"},
	{"api", "client"},
	{"cmd", "bench", "internal/survive"},
}

// sideways lists the imports within a layer that are meant.
var sideways = map[string][]string{
	"internal/vfs":   nil,
	"client":         {"api"},
	"agent":          {"mount"},
	"agent/taps":     nil,
	"agent/remote":   nil,
	"agent/proof":    {"mount"},
	"app/postgres":   {"app/internal", "app/delta"},
	"app/filesystem": {"app/delta"},
	"wire":           {"capture"},
	"catalog":        {"access"},
	"workflow":       {"policy"},
}

func layerOf(pkg string) int {
	for i, names := range layers {
		for _, n := range names {
			if pkg == n || n != "" && strings.HasPrefix(pkg, n+"/") {
				return i
			}
		}
	}
	return -1
}

// files calls fn for every Go file of the repository.
func files(t *testing.T, mode parser.Mode, fn func(path, pkg string, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, mode)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(rel)
		if pkg == "." {
			pkg = ""
		}
		fn(path, pkg, f, fset)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportsGoDown(t *testing.T) {
	files(t, parser.ImportsOnly, func(path, pkg string, f *ast.File, _ *token.FileSet) {
		if strings.HasSuffix(path, "_test.go") || pkg == "internal/tidy" {
			return
		}
		from := layerOf(pkg)
		if from < 0 {
			t.Errorf("%s: package %q has no layer: add it to the table", path, pkg)
			return
		}
		for _, imp := range f.Imports {
			target, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), "tidemark/")
			if strings.Trim(imp.Path.Value, `"`) == "tidemark" {
				target, ours = "", true
			}
			if !ours || family(pkg, target) || slices.Contains(sideways[pkg], target) {
				continue
			}
			if to := layerOf(target); to < 0 || to > from || to == from && from > 0 {
				t.Errorf("%s: %q (layer %d) imports %q (layer %d)", path, pkg, from, target, to)
			}
		}
	})
}

// family reports that one package is below the other in the same top directory.
func family(a, b string) bool {
	return a != "" && b != "" && (strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")) || a == "internal/vfs" && b == ""
}

// What a rename has replaced can come back after a power cut, unless the directory is synced, too (F1).
func TestOnlyVFSRenames(t *testing.T) {
	call := regexp.MustCompile(`^(os|fs|FS)$`)
	files(t, 0, func(path, pkg string, f *ast.File, fset *token.FileSet) {
		if pkg == "internal/vfs" || pkg == "bench" || strings.HasSuffix(path, "_test.go") {
			return // the seam itself, and those that keep nothing
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "Rename" {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && call.MatchString(x.Name) {
				t.Errorf("%s: %s.Rename: durable names are made by vfs.WriteFile and vfs.Rename, which sync the directory", fset.Position(s.Pos()), x.Name)
			}
			return true
		})
	})
}

func TestPackagesSayWhatTheyProvide(t *testing.T) {
	documented := map[string]bool{}
	files(t, parser.PackageClauseOnly|parser.ParseComments, func(path, pkg string, f *ast.File, _ *token.FileSet) {
		if !strings.HasSuffix(path, "_test.go") {
			documented[pkg] = documented[pkg] || f.Doc != nil
		}
	})
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %q has no package comment", pkg)
		}
	}
}

func TestExportsAreDocumented(t *testing.T) {
	files(t, parser.ParseComments, func(path, pkg string, f *ast.File, fset *token.FileSet) {
		if strings.HasSuffix(path, "_test.go") || f.Name.Name == "main" {
			return
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
					t.Errorf("%s: %s has no doc comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if s, ok := s.(*ast.TypeSpec); ok && s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
						t.Errorf("%s: %s has no doc comment", fset.Position(s.Pos()), s.Name.Name)
					}
				}
			}
		}
	})
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	if s, ok := typ.(*ast.StarExpr); ok {
		typ = s.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func TestFilesStaySmall(t *testing.T) {
	files(t, parser.PackageClauseOnly, func(path, _ string, _ *ast.File, _ *token.FileSet) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(data), "\n"); n > 800 {
			t.Errorf("%s has %d lines: the noun is wrong, split it", path, n)
		}
	})
}
