// Command tidemark is the server, the agent of a disk, and every verb of the
// operator.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"tidemark"
)

func main() { os.Exit(run()) }

// run returns 0 for success, 1 for a failure, and 2 for wrong usage.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var u *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &u):
		fmt.Fprintf(os.Stderr, "tidemark: %v\n", err)
		return 2
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "tidemark: interrupted; a job that was begun goes on: `tidemark jobs`")
		return 1
	}
	fmt.Fprintf(os.Stderr, "tidemark: %v\n", err)
	return 1
}

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func usage(err error) error {
	if err == nil {
		return nil
	}
	return &usageError{err}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:   "tidemark",
		Short: "Keep everything a disk or database has been; hand any moment of it back",
		Long: `Tidemark captures databases, file systems and volumes, incremental forever,
keeps every state once, deduplicated and compressed, and hands any of them back
in seconds as a disk or a running database.

A point is written APP@POINT, where POINT is latest, a bookmark, a position such
as #8123, a time such as 2026-11-23T02:41:07Z, or -5m for five minutes ago.`,
		SilenceErrors: true, SilenceUsage: true, Version: tidemark.Version,
	}
	c.PersistentFlags().StringVar(&flags.socket, "socket", "", "the server's socket (default $TIDEMARK_SOCKET, or that of "+defaultData+")")
	c.PersistentFlags().BoolVar(&flags.json, "json", false, "print facts as JSON")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	c.AddGroup(&cobra.Group{ID: "server", Title: "Server:"}, &cobra.Group{ID: "protect", Title: "Protect and capture:"},
		&cobra.Group{ID: "use", Title: "Use points:"}, &cobra.Group{ID: "keep", Title: "Keep house:"})
	for group, commands := range map[string][]*cobra.Command{
		"server":  {serverCommand(), demoCommand(), statusCommand(), jobsCommand(), jobCommand(), poolCommand()},
		"protect": {discoverCommand(), protectCommand(), unprotectCommand(), captureCommand(), bookmarkCommand(), volumeCommand()},
		"use":     {pointsCommand(), exportCommand(), exportsCommand(), unexportCommand(), mountCommand(), mountsCommand(), unmountCommand(), cloneCommand(), clonesCommand(), refreshCommand(), restoreCommand(), diffCommand()},
		"keep":    {expireCommand(), reclaimCommand(), verifyCommand()},
	} {
		for _, sub := range commands {
			sub.GroupID = group
			c.AddCommand(sub)
		}
	}
	c.AddCommand(attachCommand(), versionCommand())
	wrapArgs(c)
	return c
}

// wrapArgs makes wrong arguments of any command count as wrong usage, and says how it is used.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usage(fmt.Errorf("%w: usage: %s", err, cmd.UseLine()))
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return show(map[string]string{"version": tidemark.Version}, func() { fmt.Println("tidemark", tidemark.Version) })
	}}
}
