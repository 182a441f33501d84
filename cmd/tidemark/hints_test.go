package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestHintsNameCommands: every command that a message of the program names is one that there is, with these options.
func TestHintsNameCommands(t *testing.T) {
	top := root()
	top.InitDefaultHelpCmd()
	found, tree := 0, filepath.Join("..", "..")
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != tree && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Error(err)
			}
			for _, command := range commandsIn(text) {
				found++
				if wrong := unknownIn(top, command); wrong != "" {
					t.Errorf("%s: `tidemark %s`: %s", set.Position(literal.Pos()), command, wrong)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 150 {
		t.Errorf("only %d commands were found", found)
	}
	for command, want := range map[string]bool{"hosts": false, "%ss": false, "clones": true, "clone rm dev": true, "host": false, "host list": false, "host ls": true,
		"restore APP --to": true, "restore APP --into": false, "jobs --all": true, "": false} {
		if wrong := unknownIn(top, command); (wrong == "") != want {
			t.Errorf("%q: %q", command, wrong)
		}
	}
}

// commandsIn are the commands that stand in backquotes in a text; of one that is put together of several texts, what is in this one.
func commandsIn(text string) (list []string) {
	for _, m := range regexp.MustCompile("`tidemark ([^`]*)").FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	return list
}

// unknownIn says what of a command there is not; empty: it is one.
func unknownIn(c *cobra.Command, command string) string {
	words := strings.Fields(command)
	for len(words) > 0 {
		sub, _, err := c.Find(words[:1])
		if err != nil || sub == c {
			break
		}
		c, words = sub, words[1:]
	}
	if !c.HasParent() {
		return "there is no such command"
	}
	if c.HasSubCommands() && !strings.Contains(c.Use, " ") && !takesNone(c) {
		return "it is a group of commands, and names none of them"
	}
	for _, word := range words {
		name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if len(name) > 1 && strings.HasPrefix(word, "--") && c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil {
			return "it has no --" + name
		}
	}
	return ""
}

// takesNone reports whether a command that has others is one itself, as sla is: one that is none refuses to be called without one of them.
func takesNone(c *cobra.Command) bool {
	return c.Args != nil && c.Args(c, []string{"a", "b", "c", "d"}) != nil
}
