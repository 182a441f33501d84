package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// TestHelp holds the help of every verb to three rules: it has an example, its
// examples are true (the verb takes those flags and arguments), and no line is
// wider than a terminal.
func TestHelp(t *testing.T) {
	root().InitDefaultHelpCmd()
	visit(root(), func(c *cobra.Command) {
		var help bytes.Buffer
		c.SetOut(&help)
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(help.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > lineWidth {
				t.Errorf("help of %q: %d columns: %s", c.CommandPath(), n, line)
			}
		}
		if c.HasSubCommands() && c.Name() != "clone" {
			return
		}
		if c.Example == "" {
			t.Errorf("%q has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			line, _, _ = strings.Cut(line, "|")
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "tidemark ") {
				checkExample(t, line)
			}
		}
	})
}

func visit(c *cobra.Command, fn func(*cobra.Command)) {
	fn(c)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			visit(sub, fn)
		}
	}
}

// checkExample parses a command line as the program would, and does not run it.
func checkExample(t *testing.T, line string) {
	c, rest, err := root().Find(strings.Fields(strings.ReplaceAll(line, "'", ""))[1:])
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil {
		err = c.ValidateArgs(c.Flags().Args())
	}
	if err == nil {
		err = c.ValidateRequiredFlags()
	}
	if err != nil || !c.HasParent() {
		t.Errorf("the example %q is wrong: %v", line, err)
	}
}
