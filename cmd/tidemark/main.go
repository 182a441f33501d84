// Command tidemark is the server, the agent of a disk, and every verb of the
// operator.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"tidemark"
)

func main() { os.Exit(tidemarkMain()) }

// tidemarkMain does what the command line says and tells what went wrong, in one line.
func tidemarkMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "tidemark: %s\n", oneLine(err))
	}
	return exitCode(err)
}

func oneLine(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted; a job that was begun goes on: `tidemark jobs`"
	}
	return strings.Join(strings.Fields(err.Error()), " ")
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
		SilenceErrors: true, SilenceUsage: true, Version: tidemark.Version, SuggestionsMinimumDistance: 2,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.SetUsageTemplate(strings.ReplaceAll(c.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	c.PersistentFlags().StringVar(&flags.socket, "socket", "", "the server's socket (default $TIDEMARK_SOCKET, or "+filepath.Join(defaultData, socketName)+")")
	c.PersistentFlags().StringVar(&flags.server, "server", "", "a server on the network instead, as https://HOST:PORT (default $TIDEMARK_SERVER,\nor the one that was logged in to)")
	c.PersistentFlags().StringVar(&flags.ca, "ca", "", "the certificate of its authority, a PEM file (default $TIDEMARK_CA)")
	c.PersistentFlags().StringVar(&flags.tokenFile, "as", "", "act by the API token in this file (default $TIDEMARK_TOKEN_FILE)")
	c.PersistentFlags().BoolVar(&flags.json, "json", false, "print facts as JSON")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	c.AddGroup(&cobra.Group{ID: "server", Title: "Server:"}, &cobra.Group{ID: "protect", Title: "Protect and capture:"},
		&cobra.Group{ID: "use", Title: "Use points:"}, &cobra.Group{ID: "access", Title: "Who may do what:"}, &cobra.Group{ID: "keep", Title: "Keep house:"})
	for group, commands := range map[string][]*cobra.Command{
		"server":  {serverCommand(), agentCommand(), hostCommand(), demoCommand(), statusCommand(), jobsCommand(), jobCommand(), poolCommand(), webhookCommand(), apiCommand()},
		"protect": {discoverCommand(), protectCommand(), unprotectCommand(), captureCommand(), bookmarkCommand(), groupCommand(), applyCommand(), slaCommand(), profileCommand(), workflowCommand(), resyncCommand(), volumeCommand()},
		"use":     {pointsCommand(), exportCommand(), exportsCommand(), unexportCommand(), mountCommand(), mountsCommand(), unmountCommand(), cloneCommand(), clonesCommand(), refreshCommand(), liveCloneCommand(), liveClonesCommand(), rewindCommand(), proveCommand(), restoreCommand(), diffCommand(), bisectCommand()},
		"access":  {loginCommand(), logoutCommand(), whoamiCommand(), userCommand(), userGroupCommand(), grantCommand(), tokenCommand(), auditCommand()},
		"keep":    {changesCommand(), expireCommand(), reclaimCommand(), forgetCommand(), verifyCommand()},
	} {
		for _, sub := range commands {
			sub.GroupID = group
			c.AddCommand(sub)
		}
	}
	for _, path := range []string{"protect", "capture", "clone", "refresh", "rewind", "restore", "group restore", "volume import", "reclaim", "verify", "prove", "pool import"} {
		job, _, err := c.Find(strings.Fields(path))
		if err != nil {
			panic(err) // there is such a command
		}
		job.Flags().BoolVar(&flags.queue, "queue", false, "wait until it can begin, where it would be refused because a job of its\napplication runs")
	}
	c.AddCommand(attachCommand(), tapCommand(), guardCommand(), sandboxCommand(), roomCommand(), versionCommand())
	tellFailures(c)
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Example: "  tidemark version --json", Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		return show(map[string]string{"version": tidemark.Version}, func() { fmt.Println("tidemark", tidemark.Version) })
	}}
}
