package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
)

func changesCommand() *cobra.Command {
	var f tidemark.ChangeFilter
	var limit int
	c := &cobra.Command{Use: "changes [APP]", Short: "Follow what changes: points, gaps, clones and mounts", Args: takes(1, aName), ValidArgsFunction: anyName,
		Long: `Print what changes on timelines, as it changes, until it is interrupted: points
that are made and removed, published and proven, gaps, applications, clones and
mounts that come and go, rewinds and restores. With APP, only of that one, and
that clones and mounts of it come and go.

With --json there is one object a line: a change; or a sync, which says that
what was known before has to be looked at again, as at the beginning.`,
		Example: "  tidemark changes\n  tidemark changes orders --limit 1\n  tidemark changes --json | jq -r '.change.kind // empty'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usage(tidemark.Errorf(tidemark.Invalid, "%d changes cannot be printed", limit).WithHint("give 1 or more, or leave --limit out"))
			}
			if len(args) > 0 {
				f.Application = args[0]
			}
			return printChanges(cmd, f, limit)
		}}
	c.Flags().StringVar(&f.After, "after", "", "go on behind the change with this id")
	c.Flags().BoolVar(&f.Advances, "advances", false, "also print how far timelines have come, at most once a second")
	c.Flags().IntVar(&limit, "limit", 0, "end after so many changes")
	return c
}

// printChanges prints changes until limit of them were, or, if that is 0, without end.
func printChanges(cmd *cobra.Command, f tidemark.ChangeFilter, limit int) error {
	out := json.NewEncoder(os.Stdout)
	last, n := f.After, 0
	for m, err := range server().FollowChanges(cmd.Context(), f) {
		switch {
		case err != nil && cmd.Context().Err() != nil:
			return nil // it was interrupted, which is how it ends
		case err != nil && last != f.After:
			return tidemark.Errorf(tidemark.Unavailable, "the server sends no more changes: %w", err).WithHint("`tidemark changes --after " + last + "` goes on")
		case err != nil:
			return err
		}
		if flags.json {
			if err := out.Encode(m); err != nil {
				return err
			}
		} else if line := changeLine(m); line != "" {
			fmt.Println(line)
		}
		if m.Sync != nil {
			last = m.Sync.ID
		}
		if m.Change == nil {
			continue
		}
		last = m.Change.ID
		if n++; n == limit {
			return nil
		}
	}
	return nil
}

// changeLine is a message as people read it; empty: it tells them nothing.
func changeLine(m tidemark.ChangeMessage) string {
	const form = "15:04:05.000"
	switch {
	case m.Advance != nil:
		a := m.Advance
		return fmt.Sprintf("%s  %-19s  %s@%s", a.Time.Local().Format(form), "advance", a.Application, a.Position)
	case m.Sync != nil && m.Sync.Reason == tidemark.SyncMissed:
		return "changes were missed here: list again what you need to know"
	case m.Sync != nil && m.Sync.Reason == tidemark.SyncRights:
		return "you may see more, or less, from here on: list again what you need to know"
	case m.Change == nil:
		return ""
	}
	x := m.Change
	parts := []string{x.Application}
	if p := x.Point; p != nil {
		parts[0] += "@" + p.Position.String()
		if p.Bookmark != "" {
			parts = append(parts, p.Bookmark)
		}
	}
	if x.Of != "" {
		parts = append(parts, "of "+x.Of)
	}
	if x.Gap != nil && x.Gap.Reason != "" {
		parts = append(parts, x.Gap.Reason)
	}
	if x.Reason != "" {
		parts = append(parts, x.Reason)
	}
	return fmt.Sprintf("%s  %-19s  %s", x.Time.Local().Format(form), x.Kind, strings.Join(parts, "  "))
}
