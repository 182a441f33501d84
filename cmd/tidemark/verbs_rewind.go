package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"tidemark"
)

func rewindCommand() *cobra.Command {
	var spec tidemark.RewindSpec
	c := &cobra.Command{Use: "rewind CLONE@POINT | --undo CLONE", Short: "Make a clone or volume again what it was, in place", Args: takes(0, aRef), ValidArgsFunction: rewindable,
		Long: `Make a clone, or a volume that lives here, again what it was at a point of its
own timeline. Its name, port and connection stay. A database is stopped before
and started afterwards; a disk that somebody is connected to is refused.

Nothing is lost: what it held until now is kept as a bookmark, which is printed.
--undo goes back to the bookmark before the last rewind.`,
		Example: "  tidemark rewind dev@-10m\n  tidemark rewind scratch@before-upgrade\n  tidemark rewind --undo dev",
		RunE: func(cmd *cobra.Command, args []string) error {
			if spec.Ref = args[0]; spec.Undo && strings.Contains(spec.Ref, "@") {
				return usage(errors.New("--undo goes to the point before the last rewind: leave the point out, or --undo"))
			}
			return work(cmd, func(r tidemark.Rewound) {
				fmt.Printf("%s is again what it was at %s: %s written back in %s\n", r.Name, when(r.Time), size(r.ChangedBytes), seconds(r.Seconds))
				fmt.Printf("what it held until now is %s@%s; tidemark rewind --undo %s takes it back\n", r.Name, r.Before, r.Name)
			})(server().Rewind(cmd.Context(), spec))
		}}
	c.Flags().BoolVar(&spec.Undo, "undo", false, "go to the point before the last rewind")
	return c
}

// rewindable completes with clones and volumes.
func rewindable(cmd *cobra.Command, args []string, part string) ([]string, cobra.ShellCompDirective) {
	v, d := volumeNames(cmd, args, part)
	k, _ := cloneNames(cmd, args, part)
	return append(v, k...), d
}
