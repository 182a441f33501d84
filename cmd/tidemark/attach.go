package main

import (
	"os"

	"github.com/spf13/cobra"

	"tidemark/mount"
)

// attachCommand is the process that keeps one disk attached; the server starts it.
func attachCommand() *cobra.Command {
	return &cobra.Command{Use: "attach", Hidden: true, Args: takes(0), RunE: func(cmd *cobra.Command, _ []string) error {
		cfg, err := mount.ReadAttachConfig(os.Stdin)
		if err != nil {
			return usage(err)
		}
		return mount.RunAttacher(cmd.Context(), cfg)
	}}
}
