package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark"
)

func groupCommand() *cobra.Command {
	return group(&cobra.Command{Use: "group", Short: "Tapped applications that are bookmarked in one moment"},
		groupJoin(), groupLeave(), groupSet(), groupList(), groupBookmark(), groupClone(), groupRestore())
}

// namesFrom checks that there are at least so many arguments, all of them names.
func namesFrom(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return usage(fmt.Errorf("usage: %s", cmd.UseLine()))
		}
		for _, a := range args {
			if err := tidemark.CheckName(a); err != nil {
				return usage(err)
			}
		}
		return nil
	}
}

func printGroup(g tidemark.Group) {
	if len(g.Members) == 0 {
		fmt.Println(g.Name, "has no members any more, and is gone")
		return
	}
	fmt.Println(g.Name+":", strings.Join(g.Members, ", "))
	if len(g.Options) > 0 {
		fmt.Println("options:", groupOptions(g))
	}
	if g.SLA != "" {
		fmt.Println("template:", g.SLA)
	}
}

// groupOptions are the options of a group in one line.
func groupOptions(g tidemark.Group) string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(g.Options)) {
		list = append(list, key+"="+g.Options[key])
	}
	return strings.Join(list, " ")
}

// changeGroup asks for a change of a group.
func changeGroup(cmd *cobra.Command, spec tidemark.GroupSpec, options []string) (err error) {
	if spec.Options, err = parseOptions(options); err != nil {
		return usage(err)
	}
	return tell(printGroup)(server().ChangeGroup(cmd.Context(), spec))
}

func groupJoin() *cobra.Command {
	var options []string
	c := &cobra.Command{Use: "join GROUP APP...", Short: "Let applications join a group, which is made by its first", Args: namesFrom(2), ValidArgsFunction: appNames,
		Example: "  tidemark group join bank ledger queue -o appshot=1m",
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeGroup(cmd, tidemark.GroupSpec{Name: args[0], Join: args[1:]}, options)
		}}
	c.Flags().StringArrayVarP(&options, "option", "o", nil, "KEY=VALUE of the group: see group set")
	return c
}

func groupSet() *cobra.Command {
	var options []string
	c := &cobra.Command{Use: "set GROUP -o KEY=VALUE...", Short: "Change the options of a group", Args: takes(0, aName),
		Long:    "Change the options of a group. appshot=INTERVAL bookmarks it by itself, and\nappshot_keep=TIME says for how long these bookmarks are kept; by default as\nlong as each member's window. An empty value takes an option away.",
		Example: "  tidemark group set bank -o appshot=5m -o appshot_keep=72h\n  tidemark group set bank -o appshot= -o appshot_keep=",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(options) == 0 {
				return usage(errors.New("give at least one option: -o appshot=1m"))
			}
			return changeGroup(cmd, tidemark.GroupSpec{Name: args[0]}, options)
		}}
	c.Flags().StringArrayVarP(&options, "option", "o", nil, "KEY=VALUE: appshot=INTERVAL, appshot_keep=TIME")
	return c
}

func groupLeave() *cobra.Command {
	return &cobra.Command{Use: "leave GROUP APP...", Short: "Let applications leave a group, which goes with its last", Args: namesFrom(2), ValidArgsFunction: appNames,
		Example: "  tidemark group leave bank queue",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(printGroup)(server().ChangeGroup(cmd.Context(), tidemark.GroupSpec{Name: args[0], Leave: args[1:]}))
		}}
}

func groupList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List groups", Args: takes(0), Example: "  tidemark group ls", RunE: func(cmd *cobra.Command, _ []string) error {
		return printList(server().Groups(cmd.Context()), func(list []tidemark.Group) {
			var rows [][]string
			for _, g := range list {
				rows = append(rows, []string{g.Name, strings.Join(g.Members, ", "), dash(groupOptions(g)), dash(g.SLA)})
			}
			table("GROUP MEMBERS OPTIONS TEMPLATE", rows)
		})
	}}
}

func groupBookmark() *cobra.Command {
	return &cobra.Command{Use: "bookmark GROUP NAME", Short: "Mark one moment of all members; no data is copied", Args: takes(0, aName, aBookmark),
		Long:    "Mark one moment of all members. Each is made still as by `bookmark`, and then\nthe writes of all of them are held for the moment of the marks: no member has\na write without the ones before it on the others. A member is recovered alone,\nas APP@NAME, or with the group, by `group clone`.",
		Example: "  tidemark group bookmark bank before-closing",
		RunE: func(cmd *cobra.Command, args []string) error {
			return tell(func(g tidemark.GroupPoint) {
				for _, p := range g.Points {
					fmt.Printf("%s@%s  %v  %s-consistent\n", p.Application, p.Bookmark, p.Position, p.Consistency)
					printNotes(p.RecoveryPoint)
				}
				fmt.Printf("writes held for %.1f ms\n", g.Hold)
			})(server().BookmarkGroup(cmd.Context(), tidemark.BookmarkSpec{Application: args[0], Name: args[1]}))
		}}
}

func groupClone() *cobra.Command {
	return &cobra.Command{Use: "clone GROUP@NAME PREFIX", Short: "Clone all members at a bookmark of the group", Args: takes(0, aRef, aName),
		Long:    "Clone each member at a bookmark of the group, under PREFIX-MEMBER. Either all\nclones are made, or none.",
		Example: "  tidemark group clone bank@before-closing test",
		RunE:    func(cmd *cobra.Command, args []string) error { return cloneGroup(cmd, args[0], args[1]) }}
}

func groupRestore() *cobra.Command {
	var spec tidemark.RestoreSpec
	c := &cobra.Command{Use: "restore GROUP@POINT --in-place", Short: "Take the disks of all members back to one moment", Args: takes(0, aRef),
		Long: `Take the disks of all members back to a bookmark of the group, or a time, as
restore --in-place does for one. Nothing is written unless the disks of all
members can be had, on all hosts. What they held until then is a bookmark of the
group, and a clone of each; to restore that bookmark in place undoes it.`,
		Example: "  tidemark group restore bank@before-closing --in-place",
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Ref = args[0]
			group, _, _ := strings.Cut(spec.Ref, "@")
			if !spec.InPlace {
				return usage(errors.New("give --in-place; a member alone is restored by `tidemark restore`"))
			}
			return work(cmd, printGroupRestored)(server().RestoreGroup(cmd.Context(), group, spec))
		}}
	c.Flags().BoolVar(&spec.InPlace, "in-place", false, "take the tapped disks themselves back")
	return c
}

func printGroupRestored(g tidemark.GroupRestored) {
	for _, m := range g.Members {
		fmt.Printf("%s, %s: %s differed; what it held is the clone %s\n", m.Application, m.To, size(m.Changed), m.Before)
	}
	fmt.Printf("%s is what it was, in %s; to undo this: tidemark group restore %s@%s --in-place\n", g.Ref, seconds(g.Seconds), g.Group, g.Before)
}

// cloneGroup clones the members of a group that have a bookmark.
func cloneGroup(cmd *cobra.Command, ref, prefix string) error {
	name, bookmark, ok := strings.Cut(ref, "@")
	if !ok {
		return usage(errors.New("name a bookmark of the group: GROUP@NAME"))
	}
	g, err := server().Group(cmd.Context(), name)
	if err != nil {
		return err
	}
	clones, err := cloneMembers(cmd, g.Members, bookmark, prefix)
	if err != nil {
		return err
	}
	return show(clones, func() {
		for _, k := range clones {
			fmt.Printf("%s  %s\n", k.Name, k.Connection)
		}
	})
}

// undoTime is how long it is tried to take clones back that are of no use. An interrupted command does that, too.
const undoTime = time.Minute

// cloneMembers clones members at their bookmarks of one name, all or none.
func cloneMembers(cmd *cobra.Command, members []string, bookmark, prefix string) ([]tidemark.Clone, error) {
	undo, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), undoTime)
	defer cancel()
	clones := []tidemark.Clone{}
	for _, member := range members {
		k, err := cloneMember(cmd, undo, tidemark.CloneSpec{Ref: member + "@" + bookmark, Name: prefix + "-" + member})
		if err == nil {
			clones = append(clones, k)
			continue
		}
		for _, made := range clones {
			if rerr := server().RemoveClone(undo, made.Name); rerr != nil {
				err = fmt.Errorf("%w; besides, the clone %s was not removed: %w", err, made.Name, rerr)
			}
		}
		return nil, err
	}
	return clones, nil
}

// errInterrupted: the command was, and has taken back what it had made.
var errInterrupted = tidemark.Errorf(tidemark.Cancelled, "interrupted: no clone was made")

// cloneMember makes one clone. If the command is interrupted, it is taken back.
func cloneMember(cmd *cobra.Command, undo context.Context, spec tidemark.CloneSpec) (k tidemark.Clone, err error) {
	if cmd.Context().Err() != nil {
		return k, errInterrupted
	}
	bar := newProgress(cmd.Name())
	defer bar.finish()
	j, err := server().Clone(undo, spec)
	if err != nil {
		return k, err
	}
	err = server().Wait(cmd.Context(), j.ID, &k, bar.report)
	if cmd.Context().Err() == nil {
		return k, err
	}
	if err := takeBack(undo, j.ID, spec.Name); err != nil {
		return k, fmt.Errorf("interrupted; the clone %s may be left: %w", spec.Name, err)
	}
	return k, errInterrupted
}

// takeBack cancels the job that makes a clone, and removes the clone if it was made all the same.
func takeBack(ctx context.Context, job int64, name string) error {
	cancelled := server().Cancel(ctx, job) // one that has ended cannot be
	err := server().Wait(ctx, job, nil, nil)
	switch {
	case err == nil:
		return server().RemoveClone(ctx, name)
	case tidemark.KindOf(err) == tidemark.Unavailable || ctx.Err() != nil: // nobody knows how it ended
		return errors.Join(cancelled, err)
	}
	return nil // it has cleaned up behind itself
}
