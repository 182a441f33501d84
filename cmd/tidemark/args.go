package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
)

// usageError is a mistake in how the command was called: exit code 2.
type usageError struct{ error }

func (u *usageError) Unwrap() error { return u.error }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

// failure is what went wrong in a command that was called rightly: exit code 1.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// exitCode is 0 for success, 1 for a failure, and 2 for wrong usage, which is
// all that is found before a command runs, and what a command calls so.
func exitCode(err error) int {
	var wrong *usageError
	var failed *failure
	switch {
	case err == nil:
		return 0
	case errors.As(err, &failed) && !errors.As(err, &wrong):
		return 1
	}
	return 2
}

// argument says what an argument has to be, and checks it before anything is asked of the server.
type argument struct {
	check func(string) error
}

var (
	aName     = argument{tidemark.CheckName}
	aBookmark = argument{tidemark.CheckBookmark} // a new one
	aRef      = argument{func(s string) error {
		_, err := tidemark.ParseRef(s)
		return err
	}}
	aAny = argument{func(s string) error {
		if s == "" {
			return errors.New("an argument is empty")
		}
		return nil
	}}
)

// takes makes a command take these arguments, the last of which may be left out
// where optional is set.
func takes(optional int, want ...argument) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(want)-optional || len(args) > len(want) {
			return usage(fmt.Errorf("usage: %s", strings.TrimSuffix(cmd.UseLine(), " [flags]")))
		}
		for i, a := range args {
			if err := want[i].check(a); err != nil {
				return usage(err)
			}
		}
		return nil
	}
}

// checkBookmark checks the name of a new bookmark, which may be left out.
func checkBookmark(name string) error {
	if name == "" {
		return nil
	}
	return usage(tidemark.CheckBookmark(name))
}

// group makes a command that only holds others say so.
func group(c *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	c.AddCommand(subs...)
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		var names []string
		for _, s := range cmd.Commands() {
			if s.IsAvailableCommand() {
				names = append(names, s.Name())
			}
		}
		if len(args) > 0 {
			return usage(unknownCommand(cmd, args[0]))
		}
		return usage(fmt.Errorf("usage: %s %s …: `%s --help` says more", cmd.CommandPath(), strings.Join(names, "|"), cmd.CommandPath()))
	}
	return c
}

// unknownCommand is the error about a verb that is none.
func unknownCommand(c *cobra.Command, verb string) error {
	if like := c.SuggestionsFor(verb); len(like) > 0 {
		return fmt.Errorf("%s has no command %q: did you mean %s?", c.CommandPath(), verb, strings.Join(like, " or "))
	}
	return fmt.Errorf("%s has no command %q: `%s --help` lists them", c.CommandPath(), verb, c.CommandPath())
}

// tellFailures makes errors of commands failures, so that all others are wrong usage.
func tellFailures(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil {
				return &failure{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		tellFailures(sub)
	}
}
